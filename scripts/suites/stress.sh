# shellcheck shell=bash disable=SC2034
# Branches of a live mount come, go and change 1000 times (--quick: 100) while eight processes work on it and check what
# they read. Each way of doing I/O is a case.

suite_stress() {
    if [[ $FS != uaufs ]]; then
        skip "stress: only for uaufs"
        return
    fi
    local options changes=1000
    if [[ -n $QUICK ]]; then changes=100; fi
    for options in udba=reval udba=none udba=none,io=cache udba=notify; do
        mkdir "$WORK/stress"
        if timeout 900 "$TOOLS/livestress" --uaufs "$UAUFS" --work "$WORK/stress" --changes "$changes" \
            --options "$options${MODE:+,$MODE}" --seed "${SEED:-1}" >"$WORK/stress.out" 2>&1; then
            pass
        else
            fail "stress $options: $(grep FAIL "$WORK/stress.out" | tail -n 3)"
        fi
        log <"$WORK/stress.out" | grep daemon || true
        umount -l "$WORK/stress/m" 2>/dev/null || true
        rm -rf "$WORK/stress"
    done
}
