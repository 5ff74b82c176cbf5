//! The gate that keeps operations and changes of the stack apart.
//!
//! Every operation runs inside the gate. A change closes it, waits until nobody is inside, and so
//! sees no operation half-done and shows none a half-changed list. Going in costs two accesses to a
//! counter of the thread's own; only closing looks at all of them.
//!
//! Who does something long that needs nothing of the stack (copies data, syncs, waits for another
//! thread) steps outside meanwhile ([`Gate::outside`]), and must then expect another stack.

use parking_lot::{Condvar, Mutex};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Counters: threads share them by turns.
const COUNTERS: usize = 16;

/// How long a first attempt to close lets operations wait. Each further one takes twice as long.
const FIRST_WINDOW: Duration = Duration::from_millis(100);

/// A counter on a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Counter(AtomicUsize);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Gate {
    inside: [Counter; COUNTERS],
    closed: AtomicBool,
    /// Nothing is guarded by it: it goes with `opened`.
    waiting: Mutex<()>,
    opened: Condvar,
}

thread_local! {
    /// The gate that this thread is inside of (its address; 0 = none). Gates do not nest.
    static INSIDE: Cell<usize> = const { Cell::new(0) };
    static COUNTER: usize = NEXT.fetch_add(1, Ordering::Relaxed) % COUNTERS;
}

static NEXT: AtomicUsize = AtomicUsize::new(0);

/// Being inside; ends when dropped.
#[must_use]
#[derive(Debug)]
pub struct Inside<'a> {
    /// `None` = the thread was inside already.
    gate: Option<&'a Gate>,
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        if let Some(gate) = self.gate {
            gate.leave();
        }
    }
}

/// The gate is closed; opens when dropped.
#[must_use]
pub(super) struct Closed<'a>(&'a Gate);

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.0.open();
    }
}

impl Gate {
    fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// Goes in; waits while the gate is closed.
    pub(super) fn enter(&self) -> Inside<'_> {
        if INSIDE.get() == self.address() {
            return Inside { gate: None };
        }
        self.go_in();
        Inside { gate: Some(self) }
    }

    fn go_in(&self) {
        let counter = COUNTER.with(|&at| &self.inside[at].0);
        loop {
            // Sequentially consistent, as is closing: either we see it closed, or it sees us.
            counter.fetch_add(1, Ordering::SeqCst);
            if !self.closed.load(Ordering::SeqCst) {
                break;
            }
            counter.fetch_sub(1, Ordering::SeqCst);
            let mut waiting = self.waiting.lock();
            while self.closed.load(Ordering::SeqCst) {
                self.opened.wait(&mut waiting);
            }
        }
        INSIDE.set(self.address());
    }

    fn leave(&self) {
        INSIDE.set(0);
        COUNTER.with(|&at| self.inside[at].0.fetch_sub(1, Ordering::SeqCst));
    }

    /// Runs `f` outside, if this thread is inside.
    pub(super) fn outside<T>(&self, f: impl FnOnce() -> T) -> T {
        if INSIDE.get() != self.address() {
            return f();
        }
        self.leave();
        let _back = Back(self);
        f()
    }

    /// Closes the gate once nobody is inside, waiting up to `patience`; `None` = somebody always
    /// was. Operations wait for short times only, however long the one is that is waited for.
    pub(super) fn close(&self, patience: Duration) -> Option<Closed<'_>> {
        let deadline = Instant::now() + patience;
        let mut window = FIRST_WINDOW;
        loop {
            self.closed.store(true, Ordering::SeqCst);
            let closed = Closed(self);
            let end = Instant::now() + window;
            loop {
                if self.inside.iter().all(|c| c.0.load(Ordering::SeqCst) == 0) {
                    return Some(closed);
                }
                if Instant::now() >= end {
                    break;
                }
                std::thread::sleep(Duration::from_micros(50));
            }
            drop(closed);
            if Instant::now() >= deadline {
                return None;
            }
            std::thread::sleep(window / 2);
            window *= 2;
        }
    }

    fn open(&self) {
        let _waiting = self.waiting.lock();
        self.closed.store(false, Ordering::SeqCst);
        self.opened.notify_all();
    }
}

/// Goes in again, also when the work outside panicked.
struct Back<'a>(&'a Gate);

impl Drop for Back<'_> {
    fn drop(&mut self) {
        self.0.go_in();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn nobody_is_inside_a_closed_gate() {
        let gate = Arc::new(Gate::default());
        let value = Arc::new((AtomicUsize::new(0), AtomicUsize::new(0)));
        let end = Arc::new(AtomicBool::new(false));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let (gate, value, end) = (gate.clone(), value.clone(), end.clone());
                std::thread::spawn(move || {
                    let mut seen = 0;
                    while !end.load(Ordering::Relaxed) {
                        let _inside = gate.enter();
                        let _again = gate.enter();
                        let a = value.0.load(Ordering::Relaxed);
                        assert_eq!(a, value.1.load(Ordering::Relaxed));
                        seen = a;
                    }
                    seen
                })
            })
            .collect();
        for _ in 0..100 {
            let _closed = gate.close(Duration::from_secs(10)).unwrap();
            value.0.fetch_add(1, Ordering::Relaxed);
            std::thread::yield_now();
            value.1.fetch_add(1, Ordering::Relaxed);
        }
        end.store(true, Ordering::Relaxed);
        assert!(threads.into_iter().any(|t| t.join().unwrap() > 0));
    }

    #[test]
    fn who_stays_inside_is_waited_for_and_who_steps_outside_is_not() {
        let gate = Gate::default();
        std::thread::scope(|scope| {
            let _inside = gate.enter();
            let closing = || gate.close(Duration::from_millis(50)).is_some();
            assert!(!scope.spawn(closing).join().unwrap());
            assert!(gate.outside(|| scope.spawn(closing).join().unwrap()));
            assert!(!scope.spawn(closing).join().unwrap());
        });
    }
}
