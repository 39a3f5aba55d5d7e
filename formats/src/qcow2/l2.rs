//! Entries of L2 tables: what a guest cluster is made of.

use byteorder::{BigEndian, ByteOrder};

use super::features::Incompatible;
use super::header::{Header, Version};
use super::l1::{COPIED, OFFSET_MASK};
use super::units::{ClusterSize, GuestOffset, HostOffset, SECTOR_SIZE};
use crate::{FormatError, Problem};

/// Bit 62: the cluster is compressed.
const COMPRESSED: u64 = 1 << 62;
/// Bit 0 of a standard descriptor: the cluster reads as zeros.
const ZERO: u64 = 1;

/// Subclusters in a cluster of an image with extended L2 entries.
pub const SUBCLUSTERS: u32 = 32;

/// What an L2 entry says about its guest cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mapping {
    /// The image has nothing: the backing file decides, or it reads as zeros.
    Unallocated,
    /// It reads as zeros. A host cluster may be reserved for it.
    Zero {
        /// The reserved host cluster.
        host: Option<HostOffset>,
    },
    /// The bytes of a host cluster.
    Data {
        /// Where the host cluster starts.
        host: HostOffset,
    },
    /// Compressed bytes.
    Compressed(CompressedDescriptor),
    /// Subclusters that do not all say the same.
    Subclusters(SubclusterMap),
}

/// Where the compressed bytes of a cluster lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompressedDescriptor {
    /// Where they start; not aligned to anything.
    pub host: HostOffset,
    /// How many bytes they may occupy, up to the end of their last sector. At most two clusters.
    pub len: u32,
}

/// A cluster whose subclusters differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubclusterMap {
    /// The host cluster, if there is one. There always is if a subcluster is allocated.
    pub host: Option<HostOffset>,
    /// Bit i: subcluster i is in the host cluster.
    pub allocated: u32,
    /// Bit i: subcluster i reads as zeros. Never set together with bit i of `allocated`.
    pub zero: u32,
}

/// What a subcluster is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subcluster {
    /// The backing file decides, or it reads as zeros.
    Unallocated,
    /// It reads as zeros.
    Zero,
    /// Its bytes are in the host cluster.
    Data,
}

/// What an L2 entry holds a reference to: its share in the reference counts, whatever it says about
/// the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reference {
    /// Nothing.
    None,
    /// One host cluster.
    Cluster(HostOffset),
    /// Every host cluster that these bytes touch.
    Compressed(CompressedDescriptor),
}

impl SubclusterMap {
    /// What subcluster `index` (below [`SUBCLUSTERS`]) is made of.
    pub fn get(&self, index: u32) -> Subcluster {
        if self.allocated.checked_shr(index).unwrap_or(0) & 1 != 0 {
            Subcluster::Data
        } else if self.zero.checked_shr(index).unwrap_or(0) & 1 != 0 {
            Subcluster::Zero
        } else {
            Subcluster::Unallocated
        }
    }
}

/// How the L2 entries of an image are to be read. Everything that changes their meaning is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct L2Format {
    /// Size of the image's clusters, and of an L2 table.
    pub cluster: ClusterSize,
    /// Version 2 has no zero clusters.
    pub version: Version,
    /// Entries are 128 bits long.
    pub extended: bool,
    /// The guest's data lies in another file, at its guest offset.
    pub external_data: bool,
}

impl L2Format {
    /// The format of the L2 entries of the image with this header.
    pub fn of(header: &Header) -> Self {
        Self {
            cluster: header.cluster,
            version: header.version,
            extended: header.incompatible.contains(Incompatible::EXTENDED_L2),
            external_data: header.incompatible.contains(Incompatible::DATA_FILE),
        }
    }

    /// Bytes in an entry: 8, or 16 if extended.
    #[inline]
    pub fn entry_size(&self) -> usize {
        if self.extended { 16 } else { 8 }
    }

    /// Entries in a table, which is one cluster long.
    #[inline]
    pub fn entries_per_table(&self) -> u64 {
        self.cluster.bytes() / self.entry_size() as u64
    }

    /// Bytes of the guest's disk that one table covers.
    #[inline]
    pub fn table_coverage(&self) -> u64 {
        self.entries_per_table() * self.cluster.bytes()
    }

    /// Bytes in a subcluster; a whole cluster if entries are not extended.
    #[inline]
    pub fn subcluster_size(&self) -> u64 {
        if self.extended {
            self.cluster.bytes() / u64::from(SUBCLUSTERS)
        } else {
            self.cluster.bytes()
        }
    }

