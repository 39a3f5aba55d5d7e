//! What a backup leaves for the next one, so that a long chain costs a night no more than a short one.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use qdelta_formats::archive::{ArchiveId, GroupIndex, Kind};

use super::*;
use crate::base::observer::Silent;
use crate::disk::image::Format;
use crate::vault::point::Before;
use crate::vault::repository::storage::Local;
use crate::vault::repository::storage::Wait;
use crate::vault::repository::storage::faulty::Faulty;
use crate::vault::repository::{Pin, PointId};

/// A raw disk of some groups, and a repository with three points of it.
struct Life {
    dir: tempfile::TempDir,
    repository: Repository,
}

impl Life {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let repository = Repository::init(&dir.path().join("repo")).unwrap();
        let repository = repository.with_state(&dir.path().join("state"));
        let life = Self { dir, repository };
        File::create(life.image()).unwrap().set_len(40 << 20).unwrap();
        for place in [0, 5 << 20, 39 << 20] {
            life.write(place, 7);
            life.back_up();
        }
        life
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("vm.raw")
    }

    fn write(&self, place: u64, byte: u8) {
        let file = File::options().write(true).open(self.image()).unwrap();
        file.write_all_at(&[byte; 300_000], place).unwrap();
    }

    fn back_up(&self) -> BackupReport {
        self.back_up_to(&self.repository)
    }

    fn back_up_to(&self, repository: &Repository) -> BackupReport {
        let open = OpenOptions { format: Some(Format::Raw), ..OpenOptions::default() };
        let image = ImageRequest { path: self.image(), open, disk: Some("vm".parse().unwrap()) };
        let options = Options { block_size: Some(4096), ..Options::default() };
        run(repository, &BackupRequest { image, options }, &Silent, &Cancel::default()).unwrap()
    }

    /// Makes a point, and gives how many calls of the storage that took.
    fn calls(&self) -> u64 {
        let storage = Arc::new(Faulty::counting(Arc::new(Local::new(self.repository.path()))));
        let repository = Repository::open_in(storage.clone()).unwrap();
        self.back_up_to(&repository.with_state(&self.dir.path().join("state")));
        storage.calls()
    }

    /// The id of the second point.
    fn middle(&self) -> PointId {
        self.repository.catalog().points(&"vm/disk".parse().unwrap()).unwrap().points[1].id
    }

    fn before(&self) -> Result<Before> {
        let catalog = self.repository.catalog();
        let newest = catalog.newest(&"vm/disk".parse().unwrap()).unwrap();
        Before::open(&catalog, &newest)
    }

    fn folder(&self) -> PathBuf {
        self.repository.path().join("vm/disk")
    }

    fn summary(&self) -> PathBuf {
        self.dir.path().join("state").join(self.repository.id()).join("vm+disk.summary")
    }

    /// The archives, oldest first.
    fn archives(&self) -> Vec<PathBuf> {
        let names = fs::read_dir(self.folder()).unwrap().map(|entry| entry.unwrap().path());
        let mut names: Vec<_> = names.filter(|path| path.extension().is_some()).collect();
        names.sort();
        names
    }
}

/// What is in the summary decides which blocks a backup stores: a wrong one would lose changes.
#[test]
fn a_summary_says_what_the_chain_says() {
    let life = Life::new();
    let summed_up = life.before().unwrap();
    assert!(summed_up.is_summed_up());
    fs::remove_file(life.summary()).unwrap();
    let read = life.before().unwrap();
    assert!(!read.is_summed_up());
    assert_eq!(summed_up.archives(), 3);
    assert_eq!(read.archives(), 3);
    assert_eq!(summed_up.geometry(), read.geometry());
    assert_eq!(summed_up.nonzero().unwrap(), read.nonzero().unwrap());
    let (mut one, mut other) = (summed_up.digests(), read.digests());
    for group in (0..read.geometry().group_count()).map(GroupIndex) {
        assert_eq!(one.of(group).unwrap(), other.of(group).unwrap());
        assert_eq!(one.group(group).unwrap(), other.group(group).unwrap());
    }
    // A backup that had to read the chain leaves a summary again.
    life.write(20 << 20, 9);
    life.back_up();
    assert!(life.before().unwrap().is_summed_up());
}

#[test]
fn a_summary_that_may_be_wrong_is_not_believed() {
    let life = Life::new();
    let sound = fs::read(life.summary()).unwrap();
    for at in [0, 8, 30, sound.len() / 2, sound.len() - 1] {
        let mut bad = sound.clone();
        bad[at] ^= 1;
        fs::write(life.summary(), bad).unwrap();
        assert!(!life.before().unwrap().is_summed_up(), "byte {at}");
    }
    fs::write(life.summary(), &sound).unwrap();
    assert!(life.before().unwrap().is_summed_up());
    // One of an earlier point.
    life.write(0, 8);
    life.back_up();
    fs::write(life.summary(), &sound).unwrap();
    assert!(!life.before().unwrap().is_summed_up());
}

