//! `qdelta map` against `qemu-img map`: the same ranges with the same properties.

use std::ffi::OsString;
use std::path::Path;

use serde_json::Value;

use crate::harness::images::qemu_img;
use crate::harness::{args, qdelta, run};

/// What both must agree on for a range of the guest's disk.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Range {
    start: u64,
    end: u64,
    /// Whether it reads as zeros for sure.
    zero: bool,
    /// Whether a layer holds bytes for it.
    data: bool,
    compressed: bool,
    /// Whether any layer says something about it.
    present: bool,
    depth: u64,
    /// Where its bytes lie in their file.
    offset: Option<u64>,
}

/// The ranges of one program's output, in its order.
fn parse(list: &Value) -> Vec<Range> {
    let entries = list.as_array().unwrap_or_else(|| panic!("no list: {list}"));
    let field = |entry: &Value, name: &str| entry[name].as_bool().unwrap_or(false);
    entries
        .iter()
        // QEMU has an empty range for an empty disk.
        .filter(|entry| entry["length"] != 0)
        .map(|entry| {
            let start = entry["start"].as_u64().unwrap();
            let data = field(entry, "data");
            Range {
                start,
                end: start + entry["length"].as_u64().unwrap(),
                // Data may lie in a hole of its file; who looks that far is free to say so.
                zero: field(entry, "zero") && !data,
                data,
                compressed: field(entry, "compressed"),
                present: field(entry, "present"),
                depth: entry["depth"].as_u64().unwrap(),
                // Where zeros are preallocated is no place of data.
                offset: if data { entry["offset"].as_u64() } else { None },
            }
        })
        .collect()
}

/// Joins neighbours that say the same: how a list is cut up means nothing.
fn normalise(list: Vec<Range>) -> Vec<Range> {
    let mut joined: Vec<Range> = Vec::new();
    for range in list {
        if let Some(last) = joined.last_mut() {
            assert_eq!(last.end, range.start, "a gap or an overlap in the map");
            let continued = last.offset.map(|offset| offset + (last.end - last.start));
            let like_last =
                Range { start: last.start, end: last.end, offset: last.offset, ..range };
            if like_last == *last && continued == range.offset {
                last.end = range.end;
                continue;
            }
        }
        joined.push(range);
    }
    joined
}

/// The maps of `image` must agree. `oracle` is how QEMU is told to find it, `options` how qdelta is.
#[track_caller]
pub fn assert_agrees(image: &Path, oracle: &[OsString], options: &[&str]) {
    let mut arguments = args!["map", "--output=json"];
    arguments.extend(oracle.iter().cloned());
    let theirs = qemu_img(arguments).ok().json();
    let mut arguments = args!["map", image, "--json"];
    let known = ["--format", "--image-root"];
    let mut rest = options.iter();
    while let Some(option) = rest.next() {
        // Options of a backup that say nothing about the image are no options of a map.
        let value = rest.next();
        if known.contains(option) {
            arguments.push(option.into());
            arguments.extend(value.map(OsString::from));
        }
    }
    let ours = run(qdelta(arguments)).ok().json();
    // Releases of QEMU before 8.2 do not say what is compressed.
    let tells =
        theirs.as_array().is_some_and(|list| list.iter().any(|e| e.get("compressed").is_some()));
    let [theirs, ours] = [&theirs, &ours].map(|list| {
        let mut ranges = parse(list);
        for range in ranges.iter_mut().filter(|_| !tells) {
            range.compressed = false;
        }
        normalise(ranges)
    });
    for (index, (theirs, ours)) in theirs.iter().zip(&ours).enumerate() {
        assert_eq!(ours, theirs, "range {index} of the map of {image:?} (left ours, right QEMU's)");
    }
    assert_eq!(ours.len(), theirs.len(), "ranges in the map of {image:?}");
}
