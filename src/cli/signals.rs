//! Ctrl-C and its like: the first asks the work to stop and clean up, the second ends the program.

use std::path::Path;
use std::sync::Arc;

use qdelta::base::cancel::Cancel;
use qdelta::disk::io::Opener;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;

use super::screen::Screen;
use super::status;

/// Turns signals into a request to stop, from now on.
///
/// A second signal ends the program at once. That is safe: whatever it was doing, the repository
/// holds the same points as before, and the next run removes what was left.
///
/// A write past a limit on file sizes must fail rather than end the program: its signal is caught
/// and forgotten.
pub fn watch(screen: &Screen) -> Cancel {
    let cancel = Cancel::default();
    // A limit on the size of files is an error of the write that meets it, which is then cleaned
    // up after, and no reason to be killed.
    let _ = signal_hook::flag::register(SIGXFSZ, Arc::default());
    let ignored = ignored();
    let wanted = [SIGINT, SIGTERM, SIGHUP, SIGXFSZ].into_iter().filter(|signal| {
        // Whoever started the program with nohup or in the background of a script meant it.
        ignored & (1 << (signal - 1)) == 0
    });
    let Ok(mut signals) = Signals::new(wanted) else { return cancel };
    let (screen, asked) = (screen.clone(), cancel.clone());
    let watcher = move || {
        for _ in signals.forever().filter(|signal| *signal != SIGXFSZ) {
            if asked.is_cancelled() {
                std::process::exit(status::of(qdelta::ErrorKind::Interrupted).into());
            }
            asked.cancel();
            screen.say("qdelta: stopping and cleaning up; once more to stop at once");
        }
    };
    // Without the thread a signal is only seen by nobody; the program still works.
    let _ = std::thread::Builder::new().name("signals".to_owned()).spawn(watcher);
    cancel
}

/// The signals that this process was started to ignore, one bit each.
fn ignored() -> u64 {
    let text = Opener::READ.read_text(Path::new("/proc/self/status"), 64 << 10).unwrap_or_default();
    let mask = text.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
