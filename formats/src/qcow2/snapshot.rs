//! The table of internal snapshots.

use super::header::{L1_SIZE_MAX, VIRTUAL_SIZE_MAX};
use super::l1::L1_ENTRY_SIZE;
use super::units::{ClusterSize, SECTOR_SIZE, Table};
use crate::fields::{Big, pad_to_8, put};
use crate::{FormatError, Problem};

/// The most snapshots that an image can have.
pub const SNAPSHOTS_MAX: usize = 65_536;
/// The largest snapshot table in bytes.
pub const SNAPSHOT_TABLE_SIZE_MAX: u64 = 64 << 20;
/// The most extra data that an entry can have, in bytes.
pub const EXTRA_DATA_LEN_MAX: usize = 1024;
/// Bytes of an entry before its extra data, id and name.
pub const FIXED_LEN: usize = 40;

/// Where the fields of an entry lie, in bytes from its start.
mod at {
    pub(super) const L1_OFFSET: usize = 0;
    pub(super) const L1_ENTRIES: usize = 8;
    pub(super) const ID_LEN: usize = 12;
    pub(super) const NAME_LEN: usize = 14;
    pub(super) const DATE_S: usize = 16;
    pub(super) const DATE_NS: usize = 20;
    pub(super) const VM_CLOCK: usize = 24;
    pub(super) const VM_STATE_SIZE: usize = 32;
    pub(super) const EXTRA_LEN: usize = 36;
    pub(super) const VM_STATE_SIZE_LARGE: usize = 40;
    pub(super) const DISK_SIZE: usize = 48;
    pub(super) const ICOUNT: usize = 56;
    /// Where the extra data that is known here ends.
    pub(super) const EXTRA_KNOWN_END: usize = 64;
}

/// One internal snapshot.
///
/// That its L1 table lies in the image and is long enough is for [`Snapshot::checked_l1`] to say:
/// a snapshot that can't be read must not hide the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Where its L1 table starts, unchecked.
    pub l1_offset: u64,
    /// Number of entries of its L1 table, unchecked.
    pub l1_entries: u32,
    /// Its id, usually a number.
    pub id: Vec<u8>,
    /// Its name.
    pub name: Vec<u8>,
    /// When it was taken: whole seconds since 1970, UTC.
    pub date_s: u32,
    /// When it was taken: nanoseconds beyond the seconds.
    pub date_ns: u32,
    /// How long the guest had run, in nanoseconds.
    pub vm_clock_ns: u64,
    /// Size of the saved state of the guest's machine in bytes; 0 if only the disk was saved.
    pub vm_state_size: u64,
    /// Size of the disk in bytes; nothing if the entry does not say and the image's size counts.
    pub disk_size: Option<u64>,
    /// Instructions executed, when recording.
    pub icount: Option<u64>,
    /// Extra data behind what is known here.
    pub unknown_extra: Vec<u8>,
}

impl Snapshot {
    /// Length of an entry in bytes, without padding, from its first [`FIXED_LEN`] bytes. `base` is
    /// where it lies in the file.
    ///
    /// # Errors
    /// The bytes are too few, or the extra data is longer than [`EXTRA_DATA_LEN_MAX`].
    pub fn entry_len(fixed: &[u8], base: u64) -> Result<usize, FormatError> {
        let bytes = Big::new(fixed, base);
        bytes.slice(0, FIXED_LEN, "snapshot table entry")?;
        let extra = bytes.u32(at::EXTRA_LEN, "extra_data_size")?;
        if extra as usize > EXTRA_DATA_LEN_MAX {
            let (value, max) = (extra.into(), EXTRA_DATA_LEN_MAX as u64);
            let problem = Problem::OutOfRange { value, min: 0, max };
            return Err(bytes.error(at::EXTRA_LEN, "extra_data_size", problem));
        }
        let id = bytes.u16(at::ID_LEN, "id_str_size")?;
        let name = bytes.u16(at::NAME_LEN, "name_size")?;
        Ok(FIXED_LEN + extra as usize + usize::from(id) + usize::from(name))
    }

