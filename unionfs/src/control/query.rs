//! Questions about a mount and their answers, the same for every caller.
//!
//! A question is JSON in the buffer of the ioctl, an answer is JSON read in pages. Asking for a
//! page names the answer it belongs to by a checksum; the latest answers are kept, and when one is
//! not there any more the asker starts again.

use super::counters::{Counted, counted};
use crate::errno::{Errno, Result};
use crate::fuse::session::IoctlHook;
use crate::ostext::OsText;
use crate::stats::Stats;
use crate::sys::ioctl::{COMMAND, SIZE};
use crate::types::{BranchId, Caller, NodeId};
use crate::union::Union;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

/// Bytes before the JSON in both directions: version, flags, offset, length, checksum.
pub(super) const HEADER: usize = 24;
/// JSON bytes of one page.
pub(super) const PAGE: usize = SIZE - HEADER;
/// Of this protocol: first field of both headers.
pub(super) const VERSION: u32 = 1;

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "query")]
pub enum Query {
    /// Which mount is this, and how is it changed? Answer: [`Hello`].
    Hello,
    /// The branches. Answer: a list of [`Listed`].
    List,
    /// What was asked of the mount so far, and what it holds. Answer: [`Counted`].
    Stats,
    /// What is on the branch with this identity only: a list of [`Held`].
    Held {
        /// Identity of the branch.
        branch: u16,
    },
    /// Where a name in the directory that is asked (without a name: what is asked itself) is, on
    /// every branch. Answer: [`Which`].
    Which {
        /// Name in the directory.
        name: Option<OsText>,
    },
}

/// Which mount it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Program version.
    pub version: String,
    /// Number of the mount.
    pub instance: String,
    /// Where changes are heard; `None` = the mount cannot be changed.
    pub socket: Option<OsText>,
    /// Seconds between two looks of `uaufs fhsm` (`fhsm_sec=`).
    #[serde(default)]
    pub fhsm_sec: u64,
}

/// A branch as the mount shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Position, 0 = topmost.
    pub index: usize,
    /// Where it is; a label inside containers.
    pub path: OsText,
    /// Permission and attributes, in the order in which AUFS writes them.
    pub perm: String,
    /// Identity, which does not change with the position.
    pub id: u16,
    /// Bytes that ordinary users may still write to its filesystem.
    pub free: u64,
    /// Bytes of its filesystem.
    pub size: u64,
}

/// Something that the kernel knows and that is on one branch only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Inode number in the mount.
    pub ino: u64,
    /// Path from the root of the mount: for the mount's owner and root.
    pub path: Option<OsText>,
}

/// Where an entry is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Which {
    /// Path from the root of the mount.
    pub path: OsText,
    /// Inode number in the mount; 0 = there is no such entry.
    pub ino: u64,
    /// Index of the branch that serves it.
    pub serving: Option<usize>,
    /// The branches, topmost first, as far as they hold something.
    pub branches: Vec<OnBranch>,
}

/// What one branch has to do with an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnBranch {
    /// Position of the branch.
    pub index: usize,
    /// The branch, as [`Listed::path`].
    pub branch: OsText,
    /// Permission and attributes.
    pub perm: String,
    /// Path of the instance from the branch root, where it is another one than in the mount (a
    /// renamed directory, a pseudo-link).
    pub at: Option<OsText>,
    /// Type of the instance.
    pub kind: Option<String>,
    /// It is part of what is shown.
    pub shown: bool,
    /// Marks that hide what is on branches below: a whiteout (`.wh.NAME`, or the name of a 0/0
    /// device) or an opaque directory, as paths from the branch root.
    pub marks: Vec<OsText>,
}

/// Answers the questions about one mount.
pub struct Queries {
    /// The union.
    pub union: Arc<Union>,
    /// Number of the mount.
    pub instance: String,
    /// Its counters.
    pub stats: Arc<Stats>,
    /// Where changes are heard.
    pub socket: Option<PathBuf>,
    /// Show labels (`b0`, `b1`, ...) in place of the paths of branches: who asks is in a container.
    pub hide_paths: bool,
}

impl Queries {
    /// The hook for [`crate::fuse::ServeConfig`].
    pub fn hook(self) -> IoctlHook {
        let recent = Recent::default();
        Arc::new(move |caller: &Caller, node, command, input: &[u8]| {
            if command != COMMAND {
                return Err(Errno::NOTTY);
            }
            let asked = Asked::decode(input)?;
            if let Some(answer) = recent.get(&asked, caller.uid) {
                return page_of(&answer, &asked);
            }
            let answer = self.answer(caller, node, &asked.query)?;
            let page = page_of(&answer, &asked)?;
            recent.keep(answer, caller.uid);
            Ok(page)
        })
    }

