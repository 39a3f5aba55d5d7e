//! The header: the first bytes of an archive.

use super::layout::Field;
use super::{METADATA_LEN_MAX, Metadata};
use crate::{FormatError, Problem};

/// The first bytes of every archive. The newline and the control character show a transfer that
/// took it for text.
pub const MAGIC: &[u8; 8] = b"qdelta\x1a\n";

/// The version of the format that this crate reads and writes.
pub const VERSION: u16 = 1;

/// Incompatible features that this crate knows: none.
pub const FEATURES_KNOWN: u16 = 0;

/// The bytes that tell how long the header is: give so many to [`header_len`].
pub const PREFIX_LEN: usize = field::METADATA_LEN.end();

/// The longest header, in bytes.
pub const HEADER_LEN_MAX: usize = PREFIX_LEN + METADATA_LEN_MAX + 4;

/// The fields before the metadata.
pub mod field {
    use super::Field;

    /// The magic bytes.
    pub const MAGIC: Field = Field::first(8, "magic");
    /// The version of the format.
    pub const VERSION: Field = MAGIC.then(2, "format version");
    /// Features without which the archive can't be read.
    pub const FEATURES: Field = VERSION.then(2, "incompatible features");
    /// The length of the metadata in bytes.
    pub const METADATA_LEN: Field = FEATURES.then(4, "metadata length");
    /// All of them, in order.
    pub const ALL: &[Field] = &[MAGIC, VERSION, FEATURES, METADATA_LEN];
}

