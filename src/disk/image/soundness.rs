//! Whether an image that is marked as corrupt can be read all the same.
//!
//! QEMU sets the corrupt bit when it meets damaged tables, and nobody but `qemu-img check -r`
//! ever takes it back. What the mark is about may be far from the data, or repaired long since; an
//! admin who wants a copy before a repair should get one. So all tables that lead to data are
//! walked, and the image is refused only if they are damaged indeed: if an entry breaks the rules
//! or two of them claim the same place.

use qdelta_formats::qcow2::{HostOffset, L1_ENTRY_SIZE, Mapping, RefcountTableEntry};
use roaring::RoaringTreemap;

use super::qcow2::Qcow2Layer;
use super::tables::{Entries, L1Reader};
use crate::base::error::Result;

/// Walks all tables of `layer`.
///
/// Memory follows what the tables name, and that follows the length of the file.
///
/// # Errors
/// The first damage that is found.
pub(super) fn prove(layer: &Qcow2Layer) -> Result<()> {
    let mut claims = Claims { layer, sole: RoaringTreemap::new(), shared: RoaringTreemap::new() };
    claims.claim_metadata()?;
    claims.claim_l2_tables()?;
    claims.finish()
}

/// Which clusters of the file have an owner.
struct Claims<'a> {
    layer: &'a Qcow2Layer,
    /// Clusters that belong to one owner alone.
    sole: RoaringTreemap,
    /// Clusters in which compressed ones lie, possibly several.
    shared: RoaringTreemap,
}

impl Claims<'_> {
    /// Claims the `len` bytes at `start` for one owner.
    fn claim(&mut self, what: &str, start: u64, len: u64) -> Result<()> {
        let cluster = self.layer.format.cluster;
        let clusters = start >> cluster.bits()..cluster.count(start.saturating_add(len));
        for number in clusters {
            if !self.sole.insert(number) {
                let place = number << cluster.bits();
                return Err(self
                    .layer
                    .damaged(format!("the {what} at {place:#x} is used by something else, too")));
            }
        }
        Ok(())
    }

    /// Header, L1 table, refcount table and refcount blocks.
    fn claim_metadata(&mut self) -> Result<()> {
        let layer = self.layer;
        let (cluster, header) = (layer.format.cluster, &layer.header);
        self.claim("header", 0, cluster.bytes())?;
        self.claim("L1 table", layer.l1.offset.0, u64::from(layer.l1.entries) * L1_ENTRY_SIZE)?;
        let start = header.refcount_table_offset.0;
        // At most 8 MiB: the header's limit.
        let len = u64::from(header.refcount_table_clusters) * cluster.bytes();
        layer.check_inside("refcount table", start, len)?;
        self.claim("refcount table", start, len)?;
        let mut table = vec![0; len as usize];
        layer.file.read_padded(&mut table, start)?;
        for (entry, position) in RefcountTableEntry::read_all(&table).zip((start..).step_by(8)) {
            let block =
                entry.block(cluster, HostOffset(position)).map_err(|error| layer.wrong(error))?;
            if let Some(block) = block {
                layer.check_inside("refcount block", block.0, cluster.bytes())?;
                self.claim("refcount block", block.0, cluster.bytes())?;
            }
        }
        Ok(())
    }

    fn claim_l2_tables(&mut self) -> Result<()> {
        let layer = self.layer;
        let mut reader = L1Reader::default();
        let mut bytes = vec![0; layer.format.cluster.len()];
        let mut index = 0;
        while index < layer.l1_entries_used() {
            reader.load(layer, index)?;
            for (index, entry) in reader.loaded() {
                let position = HostOffset(layer.l1.offset.0 + index * L1_ENTRY_SIZE);
                let table = entry.l2_table(layer.format.cluster, position);
                if let Some(table) = table.map_err(|error| layer.wrong(error))? {
                    layer.check_inside("L2 table", table.0, layer.format.cluster.bytes())?;
                    self.claim("L2 table", table.0, layer.format.cluster.bytes())?;
                    layer.file.read_padded(&mut bytes, table.0)?;
                    self.claim_clusters(&bytes, table, index)?;
                }
            }
            index = reader.range().end;
        }
        Ok(())
    }

    /// Claims what L2 table number `index`, whose bytes are given and which lies at `table`, names.
    fn claim_clusters(&mut self, bytes: &[u8], table: HostOffset, index: u64) -> Result<()> {
        let layer = self.layer;
        let cluster = layer.format.cluster;
        let guest = index * layer.format.table_coverage();
        let mut entries = Entries { layer, bytes, host: table.0, guest };
        while !entries.bytes.is_empty() && entries.guest < layer.virtual_size {
            let host = match entries.next()? {
                Mapping::Unallocated => None,
                Mapping::Data { host } => Some(host),
                Mapping::Zero { host } => host,
                Mapping::Subclusters(map) => map.host,
                Mapping::Compressed(descriptor) => {
                    let compressed = layer.compressed(descriptor)?;
                    let start = compressed.host_offset;
                    let end = start + u64::from(compressed.compressed_len);
                    self.shared.insert_range(start >> cluster.bits()..cluster.count(end));
                    None
                }
            };
            // In an external data file every cluster has its own place.
            if let Some(host) = host
                && !layer.format.external_data
            {
                layer.check_data(host)?;
                self.claim("data cluster", host.0, cluster.bytes())?;
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        match (&self.sole & &self.shared).min() {
            None => Ok(()),
            Some(number) => {
                let place = number << self.layer.format.cluster.bits();
                let text = format!(
                    "the cluster at {place:#x} with compressed data is used by something else, too"
                );
                Err(self.layer.damaged(text))
            }
        }
    }
}
