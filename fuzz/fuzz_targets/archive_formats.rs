#![no_main]
//! The parts of an archive: header, directory, footer, frame, bitmap. What is accepted is written
//! again, and must be the same bytes.

use libfuzzer_sys::fuzz_target;
use qdelta_formats::archive::index::{decode_bitmap, encode_bitmap};
use qdelta_formats::archive::{
    Directory, FOOTER_LEN, FRAME_ENTRY_LEN, FRAME_HEADER_LEN, Footer, FrameEntry, FrameHeader,
    FrameView, SectionKind, header,
};

fuzz_target!(|data: &[u8]| {
    let Some((choice, rest)) = data.split_first() else { return };
    // Guessing eight magic bytes is a waste of time.
    let magic: &[u8] = match choice % 6 {
        0 => b"qdelta\x1a\n\x01\0\0\0",
        1 => b"QDIX",
        2 => b"QDSEALED",
        3 => b"QDFR",
        _ => b"",
    };
    let bytes = &[magic, rest].concat()[..];
    match choice % 6 {
        0 => {
            // The checksum is made right, or hardly anything would get past it.
            let Ok(len) = header::header_len(bytes) else { return };
            let Some(sealed) = with_crc(bytes, len) else { return };
            if let Ok((metadata, used)) = header::decode(&sealed) {
                assert_eq!(header::encode(&metadata).as_deref(), Ok(&sealed[..used]));
            }
        }
        1 => {
            let Some(sealed) = with_crc(bytes, bytes.len()) else { return };
            if let Ok(directory) = Directory::decode(&sealed, 1 << 30) {
                assert_eq!(directory.encode(), sealed);
            }
        }
        2 => {
            let Some(footer) = bytes.get(..FOOTER_LEN) else { return };
            let Some(sealed) = with_crc(footer, FOOTER_LEN) else { return };
            let Some(len) = sealed.get(32..40) else { return };
            let len = u64::from_le_bytes(len.try_into().expect("8 bytes"));
            if let Ok(footer) = Footer::decode(&sealed, len) {
                assert_eq!(footer.encode(), sealed);
            }
        }
        3 => {
            let Some(sealed) = with_crc(bytes, FRAME_HEADER_LEN) else { return };
            if let Ok(header) = FrameHeader::decode(&sealed) {
                assert_eq!(
                    header.encode().as_ref().map(|bytes| &bytes[..]),
                    Ok(&sealed[..FRAME_HEADER_LEN])
                );
            }
            let _ = FrameView::decode(&sealed);
        }
        4 => {
            if let Ok(entry) = FrameEntry::decode(bytes) {
                assert_eq!(entry.encode()[..], bytes[..FRAME_ENTRY_LEN]);
            }
        }
        _ => {
            if let Ok(bitmap) = decode_bitmap(bytes, 1 << 20, SectionKind::Stored) {
                let written = encode_bitmap(bitmap.clone());
                assert_eq!(decode_bitmap(&written, 1 << 20, SectionKind::Stored), Ok(bitmap));
            }
        }
    }
});

/// The bytes with the CRC-32 of what comes before in the last four of the first `len`.
fn with_crc(bytes: &[u8], len: usize) -> Option<Vec<u8>> {
    let mut sealed = bytes.to_vec();
    let place = len.checked_sub(4)?;
    let crc = crc32(sealed.get(..place)?);
    sealed.get_mut(place..len)?.copy_from_slice(&crc.to_le_bytes());
    Some(sealed)
}

fn crc32(bytes: &[u8]) -> u32 {
    // The same polynomial as everywhere; speed is of no concern here.
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}
