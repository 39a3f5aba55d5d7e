//! A fault at every call of the storage while points are merged, and whoever dies of it: every point that
//! stays is whole at every moment, the next run goes on, and afterwards nothing is left over.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use qdelta::flows::merge::{self, MergeOptions, MergeRequest};
use qdelta::vault::repository::Settings;
use qdelta::vault::repository::storage::faulty::{Fault, Faulty};
use qdelta::vault::repository::storage::memory::Memory;
use qdelta::vault::repository::storage::{Publish, Storage};
use qdelta::{
    Backend, BackupOptions, Cancel, DiskId, ErrorKind, ImageRequest, KindChoice, OpenOptions,
    PointId, Repository, Resources, Silent, VerifyRequest,
};

use crate::harness::content::Random;
use crate::harness::{Lab, sweep};

pub const FAULTS: [Fault; 4] = [
    Fault { works: false, kills: false },
    Fault { works: true, kills: false },
    Fault { works: false, kills: true },
    Fault { works: true, kills: true },
];

pub fn resources() -> Resources {
    Resources { threads: 1, backend: Backend::Threads, ..Resources::default() }
}

/// What a disk was at a point.
pub struct State {
    pub point: PointId,
    pub disk: DiskId,
    bytes: Vec<u8>,
}

/// A guest with two disks, the second of which came later, in a repository that is copied for each try.
pub struct Scene {
    _lab: Lab,
    memory: Memory,
    pub states: Vec<State>,
    pub points: Vec<PointId>,
}

impl Scene {
    /// One of its points may begin a chain of its own.
    pub fn new(full: Option<usize>) -> Self {
        let lab = Lab::new();
        let memory = Memory::default();
        let repository =
            Repository::init_in(Arc::new(memory.clone()), &Settings::default()).unwrap();
        let mut random = Random::new(13);
        let (mut states, mut points) = (Vec::new(), Vec::new());
        let paths = [lab.path("a.raw"), lab.path("b.raw")];
        for (path, size) in paths.iter().zip([300_000_usize, 200_000]) {
            std::fs::write(path, random.noise(size)).unwrap();
        }
        for number in 0..5 {
            let count = if number == 0 { 1 } else { 2 };
            for path in &paths[..count] {
                change(path, &mut random);
            }
            let images: Vec<_> = paths[..count].iter().zip(["a", "b"]).map(image).collect();
            let options = BackupOptions {
                kind: if full == Some(number) { KindChoice::Full } else { KindChoice::Auto },
                block_size: Some(16384).filter(|_| number == 0),
                resources: resources(),
                ..BackupOptions::default()
            };
            let reports = qdelta::backup_together(
                &repository,
                &images,
                &options,
                &Silent,
                &Cancel::default(),
            );
            let reports = reports.unwrap();
            points.push(reports[0].point);
            for (report, path) in reports.iter().zip(&paths) {
                let (point, bytes) = (report.point, std::fs::read(path).unwrap());
                states.push(State { point, disk: report.disk.parse().unwrap(), bytes });
            }
        }
        Self { _lab: lab, memory, states, points }
    }

    pub fn copy(&self) -> Memory {
        copy_of(&self.memory)
    }

    /// The disks of points that can be read, and are what they were.
    pub fn readable(&self, memory: &Memory) -> BTreeSet<(String, PointId)> {
        let repository = Repository::open_in(Arc::new(memory.clone())).unwrap();
        let catalog = repository.catalog();
        let is_right = |state: &&State| {
            let Ok(list) = catalog.points(&state.disk) else { return false };
            let Some(point) = list.points.iter().find(|it| it.id == state.point) else {
                return false;
            };
            let mut bytes = vec![0; state.bytes.len()];
            let read = qdelta::open_point(&catalog, point);
            let read = read.and_then(|reader| reader.read(&mut bytes, 0));
            assert!(read.is_err() || bytes == state.bytes, "{}@{}", state.disk, state.point);
            read.is_ok()
        };
        let right = self.states.iter().filter(is_right);
        right.map(|state| (state.disk.to_string(), state.point)).collect()
    }

    /// The points that are listed are whole, and all those are listed that must be. Gives their ids.
    pub fn check(&self, memory: &Memory, stay: &[PointId], story: &str) -> Vec<PointId> {
        let repository = Repository::open_in(Arc::new(memory.clone())).unwrap();
        let catalog = repository.catalog();
        let mut listed = Vec::new();
        for state in &self.states {
            let list = catalog.points(&state.disk).unwrap();
            assert!(list.damaged.is_empty(), "{story}: {list:?}");
            let Some(point) = list.points.iter().find(|point| point.id == state.point) else {
                assert!(!stay.contains(&state.point), "{story}: {} is lost", state.point);
                continue;
            };
            let reader = qdelta::open_point(&catalog, point)
                .unwrap_or_else(|error| panic!("{story}: {}", error.chain()));
            let mut bytes = vec![0; state.bytes.len()];
            reader.read(&mut bytes, 0).unwrap_or_else(|error| panic!("{story}: {}", error.chain()));
            assert!(bytes == state.bytes, "{story}: {}@{} differs", state.disk, state.point);
            listed.push(state.point);
        }
        listed.dedup();
        listed
    }

