//! LVM2: the label of a physical volume, and the text that describes a volume group.

mod text;

use crate::fields::Little;
use crate::{FormatError, Problem};

pub use text::{Group, Logical, Physical, Stretch, parse_group};

/// Bytes of a physical volume's beginning in which its label lies.
pub const LABEL_LEN: usize = 4 * SECTOR;
/// Bytes of the header of a metadata area.
pub const AREA_HEADER_LEN: usize = 512;
/// The longest text that is read. An area of metadata has 1 MiB unless somebody asked for more.
pub const TEXT_LEN_MAX: u64 = 4 << 20;
/// Areas that are looked at. LVM makes two at most.
const AREAS_MAX: usize = 8;
const SECTOR: usize = 512;
/// What LVM starts its checksums with.
const CRC_START: u32 = 0xf597_a6cf;

/// The checksum of LVM: that of zip, begun otherwise and not turned over at the end.
fn crc(bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(!CRC_START);
    hasher.update(bytes);
    !hasher.finalize()
}

/// The label of a physical volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// The id of the physical volume, as the text of its group has it.
    pub id: String,
    /// Where areas of metadata lie, in bytes from the beginning: offset and length.
    pub areas: Vec<(u64, u64)>,
}

impl Label {
    /// Reads the label from the first [`LABEL_LEN`] bytes of a physical volume; none if there is none.
    ///
    /// # Errors
    /// There is one, and it is damaged.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, FormatError> {
        for (number, sector) in bytes.chunks_exact(SECTOR).take(4).enumerate() {
            if sector.starts_with(b"LABELONE") {
                return Self::parse_sector(sector, number as u64).map(Some);
            }
        }
        Ok(None)
    }

    fn parse_sector(sector: &[u8], number: u64) -> Result<Self, FormatError> {
        let fields = Little::new(sector, number * SECTOR as u64);
        check_crc(fields.u32(16, "label checksum")?, fields.slice(20, SECTOR - 20, "label")?)?;
        if fields.u64(8, "label sector")? != number {
            return Err(fields.invalid(8, "label sector", "the label lies elsewhere"));
        }
        if fields.slice(24, 8, "label type")? != b"LVM2 001" {
            return Err(fields.invalid(24, "label type", "not of LVM2"));
        }
        let at = fields.u32(20, "offset of the header")? as usize;
        let id = fields.slice(at, 32, "id of the physical volume")?;
        let id = id_text(id).ok_or_else(|| fields.invalid(at, "id", "not letters and digits"))?;
        // Id and size; the list of data areas, which ends with zeros; that of metadata areas.
        let mut next = at.saturating_add(40);
        let mut lists = [Vec::new(), Vec::new()];
        for list in &mut lists {
            loop {
                let offset = fields.u64(next, "offset of an area")?;
                let len = fields.u64(next.saturating_add(8), "length of an area")?;
                next = next.saturating_add(16);
                if offset == 0 {
                    break;
                }
                list.push((offset, len));
                if list.len() > AREAS_MAX {
                    return Err(fields.invalid(next, "areas", "more than LVM makes"));
                }
            }
        }
        let [_, areas] = lists;
        Ok(Self { id, areas })
    }
}

/// The id as the text of a group has it, with dashes: 6-4-4-4-4-4-6 characters.
fn id_text(bytes: &[u8]) -> Option<String> {
    let mut text = String::new();
    let mut rest = bytes;
    for len in [6, 4, 4, 4, 4, 4, 6] {
        let (part, behind) = rest.split_at_checked(len)?;
        let sound = part.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#".contains(byte));
        if !sound {
            return None;
        }
        if !text.is_empty() {
            text.push('-');
        }
        text.extend(part.iter().map(|byte| char::from(*byte)));
        rest = behind;
    }
    Some(text)
}

fn check_crc(stored: u32, bytes: &[u8]) -> Result<(), FormatError> {
    let computed = crc(bytes);
    if stored == computed {
        return Ok(());
    }
    Err(FormatError::new(0, "checksum of LVM's metadata", Problem::Checksum { stored, computed }))
}

/// Where the text of a group lies in an area of metadata, which is a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextPlace {
    /// Offset of its first byte in the area.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u64,
    /// How many of its bytes lie before the area's end; the rest follows behind the header.
    pub before_end: u64,
    checksum: u32,
}

impl TextPlace {
    /// Reads the header of an area that has `area` bytes; none if no text was written yet.
    ///
    /// # Errors
    /// The header is damaged, or the text is longer than [`TEXT_LEN_MAX`] or the area.
    pub fn parse(header: &[u8], area: u64) -> Result<Option<Self>, FormatError> {
        let fields = Little::new(header, 0);
        check_crc(
            fields.u32(0, "checksum")?,
            fields.slice(4, AREA_HEADER_LEN - 4, "header of the metadata area")?,
        )?;
        if fields.slice(4, 16, "magic")? != b" LVM2 x[5A%r0N*>" {
            return Err(fields.invalid(4, "magic", "not that of an area of metadata"));
        }
        let size = fields.u64(32, "size of the area")?.min(area);
        let (offset, len) = (fields.u64(40, "offset")?, fields.u64(48, "length")?);
        if offset == 0 {
            return Ok(None);
        }
        let header_len = AREA_HEADER_LEN as u64;
        if offset < header_len || offset >= size || len > size - header_len || len > TEXT_LEN_MAX {
            return Err(fields.invalid(40, "place of the text", "outside the area"));
        }
        let checksum = fields.u32(56, "checksum of the text")?;
        Ok(Some(Self { offset, len, before_end: len.min(size - offset), checksum }))
    }

    /// Checks the bytes of the text.
    ///
    /// # Errors
    /// They are not those that the header was written for.
    pub fn check(&self, text: &[u8]) -> Result<(), FormatError> {
        check_crc(self.checksum, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_lvm() {
        // Computed by LVM's own table: crc of nothing is its start.
        assert_eq!(crc(b""), CRC_START);
        assert_ne!(crc(b"a"), crc(b"b"));
    }

    #[test]
    fn an_id_has_dashes() {
        let id = id_text(b"abcdefghijklmnopqrstuvwxyz012345").unwrap();
        assert_eq!(id, "abcdef-ghij-klmn-opqr-stuv-wxyz-012345");
        assert_eq!(id_text(b"abcdef/hijklmnopqrstuvwxyz012345"), None);
    }
}
