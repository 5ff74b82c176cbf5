//! Runs a case step by step on all three filesystems, and compares.

use super::data::show;
use super::exec::Outcome;
use super::known::{self, Whose};
use super::line::Line;
use super::tree::{self, Identity, Tree};
use super::world::World;
use anyhow::Result;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts steps, for the watchdog.
pub static STEPS: AtomicU64 = AtomicU64::new(0);

/// The tree is compared after so many steps.
pub const COMPARE_EVERY: usize = 60;

/// A difference that is not known.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Alike for failures that are probably one.
    pub signature: String,
    pub text: String,
}

/// What a step came to.
pub type Verdict = Result<(), Failure>;

/// A run of a case.
pub struct Run {
    pub world: World,
    /// The number that the union gives a file of the ordinary tree.
    numbers: HashMap<Identity, u64>,
    /// Files that had several names at some time.
    linked: HashSet<Identity>,
    /// How often each known difference was met.
    pub excused: BTreeMap<&'static str, u64>,
    /// The union's tree is another one by a known difference: the run ends.
    pub parted: bool,
}

impl Run {
    pub fn new(world: World) -> Self {
        Self {
            world,
            numbers: HashMap::new(),
            linked: HashSet::new(),
            excused: BTreeMap::new(),
            parted: false,
        }
    }

    /// Carries out one line everywhere. The outer error is one of the line or the machine.
    pub fn step(&mut self, line: &Line) -> Result<Verdict> {
        STEPS.fetch_add(1, Ordering::Relaxed);
        match line.verb() {
            "compare" => Ok(self.compare("tree")),
            "remount" => {
                self.world.unmount()?;
                self.world.mount()?;
                Ok(self.compare("remount"))
            }
            "swap" => self.swap(),
            _ => self.plain(line),
        }
    }

    fn plain(&mut self, line: &Line) -> Result<Verdict> {
        let world = &mut self.world;
        if known::refused_by_fuse(line) {
            let got = world.union.run(line)?;
            let fine = [libc::EOPNOTSUPP, libc::EBADF, libc::EINVAL];
            if !got.answer.as_ref().is_err_and(|e| fine.contains(e)) {
                return Ok(Err(failure(line, Whose::Union, "EOPNOTSUPP", &got)));
            }
            *self.excused.entry("fuse-collapse").or_default() += 1;
            return Ok(Ok(()));
        }
        let want = world.native.run(line)?;
        let overlay = if world.overlay_counts {
            world.overlay.run(line)?
        } else {
            want.clone()
        };
        let union = world.union.run(line)?;
        for (whose, got) in [(Whose::Union, &union), (Whose::Overlayfs, &overlay)] {
            if *got == want || (whose == Whose::Overlayfs && !self.world.overlay_counts) {
                continue;
            }
            let known = known::excuse(line, whose, &want, got).or_else(|| {
                let native = &self.world.native;
                let hole =
                    whose == Whose::Union && known::is_unwritten_hole(line, &want, got, native);
                hole.then_some("unwritten-holes")
            });
            match known {
                Some(id) => {
                    *self.excused.entry(id).or_default() += 1;
                    if known::parts_trees(id) {
                        self.world.overlay_counts = false;
                        self.parted |= whose == Whose::Union;
                    }
                }
                None => {
                    let mut found = failure(line, whose, &show(&want.answer), got);
                    if want.dir_links != got.dir_links {
                        let links =
                            format!(", link counts {:?}, {:?}", want.dir_links, got.dir_links);
                        found.text += &links;
                    }
                    let other = if whose == Whose::Union {
                        &overlay
                    } else {
                        &union
                    };
                    found.text += &format!("\n  the other:  {}", show(&other.answer));
                    return Ok(Err(found));
                }
            }
        }
        if known::revives(line, &want) {
            *self.excused.entry("overlayfs-revives").or_default() += 1;
            self.world.overlay_counts = false;
        }
        Ok(Ok(()))
    }

    /// Compares the trees.
    pub fn compare(&mut self, when: &str) -> Verdict {
        let want = self.read_native();
        let several = want
            .values()
            .filter(|i| i.fields.get("links").is_some_and(|n| n != "1"));
        self.linked.extend(several.map(|i| i.identity));
        let got = tree::read(&self.world.union.root, &self.world.view());
        report(when, Whose::Union, self.union_differs(&want, &got))?;
        if self.world.overlay_counts {
            let mut got = tree::read(&self.world.overlay.root, &self.world.view());
            known::drop_listed_whiteouts(&mut got);
            let mut found = tree::differences(&want, &got, 20);
            known::drop_new_times(&mut found, &want);
            report(when, Whose::Overlayfs, found)?;
        }
        Ok(())
    }

