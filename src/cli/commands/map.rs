//! `qdelta map`: where the bytes of a disk are.

use qdelta::Result;
use qdelta::base::cancel::Cancel;
use qdelta::disk::image::{Image, LayerDescription, MapEntry, OpenOptions};

use crate::cli::args::Map;
use crate::cli::{Context, status};

/// Shows the map entry by entry: a disk may have millions.
pub fn run(args: Map, context: &mut Context) -> Result<u8> {
    let open = args.source.options_for(&args.image, &Cancel::default())?;
    let options = OpenOptions { snapshot: args.snapshot, ..open };
    let image = Image::open(&args.image, &options)?;
    if context.out.json {
        json(&image, context)?;
    } else {
        table(&image, context)?;
    }
    Ok(status::DONE)
}

/// One array, one entry a line, as `qemu-img map --output=json` writes it.
fn json(image: &Image, context: &mut Context) -> Result<()> {
    let mut lead = "[";
    for entry in image.map() {
        let entry = context.out.to_json_line(&entry?)?;
        context.out.raw(&format!("{lead}{entry}"))?;
        lead = ",\n";
        if context.out.is_closed() {
            return Ok(());
        }
    }
    context.out.raw(if lead == "[" { "[]\n" } else { "]\n" })
}

/// A table in hexadecimal: offsets of images are round numbers only there.
fn table(image: &Image, context: &mut Context) -> Result<()> {
    let line = |start: &str, length: &str, what: &str, offset: &str, file: &str| {
        let line = format!("{start:<14} {length:<14} {what:<11} {offset:<14} {file}");
        line.trim_end().to_owned()
    };
    context.out.line(line("START", "LENGTH", "WHAT", "AT", "IN"))?;
    for entry in image.map() {
        let entry = entry?;
        let at = entry.offset.map(|offset| format!("{offset:#x}")).unwrap_or_default();
        let file = image.layers().get(usize::from(entry.depth)).filter(|_| entry.present);
        context.out.line(line(
            &format!("{:#x}", entry.start),
            &format!("{:#x}", entry.length),
            what(&entry),
            &at,
            &file.map(|layer| file_of(layer, &entry)).unwrap_or_default(),
        ))?;
        if context.out.is_closed() {
            break;
        }
    }
    Ok(())
}

/// What is known of a range, in a word.
fn what(entry: &MapEntry) -> &'static str {
    match entry {
        MapEntry { compressed: true, .. } => "compressed",
        MapEntry { zero: true, present: true, .. } => "zero",
        MapEntry { data: true, .. } => "data",
        _ => "unallocated",
    }
}

/// The file that holds a range, or says that it is zero.
fn file_of(layer: &LayerDescription, entry: &MapEntry) -> String {
    let holds = layer.data_file.as_ref().filter(|_| entry.data && !entry.compressed);
    holds.unwrap_or(&layer.path).display().to_string()
}
