//! What is needed elsewhere when this site is lost: the program, the file of jobs, and the way back with the names of
//! this site. No secret is in it.

mod document;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use qdelta_formats::elf;

use super::Host;
use super::config::{Job, Pattern, RepositoryPlace};
use super::fleet::{is_on_this_host, not_covered};
use super::guests::{Guests, Subject};
use super::status::{Catalogs, look};
use crate::base::clock;
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::files::{Durability, replace_file};
use crate::disk::io::{Opener, sync_folder};
use crate::flows::notify::host_of;
use crate::flows::report::{
    Act, Failure, FindingCode, KeyRecord, KitDisk, KitGuest, KitKind, KitReport, KitRepository,
    OpenFinding,
};
use crate::vault::age::sha256_text;
use crate::vault::repository::storage::host_name;
use crate::vault::repository::{Manifest, Repository, Selector};

/// The longest program.
const PROGRAM_LEN_MAX: u64 = 1 << 30;
/// The longest description of a kit.
const KIT_LEN_MAX: u64 = 256 << 20;
/// The longest file of jobs.
const CONFIG_LEN_MAX: u64 = 1 << 20;

/// Where a kit goes, and what of.
#[derive(Debug, Clone)]
pub struct KitRequest {
    /// A folder that is made, or one that holds an older kit.
    pub to: PathBuf,
    /// The program.
    pub program: PathBuf,
}

/// Writes a kit. A file of an older kit is replaced, and nothing else that is in the folder.
///
/// # Errors
/// [`ErrorKind::Exists`] if the folder holds something else;
/// libvirt's folders can't be read, or the kit can't be written. A repository that can't be opened is a problem that the
/// kit tells of.
pub fn export_kit(host: &Host<'_>, request: &KitRequest) -> Result<KitReport> {
    check_folder(host, &request.to)?;
    let guests = Guests::read(&host.config.libvirt.libvirt())?;
    let (status, opened) = look(host)?;
    let mut problems = guests.problems(host.config);
    problems.extend(status.findings.iter().filter(|it| is_of_loss(it)).map(as_problem));
    let mut repositories = Vec::new();
    for (name, place) in &host.config.repositories {
        let found = opened.get(name).map(|it| repository_of(name, place, it.catalog.repository()));
        match found {
            Some(Ok(repository)) => repositories.push(repository),
            // Where it is, the file says; perhaps it is the only one that will be left.
            None => repositories.push(unopened(name, place)),
            Some(Err(error)) => {
                repositories.push(unopened(name, place));
                problems.push(Failure::from(&error.within(format!("repository {name}"))));
            }
        }
    }
    let (places, everywhere) = (places(host, &guests), everywhere(host));
    let uncovered = not_covered(&status)
        .into_iter()
        .map(|name| (None, Subject::Guest { name, excluded: Vec::new() }));
    let all = in_order(host, &guests).into_iter();
    let all = all.map(|(name, job, subject)| (Some((name, job)), subject)).chain(uncovered);
    let all = all.filter_map(|(job, subject)| {
        // An earlier job may have left points of a guest that none covers now.
        let places = match job {
            Some(_) => places.get(&subject.name()).map_or(&[][..], Vec::as_slice),
            None => &everywhere,
        };
        let kit = guest(&guests, (&opened, places), (job, &subject));
        kit.map_err(|error| problems.push(Failure::from(&error.within(subject.name())))).ok()
    });
    let guests: Vec<KitGuest> = all.collect();
    let program = Opener::READ.read(&request.program, PROGRAM_LEN_MAX);
    let program = program.map_err(|error| Error::io("read", &request.program, error))?;
    let mut report = KitReport {
        output: request.to.clone(),
        made: clock::now()?,
        host: host_name(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        program_is_static: elf::interpreter(&program).is_ok_and(|it| it.is_none()),
        files: ["SHA256SUMS", "disaster-recovery.md", "kit.json", "qdelta", "qdelta.toml"]
            .map(str::to_owned)
            .to_vec(),
        repositories,
        guests,
        problems,
    };
    let config = Opener::READ.read(host.path, CONFIG_LEN_MAX);
    let config = config.map_err(|error| Error::io("read", host.path, error))?;
    let config = without_paths(&String::from_utf8_lossy(&config));
    report.repositories.sort_by(|one, other| one.repository.cmp(&other.repository));
    write_all(&report, &program, config.as_bytes())?;
    Ok(report)
}

/// Whether a finding says that something would not come back, or not as it is now. That a guest has no point yet is said
/// in its place.
fn is_of_loss(finding: &OpenFinding) -> bool {
    match finding.code {
        FindingCode::Failed => matches!(finding.act, Some(Act::Backup | Act::Copy)),
        FindingCode::Repository
        | FindingCode::NotCovered
        | FindingCode::Rpo
        | FindingCode::LeftOut
        | FindingCode::Copy
        | FindingCode::Damaged
        | FindingCode::Lost
        | FindingCode::Replaced => true,
        _ => false,
    }
}

fn as_problem(finding: &OpenFinding) -> Failure {
    let what = match finding.code {
        FindingCode::Repository => "repository ",
        _ => "",
    };
    let text = format!("{what}{}: {}", finding.subject, finding.text);
    Failure { kind: ErrorKind::Io, text, advice: finding.advice.clone() }
}

/// Fails if the folder holds anything but an older kit: what is there would be lost.
fn check_folder(host: &Host<'_>, to: &Path) -> Result<()> {
    let mut entries = match fs::read_dir(to) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io("list", to, error)),
    };
    let of_jobs = host.path.parent().and_then(|folder| folder.canonicalize().ok());
    let is_of_jobs = of_jobs.is_some() && of_jobs == to.canonicalize().ok();
    let kit = Opener::READ.read(&to.join("kit.json"), KIT_LEN_MAX).unwrap_or_default();
    // That of an older version has other fields.
    let kit: serde_json::Value = serde_json::from_slice(&kit).unwrap_or_default();
    let is_kit = ["host", "version", "made", "guests"].iter().all(|field| kit.get(field).is_some());
    if is_of_jobs || (!is_kit && entries.next().is_some()) {
        let text = format!("{} holds something else than a kit", to.display());
        return Err(Error::new(ErrorKind::Exists, text)
            .advise("name a folder that is empty or not there yet; an older kit is replaced"));
    }
    Ok(())
}