    /// The whole answer. `node`: where it was asked.
    fn answer(&self, caller: &Caller, node: NodeId, query: &Query) -> Result<Vec<u8>> {
        match query {
            Query::Hello => encode(&Hello {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                instance: self.instance.clone(),
                socket: self.socket.clone().map(OsText::from),
                fhsm_sec: u64::from(self.union.options().fhsm_sec),
            }),
            Query::List => encode(&self.list()),
            Query::Stats => encode::<Counted>(&counted(&self.union, &self.stats)),
            Query::Held { branch } => {
                let only = self.union.only_on(BranchId(*branch));
                // Not everybody may know the names in every directory.
                let trusted = caller.uid == 0 || caller.uid == rustix::process::geteuid().as_raw();
                let held = only.iter().map(|o| Held {
                    ino: o.node.0,
                    path: trusted.then(|| OsText(OsStr::from_bytes(&o.path).to_owned())),
                });
                encode(&held.collect::<Vec<_>>())
            }
            Query::Which { name } => {
                let name = name.as_ref().map(|name| name.as_bytes());
                encode(&self.which(node, name)?)
            }
        }
    }

    /// The branches, topmost first.
    pub fn list(&self) -> Vec<Listed> {
        let stack = self.union.stack();
        let branches = stack.branches().iter().enumerate();
        branches
            .map(|(index, branch)| {
                let space = rustix::fs::fstatvfs(&branch.root).ok();
                let bytes = |blocks: fn(&rustix::fs::StatVfs) -> u64| {
                    space
                        .as_ref()
                        .map_or(0, |s| blocks(s).saturating_mul(s.f_frsize))
                };
                Listed {
                    index,
                    path: self.path_of(index, &branch.path),
                    perm: branch.perm.to_string(),
                    id: branch.id.0,
                    free: bytes(|s| s.f_bavail),
                    size: bytes(|s| s.f_blocks),
                }
            })
            .collect()
    }

    fn which(&self, node: NodeId, name: Option<&[u8]>) -> Result<Which> {
        let found = self.union.which(node, name)?;
        let text = |bytes: &[u8]| OsText(OsStr::from_bytes(bytes).to_owned());
        let stack = self.union.stack();
        let branches = found.branches.into_iter().map(|on| {
            let branch = &stack.branches()[on.index];
            OnBranch {
                index: on.index,
                branch: self.path_of(on.index, &branch.path),
                perm: branch.perm.to_string(),
                at: on.at.as_deref().map(text),
                kind: on.kind.map(|kind| kind.name().to_owned()),
                shown: on.shown,
                marks: on.marks.iter().map(|mark| text(mark)).collect(),
            }
        });
        Ok(Which {
            path: text(&found.path),
            ino: found.node.map_or(0, |node| node.0),
            serving: found.serving,
            branches: branches.collect(),
        })
    }

    fn path_of(&self, index: usize, path: &std::path::Path) -> OsText {
        if self.hide_paths {
            OsText::from(format!("b{index}").as_str())
        } else {
            OsText::from(path.to_path_buf())
        }
    }
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|_| Errno::IO)
}

/// The latest answers of more than one page: numbers in them change all the time, so that the same
/// would not be found again for the next page.
#[derive(Default)]
struct Recent {
    /// A leaf lock.
    answers: Mutex<VecDeque<Kept>>,
}

/// Checksum, who asked, and the answer.
type Kept = (u32, u32, Arc<Vec<u8>>);

/// Answers kept.
const KEPT: usize = 8;

impl Recent {
    fn get(&self, asked: &Asked, uid: u32) -> Option<Arc<Vec<u8>>> {
        if asked.offset == 0 {
            return None;
        }
        let answers = self.answers.lock();
        let found = answers
            .iter()
            .find(|(sum, who, _)| (*sum, *who) == (asked.sum, uid));
        found.map(|(_, _, answer)| Arc::clone(answer))
    }

    fn keep(&self, answer: Vec<u8>, uid: u32) {
        if answer.len() <= PAGE {
            return;
        }
        let sum = checksum(&answer);
        let mut answers = self.answers.lock();
        if answers.len() == KEPT {
            answers.pop_front();
        }
        answers.push_back((sum, uid, Arc::new(answer)));
    }
}

