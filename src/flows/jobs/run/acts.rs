//! The acts of a job: each is done, whatever became of the ones before it.

use std::collections::BTreeSet;

use super::{Came, Work};
use crate::base::clock;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::warning::{Code, Warning};
use crate::disk::flow::pipeline::Resources;
use crate::flows::backup::LEVEL_DEFAULT;
use crate::flows::drill::{self, DrillRequest};
use crate::flows::host;
use crate::flows::jobs::guests::Subject;
use crate::flows::jobs::{config, due};
use crate::flows::merge::MergeOptions;
use crate::flows::prune::{self, PruneRequest};
use crate::flows::report::{
    Act, ActResult, DrillReport, End, GuestPrune, PruneReport, Spare, VerifyReport,
};
use crate::flows::retain::{Clock, Policy};
use crate::flows::verify::{self, Scrub, Target, VerifyRequest};
use crate::vault::repository::{Climb, DiskAt, DomainName, Repository, Rung, Targets};

/// How long a program of a drill may take if the file does not say.
const DRILL_PROGRAM_MAX: std::time::Duration = std::time::Duration::from_secs(30 * 60);

/// So many names stand in a line.
const NAMES_MAX: usize = 10;

impl Work<'_> {
    /// Does these parts.
    pub(super) fn acts(&self, acts: &[Act]) {
        let config = self.run.host.config;
        let opened = config
            .repository_of(self.name, self.job)
            .and_then(|(name, place)| self.open(name, place).map(|it| (it, place.keep_free)));
        let (repository, keep_free) = match opened {
            Ok(opened) => opened,
            Err(error) => return self.leave(acts, End::Failed, &Came::failed(&error)),
        };
        let is_short = || is_short(&repository, keep_free);
        let mut order = acts.to_vec();
        // Where there is too little room, what can go goes before something new comes.
        if is_short()
            && let Some(prune) = order.iter().position(|act| *act == Act::Prune)
        {
            let act = order.remove(prune);
            order.insert(0, act);
        }
        for act in order {
            let job = Some(self.name);
            if self.run.cancel.is_cancelled() {
                let stopped = Came::to(End::Interrupted, "stopped on request before it began");
                self.run.doing(job, act, None, || stopped);
                continue;
            }
            if self.run.is_unnoted() {
                let left = Came::to(End::NotTried, "what was done before could not be noted");
                self.run.doing(job, act, None, || left);
                continue;
            }
            self.run.doing(job, act, None, || {
                let came = match act {
                    Act::Backup => Ok(self.back_up(&repository, keep_free)),
                    Act::Copy => self.copy(&repository),
                    Act::Verify => self.verify(&repository),
                    Act::Prune => self.prune(&repository, keep_free),
                    Act::Drill => self.drill(&repository),
                    Act::Run | Act::Hook | Act::Notify => Ok(Came::to(End::Done, "")),
                };
                self.with_missed(act, came.unwrap_or_else(|error| Came::failed(&error)))
            });
        }
    }

    /// Says how many times of this part were missed while nobody looked: a night that is made up for hides those
    /// before it.
    fn with_missed(&self, act: Act, mut came: Came) -> Came {
        let (run, acts) = (self.run, due::acts(self.job));
        let schedule = acts.into_iter().find(|(it, _)| *it == act).map(|(_, schedule)| schedule);
        let last = run.memory.of(Some(self.name), act, None).last.map(|record| record.began);
        // A run that was at work missed nothing: what waited for it is done by the next.
        let run_before = run.memory.of(None, Act::Run, None).last.map(|record| record.began);
        let Some((schedule, since)) =
            schedule.zip(last.map(|last| last.max(run_before.unwrap_or(last))))
        else {
            return came;
        };
        let Ok(zone) = run.host.config.zone() else { return came };
        if let Some((first, count)) = due::missed(schedule, since, run.now, &zone) {
            let first = first.to_zoned(zone).strftime("%Y-%m-%d %H:%M").to_string();
            let were = if count == 1 { "time was" } else { "times were" };
            let text = format!("{count} {were} missed since {first}, and one is made up for");
            let advice = "see whether this host was off, or what starts qdelta run stood still";
            came.warnings.push(Warning::new(Code::Missed, text).advise(advice));
            if came.end == End::Done {
                came.end = End::Warned;
            }
        }
        came
    }

    /// The guests of the job that the repository has points of, and what else it backs up.
    fn domains(&self, repository: &Repository) -> Result<Vec<DomainName>> {
        let wanted = self.subjects.iter().filter_map(|it| self.run.guests.domain_of(it).ok());
        self.there(repository, wanted)
    }

    /// The guests of the job, and those that were its guests until they went: their points are kept and proved as
    /// long as the rules say. The points of one that went are not pruned here where another host makes them now. Where
    /// nothing is removed, guests of jobs that are not in the file any more count, too: nobody else would prove them.
    pub(super) fn domains_with_gone(
        &self,
        repository: &Repository,
        act: Act,
    ) -> Result<Vec<DomainName>> {
        let wanted = self.subjects.iter().filter_map(|it| self.run.guests.domain_of(it).ok());
        let takes_orphans = act != Act::Prune && self.is_first_with(act);
        let gone = self.run.guests.gone(self.run.host.config, self.run.memory);
        let catalog = repository.catalog();
        let gone = gone.into_iter().filter(|it| match it.job {
            Some(_) if act == Act::Prune && catalog.is_made_elsewhere(&it.domain) => false,
            Some(job) => job == self.name,
            None => takes_orphans,
        });
        self.there(repository, wanted.chain(gone.map(|it| it.domain)))
    }

    /// Whether no job before this one does the same in the same repository.
    fn is_first_with(&self, act: Act) -> bool {
        let config = self.run.host.config;
        let place = |name: &str, job| config.repository_of(name, job).ok().map(|(it, _)| it);
        let own = place(self.name, self.job);
        let has_act = |job| due::acts(job).iter().any(|(it, _)| *it == act);
        let mut with =
            config.jobs.iter().filter(|(name, job)| has_act(job) && place(name, job) == own);
        with.next().is_some_and(|(name, _)| name == self.name)
    }

    fn there(
        &self,
        repository: &Repository,
        wanted: impl Iterator<Item = DomainName>,
    ) -> Result<Vec<DomainName>> {
        let there: BTreeSet<DomainName> = repository.domains()?.into_iter().collect();
        Ok(there.intersection(&wanted.collect()).cloned().collect())
    }

    fn verify(&self, repository: &Repository) -> Result<Came> {
        let domains = self.domains_with_gone(repository, Act::Verify)?;
        if domains.is_empty() {
            return Ok(Came::to(End::Done, "there is nothing to prove yet"));
        }
        let target =
            |domain: &DomainName| Ok(Target { disk: domain.as_str().parse()?, point: None });
        let how = self.job.verify.as_ref();
        let scrub = how.filter(|how| how.budget.is_some() || how.max_age.is_some());
        let request = VerifyRequest {
            targets: domains.iter().map(target).collect::<Result<_>>()?,
            quick: false,
            scrub: scrub.map(|how| Scrub { max_age: how.max_age, budget: how.budget }),
            resources: self.resources(1),
        };
        let report = verify::run(repository, &request, self.run.observer, self.run.cancel)?;
        Ok(of_verify(report))
    }

    fn prune(&self, repository: &Repository, keep_free: Option<u64>) -> Result<Came> {
        let settings = repository.settings()?;
        let how = self.job.prune.as_ref();
        let policy = Policy {
            keep: how.and_then(|how| how.keep.clone()).unwrap_or(settings.keep.clone()),
            grace: how.and_then(|how| how.grace).unwrap_or(settings.grace),
            zone: settings.zone()?,
            now: clock::now()?,
            clock: Clock::Checked,
        };
        let others = self.run.guests.pruned_otherwise(self.run.host.config, (self.name, self.job));
        let mut domains = self.domains_with_gone(repository, Act::Prune)?;
        let is_in_both = |subject: &&Subject| others.contains_key(&subject.name());
        let in_both = self.subjects.iter().filter(is_in_both);
        let in_both: Vec<_> = in_both.filter_map(|it| self.run.guests.domain_of(it).ok()).collect();
        domains.retain(|domain| !in_both.contains(domain));
        let request = PruneRequest {
            domains,
            policy,
            time_zone: settings.time_zone,
            merge_share: settings.merge_share,
            until_free: keep_free.filter(|_| is_short(repository, keep_free)),
            dry_run: false,
            merging: MergeOptions { level: LEVEL_DEFAULT, resources: self.resources(1) },
        };
        let report = prune::run(repository, &request, self.run.observer, self.run.cancel)?;
        let mut came = of_prune(report);
        if let Some((guest, other)) = others.first_key_value().filter(|_| came.end == End::Done) {
            came.text = format!(
                "{}; job {other} prunes {guest} by other rules, so neither does ({} guests)",
                came.text,
                others.len()
            );
            came.end = End::Warned;
            let advice =
                "give both jobs the same keep and grace, or leave the guest out of one: except";
            came.advice = Some(advice.to_owned());
        }
        Ok(came)
    }

    fn drill(&self, repository: &Repository) -> Result<Came> {
        let mut domains = self.domains(repository)?;
        // No machine starts from the configuration of this host.
        domains.retain(|domain| !host::is_host(domain));
        let Some(how) = self.job.drill.as_ref().filter(|_| !domains.is_empty()) else {
            return Ok(Came::to(End::Done, "there is nothing to drill yet"));
        };
        let usual = if how.boot_command.is_some() { Rung::Agent } else { Rung::Check };
        let guest =
            |domain: &DomainName| Ok(DiskAt { disk: domain.as_str().parse()?, point: None });
        let request = DrillRequest {
            guests: domains.iter().map(guest).collect::<Result<_>>()?,
            pick: how.pick,
            wanted: how.to.unwrap_or(usual),
            boot_command: how.boot_command.clone(),
            time_limit: how.time_limit.map_or(DRILL_PROGRAM_MAX, |limit| limit.0),
            targets: Targets { rto: self.job.rto, rpo: self.job.rpo },
            folder: self.run.host.state.join("drills"),
            resources: self.resources(1),
        };
        let report = drill::run(repository, &request, self.run.observer, self.run.cancel)?;
        let mut ends = Vec::new();
        for guest in report.guests {
            let name = guest.domain.to_string();
            let end = self.run.doing(Some(self.name), Act::Drill, Some(&name), || of_drill(guest));
            ends.push((name, end));
        }
        let mut came = match report.interrupted {
            true => Came::to(End::Interrupted, "stopped on request"),
            false => of_all("drilled", &ends),
        };
        let has_failed = ends.iter().any(|(_, end)| *end == End::Failed);
        if came.end == End::Failed && !has_failed {
            came.end = End::NotTried;
        }
        Ok(came)
    }

    /// The threads of one of so many that work at once.
    pub(super) fn resources(&self, at_once: usize) -> Resources {
        let defaults = Resources::default();
        let limits = &self.run.host.config.limits;
        Resources { threads: limits.threads_each(at_once, defaults.threads), ..defaults }
    }
}

