//! A chain against a model: whatever the history, each block has the owner and the digest that the
//! model has.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::base::cancel::Cancel;
use crate::formats::archive::{ArchiveId, GROUP_BLOCKS, Mask, Metadata, RootHasher};
use crate::vault::archive::testing::{Bytes, Disk, archive, metadata};
use crate::vault::codec::Decompressor;

const BLOCK: u64 = 4096;

/// One change to the disk.
#[derive(Debug, Clone)]
enum Change {
    /// Write this many blocks from this place on (a part in 65,536 of the disk), with contents
    /// from this seed on; seed 0 makes them zero.
    Write { place: u16, count: u16, seed: u32 },
    /// Give the disk this many blocks, the last one cut to a number of sectors (0: not cut).
    Resize { blocks: u16, sectors: u8 },
}

/// A point: what changed before it, and whether it is a differential.
type Step = (Vec<Change>, bool);

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => (any::<u16>(), 1u16..80, 1u32..1000)
            .prop_map(|(place, count, seed)| Change::Write { place, count, seed }),
        2 => (any::<u16>(), 1u16..1200).prop_map(|(place, count)| Change::Write {
            place,
            count,
            seed: 0
        }),
        2 => (0u16..3500, 0u8..8).prop_map(|(blocks, sectors)| Change::Resize { blocks, sectors }),
    ]
}

fn apply(disk: &mut Disk, change: &Change) {
    match *change {
        Change::Write { place, count, seed } => {
            let first = usize::from(place) * disk.blocks.len() / 65_536;
            for at in 0..usize::from(count) {
                if first + at < disk.blocks.len() {
                    let seed = if seed == 0 { 0 } else { seed + at as u32 };
                    disk.write(first + at, seed);
                }
            }
        }
        Change::Resize { blocks, sectors } => {
            let size = u64::from(blocks) * BLOCK;
            disk.resize(size.saturating_sub(u64::from(sectors) * 512));
        }
    }
}

struct History {
    /// Everything that was ever written, the disk at that point, and the parent's position.
    points: Vec<(Metadata, Disk, Option<usize>, Arc<Reader>)>,
}

impl History {
    fn new(first: &[Change], steps: &[Step]) -> Self {
        let mut disk = Disk::new(2500 * BLOCK, BLOCK as u32);
        let empty = disk.clone();
        first.iter().for_each(|change| apply(&mut disk, change));
        let mut points = Vec::new();
        let full = metadata(1, Kind::Full, disk.geometry, None);
        points.push(Self::point(full, &empty, &disk, None));
        for (id, (changes, differential)) in (2..).zip(steps) {
            changes.iter().for_each(|change| apply(&mut disk, change));
            let parent = if *differential { 0 } else { points.len() - 1 };
            let kind = if *differential { Kind::Differential } else { Kind::Incremental };
            let (below, before, _, _) = &points[parent];
            let link = Some((below, before.root()));
            let point = metadata(id, kind, disk.geometry, link);
            points.push(Self::point(point, before, &disk, Some(parent)));
        }
        Self { points }
    }

    fn point(
        metadata: Metadata,
        before: &Disk,
        now: &Disk,
        parent: Option<usize>,
    ) -> (Metadata, Disk, Option<usize>, Arc<Reader>) {
        let bytes = archive(&metadata, before, now);
        let reader = Reader::open(Bytes::store(&metadata.point, &bytes)).unwrap();
        (metadata, now.clone(), parent, Arc::new(reader))
    }

    fn chain(&self, point: usize) -> Chain {
        let mut archives = Vec::new();
        let mut next = Some(point);
        while let Some(at) = next {
            archives.push(Arc::clone(&self.points[at].3));
            next = self.points[at].2;
        }
        archives.reverse();
        Chain::new(archives).unwrap()
    }
}

/// The bytes that a state's frames decode to, by block of the group.
fn decode(chain: &Chain, state: &GroupState) -> Vec<Option<Vec<u8>>> {
    let mut decompressor = Decompressor::new().unwrap();
    let mut blocks = vec![None; GROUP_BLOCKS as usize];
    for read in state.frames() {
        let archive = &chain.archives()[read.archive];
        let mut buffer = Vec::new();
        let view = archive.read_frame(&read.entry, read.mask, &mut buffer).unwrap();
        assert_eq!(view.header.mask, read.mask);
        let mut raw = vec![0; view.header.raw_len()];
        decompressor.decompress(view.header.codec, view.payload, &mut raw).unwrap();
        for bit in Mask(read.wanted).bits() {
            let index = (read.entry.first_block.0 % GROUP_BLOCKS + bit) as usize;
            let at = view.header.offset_of(bit);
            assert_eq!(state.owner(index), Owner::Archive(read.archive));
            let before = blocks[index].replace(raw[at..at + BLOCK as usize].to_vec());
            assert!(before.is_none(), "block {index} is decoded twice");
        }
    }
    blocks
}

