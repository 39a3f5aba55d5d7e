//! Which guests a job means, and what becomes of each guest of this host.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;

use super::config::{Config, Job, JobImage, Pattern, Prune};
use super::due;
use super::journal::Memory;
use crate::base::error::{Error, ErrorKind, Result};
use crate::flows::backup::repository_name;
use crate::flows::host;
use crate::flows::report::{ActPlan, ActResult, Failure, GuestFate, JobPlan, Record};
use crate::guest::libvirt::{Choice, Disk, Domain, Libvirt, decide};
use crate::vault::repository::{DiskName, DomainName};

/// What to do if libvirt has no guest at all.
pub(super) const ELSEWHERE: &str =
    "see whether libvirt's folder is another one: [libvirt] config = \"DIR\" in the file names it";

/// The guests of this host.
pub(super) struct Guests {
    /// By name: what libvirt says of each, or why it says nothing.
    all: BTreeMap<String, Result<Domain>>,
}

/// What a job backs up as one.
#[derive(Debug, Clone)]
pub(super) enum Subject {
    /// A guest.
    Guest {
        /// Its name, as libvirt has it.
        name: String,
        /// The targets of its disks that are left out.
        excluded: Vec<String>,
    },
    /// An image.
    Image(JobImage),
    /// The configuration of this host.
    Host(DomainName),
}

/// A guest that was backed up and that libvirt does not have any more.
#[derive(Debug)]
pub(super) struct Gone<'a> {
    /// Its name, as libvirt had it.
    pub guest: &'a str,
    /// What it is called in the repository.
    pub domain: DomainName,
    /// The job of the file that backed it up last, whose rules hold for its points; none if no job of the file did.
    pub job: Option<&'a str>,
}

/// What a guest is called in the repository that this backup went into.
fn domain_of(guest: &str, made: &Record) -> Option<DomainName> {
    let disk = match &made.result {
        Some(ActResult::Guest(report)) => report.disks.first().map(|disk| disk.disk.as_str()),
        _ => None,
    };
    let domain = disk.and_then(|disk| disk.split_once('/')).map_or(guest, |(domain, _)| domain);
    domain.parse().ok()
}

impl Subject {
    /// What it is called in messages and in the history.
    pub fn name(&self) -> String {
        match self {
            Self::Guest { name, .. } => name.clone(),
            Self::Image(image) => image.path.display().to_string(),
            Self::Host(domain) => domain.to_string(),
        }
    }
}

