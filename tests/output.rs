//! Every output, with QEMU as the judge of what was written.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use qdelta::ErrorKind;
use qdelta::base::cancel::Cancel;
use qdelta::base::observer::Silent;
use qdelta::disk::create::{Discard, ImageWriter, Options, Plan, Stream, create};
use qdelta::disk::image::Format;
use qdelta::disk::sys::FileId;
use qdelta::formats::archive::{BlockIndex, Geometry};
use roaring::RoaringBitmap;

use crate::harness::files::unmount;

/// A disk in memory: the blocks that are not zero, each filled up to the block size.
struct Disk {
    geometry: Geometry,
    blocks: BTreeMap<u32, Vec<u8>>,
}

impl Disk {
    fn new(size: u64, block_size: u32, blocks: impl IntoIterator<Item = u32>) -> Self {
        let geometry = Geometry::new(size, block_size).unwrap();
        let fill = |block| {
            let mut bytes = vec![0; block_size as usize];
            let len = geometry.block_len(BlockIndex(block)) as usize;
            for (index, byte) in bytes[..len].iter_mut().enumerate() {
                *byte = (index as u32 ^ (index as u32 >> 8) ^ block.wrapping_mul(37)) as u8 | 1;
            }
            (block, bytes)
        };
        Self { geometry, blocks: blocks.into_iter().map(fill).collect() }
    }

    fn plan(&self) -> Plan {
        Plan::new(self.geometry, self.blocks.keys().copied().collect()).unwrap()
    }

    /// Writes the blocks from two threads, the later ones first, or in order by one.
    fn write_to(&self, writer: &dyn ImageWriter) {
        let write = |block: &u32, bytes: &[u8]| {
            writer.write(self.geometry.block_offset(BlockIndex(*block)), bytes).unwrap();
        };
        if writer.in_order() {
            return self.blocks.iter().for_each(|(block, bytes)| write(block, bytes));
        }
        std::thread::scope(|scope| {
            for odd in [0, 1] {
                scope.spawn(move || {
                    let mine = self.blocks.iter().rev().filter(|(block, _)| **block % 2 == odd);
                    mine.for_each(|(block, bytes)| write(block, bytes));
                });
            }
        });
    }

    /// The whole disk; only for small ones.
    fn bytes(&self) -> Vec<u8> {
        let mut disk = vec![0; self.geometry.virtual_size() as usize];
        for (block, bytes) in &self.blocks {
            let start = self.geometry.block_offset(BlockIndex(*block)) as usize;
            let len = self.geometry.block_len(BlockIndex(*block)) as usize;
            disk[start..start + len].copy_from_slice(&bytes[..len]);
        }
        disk
    }

    /// Restores to a new file.
    fn restore(&self, path: &Path, format: Format) {
        let options = Options { format, ..Options::default() };
        let writer = create(path, self.plan(), &options, &Silent).unwrap();
        self.write_to(writer.as_ref());
        writer.finish(&Cancel::default(), &Silent).unwrap();
    }
}

fn run(program: &str, arguments: &[&str], path: &Path) -> String {
    let output = Command::new(program).args(arguments).arg(path).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Disks of every awkward size, with blocks shorter and longer than a cluster.
fn awkward_disks() -> Vec<Disk> {
    let mut disks = Vec::new();
    for block_size in [4 << 10, 64 << 10, 2 << 20] {
        for size in [0, 1, 511, 512, 513, 4096, 65_535, 65_536, 65_537, (3 << 20) + 700] {
            let count = Geometry::new(size, block_size).unwrap().block_count() as u32;
            disks.push(Disk::new(size, block_size, []));
            disks.push(Disk::new(size, block_size, 0..count));
            disks.push(Disk::new(size, block_size, (0..count).filter(|it| it % 3 != 1)));
            disks.push(Disk::new(size, block_size, count.checked_sub(1)));
        }
    }
    disks
}

#[test]
fn a_raw_file_holds_the_disk_and_nothing_for_zeros() {
    let dir = tempfile::tempdir().unwrap();
    for (index, disk) in awkward_disks().iter().enumerate() {
        let path = dir.path().join(index.to_string());
        disk.restore(&path, Format::Raw);
        assert!(std::fs::read(&path).unwrap() == disk.bytes(), "disk {index}");
        let allocated = path.metadata().unwrap().blocks() * 512;
        // The filesystem may need some blocks of its own for the map of the holes.
        let data = disk.plan().data_bytes().next_multiple_of(4096);
        assert!(allocated <= data + 8192, "disk {index}: {allocated} for {data}");
    }
}

#[test]
fn qemu_finds_every_qcow2_file_sound_and_reads_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    for (index, disk) in awkward_disks().iter().enumerate() {
        let path = dir.path().join(format!("{index}.qcow2"));
        disk.restore(&path, Format::Qcow2);
        check_by_qemu(&path);
        let raw = path.with_extension("raw");
        let raw_name = raw.to_str().unwrap();
        let source = path.to_str().unwrap();
        run("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", source], Path::new(raw_name));
        let mut expected = disk.bytes();
        expected.resize(expected.len().next_multiple_of(512), 0);
        assert!(std::fs::read(&raw).unwrap() == expected, "disk {index}");
        for file in [path, raw] {
            std::fs::remove_file(file).unwrap();
        }
    }
}

