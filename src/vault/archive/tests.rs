//! What a writer wrote is what a reader reads, and any damage to it is found and named.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use super::testing::{Bytes, Disk, Shared, archive, metadata, small_full, small_incremental};
use super::{Reader, Writer};
use crate::base::error::{ErrorKind, Result};
use crate::disk::io::FileStore;
use crate::formats::archive::{
    BlockIndex, Codec, Digest, GroupIndex, Kind, header, index::SectionKind,
};
use crate::vault::codec::Decompressor;

/// Opens and looks at every byte: index, then every frame.
fn read_everything(bytes: &[u8]) -> Result<Reader> {
    let reader = Reader::open(Bytes::store("small.qdelta", bytes))?;
    reader.check_index()?;
    let mut buffer = Vec::new();
    for position in 0..reader.frame_count() {
        let entry = reader.frame(position)?;
        let mask = reader.stored_mask(entry.first_block)?;
        reader.read_frame(&entry, mask, &mut buffer)?;
    }
    Ok(reader)
}

fn check_against(reader: &Reader, disk: &Disk) {
    let mut decompressor = Decompressor::new().unwrap();
    let (mut buffer, mut rank) = (Vec::new(), 0);
    for position in 0..reader.frame_count() {
        let entry = reader.frame(position).unwrap();
        let mask = reader.stored_mask(entry.first_block).unwrap();
        let view = reader.read_frame(&entry, mask, &mut buffer).unwrap();
        let mut raw = vec![0; view.header.raw_len()];
        decompressor.decompress(view.header.codec, view.payload, &mut raw).unwrap();
        for (block, bytes) in view.header.blocks().zip(raw.chunks(4096)) {
            assert!(bytes == disk.content(block as usize).bytes(4096), "block {block}");
            assert_eq!(reader.block_digest(rank).unwrap(), disk.digest(block as usize));
            rank += 1;
        }
    }
    assert_eq!(rank, reader.stored().len());
}

#[test]
fn a_full_reads_back_from_memory_and_from_a_file() {
    let (metadata, disk, bytes) = small_full();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&bytes).unwrap();
    let on_disk = Arc::new(FileStore::new(file.reopen().unwrap(), file.path()));
    for reader in [read_everything(&bytes).unwrap(), Reader::open(on_disk).unwrap()] {
        assert_eq!(*reader.metadata(), metadata);
        assert_eq!(reader.root(), disk.root());
        assert_eq!(
            reader.stored().load().unwrap().iter().collect::<Vec<_>>(),
            [0, 1, 63, 200, 1024, 1100]
        );
        assert!(reader.zero().is_empty());
        assert_eq!(reader.groups().load().unwrap().iter().collect::<Vec<_>>(), [0, 1]);
        assert_eq!(reader.group_digest(1).unwrap(), disk.group_digest(1));
        assert_eq!(reader.file_len(), bytes.len() as u64);
        assert_eq!(reader.frame_count(), 4);
        assert!(reader.block_digest(6).is_err());
        assert!(reader.frame(4).is_err());
        check_against(&reader, &disk);
    }
}

#[test]
fn an_increment_holds_what_changed_and_nothing_else() {
    let (full, before, _) = small_full();
    let mut now = before.clone();
    now.write(1, 0);
    now.write(200, 12);
    now.resize(900 * 4096);
    let metadata = metadata(2, Kind::Incremental, now.geometry, Some((&full, before.root())));
    let reader = read_everything(&archive(&metadata, &before, &now)).unwrap();
    assert_eq!(reader.stored().load().unwrap().iter().collect::<Vec<_>>(), [200]);
    assert_eq!(reader.zero().load().unwrap().iter().collect::<Vec<_>>(), [1]);
    check_against(&reader, &now);
}

#[test]
fn an_archive_without_a_block_reads_back() {
    let disk = Disk::new(0, 65536);
    let metadata = metadata(1, Kind::Full, disk.geometry, None);
    let reader = read_everything(&archive(&metadata, &disk, &disk)).unwrap();
    assert_eq!((reader.frame_count(), reader.payload_bytes()), (0, 0));
}

#[test]
fn the_summary_is_what_was_written_and_the_same_input_gives_the_same_bytes() {
    let (full, disk, bytes) = small_full();
    let empty = Disk::new(disk.geometry.virtual_size(), 4096);
    assert!(archive(&full, &empty, &disk) == bytes);
    let reader = Reader::open(Bytes::store("a", &bytes)).unwrap();
    let overhead = reader.file_len() - reader.payload_bytes();
    assert_eq!(
        overhead,
        reader.frame_area().start + 4 * 36 + (reader.file_len() - reader.index_offset())
    );
}

