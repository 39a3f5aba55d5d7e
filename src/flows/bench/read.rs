//! Reading alone: by the length of an operation, how many are in flight, and the page cache.

use std::time::Instant;

use super::sample::Sample;
use crate::base::cancel::Cancel;
use crate::base::error::Result;
use crate::disk::flow::pipeline::Resources;
use crate::disk::image::Image;
use crate::disk::io::{Backend, Direct, Direction, Pool, Queue, Segment, Transfer, open_direct};
use crate::flows::report::{Cached, Stage, StageReport};

/// Bytes of an operation.
const SIZES: [usize; 3] = [64 << 10, 256 << 10, 1 << 20];
/// Operations at once.
const DEPTHS: [usize; 4] = [1, 4, 16, 64];
/// What one variant reads, in bytes, and in seconds: whichever ends it first.
const BYTES_MAX: u64 = 256 << 20;
const SECONDS_MAX: f64 = 1.5;

pub(super) struct Reads {
    pub stages: Vec<StageReport>,
    pub backend: Backend,
}

pub(super) fn measure(
    image: &Image,
    sample: &Sample,
    resources: &Resources,
    cancel: &Cancel,
) -> Result<Reads> {
    let mut reads = Reads { stages: Vec::new(), backend: resources.backend };
    for cache in [Cached::Direct, Cached::Uncached, Cached::Cached] {
        for size in SIZES {
            let pieces = sample.pieces(size);
            for depth in DEPTHS {
                match cache {
                    Cached::Uncached => sample.chill(image),
                    Cached::Cached => sample.warm(image, cancel)?,
                    _ => {}
                }
                let direct = if cache == Cached::Direct { Direct::On } else { Direct::Off };
                // A filesystem without O_DIRECT has no such line.
                let Ok(files) = open_direct(image.files().to_vec(), direct) else {
                    continue;
                };
                let pool = Pool::new(depth, size)?;
                let mut queue = Queue::open(resources.backend, depth, files, &pool)?;
                reads.backend = queue.backend();
                let rate = read(&pieces, &pool, &mut queue, cancel)?;
                let (size, depth) = (Some(size), Some(depth));
                reads.stages.push(StageReport {
                    stage: Stage::Read,
                    cache: Some(cache),
                    size,
                    depth,
                    threads: None,
                    level: None,
                    ratio: None,
                    rate,
                });
            }
        }
    }
    Ok(reads)
}

/// Reads the pieces once, or as many as the limits allow; gives bytes a second.
fn read(pieces: &[Segment], pool: &Pool, queue: &mut Queue, cancel: &Cancel) -> Result<f64> {
    let started = Instant::now();
    let mut bytes = 0;
    let mut left = pieces.iter();
    loop {
        cancel.check()?;
        let over = bytes >= BYTES_MAX || started.elapsed().as_secs_f64() >= SECONDS_MAX;
        while !over
            && let Some(buffer) = pool.try_take()
            && let Some(piece) = left.next()
        {
            bytes += piece.range.len() as u64;
            let segments = vec![piece.clone()];
            queue.push(Transfer { token: 0, buffer, segments, direction: Direction::Read });
        }
        if queue.pending() == 0 {
            return Ok(bytes as f64 / started.elapsed().as_secs_f64());
        }
        queue.wait()?.result?;
    }
}