/// Whether less is free than is to stay free.
pub(super) fn is_short(repository: &Repository, keep_free: Option<u64>) -> bool {
    let free = repository.bytes_free();
    free.zip(keep_free).is_some_and(|(free, keep)| free < keep)
}

/// How all came out, in a line: `3 guests backed up`, `2 of 3 guests backed up; not web`.
pub(super) fn of_all(done: &str, ends: &[(String, End)]) -> Came {
    let bad: Vec<&str> =
        ends.iter().filter(|(_, end)| !end.is_success()).map(|(name, _)| name.as_str()).collect();
    let has = |wanted: End| ends.iter().any(|(_, end)| *end == wanted);
    let end = match () {
        () if has(End::Interrupted) => End::Interrupted,
        () if !bad.is_empty() => End::Failed,
        () if has(End::Warned) => End::Warned,
        () => End::Done,
    };
    let all = ends.len();
    Came::to(
        end,
        match bad.is_empty() {
            true => format!("{all} {done}"),
            false => format!("{} of {all} {done}; not {}", all - bad.len(), some_of(&bad)),
        },
    )
}

/// The first of some names, and how many more there are.
pub(super) fn some_of(names: &[impl AsRef<str>]) -> String {
    let shown: Vec<&str> = names.iter().take(NAMES_MAX).map(AsRef::as_ref).collect();
    match names.len().saturating_sub(NAMES_MAX) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

fn of_verify(mut report: VerifyReport) -> Came {
    // Each point and each archive would fill the history; what was found says which are damaged.
    report.disks.clear();
    let left = report.scrub.as_ref().map_or(0, |scrub| scrub.archives_left);
    let mut came = match report.findings.first() {
        Some(first) => {
            let more = report.findings.len() - 1;
            let more = if more > 0 { format!(", and {more} more") } else { String::new() };
            let path = first.path.display().to_string();
            let named = if first.problem.starts_with(&path) { String::new() } else { path + ": " };
            let text = format!("{named}{}{more}", first.problem);
            let mut came = Came::to(End::Failed, text);
            let advice = "qdelta verify says which points can't be restored whole";
            came.advice = Some(advice.to_owned());
            came
        }
        None if left > 0 => {
            let text =
                format!("{} proved; {left} left for the next time", archives(report.archives));
            Came::to(End::Done, text)
        }
        None => Came::to(End::Done, format!("{} proved", archives(report.archives))),
    };
    if came.end == End::Done && !report.warnings.is_empty() {
        came.end = End::Warned;
    }
    came.warnings = std::mem::take(&mut report.warnings);
    came.result = Some(ActResult::Verify(Box::new(report)));
    came
}

fn archives(count: u64) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} archive{plural}")
}