/// Archives of version 1. Once it is released they stay readable for ever and are not made anew;
/// until then `QDELTA_GOLDEN=write` makes them.
#[test]
fn the_golden_archives_of_version_1_stay_readable() {
    let (full, first, full_bytes) = small_full();
    let (incremental, second, incremental_bytes) = small_incremental(&full, &first);
    for (name, metadata, disk, written) in [
        ("v1-full", full, first, full_bytes),
        ("v1-incremental", incremental, second, incremental_bytes),
    ] {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/test-images/golden");
        let path = Path::new(folder).join(format!("{name}.qdelta"));
        if std::env::var_os("QDELTA_GOLDEN").is_some_and(|value| value == "write") {
            std::fs::write(&path, written).unwrap();
        }
        let bytes = &std::fs::read(&path).unwrap();
        let reader = read_everything(bytes).unwrap();
        assert_eq!(*reader.metadata(), metadata);
        assert_eq!(reader.root(), disk.root());
        check_against(&reader, &disk);
    }
}

/// Any single flipped bit anywhere is found, by whoever looks at everything.
#[test]
fn every_flipped_byte_is_found() {
    let (_, _, bytes) = small_full();
    let mut flipped = bytes.clone();
    for position in 0..bytes.len() {
        for bits in [0x01, 0x80, 0xff] {
            flipped[position] = bytes[position] ^ bits;
            let Err(error) = read_everything(&flipped) else {
                panic!("byte {position} flipped by {bits:#x} was not found");
            };
            assert_eq!(error.kind(), ErrorKind::Damaged, "byte {position}: {}", error.chain());
            assert!(error.chain().contains("small.qdelta"), "byte {position}: {}", error.chain());
        }
        flipped[position] = bytes[position];
    }
}

#[test]
fn every_cut_is_found_at_once() {
    let (_, _, bytes) = small_full();
    for len in 0..bytes.len() {
        let error = Reader::open(Bytes::store("small.qdelta", &bytes[..len])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged, "cut at {len}: {}", error.chain());
    }
    let longer = [bytes.as_slice(), &[0]].concat();
    assert!(Reader::open(Bytes::store("small.qdelta", &longer)).is_err());
}

#[test]
fn damage_in_a_frame_names_file_offset_blocks_and_bytes_of_the_disk() {
    let (_, _, mut bytes) = small_full();
    let reader = Reader::open(Bytes::store("small.qdelta", &bytes)).unwrap();
    let entry = reader.frame(1).unwrap();
    bytes[entry.offset as usize + 40] ^= 1;
    let error = read_everything(&bytes).unwrap_err().chain();
    let place = format!("small.qdelta: the frame at byte {} is damaged", entry.offset);
    assert!(error.contains(&place), "{error}");
    assert!(error.contains("blocks 200 to 200, bytes 819200 to 823296 of the disk"), "{error}");
}

#[test]
fn damage_in_the_index_names_the_section() {
    let (_, _, bytes) = small_full();
    let reader = Reader::open(Bytes::store("small.qdelta", &bytes)).unwrap();
    let at = reader.index_offset() as usize;
    let mut flipped = bytes.clone();
    flipped[at + 4 * 16 + 5] ^= 4; // Behind four frame entries lie the block digests.
    let error = read_everything(&flipped).unwrap_err().chain();
    assert!(error.contains(SectionKind::BlockDigests.name()), "{error}");
}

/// The header of one archive before the rest of another: found, even where lengths agree.
#[test]
fn halves_of_two_archives_are_told_apart() {
    let (one, disk, bytes) = small_full();
    let other = metadata(3, Kind::Full, disk.geometry, None);
    let empty = Disk::new(disk.geometry.virtual_size(), 4096);
    let others = archive(&other, &empty, &disk);
    let header_len = header::encode(&one).unwrap().len();
    let mixed = [&others[..header_len], &bytes[header_len..]].concat();
    assert!(read_everything(&mixed).unwrap_err().chain().contains("two files"));
    // The frames of the other archive under the index of this.
    let reader = Reader::open(Bytes::store("a", &bytes)).unwrap();
    let area = reader.frame_area();
    let (start, end) = (area.start as usize, area.end as usize);
    let mixed = [&bytes[..start], &others[start..end], &bytes[end..]].concat();
    assert!(read_everything(&mixed).unwrap_err().chain().contains("another archive"));
}