fn check_group(chain: &Chain, state: &GroupState, disk: &Disk) {
    let group = state.group().0 as usize;
    assert_eq!(state.group_digest(), disk.group_digest(group));
    let blocks = decode(chain, state);
    for (index, bytes) in blocks.iter().enumerate() {
        let content = disk.content(group * GROUP_BLOCKS as usize + index);
        let zero = vec![0; BLOCK as usize];
        let bytes = bytes.as_ref().unwrap_or(&zero);
        assert!(*bytes == content.bytes(BLOCK as u32), "block {index} of group {group}");
        if bytes == &zero {
            assert_eq!(state.owner(index), Owner::Zero);
        }
        if content.seed != 0 {
            assert_eq!(state.digest(index), crate::formats::archive::block_digest(bytes));
        }
    }
    assert_eq!(state.has_stored(), blocks.iter().any(Option::is_some));
}

fn check_point(chain: &Chain, disk: &Disk, order: &[u8]) {
    assert_eq!(chain.geometry(), disk.geometry);
    let groups = disk.geometry.group_count();
    let mut cursor = chain.cursor();
    let mut root = RootHasher::new(disk.geometry);
    for group in 0..groups {
        let state = cursor.seek(GroupIndex(group)).unwrap();
        check_group(chain, state, disk);
        root.push(state.group_digest());
    }
    assert_eq!(root.finish(), chain.root());
    assert!(cursor.seek(GroupIndex(groups)).is_err());
    for place in order {
        if groups > 0 {
            let group = GroupIndex(u32::from(*place) % groups);
            check_group(chain, cursor.seek(group).unwrap(), disk);
        }
    }
    let order: Vec<GroupIndex> =
        order.iter().filter(|_| groups > 0).map(|at| GroupIndex(u32::from(*at) % groups)).collect();
    ask_from_threads(chain, &order, |state| check_group(chain, state, disk));
}

/// Asks for these groups from three threads at once, each in another order.
fn ask_from_threads(chain: &Chain, order: &[GroupIndex], check: impl Fn(&GroupState) + Sync) {
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let check = &check;
            scope.spawn(move || {
                let (before, after) = order.split_at(order.len() * thread / 3);
                for group in after.iter().chain(before) {
                    let state = chain.state(*group).unwrap();
                    assert_eq!(state.group(), *group);
                    check(&state);
                }
            });
        }
    });
}

proptest! {
    /// Writes, zeros, growing, shrinking, differentials: every point of every history.
    #[test]
    fn a_chain_is_what_the_model_is(
        first in prop::collection::vec(change(), 0..6),
        steps in prop::collection::vec(
            (prop::collection::vec(change(), 0..5), prop::bool::weighted(0.15)), 0..6),
        order in prop::collection::vec(any::<u8>(), 0..6),
    ) {
        let history = History::new(&first, &steps);
        for (point, (_, disk, _, _)) in history.points.iter().enumerate() {
            check_point(&history.chain(point), disk, &order);
        }
    }
}

/// Shrinking forgets what was beyond the new end, also when the disk grows again, and also where
/// no archive in between says anything about the groups concerned.
#[test]
fn what_was_cut_off_does_not_come_back() {
    let write = |place, count| Change::Write { place, count, seed: 9 };
    let first = [write(0, 70), write(60_000, 80)];
    let steps = [
        (vec![Change::Resize { blocks: 10, sectors: 3 }], false),
        (vec![], false),
        (vec![Change::Resize { blocks: 3000, sectors: 0 }], false),
    ];
    let history = History::new(&first, &steps);
    let disk = &history.points[3].1;
    assert_eq!(disk.blocks.iter().filter(|content| content.seed != 0).count(), 10);
    for point in 0..4 {
        check_point(&history.chain(point), &history.points[point].1, &[]);
    }
}

