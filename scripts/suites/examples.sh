# shellcheck shell=bash disable=SC2034
# The examples of the manual pages and other pages, as a reader would type them (tests/tools/examples.py).

suite_examples() {
    if [[ $FS != uaufs ]]; then
        skip "examples: only for uaufs"
        return
    fi
    local line
    while IFS= read -r line; do
        if [[ $line =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]]; then
            PASSED=$((PASSED + BASH_REMATCH[1]))
            FAILED=$((FAILED + BASH_REMATCH[2]))
        else
            say "$line"
        fi
    done < <(python3 "$ROOT/tests/tools/examples.py" "$ROOT"/docs/manual/*.md || true)
}
