//! The three filesystems of a run: an ordinary directory, the kernel's overlayfs and the union,
//! each with the same tree.

use super::case::Case;
use super::exec::{Place, errno_of, now};
use super::layers::{self, Marks, c_path, place};
use super::sys::{self, HERE};
use super::tree::{self, Tree, View};
use anyhow::{Context, Result, bail, ensure};
use std::ffi::{CString, OsString};
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

/// Minor number of the union that is mounted, for the watchdog; 0: none.
pub static MOUNTED: AtomicU64 = AtomicU64::new(0);

/// A scratch directory with everything mounted in it.
pub struct World {
    dir: PathBuf,
    program: OsString,
    grammar: Marks,
    options: String,
    lowers: usize,
    /// When it began: later times are all alike.
    pub began: i64,
    pub native: Place,
    pub overlay: Place,
    pub union: Place,
    /// Does overlayfs still have the same tree?
    pub overlay_counts: bool,
    /// Some files of the layers have names that nobody sees.
    hides_names: bool,
    layers_before: Vec<Tree>,
}

/// Which writable branch a filesystem is mounted on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Overlay,
    Union,
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Self::Overlay => "ov",
            Self::Union => "ua",
        }
    }
}

impl World {
    /// Makes the layers of a case below an empty directory, and mounts.
    pub fn new(dir: &Path, case: &Case, program: &OsString) -> Result<Self> {
        let grammar = if case.grammar == "aufs" {
            Marks::Aufs
        } else {
            Marks::Overlay
        };
        for side in ["ov", "ua"] {
            for part in ["upper", "work", "m"] {
                fs::create_dir_all(dir.join(side).join(part))?;
            }
        }
        for name in ["native", "aside"] {
            fs::create_dir_all(dir.join(name))?;
        }
        let mut stack = Vec::new();
        for (number, lines) in case.layers.iter().enumerate() {
            let (kernel, ours) = match number {
                0 => ("ov/upper".to_owned(), "ua/upper".to_owned()),
                n => (format!("k{n}"), format!("l{n}")),
            };
            layers::write(&dir.join(&kernel), number, lines, Marks::Overlay)?;
            if number == 0 || grammar == Marks::Aufs {
                layers::write(&dir.join(ours), number, lines, grammar)?;
            }
            stack.push(dir.join(kernel));
        }
        if stack.len() == 1 {
            for name in ["k1", "l1"] {
                fs::create_dir(dir.join(name))?;
            }
        }
        let merged = layers::merge(&stack, &dir.join("native"), &dir.join("aside"), grammar)?;
        let began = now();
        let native = place(&dir.join("native"), began)?;
        let spare = || place(Path::new("/"), began);
        let mut world = Self {
            dir: dir.to_owned(),
            program: program.clone(),
            grammar,
            options: case.options.clone(),
            lowers: case.layers.len().max(2) - 1,
            began,
            native,
            overlay: spare()?,
            union: spare()?,
            overlay_counts: !merged.passed_over_file,
            hides_names: merged.hides_names,
            layers_before: Vec::new(),
        };
        world.layers_before = world.layers()?;
        world.mount()?;
        Ok(world)
    }

    /// What the readonly layers hold, to the last change of each file.
    fn layers(&self) -> Result<Vec<Tree>> {
        let kinds = if self.grammar == Marks::Aufs {
            "kl"
        } else {
            "k"
        };
        let view = View {
            began: self.began,
            exact: true,
        };
        let mut found = Vec::new();
        for kind in kinds.chars() {
            for n in 1..=self.lowers {
                let layer = place(&self.dir.join(format!("{kind}{n}")), self.began)?;
                found.push(tree::read(&layer.root, &view));
            }
        }
        Ok(found)
    }

    /// Nobody may have written to a readonly layer.
    pub fn check_layers(&self) -> Result<Vec<String>> {
        let after = self.layers()?;
        let mut found = Vec::new();
        for (n, (before, after)) in self.layers_before.iter().zip(&after).enumerate() {
            let changed = tree::differences(before, after, 5);
            found.extend(changed.into_iter().map(|d| format!("layer {}: {d}", n + 1)));
        }
        Ok(found)
    }

    /// Forgets all open files and takes everything off.
    pub fn unmount(&mut self) -> Result<()> {
        self.native.close_all();
        self.overlay = place(Path::new("/"), self.began)?;
        self.union = place(Path::new("/"), self.began)?;
        std::env::set_current_dir("/")?;
        errno_of(sys::umount(&c_path(&self.dir.join("ov/m"))?, 0)).context("umount overlayfs")?;
        self.unmount_union()
    }

