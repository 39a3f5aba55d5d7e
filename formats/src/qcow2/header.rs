//! The header, version 2 and 3.
//!
//! [`HeaderPrefix`] says how many bytes the rest takes; [`Header`] exists only once everything
//! that QEMU checks when it opens an image has been checked.

use super::extension::{self, Extensions};
use super::features::{Autoclear, Compatible, Incompatible};
use super::l1::L1_ENTRY_SIZE;
use super::refcount::RefcountOrder;
use super::units::{ClusterSize, HostOffset, SECTOR_SIZE, Table};
use crate::fields::{Big, put};
use crate::{FormatError, Problem};

/// The first four bytes of every qcow2 image.
pub const MAGIC: [u8; 4] = *b"QFI\xfb";

/// The largest L1 table, active or of a snapshot, in bytes.
pub const L1_SIZE_MAX: u64 = 32 << 20;
/// The largest refcount table in bytes.
pub const REFCOUNT_TABLE_SIZE_MAX: u64 = 8 << 20;
/// The longest name of a backing file in bytes.
pub const BACKING_NAME_LEN_MAX: u32 = 1023;
/// The largest disk in bytes; QEMU counts them in a signed number.
pub const VIRTUAL_SIZE_MAX: u64 = i64::MAX as u64;

/// Where the fields lie, in bytes from the start of the file.
pub(crate) mod at {
    pub(crate) const MAGIC: usize = 0;
    pub(crate) const VERSION: usize = 4;
    pub(crate) const BACKING_OFFSET: usize = 8;
    pub(crate) const BACKING_LEN: usize = 16;
    pub(crate) const CLUSTER_BITS: usize = 20;
    pub(crate) const SIZE: usize = 24;
    pub(crate) const ENCRYPTION: usize = 32;
    pub(crate) const L1_ENTRIES: usize = 36;
    pub(crate) const L1_OFFSET: usize = 40;
    pub(crate) const REFCOUNT_TABLE_OFFSET: usize = 48;
    pub(crate) const REFCOUNT_TABLE_CLUSTERS: usize = 56;
    pub(crate) const SNAPSHOT_COUNT: usize = 60;
    pub(crate) const SNAPSHOTS_OFFSET: usize = 64;
    pub(crate) const END_V2: usize = 72;

    pub(crate) const INCOMPATIBLE: usize = 72;
    pub(crate) const COMPATIBLE: usize = 80;
    pub(crate) const AUTOCLEAR: usize = 88;
    pub(crate) const REFCOUNT_ORDER: usize = 96;
    pub(crate) const HEADER_LENGTH: usize = 100;
    pub(crate) const END_V3: usize = 104;

    pub(crate) const COMPRESSION: usize = 104;
    /// Where the fields end that are known here.
    pub(crate) const END_KNOWN: usize = 112;
}

/// The version of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// QEMU before 1.1, `compat=0.10`.
    V2,
    /// QEMU since 1.1, `compat=1.1`.
    V3,
}

impl Version {
    /// 2 or 3.
    pub fn number(self) -> u32 {
        match self {
            Self::V2 => 2,
            Self::V3 => 3,
        }
    }
}

/// How the guest's data is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encryption {
    /// Not at all.
    None,
    /// QEMU's old AES-CBC.
    Aes,
    /// LUKS, with its header inside the image.
    Luks,
}

/// How compressed clusters are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CompressionType {
    /// Raw deflate.
    Deflate,
    /// Zstandard.
    Zstd,
}

/// Whether `bytes`, the first of a file, are those of a qcow2 image.
pub fn has_magic(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

/// The first fields of a header: enough to know how many bytes the whole of it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeaderPrefix {
    /// The version of the format.
    pub version: Version,
    /// Size of the image's clusters. The header, its extensions and the backing file's name all
    /// lie in the first one.
    pub cluster: ClusterSize,
}

impl HeaderPrefix {
    /// Bytes that [`HeaderPrefix::parse`] needs.
    pub const LEN: usize = at::END_V2;

    /// Reads magic, version and cluster size from the first [`HeaderPrefix::LEN`] bytes of a file.
    ///
    /// # Errors
    /// The bytes are too few, or one of the three fields is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let bytes = Big::new(bytes, 0);
        if !has_magic(bytes.slice(at::MAGIC, MAGIC.len(), "magic")?) {
            return Err(bytes.error(at::MAGIC, "magic", Problem::BadMagic("qcow2")));
        }
        let version = match bytes.u32(at::VERSION, "version")? {
            2 => Version::V2,
            3 => Version::V3,
            other => {
                let problem = Problem::OutOfRange { value: other.into(), min: 2, max: 3 };
                return Err(bytes.error(at::VERSION, "version", problem));
            }
        };
        let cluster = ClusterSize::from_bits(bytes.u32(at::CLUSTER_BITS, "cluster_bits")?)?;
        bytes.slice(0, Self::LEN, "header")?;
        Ok(Self { version, cluster })
    }
}

