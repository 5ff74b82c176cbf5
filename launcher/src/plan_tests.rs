//! Plans for different users, hosts and wishes.

use super::*;
use crate::spec::Limits;

fn root() -> Facts {
    Facts {
        uid: 0,
        gid: 0,
        admin: true,
        set_ids: true,
        sub_uids: Vec::new(),
        sub_gids: Vec::new(),
        map_helpers: true,
        own_uids: vec![IdMapping {
            inside: 0,
            outside: 0,
            count: u32::MAX,
        }],
        own_gids: vec![IdMapping {
            inside: 0,
            outside: 0,
            count: u32::MAX,
        }],
        cgroups: Vec::new(),
    }
}

fn user() -> Facts {
    Facts {
        uid: 1000,
        gid: 100,
        admin: false,
        set_ids: false,
        ..root()
    }
}

fn spec() -> Spec {
    Spec {
        root: Root::Directory("/r".into()),
        udba: None,
        command: vec!["sh".into()],
        user: None,
        workdir: "/".into(),
        env: Vec::new(),
        hostname: None,
        interactive: false,
        tty: false,
        detach: false,
        remove: false,
        read_only: false,
        volumes: Vec::new(),
        tmpfs: Vec::new(),
        limits: Limits::default(),
        best_effort: false,
        network: Network::None,
        userns: Userns::Auto,
        security: Security {
            no_new_privs: true,
            ..Security::default()
        },
        ulimits: Vec::new(),
    }
}

fn plan(spec: &Spec, facts: &Facts) -> Result<Plan> {
    Plan::new("abc", spec, facts, &Caller::default())
}

fn range(inside: u32, outside: u32, count: u32) -> IdMapping {
    IdMapping {
        inside,
        outside,
        count,
    }
}

fn position(steps: &[Step], wanted: impl Fn(&Step) -> bool) -> usize {
    steps.iter().position(wanted).unwrap_or(usize::MAX)
}

#[test]
fn root_without_a_range_keeps_the_hosts_ids() {
    assert_eq!(plan(&spec(), &root()).unwrap().userns, UsernsPlan::Host);
}

#[test]
fn root_with_a_range_maps_only_the_container() {
    let ranges = vec![(100_000, 65_536)];
    let facts = Facts {
        sub_uids: ranges.clone(),
        sub_gids: ranges,
        ..root()
    };
    match plan(&spec(), &facts).unwrap().userns {
        UsernsPlan::Inner(maps) => assert_eq!(maps.uids, [range(0, 100_000, 65_536)]),
        other => panic!("{other:?}"),
    }
    let facts = Facts {
        sub_uids: vec![(100_000, 10)],
        ..facts
    };
    assert_eq!(plan(&spec(), &facts).unwrap().userns, UsernsPlan::Host);
}

