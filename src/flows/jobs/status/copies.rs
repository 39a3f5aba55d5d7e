//! How the second copies of a guest stand.

use std::collections::{BTreeMap, BTreeSet};

use super::Look;
use super::guest::{Of, Points};
use crate::base::duration;
use crate::flows::jobs::config::Job;
use crate::flows::jobs::config::copy::Copy;
use crate::flows::jobs::guests::Subject;
use crate::flows::jobs::words::option;
use crate::flows::report::{Act, CopyStatus, FindingCode, GuestStatus, Level};

impl Look<'_> {
    /// The last copy of a guest by a job did not work. Copies are called as the repository calls a guest.
    pub(super) fn copy_failed(&mut self, job: &str, guest: &str, subject: &Subject) {
        let Ok(domain) = self.guests.domain_of(subject) else { return };
        let before = self.findings.len();
        self.act_of_guest_failed(job, Act::Copy, domain.as_str());
        for finding in self.findings.iter_mut().skip(before) {
            guest.clone_into(&mut finding.subject);
        }
    }

    /// How the second copies stand that these jobs make of a guest, the strictest job first. `points` are those in the
    /// repository of the jobs.
    pub(super) fn copies(
        &mut self,
        of: &Of,
        jobs: &[&(&str, &Job, Subject)],
        points: &Points,
        standing: &mut GuestStatus,
    ) {
        let guest = standing.guest.clone();
        let mut all: BTreeMap<&str, Option<Points>> = BTreeMap::new();
        let mut told = BTreeSet::new();
        for (name, job, subject) in jobs {
            let Some(copy) = &job.copy else { continue };
            let there = all.entry(&copy.to).or_insert_with(|| self.points_of_copy(of, copy));
            match standing.copies.iter_mut().find(|it| it.repository == copy.to) {
                Some(known) => known.rpo = known.rpo.into_iter().chain(copy.rpo).min(),
                None => standing.copies.push(self.copy(&guest, of, copy, there.as_ref())),
            }
            // That it can't be opened is a finding of its own.
            let Some(there) = there else { continue };
            let before = self.findings.len();
            let wanted = self.guests.disks_to_take(subject);
            self.not_in_copy(&guest, &wanted, copy, (points, there), &mut told);
            self.copy_is_late(&guest, of, &wanted, copy, there, &mut told);
            for finding in self.findings.iter_mut().skip(before) {
                finding.job = Some((*name).to_owned());
            }
        }
    }

    /// What is known of the points of a guest in a second copy; none if it can't be read.
    fn points_of_copy(&self, of: &Of, copy: &Copy) -> Option<Points> {
        let mut found = self.catalogs.get(&copy.to)?.points(of, self.now).ok()?;
        // One that was made before a roll back is no copy of a night.
        found.all.retain(|(it, _)| !it.safety);
        found.newest = found.good().max_by_key(|it| it.point).cloned();
        Some(found)
    }

    /// How a second copy of a guest stands.
    fn copy(&mut self, guest: &str, of: &Of, copy: &Copy, there: Option<&Points>) -> CopyStatus {
        if let Some(points) = there.filter(|points| points.damaged > 0) {
            let text = format!(
                "{} of its {} points in {} can't be restored whole",
                points.damaged, points.count, copy.to
            );
            let advice = format!("qdelta repair mends {} from the other repository", copy.to);
            self.advise(Level::Critical, FindingCode::Damaged, guest, text, &advice);
        }
        self.lost(guest, &of.domain, &copy.to);
        let newest = there.and_then(|points| points.newest.as_ref());
        CopyStatus {
            repository: copy.to.clone(),
            newest: newest.map(|manifest| manifest.point),
            newest_at: newest.map(|manifest| manifest.created),
            safe_until: newest.and_then(|manifest| {
                let opened = self.catalogs.get(&copy.to)?;
                opened.catalog.safe_until(&of.domain, [manifest.point]).ok()?.into_values().next()
            }),
            rpo: copy.rpo,
        }
    }

    /// What is in points here and in none of a copy. That there is none is no news while there is nothing to copy.
    fn not_in_copy(
        &mut self,
        guest: &str,
        wanted: &[String],
        copy: &Copy,
        (here, there): (&Points, &Points),
        told: &mut BTreeSet<String>,
    ) {
        let is_missing =
            |disk: &&String| here.newest_with(disk).is_some() && there.newest_with(disk).is_none();
        let missing: Vec<&str> = wanted.iter().filter(is_missing).map(String::as_str).collect();
        let of = match (&here.newest, &there.newest) {
            (None, _) => return,
            (Some(_), None) => String::new(),
            (Some(_), Some(_)) if missing.is_empty() => return,
            (Some(_), Some(_)) => format!(" with disk {}", missing.join(", ")),
        };
        let text = format!("it has no point{of} in {} yet", copy.to);
        if told.insert(text.clone()) {
            let advice = "the next run copies it; or qdelta copy does";
            self.advise(Level::Warning, FindingCode::Copy, guest, text, advice);
        }
    }

    /// The newest point of a guest in a copy, or that of a disk, is older than it may be.
    fn copy_is_late(
        &mut self,
        guest: &str,
        of: &Of,
        wanted: &[String],
        copy: &Copy,
        there: &Points,
        told: &mut BTreeSet<String>,
    ) {
        let late =
            there.newest.as_ref().and_then(|it| there.behind(it, wanted, copy.rpo, self.now));
        let Some((found, rpo, disk)) = late else { return };
        if told.insert(format!("{} in {}", found.point, copy.to)) {
            let age = duration::age(self.now.as_second() - found.created.as_second());
            let text = format!(
                "its newest point{disk} in {} is {age} old, and its RPO there is {rpo}",
                copy.to
            );
            let advice = format!(
                "qdelta history {} says what happened",
                option("--guest", of.domain.as_str())
            );
            self.advise(Level::Critical, FindingCode::Copy, guest, text, &advice);
        }
    }
}
