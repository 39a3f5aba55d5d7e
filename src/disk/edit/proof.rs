//! The proof that an image is sound: that every cluster is counted at least as often as it is used,
//! and that no table of the disk calls a cluster its own that something else uses, too.
//!
//! Where a count is too low, whoever gives up one of two uses frees a cluster that is still in use.
//! And QEMU writes in place into what a table calls its own: with two guest clusters behind one host
//! cluster, it changes both and records a write to one. So nothing is written into an image, and
//! nothing that QEMU records in it is believed, before this proof.
//!
//! Counts that are too high are leaks. They do no harm.
//!
//! Each table is read once, in the order of the file. See [`TABLES_LEN_MAX`] and
//! [`REFERENCES_LEN_MAX`] for the bounds; an image that goes beyond one is not proved.

use std::collections::BTreeMap;
use std::ops::Range;

use qdelta_formats::qcow2::{HostOffset, L1_ENTRY_SIZE, L1Entry, L2Format, Reference};
use roaring::RoaringTreemap;

use super::change::Change;
use crate::base::error::{Error, Result};

/// Bytes of tables that are read for the proof: the L2 tables of 128 TiB in clusters of 64 KiB.
const TABLES_LEN_MAX: u64 = 16 << 30;
/// Bytes in memory for the references that are found: two for each of 128 Mi clusters, which are
/// 8 TiB in clusters of 64 KiB.
const REFERENCES_LEN_MAX: u64 = 256 << 20;
/// L2 tables that follow each other in the file are read up to so many bytes at once.
const STREAM: u64 = 1 << 20;
/// References are kept for so many clusters at a time, or for those of a refcount block if it has
/// fewer.
const CHUNK_MAX: u64 = 8192;

/// The cluster holds metadata.
const METADATA: u16 = 1 << 15;
/// A table of the disk says that it is the only one to use the cluster.
const SOLE: u16 = 1 << 14;
/// The other bits: how often the cluster is used.
const COUNT: u16 = SOLE - 1;

/// Proves that the image of `change` is sound. Gives the clusters that are counted once and that
/// nothing uses.
///
/// # Errors
/// [`crate::ErrorKind::Image`] if the image is not sound, or if the proof would take more time or
/// memory than allowed.
pub(super) fn prove(change: &mut Change<'_>) -> Result<RoaringTreemap> {
    let per_block = change.counts.counts_per_block();
    let mut survey = Survey { change, references: References::new(per_block), read: 0 };
    let tables = survey.metadata()?;
    survey.tables(&tables)?;
    survey.compare()
}

/// How often each cluster is used, as far as the walk has come.
struct Survey<'c, 'f> {
    change: &'c mut Change<'f>,
    references: References,
    /// Bytes of tables that were read.
    read: u64,
}

/// The L2 tables of an image, by the numbers of their clusters.
struct L2Tables {
    all: RoaringTreemap,
    /// Those of the disk as it is now.
    active: RoaringTreemap,
}

impl Survey<'_, '_> {
    /// Records the references that can be found without reading L2 tables, and gives the L2 tables.
    fn metadata(&mut self) -> Result<L2Tables> {
        // Also the active L2 tables; each of these clusters has one user alone.
        let claimed: Vec<Range<u64>> = ranges(self.change.counts.taken()).collect();
        for number in claimed.into_iter().flatten() {
            *self.slot(number)? = METADATA | 1;
        }
        let mut active = RoaringTreemap::new();
        let l1 = self.change.l1.clone();
        let start = self.change.header().l1.offset;
        for (index, table) in self.change.l2_tables(&l1, start)? {
            let number = self.number(table);
            active.insert(number);
            if l1.get(index).is_some_and(|entry| entry.is_sole_owner()) {
                *self.slot(number)? |= SOLE;
            }
        }
        let mut all = active.clone();
        for index in 0..self.change.snapshots.len() {
            let Some(snapshot) = self.change.snapshots.get(index) else { continue };
            let (start, entries) = (HostOffset(snapshot.l1_offset), snapshot.l1_entries);
            self.spend(u64::from(entries) * L1_ENTRY_SIZE)?;
            let l1: Vec<L1Entry> = self.change.read_l1(start, entries)?;
            for (_, table) in self.change.l2_tables(&l1, start)? {
                let number = self.number(table);
                if all.insert(number) && *self.slot(number)? & METADATA != 0 {
                    return Err(self.used_twice("L2 table", number));
                }
                self.add(number, 1, METADATA)?;
            }
        }
        Ok(L2Tables { all, active })
    }

