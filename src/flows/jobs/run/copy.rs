//! The second copy of a job's points.

use super::acts::{is_short, of_all};
use super::backup::too_little_room;
use super::{Came, Work};
use crate::base::error::{ErrorKind, Result};
use crate::flows::backup::LEVEL_DEFAULT;
use crate::flows::copies::{self, CopyRequest};
use crate::flows::merge::MergeOptions;
use crate::flows::report::{Act, ActResult, End, Failure, GuestCopy};
use crate::vault::repository::Repository;

impl Work<'_> {
    /// Copies the points of the job's guests.
    pub(super) fn copy(&self, repository: &Repository) -> Result<Came> {
        let (host, domains) = (self.run.host, self.domains_with_gone(repository, Act::Copy)?);
        let Some(how) = self.job.copy.as_ref().filter(|_| !domains.is_empty()) else {
            return Ok(Came::to(End::Done, "there is nothing to copy yet"));
        };
        let place = host.config.copy_of(self.name, how)?;
        let other = self.open(&how.to, place)?;
        let other = match how.limit_rate {
            Some(rate) => other.limited(rate, self.run.cancel),
            None => other,
        };
        if is_short(&other, place.keep_free) {
            return Err(too_little_room(&other, place.keep_free));
        }
        let at_once = host.config.limits.guests_at_once.min(domains.len()).max(1);
        let request = CopyRequest {
            domains,
            points: how.points.clone(),
            dry_run: false,
            same_guest: false,
            at_once,
            options: MergeOptions { level: LEVEL_DEFAULT, resources: self.resources(at_once) },
        };
        let sides = (repository, &other);
        let report = copies::copy(sides, &request, self.run.observer, self.run.cancel)?;
        let mut ends = Vec::new();
        for guest in report.guests {
            let name = guest.domain.to_string();
            let end = self.run.doing(Some(self.name), Act::Copy, Some(&name), || of_copy(guest));
            ends.push((name, end));
        }
        let mut came = match report.interrupted {
            true => Came::to(End::Interrupted, "stopped on request"),
            false => of_all("copied", &ends),
        };
        if came.end == End::Done && !report.warnings.is_empty() {
            came.end = End::Warned;
        }
        came.warnings = report.warnings;
        Ok(came)
    }
}

/// Nothing is wrong with what somebody stopped: it is due again.
fn end_of(failure: &Failure) -> End {
    match failure.kind {
        ErrorKind::Interrupted => End::Interrupted,
        _ => End::Failed,
    }
}

fn of_copy(guest: GuestCopy) -> Came {
    let first = guest.failed.first();
    let mut came = match (&guest.error, first) {
        (Some(failure), _) => Came {
            advice: failure.advice.clone(),
            ..Came::to(end_of(failure), failure.text.clone())
        },
        (None, Some(first)) => {
            let more = guest.failed.len() - 1;
            let more = if more > 0 { format!("; and {more} more points") } else { String::new() };
            let text = format!("point {}: {}{more}", first.point, first.error.text);
            Came { advice: first.error.advice.clone(), ..Came::to(end_of(&first.error), text) }
        }
        (None, None) => {
            let disks = guest.points.iter().flat_map(|point| &point.disks);
            let bytes = bytesize::ByteSize(disks.map(|disk| disk.bytes_written).sum());
            let count = guest.points.len();
            let plural = if count == 1 { "" } else { "s" };
            Came::to(End::Done, format!("{count} point{plural}, {}", bytes.display().iec()))
        }
    };
    came.result = Some(ActResult::Copy(Box::new(guest)));
    came
}
