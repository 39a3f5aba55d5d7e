//! Whatever happens to a file, salvage gives no wrong byte without saying so, and loses no more
//! than it must.

use proptest::prelude::*;

use std::ops::Range;
use std::sync::Arc;

use super::{Chain, GroupState, Owner};
use crate::base::cancel::Cancel;
use crate::base::error::ErrorKind;
use crate::disk::io::ReadAt;
use crate::formats::archive::{
    ArchiveId, BlockIndex, Codec, Digest, FrameHeader, GROUP_BLOCKS, GroupIndex, Kind, Mask,
    SectionKind, header, index,
};
use crate::vault::archive::Reader;
use crate::vault::archive::salvage::*;
use crate::vault::archive::testing::{Bytes, Disk, archive, metadata};
use crate::vault::codec::Decompressor;

const BLOCK: u32 = 4096;

/// Three points of one disk, and the archives of each.
struct Sample {
    disks: Vec<Disk>,
    files: Vec<Vec<u8>>,
}

fn sample() -> Sample {
    let mut disk = Disk::new(1500 * u64::from(BLOCK), BLOCK);
    let empty = disk.clone();
    for (block, seed) in [(0, 2), (1, 4), (64, 6), (65, 8), (300, 1), (700, 10), (1100, 12)] {
        disk.write(block, seed);
    }
    let first = metadata(1, Kind::Full, disk.geometry, None);
    let mut files = vec![archive(&first, &empty, &disk)];
    let mut disks = vec![disk.clone()];
    let mut below = first;
    for (id, changes) in
        [(2u8, [(1, 14), (65, 0), (500, 16)]), (3, [(300, 0), (500, 18), (900, 20)])]
    {
        let before = disk.clone();
        changes.into_iter().for_each(|(block, seed)| disk.write(block, seed));
        let next = metadata(id, Kind::Incremental, disk.geometry, Some((&below, before.root())));
        files.push(archive(&next, &before, &disk));
        disks.push(disk.clone());
        below = next;
    }
    Sample { disks, files }
}

/// What a block came to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Block {
    Sure(Vec<u8>),
    Unsure(Vec<u8>),
    Lost,
}

/// Every block of the disk, as a salvaging restore gives them.
fn restore(chain: &Chain) -> Vec<Block> {
    let mut cursor = chain.cursor();
    let mut blocks = Vec::new();
    for group in 0..chain.geometry().group_count() {
        let state = cursor.seek(GroupIndex(group)).unwrap().clone();
        assert!(state == chain.state(GroupIndex(group)).unwrap(), "group {group} asked for alone");
        blocks.extend(restore_group(chain, &state));
    }
    blocks.truncate(chain.geometry().block_count() as usize);
    blocks
}

fn restore_group(chain: &Chain, state: &GroupState) -> Vec<Block> {
    let mut blocks: Vec<Block> = (0..GROUP_BLOCKS as usize)
        .map(|index| match state.owner(index) {
            Owner::Zero => Block::Sure(vec![0; BLOCK as usize]),
            Owner::Archive(_) | Owner::Lost => Block::Lost,
        })
        .collect();
    let (mut buffer, mut decompressor) = (Vec::new(), Decompressor::new().unwrap());
    for read in state.frames() {
        let reader = &chain.archives()[read.archive];
        let Ok(view) = reader.read_frame(&read.entry, read.mask, &mut buffer) else { continue };
        let mut raw = vec![0; view.header.raw_len()];
        decompressor.decompress(view.header.codec, view.payload, &mut raw).unwrap();
        for bit in Mask(read.wanted).bits() {
            let at = view.header.offset_of(bit);
            let index = (read.entry.first_block.0 % GROUP_BLOCKS + bit) as usize;
            blocks[index] = Block::Sure(raw[at..at + BLOCK as usize].to_vec());
        }
    }
    for (index, block) in blocks.iter_mut().enumerate() {
        if let (true, Block::Sure(bytes)) = (state.is_unsure(index), &block) {
            *block = Block::Unsure(bytes.clone());
        }
    }
    let gaps = blocks.iter().any(|block| !matches!(block, Block::Sure(_)));
    assert!(gaps || !state.has_gaps());
    blocks
}

