//! A fault at every call of the storage that points are copied to, or that is mended, and whoever dies of it: what
//! could be read stays readable, the next run goes on, and afterwards nothing is left over.

use std::sync::Arc;

use qdelta::flows::copies::{self, CopyRequest, RepairRequest};
use qdelta::flows::merge::MergeOptions;
use qdelta::vault::repository::storage::faulty::{Fault, Faulty};
use qdelta::vault::repository::storage::memory::Memory;
use qdelta::vault::repository::storage::{Name, Publish, Storage, Wait};
use qdelta::vault::repository::{Keep, Settings};
use qdelta::{Cancel, Error, PointId, Repository, Silent};

use crate::harness::sweep;
use crate::merge_faults::{FAULTS, Scene, copy_of, resources};

fn options() -> MergeOptions {
    MergeOptions { level: 1, resources: resources() }
}

fn failed(failure: &qdelta::flows::report::Failure) -> Error {
    Error::new(failure.kind, failure.text.clone())
}

/// Copies the points that the rules keep, or all.
fn copy(from: &Memory, to: Arc<dyn Storage>, points: Option<Keep>) -> qdelta::Result<()> {
    let from = Repository::open_in(Arc::new(from.clone()))?;
    let to = Repository::open_in(to)?;
    let request = CopyRequest {
        domains: vec!["vm".parse()?],
        points,
        dry_run: false,
        same_guest: false,
        at_once: 1,
        options: options(),
    };
    let report = copies::copy((&from, &to), &request, &Silent, &Cancel::default())?;
    let guest = &report.guests[0];
    let failures = guest.failed.iter().map(|it| &it.error).chain(&guest.error);
    failures.map(failed).next().map_or(Ok(()), Err)
}

fn repair(here: Arc<dyn Storage>, from: &Memory) -> qdelta::Result<()> {
    let from = Repository::open_in(Arc::new(from.clone()))?;
    let here = Repository::open_in(here)?;
    let request =
        RepairRequest { domains: vec!["vm".parse()?], dry_run: false, options: options() };
    let report = copies::repair((&here, &from), &request, &Silent, &Cancel::default())?;
    let mut guests = report.guests.iter();
    let failure = guests.find_map(|guest| {
        guest.failed.iter().map(|it| &it.error).chain(&guest.error).next().map(failed)
    });
    failure.map_or(Ok(()), Err)
}

/// Another backup begins: what it removes belonged to nothing.
fn clean(memory: &Memory, story: &str) {
    let repository = Repository::open_in(Arc::new(memory.clone())).unwrap();
    let lock = repository.lock(&"vm".parse().unwrap(), Wait::UNHEARD).unwrap();
    let (cleaned, _) = repository.clean(&lock).unwrap();
    assert!(cleaned.kept.is_empty(), "{story}: {cleaned:?}");
}

/// Every manifest has its archives, and every archive its manifest.
fn assert_whole(scene: &Scene, memory: &Memory, points: &[PointId], story: &str) {
    let archives = memory.names().into_iter();
    let archives = archives.filter(|name| name.last().ends_with(".qdelta")).count();
    let disks = scene.states.iter().filter(|state| points.contains(&state.point)).count();
    assert_eq!(archives, disks, "{story}: {:?}", memory.names());
    scene.verify(memory, story);
}

/// Every fault in turn, with a power cut or without, at each so-manieth call; `QDELTA_SWEEP` of as much tries
/// every one at every call.
fn sweep_over(share: u64, mut try_at: impl FnMut(u64, Fault, bool) -> bool) {
    let step = share.div_ceil(sweep());
    let variants = FAULTS.into_iter().flat_map(|fault| {
        let cuts = [false, true].into_iter().filter(move |cuts| fault.kills || !cuts);
        cuts.map(move |cuts| (fault, cuts))
    });
    for (phase, (fault, cuts)) in (0..).zip(variants) {
        let mut call = phase % step;
        while try_at(call, fault, cuts) {
            call += step;
        }
        assert!(call > 40, "only {call} calls were made");
    }
}

/// The copy has a later point already, so nothing that comes is the newest: what a kill leaves is told from
/// archives whose manifests were lost.
#[test]
fn a_copy_survives_a_fault_at_every_call() {
    let scene = Scene::new(Some(3));
    let from = scene.copy();
    let base = Memory::default();
    Repository::init_in(Arc::new(base.clone()), &Settings::default()).unwrap();
    copy(&from, Arc::new(base.clone()), Some("last=1".parse().unwrap())).unwrap();
    let newest = &scene.points[scene.points.len() - 1..];
    sweep_over(13, |call, fault, cuts| {
        let story = format!("copy, call {call}, {fault:?}, power cut: {cuts}");
        let to = copy_of(&base);
        let faulty = Arc::new(Faulty::new(Arc::new(to.clone()), call, fault));
        let outcome = copy(&from, Arc::clone(&faulty) as Arc<dyn Storage>, None);
        let reached = faulty.reached();
        drop(faulty);
        if cuts {
            to.cut_power();
        }
        let listed = scene.check(&to, newest, &story);
        if !reached {
            outcome.unwrap_or_else(|error| panic!("{story}: {}", error.chain()));
            assert_eq!(listed, scene.points, "{story}");
        }
        // Somebody else writes there before the next copy, or nobody does.
        if call % 2 == 0 {
            clean(&to, &story);
            assert_whole(&scene, &to, &listed, &story);
        }
        let again = copy(&from, Arc::new(to.clone()), None);
        again.unwrap_or_else(|error| panic!("{story}: {}", error.chain()));
        assert_eq!(scene.check(&to, &scene.points, &story), scene.points, "{story}");
        clean(&to, &story);
        assert_whole(&scene, &to, &scene.points, &story);
        reached
    });
}

