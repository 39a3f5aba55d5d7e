//! A point's disk, read anywhere, against a model.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use qdelta_formats::archive::Kind;

use super::*;
use crate::disk::io::OpenFiles;
use crate::vault::archive::Reader;
use crate::vault::archive::testing::{Disk, archive, metadata};

const BLOCK: u32 = 4096;

/// A chain in files, and the bytes of its disk.
struct Lab {
    dir: tempfile::TempDir,
    paths: Vec<PathBuf>,
    bytes: Vec<u8>,
    /// For each archive one of the same layout whose noise is other noise, every checksum right: only
    /// digests tell the two apart.
    twins: Vec<Vec<u8>>,
}

impl Lab {
    /// A chain of `len` archives of a disk of three groups, which is shorter for a while.
    fn new(len: u8) -> Self {
        Self::made(len, |id, disk, random| {
            for _ in 0..if id == 1 { 1200 } else { 25 } {
                let seed = if random.u8(0..5) == 0 { 0 } else { random.u32(1..) };
                disk.write(random.usize(0..disk.blocks.len()), seed);
            }
        })
    }

    /// The same of a disk without holes: frames of noise, which are stored as they are, and of what
    /// compresses, by turns.
    fn filled(len: u8) -> Self {
        Self::made(len, |id, disk, random| match id {
            1 => (0..disk.blocks.len()).for_each(|block| {
                let seed = random.u32(1..1 << 30) * 2;
                disk.write(block, if block / 64 % 2 == 0 { seed } else { seed + 1 });
            }),
            _ => (0..25).for_each(|_| {
                disk.write(random.usize(0..disk.blocks.len()), random.u32(1..));
            }),
        })
    }

    fn made(len: u8, mut change: impl FnMut(u8, &mut Disk, &mut fastrand::Rng)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut random = fastrand::Rng::with_seed(7);
        let size = 2600 * u64::from(BLOCK) - 512;
        let mut disk = Disk::new(size, BLOCK);
        let mut before = disk.clone();
        let (mut paths, mut twins, mut parent) = (Vec::new(), Vec::new(), None);
        for id in 1..=len {
            match id {
                40 => disk.resize(1500 * u64::from(BLOCK)),
                60 => disk.resize(size),
                _ => {}
            }
            change(id, &mut disk, &mut random);
            let kind = if id == 1 { Kind::Full } else { Kind::Incremental };
            let link = parent.as_ref().map(|(metadata, root)| (metadata, *root));
            let of_this = metadata(id, kind, disk.geometry, link);
            let path = dir.path().join(format!("{id:03}.qda"));
            fs::write(&path, archive(&of_this, &before, &disk)).unwrap();
            paths.push(path);
            twins.push(archive(&of_this, &other_noise(&before), &other_noise(&disk)));
            parent = Some((of_this, disk.root()));
            before = disk.clone();
        }
        let whole = (0..disk.blocks.len()).flat_map(|block| disk.content(block).bytes(BLOCK));
        let bytes = whole.take(disk.geometry.virtual_size() as usize).collect();
        Self { dir, paths, bytes, twins }
    }

    fn chain(&self) -> Chain {
        let files = Arc::new(OpenFiles::default());
        let open = |path: &PathBuf| {
            let file: Arc<dyn ReadAt> = Arc::new(files.open(path).unwrap());
            Arc::new(Reader::open(file).unwrap())
        };
        Chain::new(self.paths.iter().map(open).collect()).unwrap()
    }

    /// A reader that holds as little as one can.
    fn forgetful(&self) -> PointReader {
        PointReader::sharing(self.chain(), &Arc::new(Caches::new(0, 0))).unwrap()
    }

    /// All ranges that some archive stores.
    fn data(reader: &PointReader) -> Vec<Range<u64>> {
        let runs = reader.extents(0..u64::MAX, usize::MAX).unwrap();
        let data = runs.into_iter().filter(|run| run.content == Content::Data);
        data.map(|run| run.range).collect()
    }

    /// Reads at random; says whether it could. What is read is right.
    fn read(&self, reader: &PointReader, random: &mut fastrand::Rng) -> bool {
        let offset = random.usize(0..self.bytes.len() + 5000);
        let len = [1, 512, 4096, 4096, 70_000][random.usize(0..5)];
        let mut out = vec![0xee; len];
        let range = offset as u64..(offset + len) as u64;
        let lent = match random.bool() {
            true => reader.lend(range, usize::MAX).map(|lent| lent.map(|parts| joined(&parts))),
            false => Ok(None),
        };
        let read = lent.and_then(|lent| match lent {
            Some(lent) => {
                out = lent;
                Ok(out.len())
            }
            None => reader.read(&mut out, offset as u64),
        });
        let count = match read {
            Ok(count) => count,
            // An archive that was cut short while it was open was said to be an I/O error.
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Damaged, "{}", error.chain());
                return false;
            }
        };
        let expected = self.bytes.get(offset..).unwrap_or_default();
        let expected = &expected[..expected.len().min(len)];
        assert!(out[..count] == *expected, "{len} bytes at {offset}");
        true
    }
}