struct Outcome {
    lost: usize,
    unsure: usize,
    problems: Vec<String>,
}

/// Salvages the newest point out of these files; none of what is sure may be wrong. None if the
/// newest archive can't be named any more.
fn salvage(sample: &Sample, files: &[Vec<u8>]) -> Option<Outcome> {
    let (mut problems, mut readers) = (Vec::new(), Vec::new());
    for (at, bytes) in files.iter().enumerate() {
        let store = Bytes::store(&format!("{at}.qdelta"), bytes);
        match open(&store, &Cancel::default()) {
            Ok(salvaged) => {
                problems.extend(salvaged.problems);
                readers.push(Arc::new(salvaged.reader));
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Damaged, "{}", error.chain());
                if at + 1 == files.len() {
                    return None;
                }
                problems.push(error.chain());
            }
        }
    }
    let (chain, misfits) = Chain::salvage(readers).unwrap();
    problems.extend(misfits);
    let disk = sample.disks.last().unwrap();
    if chain.geometry() != disk.geometry {
        return None;
    }
    let mut outcome = Outcome { lost: 0, unsure: 0, problems };
    for (index, block) in restore(&chain).into_iter().enumerate() {
        match block {
            Block::Sure(bytes) => {
                let right = bytes == disk.content(index).bytes(BLOCK);
                assert!(right, "block {index} is wrong: {:?}", outcome.problems);
            }
            Block::Unsure(bytes) => {
                outcome.unsure += 1;
                let once = |disk: &Disk| bytes == disk.content(index).bytes(BLOCK);
                assert!(
                    sample.disks.iter().any(once) || bytes.iter().all(|byte| *byte == 0),
                    "block {index} never was like that"
                );
            }
            Block::Lost => outcome.lost += 1,
        }
    }
    Some(outcome)
}

#[test]
fn sound_archives_are_salvaged_whole_and_without_a_word() {
    let sample = sample();
    let outcome = salvage(&sample, &sample.files).unwrap();
    assert_eq!((outcome.lost, outcome.unsure), (0, 0));
    assert!(outcome.problems.is_empty(), "{:?}", outcome.problems);
}

/// One flipped byte costs at most the blocks of one frame, or the certainty of one archive.
#[test]
fn every_flipped_byte_costs_little_and_is_told() {
    let sample = sample();
    for file in 0..3 {
        let reader = Reader::open(Bytes::store("sound", &sample.files[file])).unwrap();
        let in_frames = reader.frame_area();
        let len = sample.files[file].len();
        // Payloads are long and all the same: every byte elsewhere, some of them.
        let frames = (in_frames.start..in_frames.end).step_by(29);
        let rest = (0..in_frames.start).chain(in_frames.end..len as u64);
        for position in frames.chain(rest) {
            let mut files = sample.files.clone();
            files[file][position as usize] ^= 0x10;
            let outcome = salvage(&sample, &files).unwrap();
            if in_frames.contains(&position) {
                assert!(outcome.lost <= 2 && outcome.unsure == 0, "byte {position} of {file}");
            } else {
                assert_eq!(outcome.lost, 0, "byte {position} of {file}");
                let told = !outcome.problems.is_empty();
                assert!(told, "byte {position} of {file}");
            }
        }
    }
}

/// A flipped byte in footer, header, tables or their checksums leaves nothing unsure: all but one
/// section of the index can be told from the rest.
#[test]
fn most_of_the_index_can_be_told_from_the_rest() {
    let sample = sample();
    let bytes = &sample.files[1];
    let reader = Reader::open(Bytes::store("sound", bytes)).unwrap();
    let zero = reader.sections.iter().find(|section| section.kind == SectionKind::Zero).unwrap();
    let directory = reader.sections.last().unwrap().end();
    let (mut unsure, mut tried) = (Vec::new(), 0);
    for position in (0..reader.header_len).chain(reader.index_offset()..bytes.len() as u64) {
        let mut files = sample.files.clone();
        files[1][position as usize] ^= 0x10;
        tried += 1;
        let bad = salvage(&sample, &files).unwrap().unsure > 0;
        let expected = (zero.offset..zero.end()).contains(&position)
            || (directory..bytes.len() as u64 - 48).contains(&position);
        if bad && !expected {
            unsure.push(position);
        }
    }
    assert!(tried > 500);
    assert!(unsure.is_empty(), "{unsure:?}");
}

