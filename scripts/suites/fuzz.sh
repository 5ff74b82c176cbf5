# shellcheck shell=bash
# Random steps (tests/fuzz) on uaufs, on the kernel's overlayfs and on ext4 that hold the same layers: answers and trees
# must be equal, also after a remount and on each other's branches. A case that fails is made small and printed.

# fuzz_disk: an ext4 of its own in memory at $WORK/f, where that is possible; else a directory.
fuzz_disk() {
    local image
    mkdir "$WORK/f"
    image=$(mktemp /dev/shm/uaufs-fuzz.XXXXXX) || return 0
    if ! { truncate -s 2G "$image" && mkfs.ext4 -q "$image" && mount -o loop "$image" "$WORK/f" 2>/dev/null; }; then
        say "fuzz: no loop device: the runs take place on $(df --output=fstype "$WORK" | tail -n 1)"
    fi
    # It lives as long as it is mounted.
    rm -f "$image"
}

# fuzz_run OPTION...: runs the program and counts what it says at its end.
fuzz_run() {
    local log=$WORK/fuzz.log status=0
    # Mounts that another mount namespace copies would stay in use there.
    unshare -m --propagation private "$TARGET/debug/examples/fuzz" --dir "$WORK/f" --uaufs "$UAUFS" "$@" >"$log" 2>&1 || status=$?
    if [[ $(tail -n 1 "$log") =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]]; then
        PASSED=$((PASSED + BASH_REMATCH[1])) FAILED=$((FAILED + BASH_REMATCH[2]))
        sed '$d' "$log"
    else
        cat "$log"
        fail "fuzz $*: ended with $status"
    fi
}

suite_fuzz() {
    if [[ $FS != uaufs ]]; then
        skip "fuzz: compares uaufs with the others"
        return
    fi
    (cd "$ROOT" && cargo build --quiet --example fuzz) || die "cargo build --example fuzz failed: see the lines above"
    fuzz_disk
    if [[ -n $FUZZ_REPLAY ]]; then
        fuzz_run --replay "$FUZZ_REPLAY"
        return
    fi
    local file replays=()
    for file in "$ROOT"/tests/fuzz/regressions/*.case; do replays+=(--replay "$file"); done
    fuzz_run "${replays[@]}"
    if [[ -n $FUZZ_MINUTES ]]; then
        fuzz_run --minutes "$FUZZ_MINUTES" --seed "${FUZZ_SEED:-$(date +%Y%m%d%H%M)}"
    elif [[ -n $FUZZ_SEED ]]; then
        fuzz_run --runs 1 --seed "$FUZZ_SEED"
    else
        # The same seeds every time: what the quick run says depends on the code alone.
        fuzz_run --runs "$([[ -n $QUICK ]] && echo 40 || echo 400)" --seed 1
        if [[ -z $QUICK ]]; then fuzz_run --runs 10 --seed "$(date +%Y%m%d)000"; fi
    fi
}
