//! INIT: which capabilities are asked of the kernel, and why.
//!
//! Some that `fuser` would accept must never be asked for, because it does not implement them:
//! SETXATTR_EXT, SECURITY_CTX, CREATE_SUPP_GROUP, ALLOW_IDMAP, OVER_IO_URING, HAS_RESEND,
//! REQUEST_TIMEOUT, SUBMOUNTS, MAP_ALIGNMENT, HAS_INODE_DAX. Left out on purpose besides:
//! ATOMIC_O_TRUNC (with zero-message opens the truncation would be lost), POSIX_LOCKS and
//! FLOCK_LOCKS (the kernel's own locks are right for a local filesystem), ABORT_ERROR (an aborted
//! connection is a normal end).

use super::plan::{DataPath, IoPlan, Opens};
use fuser::{InitFlags, KernelConfig};

/// Largest WRITE and READ in bytes; the kernel caps it at fs.fuse.max_pages_limit pages.
pub(super) const MAX_IO: u32 = 1 << 20;

/// Filesystems that may lie between a backing file and its disk: 1 = a plain one only, so that
/// another stacked filesystem can still be mounted on top of us.
const STACK_DEPTH: u32 = 1;

/// A capability, when it is wanted, and why.
type Wish = (InitFlags, fn(&IoPlan) -> bool, &'static str);

const WISHES: &[Wish] = &[
    (
        InitFlags::FUSE_ASYNC_READ,
        always,
        "readahead sends several READs at once",
    ),
    (
        InitFlags::FUSE_BIG_WRITES,
        always,
        "WRITEs larger than a page",
    ),
    (
        InitFlags::FUSE_MAX_PAGES,
        always,
        "requests of 1 MiB instead of 128 KiB",
    ),
    (
        InitFlags::FUSE_PARALLEL_DIROPS,
        always,
        "lookups and listings in one directory run side by side",
    ),
    (
        InitFlags::FUSE_DO_READDIRPLUS,
        always,
        "a cold listing brings the attributes along",
    ),
    (
        InitFlags::FUSE_READDIRPLUS_AUTO,
        always,
        "a warm one does not send them again",
    ),
    (
        InitFlags::FUSE_CACHE_SYMLINKS,
        always,
        "a symlink is read once",
    ),
    (
        InitFlags::FUSE_ASYNC_DIO,
        always,
        "O_DIRECT reads and writes are split and sent at once",
    ),
    (
        InitFlags::FUSE_DONT_MASK,
        always,
        "default ACLs win over the umask, so it is applied by the union",
    ),
    (
        InitFlags::FUSE_POSIX_ACL,
        |plan| plan.acl,
        "the kernel enforces ACLs (implies default_permissions)",
    ),
    (
        InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        always,
        "saves one GETXATTR(security.capability) per write",
    ),
    (
        InitFlags::FUSE_HAS_IOCTL_DIR,
        always,
        "control queries are ioctls on the root directory",
    ),
    (
        InitFlags::FUSE_NO_OPEN_SUPPORT,
        zero_message,
        "OPEN may be answered ENOSYS for good",
    ),
    (
        InitFlags::FUSE_NO_OPENDIR_SUPPORT,
        IoPlan::leaves_opendir,
        "OPENDIR may be answered ENOSYS for good",
    ),
    (
        InitFlags::FUSE_AUTO_INVAL_DATA,
        |plan| plan.revalidate,
        "pages of a file that changed on its branch are dropped",
    ),
    (
        InitFlags::FUSE_WRITEBACK_CACHE,
        |plan| plan.writeback,
        "small writes are collected",
    ),
    (
        InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
        direct,
        "shared maps work without the page cache mode",
    ),
    (
        InitFlags::FUSE_PASSTHROUGH,
        passthrough,
        "the kernel does the I/O on files of the writable branch",
    ),
];

fn always(_: &IoPlan) -> bool {
    true
}

fn zero_message(plan: &IoPlan) -> bool {
    plan.opens == Opens::ZeroMessage
}

fn direct(plan: &IoPlan) -> bool {
    plan.data == DataPath::Direct
}

fn passthrough(plan: &IoPlan) -> bool {
    plan.data == DataPath::Passthrough
}

/// The capabilities to ask for, out of those `offered`; takes back from `plan` what the kernel
/// lacks.
fn negotiate(plan: &mut IoPlan, offered: InitFlags) -> InitFlags {
    if passthrough(plan) && !offered.contains(InitFlags::FUSE_PASSTHROUGH) {
        plan.data = DataPath::PageCache;
        plan.reason = "the kernel has no FUSE passthrough (Linux 6.9)";
    }
    let no_open = InitFlags::FUSE_NO_OPEN_SUPPORT | InitFlags::FUSE_NO_OPENDIR_SUPPORT;
    if zero_message(plan) && !offered.contains(no_open) {
        plan.opens = Opens::Answered;
        plan.reason = "the kernel has no zero-message opens (Linux 5.1)";
    }
    if plan.writeback && !offered.contains(InitFlags::FUSE_WRITEBACK_CACHE) {
        plan.writeback = false;
        plan.reason = "the kernel has no writeback cache";
    }
    WISHES
        .iter()
        .filter(|(flag, wanted, _)| wanted(plan) && offered.contains(*flag))
        .fold(InitFlags::empty(), |flags, (flag, ..)| flags | *flag)
}

/// Fills in the answer to INIT.
pub(super) fn configure(plan: &mut IoPlan, config: &mut KernelConfig) {
    let flags = negotiate(plan, config.capabilities());
    // Neither call can fail: the flags were offered, the sizes are within fuser's bounds. Should a
    // later version narrow them, the value it offers instead is taken.
    if let Err(missing) = config.add_capabilities(flags) {
        log::warn!("INIT: capabilities refused: {missing:?}");
    }
    if let Err(most) = config.set_max_write(MAX_IO) {
        let _ = config.set_max_write(most);
    }
    if passthrough(plan)
        && let Err(most) = config.set_max_stack_depth(STACK_DEPTH)
    {
        let _ = config.set_max_stack_depth(most);
    }
    for (flag, wanted, why) in WISHES {
        let state = match (flags.contains(*flag), wanted(plan)) {
            (true, _) => "on",
            (false, true) => "not offered",
            (false, false) => "not wanted",
        };
        log::debug!("INIT: {flag:?} {state}: {why}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(data: DataPath, opens: Opens) -> IoPlan {
        IoPlan {
            opens,
            answers_opendir: false,
            data,
            writeback: false,
            revalidate: false,
            acl: true,
            reason: "",
            warnings: Vec::new(),
        }
    }

    #[test]
    fn never_asks_for_what_fuser_lacks() {
        let never = InitFlags::FUSE_ATOMIC_O_TRUNC
            | InitFlags::FUSE_SETXATTR_EXT
            | InitFlags::FUSE_SECURITY_CTX
            | InitFlags::FUSE_CREATE_SUPP_GROUP
            | InitFlags::FUSE_ALLOW_IDMAP
            | InitFlags::FUSE_OVER_IO_URING
            | InitFlags::FUSE_HAS_RESEND
            | InitFlags::FUSE_REQUEST_TIMEOUT
            | InitFlags::FUSE_SUBMOUNTS
            | InitFlags::FUSE_MAP_ALIGNMENT
            | InitFlags::FUSE_HAS_INODE_DAX
            | InitFlags::FUSE_POSIX_LOCKS
            | InitFlags::FUSE_FLOCK_LOCKS
            | InitFlags::FUSE_ABORT_ERROR;
        let wished = WISHES
            .iter()
            .fold(InitFlags::empty(), |flags, (flag, ..)| flags | *flag);
        assert!(!wished.intersects(never));
    }

    #[test]
    fn takes_back_what_the_kernel_lacks() {
        let mut old = plan(DataPath::Passthrough, Opens::Answered);
        assert_eq!(
            negotiate(&mut old, InitFlags::FUSE_ASYNC_READ),
            InitFlags::FUSE_ASYNC_READ
        );
        assert_eq!(old.data, DataPath::PageCache);
        let mut zero = plan(DataPath::PageCache, Opens::ZeroMessage);
        negotiate(&mut zero, InitFlags::FUSE_NO_OPEN_SUPPORT);
        assert_eq!(zero.opens, Opens::Answered);
    }

    #[test]
    fn modes_exclude_each_other() {
        let all = InitFlags::all();
        let flags = negotiate(&mut plan(DataPath::Passthrough, Opens::Answered), all);
        assert!(flags.contains(InitFlags::FUSE_PASSTHROUGH));
        assert!(
            !flags.intersects(InitFlags::FUSE_WRITEBACK_CACHE | InitFlags::FUSE_NO_OPEN_SUPPORT)
        );
        let flags = negotiate(&mut plan(DataPath::PageCache, Opens::ZeroMessage), all);
        assert!(
            flags.contains(InitFlags::FUSE_NO_OPEN_SUPPORT | InitFlags::FUSE_NO_OPENDIR_SUPPORT)
        );
        assert!(!flags.intersects(InitFlags::FUSE_PASSTHROUGH | InitFlags::FUSE_AUTO_INVAL_DATA));
    }
}