#[test]
fn every_cut_gives_what_lies_before_it() {
    let sample = sample();
    let bytes = &sample.files[2];
    let reader = Reader::open(Bytes::store("sound", bytes)).unwrap();
    let frames: Vec<_> = (0..reader.frame_count()).map(|at| reader.frame(at).unwrap()).collect();
    for len in (0..bytes.len()).rev().step_by(11) {
        let mut files = sample.files.clone();
        files[2].truncate(len);
        let Some(outcome) = salvage(&sample, &files) else {
            assert!((len as u64) < reader.header_len);
            continue;
        };
        assert!(!outcome.problems.is_empty(), "cut at {len}");
        let cut = Bytes::store("cut", &files[2]);
        let found = open(&cut, &Cancel::default()).unwrap().reader.frame_count();
        let whole = frames.iter().filter(|frame| frame.end() <= len as u64).count() as u64;
        assert_eq!(found, whole, "cut at {len}");
    }
}

/// The search once took frames that it had found for frames outside the file: a byte was missing
/// from the header, so that they lay before the end that the header's copy told.
#[test]
fn bytes_missing_from_the_header_cost_nothing_but_certainty() {
    let sample = sample();
    let mut files = sample.files.clone();
    files[1].remove(0);
    let outcome = salvage(&sample, &files).unwrap();
    assert_eq!(outcome.lost, 0);
}

/// The search once took a full with a frame missing from its middle for whole: whole frames that
/// are gone leave no gap in the file, and a payload that lacks as many bytes as the next frame has
/// swallows just that.
#[test]
fn a_frame_missing_without_a_gap_leaves_its_blocks_unsure() {
    let mut sample = sample();
    sample.disks.truncate(1);
    let reader = Reader::open(Bytes::store("sound", &sample.files[0])).unwrap();
    let frame = |at| reader.frame(at).unwrap();
    let (noise, gone, next) = (frame(2), frame(3), frame(4)); // Blocks 300, 700 and 1100.
    let mut full = sample.files[0].clone();
    full.drain(gone.offset as usize..gone.end() as usize);
    let outcome = salvage(&sample, &[full]).unwrap();
    // The 63 others of the spans between 300's and 1100's, and those behind the last one.
    assert_eq!((outcome.lost, outcome.unsure), (0, (1088 - 320) + (1500 - 1152)));
    let mut full = sample.files[0].clone();
    let at = noise.offset as usize + 40;
    full.drain(at..at + (next.offset - gone.offset) as usize);
    let outcome = salvage(&sample, &[full]).unwrap();
    assert_eq!(outcome.lost, 1);
    assert!(outcome.unsure > 0);
}

/// A cut right between two frames leaves nothing that looks damaged.
#[test]
fn a_cut_between_two_frames_leaves_the_blocks_behind_it_unsure() {
    let mut sample = sample();
    sample.disks.truncate(1);
    let reader = Reader::open(Bytes::store("sound", &sample.files[0])).unwrap();
    let cut = reader.frame(2).unwrap(); // Holds block 300, the third of five frames.
    let mut full = sample.files[0].clone();
    full.truncate(cut.end() as usize);
    let outcome = salvage(&sample, &[full]).unwrap();
    assert_eq!((outcome.lost, outcome.unsure), (0, 1500 - 320));
}

#[test]
fn a_missing_archive_leaves_what_newer_ones_hold_and_doubts_the_rest() {
    let sample = sample();
    let files = [sample.files[0].clone(), sample.files[2].clone()];
    let outcome = salvage(&sample, &files).unwrap();
    // Blocks 300, 500 and 900 are in the newest; everything else may have changed in between.
    assert_eq!((outcome.lost, outcome.unsure), (0, 1500 - 3));
    assert!(outcome.problems[0].contains("2.qdelta") || outcome.problems[0].contains("1.qdelta"));
    let outcome = salvage(&sample, &sample.files[1..]).unwrap();
    assert_eq!((outcome.lost, outcome.unsure), (0, 1500 - 5));
}

