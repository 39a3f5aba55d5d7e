//! `points`: chains as trees, in little room, with nothing hidden.

use std::path::PathBuf;

use qdelta::formats::archive::{ArchiveId, Consistency, Digest, Kind, Tracker};
use qdelta::vault::repository::storage::Wait;
use qdelta::vault::repository::{
    DiskId, DiskRecord, ImageRecord, MachineRecord, Manifest, ParentRecord, PointId, Repository,
};

use super::{Run, done, qdelta, run, word};

/// Noon of 20 November 2026, UTC.
const START_MS: u64 = 1_795_176_000_000;
const DAY_MS: u64 = 86_400_000;

/// A repository with points whose archives hold nothing.
pub(super) struct Shelf {
    pub dir: tempfile::TempDir,
    pub repository: Repository,
}

impl Shelf {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let repository = Repository::init(&dir.path().join("repo")).unwrap();
        Self { dir, repository }
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("repo")
    }

    /// Makes the point of a day.
    pub fn add(&self, disk: &str, day: u64, kind: Kind, parent: Option<u64>) -> PointId {
        self.add_to(disk, day, kind, parent, None)
    }

    /// Makes the point of a day, perhaps of a guest with this name and UUID.
    pub fn add_to(
        &self,
        disk: &str,
        day: u64,
        kind: Kind,
        parent: Option<u64>,
        guest: Option<(&str, &str)>,
    ) -> PointId {
        let ms = |day| START_MS + day * DAY_MS;
        self.add_at(disk, ms(day), kind, parent.map(ms), guest)
    }

    /// Makes the point of a millisecond.
    pub fn add_at(
        &self,
        disk: &str,
        ms: u64,
        kind: Kind,
        parent: Option<u64>,
        guest: Option<(&str, &str)>,
    ) -> PointId {
        let id = PointId::from_ms(ms).unwrap();
        let parent = parent.map(|ms| PointId::from_ms(ms).unwrap());
        let disk: DiskId = disk.parse().unwrap();
        let lock = self.repository.lock(&disk.domain, Wait::UNHEARD).unwrap();
        let pending = self.repository.begin(&lock, &disk, id, kind, ArchiveId([1; 16])).unwrap();
        drop(pending.writer());
        let staged = pending.path().with_file_name(format!(".{}.partial", pending.archive_name()));
        std::fs::File::options().write(true).open(staged).unwrap().set_len(1023 << 20).unwrap();
        let mut manifest = Manifest::new(id, disk.domain.clone(), Consistency::Offline);
        manifest.created = id.time();
        manifest.machine = guest.map(|(name, uuid)| MachineRecord {
            autostart: false,
            memory: None,
            name: name.to_owned(),
            uuid: Some(uuid.to_owned()),
            fell_back: None,
            freeze_ms: None,
            frozen_filesystems: None,
            files: Vec::new(),
            left_out: Vec::new(),
            missing: Vec::new(),
        });
        manifest.disks.push(DiskRecord {
            disk: disk.disk.clone(),
            archive: pending.archive_name(),
            archive_id: ArchiveId([1; 16]),
            kind,
            tracker: Tracker::Scan,
            parent: parent.map(|point| ParentRecord {
                domain: disk.domain.clone(),
                disk: disk.disk.clone(),
                point,
                root: Digest([3; 32]),
            }),
            root: Digest([3; 32]),
            virtual_size: 1023 << 30,
            block_size: 65536,
            bytes_read: 5 << 30,
            bytes_changed: 1023 << 20,
            payload_bytes: 1000,
            bytes_written: 1023 << 20,
            image: ImageRecord {
                path: "/images/vm.qcow2".into(),
                format: qdelta::disk::image::Format::Qcow2,
                boot: None,
                layers: Vec::new(),
            },
            bytes_sampled: 0,
            refused: Vec::new(),
            anchor: None,
            anchor_wanted: None,
            opening: None,
            snapshot: None,
        });
        pending.commit(&manifest).unwrap();
        id
    }

    pub fn points(&self, words: &[&str], columns: &str) -> Run {
        let mut command = qdelta();
        command.arg("points").args(words).env("QDELTA_REPO", self.path()).env("COLUMNS", columns);
        command.env("TZ", "UTC").output().unwrap().into()
    }
}

