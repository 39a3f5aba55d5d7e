//! `qdelta drill`: proof that guests come back.

use jiff::Timestamp;
use qdelta::base::duration;
use qdelta::flows::drill::{self, DrillRequest};
use qdelta::flows::report::{DrillHistory, DrillReport, DrillsReport};
use qdelta::vault::repository::{Climb, Drill as Drilled, Rung, Step, Targets};
use qdelta::{Error, ErrorKind, Result};

use crate::cli::export_args::Drill;
use crate::cli::text::{self, Column};
use crate::cli::{Context, signals, state, status};

/// Drills guests, or shows what earlier drills have found. A drill that failed shows in the status, and so
/// does one that could not be tried to the end.
pub fn run(args: &Drill, context: &mut Context) -> Result<u8> {
    let repository = context.readable()?;
    if args.report {
        let history = drill::history(&repository, &args.guests)?;
        return show_history(&history, context).map(|()| status::DONE);
    }
    let usual = if args.boot_command.is_some() { Rung::Agent } else { Rung::Check };
    let folder = state::folder(context.global.state.as_deref()).ok_or_else(|| {
        Error::new(ErrorKind::Usage, "this host has no folder for what drills need")
            .advise("name one: --state DIR")
    })?;
    let request = DrillRequest {
        guests: args.guests.clone(),
        pick: args.pick.map(|pick| pick as usize),
        wanted: args.to.unwrap_or(usual),
        boot_command: args.boot_command.clone(),
        time_limit: args.time_limit.0,
        targets: Targets { rto: args.rto, rpo: args.rpo },
        folder: folder.join("drills"),
        resources: args.work.resources(),
    };
    let cancel = signals::watch(&context.screen);
    let report = drill::run(&repository, &request, &context.screen, &cancel)?;
    if context.out.json {
        context.out.json(&report)?;
    } else {
        for guest in &report.guests {
            show(guest, context)?;
        }
    }
    Ok(status_of(&report))
}

fn status_of(report: &DrillsReport) -> u8 {
    match report.result() {
        _ if report.interrupted => status::of(ErrorKind::Interrupted),
        Climb::Failed => status::DRILL_FAILED,
        Climb::NotTried => status::NOT_TRIED,
        Climb::Passed => status::DONE,
    }
}

/// Shows the drill of a guest: what it came to, and its rungs.
fn show(report: &DrillReport, context: &mut Context) -> Result<()> {
    let (out, domain) = (&mut context.out, &report.domain);
    let Some(drill) = &report.drill else {
        let why = report.error.as_ref().map_or("", |failure| failure.text.as_str());
        return out.line(format!("{domain}: FAILED: {why}"));
    };
    if out.quiet && drill.result == Climb::Passed {
        return Ok(());
    }
    let took = duration::shown(std::time::Duration::from_secs_f64(drill.seconds.max(0.0)));
    out.line(format!("{domain}@{}: {}, took {took}", drill.point, outcome(drill)))?;
    for step in drill.steps.iter().filter(|step| is_shown(step, drill)) {
        let result = match step.result {
            Climb::Passed => "passed",
            Climb::NotTried => "not tried",
            Climb::Failed => "FAILED",
        };
        out.line(format!("  {:<12} {result:<10} {}", step.rung.name(), step.text).trim_end())?;
    }
    for missed in &drill.missed {
        out.line(format!("  MISSED: {missed}"))?;
    }
    for (what, file) in [("screen", &drill.screenshot), ("console", &drill.console)] {
        if let Some(file) = file {
            out.line(format!("  {what}: {}", file.display()))?;
        }
    }
    Ok(())
}

/// Rungs above the wanted one say nothing.
fn is_shown(step: &Step, drill: &Drilled) -> bool {
    step.rung <= drill.wanted || step.result != Climb::NotTried
}

/// What a drill came to, in a few words.
fn outcome(drill: &Drilled) -> String {
    let reached = drill.reached.map_or("nothing", Rung::name);
    match drill.result {
        Climb::Passed => format!("came to {reached}"),
        Climb::NotTried => format!("came to {reached}, and {} was not tried", drill.wanted),
        Climb::Failed => match drill.steps.iter().find(|step| step.result == Climb::Failed) {
            Some(step) => format!("FAILED at {}", step.rung),
            None => format!("came to {reached}, and MISSED its target"),
        },
    }
}

/// Shows what is remembered: a line for each guest, about its last drill.
fn show_history(history: &DrillHistory, context: &mut Context) -> Result<()> {
    if context.out.json {
        return context.out.json(history);
    }
    let now = qdelta::base::clock::now()?;
    let column = |head, right, rank| Column { head, right, rank };
    let columns = [
        column("GUEST", false, 0),
        column("DRILLED", true, 0),
        column("RESULT", false, 0),
        column("RTO", true, 2),
        column("RPO", true, 2),
        column("POINT", false, 1),
        column("DRILLS", true, 3),
    ];
    let rows = history.guests.iter().map(|guest| {
        let mut row = vec![guest.domain.to_string()];
        match guest.drills.last() {
            Some(drill) => row.extend(cells(drill, now)),
            None => row.extend(["never", "", "", "", ""].map(str::to_owned)),
        }
        row.push(guest.drills.len().to_string());
        row
    });
    for line in text::table(&columns, &rows.collect::<Vec<_>>(), context.out.width()) {
        context.out.line(line)?;
    }
    Ok(())
}

/// What is shown of the last drill of a guest.
fn cells(drill: &Drilled, now: Timestamp) -> [String; 5] {
    let shown = |seconds: f64| {
        duration::shown(std::time::Duration::from_secs_f64(seconds.clamp(0.0, 1e12)))
    };
    [
        duration::age(now.as_second() - drill.began.as_second()),
        outcome(drill),
        drill.recovery.map_or("-".to_owned(), shown),
        shown(drill.gap.map_or(drill.age, |gap| gap.max(drill.age))),
        drill.point.to_string(),
    ]
}