/// The header of an archive.
///
/// # Errors
/// A field of the metadata breaks a rule, or the metadata is longer than 64 KiB.
pub fn encode(metadata: &Metadata) -> Result<Vec<u8>, FormatError> {
    let body = metadata.encode()?;
    let mut bytes = Vec::with_capacity(PREFIX_LEN + body.len() + 4);
    field::MAGIC.append(&mut bytes, 0, MAGIC);
    field::VERSION.append(&mut bytes, 0, &VERSION.to_le_bytes());
    field::FEATURES.append(&mut bytes, 0, &FEATURES_KNOWN.to_le_bytes());
    field::METADATA_LEN.append(&mut bytes, 0, &(body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&body);
    let crc = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    Ok(bytes)
}

/// How long the header is that starts with `prefix`, in bytes: at most [`HEADER_LEN_MAX`].
///
/// # Errors
/// Fewer than [`PREFIX_LEN`] bytes, no archive, a version or a feature that this crate does not
/// know, or a length out of range.
pub fn header_len(prefix: &[u8]) -> Result<usize, FormatError> {
    field::MAGIC.expect_magic(prefix, MAGIC, "a delta archive")?;
    let version = field::VERSION.u16(prefix)?;
    if version != VERSION {
        return Err(field::VERSION.error(Problem::Unsupported(format!("format version {version}"))));
    }
    let unknown = field::FEATURES.u16(prefix)? & !FEATURES_KNOWN;
    if unknown != 0 {
        let problem = Problem::Unsupported(format!("incompatible features {unknown:#06x}"));
        return Err(field::FEATURES.error(problem));
    }
    let len = field::METADATA_LEN.u32(prefix)?;
    if len as usize > METADATA_LEN_MAX {
        return Err(field::METADATA_LEN.error(Problem::OutOfRange {
            value: len.into(),
            min: 0,
            max: METADATA_LEN_MAX as u64,
        }));
    }
    Ok(PREFIX_LEN + len as usize + 4)
}

/// Decodes the header at the start of `bytes`: the metadata, and how long the header is.
///
/// # Errors
/// See [`header_len`]; fewer bytes than the header has, a wrong checksum, metadata that breaks a
/// rule.
pub fn decode(bytes: &[u8]) -> Result<(Metadata, usize), FormatError> {
    let len = header_len(bytes)?;
    let header = bytes.get(..len).ok_or_else(|| {
        let problem = Problem::Truncated { needed: len as u64, available: bytes.len() as u64 };
        FormatError::new(0, "header", problem)
    })?;
    crc_field(len).expect_crc(header)?;
    let body = header.get(PREFIX_LEN..len - 4).unwrap_or_default();
    let metadata = Metadata::decode(body).map_err(|error| error.relative_to(PREFIX_LEN as u64))?;
    Ok((metadata, len))
}

/// The checksum that ends `header`, the bytes of a whole header.
pub fn crc(header: &[u8]) -> u32 {
    header.last_chunk().copied().map_or(0, u32::from_le_bytes)
}

/// The checksum that ends a header of `len` bytes.
fn crc_field(len: usize) -> Field {
    Field { name: "header CRC-32", offset: len.saturating_sub(4), size: 4 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::{Parent, samples};

    #[test]
    fn golden_bytes() {
        let bytes = encode(&samples::full()).unwrap();
        let mut expected = Vec::new();
        expected.extend(b"qdelta\x1a\n");
        expected.extend([1, 0, 0, 0]);
        expected.extend(((bytes.len() - 20) as u32).to_le_bytes());
        expected.extend([0x11; 16]);
        for text in ["20261122T153823.412Z", "web", "vda"] {
            expected.extend((text.len() as u64).to_le_bytes());
            expected.extend(text.as_bytes());
        }
        expected.extend([0, 0, 0]);
        expected.extend(1_795_361_903_412u64.to_le_bytes());
        expected.extend((100u64 << 20).to_le_bytes());
        expected.extend(65536u32.to_le_bytes());
        expected.extend(1u32.to_le_bytes());
        expected.extend([0]);
        expected.extend(12u64.to_le_bytes());
        expected.extend(b"qdelta 0.1.0");
        expected.extend(0u64.to_le_bytes());
        expected.extend(crc32fast::hash(&expected).to_le_bytes());
        assert_eq!(bytes, expected);
    }

    #[test]
    fn golden_bytes_of_a_parent_and_an_extension() {
        let mut metadata = samples::incremental();
        metadata.extensions.push((7, vec![1, 2]));
        let bytes = encode(&metadata).unwrap();
        let mut end = vec![1];
        for text in ["web", "vda", "20261122T153823.412Z"] {
            end.extend((text.len() as u64).to_le_bytes());
            end.extend(text.as_bytes());
        }
        end.extend([0x33; 32]);
        end.extend(12u64.to_le_bytes());
        end.extend(b"qdelta 0.1.0");
        end.extend(1u64.to_le_bytes());
        end.extend(7u16.to_le_bytes());
        end.extend(2u64.to_le_bytes());
        end.extend([1, 2]);
        assert!(bytes[..bytes.len() - 4].ends_with(&end));
    }

    #[test]
    fn round_trip() {
        for metadata in [samples::full(), samples::incremental()] {
            let mut bytes = encode(&metadata).unwrap();
            let len = bytes.len();
            assert_eq!(header_len(&bytes[..PREFIX_LEN]).unwrap(), len);
            bytes.extend([9; 100]);
            assert_eq!(decode(&bytes).unwrap(), (metadata, len));
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_refused() {
        let bytes = encode(&samples::incremental()).unwrap();
        for position in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[position] ^= 1 << bit;
                assert!(decode(&flipped).is_err(), "bit {bit} of byte {position}");
            }
            assert!(decode(&bytes[..position]).is_err(), "cut at {position}");
        }
    }

    /// With a valid checksum around them, broken rules are found one by one.
    #[test]
    fn broken_rules_are_named() {
        let full = samples::full();
        let incremental = samples::incremental();
        let broken: Vec<(&str, Metadata)> = vec![
            ("parent", Metadata { parent: incremental.parent.clone(), ..full.clone() }),
            ("parent", Metadata { parent: None, ..incremental.clone() }),
            (
                "parent",
                Metadata {
                    point: incremental.parent.clone().unwrap().point,
                    ..incremental.clone()
                },
            ),
            ("domain", Metadata { domain: "a\x1b[2Jb".into(), ..full.clone() }),
            ("length of disk", Metadata { disk: String::new(), ..full.clone() }),
            ("length of point", Metadata { point: "p".repeat(256), ..full.clone() }),
            ("created", Metadata { created_ms: u64::MAX, ..full.clone() }),
            ("metadata", Metadata { extensions: vec![(1, vec![0; 70_000])], ..full.clone() }),
        ];
        for (field, metadata) in broken {
            assert_eq!(encode(&metadata).unwrap_err().field, field);
        }
    }

    /// A first point may be made against a template's point: of another domain, another disk, and
    /// called the same if both were made in one millisecond.
    #[test]
    fn a_parent_may_be_of_another_disk() {
        let metadata = samples::incremental();
        let template = Parent {
            domain: "template".into(),
            point: metadata.point.clone(),
            ..metadata.parent.clone().unwrap()
        };
        let metadata = Metadata { parent: Some(template), ..metadata };
        assert_eq!(decode(&encode(&metadata).unwrap()).unwrap().0, metadata);
    }

    /// A reader that ignored them would take their bytes for damage, or for data.
    #[test]
    fn features_that_are_not_known_are_refused_by_name() {
        let mut bytes = encode(&samples::full()).unwrap();
        for (bits, name) in [(1u16, "0x0001"), (2, "0x0002"), (0x8000, "0x8000")] {
            bytes[10..12].copy_from_slice(&bits.to_le_bytes());
            let error = header_len(&bytes).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn an_unknown_required_extension_is_refused_and_others_are_kept() {
        let mut metadata = samples::full();
        metadata.extensions.push((0x7fff, vec![1]));
        assert_eq!(decode(&encode(&metadata).unwrap()).unwrap().0, metadata);
        metadata.extensions.push((0x8000, vec![]));
        let error = decode(&encode(&metadata).unwrap()).unwrap_err();
        assert_eq!(error.problem, Problem::Unsupported("extension 0x8000".into()));
    }

    #[test]
    fn a_hostile_length_allocates_nothing() {
        // The length of the point's name, behind a valid checksum.
        let mut bytes = encode(&samples::full()).unwrap();
        let at = PREFIX_LEN + 16;
        bytes[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
        let crc_at = bytes.len() - 4;
        let crc = crc32fast::hash(&bytes[..crc_at]).to_le_bytes();
        bytes[crc_at..].copy_from_slice(&crc);
        assert_eq!(decode(&bytes).unwrap_err().field, "metadata");
    }

    proptest::proptest! {
        /// Any bytes behind a right checksum are decoded or refused, and what is decoded encodes to
        /// the same bytes.
        #[test]
        fn hostile_metadata_is_decoded_or_refused(
            edits in proptest::collection::vec((proptest::prelude::any::<u16>(), proptest::prelude::any::<u8>()), 0..8),
            cut in 0usize..400,
        ) {
            let mut bytes = encode(&samples::incremental()).unwrap();
            bytes.truncate(bytes.len() - 4);
            bytes.truncate(PREFIX_LEN.max(bytes.len().saturating_sub(cut.saturating_sub(200))));
            for (place, value) in edits {
                let body = bytes.len() - PREFIX_LEN;
                if body > 0 {
                    bytes[PREFIX_LEN + usize::from(place) % body] = value;
                }
            }
            let len = (bytes.len() - PREFIX_LEN) as u32;
            bytes[12..16].copy_from_slice(&len.to_le_bytes());
            bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
            if let Ok((metadata, used)) = decode(&bytes) {
                assert_eq!(used, bytes.len());
                assert_eq!(encode(&metadata).unwrap(), bytes);
            }
        }
    }
}
