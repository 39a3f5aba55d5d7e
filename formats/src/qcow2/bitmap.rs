//! Persistent bitmaps: their directory, and the table of each.

use byteorder::{BigEndian, ByteOrder};

use super::extension::{BITMAP_DIRECTORY_SIZE_MAX, BITMAPS_MAX};
use super::l1::OFFSET_MASK;
use super::units::{ClusterSize, HostOffset, Table};
use crate::fields::{Big, pad_to_8, put};
use crate::{FormatError, Problem};

/// Bytes of a directory entry before its extra data and name.
const FIXED_LEN: usize = 24;
/// Bytes in an entry of a bitmap table.
const TABLE_ENTRY_SIZE: u64 = 8;
/// The most entries of a bitmap table.
const TABLE_ENTRIES_MAX: u64 = 0x800_0000;
/// The largest bitmap that QEMU loads, in bytes.
const BITMAP_SIZE_MAX: u64 = 0x2000_0000;
/// The longest name in bytes.
const NAME_LEN_MAX: usize = 1023;
/// The exponents of the granularities that QEMU knows.
const GRANULARITY_BITS: std::ops::RangeInclusive<u8> = 9..=31;

/// Flag: it was not saved properly.
const IN_USE: u32 = 1;
/// Flag: it records every write.
const AUTO: u32 = 1 << 1;
/// Flag: whoever does not know the extra data may use the bitmap all the same.
const EXTRA_DATA_COMPATIBLE: u32 = 1 << 2;

/// Where the fields of a directory entry lie, in bytes from its start.
mod at {
    pub(super) const TABLE_OFFSET: usize = 0;
    pub(super) const TABLE_ENTRIES: usize = 8;
    pub(super) const FLAGS: usize = 12;
    pub(super) const KIND: usize = 16;
    pub(super) const GRANULARITY_BITS: usize = 17;
    pub(super) const NAME_LEN: usize = 18;
    pub(super) const EXTRA_LEN: usize = 20;
}

/// A dirty bitmap that the image stores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bitmap {
    /// Its table.
    pub table: Table,
    /// It was not saved properly: its bits mean nothing.
    pub in_use: bool,
    /// It records every write to the disk.
    pub auto: bool,
    /// Whoever does not know the extra data may use the bitmap all the same.
    pub extra_data_compatible: bool,
    /// A bit stands for 2^`granularity_bits` bytes of the disk.
    pub granularity_bits: u8,
    /// Its name.
    pub name: Vec<u8>,
    /// Extra data, whose meaning is not known here.
    pub extra_data: Vec<u8>,
}

impl Bitmap {
    /// Bytes of the disk that a bit stands for.
    pub fn granularity(&self) -> u64 {
        1_u64.checked_shl(self.granularity_bits.into()).unwrap_or(0)
    }

