//! How everything stands and how it came to that, for the page of `qdelta report`.

use std::collections::{BTreeMap, BTreeSet};

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::Host;
use super::config::RepositoryPlace;
use super::guests::{Guests, Subject};
use super::journal::Journal;
use super::status::{Catalogs, Of, Opened, look};
use super::telling::host_name;
use crate::base::error::Result;
use crate::disk::io::Opener;
use crate::flows::report::{
    Act, ActResult, Day, End, FindingCode, FleetGuest, FleetPoint, FleetReport, FleetRepository,
    GuestStatus, Left, Record, SiteLoss, StatusReport,
};
use crate::flows::space;
use crate::formats::archive::Kind;
use crate::vault::repository::Manifest;

/// So many points of a guest are drawn.
const POINTS_MAX: usize = 60;

/// The longest list of mounts that is read, in bytes.
const MOUNTS_MAX: u64 = 4 << 20;

/// Finds out how everything stands, and what was done in the last days. Nothing is changed.
///
/// # Errors
/// libvirt's folders or the history can't be read. That a repository can't be opened is a finding.
pub fn fleet(host: &Host<'_>, days: usize) -> Result<FleetReport> {
    let (status, catalogs) = look(host)?;
    let zone = host.config.zone()?;
    let history = Journal::new(host.state).read()?;
    let guests = Guests::read(&host.config.libvirt.libvirt())?;
    // A clock that was wrong may have left records of any day.
    let past = history.records.iter().map(|it| it.began).filter(|began| *began <= status.at);
    let since = past.min();
    let days = Days::new(status.at, &zone, days, since);
    let mut known = Known::new(host, &guests, &history.records);
    let uncovered = not_covered(&status);
    known.add(&guests, &uncovered);
    let standing = |it: &GuestStatus| days.guest(&known, &catalogs, it);
    let fleet: Vec<FleetGuest> = status.guests.iter().map(standing).collect();
    let repositories: Vec<FleetRepository> = status
        .repositories
        .iter()
        .map(|it| {
            let place = host.config.repositories.get(&it.repository);
            FleetRepository {
                repository: it.repository.clone(),
                on_this_host: place.and_then(is_on_this_host),
                bytes: catalogs
                    .get(it.repository.as_str())
                    .map_or_else(Vec::new, |opened| days.bytes(opened)),
                full_at: it.days_left.and_then(|days| {
                    let seconds = SignedDuration::try_from_secs_f64(days * 86_400.0).ok()?;
                    status.at.checked_add(seconds).ok()
                }),
            }
        })
        .collect();
    let sites = sites(&known, &catalogs, (&status, &uncovered), &repositories);
    Ok(FleetReport {
        host: host_name(),
        since,
        time_zone: zone.iana_name().unwrap_or("the local one").to_owned(),
        days: days.work(&history.records),
        guests: fleet,
        repositories,
        sites,
        status,
    })
}

/// The days that are looked at.
struct Days {
    /// When each begins, and how it is called.
    begins: Vec<(Timestamp, String)>,
    now: Timestamp,
}

impl Days {
    /// The last days; none of which this host knows nothing.
    fn new(now: Timestamp, zone: &TimeZone, count: usize, since: Option<Timestamp>) -> Self {
        let today = now.to_zoned(zone.clone()).date();
        let begin = |back: usize| {
            let day = today.checked_sub(jiff::Span::new().days(i64::try_from(back).ok()?)).ok()?;
            let begin = day.to_zoned(zone.clone()).ok()?.timestamp();
            Some((begin, day.to_string()))
        };
        let first = since.unwrap_or(now).to_zoned(zone.clone()).date().to_string();
        let known = |(_, day): &(Timestamp, String)| *day >= first;
        let days = (0..count.max(1)).rev().filter_map(begin).filter(known);
        Self { begins: days.collect(), now }
    }

    /// Which of them a time is of.
    fn of(&self, time: Timestamp) -> Option<usize> {
        let after = self.begins.partition_point(|(begin, _)| *begin <= time);
        after.checked_sub(1).filter(|_| time <= self.now)
    }

