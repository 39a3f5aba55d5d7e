#![no_main]
//! An archive whose index says anything at all, with checksums that are right: read to the end. No
//! panic, bounded memory, and blocks that pass their digests or an error.

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use qdelta::formats::archive::{Directory, FOOTER_LEN, Footer, GroupIndex, Kind};
use qdelta::vault::archive::Reader;
use qdelta::vault::chain::Chain;
use qdelta::vault::codec::Decompressor;

#[allow(dead_code, reason = "shared with the model of a chain")]
mod model;
use model::{Bytes, Disk, archive, digests, metadata};

thread_local! {
    static SOUND: Vec<u8> = sound();
}

/// A small archive with frames in two groups.
fn sound() -> Vec<u8> {
    let mut disk = Disk(vec![0; 1100]);
    for (block, fill) in [(0, 1), (1, 2), (70, 3), (1023, 4), (1024, 5), (1099, 6)] {
        disk.0[block] = fill;
    }
    let metadata = metadata(1, Kind::Full, &disk, None);
    archive(&metadata, &Disk(vec![0; 1100]), &disk, &digests())
}

fuzz_target!(|data: &[u8]| {
    let bytes = SOUND.with(|sound| damaged(sound, data));
    let Some(bytes) = bytes else { return };
    let _ = read(bytes);
});

/// The archive with bytes of its index replaced, and every checksum made right again. Each change
/// takes three bytes of `data`: which section, where in it, and what.
fn damaged(sound: &[u8], data: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = sound.to_vec();
    let len = bytes.len() as u64;
    let footer = Footer::decode(&bytes[bytes.len() - FOOTER_LEN..], len).ok()?;
    let start = footer.directory_offset as usize;
    let directory = &bytes[start..start + footer.directory_len as usize];
    let mut directory = Directory::decode(directory, footer.directory_offset).ok()?;
    for change in data.chunks_exact(3) {
        let section = directory.sections[usize::from(change[0]) % directory.sections.len()];
        if section.len > 0 {
            let at = section.offset + u64::from(change[1]) % section.len;
            bytes[at as usize] = change[2];
        }
    }
    for section in &mut directory.sections {
        let range = section.offset as usize..section.end() as usize;
        section.crc = crc32(&bytes[range]);
    }
    bytes.truncate(start);
    bytes.extend(directory.encode());
    bytes.extend(footer.encode());
    Some(bytes)
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

/// Everything that can be asked of an archive.
fn read(bytes: Vec<u8>) -> qdelta::Result<()> {
    let reader = Arc::new(Reader::open(Arc::new(Bytes(bytes)))?);
    let _ = reader.check_index();
    let mut buffer = Vec::new();
    let mut decompressor = Decompressor::new()?;
    for position in 0..reader.frame_count() {
        let Ok(entry) = reader.frame(position) else { continue };
        let Ok(mask) = reader.stored_mask(entry.first_block) else { continue };
        if let Ok(view) = reader.read_frame(&entry, mask, &mut buffer) {
            let mut raw = vec![0; view.header.raw_len()];
            decompressor.decompress(view.header.codec, view.payload, &mut raw)?;
        }
    }
    let chain = Chain::new(vec![reader])?;
    let mut cursor = chain.cursor();
    for group in 0..chain.geometry().group_count() {
        let _ = cursor.seek(GroupIndex(group));
    }
    Ok(())
}
