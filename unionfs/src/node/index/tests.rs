//! Tests of the merged names.

use super::*;

fn b(n: u16) -> BranchId {
    BranchId(n)
}

fn present(index: &Index, name: &[u8]) -> Present {
    match index.get(name) {
        Found::Present(p) => p,
        other => panic!("{other:?}"),
    }
}

#[test]
fn layers_merge_by_the_rules_of_aufs() {
    let mut i = Index::default();
    i.begin();
    i.add_entry(b(0), b"dir", Kind::Dir, 1);
    i.add_entry(b(0), b"file", Kind::File, 2);
    i.add_entry(b(0), b"both", Kind::File, 3);
    i.add_whiteout(b"gone");
    i.add_whiteout(b"both");
    i.add_entry(b(1), b"dir", Kind::File, 4);
    i.add_entry(b(1), b"file", Kind::Dir, 5);
    i.add_entry(b(1), b"both", Kind::File, 6);
    i.add_entry(b(1), b"gone", Kind::File, 7);
    i.add_entry(b(2), b"dir", Kind::Dir, 8);
    // dir / file / dir merges the first and the third.
    assert_eq!(present(&i, b"dir").layers.as_slice(), [b(0), b(2)]);
    assert_eq!(present(&i, b"file").kind, Kind::File);
    assert!(present(&i, b"file").below);
    // An entry beside its own whiteout wins, and hides what is below.
    assert_eq!(
        (present(&i, b"both").top, present(&i, b"both").below),
        (b(0), false)
    );
    assert_eq!(i.get(b"gone"), Found::Whiteout);
    assert_eq!(i.get(b"never"), Found::Absent);
    assert_eq!((i.len(), i.subdirs()), (3, 1));
}

#[test]
fn strict_whiteouts_make_what_they_contradict_unusable() {
    let mut i = Index::default();
    i.begin();
    i.add_entry(b(0), b"top", Kind::File, 1);
    i.add_entry(b(0), b"both", Kind::File, 2);
    i.add_strict_whiteout(b(0), b"both", true);
    i.add_strict_whiteout(b(0), b"gone", true);
    i.add_strict_whiteout(b(0), b"odd", false);
    for name in [&b"top"[..], b"both", b"gone", b"odd"] {
        i.add_entry(b(1), name, Kind::File, 3);
        i.add_strict_whiteout(b(1), name, true);
    }
    let broken = |name: &[u8]| i.is_broken(name);
    assert!(broken(b"both") && broken(b"odd"));
    assert!(!broken(b"gone") && !broken(b"top") && !broken(b"never"));
    assert_eq!(i.iter_from(0).count(), 1);
    i.begin();
    assert!(!i.is_broken(b"both"));
}

#[test]
fn positions_survive_changes_and_rebuilds() {
    let mut i = Index::default();
    i.begin();
    for name in [&b"a"[..], b"b", b"c"] {
        i.add_entry(b(0), name, Kind::File, 1);
    }
    i.remove(b"b", false);
    i.begin();
    for name in [&b"c"[..], b"d", b"a"] {
        i.add_entry(b(0), name, Kind::Dir, 1);
    }
    let order: Vec<_> = i.iter_from(0).map(|(p, n, ..)| (p, n.to_vec())).collect();
    assert_eq!(
        order,
        [(0, b"a".to_vec()), (2, b"c".to_vec()), (3, b"d".to_vec())]
    );
    assert_eq!(i.subdirs(), 3);
    assert_eq!(i.iter_from(3).count(), 1);
    assert_eq!(i.iter_from(u64::MAX).count(), 0);
}

#[test]
fn names_that_come_and_go_do_not_make_it_grow() {
    let mut i = Index::default();
    let file = Present {
        top: b(0),
        kind: Kind::File,
        real: 1,
        below: false,
        layers: BranchList::from_slice(&[b(0)]),
    };
    i.set(b"first", &file);
    i.set(
        b"merged",
        &Present {
            kind: Kind::Dir,
            layers: BranchList::from_slice(&[b(0), b(3)]),
            ..file.clone()
        },
    );
    for n in 0..100_000u32 {
        let name = n.to_string();
        i.set(name.as_bytes(), &file);
        i.remove(name.as_bytes(), false);
    }
    assert!(i.records.len() < 5000 && i.names.len() < 50_000);
    i.set(b"last", &file);
    let order: Vec<_> = i.iter_from(0).map(|(p, n, ..)| (p, n.to_vec())).collect();
    assert_eq!(order[0], (0, b"first".to_vec()));
    assert_eq!(order[2], (100_002, b"last".to_vec()));
    assert_eq!(present(&i, b"merged").layers.len(), 2);
}

#[test]
fn another_type_below_a_directory_ends_it_or_is_passed_over() {
    for (ends, layers) in [(false, &[b(0), b(2)][..]), (true, &[b(0)][..])] {
        let mut i = Index::default();
        i.begin();
        i.end_at_other_types(ends);
        i.add_entry(b(0), b"d", Kind::Dir, 1);
        i.add_entry(b(1), b"d", Kind::File, 2);
        i.add_entry(b(2), b"d", Kind::Dir, 3);
        let Found::Present(found) = i.get(b"d") else {
            panic!("it is there");
        };
        assert_eq!(&found.layers[..], layers);
    }
}

#[test]
fn a_record_is_small() {
    assert_eq!(size_of::<Record>(), 16);
}

#[test]
fn positions_outlive_a_compaction() {
    let mut i = Index::default();
    let file = Present::single(b(0), Kind::File, 1, false);
    for n in 0..6000u32 {
        i.set(n.to_string().as_bytes(), &file);
    }
    for n in (0..6000u32).filter(|n| n % 10 != 0) {
        i.remove(n.to_string().as_bytes(), false);
    }
    assert!(i.records.len() < 3000, "{} records", i.records.len());
    i.set(b"new", &file);
    i.set(b"newer", &file);
    let positions: Vec<u64> = i.iter_from(0).map(|e| e.0).collect();
    let expected: Vec<u64> = (0..600).map(|n| n * 10).chain([6000, 6001]).collect();
    assert_eq!(positions, expected);
    for (from, names) in [
        (5991, 2),
        (6000, 2),
        (6001, 1),
        (6002, 0),
        (5990, 3),
        (11, 600),
    ] {
        assert_eq!(i.iter_from(from).count(), names, "from {from}");
    }
    assert_eq!(i.end(), 6002);
}
