//! A record of the table: what is known of a file, as a list of attributes.

use super::{Reference, name_of, time};
use crate::FormatError;
use crate::fields::Little;
use crate::filesystems::Time;

/// The types of attributes that are looked at.
pub mod kind {
    /// Times and flags.
    pub const STANDARD: u32 = 0x10;
    /// Where attributes lie that have no room in the record.
    pub const LIST: u32 = 0x20;
    /// A name.
    pub const NAME: u32 = 0x30;
    /// Content; with a name, another stream.
    pub const DATA: u32 = 0x80;
    /// The root of a folder's tree.
    pub const INDEX_ROOT: u32 = 0x90;
    /// The other nodes of it.
    pub const INDEX: u32 = 0xa0;
    /// What else stands in the place of the content: a link.
    pub const REPARSE: u32 = 0xc0;
}

const END: u32 = 0xffff_ffff;

/// The fixed fields of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// How often the record has been used.
    pub sequence: u16,
    /// Whether it is in use.
    pub in_use: bool,
    /// Whether it is a folder.
    pub is_folder: bool,
    /// The record that this one belongs to, if that is another one.
    pub base: Reference,
    attributes: usize,
    used: usize,
}

/// An attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attribute {
    /// Its type.
    pub kind: u32,
    /// Its name: any bytes.
    pub name: Vec<u8>,
    /// Whether it is compressed: clusters of a unit, or 0.
    pub unit: u64,
    /// Whether it is encrypted.
    pub is_encrypted: bool,
    /// Where its value lies.
    pub value: Value,
}

/// Where the value of an attribute lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// In the record.
    Here(Vec<u8>),
    /// In clusters.
    There {
        /// The first cluster of the value that this record speaks of.
        first: u64,
        /// Size of the value, and how much of it was written. Only the first record says so.
        size: u64,
        /// How many bytes were written; the rest reads as zeros.
        written: u64,
        /// Runs of clusters: how many, and where; none of a hole.
        runs: Vec<(u64, Option<u64>)>,
    },
}

impl Head {
    /// Reads the fixed fields of a record whose bytes have been put back.
    ///
    /// # Errors
    /// The bytes are too few, or fields make no sense.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let fields = Little::new(bytes, 0);
        let flags = fields.u16(22, "flags")?;
        let used = fields.u32(24, "bytes in use")? as usize;
        if used > bytes.len() {
            return Err(fields.invalid(24, "bytes in use", format!("{used}")));
        }
        Ok(Self {
            sequence: fields.u16(16, "sequence number")?,
            in_use: flags & 1 != 0,
            is_folder: flags & 2 != 0,
            base: Reference(fields.u64(32, "base record")?),
            attributes: usize::from(fields.u16(20, "first attribute")?),
            used,
        })
    }

    /// The attributes of the record, in order.
    ///
    /// # Errors
    /// One does not fit into the record.
    pub fn attributes(&self, bytes: &[u8]) -> Result<Vec<Attribute>, FormatError> {
        let bytes = bytes.get(..self.used).unwrap_or_default();
        let fields = Little::new(bytes, 0);
        let mut found = Vec::new();
        let mut at = self.attributes;
        loop {
            let kind = fields.u32(at, "type of an attribute")?;
            if kind == END {
                return Ok(found);
            }
            let len = fields.u32(at + 4, "length of an attribute")? as usize;
            if len < 24 || !len.is_multiple_of(8) {
                return Err(fields.invalid(at + 4, "length of an attribute", format!("{len}")));
            }
            found.push(Attribute::parse(fields.slice(at, len, "attribute")?, at as u64)?);
            at += len;
        }
    }
}

impl Attribute {
    fn parse(bytes: &[u8], base: u64) -> Result<Self, FormatError> {
        let fields = Little::new(bytes, base);
        let name_len = usize::from(fields.u8(9, "length of the name")?) * 2;
        let name_at = usize::from(fields.u16(10, "place of the name")?);
        let flags = fields.u16(12, "flags")?;
        let is_there = fields.u8(8, "whether the value is elsewhere")? != 0;
        let mut unit = 0;
        let value = if is_there {
            let runs_at = usize::from(fields.u16(32, "place of the runs")?);
            let first = fields.u64(16, "first cluster")?;
            let power = u32::from(fields.u8(34, "unit of compression")?);
            if flags & 0xff != 0 {
                if power == 0 || power > 4 {
                    return Err(fields.invalid(34, "unit of compression", format!("{power}")));
                }
                unit = 1 << power;
            }
            let (size, written) = match first {
                0 => (fields.u64(48, "size")?, fields.u64(56, "size that was written")?),
                _ => (0, 0),
            };
            let runs = runs(bytes.get(runs_at..).unwrap_or_default())
                .map_err(|error| error.relative_to(base.saturating_add(runs_at as u64)))?;
            Value::There { first, size, written, runs }
        } else {
            let len = fields.u32(16, "length of the value")? as usize;
            let at = usize::from(fields.u16(20, "place of the value")?);
            Value::Here(fields.slice(at, len, "value")?.to_vec())
        };
        Ok(Self {
            kind: fields.u32(0, "type")?,
            name: name_of(fields.slice(name_at, name_len, "name")?),
            unit,
            is_encrypted: flags & 0x4000 != 0,
            value,
        })
    }
}

