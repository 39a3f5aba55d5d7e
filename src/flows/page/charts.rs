//! The calendar of nights, and the growth of repositories.

use std::fmt::Write;

use jiff::civil::Date;

use super::Page;
use super::html::{Html, bytes, count};
use crate::base::duration;
use crate::flows::report::{Day, FleetRepository, RepositoryStatus};

/// How large a day of the calendar is drawn, and how far apart.
const CELL: usize = 13;
const STEP: usize = 16;

/// The size of a drawing of growth.
const WIDTH: f64 = 600.0;
const HEIGHT: f64 = 120.0;

impl Page<'_> {
    /// Every day: columns are weeks, rows days from Monday on.
    pub(super) fn calendar(&self, html: &mut Html) {
        let days = &self.fleet.days;
        let dates: Vec<Option<Date>> = days.iter().map(|it| it.day.parse().ok()).collect();
        let first = dates.first().copied().flatten();
        let offset = first.map_or(0, row_of);
        let weeks = (offset + days.len()).div_ceil(7);
        html.raw(
            "<section><h2>Nights</h2><p class=\"key\"><span><i class=\"d\"></i> all done</span> <span><i \
             class=\"w\"></i> with warnings</span> <span><i class=\"f\"></i> something failed</span> \
             <span><i class=\"n\"></i> nothing done</span></p>",
        );
        let (wide, high) = (weeks * STEP + 30, 7 * STEP + 16);
        let mut svg = format!(
            "<div class=\"scroll\"><svg class=\"cal\" id=\"calendar\" role=\"img\" width=\"{wide}\" height=\"{high}\" viewBox=\"0 0 {wide} {high}\">"
        );
        for (row, name) in [(0, "Mon"), (2, "Wed"), (4, "Fri")] {
            let _ = write!(svg, "<text x=\"0\" y=\"{}\">{name}</text>", row * STEP + 26);
        }
        let mut month = 0;
        for (at, (day, date)) in days.iter().zip(&dates).enumerate() {
            let (column, row) = ((offset + at) / 7, (offset + at) % 7);
            let (x, y) = (column * STEP + 30, row * STEP + 16);
            if let Some(date) = date.filter(|it| it.month() != month && (row == 0 || at == 0)) {
                // The last days of a month have no room for its name beside the next one's.
                if at > 0 || date.day() < 15 {
                    let _ = write!(svg, "<text x=\"{x}\" y=\"11\">{}</text>", date.strftime("%b"));
                }
                month = date.month();
            }
            let _ = write!(
                svg,
                "<rect class=\"{}\" x=\"{x}\" y=\"{y}\" width=\"{CELL}\" height=\"{CELL}\" rx=\"2\"><title>{}</title></rect>",
                kind_of(day),
                words_of(day)
            );
        }
        html.raw(&svg).raw("</svg></div>");
        let bad: Vec<&Day> = days.iter().filter(|it| it.failed + it.others_failed > 0).collect();
        let text = match bad.as_slice() {
            [] => format!("Nothing failed in these {}.", count(days.len(), "day")),
            [.., last] => format!(
                "On {} of these {} something failed, last on {}.",
                count(bad.len(), "day"),
                count(days.len(), "day"),
                words_of(last)
            ),
        };
        html.raw("<p>").text(&text).raw("</p></section>\n");
    }

    /// What each repository takes, and when it is full.
    pub(super) fn growth(&self, html: &mut Html) {
        html.raw("<section><h2>Room</h2><div class=\"rooms\" id=\"rooms\">");
        for (status, fleet) in self.fleet.status.repositories.iter().zip(&self.fleet.repositories) {
            self.room(html, status, fleet);
        }
        html.raw("</div></section>\n");
    }

    fn room(&self, html: &mut Html, status: &RepositoryStatus, fleet: &FleetRepository) {
        html.raw("<div class=\"room\"><h3>").text(&status.repository).raw("</h3><p>");
        html.text(&status.place.display().to_string()).raw("</p><p>");
        let known = |count: Option<u64>, what: &str| match count {
            Some(count) => format!("{} {what}", bytes(count)),
            None => format!("not known how much is {what}"),
        };
        let mut words =
            vec![known(status.bytes_stored, "stored"), known(status.bytes_free, "free")];
        words.extend(status.keep_free.map(|keep| format!("{} to stay free", bytes(keep))));
        words.extend(status.bytes_per_day.map(|rate| format!("{} a day", bytes(rate))));
        html.text(&words.join(", ")).raw(".</p><p>");
        html.text(&match (fleet.full_at, status.days_left) {
            (Some(at), Some(days)) => format!(
                "At the rate of the last weeks it is full in {}, on {}.",
                duration::age((days * 86_400.0) as i64),
                at.to_zoned(self.zone.clone()).strftime("%Y-%m-%d")
            ),
            _ if status.bytes_free.is_none() || status.bytes_per_day.is_none() => {
                "When it is full can't be told.".to_owned()
            }
            _ => "At the rate of the last weeks it is not full within a hundred years.".to_owned(),
        });
        html.raw("</p>");
        if fleet.bytes.len() > 1 && fleet.bytes.iter().any(|bytes| *bytes > 0) {
            html.raw(&growth(status, &fleet.bytes, self.fleet));
        }
        html.raw("</div>");
    }
}

