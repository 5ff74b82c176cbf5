//! The overlayfs and fuse-overlayfs option grammar.