/// Runs of clusters: each says its length and how far it lies from the one before.
fn runs(bytes: &[u8]) -> Result<Vec<(u64, Option<u64>)>, FormatError> {
    let fields = Little::new(bytes, 0);
    let mut found = Vec::new();
    let (mut at, mut cluster) = (0usize, 0i64);
    loop {
        let head = fields.u8(at, "head of a run")?;
        if head == 0 {
            return Ok(found);
        }
        let (len_len, place_len) = (usize::from(head & 15), usize::from(head >> 4));
        let number = |from: usize, len: usize| -> Result<u64, FormatError> {
            let bytes = fields.slice(from, len, "run")?;
            Ok(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
        };
        if len_len == 0 || len_len > 8 || place_len > 8 {
            return Err(fields.invalid(at, "head of a run", format!("{head:#x}")));
        }
        let len = number(at + 1, len_len)?;
        if len == 0 || len >= 1 << 48 {
            return Err(fields.invalid(at, "length of a run", format!("{len}")));
        }
        let place = if place_len == 0 {
            None
        } else {
            let unused = 64 - 8 * place_len as u32;
            let delta = (number(at + 1 + len_len, place_len)? << unused).cast_signed() >> unused;
            cluster = cluster.wrapping_add(delta);
            let sound = u64::try_from(cluster).ok().filter(|cluster| *cluster < 1 << 48);
            Some(sound.ok_or_else(|| fields.invalid(at, "place of a run", "outside the volume"))?)
        };
        found.push((len, place));
        at += 1 + len_len + place_len;
    }
}

/// An entry of the list of attributes that lie in other records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed {
    /// The type.
    pub kind: u32,
    /// The record that holds the attribute.
    pub record: Reference,
}

/// The entries of a list of attributes.
///
/// # Errors
/// One makes no sense.
pub fn listed(bytes: &[u8]) -> Result<Vec<Listed>, FormatError> {
    let fields = Little::new(bytes, 0);
    let mut found = Vec::new();
    let mut at = 0;
    while at + 26 <= bytes.len() {
        let len = usize::from(fields.u16(at + 4, "length of an entry")?);
        if len < 26 {
            return Err(fields.invalid(at + 4, "length of an entry", format!("{len}")));
        }
        let kind = fields.u32(at, "type of an entry")?;
        found.push(Listed { kind, record: Reference(fields.u64(at + 16, "record")?) });
        at += len;
    }
    Ok(found)
}

/// Times and flags of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standard {
    /// Last change of the content.
    pub modified: Time,
    /// Last change of the record.
    pub changed: Time,
    /// Last access.
    pub accessed: Time,
    /// Whether nobody should write to it.
    pub is_read_only: bool,
    /// Whether it is one of the system: links of other systems are marked so.
    pub is_system: bool,
}

impl Standard {
    /// Reads the value of the attribute.
    ///
    /// # Errors
    /// The bytes are too few.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let fields = Little::new(bytes, 0);
        let flags = fields.u32(32, "flags of the file")?;
        Ok(Self {
            modified: time(fields.u64(8, "time of the last change")?),
            changed: time(fields.u64(16, "time of the last change of the record")?),
            accessed: time(fields.u64(24, "time of the last access")?),
            is_read_only: flags & 1 != 0,
            is_system: flags & 4 != 0,
        })
    }
}

/// What stands in the place of a file's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reparse {
    /// A link to this target, with `/` between its names.
    Link(Vec<u8>),
    /// Something else, by its tag.
    Other(u32),
}

impl Reparse {
    /// Reads the value of the attribute.
    ///
    /// # Errors
    /// The bytes are too few.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        const MOUNT_POINT: u32 = 0xa000_0003;
        const SYMLINK: u32 = 0xa000_000c;
        const LINUX_LINK: u32 = 0xa000_001d;
        let fields = Little::new(bytes, 0);
        let tag = fields.u32(0, "tag")?;
        let names = match tag {
            MOUNT_POINT => 16,
            SYMLINK => 20,
            LINUX_LINK => return Ok(Self::Link(bytes.get(12..).unwrap_or_default().to_vec())),
            other => return Ok(Self::Other(other)),
        };
        // The name for people, or that for programs where there is none.
        let name = |at: usize| -> Result<&[u8], FormatError> {
            let (from, len) = (fields.u16(at, "place of a name")?, fields.u16(at + 2, "length")?);
            fields.slice(names + usize::from(from), len.into(), "name")
        };
        let shown = match name(12)? {
            [] => name(8)?,
            shown => shown,
        };
        let target = name_of(shown);
        let target = target.strip_prefix(br"\??\").unwrap_or(&target);
        let slashes = target.iter().map(|byte| if *byte == b'\\' { b'/' } else { *byte });
        Ok(Self::Link(slashes.collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_go_back_and_forth_and_have_holes() {
        let bytes = [0x11, 0x10, 0x20, 0x01, 0x05, 0x11, 0x02, 0xf0, 0];
        assert_eq!(runs(&bytes).unwrap(), [(16, Some(32)), (5, None), (2, Some(16))]);
        assert!(runs(&[0x11, 0x10, 0x80, 0]).is_err(), "before the volume");
        assert!(runs(&[0x11, 0, 1, 0]).is_err());
        assert!(runs(&[0x99; 20]).is_err());
        assert!(runs(&[]).is_err());
    }
}
