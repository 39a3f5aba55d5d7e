//! `qdelta mount`: points as files.

use qdelta::Result;
use qdelta::flows::mount::{self, MountRequest, PATIENCE};

use crate::cli::export_args::Mount;
use crate::cli::{Context, ready, signals, status, text};

/// Shows points until they are unmounted or a signal comes.
pub fn run(args: &Mount, context: &mut Context) -> Result<u8> {
    let repository = context.readable()?;
    let request = MountRequest {
        folder: args.folder.clone(),
        wanted: args.wanted.clone(),
        patience: PATIENCE,
    };
    let cancel = signals::watch(&context.screen);
    let Context { out, screen, .. } = context;
    mount::run(&repository, &request, screen, &cancel, |report| {
        if out.json {
            let line = out.to_json_line(report)?;
            out.line(line)?;
        } else {
            let number =
                |count: u64, what| text::count(usize::try_from(count).unwrap_or(usize::MAX), what);
            out.success(format!(
                "{}: {} of {}, until Ctrl-C or fusermount3 -u",
                report.folder.display(),
                number(report.points, "point"),
                number(report.disks, "disk"),
            ))?;
        }
        out.flush()?;
        ready::tell();
        Ok(())
    })?;
    Ok(status::DONE)
}