/// A header whose every field has been checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The version of the format.
    pub version: Version,
    /// Size of the clusters.
    pub cluster: ClusterSize,
    /// Size of the disk as the header declares it, in bytes. See [`Header::virtual_size`].
    pub declared_size: u64,
    /// How the guest's data is encrypted.
    pub encryption: Encryption,
    /// The active L1 table.
    pub l1: Table,
    /// Where the refcount table starts.
    pub refcount_table_offset: HostOffset,
    /// Length of the refcount table in clusters.
    pub refcount_table_clusters: u32,
    /// The snapshot table.
    pub snapshots: Table,
    /// Features that a reader must know.
    pub incompatible: Incompatible,
    /// Features that may be ignored.
    pub compatible: Compatible,
    /// Features that a writer must know or clear.
    pub autoclear: Autoclear,
    /// Width of the reference counts.
    pub refcount_order: RefcountOrder,
    /// How compressed clusters are compressed.
    pub compression: CompressionType,
    /// Whatever a later version of the format put behind the fields that are known here.
    pub unknown_fields: Vec<u8>,
    /// The header extensions.
    pub extensions: Extensions,
    /// Name of the backing file as it stands in the image: bytes, without a terminator.
    pub backing_name: Option<Vec<u8>>,
}

impl Header {
    /// A header of version 3 with the tables at these places, and nothing beyond.
    ///
    /// # Errors
    /// Whatever [`Header::parse`] would find wrong with it.
    pub fn new(
        cluster: ClusterSize,
        virtual_size: u64,
        l1: Table,
        refcount_table: Table,
    ) -> Result<Self, FormatError> {
        let header = Self {
            version: Version::V3,
            cluster,
            declared_size: virtual_size,
            encryption: Encryption::None,
            l1,
            refcount_table_offset: refcount_table.offset,
            refcount_table_clusters: refcount_table.entries,
            snapshots: Table { offset: HostOffset(0), entries: 0 },
            incompatible: Incompatible(0),
            compatible: Compatible(0),
            autoclear: Autoclear(0),
            refcount_order: RefcountOrder::DEFAULT,
            compression: CompressionType::Deflate,
            unknown_fields: Vec::new(),
            extensions: Extensions {
                feature_names: extension::known_names(),
                ..Default::default()
            },
            backing_name: None,
        };
        Self::parse(&header.encode()?)
    }

    /// Size of the guest's disk in bytes: the declared size, rounded down to whole sectors as QEMU
    /// does.
    pub fn virtual_size(&self) -> u64 {
        self.declared_size / SECTOR_SIZE * SECTOR_SIZE
    }

    /// Reads a header from the first cluster of an image. If the file is shorter than that, give
    /// what there is, filled up with zeros to the size of [`HeaderPrefix::cluster`].
    ///
    /// # Errors
    /// Anything for which QEMU refuses to open an image, with the place and the field.
    pub fn parse(first_cluster: &[u8]) -> Result<Self, FormatError> {
        let HeaderPrefix { version, cluster } = HeaderPrefix::parse(first_cluster)?;
        let bytes = Big::new(first_cluster, 0);
        bytes.slice(0, cluster.len(), "first cluster")?;
        let fields = VersionFields::parse(&bytes, version, cluster)?;
        let extension_end = extension_end(&bytes, cluster)?;
        fields.check_features(&bytes, extension_end)?;
        let encryption = parse_encryption(&bytes)?;
        let (refcount_table_offset, refcount_table_clusters) =
            parse_refcount_table(&bytes, cluster)?;
        let snapshots = Table::checked(
            cluster,
            at::SNAPSHOTS_OFFSET as u64,
            "snapshot table",
            bytes.u64(at::SNAPSHOTS_OFFSET, "snapshots_offset")?,
            bytes.u32(at::SNAPSHOT_COUNT, "nb_snapshots")?,
            super::snapshot::FIXED_LEN as u64,
            (super::snapshot::FIXED_LEN * super::snapshot::SNAPSHOTS_MAX) as u64,
        )?;
        let (declared_size, l1) = parse_size_and_l1(&bytes, cluster, fields.entry_bits())?;
        let area = first_cluster.get(fields.header_length..extension_end).unwrap_or(&[]);
        let extensions = Extensions::parse(
            area,
            fields.header_length as u64,
            cluster,
            encryption,
            fields.autoclear,
        )?;
        Ok(Self {
            version,
            cluster,
            declared_size,
            encryption,
            l1,
            refcount_table_offset,
            refcount_table_clusters,
            snapshots,
            incompatible: fields.incompatible,
            compatible: fields.compatible,
            autoclear: fields.autoclear,
            refcount_order: fields.refcount_order,
            compression: fields.compression,
            unknown_fields: first_cluster
                .get(at::END_KNOWN..fields.header_length)
                .unwrap_or(&[])
                .to_vec(),
            extensions,
            backing_name: parse_backing_name(&bytes, cluster)?,
        })
    }