    /// What was done on each.
    fn work(&self, records: &[Record]) -> Vec<Day> {
        let named = |(_, day): &(Timestamp, String)| Day { day: day.clone(), ..Day::default() };
        let mut days: Vec<Day> = self.begins.iter().map(named).collect();
        for record in records {
            let Some(day) = self.of(record.began).and_then(|at| days.get_mut(at)) else { continue };
            match (record.act, &record.subject, record.end) {
                (Act::Backup, Some(_), End::Done) => day.made += 1,
                (Act::Backup, Some(_), End::Warned) => {
                    day.made += 1;
                    day.warned += 1;
                }
                (Act::Backup, Some(_), End::Failed | End::NotTried | End::Interrupted) => {
                    day.failed += 1;
                }
                (Act::Backup, ..) | (Act::Run, ..) => {}
                (.., end) if end.is_trouble() => day.others_failed += 1,
                _ => {}
            }
        }
        days
    }

    /// How a guest came to where it stands.
    fn guest(&self, known: &Known<'_>, catalogs: &Catalogs, standing: &GuestStatus) -> FleetGuest {
        let repository = known.repository(standing);
        let mut letters = vec!['-'; self.begins.len()];
        let (mut freezes, mut frozen_ms_max) = (0, None);
        for record in known.backups.get(standing.guest.as_str()).into_iter().flatten() {
            let Some(letter) = self.of(record.began).and_then(|at| letters.get_mut(at)) else {
                continue;
            };
            // The last one of a day counts.
            *letter = match record.end {
                End::Done => 'd',
                End::Warned => 'w',
                End::Failed | End::NotTried | End::Interrupted => 'f',
                _ => *letter,
            };
            if let Some(ActResult::Guest(guest)) = &record.result
                && let Some(frozen) = guest.freeze_ms
            {
                freezes += 1;
                frozen_ms_max = frozen_ms_max.max(Some(frozen));
            }
        }
        let mut fleet = FleetGuest {
            guest: standing.guest.clone(),
            repository: repository.to_owned(),
            days: letters.into_iter().collect(),
            gap: None,
            points: Vec::new(),
            older: 0,
            freezes,
            frozen_ms_max,
            drill: None,
        };
        let domain = known.domains.get(standing.guest.as_str());
        if let (Some(opened), Some(of)) = (catalogs.get(repository), domain) {
            fleet.drill = opened.catalog.repository().drills(&of.domain).pop();
            self.points(opened, of, &mut fleet);
        }
        fleet
    }

    /// The points of a guest.
    fn points(&self, opened: &Opened, of: &Of, fleet: &mut FleetGuest) {
        let Some(points) = opened.points(of, self.now).ok() else { return };
        let all = points.all.iter().map(|(manifest, good)| FleetPoint {
            point: manifest.point,
            full: manifest.disks.iter().all(|record| record.kind == Kind::Full),
            good: *good,
            proved: points.proofs.get(&manifest.point).copied().flatten().is_some(),
            bytes: manifest.bytes_stored(),
        });
        fleet.points = all.collect();
        fleet.older = fleet.points.len().saturating_sub(POINTS_MAX);
        fleet.points.drain(..fleet.older);
        fleet.gap = self.gap(points.all.iter().filter(|(_, good)| *good).map(|(it, _)| it));
    }

    /// The longest time between two points of these days, until now.
    fn gap<'a>(&self, points: impl Iterator<Item = &'a Manifest>) -> Option<f64> {
        let first = self.begins.first()?.0;
        let mut times: Vec<i64> = points.map(|it| it.created.as_second()).collect();
        times.sort_unstable();
        // The last point before these days opens the first gap.
        let begin = times.partition_point(|time| *time < first.as_second()).saturating_sub(1);
        times.drain(..begin);
        times.push(self.now.as_second());
        let pairs = times.iter().zip(times.iter().skip(1));
        pairs.map(|(one, other)| (other - one).max(0) as f64).reduce(f64::max)
    }

    /// What all archives took at the most, day by day.
    fn bytes(&self, opened: &Opened) -> Vec<u64> {
        let noon =
            |(begin, _): &(Timestamp, String)| (begin.as_second() + 43_200).div_euclid(86_400);
        let days: Vec<i64> = self.begins.iter().map(noon).collect();
        let domains: Vec<_> = opened.domains.iter().cloned().collect();
        space::stored_on(&opened.catalog, &domains, &days, self.now).unwrap_or_default()
    }
}