    fn unmount_union(&self) -> Result<()> {
        let mut umount = Command::new(&self.program);
        umount.arg("umount").arg(self.dir.join("ua/m"));
        let output = umount.stdin(Stdio::null()).output()?;
        MOUNTED.store(0, Ordering::Relaxed);
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "umount of the union: {text}");
        Ok(())
    }

    pub fn mount(&mut self) -> Result<()> {
        self.mount_overlay(Side::Overlay, Side::Overlay)?;
        self.mount_union(Side::Union, Side::Union)?;
        if self.grammar == Marks::Aufs {
            // Its files for itself lie in the root, and gave that a new time.
            let now = libc::timespec {
                tv_sec: 0,
                tv_nsec: libc::UTIME_NOW,
            };
            for place in [&self.native, &self.overlay, &self.union] {
                let root = std::os::fd::AsRawFd::as_raw_fd(&place.root);
                errno_of(sys::utimens(root, None, [now, now], 0))?;
            }
        }
        Ok(())
    }

    fn mount_overlay(&mut self, side: Side, branches: Side) -> Result<()> {
        let at = self.dir.join(side.name()).join("m");
        // A branch of the union has no index, and its links need none.
        let index = if branches == Side::Overlay {
            "on"
        } else {
            "off"
        };
        let layers = self.layer_options(branches, "k");
        let options = format!("{layers},index={index},redirect_dir=on,xino=on");
        errno_of(sys::mount(
            c"overlay",
            &c_path(&at)?,
            &CString::new(options)?,
        ))
        .context("overlayfs: mount")?;
        self.overlay = place(&at, self.began)?;
        Ok(())
    }

    fn layer_options(&self, branches: Side, lower: &str) -> String {
        let dir = self.dir.display();
        let lowers: Vec<String> = (1..=self.lowers)
            .map(|n| format!("{dir}/{lower}{n}"))
            .collect();
        let branches = branches.name();
        format!(
            "lowerdir={},upperdir={dir}/{branches}/upper,workdir={dir}/{branches}/work",
            lowers.join(":")
        )
    }

    fn mount_union(&mut self, side: Side, branches: Side) -> Result<()> {
        let at = self.dir.join(side.name()).join("m");
        let mut options = match self.grammar {
            Marks::Overlay => self.layer_options(branches, "k"),
            Marks::Aufs => {
                let dir = self.dir.display();
                let lowers: String = (1..=self.lowers)
                    .map(|n| format!(":{dir}/l{n}=ro+wh"))
                    .collect();
                let upper = format!("br={dir}/{}/upper=rw", branches.name());
                format!("{upper}{lowers},dirren,dirperm1,namelen=255,udba=none")
            }
        };
        if !self.options.is_empty() {
            options = format!("{options},{}", self.options);
        }
        let mut mount = Command::new(&self.program);
        mount.arg("-o").arg(&options).arg(&at);
        mount.current_dir("/").stdin(Stdio::null());
        mount.stdout(Stdio::null());
        mount.stderr(fs::File::create(self.dir.join("messages"))?);
        let status = mount.status()?;
        if !status.success() {
            let text = fs::read(self.dir.join("messages"))?;
            let text = OsString::from_vec(text);
            bail!("uaufs -o {options}: {}", text.display());
        }
        self.union = place(&at, self.began)?;
        let info = errno_of(sys::statx(HERE, &c_path(&at)?, 0))?;
        MOUNTED.store(u64::from(info.stx_dev_minor), Ordering::Relaxed);
        Ok(())
    }

    /// Pseudo-links of the union are made hard links, which overlayfs understands. Not all can be
    /// if some names of a file are hidden.
    fn flush_links(&self) -> Result<bool> {
        let mut flush = Command::new(&self.program);
        flush.arg("plink").arg(self.dir.join("ua/m")).arg("flush");
        let output = flush.stdin(Stdio::null()).output()?;
        let text = String::from_utf8_lossy(&output.stderr);
        let hidden = self.hides_names && text.contains("that are not shown");
        ensure!(output.status.success() || hidden, "plink flush: {text}");
        Ok(output.status.success())
    }

    /// Mounts each of the unions on the branches of the other, shows both trees to `look`, and
    /// mounts them as they were.
    ///
    /// `false`: it was not done, since overlayfs cannot know the links.
    pub fn swap(&mut self, look: impl FnOnce(&mut Self) -> Result<()>) -> Result<bool> {
        for place in [&mut self.native, &mut self.overlay, &mut self.union] {
            place.close_all();
        }
        if !self.flush_links()? {
            return Ok(false);
        }
        self.unmount()?;
        self.mount_overlay(Side::Overlay, Side::Union)?;
        self.mount_union(Side::Union, Side::Overlay)?;
        look(self)?;
        self.unmount()?;
        self.mount()?;
        Ok(true)
    }

    /// What is wrong with the union's branches when nobody uses them.
    pub fn fsck(&self) -> Result<Option<String>> {
        let mut fsck = Command::new(&self.program);
        fsck.arg("fsck").stdin(Stdio::null());
        if self.grammar == Marks::Overlay {
            fsck.arg("--workdir").arg(self.dir.join("ua/work"));
        }
        fsck.arg(self.dir.join("ua/upper"));
        let kind = if self.grammar == Marks::Aufs {
            "l"
        } else {
            "k"
        };
        fsck.args((1..=self.lowers).map(|n| self.dir.join(format!("{kind}{n}"))));
        let output = fsck.output()?;
        let text =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        Ok((!output.status.success()).then(|| text.into_owned()))
    }

    pub fn is_overlay_format(&self) -> bool {
        self.grammar == Marks::Overlay
    }

    pub fn view(&self) -> View {
        View {
            began: self.began,
            exact: false,
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.native.close_all();
        self.overlay.close_all();
        self.union.close_all();
        if let (Ok(a), Ok(b)) = (place(Path::new("/"), 0), place(Path::new("/"), 0)) {
            (self.overlay, self.union) = (a, b);
        }
        let _ = std::env::set_current_dir("/");
        if MOUNTED.load(Ordering::Relaxed) != 0 {
            let _ = self.unmount_union();
        }
        // What is left of a run that failed.
        for at in ["ov/m", "ua/m"] {
            if let Ok(at) = c_path(&self.dir.join(at)) {
                let _ = sys::umount(&at, libc::MNT_DETACH);
            }
        }
    }
}
