//! Points that are opened on demand: any number by few readers, across a repository that goes away and
//! comes back, and merges and removals meanwhile.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use qdelta::base::cancel::Cancel;
use qdelta::formats::archive::GROUP_BLOCKS;
use qdelta::vault::repository::storage::faulty::Faulty;
use qdelta::vault::repository::storage::{Local, Wait};
use qdelta::{ErrorKind, OpenPoint, OpenPoints, ReadAt, Repository};

use crate::harness::content::Random;
use crate::harness::repo::{Repo, point_of};
use crate::harness::{Lab, args};

/// Blocks of 4 KiB in two groups and a bit.
const SIZE: usize = (2 * GROUP_BLOCKS as usize + 3) * 4096 - 512;

/// A repository with points of a disk, and what the disk was at each.
struct Scene {
    lab: Lab,
    repo: Repo,
    points: Vec<(String, Vec<u8>)>,
}

impl Scene {
    fn new(count: usize) -> Self {
        let lab = Lab::new();
        let repo = Repo::init(lab.path("repo")).without_ring();
        let mut random = Random::new(3);
        let mut bytes = random.text(SIZE);
        let image = lab.path("disk.raw");
        let mut points = Vec::new();
        for _ in 0..count {
            std::fs::write(&image, &bytes).unwrap();
            let done = repo.backup(&image, "web/vda", &["--block-size", "4K"]);
            points.push((point_of(&done), bytes.clone()));
            for _ in 0..5 {
                let at = random.below(SIZE as u64 - 9000) as usize;
                bytes[at..at + 9000].copy_from_slice(&random.noise(9000));
            }
        }
        Self { lab, repo, points }
    }

    fn open_points(&self, room: u64) -> Arc<OpenPoints> {
        OpenPoints::with_room(self.repo.open(), room, &Cancel::default())
    }

    fn open(&self, points: &Arc<OpenPoints>, number: usize) -> OpenPoint {
        let name = format!("web/vda@{}", self.points[number].0);
        points.open_named(&name.parse().unwrap(), Wait::UNHEARD).unwrap()
    }

    /// The whole disk of a point is what it was.
    fn check(&self, point: &OpenPoint, number: usize) {
        let mut bytes = vec![1; SIZE + 1];
        assert_eq!(point.read(&mut bytes, 0).unwrap(), SIZE);
        assert!(bytes[..SIZE] == self.points[number].1, "point {number} differs");
        assert_eq!((point.size(), point.len().unwrap()), (SIZE as u64, SIZE as u64));
    }
}