    /// Records the references of L2 tables, as often as the tables are used themselves.
    fn tables(&mut self, tables: &L2Tables) -> Result<()> {
        if self.change.format.external_data {
            // The clusters of another file are counted nowhere.
            return Ok(());
        }
        let cluster = self.change.format.cluster;
        let at_once = (STREAM / cluster.bytes()).max(1);
        let mut bytes = Vec::new();
        for run in ranges(&tables.all) {
            let mut start = run.start;
            while start < run.end {
                let end = run.end.min(start + at_once);
                let len = (end - start) * cluster.bytes();
                self.spend(len)?;
                bytes.resize(len as usize, 0);
                self.change.file.read(&mut bytes, start << cluster.bits())?;
                for (table, number) in bytes.chunks_exact(cluster.len()).zip(start..end) {
                    self.table(table, number, tables.active.contains(number))?;
                }
                start = end;
            }
        }
        Ok(())
    }

    /// Records the references of the L2 table in cluster `number`.
    fn table(&mut self, table: &[u8], number: u64, is_active: bool) -> Result<()> {
        let users = *self.slot(number)? & COUNT;
        let format = self.change.format;
        let start = number << format.cluster.bits();
        let entries = table.chunks_exact(format.entry_size());
        for (entry, at) in entries.zip((start..).step_by(format.entry_size())) {
            let file = self.change.file;
            let reference = format.reference(entry, HostOffset(at));
            match reference.map_err(|error| file.wrong(error))? {
                Reference::None => {}
                Reference::Cluster(host) => {
                    let is_sole = is_active && L2Format::is_sole_owner(entry);
                    let flags = if is_sole { SOLE } else { 0 };
                    self.add_data(self.number(host), users, flags)?;
                }
                // QEMU never writes into these in place.
                Reference::Compressed(place) => {
                    for number in self.change.counts.clusters_of_compressed(place) {
                        self.add_data(number, users, 0)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn add_data(&mut self, number: u64, users: u16, flags: u16) -> Result<()> {
        if *self.slot(number)? & METADATA != 0 {
            return Err(self.used_twice("data", number));
        }
        self.add(number, users, flags)
    }

    fn add(&mut self, number: u64, users: u16, flags: u16) -> Result<()> {
        let slot = self.slot(number)?;
        let sum = (*slot & COUNT) + users;
        if sum <= COUNT {
            *slot = (*slot & !COUNT) | flags | sum;
            return Ok(());
        }
        let place = self.place(number);
        Err(self.too_large(format!("the cluster at {place:#x} is used more than {COUNT} times")))
    }

    /// Compares the references with the counts. Gives the clusters that are counted once and not
    /// used.
    fn compare(mut self) -> Result<RoaringTreemap> {
        let mut leaked = RoaringTreemap::new();
        let per_block = self.change.counts.counts_per_block();
        let len = self.references.chunk;
        let nothing = vec![0; len as usize];
        self.references.close();
        for block in 0..self.change.counts.block_count() {
            let cluster = self.change.format.cluster.bytes();
            if self.change.counts.has_block(block) {
                self.spend(cluster)?;
            }
            for chunk in block * per_block / len..(block + 1) * per_block / len {
                let used = self.references.chunks.get(&chunk).map_or(&nothing[..], |used| used);
                let first = chunk * len;
                let wrong = self.change.counts.find(block, first, used.len(), |index, count| {
                    let used = used.get(index).copied().unwrap_or(0);
                    let users = u64::from(used & COUNT);
                    if count == 1 && users == 0 {
                        leaked.insert(first + index as u64);
                    }
                    count < users || users > 1 && used & SOLE != 0
                })?;
                if let Some((index, count)) = wrong {
                    let used = used.get(index).copied().unwrap_or(0);
                    return Err(self.unsound(first + index as u64, used, count));
                }
            }
        }
        Ok(leaked)
    }

    fn unsound(&self, number: u64, used: u16, count: u64) -> Error {
        let (place, users) = (self.place(number), used & COUNT);
        let problem = match count {
            0 => format!("the cluster at {place:#x} counts as free, and is in use"),
            _ if count < u64::from(users) => {
                format!(
                    "the cluster at {place:#x} is used {users} times, and its reference count is \
                     {count}"
                )
            }
            _ => format!(
                "the cluster at {place:#x} is used {users} times, and a table of the disk says once"
            ),
        };
        let advice = "back it up, and let `qemu-img check -r all` correct its counts";
        self.change.file.damaged(problem).advise(advice)
    }

    fn used_twice(&self, what: &str, number: u64) -> Error {
        let place = self.place(number);
        self.change.file.damaged(format!("the {what} at {place:#x} is used by something else, too"))
    }

    fn slot(&mut self, number: u64) -> Result<&mut u16> {
        let chunk = number / self.references.chunk;
        if self.references.open.0 != Some(chunk) {
            if !self.change.counts.has_block(number / self.change.counts.counts_per_block()) {
                return Err(self.unsound(number, 1, 0));
            }
            if !self.references.open(chunk) {
                return Err(self.too_large("it has too many clusters".to_owned()));
            }
        }
        let index = (number % self.references.chunk) as usize;
        let outside = || self.change.file.damaged("a cluster has no count");
        self.references.open.1.get_mut(index).ok_or_else(outside)
    }

    /// Counts `len` bytes of tables that are about to be read.
    fn spend(&mut self, len: u64) -> Result<()> {
        self.read = self.read.saturating_add(len);
        match self.read <= TABLES_LEN_MAX {
            true => Ok(()),
            false => Err(self.too_large("it has too many tables".to_owned())),
        }
    }

    fn too_large(&self, why: String) -> Error {
        let text = "is too large to prove that its reference counts are right";
        self.change.file.refused(text).because(why)
    }

    fn number(&self, host: HostOffset) -> u64 {
        host.0 >> self.change.format.cluster.bits()
    }

    fn place(&self, number: u64) -> u64 {
        number << self.change.format.cluster.bits()
    }
}

/// A number for each cluster, in chunks that are there if one of their clusters is used.
struct References {
    /// Clusters in a chunk.
    chunk: u64,
    chunks: BTreeMap<u64, Box<[u16]>>,
    /// The chunk that was used last is not among the others.
    open: (Option<u64>, Box<[u16]>),
}

impl References {
    fn new(per_block: u64) -> Self {
        let chunk = per_block.min(CHUNK_MAX);
        Self { chunk, chunks: BTreeMap::new(), open: (None, Box::default()) }
    }

    /// Makes `chunk` the one that is used. Gives whether there was memory for it.
    fn open(&mut self, chunk: u64) -> bool {
        self.close();
        let found = self.chunks.remove(&chunk).or_else(|| {
            let len = (self.chunks.len() as u64 + 1) * self.chunk * size_of::<u16>() as u64;
            (len <= REFERENCES_LEN_MAX).then(|| vec![0; self.chunk as usize].into())
        });
        let Some(found) = found else { return false };
        self.open = (Some(chunk), found);
        true
    }

    fn close(&mut self) {
        if let (Some(chunk), numbers) = std::mem::take(&mut self.open) {
            self.chunks.insert(chunk, numbers);
        }
    }
}

/// The numbers of a set as ranges.
fn ranges(set: &RoaringTreemap) -> impl Iterator<Item = Range<u64>> + '_ {
    let mut numbers = set.iter().peekable();
    std::iter::from_fn(move || {
        let start = numbers.next()?;
        let mut end = start + 1;
        while numbers.next_if_eq(&end).is_some() {
            end += 1;
        }
        Some(start..end)
    })
}
