//! What the superblocks of filesystems say of themselves: how large the filesystem is, and whether it was
//! left in order. Enough to tell a filesystem that was cut or written over from one that a guest had
//! in use; what is below the superblock, the filesystem's own checker looks at.

use std::fmt;

use byteorder::{BigEndian, ByteOrder};

use super::ext::journal::crc32c;
use super::fat;
use crate::fields::Little;
use crate::volumes::Content;
use crate::{FormatError, Problem};

/// Bytes of a volume's beginning that [`Superblock::parse`] looks at.
pub const LEN: usize = BTRFS + 4096;

/// Where Btrfs has its first superblock.
const BTRFS: usize = 64 << 10;
/// Where ext has its superblock, of 1024 bytes.
const EXT: usize = 1024;

/// What a superblock says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// Size of the filesystem on this volume, in bytes.
    pub size: u64,
    /// How it was left.
    pub state: State,
}

/// How a filesystem was left, as far as its superblock tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// In order: nothing is to be done before it is used.
    Clean,
    /// In use: its journal holds changes that are not in their places yet. That is how a running guest's
    /// filesystem looks, and nothing is wrong with it.
    Journal,
    /// In use, and it has no journal.
    InUse,
    /// It was found damaged when it was used, and says so.
    Errors,
    /// Its superblock does not say.
    Unknown,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Clean => "clean",
            Self::Journal => "its journal is to be replayed",
            Self::InUse => "in use",
            Self::Errors => "marked as damaged",
            Self::Unknown => "sound as far as its superblock tells",
        })
    }
}

impl Superblock {
    /// Reads the superblock of a filesystem of this kind at the beginning of a volume: of [`LEN`] bytes, or
    /// all of a shorter volume. None for a kind whose superblock is not known here.
    ///
    /// # Errors
    /// It is not what a superblock of this kind can be.
    pub fn parse(content: Content, bytes: &[u8]) -> Result<Option<Self>, FormatError> {
        match content {
            Content::Ext => ext(bytes).map(Some),
            Content::Xfs => xfs(bytes).map(Some),
            Content::Btrfs => btrfs(bytes).map(Some),
            Content::Fat => of_fat(bytes).map(Some),
            Content::Ntfs => ntfs(bytes).map(Some),
            _ => Ok(None),
        }
    }
}

/// A size that is a product of fields.
fn size_of(count: u64, unit: u64, fields: &Little<'_>, at: usize) -> Result<u64, FormatError> {
    let size = count.checked_mul(unit).filter(|size| *size > 0);
    size.ok_or_else(|| fields.invalid(at, "size of the filesystem", format!("{count} × {unit}")))
}

fn checked(at: usize, stored: u32, computed: u32) -> Result<(), FormatError> {
    match stored == computed {
        true => Ok(()),
        false => Err(FormatError::new(
            at as u64,
            "checksum of the superblock",
            Problem::Checksum { stored, computed },
        )),
    }
}

fn ext(bytes: &[u8]) -> Result<Superblock, FormatError> {
    const INCOMPAT_RECOVER: u32 = 0x4;
    const INCOMPAT_64BIT: u32 = 0x80;
    const RO_METADATA_CSUM: u32 = 0x400;
    let fields = Little::new(bytes, 0);
    let block = fields.slice(EXT, 1024, "superblock")?;
    if fields.u16(EXT + 56, "magic")? != 0xef53 {
        return Err(FormatError::new(EXT as u64 + 56, "magic", Problem::BadMagic("ext")));
    }
    let shift = fields.u32(EXT + 24, "size of blocks")?;
    if shift > 6 {
        return Err(fields.invalid(EXT + 24, "size of blocks", format!("2^{shift} KiB")));
    }
    if fields.u32(EXT + 32, "blocks of a group")? == 0 || fields.u32(EXT, "inodes")? == 0 {
        return Err(fields.invalid(EXT, "superblock", "it has no blocks or no inodes"));
    }
    let incompat = fields.u32(EXT + 96, "features")?;
    if fields.u32(EXT + 100, "features")? & RO_METADATA_CSUM != 0 {
        let stored = fields.u32(EXT + 1020, "checksum of the superblock")?;
        checked(EXT + 1020, stored, crc32c(!0, block.get(..1020).unwrap_or_default()))?;
    }
    let mut blocks = u64::from(fields.u32(EXT + 4, "blocks")?);
    if incompat & INCOMPAT_64BIT != 0 {
        blocks |= u64::from(fields.u32(EXT + 336, "blocks")?) << 32;
    }
    let flags = fields.u16(EXT + 58, "state")?;
    let state = match flags {
        _ if flags & 2 != 0 => State::Errors,
        _ if incompat & INCOMPAT_RECOVER != 0 => State::Journal,
        _ if flags & 1 != 0 => State::Clean,
        _ => State::InUse,
    };
    Ok(Superblock { size: size_of(blocks, 1024 << shift, &fields, EXT + 4)?, state })
}

