//! Changing a header in place, in steps of which each is one write within one sector.
//!
//! A disk writes a sector as a whole or not at all, so whoever opens the image sees the state
//! before or after such a step and nothing in between. All fields lie in the first sector, and
//! change together. Extensions may lie behind it; [`Linked`] says how they change.

use super::extension::{self, BITMAPS, BitmapsExtension, END, Places};
use super::features::Autoclear;
use super::header::{Header, Version, at};
use super::units::{HostOffset, SECTOR_SIZE, Table};
use crate::fields::put;
use crate::{FormatError, Problem};

/// Bytes of an extension before its data.
const HEAD_LEN: usize = 8;
/// Bytes of a bitmaps extension as a whole.
const BITMAPS_LEN: usize = HEAD_LEN + BitmapsExtension::LEN;

/// The first cluster of an image, to be changed.
#[derive(Debug, Clone)]
pub struct FirstCluster {
    bytes: Vec<u8>,
    header: Header,
}

/// What changing the bitmaps extension takes besides writing the first sector.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Linked {
    /// Where nothing leads to before the change: to be written, in any way, and synced before it.
    pub prepared: Option<(u64, Vec<u8>)>,
    /// The write within one sector that is the change; nothing if it is in the first sector.
    pub switch: Option<(u64, Vec<u8>)>,
}

impl FirstCluster {
    /// Reads the header in `bytes`, the first cluster of an image as [`Header::parse`] wants it.
    ///
    /// # Errors
    /// As [`Header::parse`].
    pub fn parse(bytes: Vec<u8>) -> Result<Self, FormatError> {
        let header = Header::parse(&bytes)?;
        Ok(Self { bytes, header })
    }

    /// The header, with all changes so far.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The first sector, with all changes so far.
    ///
    /// # Errors
    /// The changed header is none that [`Header::parse`] accepts.
    pub fn sector(&self) -> Result<&[u8], FormatError> {
        if Header::parse(&self.bytes)? != self.header {
            return Err(wrong("it would not be read as it was meant"));
        }
        Ok(self.bytes.get(..SECTOR_SIZE as usize).unwrap_or_default())
    }

    /// Moves the active L1 table.
    pub fn set_l1(&mut self, l1: Table) {
        self.header.l1 = l1;
        put(&mut self.bytes, at::L1_ENTRIES, &l1.entries.to_be_bytes());
        put(&mut self.bytes, at::L1_OFFSET, &l1.offset.0.to_be_bytes());
    }

    /// Moves the refcount table; its length is in clusters.
    pub fn set_refcount_table(&mut self, offset: HostOffset, clusters: u32) {
        self.header.refcount_table_offset = offset;
        self.header.refcount_table_clusters = clusters;
        put(&mut self.bytes, at::REFCOUNT_TABLE_OFFSET, &offset.0.to_be_bytes());
        put(&mut self.bytes, at::REFCOUNT_TABLE_CLUSTERS, &clusters.to_be_bytes());
    }

    /// Moves the snapshot table.
    pub fn set_snapshots(&mut self, snapshots: Table) {
        self.header.snapshots = snapshots;
        put(&mut self.bytes, at::SNAPSHOT_COUNT, &snapshots.entries.to_be_bytes());
        put(&mut self.bytes, at::SNAPSHOTS_OFFSET, &snapshots.offset.0.to_be_bytes());
    }

    /// Sets the autoclear features; version 2 has none.
    pub fn set_autoclear(&mut self, autoclear: Autoclear) {
        if self.header.version == Version::V3 {
            self.header.autoclear = autoclear;
            put(&mut self.bytes, at::AUTOCLEAR, &autoclear.0.to_be_bytes());
        }
    }

    /// Makes room for a bitmaps extension if there is none, by moving the name of the backing file
    /// away. Gives what must be written and synced before the first sector then is; nothing if
    /// there is room already.
    ///
    /// # Errors
    /// The first cluster is too small.
    pub fn make_room_for_bitmaps(&mut self) -> Result<Option<(u64, Vec<u8>)>, FormatError> {
        let (places, area_end) = self.places()?;
        let needed = places.end + BITMAPS_LEN + HEAD_LEN;
        if self.is_one_sector() || patchable(&places) || needed <= area_end {
            return Ok(None);
        }
        let name_len = self.backing_name_len();
        let old = area_end..(area_end + name_len).min(self.bytes.len());
        let place = needed.max(old.end).next_multiple_of(8);
        let name = self.bytes.get(old).unwrap_or_default().to_vec();
        if place + name.len() > self.bytes.len() {
            return Err(wrong("its cluster has no room for a bitmaps extension"));
        }
        put(&mut self.bytes, place, &name);
        put(&mut self.bytes, at::BACKING_OFFSET, &(place as u64).to_be_bytes());
        // The end marker may have been left out where the name followed.
        if places.end + HEAD_LEN > area_end {
            return Err(wrong("its extensions have no end marker"));
        }
        Ok(Some((place as u64, name)))
    }