    /// Reads the entry in `entry`, whose length is [`Snapshot::entry_len`]. `base` is where it
    /// lies in the file.
    ///
    /// # Errors
    /// The bytes are too few, or its extra data is too long.
    pub fn parse(entry: &[u8], base: u64) -> Result<Self, FormatError> {
        let bytes = Big::new(entry, base);
        Self::entry_len(entry, base)?;
        let extra_len = bytes.u32(at::EXTRA_LEN, "extra_data_size")? as usize;
        let extra_end = FIXED_LEN + extra_len;
        let id_len = usize::from(bytes.u16(at::ID_LEN, "id_str_size")?);
        let name_len = usize::from(bytes.u16(at::NAME_LEN, "name_size")?);
        // Extra data may end before a field that is known here; then the field is absent.
        let extra_u64 = |at: usize, field| {
            if at + 8 <= extra_end { bytes.u64(at, field).map(Some) } else { Ok(None) }
        };
        let vm_state_size = match extra_u64(at::VM_STATE_SIZE_LARGE, "vm_state_size_large")? {
            Some(size) => size,
            None => bytes.u32(at::VM_STATE_SIZE, "vm_state_size")?.into(),
        };
        Ok(Self {
            l1_offset: bytes.u64(at::L1_OFFSET, "l1_table_offset")?,
            l1_entries: bytes.u32(at::L1_ENTRIES, "l1_size")?,
            id: bytes.slice(extra_end, id_len, "id_str")?.to_vec(),
            name: bytes.slice(extra_end + id_len, name_len, "name")?.to_vec(),
            date_s: bytes.u32(at::DATE_S, "date_sec")?,
            date_ns: bytes.u32(at::DATE_NS, "date_nsec")?,
            vm_clock_ns: bytes.u64(at::VM_CLOCK, "vm_clock_nsec")?,
            vm_state_size,
            disk_size: extra_u64(at::DISK_SIZE, "disk_size")?,
            icount: extra_u64(at::ICOUNT, "icount")?,
            unknown_extra: match extra_end.checked_sub(at::EXTRA_KNOWN_END) {
                Some(len) => bytes.slice(at::EXTRA_KNOWN_END, len, "extra data")?.to_vec(),
                None => Vec::new(),
            },
        })
    }

    /// The entry as it goes into the file, padded to a multiple of 8 bytes. It always has the
    /// extra data that version 3 asks for; `disk_size` must be set.
    ///
    /// # Errors
    /// A name, an id or the extra data is too long, or the disk size is missing.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        let error = |field, problem: &'static str| {
            FormatError::new(0, field, Problem::Invalid(problem.into()))
        };
        let disk_size = self.disk_size.ok_or_else(|| error("disk_size", "it is missing"))?;
        let len = |bytes: &[u8], field| {
            u16::try_from(bytes.len()).map_err(|_| error(field, "it is longer than 65535 bytes"))
        };
        let (id_len, name_len) = (len(&self.id, "id_str")?, len(&self.name, "name")?);
        let has_icount = self.icount.is_some() || !self.unknown_extra.is_empty();
        let known_end = if has_icount { at::EXTRA_KNOWN_END } else { at::ICOUNT };
        let extra_len = known_end - FIXED_LEN + self.unknown_extra.len();
        if extra_len > EXTRA_DATA_LEN_MAX {
            return Err(error("extra data", "it is longer than 1024 bytes"));
        }
        let mut out = vec![0; known_end];
        put(&mut out, at::L1_OFFSET, &self.l1_offset.to_be_bytes());
        put(&mut out, at::L1_ENTRIES, &self.l1_entries.to_be_bytes());
        put(&mut out, at::ID_LEN, &id_len.to_be_bytes());
        put(&mut out, at::NAME_LEN, &name_len.to_be_bytes());
        put(&mut out, at::DATE_S, &self.date_s.to_be_bytes());
        put(&mut out, at::DATE_NS, &self.date_ns.to_be_bytes());
        put(&mut out, at::VM_CLOCK, &self.vm_clock_ns.to_be_bytes());
        // A size that does not fit is left out, so that old readers see no state rather than a
        // part of it.
        let small = u32::try_from(self.vm_state_size).unwrap_or(0);
        put(&mut out, at::VM_STATE_SIZE, &small.to_be_bytes());
        put(&mut out, at::EXTRA_LEN, &(extra_len as u32).to_be_bytes());
        put(&mut out, at::VM_STATE_SIZE_LARGE, &self.vm_state_size.to_be_bytes());
        put(&mut out, at::DISK_SIZE, &disk_size.to_be_bytes());
        if has_icount {
            put(&mut out, at::ICOUNT, &self.icount.unwrap_or(u64::MAX).to_be_bytes());
        }
        out.extend_from_slice(&self.unknown_extra);
        out.extend_from_slice(&self.id);
        out.extend_from_slice(&self.name);
        pad_to_8(&mut out);
        Ok(out)
    }

    /// Size of the disk at this snapshot in bytes, rounded down to whole sectors; `image_size` is
    /// the image's own, for entries that do not say.
    pub fn virtual_size(&self, image_size: u64) -> u64 {
        self.disk_size.unwrap_or(image_size) / SECTOR_SIZE * SECTOR_SIZE
    }

    /// The L1 table, checked like the active one. An L2 table covers `table_coverage` bytes.
    /// `base` is where the entry lies in the file.
    ///
    /// # Errors
    /// The table is too long, does not start at a cluster, or is too short for the disk.
    pub fn checked_l1(
        &self,
        cluster: ClusterSize,
        table_coverage: u64,
        image_size: u64,
        base: u64,
    ) -> Result<Table, FormatError> {
        let table = Table::checked(
            cluster,
            base,
            "L1 table of a snapshot",
            self.l1_offset,
            self.l1_entries,
            L1_ENTRY_SIZE,
            L1_SIZE_MAX,
        )?;
        let size = self.virtual_size(image_size);
        let max = VIRTUAL_SIZE_MAX.min(u64::from(table.entries).saturating_mul(table_coverage));
        if size > max {
            let problem = Problem::OutOfRange { value: size, min: 0, max };
            return Err(FormatError::new(base, "disk size of a snapshot", problem));
        }
        Ok(table)
    }
}

