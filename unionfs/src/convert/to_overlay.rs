//! AUFS's marks become overlayfs's.

use super::Job;
use crate::branch::{marks, overlay};
use crate::errno::{Errno, Result};
use crate::spec::Format;
use crate::sys::Name;
use crate::sys::stat::stat_at;
use crate::sys::walk::Here;
use crate::sys::xattr;
use crate::types::Kind;
use crate::whiteout::{NameClass, classify};
use rustix::fd::AsFd;
use rustix::fs::{AtFlags, unlinkat};

impl Job {
    /// The marks in a directory and its own.
    pub(super) fn dir_to_overlay(
        &mut self,
        here: &Here<'_>,
        names: &[(Name, Kind)],
        redirect: Option<&[u8]>,
    ) -> Result<()> {
        let target = xattr::Target::dir(here.dir.as_fd());
        let mut opaque = overlay::opaque(&target)? == overlay::Opaque::Yes;
        for (name, _) in names
            .iter()
            .filter(|(n, _)| classify(n) == NameClass::Opaque)
        {
            self.changes.opaque += 1;
            overlay::set(&target, b"opaque", b"y", self.user_attributes)?;
            unlinkat(here.dir, &**name, AtFlags::empty())?;
            opaque = true;
        }
        for (name, _) in names {
            if let NameClass::Whiteout(hidden) = classify(name) {
                self.changes.whiteouts += 1;
                whiteout_to_overlay(here, name, hidden, opaque)?;
            }
        }
        // A directory that became opaque has given up its lower parts.
        if let (Some(path), false) = (redirect, opaque) {
            self.changes.redirects += 1;
            overlay::set_redirect(&target, path, self.user_attributes)?;
        }
        Ok(())
    }
}

fn whiteout_to_overlay(here: &Here<'_>, mark: &[u8], hidden: &[u8], opaque: bool) -> Result<()> {
    // Nothing is below, and the kernel's overlayfs would list the device.
    if opaque {
        return unlinkat(here.dir, mark, AtFlags::empty());
    }
    match stat_at(here.dir, hidden) {
        Err(Errno::NOENT) => marks::make_null_device(here.dir, hidden)?,
        Ok(stat) if stat.is_null_device() => {}
        Ok(stat) => {
            let kind = stat.kind();
            return marks::drop_whiteout(Format::Overlay, here.dir, mark, hidden, kind);
        }
        Err(err) => return Err(err),
    }
    unlinkat(here.dir, mark, AtFlags::empty())
}