/// What is known of each guest beside its points.
struct Known<'a> {
    host: &'a Host<'a>,
    /// What it is called in repositories.
    domains: BTreeMap<String, Of>,
    /// The disks of it that jobs take.
    disks: BTreeMap<String, BTreeSet<String>>,
    /// Its backups, the oldest first.
    backups: BTreeMap<&'a str, Vec<&'a Record>>,
}

impl<'a> Known<'a> {
    fn new(host: &'a Host<'a>, guests: &Guests, records: &'a [Record]) -> Self {
        let subjects = host.config.jobs.values().flat_map(|job| guests.of(job));
        let (mut domains, mut disks) = (BTreeMap::new(), BTreeMap::<String, BTreeSet<_>>::new());
        for subject in subjects {
            disks.entry(subject.name()).or_default().extend(guests.disks_to_take(&subject));
            domains.extend(Of::subject(guests, &subject).map(|of| (subject.name(), of)));
        }
        let mut backups: BTreeMap<&str, Vec<&Record>> = BTreeMap::new();
        for record in records.iter().filter(|record| record.act == Act::Backup) {
            if let Some(subject) = &record.subject {
                backups.entry(subject).or_default().push(record);
            }
        }
        Self { host, domains, disks, backups }
    }

    /// Guests of no job: an earlier one may have left points of them.
    fn add(&mut self, guests: &Guests, names: &[String]) {
        for name in names {
            let subject = Subject::Guest { name: name.clone(), excluded: Vec::new() };
            self.domains.extend(Of::subject(guests, &subject).map(|of| (name.clone(), of)));
        }
    }

    /// The name of the repository of a guest.
    fn repository(&self, standing: &GuestStatus) -> &'a str {
        let config = self.host.config;
        let job = config.jobs.get(&standing.job);
        let repository = job.and_then(|job| config.repository_of(&standing.job, job).ok());
        repository.map_or("", |(name, _)| name)
    }
}

/// Whether a repository lies on a disk of this host: none if it is in no folder, or nobody knows.
pub(super) fn is_on_this_host(place: &RepositoryPlace) -> Option<bool> {
    if place.place.contains("://") {
        return Some(false);
    }
    let path = std::fs::canonicalize(&place.place).ok()?;
    let mounts = Opener::READ.read_text("/proc/self/mountinfo".as_ref(), MOUNTS_MAX).ok()?;
    // A later mount at the same place covers the ones before.
    let mut found: Option<(usize, &str)> = None;
    for line in mounts.lines() {
        let mut words = line.split(' ');
        let (Some(point), Some((_, rest))) = (words.nth(4), line.split_once(" - ")) else {
            continue;
        };
        let kind = rest.split(' ').next().unwrap_or("");
        let point = point.replace("\\040", " ");
        if path.starts_with(&point) && found.is_none_or(|(len, _)| point.len() >= len) {
            found = Some((point.len(), kind));
        }
    }
    let (_, kind) = found?;
    let elsewhere = ["nfs", "cifs", "smb", "ceph", "glusterfs", "9p", "virtiofs", "lustre", "afs"];
    match kind {
        _ if elsewhere.iter().any(|it| kind.starts_with(it)) => Some(false),
        // sshfs, s3fs and others: who knows?
        _ if kind.starts_with("fuse") => None,
        _ => Some(true),
    }
}

