//! Merging against a model: whatever the history, every point on and above the merged archive is what it
//! was.

use std::sync::Arc;

use proptest::prelude::*;

use super::data_path::{self, Merged, Merging};
use super::*;
use crate::base::observer::Silent;
use crate::disk::flow::pipeline::Resources;
use crate::formats::archive::Kind;
use crate::vault::archive::testing::{Bytes, Disk, Shared, archive, metadata};
use crate::vault::archive::{Reader, Writer};
use crate::vault::chain::{Chain, Stretch};
use crate::vault::point::PointReader;

/// One change to the disk.
#[derive(Debug, Clone)]
enum Change {
    /// Write this many blocks from this place on (a part in 65,536 of the disk), with contents from this
    /// seed on; seed 0 makes them zero.
    Write { place: u16, count: u16, seed: u32 },
    /// Give the disk this many blocks, the last one cut to a number of sectors (0: not cut).
    Resize { blocks: u16, sectors: u8 },
}

/// A point: what changed before it, and the blocks of its frames' spans as a power of two.
type Step = (Vec<Change>, u32);

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => (any::<u16>(), 1u16..80, 1u32..1000)
            .prop_map(|(place, count, seed)| Change::Write { place, count, seed }),
        2 => (any::<u16>(), 1u16..1200)
            .prop_map(|(place, count)| Change::Write { place, count, seed: 0 }),
        2 => (0u16..3500, 0u8..8).prop_map(|(blocks, sectors)| Change::Resize { blocks, sectors }),
    ]
}

fn apply(disk: &mut Disk, change: &Change) {
    let block = u64::from(disk.geometry.block_size());
    match *change {
        Change::Write { place, count, seed } => {
            let first = usize::from(place) * disk.blocks.len() / 65_536;
            let end = (first + usize::from(count)).min(disk.blocks.len());
            for at in first..end {
                disk.write(at, if seed == 0 { 0 } else { seed + (at - first) as u32 });
            }
        }
        Change::Resize { blocks, sectors } => {
            let size = u64::from(blocks) * block;
            disk.resize(size.saturating_sub(u64::from(sectors) * 512));
        }
    }
}

/// The points of a chain: the disk and the archive of each, the full first.
fn history(steps: &[Step]) -> Vec<(Disk, Arc<Reader>)> {
    let mut disk = Disk::new(2500 * 4096, 4096);
    let mut points: Vec<(Disk, Arc<Reader>)> = Vec::new();
    for (id, (changes, span)) in (1..).zip(steps) {
        let empty = Disk::new(disk.geometry.virtual_size(), 4096);
        let before = points.last().map_or(empty, |(disk, _)| disk.clone());
        changes.iter().for_each(|change| apply(&mut disk, change));
        let parent = points.last().map(|(disk, below)| (below.metadata(), disk.root()));
        let kind = if parent.is_none() { Kind::Full } else { Kind::Incremental };
        let mut metadata = metadata(id, kind, disk.geometry, parent);
        metadata.frame_blocks = 1 << span;
        let bytes = archive(&metadata, &before, &disk);
        points.push((disk.clone(), Arc::new(Reader::open(Bytes::store("old", &bytes)).unwrap())));
    }
    points
}

/// The bytes of the archive that stands for these.
fn merge(archives: &[Arc<Reader>], threads: usize) -> Result<(Vec<u8>, Merged, Estimate)> {
    let stretch = Stretch::new(archives.to_vec())?;
    let sink = Shared::default();
    let metadata = metadata_of(&stretch, ArchiveId([0xee; 16]));
    let writer = Writer::new(Box::new(sink.clone()), metadata, None)?;
    let resources = Resources { threads, ..Resources::default() };
    let estimate = estimate(&stretch, &Cancel::default())?;
    let job = Merging { stretch: &stretch, level: 3, resources: &resources };
    let merged = data_path::run(&job, writer, &Silent, &Cancel::default())?;
    Ok((sink.bytes(), merged, estimate))
}

/// All bytes of the disk at the end of a chain.
fn read(archives: Vec<Arc<Reader>>) -> Vec<u8> {
    let reader = PointReader::new(Chain::new(archives).unwrap()).unwrap();
    let mut bytes = vec![0; reader.size() as usize];
    assert_eq!(reader.read(&mut bytes, 0).unwrap(), bytes.len());
    bytes
}

fn content(disk: &Disk) -> Vec<u8> {
    let mut bytes: Vec<u8> = disk.blocks.iter().flat_map(|block| block.bytes(4096)).collect();
    bytes.truncate(disk.geometry.virtual_size() as usize);
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Writes, zeros, growing, shrinking, spans of every length: every run of every chain.
    #[test]
    fn every_point_is_what_it_was(
        steps in prop::collection::vec((prop::collection::vec(change(), 0..5), 0u32..7), 2..7),
        from in 0usize..6,
        count in 0usize..6,
    ) {
        let points = history(&steps);
        let from = from.min(points.len() - 1);
        let to = (from + count).min(points.len() - 1);
        let archives: Vec<_> = points.iter().map(|(_, archive)| Arc::clone(archive)).collect();
        let (bytes, merged, estimate) = merge(&archives[from..=to], 2).unwrap();
        let again = merge(&archives[from..=to], 1).unwrap().0;
        prop_assert!(bytes == again, "the bytes depend on the number of threads");
        let reader = Arc::new(Reader::open(Bytes::store("merged", &bytes)).unwrap());
        reader.check_index().unwrap();
        prop_assert_eq!(reader.metadata().kind == Kind::Full, from == 0);
        prop_assert_eq!(merged.bytes_read, estimate.frames);
        if merged.packed == 0 {
            prop_assert_eq!(estimate.writes, bytes.len() as u64);
        }
        let mut chain = archives[..from].to_vec();
        chain.push(reader);
        for above in to..points.len() {
            if above > to {
                chain.push(Arc::clone(&archives[above]));
            }
            prop_assert_eq!(Chain::new(chain.clone()).unwrap().root(), points[above].0.root());
            prop_assert!(read(chain.clone()) == content(&points[above].0), "point {} differs", above);
        }
    }
}
