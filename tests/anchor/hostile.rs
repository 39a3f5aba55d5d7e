//! Images with damaged tables: writing into them ends in an error or not, but never in a panic, an
//! endless loop, or a change that is half done.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use qdelta::disk::edit::{ImageFile, bitmap, snapshot};
use qdelta::disk::io::recording::RecordingStore;

use super::{Random, Shape, qemu_io, run, seeds, text};

fn make(path: &Path, shape: &Shape, random: &mut Random) -> Vec<u8> {
    shape.create(path);
    qemu_io(path, &shape.writes(random, 6));
    run("qemu-img", &["snapshot", "-c", "old", text(path)]);
    run("qemu-img", &["bitmap", "--add", text(path), "one"]);
    qemu_io(path, &shape.writes(random, 6));
    std::fs::read(path).unwrap()
}

/// Puts a number that may do harm somewhere into the tables.
fn damage(bytes: &mut [u8], cluster: usize, random: &mut Random) {
    let clusters = bytes.len() / cluster;
    let at = match random.below(3) {
        // The header and its extensions.
        0 => random.below(600.min(bytes.len() as u64 - 8)) as usize,
        // The tables that stand at the beginning.
        1 => random.below((cluster * clusters.min(8)) as u64 - 8) as usize,
        _ => random.below(bytes.len() as u64 - 8) as usize,
    };
    let at = if random.below(4) == 0 { at } else { at / 8 * 8 };
    let place = random.below(clusters as u64) * cluster as u64;
    let value = match random.below(8) {
        0 => 0,
        1 => u64::MAX,
        2 => 1 << random.below(64),
        3 => place,
        4 => place | 1 << 63,
        5 => place | 1 << 62,
        6 => 0x00ff_ffff_ffff_fe00 & !(cluster as u64 - 1),
        _ => random.next(),
    };
    bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

#[test]
fn damaged_images() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.qcow2");
    for seed in seeds(3) {
        let mut random = Random::new(seed);
        for (options, cluster) in [("cluster_size=512", 512), ("cluster_size=4k", 4096)] {
            let sound = make(&path, &Shape::new(options, 256 << 10), &mut random);
            let (mut done, mut refused) = (0, 0);
            for round in 0..200 {
                let mut bytes = sound.clone();
                for _ in 0..=random.below(3) {
                    damage(&mut bytes, cluster, &mut random);
                }
                let store = Arc::new(RecordingStore::new(bytes.clone(), &path));
                let image = ImageFile::over(store.clone());
                let _ = bitmap::read(&image, "one", |_| Ok(()));
                let outcome = match round % 4 {
                    0 => snapshot::create(&image, "new", SystemTime::UNIX_EPOCH).map(drop),
                    1 => snapshot::delete(&image, b"1"),
                    2 => bitmap::create(&image, "new", 4096),
                    _ => bitmap::remove(&image, "one"),
                };
                match outcome {
                    Ok(()) => done += 1,
                    Err(_) => {
                        refused += 1;
                        let len = store.bytes().len();
                        assert!(len <= bytes.len(), "seed {seed:#x}, round {round}: it has grown");
                        assert!(
                            store.bytes()[..512] == bytes[..512],
                            "seed {seed:#x}, round {round}: a header is changed"
                        );
                    }
                }
            }
            assert!(done > 10 && refused > 10, "{done} were changed, {refused} refused");
        }
    }
}

/// A cluster that is in use counts as free. The first version put its bitmaps into such clusters of
/// the guest's, and its snapshots into those of other snapshots.
#[test]
fn counts_that_are_too_low() {
    const CLUSTER: usize = 4096;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.qcow2");
    let sound = make(&path, &Shape::new("cluster_size=4k", 128 << 10), &mut Random::new(4));
    let number = |at: usize| u64::from_be_bytes(sound[at..at + 8].try_into().unwrap()) as usize;
    const HEADER_REFCOUNT_TABLE_OFFSET: usize = 48;
    let counts = number(number(HEADER_REFCOUNT_TABLE_OFFSET));
    let mut tried = 0;
    for cluster in 0..sound.len() / CLUSTER {
        let count = counts + 2 * cluster;
        if sound[count..count + 2] == [0, 0] {
            continue;
        }
        tried += 1;
        let mut bytes = sound.clone();
        bytes[count..count + 2].fill(0);
        for act in 0..4 {
            let store = Arc::new(RecordingStore::new(bytes.clone(), &path));
            let image = ImageFile::over(store.clone());
            let outcome = match act {
                0 => snapshot::create(&image, "new", SystemTime::UNIX_EPOCH).map(drop),
                1 => snapshot::delete(&image, b"1"),
                2 => bitmap::create(&image, "new", 4096),
                _ => bitmap::remove(&image, "one"),
            };
            let error = outcome.expect_err("it was written into");
            assert_eq!(error.kind(), qdelta::ErrorKind::Image, "{error}");
            assert!(store.bytes() == bytes, "cluster {cluster} of the image, act {act}");
        }
    }
    assert!(tried > 20, "only {tried} clusters are in use");
}
