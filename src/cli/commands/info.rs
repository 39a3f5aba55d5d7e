//! `qdelta info`: what a file is, image or archive.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use qdelta::disk::io::{FileStore, Opener};
use qdelta::flows::report::{ArchiveReport, FileReport};
use qdelta::formats::archive::header;
use qdelta::vault::archive::Reader;
use qdelta::{Error, ErrorKind, Result};

use crate::cli::args::Info;
use crate::cli::values::is_uri;
use crate::cli::{Context, status, text};

/// Tells an archive from an image by its first bytes and shows what it is.
pub fn run(args: &Info, context: &mut Context) -> Result<u8> {
    if is_uri(&args.path) {
        return super::image_info::run(args, context);
    }
    match read_start(&args.path)? {
        Some(start) if start.starts_with(header::MAGIC) => archive(&args.path, &start, context),
        _ => super::image_info::run(args, context),
    }
}

/// The first bytes of a file; nothing of something else, like a block device.
fn read_start(path: &Path) -> Result<Option<Vec<u8>>> {
    let metadata = fs::metadata(path).map_err(|error| Error::io("open", path, error))?;
    if metadata.is_dir() {
        return Err(Error::new(ErrorKind::Usage, format!("{} is a folder", path.display()))
            .advise("name an image or an archive; qdelta points shows what a repository holds"));
    }
    if !metadata.is_file() {
        return Ok(None);
    }
    let start = Opener::READ.read_start(path, header::HEADER_LEN_MAX as u64);
    start.map(Some).map_err(|error| Error::io("read", path, error))
}

/// Shows an archive. Of a torn one the header is shown, and then what is wrong.
fn archive(path: &Path, start: &[u8], context: &mut Context) -> Result<u8> {
    let (metadata, _) =
        header::decode(start).map_err(|error| Error::format(ErrorKind::Damaged, path, error))?;
    let file = Opener::READ.open(path).map_err(|error| Error::io("open", path, error))?;
    let file_length = file.metadata().map_err(|error| Error::io("look at", path, error))?.len();
    let reader = Reader::open(Arc::new(FileStore::new(file, path)));
    let report = ArchiveReport::new(path, &metadata, file_length, reader.as_ref().ok());
    if context.out.json {
        context.out.json(&FileReport::Archive(Box::new(report)))?;
    } else {
        show(&report, context)?;
    }
    match reader {
        Ok(_) => Ok(status::DONE),
        Err(error) => Err(error),
    }
}

/// Shows an archive to people.
fn show(report: &ArchiveReport, context: &mut Context) -> Result<()> {
    let mut line = |name: &str, value: String| context.out.line(format!("{name:<12} {value}"));
    line("archive", report.path.display().to_string())?;
    line("disk", report.disk.clone())?;
    line("point", report.point.clone())?;
    line("made", format!("{} by {}", created(report.created), report.generator))?;
    line(
        "kind",
        format!("{}, tracker {}, guest {}", report.kind, report.tracker, report.consistency),
    )?;
    if let Some(parent) = &report.parent {
        let disk = if parent.disk == report.disk { "" } else { &format!(" of {}", parent.disk) };
        line("made against", format!("{}{disk}", parent.point))?;
    }
    line(
        "disk size",
        format!(
            "{} ({} bytes), in blocks of {}",
            text::bytes(report.virtual_size),
            report.virtual_size,
            text::bytes(report.block_size.into())
        ),
    )?;
    let blocks = |count: u64| {
        let size = text::bytes(count.saturating_mul(report.block_size.into()));
        format!("{} ({size})", text::count(usize::try_from(count).unwrap_or(usize::MAX), "block"))
    };
    if let Some(contents) = &report.contents {
        let frames = text::count(usize::try_from(contents.frames).unwrap_or(usize::MAX), "frame");
        let payload = text::bytes(contents.payload_bytes);
        line("stored", format!("{} as {payload} in {frames}", blocks(contents.stored_blocks)))?;
        if report.parent.is_some() {
            line("zeroed", blocks(contents.zeroed_blocks))?;
        }
    }
    line("file size", text::bytes(report.file_length))?;
    line("archive id", report.archive_id.to_string())?;
    if let Some(contents) = &report.contents {
        line("root", contents.root.to_string())?;
    }
    Ok(())
}

/// When an archive was made, as people here write it.
fn created(time: Timestamp) -> String {
    time.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S %:z").to_string()
}
