//! Every `--json` result has exactly the fields that `docs/json.md` says.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use qdelta::flows::report;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Run, done, qdelta, qemu_img, qemu_io, word};
use crate::harness::{self, args, temp_dir};

/// The examples of a document, by their headings.
fn examples(document: &str) -> BTreeMap<String, Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(document);
    let text = std::fs::read_to_string(path).unwrap();
    let mut examples = BTreeMap::new();
    for section in text.split("\n## ").skip(1) {
        let heading = section.lines().next().unwrap().to_owned();
        let Some((_, block)) = section.split_once("```json\n") else { continue };
        let (block, _) = block.split_once("```").unwrap();
        let value = serde_json::from_str(block).unwrap_or_else(|e| panic!("{heading}: {e}"));
        examples.insert(heading, value);
    }
    examples
}

/// Every field below `value` with the kind of its value; all entries of a list count as one.
/// `null` and an empty list say nothing. Warnings look the same everywhere.
fn shape(value: &Value, path: &str, out: &mut BTreeMap<String, &'static str>) {
    let kind = match value {
        Value::Null => return,
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(entries) => {
            entries.iter().for_each(|entry| shape(entry, &format!("{path}[]"), out));
            "list"
        }
        Value::Object(fields) => {
            for (name, field) in fields {
                match name.as_str() {
                    "warnings" => check_warnings(field),
                    _ => shape(field, &format!("{path}.{name}"), out),
                }
            }
            "object"
        }
    };
    let before = out.insert(path.to_owned(), kind);
    assert!(before.is_none_or(|before| before == kind), "{path} is {kind} and {before:?}");
}

/// Fails if the warnings of a result are not as the document has them.
fn check_warnings(found: &Value) {
    let example = examples("json.md")["warnings"][0].clone();
    let names = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    for warning in found.as_array().unwrap() {
        assert_eq!(names(warning), names(&example), "{warning}");
        assert!(warning["code"].is_string() && warning["text"].is_string(), "{warning}");
    }
}

/// Compares what a command wrote with its example. Fields that `rare` names are not seen here.
#[track_caller]
pub fn compare(heading: &str, results: &[&Value], rare: &[&str]) {
    compare_with("json.md", heading, results, rare);
}

/// Reads a result as the type that the library has for it, and gives what that type writes again. A
/// field that the type does not know would be lost on the way.
fn read_back(heading: &str, result: &Value) -> Value {
    fn through<T: Serialize + DeserializeOwned>(result: &Value) -> Value {
        // By way of text, as it is for everyone.
        let read: T = serde_json::from_str(&result.to_string())
            .unwrap_or_else(|error| panic!("{error}: {result:#}"));
        serde_json::to_value(read).unwrap()
    }
    match heading {
        "warnings" => through::<Vec<qdelta::base::warning::Warning>>(result),
        "init" => through::<report::InitReport>(result),
        "key" => through::<report::KeysReport>(result),
        "backup" => through::<report::BackupReport>(result),
        "backup of guests" => through::<report::GuestsReport>(result),
        "restore, replay" => through::<report::RestoreReport>(result),
        "restore in place" => through::<report::InPlaceReport>(result),
        "restore of a guest in place" => through::<report::MachineInPlaceReport>(result),
        "restore of a guest" => through::<report::MachineReport>(result),
        "restore of a host's configuration" => through::<report::HostReport>(result),
        "files ls" => through::<report::VolumesReport>(result),
        "files ls of a path" => through::<report::FilesReport>(result),
        "files get, files tar" => through::<report::TakenReport>(result),
        "restore of a guest at once" => through::<report::MachineReport>(result),
        "files diff" => through::<report::DiffReport>(result),
        "verify" => through::<report::VerifyReport>(result),
        "verify --against" => through::<report::CompareReport>(result),
        "copy" => through::<report::CopyReport>(result),
        "repair" => through::<report::RepairReport>(result),
        "points" => through::<report::PointsReport>(result),
        "pin, unpin, undelete" => through::<report::MarkReport>(result),
        "prune" => through::<report::PruneReport>(result),
        "space" => through::<report::SpaceReport>(result),
        "merge" => through::<report::MergeReport>(result),
        "serve" => through::<report::ServeReport>(result),
        "anchors" => through::<report::AnchorsReport>(result),
        "info of an archive" | "info of an image" => through::<report::FileReport>(result),
        "map" => through::<Vec<report::MapEntry>>(result),
        "drill" => through::<report::DrillsReport>(result),
        "drill --report" => through::<report::DrillHistory>(result),
        "mount" => through::<report::MountReport>(result),
        "run" => through::<report::RunReport>(result),
        "history" => through::<report::RunHistory>(result),
        "status" => through::<report::StatusReport>(result),
        "export-kit" => through::<report::KitReport>(result),
        "report" => through::<report::FleetReport>(result),
        "notify" => through::<report::NotifyReport>(result),
        "config check" => through::<report::PlanReport>(result),
        "bench" => through::<report::BenchReport>(result),
        "man" => through::<report::ManReport>(result),
        other => panic!("{other} has no type"),
    }
}

