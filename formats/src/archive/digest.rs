//! The two-level digest tree: blocks, groups, root.

use std::fmt;
use std::str::FromStr;

use super::{GROUP_BLOCKS, Geometry, hex};
use crate::{FormatError, Problem};

/// Length of a digest in bytes.
pub const DIGEST_LEN: usize = 32;

/// The domain of group digests in BLAKE3's derive-key mode.
pub const GROUP_CONTEXT: &str = "qdelta 2026 group digest v1";

/// The domain of roots in BLAKE3's derive-key mode.
pub const ROOT_CONTEXT: &str = "qdelta 2026 root v1";

/// A BLAKE3 digest of a block, a group or a whole disk. In text, 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; DIGEST_LEN]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex::write(f, &self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl FromStr for Digest {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        hex::parse(text).map(Self).ok_or_else(|| {
            FormatError::new(
                0,
                "digest",
                Problem::Invalid("a digest is 64 hexadecimal digits".into()),
            )
        })
    }
}

/// How the digest tree is computed: plainly, or under a key, so that digests tell nothing to whoever
/// has the plain bytes and not the key. Sealed archives will use the key; no archive does yet.
#[derive(Clone, Copy)]
pub struct DigestRules {
    key: Option<[u8; DIGEST_LEN]>,
}

impl fmt::Debug for DigestRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DigestRules").field("is_keyed", &self.key.is_some()).finish()
    }
}

impl DigestRules {
    /// The digests of an archive that is not sealed.
    pub const PLAIN: Self = Self { key: None };

    /// Digests under a key.
    pub fn keyed(key: [u8; DIGEST_LEN]) -> Self {
        Self { key: Some(key) }
    }

    /// The digest of a block: see [`block_digest`].
    pub fn block(&self, block: &[u8]) -> Digest {
        Digest(*self.blocks().update(block).finalize().as_bytes())
    }

    /// The digest of a group: see [`group_digest`].
    pub fn group(&self, blocks: &[Digest; GROUP_BLOCKS as usize]) -> Digest {
        // BLAKE3 is several times faster when it sees many kilobytes at once.
        const AT_ONCE: usize = 512;
        let mut hasher = self.level(GROUP_CONTEXT);
        let mut bytes = [[0; DIGEST_LEN]; AT_ONCE];
        for part in blocks.chunks(AT_ONCE) {
            for (to, from) in bytes.iter_mut().zip(part) {
                *to = from.0;
            }
            hasher.update(bytes.get(..part.len()).unwrap_or_default().as_flattened());
        }
        Digest(*hasher.finalize().as_bytes())
    }

    /// Starts the root of a disk: see [`RootHasher::new`].
    pub fn root(&self, geometry: Geometry) -> RootHasher {
        let mut hasher = self.level(ROOT_CONTEXT);
        hasher.update(&geometry.virtual_size().to_le_bytes());
        hasher.update(&geometry.block_size().to_le_bytes());
        RootHasher { hasher, groups_left: geometry.group_count() }
    }

    fn blocks(&self) -> blake3::Hasher {
        self.key.as_ref().map_or_else(blake3::Hasher::new, blake3::Hasher::new_keyed)
    }

    /// The hasher of a level above the blocks. Under a key each level has a key of its own.
    fn level(&self, context: &str) -> blake3::Hasher {
        match &self.key {
            None => blake3::Hasher::new_derive_key(context),
            Some(key) => blake3::Hasher::new_keyed(&blake3::derive_key(context, key)),
        }
    }
}

/// The digest of a block. `block` is exactly one block size long: the caller fills the last block
/// of a disk up with zeros.
pub fn block_digest(block: &[u8]) -> Digest {
    DigestRules::PLAIN.block(block)
}

/// The digest of a block of `block_size` zeros.
pub fn zero_block_digest(block_size: u32) -> Digest {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut hasher = blake3::Hasher::new();
    let mut left = block_size as usize;
    while let Some(zeros) = ZEROS.get(..left.min(ZEROS.len())).filter(|zeros| !zeros.is_empty()) {
        hasher.update(zeros);
        left -= zeros.len();
    }
    Digest(*hasher.finalize().as_bytes())
}

/// The digest of a group, from those of its blocks. Blocks past the end of the disk count as zero
/// blocks.
pub fn group_digest(blocks: &[Digest; GROUP_BLOCKS as usize]) -> Digest {
    DigestRules::PLAIN.group(blocks)
}

/// The digest of a group of zero blocks.
pub fn zero_group_digest(block_size: u32) -> Digest {
    group_digest(&[zero_block_digest(block_size); GROUP_BLOCKS as usize])
}

