//! Carrying out the requests of the control socket on one mount.

use super::moving;
use super::protocol::{Failure, Outcome, Request};
use super::server::Handler;
use crate::errno::Errno;
use crate::spec::aufs::{Change, parse_change};
use crate::union::Union;
use parking_lot::Mutex;
use rustix::fd::OwnedFd;
use serde_json::{Value, json};
use std::sync::Arc;

/// The mount that is changed.
pub struct Live {
    union: Arc<Union>,
    /// Held over every change: they are made one after the other. Taken before every other lock.
    changing: Mutex<()>,
}

impl Live {
    /// Changes of this union.
    pub fn new(union: Arc<Union>) -> Self {
        Self {
            union,
            changing: Mutex::new(()),
        }
    }

    fn change(&self, change: &Change) -> Outcome {
        match change {
            Change::Set(setting) => {
                self.union.set(setting)?;
                Ok(Value::Null)
            }
            _ => Err(Failure::new(
                Errno::OPNOTSUPP,
                "branches of a live mount cannot be changed yet",
            )),
        }
    }
}

impl Handler for Live {
    fn handle(
        &self,
        request: Request,
        attached: Vec<OwnedFd>,
        progress: &mut dyn FnMut(&str) -> bool,
    ) -> Outcome {
        let _one = self.changing.lock();
        match request {
            Request::Change { option, force: _ } => {
                let parsed = parse_change(&option)?;
                for change in &parsed.changes {
                    self.change(change)?;
                }
                Ok(json!({ "warnings": parsed.warnings }))
            }
            Request::Merge(how) => moving::merge(&self.union, &how, &attached, progress),
            Request::MoveDown(which) => moving::move_down(&self.union, &which, &attached),
            Request::Plinks => Ok(moving::plinks(&self.union)),
            Request::PlinkUp { parent, name } => moving::plink_up(&self.union, parent, &name),
            Request::PlinkDrop { ino } => moving::plink_drop(&self.union, ino),
        }
    }
}
