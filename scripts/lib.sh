# shellcheck shell=bash disable=SC2034,SC2119,SC2120
# Shared by the scripts: where things are, missing packages, outside tools, a work directory that is always cleaned up.
# It is sourced, never run.
set -euo pipefail
# No script may end without a word.
set -E
trap 'printf "%s: line %s: %s failed\n" "$0" "$LINENO" "$BASH_COMMAND" >&2' ERR

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Outside tools and the Debian tree are kept here between runs.
CACHE=${UAUFS_CACHE:-$ROOT/target/tools}
TARGET=${CARGO_TARGET_DIR:-$ROOT/target}
TOOLS=$ROOT/tests/tools
LAYERS=$ROOT/scripts/layers
TREECMP=$TOOLS/treecmp
NAME=${0##*/}
# Mount options wherever POSIX behaviour is expected; AUFS's own defaults are stricter (docs/decisions.md).
MODE=${UAUFS_MODE-dirren,dirperm1,namelen=255}
PJDFSTEST_VERSION=0.2.2
FSX_VERSION=0.3.2
export PYTHONDONTWRITEBYTECODE=1

# The directory of this run; made by make_work, removed when the script ends.
WORK=
# Set by poor_work: all of it, and a directory on the same filesystem as ever.
WORK_TOP='' RICH=''

say() { printf '%s\n' "$*"; }
warn() { printf '%s: warning: %s\n' "$NAME" "$*" >&2; }
die() {
    printf '%s: %s\n' "$NAME" "$*" >&2
    exit 1
}

# need_root WHAT: ends the script unless it runs as root.
need_root() {
    ((EUID == 0)) || die "$1: needs root (EPERM): run it with sudo"
}

# need_packages PACKAGE...: installs those that are missing, and touches nothing if there are none.
need_packages() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    command -v apt-get >/dev/null || die "${missing[*]}: not installed: install them by the system's package manager"
    local sudo=()
    if ((EUID != 0)); then
        command -v sudo >/dev/null || die "${missing[*]}: not installed: run as root: apt-get install ${missing[*]}"
        sudo=(sudo)
    fi
    say "installing ${missing[*]}"
    local install=("${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends)
    # The lists may be missing or old: fetch them once and try again.
    "${install[@]}" "${missing[@]}" >/dev/null 2>&1 && return 0
    "${sudo[@]}" apt-get update -qq >/dev/null || die "apt-get update failed: see the lines above"
    "${install[@]}" "${missing[@]}" >/dev/null || die "apt-get install ${missing[*]} failed: see the lines above"
}

# need_crate NAME VERSION: installs a program from crates.io below the cache; prints nothing if it is there.
need_crate() {
    [[ -x $CACHE/bin/$1 ]] && return 0
    say "building $1 $2"
    mkdir -p "$CACHE"
    # Not into the project's target directory: its lints and lock file are none of the tool's business.
    (cd / && env -u CARGO_TARGET_DIR cargo install --quiet --locked --root "$CACHE" "$1@$2") ||
        die "$1: cargo install failed: see the lines above"
}

# need_cargo: ends the script unless there is a cargo that is new enough for this project.
need_cargo() {
    local wanted have
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml")
    command -v cargo >/dev/null || die "cargo: not found: install Rust $wanted or newer (https://rustup.rs)"
    have=$(cargo --version | cut -d ' ' -f 2)
    [[ $(printf '%s\n' "$wanted" "$have" | sort -V | head -n 1) == "$wanted" ]] ||
        die "cargo: is version $have: install Rust $wanted or newer (https://rustup.rs)"
}

# need_binaries: sets UAUFS and ULAUNCH, building the release binaries unless both were given.
need_binaries() {
    if [[ -z ${UAUFS:-} || -z ${ULAUNCH:-} ]]; then
        (cd "$ROOT" && cargo build --release --quiet) || die "cargo build --release failed: see the lines above"
    fi
    UAUFS=${UAUFS:-$TARGET/release/uaufs}
    ULAUNCH=${ULAUNCH:-$TARGET/release/ulaunch}
    export UAUFS ULAUNCH
}

# has_command PROGRAM SUBCOMMAND: whether one of our programs lists that subcommand.
# (No pipe into grep -q: it leaves at the first match, and under pipefail a program that still writes then counts as failed.)
has_command() { grep -Eq "^ +$2\b" <<<"$("$1" --help 2>/dev/null)"; }

# make_work [DIR]: makes WORK below DIR (default /var/tmp: a disk, so that xattrs and sizes are real ones).
make_work() {
    WORK=$(mktemp -d "${1:-${TMPDIR:-/var/tmp}}/uaufs.XXXXXX")
    chmod 755 "$WORK"
    trap cleanup EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

# poor_work OPTION...: from now on WORK is on a filesystem that lacks much (tests/poor).
poor_work() {
    local try
    if [[ -z ${POORFS:-} ]]; then
        (cd "$ROOT" && cargo build --quiet -p unionfs --example poorfs) || die "cargo build failed: see the lines above"
        POORFS=$TARGET/debug/examples/poorfs
    fi
    WORK_TOP=$WORK RICH=$WORK/rich
    mkdir "$WORK"/{rich,source,p}
    WORK=$WORK/p
    "$POORFS" "$WORK_TOP/source" "$WORK" "$@" &
    for ((try = 0; try < 100; try++)); do
        if mountpoint -q "$WORK"; then return 0; fi
        sleep 0.05
    done
    die "poorfs: was not mounted"
}

# mounts_below DIR: "DEVICE MOUNTPOINT" of every mount at or below it, the last mounted first.
mounts_below() {
    awk -v dir="$1" '$5 == dir || index($5, dir "/") == 1 { print $3, $5 }' /proc/self/mountinfo | tac
}

# unmount_below DIR: takes everything off, by force where a daemon is gone or hangs.
unmount_below() {
    local device mountpoint
    while read -r device mountpoint; do
        mountpoint=$(printf '%b' "$mountpoint")
        timeout 20 umount "$mountpoint" 2>/dev/null && continue
        # A FUSE connection that does not answer would hang every process in it: end it first.
        local abort=/sys/fs/fuse/connections/${device#*:}/abort
        [[ $device == 0:* && -e $abort ]] && echo 1 >"$abort"
        umount -l "$mountpoint" 2>/dev/null || true
    done < <(mounts_below "$1")
}

cleanup() {
    local status=$?
    trap - EXIT
    WORK=${WORK_TOP:-$WORK}
    if [[ -n $WORK && -d $WORK ]]; then
        unmount_below "$WORK"
        if [[ -z $(mounts_below "$WORK") ]]; then
            rm -rf --one-file-system "$WORK"
        else
            warn "$WORK: still mounted, left in place"
        fi
    fi
    exit "$status"
}

# debian_tree DIR: unpacks the Debian tree that the tests cut into layers; made once, then kept in the cache.
debian_tree() {
    local tar=$CACHE/debian-bookworm.tar
    if [[ ! -s $tar ]]; then
        need_packages mmdebstrap
        say "making a Debian tree"
        mkdir -p "$CACHE"
        mmdebstrap --quiet --format=tar --variant=minbase \
            --include=python3,git,gcc,libc6-dev,make,sqlite3,rsync,ca-certificates \
            bookworm "$tar.new" || die "mmdebstrap failed: see the lines above"
        mv "$tar.new" "$tar"
    fi
    mkdir -p "$1"
    tar -C "$1" --xattrs --xattrs-include='*' --numeric-owner -xf "$tar"
    python3 "$LAYERS" enrich "$1"
}

# mount_overlay MOUNTPOINT UPPER WORKDIR LOWER...: the kernel's overlayfs, for comparison. Relative names keep the
# option string below a page.
mount_overlay() {
    local mountpoint=$1 upper=$2 work=$3
    shift 3
    local common=$PWD IFS=:
    mount -t overlay overlay -o "lowerdir=$*,upperdir=$upper,workdir=$work,index=on,redirect_dir=on" "$mountpoint" ||
        die "$common: overlayfs: mount failed"
}

# mount_layers MOUNTPOINT UPPER LAYER...: a union of layers, topmost first, below a writable branch.
mount_layers() {
    local mountpoint=$1 upper=$2
    shift 2
    timeout 30 "$UAUFS" -o "br=$upper=rw:$(python3 "$LAYERS" branches "$@")${MODE:+,$MODE}" "$mountpoint"
}
