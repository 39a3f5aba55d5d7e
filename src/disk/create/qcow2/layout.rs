//! The layout of a qcow2 file that is written in one go:
//!
//! ```text
//! header, refcount table, refcount blocks, L1 table, L2 tables, data in guest order
//! ```
//!
//! Data is allocated in units: clusters, or blocks where blocks are longer. The place of a unit
//! follows from the number of the plan's units before it.

use roaring::RoaringBitmap;

use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::create::Plan;
use crate::formats::FormatError;
use crate::formats::qcow2::{
    ClusterSize, Header, HostOffset, L1_ENTRY_SIZE, L1_SIZE_MAX, L1Entry, L2Format, Mapping,
    REFCOUNT_TABLE_SIZE_MAX, RefcountOrder, SECTOR_SIZE, Table,
};

/// Clusters of 64 KiB, as everyone makes them, unless the tables would outgrow what QEMU reads.
const CLUSTER_BITS: u32 = 16;
/// Bytes in an entry of an L1 table, an L2 table or a refcount table.
const ENTRY_SIZE: u64 = L1_ENTRY_SIZE;
/// Units between two remembered ranks: a container of the bitmap.
const RANK_STEP: u64 = 1 << 16;

/// The places of everything in the file, in clusters from its start.
pub(super) struct Layout {
    cluster: ClusterSize,
    /// Size of the disk in the file: whole sectors.
    virtual_size: u64,
    /// Bytes in a unit: a multiple of the cluster.
    unit_size: u64,
    /// The units that have data.
    units: RoaringBitmap,
    /// How many of these units lie before each multiple of [`RANK_STEP`].
    ranks: Vec<u64>,
    /// The L1 entries that have an L2 table.
    l1_used: RoaringBitmap,
    l1_entries: u64,
    refcount_table: Area,
    refcount_blocks: Area,
    l1: Area,
    l2: Area,
    data: Area,
    /// The name by which QEMU finds the raw disk below, whose content shows wherever this file has none.
    backing: Option<String>,
}

/// Neighbouring clusters of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Area {
    first: u64,
    count: u64,
}

impl Area {
    fn end(self) -> u64 {
        self.first + self.count
    }
}

impl Layout {
    pub(super) fn new(plan: &Plan, backing: Option<&str>) -> Result<Self> {
        let virtual_size = plan.virtual_size().next_multiple_of(SECTOR_SIZE);
        (CLUSTER_BITS..=ClusterSize::BITS_MAX)
            .filter_map(|bits| ClusterSize::from_bits(bits).ok())
            .find_map(|cluster| Self::with_clusters(plan, virtual_size, cluster))
            .map(|layout| Self { backing: backing.map(str::to_owned), ..layout })
            .ok_or_else(|| {
                let text =
                    format!("a disk of {virtual_size} bytes does not fit into a qcow2 image");
                Error::new(ErrorKind::Usage, text).advise("restore it with --format raw")
            })
    }

    /// The layout with clusters of this size, if such clusters are large enough for the disk.
    fn with_clusters(plan: &Plan, virtual_size: u64, cluster: ClusterSize) -> Option<Self> {
        let entries_per_table = cluster.bytes() / ENTRY_SIZE;
        let l1_entries = cluster.count(virtual_size).div_ceil(entries_per_table).max(1);
        if l1_entries * ENTRY_SIZE > L1_SIZE_MAX {
            return None;
        }
        let unit_size = cluster.bytes().max(plan.geometry().block_size().into());
        let units = units(plan, unit_size)?;
        let l1_used = l1_used(&units, cluster.bytes() * entries_per_table / unit_size, l1_entries)?;
        let data_count = data_clusters(&units, unit_size, virtual_size, cluster);
        let l1_count = cluster.count(l1_entries * ENTRY_SIZE);
        let (table_count, block_count) =
            refcount_clusters(cluster, 1 + l1_count + l1_used.len() + data_count);
        if table_count * cluster.bytes() > REFCOUNT_TABLE_SIZE_MAX {
            return None;
        }
        let refcount_table = Area { first: 1, count: table_count };
        let refcount_blocks = Area { first: refcount_table.end(), count: block_count };
        let l1 = Area { first: refcount_blocks.end(), count: l1_count };
        let l2 = Area { first: l1.end(), count: l1_used.len() };
        let data = Area { first: l2.end(), count: data_count };
        let ranks = ranks(&units);
        Some(Self {
            cluster,
            virtual_size,
            unit_size,
            units,
            ranks,
            l1_used,
            l1_entries,
            refcount_table,
            refcount_blocks,
            l1,
            l2,
            data,
            backing: None,
        })
    }

    /// Length of the file in bytes.
    pub(super) fn file_len(&self) -> u64 {
        self.data.end() * self.cluster.bytes()
    }

