//! The flow that measures this machine with this image: each stage of a backup alone, then the
//! whole data path, and which stage it is that limits it.

mod read;
mod sample;
mod work;
mod write;

use std::path::{Path, PathBuf};
use std::time::Instant;

use qdelta_formats::archive::{Geometry, frame_blocks};

use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::{Observer, Recorder};
use crate::disk::flow::pipeline::Resources;
use crate::disk::image::{Image, OpenOptions};
use crate::disk::io::{Direct, Opener};
use crate::flows::backup;
use crate::flows::report::{BenchReport, Cached, DataPathReport, Limit, Stage, StageReport};
use sample::Sample;

/// What to measure, and how.
#[derive(Debug, Clone)]
pub struct BenchRequest {
    /// The image. It is only read.
    pub image: PathBuf,
    /// How to open it.
    pub open: OpenOptions,
    /// The folder in which writing is measured, in a file without a name.
    pub folder: PathBuf,
    /// How much of the image's data to use, in bytes.
    pub bytes: u64,
    /// The zstd level of the whole data path.
    pub level: i32,
    /// Threads and I/O.
    pub resources: Resources,
}

/// Measures.
///
/// # Errors
/// The image has no data, or can't be read; the folder can't be written to.
pub fn run(
    request: &BenchRequest,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<BenchReport> {
    let started = Instant::now();
    let recorder = Recorder::new(observer);
    let observer: &dyn Observer = &recorder;
    let image = Image::open(&request.image, &request.open)?;
    let block_size = Geometry::BLOCK_SIZE_DEFAULT;
    let sample = Sample::new(&image, request.bytes, block_size)?;
    if sample.bytes == 0 {
        let what = format!("{}: there is no data to measure with", request.image.display());
        return Err(Error::new(ErrorKind::Usage, what));
    }
    observer.begin("bench", 4);
    let reads = read::measure(&image, &sample, &request.resources, cancel)?;
    let mut stages = reads.stages;
    observer.advance(1);
    let blocks = sample.load(&image, block_size)?;
    stages.extend(work::measure(&blocks, block_size, request, cancel)?);
    observer.advance(1);
    stages.extend(write::measure(&request.folder, sample.bytes, &request.resources, cancel)?);
    observer.advance(1);
    let mut pipelines = Vec::new();
    for cache in [Cached::Uncached, Cached::Cached] {
        pipelines.push(pipeline(&image, &sample, cache, &stages, request, observer, cancel)?);
    }
    observer.end();
    Ok(BenchReport {
        image: request.image.clone(),
        folder: request.folder.clone(),
        sample: sample.bytes,
        threads: request.resources.workers(),
        level: request.level,
        stages,
        pipelines,
        warnings: recorder.take(),
        io: reads.backend,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// Runs the whole data path over the sample, into a nameless file.
fn pipeline(
    image: &Image,
    sample: &Sample,
    cache: Cached,
    stages: &[StageReport],
    request: &BenchRequest,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<DataPathReport> {
    let mut resources = request.resources;
    if cache == Cached::Cached {
        // The run before may have left nothing in the cache.
        sample.warm(image, cancel)?;
        resources.direct = Direct::Off;
    } else {
        sample.chill(image);
    }
    let folder = &request.folder;
    let file =
        tempfile::tempfile_in(folder).map_err(|error| Error::io("write to", folder, error))?;
    let geometry = Geometry::new(sample.disk_size, Geometry::BLOCK_SIZE_DEFAULT)
        .map_err(|error| Error::new(ErrorKind::Usage, "the disk can't be cut").because(error))?;
    let (started, cpu) = (Instant::now(), processor_seconds());
    let trial = backup::Trial {
        image,
        geometry,
        frame_blocks: frame_blocks(geometry.block_size()),
        level: request.level,
        resources: &resources,
    };
    let stored = trial.run(file, folder, observer, cancel)?;
    let seconds = started.elapsed().as_secs_f64();
    let rate = sample.bytes as f64 / seconds;
    let ratio = sample.bytes as f64 / stored.max(1) as f64;
    let (limit, bound) = bound(stages, cache, request.level, ratio);
    Ok(DataPathReport {
        cache,
        rate,
        seconds,
        cpu_seconds: processor_seconds() - cpu,
        bound,
        limit,
        closeness: rate / bound,
    })
}

/// The slowest stage of the data path, and what it allows, in bytes of the image a second.
fn bound(stages: &[StageReport], cache: Cached, level: i32, ratio: f64) -> (Limit, f64) {
    let best = |fits: &dyn Fn(&&StageReport) -> bool| {
        stages.iter().filter(fits).map(|stage| stage.rate).fold(0.0, f64::max)
    };
    let read = best(&|stage| {
        stage.stage == Stage::Read
            && (stage.cache == Some(Cached::Cached)) == (cache == Cached::Cached)
    });
    let all = stages.iter().filter_map(|stage| stage.threads).max();
    let worker = |name: Stage| {
        best(&|stage| {
            stage.stage == name
                && stage.threads == all
                && stage.level.is_none_or(|other| other == level)
        })
    };
    // A worker does one after the other.
    let compute = 1.0
        / [Stage::ZeroScan, Stage::Hash, Stage::Compress]
            .map(|name| 1.0 / worker(name))
            .iter()
            .sum::<f64>();
    let write =
        best(&|stage| stage.stage == Stage::Write && stage.cache == Some(Cached::Buffered)) * ratio;
    [(Limit::Read, read), (Limit::Compute, compute), (Limit::Write, write)]
        .into_iter()
        .min_by(|one, other| one.1.total_cmp(&other.1))
        .unwrap_or((Limit::Read, read))
}

/// What the process has used so far, in user and kernel mode; 0 where nobody tells.
fn processor_seconds() -> f64 {
    let Ok(stat) = Opener::READ.read_text(Path::new("/proc/self/stat"), 64 << 10) else {
        return 0.0;
    };
    let Some((_, fields)) = stat.rsplit_once(')') else { return 0.0 };
    let ticks = fields.split_whitespace().skip(11).take(2).flat_map(str::parse::<u64>);
    // The kernel's USER_HZ is 100 for everyone.
    ticks.sum::<u64>() as f64 / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(stage: Stage, rate: f64) -> StageReport {
        StageReport {
            stage,
            cache: None,
            size: None,
            depth: None,
            threads: None,
            level: None,
            ratio: None,
            rate,
        }
    }

    #[test]
    fn the_slowest_stage_is_the_limit() {
        let stages = [
            StageReport { cache: Some(Cached::Cached), ..stage(Stage::Read, 4000.0) },
            StageReport { cache: Some(Cached::Direct), ..stage(Stage::Read, 500.0) },
            StageReport { cache: Some(Cached::Uncached), ..stage(Stage::Read, 300.0) },
            StageReport { threads: Some(2), ..stage(Stage::ZeroScan, 12_000.0) },
            StageReport { threads: Some(2), ..stage(Stage::Hash, 6000.0) },
            StageReport { threads: Some(2), level: Some(1), ..stage(Stage::Compress, 1000.0) },
            StageReport { threads: Some(2), level: Some(3), ..stage(Stage::Compress, 600.0) },
            StageReport { threads: Some(1), level: Some(1), ..stage(Stage::Compress, 9000.0) },
            StageReport { cache: Some(Cached::Buffered), ..stage(Stage::Write, 400.0) },
        ];
        assert_eq!(bound(&stages, Cached::Uncached, 1, 3.0), (Limit::Read, 500.0));
        let (limit, rate) = bound(&stages, Cached::Cached, 1, 3.0);
        assert_eq!((limit, rate.round()), (Limit::Compute, 800.0));
        assert_eq!(bound(&stages, Cached::Cached, 1, 1.5), (Limit::Write, 600.0));
        let (limit, rate) = bound(&stages, Cached::Cached, 3, 3.0);
        assert_eq!((limit, rate.round()), (Limit::Compute, 522.0));
    }

    #[test]
    fn processor_time_grows_with_work() {
        let before = processor_seconds();
        let mut sum = 0_u64;
        while processor_seconds() == before {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(sum > 0);
    }
}
