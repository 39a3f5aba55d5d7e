//! A change of an image: everything new in free clusters, then one sector that leads to it.

use qdelta_formats::qcow2::{
    Autoclear, Bitmap, BitmapTableEntry, FirstCluster, Header, HostOffset, Incompatible,
    L1_ENTRY_SIZE, L1Entry, L2Format, Linked, Snapshot, Version,
};

use super::file::ImageFile;
use super::metadata;
use super::proof;
use super::refcounts::Refcounts;
use crate::base::error::{Error, ErrorKind, Result};

/// An image as it is, and what of it is new.
pub(super) struct Change<'a> {
    pub(super) file: &'a ImageFile,
    pub(super) first: FirstCluster,
    pub(super) format: L2Format,
    pub(super) counts: Refcounts<'a>,
    /// The active L1 table.
    pub(super) l1: Vec<L1Entry>,
    pub(super) snapshots: Vec<Snapshot>,
    /// Length of the snapshot table in bytes.
    pub(super) snapshots_len: u64,
    /// The bitmaps; none if their extension is stale.
    pub(super) bitmaps: Vec<Bitmap>,
    /// Length of the file in bytes.
    pub(super) file_len: u64,
    /// The header says that the extension of bitmaps can be trusted.
    bitmaps_trusted: bool,
}

/// Proves that what QEMU records in the image can be believed, and that it can be written into: that
/// every cluster is counted at least as often as it is used. Nothing is changed. What was proved is
/// not proved again for this [`ImageFile`].
///
/// # Errors
/// [`ErrorKind::Image`] if it is damaged, dirty or marked as corrupt, if a count is too low, or if the
/// proof would take too much time or memory.
pub fn prove(file: &ImageFile) -> Result<()> {
    if file.leaked().is_some() { Ok(()) } else { Change::begin(file).map(drop) }
}

/// Writes of which each is within one sector, with a sync behind each.
struct Ready {
    steps: Vec<(u64, Vec<u8>)>,
}

