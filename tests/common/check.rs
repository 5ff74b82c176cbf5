//! The whole tree, compared with the model.

use super::layers::Name;
use super::reference::{Body, Id, ROOT};
use super::run::Run;
use anyhow::{Context, Result, ensure};
use std::collections::{BTreeMap, BTreeSet};
use unionfs::types::{Attr, Kind, NodeId};

impl Run {
    /// Every name, attribute and byte, and of files without a name what the kernel still holds.
    pub fn compare(&mut self) -> Result<()> {
        let mut path = Vec::new();
        self.compare_dir(ROOT, ROOT, &mut path)?;
        let reachable = self.model.reachable();
        let held: Vec<Id> = self.known.keys().copied().collect();
        for id in held.into_iter().filter(|id| !reachable.contains(id)) {
            self.compare_file(id)
                .with_context(|| format!("of the nameless file {id}"))?;
        }
        Ok(())
    }

    fn compare_dir(&mut self, dir: Id, parent: Id, path: &mut Vec<Name>) -> Result<()> {
        self.compare_file(dir)
            .with_context(|| format!("of {path:?}"))?;
        let listed = self
            .listing(dir, parent)
            .with_context(|| format!("in the listing of {path:?}"))?;
        for (name, id) in self.model.children(dir) {
            path.push(name.clone());
            let node = self
                .look_up(dir, &name)
                .with_context(|| format!("looking for {path:?}"))?
                .with_context(|| format!("{path:?} is missing"))?;
            ensure!(
                listed[&name] == node,
                "{path:?} was listed as {:?} and is {node:?}",
                listed[&name]
            );
            if self.model.is_dir(id) {
                self.compare_dir(id, dir, path)?;
            } else {
                self.compare_file(id)
                    .with_context(|| format!("of {path:?}"))?;
            }
            path.pop();
        }
        Ok(())
    }

    /// Names and numbers of a directory, after the names and types were compared.
    fn listing(&mut self, dir: Id, parent: Id) -> Result<BTreeMap<Name, NodeId>> {
        let (node, above) = (self.node(dir)?, self.node(parent)?);
        let mut listed = Vec::new();
        self.union()?.list(node, 0, &mut |e| {
            listed.push((Name(e.name.to_vec()), e.ino, e.kind));
            true
        })?;
        let dots: Vec<_> = listed.drain(..2).collect();
        ensure!(
            *dots[0].0 == *b"." && dots[0].1 == node && *dots[1].0 == *b".." && dots[1].1 == above,
            "{dots:?} instead of {node:?} and {above:?}"
        );
        let want: BTreeSet<(Name, u32)> = self
            .model
            .children(dir)
            .into_iter()
            .map(|(name, id)| (name, self.model.node(id).kind().to_mode()))
            .collect();
        let got: BTreeSet<(Name, u32)> = listed
            .iter()
            .map(|(name, _, kind)| (name.clone(), kind.to_mode()))
            .collect();
        ensure!(got == want, "{got:?} instead of {want:?}");
        ensure!(got.len() == listed.len(), "listed twice: {listed:?}");
        Ok(listed
            .into_iter()
            .map(|(name, ino, _)| (name, ino))
            .collect())
    }

    fn compare_file(&mut self, id: Id) -> Result<()> {
        let node = self.node(id)?;
        let attr = self.union()?.getattr(node)?;
        self.compare_attr(id, &attr)?;
        match &self.model.node(id).body {
            Body::File(content) => {
                let mut buf = vec![0; content.len() + 10];
                let len = self.union()?.read(node, 0, &mut buf)?;
                ensure!(
                    buf[..len] == *content,
                    "content \"{}\" instead of \"{}\"",
                    shortened(&buf[..len]),
                    shortened(content)
                );
            }
            Body::Symlink(target) => {
                let got = self.union()?.readlink(node)?;
                ensure!(got == *target, "another target");
            }
            _ => {}
        }
        self.compare_xattrs(id, node)
    }

    fn compare_xattrs(&self, id: Id, node: NodeId) -> Result<()> {
        let union = self.union()?;
        let names = union.listxattr(node)?;
        let mut got = BTreeMap::new();
        for name in names.split(|b| *b == 0).filter(|n| !n.is_empty()) {
            got.insert(name.to_vec(), union.getxattr(node, name)?);
        }
        let want = &self.model.node(id).xattrs;
        ensure!(got == *want, "attributes {got:?} instead of {want:?}");
        Ok(())
    }

    pub fn compare_attr(&self, id: Id, attr: &Attr) -> Result<()> {
        let want = self.model.node(id);
        ensure!(attr.kind() == want.kind(), "type {:?}", attr.kind());
        let mode = attr.mode & 0o7777;
        if let Some(want) = want.mode {
            ensure!(mode == want, "mode {mode:o} instead of {want:o}");
        }
        ensure!(
            attr.uid == want.uid,
            "uid {} instead of {}",
            attr.uid,
            want.uid
        );
        if self.exact_links || want.kind() == Kind::Dir {
            let nlink = self.model.nlink(id);
            ensure!(
                attr.nlink == nlink,
                "nlink {} instead of {nlink}",
                attr.nlink
            );
        }
        match &want.body {
            Body::File(content) => {
                let size = content.len() as u64;
                ensure!(attr.size == size, "size {} instead of {size}", attr.size);
            }
            Body::Symlink(target) => ensure!(attr.size == target.len() as u64, "size"),
            _ => {}
        }
        if let Some(mtime) = want.mtime {
            ensure!(attr.mtime.sec == mtime, "mtime {}", attr.mtime.sec);
        }
        ensure!(
            want.kind() != Kind::Char || attr.rdev == 0,
            "rdev {}",
            attr.rdev
        );
        Ok(())
    }
}

fn shortened(bytes: &[u8]) -> String {
    let head = &bytes[..bytes.len().min(24)];
    format!("{}\"*{}", head.escape_ascii(), bytes.len())
}