    /// A new bitmap of a disk of `virtual_size` bytes that records every write from now on. Its
    /// table, for which [`Table::entries`] says how much room is needed, has no place yet.
    ///
    /// # Errors
    /// The granularity is no power of two from 512 bytes to 2 GiB, the name does not have 1 to 1023
    /// bytes, the disk is empty, or it is larger than QEMU loads a bitmap of this granularity for.
    pub fn new(
        name: &[u8],
        granularity: u64,
        virtual_size: u64,
        cluster: ClusterSize,
    ) -> Result<Self, FormatError> {
        let error = |field: &'static str, value, min, max| {
            FormatError::new(0, field, Problem::OutOfRange { value, min, max })
        };
        let bits = granularity.trailing_zeros() as u8;
        if !granularity.is_power_of_two() || !GRANULARITY_BITS.contains(&bits) {
            let (min, max) = (1 << GRANULARITY_BITS.start(), 1 << GRANULARITY_BITS.end());
            return Err(error("bitmap granularity, a power of two", granularity, min, max));
        }
        if !(1..=NAME_LEN_MAX).contains(&name.len()) {
            return Err(error("bitmap name_size", name.len() as u64, 1, NAME_LEN_MAX as u64));
        }
        // A byte of the bitmap has 8 bits.
        let bytes_max = BITMAP_SIZE_MAX.min(TABLE_ENTRIES_MAX.saturating_mul(cluster.bytes()));
        let size_max = (8 * bytes_max).saturating_mul(granularity);
        if !(1..=size_max).contains(&virtual_size) {
            return Err(error("size of a disk with such a bitmap", virtual_size, 1, size_max));
        }
        let mut bitmap = Self {
            table: Table { offset: HostOffset(0), entries: 0 },
            in_use: false,
            auto: true,
            extra_data_compatible: false,
            granularity_bits: bits,
            name: name.to_vec(),
            extra_data: Vec::new(),
        };
        // At most TABLE_ENTRIES_MAX, by the check above.
        bitmap.table.entries = cluster.count(bitmap.data_len(virtual_size)) as u32;
        Ok(bitmap)
    }

    /// Whether its bits can be believed, as far as the entry says.
    pub fn is_usable(&self) -> bool {
        !self.in_use && (self.extra_data.is_empty() || self.extra_data_compatible)
    }

    /// Bytes that the bits of a disk of `virtual_size` bytes take.
    pub fn data_len(&self, virtual_size: u64) -> u64 {
        virtual_size.div_ceil(self.granularity().max(1)).div_ceil(8)
    }

    fn parse(
        bytes: &Big<'_>,
        start: usize,
        cluster: ClusterSize,
        virtual_size: u64,
    ) -> Result<(Self, usize), FormatError> {
        bytes.slice(start, FIXED_LEN, "bitmap directory entry")?;
        let flags = bytes.u32(start + at::FLAGS, "bitmap flags")?;
        if flags & !(IN_USE | AUTO | EXTRA_DATA_COMPATIBLE) != 0 {
            return Err(bytes.invalid(start + at::FLAGS, "bitmap flags", "reserved bits are set"));
        }
        if bytes.u8(start + at::KIND, "bitmap type")? != 1 {
            let problem = "it is not a dirty tracking bitmap";
            return Err(bytes.invalid(start + at::KIND, "bitmap type", problem));
        }
        let granularity_bits = bytes.u8(start + at::GRANULARITY_BITS, "granularity_bits")?;
        if !GRANULARITY_BITS.contains(&granularity_bits) {
            let (min, max) = (*GRANULARITY_BITS.start(), *GRANULARITY_BITS.end());
            let (value, min, max) = (granularity_bits.into(), min.into(), max.into());
            let problem = Problem::OutOfRange { value, min, max };
            return Err(bytes.error(start + at::GRANULARITY_BITS, "granularity_bits", problem));
        }
        let name_len = usize::from(bytes.u16(start + at::NAME_LEN, "bitmap name_size")?);
        if !(1..=NAME_LEN_MAX).contains(&name_len) {
            let problem =
                Problem::OutOfRange { value: name_len as u64, min: 1, max: NAME_LEN_MAX as u64 };
            return Err(bytes.error(start + at::NAME_LEN, "bitmap name_size", problem));
        }
        let extra_len = bytes.u32(start + at::EXTRA_LEN, "bitmap extra_data_size")? as usize;
        let extra_start = start + FIXED_LEN;
        let extra_data = bytes.slice(extra_start, extra_len, "bitmap extra data")?;
        let name = bytes.slice(extra_start + extra_len, name_len, "bitmap name")?;
        let bitmap = Self {
            table: parse_table_place(bytes, start, cluster)?,
            in_use: flags & IN_USE != 0,
            auto: flags & AUTO != 0,
            extra_data_compatible: flags & EXTRA_DATA_COMPATIBLE != 0,
            granularity_bits,
            name: name.to_vec(),
            extra_data: extra_data.to_vec(),
        };
        // A bitmap that was left in use may have the size of a disk that was resized since.
        let entries = u64::from(bitmap.table.entries);
        if !bitmap.in_use && entries * cluster.bytes() < bitmap.data_len(virtual_size) {
            let problem = "its table is too short for the disk";
            return Err(bytes.invalid(start + at::TABLE_ENTRIES, "bitmap_table_size", problem));
        }
        Ok((bitmap, (FIXED_LEN + extra_len + name_len).next_multiple_of(8)))
    }

    /// Appends the directory entry to `out`.
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), FormatError> {
        let flag = |set, bit| if set { bit } else { 0 };
        let flags = flag(self.in_use, IN_USE)
            | flag(self.auto, AUTO)
            | flag(self.extra_data_compatible, EXTRA_DATA_COMPATIBLE);
        let mut fixed = [0; FIXED_LEN];
        put(&mut fixed, at::TABLE_OFFSET, &self.table.offset.0.to_be_bytes());
        put(&mut fixed, at::TABLE_ENTRIES, &self.table.entries.to_be_bytes());
        put(&mut fixed, at::FLAGS, &flags.to_be_bytes());
        put(&mut fixed, at::KIND, &[1, self.granularity_bits]);
        let name_len = u16::try_from(self.name.len()).unwrap_or(u16::MAX);
        put(&mut fixed, at::NAME_LEN, &name_len.to_be_bytes());
        put(&mut fixed, at::EXTRA_LEN, &(self.extra_data.len() as u32).to_be_bytes());
        if !(1..=NAME_LEN_MAX).contains(&self.name.len()) {
            let problem = Problem::Invalid("it must have 1 to 1023 bytes".into());
            return Err(FormatError::new(0, "bitmap name", problem));
        }
        out.extend_from_slice(&fixed);
        out.extend_from_slice(&self.extra_data);
        out.extend_from_slice(&self.name);
        pad_to_8(out);
        Ok(())
    }
}