    /// The first cluster of an image with this header: fields, extensions, name of the backing
    /// file, zeros.
    ///
    /// # Errors
    /// It does not fit into one cluster, or [`Header::parse`] would not give this header back.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        let mut out = vec![0; at::END_V2];
        put(&mut out, at::MAGIC, &MAGIC);
        put(&mut out, at::VERSION, &self.version.number().to_be_bytes());
        put(&mut out, at::CLUSTER_BITS, &self.cluster.bits().to_be_bytes());
        put(&mut out, at::SIZE, &self.declared_size.to_be_bytes());
        let encryption: u32 = match self.encryption {
            Encryption::None => 0,
            Encryption::Aes => 1,
            Encryption::Luks => 2,
        };
        put(&mut out, at::ENCRYPTION, &encryption.to_be_bytes());
        put(&mut out, at::L1_ENTRIES, &self.l1.entries.to_be_bytes());
        put(&mut out, at::L1_OFFSET, &self.l1.offset.0.to_be_bytes());
        put(&mut out, at::REFCOUNT_TABLE_OFFSET, &self.refcount_table_offset.0.to_be_bytes());
        put(&mut out, at::REFCOUNT_TABLE_CLUSTERS, &self.refcount_table_clusters.to_be_bytes());
        put(&mut out, at::SNAPSHOT_COUNT, &self.snapshots.entries.to_be_bytes());
        put(&mut out, at::SNAPSHOTS_OFFSET, &self.snapshots.offset.0.to_be_bytes());
        if self.version == Version::V3 {
            self.encode_version_3(&mut out);
        }
        self.extensions.encode(&mut out);
        if let Some(name) = &self.backing_name {
            let offset = out.len() as u64;
            put(&mut out, at::BACKING_OFFSET, &offset.to_be_bytes());
            put(&mut out, at::BACKING_LEN, &(name.len() as u32).to_be_bytes());
            out.extend_from_slice(name);
        }
        if out.len() > self.cluster.len() {
            let (needed, available) = (out.len() as u64, self.cluster.bytes());
            return Err(FormatError::new(0, "header", Problem::Truncated { needed, available }));
        }
        out.resize(self.cluster.len(), 0);
        if Self::parse(&out)? != *self {
            let problem = "it would not be read as it was meant";
            return Err(FormatError::new(0, "header", Problem::Invalid(problem.into())));
        }
        Ok(out)
    }

    fn encode_version_3(&self, out: &mut Vec<u8>) {
        out.resize(at::END_KNOWN, 0);
        put(out, at::INCOMPATIBLE, &self.incompatible.0.to_be_bytes());
        put(out, at::COMPATIBLE, &self.compatible.0.to_be_bytes());
        put(out, at::AUTOCLEAR, &self.autoclear.0.to_be_bytes());
        put(out, at::REFCOUNT_ORDER, &self.refcount_order.order().to_be_bytes());
        let length = (at::END_KNOWN + self.unknown_fields.len()) as u32;
        put(out, at::HEADER_LENGTH, &length.to_be_bytes());
        put(out, at::COMPRESSION, &[u8::from(self.compression == CompressionType::Zstd)]);
        out.extend_from_slice(&self.unknown_fields);
    }
}

/// The fields that version 3 added, or what they mean for version 2.
struct VersionFields {
    incompatible: Incompatible,
    compatible: Compatible,
    autoclear: Autoclear,
    refcount_order: RefcountOrder,
    header_length: usize,
    compression: CompressionType,
}

