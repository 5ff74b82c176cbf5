//! Changes of data and attributes, on the union and on the model.

use super::ops::Data;
use super::reference::{Body, Id};
use super::run::{Run, judge};
use anyhow::{Result, ensure};
use unionfs::errno::Errno;
use unionfs::types::{Kind, SetAttr, Writer};

impl Run {
    pub fn write(&mut self, id: Id, data: Data) -> Result<()> {
        self.say(format_args!("write {id} {data:?}"));
        let node = self.node(id)?;
        let bytes = vec![data.fill; data.len.into()];
        let union = self.union()?;
        union.open_node(node, libc::O_RDWR)?;
        let written = union.write(node, data.offset.into(), &bytes, Writer::Privileged)?;
        union.release(node);
        ensure!(written == bytes.len(), "short write");
        let file = self.model.node_mut(id);
        file.mtime = None;
        if let (Body::File(content), false) = (&mut file.body, bytes.is_empty()) {
            let (start, end) = (
                usize::from(data.offset),
                usize::from(data.offset) + bytes.len(),
            );
            content.resize(content.len().max(end), 0);
            content[start..end].copy_from_slice(&bytes);
        }
        Ok(())
    }

    /// Opens a file for reading and closes it.
    pub fn open(&mut self, id: Id) -> Result<()> {
        self.say(format_args!("open {id}"));
        let node = self.node(id)?;
        self.union()?.open_node(node, libc::O_RDONLY)?;
        self.union()?.release(node);
        Ok(())
    }

    pub fn truncate(&mut self, id: Id, size: u16) -> Result<()> {
        self.say(format_args!("truncate {id} {size}"));
        let set = SetAttr {
            size: Some(size.into()),
            ..SetAttr::default()
        };
        let file = self.model.node_mut(id);
        file.mtime = None;
        if let Body::File(content) = &mut file.body {
            content.resize(size.into(), 0);
        }
        self.set_attr(id, &set)
    }

    /// A directory that lay on a readonly branch and was removed there cannot be changed.
    pub fn is_lost(&self, id: Id) -> bool {
        self.model.is_dir(id) && self.model.node(id).lower && !self.model.is_reachable(id)
    }

    fn set_attr(&mut self, id: Id, set: &SetAttr) -> Result<()> {
        self.say(format_args!("set {id} {set:?}"));
        let node = self.node(id)?;
        let attr = self.union()?.setattr(node, set, Writer::Privileged)?;
        self.compare_attr(id, &attr)
    }

    pub fn chmod(&mut self, id: Id, mode: u32) -> Result<()> {
        let node = self.model.node_mut(id);
        if node.mode.is_none() {
            return Ok(());
        }
        node.mode = Some(mode);
        let set = SetAttr {
            mode: Some(mode),
            ..SetAttr::default()
        };
        self.set_attr(id, &set)
    }

    pub fn chown(&mut self, id: Id, uid: u32) -> Result<()> {
        let node = self.model.node_mut(id);
        node.uid = uid;
        if node.kind() != Kind::Dir {
            // chown(2) drops it, whoever calls.
            node.mode = node.mode.map(|m| m & !libc::S_ISUID);
        }
        let set = SetAttr {
            uid: Some(uid),
            ..SetAttr::default()
        };
        self.set_attr(id, &set)
    }

    /// user.* is for files and directories only.
    fn attribute(&self, id: Id, n: u8) -> &'static [u8] {
        let plain = matches!(self.model.node(id).kind(), Kind::File | Kind::Dir);
        match n % 4 {
            0 if plain => super::layers::XATTR.as_bytes(),
            1 if plain => b"user.x",
            _ => b"trusted.y",
        }
    }

    pub fn set_xattr(&mut self, id: Id, n: u8, value: u8, flags: i32) -> Result<()> {
        self.say(format_args!("set attribute {n} of {id}"));
        let attr = self.attribute(id, n);
        let there = self.model.node(id).xattrs.contains_key(attr);
        let want = match flags {
            libc::XATTR_CREATE if there => vec![Errno::EXIST],
            libc::XATTR_REPLACE if !there => vec![Errno::NODATA],
            _ => Vec::new(),
        };
        let node = self.node(id)?;
        let got = self.union()?.setxattr(node, attr, &[value; 3], flags);
        if judge(got, &want, &[])?.is_some() {
            let xattrs = &mut self.model.node_mut(id).xattrs;
            xattrs.insert(attr.to_vec(), vec![value; 3]);
        }
        Ok(())
    }

    pub fn remove_xattr(&mut self, id: Id, n: u8) -> Result<()> {
        self.say(format_args!("remove attribute {n} of {id}"));
        let attr = self.attribute(id, n);
        let there = self.model.node(id).xattrs.contains_key(attr);
        let want = if there {
            Vec::new()
        } else {
            vec![Errno::NODATA]
        };
        let node = self.node(id)?;
        let got = self.union()?.removexattr(node, attr);
        if judge(got, &want, &[])?.is_some() {
            self.model.node_mut(id).xattrs.remove(attr);
        }
        Ok(())
    }
}
