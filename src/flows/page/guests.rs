//! The guests: where each stands, its nights, and its chain.

use std::fmt::Write;

use super::html::{Html, ago, bytes, seconds};
use super::{Page, class};
use crate::base::duration;
use crate::flows::report::{FleetGuest, FleetPoint, GuestStatus};
use crate::vault::repository::Climb;

/// So many days stand in the strip of a guest.
const STRIP_DAYS: usize = 30;

/// How wide a day or a point is drawn.
const STEP: usize = 4;

impl Page<'_> {
    pub(super) fn guests(&self, html: &mut Html) {
        html.raw(
            "<section><h2>Guests</h2><p class=\"key\"><span><i class=\"d\"></i> done</span> <span><i \
             class=\"w\"></i> with warnings</span> <span><i class=\"f\"></i> failed</span> <span><i \
             class=\"n\"></i> nothing tried</span></p><p class=\"key\">Chains: <span><i class=\"full\"></i> \
             full</span> <span><i class=\"inc\"></i> increment</span> <span><i class=\"un\"></i> not \
             proved here yet</span> <span><i class=\"bad\"></i> damaged</span></p>\
             <table class=\"cards wide\" id=\"guests\"><thead><tr><th>Guest<th>State<th>Newest point<th>RPO<th>\
             Longest gap<th>Proved<th>Drill<th>RTO<th>Points",
        );
        html.raw(if self.has_copies() { "<th>Second copy" } else { "" });
        html.raw("<th>Nights<th>Chain</tr></thead><tbody>");
        let all = self.fleet.status.guests.iter().zip(&self.fleet.guests);
        all.for_each(|(standing, fleet)| self.guest(html, standing, fleet));
        html.raw("</tbody></table></section>\n");
    }

    fn has_copies(&self) -> bool {
        self.fleet.status.guests.iter().any(|guest| !guest.copies.is_empty())
    }

    /// How old the newest good point of a guest is in each of its second copies.
    fn copies(&self, html: &mut Html, standing: &GuestStatus) {
        let now = self.fleet.status.at;
        html.open("Second copy");
        if standing.copies.is_empty() {
            html.text("-");
        }
        for (index, copy) in standing.copies.iter().enumerate() {
            let age = copy.newest_at.map(|at| now.as_second() - at.as_second());
            let rpo = copy.rpo.map(|rpo| i64::try_from(rpo.0.as_secs()).unwrap_or(i64::MAX));
            let is_late = age.is_none_or(|age| rpo.is_some_and(|rpo| age > rpo));
            let shown = copy.newest_at.map_or("none".to_owned(), |at| ago(now, at));
            html.raw(if index > 0 { ", " } else { "" });
            html.text(&copy.repository).raw(": ");
            html.raw(if is_late { "<b class=\"mark\">" } else { "<b>" }).text(&shown).raw("</b>");
        }
    }

    fn guest(&self, html: &mut Html, standing: &GuestStatus, fleet: &FleetGuest) {
        let now = self.fleet.status.at;
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let over = |is_over: bool| if is_over { "<b class=\"mark\">" } else { "<b>" };
        html.raw("<tr class=\"").raw(class(standing.level)).raw("\"><th>").text(&standing.guest);
        html.open("State").raw("<b class=\"mark\">").text(&standing.level.to_string()).raw("</b>");
        let age = standing.newest_at.map(|at| now.as_second() - at.as_second());
        let rpo = standing.rpo.map(|rpo| i64::try_from(rpo.0.as_secs()).unwrap_or(i64::MAX));
        let is_late = age.is_none_or(|age| rpo.is_some_and(|rpo| age > rpo));
        html.open("Newest point").raw(over(is_late));
        html.text(&standing.newest_at.map_or("none".to_owned(), |at| ago(now, at))).raw("</b>");
        html.cell("RPO", &or_dash(standing.rpo.map(|rpo| rpo.to_string())));
        let is_long = fleet.gap.zip(rpo).is_some_and(|(gap, rpo)| gap > rpo as f64);
        html.open("Longest gap").raw(over(is_long));
        html.text(&or_dash(fleet.gap.map(|gap| duration::age(gap as i64)))).raw("</b>");
        let never = match standing.never_proved {
            None | Some(0) => String::new(),
            Some(never) => format!("; {never} never"),
        };
        let proved = standing.proved_at.map_or("never".to_owned(), |at| ago(now, at) + &never);
        html.cell("Proved", &proved);
        let drill = match (standing.drilled_at, standing.drilled) {
            (None, None) => "never".to_owned(),
            (None, Some(Climb::Failed)) => "failed".to_owned(),
            (None, Some(_)) => "not tried".to_owned(),
            (Some(at), Some(Climb::Failed)) => format!("failed; passed {}", ago(now, at)),
            (Some(at), Some(Climb::NotTried)) => format!("not tried; passed {}", ago(now, at)),
            (Some(at), _) => match standing.recovery {
                Some(back) => format!("{}, recovery {}", ago(now, at), seconds(back)),
                None => ago(now, at),
            },
        };
        html.cell("Drill", &drill);
        html.cell("RTO", &or_dash(standing.rto.map(|rto| rto.to_string())));
        html.cell("Points", &or_dash(standing.points.map(|it| it.to_string())));
        if self.has_copies() {
            self.copies(html, standing);
        }
        html.open("Nights").raw(&strip(&fleet.days));
        html.open("Chain").raw(&chain(fleet)).raw("</tr>\n");
    }
}

