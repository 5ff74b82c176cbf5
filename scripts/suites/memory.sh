# shellcheck shell=bash disable=SC2034
# What the daemon holds for a million nodes, in large directories and in small ones, and whether it gives that back; how one
# directory of them all is listed; then months of work, as fast as it goes (--quick: 200,000 nodes, and weeks).

suite_memory() {
    if [[ $FS != uaufs ]]; then
        skip "memory: only for uaufs"
        return
    fi
    local nodes=1000000 rounds=400 mode modes=(udba=reval udba=notify)
    if [[ -n $QUICK ]]; then nodes=200000 rounds=64 modes=(udba=notify); fi
    memory_walk "large directories" "$nodes" 1000 200
    # One node in ten is a directory, and these take 850 bytes with all that they hold.
    memory_walk "small directories" "$nodes" 9 250
    memory_mount udba=none "$nodes" "$nodes"
    memory_case "one directory" list "$nodes"
    for mode in "${modes[@]}"; do
        memory_mount "$mode"
        memory_case "churn, $mode" churn "$rounds"
    done
}

# memory_mount OPTIONS [NODES PER_DIRECTORY]: both branches in memory, so that nothing is measured but the daemon.
memory_mount() {
    mkdir "$WORK/memory"
    mount -t tmpfs -o nr_inodes=0 tmpfs "$WORK/memory"
    mkdir "$WORK"/memory/{lower,upper,union}
    if [[ -n ${2:-} ]]; then "$TOOLS/memwork" fill "$WORK/memory/lower" "$2" "$3"; fi
    "$UAUFS" -o "br=$WORK/memory/upper=rw:$WORK/memory/lower=ro,$1" none "$WORK/memory/union"
}

# memory_walk LABEL NODES PER_DIRECTORY BYTES
memory_walk() {
    memory_mount udba=none "$2" "$3"
    memory_case "$1" walk "$2" "$4"
}

# memory_case LABEL WHAT NUMBER...: on what is mounted; unmounts it.
memory_case() {
    local label=$1 what=$2 status=0
    shift 2
    timeout -k 10 1200 "$TOOLS/memwork" "$what" "$WORK/memory/union" "$UAUFS" "$@" >"$WORK/memory.out" 2>&1 || status=$?
    if ((status == 0)); then pass; else fail "memory, $label: $(tail -n 1 "$WORK/memory.out")"; fi
    sed "s/^/$label: /" "$WORK/memory.out" | log
    unmount_below "$WORK/memory"
    rm -rf "$WORK/memory"
}
