//! A power cut, or a kill, at any moment of a change.
//!
//! A change runs on a file in memory that remembers every write and sync. What a kill leaves is
//! every prefix of that; what a power cut leaves is everything up to a sync and, of the writes
//! behind it, any sectors. QEMU must find each of these images clean or at worst leaking, with the
//! disk, the snapshots and the bitmaps that were there before.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use qdelta::disk::edit::{self, ImageFile, bitmap, snapshot};
use qdelta::disk::io::faulty::{Fault, FaultyStore};
use qdelta::disk::io::recording::{Call, RecordingStore};

use super::{Random, Shape, Verdict, check, content, effort, qemu_io, run, text};

const SECTOR: usize = 512;
/// So many clusters of the smallest images are rewritten.
const REWRITTEN: u64 = 30;

/// What is done to an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    TakeSnapshot,
    DeleteSnapshot,
    AddBitmap,
    RemoveBitmap,
    RemoveLastBitmap,
    Rewrite,
}

use Deed::{AddBitmap, DeleteSnapshot, RemoveBitmap, RemoveLastBitmap, Rewrite, TakeSnapshot};

impl Deed {
    fn run(self, image: &ImageFile) -> qdelta::Result<()> {
        match self {
            TakeSnapshot => snapshot::create(image, "new", SystemTime::now()).map(drop),
            DeleteSnapshot => snapshot::delete(image, b"1"),
            AddBitmap => bitmap::create(image, "new", 65536),
            RemoveBitmap | RemoveLastBitmap => bitmap::remove(image, "one"),
            // Some of the first clusters, in no order: written and zeroed by turns.
            Rewrite => edit::rewrite(image, false, |rewrite| {
                let size = rewrite.cluster_size() as usize;
                for number in (0..REWRITTEN).step_by(3).chain((1..REWRITTEN).step_by(9)) {
                    match number % 2 {
                        0 => rewrite.write(number, &vec![number as u8 | 1; size])?,
                        _ => rewrite.zero(number)?,
                    }
                }
                Ok(())
            }),
        }
    }

    /// Makes the image that it is done to.
    fn prepare(self, shape: &Shape, path: &Path, random: &mut Random) {
        shape.create(path);
        qemu_io(path, &shape.writes(random, 8));
        run("qemu-img", &["snapshot", "-c", "old", text(path)]);
        let wanted = matches!(self, RemoveBitmap | RemoveLastBitmap) || random.below(2) == 0;
        if wanted && !shape.is_version_2() {
            run("qemu-img", &["bitmap", "--add", text(path), "one"]);
        }
        if self == RemoveBitmap {
            run("qemu-img", &["bitmap", "--add", text(path), "two"]);
        }
        qemu_io(path, &shape.writes(random, 8));
    }
}

/// The image before a deed, and what happened to the file.
struct Film {
    before: Vec<u8>,
    calls: Vec<Call>,
}

impl Film {
    fn take(deed: Deed, path: &Path) -> Self {
        let before = std::fs::read(path).unwrap();
        let store = Arc::new(RecordingStore::new(before.clone(), path));
        deed.run(&ImageFile::over(store.clone())).unwrap();
        std::fs::write(path, store.bytes()).unwrap();
        Self { before, calls: store.calls() }
    }

    /// The file after the first `count` calls.
    fn prefix(&self, count: usize) -> Vec<u8> {
        let mut file = self.before.clone();
        self.calls[..count].iter().for_each(|call| call.apply(&mut file));
        file
    }

    /// The file after a power cut at call number `at`: of what was not synced, some sectors.
    fn torn(&self, at: usize, random: &mut Random) -> Vec<u8> {
        let is_sync = |call: &Call| *call == Call::Sync;
        let synced = self.calls[..at].iter().rposition(is_sync).map_or(0, |it| it + 1);
        let mut file = self.prefix(synced);
        // Sometimes most get there, sometimes few; and sometimes the last before the others.
        let share = 1 + random.below(15);
        let overtakes = random.below(2) == 0;
        for (index, call) in self.calls[..at].iter().enumerate().skip(synced) {
            let Call::Write { offset, bytes } = call else { continue };
            let whole = overtakes && index + 1 == at;
            for (number, sector) in (0..).zip(bytes.chunks(SECTOR)) {
                if whole || random.below(16) < share {
                    let offset = offset + number * SECTOR as u64;
                    Call::Write { offset, bytes: sector.to_vec() }.apply(&mut file);
                }
            }
        }
        file
    }

