# shellcheck shell=bash disable=SC2034
# The scenarios recorded from AUFS (tests/aufs); where we differ on purpose, docs/aufs-deviations.tsv says why.

suite_aufs() {
    if [[ $FS != uaufs ]]; then
        skip "aufs: only for uaufs"
        return
    fi
    local line poor=()
    if [[ -n $RICH ]]; then poor=(--poor); fi
    # One scenario is about a filesystem that shares blocks.
    need_packages xfsprogs
    mkdir -p "$WORK/aufs"
    while IFS= read -r line; do
        if [[ $line =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed,\ ([0-9]+)\ skipped$ ]]; then
            PASSED=$((PASSED + BASH_REMATCH[1]))
            FAILED=$((FAILED + BASH_REMATCH[2]))
            SKIPPED=$((SKIPPED + BASH_REMATCH[3]))
        else
            say "$line"
        fi
    done < <("$ROOT/tests/aufs/run" --work "$WORK/aufs" "${poor[@]}" || true)
}