    /// What `entry`, one entry's bytes, says about the cluster at `guest`. `position` is where the
    /// entry lies in the image file, for errors.
    ///
    /// # Errors
    /// QEMU would fail to read this cluster: its offset is not aligned, it is a zero cluster of
    /// version 2, a subcluster is allocated and zero at once or allocated without a host cluster,
    /// or it does not fit an external data file.
    #[inline]
    pub fn decode(
        &self,
        entry: &[u8],
        guest: GuestOffset,
        position: HostOffset,
    ) -> Result<Mapping, FormatError> {
        let error = |problem| FormatError::new(position.0, "L2 entry", problem);
        let truncated = || {
            let (needed, available) = (self.entry_size() as u64, entry.len() as u64);
            error(Problem::Truncated { needed, available })
        };
        let descriptor = entry.get(..8).map(BigEndian::read_u64).ok_or_else(truncated)?;
        if descriptor & COMPRESSED != 0 {
            if self.external_data {
                return Err(error(Problem::Invalid(
                    "a compressed cluster in an image with an external data file".into(),
                )));
            }
            return Ok(Mapping::Compressed(self.decode_compressed(descriptor)));
        }
        let host = self.decode_host(descriptor, guest).map_err(error)?;
        if self.extended {
            let bitmap = entry.get(8..16).map(BigEndian::read_u64).ok_or_else(truncated)?;
            return decode_subclusters(host, bitmap).map_err(error);
        }
        if descriptor & ZERO != 0 {
            if self.version == Version::V2 {
                return Err(error(Problem::Invalid(
                    "a zero cluster in an image of version 2".into(),
                )));
            }
            return Ok(Mapping::Zero { host });
        }
        Ok(host.map_or(Mapping::Unallocated, |host| Mapping::Data { host }))
    }

    /// The host cluster of a standard descriptor.
    fn decode_host(
        &self,
        descriptor: u64,
        guest: GuestOffset,
    ) -> Result<Option<HostOffset>, Problem> {
        let offset = descriptor & OFFSET_MASK;
        // Host offset 0 is real only in an external data file, and only marked by bit 63; a zero
        // cluster has none there, whatever bit 63 says.
        let is_zero = descriptor & ZERO != 0 && !self.extended;
        let at_zero = self.external_data && descriptor & COPIED != 0 && !is_zero;
        if offset == 0 && !at_zero {
            return Ok(None);
        }
        if !self.cluster.is_aligned(offset) {
            return Err(Problem::Misaligned { value: offset, alignment: self.cluster.bytes() });
        }
        if self.external_data && offset != guest.0 {
            return Err(Problem::Invalid(
                format!(
                    "offset {offset:#x} in the external data file is not the guest offset {guest}"
                )
                .into(),
            ));
        }
        Ok(Some(HostOffset(offset)))
    }

    /// What the first 8 bytes of `entry` hold a reference to. Only for images that hold their data
    /// themselves: a place in an external data file has no count. `position` is where the entry
    /// lies in the image file, for errors.
    ///
    /// # Errors
    /// There are fewer than 8 bytes, or the host cluster is not aligned.
    pub fn reference(&self, entry: &[u8], position: HostOffset) -> Result<Reference, FormatError> {
        let error = |problem| FormatError::new(position.0, "L2 entry", problem);
        let available = entry.len() as u64;
        let descriptor = entry.get(..8).map(BigEndian::read_u64);
        let descriptor =
            descriptor.ok_or_else(|| error(Problem::Truncated { needed: 8, available }))?;
        if descriptor & COMPRESSED != 0 {
            return Ok(Reference::Compressed(self.decode_compressed(descriptor)));
        }
        let offset = descriptor & OFFSET_MASK;
        if !self.cluster.is_aligned(offset) {
            let alignment = self.cluster.bytes();
            return Err(error(Problem::Misaligned { value: offset, alignment }));
        }
        Ok(if offset == 0 { Reference::None } else { Reference::Cluster(HostOffset(offset)) })
    }

    /// Says in `entry` whether the refcount of its host cluster is exactly one. Gives whether that
    /// changed the entry.
    pub fn set_sole_owner(entry: &mut [u8], sole_owner: bool) -> bool {
        // Bit 63 is the highest of the first byte.
        let Some(byte) = entry.first_mut() else { return false };
        let before = *byte;
        *byte = if sole_owner { before | 0x80 } else { before & 0x7f };
        *byte != before
    }

    /// Whether `entry`, which is none of a compressed cluster, says that the refcount of its host
    /// cluster is exactly one.
    pub fn is_sole_owner(entry: &[u8]) -> bool {
        entry.first().is_some_and(|byte| byte & 0x80 != 0)
    }

