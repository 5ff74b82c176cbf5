# shellcheck shell=bash disable=SC2034
# fsx (crate of that name): random operations on one file, every read checked. The file may lie on a lower branch
# before, so that copy-up happens in the middle of things. FSX_OPERATIONS (default 5000), FSX_KINDS (default "mapped plain
# holes") and FSX_SEEDS (default 3) say how much is done.

# fsx_config FILE KIND: mapped: with mmap; plain: without; holes: with fallocate, hole punching and copy_file_range.
fsx_config() {
    local mapped=10 holes=0
    case $2 in
        plain) mapped=0 ;;
        holes) holes=5 ;;
    esac
    cat >"$1" <<TOML
flen = 1048576
[weights]
close_open = 2
read = 10
write = 10
mapread = $mapped
mapwrite = $mapped
invalidate = 1
truncate = 5
fsync = 1
fdatasync = 1
posix_fallocate = $holes
punch_hole = $holes
copy_file_range = $holes
sendfile = 2
posix_fadvise = 1
TOML
}

# fsx_case SHAPE KIND SEED: one run; then a remount must show the same content.
fsx_case() {
    local label="fsx $1 $2 seed $3" file=$UNION/area/file-$2-$3 operations=${FSX_OPERATIONS:-5000}
    fsx_config "$WORK/fsx.toml" "$2"
    # A hundred operations a second are few.
    if ! timeout -k 5 "$((120 + operations / 100))" "$CACHE/bin/fsx" -q -f "$WORK/fsx.toml" -N "$operations" -S "$3" \
        -P "$WORK" "$file" >"$WORK/fsx.log" 2>&1; then
        fail "$label: $(tail -n 1 "$WORK/fsx.log" | cut -c1-160)"
        log <"$WORK/fsx.log" >/dev/null
        return
    fi
    local before after
    before=$(sha256sum <"$file")
    if ! shape_remount; then
        fail "$label: could not be remounted"
        return
    fi
    after=$(sha256sum <"$file")
    if [[ $before == "$after" ]]; then pass; else fail "$label: another content after a remount"; fi
}

suite_fsx() {
    need_crate fsx "$FSX_VERSION"
    local shape kind seed kinds seeds=${FSX_SEEDS:-3}
    read -ra kinds <<<"${FSX_KINDS:-mapped plain holes}"
    if [[ -n $QUICK ]]; then seeds=1; fi
    for shape in "${SHAPES[@]}"; do
        shape_new "$shape"
        mkdir -p "${FILL:-$WORK/shape/upper}/area"
        for kind in "${kinds[@]}"; do
            for ((seed = 1; seed <= seeds; seed++)); do
                if [[ -n $FILL ]]; then head -c 700000 /dev/urandom >"$FILL/area/file-$kind-$seed"; fi
            done
        done
        shape_up
        for kind in "${kinds[@]}"; do
            for ((seed = 1; seed <= seeds; seed++)); do
                fsx_case "$shape" "$kind" "$seed"
            done
        done
        shape_down
    done
}
