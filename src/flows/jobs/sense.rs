//! What in the file makes no sense on this host: times that never come, programs that are not there, and jobs that
//! work against each other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::config::{Config, Job, JobImage, Pattern};
use super::due;
use super::guests::{Guests, Subject};
use crate::base::calendar::Calendar;
use crate::base::duration;
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::reflink;
use crate::disk::sys::FileId;
use crate::flows::backup::AnchorChoice;
use crate::flows::report::Failure;
use crate::formats::archive::Tracker;
use crate::guest::program;
use crate::vault::repository::DomainName;

/// So many times of a schedule are looked at for the longest stretch between two of them.
const TIMES_MAX: usize = 64;

/// Says what makes no sense.
///
/// # Errors
/// A job's repository is not there, or this machine does not know the zone.
pub(super) fn problems(config: &Config, guests: &Guests, now: Timestamp) -> Result<Vec<Failure>> {
    let zone = config.zone()?;
    let mut found = Problems(Vec::new());
    for (name, job) in &config.jobs {
        for (act, schedule) in due::acts(job) {
            for calendar in schedule.iter().filter(|it| it.next(now, &zone).is_none()) {
                let text = format!("job {name}: {act}: {calendar} never comes");
                found.say(ErrorKind::Usage, text, "write a time that is still to come");
            }
        }
        found.targets(name, job, now, &zone);
        found.programs(name, job);
        found.words(name, job, guests);
        if let Some(image) = job.images.iter().find(|it| job.with_snapshots && it.is_export()) {
            let text = format!(
                "job {name}: with_snapshots: {} is read through a server, which shows no snapshots",
                image.path.display()
            );
            found.say(ErrorKind::Usage, text, "give the export a job of its own");
        }
        for image in &job.images {
            found.0.extend(taken(config, guests, name, image)?.as_ref().map(Failure::from));
        }
    }
    found.same_images(config)?;
    found.anchors(config, guests);
    let is_guest = |job: &Job| guests.of(job).iter().any(|it| matches!(it, Subject::Guest { .. }));
    if config.jobs.values().any(is_guest) {
        found.program("libvirt: virsh", &config.libvirt.virsh);
    }
    for path in config.host_files.iter().flatten().filter(|path| !path.exists()) {
        let text = format!("host_files: {} is not there", path.display());
        found.say(ErrorKind::NotFound, text, "leave it out, or name a path that is there");
    }
    let folder = config.metrics.textfile.as_ref().and_then(|path| path.parent());
    if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
        let text = format!("metrics: textfile: there is no folder {}", folder.display());
        found.say(ErrorKind::NotFound, text, "make it, or name that of the node exporter");
    }
    Ok(found.0)
}

struct Problems(Vec<Failure>);

impl Problems {
    fn say(&mut self, kind: ErrorKind, text: String, advice: &str) {
        self.0.push(Failure::from(&Error::new(kind, text).advise(advice.to_owned())));
    }

    /// An RPO that the schedule can't keep is an alarm in each week.
    fn targets(&mut self, name: &str, job: &Job, now: Timestamp, zone: &TimeZone) {
        let copy = job.copy.as_ref();
        let of_copy = copy.map(|it| match it.schedule.is_empty() {
            true => ("copy: ", it.rpo, job.schedule.as_slice()),
            false => ("copy: ", it.rpo, it.schedule.as_slice()),
        });
        for (of, rpo, schedule) in
            [("", job.rpo, job.schedule.as_slice())].into_iter().chain(of_copy)
        {
            let Some((rpo, gap)) = rpo.zip(longest_gap(schedule, now, zone)) else { continue };
            if u64::try_from(gap).is_ok_and(|gap| gap > rpo.0.as_secs()) {
                let text = format!(
                    "job {name}: {of}the rpo is {rpo}, and the schedule leaves {} between two times",
                    duration::age(gap)
                );
                self.say(
                    ErrorKind::Usage,
                    text,
                    "a longer rpo, or more times: else it is told each time",
                );
            }
        }
    }

    /// Two paths may lead to one image, which would be two disks of a repository then.
    fn same_images(&mut self, config: &Config) -> Result<()> {
        let mut known: BTreeMap<(&str, String), &Path> = BTreeMap::new();
        for (name, job) in &config.jobs {
            let (repository, _) = config.repository_of(name, job)?;
            for image in &job.images {
                // One that is not there is told of already.
                let Ok(id) = FileId::at(&image.path) else { continue };
                let other = known.insert((repository, id.to_string()), &image.path);
                if let Some(other) = other.filter(|other| *other != image.path) {
                    let (path, other) = (image.path.display(), other.display());
                    let text = format!("job {name}: {path} and {other} are one file");
                    self.say(ErrorKind::Usage, text, "leave one of them out");
                }
            }
        }
        Ok(())
    }

