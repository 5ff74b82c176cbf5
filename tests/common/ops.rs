//! Operations as data, and how random stacks and operations are made.
//!
//! An operation names its files by a number that is taken modulo what there is when it runs, so
//! that every sequence makes sense and shrinks to few and simple steps.

use super::branches::{Perm, Stack};
use super::layers::{Entry, Meta, Name, Tree, name};
use proptest::collection::vec;
use proptest::prelude::*;
use unionfs::spec::Format;
use unionfs::types::RenameFlags;

/// Modes of files and directories. No setgid: on directories it would change what is made in them.
const MODES: &[u32] = &[0o644, 0o755, 0o600, 0o000, 0o4755, 0o1777, 0o444];

pub fn mode(n: u8) -> u32 {
    MODES[usize::from(n) % MODES.len()]
}

/// A name in a directory.
#[derive(Clone, Debug)]
pub enum Pick {
    /// Of the alphabet, there or not.
    Any(u8),
    /// One that exists, if there is one.
    Existing(u8),
}

/// How many bytes of what.
#[derive(Clone, Copy, Debug)]
pub struct Data {
    pub offset: u16,
    pub len: u16,
    pub fill: u8,
}

/// One step.
#[derive(Clone, Debug)]
pub enum Op {
    Create {
        dir: u8,
        name: Pick,
        mode: u8,
    },
    Mkdir {
        dir: u8,
        name: Pick,
        mode: u8,
    },
    Symlink {
        dir: u8,
        name: Pick,
        target: u8,
    },
    Mknod {
        dir: u8,
        name: Pick,
        null: bool,
    },
    Link {
        node: u8,
        dir: u8,
        name: Pick,
    },
    /// unlink or rmdir, whichever fits.
    Remove {
        dir: u8,
        name: Pick,
    },
    /// unlink or rmdir, whatever it is.
    RemoveAs {
        dir: u8,
        name: Pick,
        as_dir: bool,
    },
    /// `rm -r` of what is in a directory (never of the root).
    RemoveTree {
        dir: u8,
    },
    Rename {
        from: (u8, Pick),
        to: (u8, Pick),
        flags: RenameFlags,
    },
    /// `mv` of a directory, which random names seldom hit.
    MoveDir {
        node: u8,
        to: (u8, Pick),
        flags: RenameFlags,
    },
    Write {
        node: u8,
        data: Data,
    },
    Truncate {
        node: u8,
        size: u16,
    },
    Chmod {
        node: u8,
        mode: u8,
    },
    Chown {
        node: u8,
        uid: u8,
    },
    SetXattr {
        node: u8,
        attr: u8,
        value: u8,
        flags: i32,
    },
    RemoveXattr {
        node: u8,
        attr: u8,
    },
    Lookup {
        dir: u8,
        name: Pick,
    },
    /// Reads a directory a few entries at a time, with a change of it after each read.
    List {
        dir: u8,
        chunk: u8,
        plus: bool,
        changes: Vec<(Pick, bool)>,
    },
    /// The kernel forgets everything.
    Forget {
        backwards: bool,
    },
    /// The union is closed and opened again.
    Remount {
        clean: bool,
    },
    /// What the first writable branch holds goes to the second, if there are two.
    Merge,
    Compare,
}

fn pick() -> impl Strategy<Value = Pick> {
    prop_oneof![
        any::<u8>().prop_map(Pick::Any),
        any::<u8>().prop_map(Pick::Existing),
    ]
}

fn new_name() -> impl Strategy<Value = Pick> {
    prop_oneof![
        6 => any::<u8>().prop_map(Pick::Any),
        1 => any::<u8>().prop_map(Pick::Existing),
    ]
}

fn old_name() -> impl Strategy<Value = Pick> {
    prop_oneof![
        1 => any::<u8>().prop_map(Pick::Any),
        6 => any::<u8>().prop_map(Pick::Existing),
    ]
}

fn flags() -> impl Strategy<Value = RenameFlags> {
    prop_oneof![
        5 => Just(RenameFlags::empty()),
        1 => Just(RenameFlags::NOREPLACE),
        2 => Just(RenameFlags::EXCHANGE),
    ]
}

fn byte() -> impl Strategy<Value = u8> {
    any::<u8>()
}

fn data() -> impl Strategy<Value = Data> {
    let place = prop_oneof![4 => 0..40u16, 1 => 0..20_000u16];
    let len = prop_oneof![4 => 0..20u16, 1 => 0..9_000u16];
    (place, len, b'A'..=b'Z').prop_map(|(offset, len, fill)| Data { offset, len, fill })
}

fn namespace_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (byte(), new_name(), byte()).prop_map(|(dir, name, mode)| Op::Create { dir, name, mode }),
        4 => (byte(), new_name(), byte()).prop_map(|(dir, name, mode)| Op::Mkdir { dir, name, mode }),
        1 => (byte(), new_name(), byte())
            .prop_map(|(dir, name, target)| Op::Symlink { dir, name, target }),
        1 => (byte(), new_name(), any::<bool>())
            .prop_map(|(dir, name, null)| Op::Mknod { dir, name, null }),
        4 => (byte(), byte(), new_name()).prop_map(|(node, dir, name)| Op::Link { node, dir, name }),
        6 => (byte(), old_name()).prop_map(|(dir, name)| Op::Remove { dir, name }),
        1 => (byte(), pick(), any::<bool>())
            .prop_map(|(dir, name, as_dir)| Op::RemoveAs { dir, name, as_dir }),
        2 => byte().prop_map(|dir| Op::RemoveTree { dir }),
        8 => (byte(), old_name(), byte(), pick(), flags())
            .prop_map(|(a, from, b, to, flags)| Op::Rename { from: (a, from), to: (b, to), flags }),
        5 => (byte(), byte(), pick(), flags())
            .prop_map(|(node, b, to, flags)| Op::MoveDir { node, to: (b, to), flags }),
    ]
}

