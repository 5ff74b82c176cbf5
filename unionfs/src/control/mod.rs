//! Asking and changing a live mount.
//!
//! Queries are an ioctl on any directory of the mount, open to whoever can open it ([`query`],
//! [`mod@ask`]). Changes come over a unix socket in a directory of the mount's owner ([`place`],
//! [`server`], [`client`]); only the owner and root are heard, and directories of new branches
//! come as descriptors. A mount without a socket (that of a container) can be asked but not changed.

pub mod ask;
mod branches;
pub mod client;
pub mod counters;
pub mod live;
pub mod moving;
pub mod place;
pub mod protocol;
pub mod query;
pub mod server;
pub mod tiering;
pub mod users;
pub(crate) mod wire;

pub use ask::ask;
pub use client::Client;
pub use protocol::{Failure, Request};
pub use query::{Listed, Query};

use std::hash::{BuildHasher, Hasher};

/// A number for one mount that no other one has, as 16 hexadecimal digits.
pub fn new_instance() -> String {
    // The standard library seeds these from the kernel's random numbers.
    let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    if let Ok(now) = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH) {
        hasher.write_u128(now.as_nanos());
    }
    format!("{:016x}", hasher.finish())
}
