# shellcheck shell=bash disable=SC2034
# The unions that suites run on, by shape:
#   empty         one writable branch over an empty readonly one
#   prepopulated  what the shape is filled with lies in two readonly branches
#   two-rw        two writable branches around a readonly one; the filling lies in the lower writable one
# A suite fills a shape through $FILL before shape_up, and finds the union at $UNION.

# Written by shape_new.
UNION='' FILL='' BRANCHES=()

# shape_new SHAPE: makes empty branches; nothing is mounted yet.
shape_new() {
    shape_down
    SHAPE_NAME=$1
    local top=$WORK/shape
    mkdir -p "$top"/{upper,lower,lower2,upper2,work} "$WORK/u"
    shape_rich lower lower2 upper2
    # A short path: socket names end at 108 bytes.
    UNION=$WORK/u
    case $1 in
        empty) FILL='' BRANCHES=("upper=rw" "lower=ro+wh") ;;
        prepopulated) FILL=$top/lower BRANCHES=("upper=rw" "lower=ro+wh" "lower2=ro+wh") ;;
        two-rw) FILL=$top/upper2 BRANCHES=("upper=rw" "lower=ro+wh" "upper2=rw") ;;
    esac
    if [[ $FS == native ]]; then FILL=''; fi
}

# shape_rich DIR...: where branches lie on a poor filesystem, these of the shape do not.
shape_rich() {
    local dir
    if [[ -z $RICH ]]; then return 0; fi
    for dir in "$@"; do
        mkdir -p "$RICH/$dir"
        mount --bind "$RICH/$dir" "$WORK/shape/$dir"
    done
}

# shape_up: mounts it.
shape_up() {
    local top=$WORK/shape branch list=
    case $FS in
        native) mount --bind "$top/upper" "$UNION" ;;
        overlay)
            local lowers=()
            for branch in "${BRANCHES[@]:1}"; do lowers+=("${branch%%=*}"); done
            (cd "$top" && mount_overlay "$UNION" upper work "${lowers[@]}")
            ;;
        uaufs)
            for branch in "${BRANCHES[@]}"; do list+=${list:+:}$top/$branch; done
            timeout 30 "$UAUFS" -o "br=$list${MODE:+,$MODE}" "$UNION" || die "$SHAPE_NAME: uaufs did not mount"
            ;;
    esac
}

# shape_remount: takes the union off and mounts it again, with everything the kernel knew of it forgotten.
shape_remount() {
    timeout 60 umount "$UNION" || return 1
    shape_up
}

# shape_down: takes the union off and forgets the branches.
shape_down() {
    [[ -d $WORK/shape ]] || return 0
    unmount_below "$WORK/u"
    unmount_below "$WORK/shape"
    rm -rf --one-file-system "$WORK/shape"
    if [[ -n $RICH ]]; then rm -rf --one-file-system "$RICH"; fi
}

# shape_alive: whether the union still answers.
shape_alive() { timeout 10 stat "$UNION" >/dev/null 2>&1; }
