//! `qdelta bench`: what it measures adds up, and it changes nothing.

use std::collections::BTreeSet;

use serde_json::Value;

use super::json::compare;
use super::{done, qemu_img, qemu_io, refused, word};

#[test]
fn it_measures_every_stage_and_touches_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (image, plot) = (dir.path().join("disk.qcow2"), dir.path().join("plot.svg"));
    let folder = dir.path().join("folder");
    std::fs::create_dir(&folder).unwrap();
    qemu_img(&["create", "-q", "-f", "qcow2", word(&image), "64M"]);
    qemu_io(word(&image), &["write -q -P 7 1M 3M", "write -q -P 9 40M 1M"]);
    let before = (std::fs::read(&image).unwrap(), image.metadata().unwrap().modified().unwrap());

    let words = ["bench", word(&image), "--folder", word(&folder), "--bytes", "3M"];
    let text = done(&[&words[..], &["--json", "--plot", word(&plot), "--threads", "2"]].concat());
    let report: Value = serde_json::from_str(&text).unwrap();
    compare("bench", &[&report], &[]);
    // The first 3 MiB of what is there, and not the zeros before.
    assert_eq!(report["sample"], 3 << 20);
    let stages = report["stages"].as_array().unwrap();
    let names: BTreeSet<&str> = stages.iter().map(|it| it["stage"].as_str().unwrap()).collect();
    assert_eq!(names, BTreeSet::from(["compress", "hash", "read", "write", "zero-scan"]));
    assert!(stages.iter().all(|stage| stage["rate"].as_f64().unwrap() > 0.0));
    let ratios: Vec<f64> = stages.iter().filter_map(|stage| stage["ratio"].as_f64()).collect();
    // Blocks of one repeated byte.
    assert!(ratios.len() >= 10 && ratios.iter().all(|ratio| *ratio > 100.0), "{ratios:?}");
    for whole in report["pipelines"].as_array().unwrap() {
        let field = |name: &str| whole[name].as_f64().unwrap();
        assert!((field("closeness") - field("rate") / field("bound")).abs() < 1e-9);
        assert!((field("rate") * field("seconds") / f64::from(3 << 20) - 1.0).abs() < 1e-6);
    }
    let svg = std::fs::read_to_string(&plot).unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));

    // For people, within the width of a terminal.
    let text = done(&words);
    assert!(text.contains("WHOLE, level 1"), "{text}");
    let longest = text.lines().skip(1).map(|line| line.chars().count()).max().unwrap();
    assert!(longest <= 80, "{text}");

    let after = (std::fs::read(&image).unwrap(), image.metadata().unwrap().modified().unwrap());
    assert!(before == after, "the image was written to");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0, "something was left");
    let refusal = refused(7, &[&words[..], &["--plot", word(&plot)]].concat());
    assert!(refusal.contains("plot"), "{refusal}");
    assert_eq!(std::fs::read_to_string(&plot).unwrap(), svg);
}

#[test]
fn an_image_without_data_can_not_be_measured() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("empty.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", word(&image), "64M"]);
    let refusal = refused(2, &["bench", word(&image), "--folder", word(dir.path())]);
    assert!(refusal.contains("no data"), "{refusal}");
}
