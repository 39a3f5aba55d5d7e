//! The images of `test-images/`: one rule of the format in each, with the expectation beside it.
//! They are found by listing the folder.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::harness::files::sha256;
use crate::harness::repo::Repo;
use crate::harness::{Lab, Outcome};

/// What stands in the `.toml` beside an image.
struct Expectation {
    options: Vec<String>,
    outcome: Expected,
}

enum Expected {
    Sha256(String),
    Refusal { status: i32, says: Vec<String> },
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("test-images")
}

fn strings(table: &toml::Table, field: &str) -> Vec<String> {
    let list = table.get(field).map(|list| list.as_array().unwrap().as_slice()).unwrap_or_default();
    list.iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

fn expectation(name: &str) -> Expectation {
    let path = folder().join(format!("{name}.toml"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    let table: toml::Table = text.parse().unwrap_or_else(|error| panic!("{path:?}: {error}"));
    assert!(table["rule"].as_str().is_some_and(|rule| !rule.is_empty()), "{name} has no rule");
    let outcome = match table.get("sha256") {
        Some(hash) => Expected::Sha256(hash.as_str().unwrap().to_owned()),
        None => Expected::Refusal {
            status: i32::try_from(table["status"].as_integer().unwrap()).unwrap(),
            says: strings(&table, "says"),
        },
    };
    Expectation { options: strings(&table, "options"), outcome }
}

/// The names of all images; every other file must belong to one of them.
fn names() -> BTreeSet<String> {
    let files: BTreeSet<String> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap())
        // The golden archives have a folder of their own.
        .filter(|entry| entry.file_type().unwrap().is_file())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    let names: BTreeSet<String> =
        files.iter().filter_map(|file| file.strip_suffix(".toml").map(str::to_owned)).collect();
    for file in files.iter().filter(|file| *file != "README.md") {
        let owner = file.split('.').next().unwrap();
        assert!(names.contains(owner), "{file} belongs to no image");
    }
    names
}

/// What is wrong with the outcome, if anything.
fn complaint(lab: &Lab, repo: &Repo, expected: &Expected, outcome: Outcome) -> Option<String> {
    match expected {
        Expected::Sha256(hash) => {
            let outcome = match outcome.code() {
                Some(0) => repo.restore("disk", &lab.path("out.raw"), &["--force"]),
                _ => outcome,
            };
            if outcome.code() != Some(0) {
                return Some(outcome.report());
            }
            let found = sha256(&lab.path("out.raw"));
            (found != *hash).then(|| format!("the guest's bytes are others: {found}"))
        }
        Expected::Refusal { status, says } => {
            let text = outcome.stderr.to_lowercase();
            let missing = says.iter().find(|word| !text.contains(&word.to_lowercase()));
            let written = repo.files().iter().any(|file| {
                file.extension()
                    .is_some_and(|extension| extension == "qdelta" || extension == "json")
            });
            if outcome.code() != Some(*status) {
                Some(format!("status {status} was expected\n{}", outcome.report()))
            } else if let Some(word) = missing {
                Some(format!("it does not say '{word}'\n{}", outcome.report()))
            } else {
                written.then(|| "something was written into the repository".to_owned())
            }
        }
    }
}

#[test]
fn every_image_is_read_or_refused_as_its_rule_says() {
    let names = names();
    assert!(names.len() > 50, "only {} images were found", names.len());
    let mut complaints = Vec::new();
    for name in &names {
        let lab = Lab::new();
        let repo = Repo::init(lab.path("repo")).without_ring();
        let expectation = expectation(name);
        let options: Vec<&str> = ["--format", "qcow2"]
            .into_iter()
            .chain(expectation.options.iter().map(String::as_str))
            .collect();
        let image = folder().join(format!("{name}.qcow2"));
        let outcome = repo.backup_run(&image, "disk", &options).sane();
        if let Some(text) = complaint(&lab, &repo, &expectation.outcome, outcome) {
            complaints.push(format!("== {name}: {text}"));
        }
    }
    let count = complaints.len();
    assert!(count == 0, "{count} of {} images:\n{}", names.len(), complaints.join("\n"));
}