/// Changes the image: `build` writes what is new into free clusters, and its first value says what
/// of the header's extensions must change along. If it fails, the image is as it was.
///
/// # Errors
/// The image is not fit to be changed, `build` fails, or writing does.
pub(super) fn change<T>(
    file: &ImageFile,
    build: impl FnOnce(&mut Change<'_>) -> Result<(Linked, T)>,
) -> Result<T> {
    change_and(file, build, |_| Ok(()))
}

/// As [`change()`]; when all is done, `then` does what does not matter to the image.
pub(super) fn change_and<T>(
    file: &ImageFile,
    build: impl FnOnce(&mut Change<'_>) -> Result<(Linked, T)>,
    then: impl FnOnce(&mut Change<'_>) -> Result<()>,
) -> Result<T> {
    let len = file.len()?;
    let mut change = Change::begin(file)?;
    let prepared = build(&mut change).and_then(|(linked, value)| {
        let ready = change.prepare(linked)?;
        Ok((ready, value))
    });
    match prepared {
        Ok((ready, value)) => {
            ready.commit(file)?;
            if let Err(error) = then(&mut change) {
                tracing::debug!("after a change: {}", error.chain());
            }
            Ok(value)
        }
        Err(error) => {
            // Nothing leads to what was written, so it does no harm if this fails. What it took of the
            // filesystem's room, others may need.
            let _ = file.cut(len);
            let _ = file.give_back(&change.counts.written, change.format.cluster);
            Err(error)
        }
    }
}

impl<'a> Change<'a> {
    pub(super) fn begin(file: &'a ImageFile) -> Result<Self> {
        let first = file.first_cluster()?;
        let header = first.header();
        check_fit(file, header)?;
        let (snapshots, snapshots_len) = metadata::snapshots(file, header)?;
        let mut change = Self {
            file,
            format: L2Format::of(header),
            counts: Refcounts::read(file, header)?,
            l1: Vec::new(),
            snapshots,
            snapshots_len,
            bitmaps: metadata::bitmaps(file, header)?,
            file_len: file.len()?,
            bitmaps_trusted: metadata::bitmaps_extension(header).is_some(),
            first,
        };
        let table = change.header().l1;
        change.l1 = change.read_l1(table.offset, table.entries)?;
        change.claim_metadata()?;
        change.prove()?;
        Ok(change)
    }

    /// Proves that the image is sound, unless it was proved before: since it was opened, nobody else
    /// has changed it.
    fn prove(&mut self) -> Result<()> {
        if self.file.leaked().is_none() {
            let began = std::time::Instant::now();
            let leaked = proof::prove(self)?;
            tracing::debug!(took = ?began.elapsed(), leaked = leaked.len(), "proved to be sound");
            self.file.set_proved(leaked);
        }
        Ok(())
    }

    pub(super) fn header(&self) -> &Header {
        self.first.header()
    }

    /// Reads the `count` entries of an L1 table.
    ///
    /// # Errors
    /// The table lies outside the file.
    pub(super) fn read_l1(&self, start: HostOffset, count: u32) -> Result<Vec<L1Entry>> {
        // At most 32 MiB, as every parser of such a table sees to.
        let len = u64::from(count) * L1_ENTRY_SIZE;
        let end = self.file_len.next_multiple_of(self.format.cluster.bytes());
        if start.0.saturating_add(len) > end {
            return Err(self.file.damaged(format!("the L1 table at {start} is cut short")));
        }
        let mut bytes = vec![0; len as usize];
        self.file.read(&mut bytes, start.0)?;
        Ok(L1Entry::read_all(&bytes).collect())
    }

    /// The L2 tables that an L1 table at `start` names, with the numbers of the entries.
    ///
    /// # Errors
    /// One is not aligned or lies outside the file.
    pub(super) fn l2_tables(
        &self,
        l1: &[L1Entry],
        start: HostOffset,
    ) -> Result<Vec<(usize, HostOffset)>> {
        let mut tables = Vec::new();
        for (index, entry) in l1.iter().enumerate() {
            let position = HostOffset(start.0 + index as u64 * L1_ENTRY_SIZE);
            let table = entry.l2_table(self.format.cluster, position);
            if let Some(table) = table.map_err(|error| self.file.wrong(error))? {
                if table.0 >= self.file_len {
                    return Err(self.file.damaged(format!("the L2 table at {table} is missing")));
                }
                tables.push((index, table));
            }
        }
        Ok(tables)
    }

    /// Claims all metadata that can be found without reading L2 tables, so that nothing is written
    /// there even if the reference counts are wrong.
    fn claim_metadata(&mut self) -> Result<()> {
        let cluster = self.format.cluster.bytes();
        self.counts.claim("header", 0, cluster)?;
        self.counts.claim_own()?;
        let header = self.header().clone();
        let l1 = header.l1;
        self.counts.claim("L1 table", l1.offset.0, u64::from(l1.entries) * L1_ENTRY_SIZE)?;
        for (_, table) in self.l2_tables(&self.l1, l1.offset)? {
            self.counts.claim("L2 table", table.0, cluster)?;
        }
        if let Some(place) = header.extensions.encryption_header {
            self.counts.claim("encryption header", place.offset.0, place.len)?;
        }
        self.counts.claim("snapshot table", header.snapshots.offset.0, self.snapshots_len)?;
        for snapshot in &self.snapshots {
            let table = snapshot
                .checked_l1(
                    header.cluster,
                    self.format.table_coverage(),
                    header.virtual_size(),
                    header.snapshots.offset.0,
                )
                .map_err(|error| self.file.wrong(error))?;
            let len = u64::from(table.entries) * L1_ENTRY_SIZE;
            self.counts.claim("L1 table of a snapshot", table.offset.0, len)?;
        }
        if let Some(place) = metadata::bitmaps_extension(&header) {
            self.counts.claim("bitmap directory", place.directory.0, place.directory_len)?;
        }
        for bitmap in &self.bitmaps {
            let counts = &mut self.counts;
            let len = u64::from(bitmap.table.entries) * 8;
            counts.claim("bitmap table", bitmap.table.offset.0, len)?;
            metadata::bitmap_table(self.file, header.cluster, bitmap, |_, entry| match entry {
                BitmapTableEntry::Stored(place) => counts.claim("bitmap", place.0, cluster),
                _ => Ok(()),
            })?;
        }
        Ok(())
    }

    /// Writes `bytes` into free clusters, which are counted. Gives where.
    pub(super) fn write_new(&mut self, mut bytes: Vec<u8>) -> Result<HostOffset> {
        let place = self.counts.allocate(bytes.len() as u64)?;
        if !bytes.is_empty() {
            bytes.resize(bytes.len().next_multiple_of(self.format.cluster.len()), 0);
            self.counts.write(&bytes, place)?;
        }
        Ok(place)
    }

    /// Gives the active L1 table these entries, if they are new.
    pub(super) fn replace_l1(&mut self, entries: &[L1Entry]) -> Result<()> {
        if entries == self.l1 {
            return Ok(());
        }
        let mut table = self.header().l1;
        let len = u64::from(table.entries) * L1_ENTRY_SIZE;
        let old = table.offset;
        table.offset = self.write_new(encode_l1(entries))?;
        self.counts.free(old.0, len)?;
        self.first.set_l1(table);
        Ok(())
    }

    /// Writes what is left to be written where nothing leads to, and syncs.
    fn prepare(&mut self, linked: Linked) -> Result<Ready> {
        let Self { file, first, counts, bitmaps_trusted, .. } = self;
        // What an unknown autoclear bit promises may not be true any more.
        first.set_autoclear(Autoclear(first.header().autoclear.0 & Autoclear::KNOWN.0));
        if let Some((offset, clusters)) = counts.finish()? {
            first.set_refcount_table(offset, clusters);
        }
        let sector = first.sector().map_err(|error| file.wrong(error))?.to_vec();
        if let Some((offset, bytes)) = linked.prepared {
            file.write(&bytes, offset)?;
        }
        file.sync()?;
        let mut steps = vec![(0, sector)];
        if let Some(switch) = linked.switch {
            // Where nobody trusts the extension yet, it can change before the header says that it
            // can be trusted. Otherwise what it leads to must count first.
            let at = usize::from(*bitmaps_trusted);
            steps.insert(at, switch);
        }
        Ok(Ready { steps })
    }
}

impl Ready {
    fn commit(self, file: &ImageFile) -> Result<()> {
        for (offset, bytes) in self.steps {
            file.write(&bytes, offset)?;
            file.sync()?;
        }
        Ok(())
    }
}

/// The bytes of an L1 table.
pub(super) fn encode_l1(entries: &[L1Entry]) -> Vec<u8> {
    entries.iter().flat_map(|entry| entry.to_bytes()).collect()
}

/// Fails if nobody should write to the image with this header.
fn check_fit(file: &ImageFile, header: &Header) -> Result<()> {
    if header.incompatible.contains(Incompatible::CORRUPT) {
        return Err(file
            .refused("is marked as corrupt: nothing is written into it")
            .advise("repair it with `qemu-img check -r all`, and check what was lost"));
    }
    if header.incompatible.contains(Incompatible::DIRTY) {
        return Err(file
            .refused("was not closed properly: its reference counts are stale")
            .advise("`qemu-img check -r all` rebuilds them, as starting the guest does"));
    }
    Ok(())
}

/// Fails if the image with this header can't have bitmaps.
pub(super) fn check_bitmaps_fit(file: &ImageFile, header: &Header) -> Result<()> {
    if header.version == Version::V2 {
        return Err(file
            .refused("is qcow2 of version 2, which has no bitmaps")
            .advise("`qemu-img amend -o compat=1.1` makes it version 3"));
    }
    Ok(())
}

/// An error about what was asked for.
pub(super) fn usage(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::Usage, text)
}