fn write_all(report: &KitReport, program: &[u8], config: &[u8]) -> Result<()> {
    let to = &report.output;
    fs::create_dir_all(to).map_err(|error| Error::io("make the folder", to, error))?;
    let json = serde_json::to_vec_pretty(report).map_err(|error| {
        Error::new(ErrorKind::Io, "the kit can't be written as JSON").because(error)
    })?;
    let document = document::of(report);
    let mut files: Vec<(&str, u32, &[u8])> = vec![
        ("qdelta", 0o755, program),
        ("qdelta.toml", 0o600, config),
        ("kit.json", 0o644, &json),
        ("disaster-recovery.md", 0o644, document.as_bytes()),
    ];
    let sum = |(name, _, bytes): &(&str, u32, &[u8])| format!("{}  {name}\n", sha256_text(bytes));
    let sums: String = files.iter().map(sum).collect();
    // Last: where it is, the kit is whole.
    files.push(("SHA256SUMS", 0o644, sums.as_bytes()));
    for (name, mode, bytes) in files {
        let path = to.join(name);
        replace_file(&path, mode, Durability::Synced, |file| file.write_all(bytes))
            .map_err(|error| Error::io("write", &path, error))?;
    }
    sync_folder(to).map_err(|error| Error::io("sync", to, error))
}

