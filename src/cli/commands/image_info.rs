//! `qdelta info` of an image.

use qdelta::Result;
use qdelta::image::Image;
use serde::Serialize;

use crate::cli::args::Info;
use crate::cli::{Context, status, text};

/// What `--json` shows of an image.
#[derive(Serialize)]
struct ImageReport {
    #[serde(rename = "type")]
    type_name: &'static str,
    path: String,
    format: &'static str,
    virtual_size: u64,
    layers: Vec<LayerReport>,
}

/// One file of the image's backing chain, the top first.
#[derive(Serialize)]
struct LayerReport {
    path: String,
    data_file: Option<String>,
    format: &'static str,
    format_guessed: bool,
    virtual_size: u64,
    cluster_size: Option<u64>,
}

/// Shows an image.
pub fn run(args: &Info, context: &mut Context) -> Result<u8> {
    let image = Image::open(&args.path, &args.source.options())?;
    let layers: Vec<_> = image
        .layers()
        .iter()
        .map(|layer| LayerReport {
            path: layer.path.display().to_string(),
            data_file: layer.data_file.as_ref().map(|path| path.display().to_string()),
            format: layer.format.as_str(),
            format_guessed: layer.format_guessed,
            virtual_size: layer.virtual_size,
            cluster_size: layer.cluster_size,
        })
        .collect();
    let report = ImageReport {
        type_name: "image",
        path: args.path.display().to_string(),
        format: layers.first().map_or("raw", |layer| layer.format),
        virtual_size: image.virtual_size(),
        layers,
    };
    if context.out.json {
        context.out.json(&report)?;
    } else {
        show(&report, context)?;
    }
    Ok(status::DONE)
}

/// Shows an image to people.
fn show(report: &ImageReport, context: &mut Context) -> Result<()> {
    let mut line = |name: &str, value: String| context.out.line(format!("{name:<12} {value}"));
    line("image", report.path.clone())?;
    line(
        "disk size",
        format!("{} ({} bytes)", text::bytes(report.virtual_size), report.virtual_size),
    )?;
    for (index, layer) in report.layers.iter().enumerate() {
        let name = if index == 0 { "format" } else { "backing file" };
        let mut value = layer.format.to_owned();
        if layer.format_guessed {
            value.push_str(" (as its first bytes say)");
        }
        if let Some(size) = layer.cluster_size {
            value.push_str(&format!(", clusters of {}", text::bytes(size)));
        }
        if index > 0 {
            value = format!("{} ({value}, {})", layer.path, text::bytes(layer.virtual_size));
        }
        line(name, value)?;
        if let Some(data_file) = &layer.data_file {
            line("data file", data_file.clone())?;
        }
    }
    Ok(())
}
