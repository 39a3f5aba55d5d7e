//! What would be lost if a site burned down tonight.

use super::Page;
use super::html::{Html, count};
use crate::base::duration;
use crate::flows::report::{Left, SiteLoss};

/// So many guests are named.
const NAMES_MAX: usize = 30;

impl Page<'_> {
    pub(super) fn losses(&self, html: &mut Html) {
        html.raw(
            "<section><h2>If a site burned down tonight</h2><div class=\"sites\" id=\"sites\">",
        );
        for site in &self.fleet.sites {
            self.site(html, site);
        }
        html.raw("</div></section>\n");
    }

    fn site(&self, html: &mut Html, site: &SiteLoss) {
        let is_whole = site.left.iter().all(|left| left.without.is_empty());
        let bad = if site.nothing_left.is_empty() && is_whole { "ok" } else { "cr" };
        html.raw("<div class=\"site ").raw(bad).raw("\"><h3>").text(&match site.host {
            true => format!("This host ({})", site.site),
            false => format!("The repository {}", site.site),
        });
        html.raw("</h3>");
        if site.host {
            let with = match site.repositories.as_slice() {
                [] => "No repository lies on a disk of this host, as far as is known.".to_owned(),
                own => format!("On disks of this host, and lost with it: {}.", own.join(", ")),
            };
            html.raw("<p>").text(&with).raw("</p>");
        }
        if !site.nothing_left.is_empty() {
            let named: Vec<&str> =
                site.nothing_left.iter().take(NAMES_MAX).map(String::as_str).collect();
            let more = site.nothing_left.len() - named.len();
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let what =
                if site.host { "would be gone for good" } else { "would have no point left" };
            html.raw("<p><b class=\"mark\">");
            html.text(&format!("{} {what}", count(site.nothing_left.len(), "guest")));
            html.raw("</b>: ").text(&named.join(", ")).text(&more).raw("</p>");
        }
        let worst = site.left.iter().max_by(|one, other| one.age.total_cmp(&other.age));
        let Some(Left { guest, repository, age, .. }) = worst else {
            html.raw("</div>");
            return;
        };
        let age = duration::age(*age as i64);
        let guests = count(site.left.len(), "guest");
        html.raw("<p>").text(&match site.host {
            true => format!(
                "{guests} would come back and lose what was written since: at most {age} ({guest}, from {repository})."
            ),
            false => format!(
                "{guests} would still have a point elsewhere, the oldest {age} old ({guest}, in {repository})."
            ),
        });
        html.raw("</p>");
        halves(html, site);
        self.late(html, site);
        html.raw("</div>");
    }

    /// Those whose backup is older than it may be: what came since would be lost.
    fn late(&self, html: &mut Html, site: &SiteLoss) {
        let guests = &self.fleet.status.guests;
        let rpo = |left: &Left| guests.iter().find(|it| it.guest == left.guest)?.rpo;
        let late = site.left.iter().filter_map(|left| {
            let rpo = rpo(left).filter(|rpo| left.age > rpo.0.as_secs_f64())?;
            Some(format!("{} ({}, its RPO is {rpo})", left.guest, duration::age(left.age as i64)))
        });
        let late: Vec<String> = late.collect();
        if late.is_empty() {
            return;
        }
        let more = late.len().saturating_sub(NAMES_MAX);
        let named = late.iter().take(NAMES_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        html.raw("<p><b class=\"mark\">");
        html.text(&format!("{} would lose more than the RPO allows", count(late.len(), "guest")));
        html.raw("</b>: ").text(&named).text(&more).raw("</p>");
    }
}

/// Those that would come back without some of their disks.
fn halves(html: &mut Html, site: &SiteLoss) {
    let halves = site.left.iter().filter(|left| !left.without.is_empty());
    let halves: Vec<_> =
        halves.map(|left| format!("{} ({})", left.guest, left.without.join(", "))).collect();
    if !halves.is_empty() {
        let more = halves.len().saturating_sub(NAMES_MAX);
        let named =
            halves.iter().take(NAMES_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        html.raw("<p><b class=\"mark\">");
        html.text(&format!("{} would come back without disks", count(halves.len(), "guest")));
        html.raw("</b>: ").text(&named).text(&more).raw("</p>");
    }
}
