//! Requests that no kernel would send: cut off, with absurd numbers, for nodes and handles that are
//! not there, with names that are none. Each is answered, none with EIO (which is what a panic
//! is answered with), the mount goes on, and nothing outside the branches is touched.
//!
//! Random, the same each time. `UAUFS_REQUESTS` and `UAUFS_SEED` make more of them, and others.

use super::fuse_numbers::{cap, op};
use super::kernel::FakeKernel;
use std::fs;
use std::path::Path;
use std::process::Command;
use unionfs::errno::Errno;
use unionfs::spec::OpenMode;

/// What is asked most, with the size of its fixed part and the names that follow.
const REQUESTS: &[(u32, usize, usize)] = &[
    (op::LOOKUP, 0, 1),
    (op::LOOKUP, 0, 1),
    (op::LOOKUP, 0, 1),
    (op::FORGET, 8, 0),
    (op::GETATTR, 16, 0),
    (op::SETATTR, 88, 0),
    (op::SYMLINK, 0, 2),
    (op::MKNOD, 16, 1),
    (op::MKDIR, 8, 1),
    (op::MKDIR, 8, 1),
    (op::UNLINK, 0, 1),
    (op::RMDIR, 0, 1),
    (op::RENAME, 8, 2),
    (op::RENAME2, 16, 2),
    (op::LINK, 8, 1),
    (op::OPEN, 8, 0),
    (op::READ, 40, 0),
    (op::WRITE, 40, 0),
    (op::RELEASE, 24, 0),
    (op::SETXATTR, 8, 1),
    (op::GETXATTR, 8, 1),
    (op::LISTXATTR, 8, 0),
    (op::REMOVEXATTR, 0, 1),
    (op::OPENDIR, 8, 0),
    (op::READDIR, 40, 0),
    (op::READDIRPLUS, 40, 0),
    (op::RELEASEDIR, 24, 0),
    (op::CREATE, 16, 1),
    (op::CREATE, 16, 1),
    (op::IOCTL, 32, 0),
    (op::BATCH_FORGET, 8, 0),
    (op::FALLOCATE, 32, 0),
    (op::LSEEK, 24, 0),
    (op::COPY_FILE_RANGE, 56, 0),
];

/// Numbers at the edges. None between 64 KiB and the largest: a file of that size would be made.
const NUMBERS: &[u64] = &[
    0,
    1,
    2,
    8,
    0o100_644,
    0o40_755,
    4096,
    65_536,
    i64::MAX as u64,
    i64::MAX as u64 + 1,
    u64::MAX - 1,
    u64::MAX,
];

const NAMES: &[&[u8]] = &[
    b"a",
    b"b",
    b"c",
    b"dir",
    b"lower",
    b"",
    b".",
    b"..",
    b"../outside",
    b"../new",
    b"a/../../../outside",
    // Absolute, and not there: with broken code it would be made, or removed, on the machine.
    b"/no such directory/outside",
    b".wh.a",
    b".wh./../../outside",
    b".wh..wh..opq",
    b".wh..wh.uaufs",
    b".wh.",
    b"\xff\xfe",
    b"user.a",
    b"trusted.overlay.opaque",
    b"security.capability",
    b"system.posix_acl_access",
];

/// How much memory the mount may take on for any number of requests. Seen: 3 MiB for 5,000, 5 MiB for
/// 200,000.
const MAY_GROW_KIB: u64 = 16 * 1024;

/// Tells the child how opens are answered.
const OPEN_MODE: &str = "UAUFS_TEST_ABSURD_OPENS";

/// A small generator of numbers (xorshift), for the same requests on every run.
struct Random(u64);