/// The whole snapshot table as it goes into the file.
///
/// # Errors
/// There are too many snapshots, the table is too long, or an entry can't be written.
pub fn encode_table(snapshots: &[Snapshot]) -> Result<Vec<u8>, FormatError> {
    let mut out = Vec::new();
    for snapshot in snapshots {
        out.extend_from_slice(&snapshot.encode()?);
    }
    if snapshots.len() > SNAPSHOTS_MAX || out.len() as u64 > SNAPSHOT_TABLE_SIZE_MAX {
        let problem = Problem::Invalid("it is larger than QEMU reads".into());
        return Err(FormatError::new(0, "snapshot table", problem));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn snapshot() -> Snapshot {
        Snapshot {
            l1_offset: 0x5_0000,
            l1_entries: 3,
            id: b"1".to_vec(),
            name: b"before the upgrade".to_vec(),
            date_s: 1_700_000_000,
            date_ns: 5,
            vm_clock_ns: 6,
            vm_state_size: 0x1_0000_0007,
            disk_size: Some(1 << 30),
            icount: None,
            unknown_extra: Vec::new(),
        }
    }

    #[test]
    fn version_2_entry_has_no_disk_size_of_its_own() {
        let mut entry = vec![0; FIXED_LEN];
        entry[at::ID_LEN + 1] = 1;
        entry[at::VM_STATE_SIZE + 3] = 9;
        entry.push(b'7');
        let snapshot = Snapshot::parse(&entry, 0).unwrap();
        assert_eq!(snapshot.id, b"7");
        assert_eq!(snapshot.vm_state_size, 9);
        assert_eq!(snapshot.disk_size, None);
        assert_eq!(snapshot.virtual_size(1000), 512);
    }

    #[test]
    fn extra_data_is_bounded() {
        let mut entry = vec![0; FIXED_LEN];
        entry[at::EXTRA_LEN..at::EXTRA_LEN + 4].copy_from_slice(&1025_u32.to_be_bytes());
        let error = Snapshot::entry_len(&entry, 4096).unwrap_err();
        assert_eq!((error.offset, error.field.as_ref()), (4096 + 36, "extra_data_size"));
    }

    #[test]
    fn l1_table_must_cover_the_disk() {
        let cluster = ClusterSize::from_bits(16).unwrap();
        let check = |snapshot: &Snapshot| snapshot.checked_l1(cluster, 512 << 20, 0, 0);
        assert_eq!(check(&snapshot()).unwrap().entries, 3);
        assert!(check(&Snapshot { l1_entries: 1, ..snapshot() }).is_err());
        assert!(check(&Snapshot { l1_offset: 0x5_0200, ..snapshot() }).is_err());
        assert!(check(&Snapshot { l1_entries: (4 << 20) + 1, ..snapshot() }).is_err());
        assert!(check(&Snapshot { disk_size: Some(u64::MAX), ..snapshot() }).is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            id in proptest::collection::vec(any::<u8>(), 0..40),
            name in proptest::collection::vec(any::<u8>(), 0..300),
            icount: Option<u64>,
            disk_size: u64,
            vm_state_size: u64,
            extra in proptest::collection::vec(any::<u8>(), 0..30),
        ) {
            let icount = if extra.is_empty() { icount } else { Some(icount.unwrap_or(u64::MAX)) };
            let snapshot = Snapshot {
                id, name, icount, vm_state_size,
                disk_size: Some(disk_size), unknown_extra: extra, ..snapshot()
            };
            let bytes = snapshot.encode().unwrap();
            prop_assert_eq!(bytes.len() % 8, 0);
            let len = Snapshot::entry_len(&bytes, 0).unwrap();
            prop_assert!(len <= bytes.len() && bytes.len() - len < 8);
            prop_assert_eq!(Snapshot::parse(&bytes[..len], 0).unwrap(), snapshot);
            prop_assert!(Snapshot::parse(&bytes[..len - 1], 0).is_err());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Snapshot::parse(&bytes, u64::MAX - 3);
        }
    }
}