    /// Puts `bitmaps` into the bitmaps extension, or takes the extension away. Where it can't be
    /// taken away in one step it stays, and [`Autoclear::BITMAPS`] must tell that it is stale.
    ///
    /// # Errors
    /// There is no room; see [`FirstCluster::make_room_for_bitmaps`].
    pub fn link_bitmaps(
        &mut self,
        bitmaps: Option<BitmapsExtension>,
    ) -> Result<Linked, FormatError> {
        if self.is_one_sector() {
            return self.rewrite(bitmaps);
        }
        let (places, area_end) = self.places()?;
        let Some(extension) = bitmaps else { return Ok(self.unlink_bitmaps(&places)) };
        self.header.extensions.bitmaps = Some(extension);
        if let Some(at) = places.bitmaps.filter(|_| patchable(&places)) {
            return Ok(self.switch(at + HEAD_LEN, &extension.encode(), None));
        }
        if places.end + BITMAPS_LEN + HEAD_LEN > area_end {
            return Err(wrong("its cluster has no room for a bitmaps extension"));
        }
        let mut prepared = extension.encode().to_vec();
        prepared.extend_from_slice(&[0; HEAD_LEN]);
        let behind = places.end + HEAD_LEN;
        put(&mut self.bytes, behind, &prepared);
        Ok(self.switch(places.end, &head(), Some((behind as u64, prepared))))
    }

    fn unlink_bitmaps(&mut self, places: &Places) -> Linked {
        match places.bitmaps {
            Some(at) if places.bitmaps_last => {
                self.header.extensions.bitmaps = None;
                let mut end = END.to_be_bytes().to_vec();
                end.extend_from_slice(&[0; 4]);
                let linked = self.switch(at, &end, None);
                // Before it, there may be one that did not count.
                if let Ok(header) = Header::parse(&self.bytes) {
                    self.header.extensions.bitmaps = header.extensions.bitmaps;
                }
                linked
            }
            _ => Linked::default(),
        }
    }

    /// Changes `bytes` at `at`, which lie in one sector.
    fn switch(&mut self, at: usize, bytes: &[u8], prepared: Option<(u64, Vec<u8>)>) -> Linked {
        put(&mut self.bytes, at, bytes);
        let elsewhere = at as u64 >= SECTOR_SIZE;
        Linked { prepared, switch: elsewhere.then(|| (at as u64, bytes.to_vec())) }
    }

    /// The whole header again, for clusters of one sector. Names of features are for people who
    /// have an old QEMU: they go when they are in the way.
    fn rewrite(&mut self, bitmaps: Option<BitmapsExtension>) -> Result<Linked, FormatError> {
        let mut header = Header { ..self.header.clone() };
        header.extensions.bitmaps = bitmaps;
        let bytes = header.encode().or_else(|_| {
            header.extensions.feature_names.clear();
            header.encode()
        })?;
        *self = Self { bytes, header };
        Ok(Linked::default())
    }

    fn is_one_sector(&self) -> bool {
        self.bytes.len() as u64 <= SECTOR_SIZE
    }

    /// Length of the backing file's name as the header says.
    fn backing_name_len(&self) -> usize {
        let field = self.bytes.get(at::BACKING_LEN..at::BACKING_LEN + 4).unwrap_or_default();
        field.iter().fold(0, |len, byte| len << 8 | usize::from(*byte))
    }

    /// What can be edited in the area of the extensions, and where the area ends.
    fn places(&self) -> Result<(Places, usize), FormatError> {
        let bytes = crate::fields::Big::new(&self.bytes, 0);
        let (start, end) = super::header::extension_area(&bytes, &self.header)?;
        let area = bytes.slice(start, end.saturating_sub(start), "header extensions")?;
        Ok((extension::places(area, start)?, end))
    }
}

/// The head of a bitmaps extension.
fn head() -> [u8; HEAD_LEN] {
    let mut head = [0; HEAD_LEN];
    put(&mut head, 0, &BITMAPS.to_be_bytes());
    put(&mut head, 4, &(BitmapsExtension::LEN as u32).to_be_bytes());
    head
}

/// Whether there is a bitmaps extension whose data lies in one sector.
fn patchable(places: &Places) -> bool {
    places.bitmaps.is_some_and(|at| {
        let (first, last) = (at + HEAD_LEN, at + BITMAPS_LEN - 1);
        first as u64 / SECTOR_SIZE == last as u64 / SECTOR_SIZE
    })
}