fn file_op() -> impl Strategy<Value = Op> {
    let xattr_flags = prop_oneof![4 => Just(0), 1 => Just(1), 1 => Just(2)];
    prop_oneof![
        6 => (byte(), data()).prop_map(|(node, data)| Op::Write { node, data }),
        3 => (byte(), 0..12_000u16).prop_map(|(node, size)| Op::Truncate { node, size }),
        3 => (byte(), byte()).prop_map(|(node, mode)| Op::Chmod { node, mode }),
        2 => (byte(), 0..3u8).prop_map(|(node, uid)| Op::Chown { node, uid }),
        3 => (byte(), byte(), byte(), xattr_flags)
            .prop_map(|(node, attr, value, flags)| Op::SetXattr { node, attr, value, flags }),
        2 => (byte(), byte()).prop_map(|(node, attr)| Op::RemoveXattr { node, attr }),
    ]
}

fn watching_op() -> impl Strategy<Value = Op> {
    let changes = vec((pick(), any::<bool>()), 0..6);
    prop_oneof![
        3 => (byte(), pick()).prop_map(|(dir, name)| Op::Lookup { dir, name }),
        3 => (byte(), 1..4u8, any::<bool>(), changes)
            .prop_map(|(dir, chunk, plus, changes)| Op::List { dir, chunk, plus, changes }),
        2 => any::<bool>().prop_map(|backwards| Op::Forget { backwards }),
        2 => any::<bool>().prop_map(|clean| Op::Remount { clean }),
        1 => Just(Op::Merge),
        1 => Just(Op::Compare),
    ]
}

/// A sequence of steps.
pub fn operations() -> impl Strategy<Value = Vec<Op>> {
    vec(
        prop_oneof![6 => namespace_op(), 3 => file_op(), 2 => watching_op()],
        1..40,
    )
}

fn meta() -> impl Strategy<Value = Meta> {
    let xattr = prop_oneof![2 => Just(None), 1 => byte().prop_map(Some)];
    (byte(), 0..3u32, xattr).prop_map(|(m, uid, xattr)| Meta {
        mode: mode(m),
        uid,
        xattr,
    })
}

fn content() -> impl Strategy<Value = Vec<u8>> {
    let len = prop_oneof![6 => 0..40usize, 1 => Just(4096usize), 1 => Just(10_001usize)];
    (len, b'a'..=b'z').prop_map(|(len, fill)| vec![fill; len])
}

fn any_name() -> impl Strategy<Value = Name> {
    prop_oneof![5 => 0..4u8, 2 => 4..9u8].prop_map(name)
}

fn tree_of(entry: impl Strategy<Value = Entry>) -> impl Strategy<Value = Tree> {
    let entries = vec((any_name(), entry), 0..5);
    let whiteouts = vec(any_name(), 0..3);
    let opaque = prop_oneof![8 => Just(false), 1 => Just(true)];
    (meta(), entries, whiteouts, opaque).prop_map(|(meta, entries, whiteouts, opaque)| Tree {
        meta,
        entries: entries.into_iter().collect(),
        whiteouts: whiteouts.into_iter().collect(),
        opaque,
    })
}

fn layer() -> impl Strategy<Value = Tree> {
    let link = prop_oneof![2 => Just(None), 1 => (0..2u8).prop_map(Some)];
    let leaf = prop_oneof![
        8 => (meta(), content(), link).prop_map(|(meta, data, link)| Entry::File { meta, data, link }),
        1 => byte().prop_map(|n| Entry::Symlink(name(n).0)),
        1 => Just(Entry::Fifo),
        1 => Just(Entry::Null),
    ];
    let entry = leaf.prop_recursive(3, 16, 4, |inner| tree_of(inner).prop_map(Entry::Dir));
    // Directories are what unions are about.
    let entry = prop_oneof![2 => entry.clone(), 1 => tree_of(entry).prop_map(Entry::Dir)];
    tree_of(entry)
}

fn lower_perm() -> impl Strategy<Value = Perm> {
    prop_oneof![
        6 => Just(Perm::RoWh),
        2 => Just(Perm::Ro),
        1 => Just(Perm::RrWh),
    ]
}

/// One writable branch over up to four readonly ones.
pub fn stack() -> impl Strategy<Value = Stack> {
    let lower = vec((lower_perm(), layer()), 0..=4);
    let format = prop_oneof![3 => Just(Format::Aufs), 1 => Just(Format::Overlay)];
    (
        layer(),
        lower,
        format,
        prop::bool::weighted(0.8),
        any::<bool>(),
        prop::bool::weighted(0.7),
    )
        .prop_map(|(top, lower, format, dir_rename, reval, in_memory)| Stack {
            branches: std::iter::once((Perm::Rw, top)).chain(lower).collect(),
            format,
            dir_rename,
            reval,
            in_memory,
        })
}

/// As [`stack`], with a second writable branch somewhere below the first.
pub fn stack_with_two_writable() -> impl Strategy<Value = Stack> {
    (stack(), layer(), byte()).prop_map(|(mut stack, second, at)| {
        stack.format = Format::Aufs;
        let at = 1 + usize::from(at) % stack.branches.len();
        stack.branches.insert(at, (Perm::Rw, second));
        stack
    })
}
