//! Lists that lack what is there: whatever they say, nothing good goes, and nothing begins anew.

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use crate::harness::images::patch;
use crate::harness::proxy::{Fate, Proxy};
use crate::harness::repo::{Repo, point_of};
use crate::harness::store::{address, endpoint, fresh_place};
use crate::harness::{Lab, args, qdelta, run, state};

/// A guest behind a proxy with points of these kinds; and what each point holds.
struct Guest {
    lab: Lab,
    proxy: Proxy,
    place: String,
    repo: Repo,
    image: PathBuf,
    points: Vec<(String, PathBuf)>,
}

impl Guest {
    fn new(kinds: &[&str]) -> Self {
        let (lab, proxy, place) = (Lab::new(), Proxy::new(endpoint()), fresh_place());
        // In the plain: the list that the proxy cuts must say which object is which.
        let address = address(&proxy.endpoint, &place);
        run(qdelta(args!["init", address.as_path()])).ok();
        let repo = Repo::at(address).without_ring();
        let image = lab.path("image.raw");
        std::fs::write(&image, vec![1; 1 << 20]).unwrap();
        let mut guest = Self { lab, proxy, place, repo, image, points: Vec::new() };
        for (number, kind) in kinds.iter().enumerate() {
            patch(&guest.image, (number as u64) << 17, &[number as u8 + 2; 70_000]);
            let options = ["--format", "raw", "--kind", kind];
            let point = point_of(&guest.repo.backup(&guest.image, "vm/disk", &options));
            let kept = guest.lab.path(format!("{number}.raw"));
            std::fs::copy(&guest.image, &kept).unwrap();
            guest.points.push((point, kept));
        }
        guest
    }

    /// From now on every list lacks the archive of this point.
    fn lack_archive(&self, number: usize) {
        let archive: &'static str = format!("{}-", self.points[number].0).leak();
        self.proxy.judge(move |_, seen| match seen.target.contains("list-type") {
            true => Fate::Lacks(archive),
            false => Fate::Pass,
        });
    }

    /// Every point is there, whole.
    #[track_caller]
    fn assert_has_all(&self) {
        self.proxy.pass();
        let direct = self.repo.copy_at(address(endpoint(), &self.place));
        for (point, content) in &self.points {
            direct.assert_restores_raw(&self.lab, &format!("vm/disk@{point}"), content);
        }
        direct.verify();
    }
}

/// A point whose archive a list lacked was called damaged: an older one stayed in its place, and it was dropped, with
/// status 0.
#[test]
fn a_list_that_lacks_an_archive_lets_nothing_go() {
    let guest = Guest::new(&["full", "full", "full"]);
    let prune = args!["prune", "--keep-last", "2", "--grace", "0"];
    let mut rehearsal = prune.clone();
    rehearsal.extend(args!["--dry-run"]);
    for command in [rehearsal, prune.clone()] {
        guest.lack_archive(1);
        let said = guest.repo.run(command).fails_with(1);
        assert!(said.contains("lacks") && said.contains("which is there"), "{said}");
        guest.assert_has_all();
    }
    // Nobody calls it damaged, and a copy has it.
    guest.lack_archive(1);
    let listed = guest.repo.run(args!["points", "vm/disk"]).ok().text();
    assert!(!listed.contains("missing") && !listed.contains("damaged"), "{listed}");
    let to = Repo::init(guest.lab.path("copy"));
    guest.repo.run(args!["copy", "--to", to.path.as_path()]).ok();
    assert_eq!(to.points("vm/disk").len(), 3);
    guest.proxy.pass();
    guest.repo.run(prune).ok();
    let left = guest.repo.points("vm/disk");
    assert_eq!(left, [guest.points[1].0.clone(), guest.points[2].0.clone()]);
}

/// A chain of which a list lacked an archive was called broken: the next backup began anew.
#[test]
fn a_list_that_lacks_an_archive_does_not_break_a_chain() {
    let mut guest = Guest::new(&["full", "incremental"]);
    guest.lack_archive(0);
    patch(&guest.image, 3 << 17, &[9; 70_000]);
    let said = guest.repo.backup(&guest.image, "vm/disk", &["--format", "raw"]);
    assert_eq!(said["kind"], "incremental", "{said}");
    guest.points.push((point_of(&said), guest.image.clone()));
    let merge = args!["merge", format!("vm@{}..{}", guest.points[0].0, guest.points[1].0)];
    let said = guest.repo.run(merge).fails_with(1);
    assert!(said.contains("lacks"), "{said}");
    guest.assert_has_all();
}

/// Points that another host has removed were asked for one after the other by each prune. Counted by how many are on
/// their way at once, and not by the clock.
#[test]
fn points_that_are_gone_are_asked_for_many_at_a_time_and_once() {
    let guest = Guest::new(&["full"]);
    let known = state().join(guest.repo.open().id()).join("vm+listed");
    let mut seen = std::fs::read_to_string(&known).unwrap();
    (0..60).for_each(|minute| seen += &format!("20250101T00{minute:02}00.000Z\n"));
    std::fs::write(&known, seen).unwrap();
    let prune = || {
        guest.proxy.judge(|_, seen| match seen.target.contains("points/20250101") {
            true => Fate::Slow(50),
            false => Fate::Pass,
        });
        guest.repo.run(args!["prune", "--keep-last", "9"]).ok();
        let seen = guest.proxy.seen();
        seen.iter().filter(|it| it.target.contains("points/20250101")).count()
    };
    assert_eq!(prune(), 60);
    let most = guest.proxy.most_at_once.load(Ordering::SeqCst);
    assert!(most >= 8, "at most {most} at once");
    assert_eq!(prune(), 0);
}
