//! Listings that are read in parts while the directory changes.

use super::layers::Name;
use super::ops::Pick;
use super::reference::{Body, Node};
use super::run::Run;
use anyhow::{Result, bail, ensure};
use std::collections::BTreeSet;
use unionfs::types::NodeId;

impl Run {
    /// Names that are there all the time are listed once, names that never are, never.
    pub fn list_while_changing(
        &mut self,
        dir: u8,
        chunk: usize,
        plus: bool,
        changes: &[(Pick, bool)],
    ) -> Result<()> {
        let dir = self.dir(dir);
        let node = self.node(dir)?;
        let mut changes = changes.iter();
        let mut always: BTreeSet<Name> = self.model.children(dir).into_keys().collect();
        let mut ever = always.clone();
        let mut listed: Vec<Name> = Vec::new();
        let mut cookie = 0;
        loop {
            let part = self.list_some(node, cookie, chunk, plus)?;
            let Some((_, last)) = part.last() else { break };
            cookie = *last;
            listed.extend(part.into_iter().map(|(name, _)| name));
            if let Some((pick, remove)) = changes.next() {
                let name = self.name(dir, pick);
                match self.model.child(dir, &name) {
                    Some(child) if *remove && !self.model.is_dir(child) => {
                        self.remove(dir, &name, false)?;
                    }
                    _ => {
                        let node = Node::new(Body::File(Vec::new()), Some(0o600));
                        self.make_at(dir, &name, node, 0o600, b"")?;
                    }
                }
                let now: BTreeSet<Name> = self.model.children(dir).into_keys().collect();
                always = always.intersection(&now).cloned().collect();
                ever.extend(now);
            }
        }
        listed.retain(|n| n.0 != b"." && n.0 != b"..");
        for name in &always {
            let times = listed.iter().filter(|n| *n == name).count();
            ensure!(times == 1, "{name:?} was listed {times} times");
        }
        if let Some(name) = listed.iter().find(|n| !ever.contains(n)) {
            bail!("{name:?} was listed and never existed");
        }
        Ok(())
    }

    /// Up to `count` entries from `cookie` on: names and cookies.
    fn list_some(
        &mut self,
        node: NodeId,
        cookie: u64,
        count: usize,
        plus: bool,
    ) -> Result<Vec<(Name, u64)>> {
        let mut part = Vec::new();
        if !plus {
            self.union()?.list(node, cookie, &mut |e| {
                if part.len() == count {
                    return false;
                }
                part.push((Name(e.name.to_vec()), e.cookie));
                true
            })?;
            return Ok(part);
        }
        let mut looked_up = Vec::new();
        self.union()?.list_plus(node, cookie, &mut |e| {
            if part.len() == count {
                return false;
            }
            part.push((Name(e.entry.name.to_vec()), e.entry.cookie));
            if e.entry.name != b"." && e.entry.name != b".." {
                looked_up.push(e.found.attr.ino);
            }
            true
        })?;
        for ino in looked_up {
            *self.counts.entry(ino).or_default() += 1;
        }
        Ok(part)
    }
}
