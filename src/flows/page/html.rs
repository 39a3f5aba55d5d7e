//! Text that becomes HTML, and how the page writes times and sizes.

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::base::duration;
use crate::flows::notify::escaped;

/// HTML that grows.
#[derive(Default)]
pub(super) struct Html(String);

impl Html {
    /// Markup of our own.
    pub fn raw(&mut self, markup: &str) -> &mut Self {
        self.0.push_str(markup);
        self
    }

    /// Text, whatever is in it.
    pub fn text(&mut self, text: &str) -> &mut Self {
        self.0.push_str(&escaped(text));
        self
    }

    /// A cell of a table; on a narrow screen its head stands beside it.
    pub fn cell(&mut self, head: &str, text: &str) -> &mut Self {
        self.open(head).text(text)
    }

    /// The beginning of a cell.
    pub fn open(&mut self, head: &str) -> &mut Self {
        self.raw("<td data-h=\"").raw(head).raw("\">")
    }

    /// How long it is by now, in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// All of it.
    pub fn done(self) -> String {
        self.0
    }
}

/// A time, in the zone of the schedules.
pub(super) fn moment(time: Timestamp, zone: &TimeZone) -> String {
    time.to_zoned(zone.clone()).strftime("%a %Y-%m-%d %H:%M").to_string()
}

/// How long ago a time was.
pub(super) fn ago(now: Timestamp, time: Timestamp) -> String {
    format!("{} ago", duration::age(now.as_second() - time.as_second()))
}

/// A day.
pub(super) fn day(day: &str) -> &str {
    day
}

/// A size.
pub(super) fn bytes(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().iec().to_string()
}

/// How long a guest was frozen.
pub(super) fn frozen(ms: u64) -> String {
    duration::in_ms(std::time::Duration::from_millis(ms))
}

/// Seconds that somebody waited.
pub(super) fn seconds(seconds: f64) -> String {
    let limit = std::time::Duration::try_from_secs_f64(seconds.max(0.0));
    duration::shown(limit.unwrap_or(std::time::Duration::MAX))
}

/// A number of things.
pub(super) fn count(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

/// What a picture is; none if no browser would show it.
pub(super) fn kind_of(picture: &[u8]) -> Option<&'static str> {
    match picture {
        [0x89, b'P', b'N', b'G', ..] => Some("image/png"),
        [0xff, 0xd8, 0xff, ..] => Some("image/jpeg"),
        [b'G', b'I', b'F', b'8', ..] => Some("image/gif"),
        _ => None,
    }
}