#[test]
fn a_writer_refuses_what_a_reader_would() {
    let disk = Disk::new(100 * 4096, 4096);
    let full = metadata(1, Kind::Full, disk.geometry, None);
    let new = || Writer::new(Box::new(Shared::default()), full.clone(), None).unwrap();
    let digest = Digest([0; 32]);
    let raw = [0; 4096];
    let refused = |result: Result<()>| {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Usage);
    };
    let mut writer = new();
    refused(writer.write_frame(BlockIndex(1), 1, Codec::Stored, &raw, &[digest]));
    refused(writer.write_frame(BlockIndex(0), 0, Codec::Stored, &[], &[]));
    refused(writer.write_frame(BlockIndex(0), 3, Codec::Stored, &raw, &[digest; 2]));
    refused(writer.write_frame(BlockIndex(0), 1, Codec::Stored, &raw, &[]));
    refused(writer.write_frame(BlockIndex(64), 1 << 36, Codec::Stored, &raw, &[digest]));
    refused(writer.mark_zero(0..1));
    refused(writer.set_group(GroupIndex(1), digest));
    writer.write_frame(BlockIndex(0), 1, Codec::Stored, &raw, &[digest]).unwrap();
    refused(writer.write_frame(BlockIndex(0), 2, Codec::Stored, &raw, &[digest]));
    refused(writer.finish(digest).map(|_| ())); // Group 0 has changed and has no digest.

    let increment = metadata(2, Kind::Incremental, disk.geometry, Some((&full, digest)));
    let mut writer = Writer::new(Box::new(Shared::default()), increment, None).unwrap();
    writer.set_group(GroupIndex(0), digest).unwrap();
    refused(writer.set_group(GroupIndex(0), digest));
    refused(writer.mark_zero(99..101));
    writer.mark_zero(5..7).unwrap();
    writer.write_frame(BlockIndex(0), 1 << 6, Codec::Stored, &raw, &[digest]).unwrap();
    refused(writer.finish(digest).map(|_| ())); // Block 6 is both stored and zero.
}

/// A sink that fails, and tables that outgrow memory.
#[test]
fn a_failing_sink_is_an_error_and_long_tables_spool() {
    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or(std::io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let blocks = 1 << 19; // 16 MiB of digests.
    let disk = Disk::new(blocks << 12, 4096);
    let full = metadata(1, Kind::Full, disk.geometry, None);
    let raw = vec![7; 64 * 4096];
    let mut payload = Vec::new();
    let mut compressor = crate::vault::codec::Compressor::new(1).unwrap();
    let codec = compressor.compress(&raw, &mut payload).unwrap();
    let run = |sink: Box<dyn Write + Send>, dir: Option<&Path>| {
        let mut writer = Writer::new(sink, full.clone(), dir)?;
        for span in 0..blocks as u32 / 64 {
            let digests: [Digest; 64] =
                std::array::from_fn(|at| Digest([(span as u8).wrapping_add(at as u8); 32]));
            writer.write_frame(BlockIndex(span * 64), u64::MAX, codec, &payload, &digests)?;
            if span % 16 == 15 {
                writer.set_group(GroupIndex(span / 16), Digest([span as u8; 32]))?;
            }
        }
        writer.finish(Digest([9; 32]))
    };
    let sink = Shared::default();
    let (_, summary) = run(Box::new(sink.clone()), None).unwrap();
    assert_eq!((summary.stored_blocks, summary.frames), (blocks, blocks / 64));
    let reader = Reader::open(Bytes::store("spooled", &sink.bytes())).unwrap();
    reader.check_index().unwrap();
    assert_eq!(reader.payload_bytes(), summary.payload_bytes);
    assert_eq!(reader.file_len(), summary.file_len);
    assert_eq!(reader.block_digest(64 * 300 + 5).unwrap(), Digest([(300 % 256 + 5) as u8; 32]));
    let error = run(Box::new(Full(summary.file_len as usize - 1)), None).map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    // A folder that can't take the tables costs no archive, and no byte of it.
    let elsewhere = Shared::default();
    run(Box::new(elsewhere.clone()), Some(Path::new("/dev/null/state"))).unwrap();
    assert!(elsewhere.bytes() == sink.bytes());
}
