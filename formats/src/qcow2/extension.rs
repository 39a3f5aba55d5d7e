//! Header extensions: what stands between the header's fields and the name of the backing file.

use byteorder::{BigEndian, ByteOrder};

use super::features::{Autoclear, Compatible, Incompatible};
use super::header::Encryption;
use super::units::{ClusterSize, HostOffset};
use crate::fields::{Big, pad_to_8, put};
use crate::{FormatError, Problem};

/// Ends the area.
pub(super) const END: u32 = 0;
/// The format of the backing file.
const BACKING_FORMAT: u32 = 0xe279_2aca;
/// Names of features.
const FEATURE_NAMES: u32 = 0x6803_f857;
/// Where the LUKS header lies.
const ENCRYPTION_HEADER: u32 = 0x0537_be77;
/// Where the directory of bitmaps lies.
pub(super) const BITMAPS: u32 = 0x2385_2875;
/// Name of the external data file.
const DATA_FILE: u32 = 0x4441_5441;

/// The longest name of a format in bytes.
const FORMAT_NAME_LEN_MAX: usize = 15;
/// Bytes in an entry of the feature name table.
const FEATURE_NAME_LEN: usize = 48;
/// The largest directory of bitmaps in bytes.
pub const BITMAP_DIRECTORY_SIZE_MAX: u64 = 64 << 20;
/// The most bitmaps that an image can have.
pub const BITMAPS_MAX: u32 = 65_535;

/// Everything that the header extensions of an image say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Extensions {
    /// The format of the backing file, as QEMU names formats.
    pub backing_format: Option<Vec<u8>>,
    /// Name of the external data file, as it stands in the image.
    pub data_file: Option<Vec<u8>>,
    /// Names of feature bits.
    pub feature_names: Vec<FeatureName>,
    /// Where the LUKS header lies.
    pub encryption_header: Option<EncryptionHeader>,
    /// Where the directory of bitmaps lies. Whether it can be trusted, [`Autoclear::BITMAPS`] says.
    pub bitmaps: Option<BitmapsExtension>,
    /// Extensions that are not known here, to be written back as they are.
    pub unknown: Vec<UnknownExtension>,
}

/// The name of one feature bit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeatureName {
    /// 0 incompatible, 1 compatible, 2 autoclear.
    pub set: u8,
    /// Number of the bit, from 0.
    pub bit: u8,
    /// At most 46 bytes.
    pub name: Vec<u8>,
}

/// Where the LUKS header of an encrypted image lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncryptionHeader {
    /// Where it starts; a multiple of the cluster size.
    pub offset: HostOffset,
    /// Its length in bytes.
    pub len: u64,
}

/// Where the directory of bitmaps lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BitmapsExtension {
    /// Number of bitmaps, at least one.
    pub count: u32,
    /// Where the directory starts; a multiple of the cluster size.
    pub directory: HostOffset,
    /// Length of the directory in bytes.
    pub directory_len: u64,
}

/// An extension that is not known here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownExtension {
    /// Its type.
    pub kind: u32,
    /// Its bytes, without padding.
    pub data: Vec<u8>,
}

impl Extensions {
    /// Reads the extensions in `area`, which starts at byte `base` of the file.
    ///
    /// If a type appears twice, the last one counts, as in QEMU. A bitmaps extension that the
    /// autoclear bit declares stale is kept only if it is in order.
    ///
    /// # Errors
    /// An extension reaches beyond the area, or breaks its own rules.
    pub(crate) fn parse(
        area: &[u8],
        base: u64,
        cluster: ClusterSize,
        encryption: Encryption,
        autoclear: Autoclear,
    ) -> Result<Self, FormatError> {
        let mut extensions = Self::default();
        for item in Items::new(area, base) {
            let (kind, data) = item?;
            let bytes = data.bytes();
            match kind {
                BACKING_FORMAT => {
                    if data.data.len() > FORMAT_NAME_LEN_MAX {
                        return Err(bytes.invalid(0, "backing format", "the name is too long"));
                    }
                    extensions.backing_format = Some(c_string(data.data));
                }
                DATA_FILE => extensions.data_file = Some(c_string(data.data)),
                FEATURE_NAMES => extensions.feature_names = parse_feature_names(data.data),
                ENCRYPTION_HEADER => {
                    if encryption != Encryption::Luks {
                        let problem = "the image is not encrypted with LUKS";
                        return Err(bytes.invalid(0, "encryption header extension", problem));
                    }
                    extensions.encryption_header = Some(EncryptionHeader::parse(&data, cluster)?);
                }
                BITMAPS => {
                    let checked = BitmapsExtension::parse(&data, cluster);
                    let trusted = autoclear.contains(Autoclear::BITMAPS);
                    let wrong_len = data.data.len() != BitmapsExtension::LEN;
                    extensions.bitmaps =
                        if trusted || wrong_len { Some(checked?) } else { checked.ok() };
                }
                _ => {
                    extensions.unknown.push(UnknownExtension { kind, data: data.data.to_vec() });
                }
            }
        }
        Ok(extensions)
    }

