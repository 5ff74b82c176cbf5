# shellcheck shell=bash disable=SC2034
# Random operations (tests/tools/opstream) on a union of layers, and the same on ext4: every answer and the trees
# afterwards must be equal, before and after a remount, and the layers untouched.

# opstream_branches SHAPE DIR: cuts the tree in DIR/native into DIR/layers and sets BRANCHES, topmost first.
opstream_branches() {
    local format=aufs count=3
    if [[ $FS == overlay ]]; then format=overlay; fi
    if [[ $1 == empty ]]; then count=1; fi
    mkdir "$2/cut"
    shape_rich cut
    python3 "$LAYERS" cut "$2/native" "$2/cut" --layers "$count" --seed 5 --format "$format" >/dev/null
    BRANCHES=("upper=rw")
    local layer
    for layer in "$2"/cut/layers/*; do BRANCHES+=("${layer#"$2"/}=ro+wh"); done
    if [[ $1 == two-rw ]]; then BRANCHES[-1]=${BRANCHES[-1]%=*}=rw; fi
}

# opstream_case SHAPE SEED
opstream_case() {
    local label="opstream $1 seed $2" top=$WORK/shape first without=()
    # What the union can do and a poor filesystem alone cannot.
    if [[ -n $RICH ]]; then without=(--without "exchange,noreplace"); fi
    shape_new "$1"
    mkdir "$top/native"
    "$TOOLS/opstream" "$top/native" --seed "$((1000 + $2))" --count 1000 "${without[@]}"
    opstream_branches "$1" "$top"
    "$TREECMP" snapshot "$top/cut/layers" -o "$WORK/before"
    shape_up
    "$TOOLS/opstream" "$top/native" --seed "$2" --count "${OPSTREAM_COUNT:-1500}" \
        "${without[@]}" --record "$WORK/stream" --log "$WORK/native.log"
    if ! timeout -k 5 120 "$TOOLS/opstream" "$UNION" --replay "$WORK/stream" --log "$WORK/union.log" 2>"$WORK/error"; then
        fail "$label: $(tail -n 1 "$WORK/error")"
        return
    fi
    # Of attributes a lower file on a rich filesystem knows more.
    if [[ -n $RICH ]]; then sed -i '/^[0-9]* [a-z]*xattr /d' "$WORK/native.log" "$WORK/union.log"; fi
    if ! diff "$WORK/native.log" "$WORK/union.log" >"$WORK/diff"; then
        first=$(grep '^[<>]' "$WORK/diff" | sed -n '1h;1,/^>/{/^>/{H;x;s/\n/ /;p}}' | cut -c1-300)
        fail "$label: $(grep -c '^>' "$WORK/diff") answers differ (< ext4, > union): $first"
        return
    fi
    opstream_same "$label" || return 0
    shape_remount || { fail "$label: could not be remounted" && return; }
    opstream_same "$label after a remount" || return 0
    if [[ $1 != two-rw ]]; then
        "$TREECMP" snapshot "$top/cut/layers" -o "$WORK/after"
        "$TREECMP" --mtime --dir-mtime --ctime "$WORK/before" "$WORK/after" >"$WORK/diff" ||
            { fail "$label: a layer was changed: $(head -n 1 "$WORK/diff")" && return; }
    fi
    pass
}

# opstream_same LABEL: whether union and ext4 hold the same tree.
opstream_same() {
    local without=()
    # None can be set on a poor filesystem; a lower file has its own.
    if [[ -n $RICH ]]; then without=(--ignore xattrs); fi
    timeout -k 5 60 "$TREECMP" --dirents "${without[@]}" "$WORK/shape/native" "$UNION" >"$WORK/diff" 2>&1 && return 0
    fail "$1: $(tail -n 1 "$WORK/diff"); first: $(head -n 1 "$WORK/diff" | sed -E "s/n{40,}/nn*/g" | cut -c1-300)"
    return 1
}

suite_opstream() {
    local shape seed seeds=${OPSTREAM_SEEDS:-8}
    if [[ -n $QUICK ]]; then seeds=2; fi
    for shape in "${SHAPES[@]}"; do
        # "native" has no layers to put together.
        if [[ $FS == native ]]; then
            skip "opstream $shape: compares with native"
            continue
        fi
        if [[ $FS == overlay && $shape == two-rw ]]; then
            skip "opstream two-rw: overlayfs has one writable branch"
            continue
        fi
        for ((seed = 1; seed <= seeds; seed++)); do
            opstream_case "$shape" "$seed"
            shape_down
        done
    done
}