    /// How many bits of a compressed descriptor are its offset.
    fn compressed_offset_bits(&self) -> u32 {
        70 - self.cluster.bits()
    }

    fn decode_compressed(&self, descriptor: u64) -> CompressedDescriptor {
        let descriptor = descriptor & (COMPRESSED - 1);
        let bits = self.compressed_offset_bits();
        let offset = descriptor & ((1 << bits) - 1);
        let sectors = (descriptor >> bits) + 1;
        // At most 2^14 sectors: the field has cluster_bits - 8 bits.
        let len = (sectors * SECTOR_SIZE - offset % SECTOR_SIZE) as u32;
        CompressedDescriptor { host: HostOffset(offset), len }
    }

    /// The bytes of the entry that says `mapping`; 8 of the 16 bytes are used if entries are not
    /// extended. `sole_owner` says that the host cluster's refcount is exactly one.
    ///
    /// # Errors
    /// The mapping can't be expressed in this image: zeros in version 2, subclusters without
    /// extended entries, an offset or a length that does not fit.
    pub fn encode(&self, mapping: Mapping, sole_owner: bool) -> Result<[u8; 16], FormatError> {
        let error =
            |text: &'static str| FormatError::new(0, "L2 entry", Problem::Invalid(text.into()));
        let place = |host: HostOffset| {
            let fits = host.0 & !OFFSET_MASK == 0 && self.cluster.is_aligned(host.0);
            let copied = if sole_owner { COPIED } else { 0 };
            if fits { Ok(host.0 | copied) } else { Err(error("the host offset does not fit")) }
        };
        let (descriptor, bitmap) = match mapping {
            Mapping::Unallocated => (0, 0),
            Mapping::Zero { host } => {
                let descriptor = host.map(place).transpose()?.unwrap_or(0);
                match (self.extended, self.version) {
                    (true, _) => (descriptor, u64::from(u32::MAX) << 32),
                    (false, Version::V3) => (descriptor | ZERO, 0),
                    (false, Version::V2) => return Err(error("version 2 has no zero clusters")),
                }
            }
            Mapping::Data { host } => (place(host)?, u64::from(u32::MAX)),
            Mapping::Compressed(compressed) => (self.encode_compressed(compressed)?, 0),
            Mapping::Subclusters(map) => {
                let orphans = map.host.is_none() && map.allocated != 0;
                if !self.extended || map.allocated & map.zero != 0 || orphans {
                    return Err(error("these subclusters can't be expressed"));
                }
                let descriptor = map.host.map(place).transpose()?.unwrap_or(0);
                (descriptor, u64::from(map.zero) << 32 | u64::from(map.allocated))
            }
        };
        let mut entry = [0; 16];
        BigEndian::write_u64_into(
            &[descriptor, if self.extended { bitmap } else { 0 }],
            &mut entry,
        );
        Ok(entry)
    }

    fn encode_compressed(&self, compressed: CompressedDescriptor) -> Result<u64, FormatError> {
        let bits = self.compressed_offset_bits();
        let CompressedDescriptor { host, len } = compressed;
        let sectors = (host.0 % SECTOR_SIZE + u64::from(len)).div_ceil(SECTOR_SIZE);
        let fits =
            len > 0 && sectors <= 1 << (self.cluster.bits() - 8) && host.0 >> bits.min(56) == 0;
        if !fits {
            return Err(FormatError::new(
                0,
                "L2 entry",
                Problem::Invalid("the compressed cluster does not fit".into()),
            ));
        }
        Ok(COMPRESSED | (sectors - 1) << bits | host.0)
    }
}

/// The mapping of a standard cluster with this subcluster bitmap.
fn decode_subclusters(host: Option<HostOffset>, bitmap: u64) -> Result<Mapping, Problem> {
    let (allocated, zero) = (bitmap as u32, (bitmap >> 32) as u32);
    if allocated & zero != 0 {
        let subcluster = (allocated & zero).trailing_zeros();
        return Err(Problem::Invalid(
            format!("subcluster {subcluster} is both allocated and zero").into(),
        ));
    }
    match (host, allocated, zero) {
        (None, 0, 0) => Ok(Mapping::Unallocated),
        (host, 0, u32::MAX) => Ok(Mapping::Zero { host }),
        (Some(host), u32::MAX, _) => Ok(Mapping::Data { host }),
        (None, 1.., _) => {
            Err(Problem::Invalid("subclusters are allocated, but there is no host cluster".into()))
        }
        (host, ..) => Ok(Mapping::Subclusters(SubclusterMap { host, allocated, zero })),
    }
}