    pub fn verify(&self, memory: &Memory, story: &str) {
        let repository = Repository::open_in(Arc::new(memory.clone())).unwrap();
        let request = VerifyRequest {
            targets: Vec::new(),
            quick: false,
            scrub: None,
            resources: resources(),
        };
        let report = qdelta::verify(&repository, &request, &Silent, &Cancel::default()).unwrap();
        assert!(report.findings.is_empty(), "{story}: {:#?}", report.findings);
    }
}

/// Another storage with the same files.
pub fn copy_of(memory: &Memory) -> Memory {
    let copy = Memory::default();
    for name in memory.names() {
        let mut staged = copy.stage(&name).unwrap();
        staged.write_all(&memory.read(&name, u64::MAX).unwrap()).unwrap();
        staged.seal().unwrap();
        staged.publish(Publish::New).unwrap();
    }
    copy
}

fn change(path: &Path, random: &mut Random) {
    let mut bytes = std::fs::read(path).unwrap();
    for _ in 0..3 {
        let at = random.below(bytes.len() as u64 - 5000) as usize;
        bytes[at..at + 5000].copy_from_slice(&random.noise(5000));
    }
    let at = random.below(bytes.len() as u64 - 40_000) as usize;
    bytes[at..at + 40_000].fill(0);
    std::fs::write(path, bytes).unwrap();
}

fn image((path, name): (&PathBuf, &str)) -> ImageRequest {
    let open = OpenOptions { format: Some(qdelta::Format::Raw), ..OpenOptions::default() };
    ImageRequest { path: path.clone(), open, disk: Some(format!("vm/{name}").parse().unwrap()) }
}

fn merge(storage: Arc<dyn Storage>, from: PointId, into: PointId) -> qdelta::Result<()> {
    let repository = Repository::open_in(storage)?;
    let request = MergeRequest {
        guest: "vm".parse()?,
        from: from.to_string().parse()?,
        into: into.to_string().parse()?,
        dry_run: false,
        options: MergeOptions { level: 1, resources: resources() },
    };
    merge::run(&repository, &request, &Silent, &Cancel::default()).map(drop)
}

/// One try: a fault at call number `call`. Gives whether that many calls were made.
fn try_at(
    scene: &Scene,
    (from, into): (usize, usize),
    (call, fault): (u64, Fault),
    cuts: bool,
) -> bool {
    let story = format!("{from}..{into}, call {call}, {fault:?}, power cut: {cuts}");
    let absorbed = &scene.points[from..into];
    let stay: Vec<PointId> =
        scene.points.iter().filter(|point| !absorbed.contains(point)).copied().collect();
    let (from, into) = (scene.points[from], scene.points[into]);
    let memory = scene.copy();
    let faulty = Arc::new(Faulty::new(Arc::new(memory.clone()), call, fault));
    let outcome = merge(Arc::clone(&faulty) as Arc<dyn Storage>, from, into);
    let reached = faulty.reached();
    drop(faulty);
    if cuts {
        memory.cut_power();
    }
    let listed = scene.check(&memory, &stay, &story);
    if outcome.is_ok() && !reached {
        assert_eq!(listed, stay, "{story}");
    }
    // The next one does what is left, or finds that all is done.
    if let Err(error) = merge(Arc::new(memory.clone()), from, into) {
        let is_done = [ErrorKind::NotFound, ErrorKind::Usage].contains(&error.kind());
        assert!(is_done, "{story}: {}", error.chain());
    }
    assert_eq!(scene.check(&memory, &stay, &story), stay, "{story}");
    scene.verify(&memory, &story);
    let archives = memory.names().into_iter();
    let archives = archives.filter(|name| name.last().ends_with(".qdelta")).count();
    let disks = scene.states.iter().filter(|state| stay.contains(&state.point)).count();
    assert_eq!(archives, disks, "{story}: {:?}", memory.names());
    reached
}

/// `QDELTA_SWEEP=9` tries every fault at every call; otherwise each call is tried by some.
fn sweep_over(range: (usize, usize)) {
    let scene = Scene::new(None);
    let step = 9_u64.div_ceil(sweep());
    let variants = FAULTS.into_iter().flat_map(|fault| {
        [false, true]
            .into_iter()
            .filter(move |cuts| fault.kills || !cuts)
            .map(move |cuts| (fault, cuts))
    });
    for (phase, (fault, cuts)) in (0..).zip(variants) {
        let mut call = phase % step;
        while try_at(&scene, range, (call, fault), cuts) {
            call += step;
        }
        assert!(call > 40, "only {call} calls were made");
    }
}

#[test]
fn a_merge_in_the_middle_survives_a_fault_at_every_call() {
    sweep_over((1, 3));
}

/// The first point has one disk, the others two.
#[test]
fn a_merge_of_all_points_survives_a_fault_at_every_call() {
    sweep_over((0, 4));
}
