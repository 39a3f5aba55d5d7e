//! What the repositories keep: whether each is the one that it was, whether what was made is still there, and points
//! that no job looks after.

use std::collections::{BTreeMap, BTreeSet};

use super::guest::{Of, Points};
use super::{Look, Opened};
use crate::flows::jobs::guests::{Gone, Subject};
use crate::flows::jobs::words::operand;
use crate::flows::report::{Act, End, FindingCode, Level};
use crate::vault::repository::DomainName;

/// A guest that this host never backed up belongs to another one, as long as its newest point is no older.
const FOREIGN_AGE_MAX_S: i64 = 35 * 86_400;

impl Look<'_> {
    /// Names behind which another repository is than runs have found there.
    pub(super) fn replaced(&mut self, known: &BTreeMap<String, String>) {
        let is_other = |(name, opened): (&String, &Opened)| {
            let id = opened.catalog.repository().id();
            let before = known.get(name).filter(|before| before.as_str() != id)?;
            Some((name.clone(), before.clone(), id.to_owned()))
        };
        let others: Vec<_> = self.catalogs.iter().filter_map(is_other).collect();
        for (name, before, id) in others {
            let text = format!(
                "it is another repository than before: its id is {id}, and was {before}; no point of before is in it"
            );
            let advice = format!(
                "see what is mounted there; if the new one is meant, give it another name than {name} in the file"
            );
            self.advise(Level::Critical, FindingCode::Replaced, &name, text, &advice);
        }
    }

    /// The newest point of a guest that this host has made or seen in a repository is not there any more.
    pub(super) fn lost(&mut self, guest: &str, domain: &DomainName, place: &str) {
        let Some(opened) = self.catalogs.get(place) else { return };
        let seen = opened.catalog.repository().newest_seen(domain);
        let newest = opened.catalog.newest_of(domain);
        let Some(seen) = seen.filter(|seen| newest.is_none_or(|newest| newest < *seen)) else {
            return;
        };
        // What was made while this look went on is not lost: the points were listed before.
        if opened.catalog.repository().versioned(domain, seen).is_ok() {
            return;
        }
        let now = newest
            .map_or("it has none there now".to_owned(), |it| format!("its newest now is {it}"));
        let text = format!("point {seen} was in {place} when this host looked last, and {now}");
        let advice = "if nobody has removed it, the repository was put back to an earlier state, or files of it \
                      are gone: compare it with another copy";
        self.advise(Level::Critical, FindingCode::Lost, guest, text, advice);
    }

    /// Points of guests that no job backs up into their repository: what is wrong with them, and whom libvirt does not
    /// have any more. Points are asked and not jobs: a job that was renamed or left out knows nothing.
    pub(super) fn kept(&mut self) {
        let (mut covered, mut meant) = (BTreeSet::new(), BTreeSet::new());
        for (name, job) in &self.config.jobs {
            let own = self.config.repository_of(name, job).ok().map(|(place, _)| place);
            let places = || own.into_iter().chain(job.copy.as_ref().map(|copy| copy.to.as_str()));
            for domain in self.guests.of(job).iter().filter_map(|it| self.guests.domain_of(it).ok())
            {
                covered.extend(places().map(|place| (place.to_owned(), domain.clone())));
                meant.insert(domain);
            }
        }
        let had = self
            .guests
            .names()
            .map(|name| Subject::Guest { name: name.to_owned(), excluded: Vec::new() });
        meant.extend(had.filter_map(|it| self.guests.domain_of(&it).ok()));
        let gone = self.guests.gone(self.config, self.memory);
        let others = |(place, opened): (&String, &Opened)| {
            let all = opened.domains.iter().map(|domain| (place.clone(), domain.clone()));
            all.filter(|it| !covered.contains(it)).collect::<Vec<_>>()
        };
        let others: Vec<_> = self.catalogs.iter().flat_map(others).collect();
        let mut told = BTreeSet::new();
        for (place, domain) in others {
            let Some(opened) = self.catalogs.get(&place) else { continue };
            let points = match opened.points(&Of::all(&domain), self.now) {
                Ok(points) => points,
                Err(error) => {
                    self.trouble(FindingCode::Repository, domain.as_str(), &error);
                    continue;
                }
            };
            let is_ours = opened.catalog.repository().newest_seen(&domain).is_some();
            let machine = points.all.last().and_then(|(it, _)| it.machine.as_ref());
            let name = machine.map_or(domain.to_string(), |machine| machine.name.clone());
            if points.damaged > 0 {
                self.damaged(&name, &domain, &points, &place);
            }
            let is_meant = meant.contains(&domain) || self.guests.has(&name);
            let is_ignored = [name.as_str(), domain.as_str()]
                .iter()
                .any(|name| self.guests.is_meant(&self.config.ignore, name));
            let newest = points.all.last().map(|(it, _)| it.created.as_second());
            let is_old = newest.is_none_or(|it| self.now.as_second() - it > FOREIGN_AGE_MAX_S);
            // In a repository of several hosts, the others see to their guests.
            let is_foreign = !is_ours && !is_old && gone.iter().all(|it| it.domain != domain);
            let is_nobodys = points.count > 0 && !is_meant && !is_ignored && !is_foreign;
            if is_nobodys && told.insert(domain.clone()) {
                let job = gone.iter().find(|it| it.domain == domain);
                self.gone(&name, machine.is_some(), job, (&points, &place));
            }
        }
    }

    fn gone(
        &mut self,
        name: &str,
        is_guest: bool,
        known: Option<&Gone<'_>>,
        (points, place): (&Points, &str),
    ) {
        let (count, plural) = (points.count, if points.count == 1 { "" } else { "s" });
        let what = match is_guest {
            true => "libvirt does not have this guest any more",
            false => "no job backs it up any more",
        };
        let rules = match known.and_then(|it| it.job) {
            Some(job) => format!("by the rules of {job}"),
            None => "and no rule removes them".to_owned(),
        };
        let noted = known.and_then(|it| {
            let past = self.memory.of(Some(it.job?), Act::Backup, Some(it.guest));
            past.last.filter(|record| record.end == End::Gone).map(|record| record.began)
        });
        let text = format!("{what}; its {count} point{plural} in {place} stay, {rules}");
        if let Some(finding) = self.find(Level::Warning, FindingCode::Gone, name, text) {
            finding.since = noted;
            finding.advice = Some("if that is right, add it to ignore".to_owned());
        }
    }

    fn damaged(&mut self, name: &str, domain: &DomainName, points: &Points, place: &str) {
        let (damaged, count) = (points.damaged, points.count);
        let text = format!("{damaged} of its {count} points in {place} can't be restored whole");
        let advice = format!("qdelta verify {} says what is damaged", operand(domain.as_str()));
        self.advise(Level::Critical, FindingCode::Damaged, name, text, &advice);
    }
}
