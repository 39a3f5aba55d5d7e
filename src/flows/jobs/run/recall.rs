//! A history that was lost, or that nobody can read in part: that is told, and nothing counts as new because of it.

use jiff::Timestamp;

use super::record;
use crate::base::error::Result;
use crate::flows::jobs::config::Job;
use crate::flows::jobs::guests::Guests;
use crate::flows::jobs::journal::{HISTORY, Journal, TORN_MAX};
use crate::flows::jobs::{Host, due, known};
use crate::flows::report::{Act, End, Record, RunHistory};

/// Reads the history, and gives what is to be added to it: that something of it is not known any more, and from when
/// the schedules count then.
pub(super) fn read(
    (host, journal): (&Host<'_>, &Journal),
    guests: &Guests,
    now: Timestamp,
) -> Result<(RunHistory, Vec<Record>)> {
    let mut history = journal.read()?;
    let mut notes = Vec::new();
    if history.torn > 0 {
        journal.put_torn_aside()?;
    }
    if history.records.is_empty() && !known::read(host.state).is_empty() {
        let text = "the history of this host is lost: what was done, and what failed, is not known any more";
        notes.push(note(now, text.to_owned()));
        for (name, job) in &host.config.jobs {
            notes.extend(newest(host, guests, name, job).into_iter().flat_map(|newest| {
                let with_schedule = due::acts(job).into_iter().filter(|(_, it)| !it.is_empty());
                with_schedule.map(move |(act, _)| seen(now, name, act, newest))
            }));
        }
    } else if history.torn > TORN_MAX {
        let text = format!(
            "{} lines of the history made no sense: what they told of is not known any more",
            history.torn
        );
        notes.push(note(now, text));
    }
    history.records.extend(notes.iter().cloned());
    Ok((history, notes))
}

fn note(now: Timestamp, text: String) -> Record {
    let mut note = record(now, None, Act::Run, End::Failed, text);
    note.subject = Some(HISTORY.to_owned());
    note.advice = Some("see whether the disk of the state folder is sound".to_owned());
    note
}

/// A schedule is as new as the newest point of its job, and no newer: the time since is made up for.
fn seen(now: Timestamp, job: &str, act: Act, newest: Timestamp) -> Record {
    let text = "the history was lost: its schedule counts from the newest point on";
    Record { began: newest, ..record(now, Some(job), act, End::Seen, text) }
}

/// The newest point that this host has made for a job. Of a repository that can't be opened nothing is known.
fn newest(host: &Host<'_>, guests: &Guests, name: &str, job: &Job) -> Option<Timestamp> {
    let (_, place) = host.config.repository_of(name, job).ok()?;
    let repository = (host.open)(place).ok()?;
    let domains = guests.of(job).into_iter().filter_map(|it| guests.domain_of(&it).ok());
    domains.filter_map(|it| repository.newest_seen(&it)).max().map(|point| point.time())
}
