//! The progress bar: one line that says of which disk it is, and that fits the terminal at every
//! moment.

use std::fmt::Write;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use super::text;

/// How often the bar is drawn anew, a second.
const DRAWS_PER_SECOND: u8 = 8;

/// The bar is also drawn when nothing moved: the time that it shows goes on.
const TICK: Duration = Duration::from_millis(250);

/// Columns of a terminal that does not say how many it has.
const WIDTH_DEFAULT: usize = 80;

/// The brackets and what is between them have at least this many columns, or are left out.
const BRACKETS_MIN: usize = 10;

/// A phase that counts fewer than this counts steps, not bytes.
const STEPS_MAX: u64 = 1024;

/// Draws a bar on standard error for a phase of `total` bytes.
pub fn draw(disk: Option<&str>, phase: &'static str, total: u64) -> ProgressBar {
    let target = ProgressDrawTarget::stderr_with_hz(DRAWS_PER_SECOND);
    let bar = ProgressBar::with_draw_target(Some(total), target);
    let disk = disk.map(text::printable);
    if let Ok(style) = ProgressStyle::with_template("{line}") {
        bar.set_style(style.with_key("line", move |state: &ProgressState, out: &mut dyn Write| {
            let line = Line {
                disk: disk.as_deref(),
                phase,
                done: state.pos(),
                total,
                rate: state.per_sec(),
                seconds: state.elapsed().as_secs_f64(),
                left: state.eta().as_secs_f64(),
            };
            // Writing to a string does not fail. The last column stays free: some terminals go to
            // the next line as soon as it is written.
            let _ = out.write_str(&line.fitted(width().saturating_sub(1)));
        }));
    }
    bar.enable_steady_tick(TICK);
    bar
}

/// Columns of the terminal now: it may have been made narrower since the last time.
fn width() -> usize {
    let size = rustix::termios::tcgetwinsize(std::io::stderr()).ok();
    let asked = || std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    size.map(|size| usize::from(size.ws_col))
        .filter(|&columns| columns > 0)
        .or_else(asked)
        .filter(|&columns| columns > 0)
        .unwrap_or(WIDTH_DEFAULT)
}

/// What a bar says at one moment.
struct Line<'a> {
    disk: Option<&'a str>,
    phase: &'a str,
    done: u64,
    total: u64,
    /// Bytes a second.
    rate: f64,
    /// Since the phase began.
    seconds: f64,
    /// Until it will be over.
    left: f64,
}

impl Line<'_> {
    /// The line in at most `width` columns: what matters least goes first, and the name is cut last.
    fn fitted(&self, width: usize) -> String {
        let label = match self.disk {
            Some(disk) => format!("{disk} {}", self.phase),
            None => self.phase.to_owned(),
        };
        let mut tail = format!("{:>3}%", self.percent());
        for piece in self.pieces() {
            let room = width.saturating_sub(label.len() + tail.len() + BRACKETS_MIN + 4);
            if piece.len() + 2 > room {
                break;
            }
            tail = format!("{tail}  {piece}");
        }
        let room = width.saturating_sub(label.chars().count() + tail.len() + 2);
        match room >= BRACKETS_MIN {
            true => format!("{label} {} {tail}", self.brackets(room)),
            false => {
                let room = width.saturating_sub(tail.len() + 1);
                let line = format!("{} {tail}", shortened(&label, room));
                line.chars().take(width).collect()
            }
        }
    }

    /// Whole percents; 100 is said of what is done, and of nothing else.
    fn percent(&self) -> u64 {
        match self.total {
            0 => 0,
            total => (u128::from(self.done.min(total)) * 100 / u128::from(total)) as u64,
        }
    }

    /// What stands behind the percents, the most important first.
    fn pieces(&self) -> Vec<String> {
        // The time first: it moves when nothing else does.
        let mut pieces = vec![clock(self.seconds)];
        let is_bytes = self.total >= STEPS_MAX;
        if is_bytes {
            let (done, total) = (text::bytes(self.done.min(self.total)), text::bytes(self.total));
            pieces.push(format!("{done:>8} of {total}"));
        }
        // The first guess of a bar that has not moved is none.
        if self.left > 0.0 && self.done > 0 {
            pieces.push(format!("{} left", clock(self.left)));
        }
        if is_bytes && self.rate >= 1.0 {
            pieces.push(format!("{:>8}/s", text::bytes(self.rate as u64)));
        }
        pieces
    }

    /// The bar itself, `width` columns of it with its brackets.
    fn brackets(&self, width: usize) -> String {
        let inner = width.saturating_sub(2);
        let filled = (inner as u64 * self.percent() / 100) as usize;
        let head = if filled < inner { ">" } else { "" };
        format!("[{}{head:<rest$}]", "=".repeat(filled), rest = inner - filled)
    }
}