impl Random {
    fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.number() % end as u64) as usize
    }

    fn one_in(&mut self, many: usize) -> bool {
        self.below(many) == 0
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

struct Request {
    opcode: u32,
    node: u64,
    body: Vec<u8>,
}

impl Request {
    /// `nodes`: those that answers have told of.
    fn invent(random: &mut Random, nodes: &[u64]) -> Self {
        let (opcode, fixed, names) = random.pick(REQUESTS);
        let node = if random.one_in(8) {
            random.pick(NUMBERS)
        } else {
            random.pick(nodes)
        };
        let mut body = Vec::new();
        while body.len() < fixed {
            let number = match random.below(4) {
                0 => random.pick(nodes),
                _ => random.pick(NUMBERS),
            };
            if random.one_in(2) {
                body.extend((number as u32).to_ne_bytes());
                body.extend((random.pick(NUMBERS) as u32).to_ne_bytes());
            } else {
                body.extend(number.to_ne_bytes());
            }
        }
        body.truncate(fixed);
        tame(opcode, &mut body);
        for _ in 0..names {
            match random.below(24) {
                0 => body.extend(std::iter::repeat_n(b'n', random.pick(&[255, 256, 65_536]))),
                _ => body.extend(random.pick(NAMES)),
            }
            body.push(0);
        }
        let more = random.pick(&[0, 0, 1, 16, 4096]);
        body.extend(std::iter::repeat_n(b'x', more));
        if random.one_in(10) {
            body.truncate(random.below(body.len() + 1));
        }
        tell_length(opcode, &mut body);
        Self { opcode, node, body }
    }

    /// FORGET has no answer, unless it is cut off; that of a large READ does not fit the socket.
    fn may_stay_unanswered(&self) -> bool {
        matches!(self.opcode, op::FORGET | op::BATCH_FORGET | op::READ)
    }
}

/// fuser trusts the kernel in these (docs/reliability.md): it fails over nanoseconds that lead past
/// the last second, without optimisation over the first second, and over a wrong length of data.
/// And FALLOCATE would fill the disk.
fn tame(opcode: u32, body: &mut [u8]) {
    if opcode == op::SETATTR {
        for seconds in [32, 40, 48] {
            body[seconds + 7] &= 0x7f;
        }
        for nanoseconds in [56, 60, 64] {
            body[nanoseconds + 3] = 0;
        }
    }
    if opcode == op::FALLOCATE {
        let length = &mut body[16..24];
        let asked = u64::from_ne_bytes(length.try_into().unwrap());
        if (1 << 20..1 << 40).contains(&asked) {
            length.copy_from_slice(&(asked % 65_536).to_ne_bytes());
        }
    }
}

/// As [`tame`], where the length of the data is told: once the rest of the request is there.
fn tell_length(opcode: u32, body: &mut [u8]) {
    let (at, data) = match opcode {
        op::SETXATTR if body.len() > 8 => {
            let name = body[8..].iter().position(|byte| *byte == 0);
            (0, name.map_or(0, |end| body.len() - 8 - end - 1))
        }
        op::WRITE if body.len() >= 40 => (16, body.len() - 40),
        op::IOCTL if body.len() >= 32 => (24, body.len() - 32),
        _ => return,
    };
    body[at..at + 4].copy_from_slice(&(data as u32).to_ne_bytes());
}

/// Asks, and waits until the next request is answered, too. Returns the node that was told of.
fn ask(kernel: &mut FakeKernel, request: &Request) -> Option<u64> {
    let unique = kernel.post(request.opcode, request.node, &request.body);
    let check = kernel.post(op::GETATTR, 1, &[0; 16]);
    let mut told = None;
    let mut answers = 0;
    loop {
        let (answered, answer) = kernel.answer();
        if answered == check {
            assert_eq!(answer.errno(), None, "the root");
            break;
        }
        assert_eq!(answered, unique);
        answers += 1;
        assert_ne!(answer.errno(), Some(Errno::IO));
        assert!((-4095..=0).contains(&answer.error), "{}", answer.error);
        let tells = [op::LOOKUP, op::MKDIR, op::MKNOD, op::CREATE, op::LINK];
        if answer.error == 0 && tells.contains(&request.opcode) {
            let node = u64::from_ne_bytes(answer.data[..8].try_into().unwrap());
            told = (node != 0).then_some(node);
        }
    }
    assert!(
        answers == 1 || request.may_stay_unanswered(),
        "{answers} answers"
    );
    told
}

fn setting(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |value| value.parse().unwrap())
}

