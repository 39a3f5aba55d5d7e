//! What qdelta writes into an image is QEMU's own, and the other way round.

use std::path::Path;
use std::time::{Duration, SystemTime};

use qdelta::ErrorKind;
use qdelta::disk::edit::{ImageFile, bitmap, snapshot};

use super::{Random, Shape, check_clean, content, qemu_io, run, shapes, text};

fn taken() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000)
}

fn names(path: &Path) -> Vec<String> {
    let image = ImageFile::open(path).unwrap();
    let list = snapshot::list(&image).unwrap();
    list.into_iter().map(|it| String::from_utf8(it.name).unwrap()).collect()
}

fn info(path: &Path) -> serde_json::Value {
    serde_json::from_str(&run("qemu-img", &["info", "--output=json", text(path)])).unwrap()
}

fn create(path: &Path, name: &str) -> Vec<u8> {
    snapshot::create(&ImageFile::open(path).unwrap(), name, taken()).unwrap().id
}

fn delete(path: &Path, id: &[u8]) {
    snapshot::delete(&ImageFile::open(path).unwrap(), id).unwrap();
}

#[test]
fn snapshots_are_those_of_qemu() {
    for (number, shape) in (0..).zip(shapes()) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image.qcow2");
        let mut random = Random::new(number);
        shape.create(&path);
        qemu_io(&path, &shape.writes(&mut random, 12));
        let before = content(&path, None);
        let id = create(&path, "ours");
        check_clean(&path);
        assert_eq!(content(&path, None), before, "{shape:?}");
        let listed = &info(&path)["snapshots"][0];
        assert_eq!(listed["name"], "ours");
        assert_eq!(listed["id"], "1");
        assert_eq!(listed["date-sec"], 1_790_000_000);
        assert!(run("qemu-img", &["snapshot", "-l", text(&path)]).contains("ours"));

        qemu_io(&path, &shape.writes(&mut random, 12));
        check_clean(&path);
        let after = content(&path, None);
        assert_eq!(content(&path, Some("ours")), before, "{shape:?}");
        if !shape.options.contains("refcount_bits=2") {
            run("qemu-img", &["snapshot", "-c", "theirs", text(&path)]);
            create(&path, "third");
            check_clean(&path);
            assert_eq!(names(&path), ["ours", "theirs", "third"]);
            delete(&path, b"2");
            run("qemu-img", &["snapshot", "-d", "third", text(&path)]);
        }
        check_clean(&path);
        assert_eq!(content(&path, None), after, "{shape:?}");
        run("qemu-img", &["snapshot", "-a", "ours", text(&path)]);
        check_clean(&path);
        assert_eq!(content(&path, None), before, "{shape:?}");
        delete(&path, &id);
        check_clean(&path);
        assert_eq!(content(&path, None), before, "{shape:?}");
        assert!(names(&path).is_empty());
        qemu_io(&path, &shape.writes(&mut random, 4));
        check_clean(&path);
    }
}

/// Where the old tables were is room for the new ones of the next time.
#[test]
fn an_image_does_not_grow_from_anchors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.qcow2");
    let shape = Shape::new("cluster_size=4k", 16 << 20);
    shape.create(&path);
    qemu_io(&path, &["write -P 1 0 8M".to_owned()]);
    let mut last = create(&path, "round 0");
    let mut lens = Vec::new();
    for round in 1..8 {
        let id = create(&path, &format!("round {round}"));
        delete(&path, &last);
        last = id;
        lens.push(std::fs::metadata(&path).unwrap().len());
    }
    check_clean(&path);
    assert_eq!(lens[2], lens[6], "{lens:?}");
}

/// In clusters of 512 bytes, one cluster of the refcount table is enough for 8 MiB.
#[test]
fn the_refcount_table_grows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.qcow2");
    Shape::new("cluster_size=512", 9 << 20).create(&path);
    qemu_io(&path, &["write -P 1 0 7960k".to_owned()]);
    let clusters = || std::fs::read(&path).unwrap()[59];
    assert_eq!(clusters(), 1);
    let before = content(&path, None);
    let mut ids = Vec::new();
    for name in ["first", "second", "third"] {
        ids.push(create(&path, name));
        check_clean(&path);
        qemu_io(&path, &["write -P 2 1M 200k".to_owned()]);
    }
    assert!(clusters() > 1);
    assert!(content(&path, Some("first")) == before);
    ids.iter().for_each(|id| delete(&path, id));
    check_clean(&path);
}