    /// What a kill or a power cut may leave. Of each kind at most `max`.
    fn remains(&self, max: u64, random: &mut Random) -> Vec<Vec<u8>> {
        let count = self.calls.len();
        let mut seen = HashSet::new();
        let mut files = Vec::new();
        // The last calls are the ones that matter most.
        let last = count.saturating_sub(8)..=count;
        let others: Vec<_> =
            (0..max.saturating_sub(8)).map(|_| random.below(count as u64) as usize).collect();
        files.extend(last.clone().chain(others).map(|at| self.prefix(at)));
        for at in last {
            files.push(self.torn(at, random));
        }
        for _ in 0..max.saturating_sub(8) {
            files.push(self.torn(random.below(count as u64 + 1) as usize, random));
        }
        files.retain(|file| seen.insert(blake(file)));
        files
    }
}

/// The disk after [`Rewrite`].
fn rewritten(disk: &[u8], cluster: usize) -> Vec<u8> {
    let mut disk = disk.to_vec();
    for number in (0..REWRITTEN).step_by(3).chain((1..REWRITTEN).step_by(9)) {
        let byte = if number % 2 == 0 { number as u8 | 1 } else { 0 };
        disk[number as usize * cluster..][..cluster].fill(byte);
    }
    disk
}

fn blake(bytes: &[u8]) -> qdelta::formats::archive::Digest {
    qdelta::formats::archive::block_digest(bytes)
}

/// The names of the snapshots and the bitmaps with their flags, as QEMU lists them.
fn lists(path: &Path) -> (Vec<String>, Vec<String>) {
    let info = run("qemu-img", &["info", "--output=json", text(path)]);
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    let all = |list: &serde_json::Value| -> Vec<String> {
        let items = list.as_array().into_iter().flatten();
        items.map(|it| format!("{} {}", it["name"], it["flags"])).collect()
    };
    let bitmaps = &info["format-specific"]["data"]["bitmaps"];
    (all(&info["snapshots"]), all(bitmaps))
}

/// Everything that must stay.
struct Expected {
    disk: Vec<u8>,
    disk_after: Vec<u8>,
    old: Option<Vec<u8>>,
    before: (Vec<String>, Vec<String>),
    after: (Vec<String>, Vec<String>),
}

impl Expected {
    #[track_caller]
    fn assert_whole(&self, path: &Path, about: &str) {
        let lists = lists(path);
        assert!(lists == self.before || lists == self.after, "{about}: {lists:?}");
        let now = content(path, None);
        assert!(now == self.disk || now == self.disk_after, "{about}: the disk has changed");
        if let Some(old) = &self.old
            && lists.0.iter().any(|it| it.contains("old"))
        {
            assert!(content(path, Some("old")) == *old, "{about}: the snapshot has changed");
        }
    }
}

/// Films the deed and has QEMU judge what a power cut leaves of it. Gives how many leaked.
fn cut_power(deed: Deed, shape: &Shape, seed: u64, max: u64) -> u64 {
    let mut random = Random::new(seed);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.qcow2");
    let remains: PathBuf = folder.path().join("remains.qcow2");
    deed.prepare(shape, &path, &mut random);
    let about = format!("{deed:?} of {shape:?}, seed {seed:#x}");
    let has_old = lists(&path).0.iter().any(|it| it.contains("old"));
    let (disk, before) = (content(&path, None), lists(&path));
    let old = has_old.then(|| content(&path, Some("old")));
    let film = Film::take(deed, &path);
    assert_eq!(check(&path, &about), Verdict::Clean, "{about}");
    let disk_after = content(&path, None);
    assert!((disk_after != disk) == (deed == Rewrite), "{about}: the disk");
    let expected = Expected { disk, disk_after, old, before, after: lists(&path) };
    expected.assert_whole(&path, &about);
    let mut leaks = 0;
    for (number, file) in film.remains(max, &mut random).into_iter().enumerate() {
        let about = format!("{about}, remains {number}");
        std::fs::write(&remains, file).unwrap();
        leaks += u64::from(check(&remains, &about) == Verdict::Leaks);
        if random.below(6) == 0 {
            expected.assert_whole(&remains, &about);
        }
        if random.below(12) == 0 {
            // Life goes on, too.
            qemu_io(&remains, &shape.writes(&mut random, 5));
            check(&remains, &about);
        }
    }
    leaks
}