fn parse_table_place(
    bytes: &Big<'_>,
    start: usize,
    cluster: ClusterSize,
) -> Result<Table, FormatError> {
    let table = Table::checked(
        cluster,
        bytes.position(start + at::TABLE_OFFSET),
        "bitmap table",
        bytes.u64(start + at::TABLE_OFFSET, "bitmap_table_offset")?,
        bytes.u32(start + at::TABLE_ENTRIES, "bitmap_table_size")?,
        TABLE_ENTRY_SIZE,
        TABLE_ENTRIES_MAX.min(BITMAP_SIZE_MAX / cluster.bytes()) * TABLE_ENTRY_SIZE,
    )?;
    if table.entries == 0 || table.offset.0 == 0 {
        return Err(bytes.invalid(start, "bitmap table", "there is none"));
    }
    Ok(table)
}

/// Reads the directory in `directory`, which starts at byte `base` of the file and must hold
/// exactly `count` bitmaps of a disk of `virtual_size` bytes.
///
/// # Errors
/// QEMU would not load one of the bitmaps, two have the same name, or their number is wrong.
pub fn parse_directory(
    directory: &[u8],
    base: u64,
    count: u32,
    cluster: ClusterSize,
    virtual_size: u64,
) -> Result<Vec<Bitmap>, FormatError> {
    let bytes = Big::new(directory, base);
    let mut bitmaps: Vec<Bitmap> = Vec::new();
    let mut names = std::collections::HashSet::new();
    let mut start = 0;
    while start < directory.len() {
        if bitmaps.len() >= count.min(BITMAPS_MAX) as usize {
            let problem = "it has more bitmaps than the header says";
            return Err(bytes.invalid(start, "bitmap directory", problem));
        }
        let (bitmap, len) = Bitmap::parse(&bytes, start, cluster, virtual_size)?;
        if !names.insert(bitmap.name.clone()) {
            return Err(bytes.invalid(start, "bitmap name", "two bitmaps have the same"));
        }
        bitmaps.push(bitmap);
        start += len;
    }
    if bitmaps.len() != count as usize {
        let problem = "it has fewer bitmaps than the header says";
        return Err(bytes.invalid(start, "bitmap directory", problem));
    }
    Ok(bitmaps)
}