#[test]
fn snapshots_that_can_not_be() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.qcow2");
    let refused = |path: &Path, kind, said: &str| {
        let before = std::fs::read(path).unwrap();
        let error = snapshot::create(&ImageFile::open(path).unwrap(), "name", taken()).unwrap_err();
        assert_eq!(error.kind(), kind, "{}", error.chain());
        assert!(error.chain().contains(said), "{}", error.chain());
        assert!(std::fs::read(path).unwrap() == before, "a refused image is changed");
    };
    // One reference is all that one bit can count.
    Shape::new("refcount_bits=1", 1 << 20).create(&path);
    qemu_io(&path, &["write 0 64k".to_owned()]);
    refused(&path, ErrorKind::Image, "references in 1 bits");

    let options = format!("data_file={}", text(&folder.path().join("data")));
    Shape::new(&options, 1 << 20).create(&path);
    refused(&path, ErrorKind::Image, "external data file");

    Shape::new("", 1 << 20).create(&path);
    create(&path, "name");
    refused(&path, ErrorKind::Exists, "'name' already");
    let error = snapshot::delete(&ImageFile::open(&path).unwrap(), b"7").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);

    // The dirty and the corrupt bit.
    let patch = |bit: u8| {
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[79] = bit;
        std::fs::write(&path, bytes).unwrap();
    };
    patch(1);
    refused(&path, ErrorKind::Image, "not closed properly");
    patch(2);
    refused(&path, ErrorKind::Image, "corrupt");
}

#[test]
fn promises_that_are_not_known_are_taken_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.qcow2");
    Shape::new("", 1 << 20).create(&path);
    add(&path, "kept", 65536);
    let mut bytes = std::fs::read(&path).unwrap();
    assert_eq!(bytes[88..96], [0, 0, 0, 0, 0, 0, 0, 1]);
    // Bits that nobody has given a meaning yet.
    bytes[88] = 0x80;
    bytes[95] = 0x85;
    std::fs::write(&path, bytes).unwrap();
    create(&path, "name");
    assert_eq!(std::fs::read(&path).unwrap()[88..96], [0, 0, 0, 0, 0, 0, 0, 1]);
    assert_eq!(bitmaps(&path).len(), 1);
    check_clean(&path);
}

/// A cluster that is in use and counts as free would be written over.
#[test]
fn wrong_counts_are_found_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.qcow2");
    Shape::new("", 1 << 20).create(&path);
    qemu_io(&path, &["write -P 5 0 1M".to_owned()]);
    let sound = std::fs::read(&path).unwrap();
    // Clusters 0, 1, 2 are header, refcount table and refcount block.
    for cluster in 0..8 {
        let mut bytes = sound.clone();
        bytes[0x2_0000 + 2 * cluster + 1] = 0;
        std::fs::write(&path, &bytes).unwrap();
        let image = ImageFile::open(&path).unwrap();
        let error = snapshot::create(&image, "name", taken()).unwrap_err();
        assert!(error.chain().contains("counts as free"), "{}", error.chain());
        drop(image);
        assert!(std::fs::read(&path).unwrap() == bytes);
    }
}

/// The same for a count that is too low by one: it shows when an owner goes.
#[test]
fn a_count_that_is_too_low_is_found_before_a_snapshot_goes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.qcow2");
    Shape::new("", 1 << 20).create(&path);
    qemu_io(&path, &["write -P 5 0 1M".to_owned()]);
    let snapshot = snapshot::create(&ImageFile::open(&path).unwrap(), "name", taken()).unwrap();
    let sound = std::fs::read(&path).unwrap();
    let number = |at: usize| u64::from_be_bytes(sound[at..at + 8].try_into().unwrap()) as usize;
    // The header leads to the refcount table, and this to the only block.
    let counts = number(number(48));
    let shared: Vec<usize> =
        (counts..counts + 200).step_by(2).filter(|at| sound[*at..*at + 2] == [0, 2]).collect();
    assert!(shared.len() >= 16, "{shared:?}");
    for at in shared {
        let mut bytes = sound.clone();
        bytes[at + 1] = 1;
        std::fs::write(&path, &bytes).unwrap();
        let image = ImageFile::open(&path).unwrap();
        let error = snapshot::delete(&image, &snapshot.id).unwrap_err();
        assert!(error.chain().contains("used 2 times"), "{}", error.chain());
        drop(image);
        assert!(std::fs::read(&path).unwrap() == bytes);
    }
}