/// A script or a daemon reads results with the library's own types; some had only a way out.
#[test]
fn every_documented_result_is_read_and_written_back() {
    let mut examples = examples("json.md");
    assert!(examples.len() > 14, "{:?}", examples.keys());
    // What is left out unless there is something to say.
    let later = Value::from("20261124T091500.120Z");
    for heading in ["restore, replay", "restore of a guest"] {
        examples.get_mut(heading).unwrap()["safety"] = Value::Bool(true);
        examples.get_mut(heading).unwrap()["passed_over"] = later.clone();
    }
    for heading in ["restore in place", "restore of a guest in place"] {
        examples.get_mut(heading).unwrap()["passed_over"] = later.clone();
    }
    for (heading, example) in &examples {
        assert_eq!(read_back(heading, example), *example, "{heading}");
    }
    // And with everything missing that may be.
    fn without(value: &mut Value) {
        match value {
            Value::Array(entries) => entries.iter_mut().for_each(without),
            Value::Object(fields) => {
                let may_be_null = ["parent", "anchor", "advice", "freeze_ms", "nvram"];
                for (name, field) in fields {
                    match field {
                        Value::String(_) | Value::Number(_) | Value::Object(_)
                            if may_be_null.contains(&name.as_str()) =>
                        {
                            *field = Value::Null;
                        }
                        _ => without(field),
                    }
                }
            }
            _ => {}
        }
    }
    for (heading, example) in &mut examples {
        without(example);
        assert_eq!(read_back(heading, example), *example, "{heading}");
    }
}