/// The bitmaps of a directory to which no header leads any more, so that neither their number nor the
/// size of their disk is known: as many as can be read from the start of `directory` on, which lies at
/// byte `base` of the file. Gives the length of their entries, too.
pub fn parse_entries(directory: &[u8], base: u64, cluster: ClusterSize) -> (Vec<Bitmap>, usize) {
    let bytes = Big::new(directory, base);
    let (mut bitmaps, mut start) = (Vec::new(), 0);
    while let Ok((bitmap, len)) = Bitmap::parse(&bytes, start, cluster, 0) {
        bitmaps.push(bitmap);
        start += len;
    }
    (bitmaps, start)
}

/// The directory of `bitmaps` as it goes into the file.
///
/// # Errors
/// There are too many, a name is too long, or the directory is.
pub fn encode_directory(bitmaps: &[Bitmap]) -> Result<Vec<u8>, FormatError> {
    let mut out = Vec::new();
    for bitmap in bitmaps {
        bitmap.encode(&mut out)?;
    }
    if bitmaps.len() > BITMAPS_MAX as usize || out.len() as u64 > BITMAP_DIRECTORY_SIZE_MAX {
        let problem = Problem::Invalid("it is larger than QEMU reads".into());
        return Err(FormatError::new(0, "bitmap directory", problem));
    }
    Ok(out)
}

/// What an entry of a bitmap table says about one cluster of the bitmap's bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BitmapTableEntry {
    /// All bits are zero.
    Zeros,
    /// All bits are one.
    Ones,
    /// The bits are in this cluster.
    Stored(HostOffset),
}

impl BitmapTableEntry {
    /// Reads the entry `bytes`, which lies at `position` in the file.
    ///
    /// # Errors
    /// There are fewer than 8 bytes, reserved bits are set, or the cluster is not aligned.
    pub fn parse(
        bytes: &[u8],
        cluster: ClusterSize,
        position: HostOffset,
    ) -> Result<Self, FormatError> {
        let bytes = Big::new(bytes, position.0);
        let field = "bitmap table entry";
        let entry = bytes.u64(0, field)?;
        let offset = entry & OFFSET_MASK;
        match (offset, entry & !OFFSET_MASK) {
            (0, 0) => Ok(Self::Zeros),
            (0, 1) => Ok(Self::Ones),
            (_, 1..) => Err(bytes.invalid(0, field, "reserved bits are set")),
            (_, 0) if !cluster.is_aligned(offset) => {
                let problem = Problem::Misaligned { value: offset, alignment: cluster.bytes() };
                Err(bytes.error(0, field, problem))
            }
            (_, 0) => Ok(Self::Stored(HostOffset(offset))),
        }
    }