fn row_of(date: Date) -> usize {
    usize::try_from(date.weekday().to_monday_zero_offset()).unwrap_or(0)
}

fn kind_of(day: &Day) -> &'static str {
    match () {
        () if day.failed + day.others_failed > 0 => "f",
        () if day.warned > 0 => "w",
        () if day.made > 0 => "d",
        () => "n",
    }
}

/// A day in words.
fn words_of(day: &Day) -> String {
    let mut words = vec![format!("{} made", count(day.made, "backup"))];
    for (count, what) in [
        (day.warned, "with warnings"),
        (day.failed, "failed"),
        (day.others_failed, "other failures"),
    ] {
        if count > 0 {
            words.push(format!("{count} {what}"));
        }
    }
    format!("{}: {}", day.day, words.join(", "))
}

/// The line of what is stored, and as many days ahead at the rate of the last weeks.
fn growth(
    status: &RepositoryStatus,
    stored: &[u64],
    fleet: &crate::flows::report::FleetReport,
) -> String {
    let last = stored.last().copied().unwrap_or(0);
    let ahead = status.bytes_per_day.map(|rate| rate.saturating_mul(stored.len() as u64 / 2));
    let limit = status.bytes_free.map(|free| last.saturating_add(free));
    let top = last.saturating_add(ahead.unwrap_or(0)).max(1);
    // The limit is drawn where it is near enough to be seen.
    let limit = limit.filter(|limit| *limit <= top.saturating_mul(2));
    let top = limit.map_or(top, |limit| limit.max(top)) as f64 * 1.05;
    let all = stored.len() + if ahead.is_some() { stored.len() / 2 } else { 0 };
    let x = |at: usize| WIDTH * at as f64 / (all.max(2) - 1) as f64;
    let y = |bytes: u64| HEIGHT - HEIGHT * bytes as f64 / top;
    let mut line = String::new();
    for (at, bytes) in stored.iter().enumerate() {
        let command = if at == 0 { 'M' } else { 'L' };
        let _ = write!(line, "{command}{:.1} {:.1}", x(at), y(*bytes));
    }
    let end = stored.len() - 1;
    let mut svg = format!(
        "<svg class=\"g\" role=\"img\" viewBox=\"-2 -4 604 146\" preserveAspectRatio=\"xMidYMid meet\">\
         <path class=\"area\" d=\"{line}L{:.1} {HEIGHT}L0 {HEIGHT}z\"/><path class=\"line\" d=\"{line}\"/>",
        x(end)
    );
    if let Some(ahead) = ahead {
        let _ = write!(
            svg,
            "<path class=\"ahead\" d=\"M{:.1} {:.1}L{:.1} {:.1}\"/>",
            x(end),
            y(last),
            x(all - 1),
            y(last.saturating_add(ahead))
        );
    }
    if let Some(limit) = limit {
        let at = y(limit);
        let _ = write!(
            svg,
            "<path class=\"limit\" d=\"M0 {at:.1}h600\"/><text x=\"2\" y=\"{:.1}\">full</text>",
            at + 16.0
        );
    }
    let day = |at: usize| fleet.days.get(at).map_or("", |day| day.day.as_str());
    let _ = write!(
        svg,
        "<text x=\"0\" y=\"138\">{}</text><text x=\"{:.1}\" y=\"138\" text-anchor=\"{}\">today</text></svg>",
        day(0),
        x(end),
        if ahead.is_some() { "middle" } else { "end" }
    );
    svg
}