/// Changes a file, or removes it.
fn damage(memory: &Memory, name: &Name, is_lost: bool) {
    if is_lost {
        memory.remove(name).unwrap();
        return;
    }
    let mut bytes = memory.read(name, u64::MAX).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let mut staged = memory.stage(name).unwrap();
    staged.write_all(&bytes).unwrap();
    staged.seal().unwrap();
    staged.publish(Publish::Replace).unwrap();
}

/// The scene's repository, and a copy of it.
fn with_a_copy(scene: &Scene) -> (Memory, Memory) {
    let (base, from) = (scene.copy(), Memory::default());
    Repository::init_in(Arc::new(from.clone()), &Settings::default()).unwrap();
    copy(&base, Arc::new(from.clone()), None).unwrap();
    (base, from)
}

/// The file of a point whose name has this part.
fn file_of(memory: &Memory, part: &str, point: PointId) -> Name {
    let point = point.to_string();
    let name = |name: &Name| name.as_str().contains(part) && name.last().starts_with(&point);
    memory.names().into_iter().find(name).unwrap()
}

/// An archive is damaged, one is lost, and so are two manifests.
#[test]
fn a_repair_makes_nothing_worse_at_any_call() {
    let scene = Scene::new(Some(3));
    let (base, from) = with_a_copy(&scene);
    let of = |part: &str, point: usize| file_of(&base, part, scene.points[point]);
    damage(&base, &of("vm/a/", 1), false);
    damage(&base, &of("vm/b/", 4), true);
    damage(&base, &of("points/", 2), false);
    damage(&base, &of("points/", 3), true);
    let before = scene.readable(&base);
    let all = scene.readable(&from);
    assert!(before.len() < all.len() && all.len() == scene.states.len());
    sweep_over(37, |call, fault, cuts| {
        let story = format!("repair, call {call}, {fault:?}, power cut: {cuts}");
        let here = copy_of(&base);
        let faulty = Arc::new(Faulty::new(Arc::new(here.clone()), call, fault));
        let outcome = repair(Arc::clone(&faulty) as Arc<dyn Storage>, &from);
        let reached = faulty.reached();
        drop(faulty);
        if cuts {
            here.cut_power();
        }
        let now = scene.readable(&here);
        assert!(now.is_superset(&before), "{story}: {now:?}");
        if !reached {
            outcome.unwrap_or_else(|error| panic!("{story}: {}", error.chain()));
        }
        let again = repair(Arc::new(here.clone()), &from);
        again.unwrap_or_else(|error| panic!("{story}: {}", error.chain()));
        assert_eq!(scene.readable(&here), all, "{story}");
        clean(&here, &story);
        assert_whole(&scene, &here, &scene.points, &story);
        reached
    });
}

/// The archives of a storage.
fn archives(memory: &Memory) -> Vec<Name> {
    memory.names().into_iter().filter(|name| name.last().ends_with(".qdelta")).collect()
}

/// Another backup begins, and removes no archive that was there before, but for those whose disk's point can be read
/// without them.
fn assert_kept(scene: &Scene, memory: &Memory, before: &[Name], story: &str) {
    let repository = Repository::open_in(Arc::new(memory.clone())).unwrap();
    let lock = repository.lock(&"vm".parse().unwrap(), Wait::UNHEARD).unwrap();
    repository.clean(&lock).unwrap();
    let (now, readable) = (archives(memory), scene.readable(memory));
    let is_readable = |name: &Name| {
        let point = name.last().split('-').next().unwrap().parse().unwrap();
        readable.contains(&(name.folder().unwrap().as_str().to_owned(), point))
    };
    let lost = before.iter().find(|name| !now.contains(name) && !is_readable(name));
    assert!(lost.is_none(), "{story}: {lost:?} is gone, there are {now:?}");
}

/// The newest points had lost their manifests, and whoever brought one back was killed between staging and
/// publishing it: the next backup took the archive that had been there all the time for the leftover of a killed
/// backup, and removed it.
#[test]
fn an_archive_whose_manifest_is_being_brought_back_is_nobodys_leftover() {
    let scene = Scene::new(Some(3));
    let (base, from) = with_a_copy(&scene);
    let of = |part: &str, point: usize| file_of(&base, part, scene.points[point]);
    damage(&base, &of("points/", 4), true);
    damage(&base, &of("points/", 3), true);
    damage(&base, &of("vm/a/", 3), true);
    let before = archives(&base);
    for is_repair in [true, false] {
        let bring = |here: Arc<dyn Storage>| match is_repair {
            true => repair(here, &from),
            false => copy(&from, here, None),
        };
        sweep_over(29, |call, fault, cuts| {
            let story = format!("repair: {is_repair}, call {call}, {fault:?}, power cut: {cuts}");
            let here = copy_of(&base);
            let faulty = Arc::new(Faulty::new(Arc::new(here.clone()), call, fault));
            let outcome = bring(Arc::clone(&faulty) as Arc<dyn Storage>);
            let reached = faulty.reached();
            drop(faulty);
            if cuts {
                here.cut_power();
            }
            if !reached {
                outcome.unwrap_or_else(|error| panic!("{story}: {}", error.chain()));
            }
            assert_kept(&scene, &here, &before, &story);
            scene.check(&here, &scene.points[..3], &story);
            bring(Arc::new(here.clone()))
                .unwrap_or_else(|error| panic!("{story}: {}", error.chain()));
            assert_eq!(scene.check(&here, &scene.points, &story), scene.points, "{story}");
            clean(&here, &story);
            assert_whole(&scene, &here, &scene.points, &story);
            let is_mark = |name: &Name| name.last().ends_with(".lost");
            assert!(!here.names().iter().any(is_mark), "{story}: {:?}", here.names());
            reached
        });
    }
}
