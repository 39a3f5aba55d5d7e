//! Second copies: points are brought into another repository, two repositories are compared, and what is damaged
//! in one is mended from the other.
//!
//! A point is its content: a disk's point in one repository and the point of the same id and root in another
//! are one, whatever archives show it. So a copy may keep other points than the repository that it is of: an
//! increment is brought against the last point that the copy has, merged on the way where points between the
//! two are not wanted.

mod carry;
mod compare;
mod guest;
mod late;
mod repair;
mod told;

use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::{Event, Observer, Recorder};
use crate::base::warning::{Code, Warning};
use crate::flows::merge::MergeOptions;
use crate::flows::report::{Carried, CopyReport, GuestCopy};
use crate::vault::repository::{DomainName, Keep, Repository};
use guest::{COMPARE, Guest};

pub use compare::compare;
pub use repair::{RepairRequest, repair};

/// What to copy, and how.
#[derive(Debug, Clone)]
pub struct CopyRequest {
    /// The guests.
    pub domains: Vec<DomainName>,
    /// Which of their points; all that are not removed if none.
    pub points: Option<Keep>,
    /// Say what would be done, and do nothing.
    pub dry_run: bool,
    /// What the other repository has under a guest's name is the same guest, though nothing shows it.
    pub same_guest: bool,
    /// So many guests at a time.
    pub at_once: usize,
    /// How to merge what is merged on the way; threads and I/O of each guest.
    pub options: MergeOptions,
}

/// Two repositories, and who looks on.
#[derive(Clone, Copy)]
struct Sides<'a> {
    from: &'a Repository,
    to: &'a Repository,
    observer: &'a dyn Observer,
    cancel: &'a Cancel,
}

/// Passes on what must be known, and no progress: bars of several guests would take turns.
struct Warnings<'a>(&'a dyn Observer);

impl Observer for Warnings<'_> {
    fn event(&self, event: &Event<'_>) {
        if matches!(event, Event::Warning(_)) {
            self.0.event(event);
        }
    }
}

/// Copies the points of guests that another repository lacks. What fails in one guest stops no other.
///
/// # Errors
/// [`ErrorKind::Usage`]: the two are one repository, or the rules keep nothing.
pub fn copy(
    (from, to): (&Repository, &Repository),
    request: &CopyRequest,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<CopyReport> {
    let started = Instant::now();
    check_apart(from, to)?;
    if request.points.as_ref().is_some_and(Keep::is_empty) {
        return Err(Error::new(ErrorKind::Usage, "no rule says which points to copy")
            .advise("name some, as daily=7,monthly=all"));
    }
    let recorder = Recorder::new(observer);
    let at_once = request.at_once.clamp(1, request.domains.len().max(1));
    let quiet = Warnings(&recorder);
    let observer: &dyn Observer = if at_once > 1 { &quiet } else { &recorder };
    let sides = Sides { from, to, observer, cancel };
    let (waiting, done) = (Mutex::new(request.domains.iter()), Mutex::new(Vec::new()));
    let next = || match cancel.is_cancelled() {
        true => None,
        false => waiting.lock().unwrap_or_else(PoisonError::into_inner).next(),
    };
    let work = || {
        while let Some(domain) = next() {
            let copied = Guest { sides, request, domain }.run();
            done.lock().unwrap_or_else(PoisonError::into_inner).push(copied);
        }
    };
    thread::scope(|scope| {
        for _ in 1..at_once {
            scope.spawn(work);
        }
        work();
    });
    tell_gone((from, to), observer)?;
    let mut guests = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    guests.sort_by(|one, other| one.domain.cmp(&other.domain));
    let points = guests.iter().flat_map(|guest: &GuestCopy| &guest.points);
    let disks = points.flat_map(|point| &point.disks).filter(|disk| disk.how != Carried::Found);
    Ok(CopyReport {
        from: from.path().to_owned(),
        to: to.path().to_owned(),
        dry_run: request.dry_run,
        points: request.points.clone(),
        interrupted: cancel.is_cancelled(),
        bytes_written: disks.map(|disk| disk.bytes_written).sum(),
        guests,
        warnings: recorder.take(),
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// Warns of guests that this host has seen in a repository, and that its copy alone has now: also of those that nobody
/// asks for, as no other copy may ever tell of them.
fn tell_gone((from, to): (&Repository, &Repository), observer: &dyn Observer) -> Result<()> {
    let ours = from.domains()?;
    let mut gone = from.domains_seen();
    gone.retain(|domain| !ours.contains(domain));
    if gone.is_empty() {
        return Ok(());
    }
    let theirs = to.domains()?;
    for domain in gone.into_iter().filter(|domain| theirs.contains(domain)) {
        let [here, there] = [from, to].map(|it| it.path().display());
        let text =
            format!("{domain} was in {here} when this host looked last, and is only in {there}");
        let forget = from.seen_path(&domain).unwrap_or_default();
        let advice = format!("{COMPARE}; if you have removed it, remove {}", forget.display());
        observer.warn(Warning::new(Code::WentBack, text).advise(advice));
    }
    Ok(())
}

/// Fails if two repositories are one, or one of them can't be read.
fn check_apart(one: &Repository, other: &Repository) -> Result<()> {
    for encryption in [one, other].iter().filter_map(|side| side.encryption()) {
        encryption.check_readable()?;
    }
    // A link, a mount or an address can show one repository in two places: no path tells. Where both have lost
    // their ids, the place must do.
    let is_one = match (one.id(), other.id()) {
        ("", "") => one.place() == other.place(),
        (id, other) => id == other,
    };
    if !is_one {
        return Ok(());
    }
    let text = format!(
        "{} is the repository itself, or a copy of its files: both have the id {}",
        other.path().display(),
        one.id()
    );
    Err(Error::new(ErrorKind::Usage, text).advise(
        "name another one; if its folder was copied by hand (cp, rsync), give the copy another id in its qdelta.toml",
    ))
}