fn wrong(problem: &'static str) -> FormatError {
    FormatError::new(0, "header", Problem::Invalid(problem.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qcow2::{ClusterSize, FeatureName, RefcountOrder, UnknownExtension};

    fn header(cluster_bits: u32) -> Header {
        let cluster = ClusterSize::from_bits(cluster_bits).unwrap();
        let at = |cluster_number: u64, entries| Table {
            offset: HostOffset(cluster_number << cluster_bits),
            entries,
        };
        Header::new(cluster, 1 << 20, at(3, 100), at(1, 1)).unwrap()
    }

    fn first(header: &Header) -> FirstCluster {
        FirstCluster::parse(header.encode().unwrap()).unwrap()
    }

    fn bitmaps(number: u64) -> BitmapsExtension {
        let directory = HostOffset(number << 16);
        BitmapsExtension { count: 1, directory, directory_len: 32 * number }
    }

    /// What is in the file when the change is made in steps, each of which must give a header that
    /// is either the old or the new one.
    fn step(before: &FirstCluster, after: &FirstCluster, linked: &Linked) {
        let mut file = before.bytes.clone();
        let old = Header::parse(&file).unwrap();
        if let Some((at, bytes)) = &linked.prepared {
            put(&mut file, *at as usize, bytes);
            assert_eq!(Header::parse(&file).unwrap(), old, "what is prepared shows");
        }
        let sector = after.sector().unwrap().to_vec();
        if let Some((at, bytes)) = &linked.switch {
            let (first, last) = (at / SECTOR_SIZE, (at + bytes.len() as u64 - 1) / SECTOR_SIZE);
            assert_eq!(first, last, "the switch lies in two sectors");
            put(&mut file, *at as usize, bytes);
        }
        put(&mut file, 0, &sector);
        assert_eq!(file, after.bytes);
        assert_eq!(Header::parse(&file).unwrap(), after.header);
    }

    #[test]
    fn fields_change_with_the_first_sector() {
        let before = first(&header(16));
        let mut after = before.clone();
        after.set_l1(Table { offset: HostOffset(0x9_0000), entries: 200 });
        after.set_refcount_table(HostOffset(0x8_0000), 2);
        after.set_snapshots(Table { offset: HostOffset(0x7_0000), entries: 3 });
        after.set_autoclear(Autoclear::BITMAPS);
        step(&before, &after, &Linked::default());
        assert_eq!(after.header().refcount_order, RefcountOrder::DEFAULT);
        let mut wrong = before.clone();
        wrong.set_l1(Table { offset: HostOffset(0x9_0001), entries: 200 });
        assert!(wrong.sector().is_err());
    }

    /// The extension may begin anywhere, also in front of the end of a sector.
    #[test]
    fn bitmaps_come_and_change_and_go_in_one_sector_each() {
        let mut steps_elsewhere = 0;
        for padding in 0..70 {
            for last in [true, false] {
                let mut header = header(12);
                header.autoclear = Autoclear::BITMAPS;
                let filler = UnknownExtension { kind: 0x1234, data: vec![1; padding * 8] };
                header.extensions.unknown.push(filler);
                let mut image = first(&header);
                for number in 1..4 {
                    let before = image.clone();
                    let linked = image.link_bitmaps(Some(bitmaps(number))).unwrap();
                    step(&before, &image, &linked);
                    steps_elsewhere += u32::from(linked.switch.is_some());
                    assert_eq!(image.header().extensions.bitmaps, Some(bitmaps(number)));
                    assert_eq!(image.header().extensions.unknown, header.extensions.unknown);
                }
                if !last {
                    // Somebody else's extension behind it.
                    let mut header = image.header().clone();
                    let data = vec![2; 24];
                    header.extensions.unknown.push(UnknownExtension { kind: 0x5678, data });
                    image = first(&header);
                }
                let before = image.clone();
                let linked = image.link_bitmaps(None).unwrap();
                step(&before, &image, &linked);
            }
        }
        assert!(steps_elsewhere > 0);
    }

    #[test]
    fn the_name_of_a_backing_file_makes_room() {
        for cluster_bits in [10, 12, 16] {
            let mut header = header(cluster_bits);
            let name = b"/a/long/name/of/a/backing/file/that/stands/in/the/way.qcow2".to_vec();
            header.backing_name = Some(name.clone());
            let before = first(&header);
            assert!(before.clone().link_bitmaps(Some(bitmaps(1))).is_err());
            let mut after = before.clone();
            let (at, bytes) = after.make_room_for_bitmaps().unwrap().unwrap();
            step(&before, &after, &Linked { prepared: Some((at, bytes)), switch: None });
            assert_eq!(after.header().backing_name, Some(name));
            assert_eq!(after.make_room_for_bitmaps().unwrap(), None);
            let before = after.clone();
            let linked = after.link_bitmaps(Some(bitmaps(1))).unwrap();
            step(&before, &after, &linked);
            assert_eq!(after.make_room_for_bitmaps().unwrap(), None);
        }
    }

    #[test]
    fn small_and_full_clusters() {
        // One sector is written as a whole; the names of the features give way.
        let before = first(&header(9));
        let mut after = before.clone();
        assert_eq!(after.make_room_for_bitmaps().unwrap(), None);
        assert_eq!(after.link_bitmaps(Some(bitmaps(1))).unwrap(), Linked::default());
        assert_eq!(after.header().extensions.bitmaps, Some(bitmaps(1)));
        assert_eq!(after.link_bitmaps(None).unwrap(), Linked::default());
        assert_eq!(after.header().extensions.bitmaps, None);
        after.sector().unwrap();
        // No room at all.
        let mut header = header(10);
        let feature = FeatureName { set: 2, bit: 40, name: vec![b'x'; 46] };
        header.extensions.feature_names = vec![feature; 16];
        header.backing_name = Some(vec![b'x'; 100]);
        assert!(first(&header).make_room_for_bitmaps().is_err());
    }
}
