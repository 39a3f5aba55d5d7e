//! What every test needs: a place to work in, programs to run with a deadline and a readable
//! failure, and the real `qemu-img` and `qemu-io` as the oracle.

pub mod apart;
pub mod content;
pub mod disk;
pub mod faults;
pub mod files;
pub mod guest;
pub mod images;
pub mod proxy;
pub mod repo;
pub mod run;
pub mod store;
pub mod stored;
pub mod story;
pub mod virsh;

use std::path::{Path, PathBuf};

pub use run::{Outcome, qdelta, run, state, tool};

/// Arguments of any mix of strings and paths, as a vector of `OsString`.
macro_rules! args {
    ($($argument:expr),* $(,)?) => { vec![$(::std::ffi::OsString::from($argument)),*] };
}
pub(crate) use args;

/// Where tests make their folders: as TMPDIR says, or where a file system on a disk can be expected.
/// On one in memory `overlay` is rightly refused, and so is what lies over backing files.
pub fn temp_dir() -> PathBuf {
    std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from)
}

/// A folder of one test, removed when the test is over.
#[derive(Debug)]
pub struct Lab {
    dir: tempfile::TempDir,
}

impl Lab {
    pub fn new() -> Self {
        Self::within(&temp_dir())
    }

    /// One in a folder, say on a file system of its own.
    pub fn within(folder: &Path) -> Self {
        Self { dir: tempfile::Builder::new().prefix("qdelta-test-").tempdir_in(folder).unwrap() }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// How much effort sweeps and histories take: 1, unless `QDELTA_SWEEP` says more.
pub fn sweep() -> u64 {
    number("QDELTA_SWEEP").unwrap_or(1)
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

/// The seeds of random lives: `count` of them unless `QDELTA_SWEEP` says more, others if
/// `QDELTA_FIRST` says how many to pass over, or the one that `QDELTA_SEED` repeats.
pub fn seeds(first: u64, count: u64) -> Vec<u64> {
    match std::env::var("QDELTA_SEED") {
        Ok(text) => {
            let seed = u64::from_str_radix(text.trim_start_matches("0x"), 16);
            vec![seed.unwrap_or_else(|_| panic!("QDELTA_SEED={text} is no hex number"))]
        }
        Err(_) => {
            let first = first + number("QDELTA_FIRST").unwrap_or(0);
            (first..first + count * sweep()).collect()
        }
    }
}
