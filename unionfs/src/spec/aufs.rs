//! The AUFS option grammar.
