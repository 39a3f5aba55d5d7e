//! `qdelta merge`: points become part of a later one.

use qdelta::Result;
use qdelta::base::warning::Code;
use qdelta::flows::merge::{self, MergeOptions, MergeRequest};
use qdelta::flows::report::MergeReport;

use crate::cli::point_args::Merge;
use crate::cli::{Context, signals, status, text};

/// Merges, or says what a merge would bring.
pub fn run(args: Merge, context: &mut Context) -> Result<u8> {
    let repository = context.readable()?;
    let request = MergeRequest {
        guest: args.points.disk,
        from: args.points.from,
        into: args.points.to,
        dry_run: args.dry_run,
        options: MergeOptions { level: args.level, resources: args.work.resources() },
    };
    let cancel = signals::watch(&context.screen);
    let report = merge::run(&repository, &request, &context.screen, &cancel)?;
    if !report.dry_run {
        let points = text::count(report.absorbed.len(), "point");
        context.out.was_done(format!("{points} became part of {}", report.point));
    }
    if context.out.json {
        context.out.json(&report)?;
    } else if !context.out.quiet || report.dry_run {
        show(&report, context)?;
    }
    Ok(status::DONE)
}

/// Shows a merge to people.
fn show(report: &MergeReport, context: &mut Context) -> Result<()> {
    let out = &mut context.out;
    let did = |did, would| if report.dry_run { would } else { did };
    out.line(format!(
        "{}@{}: {} {} part of it",
        report.domain,
        report.point,
        text::count(report.absorbed.len(), "point"),
        did("became", "would become")
    ))?;
    for disk in &report.disks {
        let name = disk.disk.rsplit('/').next().unwrap_or(&disk.disk);
        let archives = usize::try_from(disk.archives).unwrap_or(usize::MAX);
        let line = format!(
            "  {name}: {} of {} from {}, read {}",
            disk.kind,
            text::bytes(disk.bytes_written),
            text::count(archives, "archive"),
            text::bytes(disk.bytes_read)
        );
        out.line(line)?;
        if context.global.verbose > 0 && !report.dry_run {
            let (copied, packed) = (disk.frames_copied, disk.frames_packed);
            out.line(format!("    frames: {copied} copied, {packed} packed anew"))?;
        }
    }
    let freed = text::bytes(report.bytes_freed);
    let took = text::duration(report.seconds);
    match (report.dry_run, report.waiting) {
        (true, _) => out.line(format!("would free {freed}")),
        (false, false) => out.line(format!("freed {freed}, {took}")),
        // A warning has said why.
        (false, true) if report.warnings.iter().any(|it| it.code == Code::NotMerged) => {
            out.line(format!(
                "will free {freed}, {took}: what was replaced is still there, and the next merge or prune removes it"
            ))
        }
        (false, true) => out.line(format!(
            "will free {freed}, {took}: the points are being read, and the next merge removes what \
             was replaced"
        )),
    }
}