/// The guests that no job covers, and that the file does not ignore.
pub(super) fn not_covered(status: &StatusReport) -> Vec<String> {
    let open = status.findings.iter().filter(|it| it.code == FindingCode::NotCovered);
    open.map(|it| it.subject.clone()).collect()
}

/// When the newest good points of a guest in a repository were made.
struct Saved {
    newest: Timestamp,
    /// With each disk, where that makes a difference.
    disks: BTreeMap<String, Timestamp>,
}

impl Saved {
    fn at(newest: Timestamp) -> Self {
        Self { newest, disks: BTreeMap::new() }
    }

    fn of(
        opened: &Opened,
        of: &Of,
        disks: Option<&BTreeSet<String>>,
        now: Timestamp,
    ) -> Option<Self> {
        let points = opened.points(of, now).ok()?;
        let mut saved = Self::at(points.newest.as_ref()?.created);
        for disk in disks.into_iter().flatten() {
            let found = points.newest_with(disk).map(|it| (disk.clone(), it.created));
            saved.disks.extend(found);
        }
        Some(saved)
    }
}

/// What would be lost with this host, and with each repository.
fn sites(
    known: &Known<'_>,
    catalogs: &Catalogs,
    (status, uncovered): (&StatusReport, &[String]),
    repositories: &[FleetRepository],
) -> Vec<SiteLoss> {
    // What each guest has in each repository.
    let mut newest: BTreeMap<&str, BTreeMap<&str, Saved>> = BTreeMap::new();
    let names = status.guests.iter().map(|standing| (standing.guest.as_str(), Some(standing)));
    for (guest, standing) in names.chain(uncovered.iter().map(|guest| (guest.as_str(), None))) {
        let found = newest.entry(guest).or_default();
        let Some(of) = known.domains.get(guest) else { continue };
        let disks = known.disks.get(guest).filter(|disks| disks.len() > 1);
        for (name, opened) in catalogs {
            // That of its own repository was looked for already.
            let own = standing.filter(|it| disks.is_none() && known.repository(it) == name);
            let saved = match own {
                Some(standing) => standing.newest_at.map(Saved::at),
                None => Saved::of(opened, of, disks, status.at),
            };
            found.extend(saved.map(|saved| (name.as_str(), saved)));
        }
    }
    let loss = |site: &str, is_host: bool, lost: BTreeSet<&str>| {
        let mut loss = SiteLoss {
            site: site.to_owned(),
            host: is_host,
            repositories: lost.iter().map(|name| (*name).to_owned()).collect(),
            nothing_left: Vec::new(),
            left: Vec::new(),
        };
        for (guest, places) in &newest {
            let left = || places.iter().filter(|(name, _)| !lost.contains(*name));
            let newest = left().map(|(name, saved)| (*name, saved.newest)).max_by_key(|it| it.1);
            let Some(newest) = newest else {
                loss.nothing_left.push((*guest).to_owned());
                continue;
            };
            // Each disk comes from where it is newest.
            let of_disk = |disk: &String| {
                let found = left().filter_map(|(name, it)| Some((*name, *it.disks.get(disk)?)));
                found.max_by_key(|it| it.1)
            };
            let disks: BTreeSet<&String> = places.values().flat_map(|it| it.disks.keys()).collect();
            let oldest = disks.iter().filter_map(|disk| of_disk(disk)).min_by_key(|it| it.1);
            let (repository, created) = oldest.unwrap_or(newest);
            let without = disks.into_iter().filter(|disk| of_disk(disk).is_none());
            loss.left.push(Left {
                guest: (*guest).to_owned(),
                repository: repository.to_owned(),
                age: (status.at.as_second() - created.as_second()).max(0) as f64,
                without: without.cloned().collect(),
            });
        }
        loss
    };
    let own = repositories.iter().filter(|it| it.on_this_host == Some(true));
    let own: BTreeSet<&str> = own.map(|it| it.repository.as_str()).collect();
    let mut sites = vec![loss(&host_name(), true, own)];
    for it in repositories {
        sites.push(loss(&it.repository, false, BTreeSet::from([it.repository.as_str()])));
    }
    sites
}
