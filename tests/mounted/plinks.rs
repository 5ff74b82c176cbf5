//! Pseudo-links of a live mount.

use super::fixture::{World, program, text};
use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn links_are_flushed_while_the_kernel_forgets_directories() {
    let Some(world) = World::new() else { return };
    world.mkdir("up", 0o755);
    for n in 0..500 {
        let [one, other] = ["a", "b"].map(|dir| format!("low/{dir}{n}/f"));
        world.put(&one, "x");
        world.mkdir(&format!("low/b{n}"), 0o755);
        fs::hard_link(world.path(&one), world.path(&other)).unwrap();
    }
    world.mounted("br=up=rw:low=ro,volatile", || {
        for n in 0..500 {
            world.chmod(&format!("m/a{n}/f"), 0o600);
        }
        let over = AtomicBool::new(false);
        let output = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
                }
            });
            let mut flush = Command::new(program());
            flush.arg("plink").arg(world.path("m")).arg("flush");
            let output = flush.output().unwrap();
            over.store(true, Ordering::Relaxed);
            output
        });
        assert!(output.status.success(), "{}", text(&output));
    });
}