#[test]
fn an_image_in_use_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.qcow2");
    Shape::new("", 1 << 20).create(&path);
    let ours = ImageFile::open(&path).unwrap();
    assert_eq!(ImageFile::open(&path).unwrap_err().kind(), ErrorKind::Busy);
    let output = super::output("qemu-img", &["snapshot", "-c", "x", text(&path)]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("lock"), "{output:?}");
    drop(ours);
    run("qemu-img", &["snapshot", "-c", "x", text(&path)]);
}

/// The bitmaps as QEMU lists them: name, granularity, flags.
fn bitmaps(path: &Path) -> Vec<(String, u64, String)> {
    let info = info(path);
    let list = info["format-specific"]["data"]["bitmaps"].as_array().cloned().unwrap_or_default();
    list.iter()
        .map(|it| {
            let flags = it["flags"].as_array().unwrap().iter().map(|it| it.as_str().unwrap());
            let flags: Vec<_> = flags.collect();
            (
                it["name"].as_str().unwrap().to_owned(),
                it["granularity"].as_u64().unwrap(),
                flags.join(" "),
            )
        })
        .collect()
}

/// Start and end of each range that the bitmap says was written to.
fn dirty(path: &Path, name: &str) -> Vec<(u64, u64)> {
    let mut ranges = Vec::new();
    let image = ImageFile::open(path).unwrap();
    bitmap::read(&image, name, |range| {
        ranges.push((range.start, range.end));
        Ok(())
    })
    .unwrap();
    ranges
}

fn add(path: &Path, name: &str, granularity: u64) {
    bitmap::create(&ImageFile::open(path).unwrap(), name, granularity).unwrap();
}

#[test]
fn bitmaps_are_those_of_qemu() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("a-base-with-a-long-name.raw");
    std::fs::write(&base, vec![7; 1 << 20]).unwrap();
    let with_backing = format!("backing_file={},backing_fmt=raw", text(&base));
    let data = format!("data_file={},data_file_raw=on", text(&folder.path().join("data")));
    let small_with_backing = format!("{with_backing},cluster_size=4k");
    let more = [&with_backing, &data, &small_with_backing].map(|it| Shape::new(it, 8 << 20));
    for (number, shape) in (0..).zip(shapes().into_iter().chain(more)) {
        if shape.is_version_2() {
            continue;
        }
        let path = folder.path().join(format!("{number}.qcow2"));
        let mut random = Random::new(number);
        shape.create(&path);
        qemu_io(&path, &shape.writes(&mut random, 5));
        let before = content(&path, None);
        add(&path, "ours", 65536);
        check_clean(&path);
        assert_eq!(bitmaps(&path), [("ours".to_owned(), 65536, "auto".to_owned())], "{shape:?}");
        assert!(dirty(&path, "ours").is_empty());

        qemu_io(&path, &["write -P 9 64k 1k".to_owned(), "write -P 9 300k 100k".to_owned()]);
        check_clean(&path);
        assert_eq!(dirty(&path, "ours"), [(65536, 131_072), (262_144, 458_752)], "{shape:?}");
        run("qemu-img", &["bitmap", "--add", "-g", "4096", text(&path), "theirs"]);
        add(&path, "third", 512);
        check_clean(&path);
        qemu_io(&path, &["write -P 8 0 4k".to_owned()]);
        assert_eq!(dirty(&path, "theirs"), [(0, 4096)]);
        assert_eq!(dirty(&path, "third"), [(0, 4096)]);
        assert_eq!(dirty(&path, "ours"), [(0, 131_072), (262_144, 458_752)]);

        for name in ["ours", "theirs", "third"] {
            let kept = bitmaps(&path).into_iter().filter(|(it, ..)| it != name).collect::<Vec<_>>();
            bitmap::remove(&ImageFile::open(&path).unwrap(), name).unwrap();
            check_clean(&path);
            assert_eq!(bitmaps(&path), kept);
        }
        add(&path, "again", 1 << 20);
        run("qemu-img", &["bitmap", "--remove", text(&path), "again"]);
        check_clean(&path);
        qemu_io(
            &path,
            &["write -P 7 0 4k", "write -P 7 64k 1k", "write -P 7 300k 100k"].map(str::to_owned),
        );
        let mut expected = before;
        expected[..4096].fill(7);
        expected[65536..][..1024].fill(7);
        expected[300 << 10..][..100 << 10].fill(7);
        assert!(content(&path, None) == expected, "{shape:?}");
        if shape.options.contains("backing") {
            assert_eq!(info(&path)["full-backing-filename"], text(&base));
        }
    }
}