/// The file of jobs with no more of the addresses of notifiers than their hosts: the rest is often a secret.
fn without_paths(config: &str) -> String {
    let mut text = String::with_capacity(config.len());
    let mut is_short = false;
    for line in config.split_inclusive('\n') {
        let mut rest = line;
        while let Some(at) = ["\"http", "'http"].iter().filter_map(|it| rest.find(it)).min() {
            let (before, address) = rest.split_at(at + 1);
            let quote = before.chars().next_back().unwrap_or('"');
            let (address, after) = address.split_at(address.find(quote).unwrap_or(address.len()));
            let scheme = address.split_once("://").map_or("", |(scheme, _)| scheme);
            let host = format!("{scheme}://{}", host_of(address));
            let is_whole = address.trim_end_matches('/') == host;
            is_short |= !is_whole;
            let shown = if is_whole { address.to_owned() } else { format!("{host}/...") };
            text += &format!("{before}{shown}");
            rest = after;
        }
        text += rest;
    }
    match is_short {
        true => format!(
            "# Of addresses nothing but the host stands here: what follows it may be a secret. Put it in again.\n{text}"
        ),
        false => text,
    }
}

fn repository_of(
    name: &str,
    place: &RepositoryPlace,
    repository: &Repository,
) -> Result<KitRepository> {
    let encryption = repository.encryption();
    let keys = match encryption {
        Some(encryption) => encryption.ring().list()?,
        None => Vec::new(),
    };
    let key = |entry: crate::vault::repository::KeyEntry| KeyRecord {
        name: entry.name,
        kinds: entry.kinds,
    };
    Ok(KitRepository {
        repository: name.to_owned(),
        place: place.place.clone(),
        recipient: encryption.map(|encryption| encryption.recipient().to_string()),
        keys: keys.into_iter().map(key).collect(),
        opened: true,
        with_key: encryption.is_some(),
        on_this_host: is_on_this_host(place),
    })
}

/// What the file says of a repository that can't be opened.
fn unopened(name: &str, place: &RepositoryPlace) -> KitRepository {
    KitRepository {
        repository: name.to_owned(),
        place: place.place.clone(),
        recipient: None,
        keys: Vec::new(),
        opened: false,
        with_key: place.key_file.is_some() || place.key_command.is_some(),
        on_this_host: is_on_this_host(place),
    }
}

/// The repositories that guests are backed up or copied into, by guest: those first that are not lost with this host.
fn places<'a>(host: &Host<'a>, guests: &Guests) -> BTreeMap<String, Vec<&'a str>> {
    let config = host.config;
    let mut places: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (name, job) in &config.jobs {
        let own = config.repository_of(name, job).ok().map(|(place, _)| place);
        let all = own.into_iter().chain(job.copy.as_ref().map(|copy| copy.to.as_str()));
        for subject in guests.of(job) {
            let known = places.entry(subject.name()).or_default();
            for place in all.clone() {
                if !known.contains(&place) {
                    known.push(place);
                }
            }
        }
    }
    let lost = lost(host);
    places.values_mut().for_each(|places| places.sort_by_key(|place| lost.contains(place)));
    places
}

/// The repositories that are lost with this host.
fn lost<'a>(host: &Host<'a>) -> BTreeSet<&'a str> {
    let lost = |(name, place): (&'a String, &RepositoryPlace)| {
        (is_on_this_host(place) == Some(true)).then_some(name.as_str())
    };
    host.config.repositories.iter().filter_map(lost).collect()
}

/// All repositories, those first that are not lost with this host.
fn everywhere<'a>(host: &Host<'a>) -> Vec<&'a str> {
    let lost = lost(host);
    let mut all: Vec<&str> = host.config.repositories.keys().map(String::as_str).collect();
    all.sort_by_key(|place| lost.contains(place));
    all
}

