#![no_main]
//! A random life of a disk as a chain of archives, against the simplest model: what the chain says
//! of each block is what the block was.

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use qdelta::formats::archive::{Digest, GROUP_BLOCKS, GroupIndex, Kind, Metadata};
use qdelta::vault::archive::Reader;
use qdelta::vault::chain::{Chain, Owner};
use qdelta::vault::codec::Decompressor;

mod model;
use model::{BLOCK, Bytes, Disk, archive, digests, metadata};

/// Points of one life.
const POINTS_MAX: u8 = 6;

/// What the fuzzer chose, byte by byte; zeros when it is used up.
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// A number of blocks: two groups and a bit at most, mostly near the edge of the first.
    fn blocks(&mut self) -> usize {
        match self.byte() {
            few @ 0..128 => usize::from(few),
            near @ 128..192 => GROUP_BLOCKS as usize - 32 + usize::from(near - 128),
            far => 1900 + 5 * usize::from(far - 192),
        }
    }
}

thread_local! {
    static DIGESTS: Box<[Digest; 256]> = digests();
}

fuzz_target!(|data: &[u8]| DIGESTS.with(|digests| live(&mut Choices(data), digests)));

fn live(choices: &mut Choices<'_>, digests: &[Digest; 256]) {
    let mut disk = Disk(vec![0; choices.blocks()]);
    change(choices, &mut disk);
    let full = metadata(1, Kind::Full, &disk, None);
    let empty = Disk(vec![0; disk.0.len()]);
    let mut chain = vec![(archive(&full, &empty, &disk, digests), full, disk.clone())];
    check(&chain, digests);
    for id in 2..=POINTS_MAX {
        if choices.0.is_empty() {
            break;
        }
        // A differential follows the full; what came between no longer counts.
        let kind = if choices.byte() % 4 == 0 { Kind::Differential } else { Kind::Incremental };
        change(choices, &mut disk);
        let parent = if kind == Kind::Differential { &chain[0] } else { &chain[chain.len() - 1] };
        let metadata = metadata(id, kind, &disk, Some((&parent.1, parent.2.root(digests))));
        let bytes = archive(&metadata, &parent.2, &disk, digests);
        if kind == Kind::Differential {
            chain.truncate(1);
        }
        chain.push((bytes, metadata, disk.clone()));
        check(&chain, digests);
    }
}

fn change(choices: &mut Choices<'_>, disk: &mut Disk) {
    if choices.byte() % 4 == 0 {
        disk.0.resize(choices.blocks(), 0);
    }
    for _ in 0..choices.byte() % 6 {
        let start = choices.blocks().min(disk.0.len());
        let end = (start + usize::from(choices.byte())).min(disk.0.len());
        let fill = choices.byte();
        disk.0[start..end].fill(fill);
    }
}

fn check(chain: &[(Vec<u8>, Metadata, Disk)], digests: &[Digest; 256]) {
    let open = |bytes: &Vec<u8>| {
        Arc::new(Reader::open(Arc::new(Bytes(bytes.clone()))).expect("a sound archive"))
    };
    let readers: Vec<_> = chain.iter().map(|(bytes, ..)| open(bytes)).collect();
    for reader in &readers {
        reader.check_index().expect("a sound index");
    }
    let (.., disk) = chain.last().expect("not empty");
    let chain = Chain::new(readers).expect("a sound chain");
    assert_eq!(chain.geometry(), disk.geometry());
    assert_eq!(chain.root(), disk.root(digests));
    let mut cursor = chain.cursor();
    let mut decompressor = Decompressor::new().expect("a decompressor");
    let mut buffer = Vec::new();
    for group in 0..disk.geometry().group_count() {
        let state = cursor.seek(GroupIndex(group)).expect("a sound group").clone();
        let first = (group * GROUP_BLOCKS) as usize;
        for index in 0..GROUP_BLOCKS as usize {
            let fill = disk.at(first + index);
            assert_eq!(state.digest(index), digests[usize::from(fill)], "block {}", first + index);
            assert_eq!(state.owner(index) == Owner::Zero, fill == 0, "block {}", first + index);
        }
        assert_eq!(state.group_digest(), disk.group_digest(group as usize, digests));
        for frame in state.frames() {
            let reader = &chain.archives()[frame.archive];
            let view =
                reader.read_frame(&frame.entry, frame.mask, &mut buffer).expect("a sound frame");
            let mut raw = vec![0; view.header.raw_len()];
            decompressor
                .decompress(view.header.codec, view.payload, &mut raw)
                .expect("a sound payload");
            for (block, bytes) in view.header.blocks().zip(raw.chunks_exact(BLOCK)) {
                let index = block as usize - first;
                if state.owner(index) == Owner::Archive(frame.archive) {
                    assert_eq!(bytes, [disk.at(block as usize); BLOCK], "block {block}");
                }
            }
        }
    }
}
