//! A summary of a chain: the digests of all blocks that are not zero at its newest point, in one
//! place. It is no part of an archive and of no recovery point; whoever finds none, or one that is
//! not sound, has the same from the archives.

use roaring::RoaringBitmap;

use super::digest::RootHasher;
use super::index::{decode_bitmap, encode_bitmap};
use super::{
    BlockIndex, DIGEST_LEN, Digest, GROUP_BLOCKS, Geometry, GroupIndex, SectionKind, group_digest,
    zero_block_digest, zero_group_digest,
};
use crate::{FormatError, Problem};

/// The first bytes. The last one is the version.
pub const MAGIC: [u8; 8] = *b"QDSUMRY\x01";

/// Bytes before the note: magic, size of the disk, size of a block, root, and the lengths of note
/// and bitmap.
const HEAD_LEN: usize = 8 + 8 + 4 + DIGEST_LEN + 4 + 4;

/// The digests of a disk at one point.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// Size of the disk and of its blocks.
    pub geometry: Geometry,
    /// The root of the point.
    pub root: Digest,
    /// What whoever wrote the summary wants to know of the chain.
    pub note: Vec<u8>,
    nonzero: RoaringBitmap,
    /// The groups that have blocks which are not zero, and how many such blocks lie before each.
    groups: Vec<(GroupIndex, usize)>,
    /// A digest for each of these groups.
    group_digests: Vec<Digest>,
    /// A digest for each block that is not zero.
    block_digests: Vec<Digest>,
}

impl Summary {
    /// A summary without any block yet.
    pub fn new(geometry: Geometry, root: Digest) -> Self {
        Self {
            geometry,
            root,
            note: Vec::new(),
            nonzero: RoaringBitmap::new(),
            groups: Vec::new(),
            group_digests: Vec::new(),
            block_digests: Vec::new(),
        }
    }

    /// Adds the digests of the blocks of a group, which comes after all that were added.
    pub fn push(&mut self, group: GroupIndex, blocks: &[Digest; GROUP_BLOCKS as usize]) {
        let zero = zero_block_digest(self.geometry.block_size());
        let before = self.block_digests.len();
        for (block, digest) in (group.0.saturating_mul(GROUP_BLOCKS)..).zip(blocks) {
            if *digest != zero {
                self.nonzero.insert(block);
                self.block_digests.push(*digest);
            }
        }
        if self.block_digests.len() > before {
            self.groups.push((group, before));
            self.group_digests.push(group_digest(blocks));
        }
    }

    /// The blocks that are not zero.
    pub fn nonzero(&self) -> &RoaringBitmap {
        &self.nonzero
    }

    /// The digest of a group; none if all its blocks are zero.
    pub fn group_digest(&self, group: GroupIndex) -> Option<Digest> {
        let index = self.groups.binary_search_by_key(&group, |(group, _)| *group).ok()?;
        self.group_digests.get(index).copied()
    }

    /// The digests of the blocks of a group, and its own; none if all are zero.
    pub fn group(
        &self,
        group: GroupIndex,
    ) -> Option<(Box<[Digest; GROUP_BLOCKS as usize]>, Digest)> {
        let index = self.groups.binary_search_by_key(&group, |(group, _)| *group).ok()?;
        let (_, before) = self.groups.get(index)?;
        let zero = zero_block_digest(self.geometry.block_size());
        let mut blocks = Box::new([zero; GROUP_BLOCKS as usize]);
        let first = group.0 * GROUP_BLOCKS;
        let present = self.nonzero.range(first..=first + (GROUP_BLOCKS - 1));
        for (block, digest) in present.zip(self.block_digests.get(*before..)?) {
            *blocks.get_mut((block - first) as usize)? = *digest;
        }
        Some((blocks, *self.group_digests.get(index)?))
    }

    /// Length of [`Self::encode`]'s bytes, about.
    pub fn encoded_len(&self) -> usize {
        let digests = self.block_digests.len() + self.group_digests.len();
        HEAD_LEN + self.note.len() + self.nonzero.serialized_size() + digests * DIGEST_LEN
    }

    /// The bytes of the file: the head, the note, the bitmap of blocks that are not zero, the digests of
    /// the groups that have such blocks, those of the blocks, and the BLAKE3 digest of all that.
    pub fn encode(&self) -> Vec<u8> {
        let bitmap = encode_bitmap(self.nonzero.clone());
        let mut bytes = Vec::with_capacity(self.encoded_len() + DIGEST_LEN);
        bytes.extend(MAGIC);
        bytes.extend(self.geometry.virtual_size().to_le_bytes());
        bytes.extend(self.geometry.block_size().to_le_bytes());
        bytes.extend(self.root.0);
        bytes.extend((self.note.len() as u32).to_le_bytes());
        bytes.extend((bitmap.len() as u32).to_le_bytes());
        bytes.extend(&self.note);
        bytes.extend(bitmap);
        for digest in self.group_digests.iter().chain(&self.block_digests) {
            bytes.extend(digest.0);
        }
        let digest = blake3::hash(&bytes);
        bytes.extend(digest.as_bytes());
        bytes
    }