#[test]
fn archives_of_other_chains_are_left_out() {
    let sample = sample();
    let disk = &sample.disks[0];
    let empty = Disk::new(disk.geometry.virtual_size(), BLOCK);
    let stranger = metadata(9, Kind::Full, disk.geometry, None);
    let mut files = sample.files.clone();
    files.insert(1, archive(&stranger, &empty, disk));
    let outcome = salvage(&sample, &files).unwrap();
    assert_eq!((outcome.lost, outcome.unsure), (0, 0));
    assert!(outcome.problems[0].contains("is not of the chain"), "{:?}", outcome.problems);
}

/// A disk may hold archives: their frames come to light when the frame around them is damaged.
#[test]
fn frames_within_the_guests_data_are_never_taken_for_ours() {
    let mut inner = FrameHeader {
        codec: Codec::Stored,
        block_size: BLOCK,
        frame_blocks: 64,
        sequence: 0,
        first_block: BlockIndex(0),
        payload_len: BLOCK,
        mask: 1,
        archive_tag: ArchiveId([7; 16]).tag(),
        payload_crc: 0,
    };
    let payload = vec![0x55; BLOCK as usize];
    inner.payload_crc = crc32fast::hash(&payload);
    let mut guest = inner.encode().unwrap().to_vec();
    guest.extend(&payload);
    guest.resize(2 * BLOCK as usize, 3);
    let disk = Disk::new(128 * u64::from(BLOCK), BLOCK);
    let meta = metadata(1, Kind::Full, disk.geometry, None);
    let sink = crate::vault::archive::testing::Shared::default();
    let mut writer =
        crate::vault::archive::Writer::new(Box::new(sink.clone()), meta, None).unwrap();
    let digests = [Digest([0; 32]); 2];
    writer.write_frame(BlockIndex(64), 3, Codec::Stored, &guest, &digests).unwrap();
    writer.set_group(GroupIndex(0), digests[0]).unwrap();
    writer.finish(digests[0]).unwrap();
    let mut bytes = sink.bytes();
    let frame = Reader::open(Bytes::store("a", &bytes)).unwrap().frame(0).unwrap();
    // Both the outer header and the index are gone.
    bytes[frame.offset as usize + 9] ^= 1;
    bytes.truncate(frame.end() as usize);
    let found = scan(&*Bytes::store("a", &bytes), &Cancel::default()).unwrap();
    assert!(found.metadata.is_some() && found.frames.is_empty() && found.damaged.is_empty());
    assert_eq!(found.bad_ranges.len(), 1);
    assert_eq!(found.bad_ranges[0], frame.offset..frame.end());
}

/// Headers that each claim the same two megabytes must not be checked one by one.
#[test]
fn a_hostile_file_costs_no_more_than_reading_it_some_times() {
    let hostile = FrameHeader {
        codec: Codec::Zstd,
        block_size: 2 << 20,
        frame_blocks: 1,
        sequence: 0,
        first_block: BlockIndex(0),
        payload_len: (2 << 20) - 1,
        mask: 1,
        archive_tag: [1; 4],
        payload_crc: 1,
    };
    let one = hostile.encode().unwrap();
    let bytes: Vec<u8> = one.iter().copied().cycle().take(24 << 20).collect();
    let started = std::time::Instant::now();
    let found = scan(&*Bytes::store("a", &bytes), &Cancel::default()).unwrap();
    assert!(found.frames.is_empty());
    // Checked one by one these would be 1.4 terabytes.
    assert!(started.elapsed().as_secs() < 60);
    let headers: Vec<u8> = [header::MAGIC.as_slice(), &[1, 0, 0, 0, 0, 0, 1, 0]].concat();
    let bytes: Vec<u8> = headers.iter().copied().cycle().take(8 << 20).collect();
    scan(&*Bytes::store("a", &bytes), &Cancel::default()).unwrap();
    assert!(started.elapsed().as_secs() < 120);
}

