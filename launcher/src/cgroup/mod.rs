//! Resource limits by cgroup, v1, v2 and both at once.
//!
//! [`detect`] finds what the host has, [`plan`] decides (pure) which groups and values a set of
//! limits needs, [`group`] makes, joins, reads and removes the groups.

pub mod detect;
pub mod group;
pub mod plan;
