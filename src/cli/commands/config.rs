//! `qdelta config`: the file of jobs is checked, or one to begin with is written.

use jiff::tz::TimeZone;
use qdelta::Result;
use qdelta::flows::jobs::{self, EXAMPLE};
use qdelta::flows::report::{ActPlan, Event, JobPlan, NotifierPlan, PlanReport};

use super::run::{coming, with_host};
use crate::cli::job_args::{Config, ConfigAction};
use crate::cli::text::{self, Column};
use crate::cli::{Context, status, two_lines};

/// Who hears one of these hears of what failed. That something failed is a finding, too.
const FAILURES: &[Event] = &[Event::Failure, Event::Finding, Event::Digest];

/// Who hears one of these hears of all that status finds.
const FINDINGS: &[Event] = &[Event::Finding, Event::Digest];

/// Does what is to be done with the file.
pub fn run(args: &Config, context: &mut Context) -> Result<u8> {
    let args = match &args.action {
        ConfigAction::Example(_) => {
            for line in EXAMPLE.lines() {
                context.out.line(line)?;
            }
            return Ok(status::DONE);
        }
        ConfigAction::Check(args) => args,
    };
    let (report, zone) = with_host(&args.file, context, |host| {
        Ok((jobs::plan(host, &args.file.config)?, host.config.zone()?))
    })?;
    let problem = report.problems.first().map(|failure| status::of(failure.kind));
    for failure in &report.problems {
        context.screen.say(&two_lines(&failure.text, failure.advice.as_deref()));
    }
    match context.out.json {
        true => context.out.json(&report)?,
        false if context.out.quiet => {}
        false => show(&report, &zone, context)?,
    }
    Ok(problem.unwrap_or(status::DONE))
}

fn show(report: &PlanReport, zone: &TimeZone, context: &mut Context) -> Result<()> {
    let column = |head, right, rank| Column { head, right, rank };
    let count = text::count(report.jobs.len(), "job");
    let file = report.config.display();
    context.out.line(format!("{file}: {count}; times are of {}", report.time_zone))?;
    context.out.line("")?;
    let columns = [
        column("JOB", false, 0),
        column("ACT", false, 0),
        column("WHEN", false, 1),
        column("NEXT", false, 0),
        column("RPO", false, 2),
        column("RTO", false, 2),
    ];
    let rows: Vec<Vec<String>> = report
        .jobs
        .iter()
        .flat_map(|job| {
            job.acts.iter().enumerate().map(|(at, act)| act_row(job, act, at == 0, zone))
        })
        .collect();
    let width = context.out.width();
    for line in text::table(&columns, &rows, width) {
        context.out.line(line)?;
    }
    context.out.line("")?;
    let columns = [column("GUEST", false, 0), column("JOBS", false, 0), column("UUID", false, 1)];
    let fate = |jobs: &[String], ignored| match (jobs, ignored) {
        ([], true) => "ignored, as the file says".to_owned(),
        ([], false) => "NONE: it is not backed up".to_owned(),
        (jobs, _) => jobs.join(", "),
    };
    let rows: Vec<Vec<String>> = report
        .guests
        .iter()
        .map(|it| {
            vec![it.guest.clone(), fate(&it.jobs, it.ignored), it.uuid.clone().unwrap_or_default()]
        })
        .collect();
    for line in text::table(&columns, &rows, width) {
        context.out.line(line)?;
    }
    notifiers(report, zone, context)
}

/// Who would hear of what.
fn notifiers(report: &PlanReport, zone: &TimeZone, context: &mut Context) -> Result<()> {
    context.out.line("")?;
    if report.notifiers.is_empty() {
        let text = "nobody is told when something is wrong: [notify.NAME] names somebody";
        return context.out.line(text);
    }
    let column = |head, right, rank| Column { head, right, rank };
    let columns = [
        column("NOTIFIER", false, 0),
        column("HOW", false, 1),
        column("OF", false, 0),
        column("FROM", false, 3),
        column("JOBS", false, 2),
        column("DIGEST", false, 2),
    ];
    let row = |it: &NotifierPlan| {
        let on: Vec<String> = it.on.iter().map(ToString::to_string).collect();
        vec![
            it.notifier.clone(),
            it.to.clone(),
            on.join(", "),
            it.level.map_or("-".to_owned(), |level| level.to_string()),
            if it.jobs.is_empty() { "all".to_owned() } else { it.jobs.join(", ") },
            it.next.map_or("-".to_owned(), |next| coming(next, zone)),
        ]
    };
    let rows: Vec<Vec<String>> = report.notifiers.iter().map(row).collect();
    for line in text::table(&columns, &rows, context.out.width()) {
        context.out.line(line)?;
    }
    for (what, events) in [("what fails in", FAILURES), ("findings about", FINDINGS)] {
        let unheard: Vec<&str> = report.jobs.iter().map(|job| job.job.as_str()).collect();
        let unheard: Vec<&str> =
            unheard.into_iter().filter(|job| !is_heard(report, job, events)).collect();
        if !unheard.is_empty() {
            let text = format!("nobody is told of {what} {}", unheard.join(", "));
            context.out.line(format!("{text}: see on and jobs of [notify.NAME]"))?;
        }
    }
    Ok(())
}

/// Whether somebody hears one of these of a job.
fn is_heard(report: &PlanReport, job: &str, events: &[Event]) -> bool {
    report.notifiers.iter().any(|it| {
        let is_of = it.jobs.is_empty() || it.jobs.iter().any(|name| name == job);
        is_of && it.on.iter().any(|event| events.contains(event))
    })
}

fn act_row(job: &JobPlan, act: &ActPlan, is_first: bool, zone: &TimeZone) -> Vec<String> {
    let when = match act.schedule.is_empty() {
        false => act.schedule.join(" and "),
        true if is_first => format!("when named: qdelta run {}", job.job),
        true => "after the backup".to_owned(),
    };
    let next = act.next.map_or("-".to_owned(), |next| coming(next, zone));
    let of_job = |text: String| if is_first { text } else { String::new() };
    let target = |target: Option<qdelta::base::duration::Stretch>| {
        of_job(target.map_or("-".to_owned(), |target| target.to_string()))
    };
    vec![of_job(job.job.clone()), act.act.to_string(), when, next, target(job.rpo), target(job.rto)]
}
