//! Changing a union while it is in use.

use super::Union;
use super::setup::refuse_unsupported_options;
use crate::setup::SetupError;
use crate::spec::{MountFlags, Setting};
use std::sync::Arc;

impl Union {
    /// Changes one option. It holds for everything that is asked of the union from now on; what the
    /// kernel has cached is the caller's matter.
    ///
    /// # Errors
    /// [`SetupError::Option`]: it is one that only a new mount can have, or has no effect yet.
    pub fn set(&self, setting: &Setting) -> Result<(), SetupError> {
        let mut options = (**self.options()).clone();
        // Flags of the mount are not the union's.
        setting.apply(&mut options, &mut MountFlags::default());
        let is_flag = matches!(setting, Setting::Mount(_));
        if !is_flag && options == **self.options() {
            return Ok(());
        }
        if let Some(why) = fixed_at_mount(setting) {
            return Err(SetupError::Option {
                what: setting.to_option().to_string_lossy().into_owned(),
                hint: format!("{why} (EINVAL): unmount, and mount with it"),
            });
        }
        refuse_unsupported_options(&options)?;
        self.options.store(Arc::new(options));
        Ok(())
    }
}

/// Why a setting cannot be changed while the union is mounted, if so.
fn fixed_at_mount(setting: &Setting) -> Option<&'static str> {
    match setting {
        Setting::Udba(_)
        | Setting::Create(_)
        | Setting::Copyup(_)
        | Setting::DirOpaque(_)
        | Setting::Dirwh(_)
        | Setting::DirRename(_)
        | Setting::Dirperm1(true)
        | Setting::Plink(_)
        | Setting::Sum(_)
        | Setting::NameMax(_)
        | Setting::Volatile(_)
        | Setting::MoveOnEnospc(None)
        | Setting::FhsmSec(_)
        | Setting::Timeout(_) => None,
        Setting::Dirperm1(false) => Some("the kernel lets in whom the topmost directory lets in"),
        Setting::ShowWhiteouts(_) | Setting::Strict(_) => Some("the names were read without it"),
        Setting::Format(_) => Some("the format of a branch is chosen when it is opened"),
        // The kernel may be writing some files by itself.
        Setting::Io(_)
        | Setting::Open(_)
        | Setting::Writeback(_)
        | Setting::MoveOnEnospc(Some(_)) => {
            Some("how files are opened and read was agreed with the kernel")
        }
        Setting::Acl(_) => Some("who enforces ACLs was agreed with the kernel"),
        Setting::Watches(_) => Some("the watches are counted already"),
        Setting::Threads(_) => Some("the worker threads run already"),
        Setting::Supervise(_) => Some("the watcher is started before the mount is made"),
        Setting::UidMap(_)
        | Setting::GidMap(_)
        | Setting::SquashUid(_)
        | Setting::SquashGid(_)
        | Setting::XattrPermissions(_) => Some("the kernel has cached owners and modes"),
        Setting::Mount(_) => Some("a flag of the mount itself"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::aufs::{Change, parse_change};

    #[test]
    fn what_the_kernel_was_promised_stays() {
        let fixed = |option: &str| {
            let changes = parse_change(option.as_ref()).unwrap().changes;
            match &changes[..] {
                [Change::Set(setting)] => fixed_at_mount(setting).is_some(),
                other => panic!("{option}: {other:?}"),
            }
        };
        for option in [
            "udba=none",
            "create=rr",
            "cpup=bu",
            "diropq=always",
            "sum",
            "moveonenospc=0",
        ] {
            assert!(!fixed(option), "{option}");
        }
        for option in [
            "io=cache",
            "threads=2",
            "nosupervise",
            "noacl",
            "squash_to_uid=1",
            "nodirperm1",
            "shwh",
            "strict",
            "moveonenospc",
        ] {
            assert!(fixed(option), "{option}");
        }
    }
}
