//! `qdelta info` of an image.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use qdelta::base::cancel::Cancel;
use qdelta::base::observer::{Event, Observer};
use qdelta::disk::image::{self, ImageInfo, LayerDescription, Qcow2Info};
use qdelta::disk::nbd::Description;
use qdelta::flows::report::FileReport;
use qdelta::{Error, ErrorKind, Result};

use crate::cli::args::Info;
use crate::cli::{Context, status, text};

/// Shows an image. One that can't be read is shown as far as its header tells; the status says so.
pub fn run(args: &Info, context: &mut Context) -> Result<u8> {
    let info =
        image::inspect(&args.path, &args.source.options_for(&args.path, &Cancel::default())?)?;
    if context.out.json {
        context.out.json(&FileReport::Image(Box::new(info.clone())))?;
    } else {
        show(&info, context)?;
    }
    for warning in &info.warnings {
        context.screen.event(&Event::Warning(warning));
    }
    match &info.problem {
        None => Ok(status::DONE),
        Some(problem) => Err(Error::new(ErrorKind::Image, problem.clone())),
    }
}

/// Shows an image to people.
fn show(info: &ImageInfo, context: &mut Context) -> Result<()> {
    let mut lines = vec![("image", info.filename.display().to_string())];
    let mut line = |name: &'static str, value: String| lines.push((name, value));
    line("format", format(info));
    line("disk size", format!("{} ({} bytes)", text::bytes(info.virtual_size), info.virtual_size));
    let length = text::bytes(info.file_length);
    match (&info.export, info.actual_size) {
        (Some(export), _) => details_of_export(export, &mut line),
        (None, Some(actual)) => {
            line("file size", format!("{length}, of which {} on disk", text::bytes(actual)));
        }
        (None, None) => line("file size", length),
    }
    if let Some(qcow2) = &info.qcow2 {
        details(qcow2, &mut line);
    }
    for (depth, layer) in info.layers.iter().enumerate() {
        if depth > 0 {
            line("backing file", layer_line(layer));
        }
        if let Some(data_file) = &layer.data_file {
            line("data file", data_file.display().to_string());
        }
    }
    for (name, value) in lines {
        context.out.line(format!("{name:<12} {value}"))?;
    }
    Ok(())
}

/// The format of an image and what it was told by.
fn format(info: &ImageInfo) -> String {
    let mut text = info.format.to_string();
    if let Some(qcow2) = &info.qcow2 {
        text.push_str(&format!(
            " version {}, clusters of {}",
            qcow2.version,
            text::bytes(qcow2.cluster_size)
        ));
    }
    if info.export.is_some() {
        text.push_str(" (an NBD server gives it out)");
    }
    if info.layers.first().is_some_and(|layer| layer.format_guessed) {
        text.push_str(match info.qcow2 {
            Some(_) => " (as its first bytes say)",
            None => " (it does not begin like qcow2)",
        });
    }
    text
}

/// What only exports of servers have.
fn details_of_export(export: &Description, line: &mut impl FnMut(&'static str, String)) {
    if let Some(what) = &export.description {
        line("described as", what.escape_debug().to_string());
    }
    let or = |is: bool, yes: &'static str, no: &'static str| if is { yes } else { no }.to_owned();
    line("clients", or(export.read_only, "read only", "may write to it"));
    line("zeros", or(export.tells_zeros, "told by the server", "not told: everything is read"));
    for bitmap in &export.bitmaps {
        line("bitmap", bitmap.escape_debug().to_string());
    }
}

/// What only qcow2 images have, as far as there is something to say.
fn details(qcow2: &Qcow2Info, line: &mut impl FnMut(&'static str, String)) {
    if !qcow2.features.is_empty() {
        line("features", qcow2.features.join(", "));
    }
    if let Some(encryption) = &qcow2.encryption {
        line("encryption", encryption.to_owned());
    }
    if let Some(name) = &qcow2.backing_filename {
        let format = qcow2.backing_filename_format.as_deref().unwrap_or("no format given");
        line("backed by", format!("{name} ({format})"));
    }
    for snapshot in &qcow2.snapshots {
        let taken = Timestamp::from_second(snapshot.date_sec.into())
            .map(|time| {
                time.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S %:z").to_string()
            })
            .unwrap_or_default();
        let size = text::bytes(snapshot.virtual_size);
        line("snapshot", format!("{} (id {}, {taken}, {size})", snapshot.name, snapshot.id));
    }
    for bitmap in &qcow2.bitmaps {
        let flags =
            if bitmap.flags.is_empty() { "no flags".to_owned() } else { bitmap.flags.join(", ") };
        line(
            "bitmap",
            format!("{}, {} a bit, {flags}", bitmap.name, text::bytes(bitmap.granularity)),
        );
    }
    for problem in [&qcow2.snapshots_problem, &qcow2.bitmaps_problem].into_iter().flatten() {
        line("problem", problem.clone());
    }
}

/// A layer below the top.
fn layer_line(layer: &LayerDescription) -> String {
    let mut what = layer.format.to_string();
    if layer.format_guessed {
        what.push_str(", as its first bytes say");
    }
    format!("{} ({what}, {})", layer.path.display(), text::bytes(layer.virtual_size))
}
