//! What the subcommands do: one module each, with its arguments and a `run` that returns the exit code.

pub mod busy;
pub mod convert;
pub mod ctl;
pub mod diff;
pub mod fhsm;
pub mod fsck;
pub mod merge;
pub mod mvdown;
pub mod plink;
pub mod stats;
pub mod umount;
pub mod which;
