//! Operations written out as lines, for failures that were found once.

use super::layers::Name;
use super::ops::Data;
use super::reference::{Body, Id, Node, ROOT};
use super::run::Run;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use unionfs::types::RenameFlags;

impl Run {
    /// Does what the lines say, compares after each, and runs the checks of the end. A line is a
    /// verb and one or two paths; `LONG` is a name that only a device can hide.
    pub fn script(mut self, lines: &[&str]) -> Result<()> {
        self.compare().context("at the start")?;
        for line in lines {
            self.line(line).with_context(|| format!("in \"{line}\""))?;
            self.compare()
                .with_context(|| format!("after \"{line}\""))?;
        }
        self.check_all(&[])
    }

    /// One line.
    pub fn line(&mut self, line: &str) -> Result<()> {
        let mut words = line.split(' ');
        let verb = words.next().unwrap_or_default();
        let paths: Vec<&str> = words.collect();
        match (verb, &paths[..]) {
            ("create", [path]) => self.new_entry(path, Body::File(Vec::new())),
            ("mkdir", [path]) => self.new_entry(path, Body::Dir(BTreeMap::new())),
            ("null", [path]) => self.new_entry(path, Body::Null),
            ("write", [path]) => {
                let data = Data {
                    offset: 2,
                    len: 3,
                    fill: b'W',
                };
                self.write(self.at(path)?, data)
            }
            ("open", [path]) => self.open(self.at(path)?),
            ("chmod", [path]) => self.chmod(self.at(path)?, 0o700),
            ("link", [old, new]) => {
                let (dir, name) = self.place(new)?;
                self.link_as(self.at(old)?, dir, &name)
            }
            ("rm", [path]) => self.take_away(path, false),
            ("rmdir", [path]) => self.take_away(path, true),
            ("rename", [old, new]) => self.move_to(old, new, RenameFlags::empty()),
            ("exchange", [old, new]) => self.move_to(old, new, RenameFlags::EXCHANGE),
            ("merge", []) => self.merge(),
            ("forget", []) => self.forget_all(false),
            ("remount", []) => self.remount(true),
            _ => bail!("not an operation"),
        }
    }

    fn new_entry(&mut self, path: &str, body: Body) -> Result<()> {
        let (dir, name) = self.place(path)?;
        let mode = if matches!(body, Body::Dir(_)) {
            0o755
        } else {
            0o644
        };
        self.make_at(dir, &name, Node::new(body, Some(mode)), mode, b"")
    }

    fn take_away(&mut self, path: &str, as_dir: bool) -> Result<()> {
        let (dir, name) = self.place(path)?;
        self.remove(dir, &name, as_dir)
    }

    fn move_to(&mut self, old: &str, new: &str, flags: RenameFlags) -> Result<()> {
        let ((a, old), (b, new)) = (self.place(old)?, self.place(new)?);
        self.rename((a, &old), (b, &new), flags)
    }

    /// The directory and the name of a path.
    fn place(&self, path: &str) -> Result<(Id, Name)> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.at(dir)?, word(name)))
    }

    fn at(&self, path: &str) -> Result<Id> {
        let parts = path.split('/').filter(|p| !p.is_empty());
        parts.into_iter().try_fold(ROOT, |dir, part| {
            self.model
                .child(dir, &word(part))
                .with_context(|| format!("no {path} in the model"))
        })
    }
}

fn word(name: &str) -> Name {
    match name {
        "LONG" => Name(vec![b'w'; 253]),
        _ => name.into(),
    }
}