#[track_caller]
fn compare_with(document: &str, heading: &str, results: &[&Value], rare: &[&str]) {
    let mut documented = BTreeMap::new();
    shape(&examples(document)[heading], "", &mut documented);
    let mut written = BTreeMap::new();
    results.iter().for_each(|result| shape(result, "", &mut written));
    if document == "json.md" {
        for result in results {
            assert_eq!(read_back(heading, result), **result, "{heading}");
        }
    }
    for (path, kind) in &written {
        let known = documented.get(path);
        assert_eq!(known, Some(kind), "{heading}: {path} is not so in the document");
    }
    for path in documented.keys().filter(|path| !rare.contains(&path.as_str())) {
        assert!(written.contains_key(path), "{heading}: {path} was not written");
    }
}

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn every_result_is_as_the_document_says() {
    let dir = tempfile::tempdir_in(temp_dir()).unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let json = |words: &[&str]| {
        let repo = at("repo");
        parse(&done(&[words, &["--json", "--repo", &repo]].concat()))
    };
    let (image, base) = (at("web.qcow2"), at("base.qcow2"));
    qemu_img(&["create", "-f", "qcow2", &base, "8M"]);
    qemu_img(&["create", "-f", "qcow2", "-b", &base, "-F", "qcow2", &image]);
    qemu_io(&image, &["write -P 7 1M 3M"]);

    compare("init", &[&json(&["init"])], &[]);
    let full = json(&["backup", &image, "--anchor", "snapshot"]);
    qemu_io(&image, &["write -P 8 1M 100k", "write -z 2M 64k"]);
    let incremental = json(&["backup", &image]);
    let inner = at("inner.qcow2");
    qemu_img(&["create", "-f", "qcow2", &inner, "8M"]);
    for name in ["one", "two"] {
        qemu_img(&["snapshot", "-c", name, &inner]);
    }
    done(&["init", "--repo", &at("second")]);
    let words = ["backup", &inner, "--with-snapshots", "--json", "--repo", &at("second")];
    let with = parse(&done(&words));
    compare("backup", &[&full, &incremental, &with], &[]);
    assert_eq!(incremental["parent"], full["point"]);

    let manifest = |report: &Value| {
        let point = report["point"].as_str().unwrap();
        std::fs::read_to_string(at(&format!("repo/web/points/{point}.json"))).unwrap()
    };
    let manifests = [&full, &incremental].map(|report| parse(&manifest(report)));
    compare_with("repository.md", "Manifest", &[&manifests[0], &manifests[1]], &[]);

    let archives = [&full, &incremental].map(|report| report["archive"].as_str().unwrap());
    let restored = json(&["restore", "web", &at("out.qcow2")]);
    assert_eq!(restored["root"], incremental["root"]);
    assert_eq!(restored["format"], "qcow2");
    assert_eq!(restored["salvage"], Value::Null);
    let replayed = json(&["replay", archives[0], archives[1], "--output", &at("out.raw")]);
    // A block that only the increment holds, and nobody can read; and no full.
    let mut bytes = std::fs::read(archives[1]).unwrap();
    let frame = bytes.windows(4).position(|window| window == b"QDFR").unwrap();
    bytes[frame + 40] ^= 1;
    std::fs::write(at("damaged.qdelta"), bytes).unwrap();
    let words =
        ["replay", &at("damaged.qdelta"), "--salvage", "--json", "--output", &at("rest.raw")];
    let run = Run::from(qdelta().args(words).output().unwrap());
    assert_eq!(run.status, 9, "{}", run.stderr);
    compare("restore, replay", &[&restored, &replayed, &parse(&run.stdout)], &[]);

    let sealed = json(&["info", archives[1]]);
    compare("info of an archive", &[&sealed], &[]);
    let map = json(&["map", &image]);
    compare("map", &[&map], &[]);
    compare("space", &[&json(&["space", "web"])], &[]);
    let tree = dir.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join(OsStr::from_bytes(b"odd\xffname")), b"x").unwrap();
    std::os::unix::fs::symlink("there", tree.join("link")).unwrap();
    let ext = at("ext.raw");
    let made = args!["-q", "-F", "-t", "ext4", "-d", tree.as_path(), &ext, "8M"];
    harness::run(harness::tool("mke2fs", made)).ok();
    json(&["backup", &ext, "--format", "raw", "--disk", "ext"]);
    let volumes = json(&["files", "ls", "ext"]);
    compare("files ls", &[&volumes], &[".volumes[].label"]);
    let listed = json(&["files", "ls", "ext", "/"]);
    compare("files ls of a path", &[&listed], &[".files[].device", ".files[].device[]"]);
    let taken = json(&["files", "get", "ext", "/", "--to", &at("taken")]);
    let packed = json(&["files", "tar", "ext", "/", "--to", &at("files.tar")]);
    compare("files get, files tar", &[&taken, &packed], &[]);
    std::fs::write(tree.join(OsStr::from_bytes(b"odd\xffname")), b"xx").unwrap();
    let made = args!["-q", "-F", "-t", "ext4", "-d", tree.as_path(), &ext, "8M"];
    harness::run(harness::tool("mke2fs", made)).ok();
    let first = json(&["backup", &ext, "--format", "raw", "--disk", "ext"]);
    let points = format!("ext@{}..latest", first["parent"].as_str().unwrap());
    compare("files diff", &[&json(&["files", "diff", &points])], &[]);
    compare("anchors", &[&json(&["anchors"])], &[".anchors[].bytes_held"]);
    compare("man", &[&json(&["man", &at("man")])], &[]);

    // Damage makes the rest of the fields appear.
    let whole = json(&["verify"]);
    assert_eq!(whole["findings"], Value::Array(Vec::new()));
    let manifest = at(&format!("repo/web/points/{}.json", full["point"].as_str().unwrap()));
    std::fs::write(manifest, "{}").unwrap();
    let damaged = |command: &str| {
        let output = qdelta().args([command, "--json", "--repo", &at("repo")]).output().unwrap();
        let run = Run::from(output);
        assert_eq!(run.status, 4, "{command}: {}", run.stderr);
        parse(&run.stdout)
    };
    // Nothing was frozen here: that takes a guest. And `verify` has proved all points.
    let rare = [
        ".disks[].points[].freeze_ms",
        ".disks[].points[].frozen_filesystems",
        ".disks[].points[].proved",
    ];
    compare("points", &[&damaged("points")], &rare);
    let found = damaged("verify");
    compare("verify", &[&whole, &found], &[".disks[].points[].because[]"]);
}

