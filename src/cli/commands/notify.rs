//! `qdelta notify`: who is to be told is told, or tried.

use qdelta::Result;
use qdelta::flows::jobs::{self, Tell};
use qdelta::flows::report::NotifyReport;

use super::run::with_host;
use crate::cli::job_args::Notify;
use crate::cli::{Context, status, text, two_lines};

/// Tells people what is new, everything, or that they can be told.
pub fn run(args: &Notify, context: &mut Context) -> Result<u8> {
    let tell = match (args.test, args.digest) {
        (true, _) => Tell::Test,
        (false, true) => Tell::Digest,
        (false, false) => Tell::News,
    };
    let report = with_host(&args.file, context, |host| jobs::notify(host, &args.notifiers, tell))?;
    for it in &report.notifiers {
        if let Some(failure) = &it.error {
            let what = format!("{}: {}", it.notifier, failure.text);
            context.screen.say(&two_lines(&what, failure.advice.as_deref()));
        }
    }
    match context.out.json {
        true => context.out.json(&report)?,
        false if context.out.quiet => {}
        false => show(&report, tell, context)?,
    }
    let has_failed = report.notifiers.iter().any(|it| it.error.is_some());
    Ok(if has_failed { status::SOME_FAILED } else { status::DONE })
}

fn show(report: &NotifyReport, tell: Tell, context: &mut Context) -> Result<()> {
    for it in report.notifiers.iter().filter(|it| it.error.is_none()) {
        if let Some(title) = &it.told {
            context.out.line(format!("{}: told ({}): {title}", it.notifier, it.to))?;
        }
    }
    if report.notifiers.is_empty() {
        let open = text::count(report.findings.len(), "finding");
        context.out.line(match tell {
            Tell::News => format!("nothing is new to anybody; {open} open"),
            _ => "[notify.NAME] in the file says who is told of what, and there is none".to_owned(),
        })?;
    }
    Ok(())
}