impl VersionFields {
    fn parse(bytes: &Big<'_>, version: Version, cluster: ClusterSize) -> Result<Self, FormatError> {
        if version == Version::V2 {
            return Ok(Self {
                incompatible: Incompatible(0),
                compatible: Compatible(0),
                autoclear: Autoclear(0),
                refcount_order: RefcountOrder::DEFAULT,
                header_length: at::END_V2,
                compression: CompressionType::Deflate,
            });
        }
        let header_length = bytes.u32(at::HEADER_LENGTH, "header_length")?;
        let (min, max) = (at::END_V3 as u64, cluster.bytes());
        if !(min..=max).contains(&header_length.into()) {
            let problem = Problem::OutOfRange { value: header_length.into(), min, max };
            return Err(bytes.error(at::HEADER_LENGTH, "header_length", problem));
        }
        let header_length = header_length as usize;
        let order = bytes.u32(at::REFCOUNT_ORDER, "refcount_order")?;
        let refcount_order = RefcountOrder::new(order).ok_or_else(|| {
            let max = RefcountOrder::MAX.into();
            let problem = Problem::OutOfRange { value: order.into(), min: 0, max };
            bytes.error(at::REFCOUNT_ORDER, "refcount_order", problem)
        })?;
        let has_compression = header_length > at::COMPRESSION;
        let compression =
            if has_compression { bytes.u8(at::COMPRESSION, "compression_type")? } else { 0 };
        Ok(Self {
            incompatible: Incompatible(bytes.u64(at::INCOMPATIBLE, "incompatible_features")?),
            compatible: Compatible(bytes.u64(at::COMPATIBLE, "compatible_features")?),
            autoclear: Autoclear(bytes.u64(at::AUTOCLEAR, "autoclear_features")?),
            refcount_order,
            header_length,
            compression: match compression {
                0 => CompressionType::Deflate,
                1 => CompressionType::Zstd,
                other => {
                    let problem = Problem::Unsupported(format!("compression type {other}"));
                    return Err(bytes.error(at::COMPRESSION, "compression_type", problem));
                }
            },
        })
    }

    /// The exponent of the size of an L2 entry.
    fn entry_bits(&self) -> u32 {
        if self.incompatible.contains(Incompatible::EXTENDED_L2) { 4 } else { 3 }
    }

    fn check_features(&self, bytes: &Big<'_>, extension_end: usize) -> Result<(), FormatError> {
        let unknown = self.incompatible.unknown();
        if !unknown.is_empty() {
            let len = extension_end.saturating_sub(self.header_length);
            let area = bytes.slice(self.header_length, len, "header extensions").unwrap_or(&[]);
            let names = extension::names_of_unknown(area, unknown);
            let problem = Problem::Unsupported(names);
            return Err(bytes.error(at::INCOMPATIBLE, "incompatible_features", problem));
        }
        let is_deflate = self.compression == CompressionType::Deflate;
        if is_deflate == self.incompatible.contains(Incompatible::COMPRESSION) {
            let problem = "its compression bit does not agree with compression_type";
            return Err(bytes.invalid(at::INCOMPATIBLE, "incompatible_features", problem));
        }
        if self.autoclear.contains(Autoclear::DATA_FILE_RAW)
            && !self.incompatible.contains(Incompatible::DATA_FILE)
        {
            let problem = "a raw external data file without an external data file";
            return Err(bytes.invalid(at::AUTOCLEAR, "autoclear_features", problem));
        }
        if self.incompatible.contains(Incompatible::EXTENDED_L2) {
            // 32 subclusters of at least a sector each.
            let bits = bytes.u32(at::CLUSTER_BITS, "cluster_bits")?;
            let (min, max) = (14, ClusterSize::BITS_MAX.into());
            if u64::from(bits) < min {
                let problem = Problem::OutOfRange { value: bits.into(), min, max };
                let field = "cluster_bits with extended L2 entries";
                return Err(bytes.error(at::CLUSTER_BITS, field, problem));
            }
        }
        Ok(())
    }
}

/// Where the header extensions must end: at the name of the backing file, or with the cluster.
fn extension_end(bytes: &Big<'_>, cluster: ClusterSize) -> Result<usize, FormatError> {
    let offset = bytes.u64(at::BACKING_OFFSET, "backing_file_offset")?;
    if offset > cluster.bytes() {
        let problem = Problem::OutOfRange { value: offset, min: 0, max: cluster.bytes() };
        return Err(bytes.error(at::BACKING_OFFSET, "backing_file_offset", problem));
    }
    Ok(if offset == 0 { cluster.len() } else { offset as usize })
}

