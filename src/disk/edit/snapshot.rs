//! Internal snapshots.

use std::time::{SystemTime, UNIX_EPOCH};

use qdelta_formats::qcow2::snapshot::encode_table;
use qdelta_formats::qcow2::{
    Header, Incompatible, L1_ENTRY_SIZE, L1Entry, L2Format, Linked, Snapshot, Table,
};

use super::change::{Change, change, encode_l1, usage};
use super::file::ImageFile;
use super::metadata;
use crate::base::error::{Error, ErrorKind, Result};

/// The longest name that QEMU takes, in bytes.
const NAME_LEN_MAX: usize = 255;

/// The internal snapshots of an image, in the order of its table.
///
/// # Errors
/// [`ErrorKind::Image`] if the image or its table of snapshots breaks the rules.
pub fn list(image: &ImageFile) -> Result<Vec<Snapshot>> {
    Ok(metadata::snapshots(image, image.first_cluster()?.header())?.0)
}

/// Bytes of an L1 table that are in memory at a time.
const PIECE: u64 = 256 << 10;

/// A digest of what the L1 table of a snapshot refers to. QEMU writes nowhere that a snapshot refers to, so a
/// snapshot that has the same one is the same still.
///
/// # Errors
/// [`ErrorKind::Image`] if the table breaks the rules or lies outside the file.
pub fn tables(image: &ImageFile, snapshot: &Snapshot) -> Result<[u8; 32]> {
    let first = image.first_cluster()?;
    let header = first.header();
    let coverage = L2Format::of(header).table_coverage();
    let l1 = snapshot.checked_l1(header.cluster, coverage, header.virtual_size(), 0);
    let l1 = l1.map_err(|error| image.wrong(error))?;
    let (start, end) = (l1.offset.0, l1.offset.0 + u64::from(l1.entries) * L1_ENTRY_SIZE);
    if end > image.len()?.next_multiple_of(header.cluster.bytes()) {
        return Err(image.damaged(format!("the L1 table of a snapshot at {start:#x} is cut short")));
    }
    let (mut hasher, mut bytes, mut at) = (blake3::Hasher::new(), Vec::new(), start);
    while at < end {
        // At most a piece.
        bytes.resize((end - at).min(PIECE) as usize, 0);
        image.read(&mut bytes, at)?;
        // Without the bit that says how often a table is referred to: that changes with other snapshots.
        for entry in L1Entry::read_all(&bytes) {
            hasher.update(&entry.raw_offset().to_be_bytes());
        }
        at += bytes.len() as u64;
    }
    Ok(*hasher.finalize().as_bytes())
}

/// Takes an internal snapshot of the disk, dated `taken`: from now on, a guest cluster whose
/// mapping differs from the snapshot's has changed.
///
/// In the end either the snapshot is in the image, or the image is as it was.
///
/// # Errors
/// [`ErrorKind::Exists`] if the image has a snapshot with this name or id; [`ErrorKind::Usage`] for
/// a name that QEMU does not take; [`ErrorKind::Image`] if the image is damaged, dirty, marked as
/// corrupt, has an external data file, or can't count that many references; [`ErrorKind::NoSpace`].
pub fn create(image: &ImageFile, name: &str, taken: SystemTime) -> Result<Snapshot> {
    if !(1..=NAME_LEN_MAX).contains(&name.len()) || name.contains('\0') {
        return Err(usage(format!("a snapshot's name has 1 to {NAME_LEN_MAX} bytes")));
    }
    let created = change(image, |change| {
        check_fit(image, change.header())?;
        let same = |it: &Snapshot| it.name == name.as_bytes() || it.id == name.as_bytes();
        if change.snapshots.iter().any(same) {
            let text = format!("{} has a snapshot '{name}' already", image.path().display());
            return Err(Error::new(ErrorKind::Exists, text));
        }
        let l1 = change.share_active_tree()?;
        let id = next_id(&change.snapshots).ok_or_else(|| image.refused("has no id left"))?;
        let snapshot = Snapshot {
            l1_offset: change.write_new(encode_l1(&l1))?.0,
            l1_entries: change.header().l1.entries,
            id: id.into_bytes(),
            name: name.as_bytes().to_vec(),
            disk_size: Some(change.header().virtual_size()),
            ..dated(taken)
        };
        change.replace_l1(&l1)?;
        change.snapshots.push(snapshot.clone());
        replace_table(change)?;
        Ok((Linked::default(), snapshot))
    });
    created.map_err(|error| {
        let path = image.path().display();
        error.within(format!("cannot take the snapshot '{name}' of {path}"))
    })
}

