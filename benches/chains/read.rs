//! Random reads of a point: 4 KiB at a time, by one thread.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use qdelta::{Content, PointReader, Repository, Selector, open_point};

use crate::generate::{Generator, Outcome, Shape};

/// Bytes of a read.
const LEN: u64 = 4096;
/// How long each kind of read goes on.
const DURATION: Duration = Duration::from_secs(2);
/// How often a reader is opened for one kind of read.
const ROUNDS: u32 = 20;

/// Time on the wall and time of the processor that some work took.
#[derive(Clone, Copy, Default)]
struct Cost {
    wall: Duration,
    processor: Duration,
    times: u32,
}

impl Cost {
    /// Adds what the work takes, which does something so many times.
    fn add<T>(&mut self, work: impl FnOnce() -> Outcome<(T, u32)>) -> Outcome<T> {
        let (started, before) = (Instant::now(), processor_time()?);
        let (result, times) = work()?;
        self.wall += started.elapsed();
        self.processor += processor_time()?.saturating_sub(before);
        self.times += times;
        Ok(result)
    }

    /// Prints a line of the table.
    fn print(&self, archives: u64, name: &str) {
        let each = |time: Duration| time.as_secs_f64() * 1e6 / f64::from(self.times.max(1));
        let (wall, processor) = (each(self.wall), each(self.processor));
        println!("{archives:>8} {name:<16} {:>9} {wall:>11.2} {processor:>11.2}", self.times);
    }
}

/// Reads from chains of so many increments, and only what some archive stores: a hole costs nearly
/// nothing. *Cold*: the reader is new and the archives are not in the page cache. *Cached*: the
/// reader is new and the archives are in the page cache. *Warm*: the same place was read before.
pub fn measure(folder: &Path, counts: Vec<u64>) -> Outcome<()> {
    let counts = if counts.is_empty() { vec![0, 99, 199] } else { counts };
    println!(
        "{:>8} {:<16} {:>9} {:>11} {:>11}",
        "archives", "what", "times", "us each", "processor"
    );
    for count in counts {
        let root = folder.join(format!("repository-{count}"));
        let mut generator = Generator::new(&root, "web", Shape::READ)?;
        while generator.points() <= count {
            generator.add()?;
        }
        measure_chain(&root, count + 1)?;
    }
    Ok(())
}

/// Measures all kinds of reads of one chain.
fn measure_chain(root: &Path, archives: u64) -> Outcome<()> {
    for (name, drop_cache) in [("cold", true), ("cached", false)] {
        // Each place is read once: what a reader keeps does not help.
        let (mut opening, mut reading) = (Cost::default(), Cost::default());
        let mut random = fastrand::Rng::with_seed(1);
        while reading.wall < DURATION && opening.times < ROUNDS {
            if drop_cache {
                forget(&root.join("web/vda"))?;
            }
            let reader = opening.add(|| Ok((open(root)?, 1)))?;
            let mut places = stored(&reader)?;
            random.shuffle(&mut places);
            places.truncate(1000);
            reading.add(|| {
                for place in &places {
                    read(&reader, place + LEN * random.u64(0..16))?;
                }
                Ok(((), places.len() as u32))
            })?;
        }
        opening.print(archives, &format!("open, {name}"));
        reading.print(archives, &format!("read, {name}"));
    }
    let reader = open(root)?;
    // A reader keeps more than these.
    let places: Vec<u64> = stored(&reader)?.into_iter().take(64).collect();
    places.iter().try_for_each(|place| read(&reader, *place))?;
    let (mut random, mut reading) = (fastrand::Rng::with_seed(2), Cost::default());
    while reading.wall < DURATION {
        reading.add(|| {
            for _ in 0..100_000 {
                read(&reader, places[random.usize(0..places.len())] + LEN * random.u64(0..16))?;
            }
            Ok(((), 100_000))
        })?;
    }
    reading.print(archives, "read, warm");
    Ok(())
}

fn open(root: &Path) -> Outcome<PointReader> {
    let repository = Repository::open(root)?;
    let catalog = repository.catalog();
    let disk = catalog.find_disk(&"web/vda".parse()?)?;
    let point = catalog.resolve(&disk, &Selector::Latest)?;
    Ok(open_point(&catalog, &point)?)
}

/// Where the blocks are that some archive stores.
fn stored(reader: &PointReader) -> Outcome<Vec<u64>> {
    let runs = reader.extents(0..reader.size(), usize::MAX)?;
    let data = runs.into_iter().filter(|run| run.content == Content::Data);
    Ok(data.flat_map(|run| run.range.step_by(Shape::READ.block_size as usize)).collect())
}

/// The time that this thread has had a processor.
fn processor_time() -> Outcome<Duration> {
    let text = fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds = text.split_whitespace().next().ok_or("the kernel counts no time")?;
    Ok(Duration::from_nanos(nanoseconds.parse()?))
}

fn read(reader: &PointReader, offset: u64) -> Outcome<()> {
    let mut bytes = [0; LEN as usize];
    if reader.read(&mut bytes, offset)? != bytes.len() {
        return Err("a read was short".into());
    }
    Ok(())
}

/// Asks the kernel to drop the archives from the page cache.
fn forget(folder: &Path) -> Outcome<()> {
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(folder)? {
        paths.push(entry?.path());
    }
    for path in paths {
        let file = File::open(path)?;
        file.sync_all()?;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    }
    Ok(())
}
