//! The page of `qdelta report`: one file of HTML, drawn from a [`FleetReport`] alone.
//!
//! Nothing in the page is fetched, and nothing in it runs. All text goes through `Html::text`, which
//! lets no name become markup.

mod charts;
mod guests;
mod html;
mod losses;
mod style;

use std::collections::BTreeMap;

use crate::base::duration;
use crate::flows::notify::base64;
use crate::flows::report::{FleetReport, Level, OpenFinding, Timer};
use html::{Html, ago, bytes, count, day, moment};

/// With pictures, the page is no longer than this, in bytes.
const LEN_MAX: usize = 1 << 20;

/// What may come after the pictures, in bytes: jobs, and what stands beside the pictures themselves.
const REST_MAX: usize = 64 << 10;

/// So many findings are shown.
const FINDINGS_MAX: usize = 200;

/// The pictures of drills: what a guest's screen showed, by the guest.
pub type Pictures = BTreeMap<String, Vec<u8>>;

/// What the page is drawn from.
struct Page<'a> {
    fleet: &'a FleetReport,
    zone: jiff::tz::TimeZone,
    pictures: &'a Pictures,
}

/// Draws the page.
pub fn page(fleet: &FleetReport, pictures: &Pictures) -> String {
    let zone = jiff::tz::TimeZone::get(&fleet.time_zone);
    let zone = zone.unwrap_or_else(|_| jiff::tz::TimeZone::system());
    let page = Page { fleet, zone, pictures };
    let mut html = Html::default();
    page.head(&mut html);
    page.glance(&mut html);
    page.findings(&mut html);
    page.calendar(&mut html);
    page.losses(&mut html);
    page.guests(&mut html);
    page.growth(&mut html);
    page.freezes(&mut html);
    page.drills(&mut html);
    page.jobs(&mut html);
    page.foot(&mut html);
    html.done()
}

fn class(level: Level) -> &'static str {
    match level {
        Level::Ok => "ok",
        Level::Warning => "wa",
        Level::Critical => "cr",
    }
}

