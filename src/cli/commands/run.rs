//! `qdelta run`: what is due is done.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use qdelta::base::observer::Observer;
use qdelta::disk::sys::FileId;
use qdelta::flows::jobs::{self, Config, Host, RepositoryPlace};
use qdelta::flows::report::{Act, End, Record, RunReport};
use qdelta::guest::quiesce::Program;
use qdelta::{Error, ErrorKind, Result};

use crate::cli::job_args::{JobFile, Run};
use crate::cli::screen::Screen;
use crate::cli::{Context, keys, out::Out, signals, state, status, text, two_lines};

/// The host's own folder, which jobs can't do without.
pub(super) fn state_of(context: &Context) -> Result<PathBuf> {
    state::folder(context.global.state.as_deref()).ok_or_else(|| {
        Error::new(ErrorKind::Usage, "this host has no folder for the history of jobs")
            .advise("name one: --state DIR")
    })
}

/// The socket of the system's journal.
fn journald() -> PathBuf {
    let named = std::env::var_os("QDELTA_JOURNAL_SOCKET");
    named.map_or_else(|| PathBuf::from("/run/systemd/journal/socket"), PathBuf::from)
}

/// Reads the file of jobs and does something with the host that it describes.
pub(super) fn with_host<T>(
    file: &JobFile,
    context: &Context,
    work: impl FnOnce(&Host<'_>) -> Result<T>,
) -> Result<T> {
    let (config, state) = (Config::read(&file.config)?, state_of(context)?);
    let spare = state::spare();
    let global = &context.global;
    // Several are opened at the same time, and whoever sits at the terminal is asked for one key after the other.
    let asked = Mutex::new(());
    let open = |place: &RepositoryPlace| {
        let is_asked = std::io::stdin().is_terminal();
        let alone = is_asked.then(|| asked.lock().unwrap_or_else(PoisonError::into_inner));
        let key = keys::of(place.key_file.as_deref(), place.key_command.as_deref(), global)?;
        drop(alone);
        let observer: &dyn Observer = &context.screen;
        let exposed = keys::exposed(&[place.key_file.as_deref()], global);
        exposed.into_iter().for_each(|it| observer.warn(it));
        Context::open(place.place.as_ref(), key.as_ref(), Some(&state), &|it| observer.warn(it))
    };
    let arguments = vec!["watchdog".into()];
    let watchdog = Program { path: PathBuf::from("/proc/self/exe"), arguments };
    let journald = journald();
    let journald = journald.exists().then_some(journald.as_path());
    work(&Host {
        path: &file.config,
        config: &config,
        open: &open,
        state: &state,
        spare: spare.as_deref(),
        watchdog: &watchdog,
        journald,
    })
}

/// Which of the two streams of this program go to the system's journal: it has each record already, with its fields.
#[derive(Debug, Clone, Copy, Default)]
struct Heard {
    output: bool,
    errors: bool,
}

impl Heard {
    fn by_journal() -> Self {
        let Some(named) = std::env::var_os("JOURNAL_STREAM") else { return Self::default() };
        let is_it =
            |path: &str| FileId::at(Path::new(path)).is_ok_and(|it| named == *it.to_string());
        Self { output: is_it("/proc/self/fd/1"), errors: is_it("/proc/self/fd/2") }
    }
}

/// Does what is due, or what was named, and tells of each piece when it is done.
pub fn run(args: &Run, context: &mut Context) -> Result<u8> {
    let cancel = signals::watch(&context.screen);
    let mut shown = Out::new(context.out.json, context.out.quiet);
    let mut heard = Heard::default();
    let report = {
        let out = Mutex::new(&mut shown);
        with_host(&args.file, context, |host| {
            if host.journald.is_some() && host.config.journal {
                heard = Heard::by_journal();
            }
            let told = |record: &Record| {
                let mut out = out.lock().unwrap_or_else(PoisonError::into_inner);
                // What can't be shown is told at the end: the work does not depend on who can read of it.
                let _ = tell(record, heard, &context.screen, &mut out);
            };
            let report = jobs::run(host, &args.jobs, &context.screen, &cancel, &told)?;
            Ok((report, host.config.zone()?))
        })
    };
    shown.finish()?;
    let (report, zone) = match report {
        // Of a run that is refused, the journal has a record, too.
        Err(error) if error.kind() == ErrorKind::Busy && heard.errors => {
            return Ok(status::of(ErrorKind::Busy));
        }
        report => report?,
    };
    context.screen.end();
    if context.out.json {
        context.out.json(&report)?;
    } else if !context.out.quiet && !heard.output {
        summarize(&report, &zone, context)?;
    }
    Ok(status_of(&report))
}

fn status_of(report: &RunReport) -> u8 {
    match report.end {
        _ if report.alarm => status::ALARM,
        End::Interrupted => status::of(ErrorKind::Interrupted),
        End::Failed => status::SOME_FAILED,
        _ => status::DONE,
    }
}

/// What a record is about, as people name it.
pub(super) fn label(record: &Record) -> String {
    let parts = [record.job.clone(), Some(record.act.to_string()), record.subject.clone()];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

fn tell(record: &Record, heard: Heard, screen: &Screen, out: &mut Out) -> Result<()> {
    if record.end.is_trouble() && record.act != Act::Run {
        if heard.errors {
            return Ok(());
        }
        screen.end();
        let what = format!("{}: {}: {}", label(record), record.end, record.text);
        screen.say(&two_lines(&what, record.advice.as_deref()));
        return Ok(());
    }
    let is_said = match record.act {
        Act::Run => record.end == End::Cut,
        _ => record.end != End::Seen,
    };
    if out.json || out.quiet || heard.output || !is_said {
        return Ok(());
    }
    let took = text::duration(record.seconds);
    out.line(format!("{}: {}, took {took}", label(record), record.text))?;
    out.flush()
}

/// A time to come, in the zone of the schedules.
pub(super) fn coming(time: Timestamp, zone: &TimeZone) -> String {
    time.to_zoned(zone.clone()).strftime("%a %Y-%m-%d %H:%M").to_string()
}

fn summarize(report: &RunReport, zone: &TimeZone, context: &mut Context) -> Result<()> {
    let next = report.next.map(|next| coming(next, zone));
    let next = match next {
        Some(next) => format!("next: {next}"),
        None => "no job has a schedule".to_owned(),
    };
    // What notifiers say comes after the end of the run, and is not what became of it.
    let is_end = |it: &&Record| it.act == Act::Run && !matches!(it.end, End::Begun | End::Cut);
    let what = match report.records.iter().rev().find(is_end) {
        None => "nothing is due".to_owned(),
        Some(last) => last.text.clone(),
    };
    context.out.line(format!("{what}; {next}"))
}
