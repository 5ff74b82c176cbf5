# shellcheck shell=bash disable=SC2034
# pjdfstest (crate of that name): POSIX rules, about 400 cases. Each case runs on ext4 as well, and one that fails
# there says nothing about the union.

pjdfstest_config() {
    cat >"$WORK/pjdfstest.toml" <<'TOML'
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
stat_st_birthtime = {}
[settings]
naptime = 0.01
allow_remount = false
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
TOML
}

# pjdfstest_run DIR LOG: runs all cases in DIR; the other file system for EXDEV is a tmpfs.
pjdfstest_run() {
    mkdir -p "$WORK/second"
    mountpoint -q "$WORK/second" || mount -t tmpfs -o size=64m tmpfs "$WORK/second"
    timeout -k 5 300 "$CACHE/bin/pjdfstest" -c "$WORK/pjdfstest.toml" -s "$WORK/second" -p "$1" >"$2" 2>&1 || true
}

# pjdfstest_cases LOG STATUS: the names of the cases with that status.
pjdfstest_cases() { awk -v status="$2" '$NF == status && NF == 2 { print $1 }' "$1" | sort; }

suite_pjdfstest() {
    need_packages libacl1-dev acl
    need_crate pjdfstest "$PJDFSTEST_VERSION"
    pjdfstest_config
    mkdir -p "$WORK/n"
    pjdfstest_run "$WORK/n" "$WORK/native.log"
    local shape case
    for shape in "${SHAPES[@]}"; do
        shape_new "$shape"
        mkdir -p "${FILL:-$WORK/shape/upper}/area"
        shape_up
        pjdfstest_run "$UNION/area" "$WORK/$shape.log"
        log <"$WORK/$shape.log" >/dev/null
        grep -q '^Summary' "$WORK/$shape.log" || fail "pjdfstest $shape: did not finish: $(tail -n 1 "$WORK/$shape.log")"
        while read -r case; do pass; done < <(pjdfstest_cases "$WORK/$shape.log" ok)
        while read -r case; do
            if grep -qxF "$case" <<<"$(pjdfstest_cases "$WORK/native.log" FAILED)"; then
                skip "pjdfstest $shape $case: fails on ext4 too"
            else
                fail "pjdfstest $shape $case: $(grep -A1 "^$case " "$WORK/$shape.log" | sed -n 's/^\t//p' | cut -c1-160)"
            fi
        done < <(pjdfstest_cases "$WORK/$shape.log" FAILED)
        while read -r case; do
            SKIPPED=$((SKIPPED + 1))
        done < <(pjdfstest_cases "$WORK/$shape.log" skipped)
        shape_down
    done
}