fn of_prune(report: PruneReport) -> Came {
    let removed: usize = report.guests.iter().map(|guest| guest.removed).sum();
    let freed: u64 = report.guests.iter().map(|guest| guest.data.bytes_freed).sum();
    let freed = bytesize::ByteSize(freed).display().iec();
    let plural = if removed == 1 { "" } else { "s" };
    let mut came = Came::to(End::Done, format!("{removed} point{plural} removed, {freed} freed"));
    let says = |guest: &GuestPrune| match &guest.error {
        Some(failure) => Some((failure.text.clone(), failure.advice.clone())),
        None => guest.data.spared.iter().find_map(|spared| match &spared.why {
            Spare::Damaged { problem } => Some((problem.text.clone(), problem.advice.clone())),
            Spare::Room { .. } => {
                let text = format!("{}: there is no room to merge what could go", guest.domain);
                Some((text, Some("make room; qdelta prune --until-free goes further".to_owned())))
            }
            _ => None,
        }),
    };
    if let Some((text, advice)) = report.guests.iter().find_map(says) {
        came = Came { advice, ..Came::to(End::Failed, text) };
    } else if let Some(guest) = report.guests.iter().find(|guest| guest.clock_in_doubt) {
        let text = format!(
            "{}: the clock stands far after the points before, and may be wrong: nothing is removed",
            guest.domain
        );
        came = Came::to(End::Warned, text);
        came.advice =
            Some("look at the clock; qdelta prune --trust-clock removes all the same".to_owned());
    }
    came.warnings = report.warnings;
    if came.end == End::Done && !came.warnings.is_empty() {
        came.end = End::Warned;
    }
    let says_something = |guest: &GuestPrune| {
        guest.removed > 0
            || guest.error.is_some()
            || guest.clock_in_doubt
            || guest.data.bytes_freed > 0
    };
    let guests = report.guests.into_iter().filter(says_something);
    let without_points = guests.map(|guest| GuestPrune { points: Vec::new(), ..guest });
    came.result = Some(ActResult::Prune(without_points.collect()));
    came
}