    /// Appends the extensions and the end marker to `out`.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        if let Some(format) = &self.backing_format {
            push(out, BACKING_FORMAT, format);
        }
        if let Some(name) = &self.data_file {
            push(out, DATA_FILE, name);
        }
        if let Some(header) = &self.encryption_header {
            let mut data = header.offset.0.to_be_bytes().to_vec();
            data.extend_from_slice(&header.len.to_be_bytes());
            push(out, ENCRYPTION_HEADER, &data);
        }
        if let Some(bitmaps) = &self.bitmaps {
            push(out, BITMAPS, &bitmaps.encode());
        }
        if !self.feature_names.is_empty() {
            let mut data = Vec::with_capacity(self.feature_names.len() * FEATURE_NAME_LEN);
            for feature in &self.feature_names {
                let end = data.len() + FEATURE_NAME_LEN;
                data.extend_from_slice(&[feature.set, feature.bit]);
                data.extend_from_slice(&feature.name);
                data.resize(end, 0);
            }
            push(out, FEATURE_NAMES, &data);
        }
        for extension in &self.unknown {
            push(out, extension.kind, &extension.data);
        }
        push(out, END, &[]);
    }
}

impl EncryptionHeader {
    const LEN: usize = 16;

    fn parse(data: &Data<'_>, cluster: ClusterSize) -> Result<Self, FormatError> {
        let (bytes, field) = (data.bytes(), "encryption header extension");
        if data.data.len() != Self::LEN {
            return Err(bytes.invalid(0, field, "its length is not 16"));
        }
        let offset = bytes.u64(0, field)?;
        if !cluster.is_aligned(offset) {
            let problem = Problem::Misaligned { value: offset, alignment: cluster.bytes() };
            return Err(bytes.error(0, field, problem));
        }
        Ok(Self { offset: HostOffset(offset), len: bytes.u64(8, field)? })
    }
}

impl BitmapsExtension {
    pub(super) const LEN: usize = 24;

    /// The extension's data as it goes into the file.
    pub(super) fn encode(&self) -> [u8; Self::LEN] {
        let mut data = [0; Self::LEN];
        put(&mut data, 0, &self.count.to_be_bytes());
        put(&mut data, 8, &self.directory_len.to_be_bytes());
        put(&mut data, 16, &self.directory.0.to_be_bytes());
        data
    }

    fn parse(data: &Data<'_>, cluster: ClusterSize) -> Result<Self, FormatError> {
        let bytes = data.bytes();
        if data.data.len() != Self::LEN {
            return Err(bytes.invalid(0, "bitmaps extension", "its length is not 24"));
        }
        let count = bytes.u32(0, "nb_bitmaps")?;
        if !(1..=BITMAPS_MAX).contains(&count) {
            let problem =
                Problem::OutOfRange { value: count.into(), min: 1, max: BITMAPS_MAX.into() };
            return Err(bytes.error(0, "nb_bitmaps", problem));
        }
        if bytes.u32(4, "bitmaps extension")? != 0 {
            return Err(bytes.invalid(4, "bitmaps extension", "the reserved field is not zero"));
        }
        let directory_len = bytes.u64(8, "bitmap_directory_size")?;
        if directory_len > BITMAP_DIRECTORY_SIZE_MAX {
            let max = BITMAP_DIRECTORY_SIZE_MAX;
            let problem = Problem::OutOfRange { value: directory_len, min: 0, max };
            return Err(bytes.error(8, "bitmap_directory_size", problem));
        }
        let directory = bytes.u64(16, "bitmap_directory_offset")?;
        if !cluster.is_aligned(directory) {
            let problem = Problem::Misaligned { value: directory, alignment: cluster.bytes() };
            return Err(bytes.error(16, "bitmap_directory_offset", problem));
        }
        Ok(Self { count, directory: HostOffset(directory), directory_len })
    }
}

/// Where something of an area stands, in bytes from the start of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Places {
    /// The bitmaps extension that counts.
    pub(super) bitmaps: Option<usize>,
    /// No other extension follows it.
    pub(super) bitmaps_last: bool,
    /// The end marker, or where one would stand.
    pub(super) end: usize,
}

