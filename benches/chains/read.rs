//! Random reads of a point: 4 KiB at a time, by one thread.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use qdelta::{PointReader, Repository, Selector, open_point};

use crate::generate::{Generator, Outcome, Shape};

/// Bytes of a read.
const LEN: usize = 4096;
/// How long each kind of read goes on.
const DURATION: Duration = Duration::from_secs(2);

/// Reads from chains of so many increments. *Cold*: the reader is new and the archives are not in the
/// page cache. *Reader cold*: the reader is new and the archives are cached. *Warm*: the same place was read before.
pub fn measure(folder: &Path, counts: Vec<u64>) -> Outcome<()> {
    let counts = if counts.is_empty() { vec![0, 99] } else { counts };
    let root = folder.join("repository");
    let mut generator = Generator::new(&root, "web", Shape::LINEAR)?;
    println!("{:>8} {:>9} {:>12} {:>11}", "archives", "open ms", "reads", "us/read");
    for count in counts {
        while generator.points() <= count {
            generator.add()?;
        }
        let open = || -> Outcome<PointReader> {
            let repository = Repository::open(&root)?;
            let catalog = repository.catalog();
            let disk = catalog.find_disk(&"web/vda".parse()?)?;
            let point = catalog.resolve(&disk, &Selector::Latest)?;
            Ok(open_point(&catalog, &point)?)
        };
        for (name, drop_cache) in [("cold", true), ("reader cold", false)] {
            // Each place is read once: what a reader keeps does not help.
            let (mut reads, mut spent, mut opening) = (0_u32, Duration::ZERO, Duration::ZERO);
            let mut random = fastrand::Rng::with_seed(1);
            let mut rounds = 0;
            while spent < DURATION && rounds < 20 {
                if drop_cache {
                    forget(&root.join("web/vda"))?;
                }
                let started = Instant::now();
                let reader = open()?;
                opening += started.elapsed();
                rounds += 1;
                let mut places: Vec<u64> = (0..reader.size() / (64 << 10)).collect();
                random.shuffle(&mut places);
                let started = Instant::now();
                for place in places.into_iter().take(1000) {
                    read(&reader, place * (64 << 10) + 4096 * random.u64(0..16))?;
                    reads += 1;
                }
                spent += started.elapsed();
            }
            let opening = opening.as_secs_f64() * 1000.0 / f64::from(rounds);
            let each = spent.as_secs_f64() * 1e6 / f64::from(reads);
            println!("{:>8} {opening:>9.2} {name:>12} {each:>11.2}", count + 1);
        }
        let reader = open()?;
        // What a reader keeps is more than this.
        let few = (4 << 20) / LEN as u64;
        (0..few).try_for_each(|place| read(&reader, place * LEN as u64))?;
        let mut random = fastrand::Rng::with_seed(2);
        let (started, mut reads) = (Instant::now(), 0_u64);
        while started.elapsed() < DURATION {
            read(&reader, random.u64(0..few) * LEN as u64)?;
            reads += 1;
        }
        let each = started.elapsed().as_secs_f64() * 1e6 / reads as f64;
        println!("{:>8} {:>9} {:>12} {each:>11.2}", count + 1, "", "warm");
    }
    Ok(())
}

fn read(reader: &PointReader, offset: u64) -> Outcome<()> {
    let mut bytes = [0; LEN];
    if reader.read(&mut bytes, offset)? != LEN {
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
