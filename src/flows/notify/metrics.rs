//! How everything stands, as Prometheus' node exporter reads it from a file.
//!
//! Times are those of successes, as seconds of the clock: who reads them compares them with the time of
//! reading. No line has a timestamp of its own: the exporter passes over such a file.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use jiff::Timestamp;

use crate::base::error::{Error, Result};
use crate::disk::io::Opener;
use crate::flows::report::{Act, End, GuestStatus, Level, Record, StatusReport};

/// What the file is readable for: the exporter is another user.
const MODE: u32 = 0o644;

/// The last record, and the last of work that was done.
type Both<'a> = (Option<&'a Record>, Option<&'a Record>);

/// What is known of each act of the history's, by job, act and guest.
pub(crate) struct LastTimes<'a> {
    /// What is known of one.
    pub of: &'a dyn Fn(&str, Act, Option<&str>) -> Both<'a>,
    /// The notifiers, and whether each fails.
    pub notifiers: Vec<(String, bool)>,
}

/// A family of values under one name.
struct Family {
    help: &'static str,
    lines: Vec<String>,
}

#[derive(Default)]
struct Page(BTreeMap<&'static str, Family>);

impl Page {
    fn add(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: &[(&str, &str)],
        value: Option<f64>,
    ) {
        let family = self.0.entry(name).or_insert(Family { help, lines: Vec::new() });
        let Some(value) = value else { return };
        let mut line = name.to_owned();
        for (at, (label, text)) in labels.iter().enumerate() {
            let begin = if at == 0 { '{' } else { ',' };
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(line, "{begin}{label}=\"{text}\"");
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = write!(line, "{end} {value}");
        family.lines.push(line);
    }

    fn text(self) -> String {
        let mut text = String::new();
        for (name, Family { help, lines }) in self.0 {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
            for line in lines {
                let _ = writeln!(text, "{line}");
            }
        }
        text
    }
}

/// The text of the file.
pub(crate) fn text(report: &StatusReport, known: &LastTimes<'_>) -> String {
    let mut page = Page::default();
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    page.add("qdelta_info", "The version of qdelta.", &version, Some(1.0));
    let level = |level: Level| match level {
        Level::Ok => 0.0,
        Level::Warning => 1.0,
        Level::Critical => 2.0,
    };
    page.add(
        "qdelta_status",
        "The gravest of all findings: 0 none, 1 warning, 2 critical.",
        &[],
        Some(level(report.level)),
    );
    page.add(
        "qdelta_looked_timestamp_seconds",
        "When qdelta looked last how everything stands.",
        &[],
        at(Some(report.at)),
    );
    for wanted in [Level::Warning, Level::Critical] {
        let count = report.findings.iter().filter(|finding| finding.level == wanted).count();
        let word = wanted.to_string().to_lowercase();
        let labels = [("level", word.as_str())];
        page.add("qdelta_findings", "How many findings are open.", &labels, Some(count as f64));
    }
    let mut seen = BTreeMap::new();
    for finding in &report.findings {
        let key = (finding.code.to_string(), finding.subject.clone());
        let gravest = seen.entry(key).or_insert(finding.level);
        *gravest = finding.level.max(*gravest);
    }
    let help = "A finding that is open: 1 warning, 2 critical.";
    for ((code, subject), gravest) in seen {
        let labels = [("code", code.as_str()), ("subject", subject.as_str())];
        page.add("qdelta_finding", help, &labels, Some(level(gravest)));
    }
    // So that the name is there before there is one.
    page.add("qdelta_finding", help, &[], None);
    for guest in &report.guests {
        of_guest(&mut page, guest, known);
    }
    of_jobs(&mut page, report, known);
    of_repositories(&mut page, report);
    for (notifier, is_failing) in &known.notifiers {
        let failing = if *is_failing { 1.0 } else { 0.0 };
        page.add(
            "qdelta_notifier_failing",
            "Whether a notifier could not be reached when it was tried last.",
            &[("notifier", notifier)],
            Some(failing),
        );
    }
    page.text()
}

fn at(time: Option<Timestamp>) -> Option<f64> {
    time.map(|time| time.as_second() as f64)
}

/// How something ended: 0 it failed, 1 it has warnings, 2 it was done.
fn ended(record: &Record) -> f64 {
    match record.end {
        End::Done => 2.0,
        End::Warned => 1.0,
        _ => 0.0,
    }
}

fn of_guest(page: &mut Page, guest: &GuestStatus, known: &LastTimes<'_>) {
    let labels = [("guest", guest.guest.as_str()), ("job", guest.job.as_str())];
    let (last, success) = (known.of)(&guest.job, Act::Backup, Some(&guest.guest));
    let stretch =
        |stretch: Option<crate::base::duration::Stretch>| stretch.map(|it| it.0.as_secs_f64());
    for (name, help, value) in [
        (
            "qdelta_last_success_timestamp_seconds",
            "When the last backup began that went well.",
            at(success.map(|it| it.began)),
        ),
        (
            "qdelta_last_attempt_timestamp_seconds",
            "When the last backup began.",
            at(last.map(|it| it.began)),
        ),
        (
            "qdelta_last_status",
            "How the last backup ended: 0 failed, 1 with warnings, 2 done.",
            last.map(ended),
        ),
        ("qdelta_duration_seconds", "How long the last backup took.", last.map(|it| it.seconds)),
        (
            "qdelta_frozen_seconds",
            "How long the guest was frozen for its newest point.",
            guest.frozen_ms.map(|ms| ms as f64 / 1000.0),
        ),
        ("qdelta_points", "How many points there are.", guest.points.map(|it| it as f64)),
        (
            "qdelta_newest_point_timestamp_seconds",
            "When the newest good point was made.",
            at(guest.newest_at),
        ),
        (
            "qdelta_oldest_point_timestamp_seconds",
            "When the oldest point was made.",
            at(guest.oldest_at),
        ),
        ("qdelta_rpo_seconds", "How old the newest good point may be.", stretch(guest.rpo)),
        ("qdelta_rto_seconds", "How long it may take until the guest is back.", stretch(guest.rto)),
        (
            "qdelta_verify_last_success_timestamp_seconds",
            "When a point was proved last.",
            at(guest.proved_at),
        ),
        (
            "qdelta_never_proved_points",
            "How many points were never proved.",
            guest.never_proved.map(|it| it as f64),
        ),
        (
            "qdelta_drill_last_success_timestamp_seconds",
            "When the last drill began that passed.",
            at(guest.drilled_at),
        ),
        (
            "qdelta_drill_recovery_seconds",
            "How long it took in the last drill until the guest was back.",
            guest.recovery,
        ),
    ] {
        page.add(name, help, &labels, value);
    }
    let (name, help) = (
        "qdelta_copy_newest_point_timestamp_seconds",
        "When the newest good point was made that a second copy has.",
    );
    page.add(name, help, &[], None);
    for copy in &guest.copies {
        page.add(
            name,
            help,
            &[("guest", guest.guest.as_str()), ("repository", copy.repository.as_str())],
            at(copy.newest_at),
        );
    }
}

fn of_jobs(page: &mut Page, report: &StatusReport, known: &LastTimes<'_>) {
    for job in &report.jobs {
        for act in &job.acts {
            let word = act.act.to_string();
            let labels = [("job", job.job.as_str()), ("act", word.as_str())];
            let (last, _) = (known.of)(&job.job, act.act, None);
            let last = last.filter(|record| record.end != End::Seen);
            for (name, help, value) in [
                (
                    "qdelta_job_last_success_timestamp_seconds",
                    "When an act of a job began last that went well.",
                    at(act.success),
                ),
                (
                    "qdelta_job_last_status",
                    "How an act of a job ended last: 0 failed, 1 with warnings, 2 done.",
                    last.map(ended),
                ),
                (
                    "qdelta_job_next_timestamp_seconds",
                    "When an act of a job is due next.",
                    at(act.next),
                ),
            ] {
                page.add(name, help, &labels, value);
            }
        }
    }
}

fn of_repositories(page: &mut Page, report: &StatusReport) {
    for it in &report.repositories {
        let labels = [("repository", it.repository.as_str())];
        let full_at = it.days_left.map(|days| report.at.as_second() as f64 + days * 86_400.0);
        for (name, help, value) in [
            (
                "qdelta_repository_bytes",
                "What all archives of a repository take.",
                it.bytes_stored.map(|it| it as f64),
            ),
            (
                "qdelta_repository_free_bytes",
                "What can still be written to a repository.",
                it.bytes_free.map(|it| it as f64),
            ),
            (
                "qdelta_repository_keep_free_bytes",
                "What is to stay free in a repository.",
                it.keep_free.map(|it| it as f64),
            ),
            (
                "qdelta_repository_full_timestamp_seconds",
                "When a repository is full at the rate of the last weeks.",
                full_at.map(f64::trunc),
            ),
        ] {
            page.add(name, help, &labels, value);
        }
    }
}

/// Puts the text in the place of the file: who reads it finds the old one or the new one.
///
/// # Errors
/// It can't be written.
pub(crate) fn write(path: &Path, text: &str) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // The exporter reads every file whose name ends in .prom.
    let next = folder.join(format!(".{name}.next"));
    let put = || -> io::Result<()> {
        match fs::remove_file(&next) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = Opener::CHANGE.create(MODE).open(&next)?;
        file.set_permissions(fs::Permissions::from_mode(MODE))?;
        file.write_all(text.as_bytes())?;
        fs::rename(&next, path)
    };
    put().map_err(|error| {
        Error::io("write", path, error)
            .advise("[metrics] textfile names a file in a folder that is there")
    })
}