/// Reads until an answer is like `wanted`: a reader that has just been opened is not looked at anew at
/// once.
#[track_caller]
fn until(point: &OpenPoint, wanted: impl Fn(Result<u8, ErrorKind>) -> bool) {
    for _ in 0..200 {
        let mut byte = [0];
        let read = point.read(&mut byte, 4096).map(|_| byte[0]);
        if wanted(read.map_err(|error| error.kind())) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("it never came to that");
}

#[test]
fn many_points_are_read_at_once_by_readers_that_come_and_go() {
    let scene = Scene::new(6);
    // Room for one reader alone, and for all.
    for room in [0, 1 << 30] {
        let points = scene.open_points(room);
        let open: Vec<_> = (0..6).map(|number| scene.open(&points, number)).collect();
        std::thread::scope(|scope| {
            for (number, point) in open.iter().enumerate() {
                let scene = &scene;
                scope.spawn(move || scene.check(point, number));
            }
        });
    }
    let points = scene.open_points(0);
    let named = |name: &str| points.open_named(&name.parse().unwrap(), Wait::UNHEARD);
    let last = scene.points.len() - 1;
    for name in ["web", "web/vda", "web/vda@latest", "web@2999"] {
        scene.check(&named(name).unwrap(), last);
    }
    let expected = format!("web/vda@{}", scene.points[last].0);
    assert_eq!(named("web").unwrap().name(), Path::new(&expected));
    for missing in ["db", "web/vdb", "web/vda@1999", "web/vda@20200101T000000.000Z"] {
        assert_eq!(named(missing).unwrap_err().kind(), ErrorKind::NotFound, "{missing}");
    }
}

/// Each point of a chain of 1,500 had 1,500 archives open of its own: a mount whose points were looked through took
/// more memory than it was to have.
#[test]
fn points_of_one_chain_share_their_archives() {
    let scene = Scene::new(8);
    let local = Arc::new(Local::new(&scene.repo.path));
    let storage = Arc::new(Faulty::counting(local));
    let key = scene.repo.key_text();
    let opened = Repository::open_in_with(storage.clone(), key.as_ref()).unwrap();
    let points = OpenPoints::new(opened, &Cancel::default());
    let opening = |number: usize| {
        let before = storage.calls();
        let open = scene.open(&points, number);
        (storage.calls() - before, open)
    };
    let (last_calls, last) = opening(7);
    let (next_calls, next) = opening(6);
    // The seven archives that it needs are open already.
    assert!(next_calls + 7 <= last_calls, "{next_calls} calls after {last_calls}");
    scene.check(&last, 7);
    scene.check(&next, 6);
}

#[test]
fn a_repository_that_goes_away_and_comes_back_gives_errors_and_then_the_right_bytes() {
    let scene = Scene::new(4);
    let points = scene.open_points(0);
    let (first, last) = (scene.open(&points, 0), scene.open(&points, 3));
    let away = scene.lab.path("away");
    std::fs::rename(&scene.repo.path, &away).unwrap();
    // What is open, stays; what has to be opened again can't be.
    until(&first, |read| read.is_err());
    std::fs::rename(&away, &scene.repo.path).unwrap();
    scene.check(&first, 0);
    scene.check(&last, 3);
    // Another copy of it: other files with the same names.
    std::fs::rename(&scene.repo.path, &away).unwrap();
    until(&first, |read| read.is_err());
    crate::harness::files::copy_tree(&away, &scene.repo.path);
    until(&first, |read| read.is_ok());
    scene.check(&first, 0);
    scene.check(&last, 3);
    // The promise holds in the copy, too.
    let id = scene.points[3].0.as_str();
    let merge = format!("web@{}..{id}", scene.points[0].0);
    let report = scene.repo.run(args!["merge", merge.as_str(), "--json"]).ok().json();
    assert_eq!(report["waiting"], true, "{report}");
}

#[test]
fn what_somebody_has_open_is_not_removed_and_what_is_gone_is_missed() {
    let scene = Scene::new(4);
    let points = scene.open_points(0);
    let first = scene.open(&points, 0);
    let last = scene.open(&points, 3);
    let merge = format!("web@{}..{}", scene.points[0].0, scene.points[3].0);
    let report = scene.repo.run(args!["merge", merge.as_str(), "--json"]).ok().json();
    assert_eq!(report["waiting"], true, "{report}");
    // The last point is read from another archive as soon as its reader is opened again.
    scene.check(&first, 0);
    scene.check(&last, 3);
    let archives = || scene.repo.archives().len();
    let before = archives();
    let prune = || scene.repo.run(args!["prune", "--keep-last", "1", "--grace", "0"]).ok();
    prune();
    assert_eq!(archives(), before, "both points are open");
    // On a repository where no promise could be made the files go all the same.
    let is_promise =
        |file: &&PathBuf| file.file_name().unwrap().to_string_lossy().starts_with(".keep");
    scene.repo.tree().iter().filter(is_promise).for_each(|file| scene.repo.stored(file).remove());
    prune();
    assert!(archives() < before);
    until(&first, |read| read == Err(ErrorKind::NotFound));
    scene.check(&last, 3);
    drop((first, last));
    assert_eq!(scene.open(&points, 3).size(), SIZE as u64);
}