    /// Length of the output of [`Self::tables`], in bytes.
    pub(super) fn tables_len(&self) -> u64 {
        self.data.first * self.cluster.bytes()
    }

    /// How many bytes of the file are written, at most: the tables, and every unit as a whole.
    pub(super) fn written_len(&self) -> u64 {
        self.tables_len().saturating_add(self.data.count.saturating_mul(self.cluster.bytes()))
    }

    /// The offset in the file of the disk's byte at `guest_offset`, if it has a place.
    pub(super) fn place(&self, guest_offset: u64) -> Option<u64> {
        let unit = u32::try_from(guest_offset / self.unit_size).ok()?;
        if !self.units.contains(unit) || guest_offset >= self.virtual_size {
            return None;
        }
        let start = u64::from(unit) / RANK_STEP * RANK_STEP;
        let before = self.ranks.get((start / RANK_STEP) as usize)?;
        // A multiple of 2^16 that is not above a u32.
        let rank = before + self.units.range_cardinality(start as u32..unit);
        Some(self.offset(self.data) + rank * self.unit_size + guest_offset % self.unit_size)
    }

    /// How many of the `len` bytes from `guest_offset` on, which has a place, lie in one run in the
    /// file.
    pub(super) fn run_len(&self, guest_offset: u64, len: usize) -> usize {
        let end = guest_offset + len as u64;
        let mut run_end = (guest_offset / self.unit_size + 1) * self.unit_size;
        while run_end < end
            && u32::try_from(run_end / self.unit_size).is_ok_and(|unit| self.units.contains(unit))
        {
            run_end += self.unit_size;
        }
        // Not longer than `len`.
        (run_end.min(end) - guest_offset) as usize
    }

    /// Hands the bytes of the file before the data to `write`, from front to back, in pieces of at
    /// most a cluster.
    pub(super) fn tables(&self, write: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut header = self.header()?;
        header.resize(self.cluster.len(), 0);
        write(&header)?;
        self.refcounts(write)?;
        self.l1(write)?;
        self.l1_used.iter().try_for_each(|index| self.l2(index, write))
    }

    fn header(&self) -> Result<Vec<u8>> {
        // Both tables are bounded above; their entries and clusters fit 32 bits.
        let l1 =
            Table { offset: HostOffset(self.offset(self.l1)), entries: self.l1_entries as u32 };
        let refcount_table = Table {
            offset: HostOffset(self.offset(self.refcount_table)),
            entries: self.refcount_table.count as u32,
        };
        let header = Header::new(self.cluster, self.virtual_size, l1, refcount_table);
        let mut header = header.map_err(impossible)?;
        if let Some(name) = &self.backing {
            header.backing_name = Some(name.clone().into_bytes());
            // Without it, QEMU would guess the format from bytes that the guest has written.
            header.extensions.backing_format = Some(b"raw".to_vec());
        }
        header.encode().map_err(impossible)
    }

    /// The refcount table and its blocks: every cluster of the file is used once.
    fn refcounts(&self, write: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let first = self.offset(self.refcount_blocks);
        let blocks = (0..self.refcount_blocks.count).map(|n| first + n * self.cluster.bytes());
        self.table(self.refcount_table, blocks.map(u64::to_be_bytes), write)?;

        let order = RefcountOrder::DEFAULT;
        let per_block = order.counts_per_block(self.cluster);
        let mut block = vec![0; self.cluster.len()];
        for index in 0..per_block as usize {
            order.set(&mut block, index, 1).map_err(impossible)?;
        }
        for number in 0..self.refcount_blocks.count {
            let counted = self.data.end().saturating_sub(number * per_block).min(per_block);
            for index in counted as usize..per_block as usize {
                order.set(&mut block, index, 0).map_err(impossible)?;
            }
            write(&block)?;
        }
        Ok(())
    }

    fn l1(&self, write: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut next = self.offset(self.l2);
        let entries = (0..self.l1_entries as u32).map(|index| {
            let table = self.l1_used.contains(index).then(|| {
                let table = HostOffset(next);
                next += self.cluster.bytes();
                table
            });
            L1Entry::new(table, true).to_bytes()
        });
        self.table(self.l1, entries, write)
    }