fn check_by_qemu(path: &Path) {
    let found = run("qemu-img", &["check", "-f", "qcow2"], path);
    assert!(found.starts_with("No errors were found on the image."), "{found}");
}

/// Disks whose tables are long: several L2 tables, refcount blocks and L1 clusters. The data is
/// never written, so that it costs no space.
#[test]
fn qemu_finds_large_tables_sound() {
    let dir = tempfile::tempdir().unwrap();
    let tib = 1 << 40;
    let (far, farther, farthest) = ((1 << 28) - 1, (1 << 30) - 1, (1 << 31) - 1);
    /// Size of the disk and of its blocks; first blocks and lengths of the runs of data.
    type Case<'a> = (u64, u32, &'a [(u32, u32)]);
    let cases: [Case; 8] = [
        (5 << 30, 64 << 10, &[(0, 81_920)]),
        (5 << 30, 2 << 20, &[(0, 2560)]),
        (5 << 30, 4 << 10, &[(0, 1_310_720)]),
        (16 * tib, 64 << 10, &[(0, 1), (8191, 2), (100_000, 500), (far, 1)]),
        (16 * tib, 64 << 10, &[]),
        (16 * tib, 64 << 10, &[(1 << 27, 70_000)]),
        (2048 * tib, 2 << 20, &[(0, 1), (farther, 1)]),
        (4096 * tib, 2 << 20, &[(0, 1), (farthest, 1)]),
    ];
    for (size, block_size, runs) in cases {
        let path = dir.path().join("large.qcow2");
        let mut blocks = RoaringBitmap::new();
        for (first, count) in runs {
            blocks.insert_range(*first..first + count);
        }
        let plan = Plan::new(Geometry::new(size, block_size).unwrap(), blocks).unwrap();
        let options = Options { format: Format::Qcow2, ..Options::default() };
        let writer = create(&path, plan, &options, &Silent).unwrap();
        writer.finish(&Cancel::default(), &Silent).unwrap();
        check_by_qemu(&path);
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn a_disk_of_16_tib_with_little_data_is_written_at_once_and_stays_small() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("huge.qcow2");
    let disk = Disk::new(16 << 40, 64 << 10, [0, 77_777, 200_000_000, (1 << 28) - 1]);
    disk.restore(&path, Format::Qcow2);
    check_by_qemu(&path);
    assert!(path.metadata().unwrap().len() < 2 << 20);
    for (block, bytes) in &disk.blocks {
        let offset = disk.geometry.block_offset(BlockIndex(*block));
        for (at, byte) in [(0, bytes[0]), (65_535, bytes[65_535])] {
            let command = format!("read -P {byte} {} 1", offset + at);
            let found = run("qemu-io", &["-f", "qcow2", "-r", "-c", &command], &path);
            assert!(!found.contains("verification failed"), "{found}");
        }
    }
}

#[test]
fn a_block_outside_the_plan_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::new(1 << 20, 64 << 10, [3]);
    let options = Options { format: Format::Qcow2, ..Options::default() };
    let writer = create(&dir.path().join("disk"), disk.plan(), &options, &Silent).unwrap();
    assert_eq!(writer.place(3 << 16).map(|it| it % (64 << 10)), Some(0));
    assert_eq!((writer.place(2 << 16), writer.place(1 << 20)), (None, None));
    assert_eq!(writer.write(2 << 16, &[1; 65_536]).unwrap_err().kind(), ErrorKind::Usage);
    assert_eq!(writer.write(3 << 16, &[1; 131_072]).unwrap_err().kind(), ErrorKind::Usage);
}

