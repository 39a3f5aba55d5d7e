//! `qdelta files`: files out of a point.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use jiff::tz::TimeZone;
use qdelta::base::cancel::Cancel;
use qdelta::base::observer::{Observer, Recorder};
use qdelta::flows::files::{self, OpenDisk, OpenVolume, Output};
use qdelta::flows::report::{
    Change, DiffReport, FileChange, FileEntry, FileKind, FilesReport, GuestPath, TakenReport,
    VolumesReport,
};
use qdelta::vault::point::OpenPoints;
use qdelta::vault::repository::storage::Wait;
use qdelta::vault::repository::{DiskAt, Selector};
use qdelta::{Error, ErrorKind, Result};

use super::restore;
use crate::cli::files_args::{Files, FilesAction, FilesAt, FilesDiff, FilesLs};
use crate::cli::text::{self, Column};
use crate::cli::{Context, signals, status};

const VOLUMES: &[Column] = &[
    Column { head: "VOLUME", right: false, rank: 0 },
    Column { head: "SIZE", right: true, rank: 0 },
    Column { head: "HOLDS", right: false, rank: 0 },
    Column { head: "FILES", right: false, rank: 1 },
    Column { head: "LABEL", right: false, rank: 2 },
];

/// Does what is to be done with files.
pub fn run(args: &Files, context: &mut Context) -> Result<u8> {
    match &args.action {
        FilesAction::Ls(args) => ls(args, context),
        FilesAction::Get(args) => {
            take(&args.at, &args.paths, &args.to, args.force, files::get, context)
        }
        FilesAction::Diff(args) => diff(args, context),
        FilesAction::Tar(args) => {
            take(&args.at, &args.paths, &args.to, args.force, files::tar, context)
        }
    }
}

/// The status of a command that left so many files out.
fn done(left_out: u64) -> u8 {
    if left_out == 0 { status::DONE } else { status::PARTIAL }
}

fn bytes_of(path: &Path) -> Vec<u8> {
    path.as_os_str().as_bytes().to_vec()
}

fn open(
    at: &FilesAt,
    paths: &[Vec<u8>],
    observer: &dyn Observer,
    cancel: &Cancel,
    context: &Context,
) -> Result<OpenVolume> {
    let disk = OpenDisk::open(context.readable()?, &at.disk, observer, cancel)?;
    disk.volume(at.volume.as_deref(), paths, observer)
}

fn ls(args: &FilesLs, context: &mut Context) -> Result<u8> {
    let cancel = signals::watch(&context.screen);
    let Some(path) = args.path.as_deref().map(bytes_of) else {
        let repository = context.readable()?;
        let disk = OpenDisk::open(repository, &args.at.disk, &context.screen, &cancel)?;
        return show_volumes(&files::volumes(&disk, &context.screen), context);
    };
    let screen = context.screen.clone();
    let recorder = Recorder::new(&screen);
    let volume = open(&args.at, std::slice::from_ref(&path), &recorder, &cancel, context)?;
    let mut found = Vec::new();
    let left_out = files::list(
        &volume,
        &path,
        args.recursive,
        &mut |entry| {
            if context.out.json {
                found.push(entry);
            } else {
                context.out.line(line(&entry))?;
            }
            Ok(!context.out.is_closed())
        },
        &recorder,
        &cancel,
    )?;
    if context.out.json {
        context.out.json(&FilesReport {
            source: volume.source,
            volume: volume.volume.name,
            warnings: recorder.take(),
            files: found,
        })?;
    }
    Ok(done(left_out))
}

fn show_volumes(report: &VolumesReport, context: &mut Context) -> Result<u8> {
    if context.out.json {
        context.out.json(report)?;
        return Ok(status::DONE);
    }
    let row = |volume: &qdelta::flows::report::VolumeReport| {
        vec![
            text::printable(&volume.volume),
            text::bytes(volume.bytes),
            volume.content.clone(),
            if volume.readable { "read here" } else { "" }.to_owned(),
            text::printable(volume.label.as_deref().unwrap_or_default()),
        ]
    };
    let rows: Vec<Vec<String>> = report.volumes.iter().map(row).collect();
    for line in text::table(VOLUMES, &rows, context.out.width()) {
        context.out.line(line)?;
    }
    Ok(status::DONE)
}