impl Guests {
    /// Asks libvirt's files.
    ///
    /// # Errors
    /// A folder can't be read.
    pub fn read(libvirt: &Libvirt) -> Result<Self> {
        let found = |name: String| {
            let domain = libvirt.find(&name).map(|found| found.domain);
            (name, domain)
        };
        let all: BTreeMap<_, _> = libvirt.list()?.names.into_iter().map(found).collect();
        // One that has just ended may have left its file for a moment.
        let is_there = |domain: &Result<Domain>| {
            !domain.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound)
        };
        Ok(Self { all: all.into_iter().filter(|(_, domain)| is_there(domain)).collect() })
    }

    /// Whether libvirt has a guest of this name.
    pub fn has(&self, name: &str) -> bool {
        self.all.contains_key(name)
    }

    /// The guests that were backed up and that libvirt does not have any more.
    pub fn gone<'a>(&self, config: &'a Config, memory: &Memory<'a>) -> Vec<Gone<'a>> {
        let mut last: BTreeMap<&str, (bool, &'a str, &'a Record)> = BTreeMap::new();
        let backups =
            memory.backups().filter_map(|(job, guest, past)| Some((job, guest, past.success?)));
        for (job, guest, made) in backups {
            let is_guest = !matches!(made.result, Some(ActResult::Image(_)));
            if self.has(guest) || !is_guest {
                continue;
            }
            // The rules of the job that had it last decide: another one may keep less.
            let ours = (config.jobs.contains_key(job), job, made);
            let known = last.entry(guest).or_insert(ours);
            if (known.0, known.2.began) <= (ours.0, made.began) {
                *known = ours;
            }
        }
        let gone = last.into_iter().filter_map(|(guest, (is_in_file, job, made))| {
            Some(Gone { guest, domain: domain_of(guest, made)?, job: is_in_file.then_some(job) })
        });
        gone.collect()
    }

    /// Whether libvirt has no guest at all.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The names of all guests.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.all.keys().map(String::as_str)
    }

    /// The guests of which libvirt's files make no sense.
    pub fn unreadable(&self) -> impl Iterator<Item = (&str, &Error)> {
        self.all.iter().filter_map(|(name, domain)| Some((name.as_str(), domain.as_ref().err()?)))
    }

    /// The UUID of a guest, if libvirt's files say it.
    pub fn uuid(&self, name: &str) -> Option<&str> {
        self.all.get(name)?.as_ref().ok()?.uuid.as_deref()
    }

    /// Whether one of these patterns means a guest.
    pub fn is_meant(&self, patterns: &[Pattern], name: &str) -> bool {
        patterns.iter().any(|pattern| pattern.matches(name, self.uuid(name)))
    }

    /// What a job backs up: its guests by name, also one that it names and libvirt does not have, and
    /// then its images.
    pub fn of(&self, job: &Job) -> Vec<Subject> {
        // Also a UUID that no guest has: what is named and not there fails, and is told.
        let is_had =
            |pattern: &Pattern| self.names().any(|name| pattern.matches(name, self.uuid(name)));
        let named = job.guests.iter().filter(|it| !it.is_open() && !is_had(it));
        let named = named.map(ToString::to_string);
        let found = self.names().filter(|name| self.is_meant(&job.guests, name));
        let mut names: Vec<String> = found.map(str::to_owned).chain(named).collect();
        names.sort_unstable();
        names.dedup();
        names.retain(|name| !self.is_meant(&job.except, name));
        let excluded = |guest: &str| {
            let words = job.exclude_disks.iter().filter_map(|word| word.rsplit_once('/'));
            words.filter(|(of, _)| *of == guest).map(|(_, target)| target.to_owned()).collect()
        };
        let guests =
            names.into_iter().map(|name| Subject::Guest { excluded: excluded(&name), name });
        let images = job.images.iter().cloned().map(Subject::Image);
        // A name that no repository takes is told of when there is something to back up.
        let host = job.with_host_config.then(|| host::domain().ok().map(Subject::Host)).flatten();
        guests.chain(images).chain(host).collect()
    }

    /// The targets of the disks that a backup of a subject takes, as libvirt has them now; none of what is no guest.
    pub fn disks_to_take(&self, subject: &Subject) -> Vec<String> {
        let Subject::Guest { name, excluded } = subject else { return Vec::new() };
        let Some(Ok(domain)) = self.all.get(name) else { return Vec::new() };
        let is_taken = |disk: &&Disk| matches!(decide(disk, excluded), Choice::Take { .. });
        domain.disks.iter().filter(is_taken).map(|disk| disk.target.clone()).collect()
    }

    /// The image files that a backup of a subject reads, as far as libvirt's files say.
    pub fn images(&self, subject: &Subject) -> Vec<PathBuf> {
        match subject {
            Subject::Guest { name, excluded } => {
                let Some(Ok(domain)) = self.all.get(name) else { return Vec::new() };
                let taken = domain.disks.iter().filter_map(|disk| match decide(disk, excluded) {
                    Choice::Take { image, .. } => Some(image),
                    _ => None,
                });
                taken.collect()
            }
            Subject::Image(image) if !image.is_export() => vec![image.path.clone()],
            Subject::Image(_) | Subject::Host(_) => Vec::new(),
        }
    }

    /// The targets of all disks of a guest, if libvirt's files say them.
    pub fn targets(&self, guest: &str) -> Option<Vec<&str>> {
        let domain = self.all.get(guest)?.as_ref().ok()?;
        Some(domain.disks.iter().map(|disk| disk.target.as_str()).collect())
    }

    /// What a subject is called in the repository.
    pub fn domain_of(&self, subject: &Subject) -> Result<DomainName> {
        match subject {
            Subject::Guest { name, .. } => match self.all.get(name) {
                Some(Ok(domain)) => repository_name(domain),
                _ => name.parse(),
            },
            Subject::Image(image) => Ok(image.spec()?.domain),
            Subject::Host(domain) => Ok(domain.clone()),
        }
    }

    /// The one disk that a subject is in the repository; none if it may have several. Images of one name before the
    /// slash are disks of one guest there, and each has its own backups.
    pub fn disk_of(&self, subject: &Subject) -> Option<DiskName> {
        let Subject::Image(image) = subject else { return None };
        Some(image.spec().ok()?.or_only_disk().disk)
    }

    /// What each job means.
    pub fn plans(&self, config: &Config, now: Timestamp) -> Result<Vec<JobPlan>> {
        let zone = config.zone()?;
        let plan = |(name, job): (&String, &Job)| {
            let (repository, _) = config.repository_of(name, job)?;
            let acts = due::acts(job).into_iter().map(|(act, schedule)| ActPlan {
                act,
                schedule: schedule.iter().map(ToString::to_string).collect(),
                next: schedule.iter().filter_map(|it| it.next(now, &zone)).min(),
            });
            Ok(JobPlan {
                job: name.clone(),
                repository: repository.to_owned(),
                subjects: self.of(job).iter().map(Subject::name).collect(),
                acts: acts.collect(),
                rpo: job.rpo,
                rto: job.rto,
            })
        };
        config.jobs.iter().map(plan).collect()
    }

    /// What becomes of each guest, and of each image.
    pub fn fates(&self, config: &Config, plans: &[JobPlan]) -> Vec<GuestFate> {
        let mut fates: BTreeMap<String, GuestFate> = BTreeMap::new();
        let fate = |guest: &str| GuestFate {
            guest: guest.to_owned(),
            uuid: self.uuid(guest).map(str::to_owned),
            jobs: Vec::new(),
            ignored: self.is_meant(&config.ignore, guest),
        };
        for name in self.names() {
            fates.insert(name.to_owned(), fate(name));
        }
        for plan in plans {
            for subject in &plan.subjects {
                let known = fates.entry(subject.clone()).or_insert_with(|| fate(subject));
                known.jobs.push(plan.job.clone());
            }
        }
        fates.into_values().collect()
    }

    /// The guests of a job that another one prunes by other rules in the same repository: either would remove what the
    /// other keeps. With each the other job.
    pub fn pruned_otherwise<'a>(
        &self,
        config: &'a Config,
        (name, job): (&str, &Job),
    ) -> BTreeMap<String, &'a str> {
        let mut found = BTreeMap::new();
        let Some(prune) = &job.prune else { return found };
        let place = |name: &str, job: &Job| {
            config.repository_of(name, job).ok().map(|(it, _)| it.to_owned())
        };
        let own: Vec<String> = self.of(job).iter().map(Subject::name).collect();
        for (other, theirs) in config.jobs.iter().filter(|(other, _)| other.as_str() != name) {
            let rules = |it: &Prune| (it.keep.clone(), it.grace);
            let is_same = theirs.prune.as_ref().is_none_or(|it| rules(it) == rules(prune));
            if is_same || place(name, job) != place(other, theirs) {
                continue;
            }
            let both = self.of(theirs).into_iter().map(|it| it.name());
            found.extend(both.filter(|it| own.contains(it)).map(|it| (it, other.as_str())));
        }
        found
    }

    /// What in the file means nothing on this host.
    pub fn problems(&self, config: &Config) -> Vec<Failure> {
        let mut problems = Vec::new();
        let mut say = |text: String, advice: &str| {
            let error = Error::new(ErrorKind::NotFound, text).advise(advice.to_owned());
            problems.push(Failure::from(&error));
        };
        let wants_guests = config.jobs.values().any(|job| !job.guests.is_empty());
        let has_guests = self.names().next().is_some();
        if wants_guests && !has_guests {
            let text =
                format!("libvirt has no guest at all in {}", config.libvirt.config.display());
            say(text, ELSEWHERE);
        }
        for (name, job) in &config.jobs {
            // A pattern may wait for guests that are still to come; a name does not. Without any guest, all is said.
            for pattern in job.guests.iter().filter(|pattern| has_guests && !pattern.is_open()) {
                let found =
                    self.names().any(|guest| self.is_meant(std::slice::from_ref(pattern), guest));
                if !found {
                    let text = format!("job {name}: libvirt has no guest {pattern}");
                    say(text, "virsh list --all shows those that there are");
                }
            }
            for (guest, other) in self.pruned_otherwise(config, (name, job)) {
                let text = format!(
                    "job {name}: job {other} has guest {guest}, too, and prunes by other rules: neither prunes it"
                );
                say(
                    text,
                    "give both the same keep and grace, or leave the guest out of one: except",
                );
            }
            let subjects = self.of(job);
            for word in &job.exclude_disks {
                let guest = word.rsplit_once('/').map(|(guest, _)| guest);
                if !subjects.iter().any(|subject| guest == Some(subject.name().as_str())) {
                    let text =
                        format!("job {name}: exclude_disks: {word:?} is of no guest of the job");
                    say(text, "give a guest's name and a target such as vdb: GUEST/TARGET");
                }
            }
            // The server of an export may be started by a hook.
            for image in job.images.iter().filter(|it| !it.is_export() && !it.path.exists()) {
                let text = format!("job {name}: {} is not there", image.path.display());
                say(text, "name an image that is there");
            }
        }
        for (name, error) in self.unreadable() {
            problems.push(Failure::from(&error.clone().within(format!("guest {name}"))));
        }
        problems
    }
}
