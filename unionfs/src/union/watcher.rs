//! The thread that listens to the watches.

use super::Union;
use super::news::Outdated;
use super::watch::Watches;
use crate::errno::{Errno, Result};
use crate::spec::Udba;
use crate::sys::inotify::{Event, What};
use rustc_hash::{FxHashMap, FxHashSet};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::OwnedFd;
use std::sync::{Arc, Weak};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// After events were taken in: what comes meanwhile is taken in together, each name once.
const PAUSE: Duration = Duration::from_millis(2);

/// A file that is written all the time is told of this often.
const QUIET: Duration = Duration::from_millis(40);

/// The running thread.
#[derive(Debug)]
pub(super) struct Watcher {
    stop: Arc<OwnedFd>,
    thread: JoinHandle<()>,
}

impl Union {
    /// Starts to watch the branches, with `udba=notify` in force; nothing otherwise, or if they are
    /// watched already. Where there can be no watches at all, a warning says so, and changes are
    /// noticed after a while.
    ///
    /// When the union is served already, everything the kernel knows is compared with the branches
    /// once.
    pub fn start_watching(self: &Arc<Self>) {
        let mut watcher = self.watcher.lock();
        if self.options().udba != Udba::Notify || watcher.is_some() {
            return;
        }
        match self.try_start() {
            Ok(started) => *watcher = Some(started),
            Err(err) => log::warn!(
                "udba=notify: no watches (fs.inotify.max_user_instances?): as udba=reval: {err}"
            ),
        }
    }

    /// After `udba` was changed: starts or stops watching. What the kernel trusts for ever because
    /// somebody listened is the caller's matter ([`Self::cached_by_kernel`]).
    pub fn follow_udba(self: &Arc<Self>) {
        if self.options().udba == Udba::Notify {
            self.start_watching();
        } else {
            self.stop_watching();
        }
    }

    fn try_start(self: &Arc<Self>) -> Result<Watcher> {
        let watches = Arc::new(Watches::new(self.options().watches)?);
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let (weak, theirs, end) = (Arc::downgrade(self), watches.clone(), stop.clone());
        let thread = Builder::new()
            .name("watch".into())
            .spawn(move || Listener::new(weak, theirs).run(&end))
            .map_err(|err| Errno::from_io_error(&err).unwrap_or(Errno::AGAIN))?;
        self.watches.store(Some(watches));
        Ok(Watcher { stop, thread })
    }

    /// Stops watching: before the mount ends, or after `udba` was changed to something else.
    pub fn stop_watching(&self) {
        let Some(watcher) = self.watcher.lock().take() else {
            return;
        };
        self.watches.store(None);
        for dir in self.nodes.all().iter().filter_map(|node| node.dir()) {
            dir.watch.replace_ids(Default::default());
            dir.watch.reset();
        }
        if let Err(err) = rustix::io::write(&*watcher.stop, &1u64.to_ne_bytes()) {
            log::error!("the watch thread cannot be stopped: {err}");
        } else if watcher.thread.join().is_err() {
            log::error!("the watch thread panicked");
        }
    }
}

/// A file on a branch: the watch of its directory, and its name.
type Key = (i32, Box<[u8]>);

struct Listener {
    union: Weak<Union>,
    watches: Arc<Watches>,
    /// When files that changed lately were last told of.
    told: FxHashMap<Key, Instant>,
    /// Changes that wait because their files were told of just now.
    waiting: FxHashMap<Key, (Event, Instant)>,
}

impl Listener {
    fn new(union: Weak<Union>, watches: Arc<Watches>) -> Self {
        Self {
            union,
            watches,
            told: FxHashMap::default(),
            waiting: FxHashMap::default(),
        }
    }

    fn run(mut self, stop: &OwnedFd) {
        if let Some(union) = self.union.upgrade() {
            // What the kernel was told before anybody listened.
            union.doubt_everything();
        }
        loop {
            let timeout = self.waiting.values().map(|(_, due)| *due).min().map(|due| {
                let left = due.saturating_duration_since(Instant::now());
                Timespec {
                    tv_sec: left.as_secs() as i64,
                    tv_nsec: i64::from(left.subsec_nanos()),
                }
            });
            let events = self.watches.inotify.as_fd();
            let mut fds = [
                PollFd::new(stop, PollFlags::IN),
                PollFd::from_borrowed_fd(events, PollFlags::IN),
            ];
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(err) => return log::error!("udba=notify: poll: {err}"),
            }
            if fds[0].revents().contains(PollFlags::IN) {
                return;
            }
            let batch = self.batch();
            let Some(union) = self.union.upgrade() else {
                return;
            };
            let mut outdated = Outdated::default();
            for event in &batch {
                let _inside = union.enter();
                union.hear(event, &mut outdated);
            }
            union.tell_outdated(&outdated);
            drop(union);
            std::thread::sleep(PAUSE);
        }
    }

    /// What is to be taken in now, each thing once, in the order in which it first happened.
    fn batch(&mut self) -> Vec<Event> {
        let now = Instant::now();
        let mut batch = Vec::new();
        let mut seen = FxHashSet::default();
        let due: Vec<Key> = self
            .waiting
            .iter()
            .filter(|(_, (_, due))| *due <= now)
            .map(|(key, _)| key.clone())
            .collect();
        for key in due {
            if let Some((event, _)) = self.waiting.remove(&key) {
                self.told.insert(key, now);
                batch.push(event);
            }
        }
        let (told, waiting) = (&mut self.told, &mut self.waiting);
        let read = self.watches.inotify.read(|event| {
            // Each of these is counted: a name that went and came again may be another file.
            if event.what != What::File {
                return batch.push(event);
            }
            let key: Key = (event.watch, Box::from(&event.name[..]));
            if !seen.insert(key.clone()) || waiting.contains_key(&key) {
                return;
            }
            match told.get(&key) {
                Some(when) if now - *when < QUIET => {
                    waiting.insert(key, (event, *when + QUIET));
                }
                _ => {
                    told.insert(key, now);
                    batch.push(event);
                }
            }
        });
        if let Err(err) = read {
            log::error!("udba=notify: {err}");
        }
        if self.told.len() > 4096 {
            self.told.retain(|_, when| now - *when < QUIET);
        }
        batch
    }
}
