//! Carrying out the requests of the control socket on one mount.

use super::moving;
use super::protocol::{Failure, Outcome, Request};
use super::server::Handler;
use crate::errno::Errno;
use crate::fuse::notify::EffectSender;
use crate::fuse::plan::{IoPlan, Opens};
use crate::spec::aufs::{Change, parse_change};
use crate::spec::{Grammar, MountSetting, Setting, Udba};
use crate::union::Union;
use parking_lot::Mutex;
use rustix::fd::OwnedFd;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// How long a change waits until the kernel has been told of it.
const TELLING: Duration = Duration::from_secs(10);

/// The mount that is changed.
pub struct Live {
    /// Its union.
    pub union: Arc<Union>,
    /// Where the kernel is told.
    pub effects: EffectSender,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// What its options are written in.
    pub grammar: Grammar,
    /// It was to be readonly.
    pub asked_read_only: AtomicBool,
    /// How it does its I/O, once that is settled.
    pub plan: Arc<OnceLock<IoPlan>>,
    /// Held over every change: they are made one after the other. Taken before every other lock.
    pub changing: Mutex<()>,
}

impl Live {
    fn change(&self, change: &Change, dir: Option<OwnedFd>, force: bool) -> Outcome {
        let needed = |dir: Option<OwnedFd>| {
            let what = "the branch's directory was not handed over";
            dir.ok_or_else(|| Failure::new(Errno::BADF, what))
        };
        match change {
            Change::Set(setting) => self.set(setting),
            Change::AddBranch { index, branch } => self.add(Some(*index), branch, needed(dir)?),
            Change::Append(branch) => self.add(None, branch, needed(dir)?),
            Change::Prepend(branch) => self.add(Some(0), branch, needed(dir)?),
            Change::Mod { path, perm } => self.modify(path, *perm, needed(dir)?),
            Change::Del { path } => self.delete(path, dir, force),
        }
    }

    fn set(&self, setting: &Setting) -> Outcome {
        if let Setting::Udba(udba) = setting
            && *udba != Udba::None
            && self.unseen_opens()
        {
            return Err(Failure::because(
                Errno::INVAL,
                format_args!("{}", setting.to_option().to_string_lossy()),
                "this mount does not see when files are opened: unmount, and mount with it",
            ));
        }
        if let Setting::Mount(MountSetting::ReadOnly(on)) = setting {
            // The kernel has been told by the caller.
            self.asked_read_only.store(*on, Ordering::Relaxed);
            return Ok(Value::Null);
        }
        self.union.set(setting)?;
        if matches!(setting, Setting::Udba(_)) {
            self.union.follow_udba();
        }
        self.tell_kernel();
        Ok(Value::Null)
    }

    /// Does the kernel open files without asking?
    fn unseen_opens(&self) -> bool {
        self.plan
            .get()
            .is_none_or(|plan| plan.opens == Opens::ZeroMessage)
    }

    /// What the kernel has cached is looked up again.
    pub(super) fn tell_kernel(&self) {
        for effect in self.union.cached_by_kernel() {
            self.effects.send(effect);
        }
        if !self.effects.flush(TELLING) {
            log::warn!("the kernel was not told of a change in time: caches may be old");
        }
    }
}

impl Handler for Live {
    fn handle(
        &self,
        request: Request,
        mut attached: Vec<OwnedFd>,
        progress: &mut dyn FnMut(&str) -> bool,
    ) -> Outcome {
        let _one = self.changing.lock();
        match request {
            Request::Change { option, force } => {
                let mut parsed = parse_change(&option)?;
                let (Some(change), true) = (parsed.changes.pop(), parsed.changes.is_empty()) else {
                    return Err(Failure::new(Errno::INVAL, "one change at a time"));
                };
                let done = self.change(&change, attached.pop(), force)?;
                let told = done.get("warnings").cloned();
                let mut warnings = parsed.warnings;
                if let Some(told) = told.as_ref().and_then(Value::as_array) {
                    warnings.extend(told.iter().filter_map(Value::as_str).map(str::to_owned));
                }
                let writable = done.get("writable").cloned();
                Ok(json!({ "warnings": warnings, "writable": writable }))
            }
            Request::Merge(how) => moving::merge(&self.union, &how, &attached, progress),
            Request::MoveDown(which) => moving::move_down(&self.union, &which, &attached),
            Request::Plinks => Ok(moving::plinks(&self.union)),
            Request::PlinkUp { parent, name } => moving::plink_up(&self.union, parent, &name),
            Request::PlinkDrop { ino } => moving::plink_drop(&self.union, ino),
        }
    }
}