/// An extension whose data would lie in two sectors can't be changed by one write: the new one is
/// put behind it, and the last one counts.
#[test]
fn a_bitmaps_extension_across_sectors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.qcow2");
    // From the end of a new image's extensions on, one that nobody knows, of various lengths.
    for len in [472, 480, 488, 496_usize] {
        Shape::new("", 1 << 20).create(&path);
        let mut bytes = std::fs::read(&path).unwrap();
        assert!(bytes[504..1100].iter().all(|byte| *byte == 0));
        bytes[504..508].copy_from_slice(&0x1234_5678_u32.to_be_bytes());
        bytes[508..512].copy_from_slice(&(len as u32).to_be_bytes());
        bytes[512..512 + len].fill(1);
        std::fs::write(&path, bytes).unwrap();
        check_clean(&path);
        for name in ["one", "two", "three"] {
            add(&path, name, 65536);
            check_clean(&path);
        }
        assert_eq!(bitmaps(&path).len(), 3, "{len}");
        for name in ["one", "two", "three"] {
            bitmap::remove(&ImageFile::open(&path).unwrap(), name).unwrap();
            assert_eq!(super::check(&path, name), super::Verdict::Clean);
        }
        add(&path, "again", 65536);
        qemu_io(&path, &["write 0 64k".to_owned()]);
        check_clean(&path);
        assert_eq!(dirty(&path, "again"), [(0, 65536)], "{len}");
    }
}

#[test]
fn bitmaps_that_can_not_be() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.qcow2");
    let refused = |name: &str, granularity, kind, said: &str| {
        let before = std::fs::read(&path).unwrap();
        let image = ImageFile::open(&path).unwrap();
        let error = bitmap::create(&image, name, granularity).unwrap_err();
        assert_eq!(error.kind(), kind, "{}", error.chain());
        assert!(error.chain().contains(said), "{}", error.chain());
        assert!(std::fs::read(&path).unwrap() == before, "a refused image is changed");
    };
    Shape::new("compat=0.10", 1 << 20).create(&path);
    refused("name", 65536, ErrorKind::Image, "version 2");
    Shape::new("", 0).create(&path);
    refused("name", 65536, ErrorKind::Usage, "size of a disk");
    Shape::new("", 1 << 20).create(&path);
    refused("name", 65537, ErrorKind::Usage, "granularity");
    refused("name", 256, ErrorKind::Usage, "granularity");
    refused("", 65536, ErrorKind::Usage, "name_size");
    refused(&"n".repeat(1024), 65536, ErrorKind::Usage, "name_size");
    add(&path, "name", 65536);
    refused("name", 65536, ErrorKind::Exists, "already");
    let error = bitmap::remove(&ImageFile::open(&path).unwrap(), "other").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

/// A bitmap that a killed QEMU left in use stays so, and does not stand in the way of others.
#[test]
fn bitmaps_in_use_are_kept_and_not_read() {
    use std::io::{BufRead, BufReader, Write};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.qcow2");
    Shape::new("", 8 << 20).create(&path);
    add(&path, "left", 65536);
    let mut child = std::process::Command::new("qemu-io")
        .args(["-f", "qcow2", text(&path)])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // One at a time: qemu-io waits for its input to become readable before each.
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    writeln!(stdin, "write -P 3 0 128k").unwrap();
    lines.find(|line| line.contains("wrote")).unwrap();
    writeln!(stdin, "length").unwrap();
    lines.find(|line| line.contains("8 MiB")).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(bitmaps(&path)[0].2, "in-use auto");
    let image = ImageFile::open(&path).unwrap();
    let error = bitmap::read(&image, "left", |_| Ok(())).unwrap_err();
    assert!(error.chain().contains("was not saved properly"), "{}", error.chain());
    bitmap::create(&image, "new", 65536).unwrap();
    drop(image);
    assert_eq!(bitmaps(&path)[0].2, "in-use auto");
    assert_eq!(bitmaps(&path)[1].2, "auto");
    qemu_io(&path, &["write -P 4 1M 64k".to_owned()]);
    assert_eq!(dirty(&path, "new"), [(1 << 20, (1 << 20) + 65536)]);
    bitmap::remove(&ImageFile::open(&path).unwrap(), "left").unwrap();
    check_clean(&path);
}