/// Resident memory of this process in KiB.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
        .unwrap()
}

fn names(path: &Path) -> Vec<String> {
    let listed = fs::read_dir(path).unwrap();
    let mut names: Vec<_> = listed
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn requests_are_survived(open: OpenMode) {
    let seed = setting("UAUFS_SEED", 1);
    let count = setting("UAUFS_REQUESTS", 20_000);
    let (mut kernel, init) = FakeKernel::mounted(|options| options.open = open, None);
    assert_eq!(init.errno(), None);
    let place = kernel.place().to_owned();
    for (path, text) in [("lower/lower", "lower"), ("outside", "outside")] {
        fs::write(place.join(path), text).unwrap();
    }
    let before = names(&place);
    // A zero would stay one.
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut nodes = vec![1];
    let memory = resident();
    for at in 0..count {
        let request = Request::invent(&mut random, &nodes);
        let (opcode, node, length) = (request.opcode, request.node, request.body.len());
        let said = std::panic::AssertUnwindSafe(|| ask(&mut kernel, &request));
        let told = std::panic::catch_unwind(said).unwrap_or_else(|cause| {
            eprintln!("seed {seed}, request {at}: operation {opcode} on {node}, {length} bytes");
            std::panic::resume_unwind(cause);
        });
        nodes.extend(told);
        if nodes.len() > 64 {
            let forgotten = nodes.swap_remove(1 + random.below(63));
            kernel.post(op::FORGET, forgotten, &1u64.to_ne_bytes());
        }
    }
    let grown = resident().saturating_sub(memory);
    assert!(
        grown < MAY_GROW_KIB,
        "{grown} KiB more after {count} requests"
    );
    assert_eq!(names(&place), before);
    assert_eq!(fs::read(place.join("outside")).unwrap(), b"outside");
    assert_eq!(fs::read(place.join("lower/lower")).unwrap(), b"lower");
    assert_eq!(names(&place.join("lower")), ["lower"]);
}

/// In a process of their own: other tests have mounts, too, each with 16 MiB for messages.
fn requests_are_survived_alone(open: &str) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "absurd::child", "--ignored"])
        .env(OPEN_MODE, open);
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}"
    );
}

#[test]
#[ignore = "started by the two tests below, with something to do"]
fn child() {
    match std::env::var(OPEN_MODE).as_deref() {
        Ok("answered") => requests_are_survived(OpenMode::Answered),
        Ok("auto") => requests_are_survived(OpenMode::Auto),
        _ => {}
    }
}

#[test]
fn absurd_requests_are_answered_and_survived() {
    requests_are_survived_alone("answered");
}

#[test]
fn absurd_requests_are_survived_where_the_kernel_answers_opens() {
    requests_are_survived_alone("auto");
}

#[test]
fn a_count_of_references_that_were_never_given_takes_no_node_away() {
    let (mut kernel, _) = FakeKernel::mounted(|_| {}, None);
    for node in [1, 2, u64::MAX] {
        kernel.post(op::FORGET, node, &u64::MAX.to_ne_bytes());
    }
    // More nodes than the message has.
    let mut batch = u32::MAX.to_ne_bytes().to_vec();
    batch.resize(8 + 16, 0xff);
    kernel.post(op::BATCH_FORGET, 0, &batch);
    let root = kernel.post(op::GETATTR, 1, &[0; 16]);
    loop {
        let (answered, answer) = kernel.answer();
        if answered == root {
            assert_eq!(answer.errno(), None);
            break;
        }
    }
    assert_eq!(
        kernel.init(cap::ALL).errno(),
        Some(Errno::IO),
        "a second INIT"
    );
}
