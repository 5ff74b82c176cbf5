//! The state of the adapter and the one way every request is run: guarded, counted, answered.

use super::caps::MAX_IO;
use super::convert::{absent_attr, errno, file_attr};
use super::idmap::IdMaps;
use super::listings::Listings;
use super::opens::{Grant, LiveOpens};
use super::plan::{DataPath, IoPlan, Opens};
use super::session::{IoctlHook, ServeConfig};
use crate::errno::{Errno, Result};
use crate::stats::{Op, Stats};
use crate::types::{Attr, Caller, Entry, Lifetimes, NodeId, Opened};
use crate::union::Union;
use fuser::{BackingId, FileAttr, FopenFlags, Generation, ReplyData, Request};
use std::any::Any;
use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Translates requests into calls of the union. One per mount, shared by the worker threads.
pub(super) struct Adapter {
    pub(super) union: Arc<Union>,
    pub(super) ids: IdMaps,
    pub(super) plan: IoPlan,
    /// Where `plan` is published once INIT has settled it.
    settled: Arc<OnceLock<IoPlan>>,
    pub(super) ioctl: Option<IoctlHook>,
    stats: Arc<Stats>,
    /// Kept in passthrough mounts only.
    pub(super) opens: Arc<LiveOpens<BackingId>>,
    pub(super) listings: Listings,
}