/// Computes the root of a disk from the digests of its groups, pushed in order.
#[derive(Debug, Clone)]
pub struct RootHasher {
    hasher: blake3::Hasher,
    groups_left: u32,
}

impl RootHasher {
    /// Starts the root of a disk of this geometry.
    pub fn new(geometry: Geometry) -> Self {
        DigestRules::PLAIN.root(geometry)
    }

    /// Adds the next group.
    pub fn push(&mut self, group: Digest) {
        self.hasher.update(&group.0);
        self.groups_left = self.groups_left.saturating_sub(1);
    }

    /// Adds the next `count` groups, which all have the same digest (as zero groups do).
    pub fn push_many(&mut self, group: Digest, count: u32) {
        for _ in 0..count {
            self.push(group);
        }
    }

    /// How many groups of the disk have not been pushed yet.
    pub fn groups_left(&self) -> u32 {
        self.groups_left
    }

    /// The root, once every group of the disk was pushed.
    pub fn finish(self) -> Digest {
        debug_assert_eq!(self.groups_left, 0, "groups are missing from the root");
        Digest(*self.hasher.finalize().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_block_digest_is_the_digest_of_zeros() {
        for size in [4096, 65536, 2 << 20] {
            assert_eq!(zero_block_digest(size), block_digest(&vec![0; size as usize]));
        }
    }

    #[test]
    fn group_digest_is_derive_key_mode_over_the_blocks_digests() {
        let mut blocks = [Digest([0; 32]); GROUP_BLOCKS as usize];
        for (index, block) in blocks.iter_mut().enumerate() {
            *block = block_digest(&index.to_le_bytes());
        }
        let bytes: Vec<u8> = blocks.iter().flat_map(|block| block.0).collect();
        assert_eq!(group_digest(&blocks).0, blake3::derive_key(GROUP_CONTEXT, &bytes));
    }

    #[test]
    fn root_covers_sizes_and_groups_in_order() {
        let geometry = Geometry::new(100 << 20, 65536).unwrap();
        let (a, b) = (block_digest(b"a"), block_digest(b"b"));
        let mut hasher = RootHasher::new(geometry);
        hasher.push(a);
        assert_eq!(hasher.groups_left(), 1);
        hasher.push(b);
        let mut bytes = Vec::new();
        bytes.extend((100u64 << 20).to_le_bytes());
        bytes.extend(65536u32.to_le_bytes());
        bytes.extend(a.0);
        bytes.extend(b.0);
        assert_eq!(hasher.finish().0, blake3::derive_key(ROOT_CONTEXT, &bytes));
    }

    /// Under a key every level differs from the plain one, and from the others under that key.
    #[test]
    fn keyed_digests_are_blake3_under_a_key_for_each_level() {
        let key = [7; DIGEST_LEN];
        let rules = DigestRules::keyed(key);
        let block = rules.block(b"block");
        assert_eq!(block.0, *blake3::keyed_hash(&key, b"block").as_bytes());
        let blocks = [block; GROUP_BLOCKS as usize];
        let bytes: Vec<u8> = blocks.iter().flat_map(|block| block.0).collect();
        let level = |context, bytes: &[u8]| {
            *blake3::keyed_hash(&blake3::derive_key(context, &key), bytes).as_bytes()
        };
        let group = rules.group(&blocks);
        assert_eq!(group.0, level(GROUP_CONTEXT, &bytes));
        let geometry = Geometry::new(1 << 20, 65536).unwrap();
        let mut root = rules.root(geometry);
        root.push(group);
        let (size, block_size) = ((1u64 << 20).to_le_bytes(), 65536u32.to_le_bytes());
        let bytes = [&size[..], &block_size[..], &group.0[..]].concat();
        assert_eq!(root.finish().0, level(ROOT_CONTEXT, &bytes));
        assert_ne!(group, group_digest(&blocks));
        assert_ne!(block, block_digest(b"block"));
        assert!(!format!("{rules:?}").contains('7'), "a key goes into no log");
    }

    #[test]
    fn push_many_is_push_many_times() {
        let geometry = Geometry::new(5 * (64 << 20), 65536).unwrap();
        let zero = zero_group_digest(65536);
        let mut one = RootHasher::new(geometry);
        one.push_many(zero, 5);
        let mut other = RootHasher::new(geometry);
        (0..5).for_each(|_| other.push(zero));
        assert_eq!(one.finish(), other.finish());
    }

    #[test]
    fn text_round_trips_and_wrong_lengths_are_refused() {
        let digest = block_digest(b"x");
        assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
        assert!("ab".parse::<Digest>().is_err());
        assert!("g".repeat(64).parse::<Digest>().is_err());
        assert!("é".repeat(32).parse::<Digest>().is_err());
    }
}
