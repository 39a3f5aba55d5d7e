//! The journal of ext3 and ext4: what was decided and may not have reached its place yet.

use std::collections::{BTreeMap, HashMap};

use byteorder::{BigEndian, ByteOrder};

use crate::{FormatError, Problem};

const MAGIC: u32 = 0xc03b_3998;
/// Bytes of the header of a block of the journal that is not data.
const HEADER_LEN: usize = 12;
const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const SUPERBLOCK_1: u32 = 3;
const SUPERBLOCK_2: u32 = 4;
const REVOKE: u32 = 5;

mod incompatible {
    pub(super) const WIDE: u32 = 0x2;
    pub(super) const CSUM_2: u32 = 0x8;
    pub(super) const CSUM_3: u32 = 0x10;
    pub(super) const FAST_COMMIT: u32 = 0x20;
    pub(super) const KNOWN: u32 = 0x3f;
}

/// The blocks that a journal may name. A journal of 10 GiB, which nobody has, holds fewer.
const BLOCKS_MAX: usize = 4 << 20;

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    at.checked_add(4).and_then(|end| bytes.get(at..end)).map_or(0, BigEndian::read_u32)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    at.checked_add(2).and_then(|end| bytes.get(at..end)).map_or(0, BigEndian::read_u16)
}

/// The first block of a journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Journal {
    /// Bytes of a block, which are those of the filesystem.
    pub block: u64,
    /// The first block of the ring.
    first: u32,
    /// The block behind the ring.
    end: u32,
    /// Where the oldest transaction begins; 0 if nothing is to be done.
    start: u32,
    /// Its number.
    sequence: u32,
    features: u32,
    uuid: [u8; 16],
}

/// Where the newest version of blocks lies that have not reached their places.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Replay {
    /// By block of the filesystem: the block of the journal, and whether its first four bytes were put
    /// to zero, because they looked like those of a block of the journal itself.
    pub blocks: BTreeMap<u64, (u32, bool)>,
    /// How many transactions were complete.
    pub transactions: u32,
}

