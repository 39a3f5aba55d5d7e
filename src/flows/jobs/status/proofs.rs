//! Whether points are proved as often as the file promises.

use std::collections::BTreeMap;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::Look;
use super::guest::Points;
use crate::base::duration;
use crate::base::period::Period;
use crate::flows::jobs::config::{Config, Job};
use crate::flows::jobs::{due, sense};
use crate::flows::report::{Act, FindingCode, Level};

/// How long a point may wait where a job has a budget and says nothing of an age.
const AGE_MAX: Period = Period::days(30);

/// A job without a schedule is done now and then.
const GAP_S: i64 = 86_400;

/// The points of a job that wait too long for their proof.
pub(super) struct Late {
    /// How long they may wait.
    limit: Period,
    /// What was proved, or made and never proved, before this waits too long.
    since: Timestamp,
    points: usize,
    /// Since when the one waits that waits longest, and whose it is.
    longest: Option<(Timestamp, String)>,
}

/// The jobs that promise something, by name.
pub(super) fn promised(config: &Config, now: Timestamp, zone: &TimeZone) -> BTreeMap<String, Late> {
    let of = |(name, job): (&String, &Job)| {
        let verify = job.verify.as_ref()?;
        let limit = verify.max_age.or(verify.budget.map(|_| AGE_MAX))?;
        let own = Some(verify.schedule.as_slice()).filter(|schedule| !schedule.is_empty());
        // What is due just after one time has its turn at the next.
        let gap = sense::longest_gap(own.unwrap_or(&job.schedule), now, zone).unwrap_or(GAP_S);
        let slack = SignedDuration::from_secs(gap.saturating_add(due::LATE_MAX_S));
        let since = limit.before(now, zone).checked_sub(slack).unwrap_or(Timestamp::MIN);
        Some((name.clone(), Late { limit, since, points: 0, longest: None }))
    };
    config.jobs.iter().filter_map(of).collect()
}

impl Look<'_> {
    /// Counts the points of a guest of a job that wait too long.
    pub(super) fn count_late(&mut self, job: &str, guest: &str, points: &Points) {
        let Some(late) = self.late.get_mut(job) else { return };
        // No damaged point is ever proved, and that it is damaged is a finding of its own.
        for (manifest, _) in points.all.iter().filter(|(_, is_good)| *is_good) {
            let proved = points.proofs.get(&manifest.point).copied().flatten();
            let waits = proved.unwrap_or(manifest.created);
            if waits < late.since {
                late.points += 1;
                if late.longest.as_ref().is_none_or(|(longest, _)| waits < *longest) {
                    late.longest = Some((waits, guest.to_owned()));
                }
            }
        }
    }

    /// Counts since when the points of a guest of a job are good and proved.
    pub(super) fn count_proved(&mut self, job: &str, points: &Points) {
        for (manifest, is_good) in &points.all {
            let proof = points.proofs.get(&manifest.point).copied().flatten();
            let proof = proof.filter(|_| *is_good);
            let all = self.proved.entry(job.to_owned()).or_insert(proof);
            *all = all.zip(proof).map(|(all, proof)| all.min(proof));
        }
    }

    /// A verification that failed is over when all points were proved since, whoever did it: its job may do so again in a
    /// month.
    pub(super) fn proved_since(&mut self) {
        let proved = std::mem::take(&mut self.proved);
        // Of guests that went, too: they are no job's.
        if self.findings.iter().any(|finding| finding.code == FindingCode::Damaged) {
            return;
        }
        self.findings.retain(|finding| {
            let is_it = finding.code == FindingCode::Failed && finding.act == Some(Act::Verify);
            let all = finding.job.as_ref().and_then(|job| proved.get(job).copied().flatten());
            !is_it || all.zip(finding.since).is_none_or(|(all, since)| all <= since)
        });
    }

    /// Points that wait longer for their proof than a job allows: its budget is too small, or it is done too seldom.
    pub(super) fn unproved(&mut self) {
        for (name, late) in std::mem::take(&mut self.late) {
            let Some((waits, guest)) = late.longest else { continue };
            let text = format!(
                "{} point{} not proved for longer than {}: one of {guest} waits longest, for {}",
                late.points,
                if late.points == 1 { " was" } else { "s were" },
                late.limit,
                duration::age(self.now.as_second() - waits.as_second())
            );
            let advice = format!("a greater budget, or more times: [jobs.{name}.verify]");
            self.advise(Level::Warning, FindingCode::Unproved, &name, text, &advice);
            self.of_job(&name, Some(Act::Verify));
        }
    }
}
