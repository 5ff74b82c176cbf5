//! The adapter against a fake kernel: a socket pair instead of /dev/fuse, so neither root nor a
//! mount is needed. Source of the layouts: linux/fuse.h.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod absurd;
#[allow(dead_code, reason = "shared with another test")]
#[path = "../common/fuse_numbers.rs"]
mod fuse_numbers;
mod kernel;

use fuse_numbers::{cap, op};
use kernel::{FakeKernel, init_flags, open_flag};
use std::sync::Arc;
use unionfs::errno::Errno;
use unionfs::fuse::session::IoctlHook;
use unionfs::spec::{BranchPerm, IoMode, OpenMode};
use unionfs::stats::Op;

#[test]
fn init_asks_for_what_helps_and_never_for_what_breaks() {
    let (_kernel, answer) = FakeKernel::mounted(|_| {}, None);
    assert_eq!(answer.error, 0);
    assert_eq!(answer.u32(0), 7, "major version");
    let flags = init_flags(&answer);
    let wanted = cap::PARALLEL_DIROPS
        | cap::DO_READDIRPLUS
        | cap::READDIRPLUS_AUTO
        | cap::CACHE_SYMLINKS
        | cap::POSIX_ACL
        | cap::DONT_MASK
        | cap::MAX_PAGES
        | cap::HANDLE_KILLPRIV_V2
        | cap::NO_OPEN_SUPPORT
        | cap::INIT_EXT;
    assert_eq!(flags & wanted, wanted, "missing {:#x}", wanted & !flags);
    let unwanted = cap::ATOMIC_O_TRUNC
        | cap::FLOCK_LOCKS
        | cap::POSIX_LOCKS
        | cap::SETXATTR_EXT
        | cap::SECURITY_CTX
        | cap::OVER_IO_URING
        | cap::AUTO_INVAL_DATA
        | cap::WRITEBACK_CACHE
        | cap::NO_OPENDIR_SUPPORT
        | cap::PASSTHROUGH;
    assert_eq!(flags & unwanted, 0, "unwanted {:#x}", flags & unwanted);
    assert_eq!(answer.u32(20), 1 << 20, "max_write");
}

#[test]
fn init_follows_the_options() {
    let (_kernel, answer) = FakeKernel::mounted(
        |options| {
            options.acl = false;
            options.writeback = true;
        },
        None,
    );
    let flags = init_flags(&answer);
    assert_eq!(flags & cap::POSIX_ACL, 0);
    assert_ne!(flags & cap::WRITEBACK_CACHE, 0);
}

#[test]
fn passthrough_needs_a_kernel_that_has_it() {
    for (offered, expected) in [
        (cap::ALL, cap::PASSTHROUGH),
        (cap::ALL & !cap::PASSTHROUGH, 0),
    ] {
        let mut kernel = FakeKernel::start(|options| options.io = IoMode::Passthrough, true, None);
        let flags = init_flags(&kernel.init(offered));
        assert_eq!(flags & cap::PASSTHROUGH, expected);
        assert_eq!(flags & cap::NO_OPEN_SUPPORT, 0);
    }
}

#[test]
fn unknown_operations_are_enosys() {
    let (mut kernel, _) = FakeKernel::mounted(|_| {}, None);
    for opcode in [op::SYNCFS, op::FROM_THE_FUTURE] {
        assert_eq!(
            kernel.request(opcode, 1, &[0; 64]).errno(),
            Some(Errno::NOSYS),
            "opcode {opcode}"
        );
    }
}

#[test]
fn flush_and_access_are_left_to_the_kernel() {
    let (mut kernel, _) = FakeKernel::mounted(|_| {}, None);
    assert_eq!(
        kernel.request(op::FLUSH, 1, &[0; 24]).errno(),
        Some(Errno::NOSYS)
    );
    assert_eq!(
        kernel.request(op::ACCESS, 1, &[0; 8]).errno(),
        Some(Errno::NOSYS)
    );
}

#[test]
fn zero_message_opens_are_enosys_and_forced_answers_are_not() {
    let mut kernel = FakeKernel::start_on(BranchPerm::RO_WH, |_| {}, false, None);
    let flags = init_flags(&kernel.init(cap::ALL));
    assert_ne!(flags & cap::NO_OPENDIR_SUPPORT, 0);
    for opcode in [op::OPEN, op::OPENDIR] {
        assert_eq!(
            kernel.request(opcode, 1, &[0; 8]).errno(),
            Some(Errno::NOSYS)
        );
    }
    // Names can change: the kernel's cache of a listing is for one open at a time.
    let (mut kernel, _) = FakeKernel::mounted(|_| {}, None);
    assert_eq!(
        kernel.request(op::OPEN, 1, &[0; 8]).errno(),
        Some(Errno::NOSYS)
    );
    let first = kernel.request(op::OPENDIR, 1, &[0; 8]);
    let second = kernel.request(op::OPENDIR, 1, &[0; 8]);
    assert_eq!((first.errno(), second.errno()), (None, None));
    assert_ne!(first.u32(8) & open_flag::CACHE_DIR, 0);
    assert_eq!(second.u32(8) & open_flag::CACHE_DIR, 0);
    let (mut kernel, _) = FakeKernel::mounted(|options| options.open = OpenMode::Answered, None);
    assert_eq!(kernel.request(op::OPENDIR, 1, &[0; 8]).errno(), None);
}

#[test]
fn a_panic_costs_one_request() {
    let hook: IoctlHook = Arc::new(|_, _, cmd, input| match cmd {
        7 => panic!("a request that breaks something"),
        8 => Ok(input.to_vec()),
        _ => Err(Errno::NOTTY),
    });
    let (mut kernel, _) = FakeKernel::mounted(|_| {}, Some(hook));
    let ioctl = |cmd: u32| {
        // fuse_ioctl_in: fh, flags, cmd, arg, in_size, out_size, then the input.
        let mut body = vec![0; 12];
        body.extend(cmd.to_ne_bytes());
        body.extend([0; 8]);
        body.extend(4u32.to_ne_bytes());
        body.extend(4u32.to_ne_bytes());
        body.extend(b"data");
        body
    };
    assert_eq!(
        kernel.request(op::IOCTL, 1, &ioctl(7)).errno(),
        Some(Errno::IO)
    );
    let echo = kernel.request(op::IOCTL, 1, &ioctl(8));
    assert_eq!((echo.error, &echo.data[16..]), (0, &b"data"[..]));
    assert_eq!(
        kernel.request(op::IOCTL, 1, &ioctl(9)).errno(),
        Some(Errno::NOTTY)
    );
    // A request is counted after its reply is sent.
    let counted = || {
        let stats = kernel.stats.snapshot();
        let ioctl = stats.iter().find(|stats| stats.op == Op::Ioctl);
        ioctl.map_or((0, 0), |stats| (stats.count, stats.errors))
    };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
    while counted() != (3, 2) && std::time::Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert_eq!(counted(), (3, 2));
}

#[test]
fn the_root_answers_and_absence_is_remembered() {
    let (mut kernel, _) = FakeKernel::mounted(|_| {}, None);
    let root = kernel.request(op::GETATTR, 1, &[0; 16]);
    assert_eq!(root.errno(), None);
    assert_eq!(
        root.u32(16 + 60) & 0o170_000,
        0o040_000,
        "the root is a directory"
    );
    let absent = kernel.request(op::LOOKUP, 1, b"no such name\0");
    assert_eq!(absent.errno(), None);
    assert_eq!(absent.data[..8], [0; 8], "node 0 = a negative entry");
}