    /// Clones that no filesystem below the images can make, each night a warning of each disk.
    fn anchors(&mut self, config: &Config, guests: &Guests) {
        for (name, job) in &config.jobs {
            if job.anchor != AnchorChoice::For(Tracker::Reflink) {
                continue;
            }
            let mut folders: BTreeSet<PathBuf> = BTreeSet::new();
            for subject in guests.of(job) {
                folders.extend(
                    guests.images(&subject).iter().filter_map(|it| Some(it.parent()?.to_owned())),
                );
            }
            for folder in folders.into_iter().filter(|folder| reflink::never_clones(folder)) {
                let text = format!(
                    "job {name}: anchor: the filesystem of {} clones no files, so no anchor can be left there",
                    folder.display()
                );
                self.say(
                    ErrorKind::Usage,
                    text,
                    "leave anchor out, or say bitmap for images in qcow2",
                );
            }
        }
    }

    fn programs(&mut self, name: &str, job: &Job) {
        let boot = job.drill.as_ref().and_then(|drill| drill.boot_command.as_ref());
        for (key, program) in
            [("boot_command", boot), ("snapshot_command", job.snapshot_command.as_ref())]
        {
            if let Some(program) = program {
                self.program(&format!("job {name}: {key}"), program);
            }
        }
    }

    fn program(&mut self, what: &str, path: &Path) {
        if !program::is_there(path) {
            let text = format!("{what}: there is no program {}", path.display());
            self.say(ErrorKind::NotFound, text, "install it, or give its path");
        }
    }

    /// Words that mean nothing: a slip of the finger leaves nothing out.
    fn words(&mut self, name: &str, job: &Job, guests: &Guests) {
        for pattern in job.except.iter().filter(|pattern| !pattern.is_open()) {
            let means = |guest: &str| guests.is_meant(std::slice::from_ref(pattern), guest);
            let is_named = job.guests.iter().filter_map(Pattern::name).any(means);
            if !is_named && !guests.names().any(means) {
                let text = format!("job {name}: except: libvirt has no guest {pattern}");
                self.say(ErrorKind::NotFound, text, "virsh list --all shows those that there are");
            }
        }
        for word in &job.exclude_disks {
            let Some((guest, target)) = word.rsplit_once('/') else { continue };
            let Some(targets) = guests.targets(guest) else { continue };
            if !targets.contains(&target) {
                let text = format!("job {name}: exclude_disks: {guest} has no disk {target}");
                let advice = format!("its disks are {}", targets.join(", "));
                self.say(ErrorKind::NotFound, text, &advice);
            }
        }
    }
}

/// The longest stretch between two of the next times of a schedule, in seconds.
pub(super) fn longest_gap(schedule: &[Calendar], now: Timestamp, zone: &TimeZone) -> Option<i64> {
    let next = |time: &Timestamp| schedule.iter().filter_map(|it| it.next(*time, zone)).min();
    let times: Vec<Timestamp> = std::iter::successors(next(&now), next).take(TIMES_MAX).collect();
    let gaps = times.iter().zip(times.iter().skip(1));
    gaps.map(|(one, other)| other.as_second() - one.as_second()).max()
}

/// Fails with the reason if an image would go among the points of a guest, or of this host's configuration.
///
/// # Errors
/// A job's repository is not there.
pub(super) fn taken(
    config: &Config,
    guests: &Guests,
    name: &str,
    image: &JobImage,
) -> Result<Option<Error>> {
    let Some(job) = config.jobs.get(name) else { return Ok(None) };
    let (repository, _) = config.repository_of(name, job)?;
    // An image without a name that a repository takes fails by itself.
    let Ok(domain) = guests.domain_of(&Subject::Image(image.clone())) else { return Ok(None) };
    for (other, it) in &config.jobs {
        if config.repository_of(other, it)?.0 != repository {
            continue;
        }
        let is_it = |subject: &Subject| {
            let is_image = matches!(subject, Subject::Image(_));
            !is_image && guests.domain_of(subject).is_ok_and(|its: DomainName| its == domain)
        };
        if guests.of(it).iter().any(is_it) {
            let text = format!(
                "job {name}: {} would be a disk of {domain}, which job {other} backs up into the same repository",
                image.path.display()
            );
            let advice = "give the image a name of its own: disk = \"NAME\"";
            return Ok(Some(Error::new(ErrorKind::Usage, text).advise(advice)));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gap_is_that_of_all_times_together() {
        let zone = TimeZone::get("Europe/Berlin").unwrap();
        let now: Timestamp = "2026-10-18T10:00:00Z".parse().unwrap();
        let gap = |words: &[&str]| {
            let schedule: Vec<Calendar> = words.iter().map(|it| it.parse().unwrap()).collect();
            longest_gap(&schedule, now, &zone).map(|seconds| seconds / 3600)
        };
        assert_eq!(gap(&["02:30"]), Some(25), "the night in which the clock is put back");
        assert_eq!(gap(&["Sat 03:00"]), Some(169));
        assert_eq!(gap(&["Mon 03:00", "Thu 03:00"]), Some(97));
        assert_eq!(gap(&["*-02-30"]), None);
        assert_eq!(gap(&[]), None);
    }
}
