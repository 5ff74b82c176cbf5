//! The kernel's side of a connection, and the served mount behind it.

use crate::fuse_numbers::{cap, op};
use rustix::net::sockopt::Timeout;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use unionfs::errno::Errno;
use unionfs::fuse::session::IoctlHook;
use unionfs::fuse::{IoPlan, ServeConfig, ServeEnd, serve};
use unionfs::spec::{BranchPerm, BranchSpec, Grammar, MountFlags, MountSpec, Options};
use unionfs::stats::Stats;
use unionfs::union::Union;

/// Flags of an answer to an open.
pub mod open_flag {
    pub const CACHE_DIR: u32 = 1 << 3;
}

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// An answer: errno (0 = success) and payload.
pub struct Answer {
    pub error: i32,
    pub data: Vec<u8>,
}

impl Answer {
    pub fn u32(&self, offset: usize) -> u32 {
        u32::from_ne_bytes(self.data[offset..offset + 4].try_into().unwrap())
    }

    pub fn errno(&self) -> Option<Errno> {
        (self.error != 0).then(|| Errno::from_raw_os_error(-self.error))
    }
}

/// The kernel's side of the connection, and the served mount behind it.
pub struct FakeKernel {
    socket: OwnedFd,
    unique: u64,
    server: Option<JoinHandle<ServeEnd>>,
    pub stats: Arc<Stats>,
    branches: tempfile::TempDir,
}

impl FakeKernel {
    pub fn start(
        change: impl FnMut(&mut Options),
        may_passthrough: bool,
        ioctl: Option<IoctlHook>,
    ) -> Self {
        Self::start_on(BranchPerm::RW, change, may_passthrough, ioctl)
    }

    /// `top`: the permission of the upper one of two branches.
    pub fn start_on(
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
        rustix::net::sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE)).unwrap();
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
            branches,
        }
    }

    /// A mount after INIT, with the answer to it.
    pub fn mounted(change: impl FnMut(&mut Options), ioctl: Option<IoctlHook>) -> (Self, Answer) {
        let mut kernel = Self::start(change, false, ioctl);
        let answer = kernel.init(cap::ALL);
        (kernel, answer)
    }

    pub fn init(&mut self, offered: u64) -> Answer {
        let mut body = Vec::new();
        for word in [7u32, 45, 128 * 1024, offered as u32, (offered >> 32) as u32] {
            body.extend(word.to_ne_bytes());
        }
        body.resize(64, 0);
        self.request(op::INIT, 0, &body)
    }

    /// Sends a request and waits for its answer.
    pub fn request(&mut self, opcode: u32, node: u64, body: &[u8]) -> Answer {
        let unique = self.post(opcode, node, body);
        let (answered, answer) = self.answer();
        assert_eq!(answered, unique);
        answer
    }

    /// Sends a request; returns the number that its answer will have.
    pub fn post(&mut self, opcode: u32, node: u64, body: &[u8]) -> u64 {
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
        self.unique
    }

    /// The next answer, with the number of its request.
    pub fn answer(&mut self) -> (u64, Answer) {
        let mut answer = vec![0; 1 << 20];
        let received = recv(&self.socket, &mut answer[..], RecvFlags::empty());
        // In time, that is: a hang is a failure.
        let (length, _) = received.unwrap();
        answer.truncate(length);
        assert_eq!(
            u32::from_ne_bytes(answer[0..4].try_into().unwrap()) as usize,
            length
        );
        let error = i32::from_ne_bytes(answer[4..8].try_into().unwrap());
        let unique = u64::from_ne_bytes(answer[8..16].try_into().unwrap());
        let data = answer.split_off(16);
        (unique, Answer { error, data })
    }

    /// Where the branches lie.
    pub fn place(&self) -> &Path {
        self.branches.path()
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
pub fn init_flags(answer: &Answer) -> u64 {
    u64::from(answer.u32(12)) | u64::from(answer.u32(32)) << 32
}