thread_local! {
    /// Where READ collects the data; one per worker thread, never shrunk.
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Adapter {
    /// An adapter for `union`; `settled` receives the plan as INIT leaves it.
    pub(super) fn new(
        union: Arc<Union>,
        config: &ServeConfig,
        settled: Arc<OnceLock<IoPlan>>,
    ) -> Self {
        let opens = Arc::new(LiveOpens::default());
        let asked = Arc::clone(&opens);
        union.set_busy_check(move |node| asked.is_passed_through(node.0));
        Self {
            ids: IdMaps::new(&union.options()),
            union,
            plan: config.plan.clone(),
            settled,
            ioctl: config.ioctl.clone(),
            stats: Arc::clone(&config.stats),
            opens,
            listings: Listings::default(),
        }
    }

    /// Publishes the plan after INIT.
    pub(super) fn settle(&self) {
        self.union
            .set_unseen_opens(self.plan.opens == Opens::ZeroMessage);
        // INIT comes once per connection, so the cell is empty.
        let _ = self.settled.set(self.plan.clone());
    }

    /// Runs one request: `body` answers it and tells whether it succeeded. A panic ends the
    /// request only: the reply, dropped on the way, says EIO, and the mount goes on.
    pub(super) fn run(&self, op: Op, body: impl FnOnce() -> bool) {
        let start = Instant::now();
        // Branches do not come and go while a request is carried out.
        let _inside = self.union.enter();
        let ok = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
            log::error!(
                "{}: panic, answered with EIO: {}",
                op.name(),
                panic_text(&*panic)
            );
            false
        });
        self.stats.record(op, start.elapsed(), ok);
    }

    /// Runs one request whose result is computed first and sent then.
    pub(super) fn answer<T, R: Reply>(
        &self,
        op: Op,
        reply: R,
        work: impl FnOnce() -> Result<T>,
        send: impl FnOnce(R, T),
    ) {
        self.run(op, move || match work() {
            Ok(value) => {
                send(reply, value);
                true
            }
            Err(error) => {
                reply.fail(error);
                false
            }
        });
    }

    /// Runs one request that is answered with a node.
    pub(super) fn answer_entry(
        &self,
        op: Op,
        parent: NodeId,
        reply: fuser::ReplyEntry,
        work: impl FnOnce() -> Result<Entry>,
    ) {
        self.answer(op, reply, work, |reply, entry| {
            self.send_entry(reply, parent, &entry)
        });
    }

    /// Sends a node in `parent` with its lifetimes.
    pub(super) fn send_entry(&self, reply: fuser::ReplyEntry, parent: NodeId, entry: &Entry) {
        let Lifetimes {
            entry: entry_ttl,
            attr: attr_ttl,
            ..
        } = self.lifetimes_in(parent, Some(&entry.attr));
        let attr = self.wire_attr(&entry.attr);
        reply.entry_with_ttls(&attr_ttl, &entry_ttl, &attr, Generation(entry.generation));
    }

    /// Sends "no such name" in `parent`, to be remembered as long as the union allows.
    pub(super) fn send_absent(&self, reply: fuser::ReplyEntry, parent: NodeId) {
        let lifetime = self.lifetimes_in(parent, None).negative;
        if lifetime.is_zero() {
            reply.fail(Errno::NOENT);
        } else {
            reply.entry(&lifetime, &absent_attr(), Generation(0));
        }
    }

    /// How long a name in `parent` may be trusted.
    pub(super) fn entry_lifetime(&self, parent: NodeId) -> Duration {
        self.lifetimes_in(parent, None).entry
    }

    /// The lifetime for replies that have one field for both names and attributes; `names` is that
    /// of the names.
    pub(super) fn shorter_lifetime(&self, names: Duration, attr: &Attr) -> Duration {
        names.min(self.union.attr_lifetime(attr))
    }

    /// Attributes as they go over the wire.
    pub(super) fn wire_attr(&self, attr: &Attr) -> FileAttr {
        file_attr(&self.ids.attr(*attr))
    }

    /// Who asks, in ids of the branches.
    pub(super) fn caller(&self, request: &Request) -> Caller {
        self.ids.caller(asker(request))
    }

    /// Are OPEN and OPENDIR left to the kernel?
    pub(super) fn zero_message(&self) -> bool {
        self.plan.opens == Opens::ZeroMessage
    }

    /// Decides how an open of a file is answered; `flags` as in open(2), `register` makes a backing
    /// id of a descriptor.
    pub(super) fn grant(
        &self,
        node: NodeId,
        (opened, flags): (Opened, i32),
        register: impl FnOnce(&OwnedFd) -> io::Result<BackingId>,
    ) -> Grant<BackingId> {
        if self.plan.data != DataPath::Passthrough {
            return Grant::Cached;
        }
        self.union.while_it_stays(node, || {
            self.opens
                .open(node.0, opened.passthrough, writes(flags), || {
                    register(&*self.union.passthrough_fd(node)?)
                })
        })
    }

    /// Ends an answered open of a file, `flags` as in open(2).
    pub(super) fn close(&self, node: NodeId, flags: i32) {
        if self.plan.data == DataPath::Passthrough {
            self.opens.close(node.0, writes(flags));
        }
        self.union.release(node);
    }

    /// The flags of an open that goes through the daemon.
    pub(super) fn open_flags(&self, opened: Opened) -> FopenFlags {
        match self.plan.data {
            DataPath::Direct => FopenFlags::FOPEN_DIRECT_IO,
            // The file may have been written past the page cache since its pages were read.
            DataPath::Passthrough if opened.passthrough => FopenFlags::empty(),
            _ if opened.keep_cache => FopenFlags::FOPEN_KEEP_CACHE,
            _ => FopenFlags::empty(),
        }
    }

    /// Answers a READ out of this thread's buffer.
    pub(super) fn answer_read(&self, node: NodeId, offset: u64, size: usize, reply: ReplyData) {
        // The kernel asks for no more; whoever does gets a short answer instead of our memory.
        let size = size.min(MAX_IO as usize);
        self.run(Op::Read, || {
            READ_BUFFER.with_borrow_mut(|buffer| {
                if buffer.len() < size {
                    buffer.resize(MAX_IO as usize, 0);
                }
                let read = self.union.read(node, offset, &mut buffer[..size]);
                match read {
                    Ok(count) => reply.data(&buffer[..count]),
                    Err(error) => reply.fail(error),
                }
                read.is_ok()
            })
        });
    }
}

/// May a file that is open like this be written to?
fn writes(flags: i32) -> bool {
    flags & libc::O_ACCMODE != libc::O_RDONLY
}

/// Who asks, in ids of the mount.
pub(super) fn asker(request: &Request) -> Caller {
    Caller {
        uid: request.uid(),
        gid: request.gid(),
        pid: request.pid(),
    }
}

/// What a panic said.
fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// A pending answer that can be an error.
pub(super) trait Reply {
    /// Answers with an errno.
    fn fail(self, error: Errno);
}

macro_rules! replies {
    ($($reply:ident),+ $(,)?) => {
        $(impl Reply for fuser::$reply {
            fn fail(self, error: Errno) {
                self.error(errno(error));
            }
        })+
    };
}

replies!(
    ReplyAttr,
    ReplyCreate,
    ReplyData,
    ReplyDirectory,
    ReplyDirectoryPlus,
    ReplyEmpty,
    ReplyEntry,
    ReplyIoctl,
    ReplyLseek,
    ReplyOpen,
    ReplyPoll,
    ReplyStatfs,
    ReplyWrite,
    ReplyXattr,
);
