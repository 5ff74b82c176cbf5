//! The FUSE adapter: the only module that knows `fuser`.
