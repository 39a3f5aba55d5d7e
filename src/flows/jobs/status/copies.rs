//! How the second copies of a guest stand.

use super::Look;
use crate::base::duration;
use crate::flows::jobs::config::copy::Copy;
use crate::flows::jobs::guests::Subject;
use crate::flows::report::{Act, CopyStatus, FindingCode, Level};
use crate::vault::repository::{DomainName, Manifest};

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

    /// How a second copy of a guest stands that has points.
    pub(super) fn copy(&mut self, guest: &str, domain: &DomainName, copy: &Copy) -> CopyStatus {
        let counts = |it: &Manifest| it.removed.is_none() && !it.safety;
        // That it can't be opened is a finding of its own.
        let opened = self.catalogs.get(copy.to.as_str());
        let newest: Option<Manifest> = opened
            .filter(|opened| opened.domains.contains(domain))
            .and_then(|opened| opened.catalog.manifests(domain).ok())
            .and_then(|all| all.into_iter().rev().find_map(|(_, it)| it.ok().filter(counts)));
        let is_open = opened.is_some();
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
        } else if is_open && newest.is_none() {
            let text = format!("it has no point in {} yet", copy.to);
            let advice = "the next run copies it; or qdelta copy does";
            self.advise(Level::Warning, FindingCode::Copy, guest, text, advice);
        }
        CopyStatus {
            repository: copy.to.clone(),
            newest: newest.as_ref().map(|manifest| manifest.point),
            newest_at: newest.as_ref().map(|manifest| manifest.created),
            rpo: copy.rpo,
        }
    }
}