fn joined(parts: &[Proved]) -> Vec<u8> {
    parts.iter().flat_map(|part| part.iter().copied()).collect()
}

/// The disk with other bytes wherever a block is noise, which no compressor makes shorter.
fn other_noise(disk: &Disk) -> Disk {
    let mut other = disk.clone();
    other.blocks.iter_mut().filter(|block| block.seed % 2 == 1).for_each(|block| block.seed ^= 2);
    other
}

#[test]
fn any_range_of_a_point_is_read_as_it_was() {
    let lab = Lab::new(100);
    for reader in [PointReader::new(lab.chain()).unwrap(), lab.forgetful()] {
        let mut whole = vec![1; lab.bytes.len() + 10];
        assert_eq!(reader.read(&mut whole, 0).unwrap(), lab.bytes.len());
        assert!(whole[..lab.bytes.len()] == lab.bytes);
        assert_eq!(reader.read(&mut whole, lab.bytes.len() as u64).unwrap(), 0);
        std::thread::scope(|scope| {
            for seed in 0..8 {
                let (lab, reader) = (&lab, &reader);
                scope.spawn(move || {
                    let mut random = fastrand::Rng::with_seed(seed);
                    assert!((0..200).all(|_| lab.read(reader, &mut random)));
                });
            }
        });
    }
}

#[test]
fn bytes_are_lent_where_they_lie_as_far_as_memory_allows() {
    for lab in [Lab::new(20), Lab::filled(1), Lab::filled(8)] {
        for reader in [PointReader::new(lab.chain()).unwrap(), lab.forgetful()] {
            for range in Lab::data(&reader) {
                let range = range.start..range.end.min(range.start + (600 << 10));
                let lent = reader.lend(range.clone(), usize::MAX).unwrap().unwrap();
                assert!(joined(&lent) == lab.bytes[range.start as usize..range.end as usize]);
                let some = reader.lend(range.clone(), 300 << 10).unwrap();
                let kept: usize = lent.iter().map(|part| part.frame.bytes.capacity()).sum();
                assert!(some.is_some() || kept > 300 << 10);
                assert!(reader.lend(range, 60 << 10).unwrap().is_none());
            }
            let end = lab.bytes.len() as u64;
            assert!(reader.lend(end - 1..end + 1, usize::MAX).unwrap().is_none());
        }
    }
    let lab = Lab::new(1);
    let reader = PointReader::new(lab.chain()).unwrap();
    let end = lab.bytes.len() as u64;
    assert!(reader.lend(0..end, usize::MAX).unwrap().is_none(), "zeros lie nowhere");
}

/// A client that copied a whole disk took the place of everything that others read again and again.
#[test]
fn a_copy_of_the_disk_leaves_the_cache_to_what_is_read_in_parts() {
    let lab = Lab::filled(1);
    let span = 64 * u64::from(BLOCK);
    let caches = Arc::new(Caches::new(STATES, PARTS as u64 * span));
    let reader = PointReader::sharing(lab.chain(), &caches).unwrap();
    let mut block = vec![0; BLOCK as usize];
    reader.read(&mut block, 0).unwrap();
    let before = block.clone();
    for number in 1..lab.bytes.len() as u64 / span {
        let lent = reader.lend(number * span..(number + 1) * span, usize::MAX).unwrap().unwrap();
        assert_eq!(joined(&lent).len() as u64, span);
    }
    let len = fs::metadata(&lab.paths[0]).unwrap().len();
    let file = File::options().write(true).open(&lab.paths[0]).unwrap();
    file.write_all_at(&vec![0xff; len as usize], 0).unwrap();
    reader.read(&mut block, 0).unwrap();
    assert!(block == before);
    // A place on the shelf is made for it first, maybe that of the other one: it comes last.
    assert!(reader.read(&mut block, span).is_err(), "the archive can't be read any more");
}

