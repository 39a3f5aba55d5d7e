//! `points`: chains as trees, in little room, with nothing hidden.

use std::path::PathBuf;

use qdelta::formats::archive::{ArchiveId, Consistency, Digest, Kind, Tracker};
use qdelta::repository::{DiskId, DiskRecord, ImageRecord, Manifest, PointId, Repository};

use super::{Run, done, qdelta, run, word};

/// Noon of 20 November 2026, UTC.
const START_MS: u64 = 1_795_176_000_000;
const DAY_MS: u64 = 86_400_000;

/// A repository with points whose archives hold nothing.
struct Shelf {
    dir: tempfile::TempDir,
    repository: Repository,
}

impl Shelf {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let repository = Repository::init(&dir.path().join("repo")).unwrap();
        Self { dir, repository }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("repo")
    }

    /// Makes the point of a day.
    fn add(&self, disk: &str, day: u64, kind: Kind, parent: Option<u64>) -> PointId {
        let id = |day| PointId::from_ms(START_MS + day * DAY_MS).unwrap();
        let disk: DiskId = disk.parse().unwrap();
        let lock = self.repository.lock(&disk.domain).unwrap();
        let pending = self.repository.begin(&lock, &disk, id(day), kind).unwrap();
        pending.file().unwrap().set_len(1023 << 20).unwrap();
        let mut manifest = Manifest::new(id(day), disk.domain.clone(), Consistency::Offline);
        manifest.created = id(day).time();
        manifest.disks.push(DiskRecord {
            disk: disk.disk.clone(),
            archive: pending.archive_name(),
            archive_id: ArchiveId([1; 16]),
            chain_id: ArchiveId([1; 16]),
            kind,
            tracker: Tracker::Scan,
            parent: parent.map(id),
            root: Digest([3; 32]),
            virtual_size: 1023 << 30,
            block_size: 65536,
            bytes_read: 5 << 30,
            bytes_changed: 1023 << 20,
            payload_bytes: 1000,
            bytes_written: 1023 << 20,
            image: ImageRecord {
                path: "/images/vm.qcow2".into(),
                format: "qcow2".to_owned(),
                boot: None,
                layers: Vec::new(),
            },
            bytes_sampled: 0,
            refused: Vec::new(),
            anchor: None,
            anchor_wanted: None,
        });
        pending.commit(&manifest).unwrap();
        id(day)
    }

    fn points(&self, words: &[&str], columns: &str) -> Run {
        let mut command = qdelta();
        command.arg("points").args(words).env("QDELTA_REPO", self.path()).env("COLUMNS", columns);
        command.output().unwrap().into()
    }
}

/// The first column, which holds the tree.
fn first_column(list: &str) -> Vec<String> {
    list.lines().map(|line| line.split("Z ").next().unwrap().to_owned()).collect()
}

#[test]
fn chains_are_drawn_in_eighty_columns() {
    let shelf = Shelf::new();
    shelf.add("vm/disk", 0, Kind::Full, None);
    shelf.add("vm/disk", 1, Kind::Incremental, Some(0));
    shelf.add("vm/disk", 2, Kind::Incremental, Some(1));
    shelf.add("vm/disk", 3, Kind::Differential, Some(0));
    shelf.add("vm/disk", 4, Kind::Full, None);
    let run = shelf.points(&[], "80");
    assert_eq!((run.status, run.stderr.as_str()), (0, ""));
    assert_eq!(
        first_column(&run.stdout)[2..],
        [
            "20261120T120000.000",
            "├─ 20261121T120000.000",
            "│  20261122T120000.000",
            "└─ 20261123T120000.000",
            "20261124T120000.000",
        ]
    );
    assert!(run.stdout.starts_with("vm/disk: 5 points in 2 chains"), "{}", run.stdout);
    for wanted in ["SIZE", "CHANGED", "STORED", "TRACKER", "AGE", "1023 GiB", "1023 MiB", "scan"] {
        assert!(run.stdout.contains(wanted), "no {wanted} in\n{}", run.stdout);
    }
    for columns in [80, 60, 45] {
        let list = shelf.points(&[], &columns.to_string()).stdout;
        let widest = list.lines().map(|line| line.chars().count()).max().unwrap();
        assert!(widest <= columns, "{widest} of {columns}:\n{list}");
        assert!(list.contains("incremental"), "{list}");
    }
}

