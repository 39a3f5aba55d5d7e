//! `qdelta report`: how everything stands, and how it came to that, as one page.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use qdelta::disk::io::Opener;
use qdelta::flows::jobs;
use qdelta::flows::page::{Pictures, page};
use qdelta::flows::report::{FleetReport, Level};
use qdelta::{Error, ErrorKind, Result};

use super::run::with_host;
use crate::cli::job_args::Report;
use crate::cli::{Context, status};

/// No picture of a screen is longer, in bytes.
const PICTURE_MAX: u64 = 256 << 10;

/// Others may read the page: whoever writes it chose the place.
const MODE: u32 = 0o644;

/// Draws the page, or gives what it is drawn from.
pub fn run(args: &Report, context: &mut Context) -> Result<u8> {
    let days = usize::try_from(args.days).unwrap_or(usize::MAX);
    let fleet = with_host(&args.file, context, |host| jobs::fleet(host, days))?;
    let level = fleet.status.level;
    let status = if level == Level::Ok { status::DONE } else { status::OPEN };
    let Some(output) = &args.output else {
        return context.out.json(&fleet).map(|()| status);
    };
    let text = page(&fleet, &pictures(&fleet));
    if output.as_os_str() == "-" {
        text.lines().try_for_each(|line| context.out.line(line))?;
        return Ok(status);
    }
    if output.exists() && !args.force {
        let text = format!("{} is there already", output.display());
        return Err(Error::new(ErrorKind::Exists, text).advise("--force replaces it"));
    }
    put(output, &text)?;
    match context.out.json {
        true => context.out.json(&fleet)?,
        false if context.out.quiet => {}
        false => context.out.line(format!("{level}: {}", output.display()))?,
    }
    Ok(status)
}

/// The pictures of screens that the last drills have left. One that is gone is no picture.
fn pictures(fleet: &FleetReport) -> Pictures {
    let drilled = fleet.guests.iter().filter_map(|it| Some((it, it.drill.as_ref()?)));
    let picture = drilled.filter_map(|(guest, drill)| {
        let bytes = Opener::READ.read(drill.screenshot.as_ref()?, PICTURE_MAX).ok()?;
        Some((guest.guest.clone(), bytes))
    });
    picture.collect()
}

/// Puts the page in its place: whoever looks meanwhile sees the one before, or the new one.
fn put(output: &Path, text: &str) -> Result<()> {
    let name = output.file_name().unwrap_or_default().to_string_lossy();
    let next = output.with_file_name(format!(".{name}.next"));
    let write = || -> io::Result<()> {
        match fs::remove_file(&next) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = Opener::CHANGE.create(MODE).open(&next)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&next, output)
    };
    write().map_err(|error| Error::io("write", output, error))
}
