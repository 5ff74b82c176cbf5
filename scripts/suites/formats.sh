# shellcheck shell=bash disable=SC2034
# Branches of other union filesystems: what fuse-overlayfs, the kernel's overlayfs and unionfs-fuse wrote shows as the
# same tree in uaufs, as it is and converted; what uaufs wrote in the overlay format shows as the same tree in the first two.

# Below $WORK/f: u over l1 to l3 (the lowest), the work directory w, and the mount point m.

# formats_lower SEED: three plain trees that share names.
formats_lower() {
    local n top=$WORK/f
    mkdir -p "$top"/{u,w,m,l1,l2,l3}
    for n in 1 2 3; do
        mkdir "$top/made"
        "$TOOLS/opstream" "$top/made" --seed "$((100 * $1 + n))" --count 400
        # Another name of a lower file is another file once it was copied up: not what is looked at here.
        cp -a --no-preserve=links "$top/made/." "$top/l$n"
        rm -rf "$top/made"
    done
}

# formats_uaufs OPTIONS: mounts one of ours. umount(8) is back before the daemon of the last one has let go of the branch.
formats_uaufs() {
    local try
    for ((try = 0; try < 50; try++)); do
        if timeout 30 "$UAUFS" -o "$1" "$WORK/f/m" 2>"$WORK/refused"; then return 0; fi
        grep -q EAGAIN "$WORK/refused" || break
        sleep 0.1
    done
    cat "$WORK/refused" >&2
    return 1
}

# formats_mount PEER [OPTIONS]: mounts u over l1 to l3 at m.
formats_mount() {
    local top=$WORK/f
    local layers="lowerdir=$top/l1:$top/l2:$top/l3,upperdir=$top/u,workdir=$top/w"
    case $1 in
        overlayfs) mount -t overlay overlay -o "$layers,index=off,redirect_dir=on,metacopy=on" "$top/m" ;;
        # Neither metacopy nor redirect_dir goes with it.
        overlayfs-userxattr) mount -t overlay overlay -o "$layers,index=off,userxattr" "$top/m" ;;
        fuse-overlayfs) fuse-overlayfs -o "$layers" "$top/m" ;;
        unionfs-fuse)
            unionfs -o cow,hide_meta_files,allow_other,default_permissions,suid,dev \
                "$top/u=RW:$top/l1=RO:$top/l2=RO:$top/l3=RO" "$top/m"
            ;;
        uaufs) formats_uaufs "$layers${2:+,$2}" ;;
        uaufs-kept) formats_uaufs "${layers/upperdir=$top\/u/upperdir=$top\/kept}" ;;
        uaufs-readonly) formats_uaufs "lowerdir=$top/u:$top/l1:$top/l2:$top/l3" ;;
        uaufs-branches) formats_uaufs "br=$2:$top/l1=ro+wh:$top/l2=ro+wh:$top/l3=ro+wh,dirren" ;;
    esac
}

formats_unmount() { timeout 30 umount "$WORK/f/m"; }

# formats_list FILE: what is mounted.
formats_list() { timeout 60 "$TREECMP" list "$WORK/f/m" -o "$WORK/$1"; }

# formats_write SEED PEER [OPTIONS]: random operations through a mount; then the tree, as a fresh mount shows it, in written.
formats_write() {
    local seed=$1
    shift
    formats_mount "$@" || return
    timeout -k 5 120 "$TOOLS/opstream" "$WORK/f/m" --seed "$seed" --count "${FORMATS_COUNT:-800}" --log "$WORK/ops" ||
        return
    formats_unmount || return
    formats_mount "$@" || return
    formats_list written || return
    formats_unmount
}

# formats_check LABEL MOUNT [OPTIONS]: whether a mount shows what was written.
formats_check() {
    local label=$1 first
    shift
    if ! formats_mount "$@" 2>"$WORK/error"; then
        fail "$label: no mount: $(tail -n 1 "$WORK/error")"
        return
    fi
    if timeout 60 "$TREECMP" "${FORMATS_IGNORE[@]}" "$WORK/written" "$WORK/f/m" >"$WORK/diff" 2>&1; then
        pass
    else
        first=$(head -n 1 "$WORK/diff" | sed 's/nnn*/n*/g' | cut -c1-240)
        fail "$label: $(tail -n 1 "$WORK/diff"); first: $first"
        if [[ -n $KEEP_LOG ]]; then cat "$WORK/diff" >>"$KEEP_LOG"; fi
    fi
    formats_unmount || fail "$label: could not be unmounted"
}

# formats_fresh SEED: the same lower trees, and nothing above.
formats_fresh() {
    unmount_below "$WORK/f"
    rm -rf "$WORK/f"
    formats_lower "$1"
}

