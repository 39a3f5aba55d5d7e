//! `qdelta bench`: how fast this machine is with this image, and what limits it.

use std::path::Path;

use qdelta::base::warning::Code;
use qdelta::disk::io::Opener;
use qdelta::flows::bench::{self, BenchRequest};
use qdelta::flows::report::{BenchReport, Stage, StageReport};
use qdelta::{Error, ErrorKind, Result};

use super::bench_plot;
use crate::cli::args::Bench;
use crate::cli::{Context, signals, status, text};

/// Measures, and shows what was found.
pub fn run(args: Bench, context: &mut Context) -> Result<u8> {
    let cancel = signals::watch(&context.screen);
    let request = BenchRequest {
        open: args.source.options_for(&args.image, &cancel)?,
        image: args.image,
        folder: args.folder.unwrap_or_else(std::env::temp_dir),
        bytes: args.bytes,
        level: args.level,
        resources: args.work.resources(),
    };
    if let Some(plot) = args.plot.as_deref().filter(|plot| plot.exists()) {
        let what = format!("{}: the plot needs a new file", plot.display());
        return Err(Error::new(ErrorKind::Exists, what));
    }
    let report = bench::run(&request, &context.screen, &cancel)?;
    if let Some(plot) = &args.plot {
        save(plot, &bench_plot::svg(&report))?;
    }
    if context.out.json {
        context.out.json(&report)?;
    } else {
        show(&report, context)?;
    }
    Ok(status::DONE)
}

/// Writes the plot to a new file.
fn save(path: &Path, svg: &str) -> Result<()> {
    use std::io::Write;
    let created = Opener::CHANGE.create(0o666).open(path);
    created
        .and_then(|mut file| file.write_all(svg.as_bytes()))
        .map_err(|error| Error::io("write the plot to", path, error))
}

/// A rate in millions of bytes a second, as devices are sold.
fn rate(rate: f64) -> String {
    format!("{:.0}", rate / 1e6)
}

/// Shows the report in 80 columns.
fn show(report: &BenchReport, context: &mut Context) -> Result<()> {
    let out = &mut context.out;
    out.line(format!(
        "{}: {} of data, {} threads, I/O by {}; all rates in MB/s",
        report.image.display(),
        text::bytes(report.sample),
        report.threads,
        report.io.as_str()
    ))?;
    for warning in report.warnings.iter().filter(|warning| warning.code == Code::SlowIo) {
        out.line(&warning.text)?;
    }
    for line in io_table(report, Stage::Read) {
        out.line(line)?;
    }
    for line in work_table(report) {
        out.line(line)?;
    }
    for line in io_table(report, Stage::Write) {
        out.line(line)?;
    }
    out.line("")?;
    let columns = ["MB/s", "LIMIT", "ALONE", "REACHED", "CORES"];
    out.line(row(&format!("WHOLE, level {}", report.level), columns))?;
    for whole in &report.pipelines {
        let cores = whole.cpu_seconds / whole.seconds;
        out.line(row(
            &format!("  image {}", whole.cache.as_str()),
            [
                rate(whole.rate),
                whole.limit.as_str().to_owned(),
                rate(whole.bound),
                format!("{:.0} %", whole.closeness * 100.0),
                format!("{cores:.1}"),
            ],
        ))?;
    }
    Ok(())
}

/// A line of a table: what it is about, and its cells.
fn row<S: AsRef<str>>(head: &str, cells: impl IntoIterator<Item = S>) -> String {
    let mut line = format!("{head:<22}");
    for cell in cells {
        line.push_str(&format!("{:>11}", cell.as_ref()));
    }
    line
}

/// The values of a field among some stages, each once, in their order.
fn distinct<T: PartialEq>(
    stages: &[&StageReport],
    field: impl Fn(&StageReport) -> Option<T>,
) -> Vec<T> {
    let mut values = Vec::new();
    for value in stages.iter().filter_map(|stage| field(stage)) {
        if !values.contains(&value) {
            values.push(value);
        }
    }
    values
}

/// Reads or writes: a line for each cache and length, a column for each depth.
fn io_table(report: &BenchReport, kind: Stage) -> Vec<String> {
    let stages: Vec<&StageReport> = report.stages.iter().filter(|it| it.stage == kind).collect();
    let depths = distinct(&stages, |stage| stage.depth);
    let head = format!("{}, at once", kind.as_str().to_uppercase());
    let mut lines = vec![String::new(), row(&head, depths.iter().map(ToString::to_string))];
    for cache in distinct(&stages, |stage| stage.cache) {
        for size in distinct(&stages, |stage| stage.size) {
            let cells = depths.iter().map(|depth| {
                let found = stages.iter().find(|stage| {
                    (stage.cache, stage.size, stage.depth)
                        == (Some(cache), Some(size), Some(*depth))
                });
                found.map_or("-".to_owned(), |stage| rate(stage.rate))
            });
            lines
                .push(row(&format!("  {:<9} {}", cache.as_str(), text::bytes(size as u64)), cells));
        }
    }
    lines
}

/// What the processors do: a line for each work, a column for each number of threads.
fn work_table(report: &BenchReport) -> Vec<String> {
    let stages: Vec<&StageReport> =
        report.stages.iter().filter(|it| it.threads.is_some()).collect();
    let threads = distinct(&stages, |stage| stage.threads);
    let mut columns: Vec<String> = threads.iter().map(ToString::to_string).collect();
    columns.push("RATIO".to_owned());
    let mut lines = vec![String::new(), row("PROCESSORS, threads", &columns)];
    for (name, level) in distinct(&stages, |stage| Some((stage.stage, stage.level))) {
        let of = |stage: &&&StageReport| (stage.stage, stage.level) == (name, level);
        let mut cells: Vec<String> = threads
            .iter()
            .map(|count| {
                let mut found = stages.iter().filter(of);
                let found = found.find(|stage| stage.threads == Some(*count));
                found.map_or("-".to_owned(), |stage| rate(stage.rate))
            })
            .collect();
        let ratio = stages.iter().find(of).and_then(|stage| stage.ratio);
        cells.push(ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default());
        let name = name.as_str();
        let head = level.map_or(format!("  {name}"), |level| format!("  {name}, level {level}"));
        lines.push(row(&head, cells));
    }
    lines
}
