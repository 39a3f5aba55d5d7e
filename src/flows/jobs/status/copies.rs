//! How the second copies of a guest stand.

use super::Look;
use super::guest::Of;
use crate::base::duration;
use crate::flows::jobs::config::copy::Copy;
use crate::flows::jobs::guests::Subject;
use crate::flows::report::{Act, CopyStatus, FindingCode, Level};
use crate::vault::repository::Manifest;

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

    /// How a second copy of a guest stands. That there is none is no news while there is nothing to copy.
    pub(super) fn copy(
        &mut self,
        guest: &str,
        of: &Of,
        copy: &Copy,
        has_points: bool,
    ) -> CopyStatus {
        let domain = &of.domain;
        // That it can't be opened is a finding of its own.
        let opened = self.catalogs.get(copy.to.as_str());
        let is_open = opened.is_some();
        let points = opened.and_then(|opened| opened.points(of, self.now).ok());
        let all = points.iter().flat_map(|points| points.all.iter().rev());
        // A manifest without its archives is no copy.
        let newest: Option<Manifest> =
            all.filter(|(it, is_good)| *is_good && !it.safety).map(|(it, _)| it.clone()).next();
        if let Some(points) = points.as_ref().filter(|points| points.damaged > 0) {
            let text = format!(
                "{} of its {} points in {} can't be restored whole",
                points.damaged, points.count, copy.to
            );
            let advice = format!("qdelta repair mends {} from the other repository", copy.to);
            self.advise(Level::Critical, FindingCode::Damaged, guest, text, &advice);
        }
        self.lost(guest, domain, &copy.to);
        let age = newest.as_ref().map(|it| self.now.as_second() - it.created.as_second());
        let late = age
            .zip(copy.rpo)
            .filter(|(age, rpo)| u64::try_from(*age).is_ok_and(|age| age > rpo.0.as_secs()));
        if let Some((age, rpo)) = late {
            let text = format!(
                "its newest point in {} is {} old, and its RPO there is {rpo}",
                copy.to,
                duration::age(age)
            );
            let advice = format!("qdelta history --guest {domain} says what happened");
            self.advise(Level::Critical, FindingCode::Copy, guest, text, &advice);
        } else if is_open && newest.is_none() && has_points {
            let text = format!("it has no point in {} yet", copy.to);
            let advice = "the next run copies it; or qdelta copy does";
            self.advise(Level::Warning, FindingCode::Copy, guest, text, advice);
        }
        CopyStatus {
            repository: copy.to.clone(),
            newest: newest.as_ref().map(|manifest| manifest.point),
            newest_at: newest.as_ref().map(|manifest| manifest.created),
            safe_until: newest.as_ref().and_then(|manifest| {
                let opened = self.catalogs.get(copy.to.as_str())?;
                opened.catalog.safe_until(domain, [manifest.point]).ok()?.into_values().next()
            }),
            rpo: copy.rpo,
        }
    }
}
