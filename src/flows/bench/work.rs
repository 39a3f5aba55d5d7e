//! What the processors do, each alone: on one thread, and on all at once.

use std::time::{Duration, Instant};

use qdelta_formats::archive::{Codec, block_digest, frame_blocks};

use super::BenchRequest;
use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::flows::report::{Stage, StageReport};
use crate::vault::codec::Compressor;
use crate::vault::frames::pack::is_zero;

/// The levels that are compared, besides the one of the data path.
const LEVELS: [i32; 5] = [-5, -1, 1, 3, 7];
/// How long one variant runs at least: the blocks are gone through as often as that takes.
const TIME_MIN: Duration = Duration::from_millis(300);
/// How often each piece is worked on at least. Its best time counts: whatever else the machine does
/// interrupts some rounds, and hardly all of them.
const ROUNDS_MIN: u32 = 3;

pub(super) fn measure(
    bytes: &[u8],
    block_size: u32,
    request: &BenchRequest,
    cancel: &Cancel,
) -> Result<Vec<StageReport>> {
    let all = request.resources.workers();
    let frame = frame_blocks(block_size) as usize * block_size as usize;
    let mut levels = LEVELS.to_vec();
    if !levels.contains(&request.level) {
        levels.push(request.level);
        levels.sort_unstable();
    }
    let mut counts = vec![1];
    if all > 1 {
        counts.push(all);
    }
    let mut stages = Vec::new();
    for threads in counts {
        let stage = |stage, level, ratio, rate| StageReport {
            stage,
            cache: None,
            size: None,
            depth: None,
            threads: Some(threads),
            level,
            ratio,
            rate,
        };
        cancel.check()?;
        // All of it is looked at, as of a disk of zeros: what is not zero is left at once.
        let zeros = vec![0; frame];
        let (rate, _) = on_threads(threads, bytes, frame, || {
            Ok(|_: &[u8]| Ok(usize::from(is_zero(std::hint::black_box(&zeros)))))
        })?;
        stages.push(stage(Stage::ZeroScan, None, None, rate));
        let (rate, _) = on_threads(threads, bytes, block_size as usize, || {
            Ok(|block: &[u8]| Ok(usize::from(std::hint::black_box(block_digest(block)).0[0])))
        })?;
        stages.push(stage(Stage::Hash, None, None, rate));
        for &level in &levels {
            cancel.check()?;
            let (rate, stored) = on_threads(threads, bytes, frame, || {
                let mut compressor = Compressor::new(level)?;
                let mut out = Vec::new();
                Ok(move |raw: &[u8]| match compressor.compress(raw, &mut out)? {
                    Codec::Stored => Ok(raw.len()),
                    Codec::Zstd => Ok(out.len()),
                })
            })?;
            let ratio = bytes.len() as f64 / stored.max(1) as f64;
            stages.push(stage(Stage::Compress, Some(level), Some(ratio), rate));
        }
    }
    Ok(stages)
}

/// Has every thread go through all of `bytes` in pieces, for a while. Gives the bytes a second of
/// all together, and the sum of what the work gave for `bytes` once.
fn on_threads<W>(
    threads: usize,
    bytes: &[u8],
    piece: usize,
    make: impl Fn() -> Result<W> + Sync,
) -> Result<(f64, usize)>
where
    W: FnMut(&[u8]) -> Result<usize>,
{
    let one = || -> Result<(f64, usize)> {
        let mut work = make()?;
        let mut best = vec![Duration::MAX; bytes.len().div_ceil(piece)];
        let (mut rounds, mut sum) = (0, 0);
        let started = Instant::now();
        while rounds < ROUNDS_MIN || started.elapsed() < TIME_MIN {
            sum = 0;
            for (piece, best) in bytes.chunks(piece).zip(&mut best) {
                let begun = Instant::now();
                sum += work(piece)?;
                *best = begun.elapsed().min(*best);
            }
            rounds += 1;
        }
        let seconds = best.iter().sum::<Duration>().as_secs_f64();
        Ok((bytes.len() as f64 / seconds.max(1e-9), sum))
    };
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(one)).collect();
        let (mut rate, mut sum) = (0.0, 0);
        for thread in running {
            let panicked = |_| Error::new(ErrorKind::Io, "internal error: a thread panicked");
            let (more, once) = thread.join().map_err(panicked)??;
            rate += more;
            sum = once;
        }
        Ok((rate, sum))
    })
}