#[test]
fn extents_cover_the_disk_and_holes_read_as_zeros() {
    let lab = Lab::new(70);
    let reader = PointReader::new(lab.chain()).unwrap();
    let (mut at, end) = (0, lab.bytes.len() as u64);
    let mut seen = Vec::new();
    while at < end {
        let runs = reader.extents(at..u64::MAX, 7).unwrap();
        assert!(!runs.is_empty() && runs.len() <= 7);
        for run in runs {
            assert!(run.range.start == at && run.range.end > at && run.range.end <= end);
            let bytes = &lab.bytes[run.range.start as usize..run.range.end as usize];
            let has_data = bytes.iter().any(|byte| *byte != 0);
            assert_eq!(run.content, if has_data { Content::Data } else { Content::Zero });
            at = run.range.end;
            seen.push(run);
        }
    }
    assert!(seen.len() > 100, "{}", seen.len());
    assert_eq!(reader.extents(end..end + 1, 9).unwrap(), []);
    let middle = reader.extents(5000..5001, 9).unwrap();
    assert_eq!(middle.len(), 1);
    assert_eq!(middle[0].range, 5000..5001);
}

/// Ways to damage an archive and to mend it again.
fn damage(lab: &Lab, random: &mut fastrand::Rng) {
    let number = random.usize(0..lab.paths.len());
    let path = &lab.paths[number];
    let (kept, other) = (lab.dir.path().join("kept"), lab.dir.path().join("other"));
    let bytes = fs::read(path).unwrap();
    let file = File::options().write(true).open(path).unwrap();
    let pause = || std::thread::sleep(std::time::Duration::from_millis(2));
    match random.u8(0..7) {
        // Frames alone, or the index with them. An archive's frames come first.
        way @ (5 | 6) => {
            let twin = &lab.twins[number];
            let len = if way == 5 { twin.len() / 2 } else { twin.len() };
            if twin.len() == bytes.len() {
                file.write_all_at(&twin[..len], 0).unwrap();
                pause();
            }
        }
        0 | 1 => {
            let at = random.usize(0..bytes.len());
            file.write_all_at(&[!bytes[at]], at as u64).unwrap();
            pause();
        }
        2 => {
            file.set_len(random.u64(0..bytes.len() as u64)).unwrap();
            pause();
        }
        3 => {
            fs::hard_link(path, &kept).unwrap();
            let another = &lab.paths[random.usize(0..lab.paths.len())];
            fs::copy(another, &other).unwrap();
            fs::rename(&other, path).unwrap();
            pause();
            fs::rename(&kept, path).unwrap();
        }
        _ => {
            fs::hard_link(path, &kept).unwrap();
            fs::remove_file(path).unwrap();
            pause();
            fs::rename(&kept, path).unwrap();
        }
    }
    file.write_all_at(&bytes, 0).unwrap();
}

#[test]
fn damage_while_it_is_read_is_an_error_and_never_a_wrong_byte() {
    let lab = Lab::new(100);
    let len = |path: &Path| fs::metadata(path).unwrap().len();
    let pairs = lab.paths.iter().zip(&lab.twins);
    assert!(pairs.filter(|(path, twin)| len(path) == twin.len() as u64).count() > 50);
    let reader = lab.forgetful();
    let (done, read, refused) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for seed in 0..8 {
            let (lab, reader, done, read, refused) = (&lab, &reader, &done, &read, &refused);
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(seed);
                while !done.load(Ordering::Relaxed) {
                    let counter = if lab.read(reader, &mut random) { read } else { refused };
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut random = fastrand::Rng::with_seed(99);
        let mut rounds = 0;
        while rounds < 300 || (rounds < 20_000 && refused.load(Ordering::Relaxed) == 0) {
            damage(&lab, &mut random);
            rounds += 1;
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(read.into_inner() > 0 && refused.into_inner() > 0);
    let mut random = fastrand::Rng::with_seed(100);
    assert!((0..100).all(|_| lab.read(&reader, &mut random)), "it is whole again");
}

/// Digests that agree with each other and not with the root: no group would find that out.
#[test]
fn the_root_proves_the_digests_of_the_groups() {
    let lab = Lab::new(3);
    let chain = lab.chain();
    let groups = proved_groups(&chain).unwrap();
    assert_eq!(groups.len(), 3);
    let newest = fs::read(&lab.paths[2]).unwrap();
    let at = newest.windows(32).position(|it| *it == groups[0].0).unwrap();
    let file = File::options().write(true).open(&lab.paths[2]).unwrap();
    file.write_all_at(&[!newest[at]], at as u64).unwrap();
    let error = PointReader::new(chain).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(error.chain().contains("003.qda"), "{}", error.chain());
}