/// Where the extensions of this header start, and where they must end.
pub(super) fn extension_area(
    bytes: &Big<'_>,
    header: &Header,
) -> Result<(usize, usize), FormatError> {
    let start = match header.version {
        Version::V2 => at::END_V2,
        Version::V3 => bytes.u32(at::HEADER_LENGTH, "header_length")? as usize,
    };
    Ok((start, extension_end(bytes, header.cluster)?))
}

fn parse_encryption(bytes: &Big<'_>) -> Result<Encryption, FormatError> {
    match bytes.u32(at::ENCRYPTION, "crypt_method")? {
        0 => Ok(Encryption::None),
        1 => Ok(Encryption::Aes),
        2 => Ok(Encryption::Luks),
        other => {
            let problem = Problem::Unsupported(format!("encryption method {other}"));
            Err(bytes.error(at::ENCRYPTION, "crypt_method", problem))
        }
    }
}

fn parse_refcount_table(
    bytes: &Big<'_>,
    cluster: ClusterSize,
) -> Result<(HostOffset, u32), FormatError> {
    let clusters = bytes.u32(at::REFCOUNT_TABLE_CLUSTERS, "refcount_table_clusters")?;
    let max = REFCOUNT_TABLE_SIZE_MAX / cluster.bytes();
    if clusters == 0 || u64::from(clusters) > max {
        let problem = Problem::OutOfRange { value: clusters.into(), min: 1, max };
        return Err(bytes.error(at::REFCOUNT_TABLE_CLUSTERS, "refcount_table_clusters", problem));
    }
    let table = Table::checked(
        cluster,
        at::REFCOUNT_TABLE_OFFSET as u64,
        "refcount table",
        bytes.u64(at::REFCOUNT_TABLE_OFFSET, "refcount_table_offset")?,
        clusters,
        cluster.bytes(),
        REFCOUNT_TABLE_SIZE_MAX,
    )?;
    Ok((table.offset, clusters))
}

/// The declared size and the active L1 table, which must be long enough for it. An L2 entry has
/// 2^`entry_bits` bytes.
fn parse_size_and_l1(
    bytes: &Big<'_>,
    cluster: ClusterSize,
    entry_bits: u32,
) -> Result<(u64, Table), FormatError> {
    let size = bytes.u64(at::SIZE, "size")?;
    if size > VIRTUAL_SIZE_MAX {
        let problem = Problem::OutOfRange { value: size, min: 0, max: VIRTUAL_SIZE_MAX };
        return Err(bytes.error(at::SIZE, "size", problem));
    }
    let l1 = Table::checked(
        cluster,
        at::L1_OFFSET as u64,
        "active L1 table",
        bytes.u64(at::L1_OFFSET, "l1_table_offset")?,
        bytes.u32(at::L1_ENTRIES, "l1_size")?,
        L1_ENTRY_SIZE,
        L1_SIZE_MAX,
    )?;
    let coverage_bits = 2 * cluster.bits() - entry_bits;
    let needed = size.div_ceil(1 << coverage_bits);
    if u64::from(l1.entries) < needed {
        let max = L1_SIZE_MAX / L1_ENTRY_SIZE;
        let problem = if needed > max {
            let max = max << coverage_bits;
            return Err(bytes.error(
                at::SIZE,
                "size",
                Problem::OutOfRange { value: size, min: 0, max },
            ));
        } else {
            Problem::OutOfRange { value: l1.entries.into(), min: needed, max }
        };
        return Err(bytes.error(at::L1_ENTRIES, "l1_size", problem));
    }
    Ok((size, l1))
}

fn parse_backing_name(
    bytes: &Big<'_>,
    cluster: ClusterSize,
) -> Result<Option<Vec<u8>>, FormatError> {
    let offset = bytes.u64(at::BACKING_OFFSET, "backing_file_offset")?;
    if offset == 0 {
        return Ok(None);
    }
    let len = bytes.u32(at::BACKING_LEN, "backing_file_size")?;
    let max = u64::from(BACKING_NAME_LEN_MAX).min(cluster.bytes().saturating_sub(offset));
    if u64::from(len) > max {
        let problem = Problem::OutOfRange { value: len.into(), min: 0, max };
        return Err(bytes.error(at::BACKING_LEN, "backing_file_size", problem));
    }
    let name = bytes.slice(offset as usize, len as usize, "backing file name")?;
    // QEMU takes it for a C string: it ends at a zero byte, and an empty one is none.
    let name = name.split(|&byte| byte == 0).next().unwrap_or(&[]);
    Ok((!name.is_empty()).then(|| name.to_vec()))
}
