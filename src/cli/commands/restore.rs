//! `qdelta restore` and `qdelta replay`: the disk of a recovery point.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use qdelta::base::cancel::Cancel;
use qdelta::disk::create::Pipe;
use qdelta::disk::image::Format;
use qdelta::disk::sys::stdout_was_closed;
use qdelta::flows::report::{GuestRange, RestoreReport, SalvageReport};
use qdelta::flows::restore::{self, Destination, RestoreRequest};
use qdelta::guest::libvirt::Libvirt;
use qdelta::vault::repository::{Repository, Selector};
use qdelta::{Error, ErrorKind, Result};

use super::{host, in_place, machine};
use crate::cli::args::{Replay, Restore, Target, Work};
use crate::cli::values::is_uri;
use crate::cli::{Context, signals, status, text};

/// Restores a point of a repository.
pub fn run(args: &Restore, context: &mut Context) -> Result<u8> {
    if args.machine.host_config {
        return host::run(args, context);
    }
    match (&args.machine.domain, &args.machine.to, args.in_place) {
        (Some(domain), Some(to), _) => return machine::run(args, domain, to, context),
        (Some(domain), None, true) => return in_place::run_machine(args, domain, context),
        (Some(domain), None, false) => {
            return Err(Error::new(ErrorKind::Usage, format!("say where {domain} is to go"))
                .advise("--to DIR restores all of it there, --in-place rolls its own disks back"));
        }
        (None, _, true) => return in_place::run(args, context),
        (None, ..) => {}
    }
    let (Some(at), Some(output)) = (&args.disk, &args.output) else {
        return Err(Error::new(ErrorKind::Usage, "say which disk, and where to"));
    };
    let repository = context.readable()?;
    let cancel = signals::watch(&context.screen);
    let disk = repository.catalog().find_one(&at.disk)?.into();
    let request = request(output, &args.target, args.libvirt.libvirt(None), &args.work, &cancel)?;
    refuse_inside(&repository, output)?;
    let latest = Selector::Latest;
    let point = at.point.as_ref().unwrap_or(&latest);
    let report = restore::run(&repository, &disk, point, request, &context.screen, &cancel)?;
    show(&report, context)
}

/// Restores from bare archives.
pub fn replay(args: &Replay, context: &mut Context) -> Result<u8> {
    let cancel = signals::watch(&context.screen);
    let libvirt = Libvirt::default();
    let request = request(&args.output, &args.target, libvirt, &args.work, &cancel)?;
    let report = restore::replay(&args.archives, request, &context.screen, &cancel)?;
    show(&report, context)
}

/// The output that means standard output.
const STDOUT: &str = "-";

/// What the arguments mean together.
fn request(
    output: &Path,
    target: &Target,
    libvirt: Libvirt,
    work: &Work,
    cancel: &Cancel,
) -> Result<RestoreRequest> {
    let to_stdout = output == Path::new(STDOUT);
    if is_uri(output) {
        let text = format!("{} is an export of a server", output.display());
        return Err(Error::new(ErrorKind::Usage, text)
            .because("nothing is written to a server")
            .advise("restore to a file, and copy that: nbdcopy FILE URI"));
    }
    let format = match target.format {
        Some(format) => format.to_image(),
        // A raw disk under the name of a qcow2 image would be taken for one.
        None if output.extension().is_some_and(|end| end == "qcow2") => Format::Qcow2,
        None => Format::Raw,
    };
    Ok(RestoreRequest {
        destination: if to_stdout { stdout(cancel)? } else { Destination::Path(output.to_owned()) },
        format,
        force: target.force,
        libvirt,
        salvage: target.salvage,
        resources: work.resources(),
    })
}

/// Standard output as a place for the bytes of a disk.
fn stdout(cancel: &Cancel) -> Result<Destination> {
    Ok(Destination::Stream(bytes_to_stdout(cancel)?))
}

