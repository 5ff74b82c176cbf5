# shellcheck shell=bash disable=SC2034
# Merging on a live mount: a tree goes from one writable branch to the one below it while readers compare all of it with
# what it was, descriptors stay open, and a writer works; the daemon is killed at random points, the union mounted again,
# everything compared, and the merge resumed. Each kill is a case.

MERGECHECK=$TOOLS/mergecheck

# merge_up: mounts the union in the foreground of a job: DAEMON is its process. It has no watcher: who compares the tree
# tells a dead mount by its error, and would find the directory below it empty.
merge_up() {
    rm -f "$WORK/killed"
    "$UAUFS" -f -o "br=$WORK/mb/upper=rw:$WORK/mb/middle=rw:$WORK/mb/low=ro+wh,dirren,dirperm1,nosupervise" "$WORK/mm" \
        2>>"$WORK/merge-daemon.log" &
    DAEMON=$!
    local tries
    for ((tries = 0; tries < 200; tries++)); do
        mountpoint -q "$WORK/mm" && [[ -e $WORK/mm/kept ]] && return 0
        sleep 0.05
    done
    die "merge: the union was not mounted: $(tail -n 1 "$WORK/merge-daemon.log")"
}

merge_down() {
    timeout 30 umount "$WORK/mm" || umount -l "$WORK/mm"
    wait "$DAEMON" 2>/dev/null || true
}

# merge_tree MIB: branches with everything that a merge meets, made through the union where that makes marks.
merge_tree() {
    local mib=$1 b=$WORK/mb n
    mkdir -p "$b"/{upper,middle,low} "$WORK/mm"
    for n in middle low; do "$MERGECHECK" lower "$b/$n"; done
    echo kept >"$b/low/kept"
    "$MERGECHECK" fill "$b/upper" "$mib" 1
    merge_up
    "$MERGECHECK" change "$WORK/mm"
}

# merge_watch NAME ARG...: one of the watching processes, in the background; WATCHERS has them all.
merge_watch() {
    local name=$1
    shift
    "$MERGECHECK" "$name" "$WORK/mm" "$@" >"$WORK/$name.out" 2>"$WORK/$name.err" &
    WATCHERS[$name]=$!
}

# merge_round: merges until it is done or the daemon is killed after DELAY seconds. 0 = done, 1 = killed, 2 = wrong.
merge_round() {
    local delay=$1 status=0 merger result=0 name code
    declare -A WATCHERS=()
    merge_watch tree "$WORK/merge.json" "$WORK/killed"
    merge_watch data "$WORK/merge.json" "$WORK/killed" "$WORK/merge.seen"
    merge_watch held "$WORK/merge.json" "$WORK/killed"
    merge_watch write "$WORK/merge.book" "$WORK/killed"
    # They have read what they compare with, and the descriptors are open.
    sleep 0.3
    timeout 1200 "$UAUFS" merge --json "$WORK/mb/upper" "$WORK/mb/middle" >"$WORK/merge.out" 2>"$WORK/merge.err" &
    merger=$!
    if [[ -n $delay ]]; then
        sleep "$delay"
        if kill -0 "$merger" 2>/dev/null; then
            : >"$WORK/killed"
            kill -9 "$DAEMON"
            # The shell need not tell.
            wait "$DAEMON" 2>/dev/null || true
            result=1
        fi
    fi
    wait "$merger" || status=$?
    ((result)) || kill -TERM "${WATCHERS[@]}" 2>/dev/null || true
    for name in "${!WATCHERS[@]}"; do
        code=0
        wait "${WATCHERS[$name]}" || code=$?
        # A mapping of a file whose daemon is gone cannot be read (SIGBUS).
        if ((code == 135 && result == 1)) && [[ $name == held ]]; then code=0; fi
        if ((code)); then
            say "merge: $name: $(tail -n 1 "$WORK/$name.err") (code $code)"
            result=2
        fi
    done
    if ((result == 0 && status != 0 && status != 4)); then
        say "merge: exit code $status: $(tail -n 1 "$WORK/merge.err")"
        result=2
    fi
    return "$result"
}

suite_merge() {
    if [[ $FS != uaufs ]]; then
        skip "merge: only for uaufs"
        return
    fi
    local mib=5120 kills=20 most=3000 n code delay seed=2
    if [[ -n $QUICK ]]; then mib=150 kills=5 most=400; fi
    merge_tree "$mib"
    "$MERGECHECK" snapshot "$WORK/mm" "$WORK/merge.json"
    for ((n = 1; n <= kills; n++)); do
        delay=$(awk -v r="$RANDOM" -v most="$most" 'BEGIN { printf "%.3f", r / 32768 * most / 1000 + 0.02 }')
        code=0
        merge_round "$delay" || code=$?
        while ((code == 0)); do
            # Done before it was killed: more to move.
            "$MERGECHECK" fill "$WORK/mm" $((mib / 20 + 8)) "$((seed++))"
            "$MERGECHECK" snapshot "$WORK/mm" "$WORK/merge.json"
            merge_round "$delay" || code=$?
        done
        umount -l "$WORK/mm" 2>/dev/null || true
        merge_up
        if ((code == 2)); then
            fail "merge: kill $n after $delay s"
        elif ! "$MERGECHECK" check "$WORK/mm" "$WORK/merge.json" 2>"$WORK/check.err"; then
            fail "merge: kill $n after $delay s: $(tail -n 1 "$WORK/check.err")"
        elif ! "$MERGECHECK" verify "$WORK/mm" "$WORK/merge.book" 2>"$WORK/check.err"; then
            fail "merge: kill $n after $delay s: $(tail -n 1 "$WORK/check.err")"
        else
            pass
        fi
    done
    code=0
    merge_round '' || code=$?
    if ((code)); then fail "merge: the last one"; fi
    merge_down
    merge_up
    # Nobody writes any more: what is left goes too.
    if ! timeout 600 "$UAUFS" merge "$WORK/mb/upper" "$WORK/mb/middle" >"$WORK/merge.out" 2>&1; then
        fail "merge: left: $(head -n 1 "$WORK/merge.out")"
    elif [[ -n $(find "$WORK/mb/upper" -mindepth 1 ! -path "$WORK/mb/upper/.wh..wh.*") ]]; then
        fail "merge: the upper branch is not empty"
    elif ! "$MERGECHECK" check "$WORK/mm" "$WORK/merge.json" 2>"$WORK/check.err"; then
        fail "merge: at the end: $(tail -n 1 "$WORK/check.err")"
    else
        pass
    fi
    merge_down
    say "merge: while it moved, every content was compared at least" \
        "$("$MERGECHECK" seen "$WORK/merge.json" "$WORK/merge.seen") times"
}
