# shellcheck shell=bash disable=SC2034
# The daemon is killed before each call by which it changes a branch, and each of these calls fails (tests/faults,
# docs/reliability.md). --quick: two formats, and one errno and one kill for each call.

suite_faults() {
    if [[ $FS != uaufs ]]; then
        skip "faults: only for uaufs"
        return
    fi
    (cd "$ROOT" && cargo build --quiet --example faults) || die "cargo build --example faults failed: see the lines above"
    local log=$WORK/faults.log status=0 dir
    # A filesystem of its own, in memory: by it the calls on branches are told from others.
    dir=$WORK/faults
    mkdir "$dir"
    mount -t tmpfs tmpfs "$dir"
    # Daemons that a trial leaves behind end with the namespace.
    unshare --mount --pid --fork --mount-proc --kill-child --propagation private \
        "$TARGET/debug/examples/faults" --dir "$dir" --uaufs "$UAUFS" ${QUICK:+--quick} >"$log" 2>&1 || status=$?
    umount "$dir"
    if [[ $(tail -n 1 "$log") =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]]; then
        PASSED=$((PASSED + BASH_REMATCH[1])) FAILED=$((FAILED + BASH_REMATCH[2]))
        sed '$d' "$log"
    else
        cat "$log"
        fail "faults: ended with $status"
    fi
}
