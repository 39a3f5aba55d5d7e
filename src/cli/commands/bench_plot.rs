//! The plot of `qdelta bench`: a bar for each stage, and what the whole reaches.

use std::fmt::Write;

use qdelta::flows::report::{BenchReport, Cached, Stage, StageReport};

/// Where the bars begin, how long the longest is, and how high a line, in pixels.
const LEFT: f64 = 210.0;
const WIDTH: f64 = 520.0;
const LINE: f64 = 20.0;

/// Draws the report.
pub fn svg(report: &BenchReport) -> String {
    let bars = bars(report);
    let longest = bars.iter().map(|bar| bar.1).fold(1.0, f64::max).log10();
    // Rates differ by powers of ten: from 10 MB/s on, each of them has the same length.
    let scale = |rate: f64| ((rate.max(1e7).log10() - 7.0) / (longest - 7.0).max(0.1)) * WIDTH;
    let mut body = String::new();
    let mut y = 40.0;
    for (label, rate, colour) in &bars {
        let (length, text_y) = (scale(*rate).max(1.0), y + 14.0);
        // Writing to a string does not fail.
        let _ = writeln!(
            body,
            "<text x=\"{}\" y=\"{text_y}\" text-anchor=\"end\">{label}</text>\
             <rect x=\"{LEFT}\" y=\"{}\" width=\"{length:.1}\" height=\"{}\" fill=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"{text_y}\">{:.0} MB/s</text>",
            LEFT - 8.0,
            y + 2.0,
            LINE - 4.0,
            LEFT + length + 6.0,
            rate / 1e6,
        );
        y += LINE;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\" \
         font-family=\"sans-serif\" font-size=\"12\">\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\
         <text x=\"10\" y=\"24\" font-size=\"15\">Each stage alone and the whole data path, \
         {} threads (logarithmic)</text>\n{body}</svg>\n",
        LEFT + WIDTH + 100.0,
        y + 10.0,
        report.threads,
    )
}

/// What to draw: label, bytes a second, colour.
fn bars(report: &BenchReport) -> Vec<(String, f64, &'static str)> {
    let best = |kind: Stage, cache: Cached| {
        let fits = |stage: &&StageReport| stage.stage == kind && stage.cache == Some(cache);
        report.stages.iter().filter(fits).map(|stage| stage.rate).fold(0.0, f64::max)
    };
    let mut bars = Vec::new();
    for cache in [Cached::Direct, Cached::Uncached, Cached::Cached] {
        bars.push((format!("read, {}", cache.as_str()), best(Stage::Read, cache), "#4c6ef5"));
    }
    for stage in report.stages.iter().filter(|stage| stage.threads == Some(report.threads)) {
        let label = match stage.level {
            Some(level) => format!("{}, level {level}", stage.stage.as_str()),
            None => stage.stage.as_str().to_owned(),
        };
        bars.push((label, stage.rate, "#2b8a3e"));
    }
    for cache in [Cached::Buffered, Cached::Direct] {
        bars.push((format!("write, {}", cache.as_str()), best(Stage::Write, cache), "#4c6ef5"));
    }
    for whole in &report.pipelines {
        let label = format!("whole, image {}", whole.cache.as_str());
        bars.push((label, whole.rate, "#d9480f"));
    }
    bars.retain(|bar| bar.1 > 0.0);
    bars
}
