# shellcheck shell=bash disable=SC2034
# The power is lost at every moment of what is done to a union (tests/power, docs/reliability.md). --quick: a third of
# the scenarios, two runs of each.

suite_power() {
    if [[ $FS != uaufs ]]; then
        skip "power: only for uaufs"
        return
    fi
    need_packages e2fsprogs mount
    (cd "$ROOT" && cargo build --quiet --example power) || die "cargo build --example power failed: see the lines above"
    local part parts=4 pids=() pid
    # Mounting waits more than it works: several at a time.
    for ((part = 0; part < parts; part++)); do
        mkdir "$WORK/power$part"
        power_part "$part" "$parts" >"$WORK/power$part.log" 2>&1 &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid" || true; done
    for ((part = 0; part < parts; part++)); do
        if [[ $(tail -n 1 "$WORK/power$part.log") =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]]; then
            PASSED=$((PASSED + BASH_REMATCH[1])) FAILED=$((FAILED + BASH_REMATCH[2]))
            sed '$d' "$WORK/power$part.log"
        else
            cat "$WORK/power$part.log"
            fail "power: part $part ended early"
        fi
    done
}

# power_part N OF: images and logs of disks are in memory; what is mounted or runs ends with the namespaces.
power_part() {
    # shellcheck disable=SC2016
    unshare --mount --pid --fork --mount-proc --kill-child --propagation private bash -c '
        set -e
        mount -t tmpfs tmpfs "$1"
        exec "${@:2}"' power "$WORK/power$1" \
        "$TARGET/debug/examples/power" --dir "$WORK/power$1" --uaufs "$UAUFS" --part "$1/$2" ${QUICK:+--quick}
}