/// A file, as `ls -l` shows it.
fn line(entry: &FileEntry) -> String {
    let size = match entry.device {
        Some((major, minor)) => format!("{major}, {minor}"),
        None => entry.bytes.to_string(),
    };
    let modified = entry
        .modified
        .map(|time| time.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M").to_string());
    let target = entry.target.as_ref().map(|target| format!(" -> {}", shown(target)));
    format!(
        "{}{} {:>4} {:>5} {:>5} {:>12} {:>16} {}{}",
        letter(entry.kind),
        permissions(&entry.mode),
        entry.links,
        entry.uid,
        entry.gid,
        size,
        modified.unwrap_or_default(),
        shown(&entry.name),
        target.unwrap_or_default(),
    )
}

/// A path in which bytes that are no UTF-8, control characters and backslashes are escaped, so that no
/// two names look the same.
fn shown(path: &GuestPath) -> String {
    let bytes = path.bytes();
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\\' => text.push_str("\\\\"),
                '\n' => text.push_str("\\n"),
                '\t' => text.push_str("\\t"),
                character => text.push(character),
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text::printable(&text)
}

fn letter(kind: FileKind) -> char {
    match kind {
        FileKind::File => '-',
        FileKind::Folder => 'd',
        FileKind::Link => 'l',
        FileKind::CharacterDevice => 'c',
        FileKind::BlockDevice => 'b',
        FileKind::Fifo => 'p',
        FileKind::Socket => 's',
    }
}

/// `rwxr-xr-x` of `0755`, with the letters of set-user-id, set-group-id and sticky.
fn permissions(mode: &str) -> String {
    let bits = u32::from_str_radix(mode, 8).unwrap_or_default();
    let mut shown = String::new();
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let three = bits >> shift;
        shown.push(if three & 4 != 0 { 'r' } else { '-' });
        shown.push(if three & 2 != 0 { 'w' } else { '-' });
        shown.push(match (bits & special != 0, three & 1 != 0) {
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    shown
}

/// What writes files to an output.
type Taker =
    fn(&OpenVolume, &[Vec<u8>], Output, bool, &dyn Observer, &Cancel) -> Result<TakenReport>;

fn take(
    at: &FilesAt,
    paths: &[PathBuf],
    to: &Path,
    force: bool,
    taker: Taker,
    context: &mut Context,
) -> Result<u8> {
    let paths: Vec<Vec<u8>> = paths.iter().map(|path| bytes_of(path)).collect();
    let cancel = signals::watch(&context.screen);
    let output = match to {
        path if path == Path::new("-") => Output::Stream(restore::bytes_to_stdout(&cancel)?),
        path => {
            restore::refuse_inside(&context.readable()?, path)?;
            Output::Path(path.to_owned())
        }
    };
    let screen = context.screen.clone();
    let recorder = Recorder::new(&screen);
    let looked_for = |error: Error| match (error.kind(), paths.len()) {
        (ErrorKind::NotFound, 2..) => error.advise(
            "every PATH is looked for in the point: --to says where on this machine the files go",
        ),
        _ => error,
    };
    let volume = open(at, &paths, &recorder, &cancel, context).map_err(looked_for)?;
    let taken = taker(&volume, &paths, output, force, &screen, &cancel);
    let mut report = taken.map_err(looked_for)?;
    report.warnings.splice(..0, recorder.take());
    show_taken(&report, context)
}

/// Shows what was taken out. With files on standard output, the report goes to standard error.
fn show_taken(report: &TakenReport, context: &mut Context) -> Result<u8> {
    let to_stdout = report.output == Path::new("-");
    let output =
        if to_stdout { "standard output".into() } else { report.output.display().to_string() };
    let done = done(report.left_out);
    if context.out.json {
        match to_stdout {
            true => context.screen.say(&context.out.to_json(report)?),
            false => context.out.json(report)?,
        }
        return Ok(done);
    }
    let files = text::count(report.files as usize, "file");
    let mut line = format!(
        "{} {}: {files} ({}) to {output}",
        report.source,
        report.volume,
        text::bytes(report.bytes),
    );
    if report.left_out > 0 {
        line.push_str(&format!("; {} left out", report.left_out));
    }
    match to_stdout {
        _ if context.out.quiet => {}
        true => context.screen.say(&text::printable(&format!("qdelta: {line}"))),
        false => context.out.line(line)?,
    }
    Ok(done)
}

fn diff(args: &FilesDiff, context: &mut Context) -> Result<u8> {
    let path = bytes_of(&args.path);
    let cancel = signals::watch(&context.screen);
    let screen = context.screen.clone();
    let recorder = Recorder::new(&screen);
    let wait = Wait::by(&recorder, &cancel);
    let points = OpenPoints::new(context.readable()?, &cancel);
    let at =
        |point: &Selector| DiskAt { disk: args.points.disk.clone(), point: Some(point.clone()) };
    let new_disk = OpenDisk::of(&points, &at(&args.points.to), wait)?;
    let old_disk = OpenDisk::of(&points, &at(&args.points.from), wait)?;
    let wanted = args.volume.as_deref();
    let paths = std::slice::from_ref(&path);
    // What was removed is at the first point alone.
    let new = match new_disk.volume(wanted, paths, &recorder) {
        Err(error) if error.kind() == ErrorKind::NotFound && wanted.is_none() => {
            let name = old_disk.volume(None, paths, &recorder)?.volume.name;
            new_disk.volume(Some(&name), paths, &recorder)?
        }
        new => new?,
    };
    let old = old_disk.volume(Some(&new.volume.name), paths, &recorder)?;
    let pair = files::Pair { old_disk: &old_disk, old: &old, new_disk: &new_disk, new: &new };
    let mut found = Vec::new();
    let mut show = |change: FileChange| {
        if context.out.json {
            found.push(change);
        } else {
            let mark = match change.change {
                Change::Added => '+',
                Change::Removed => '-',
                Change::Content => 'M',
                Change::Attributes => 'm',
            };
            context.out.line(format!("{mark} {}", shown(&change.name)))?;
        }
        Ok(!context.out.is_closed())
    };
    let left_out = files::diff(&pair, &path, &mut show, &recorder, &cancel)?;
    if context.out.json {
        context.out.json(&DiffReport {
            from: old.source,
            to: new.source,
            volume: new.volume.name,
            warnings: recorder.take(),
            changes: found,
        })?;
    }
    Ok(done(left_out))
}