/// A time as a clock shows it, so that it moves each second: `0:05`, `12:34`, `1:02:03`.
fn clock(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    match whole / 3600 {
        0 => format!("{}:{:02}", whole / 60, whole % 60),
        hours => format!("{hours}:{:02}:{:02}", whole / 60 % 60, whole % 60),
    }
}

/// A label in at most `width` columns: its beginning and its end, which tell more than the middle.
fn shortened(label: &str, width: usize) -> String {
    let count = label.chars().count();
    if count <= width {
        return label.to_owned();
    }
    let kept = width.saturating_sub(2);
    let (front, back) = (kept.div_ceil(2), kept / 2);
    let mut short: String = label.chars().take(front).collect();
    short.push_str("..");
    short.extend(label.chars().skip(count - back));
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(disk: Option<&str>, done: u64, total: u64) -> Line<'_> {
        Line { disk, phase: "backup", done, total, rate: 123e6, seconds: 75.0, left: 4000.0 }
    }

    /// A bar that was wider than its terminal wrapped, and every redraw left a line of it behind.
    #[test]
    fn a_bar_is_never_wider_than_its_terminal() {
        let long = format!("{}/{}", "guest-of-a-long-name".repeat(4), "vda");
        for width in 0..=220 {
            for disk in [None, Some("web/vda"), Some(long.as_str())] {
                for (done, total) in [(0, 0), (1, 4), (0, 1 << 40), (1023 << 30, 1 << 40), (7, 5)] {
                    let line = line(disk, done, total).fitted(width);
                    assert!(line.chars().count() <= width, "{width}: {line:?}");
                }
            }
        }
    }

    #[test]
    fn a_bar_says_which_disk_it_is_of_and_how_far_in_any_usual_width() {
        for width in [39, 59, 79, 199] {
            let line = line(Some("web/vda"), 5 << 30, 20 << 30).fitted(width);
            assert!(line.starts_with("web/vda backup ["), "{line}");
            assert!(line.contains(" 25%"), "{line}");
        }
        let line = line(Some("web/vda"), 5 << 30, 20 << 30);
        assert_eq!(line.fitted(59), "web/vda backup [==>        ]  25%  1:15     5 GiB of 20 GiB");
        let wide = line.fitted(120);
        assert!(wide.ends_with("  1:15     5 GiB of 20 GiB  1:06:40 left   117 MiB/s"), "{wide}");
    }

    #[test]
    fn a_name_that_is_too_long_keeps_its_beginning_and_its_end() {
        assert_eq!(shortened("guest-of-a-long-name/vda backup", 20), "guest-of-..da backup");
        assert_eq!(shortened("web", 3), "web");
        assert_eq!(shortened("web/vda", 0), "..");
    }

    #[test]
    fn nothing_is_at_100_percent_before_it_is_done() {
        assert_eq!(line(None, (1 << 40) - 1, 1 << 40).percent(), 99);
        assert_eq!(line(None, 1 << 40, 1 << 40).percent(), 100);
        assert_eq!(line(None, 0, 0).percent(), 0);
    }
}