#[test]
fn an_unfinished_or_interrupted_output_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::new(1 << 20, 64 << 10, [3]);
    for format in [Format::Raw, Format::Qcow2] {
        let options = Options { format, ..Options::default() };
        let path = dir.path().join("disk");
        let writer = create(&path, disk.plan(), &options, &Silent).unwrap();
        disk.write_to(writer.as_ref());
        drop(writer);
        let writer = create(&path, disk.plan(), &options, &Silent).unwrap();
        let cancel = Cancel::default();
        cancel.cancel();
        let error = writer.finish(&cancel, &Silent).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Interrupted);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_disk_that_does_not_fit_is_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut blocks = RoaringBitmap::new();
    blocks.insert_range(0..1 << 31);
    let plan = Plan::new(Geometry::new(1 << 47, 64 << 10).unwrap(), blocks).unwrap();
    for format in [Format::Raw, Format::Qcow2] {
        let options = Options { format, ..Options::default() };
        let result = create(&dir.path().join("disk"), plan.clone(), &options, &Silent);
        let Err(error) = result else { panic!("128 TiB fit") };
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

/// A filesystem of a few MiB; needs root.
struct SmallFilesystem(tempfile::TempDir);

impl SmallFilesystem {
    fn new(size: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        run("mount", &["-t", "tmpfs", "-o", &options, "tmpfs"], dir.path());
        Self(dir)
    }
}

impl Drop for SmallFilesystem {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_filesystem_that_fills_up_meanwhile_is_no_space_and_leaves_nothing() {
    let small = SmallFilesystem::new("4m");
    let disk = Disk::new(8 << 20, 64 << 10, 0..32);
    for format in [Format::Raw, Format::Qcow2] {
        let options = Options { format, ..Options::default() };
        let writer = create(&small.0.path().join("disk"), disk.plan(), &options, &Silent).unwrap();
        let filler = small.0.path().join("filler");
        std::fs::write(&filler, vec![1; 3 << 20]).unwrap();
        let error = disk.blocks.iter().find_map(|(block, bytes)| {
            writer.write(disk.geometry.block_offset(BlockIndex(*block)), bytes).err()
        });
        assert_eq!(error.unwrap().kind(), ErrorKind::NoSpace);
        drop(writer);
        std::fs::remove_file(filler).unwrap();
        assert_eq!(std::fs::read_dir(small.0.path()).unwrap().count(), 0);
        let large = Disk::new(8 << 20, 64 << 10, 0..80);
        let result = create(&small.0.path().join("disk"), large.plan(), &options, &Silent);
        assert_eq!(result.map(drop).unwrap_err().kind(), ErrorKind::NoSpace);
    }
}

/// Where a stream's bytes can be looked at.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_stream_is_the_disk_from_first_to_last_byte() {
    for (index, disk) in awkward_disks().iter().enumerate() {
        let sink = Sink::default();
        let writer = Stream::new(Box::new(sink.clone()), "sink", disk.plan());
        disk.write_to(&writer);
        Box::new(writer).finish(&Cancel::default(), &Silent).unwrap();
        assert!(*sink.0.lock().unwrap() == disk.bytes(), "disk {index}");
    }
    let disk = Disk::new(1 << 20, 64 << 10, [3]);
    let writer = Stream::new(Box::new(Sink::default()), "sink", disk.plan());
    disk.write_to(&writer);
    assert_eq!(writer.write(3 << 16, &[1; 65_536]).unwrap_err().kind(), ErrorKind::Usage);
}

#[test]
fn a_reader_that_goes_away_is_an_error_of_its_own_kind() {
    let disk = Disk::new(1 << 20, 64 << 10, [15]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let writer = Stream::new(Box::new(writer), "standard output", disk.plan());
    let error = writer.write(15 << 16, &disk.blocks[&15]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
    assert!(error.chain().contains("standard output"));
}

#[test]
fn a_named_pipe_takes_the_raw_disk() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pipe");
    run("mkfifo", &[], &path);
    let disk = Disk::new(200_000, 64 << 10, [1, 3]);
    let reader = std::thread::spawn({
        let path = path.clone();
        move || {
            let mut bytes = Vec::new();
            File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
            bytes
        }
    });
    disk.restore(&path, Format::Raw);
    assert!(reader.join().unwrap() == disk.bytes());
    let options = Options { format: Format::Qcow2, ..Options::default() };
    assert!(
        create(&path, disk.plan(), &options, &Silent)
            .is_err_and(|it| it.kind() == ErrorKind::Usage)
    );
}

#[test]
fn what_is_discarded_goes_nowhere() {
    let disk = Disk::new(200_000, 64 << 10, [1, 3]);
    disk.write_to(&Discard);
    Box::new(Discard).finish(&Cancel::default(), &Silent).unwrap();
}

/// A loop device over a file full of sevens; needs root.
struct LoopDevice {
    path: PathBuf,
    file: File,
    _dir: tempfile::TempDir,
}

impl LoopDevice {
    fn new(size: u64, fill: u8) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let backing = dir.path().join("backing");
        let file = File::options().read(true).write(true).create_new(true).open(&backing).unwrap();
        for offset in (0..size).step_by(1 << 20) {
            file.write_all_at(&vec![fill; (size - offset).min(1 << 20) as usize], offset).unwrap();
        }
        let path = run("losetup", &["--find", "--show"], &backing);
        Self { path: path.trim().into(), file, _dir: dir }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        File::open(&self.path).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.path).status();
    }
}

