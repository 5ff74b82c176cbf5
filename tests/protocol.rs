//! The adapter against a fake kernel: a socket pair instead of /dev/fuse, so neither root nor a
//! mount is needed. Source of the layouts: linux/fuse.h.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use unionfs::errno::Errno;
use unionfs::fuse::session::IoctlHook;
use unionfs::fuse::{IoPlan, ServeConfig, ServeEnd, serve};
use unionfs::spec::{
    BranchPerm, BranchSpec, Grammar, IoMode, MountFlags, MountSpec, OpenMode, Options,
};
use unionfs::stats::{Op, Stats};
use unionfs::union::Union;

/// Operations, as linux/fuse.h numbers them.
mod op {
    pub const LOOKUP: u32 = 1;
    pub const GETATTR: u32 = 3;
    pub const OPEN: u32 = 14;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const ACCESS: u32 = 34;
    pub const DESTROY: u32 = 38;
    pub const IOCTL: u32 = 39;
    pub const SYNCFS: u32 = 50;
    pub const FROM_THE_FUTURE: u32 = 4000;
}

/// Capabilities of INIT.
mod cap {
    pub const ATOMIC_O_TRUNC: u64 = 1 << 3;
    pub const DONT_MASK: u64 = 1 << 6;
    pub const FLOCK_LOCKS: u64 = 1 << 10;
    pub const POSIX_LOCKS: u64 = 1 << 1;
    pub const AUTO_INVAL_DATA: u64 = 1 << 12;
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    pub const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub const WRITEBACK_CACHE: u64 = 1 << 16;
    pub const NO_OPEN_SUPPORT: u64 = 1 << 17;
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    pub const POSIX_ACL: u64 = 1 << 20;
    pub const MAX_PAGES: u64 = 1 << 22;
    pub const CACHE_SYMLINKS: u64 = 1 << 23;
    pub const NO_OPENDIR_SUPPORT: u64 = 1 << 24;
    pub const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub const SETXATTR_EXT: u64 = 1 << 29;
    pub const INIT_EXT: u64 = 1 << 30;
    pub const SECURITY_CTX: u64 = 1 << 32;
    pub const PASSTHROUGH: u64 = 1 << 37;
    pub const OVER_IO_URING: u64 = 1 << 41;
    /// A kernel that offers everything.
    pub const ALL: u64 = (1 << 43) - 1;
}

/// Flags of an answer to an open.
mod open_flag {
    pub const CACHE_DIR: u32 = 1 << 3;
}

/// An answer: errno (0 = success) and payload.
struct Answer {
    error: i32,
    data: Vec<u8>,
}

impl Answer {
    fn u32(&self, offset: usize) -> u32 {
        u32::from_ne_bytes(self.data[offset..offset + 4].try_into().unwrap())
    }

    fn errno(&self) -> Option<Errno> {
        (self.error != 0).then(|| Errno::from_raw_os_error(-self.error))
    }
}

/// The kernel's side of the connection, and the served mount behind it.
struct FakeKernel {
    socket: OwnedFd,
    unique: u64,
    server: Option<JoinHandle<ServeEnd>>,
    stats: Arc<Stats>,
    _branches: tempfile::TempDir,
}

impl FakeKernel {
    fn start(
        change: impl FnMut(&mut Options),
        may_passthrough: bool,
        ioctl: Option<IoctlHook>,
    ) -> Self {
        Self::start_on(BranchPerm::RW, change, may_passthrough, ioctl)
    }

    /// `top`: the permission of the upper one of two branches.
    fn start_on(
        top: BranchPerm,
        mut change: impl FnMut(&mut Options),
        may_passthrough: bool,
        ioctl: Option<IoctlHook>,
    ) -> Self {
        let branches = tempfile::tempdir().unwrap();
        let mut spec = MountSpec {
            grammar: Grammar::Overlay,
            branches: Vec::new(),
            options: Options::defaults(Grammar::Overlay),
            mount: MountFlags::default(),
            warnings: Vec::new(),
        };
        change(&mut spec.options);
        for (name, perm) in [("upper", top), ("lower", BranchPerm::RO_WH)] {
            let path = branches.path().join(name);
            std::fs::create_dir(&path).unwrap();
            let workdir = perm.writable().then(|| branches.path().join("work"));
            if let Some(workdir) = &workdir {
                std::fs::create_dir(workdir).unwrap();
            }
            spec.branches.push(BranchSpec {
                path,
                perm,
                format: None,
                workdir,
            });
        }
        let plan = IoPlan::choose(&spec, may_passthrough).unwrap();
        let union = Arc::new(Union::open(&spec).unwrap());
        let (socket, device) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let mut config = ServeConfig::new(plan);
        config.threads = 1;
        config.clone_device = false;
        config.ioctl = ioctl;
        let stats = Arc::clone(&config.stats);
        let server = std::thread::spawn(move || serve(union, device, config).unwrap());
        Self {
            socket,
            unique: 0,
            server: Some(server),
            stats,
            _branches: branches,
        }
    }

    /// A mount after INIT, with the answer to it.
    fn mounted(change: impl FnMut(&mut Options), ioctl: Option<IoctlHook>) -> (Self, Answer) {
        let mut kernel = Self::start(change, false, ioctl);
        let answer = kernel.init(cap::ALL);
        (kernel, answer)
    }

    fn init(&mut self, offered: u64) -> Answer {
        let mut body = Vec::new();
        for word in [7u32, 45, 128 * 1024, offered as u32, (offered >> 32) as u32] {
            body.extend(word.to_ne_bytes());
        }
        body.resize(64, 0);
        self.request(op::INIT, 0, &body)
    }

    fn request(&mut self, opcode: u32, node: u64, body: &[u8]) -> Answer {
        self.unique += 2;
        let mut message = Vec::new();
        message.extend((40 + body.len() as u32).to_ne_bytes());
        message.extend(opcode.to_ne_bytes());
        message.extend(self.unique.to_ne_bytes());
        message.extend(node.to_ne_bytes());
        for id in [0u32, 0, 1, 0] {
            message.extend(id.to_ne_bytes());
        }
        message.extend(body);
        send(&self.socket, &message, SendFlags::empty()).unwrap();

        let mut answer = vec![0; 1 << 20];
        let (length, _) = recv(&self.socket, &mut answer[..], RecvFlags::empty()).unwrap();
        answer.truncate(length);
        assert_eq!(
            u64::from_ne_bytes(answer[8..16].try_into().unwrap()),
            self.unique
        );
        assert_eq!(
            u32::from_ne_bytes(answer[0..4].try_into().unwrap()) as usize,
            length
        );
        let error = i32::from_ne_bytes(answer[4..8].try_into().unwrap());
        Answer {
            error,
            data: answer.split_off(16),
        }
    }
}

impl Drop for FakeKernel {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        assert_eq!(self.request(op::DESTROY, 0, &[]).error, 0);
        assert_eq!(
            self.server.take().unwrap().join().unwrap(),
            ServeEnd::Unmounted
        );
    }
}

/// The flags of an answer to INIT.
fn init_flags(answer: &Answer) -> u64 {
    u64::from(answer.u32(12)) | u64::from(answer.u32(32)) << 32
}

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