/// A disk whose bitmaps are too large to be held: three windows of scattered blocks, more of them in
/// some than in others, in frames of one block and of sixteen, with zeros, and with an end that was
/// cut off and came back.
#[test]
fn large_bitmaps_are_read_in_windows() {
    let count = 3 * 65_536 - 777;
    let mut random = fastrand::Rng::with_seed(7);
    let mut disk = Disk::new(count * BLOCK, BLOCK as u32);
    let mut before = disk.clone();
    let mut archives: Vec<Arc<Reader>> = Vec::new();
    let mut parent: Option<(Metadata, crate::formats::archive::Digest)> = None;
    for id in 1..=4u8 {
        match id {
            3 => disk.resize((2 * 65_536 + 5) * BLOCK + 512),
            4 => disk.resize(count * BLOCK),
            _ => {}
        }
        let blocks = disk.blocks.len();
        for at in 0..26_000 {
            // A quarter of the blocks lies close together: lists, bits and runs of numbers.
            let dense = at % 4 == 0;
            let block = random.usize(..if dense { 9_000 } else { blocks });
            disk.write(block, if random.u8(..8) == 0 { 0 } else { 2 * random.u32(1..900) });
        }
        let kind = if id == 1 { Kind::Full } else { Kind::Incremental };
        let link = parent.as_ref().map(|(metadata, root)| (metadata, *root));
        let mut metadata = metadata(id, kind, disk.geometry, link);
        metadata.frame_blocks = if id % 2 == 0 { 1 } else { 16 };
        let bytes = archive(&metadata, &before, &disk);
        let reader = Reader::open(Bytes::store(&metadata.point, &bytes)).unwrap();
        reader.check_index().unwrap();
        assert!(reader.stored().len() > 17_000, "a list of them has more than 33 KiB");
        archives.push(Arc::new(reader));
        parent = Some((metadata, disk.root()));
        before = disk.clone();
    }
    let chain = Chain::new(archives).unwrap();
    let mut cursor = chain.cursor();
    let mut root = RootHasher::new(disk.geometry);
    let mut states = Vec::new();
    for group in (0..disk.geometry.group_count()).map(GroupIndex) {
        let state = cursor.seek(group).unwrap();
        root.push(state.group_digest());
        if group.0 % 9 == 0 || group.0 > 126 {
            check_group(&chain, state, &disk);
        }
        states.push(state.clone());
    }
    assert_eq!(root.finish(), disk.root());
    let mut order: Vec<GroupIndex> = (0..disk.geometry.group_count()).map(GroupIndex).collect();
    random.shuffle(&mut order);
    ask_from_threads(&chain, &order, |state| {
        assert!(*state == states[state.group().0 as usize], "group {}", state.group().0);
    });
    let nonzero = chain.nonzero().unwrap();
    for (block, content) in (0..).zip(&disk.blocks) {
        assert_eq!(nonzero.contains(block), content.seed != 0, "block {block}");
    }
}

fn three_points() -> History {
    let write = |place, seed| Change::Write { place, count: 3, seed };
    History::new(&[write(0, 2)], &[(vec![write(100, 5)], false), (vec![write(60_000, 8)], false)])
}

#[test]
fn archives_in_the_wrong_order_or_of_another_chain_are_named() {
    let history = three_points();
    let reader = |at: usize| Arc::clone(&history.points[at].3);
    let refuse = |archives: Vec<Arc<Reader>>| Chain::new(archives).unwrap_err();
    let name = |at: usize| history.points[at].0.point.clone();
    for (archives, first, second) in [
        (vec![reader(0), reader(2)], 2, 0),
        (vec![reader(0), reader(2), reader(1)], 2, 0),
        (vec![reader(0), reader(1), reader(1)], 1, 1),
        (vec![reader(0), reader(0)], 0, 0),
    ] {
        let error = refuse(archives);
        assert_eq!(error.kind(), ErrorKind::Damaged);
        let text = error.chain();
        assert!(
            text.contains(&format!("{} does not follow {}", name(first), name(second))),
            "{text}"
        );
    }
    let text = refuse(vec![reader(1), reader(2)]).chain();
    assert!(text.contains(&format!("needs the archive of point {}", name(0))), "{text}");
    assert_eq!(refuse(vec![]).kind(), ErrorKind::Usage);
}

/// Same ids, other content: only the root tells.
/// A link names a point and no file: an archive can take another's place, a first point may be made
/// against a template's, and nothing else of the same root is ever taken for the parent.
#[test]
fn whatever_holds_the_point_of_the_link_is_the_parent() {
    let mut before = Disk::new(100 * BLOCK, BLOCK as u32);
    let empty = before.clone();
    before.write(3, 8);
    let mut now = before.clone();
    now.write(5, 9);
    let template = Metadata {
        domain: "template".into(),
        disk: "system".into(),
        ..metadata(1, Kind::Full, before.geometry, None)
    };
    let child = metadata(2, Kind::Incremental, now.geometry, Some((&template, before.root())));
    let child = archive(&child, &before, &now);
    let chain = |below: &Metadata| {
        let files = [archive(below, &empty, &before), child.clone()];
        let open = |bytes: &Vec<u8>| Arc::new(Reader::open(Bytes::store("a", bytes)).unwrap());
        Chain::new(files.iter().map(open).collect())
    };
    let merged = Metadata { archive_id: ArchiveId([9; 16]), ..template.clone() };
    for parent in [&template, &merged] {
        assert_eq!(chain(parent).unwrap().root(), now.root());
    }
    let other_guest = Metadata { domain: "web".into(), ..template.clone() };
    let other_disk = Metadata { disk: "data".into(), ..template.clone() };
    let other_point = Metadata { point: "20261122T153899.999Z".into(), ..template.clone() };
    for parent in [&other_guest, &other_disk, &other_point] {
        let error = chain(parent).unwrap_err();
        assert!(error.chain().contains("does not follow"), "{}", error.chain());
    }
}

