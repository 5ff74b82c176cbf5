//! Branches on disk: a stack of layers written out, the mount it is for, and proof that readonly
//! branches were left alone.

use super::layers::Tree;
use super::reference::{Layer, Model};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;
use unionfs::spec::{
    Access, BranchPerm, BranchSpec, CopyOnOpen, Format, Grammar, MountFlags, MountSpec, Options,
    Udba,
};
use unionfs::types::BranchId;

/// Permission of a branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Perm {
    Rw,
    /// What is opened moves up.
    RwMoo,
    Ro,
    RoWh,
    RrWh,
}

impl Perm {
    fn spec(self) -> BranchPerm {
        match self {
            Self::Rw => BranchPerm::RW,
            Self::RwMoo => BranchPerm {
                copy_on_open: CopyOnOpen::Move,
                ..BranchPerm::RW
            },
            Self::Ro => BranchPerm::RO,
            Self::RoWh => BranchPerm::RO_WH,
            Self::RrWh => BranchPerm {
                access: Access::RealReadOnly,
                ..BranchPerm::RO_WH
            },
        }
    }

    fn writable(self) -> bool {
        matches!(self, Self::Rw | Self::RwMoo)
    }
}

/// A union to be made: branches topmost first, and the options that matter here.
#[derive(Clone, Debug)]
pub struct Stack {
    pub branches: Vec<(Perm, Tree)>,
    pub format: Format,
    pub dir_rename: bool,
    /// Names and attributes are checked again at each use.
    pub reval: bool,
    /// On tmpfs (fast, never uses an inode number twice) and not in the directory for temporary
    /// files (on most machines a disk filesystem, which does).
    pub in_memory: bool,
}

impl Stack {
    /// One writable branch in AUFS format over layers whose whiteouts count.
    pub fn of(layers: impl IntoIterator<Item = Tree>) -> Self {
        let perms = std::iter::once(Perm::Rw).chain(std::iter::repeat(Perm::RoWh));
        Self {
            branches: perms.zip(layers).collect(),
            format: Format::Aufs,
            dir_rename: true,
            reval: false,
            in_memory: false,
        }
    }

    fn normalise(&mut self) {
        for (perm, tree) in &mut self.branches {
            if self.format == Format::Overlay && *perm == Perm::Ro {
                *perm = Perm::RoWh;
            }
            tree.normalise(self.format, perm.spec().whiteouts);
        }
    }

    pub fn several_writable(&self) -> bool {
        self.branches.iter().filter(|(p, _)| p.writable()).count() > 1
    }

    /// Its writable branches, topmost first.
    pub fn writable(&self) -> impl Iterator<Item = BranchId> + '_ {
        let all = self.branches.iter().zip(0..);
        all.filter(|((perm, _), _)| perm.writable())
            .map(|(_, at)| BranchId(at))
    }

    fn options(&self) -> Options {
        Options {
            udba: if self.reval {
                Udba::Reval(Duration::ZERO)
            } else {
                Udba::None
            },
            dir_rename: self.dir_rename,
            dirperm1: true,
            name_max: 255,
            // A power failure is not what is tested.
            volatile: true,
            ..Options::defaults(Grammar::Aufs)
        }
    }
}

/// A stack on disk.
pub struct Branches {
    /// Removed at the end; `None` if somebody else wrote them.
    dir: Option<TempDir>,
    pub stack: Stack,
    pub spec: MountSpec,
    /// Readonly branches as they were.
    before: Vec<(PathBuf, Snapshot)>,
}

impl Branches {
    /// Writes the branches of a stack into a directory of their own.
    pub fn write(stack: Stack) -> Result<(Self, Model)> {
        let memory = Path::new("/dev/shm");
        let place = if stack.in_memory && memory.is_dir() {
            memory.to_path_buf()
        } else {
            std::env::temp_dir()
        };
        let dir = tempfile::Builder::new()
            .prefix("uaufs-model-")
            .tempdir_in(place)?;
        let (mut branches, model) = Self::at(stack, dir.path());
        for ((perm, tree), spec) in branches.stack.branches.iter().zip(&branches.spec.branches) {
            std::fs::create_dir(&spec.path)?;
            tree.write(&spec.path, branches.stack.format)?;
            if !perm.writable() {
                branches
                    .before
                    .push((spec.path.clone(), snapshot(&spec.path)?));
            }
            if let Some(work) = &spec.workdir {
                std::fs::create_dir(work)?;
            }
        }
        branches.dir = Some(dir);
        Ok((branches, model))
    }

    /// The branches of a stack that was written to `dir`, and what it showed at first.
    pub fn at(mut stack: Stack, dir: &Path) -> (Self, Model) {
        stack.normalise();
        let mut layers = Vec::new();
        let mut branches = Vec::new();
        for (at, (perm, tree)) in stack.branches.iter().enumerate() {
            let work = (stack.format == Format::Overlay && perm.writable())
                .then(|| dir.join(format!("work{at}")));
            branches.push(BranchSpec {
                path: dir.join(format!("b{at}")),
                perm: perm.spec(),
                format: Some(stack.format),
                workdir: work,
            });
            layers.push(Layer {
                tree: tree.clone(),
                honours: perm.spec().whiteouts,
                ends: stack.format == Format::Overlay,
                writable: perm.writable(),
            });
        }
        let spec = MountSpec {
            grammar: Grammar::Aufs,
            branches,
            options: stack.options(),
            mount: MountFlags::default(),
            warnings: Vec::new(),
        };
        let branches = Self {
            dir: None,
            stack,
            spec,
            before: Vec::new(),
        };
        (branches, Model::of(&layers))
    }

    /// Where they were written.
    pub fn dir(&self) -> Option<&Path> {
        self.dir.as_ref().map(TempDir::path)
    }

    /// Fails if a readonly branch differs from what it was: content, attributes, mtime, ctime.
    pub fn check_readonly(&self) -> Result<()> {
        for (path, before) in &self.before {
            let now = snapshot(path)?;
            for (file, was) in before {
                ensure!(
                    now.get(file) == Some(was),
                    "{}: changed: {was:?} -> {:?}",
                    file.display(),
                    now.get(file)
                );
            }
            ensure!(now.len() == before.len(), "{}: new files", path.display());
        }
        Ok(())
    }
}

type Snapshot = BTreeMap<PathBuf, Vec<i64>>;

fn snapshot(root: &Path) -> Result<Snapshot> {
    let mut found = BTreeMap::new();
    let mut todo = vec![root.to_path_buf()];
    while let Some(path) = todo.pop() {
        let meta = std::fs::symlink_metadata(&path)?;
        let mut facts = vec![
            meta.ino() as i64,
            meta.mode().into(),
            meta.nlink() as i64,
            meta.uid().into(),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.ctime(),
            meta.ctime_nsec(),
        ];
        if meta.is_dir() {
            for entry in std::fs::read_dir(&path)? {
                todo.push(entry?.path());
            }
        } else if meta.is_file() {
            let data = std::fs::read(&path).context("reading a lower file")?;
            facts.push(data.len() as i64);
            facts.push(crc32fast::hash(&data).into());
        }
        found.insert(path, facts);
    }
    Ok(found)
}