#[test]
fn a_device_holds_the_disk_and_zeros_where_it_has_none() {
    let device = LoopDevice::new(8 << 20, 7);
    let disk = Disk::new((7 << 20) + 512, 64 << 10, [0, 5, 6, 111, 112]);
    let refused = create(&device.path, disk.plan(), &Options::default(), &Silent);
    let Err(error) = refused else { panic!("a device in use was taken") };
    assert_eq!(error.kind(), ErrorKind::Exists);
    assert!(error.advice().unwrap().contains("--force"));

    let options = Options { force: true, ..Options::default() };
    let writer = create(&device.path, disk.plan(), &options, &Silent).unwrap();
    // Block 6 never comes, as in a restore that saves what it can: it must not stay as it was.
    for (block, bytes) in disk.blocks.iter().filter(|(block, _)| **block != 6) {
        writer.write(disk.geometry.block_offset(BlockIndex(*block)), bytes).unwrap();
    }
    writer.finish(&Cancel::default(), &Silent).unwrap();
    let mut expected = disk.bytes();
    expected[6 << 16..7 << 16].fill(0);
    let found = device.bytes();
    assert!(found[..expected.len()] == expected);
    assert!(found[expected.len()..].iter().all(|byte| *byte == 7), "beyond the disk");
    assert!(device.file.metadata().unwrap().blocks() * 512 < 4 << 20, "zeros take space");
}

#[test]
fn a_device_in_use_too_small_or_read_from_is_refused() {
    let device = LoopDevice::new(4 << 20, 0);
    let disk = Disk::new(4 << 20, 64 << 10, [1]);
    let refusal = |size, inputs: Vec<FileId>, format| {
        let options = Options { inputs, format, ..Options::default() };
        match create(&device.path, Disk::new(size, 64 << 10, [1]).plan(), &options, &Silent) {
            Ok(_) => panic!("it was accepted"),
            Err(error) => error.kind(),
        }
    };
    assert_eq!(refusal((4 << 20) + 1, vec![], Format::Raw), ErrorKind::NoSpace);
    assert_eq!(refusal(4 << 20, vec![], Format::Qcow2), ErrorKind::Usage);
    let opened = File::open(&device.path).unwrap();
    let id = FileId::of(&opened).unwrap();
    assert_eq!(refusal(4 << 20, vec![id], Format::Raw), ErrorKind::Usage);
    // An empty device needs no force.
    let writer = create(&device.path, disk.plan(), &Options::default(), &Silent).unwrap();
    assert_eq!(refusal(4 << 20, vec![], Format::Raw), ErrorKind::Busy);
    drop(writer);

    run("mkfs.ext4", &["-q", "-F"], &device.path);
    let mount = tempfile::tempdir().unwrap();
    run("mount", &[device.path.to_str().unwrap()], mount.path());
    let options = Options { force: true, ..Options::default() };
    let mounted = create(&device.path, disk.plan(), &options, &Silent).map(drop);
    unmount(mount.path());
    assert_eq!(mounted.unwrap_err().kind(), ErrorKind::Busy);
}
