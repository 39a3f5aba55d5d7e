//! Nothing is written into an image whose reference counts are too low, with `qemu-img check` as the
//! judge of that; and every image that it finds sound is taken.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use qdelta::disk::edit::{self, ImageFile, bitmap, snapshot};
use qdelta::disk::io::recording::RecordingStore;

use super::{Random, Shape, output, qemu_io, run, seeds, shapes, text};

/// An image as bytes.
#[derive(Clone)]
struct Raw {
    bytes: Vec<u8>,
    cluster: usize,
    entry: usize,
}

const COPIED: u64 = 1 << 63;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

impl Raw {
    fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let bits = u32::from_be_bytes(bytes[20..24].try_into().unwrap());
        let is_extended = bytes[4..8] == [0, 0, 0, 3] && bytes[79] & 16 != 0;
        Self { bytes, cluster: 1 << bits, entry: if is_extended { 16 } else { 8 } }
    }

    fn number(&self, at: usize) -> u64 {
        u64::from_be_bytes(self.bytes[at..at + 8].try_into().unwrap())
    }

    fn set(&mut self, at: usize, value: u64) {
        self.bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
    }

    /// Where the first L2 table of the disk lies.
    fn l2(&self) -> usize {
        (self.number(self.number(40) as usize) & OFFSET) as usize
    }

    /// Where entry `index` of that table lies.
    fn at(&self, index: usize) -> usize {
        self.l2() + index * self.entry
    }

    /// Lets guest cluster `to` be what guest cluster `from` is.
    fn alias(&mut self, from: usize, to: usize) {
        let entry = self.bytes[self.at(from)..self.at(from) + self.entry].to_vec();
        let at = self.at(to);
        self.bytes[at..at + self.entry].copy_from_slice(&entry);
    }

    /// Sets a count of 16 bits.
    fn count(&mut self, host: u64, count: u8) {
        let block = self.number(self.number(48) as usize) as usize;
        let at = block + 2 * (host as usize / self.cluster);
        self.bytes[at..at + 2].copy_from_slice(&[0, count]);
    }
}

/// What can be done to an image that has a bitmap "one" and a snapshot of the id 1.
fn acts(bytes: &[u8], mut each: impl FnMut(qdelta::Result<()>, &[u8])) {
    for act in 0..6 {
        let store = Arc::new(RecordingStore::new(bytes.to_vec(), "image"));
        let image = ImageFile::over(store.clone());
        let done = match act {
            0 => snapshot::create(&image, "new", SystemTime::UNIX_EPOCH).map(drop),
            1 => snapshot::delete(&image, b"1"),
            2 => bitmap::create(&image, "new", 4096),
            3 => bitmap::remove(&image, "one"),
            4 => edit::rewrite(&image, false, |disk| disk.zero(0)),
            _ => edit::prove(&image),
        };
        each(done, &store.bytes());
    }
}

#[track_caller]
fn assert_refused(raw: &Raw, why: &str, about: &str) {
    acts(&raw.bytes, |done, bytes| {
        let error = done.expect_err(about);
        assert_eq!(error.kind(), qdelta::ErrorKind::Image, "{about}: {error}");
        assert!(error.chain().contains(why), "{about}: {}", error.chain());
        assert!(bytes == raw.bytes, "{about}: it was written into");
    });
}

#[track_caller]
fn assert_taken(raw: &Raw, about: &str) {
    acts(&raw.bytes, |done, _| {
        done.unwrap_or_else(|error| panic!("{about}: {}", error.chain()));
    });
}

fn assert_check(raw: &Raw, path: &Path, status: i32) {
    std::fs::write(path, &raw.bytes).unwrap();
    let said = output("qemu-img", &["check", "-f", "qcow2", text(path)]);
    assert_eq!(said.status.code(), Some(status), "{said:?}");
}

/// Two guest clusters had one host cluster between them that was counted once. A roll back of one of
/// them freed the cluster and said "proved": the next writes of QEMU destroyed the other. And what
/// QEMU wrote to one of them in place, a bitmap did not record for the other.
#[test]
fn two_guest_clusters_in_one_host_cluster() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.qcow2");
    for options in ["", "cluster_size=4k", "extended_l2=on,cluster_size=16k"] {
        Shape::new(options, 1 << 20).create(&path);
        qemu_io(&path, &["write -P 5 0 256k".to_owned(), "write -z 256k 128k".to_owned()]);
        run("qemu-img", &["bitmap", "--add", text(&path), "one"]);
        run("qemu-img", &["snapshot", "-c", "one", text(&path)]);
        // Most clusters are the disk's alone from now on.
        qemu_io(&path, &["write -P 6 0 256k".to_owned()]);
        let sound = Raw::read(&path);
        let last = (1 << 20) / sound.cluster - 1;
        let host = sound.number(sound.at(1)) & OFFSET;
        assert_taken(&sound, options);

        let mut raw = sound.clone();
        raw.alias(1, last);
        assert_refused(&raw, "is used 2 times, and its reference count is 1", options);
        // The tables do not say that it is theirs alone, so QEMU would not write in place, but free.
        let entry = raw.number(raw.at(1)) & !COPIED;
        raw.set(raw.at(1), entry);
        raw.set(raw.at(last), entry);
        assert_refused(&raw, "is used 2 times, and its reference count is 1", options);
        // Counted twice, it is sound.
        raw.count(host, 2);
        assert_check(&raw, &path, 0);
        assert_taken(&raw, options);
        // But for a table that says that nobody else uses it.
        raw.set(raw.at(1), entry | COPIED);
        assert_refused(&raw, "is used 2 times, and a table of the disk says once", options);
        // Also behind the zeros of a preallocated cluster.
        if sound.entry == 8 {
            let mut raw = sound.clone();
            raw.set(raw.at(last), host | 1);
            assert_refused(&raw, "is used 2 times, and its reference count is 1", options);
        }
        // What is counted too often is a leak, and harmless.
        let mut raw = sound.clone();
        raw.count(host, 3);
        assert_taken(&raw, options);
    }
}