    /// The entry as it goes into the file.
    pub fn to_bytes(self) -> [u8; 8] {
        let mut bytes = [0; 8];
        BigEndian::write_u64(
            &mut bytes,
            match self {
                Self::Zeros => 0,
                Self::Ones => 1,
                Self::Stored(offset) => offset.0 & OFFSET_MASK,
            },
        );
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cluster() -> ClusterSize {
        ClusterSize::from_bits(16).unwrap()
    }

    fn bitmap(name: &str) -> Bitmap {
        Bitmap {
            table: Table { offset: HostOffset(0x7_0000), entries: 1 },
            in_use: false,
            auto: true,
            extra_data_compatible: false,
            granularity_bits: 16,
            name: name.into(),
            extra_data: Vec::new(),
        }
    }

    fn parse(bitmaps: &[Bitmap], virtual_size: u64) -> Result<Vec<Bitmap>, FormatError> {
        let bytes = encode_directory(bitmaps)?;
        parse_directory(&bytes, 0x3_0000, bitmaps.len() as u32, cluster(), virtual_size)
    }

    #[test]
    fn what_is_written_is_read() {
        let bitmaps = [
            bitmap("a"),
            Bitmap { in_use: true, auto: false, ..bitmap("second") },
            Bitmap { extra_data: vec![1, 2, 3], extra_data_compatible: true, ..bitmap("b") },
        ];
        assert_eq!(parse(&bitmaps, 1 << 30).unwrap(), bitmaps);
    }

    #[test]
    fn entries_are_read_without_a_header() {
        let bitmaps = [bitmap("a"), Bitmap { auto: false, ..bitmap("second") }];
        let mut bytes = encode_directory(&bitmaps).unwrap();
        let len = bytes.len();
        bytes.resize(512, 0);
        assert_eq!(parse_entries(&bytes, 0x3_0000, cluster()), (bitmaps.to_vec(), len));
        assert_eq!(parse_entries(&bytes[8..], 0x3_0000, cluster()), (Vec::new(), 0));
        assert_eq!(parse_entries(&bytes[..len - 3], 0x3_0000, cluster()).0, bitmaps[..1]);
    }

    #[test]
    fn usable_bitmaps() {
        assert!(bitmap("a").is_usable());
        assert!(!Bitmap { in_use: true, ..bitmap("a") }.is_usable());
        assert!(!Bitmap { extra_data: vec![1], ..bitmap("a") }.is_usable());
    }

    #[test]
    fn rules_of_a_directory_entry() {
        // 64 KiB of bits of 64 KiB each: 32 GiB.
        assert!(parse(&[bitmap("a")], 32 << 30).is_ok());
        assert!(parse(&[bitmap("a")], (32 << 30) + 1).is_err());
        assert!(parse(&[Bitmap { in_use: true, ..bitmap("a") }], 1 << 40).is_ok());
        assert!(parse(&[Bitmap { granularity_bits: 8, ..bitmap("a") }], 0).is_err());
        assert!(parse(&[Bitmap { granularity_bits: 32, ..bitmap("a") }], 0).is_err());
        let table = |offset, entries| Table { offset: HostOffset(offset), entries };
        assert!(parse(&[Bitmap { table: table(0x7_0200, 1), ..bitmap("a") }], 0).is_err());
        assert!(parse(&[Bitmap { table: table(0, 1), ..bitmap("a") }], 0).is_err());
        assert!(parse(&[Bitmap { table: table(0x7_0000, 0), ..bitmap("a") }], 0).is_err());
        assert!(parse(&[Bitmap { table: table(0x7_0000, 8192), ..bitmap("a") }], 0).is_ok());
        assert!(parse(&[Bitmap { table: table(0x7_0000, 8193), ..bitmap("a") }], 0).is_err());
        assert!(parse(&[bitmap("a"), bitmap("a")], 0).is_err());
    }

    #[test]
    fn number_of_bitmaps_must_be_the_declared_one() {
        let bytes = encode_directory(&[bitmap("a"), bitmap("b")]).unwrap();
        assert!(parse_directory(&bytes, 0, 1, cluster(), 0).is_err());
        assert!(parse_directory(&bytes, 0, 3, cluster(), 0).is_err());
    }

    #[test]
    fn table_entries() {
        let parse =
            |entry: u64| BitmapTableEntry::parse(&entry.to_be_bytes(), cluster(), HostOffset(0));
        for entry in [
            BitmapTableEntry::Zeros,
            BitmapTableEntry::Ones,
            BitmapTableEntry::Stored(HostOffset(0x9_0000)),
        ] {
            assert_eq!(parse(u64::from_be_bytes(entry.to_bytes())).unwrap(), entry);
        }
        for wrong in [2, 0x9_0001, 0x9_0200, 1 << 63] {
            assert!(parse(wrong).is_err(), "{wrong:#x}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_directory(&bytes, 0, 3, cluster(), u64::MAX);
        }
    }
}