/// A file on a disk with sectors that can't be read.
struct BadDisk {
    bytes: std::sync::Arc<dyn ReadAt>,
    bad: Range<u64>,
}

impl ReadAt for BadDisk {
    fn path(&self) -> &std::path::Path {
        self.bytes.path()
    }

    fn len(&self) -> std::io::Result<u64> {
        self.bytes.len()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
        if offset < self.bad.end && offset + buffer.len() as u64 > self.bad.start {
            return Err(std::io::Error::other("bad sector"));
        }
        self.bytes.read_at(buffer, offset)
    }
}

/// A sector that can't be read costs the frames in it, wherever it lies.
#[test]
fn bad_sectors_cost_the_frames_in_them() {
    let mut disk = Disk::new(600 * u64::from(BLOCK), BLOCK);
    let empty = disk.clone();
    (0..600).for_each(|block| disk.write(block, 2 * block as u32 + 1)); // Noise: long frames.
    let meta = metadata(1, Kind::Full, disk.geometry, None);
    let bytes = archive(&meta, &empty, &disk);
    let sound = Reader::open(Bytes::store("sound", &bytes)).unwrap();
    let frames: Vec<_> = (0..sound.frame_count()).map(|at| sound.frame(at).unwrap()).collect();
    assert_eq!(frames.len(), 10);
    for sector in [0, 65, 200, sound.index_offset() / 4096, bytes.len() as u64 / 4096] {
        let bad = sector * 4096..(sector + 1) * 4096;
        let store: Arc<dyn ReadAt> =
            Arc::new(BadDisk { bytes: Bytes::store("bad", &bytes), bad: bad.clone() });
        let found = scan(&*store, &Cancel::default()).unwrap();
        let whole = |frame: &&crate::formats::archive::FrameEntry| {
            frame.end() <= bad.start || frame.offset >= bad.end
        };
        assert_eq!(found.frames.len(), frames.iter().filter(whole).count(), "sector {sector}");
        let salvaged = open(&store, &Cancel::default()).unwrap();
        let (chain, _) = Chain::salvage(vec![Arc::new(salvaged.reader)]).unwrap();
        for (index, block) in restore(&chain).into_iter().enumerate() {
            let right = Block::Sure(disk.content(index).bytes(BLOCK));
            let of = |frame: &crate::formats::archive::FrameEntry| {
                index / 64 == frame.first_block.0 as usize / 64
            };
            if frames.iter().filter(whole).any(of) {
                assert!(block == right, "block {index}, sector {sector}");
            } else {
                assert!(matches!(block, Block::Lost), "block {index}, sector {sector}");
            }
        }
    }
}

#[test]
fn a_search_can_be_cancelled() {
    let cancel = Cancel::default();
    cancel.cancel();
    let error = scan(&*Bytes::store("a", &[0; 100]), &cancel).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted);
}

/// Zeros without end: an archive that a crash, or somebody, made a terabyte long. Whoever reads far
/// into it asks to stop.
#[derive(Debug)]
struct Zeros(Cancel);

impl ReadAt for Zeros {
    fn path(&self) -> &std::path::Path {
        std::path::Path::new("zeros")
    }

    fn len(&self) -> std::io::Result<u64> {
        Ok(1 << 40)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
        if offset > 32 << 20 {
            self.0.cancel();
        }
        assert!(offset < 256 << 20, "it goes on though it was asked to stop");
        buffer.fill(0);
        Ok(buffer.len())
    }
}

/// A salvage of an archive with a terabyte of holes went through them deaf to SIGTERM.
#[test]
fn a_search_through_nothing_can_be_cancelled() {
    let cancel = Cancel::default();
    let error = scan(&Zeros(cancel.clone()), &cancel).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted);
}

/// A damage to a file.
#[derive(Debug, Clone)]
enum Damage {
    Flip(u16, u8),
    Zero(u16, u16),
    Cut(u16),
    Remove(u16, u16),
    Double(u16, u16),
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        (any::<u16>(), 1u8..).prop_map(|(at, bits)| Damage::Flip(at, bits)),
        (any::<u16>(), 1u16..6000).prop_map(|(at, len)| Damage::Zero(at, len)),
        any::<u16>().prop_map(Damage::Cut),
        (any::<u16>(), 1u16..6000).prop_map(|(at, len)| Damage::Remove(at, len)),
        (any::<u16>(), 1u16..6000).prop_map(|(at, len)| Damage::Double(at, len)),
    ]
}