/// Finds what can be edited in `area`, which starts at byte `base` of the file.
///
/// # Errors
/// An extension reaches beyond the area.
pub(super) fn places(area: &[u8], base: usize) -> Result<Places, FormatError> {
    let mut places = Places { end: base, ..Places::default() };
    for item in Items::new(area, base as u64) {
        let (kind, data) = item?;
        let at = places.end;
        places.end = at + 8 + data.data.len().next_multiple_of(8);
        places.bitmaps_last = kind == BITMAPS;
        if kind == BITMAPS {
            places.bitmaps = Some(at);
        }
    }
    Ok(places)
}

/// The names of the `unknown` bits, from the feature name table in `area` if it has them.
pub(crate) fn names_of_unknown(area: &[u8], unknown: Incompatible) -> String {
    let table = Items::new(area, 0)
        .map_while(Result::ok)
        .filter(|(kind, _)| *kind == FEATURE_NAMES)
        .last()
        .map(|(_, data)| parse_feature_names(data.data))
        .unwrap_or_default();
    let names: Vec<String> = (0..64_u8)
        .filter(|bit| unknown.0 >> bit & 1 != 0)
        .map(|bit| {
            let named = table.iter().find(|feature| feature.set == 0 && feature.bit == bit);
            match named {
                Some(feature) => String::from_utf8_lossy(&feature.name).escape_debug().to_string(),
                None => format!("incompatible feature bit {bit}"),
            }
        })
        .collect();
    names.join(", ")
}

/// The feature name table that a writer leaves for readers that know less.
pub(crate) fn known_names() -> Vec<FeatureName> {
    let sets = [Incompatible::NAMES, Compatible::NAMES, Autoclear::NAMES];
    (0..)
        .zip(sets)
        .flat_map(|(set, names)| {
            names.iter().map(move |(bit, name)| FeatureName {
                set,
                bit: *bit,
                name: name.as_bytes().to_vec(),
            })
        })
        .collect()
}

/// The table ends with its bytes or at an entry without a name.
fn parse_feature_names(data: &[u8]) -> Vec<FeatureName> {
    data.chunks_exact(FEATURE_NAME_LEN)
        .map_while(|entry| {
            let (set, bit, name) = match entry {
                [set, bit, name @ ..] => (*set, *bit, c_string(name)),
                _ => return None,
            };
            (!name.is_empty()).then_some(FeatureName { set, bit, name })
        })
        .collect()
}

/// The bytes up to the first zero byte.
fn c_string(bytes: &[u8]) -> Vec<u8> {
    bytes.split(|&byte| byte == 0).next().unwrap_or(&[]).to_vec()
}

fn push(out: &mut Vec<u8>, kind: u32, data: &[u8]) {
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&(data.len() as u32).to_be_bytes());
    out.extend_from_slice(data);
    pad_to_8(out);
}

/// The data of one extension and where it lies.
struct Data<'a> {
    data: &'a [u8],
    base: u64,
}

impl<'a> Data<'a> {
    fn bytes(&self) -> Big<'a> {
        Big::new(self.data, self.base)
    }
}

/// Walks over the extensions in an area, up to the end marker or the end of the area.
struct Items<'a> {
    area: &'a [u8],
    base: u64,
    at: usize,
}

impl<'a> Items<'a> {
    fn new(area: &'a [u8], base: u64) -> Self {
        Self { area, base, at: 0 }
    }

    fn next_item(&mut self) -> Result<Option<(u32, Data<'a>)>, FormatError> {
        let bytes = Big::new(self.area, self.base);
        let field = "header extension";
        let head = bytes.slice(self.at, 8, field)?;
        let (kind, len) = head.split_at(4);
        let (kind, len) = (BigEndian::read_u32(kind), BigEndian::read_u32(len) as usize);
        let start = self.at + 8;
        let data = bytes.slice(start, len, field)?;
        if kind == END {
            return Ok(None);
        }
        // The area is at most one cluster, and `len` lies within it.
        self.at = start + len.next_multiple_of(8);
        Ok(Some((kind, Data { data, base: bytes.position(start) })))
    }
}

impl<'a> Iterator for Items<'a> {
    type Item = Result<(u32, Data<'a>), FormatError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.area.len() {
            return None;
        }
        let item = self.next_item().transpose();
        if !matches!(item, Some(Ok(_))) {
            self.at = self.area.len();
        }
        item
    }
}