# formats_read PEER SEED: written by a peer, read by uaufs.
formats_read() {
    local peer=$1 seed=$2 label="formats $1 seed $2"
    formats_fresh "$seed"
    if [[ $peer == unionfs-fuse ]]; then formats_agree; fi
    if ! formats_write "$seed" "$peer" 2>"$WORK/error"; then
        fail "$label: $peer itself: $(tail -n 1 "$WORK/error")"
        return
    fi
    # unionfs-fuse passes over files between directories, as AUFS does.
    if [[ $peer == unionfs-fuse ]]; then
        formats_check "$label, as lower layers" uaufs-branches "$WORK/f/u=ro+wh"
        cp -a "$WORK/f/u" "$WORK/f/kept"
        formats_convert "$label" aufs "$WORK/f/kept"
        formats_convert "$label" overlay "$WORK/f/u"
        return
    fi
    formats_check "$label, as lower layers" uaufs-readonly
    cp -a "$WORK/f/u" "$WORK/f/kept"
    formats_check "$label, writable" uaufs
    if [[ $peer == overlayfs ]]; then formats_complete "$label"; fi
    formats_convert "$label" aufs "$WORK/f/kept"
}

# formats_complete LABEL: files without their data in kept get it, as the refusal to convert them says.
formats_complete() {
    local file mount=$WORK/f/m
    getfattr -R -h --absolute-names -m '^trusted.overlay.metacopy$' "$WORK/f/kept" 2>/dev/null |
        sed -n "s|^# file: $WORK/f/kept/||p" >"$WORK/incomplete"
    [[ -s $WORK/incomplete ]] || return 0
    if "$UAUFS" convert "$WORK/f/kept" --to aufs >"$WORK/error" 2>&1 || ! grep -q 'touch it' "$WORK/error"; then
        fail "$1: converting files without their data is not refused: $(tail -n 1 "$WORK/error")"
    fi
    formats_mount uaufs-kept && while IFS= read -r file; do
        # (getfattr writes other bytes in octal.)
        touch -h -r "$mount/$(printf %b "$file")" "$mount/$(printf %b "$file")"
    done <"$WORK/incomplete"
    formats_unmount || fail "$1: could not be unmounted"
}

# formats_agree: where a file lies above a directory, overlayfs ends another one above it there, and AUFS passes the file
# over. What the two see differently is taken away.
formats_agree() {
    local path layer above=("$WORK/f/l1") below
    for below in "$WORK/f/l2" "$WORK/f/l3"; do
        for layer in "${above[@]}"; do
            while IFS= read -r -d '' path; do
                if [[ -d $below/$path && ! -L $below/$path ]]; then rm -rf "${below:?}/$path"; fi
            done < <(find "$layer" -mindepth 1 ! -type d -printf '%P\0')
        done
        above+=("$below")
    done
}

# formats_convert LABEL FORMAT BRANCH
formats_convert() {
    local label="$1, converted to $2" top=$WORK/f
    local lowers=(--lower "$top/l1" --lower "$top/l2" --lower "$top/l3")
    if [[ $1 != *unionfs-fuse* ]]; then formats_agree; fi
    if ! "$UAUFS" convert "$3" --to "$2" "${lowers[@]}" >"$WORK/error" 2>&1; then
        fail "$label: $(tail -n 1 "$WORK/error")"
        return
    fi
    if [[ $2 == overlay ]]; then
        formats_check "$label" uaufs-readonly
    else
        formats_check "$label" uaufs-branches "$3=ro+wh"
    fi
}

# formats_written PEER SEED: written by uaufs, read by a peer.
formats_written() {
    local peer=$1 seed=$2 label="formats uaufs seed $2" options=''
    formats_fresh "$seed"
    # fuse-overlayfs knows no renamed directories.
    if [[ $peer == fuse-overlayfs ]]; then options=redirect_dir=off; fi
    if ! formats_write "$seed" uaufs "$options" 2>"$WORK/error"; then
        fail "$label: $(tail -n 1 "$WORK/error")"
        return
    fi
    formats_check "$label, read by $peer" "$peer"
}

suite_formats() {
    local seed peer seeds=${FORMATS_SEEDS:-12}
    if [[ -n $QUICK ]]; then seeds=2; fi
    if [[ $FS != uaufs ]]; then
        skip "formats: only for uaufs"
        return
    fi
    need_packages fuse-overlayfs unionfs-fuse
    for ((seed = 1; seed <= seeds; seed++)); do
        for peer in ${FORMATS_ONLY:-overlayfs overlayfs-userxattr fuse-overlayfs unionfs-fuse}; do
            # What it does not know of after a remount.
            FORMATS_IGNORE=()
            if [[ $peer != overlayfs* ]]; then FORMATS_IGNORE=(--ignore nlink --ignore group); fi
            if [[ $peer == unionfs-fuse ]]; then FORMATS_IGNORE+=(--ignore xattrs); fi
            formats_read "$peer" "$seed"
            # Root's uaufs writes root's attributes, which userxattr does not look at.
            if [[ $peer == overlayfs || $peer == fuse-overlayfs ]]; then formats_written "$peer" "$seed"; fi
        done
    done
    unmount_below "$WORK/f"
}