/// The first column, which holds the tree.
fn first_column(list: &str) -> Vec<String> {
    let kinds = [" full", " incremental", " differential"];
    let end = |line: &str| kinds.iter().filter_map(|kind| line.find(kind)).min();
    list.lines().map(|line| line[..end(line).unwrap_or(line.len())].trim_end().to_owned()).collect()
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
            "2026-11-20T12:00:00.000+00:00",
            "├─ 2026-11-21T12:00:00.000+00:00",
            "│  2026-11-22T12:00:00.000+00:00",
            "└─ 2026-11-23T12:00:00.000+00:00",
            "2026-11-24T12:00:00.000+00:00",
        ]
    );
    let ids = shelf.points(&["--utc"], "80").stdout;
    assert_eq!(first_column(&ids)[3], "├─ 20261121T120000.000Z");
    assert!(ids.contains("POINT (UTC)"), "{ids}");
    // Where there is room, both are shown.
    let wide = shelf.points(&[], "140").stdout;
    assert!(wide.contains("20261121T120000.000Z") && wide.contains("scan"), "{wide}");

    assert!(run.stdout.starts_with("vm/disk: 5 points in 2 chains"), "{}", run.stdout);
    for wanted in ["SIZE", "CHANGED", "STORED", "CONSISTENCY", "AGE", "1023 GiB", "1023 MiB"] {
        assert!(ids.contains(wanted), "no {wanted} in\n{ids}");
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
    let guest = shelf.points(&["vm"], "80").stdout;
    assert!(guest.contains("vm/vda") && guest.contains("vm/vdb"), "{guest}");
    assert!(!guest.contains("web/"), "{guest}");
    assert_eq!(shelf.points(&["other"], "80").status, 6);
    let output = shelf.dir.path().join("out.raw");
    let several = run(&["restore", "vm", word(&output), "--repo", word(&shelf.path())]);
    assert_eq!(several.status, 2);
    assert!(several.stderr.contains("vm/vda, vm/vdb"), "{}", several.stderr);
}

/// The sums stood at each disk, and nobody could see what a repository holds.
#[test]
fn the_list_ends_with_what_all_of_it_comes_to() {
    let shelf = Shelf::new();
    shelf.add("vm/vda", 0, Kind::Full, None);
    shelf.add("vm/vda", 1, Kind::Incremental, Some(0));
    shelf.add("vm/vdb", 2, Kind::Full, None);
    shelf.add("web/disk", 3, Kind::Full, None);
    let all = shelf.points(&[], "60").stdout;
    let last = all.lines().last().unwrap();
    assert_eq!(last, "in all: 3 disks of 2 guests, 4 points in 3 chains, 3.9 GiB stored");
    let json: serde_json::Value =
        serde_json::from_str(&shelf.points(&["vm", "--json"], "80").stdout).unwrap();
    let totals = &json["totals"];
    assert_eq!((totals["domains"].as_u64(), totals["disks"].as_u64()), (Some(1), Some(2)));
    assert_eq!((totals["points"].as_u64(), totals["chains"].as_u64()), (Some(3), Some(2)));
    assert_eq!(totals["bytes_written"].as_u64(), Some(3 * (1023 << 20)));
}

/// The repository calls a guest otherwise if its name has a space; `points "Windows 2019"` knew
/// nobody.
#[test]
fn a_guest_is_found_by_the_names_that_libvirt_has_for_it() {
    let shelf = Shelf::new();
    let uuid = "0b8f3c1e-4a53-4f0c-9f0e-2f1f4f0f6a11";
    shelf.add_to("Windows_2019-0b8f3c1e/vda", 0, Kind::Full, None, Some(("Windows 2019", uuid)));
    shelf.add_to("Windows_2019-0b8f3c1e/vdb", 1, Kind::Full, None, Some(("Windows 2019", uuid)));
    shelf.add("web/disk", 2, Kind::Full, None);
    let upper = uuid.to_uppercase();
    for name in ["Windows 2019", uuid, &upper, "Windows_2019-0b8f3c1e"] {
        for command in ["points", "anchors"] {
            let run = run(&[command, name, "--repo", word(&shelf.path())]);
            assert_eq!(run.status, 0, "{command} {name}: {}", run.stderr);
        }
        let list = shelf.points(&[name], "80").stdout;
        assert!(list.contains("/vda: ") && list.contains("/vdb: "), "{name}: {list}");
        assert!(!list.contains("web/"), "{name}: {list}");
        let one = shelf.points(&[&format!("{name}/vdb")], "80").stdout;
        assert!(one.contains("/vdb: ") && !one.contains("/vda: "), "{name}: {one}");
        // Its archives hold nothing, so they are damaged; but they are found.
        let verified = run(&["verify", &format!("{name}@latest"), "--repo", word(&shelf.path())]);
        assert_eq!(verified.status, 4, "{name}: {}", verified.stderr);
        assert!(verified.stdout.contains("Windows_2019-0b8f3c1e"), "{}", verified.stdout);
    }
    for (typed, meant) in
        [("windows 2019", "Windows 2019"), ("wbe", "web"), ("web/dsik", "web/disk")]
    {
        let said = shelf.points(&[typed], "80");
        assert_eq!(said.status, 6, "{typed}");
        assert!(said.stderr.contains(&format!("did you mean {meant}?")), "{}", said.stderr);
    }
    // A guest of which nothing is left but its folder was said to be meant by its own name.
    std::fs::create_dir(shelf.path().join("gone")).unwrap();
    let gone = shelf.points(&["gone"], "80");
    assert_eq!(gone.status, 6);
    assert!(gone.stderr.contains("no disk in it") && !gone.stderr.contains("did you mean"));
    let far = shelf.points(&["mail"], "80");
    assert_eq!(far.status, 6);
    assert!(!far.stderr.contains("did you mean"), "{}", far.stderr);
}