/// What is backed up, in the order in which it is to come back: the host's own configuration, then class by class, those
/// first that may take the shortest time; in a class as its list of guests has them.
fn in_order<'a>(host: &Host<'a>, guests: &Guests) -> Vec<(&'a str, &'a Job, Subject)> {
    let mut all: Vec<(&str, &Job, Subject)> = Vec::new();
    for (name, job) in &host.config.jobs {
        all.extend(guests.of(job).into_iter().map(|subject| (name.as_str(), job, subject)));
    }
    let place = |job: &Job, subject: &Subject| match subject {
        Subject::Guest { name, .. } => {
            let means = |it: &Pattern| guests.is_meant(std::slice::from_ref(it), name);
            job.guests.iter().position(means).unwrap_or(usize::MAX)
        }
        Subject::Image(_) | Subject::Host(_) => usize::MAX,
    };
    let longest =
        |stretch: Option<crate::base::duration::Stretch>| stretch.map_or(Duration::MAX, |it| it.0);
    all.sort_by_cached_key(|(name, job, subject)| {
        let is_host = Reverse(matches!(subject, Subject::Host(_)));
        (is_host, longest(job.rto), longest(job.rpo), *name, place(job, subject), subject.name())
    });
    let mut seen = BTreeSet::new();
    all.retain(|(_, _, subject)| seen.insert(subject.name()));
    all
}

/// What the kit says of a guest.
fn guest(
    guests: &Guests,
    (opened, places): (&Catalogs, &[&str]),
    (job, subject): (Option<(&str, &Job)>, &Subject),
) -> Result<KitGuest> {
    let domain = guests.domain_of(subject)?;
    let mut newest: Option<Manifest> = None;
    // Of one that can't be opened nobody knows what it has.
    let mut with_it = Vec::new();
    for place in places {
        let Some(it) = opened.get(*place) else {
            // One of a job's guest; that a guest of none is everywhere, nobody says.
            with_it.extend(job.map(|_| *place));
            continue;
        };
        match it.catalog.resolve_domain(&domain, &Selector::Latest) {
            Ok(manifest) => {
                with_it.push(place);
                newest.get_or_insert(manifest);
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    let (repository, others) = match with_it.split_first() {
        Some((first, others)) => (*first, others),
        None => (job.and(places.first().copied()).unwrap_or_default(), &[][..]),
    };
    let disks = newest.iter().flat_map(|manifest: &Manifest| &manifest.disks);
    let disks =
        disks.map(|it| KitDisk { disk: it.disk.to_string(), bytes: it.virtual_size }).collect();
    let has_machine = newest.as_ref().is_some_and(|manifest| manifest.machine.is_some());
    Ok(KitGuest {
        guest: subject.name(),
        domain: domain.to_string(),
        kind: match subject {
            Subject::Host(_) => KitKind::Host,
            Subject::Guest { .. } if has_machine || newest.is_none() => KitKind::Guest,
            Subject::Guest { .. } | Subject::Image(_) => KitKind::Disks,
        },
        job: job.map_or(String::new(), |(name, _)| name.to_owned()),
        repository: repository.to_owned(),
        others: others.iter().map(|place| (*place).to_owned()).collect(),
        rto: job.and_then(|(_, job)| job.rto),
        rpo: job.and_then(|(_, job)| job.rpo),
        point: newest.as_ref().map(|manifest| manifest.point),
        made: newest.as_ref().map(|manifest| manifest.created),
        disks,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kit is for a stick in a drawer, and had the addresses of webhooks in it, which let everybody write there.
    #[test]
    fn of_an_address_the_kit_has_the_host_alone() {
        let file = "[notify.a]\nwebhook = \"https://hooks.example/T0/SECRET\"\n\
                    [notify.b]\nping = 'https://u:PW@hc.example/UUID?k=1'\n\
                    ntfy = \"http://ntfy.example/\"\nplace = \"s3://b/p?endpoint=http://store/x\"\n";
        let text = without_paths(file);
        assert!(text.contains("\nwebhook = \"https://hooks.example/...\"\n"), "{text}");
        assert!(text.contains("\nping = 'https://hc.example/...'\n"), "{text}");
        assert!(text.contains("\nntfy = \"http://ntfy.example/\"\n"), "{text}");
        assert!(text.contains("endpoint=http://store/x\"\n"), "{text}");
        let secrets = ["SECRET", "PW", "UUID"];
        assert!(!secrets.iter().any(|it| text.contains(it)) && text.starts_with("# Of addresses"));
        assert_eq!(without_paths("a = 1\n"), "a = 1\n");
    }
}