#[test]
fn a_merge_is_as_the_document_says() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let json = |words: &[&str]| {
        let repo = at("repo");
        parse(&done(&[words, &["--json", "--repo", &repo]].concat()))
    };
    let image = at("web.raw");
    std::fs::write(&image, vec![7; 1 << 20]).unwrap();
    json(&["init"]);
    let full = json(&["backup", &image, "--format", "raw"]);
    std::fs::write(&image, vec![8; 1 << 20]).unwrap();
    let next = json(&["backup", &image, "--format", "raw"]);
    let range =
        format!("web@{}..{}", full["point"].as_str().unwrap(), next["point"].as_str().unwrap());
    let planned = json(&["merge", &range, "--dry-run"]);
    let merged = json(&["merge", &range]);
    assert_eq!(planned["bytes_written"], merged["bytes_written"]);
    compare("merge", &[&planned, &merged], &[]);
    let manifest = at(&format!("repo/web/points/{}.json", next["point"].as_str().unwrap()));
    assert!(!std::fs::read_to_string(manifest).unwrap().contains("replaces"));
}

#[test]
fn info_of_images_is_as_the_document_says() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (image, base, data) = (at("web.qcow2"), at("base.qcow2"), at("data.qcow2"));
    qemu_img(&["create", "-f", "qcow2", &base, "8M"]);
    qemu_img(&["create", "-f", "qcow2", "-b", &base, "-F", "qcow2", &image]);
    qemu_img(&["snapshot", "-c", "before", &image]);
    qemu_img(&["bitmap", "--add", &image, "nightly"]);
    let option = format!("data_file={}", at("web.data"));
    qemu_img(&["create", "-f", "qcow2", "-o", &option, &data, "8M"]);
    let secret = at("enc.qcow2");
    qemu_img(&[
        "create",
        "-f",
        "qcow2",
        "--object",
        "secret,id=s,data=abc",
        "-o",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
        &secret,
        "1M",
    ]);

    let mut infos: Vec<Value> =
        [&image, &data].iter().map(|path| parse(&done(&["info", path, "--json"]))).collect();
    let encrypted = Run::from(qdelta().args(["info", &secret, "--json"]).output().unwrap());
    assert_eq!(encrypted.status, 3);
    infos.push(parse(&encrypted.stdout));
    let infos: Vec<&Value> = infos.iter().collect();
    // These need an image that QEMU would not make.
    let rare = [".qcow2.snapshots-problem", ".qcow2.bitmaps-problem"];
    compare("info of an image", &infos, &rare);
}

/// With the disk on standard output there is no other place for the report.
#[test]
fn a_restore_to_standard_output_reports_on_standard_error() {
    let dir = tempfile::tempdir().unwrap();
    let (repo, image) = (dir.path().join("repo"), dir.path().join("vm.raw"));
    std::fs::write(&image, vec![7; 100_000]).unwrap();
    let repo = word(&repo);
    done(&["init", repo]);
    done(&["backup", word(&image), "--repo", repo]);
    let output = qdelta().args(["restore", "vm", "-", "--json", "--repo", repo]).output().unwrap();
    assert_eq!(output.stdout, std::fs::read(&image).unwrap());
    let report = parse(std::str::from_utf8(&output.stderr).unwrap());
    assert_eq!(report["output"], "-");
    assert_eq!(report["virtual_size"], 100_000);
}

/// Scripts match the codes of warnings, and most of them stood in no page.
#[test]
fn every_code_of_a_warning_is_in_the_page() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |name: &str| std::fs::read_to_string(top.join(name)).unwrap();
    let (source, page) = (read("src/base/warning.rs"), read("docs/json.md"));
    let (_, body) = source.split_once("pub enum Code {").unwrap();
    let (body, _) = body.split_once("\n}").unwrap();
    let names = body.lines().filter_map(|line| line.trim().strip_suffix(','));
    let names: Vec<_> = names.filter(|name| !name.starts_with("//")).collect();
    assert!(names.len() > 20, "{names:?}");
    for name in names {
        let mut code = String::new();
        for letter in name.chars() {
            if letter.is_uppercase() && !code.is_empty() {
                code.push('-');
            }
            code.push(letter.to_ascii_lowercase());
        }
        assert!(page.contains(&format!("\n| `{code}` | ")), "{code}");
    }
}
