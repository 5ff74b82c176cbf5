# shellcheck shell=bash disable=SC2034
# Branches of a live mount come, go and change 1000 times (--quick: 50) while eight processes work on it and check what
# they read. Each way of doing I/O and of noticing changes is a case, as root and as a plain user.

suite_stress() {
    if [[ $FS != uaufs ]]; then
        skip "stress: only for uaufs"
        return
    fi
    local options changes=1000
    local modes=(udba=reval udba=none "udba=none,io=cache" udba=notify "udba=notify,io=cache" "udba=reval,io=passthrough")
    local users=(udba=none udba=reval udba=notify)
    if [[ -n $QUICK ]]; then changes=50 modes=("${modes[@]::4}") users=(udba=none); fi
    for options in "${modes[@]}"; do stress_case root "$options"; done
    for options in "${users[@]}"; do stress_case user "$options"; done
}

# stress_case WHO OPTIONS
stress_case() {
    local who=$1 options=$2${MODE:+,$MODE} in=() status=0
    mkdir "$WORK/stress"
    if [[ $who == user ]]; then
        chown 1000:1000 "$WORK/stress"
        # In a mount namespace of its own /dev/fuse is as udev leaves it on ordinary hosts.
        mknod -m 666 "${WORK_TOP:-$WORK}/fuse" c 10 229
        # shellcheck disable=SC2016
        in=(unshare --mount sh -ec 'mount --bind "$1" /dev/fuse; shift
            exec setpriv --reuid 1000 --regid 1000 --clear-groups unshare --user --map-root-user --mount "$@"' sh "${WORK_TOP:-$WORK}/fuse")
    fi
    # Nothing is left running in the namespace: a process that hangs would keep its mount.
    timeout -k 10 1200 "${in[@]}" env "XDG_RUNTIME_DIR=$WORK/stress" "$TOOLS/livestress" --uaufs "$UAUFS" \
        --work "$WORK/stress" --changes "$changes" --options "$options" --seed "${SEED:-1}" \
        >"$WORK/stress.out" 2>&1 || status=$?
    if ((status == 0)); then
        pass
    else
        fail "stress, $who, $2: $status: $(grep FAIL "$WORK/stress.out" | tail -n 3)"
    fi
    sed "s/^/$who, $2: /" "$WORK/stress.out" | log | grep -E 'changes:|daemon:|errors:' || true
    unmount_below "$WORK/stress"
    rm -rf "$WORK/stress" "${WORK_TOP:-$WORK}/fuse"
}