fn apply(bytes: &mut Vec<u8>, damage: &Damage) {
    if bytes.is_empty() {
        return;
    }
    let at = |place: u16| usize::from(place) * bytes.len() / 65_536;
    match *damage {
        Damage::Flip(place, bits) => {
            let at = at(place);
            bytes[at] ^= bits;
        }
        Damage::Zero(place, len) => {
            let at = at(place);
            let end = (at + usize::from(len)).min(bytes.len());
            bytes[at..end].fill(0);
        }
        Damage::Cut(place) => bytes.truncate(at(place)),
        Damage::Remove(place, len) => {
            let at = at(place);
            bytes.drain(at..(at + usize::from(len)).min(bytes.len()));
        }
        Damage::Double(place, len) => {
            let at = at(place);
            let piece = bytes[at..(at + usize::from(len)).min(bytes.len())].to_vec();
            bytes.splice(at..at, piece);
        }
    }
}

proptest! {
    /// Any mix of damages to any of the files: nothing sure is wrong, nothing panics.
    #[test]
    fn nothing_sure_is_wrong_whatever_was_damaged(
        damages in prop::collection::vec((0usize..3, damage()), 1..5),
    ) {
        let sample = sample();
        let mut files = sample.files.clone();
        for (file, damage) in &damages {
            apply(&mut files[*file], damage);
        }
        salvage(&sample, &files);
    }

    /// Bytes of the index changed and its checksums set right again: a reader opens it or refuses
    /// it, and reading what opened never panics.
    #[test]
    fn hostile_indexes_never_panic(
        edits in prop::collection::vec((any::<u16>(), any::<u8>()), 1..6),
        file in 0usize..3,
    ) {
        let mut bytes = sample().files.swap_remove(file);
        let sound = Reader::open(Bytes::store("a", &bytes)).unwrap();
        let (start, sections) = (sound.index_offset() as usize, sound.sections.clone());
        let directory = sections.last().unwrap().end() as usize;
        for (place, value) in edits {
            let at = start + usize::from(place) * (bytes.len() - start) / 65_536;
            bytes[at] = value;
        }
        for (number, section) in sections.iter().enumerate() {
            let range = section.offset as usize..section.end() as usize;
            let crc = crc32fast::hash(&bytes[range]).to_le_bytes();
            let record = directory + index::DIRECTORY_HEAD_LEN + number * index::SECTION_RECORD_LEN;
            bytes[record + 4..record + 8].copy_from_slice(&crc);
        }
        for (from, end) in [(directory, bytes.len() - 48 - 4), (bytes.len() - 48, bytes.len() - 4)] {
            let crc = crc32fast::hash(&bytes[from..end]).to_le_bytes();
            bytes[end..end + 4].copy_from_slice(&crc);
        }
        let store = Bytes::store("a", &bytes);
        if let Ok(reader) = Reader::open(Arc::clone(&store)) {
            let _ = reader.check_index();
            let mut buffer = Vec::new();
            for position in 0..reader.frame_count() {
                if let Ok(entry) = reader.frame(position) {
                    let Ok(mask) = reader.stored_mask(entry.first_block) else { continue };
                    let _ = reader.read_frame(&entry, mask, &mut buffer);
                }
            }
            if let Ok(chain) = Chain::new(vec![Arc::new(reader)]) {
                let mut cursor = chain.cursor();
                for group in 0..chain.geometry().group_count().min(10) {
                    let _ = cursor.seek(GroupIndex(group));
                }
            }
        }
        if let Ok(salvaged) = open(&store, &Cancel::default())
            && let Ok((chain, _)) = Chain::salvage(vec![Arc::new(salvaged.reader)])
        {
            for group in 0..chain.geometry().group_count().min(10) {
                let _ = chain.cursor().seek(GroupIndex(group));
            }
        }
    }
}