/// Whatever the list shows in its columns POINT and ID, pasted after `@`, is that very point: also
/// in a zone of half hours, and in the hour that comes twice. The list was in UTC, and what was
/// typed was local: an hour or so beside the point lay another.
#[test]
fn what_the_list_shows_is_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (repo, image) = (at("repo"), at("vm.raw"));
    done(&["init", &repo]);
    for content in 1..=3 {
        std::fs::write(&image, vec![content; 10_000]).unwrap();
        done(&["backup", &image, "--repo", &repo]);
    }
    // A safety point, which is no backup, and which times pass over: but not its own.
    std::fs::write(&image, vec![4; 10_000]).unwrap();
    done(&["restore", "vm@latest", &image, "--in-place", "--repo", &repo]);
    for zone in ["Europe/Berlin", "Asia/Kolkata", "Australia/Lord_Howe", "UTC", "<-0330>3:30"] {
        for option in [&[] as &[&str], &["--utc"]] {
            let mut command = qdelta();
            command.args(["points", "--repo", &repo, "--quiet"]).args(option).env("TZ", zone);
            let list = Run::from(command.output().unwrap()).stdout;
            let rows =
                list.lines().filter(|line| line.contains("cremental") || line.contains(" full"));
            let mut content = 0;
            for row in rows {
                content += 1;
                let shown = row.split_whitespace();
                let shown: Vec<&str> =
                    shown.filter(|cell| cell.contains('T') && cell.contains('.')).collect();
                assert!(!shown.is_empty(), "{row}");
                for cell in shown {
                    let mut command = qdelta();
                    command.args(["restore", &format!("vm@{cell}"), &at("out.raw"), "--force"]);
                    command.args(["--repo", &repo, "--quiet"]).env("TZ", zone);
                    let run = Run::from(command.output().unwrap());
                    assert_eq!(run.status, 0, "{cell} in {zone}: {}", run.stderr);
                    let restored = std::fs::read(at("out.raw")).unwrap();
                    assert_eq!(restored, vec![content; 10_000], "{cell} in {zone}");
                }
            }
            assert_eq!(content, 4, "{list}");
        }
    }
}

/// The hour that comes twice: the points of both, in a repository that was made then.
#[test]
fn the_hour_that_comes_twice_is_no_riddle() {
    let shelf = Shelf::new();
    // 25 October 2026, half past midnight and half past one, UTC: half past two twice in Berlin.
    let minutes = [30, 90];
    let first = 1_792_886_400_000;
    for minute in minutes {
        shelf.add_at("vm/disk", first + minute * 60_000, Kind::Full, None, None);
    }
    let mut command = qdelta();
    command.args(["points", "--repo", word(&shelf.path())]).env("TZ", "Europe/Berlin");
    let list = Run::from(command.output().unwrap()).stdout;
    for shown in ["2026-10-25T02:30:00.000+02:00", "2026-10-25T02:30:00.000+01:00"] {
        assert!(list.contains(shown), "{list}");
    }
    for (shown, wanted) in [
        ("2026-10-25T02:30:00.000+02:00", "20261025T003000.000Z"),
        ("2026-10-25T02:30:00.000+01:00", "20261025T013000.000Z"),
        ("2026-10-25", "20261025T013000.000Z"),
        ("2026-10", "20261025T013000.000Z"),
    ] {
        let mut command = qdelta();
        command.args(["verify", &format!("vm@{shown}"), "--repo", word(&shelf.path())]);
        // The archives are empty, so that each is named as damaged.
        let run = Run::from(command.env("TZ", "Europe/Berlin").output().unwrap());
        assert_eq!(run.status, 4, "{shown}: {}", run.stderr);
        assert!(run.stdout.contains(wanted), "{shown}: {}", run.stdout);
    }
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
    let listed = shelf.points(&["--utc"], "80");
    assert_eq!(listed.status, 4);
    assert!(listed.stdout.contains(&next.to_string()), "{}", listed.stdout);
    assert!(listed.stderr.contains(&full.to_string()), "{}", listed.stderr);
    let json = shelf.points(&["--json"], "80");
    assert_eq!(json.status, 4);
    let json: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(json["damaged"][0]["point"], full.to_string());

    std::fs::remove_file(shelf.path().join(format!("vm/disk/{next}-incremental-01010101.qdelta")))
        .unwrap();
    let listed = shelf.points(&[], "80");
    assert_eq!(listed.status, 4);
    assert!(listed.stdout.contains("missing"), "{}", listed.stdout);
    assert!(
        listed.stderr.contains(&format!("{next}-incremental-01010101.qdelta")),
        "{}",
        listed.stderr
    );
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
