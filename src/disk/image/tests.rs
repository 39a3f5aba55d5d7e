//! Tests of images as a whole: opening, mapping, and what hostile ones do.

use std::path::Path;

use proptest::prelude::*;
use qdelta_formats::qcow2::snapshot::{self, Snapshot};
use qdelta_formats::qcow2::{
    CompressionType, Encryption, Extensions, Header, HostOffset, Incompatible, Table, Version,
};

use super::testing::{Content, Recipe, pattern, read, write};
use super::*;
use crate::base::error::{Error, ErrorKind};
use crate::disk::image::extent::{Extent, Source};
use Content::{Compressed, Data, Nothing, Subclusters, Zero, ZeroWithPlace};

fn open(path: &Path) -> Result<Image> {
    Image::open(path, &OpenOptions::default())
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// All bytes of the disk.
fn bytes(image: &Image) -> Result<Vec<u8>> {
    read(image, &mut image.mapper(), 0..image.virtual_size())
}

/// The error of opening the image made of `file` or, if that works, of reading it.
fn failure(file: &[u8]) -> Error {
    let folder = folder();
    let path = write(folder.path(), "image", file);
    open(&path).and_then(|image| bytes(&image)).unwrap_err()
}

#[track_caller]
fn assert_fails(file: &[u8], text: &str) {
    let error = failure(file);
    assert_eq!(error.kind(), ErrorKind::Image, "{}", error.chain());
    assert!(error.chain().contains(text), "{}", error.chain());
}

fn sample() -> Recipe {
    Recipe::new(12, vec![Data(1), Nothing, Zero, Compressed(2), ZeroWithPlace, Data(3), Data(4)])
}

/// Replaces the 64-bit number at `at`.
fn patch(file: &mut [u8], at: usize, value: u64) {
    file[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

/// Where the L1 table of a recipe's image starts.
fn l1_at(recipe: &Recipe) -> usize {
    2 << recipe.bits
}

/// Where its first L2 table starts.
fn l2_at(recipe: &Recipe) -> usize {
    3 << recipe.bits
}

#[test]
fn a_single_image() {
    let folder = folder();
    let path = write(folder.path(), "image", &sample().build());
    let image = open(&path).unwrap();
    let expected: Vec<u8> = sample().model().into_iter().map(Option::unwrap_or_default).collect();
    assert!(bytes(&image).unwrap() == expected);
    let mut extents = Vec::new();
    image.mapper().extents(0x1000..0x7000, &mut extents).unwrap();
    let sources: Vec<_> = extents.iter().map(|extent| (extent.len, extent.source)).collect();
    assert_eq!(sources[0], (0x1000, Source::Unallocated));
    assert_eq!(sources[1], (0x1000, Source::Zero { host_offset: None }));
    assert!(matches!(sources[2], (0x1000, Source::Compressed(_))));
    assert!(matches!(sources[3], (0x1000, Source::Zero { host_offset: Some(_) })));
    assert!(matches!(sources[4], (0x2000, Source::Data { .. })));
    assert_eq!(sources.len(), 5);
}

#[test]
fn ranges_beyond_the_disk_are_refused() {
    let folder = folder();
    let path = write(folder.path(), "image", &sample().build());
    let mut mapper = open(&path).unwrap().mapper();
    let error = mapper.extents(0..0x7001, &mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    let mut none = Vec::new();
    mapper.extents(0x7000..0x7000, &mut none).unwrap();
    assert!(none.is_empty());
}

#[test]
fn a_limit_stops_and_the_walk_goes_on_from_there() {
    let folder = folder();
    write(folder.path(), "base", &Recipe::new(9, vec![Data(1), Zero, Data(2), Zero]).build());
    let top = Recipe::new(9, vec![Nothing, Nothing, Nothing, Nothing, Data(9), Zero]);
    let path = write(folder.path(), "top", &top.over("base", "qcow2").build());
    let image = open(&path).unwrap();
    let mut whole = Vec::new();
    image.mapper().extents(0..3072, &mut whole).unwrap();
    let (mut mapper, mut at, mut parts) = (image.mapper(), 0, Vec::new());
    while at < 3072 {
        let mut one = Vec::new();
        at = mapper.extents_up_to(1, at..3072, &mut one).unwrap();
        assert_eq!(one.len(), 1);
        parts.extend(one);
    }
    assert_eq!(parts, whole);
}

#[test]
fn raw_images_keep_their_exact_size_and_their_holes_are_zeros() {
    let folder = folder();
    let path = write(folder.path(), "image", b"12345");
    let image = open(&path).unwrap();
    assert_eq!(image.virtual_size(), 5);
    assert_eq!(bytes(&image).unwrap(), b"12345");
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(1 << 30).unwrap();
    let image = open(&path).unwrap();
    let mut extents = Vec::new();
    image.mapper().extents(0..1 << 30, &mut extents).unwrap();
    assert!(extents.len() == 2 && extents[0].len <= 1 << 20, "{extents:?}");
    assert!(matches!(extents[1].source, Source::Zero { .. }));
}

/// Where an L2 table lies in a hole of its file, nothing is read, and what lies behind is found.
#[test]
fn holes_in_tables() {
    let folder = folder();
    let mut clusters = vec![Nothing; 8192 + 5000];
    for (index, seed) in [(0, 1), (700, 2), (7680, 5), (8191, 3), (8192 + 4999, 4)] {
        clusters[index] = Data(seed);
    }
    let recipe = Recipe::new(16, clusters);
    let path = write(folder.path(), "image", &recipe.build());
    let image = open(&path).unwrap();
    let mut extents = Vec::new();
    image.mapper().extents(0..recipe.virtual_size, &mut extents).unwrap();
    let data = extents.iter().filter(|extent| matches!(extent.source, Source::Data { .. }));
    let found: Vec<_> = data.map(|extent| extent.guest_offset >> 16).collect();
    assert_eq!(found, [0, 700, 7680, 8191, 8192 + 4999]);
    // Entry 2000 lies in a hole, and entry 7680 is the first behind it.
    extents.clear();
    image.mapper().extents(2000 << 16..7681 << 16, &mut extents).unwrap();
    let lens: Vec<_> = extents.iter().map(|extent| extent.len >> 16).collect();
    assert_eq!(lens, [7680 - 2000, 1]);
    for (index, seed) in [(700, 2), (8191, 3)] {
        let start = index << 16;
        let disk = read(&image, &mut image.mapper(), start - 65536..start + 65536).unwrap();
        assert!(disk[..65536].iter().all(|byte| *byte == 0));
        assert!(disk[65536..] == pattern(seed, 65536).collect::<Vec<_>>());
    }
}

#[test]
fn what_begins_like_qcow2_can_be_a_raw_disk_all_the_same() {
    let folder = folder();
    let file = sample().build();
    let path = write(folder.path(), "image", &file);
    let raw = OpenOptions { format: Some(Format::Raw), ..Default::default() };
    assert!(bytes(&Image::open(&path, &raw).unwrap()).unwrap() == file);
    let as_file = OpenOptions { as_file: true, ..Default::default() };
    assert!(bytes(&Image::open(&path, &as_file).unwrap()).unwrap() == file);
    let forced = OpenOptions { format: Some(Format::Qcow2), ..Default::default() };
    let text = write(folder.path(), "text", b"no image");
    assert!(Image::open(&text, &forced).unwrap_err().chain().contains("is no qcow2 image"));
}

#[test]
fn backing_files_of_other_sizes() {
    let folder = folder();
    write(folder.path(), "short", &vec![0x55; 1000]);
    let top = Recipe::new(9, vec![Nothing, Data(1), Nothing, Nothing]);
    let path = write(folder.path(), "top", &top.clone().over("short", "raw").build());
    let image = open(&path).unwrap();
    let mut expected = vec![0x55; 2048];
    expected[512..1024].copy_from_slice(&pattern(1, 512).collect::<Vec<_>>());
    expected[1024..].fill(0);
    assert!(bytes(&image).unwrap() == expected);
    let mut extents = Vec::new();
    image.mapper().extents(0..2048, &mut extents).unwrap();
    let depths: Vec<_> = extents.iter().map(|extent| (extent.depth, extent.len)).collect();
    assert_eq!(depths, [(1, 512), (0, 512), (0, 1024)]);
    write(folder.path(), "short", &vec![0x55; 1 << 20]);
    expected[1024..].fill(0x55);
    assert!(bytes(&open(&path).unwrap()).unwrap() == expected);
}

#[test]
fn a_backing_file_without_a_format() {
    let folder = folder();
    let top = Recipe { backing: Some(("base".into(), None)), ..Recipe::new(9, vec![Nothing]) };
    let path = write(folder.path(), "top", &top.build());
    write(folder.path(), "base", &[7; 512]);
    let image = open(&path).unwrap();
    assert_eq!(bytes(&image).unwrap(), [7; 512]);
    let guessed: Vec<_> = image.layers().iter().map(|layer| layer.format_guessed).collect();
    assert_eq!(guessed, [true, true]);
    write(folder.path(), "base", &Recipe::new(9, vec![Data(1)]).build());
    assert!(bytes(&open(&path).unwrap()).unwrap() == pattern(1, 512).collect::<Vec<_>>());
    let mut vmdk = vec![0; 512];
    vmdk[..4].copy_from_slice(b"KDMV");
    write(folder.path(), "base", &vmdk);
    let error = open(&path).unwrap_err();
    assert!(error.chain().contains("looks like a VMDK image"), "{}", error.chain());
    assert!(error.advice().is_some());
}

/// The format that the overlay names counts, whatever the guest wrote into its disk.
#[test]
fn a_raw_backing_file_is_never_probed() {
    let folder = folder();
    let base = Recipe::new(9, vec![Data(1)]).build();
    write(folder.path(), "base", &base);
    let top = Recipe::new(9, vec![Nothing; 4]).over("base", "raw");
    let path = write(folder.path(), "top", &top.build());
    assert!(bytes(&open(&path).unwrap()).unwrap() == base[..2048]);
}

#[test]
fn loops_and_long_chains() {
    let folder = folder();
    let layer = |below: &str| Recipe::new(9, vec![Nothing]).over(below, "qcow2").build();
    write(folder.path(), "a", &layer("b"));
    let path = write(folder.path(), "b", &layer("./a"));
    let error = open(&path).unwrap_err();
    assert!(error.chain().contains("loop"), "{}", error.chain());
    std::fs::hard_link(&path, folder.path().join("c")).unwrap();
    let path = write(folder.path(), "d", &layer("c"));
    assert!(open(&path).unwrap_err().chain().contains("loop"));
    write(folder.path(), "0", &Recipe::new(9, vec![Data(1)]).build());
    for number in 1..=201 {
        write(folder.path(), &number.to_string(), &layer(&(number - 1).to_string()));
    }
    let image = open(&folder.path().join("200")).unwrap();
    assert_eq!(image.layers().len(), 201);
    assert!(bytes(&image).unwrap() == pattern(1, 512).collect::<Vec<_>>());
    let error = open(&folder.path().join("201")).unwrap_err();
    assert!(error.chain().contains("more than 200"), "{}", error.chain());
}

#[test]
fn errors_of_a_chain_name_both_files() {
    let folder = folder();
    let top = Recipe::new(9, vec![Nothing]);
    for (name, format, text) in [
        ("gone", "qcow2", "No such file"),
        ("nbd://host/x", "raw", "protocol 'nbd'"),
        ("base", "vmdk", "format 'vmdk'"),
        ("base", "qcow2", "is no qcow2 image"),
        ("/etc/passwd", "raw", "outside the image's folder"),
    ] {
        write(folder.path(), "base", b"raw bytes");
        let path = write(folder.path(), "top", &top.clone().over(name, format).build());
        let error = open(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Image, "{}", error.chain());
        for part in [text, name, path.to_str().unwrap()] {
            assert!(
                error.chain().to_lowercase().contains(&part.to_lowercase()),
                "{}",
                error.chain()
            );
        }
    }
}

#[test]
fn json_names() {
    let folder = folder();
    let base = write(folder.path(), "base:1", &Recipe::new(9, vec![Data(1)]).build());
    let file = format!(r#"{{"driver":"file","filename":"{}"}}"#, base.display());
    let name = format!(r#"json:{{"driver":"qcow2","file":{file}}}"#);
    let top = Recipe { bits: 12, backing: Some((name, None)), ..Recipe::new(12, vec![Nothing]) };
    let path = write(folder.path(), "top", &top.build());
    assert!(bytes(&open(&path).unwrap()).unwrap()[..512] == pattern(1, 512).collect::<Vec<_>>());
}

/// An image with an external data file `data`, in which every cluster lies at its guest offset.
fn with_data_file(contents: &[Content]) -> Vec<u8> {
    let recipe = Recipe::new(12, vec![Zero; contents.len()]);
    let mut header = recipe.header();
    header.incompatible = header.incompatible.with(Incompatible::DATA_FILE);
    header.extensions.data_file = Some(b"data".to_vec());
    let mut file = recipe.build_with(header);
    for (index, content) in contents.iter().enumerate() {
        let entry = match content {
            Data(_) => 1 << 63 | (index as u64) << 12,
            Zero => 1,
            _ => 0,
        };
        patch(&mut file, l2_at(&recipe) + index * 8, entry);
    }
    file
}

#[test]
fn external_data_files() {
    let folder = folder();
    let image = with_data_file(&[Data(0), Zero, Data(0), Nothing, Data(0), Data(0)]);
    let path = write(folder.path(), "image", &image);
    assert!(open(&path).unwrap_err().chain().contains("cannot open the data file 'data'"));
    let data: Vec<u8> = pattern(7, 0x4800).collect();
    write(folder.path(), "data", &data);
    let image = open(&path).unwrap();
    assert_eq!(image.files().len(), 2);
    let mut expected = data;
    // Behind its end there are zeros; QEMU finds nothing wrong with that.
    expected.resize(0x6000, 0);
    expected[0x1000..0x2000].fill(0);
    expected[0x3000..0x4000].fill(0);
    assert!(bytes(&image).unwrap() == expected);
}

#[test]
fn an_external_data_file_must_be_named_and_be_another_file() {
    let recipe = Recipe::new(12, vec![Zero]);
    let mut header = recipe.header();
    header.incompatible = header.incompatible.with(Incompatible::DATA_FILE);
    assert_fails(&recipe.build_with(header.clone()), "does not say which");
    header.extensions.data_file = Some(b"image".to_vec());
    assert_fails(&recipe.build_with(header), "loop");
}

/// The sample image with a snapshot of another disk, and with the snapshot's entry.
fn with_snapshots(entries: &[Snapshot]) -> Vec<u8> {
    let recipe = sample();
    let mut file = recipe.build();
    let place = file.len() as u64;
    let table = snapshot::encode_table(entries).unwrap();
    file.extend(&table);
    file.resize(file.len().next_multiple_of(4096), 0);
    // The snapshot has an L1 table and an L2 table of its own.
    let l1 = file.len() as u64;
    file.resize(file.len() + 4096, 0);
    patch(&mut file, l1 as usize, l1 + 4096);
    file.resize(file.len() + 4096, 0);
    patch(&mut file, l1 as usize + 4096, l1 + 8192);
    file.extend(pattern(99, 4096));
    let header = Header {
        snapshots: Table { offset: HostOffset(place), entries: entries.len() as u32 },
        ..recipe.header()
    };
    let header = header.encode().unwrap();
    file[..header.len()].copy_from_slice(&header);
    for index in 0..entries.len() {
        let before: usize =
            entries[..index].iter().map(|entry| entry.encode().unwrap().len()).sum();
        patch(&mut file, place as usize + before, l1);
    }
    file
}

fn snapshot_called(id: &str, name: &str, disk_size: u64) -> Snapshot {
    Snapshot {
        l1_offset: 0,
        l1_entries: 1,
        id: id.into(),
        name: name.into(),
        date_s: 0,
        date_ns: 0,
        vm_clock_ns: 0,
        vm_state_size: 0,
        disk_size: Some(disk_size),
        icount: None,
        unknown_extra: Vec::new(),
    }
}

#[test]
fn snapshots_have_their_own_tables_and_size() {
    let folder = folder();
    let file = with_snapshots(&[
        snapshot_called("1", "first", 8192),
        snapshot_called("2", "twice", 4096),
        snapshot_called("3", "twice", 4096),
        snapshot_called("4", "1", 512),
        snapshot_called("5", "too long", 1 << 40),
    ]);
    let path = write(folder.path(), "image", &file);
    let open = |name: &str| {
        let snapshot = Some(name.to_owned());
        Image::open(&path, &OpenOptions { snapshot, ..Default::default() })
    };
    let first = open("first").unwrap();
    assert_eq!(first.virtual_size(), 8192);
    let disk = bytes(&first).unwrap();
    assert!(disk[..4096] == pattern(99, 4096).collect::<Vec<_>>());
    assert!(disk[4096..].iter().all(|byte| *byte == 0));
    assert_eq!(open("1").unwrap().virtual_size(), 8192, "an id comes before a name");
    assert_eq!(open("3").unwrap().virtual_size(), 4096);
    assert_eq!(open("4").unwrap().virtual_size(), 512);
    assert_eq!(open("twice").unwrap_err().kind(), ErrorKind::Usage);
    assert_eq!(open("none").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(open("too long").unwrap_err().kind(), ErrorKind::Image);
    let active = Image::open(&path, &OpenOptions::default()).unwrap();
    assert_eq!(active.virtual_size(), 0x7000);
    assert_eq!(active.info().unwrap().qcow2.unwrap().snapshots.len(), 5);
    let raw = OpenOptions {
        snapshot: Some("first".into()),
        format: Some(Format::Raw),
        ..Default::default()
    };
    assert_eq!(Image::open(&path, &raw).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn encrypted_images_can_be_taken_as_files_and_described() {
    let recipe = sample();
    for (encryption, name) in [(Encryption::Aes, "AES"), (Encryption::Luks, "LUKS")] {
        let header = Header { encryption, extensions: Extensions::default(), ..recipe.header() };
        let file = recipe.build_with(header);
        let folder = folder();
        let path = write(folder.path(), "image", &file);
        let error = open(&path).unwrap_err();
        assert!(error.chain().contains(&format!("encrypted with {name}")), "{}", error.chain());
        assert!(error.advice().unwrap().contains("--as-file"));
        let info = inspect(&path, &OpenOptions::default()).unwrap();
        assert_eq!(info.qcow2.unwrap().encryption, Some(name.to_lowercase()));
        assert!(info.problem.unwrap().contains("encrypted"));
        let as_file = OpenOptions { as_file: true, ..Default::default() };
        assert!(bytes(&Image::open(&path, &as_file).unwrap()).unwrap() == file);
    }
}

#[test]
fn dirty_images_are_read() {
    let recipe = sample();
    let header = Header { incompatible: Incompatible::DIRTY, ..recipe.header() };
    let folder = folder();
    let path = write(folder.path(), "image", &recipe.build_with(header));
    assert!(bytes(&open(&path).unwrap()).is_ok());
}

/// QEMU never takes the mark of corruption back by itself, so many sound images have it.
#[test]
fn images_marked_as_corrupt_are_read_if_they_are_not() {
    let recipe = sample();
    let header = Header { incompatible: Incompatible::CORRUPT, ..recipe.header() };
    let sound = recipe.build_with(header);
    let folder = folder();
    let path = write(folder.path(), "image", &sound);
    let image = open(&path).unwrap();
    assert!(image.warnings()[0].text.contains("marked as corrupt"), "{:?}", image.warnings());
    assert!(bytes(&image).is_ok());
    let entry = |index: usize| l2_at(&recipe) + index * 8;
    let first = u64::from_be_bytes(sound[entry(0)..entry(1)].try_into().unwrap());
    // Two clusters of the disk in one place.
    let mut twice = sound.clone();
    patch(&mut twice, entry(1), first);
    assert_fails(&twice, "used by something else");
    // A place reserved for zeros that is also the L2 table.
    let mut table = sound.clone();
    patch(&mut table, entry(2), l2_at(&recipe) as u64 | 1);
    assert_fails(&table, "used by something else");
    // Compressed data in a cluster of plain data.
    let mut compressed = sound.clone();
    patch(&mut compressed, entry(3), 1 << 62 | first & 0x00ff_ffff_ffff_fe00);
    assert_fails(&compressed, "used by something else");
    let mut unaligned = sound;
    patch(&mut unaligned, entry(5), 0x200);
    assert_fails(&unaligned, "not aligned");
}

#[test]
fn tables_outside_the_file() {
    let recipe = sample();
    let file = recipe.build();
    let mut l1 = file.clone();
    patch(&mut l1, 40, 0x40_0000);
    assert_fails(&l1, "L1 table at 0x400000 lies behind its end");
    let mut l2 = file.clone();
    patch(&mut l2, l1_at(&recipe), 0x40_0000);
    assert_fails(&l2, "guest offset 0x0");
    assert_fails(&l2, "L2 table at 0x400000 lies behind its end");
    let mut data = file.clone();
    patch(&mut data, l2_at(&recipe) + 5 * 8, 0x40_0000);
    assert_fails(&data, "guest offset 0x5000");
    assert_fails(&data, "data cluster at 0x400000 lies behind its end");
    let mut compressed = file.clone();
    patch(&mut compressed, l2_at(&recipe) + 3 * 8, 1 << 62 | 0x40_0001);
    assert_fails(&compressed, "compressed cluster at 0x400001 lies behind its end");
    for len in [0, 3, 4, 71, 72, 111, 4095] {
        let error = failure(&[&b"QFI\xfb"[..], &vec![0; len]].concat());
        assert_eq!(error.kind(), ErrorKind::Image);
    }
}

/// A disk without any bytes has an L1 table without entries, which may lie anywhere.
#[test]
fn an_empty_disk_needs_no_table() {
    let recipe = Recipe::new(12, Vec::new());
    let mut file = recipe.build();
    patch(&mut file, 40, 0x4000_0000);
    let folder = folder();
    let image = open(&write(folder.path(), "image", &file)).unwrap();
    assert_eq!((image.virtual_size(), image.map().count()), (0, 0));
}

#[test]
fn tables_in_the_place_of_tables() {
    let recipe = sample();
    let file = recipe.build();
    for (place, what) in [(0x1000, "refcount table"), (0x2000, "L1 table")] {
        let mut l2 = file.clone();
        patch(&mut l2, l1_at(&recipe), place);
        assert_fails(&l2, &format!("the L2 table at {place:#x} lies in the {what}"));
        let mut data = file.clone();
        patch(&mut data, l2_at(&recipe), place);
        assert_fails(&data, &format!("the data cluster at {place:#x} lies in the {what}"));
    }
}

/// A file of a few clusters whose L1 table claims four million L2 tables must not keep a reader
/// busy for hours.
#[test]
fn more_l2_tables_than_clusters() {
    let recipe = sample();
    let entries = 4 << 20;
    let header = Header {
        declared_size: u64::from(entries) * 512 * 4096,
        l1: Table { offset: HostOffset(0x1_0000), entries },
        ..recipe.header()
    };
    let mut file = recipe.build();
    file.resize(0x1_0000, 0);
    file[..4096].copy_from_slice(&header.encode().unwrap());
    file.extend((l2_at(&recipe) as u64).to_be_bytes().repeat(entries as usize));
    assert_fails(&file, "names 4194304 L2 tables");
}

/// The last cluster of a file may be cut short: what is missing reads as zeros, as in QEMU.
#[test]
fn last_cluster_cut_short() {
    let recipe = sample();
    let file = recipe.build();
    let folder = folder();
    let path = write(folder.path(), "image", &file[..file.len() - 1000]);
    let image = open(&path).unwrap();
    let mut expected: Vec<u8> = recipe.model().into_iter().map(Option::unwrap_or_default).collect();
    expected[0x7000 - 1000..].fill(0);
    assert!(bytes(&image).unwrap() == expected);
    assert_fails(&file[..file.len() - 4096], "cut short");
}

#[test]
fn subclusters_over_a_backing_file() {
    let folder = folder();
    write(folder.path(), "base", &vec![0x42; 32 << 10]);
    let mut top = Recipe::new(14, vec![Subclusters(0x0000_00f1, 0x8000_0f00, 5), Nothing])
        .over("base", "raw");
    top.extended = true;
    let path = write(folder.path(), "top", &top.build());
    let expected: Vec<u8> = top.model().into_iter().map(|byte| byte.unwrap_or(0x42)).collect();
    let image = open(&path).unwrap();
    assert!(bytes(&image).unwrap() == expected);
    let mut extents: Vec<Extent> = Vec::new();
    image.mapper().extents(0..32 << 10, &mut extents).unwrap();
    let lens: Vec<_> = extents.iter().map(|extent| (extent.depth, extent.len / 512)).collect();
    assert_eq!(lens, [(0, 1), (1, 3), (0, 4), (0, 4), (1, 19), (0, 1), (1, 32)]);
}

#[test]
fn the_map_joins_what_qemu_joins() {
    let folder = folder();
    let recipe =
        Recipe::new(9, vec![Data(1), Compressed(2), Compressed(3), Zero, Nothing, Nothing]);
    let path = write(folder.path(), "image", &recipe.build());
    let map: Vec<_> = open(&path).unwrap().map().map(Result::unwrap).collect();
    let json = serde_json::to_string(&map[1]).unwrap();
    assert_eq!(
        json,
        r#"{"start":512,"length":1024,"depth":0,"present":true,"zero":false,"data":true,"compressed":true}"#
    );
    let short: Vec<_> = map.iter().map(|entry| (entry.length, entry.data, entry.present)).collect();
    assert_eq!(
        short,
        [(512, true, true), (1024, true, true), (512, false, true), (1024, false, false)]
    );
    assert!(map[0].offset.is_some());
}

fn content(extended: bool, version: Version) -> impl Strategy<Value = Content> {
    let seed = any::<u8>();
    let v3 = u32::from(version == Version::V3);
    prop_oneof![
        4 => Just(Nothing),
        2 * v3 => Just(Zero),
        v3 => Just(ZeroWithPlace),
        4 => seed.prop_map(Data),
        2 => seed.prop_map(Compressed),
        4 * u32::from(extended) => (any::<u32>(), any::<u32>(), seed)
            .prop_map(|(allocated, zero, seed)| Subclusters(allocated & !zero, zero, seed)),
    ]
}

prop_compose! {
    fn recipe()(
        version in prop_oneof![1 => Just(Version::V2), 4 => Just(Version::V3)],
        extended in any::<bool>(),
        zstd in any::<bool>(),
        bits in prop_oneof![9..=12_u32, Just(14), Just(16)],
        cut in 0..4_u64,
    )(
        clusters in proptest::collection::vec(
            content(extended && bits >= 14 && version == Version::V3, version),
            1..=if bits < 14 { 150 } else { 12 },
        ),
        version in Just(version),
        extended in Just(extended && bits >= 14 && version == Version::V3),
        zstd in Just(zstd && version == Version::V3),
        bits in Just(bits),
        cut in Just(cut),
    ) -> Recipe {
        let whole = Recipe::new(bits, clusters);
        let compression = if zstd { CompressionType::Zstd } else { CompressionType::Deflate };
        // Disks need not end with a cluster.
        let virtual_size = whole.virtual_size - if bits > 11 { cut * 512 } else { 0 };
        Recipe { version, extended, compression, virtual_size, ..whole }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    /// Whatever the chain, and whatever ranges are asked for in whatever order: the bytes are
    /// those of a model that knows nothing of extents.
    #[test]
    fn mapped_bytes_are_the_bytes_of_a_simple_model(
        mut chain in proptest::collection::vec(recipe(), 1..4),
        raw_base in proptest::option::of(0..100_000_usize),
        ranges in proptest::collection::vec((0.0..1.0_f64, 0.0..1.0_f64), 1..6),
    ) {
        let folder = folder();
        let mut disk = Vec::new();
        let mut below = raw_base.map(|len| {
            disk = pattern(77, len).collect();
            write(folder.path(), "raw", &disk);
            ("raw".to_owned(), Some("raw"))
        });
        for (index, recipe) in chain.iter_mut().enumerate() {
            recipe.backing = below;
            let name = format!("layer{index}");
            write(folder.path(), &name, &recipe.build());
            disk = recipe.model().into_iter().enumerate().map(|(at, byte)| {
                byte.or_else(|| disk.get(at).copied()).unwrap_or_default()
            }).collect();
            below = Some((name, Some("qcow2")));
        }
        let image = open(&folder.path().join(below.unwrap().0)).unwrap();
        prop_assert_eq!(image.virtual_size(), disk.len() as u64);
        prop_assert!(bytes(&image).unwrap() == disk);
        let mut mapper = image.mapper();
        for (one, other) in ranges {
            let place = |part: f64| (part * disk.len() as f64) as usize;
            let range = place(one.min(other))..place(one.max(other));
            let got = read(&image, &mut mapper, range.start as u64..range.end as u64).unwrap();
            prop_assert!(got == disk[range.clone()], "{:?}", range);
        }
        let map: Vec<_> = image.map().map(Result::unwrap).collect();
        let end = map.iter().fold(0, |at, entry| {
            assert_eq!(entry.start, at);
            at + entry.length
        });
        prop_assert_eq!(end, disk.len() as u64);
    }

    /// Damage anywhere in the tables ends in an error or in some bytes, never in a panic.
    #[test]
    fn damage_does_not_make_it_panic(
        recipe in recipe(),
        patches in proptest::collection::vec((0.0..1.0_f64, any::<u64>(), 0..64_u32), 1..6),
    ) {
        let mut file = recipe.build();
        for (place, value, shift) in patches {
            // Mostly in header and tables, mostly small numbers.
            let at = (place * place * (file.len() - 8) as f64) as usize / 4 * 4;
            patch(&mut file, at, value >> shift);
        }
        let folder = folder();
        let path = write(folder.path(), "image", &file);
        if let Ok(image) = open(&path) {
            let size = image.virtual_size();
            let _ = read(&image, &mut image.mapper(), 0..size.min(1 << 20));
            let _ = image.map().take(10_000).count();
        }
        let _ = inspect(&path, &OpenOptions::default());
    }
}
