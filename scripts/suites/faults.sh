# shellcheck shell=bash disable=SC2034
# The daemon is killed before each call by which it changes a branch, and each of these calls fails (tests/faults,
# docs/reliability.md). --quick: some of the cases, in turns by --seed (default: by the time).

FAULTS_SAMPLE=24

suite_faults() {
    if [[ $FS != uaufs ]]; then
        skip "faults: only for uaufs"
        return
    fi
    (cd "$ROOT" && cargo build --quiet --example faults) || die "cargo build --example faults failed: see the lines above"
    local parts part pids=() options=()
    parts=$(nproc)
    if [[ -n $QUICK ]]; then
        options=(--sample "$FAULTS_SAMPLE" --seed "${FUZZ_SEED:-$(($(date +%s) / 60))}")
    fi
    for ((part = 0; part < parts; part++)); do
        faults_part "$part/$parts" "$WORK/faults$part" "${options[@]}" &
        pids+=($!)
    done
    for ((part = 0; part < parts; part++)); do
        faults_result "$WORK/faults$part.log" "${pids[part]}"
    done
}

# faults_part I/N DIR OPTIONS...: runs a share of the cases.
faults_part() {
    local share=$1 dir=$2 status=0
    shift 2
    # A filesystem of its own, in memory: by it the calls on branches are told from others.
    mkdir "$dir"
    mount -t tmpfs tmpfs "$dir"
    # Daemons that a trial leaves behind end with the namespace.
    unshare --mount --pid --fork --mount-proc --kill-child --propagation private \
        "$TARGET/debug/examples/faults" --dir "$dir" --uaufs "$UAUFS" --share "$share" "$@" >"$dir.log" 2>&1 || status=$?
    umount "$dir"
    return "$status"
}

# faults_result LOG PID: waits for a share and counts its cases.
faults_result() {
    local log=$1 status=0
    wait "$2" || status=$?
    if [[ $(tail -n 1 "$log") =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]]; then
        PASSED=$((PASSED + BASH_REMATCH[1])) FAILED=$((FAILED + BASH_REMATCH[2]))
        sed '$d' "$log"
    else
        cat "$log"
        fail "faults: ended with $status"
    fi
}