#[test]
fn without_a_locale_the_tree_is_plain() {
    let shelf = Shelf::new();
    shelf.add("vm/disk", 0, Kind::Full, None);
    shelf.add("vm/disk", 1, Kind::Incremental, Some(0));
    let output = qdelta()
        .args(["points", "--repo", word(&shelf.path())])
        .env_remove("LANG")
        .output()
        .unwrap();
    assert!(output.stdout.is_ascii(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn one_disk_or_all_are_listed() {
    let shelf = Shelf::new();
    shelf.add("vm/vda", 0, Kind::Full, None);
    shelf.add("vm/vdb", 1, Kind::Full, None);
    shelf.add("web/disk", 2, Kind::Full, None);
    let all = shelf.points(&[], "80").stdout;
    for disk in ["vm/vda: 1 point in 1 chain,", "vm/vdb: ", "web/disk: "] {
        assert!(all.contains(disk), "{all}");
    }
    let one = shelf.points(&["web"], "80").stdout;
    assert!(one.contains("web/disk") && !one.contains("vm/"), "{one}");
    let several = shelf.points(&["vm"], "80");
    assert_eq!(several.status, 2);
    assert!(several.stderr.contains("vm/vda, vm/vdb"), "{}", several.stderr);
    assert_eq!(shelf.points(&["other"], "80").status, 6);
}

#[test]
fn points_are_json_with_the_names_of_a_backup() {
    let shelf = Shelf::new();
    let full = shelf.add("vm/disk", 0, Kind::Full, None);
    shelf.add("vm/disk", 1, Kind::Incremental, Some(0));
    let text = done(&["points", "--json", "--repo", word(&shelf.path())]);
    let list: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(list["disks"][0]["disk"], "vm/disk");
    let points = list["disks"][0]["points"].as_array().unwrap();
    assert_eq!(points.len(), 2);
    assert_eq!(points[0]["parent"], serde_json::Value::Null);
    assert_eq!(points[1]["parent"], full.to_string());
    for field in [
        "point",
        "kind",
        "tracker",
        "virtual_size",
        "bytes_read",
        "bytes_changed",
        "bytes_written",
        "root",
        "seconds",
    ] {
        assert!(!points[1][field].is_null(), "{field} is missing in {}", points[1]);
    }
}

/// What is damaged is named, does not hide the rest, and shows in the status.
#[test]
fn damage_is_named_and_hides_nothing() {
    let shelf = Shelf::new();
    let full = shelf.add("vm/disk", 0, Kind::Full, None);
    let next = shelf.add("vm/disk", 1, Kind::Incremental, Some(0));
    std::fs::write(shelf.path().join(format!("vm/points/{full}.json")), "{}").unwrap();
    let listed = shelf.points(&[], "80");
    assert_eq!(listed.status, 4);
    assert!(listed.stdout.contains(&next.to_string()), "{}", listed.stdout);
    assert!(listed.stderr.contains(&full.to_string()), "{}", listed.stderr);
    let json = shelf.points(&["--json"], "80");
    assert_eq!(json.status, 4);
    let json: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(json["damaged"][0]["point"], full.to_string());

    std::fs::remove_file(shelf.path().join(format!("vm/disk/{next}-incremental.qdelta"))).unwrap();
    let listed = shelf.points(&[], "80");
    assert_eq!(listed.status, 4);
    assert!(listed.stdout.contains("missing"), "{}", listed.stdout);
    assert!(listed.stderr.contains(&format!("{next}-incremental.qdelta")), "{}", listed.stderr);
}

/// Names come from files that anyone may have written.
#[test]
fn nothing_in_a_name_commands_the_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let evil = dir.path().join("\u{1b}[2Jevil");
    let run = run(&["info", word(&evil)]);
    assert_eq!(run.status, 6);
    assert!(!run.stderr.contains('\u{1b}'), "{:?}", run.stderr);
    assert!(run.stderr.contains("evil"));
}