/// Never 0, which asks for the first page.
fn checksum(answer: &[u8]) -> u32 {
    crc32fast::hash(answer).max(1)
}

/// A page that is asked for.
pub(super) struct Asked {
    pub(super) query: Query,
    /// First byte of the page.
    pub(super) offset: u64,
    /// Checksum of the answer that the page is to be of; 0 with the first page.
    pub(super) sum: u32,
}

impl Asked {
    fn decode(input: &[u8]) -> Result<Self> {
        let header = Header::decode(input)?;
        let end = HEADER
            .checked_add(header.len as usize)
            .ok_or(Errno::INVAL)?;
        let json = input.get(HEADER..end).ok_or(Errno::INVAL)?;
        Ok(Self {
            query: serde_json::from_slice(json).map_err(|_| Errno::INVAL)?,
            offset: header.offset,
            sum: header.sum,
        })
    }
}

/// What stands before the JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Bytes of JSON that follow.
    pub(super) len: u32,
    /// Request: first byte that is asked for. Answer: length of the whole answer.
    pub(super) offset: u64,
    /// Checksum of the whole answer.
    pub(super) sum: u32,
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        out[..4].copy_from_slice(&VERSION.to_ne_bytes());
        out[4..8].copy_from_slice(&self.len.to_ne_bytes());
        out[8..16].copy_from_slice(&self.offset.to_ne_bytes());
        out[16..20].copy_from_slice(&self.sum.to_ne_bytes());
        out
    }

    /// EINVAL for anything but this version.
    pub(super) fn decode(raw: &[u8]) -> Result<Self> {
        let raw: &[u8; HEADER] = raw.first_chunk().ok_or(Errno::INVAL)?;
        let four = |at: usize| {
            let mut bytes = [0; 4];
            bytes.copy_from_slice(&raw[at..at + 4]);
            bytes
        };
        let mut offset = [0; 8];
        offset.copy_from_slice(&raw[8..16]);
        if u32::from_ne_bytes(four(0)) != VERSION {
            return Err(Errno::INVAL);
        }
        Ok(Self {
            len: u32::from_ne_bytes(four(4)),
            offset: u64::from_ne_bytes(offset),
            sum: u32::from_ne_bytes(four(16)),
        })
    }
}

/// The page of `answer` that is asked for. ESTALE: it is of another answer by now.
fn page_of(answer: &[u8], asked: &Asked) -> Result<Vec<u8>> {
    let sum = checksum(answer);
    if asked.offset > 0 && asked.sum != sum {
        return Err(Errno::STALE);
    }
    let start = usize::try_from(asked.offset).map_err(|_| Errno::INVAL)?;
    let rest = answer.get(start..).ok_or(Errno::INVAL)?;
    let page = &rest[..rest.len().min(PAGE)];
    let header = Header {
        len: page.len() as u32,
        offset: answer.len() as u64,
        sum,
    };
    Ok([&header.encode()[..], page].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_in_pages_and_never_mixed_with_another() {
        let answer = vec![b'x'; PAGE + 10];
        let asked = |offset, sum| Asked {
            query: Query::List,
            offset,
            sum,
        };
        let first = page_of(&answer, &asked(0, 0)).unwrap();
        let header = Header::decode(&first).unwrap();
        assert_eq!((first.len(), header.offset), (SIZE, answer.len() as u64));
        let second = page_of(&answer, &asked(PAGE as u64, header.sum)).unwrap();
        assert_eq!(second.len(), HEADER + 10);
        let changed = page_of(b"other, longer than nothing", &asked(5, header.sum));
        assert_eq!(changed.err(), Some(Errno::STALE));
        assert!(page_of(&answer, &asked(1 << 40, header.sum)).is_err());
    }

    #[test]
    fn questions_that_make_no_sense_are_refused() {
        for raw in [&b""[..], &[0; HEADER], &[1, 0, 0, 0, 255, 255, 255, 255]] {
            assert_eq!(Asked::decode(raw).err(), Some(Errno::INVAL));
        }
        let header = Header {
            len: u32::MAX,
            offset: 0,
            sum: 0,
        };
        assert!(Asked::decode(&header.encode()).is_err());
        let header = Header { len: 2, ..header };
        let mut raw = header.encode().to_vec();
        raw.extend_from_slice(b"{}");
        assert!(Asked::decode(&raw).is_err());
    }
}