/// The last nights of a guest, a bar for each run of equal ones.
fn strip(days: &str) -> String {
    let from = days.len().saturating_sub(STRIP_DAYS);
    let days: Vec<u8> = days.bytes().skip(from).collect();
    let mut svg = format!("<svg class=\"s\" width=\"{}\" height=\"12\">", days.len() * STEP);
    let mut at = 0;
    for run in days.chunk_by(|one, other| one == other) {
        let kind = match run.first() {
            Some(b'd') => "d",
            Some(b'w') => "w",
            Some(b'f') => "f",
            _ => "n",
        };
        let (x, width) = (at * STEP, run.len() * STEP);
        let _ = write!(svg, "<path class=\"{kind}\" d=\"M{x} 0h{width}v12H{x}z\"/>");
        at += run.len();
    }
    svg.push_str("</svg>");
    svg
}

/// The points of a guest: fulls are tall, and increments stand in the line that begins with their full.
/// A run of equal points is one line with gaps.
fn chain(fleet: &FleetGuest) -> String {
    if fleet.points.is_empty() {
        return "-".to_owned();
    }
    let of_point = |point: &FleetPoint| match () {
        () if !point.good => "bad",
        () if point.full => "full",
        () => "inc",
    };
    let older = if fleet.older > 0 { format!(" and {} older", fleet.older) } else { String::new() };
    let mut svg = format!(
        "<svg class=\"c\" width=\"{}\" height=\"14\"><title>{} points, {}{older}</title>",
        fleet.points.len() * STEP,
        fleet.points.len(),
        bytes(fleet.points.iter().map(|point| point.bytes).sum())
    );
    for (kind, y) in [("full", "5.5"), ("inc", "8.5"), ("bad", "8.5")] {
        svg.push_str(&runs(fleet, kind, y, |point| of_point(point) == kind));
    }
    svg.push_str(&runs(fleet, "un", "13", |point| !point.proved));
    svg.push_str("</svg>");
    svg
}

/// A path of all runs of points that are so; nothing if none is.
fn runs(fleet: &FleetGuest, kind: &str, y: &str, is_so: impl Fn(&FleetPoint) -> bool) -> String {
    let (mut path, mut at) = (String::new(), 0);
    for run in fleet.points.chunk_by(|one, other| is_so(one) == is_so(other)) {
        if run.first().is_some_and(&is_so) {
            let _ = write!(path, "M{} {y}h{}", at * STEP, run.len() * STEP);
        }
        at += run.len();
    }
    match path.is_empty() {
        true => path,
        false => format!("<path class=\"{kind}\" d=\"{path}\"/>"),
    }
}