fn of_drill(report: DrillReport) -> Came {
    let mut came = match (&report.drill, &report.error) {
        (Some(drill), _) => {
            let bad = drill
                .steps
                .iter()
                .find(|step| step.result != Climb::Passed && step.rung <= drill.wanted);
            let reached = drill.reached.map_or("nothing", Rung::name);
            match (drill.result, bad) {
                (Climb::Passed, _) => Came::to(End::Done, format!("came to {reached}")),
                (Climb::NotTried, Some(step)) => {
                    let text =
                        format!("came to {reached}; {} was not tried: {}", step.rung, step.text);
                    Came::to(End::NotTried, text)
                }
                (_, Some(step)) if step.result == Climb::Failed => {
                    Came::to(End::Failed, format!("failed at {}: {}", step.rung, step.text))
                }
                _ => {
                    Came::to(End::Failed, format!("came to {reached}, {}", drill.missed.join(", ")))
                }
            }
        }
        (None, Some(failure)) => {
            Came { advice: failure.advice.clone(), ..Came::to(End::Failed, failure.text.clone()) }
        }
        (None, None) => Came::failed(&Error::new(ErrorKind::Io, "the drill said nothing")),
    };
    came.warnings.clone_from(&report.warnings);
    came.result = Some(ActResult::Drill(Box::new(report)));
    came
}

/// What a job's file says of how a guest is brought to rest, and for how long.
pub(super) fn freeze_max(job: &config::Job) -> std::time::Duration {
    job.freeze_max.map_or(std::time::Duration::from_secs(5), |limit| limit.0)
}