/// Where the chain is not what it was, a backup must notice as if there were no summary: it begins
/// anew rather than to add to a chain that can't be restored.
#[test]
fn a_summary_hides_no_damage_of_the_chain() {
    let touch = |path: &Path| {
        let file = File::options().write(true).open(path).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    };
    let life = Life::new();
    touch(&life.archives()[1]);
    assert!(!life.before().unwrap().is_summed_up(), "a file that may have been written to");

    let life = Life::new();
    let archive = &life.archives()[1];
    let len = archive.metadata().unwrap().len();
    let file = File::options().write(true).open(archive).unwrap();
    // In the index, which is all that a backup reads of an archive.
    file.write_all_at(&[0x55; 40], len - 200).unwrap();
    assert_eq!(life.before().unwrap_err().kind(), ErrorKind::Damaged);
    assert!(life.back_up().broken_chain);

    let life = Life::new();
    fs::remove_file(&life.archives()[0]).unwrap();
    assert_eq!(life.before().unwrap_err().kind(), ErrorKind::Damaged);
    let report = life.back_up();
    assert!(report.broken_chain);
    assert_eq!(report.kind, Kind::Full);
}

/// A merge puts another archive in a point's place, and the one before lies there until nobody reads it:
/// a summary of the old chain was believed, whatever had become of the new archive.
#[test]
fn a_summary_is_believed_only_for_the_archives_that_manifests_name() {
    let life = Life::new();
    let (domain, disk) = ("vm".parse().unwrap(), "disk".parse().unwrap());
    // A file's time is no finer than the kernel's clock ticks.
    std::thread::sleep(std::time::Duration::from_millis(20));
    let lock = life.repository.lock(&domain, Wait::UNHEARD).unwrap();
    let (mut manifest, version) = life.repository.versioned(&domain, life.middle()).unwrap();
    let record = manifest.disks.iter_mut().find(|record| record.disk == disk).unwrap();
    let old = life.folder().join(&record.archive);
    record.archive_id = ArchiveId([9; 16]);
    record.archive = record.archive.split_at(record.archive.len() - 15).0.to_owned();
    record.archive.push_str("09090909.qdelta");
    let new = life.folder().join(&record.archive);
    fs::copy(&old, &new).unwrap();
    life.repository.replace(&lock, version, &manifest).unwrap();
    assert!(old.exists() && !life.before().unwrap().is_summed_up());
    fs::remove_file(&new).unwrap();
    assert_eq!(life.before().unwrap_err().kind(), ErrorKind::Damaged);
}

/// A pin of any point of a domain changes a manifest, and no chain.
#[test]
fn a_summary_stays_true_when_a_point_is_marked() {
    let life = Life::new();
    std::thread::sleep(std::time::Duration::from_millis(20));
    let lock = life.repository.lock(&"vm".parse().unwrap(), Wait::UNHEARD).unwrap();
    let pin = Pin { holder: None, at: jiff::Timestamp::UNIX_EPOCH, reason: None, until: None };
    let marked = life.repository.mark(&lock, life.middle(), |marks| {
        marks.pin(pin);
        Ok(())
    });
    assert_eq!(marked.unwrap().pins.len(), 1);
    assert!(life.before().unwrap().is_summed_up());
}

/// A night at 1,600 points listed each folder several times, and read manifests and archives: it took three
/// times as long as at ten. What is left is one look at each archive of the chain.
#[test]
fn a_night_looks_at_each_archive_of_its_chain_once_and_at_nothing_else_more_often() {
    let life = Life::new();
    let few = life.calls();
    for _ in 0..30 {
        life.back_up();
    }
    let many = life.calls();
    // A write more or less: numbers in a manifest have more digits or fewer.
    assert!(many <= few + 31 + 2, "{few} calls with few points, {many} with 31 more");
}

/// A full or read-only folder of this host's state was told in a log that nobody reads, and every night
/// opened the whole chain. The point itself needs nothing of that folder.
#[test]
fn a_summary_that_cannot_be_written_is_a_warning_and_costs_no_backup() {
    let life = Life::new();
    let state = life.dir.path().join("state");
    fs::remove_dir_all(&state).unwrap();
    fs::write(&state, "in the way").unwrap();
    life.write(20 << 20, 9);
    let report = life.back_up();
    let [warning] = &report.warnings[..] else { panic!("{:?}", report.warnings) };
    assert_eq!(warning.code, Code::NoSummary);
    assert!(warning.text.contains(state.to_str().unwrap()), "{}", warning.text);
    assert!(warning.advice.as_ref().unwrap().contains("--state"), "{warning:?}");
    assert_eq!(life.archives().len(), 4);
    assert!(!life.before().unwrap().is_summed_up());
}

/// Summaries of disks and repositories that are gone stayed for ever.
#[test]
fn old_summaries_go_when_a_new_one_comes() {
    let life = Life::new();
    let state = life.dir.path().join("state");
    let old = SystemTime::now() - std::time::Duration::from_secs(200 * 24 * 60 * 60);
    let make = |name: &str, time: SystemTime| {
        let path = state.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        File::create(&path).unwrap().set_modified(time).unwrap();
        path
    };
    let own = life.repository.id();
    let gone = [make(&format!("{own}/vm+old.summary"), old), make("aa/x+y.summary", old)];
    let stays = [
        make(&format!("{own}/vm+new.summary"), SystemTime::now()),
        make("bb/x+y.summary", SystemTime::now()),
        make("cc/x.frozen", old),
    ];
    // A disk that has its summary already looks at nothing else.
    life.back_up();
    assert!(gone.iter().chain(&stays).all(|path| path.exists()));
    fs::remove_file(life.summary()).unwrap();
    life.back_up();
    assert!(gone.iter().all(|path| !path.exists()) && !state.join("aa").exists());
    assert!(stays.iter().all(|path| path.exists()) && life.summary().exists());
}
