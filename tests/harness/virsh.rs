//! A `virsh` that freezes and thaws nothing, does what a test tells it, and remembers what it did.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::run::script;

/// The script. `frozen` is there while the guest is frozen; `log` has a line for each call, written
/// before it does anything, and `thawed` one for each thaw that has worked. What it is to do stands in
/// files that a test writes. It may be ended at any moment.
const SCRIPT: &str = r#"#!/bin/bash
# Plays virsh for a test.
cd "$(dirname "$0")" || exit 99
[ "$1" = --connect ] && shift 2
verb=$1
echo "$verb $2" >>log
nice >niceness
count() { # FILE: succeeds as often as the number in it says; each time is a line of FILE.done
    [ -e "$1" ] && [ "$(cat "$1.done" 2>/dev/null | wc -l)" -lt "$(cat "$1")" ] && echo >>"$1.done"
}
if [ -e no-agent ]; then echo "error: $(cat no-agent)" >&2; exit 1; fi
if [ -e "says-$verb" ]; then cat "says-$verb" >&2; exit 1; fi
case $verb in
domfsfreeze)
    if [ -e freeze-fails ]; then echo "error: Guest agent is not responding" >&2; exit 1; fi
    if [ -e freeze-fails-frozen ]; then touch frozen; echo "error: timed out" >&2; exit 1; fi
    if [ -e freeze-hangs ]; then touch frozen; exec sleep 1000; fi
    # It waits for its turn in libvirt, also when nobody waits for it any more: until after a thaw.
    if [ -e freeze-comes-late ]; then
        setsid bash -c 'while [ -e log ] && [ ! -e thawed ]; do sleep 0.1; done; touch frozen came' \
            </dev/null >/dev/null 2>&1 &
        exec sleep 1000
    fi
    touch frozen
    [ -e freeze-takes ] && sleep "$(cat freeze-takes)"
    echo "Froze ${FILESYSTEMS:-2} filesystem(s)"
    ;;
domfsthaw)
    if count thaw-hangs; then exec sleep 1000; fi
    if count thaw-fails; then echo "error: Timed out during operation" >&2; exit 1; fi
    # What is frozen from here on is for the next thaw.
    if [ -e frozen ]; then n=2; rm frozen; else n=0; fi
    if [ -e thawed-by-itself ]; then n=$((n - $(cat thawed-by-itself))); fi
    echo "Thawed $n filesystem(s)"
    echo >>thawed
    ;;
*) echo "error: unknown command: '$verb'" >&2; exit 1 ;;
esac
"#;

/// The script in a folder of its own.
pub struct Virsh {
    dir: PathBuf,
}

impl Virsh {
    pub fn new(dir: PathBuf) -> Self {
        fs::create_dir(&dir).unwrap();
        let virsh = Self { dir };
        script(&virsh.program(), SCRIPT);
        virsh
    }

    pub fn program(&self) -> PathBuf {
        self.dir.join("virsh")
    }

    /// Tells it what to do.
    pub fn tell(&self, what: &str, value: &str) {
        fs::write(self.dir.join(what), value).unwrap();
    }

    /// Tells it to behave again.
    pub fn forget(&self, what: &str) {
        fs::remove_file(self.dir.join(what)).unwrap();
    }

    /// What it wrote down.
    pub fn said(&self, what: &str) -> String {
        fs::read_to_string(self.dir.join(what)).unwrap()
    }

    /// Whether it has done what takes it some time.
    pub fn has(&self, what: &str) -> bool {
        self.dir.join(what).exists()
    }

    pub fn is_frozen(&self) -> bool {
        self.has("frozen")
    }

    /// The calls so far, one a line.
    pub fn log(&self) -> Vec<String> {
        self.lines("log")
    }

    /// The lines of a file of its own, which may not be there yet.
    pub fn lines(&self, file: &str) -> Vec<String> {
        let text = fs::read_to_string(self.dir.join(file)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// How often it was called to do `verb`.
    pub fn count(&self, verb: &str) -> usize {
        self.log().iter().filter(|line| line.starts_with(verb)).count()
    }
}

/// Waits until `is_so`; what is never so fails.
#[track_caller]
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < Duration::from_secs(60), "never came: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether nothing lies at `path`.
pub fn is_gone(path: &Path) -> bool {
    path.symlink_metadata().is_err()
}
