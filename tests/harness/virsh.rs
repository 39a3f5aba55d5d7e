//! A `virsh` that freezes and thaws nothing, does what a test tells it, and remembers what it did.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The script. `frozen` is there while the guest is frozen; `log` has a line for each call. What it
/// is to do stands in files that a test writes; the number in a file that counts goes down.
const SCRIPT: &str = r#"#!/bin/bash
# Plays virsh for a test.
cd "$(dirname "$0")" || exit 99
[ "$1" = --connect ] && shift 2
verb=$1
echo "$verb $2" >>log
count_down() { # FILE: succeeds as long as the number in it is not used up
    [ -e "$1" ] || return 1
    local n
    n=$(cat "$1")
    [ "$n" -gt 0 ] || return 1
    echo $((n - 1)) >"$1"
}
if [ -e no-agent ]; then echo "error: $(cat no-agent)" >&2; exit 1; fi
case $verb in
domfsfreeze)
    if [ -e freeze-fails ]; then echo "error: Guest agent is not responding" >&2; exit 1; fi
    if [ -e freeze-fails-frozen ]; then touch frozen; echo "error: timed out" >&2; exit 1; fi
    if [ -e freeze-hangs ]; then touch frozen; sleep 1000; fi
    # It waits for its turn in libvirt, also when nobody waits for it any more.
    if [ -e freeze-comes-late ]; then
        setsid bash -c 'sleep "$(cat freeze-comes-late)"; touch frozen came' </dev/null >/dev/null 2>&1 &
        sleep 1000
    fi
    touch frozen
    [ -e freeze-takes ] && sleep "$(cat freeze-takes)"
    echo "Froze ${FILESYSTEMS:-2} filesystem(s)"
    ;;
domfsthaw)
    if count_down thaw-hangs; then sleep 1000; fi
    if count_down thaw-fails; then echo "error: Timed out during operation" >&2; exit 1; fi
    if [ -e frozen ]; then n=2; else n=0; fi
    if [ -e thawed-by-itself ]; then n=$((n - $(cat thawed-by-itself))); fi
    rm -f frozen
    echo "Thawed $n filesystem(s)"
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
        fs::write(virsh.program(), SCRIPT).unwrap();
        fs::set_permissions(virsh.program(), fs::Permissions::from_mode(0o755)).unwrap();
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

    /// Whether it has done what takes it some time.
    pub fn has(&self, what: &str) -> bool {
        self.dir.join(what).exists()
    }

    pub fn is_frozen(&self) -> bool {
        self.has("frozen")
    }

    /// The calls so far, one a line.
    pub fn log(&self) -> Vec<String> {
        let text = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
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