    /// Takes the bytes of a file. That the digests of the groups give the root is proved.
    ///
    /// # Errors
    /// The bytes are no summary, or not as they were written.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut input = Input { rest: bytes, at: 0 };
        if input.array::<8>("magic")? != MAGIC {
            return Err(FormatError::new(0, "magic", Problem::BadMagic("a summary")));
        }
        let body = bytes.len().saturating_sub(DIGEST_LEN);
        let (body, digest) = bytes.split_at_checked(body).unwrap_or_default();
        if blake3::hash(body).as_bytes() != digest {
            return Err(invalid(body.len(), "digest", "it is not that of the bytes before it"));
        }
        let size = u64::from_le_bytes(input.array("size of the disk")?);
        let geometry = Geometry::new(size, u32::from_le_bytes(input.array("size of a block")?))?;
        let root = Digest(input.array("root")?);
        let note_len = u32::from_le_bytes(input.array("length of the note")?);
        let bitmap_len = u32::from_le_bytes(input.array("length of the bitmap")?);
        let note = input.take("note", note_len as usize)?.to_vec();
        let bitmap = input.take("bitmap", bitmap_len as usize)?;
        let nonzero = decode_bitmap(bitmap, geometry.block_count(), SectionKind::Stored)?;
        let mut summary = Self { note, nonzero, ..Self::new(geometry, root) };
        summary.groups = summary.groups_of_blocks();
        summary.group_digests = input.digests("digests of groups", summary.groups.len() as u64)?;
        summary.block_digests = input.digests("digests of blocks", summary.nonzero.len())?;
        if input.rest.len() != DIGEST_LEN {
            return Err(invalid(input.at, "end", "there are bytes that belong to nothing"));
        }
        match summary.computed_root() == root {
            true => Ok(summary),
            false => Err(invalid(0, "root", "the digests of the groups do not give it")),
        }
    }

    /// The groups that have blocks which are not zero, and how many such blocks lie before each.
    fn groups_of_blocks(&self) -> Vec<(GroupIndex, usize)> {
        let mut groups: Vec<(GroupIndex, usize)> = Vec::new();
        for (before, block) in self.nonzero.iter().enumerate() {
            let group = GroupIndex(BlockIndex(block).0 / GROUP_BLOCKS);
            if groups.last().is_none_or(|(last, _)| *last != group) {
                groups.push((group, before));
            }
        }
        groups
    }

    /// The root that the digests of the groups give.
    fn computed_root(&self) -> Digest {
        let zero = zero_group_digest(self.geometry.block_size());
        let mut root = RootHasher::new(self.geometry);
        let mut next = 0;
        for ((group, _), digest) in self.groups.iter().zip(&self.group_digests) {
            root.push_many(zero, group.0.saturating_sub(next));
            root.push(*digest);
            next = group.0.saturating_add(1);
        }
        root.push_many(zero, self.geometry.group_count().saturating_sub(next));
        root.finish()
    }
}

/// The bytes that were not taken yet.
struct Input<'a> {
    rest: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    fn take(&mut self, field: &'static str, len: usize) -> Result<&'a [u8], FormatError> {
        let Some((taken, rest)) = self.rest.split_at_checked(len) else {
            let (needed, available) = (len as u64, self.rest.len() as u64);
            let problem = Problem::Truncated { needed, available };
            return Err(FormatError::new(self.at as u64, field, problem));
        };
        self.rest = rest;
        self.at += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], FormatError> {
        Ok(self.take(field, N)?.try_into().unwrap_or([0; N]))
    }

    fn digests(&mut self, field: &'static str, count: u64) -> Result<Vec<Digest>, FormatError> {
        let bytes = self.take(field, count as usize * DIGEST_LEN)?;
        Ok(bytes.as_chunks().0.iter().map(|digest| Digest(*digest)).collect())
    }
}

fn invalid(offset: usize, field: &'static str, words: &'static str) -> FormatError {
    FormatError::new(offset as u64, field, Problem::Invalid(words.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::block_digest;

    fn sample() -> Summary {
        let geometry = Geometry::new(5000 * 4096, 4096).unwrap();
        let zero = zero_block_digest(4096);
        let mut summary = Summary::new(geometry, Digest([0; DIGEST_LEN]));
        for (group, place) in [(0, 3), (3, 0), (3, 1023), (4, 8)] {
            let mut blocks = [zero; GROUP_BLOCKS as usize];
            blocks[place] = block_digest(&[place as u8]);
            if summary.groups.last().is_none_or(|(last, _)| last.0 != group) {
                summary.push(GroupIndex(group), &blocks);
            }
        }
        summary.note = b"of these".to_vec();
        summary.root = summary.computed_root();
        summary
    }

    #[test]
    fn what_is_written_is_read_again() {
        let summary = sample();
        let again = Summary::decode(&summary.encode()).unwrap();
        assert_eq!(again, summary);
        let (blocks, digest) = again.group(GroupIndex(3)).unwrap();
        assert_eq!(blocks[0], block_digest(&[0]));
        assert_eq!(digest, group_digest(&blocks));
        assert!(again.group(GroupIndex(1)).is_none());
    }

    /// A backup believes what it reads here of blocks that it does not read.
    #[test]
    fn whatever_was_changed_is_seen() {
        let bytes = sample().encode();
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            assert!(Summary::decode(&bad).is_err(), "byte {at}");
            assert!(Summary::decode(&bytes[..at]).is_err(), "cut at {at}");
        }
    }

    /// A sound file whose digests are those of another disk is no summary of this one.
    #[test]
    fn another_root_is_refused() {
        let mut summary = sample();
        summary.root = Digest([7; DIGEST_LEN]);
        assert!(Summary::decode(&summary.encode()).unwrap_err().to_string().contains("root"));
    }
}