    fn read_native(&self) -> Tree {
        tree::read(&self.world.native.root, &self.world.view())
    }

    fn union_differs(&mut self, want: &Tree, got: &Tree) -> Vec<String> {
        let mut found = tree::differences(want, got, 20);
        let mut owners: HashMap<u64, Identity> = HashMap::new();
        for (path, want) in want {
            let Some(got) = got.get(path) else {
                continue;
            };
            let shown = super::line::escape(path);
            if want.dir_links != got.dir_links {
                let (want, got) = (want.dir_links, got.dir_links);
                found.push(format!("{shown}: dir links is {got:?}, should be {want:?}"));
            }
            let number = got.identity.0;
            if got.listed != number && got.listed != 0 {
                found.push(format!(
                    "{shown}: listed is {}, should be {number}",
                    got.listed
                ));
            }
            let known = *self.numbers.entry(want.identity).or_insert(number);
            if known != number {
                found.push(format!("{shown}: number is {number}, was {known}"));
                self.numbers.insert(want.identity, number);
            }
            let owner = *owners.entry(number).or_insert(want.identity);
            if owner != want.identity {
                found.push(format!("{shown}: number {number} is that of another file"));
            }
        }
        found
    }

    fn swap(&mut self) -> Result<Verdict> {
        // What overlayfs did otherwise the union cannot show.
        if !self.world.is_overlay_format() || !self.world.overlay_counts {
            return Ok(Ok(()));
        }
        let want = self.read_native();
        let mut verdict = Ok(());
        let linked = self.linked.clone();
        let overlay = tree::read(&self.world.overlay.root, &self.world.view());
        let mut new_times = tree::differences(&want, &overlay, usize::MAX);
        let mut others = new_times.clone();
        known::drop_new_times(&mut others, &want);
        new_times.retain(|text| !others.contains(text));
        let swapped = self.world.swap(|world| {
            let mut on_ours = tree::read(&world.overlay.root, &world.view());
            known::drop_listed_whiteouts(&mut on_ours);
            let on_theirs = tree::read(&world.union.root, &world.view());
            let mut found = tree::differences(&want, &on_ours, 20);
            known::drop_new_times(&mut found, &want);
            known::drop_more_links(&mut found);
            verdict = report("swap", Whose::Overlayfs, found).and_then(|()| {
                let mut found = tree::differences(&want, &on_theirs, 20);
                // What overlayfs showed itself is on its branches.
                found.retain(|text| !new_times.contains(text));
                known::drop_more_links(&mut found);
                known::drop_linked(&mut found, &want, &linked);
                report("swap", Whose::Union, found)
            });
            Ok(())
        })?;
        if !swapped {
            *self.excused.entry("hidden-names-swap").or_default() += 1;
        }
        Ok(verdict.and_then(|()| self.compare("swapped back")))
    }

    /// The end: the tree, then what lies on the branches.
    pub fn finish(&mut self) -> Result<Verdict> {
        if !self.parted
            && let Err(failure) = self.compare("tree")
        {
            return Ok(Err(failure));
        }
        self.world.unmount()?;
        let layers = self.world.check_layers()?;
        if let Err(failure) = report("layers", Whose::Union, layers) {
            return Ok(Err(failure));
        }
        Ok(match self.world.fsck()? {
            None => Ok(()),
            Some(text) => Err(Failure {
                signature: "fsck".into(),
                text: format!("fsck: {text}"),
            }),
        })
    }
}

fn failure(line: &Line, whose: Whose, want: &str, got: &Outcome) -> Failure {
    let got = show(&got.answer);
    let brief = |text: &str| text.split(' ').next().unwrap_or_default().to_owned();
    Failure {
        signature: format!("{whose:?} {} {} {}", line.verb(), brief(want), brief(&got)),
        text: format!("{line}\n  should be:  {want}\n  {whose:?}:  {got}"),
    }
}

fn report(when: &str, whose: Whose, found: Vec<String>) -> Verdict {
    let Some(first) = found.first() else {
        return Ok(());
    };
    let field = first.rsplit_once(": ").map_or("", |(_, said)| said);
    let field = field.split(" is ").next().unwrap_or_default();
    Err(Failure {
        signature: format!("{whose:?} {when} {field}"),
        text: format!("{when}: {whose:?} differs:\n  {}", found.join("\n  ")),
    })
}
