//! What stands in the way of a conversion, before anything is changed.

use super::{Job, attributes_at, books, dirs_of, is_null_device};
use crate::branch::overlay::{self, Attributes, Opaque, Redirect};
use crate::branch::owners::Owners;
use crate::errno::{Errno, Result};
use crate::shown::Shown;
use crate::spec::Format;
use crate::sys::stat::stat_fd;
use crate::sys::walk::{Children, Here, Step, entries, tree};
use crate::sys::xattr;
use crate::types::Kind;
use crate::whiteout::*;
use rustix::fd::AsFd;
use serde::ser::{Serialize, SerializeMap, Serializer};
use std::fmt;

/// Why something cannot be converted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// A 0/0 device of a user would become a whiteout.
    Device,
    /// An attribute of a user would become a mark.
    Attribute,
    /// The data of the file is on another branch.
    Metacopy,
    /// An attribute of an overlay within this one.
    Escaped,
    /// Owners and modes are kept in an attribute, which the AUFS format does not read.
    Owners,
    /// Something half made, or a mark that is none.
    Unsound,
    /// Records of AUFS's own dirren.
    AufsRecord,
    /// Pseudo-links and things set aside need a work directory to move to.
    NeedsWorkdir,
    /// The work directory is on another filesystem.
    OtherFilesystem,
    /// Hides something in a directory that only lower branches have.
    NeedsLower,
    /// A directory that cannot be entered.
    Closed,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Device => "a 0/0 device would become a whiteout: remove it",
            Self::Attribute => "an overlay attribute would become a mark: remove it",
            Self::Metacopy => {
                "its data is on another branch: touch it in a mount by uaufs first"
            }
            Self::Escaped => "attributes of an overlay inside (overlay.overlay.*): move its layers elsewhere first",
            Self::Owners => {
                "owners are kept in an attribute (xattr_permissions): copy it through a mount instead"
            }
            Self::Unsound => "not sound: run `uaufs fsck --repair` first",
            Self::AufsRecord => "a renamed directory's record of AUFS: it has no other form",
            Self::NeedsWorkdir => "has to move to a work directory: name one with --workdir",
            Self::OtherFilesystem => "the work directory is on another filesystem: use one on this",
            Self::NeedsLower => {
                "hides names, but is on lower branches only: name those with --lower"
            }
            Self::Closed => "cannot be entered: unmount what lies there, or make it readable",
        })
    }
}

/// Something that cannot be converted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// From the branch's root.
    pub path: Vec<u8>,
    /// Why not.
    pub why: Why,
}

impl Serialize for Obstacle {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry("path", &Shown(&self.path))?;
        map.serialize_entry("why", &self.why.to_string())?;
        map.end()
    }
}

impl Job {
    /// Everything that stands in the way; counts what there is to do.
    pub(super) fn survey(&mut self, to: Format) -> Result<Vec<Obstacle>> {
        let mut found = Vec::new();
        if !books::can_move(&self.aufs, &self.overlay)? {
            found.push(Obstacle {
                path: Vec::new(),
                why: Why::OtherFilesystem,
            });
        }
        if to == Format::Overlay
            && !self.overlay.may_have_books()
            && let Some(name) = books::holds_data(&self.aufs)?
        {
            found.push(Obstacle {
                path: name.to_vec(),
                why: Why::NeedsWorkdir,
            });
        }
        let root = rustix::io::dup(&self.root)?;
        if to == Format::Aufs && Owners::on_root(&xattr::Target::dir(root.as_fd())).is_some() {
            found.push(Obstacle {
                path: Vec::new(),
                why: Why::Owners,
            });
        }
        tree(&root, (), |step, ()| match step {
            Step::Dir(here) => match to {
                Format::Overlay => self.survey_aufs(&here, &mut found),
                Format::Aufs => self.survey_overlay(&here, &mut found),
            },
            Step::Closed(path, _) => {
                found.push(Obstacle {
                    path: path.to_vec(),
                    why: Why::Closed,
                });
                Ok(Vec::new())
            }
        })?;
        Ok(found)
    }

    fn survey_aufs(&mut self, here: &Here<'_>, found: &mut Vec<Obstacle>) -> Result<Children<()>> {
        let mut obstacle = |path, why| found.push(Obstacle { path, why });
        if !Attributes::of(&xattr::Target::dir(here.dir.as_fd()))?.is_empty() {
            obstacle(here.path.to_vec(), Why::Attribute);
        }
        let stat = stat_fd(here.dir)?;
        let own = self
            .redirects
            .iter()
            .any(|r| (r.0, r.1) == (stat.ino, stat.btime));
        self.changes.redirects += u64::from(own);
        let names = entries(here.dir)?;
        for (name, kind) in &names {
            match classify(name) {
                NameClass::Plain => {
                    if whiteout_name(name).is_some() && is_null_device(here, name, *kind)? {
                        obstacle(here.join(name), Why::Device);
                    } else if *kind != Kind::Dir && !attributes_at(here, name)?.is_empty() {
                        obstacle(here.join(name), Why::Attribute);
                    }
                }
                NameClass::Whiteout(_) if *kind == Kind::File => self.changes.whiteouts += 1,
                NameClass::Opaque if *kind == Kind::File && **name == *OPAQUE => {
                    self.changes.opaque += 1;
                }
                NameClass::Whiteout(_) | NameClass::Opaque => {
                    obstacle(here.join(name), Why::Unsound);
                }
                NameClass::Reserved => match &**name {
                    BASE | PLINK_DIR | ORPHAN_DIR | STORE_DIR if here.path.is_empty() => {}
                    n if n.starts_with(b".wh..wh..dr.") || n == b".wh..wh.hino" => {
                        obstacle(here.join(name), Why::AufsRecord);
                    }
                    _ => obstacle(here.join(name), Why::Unsound),
                },
            }
        }
        Ok(dirs_of(names).map(|name| (name, ())).collect())
    }

    fn survey_overlay(
        &mut self,
        here: &Here<'_>,
        found: &mut Vec<Obstacle>,
    ) -> Result<Children<()>> {
        let mut obstacle = |path, why| found.push(Obstacle { path, why });
        let target = xattr::Target::dir(here.dir.as_fd());
        let attributes = Attributes::of(&target)?;
        if attributes.contains(Attributes::ESCAPED) {
            obstacle(here.path.to_vec(), Why::Escaped);
        }
        if attributes.contains(Attributes::OPAQUE) {
            self.changes.opaque += u64::from(overlay::opaque(&target)? == Opaque::Yes);
        }
        if attributes.contains(Attributes::REDIRECT) {
            match Redirect::of(&target) {
                Ok(found) => self.changes.redirects += u64::from(found.is_some()),
                Err(Errno::INVAL) => obstacle(here.path.to_vec(), Why::Unsound),
                Err(err) => return Err(err),
            }
        }
        let names = entries(here.dir)?;
        for (name, kind) in &names {
            if is_null_device(here, name, *kind)? {
                self.changes.whiteouts += 1;
            } else if *kind != Kind::Dir {
                let attributes = attributes_at(here, name)?;
                self.changes.whiteouts += u64::from(attributes.contains(Attributes::WHITEOUT));
                if attributes.contains(Attributes::METACOPY) {
                    obstacle(here.join(name), Why::Metacopy);
                } else if attributes.contains(Attributes::ESCAPED) {
                    obstacle(here.join(name), Why::Escaped);
                }
            }
        }
        Ok(dirs_of(names).map(|name| (name, ())).collect())
    }
}