impl Page<'_> {
    fn head(&self, html: &mut Html) {
        let status = &self.fleet.status;
        html.raw(
            "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
             <meta name=\"color-scheme\" content=\"light dark\">\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; \
             style-src 'unsafe-inline'; img-src data:\"><title>",
        );
        html.text(&format!("{}: backups of {}", status.level, self.fleet.host));
        html.raw("</title><style>").raw(style::STYLE).raw("</style></head><body><header><h1>");
        html.text(&format!("Backups of {}", self.fleet.host)).raw("</h1><p class=\"state ");
        html.raw(class(status.level)).raw("\"><b>").text(&status.level.to_string()).raw("</b> ");
        html.text(&match status.findings.len() {
            0 => "everything is all right".to_owned(),
            1 => "1 finding is open".to_owned(),
            all => format!("{all} findings are open"),
        });
        html.raw("</p><p class=\"dim\">").text(&format!(
            "{}, times are of {}",
            moment(status.at, &self.zone),
            self.fleet.time_zone
        ));
        html.raw("</p></header>\n");
    }

    /// The fleet in a few numbers.
    fn glance(&self, html: &mut Html) {
        let status = &self.fleet.status;
        let all = status.guests.len();
        let of = |count: usize| format!("{count} of {all}");
        let age = |time: jiff::Timestamp| status.at.as_second() - time.as_second();
        let within = status.guests.iter().filter(|guest| {
            let rpo = guest.rpo.map(|rpo| i64::try_from(rpo.0.as_secs()).unwrap_or(i64::MAX));
            guest.newest_at.is_some_and(|time| rpo.is_none_or(|rpo| age(time) <= rpo))
        });
        let month = 30 * 86_400;
        let proved =
            status.guests.iter().filter(|it| it.proved_at.is_some_and(|at| age(at) <= month));
        let drilled = status
            .guests
            .iter()
            .filter(|it| it.drilled == Some(crate::vault::repository::Climb::Passed));
        let points: usize = status.guests.iter().filter_map(|guest| guest.points).sum();
        let stored: u64 = status.repositories.iter().filter_map(|it| it.bytes_stored).sum();
        let oldest = status.guests.iter().filter_map(|it| it.newest_at).min();
        html.raw("<section class=\"tiles\">");
        for (name, value) in [
            ("guests", all.to_string()),
            ("within their RPO", of(within.count())),
            ("proved within 30 days", of(proved.count())),
            ("came back in their last drill", of(drilled.count())),
            ("points", points.to_string()),
            ("stored", bytes(stored)),
            ("oldest newest point", oldest.map_or("none".to_owned(), |it| duration::age(age(it)))),
        ] {
            html.raw("<div><b>").text(&value).raw("</b> <span>").text(name).raw("</span></div>");
        }
        html.raw("</section>\n");
    }

    /// What is open.
    fn findings(&self, html: &mut Html) {
        let all = &self.fleet.status.findings;
        html.raw("<section><h2>What is open</h2>");
        if all.is_empty() {
            html.raw("<p>Nothing.</p></section>\n");
            return;
        }
        html.raw("<table class=\"cards\" id=\"findings\"><thead><tr><th>Level<th>Subject<th>The matter<th>Since</tr></thead><tbody>");
        for finding in all.iter().take(FINDINGS_MAX) {
            self.finding(html, finding);
        }
        html.raw("</tbody></table>");
        if all.len() > FINDINGS_MAX {
            let more = all.len() - FINDINGS_MAX;
            html.raw("<p>").text(&format!("And {more} more: qdelta status has all.")).raw("</p>");
        }
        html.raw("</section>\n");
    }

    fn finding(&self, html: &mut Html, finding: &OpenFinding) {
        html.raw("<tr class=\"").raw(class(finding.level)).raw("\"><td><b class=\"mark\">");
        html.text(&finding.level.to_string()).raw("</b><td>").text(&finding.subject).raw("<td>");
        html.text(&finding.text);
        if let Some(advice) = &finding.advice {
            html.raw("<br><i>").text(advice).raw("</i>");
        }
        html.raw("<td>");
        html.text(&finding.since.map_or("-".to_owned(), |since| moment(since, &self.zone)));
        html.raw("</tr>");
    }

    /// When what is done next.
    fn jobs(&self, html: &mut Html) {
        let status = &self.fleet.status;
        html.raw("<section><h2>Jobs</h2><table class=\"cards\" id=\"jobs\"><thead><tr><th>Job<th>Act<th>Last<th>End<th>Next</tr></thead><tbody>");
        for job in &status.jobs {
            for act in &job.acts {
                let ended = match (act.last, act.end) {
                    (Some(_), Some(end)) => end.to_string(),
                    _ => "-".to_owned(),
                };
                let next = act.next.map_or("-".to_owned(), |next| moment(next, &self.zone));
                let last = act.last.map_or("never".to_owned(), |last| ago(status.at, last));
                html.raw("<tr>");
                html.cell("Job", &job.job).cell("Act", &act.act.to_string()).cell("Last", &last);
                html.cell("Ended", &ended).cell("Next", &next).raw("</tr>");
            }
        }
        html.raw("</tbody></table><p class=\"dim\">").text(match status.timer {
            Timer::On => "The timer that starts runs is on.",
            Timer::Off => "The timer that starts runs is OFF.",
            Timer::Unknown => "Nobody could be asked whether the timer that starts runs is on.",
            Timer::NotUsed => "Another program than a timer of systemd's starts runs.",
        });
        html.raw("</p></section>\n");
    }

    /// What the last drills have shown, with pictures.
    fn drills(&self, html: &mut Html) {
        let drilled = || self.fleet.guests.iter().filter_map(|it| Some((it, it.drill.as_ref()?)));
        html.raw("<section><h2>Drills</h2>");
        if drilled().next().is_none() {
            html.raw("<p>No guest was drilled on this host: that they come back is hope.</p></section>\n");
            return;
        }
        html.raw("<div class=\"drills\" id=\"drills\">");
        let mut room = LEN_MAX.saturating_sub(html.len() + REST_MAX) / 4 * 3;
        for (guest, drill) in drilled() {
            let passed = drill.result == crate::vault::repository::Climb::Passed;
            html.raw("<figure class=\"").raw(if passed { "ok" } else { "cr" }).raw("\">");
            let picture = self.pictures.get(&guest.guest).filter(|it| it.len() <= room);
            if let Some((picture, kind)) = picture.and_then(|it| Some((it, html::kind_of(it)?))) {
                room -= picture.len();
                html.raw("<img alt=\"the screen\" src=\"data:").raw(kind).raw(";base64,");
                html.raw(&base64(picture)).raw("\">");
            }
            html.raw("<figcaption><b>").text(&guest.guest).raw("</b> ");
            html.text(&drill.result.to_string()).text(", ");
            html.text(&moment(drill.began, &self.zone));
            html.raw("<br>").text(&match drill.reached {
                Some(rung) => format!("came to {rung}"),
                None => "came nowhere".to_owned(),
            });
            if let Some(seconds) = drill.recovery {
                html.text(&format!(", back in {}", html::seconds(seconds)));
            }
            for missed in &drill.missed {
                html.raw("<br>").text(missed);
            }
            html.raw("</figcaption></figure>");
        }
        html.raw("</div></section>\n");
    }

    /// Who was frozen, and for how long.
    fn freezes(&self, html: &mut Html) {
        let mut frozen: Vec<_> =
            self.fleet.guests.iter().filter_map(|it| Some((it.frozen_ms_max?, it))).collect();
        frozen.sort_by(|one, other| other.0.cmp(&one.0).then(one.1.guest.cmp(&other.1.guest)));
        html.raw("<section><h2>Freezes</h2>");
        if frozen.is_empty() {
            html.raw("<p>No guest was frozen in these days.</p></section>\n");
            return;
        }
        html.raw("<table class=\"bars\" id=\"freezes\"><tbody>");
        let longest = frozen.first().map_or(1, |it| it.0).max(1);
        for (ms, guest) in frozen.iter().take(20) {
            let share = 100.0 * *ms as f64 / longest as f64;
            html.raw("<tr><th>").text(&guest.guest).raw("<td class=\"num\">");
            html.text(&format!("{} at most", html::frozen(*ms))).raw("<td class=\"num\">");
            html.text(&count(guest.freezes, "freeze")).raw("<td class=\"bar\"><i style=\"width:");
            html.raw(&format!("{share:.0}%\"></i></tr>"));
        }
        html.raw("</tbody></table>");
        if frozen.len() > 20 {
            html.raw("<p>")
                .text(&format!("And {} more, each for less.", frozen.len() - 20))
                .raw("</p>");
        }
        html.raw("</section>\n");
    }

    fn foot(&self, html: &mut Html) {
        let since = self.fleet.since.map_or(String::new(), |since| {
            format!(" since {}", day(&since.to_zoned(self.zone.clone()).date().to_string()))
        });
        html.raw("<footer>").text(&format!(
            "By qdelta {} on {}, from the points of the repositories and the history of this host{since}. \
             qdelta report --json has the same for programs.",
            env!("CARGO_PKG_VERSION"),
            self.fleet.host,
        ));
        html.raw("</footer></body></html>\n");
    }
}