/// XFS writes its numbers big end first.
fn xfs(bytes: &[u8]) -> Result<Superblock, FormatError> {
    let fields = Little::new(bytes, 0);
    let block_size = fields.slice(4, 4, "size of blocks").map(BigEndian::read_u32)?;
    let sector = fields.slice(102, 2, "size of sectors").map(BigEndian::read_u16)?;
    let is_power = |number: u32| (512..=65536).contains(&number) && number.is_power_of_two();
    if !is_power(block_size) || !is_power(sector.into()) {
        return Err(fields.invalid(4, "size of blocks and sectors", "no power of two"));
    }
    if fields.u8(126, "progress of mkfs")? != 0 {
        return Err(fields.invalid(126, "progress of mkfs", "it was never made to the end"));
    }
    let version = fields.slice(100, 2, "version").map(BigEndian::read_u16)? & 0xf;
    if version == 5 {
        // The checksum is computed with its own field as zeros, and is the one number with its small end
        // first.
        let stored = fields.u32(224, "checksum of the superblock")?;
        let block = fields.slice(0, sector.into(), "superblock")?;
        let (before, after) = block.split_at(224.min(block.len()));
        let sum = crc32c(crc32c(!0, before), &[0; 4]);
        checked(224, stored, !crc32c(sum, after.get(4..).unwrap_or_default()))?;
    }
    let blocks = fields.slice(8, 8, "blocks").map(BigEndian::read_u64)?;
    // Whether the log is to be replayed only the log itself tells.
    Ok(Superblock { size: size_of(blocks, block_size.into(), &fields, 8)?, state: State::Unknown })
}

fn btrfs(bytes: &[u8]) -> Result<Superblock, FormatError> {
    let fields = Little::new(bytes, 0);
    let block = fields.slice(BTRFS, 4096, "superblock")?;
    if fields.u16(BTRFS + 196, "kind of checksums")? == 0 {
        let stored = fields.u32(BTRFS, "checksum of the superblock")?;
        checked(BTRFS, stored, !crc32c(!0, block.get(32..).unwrap_or_default()))?;
    }
    // This device's part of a filesystem that may have several.
    let size =
        size_of(fields.u64(BTRFS + 201 + 8, "size of the device")?, 1, &fields, BTRFS + 209)?;
    let log = fields.u64(BTRFS + 96, "tree of the log")?;
    Ok(Superblock { size, state: if log == 0 { State::Clean } else { State::Journal } })
}

fn of_fat(bytes: &[u8]) -> Result<Superblock, FormatError> {
    let parameters = fat::Parameters::parse(bytes)?;
    let fields = Little::new(bytes, 0);
    let at = if parameters.width == fat::Width::Fat32 { 65 } else { 37 };
    let flags = fields.u8(at, "state")?;
    let state = match flags {
        _ if flags & 2 != 0 => State::Errors,
        _ if flags & 1 != 0 => State::InUse,
        _ => State::Clean,
    };
    Ok(Superblock { size: parameters.size, state })
}

fn ntfs(bytes: &[u8]) -> Result<Superblock, FormatError> {
    let fields = Little::new(bytes, 0);
    let sector = fields.u16(11, "size of sectors")?;
    if !(256..=4096).contains(&sector) || !sector.is_power_of_two() {
        return Err(fields.invalid(11, "size of sectors", sector.to_string()));
    }
    let sectors = fields.u64(40, "sectors")?;
    let cluster = u64::from(fields.u8(13, "sectors of a cluster")?);
    let mft = fields.u64(48, "place of the MFT")?;
    // More than 128 sectors are written as a negative power.
    let cluster = if cluster > 128 { 1 << (256 - cluster).min(32) } else { cluster };
    if cluster == 0 || mft == 0 || mft.saturating_mul(cluster) >= sectors {
        return Err(fields.invalid(48, "place of the MFT", "not within the filesystem"));
    }
    Ok(Superblock { size: size_of(sectors, sector.into(), &fields, 40)?, state: State::Unknown })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever stands there, nothing panics, and a short volume is an error or nothing.
    #[test]
    fn any_bytes_are_read_or_refused() {
        let kinds = [
            Content::Ext,
            Content::Xfs,
            Content::Btrfs,
            Content::Fat,
            Content::Ntfs,
            Content::Swap,
        ];
        for kind in kinds {
            for fill in [0, 1, 0x53, 0xff] {
                for len in [0, 1, 511, 512, 1024, 2047, 4096, BTRFS + 100, LEN] {
                    let read = Superblock::parse(kind, &vec![fill; len]);
                    assert!(kind != Content::Swap || read == Ok(None));
                }
            }
        }
    }
}