#[test]
fn a_user_gets_a_range_or_one_id() {
    match plan(&spec(), &user()).unwrap().userns {
        UsernsPlan::Outer(maps) => {
            assert_eq!(maps.method, MapMethod::Direct { setgroups: false });
            assert_eq!(
                (&maps.uids[..], &maps.gids[..]),
                (&[range(0, 1000, 1)][..], &[range(0, 100, 1)][..])
            );
            assert!(maps.single());
        }
        other => panic!("{other:?}"),
    }
    let facts = Facts {
        sub_uids: vec![(1, 5), (9, 5)],
        sub_gids: vec![(7, 2)],
        ..user()
    };
    match plan(&spec(), &facts).unwrap().userns {
        UsernsPlan::Outer(maps) => {
            assert_eq!(maps.method, MapMethod::Helpers);
            assert_eq!(
                maps.uids,
                [range(0, 1000, 1), range(1, 1, 5), range(6, 9, 5)]
            );
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn inside_a_container_all_its_ids_are_passed_on() {
    let own = vec![range(0, 1000, 1), range(1, 100_000, 65_535)];
    let facts = Facts {
        admin: false,
        own_uids: own.clone(),
        own_gids: own,
        ..root()
    };
    match plan(&spec(), &facts).unwrap().userns {
        UsernsPlan::Outer(maps) => {
            assert_eq!(maps.uids, [range(0, 0, 1), range(1, 1, 65_535)]);
            assert_eq!(maps.method, MapMethod::Direct { setgroups: true });
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn wishes_that_cannot_be_met_are_refused() {
    let host = Spec {
        userns: Userns::Host,
        ..spec()
    };
    assert!(plan(&host, &user()).is_err());
    let no_zero = Userns::Map {
        uids: vec![range(1, 1, 1)],
        gids: vec![range(0, 1, 1)],
    };
    assert!(
        plan(
            &Spec {
                userns: no_zero,
                ..spec()
            },
            &root()
        )
        .is_err()
    );
    let user_name = Spec {
        user: Some("a/b".into()),
        ..spec()
    };
    assert!(plan(&user_name, &root()).is_err());
}

#[test]
fn the_order_of_steps_is_safe() {
    let mut spec = spec();
    spec.read_only = true;
    spec.tmpfs.push("/tmp".into());
    let plan = plan(&spec, &user()).unwrap();
    let steps = &plan.init.steps;
    let pivot = position(steps, |step| *step == Step::Pivot);
    let root = position(steps, |step| *step == Step::Root);
    assert_eq!(steps[0], Step::BecomeRoot);
    assert!(position(steps, |step| *step == Step::PrivateMounts) < root);
    assert!(root < position(steps, |step| *step == Step::Proc));
    for before in [
        position(steps, |step| *step == Step::Proc),
        position(steps, |step| matches!(step, Step::Sysfs { .. })),
        position(steps, |step| matches!(step, Step::Mask(_))),
        position(steps, |step| matches!(step, Step::ReadOnly(_))),
    ] {
        assert!(before < pivot);
    }
    assert!(position(steps, |step| *step == Step::ReadOnlyRoot) > pivot);
}

#[test]
fn privileges_lift_masks_and_filters() {
    let plain = plan(&spec(), &root()).unwrap().init;
    assert!(plain.payload.seccomp.is_some() && plain.payload.no_new_privs);
    let mut spec = spec();
    spec.security.privileged = true;
    spec.security.seccomp_unconfined = true;
    spec.security.unmask = Unmask::All;
    let free = plan(&spec, &root()).unwrap().init;
    assert!(free.payload.seccomp.is_none());
    assert!(
        !free
            .steps
            .iter()
            .any(|step| matches!(step, Step::Mask(_) | Step::ReadOnly(_)))
    );
}

#[test]
fn only_ids_that_are_not_the_hosts_root_see_all_of_proc() {
    let covered = |userns: Userns, facts: &Facts| {
        let mut spec = spec();
        spec.security.nest = true;
        spec.userns = userns;
        let steps = plan(&spec, facts).unwrap().init.steps;
        steps.iter().any(|step| matches!(step, Step::ReadOnly(_)))
    };
    let to = |outside| {
        let map = vec![IdMapping {
            inside: 0,
            outside,
            count: 65_536,
        }];
        Userns::Map {
            uids: map.clone(),
            gids: map,
        }
    };
    assert!(covered(Userns::Host, &root()) && covered(to(0), &root()));
    assert!(!covered(to(100_000), &root()) && !covered(Userns::Auto, &user()));
}

#[test]
fn terminals_need_group_five() {
    let dev = |facts: &Facts| {
        let plan = plan(
            &Spec {
                tty: true,
                ..spec()
            },
            facts,
        )
        .unwrap();
        plan.init.steps.into_iter().find_map(|step| match step {
            Step::Dev(dev) => Some(dev),
            _ => None,
        })
    };
    assert!(dev(&root()).unwrap().tty_group);
    let single = dev(&user()).unwrap();
    assert!(!single.tty_group);
    assert_eq!(single.terminal, Some((24, 80)));
}

#[test]
fn plans_survive_the_way_to_init() {
    let plan = plan(
        &Spec {
            tty: true,
            ..spec()
        },
        &user(),
    )
    .unwrap()
    .init;
    let json = serde_json::to_vec(&plan).unwrap();
    let back: InitPlan = serde_json::from_slice(&json).unwrap();
    assert_eq!(back.steps, plan.steps);
    assert_eq!(back.payload, plan.payload);
}