    /// The L2 table of L1 entry `index`, which has one.
    fn l2(&self, index: u32, write: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let entries = self.cluster.bytes() / ENTRY_SIZE;
        let first_guest = u64::from(index) * entries * self.cluster.bytes();
        let mut table = Vec::with_capacity(self.cluster.len());
        let format = self.l2_format()?;
        // Within a table, places follow each other: one look up for the first is enough.
        let mut host = None;
        for cluster in 0..entries {
            let guest = first_guest + cluster * self.cluster.bytes();
            let unit = u32::try_from(guest / self.unit_size);
            let has_data =
                guest < self.virtual_size && unit.is_ok_and(|unit| self.units.contains(unit));
            let mapping = if has_data {
                let place = host.or_else(|| self.place(guest)).ok_or_else(|| {
                    Error::new(ErrorKind::Usage, format!("no place for the cluster at {guest}"))
                })?;
                host = Some(place + self.cluster.bytes());
                Mapping::Data { host: HostOffset(place) }
            } else {
                Mapping::Unallocated
            };
            let entry = format.encode(mapping, true).map_err(impossible)?;
            table.extend_from_slice(entry.get(..ENTRY_SIZE as usize).unwrap_or(&entry));
        }
        write(&table)
    }

    fn l2_format(&self) -> Result<L2Format> {
        Ok(L2Format::of(&Header::parse(&self.header()?).map_err(impossible)?))
    }

    /// A table of 8-byte entries that fills `area`, in pieces of a cluster.
    fn table(
        &self,
        area: Area,
        entries: impl Iterator<Item = [u8; 8]>,
        write: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut entries = entries.fuse();
        for _ in 0..area.count {
            let mut bytes = Vec::with_capacity(self.cluster.len());
            let count = self.cluster.len() / ENTRY_SIZE as usize;
            bytes.extend(entries.by_ref().take(count).flatten());
            bytes.resize(self.cluster.len(), 0);
            write(&bytes)?;
        }
        Ok(())
    }

    /// Where `area` starts, in bytes.
    fn offset(&self, area: Area) -> u64 {
        area.first * self.cluster.bytes()
    }
}

/// An error for output that the format does not take.
fn impossible(error: FormatError) -> Error {
    Error::new(ErrorKind::Usage, "the disk does not fit into a qcow2 image").because(error)
}

/// The units of `unit_size` bytes in which the plan has data; `None` if their numbers do not fit.
fn units(plan: &Plan, unit_size: u64) -> Option<RoaringBitmap> {
    u32::try_from(plan.virtual_size().div_ceil(unit_size).saturating_sub(1)).ok()?;
    let blocks_per_unit = unit_size / u64::from(plan.geometry().block_size());
    if blocks_per_unit == 1 {
        return Some(plan.data().clone());
    }
    let mut units = RoaringBitmap::new();
    let mut runs = plan.data().iter();
    while let Some(run) = runs.next_range() {
        let number = |block: u32| (u64::from(block) / blocks_per_unit) as u32;
        units.insert_range(number(*run.start())..=number(*run.end()));
    }
    units.optimize();
    Some(units)
}

/// The L1 entries, each of `units_per_table` units, under which there is data.
fn l1_used(units: &RoaringBitmap, units_per_table: u64, entries: u64) -> Option<RoaringBitmap> {
    let mut used = RoaringBitmap::new();
    for index in 0..u32::try_from(entries).ok()? {
        let Ok(first) = u32::try_from(u64::from(index) * units_per_table) else { break };
        let last = u32::try_from((u64::from(index) + 1) * units_per_table - 1).unwrap_or(u32::MAX);
        if units.range_cardinality(first..=last) > 0 {
            used.insert(index);
        }
    }
    Some(used)
}

/// How many clusters the units need: all of each, except behind the end of the disk.
fn data_clusters(
    units: &RoaringBitmap,
    unit_size: u64,
    virtual_size: u64,
    cluster: ClusterSize,
) -> u64 {
    let Some(last) = units.max() else { return 0 };
    let tail = (virtual_size - u64::from(last) * unit_size).min(unit_size);
    (units.len() - 1) * (unit_size / cluster.bytes()) + cluster.count(tail)
}

/// How many clusters the refcount table and its blocks need for themselves and `others`.
fn refcount_clusters(cluster: ClusterSize, others: u64) -> (u64, u64) {
    let per_block = RefcountOrder::DEFAULT.counts_per_block(cluster);
    let (mut table, mut blocks) = (1, 1);
    loop {
        let needed_blocks = (others + table + blocks).div_ceil(per_block);
        let needed_table = cluster.count(needed_blocks * ENTRY_SIZE);
        if (needed_table, needed_blocks) == (table, blocks) {
            return (table, blocks);
        }
        // Both only ever grow, and each new block counts thousands of clusters: this ends.
        (table, blocks) = (needed_table, needed_blocks);
    }
}

fn ranks(units: &RoaringBitmap) -> Vec<u64> {
    let steps = units.max().map_or(0, |last| u64::from(last) / RANK_STEP + 1);
    let mut before = 0;
    (0..steps)
        .map(|step| {
            let rank = before;
            let (first, last) = (step * RANK_STEP, step * RANK_STEP + RANK_STEP - 1);
            before += units.range_cardinality(first as u32..=last as u32);
            rank
        })
        .collect()
}