/// Standard output, which must be no terminal.
pub(super) fn bytes_to_stdout(cancel: &Cancel) -> Result<Box<dyn Write + Send>> {
    let stdout = io::stdout();
    if stdout.is_terminal() {
        return Err(Error::new(
            ErrorKind::Usage,
            "bytes of a guest are not for a terminal, and standard output is one",
        )
        .advise("redirect it into a file or a pipe"));
    }
    if stdout_was_closed() {
        let text = "standard output is closed: the bytes would be lost";
        return Err(Error::new(ErrorKind::Io, text).advise(
            "redirect it into a file or a pipe; qdelta verify only looks whether it could",
        ));
    }
    // Not through the standard library's buffer, which looks for the ends of lines.
    let file = stdout.as_fd().try_clone_to_owned();
    let file = file.map_err(|error| Error::io("open", Path::new("standard output"), error))?;
    let file = File::from(file);
    let metadata = file.metadata();
    let metadata =
        metadata.map_err(|error| Error::io("look at", Path::new("standard output"), error))?;
    Ok(match metadata.file_type().is_fifo() {
        true => Box::new(Pipe::of(file, cancel)),
        false => Box::new(file),
    })
}

/// Fails if the output would lie in the repository, which holds points and nothing else.
pub(super) fn refuse_inside(repository: &Repository, output: &Path) -> Result<()> {
    let folder = match output.parent() {
        Some(folder) if folder != Path::new("") => folder.to_owned(),
        _ => PathBuf::from("."),
    };
    // What can't be resolved can't be written to either, and says so then.
    let (Ok(folder), Ok(root)) = (folder.canonicalize(), repository.path().canonicalize()) else {
        return Ok(());
    };
    if folder.starts_with(root) && output != Path::new(STDOUT) {
        let what = format!("{} lies inside the repository", output.display());
        return Err(Error::new(ErrorKind::Usage, what).advise("restore to another folder"));
    }
    Ok(())
}

/// Shows a restore. With the disk on standard output, the report goes to standard error.
fn show(report: &RestoreReport, context: &mut Context) -> Result<u8> {
    let to_stdout = report.output == Path::new(STDOUT);
    // What is not proved may be wrong in ways that nobody knows.
    let complete =
        report.root.is_some() && report.salvage.as_ref().is_none_or(SalvageReport::is_complete);
    let done = if complete { status::DONE } else { status::PARTIAL };
    if !to_stdout {
        let proved = if report.root.is_some() { " and proved" } else { "" };
        let output = report.output.display();
        context.out.was_done(format!("the disk was restored to {output}{proved}"));
    }
    if context.out.json {
        match to_stdout {
            true => context.screen.say(&context.out.to_json(report)?),
            false => context.out.json(report)?,
        }
        return Ok(done);
    }
    for line in lines(report) {
        match to_stdout {
            _ if context.out.quiet && complete => {}
            true => context.screen.say(&text::printable(&format!("qdelta: {line}"))),
            false => context.out.line(line)?,
        }
    }
    Ok(done)
}

/// A restore, for people.
fn lines(report: &RestoreReport) -> Vec<String> {
    let name = match report.output.to_str() {
        Some(STDOUT) => "standard output".to_owned(),
        _ => text::printable(&report.output.display().to_string()),
    };
    let proved = if report.root.is_some() { " and proved" } else { ", not proved as a whole" };
    let mut lines = vec![
        format!("{}@{}: restored to {name} ({})", report.disk, report.point, report.format),
        format!(
            "  {} disk, {} written{proved}, from {}",
            text::bytes(report.virtual_size),
            text::bytes(report.bytes_written),
            text::count(report.archives, "archive"),
        ),
        format!(
            "  took {}, I/O by {}",
            text::took(report.seconds, report.bytes_written),
            report.io.as_str()
        ),
    ];
    lines.extend(text::safety_notes(report.safety, report.passed_over));
    if let Some(salvage) = &report.salvage {
        lines.extend(salvage.problems.iter().map(|problem| format!("  damaged: {problem}")));
        lines.extend(gap_lines("lost, zeros now", &salvage.lost));
        lines
            .extend(gap_lines("uncertain, perhaps as it was at an earlier point", &salvage.unsure));
        match (salvage.is_complete(), &report.root) {
            (true, Some(_)) => lines.push("  nothing is lost".to_owned()),
            (true, None) => lines.push("  nothing is known to be lost".to_owned()),
            (false, _) => {}
        }
    }
    lines
}

/// Ranges of the guest's disk that a salvage could not get back, or can't vouch for.
fn gap_lines(what: &str, ranges: &[GuestRange]) -> Vec<String> {
    if ranges.is_empty() {
        return Vec::new();
    }
    let total = ranges.iter().map(|range| range.length).sum();
    let mut lines = vec![format!(
        "  {what}: {} in {} of the disk:",
        text::bytes(total),
        text::count(ranges.len(), "range")
    )];
    lines.extend(
        ranges.iter().map(|range| format!("    {} bytes at {}", range.length, range.start)),
    );
    lines
}