fn shapes() -> [Shape; 5] {
    [
        Shape::new("", 2 << 20),
        Shape::new("cluster_size=512", 256 << 10),
        Shape::new("cluster_size=4k,refcount_bits=4", 1 << 20),
        Shape::new("extended_l2=on,cluster_size=16k", 2 << 20),
        Shape::new("compat=0.10,cluster_size=1k", 512 << 10),
    ]
}

#[test]
fn a_power_cut_while_a_snapshot_is_taken() {
    for (seed, shape) in (100..).zip(shapes()) {
        assert_eq!(cut_power(TakeSnapshot, &shape, seed, 12 * effort()), 0);
    }
}

#[test]
fn a_power_cut_while_a_snapshot_is_deleted() {
    for (seed, shape) in (200..).zip(shapes()) {
        assert_eq!(cut_power(DeleteSnapshot, &shape, seed, 12 * effort()), 0);
    }
}

#[test]
fn a_power_cut_while_a_bitmap_is_changed() {
    for (seed, shape) in (300..).zip(shapes()) {
        if shape.is_version_2() {
            continue;
        }
        for deed in [AddBitmap, RemoveBitmap, RemoveLastBitmap] {
            cut_power(deed, &shape, seed, 9 * effort());
        }
    }
}

/// Of a disk that is changed as a whole, either all of it is there or nothing.
#[test]
fn a_power_cut_while_the_disk_is_rewritten() {
    for (seed, shape) in (400..).zip(shapes()) {
        cut_power(Rewrite, &shape, seed, 12 * effort());
    }
}

/// Every call fails once; whatever it was, the image is sound, and a second try works.
#[test]
fn a_call_that_fails() {
    for (deed, shape) in [
        (TakeSnapshot, Shape::new("cluster_size=4k", 256 << 10)),
        (DeleteSnapshot, Shape::new("cluster_size=4k", 256 << 10)),
        (AddBitmap, Shape::new("", 1 << 20)),
        (RemoveBitmap, Shape::new("", 1 << 20)),
        (Rewrite, Shape::new("cluster_size=4k", 256 << 10)),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image.qcow2");
        deed.prepare(&shape, &path, &mut Random::new(5));
        let before = std::fs::read(&path).unwrap();
        let disk = content(&path, None);
        for call in 0.. {
            let store = Arc::new(RecordingStore::new(before.clone(), &path));
            let faulty = FaultyStore::new(store.clone(), move |number| {
                (number == call).then_some(Fault::Error(5))
            });
            let failed = deed.run(&ImageFile::over(Arc::new(faulty))).is_err();
            let changes = store.calls();
            // Failing to read changes nothing; QEMU need not be asked.
            if changes.iter().any(|call| matches!(call, Call::Write { .. })) {
                std::fs::write(&path, store.bytes()).unwrap();
                check(&path, &format!("{deed:?}, call {call}"));
                let now = content(&path, None);
                assert!(now == disk || deed == Rewrite && now == rewritten(&disk, 4096));
                let image = ImageFile::open(&path).unwrap();
                if failed && call % 3 == 0 {
                    // The header may lead to the new state already.
                    let _ = deed.run(&image);
                    drop(image);
                    check(&path, &format!("{deed:?}, call {call}, again"));
                }
            } else {
                assert!(store.bytes() == before);
            }
            if !failed {
                break;
            }
        }
    }
}
