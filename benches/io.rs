//! How fast the I/O queue reads one large file and writes a new one, by engine, cache, size and
//! depth, and what processor time it takes. Writing includes the sync at the end. `cargo bench --bench io [-- DIRECTORY [MIB]]` prints a table; the file
//! is made in the directory (the current one) and removed again.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use qdelta::disk::io::{Backend, Direction, FileStore, Pool, Queue, Segment, Store, Transfer};
use rustix::fs::{Advice, OFlags};

/// How often each case runs; the best run counts.
const RUNS: usize = 3;

#[derive(Clone, Copy, PartialEq)]
enum Cache {
    Hot,
    Cold,
    Direct,
}

struct Case {
    direction: Direction,
    backend: Backend,
    cache: Cache,
    /// Bytes of a segment.
    segment: usize,
    /// Bytes of a buffer.
    buffer: usize,
    depth: usize,
    random: bool,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1).filter(|it| !it.starts_with("--"));
    let directory = PathBuf::from(arguments.next().unwrap_or_else(|| ".".into()));
    let size = arguments.next().map_or(Ok(1024), |it| it.parse())? << 20;
    let path = directory.join("qdelta-bench-io.tmp");
    let result = make(&path, size).and_then(|()| measure(&path, size));
    std::fs::remove_file(&path)?;
    result
}

fn make(path: &Path, size: u64) -> Result<(), Box<dyn std::error::Error>> {
    let mut file = File::create(path)?;
    let mut state = 1_u64;
    let mut bytes = vec![0; 1 << 20];
    for _ in 0..size >> 20 {
        for chunk in bytes.chunks_exact_mut(8) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            chunk.copy_from_slice(&state.to_le_bytes());
        }
        file.write_all(&bytes)?;
    }
    Ok(file.sync_all()?)
}

fn measure(path: &Path, size: u64) -> Result<(), Box<dyn std::error::Error>> {
    println!("         engine   cache   segment   buffer depth order       MB/s  CPU s");
    for cache in [Cache::Hot, Cache::Cold, Cache::Direct] {
        for (segment, buffer, depth, random) in [
            (64 << 10, 64 << 10, 32, true),
            (64 << 10, 1 << 20, 32, true),
            (1 << 20, 1 << 20, 8, false),
            (1 << 20, 1 << 20, 32, false),
        ] {
            let direction = Direction::Read;
            for backend in [Backend::Uring, Backend::Threads] {
                report(
                    &Case { direction, backend, cache, segment, buffer, depth, random },
                    path,
                    size,
                )?;
            }
        }
    }
    for cache in [Cache::Hot, Cache::Direct] {
        for depth in [1, 2, 8, 32] {
            for backend in [Backend::Uring, Backend::Threads] {
                let (segment, buffer) = (1 << 20, 1 << 20);
                let (direction, random) = (Direction::Write, false);
                report(
                    &Case { direction, backend, cache, segment, buffer, depth, random },
                    path,
                    size,
                )?;
            }
        }
    }
    Ok(())
}

fn report(case: &Case, path: &Path, size: u64) -> Result<(), Box<dyn std::error::Error>> {
    let runs = (0..RUNS).map(|_| run(case, path, size)).collect::<Result<Vec<_>, _>>()?;
    let Some((time, cpu)) = runs.into_iter().min() else { return Ok(()) };
    let cache = match (case.cache, case.direction) {
        (Cache::Hot, Direction::Read) => "hot",
        (Cache::Hot, Direction::Write) => "cached",
        (Cache::Cold, _) => "cold",
        (Cache::Direct, _) => "direct",
    };
    println!(
        "{:<8} {:<8} {:<7} {:>4} KiB {:>4} KiB {:>5} {:<9} {:>6.0} {:>6.2}",
        if case.direction == Direction::Read { "read" } else { "write" },
        case.backend.as_str(),
        cache,
        case.segment >> 10,
        case.buffer >> 10,
        case.depth,
        if case.random { "random" } else { "ascending" },
        size as f64 / 1e6 / time.as_secs_f64(),
        cpu.as_secs_f64(),
    );
    Ok(())
}

/// Reads the whole file once, or writes a new one; gives the time that it took, and of the
/// processor.
fn run(
    case: &Case,
    path: &Path,
    size: u64,
) -> Result<(Duration, Duration), Box<dyn std::error::Error>> {
    let flags = if case.cache == Cache::Direct { OFlags::DIRECT } else { OFlags::empty() };
    let writes = case.direction == Direction::Write;
    if writes {
        File::create(path)?.set_len(size)?;
    }
    let mut options = File::options();
    let file = options.read(true).write(writes).custom_flags(flags.bits() as i32).open(path)?;
    if case.cache == Cache::Cold {
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
    }
    let store: Arc<dyn Store> = Arc::new(FileStore::new(file, path));
    let pool = Pool::new(64, case.buffer)?;
    // Where the ring is refused, the line shows the threads, and the reason stands above it.
    let backend = if case.backend == Backend::Uring { Backend::Auto } else { case.backend };
    let mut queue = Queue::open(backend, case.depth, vec![Arc::clone(&store)], &pool)?;
    if let Some(reason) = queue.fallback_reason() {
        eprintln!("{reason}");
    }
    // A step that shares no factor with a power of two visits every place once.
    let count = size / case.segment as u64;
    let place = |n: u64| if case.random { n * 7_919 % count } else { n } * case.segment as u64;
    let per_job = (case.buffer / case.segment) as u64;
    let (started, cpu) = (Instant::now(), processor_time()?);
    let mut next = 0;
    while next < count || queue.pending() > 0 {
        while next < count
            && let Some(buffer) = pool.try_take()
        {
            let segments = (0..per_job.min(count - next)).map(|index| {
                let start = index as usize * case.segment;
                let range = start..start + case.segment;
                Segment { file: 0, offset: place(next + index), range }
            });
            let segments: Vec<_> = segments.collect();
            queue.push(Transfer { token: next, buffer, segments, direction: case.direction });
            next += per_job;
        }
        queue.wait()?.result?;
    }
    if writes {
        store.sync()?;
    }
    Ok((started.elapsed(), processor_time()? - cpu))
}

/// What the process has used so far, in user and kernel mode.
fn processor_time() -> Result<Duration, Box<dyn std::error::Error>> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(')').ok_or("no process name")?;
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).flat_map(str::parse::<u64>).sum();
    Ok(Duration::from_millis(ticks * 10))
}
