//! Writing alone, with the sync at the end: as archives are written, and as restored disks are.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use crate::base::cancel::Cancel;
use crate::base::error::{Error, Result};
use crate::disk::flow::pipeline::Resources;
use crate::disk::io::{
    Direct, Direction, EarlyWriteback, FileStore, Pool, Queue, Segment, Store, Transfer,
    open_direct,
};
use crate::flows::report::{Cached, Stage, StageReport};

/// What each variant writes at most, in bytes, and in how long pieces.
const BYTES_MAX: u64 = 256 << 20;
const PIECE: usize = 1 << 20;
/// Writes at once past the page cache.
const DEPTHS: [usize; 3] = [1, 4, 8];

pub(super) fn measure(
    folder: &Path,
    bytes: u64,
    resources: &Resources,
    cancel: &Cancel,
) -> Result<Vec<StageReport>> {
    let bytes = bytes.min(BYTES_MAX).next_multiple_of(PIECE as u64);
    let stage = |cache, depth, rate| StageReport {
        stage: Stage::Write,
        cache: Some(cache),
        size: Some(PIECE),
        depth: Some(depth),
        threads: None,
        level: None,
        ratio: None,
        rate,
    };
    let mut stages = vec![stage(Cached::Buffered, 1, buffered(folder, bytes, cancel)?)];
    for depth in DEPTHS {
        if let Some(rate) = direct(folder, bytes, depth, resources, cancel)? {
            stages.push(stage(Cached::Direct, depth, rate));
        }
    }
    Ok(stages)
}

/// A file without a name: it is gone when it is closed.
fn scratch(folder: &Path) -> Result<File> {
    tempfile::tempfile_in(folder).map_err(|error| Error::io("write to", folder, error))
}

/// Bytes that no device or filesystem makes fewer of.
fn fill(bytes: &mut [u8], seed: u64) {
    let mut state = seed | 1;
    for chunk in bytes.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes());
    }
}

fn buffered(folder: &Path, bytes: u64, cancel: &Cancel) -> Result<f64> {
    let failed = |error| Error::io("write to", folder, error);
    let file = scratch(folder)?;
    let mut sink = EarlyWriteback::new(file.try_clone().map_err(failed)?);
    let mut piece = vec![0; PIECE];
    fill(&mut piece, 1);
    let started = Instant::now();
    for _ in 0..bytes / PIECE as u64 {
        cancel.check()?;
        sink.write_all(&piece).map_err(failed)?;
    }
    file.sync_all().map_err(failed)?;
    Ok(bytes as f64 / started.elapsed().as_secs_f64())
}

/// Nothing where the filesystem has no O_DIRECT.
fn direct(
    folder: &Path,
    bytes: u64,
    depth: usize,
    resources: &Resources,
    cancel: &Cancel,
) -> Result<Option<f64>> {
    let failed = |error| Error::io("write to", folder, error);
    let file = scratch(folder)?;
    file.set_len(bytes).map_err(failed)?;
    let store: Arc<dyn Store> = Arc::new(FileStore::new(file, folder));
    let Ok(files) = open_direct(vec![Arc::clone(&store)], Direct::On) else {
        return Ok(None);
    };
    let pool = Pool::new(depth, PIECE)?;
    let mut ready: Vec<_> = (0..depth).map(|_| pool.take()).collect();
    for (buffer, seed) in ready.iter_mut().zip(1..) {
        fill(buffer, seed);
    }
    let mut queue = Queue::open(resources.backend, depth, files, &pool)?;
    let started = Instant::now();
    let mut offset = 0;
    loop {
        cancel.check()?;
        while offset < bytes
            && let Some(buffer) = ready.pop()
        {
            let segments = vec![Segment { file: 0, offset, range: 0..PIECE }];
            queue.push(Transfer { token: 0, buffer, segments, direction: Direction::Write });
            offset += PIECE as u64;
        }
        if queue.pending() == 0 {
            break;
        }
        let done = queue.wait()?;
        done.result?;
        ready.push(done.buffer);
    }
    store.sync().map_err(failed)?;
    Ok(Some(bytes as f64 / started.elapsed().as_secs_f64()))
}