/// The same with what is no data: a table of the disk, the counts themselves, a bitmap, and what only
/// a snapshot uses.
#[test]
fn a_guest_cluster_in_a_place_of_something_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.qcow2");
    Shape::new("", 1 << 20).create(&path);
    qemu_io(&path, &["write -P 5 0 512k".to_owned()]);
    run("qemu-img", &["bitmap", "--add", text(&path), "one"]);
    run("qemu-img", &["snapshot", "-c", "one", text(&path)]);
    let of_snapshot = {
        let raw = Raw::read(&path);
        raw.number(raw.at(1)) & OFFSET
    };
    qemu_io(&path, &["write -P 6 0 512k".to_owned()]);
    let sound = Raw::read(&path);
    assert_taken(&sound, "sound");
    let table_of_snapshot = {
        let l1 = sound.number(sound.number(64) as usize) as usize;
        sound.number(l1) & OFFSET
    };
    for (what, host) in [
        ("its own table", sound.l2() as u64),
        ("the table of the snapshot", table_of_snapshot),
        ("the L1 table", sound.number(40)),
        ("the header", 0x1_0000 * (sound.number(48) >> 16)),
        ("the counts", sound.number(sound.number(48) as usize)),
        ("the snapshot table", sound.number(64)),
    ] {
        let mut raw = sound.clone();
        raw.set(raw.at(15), host);
        // However often it is counted.
        raw.count(host, 2);
        assert_refused(&raw, "is used by something else, too", what);
    }
    let mut raw = sound.clone();
    raw.set(raw.at(15), of_snapshot | COPIED);
    assert_refused(&raw, "is used 2 times, and its reference count is 1", "the snapshot's data");
    raw.count(of_snapshot, 2);
    assert_refused(&raw, "and a table of the disk says once", "the snapshot's data");
}

/// Compressed clusters share host clusters, and each of them counts.
#[test]
fn compressed_clusters_count_once_each() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.qcow2");
    Shape::new("", 1 << 20).create(&path);
    let writes = (0..6).map(|number| format!("write -c -P 5 {}k 64k", 64 * number));
    qemu_io(&path, &writes.collect::<Vec<_>>());
    run("qemu-img", &["bitmap", "--add", text(&path), "one"]);
    run("qemu-img", &["snapshot", "-c", "one", text(&path)]);
    qemu_io(&path, &["write -P 6 64k 64k".to_owned()]);
    let sound = Raw::read(&path);
    assert_taken(&sound, "sound");
    let mut raw = sound.clone();
    raw.alias(0, 15);
    assert_refused(&raw, "its reference count is", "one more");
}

/// What `qemu-img check` finds sound is taken, and where it finds a count that is too low nothing is
/// written.
#[test]
fn qemu_is_the_judge() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.qcow2");
    let (mut taken, mut refused) = (0, 0);
    for seed in seeds(1) {
        let mut random = Random::new(seed);
        for shape in shapes() {
            shape.create(&path);
            qemu_io(&path, &shape.writes(&mut random, 20));
            let narrow = shape.options.contains("refcount_bits=2");
            for number in 0..if narrow { 1 } else { 2 } {
                run("qemu-img", &["snapshot", "-c", &format!("s{number}"), text(&path)]);
                qemu_io(&path, &shape.writes(&mut random, 8));
            }
            if !shape.is_version_2() {
                run("qemu-img", &["bitmap", "--add", text(&path), "one"]);
            }
            let sound = Raw::read(&path);
            for round in 0..12 {
                let about = format!("seed {seed:#x}, {shape:?}, round {round}");
                let mut raw = sound.clone();
                let entries = raw.cluster / raw.entry;
                for _ in 0..random.below(3) {
                    let (from, to) = (random.below(entries as u64), random.below(entries as u64));
                    match random.below(3) {
                        0 => raw.alias(from as usize, to as usize),
                        1 => {
                            let value = raw.number(raw.at(from as usize)) ^ COPIED;
                            raw.set(raw.at(from as usize), value);
                        }
                        _ => {
                            let block = raw.number(raw.number(48) as usize) as usize;
                            let at = block + random.below(120) as usize;
                            raw.bytes[at] = random.below(4) as u8;
                        }
                    }
                }
                std::fs::write(&path, &raw.bytes).unwrap();
                let check = output("qemu-img", &["check", "-f", "qcow2", text(&path)]);
                let said = String::from_utf8_lossy(&check.stdout).into_owned()
                    + &String::from_utf8_lossy(&check.stderr);
                let store = Arc::new(RecordingStore::new(raw.bytes.clone(), &path));
                let proved = edit::prove(&ImageFile::over(store));
                let is_low = said.lines().any(|line| line.starts_with("ERROR cluster"));
                match (check.status.code(), proved) {
                    (Some(0 | 3), Err(error)) => {
                        panic!("{about}: a sound image was refused: {}", error.chain())
                    }
                    (_, Ok(())) if is_low => panic!("{about}: it was taken: {said}"),
                    (_, Ok(())) => taken += 1,
                    (_, Err(_)) => refused += 1,
                }
            }
        }
    }
    assert!(taken > 10 && refused > 10, "{taken} were taken, {refused} refused");
}