impl Journal {
    /// Reads the first block of a journal.
    ///
    /// # Errors
    /// It is not one, or it has a feature that is not known here.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let wrong = |at: u64, problem: String| {
            FormatError::new(at, "superblock of the journal", Problem::Invalid(problem.into()))
        };
        let kind = u32_at(bytes, 4);
        if u32_at(bytes, 0) != MAGIC || !matches!(kind, SUPERBLOCK_1 | SUPERBLOCK_2) {
            return Err(wrong(0, "not that of a journal".to_owned()));
        }
        let features = if kind == SUPERBLOCK_2 { u32_at(bytes, 40) } else { 0 };
        if features & !incompatible::KNOWN != 0 {
            let text = format!("feature {features:#x} of the journal");
            return Err(FormatError::new(40, "s_feature_incompat", Problem::Unsupported(text)));
        }
        let fast = match features & incompatible::FAST_COMMIT {
            0 => 0,
            _ => match u32_at(bytes, 84) {
                0 => 256,
                blocks => blocks,
            },
        };
        let (block, len, first) = (u32_at(bytes, 12), u32_at(bytes, 16), u32_at(bytes, 20));
        let end = len.saturating_sub(fast);
        if !block.is_power_of_two()
            || !(1024..=65536).contains(&block)
            || first == 0
            || first >= end
        {
            return Err(wrong(12, format!("blocks {first} to {end} of {block} bytes")));
        }
        let start = u32_at(bytes, 28);
        if start != 0 && !(first..end).contains(&start) {
            return Err(wrong(28, format!("it begins at block {start} of {end}")));
        }
        let uuid = bytes.get(48..64).and_then(|uuid| uuid.try_into().ok()).unwrap_or_default();
        let sequence = u32_at(bytes, 24);
        Ok(Self { block: block.into(), first, end, start, sequence, features, uuid })
    }

    /// Whether its last changes may be in a form that is not read here: small ones between commits.
    pub fn has_fast_commits(&self) -> bool {
        self.features & incompatible::FAST_COMMIT != 0
    }

    /// Finds all blocks of complete transactions. `read` gives a block of the journal by its number.
    ///
    /// # Errors
    /// Those of `read`; and there are more blocks than a journal holds.
    pub fn replay<E: From<FormatError>>(
        &self,
        mut read: impl FnMut(u32) -> Result<Vec<u8>, E>,
    ) -> Result<Replay, E> {
        let mut replay = Replay::default();
        if self.start == 0 {
            return Ok(replay);
        }
        // By block: the number of the last transaction that took back what was written before.
        let mut revoked: HashMap<u64, u32> = HashMap::new();
        let mut written: HashMap<u64, (u32, u32, bool)> = HashMap::new();
        let mut open: Vec<(u64, u32, bool)> = Vec::new();
        let mut open_revoked: Vec<u64> = Vec::new();
        let (mut at, mut sequence) = (self.start, self.sequence);
        // A ring: no more blocks than it has.
        let mut left = self.end - self.first;
        while left > 0 {
            let block = read(at)?;
            let is_ours = u32_at(&block, 0) == MAGIC && u32_at(&block, 8) == sequence;
            let kind = if is_ours { u32_at(&block, 4) } else { 0 };
            let mut used = 1;
            match kind {
                DESCRIPTOR if self.has_right_tail(&block) => {
                    for (target, escaped) in self.tags(&block) {
                        open.push((target, self.step(at, used), escaped));
                        used += 1;
                    }
                }
                REVOKE if self.has_right_tail(&block) => open_revoked.extend(self.revokes(&block)),
                COMMIT if self.has_right_commit(&block) => {
                    for target in open_revoked.drain(..) {
                        revoked.insert(target, sequence);
                    }
                    for (target, place, escaped) in open.drain(..) {
                        written.insert(target, (sequence, place, escaped));
                    }
                    replay.transactions += 1;
                    sequence = sequence.wrapping_add(1);
                }
                _ => break,
            }
            if open.len() + open_revoked.len() + written.len() + revoked.len() > BLOCKS_MAX {
                let problem = Problem::Invalid("more blocks than a journal holds".into());
                return Err(FormatError::new(0, "journal", problem).into());
            }
            left = left.saturating_sub(used);
            at = self.step(at, used);
        }
        for (target, (sequence, place, escaped)) in written {
            // Numbers of transactions go round.
            let is_revoked =
                revoked.get(&target).is_some_and(|by| by.wrapping_sub(sequence).cast_signed() >= 0);
            if !is_revoked {
                replay.blocks.insert(target, (place, escaped));
            }
        }
        Ok(replay)
    }

    /// The block of the ring that is `count` blocks behind `at`.
    fn step(&self, at: u32, count: u32) -> u32 {
        let len = u64::from(self.end - self.first);
        let offset = u64::from(at - self.first) + u64::from(count);
        self.first + (offset % len) as u32
    }

    fn has(&self, feature: u32) -> bool {
        self.features & feature != 0
    }

    fn has_checksums(&self) -> bool {
        self.has(incompatible::CSUM_2 | incompatible::CSUM_3)
    }

    /// The blocks that a descriptor names: where each goes, and whether it was escaped.
    fn tags(&self, block: &[u8]) -> Vec<(u64, bool)> {
        let (wide, third) = (self.has(incompatible::WIDE), self.has(incompatible::CSUM_3));
        let len = match (third, wide) {
            (true, _) => 16,
            (false, true) => 12 + if self.has(incompatible::CSUM_2) { 2 } else { 0 },
            (false, false) => 8 + if self.has(incompatible::CSUM_2) { 2 } else { 0 },
        };
        let end = block.len().saturating_sub(if self.has_checksums() { 4 } else { 0 });
        let mut found = Vec::new();
        let mut at = HEADER_LEN;
        while at + len <= end {
            let low = u64::from(u32_at(block, at));
            let flags = if third { u32_at(block, at + 4) } else { u16_at(block, at + 6).into() };
            let high = if wide { u64::from(u32_at(block, at + 8)) } else { 0 };
            found.push((low | high << 32, flags & 1 != 0));
            // The same id as before, or one of its own.
            at += len + if flags & 2 != 0 { 0 } else { 16 };
            if flags & 8 != 0 {
                break;
            }
        }
        found
    }

    fn revokes(&self, block: &[u8]) -> Vec<u64> {
        let len = if self.has(incompatible::WIDE) { 8 } else { 4 };
        let used = (u32_at(block, HEADER_LEN) as usize).min(block.len());
        let list = block.get(HEADER_LEN + 4..used).unwrap_or_default();
        let number = |bytes: &[u8]| match bytes.len() {
            8 => BigEndian::read_u64(bytes),
            _ => u32_at(bytes, 0).into(),
        };
        list.chunks_exact(len).map(number).collect()
    }

    /// Whether the checksum at the end of a descriptor or a list of revoked blocks is right.
    fn has_right_tail(&self, block: &[u8]) -> bool {
        !self.has_checksums() || self.is_sound(block, block.len().saturating_sub(4))
    }

    /// Whether the checksum of a commit is right, which proves that it was written as a whole.
    fn has_right_commit(&self, block: &[u8]) -> bool {
        !self.has_checksums() || self.is_sound(block, HEADER_LEN + 4)
    }

    /// Whether the checksum at `at`, which counts as zero itself, is that of the block.
    fn is_sound(&self, block: &[u8], at: usize) -> bool {
        let (before, rest) = block.split_at(at.min(block.len()));
        let behind = rest.get(4..).unwrap_or_default();
        let mut sum = crc32c(!0, &self.uuid);
        for part in [before, &[0; 4], behind] {
            sum = crc32c(sum, part);
        }
        sum == u32_at(block, at)
    }
}

/// Puts back the first bytes of a block that was escaped.
pub fn unescape(block: &mut [u8]) {
    if let Some(start) = block.first_chunk_mut() {
        *start = MAGIC.to_be_bytes();
    }
}

/// Castagnoli's checksum, as the kernel counts it: neither turned over at the start nor at the end.
pub(crate) fn crc32c(start: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(start, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| match sum & 1 {
            0 => sum >> 1,
            _ => sum >> 1 ^ 0x82f6_3b78,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_castagnoli_s() {
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
    }
}
