//! The trees of L1 and L2 tables: which clusters of the image they refer to, and how often each
//! reference counts.

use qdelta_formats::qcow2::{HostOffset, L1Entry, L2Format, Reference};

use super::change::Change;
use crate::base::error::Result;

impl Change<'_> {
    /// Adds a second owner to everything that the active L1 table leads to. Gives the entries that
    /// both owners' L1 tables are to have.
    pub(super) fn share_active_tree(&mut self) -> Result<Vec<L1Entry>> {
        self.rewrite_active_tree(
            |change, bytes, table, number| {
                for shared in change.clusters_of_entry(bytes, table, number)? {
                    change.counts.add(shared, 1)?;
                }
                Ok(false)
            },
            |change, place| {
                change.counts.add(place.0 >> change.format.cluster.bits(), 1)?;
                Ok(false)
            },
        )
    }

    /// Sets the "copied" flags of the active tables anew: `of_entry` says of an entry of an L2 table, and
    /// `of_table` of the table itself, whether the active tables are its only user. Gives the L1 entries
    /// that follow.
    fn rewrite_active_tree(
        &mut self,
        mut of_entry: impl FnMut(&mut Self, &[u8], HostOffset, usize) -> Result<bool>,
        mut of_table: impl FnMut(&mut Self, HostOffset) -> Result<bool>,
    ) -> Result<Vec<L1Entry>> {
        let mut l1 = self.l1.clone();
        let mut bytes = self.l2_buffer();
        for (index, table) in self.l2_tables(&l1, self.header().l1.offset)? {
            self.file.read(&mut bytes, table.0)?;
            let mut changed = false;
            for number in 0..self.entries() {
                let sole = of_entry(self, &bytes, table, number)?;
                changed |= L2Format::set_sole_owner(self.entry_mut(&mut bytes, number), sole);
            }
            let place = if changed { self.move_l2(&bytes, table)? } else { table };
            let sole = of_table(self, place)?;
            if let Some(entry) = l1.get_mut(index) {
                *entry = L1Entry::new(Some(place), sole);
            }
        }
        Ok(l1)
    }

    /// Takes one owner away from everything that the L1 table at `start` leads to.
    pub(super) fn release_tree(&mut self, l1: &[L1Entry], start: HostOffset) -> Result<()> {
        let mut bytes = self.l2_buffer();
        for (_, table) in self.l2_tables(l1, start)? {
            self.file.read(&mut bytes, table.0)?;
            for number in 0..self.entries() {
                let clusters = self.clusters_of_entry(&bytes, table, number)?;
                self.counts.add_all(clusters, -1)?;
            }
            self.counts.free(table.0, self.format.cluster.bytes())?;
        }
        Ok(())
    }

    /// Sets the "copied" flags of the active tables to what the counts say: whether a table is a
    /// cluster's only user.
    pub(super) fn refresh_active_tree(&mut self) -> Result<()> {
        let l1 = self.rewrite_active_tree(
            |change, bytes, table, number| {
                let Reference::Cluster(host) = change.reference(bytes, table, number)? else {
                    return Ok(false);
                };
                Ok(change.counts.count_at(host)? == 1)
            },
            |change, place| Ok(change.counts.count_at(place)? == 1),
        )?;
        self.replace_l1(&l1)
    }

    /// Writes the L2 table that was at `old` somewhere else. Of its owners, one moves along.
    pub(super) fn move_l2(&mut self, bytes: &[u8], old: HostOffset) -> Result<HostOffset> {
        let place = self.write_new(bytes.to_vec())?;
        self.counts.free(old.0, self.format.cluster.bytes())?;
        Ok(place)
    }

    pub(super) fn l2_buffer(&self) -> Vec<u8> {
        vec![0; self.format.cluster.len()]
    }

    /// Entries in an L2 table.
    pub(super) fn entries(&self) -> usize {
        self.format.cluster.len() / self.format.entry_size()
    }

    pub(super) fn entry_mut<'b>(&self, table: &'b mut [u8], number: usize) -> &'b mut [u8] {
        let size = self.format.entry_size();
        table.get_mut(number * size..(number + 1) * size).unwrap_or_default()
    }

    fn reference(&self, table: &[u8], host: HostOffset, number: usize) -> Result<Reference> {
        let at = number * self.format.entry_size();
        let entry = table.get(at..).unwrap_or_default();
        let position = HostOffset(host.0 + at as u64);
        self.format.reference(entry, position).map_err(|error| self.file.wrong(error))
    }

    /// The numbers of the clusters that entry `number` of the L2 table at `host` refers to.
    pub(super) fn clusters_of_entry(
        &self,
        table: &[u8],
        host: HostOffset,
        number: usize,
    ) -> Result<std::ops::Range<u64>> {
        Ok(match self.reference(table, host, number)? {
            Reference::None => 0..0,
            Reference::Cluster(host) => self.counts.clusters_of(host.0, 1),
            Reference::Compressed(place) => self.counts.clusters_of_compressed(place),
        })
    }
}
