//! How time and memory follow the length of a chain. No image is needed: the chains are made by
//! `generate.rs`.
//!
//! ```text
//! cargo bench --bench chains -- linear [DIRECTORY [INCREMENTS...]]
//! cargo bench --bench chains -- corner [DIRECTORY [INCREMENTS...]]
//! cargo bench --bench chains -- read [DIRECTORY [INCREMENTS...]]
//! cargo bench --bench chains -- years [DIRECTORY [NIGHTS]]
//! cargo bench --bench chains -- make linear|corner FOLDER INCREMENTS
//! ```
//!
//! `linear` is a disk of 256 MiB with 100 to 1,600 increments of 16 blocks; `corner` a disk of
//! 16 TiB with 5, 10 and 20 increments of 1 % scattered blocks, which take 300 MB each. The tables
//! show time and peak memory of each command, and what a further increment adds. The repository is
//! made in a folder inside the directory (the current one) and removed again; `make` keeps it.
//!
//! `read` is random reads of 4 KiB by one thread through `PointReader`, from chains of 1, 100 and 200
//! archives of a disk of 256 MiB that is full of data: wall time and processor time of each.
//!
//! `years` is three guests of 32 MiB each with a backup every night for three years, pruned every night under
//! several policies: what merging writes and what is stored, each night, with all roots proved at 50 random
//! moments. The plot goes to standard output.
//!
//! `QDELTA` names another program to measure than the one built beside this bench.

mod generate;
mod read;
mod years;

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use generate::{Generator, Outcome, Shape};

/// How often a running program is asked for its memory.
const INTERVAL: Duration = Duration::from_millis(10);

fn main() -> Outcome<()> {
    let words: Vec<String> = std::env::args().skip(1).filter(|it| !it.starts_with("--")).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["make", shape, folder, increments] => {
            let mut generator = Generator::new(Path::new(folder), "web", shape_of(shape)?)?;
            grow(&mut generator, increments.parse()?)
        }
        [shape, rest @ ..] => {
            let directory = PathBuf::from(rest.first().copied().unwrap_or("."));
            let counts: Vec<u64> =
                rest.iter().skip(1).map(|it| it.parse()).collect::<Result<_, _>>()?;
            let folder = directory.join("qdelta-bench-chains.tmp");
            let result = match *shape {
                "read" => read::measure(&folder, counts),
                "years" => years::measure(&folder, &counts),
                shape => measure(shape, &folder, counts),
            };
            fs::remove_dir_all(&folder)?;
            result
        }
        // Without a word, as `cargo bench` runs all benches: nothing that takes hours.
        [] => {
            println!("say which: linear, corner, read or years");
            Ok(())
        }
    }
}

fn shape_of(word: &str) -> Outcome<Shape> {
    match word {
        "linear" => Ok(Shape::LINEAR),
        "corner" => Ok(Shape::CORNER),
        _ => Err(format!("{word} is neither linear nor corner").into()),
    }
}

/// Makes the chain so many increments long.
fn grow(generator: &mut Generator, increments: u64) -> Outcome<()> {
    while generator.points() <= increments {
        generator.add()?;
    }
    Ok(())
}

/// Measures each command at each length of the chain.
fn measure(shape: &str, folder: &Path, mut counts: Vec<u64>) -> Outcome<()> {
    let is_corner = shape == "corner";
    let shape = shape_of(shape)?;
    if counts.is_empty() {
        counts = if is_corner { vec![5, 10, 20] } else { vec![100, 200, 400, 800, 1600] };
    }
    let repository = folder.join("repository");
    let mut generator = Generator::new(&repository, "web", shape)?;
    let image = folder.join("zeros.raw");
    File::create(&image)?.set_len(shape.virtual_size)?;
    let mut commands: Vec<(&str, Vec<OsString>)> = vec![
        ("points", words(&["points", "web/vda"])),
        ("verify --quick", words(&["verify", "--quick"])),
        ("restore", words(&["restore", "web/vda", "-"])),
        ("backup", words(&["backup", "--disk", "web/vda", "--track", "scan"])),
    ];
    if let Some((_, backup)) = commands.last_mut() {
        backup.push(image.into());
    }
    if !is_corner {
        commands.insert(2, ("verify", words(&["verify"])));
    }
    println!("{:>10} {:<16} {:>9} {:>11}", "increments", "command", "seconds", "ms/archive");
    let mut before: Vec<Option<(u64, Peak)>> = vec![None; commands.len()];
    for count in counts {
        grow(&mut generator, count)?;
        for ((name, words), before) in commands.iter().zip(&mut before) {
            let (seconds, peak) = run(words, &repository)?;
            let each = seconds * 1000.0 / (count + 1) as f64;
            print!("{count:>10} {name:<16} {seconds:>9.3} {each:>11.3}   peak {peak}");
            if let Some((fewer, less)) = before.filter(|(fewer, _)| *fewer < count) {
                let more = (count - fewer) as f64;
                let slope = |now: u64, then: u64| (now as f64 - then as f64) / more;
                let (all, own) = (slope(peak.all, less.all), slope(peak.own, less.own));
                print!("   a further increment: {all:+.1} KiB, own {own:+.1} KiB");
            }
            println!();
            *before = Some((count, peak));
        }
        drop_newest(&repository)?;
    }
    Ok(())
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

/// Removes the point that the measured backup made: the generator does not know the point.
fn drop_newest(repository: &Path) -> Outcome<()> {
    for folder in ["web/points", "web/vda"] {
        let mut names: Vec<PathBuf> = Vec::new();
        for entry in fs::read_dir(repository.join(folder))? {
            names.push(entry?.path());
        }
        if let Some(newest) = names.into_iter().max() {
            fs::remove_file(newest)?;
        }
    }
    Ok(())
}

/// The most memory that a program had, in KiB.
#[derive(Clone, Copy, Default)]
struct Peak {
    /// Resident pages of all kinds, mapped files included: the kernel's high-water mark.
    all: u64,
    /// Pages that belong to the program alone, seen from time to time.
    own: u64,
}

impl std::fmt::Display for Peak {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mib = |kib: u64| kib as f64 / 1024.0;
        write!(f, "{:.1} MiB, own {:.1} MiB", mib(self.all), mib(self.own))
    }
}

/// Runs the program on the repository; says how long it took, and its peak memory.
fn run(words: &[OsString], repository: &Path) -> Outcome<(f64, Peak)> {
    let program = std::env::var_os("QDELTA").unwrap_or_else(|| env!("CARGO_BIN_EXE_qdelta").into());
    let mut command = Command::new(program);
    command.args(words).arg("--repo").arg(repository).arg("--quiet");
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let started = Instant::now();
    let mut child = command.spawn()?;
    let mut peak = Peak::default();
    loop {
        look(&child, &mut peak);
        if let Some(status) = child.try_wait()? {
            let seconds = started.elapsed().as_secs_f64();
            return if status.success() {
                Ok((seconds, peak))
            } else {
                Err(status.to_string().into())
            };
        }
        std::thread::sleep(INTERVAL);
    }
}

/// Asks the kernel for the memory of a running program.
fn look(child: &Child, peak: &mut Peak) {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    peak.all = peak.all.max(field("VmHWM:").unwrap_or(0));
    peak.own = peak.own.max(field("RssAnon:").unwrap_or(0));
}