/// Deletes the internal snapshot with this id. The disk stays as it is.
///
/// In the end either the snapshot is gone, or the image is as it was.
///
/// # Errors
/// [`ErrorKind::NotFound`] if there is none; [`ErrorKind::Image`] if the image is damaged, dirty or
/// marked as corrupt; [`ErrorKind::NoSpace`].
pub fn delete(image: &ImageFile, id: &[u8]) -> Result<()> {
    let shown = String::from_utf8_lossy(id);
    let path = image.path().display();
    let deleted = change(image, |change| {
        check_fit(image, change.header())?;
        let Some(index) = change.snapshots.iter().position(|it| it.id == id) else {
            let text = format!("{path} has no snapshot with the id '{shown}'");
            return Err(Error::new(ErrorKind::NotFound, text));
        };
        let snapshot = change.snapshots.remove(index);
        let start = qdelta_formats::qcow2::HostOffset(snapshot.l1_offset);
        let l1 = change.read_l1(start, snapshot.l1_entries)?;
        change.release_tree(&l1, start)?;
        change.counts.free(start.0, u64::from(snapshot.l1_entries) * L1_ENTRY_SIZE)?;
        change.refresh_active_tree()?;
        replace_table(change)?;
        Ok((Linked::default(), ()))
    });
    deleted.map_err(|error| error.within(format!("cannot delete the snapshot '{shown}' of {path}")))
}

/// Fails if the image with this header can't have snapshots.
fn check_fit(image: &ImageFile, header: &Header) -> Result<()> {
    if header.incompatible.contains(Incompatible::DATA_FILE) {
        return Err(image.refused("has an external data file: QEMU makes no snapshots of it"));
    }
    Ok(())
}

/// A snapshot of the disk alone, taken at this time.
fn dated(taken: SystemTime) -> Snapshot {
    let since = taken.duration_since(UNIX_EPOCH).unwrap_or_default();
    Snapshot {
        l1_offset: 0,
        l1_entries: 0,
        id: Vec::new(),
        name: Vec::new(),
        date_s: u32::try_from(since.as_secs()).unwrap_or(u32::MAX),
        date_ns: since.subsec_nanos(),
        vm_clock_ns: 0,
        vm_state_size: 0,
        disk_size: None,
        // No recording, as QEMU says it.
        icount: Some(u64::MAX),
        unknown_extra: Vec::new(),
    }
}

/// The number behind the highest one that an id begins with.
fn next_id(snapshots: &[Snapshot]) -> Option<String> {
    let number = |snapshot: &Snapshot| {
        let digits = snapshot.id.iter().take_while(|byte| byte.is_ascii_digit());
        digits.fold(0_u64, |number, digit| {
            number.saturating_mul(10).saturating_add(u64::from(digit - b'0'))
        })
    };
    let highest = snapshots.iter().map(number).max().unwrap_or(0);
    highest.checked_add(1).map(|id| id.to_string())
}

/// Writes the snapshot table anew.
fn replace_table(change: &mut Change<'_>) -> Result<()> {
    let header = change.header();
    let (old, size) = (header.snapshots.offset, header.virtual_size());
    for snapshot in &mut change.snapshots {
        // Entries of an old QEMU lack the size of the disk; it is the image's then.
        snapshot.disk_size.get_or_insert(size);
    }
    let file = change.file;
    let bytes = encode_table(&change.snapshots).map_err(|error| file.wrong(error))?;
    let offset = change.write_new(bytes)?;
    change.counts.free(old.0, change.snapshots_len)?;
    // At most 65,536, as the encoder saw to.
    change.first.set_snapshots(Table { offset, entries: change.snapshots.len() as u32 });
    Ok(())
}
