# shellcheck shell=bash disable=SC2034
# fio: several writers at once, every block verified, then verified again after a remount.

# fio_case SHAPE NAME ARGUMENT...: writes and verifies, remounts, verifies only.
fio_case() {
    local label="fio $1 $2"
    local job=(fio --name="$2" --directory="$UNION/area" --size=16m --verify=crc32c --verify_fatal=1
        --group_reporting --minimal "${@:3}")
    if ! timeout -k 5 120 "${job[@]}" --do_verify=1 >"$WORK/fio.log" 2>&1; then
        fail "$label: $(grep -v '^3;' "$WORK/fio.log" | head -n 1 | cut -c1-160)"
        return
    fi
    if ! shape_remount; then
        fail "$label: could not be remounted"
        return
    fi
    if timeout -k 5 120 "${job[@]}" --verify_only=1 >"$WORK/fio.log" 2>&1; then
        pass
    else
        fail "$label: after a remount: $(grep -v '^3;' "$WORK/fio.log" | head -n 1 | cut -c1-160)"
    fi
}

suite_fio() {
    need_packages fio
    local shape job
    for shape in "${SHAPES[@]}"; do
        shape_new "$shape"
        mkdir -p "${FILL:-$WORK/shape/upper}/area"
        if [[ -n $FILL ]]; then
            # Files that lie below already: the first write copies them up.
            for job in sequential random; do
                for n in 0 1 2 3; do head -c 16M /dev/zero >"$FILL/area/$job.$n.0"; done
            done
        fi
        shape_up
        fio_case "$shape" sequential --rw=write --bs=128k --numjobs=4 --ioengine=psync
        fio_case "$shape" random --rw=randwrite --bs=4k --numjobs=4 --ioengine=psync --randrepeat=1
        fio_case "$shape" async --rw=randwrite --bs=16k --numjobs=2 --ioengine=libaio --iodepth=16
        fio_case "$shape" mapped --rw=randwrite --bs=4k --numjobs=2 --ioengine=mmap
        fio_case "$shape" direct --rw=randwrite --bs=16k --numjobs=2 --ioengine=libaio --iodepth=8 --direct=1
        shape_down
    done
}