#[test]
fn a_parent_with_another_root_is_refused() {
    let history = three_points();
    let other = History::new(&[Change::Write { place: 0, count: 3, seed: 77 }], &[]);
    let error = Chain::new(vec![Arc::clone(&other.points[0].3), Arc::clone(&history.points[1].3)])
        .unwrap_err();
    assert!(error.chain().contains("made against the root"), "{}", error.chain());
}

/// A damaged digest would make a backup take changed blocks for unchanged ones.
#[test]
fn damaged_digests_are_found_before_they_are_used() {
    let history = three_points();
    let (meta, disk, _, reader) = &history.points[0];
    let empty = Disk::new(disk.geometry.virtual_size(), BLOCK as u32);
    let mut bytes = archive(meta, &empty, disk);
    bytes[reader.index_offset() as usize + 16 * reader.frame_count() as usize] ^= 1;
    let damaged = Reader::open(Bytes::store("damaged.qdelta", &bytes)).unwrap();
    let chain = Chain::new(vec![Arc::new(damaged), Arc::clone(&history.points[1].3)]).unwrap();
    let error = chain.cursor().seek(GroupIndex(0)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    let text = error.chain();
    assert!(text.contains("group 0") && text.contains("damaged.qdelta"), "{text}");
}

/// What one chain after the other says of each point.
fn proved_alone(history: &History, readers: &[Arc<Reader>]) -> Vec<bool> {
    let is_proved = |point: usize| {
        let mut archives = Vec::new();
        let mut next = Some(point);
        while let Some(at) = next {
            archives.push(Arc::clone(&readers[at]));
            next = history.points[at].2;
        }
        archives.reverse();
        let chain = Chain::new(archives).unwrap();
        let mut root = RootHasher::new(chain.geometry());
        let mut cursor = chain.cursor();
        for group in 0..chain.geometry().group_count() {
            let Ok(state) = cursor.seek(GroupIndex(group)) else { return false };
            root.push(state.group_digest());
        }
        root.finish() == chain.root()
    };
    (0..readers.len()).map(is_proved).collect()
}

fn proved_together(history: &History, readers: &[Arc<Reader>]) -> Vec<bool> {
    let mut forest = Forest::default();
    for (reader, (_, _, parent, _)) in readers.iter().zip(&history.points) {
        forest.add(Arc::clone(reader), *parent, true).unwrap();
    }
    let problems = forest.prove(|| {}, &Cancel::default()).unwrap();
    problems.iter().map(Option::is_none).collect()
}

proptest! {
    /// All points at once are found as each by itself is: sound, and with a digest that was changed
    /// in any of their archives.
    #[test]
    fn a_forest_says_of_each_point_what_its_chain_says(
        first in prop::collection::vec(change(), 0..6),
        steps in prop::collection::vec(
            (prop::collection::vec(change(), 0..5), prop::bool::weighted(0.25)), 0..8),
        archive in any::<prop::sample::Index>(),
        digest in any::<prop::sample::Index>(),
    ) {
        let history = History::new(&first, &steps);
        let mut readers: Vec<_> = history.points.iter().map(|it| Arc::clone(&it.3)).collect();
        prop_assert!(proved_together(&history, &readers).into_iter().all(|sound| sound));
        let archive = archive.index(readers.len());
        let (metadata, disk, parent, reader) = &history.points[archive];
        let empty = Disk::new(disk.geometry.virtual_size(), BLOCK as u32);
        let before = parent.map_or(&empty, |parent| &history.points[parent].1);
        let mut bytes = crate::vault::archive::testing::archive(metadata, before, disk);
        let stored = reader.stored().len() as usize;
        let digests = stored + reader.groups().len() as usize;
        prop_assume!(digests > 0);
        let at = reader.index_offset() as usize + 16 * reader.frame_count() as usize;
        bytes[at + 32 * digest.index(digests)] ^= 1;
        readers[archive] = Arc::new(Reader::open(Bytes::store("damaged.qdelta", &bytes)).unwrap());
        let alone = proved_alone(&history, &readers);
        prop_assert!(!alone[archive]);
        prop_assert_eq!(proved_together(&history, &readers), alone);
    }
}
