//! The repository on a real filesystem: made, filled, interrupted, damaged.

use std::fs;
use std::io::Write;

use super::config::CONFIG;
use super::storage::durable::faults::{self, Mode};
use super::*;
use crate::disk::image::Format;
use crate::formats::archive::{ArchiveId, Consistency, Digest, Tracker};

/// What every archive of these tests is called: their points tell them apart.
const ID: ArchiveId = ArchiveId([1; 16]);

/// A fresh repository in a folder of its own.
pub(super) fn fresh() -> (tempfile::TempDir, Repository) {
    let dir = tempfile::tempdir().unwrap();
    let repository = Repository::init(&dir.path().join("repo")).unwrap();
    (dir, repository)
}

pub(super) fn disk(text: &str) -> DiskId {
    text.parse().unwrap()
}

fn record(pending: &Pending<'_>, kind: Kind, parent: Option<PointId>) -> DiskRecord {
    DiskRecord {
        disk: pending.disk().disk.clone(),
        archive: pending.archive_name(),
        archive_id: ID,
        kind,
        tracker: Tracker::Scan,
        parent: parent.map(|point| ParentRecord {
            domain: pending.disk().domain.clone(),
            disk: pending.disk().disk.clone(),
            point,
            root: Digest([3; 32]),
        }),
        root: Digest([3; 32]),
        virtual_size: 1 << 30,
        block_size: 65536,
        bytes_read: 10,
        bytes_changed: 20,
        payload_bytes: 30,
        bytes_written: 40,
        image: ImageRecord {
            path: "/images/vm.qcow2".into(),
            format: Format::Qcow2,
            boot: None,
            layers: Vec::new(),
        },
        bytes_sampled: 0,
        refused: Vec::new(),
        anchor: None,
        anchor_wanted: None,
        opening: None,
        snapshot: None,
    }
}

/// Makes a point with everything a backup does to the repository, and an archive of four bytes.
pub(super) fn back_up(repository: &Repository, id: &DiskId, kind: Kind) -> Result<PointId> {
    let lock = repository.lock(&id.domain, Wait::UNHEARD)?;
    repository.clean(&lock)?;
    let parent = match kind {
        Kind::Full => None,
        _ => repository.catalog().points(id)?.points.last().map(|point| point.id),
    };
    let point = repository.catalog().next_point(&lock)?.id;
    let pending = repository.begin(&lock, id, point, kind, ID)?;
    pending
        .writer()
        .write_all(b"data")
        .map_err(|error| Error::io("write", pending.path(), error))?;
    let mut manifest = Manifest::new(point, id.domain.clone(), Consistency::Offline);
    manifest.disks.push(record(&pending, kind, parent));
    pending.commit(&manifest)?;
    Ok(point)
}

fn ids(repository: &Repository, id: &DiskId) -> Vec<PointId> {
    repository.catalog().points(id).unwrap().points.iter().map(|point| point.id).collect()
}

/// Every file below `dir`, without its lock files.
fn files(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if !path.ends_with(".lock") && !path.ends_with(".keep") {
                found.push(path.strip_prefix(dir).unwrap().to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    found
}

pub(super) fn manifest_path(repository: &Repository, id: &DiskId, point: PointId) -> PathBuf {
    repository.describe(&repository.points_dir(&id.domain).join(&Manifest::file_name(point)))
}

#[test]
fn a_point_is_found_again() {
    let (_dir, repository) = fresh();
    let id = disk("vm/vda");
    let full = back_up(&repository, &id, Kind::Full).unwrap();
    let next = back_up(&repository, &id, Kind::Incremental).unwrap();
    assert!(full < next);

    let again = Repository::open(repository.path()).unwrap();
    assert_eq!(again.id(), repository.id());
    assert_eq!(again.id().len(), 32);
    assert_eq!(again.catalog().survey().unwrap().disks.as_slice(), std::slice::from_ref(&id));
    assert_eq!(ids(&again, &id), [full, next]);
    let point = again.catalog().resolve(&id, &Selector::Latest).unwrap();
    assert_eq!((point.id, point.record.parent_point()), (next, Some(full)));
    assert!(point.archive_present);
    let names: Vec<_> =
        again.catalog().chain_of(&point).unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(
        names,
        [
            format!("vm/vda/{full}-full-01010101.qdelta"),
            format!("vm/vda/{next}-incremental-01010101.qdelta")
        ]
    );
}

#[test]
fn backups_are_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let (_dir, repository) = fresh();
    back_up(&repository, &disk("vm/vda"), Kind::Full).unwrap();
    for file in files(repository.path()) {
        let mode = fs::metadata(repository.path().join(&file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{file} has mode {mode:o}");
    }
}

#[test]
fn only_an_empty_folder_becomes_a_repository() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    fs::create_dir(root.join("lost+found")).unwrap();
    fs::write(root.join(".qdelta.toml.partial"), "cut sho").unwrap();
    Repository::init(root).unwrap();
    assert_eq!(files(root), ["qdelta.toml"]);
    assert_eq!(Repository::init(root).unwrap_err().kind(), ErrorKind::Exists);

    let full = root.join("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("letter.txt"), "mine").unwrap();
    assert_eq!(Repository::init(&full).unwrap_err().kind(), ErrorKind::Exists);
    assert_eq!(files(&full), ["letter.txt"]);

    let deep = Repository::init(&root.join("not/mounted")).unwrap_err();
    assert_eq!(deep.kind(), ErrorKind::NotFound);
    assert!(!root.join("not").exists());
}

/// A backup disk that isn't mounted must not fill the disk below.
#[test]
fn a_folder_that_is_no_repository_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    for (path, what) in [
        (dir.path().to_owned(), "not a repository"),
        (dir.path().join("x"), "no such folder"),
        (file, "not a folder"),
    ] {
        let error = Repository::open(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.chain().contains(what), "{}", error.chain());
        assert!(error.advice().unwrap().contains("qdelta init"));
    }
}

#[test]
fn a_configuration_that_makes_no_sense_is_refused() {
    let (_dir, repository) = fresh();
    let path = repository.path().join(CONFIG);
    let good = fs::read_to_string(&path).unwrap();
    let kind = |text: &[u8]| {
        fs::write(&path, text).unwrap();
        Repository::open(repository.path()).map(|_| ()).map_err(|error| error.kind())
    };
    assert_eq!(kind(b""), Err(ErrorKind::Damaged));
    assert_eq!(kind(b"\xff\xfe"), Err(ErrorKind::Damaged));
    assert_eq!(kind(&vec![b' '; 1 << 20]), Err(ErrorKind::Damaged));
    assert_eq!(kind(good.replace("format = 1", "format = 2").as_bytes()), Err(ErrorKind::Damaged));
    assert_eq!(kind(format!("{good}colour = \"red\"\n").as_bytes()), Ok(()));
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_eq!(
        Repository::open(repository.path()).unwrap_err().kind(),
        ErrorKind::Damaged,
        "a folder in the place of the configuration"
    );
}

/// Fails, and then kills, a backup at each of its steps, and the clean-up after it as well.
#[test]
fn interrupted_at_every_step_the_points_stay() {
    for mode in [Mode::Fail, Mode::Kill] {
        for kind in [Kind::Full, Kind::Incremental] {
            interrupt_everywhere(mode, kind);
        }
    }
}

fn interrupt_everywhere(mode: Mode, kind: Kind) {
    let mut steps = 0;
    loop {
        let (_dir, repository) = fresh();
        let id = disk("vm/vda");
        let mut before = Vec::new();
        if kind != Kind::Full {
            before.push(back_up(&repository, &id, Kind::Full).unwrap());
        }
        let whole = files(repository.path());

        faults::arm(steps, mode);
        let outcome = back_up(&repository, &id, kind);
        let taken = faults::disarm();
        if outcome.is_ok() {
            // A step that only removes litter may fail without harm.
            assert!(taken <= steps || mode == Mode::Fail, "step {steps} {mode:?} had no effect");
            if taken <= steps {
                assert!(steps > 10, "only {steps} steps were tried");
                return;
            }
        }

        // What was there still reads; the new point is there as a whole or not at all.
        let point = |id: &DiskId| match repository.catalog().points(id) {
            Ok(list) => {
                assert!(list.damaged.is_empty(), "step {steps} {mode:?}: {:?}", list.damaged);
                list.points
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NotFound);
                Vec::new()
            }
        };
        let after = point(&id);
        assert!(after.len() <= before.len() + 1);
        assert!(after.iter().zip(&before).all(|(point, id)| point.id == *id));
        for point in &after {
            let chain = repository.catalog().chain_of(point).unwrap();
            assert!(chain.iter().all(|it| fs::read(repository.describe(it)).unwrap() == b"data"));
        }
        if mode == Mode::Fail && after.len() == before.len() {
            assert_eq!(files(repository.path()), whole, "step {steps} left litter");
        }

        // The clean-up may be killed, too: the next one ends it.
        let mut clean_steps = 0;
        loop {
            faults::arm(clean_steps, Mode::Kill);
            let cleaned =
                repository.lock(&id.domain, Wait::UNHEARD).and_then(|lock| repository.clean(&lock));
            if faults::disarm() <= clean_steps {
                assert!(cleaned.unwrap().0.kept.is_empty(), "step {steps} {mode:?}");
                break;
            }
            clean_steps += 1;
        }
        let held = after.len();
        assert_eq!(point(&id), after);
        assert_eq!(
            files(repository.path()).len(),
            1 + 2 * held,
            "step {steps} {mode:?}: {:?}",
            files(repository.path())
        );

        // And the next run goes on.
        let next = back_up(&repository, &id, if held == 0 { Kind::Full } else { kind }).unwrap();
        assert_eq!(ids(&repository, &id).last(), Some(&next));
        assert_eq!(ids(&repository, &id).len(), held + 1);
        before.clear();
        steps += 1;
    }
}

#[test]
fn an_init_interrupted_at_every_step_can_be_repeated() {
    for mode in [Mode::Fail, Mode::Kill] {
        for step in 0.. {
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path().join("repo");
            faults::arm(step, mode);
            let outcome = Repository::init(&root);
            let taken = faults::disarm();
            if taken <= step {
                outcome.unwrap();
                break;
            }
            assert!(outcome.is_err());
            match Repository::open(&root) {
                // Only the last sync failed.
                Ok(_) => assert_eq!(files(&root), [CONFIG]),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::NotFound);
                    Repository::init(&root).unwrap();
                }
            }
        }
    }
}

#[test]
fn dropped_before_its_commit_an_archive_is_gone() {
    let (_dir, repository) = fresh();
    let id = disk("vm/vda");
    let lock = repository.lock(&id.domain, Wait::UNHEARD).unwrap();
    let point = repository.catalog().next_point(&lock).unwrap().id;
    let pending = repository.begin(&lock, &id, point, Kind::Full, ID).unwrap();
    assert!(pending.path().ends_with(format!("vm/vda/{point}-full-01010101.qdelta")));
    drop(pending);
    assert_eq!(files(repository.path()), [CONFIG]);
}

#[test]
fn a_manifest_must_name_the_archives_it_is_committed_with() {
    let (_dir, repository) = fresh();
    let id = disk("vm/vda");
    let lock = repository.lock(&id.domain, Wait::UNHEARD).unwrap();
    let point = repository.catalog().next_point(&lock).unwrap().id;
    let manifest = Manifest::new(point, id.domain.clone(), Consistency::Offline);
    let pending = repository.begin(&lock, &id, point, Kind::Full, ID).unwrap();
    assert_eq!(pending.commit(&manifest).unwrap_err().kind(), ErrorKind::Usage);
    let other = repository.lock(&"other".parse().unwrap(), Wait::UNHEARD).unwrap();
    let error = repository.begin(&other, &id, point, Kind::Full, ID).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert_eq!(files(repository.path()), [CONFIG]);
}

#[test]
fn two_disks_can_be_one_point() {
    let (_dir, repository) = fresh();
    let (vda, vdb) = (disk("vm/vda"), disk("vm/vdb"));
    let lock = repository.lock(&vda.domain, Wait::UNHEARD).unwrap();
    let point = repository.catalog().next_point(&lock).unwrap().id;
    let mut manifest = Manifest::new(point, vda.domain.clone(), Consistency::CrashConsistent);
    let mut archives = Vec::new();
    for id in [&vda, &vdb] {
        let pending = repository.begin(&lock, id, point, Kind::Full, ID).unwrap();
        manifest.disks.push(record(&pending, Kind::Full, None));
        archives.push(pending);
    }
    Pending::commit_all(archives, &manifest).unwrap();
    assert_eq!(repository.catalog().survey().unwrap().disks, [vda.clone(), vdb.clone()]);
    assert_eq!(ids(&repository, &vda), [point]);
    assert_eq!(ids(&repository, &vdb), [point]);

    let several = repository.catalog().find_disk(&"vm".parse().unwrap()).unwrap_err();
    assert_eq!(several.kind(), ErrorKind::Usage);
    assert!(several.chain().contains("vm/vda, vm/vdb"), "{}", several.chain());
    assert_eq!(repository.catalog().find_disk(&"vm/vdb".parse().unwrap()).unwrap(), vdb);
}

#[test]
fn a_domain_stands_for_its_only_disk_and_a_stranger_for_none() {
    let (_dir, repository) = fresh();
    let id = disk("vm/vda");
    back_up(&repository, &id, Kind::Full).unwrap();
    assert_eq!(repository.catalog().find_disk(&"vm".parse().unwrap()).unwrap(), id);
    for stranger in ["other", "vm/vdb", "other/vda"] {
        let error = repository.catalog().find_disk(&stranger.parse().unwrap()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{stranger}");
    }
    assert_eq!(
        repository.catalog().points(&disk("other/vda")).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    assert_eq!(files(&repository.path().join("vm")).len(), 2);
}

#[test]
fn a_second_writer_is_told_who_is_first() {
    let (_dir, repository) = fresh();
    let domain = "vm".parse().unwrap();
    let lock = repository.lock(&domain, Wait::UNHEARD).unwrap();
    let error = repository.lock(&domain, Wait::UNHEARD).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(error.chain().contains(&std::process::id().to_string()), "{}", error.chain());
    // Another domain is nobody's business, and readers need no lock.
    repository.lock(&"other".parse().unwrap(), Wait::UNHEARD).unwrap();
    repository.catalog().survey().unwrap();
    drop(lock);
    repository.lock(&domain, Wait::UNHEARD).unwrap();
}

#[test]
fn a_clock_set_back_does_not_turn_the_order_round() {
    let (_dir, repository) = fresh();
    let id = disk("vm/vda");
    let latest = back_up(&repository, &id, Kind::Full).unwrap();
    let lock = repository.lock(&id.domain, Wait::UNHEARD).unwrap();
    let past = PointId::from_ms(latest.as_ms() - 5000).unwrap();
    let next = repository.catalog().next_point_at(&lock, past).unwrap();
    assert_eq!(
        next,
        NextPoint { id: latest.next().unwrap(), clock_behind: Some(Duration::from_secs(5)) }
    );
    let same = repository.catalog().next_point_at(&lock, latest).unwrap();
    assert_eq!(same, NextPoint { id: latest.next().unwrap(), clock_behind: Some(Duration::ZERO) });
    let future = PointId::from_ms(latest.as_ms() + 5000).unwrap();
    let next = repository.catalog().next_point_at(&lock, future).unwrap();
    assert_eq!(next, NextPoint { id: future, clock_behind: None });

    // An archive without a manifest holds its name, too.
    let stray = PointId::from_ms(future.as_ms() + 1).unwrap();
    fs::write(
        repository
            .describe(&repository.disk_dir(&id))
            .join(format!("{stray}-full-01010101.qdelta")),
        "x",
    )
    .unwrap();
    let next = repository.catalog().next_point_at(&lock, future).unwrap();
    assert_eq!(next.id, stray.next().unwrap());
}

/// An archive whose manifest was lost is worth more than a tidy folder.
#[test]
fn an_archive_that_nothing_explains_is_kept_and_reported() {
    let (_dir, repository) = fresh();
    let id = disk("vm/vda");
    let full = back_up(&repository, &id, Kind::Full).unwrap();
    let last = back_up(&repository, &id, Kind::Incremental).unwrap();
    let clean = || {
        let lock = repository.lock(&id.domain, Wait::UNHEARD).unwrap();
        let (cleaned, _) = repository.clean(&lock).unwrap();
        assert!(cleaned.removed.is_empty(), "{:?}", cleaned.removed);
        cleaned.kept.len()
    };
    assert_eq!(clean(), 0);
    fs::remove_file(manifest_path(&repository, &id, last)).unwrap();
    assert_eq!(clean(), 1);
    fs::remove_file(manifest_path(&repository, &id, full)).unwrap();
    assert_eq!(clean(), 2);
    fs::remove_dir(repository.describe(&repository.points_dir(&id.domain))).unwrap();
    assert_eq!(clean(), 2);
}

/// Somebody's partial manifest explains an archive only if the archive is the newest.
#[test]
fn an_old_archive_is_kept_whatever_explains_it() {
    let (_dir, repository) = fresh();
    let id = disk("vm/vda");
    let full = back_up(&repository, &id, Kind::Full).unwrap();
    back_up(&repository, &id, Kind::Incremental).unwrap();
    let path = manifest_path(&repository, &id, full);
    fs::rename(&path, path.with_file_name(format!(".{full}.json.partial"))).unwrap();
    let lock = repository.lock(&id.domain, Wait::UNHEARD).unwrap();
    let (cleaned, _) = repository.clean(&lock).unwrap();
    assert_eq!(cleaned.kept.len(), 1);
    assert_eq!(cleaned.kept[0].bytes, 4);
    assert!(cleaned.kept[0].path.is_file());
}

#[test]
fn files_of_others_are_left_alone() {
    let (_dir, repository) = fresh();
    let id = disk("vm/vda");
    back_up(&repository, &id, Kind::Full).unwrap();
    for name in ["README", ".notes.partial", "vda/.x.qdelta.partial", "points/readme.json"] {
        fs::write(repository.path().join("vm").join(name), "x").unwrap();
    }
    let before = files(repository.path());
    let lock = repository.lock(&id.domain, Wait::UNHEARD).unwrap();
    let (cleaned, _) = repository.clean(&lock).unwrap();
    assert!(cleaned.removed.is_empty() && cleaned.kept.is_empty(), "{cleaned:?}");
    assert_eq!(files(repository.path()), before);
    let list = repository.catalog().points(&id).unwrap();
    assert_eq!((list.points.len(), list.damaged.len()), (1, 0));
}

#[test]
fn every_damage_to_a_manifest_is_named_and_hides_no_other() {
    let (_dir, repository) = fresh();
    let id = disk("vm/vda");
    let full = back_up(&repository, &id, Kind::Full).unwrap();
    let last = back_up(&repository, &id, Kind::Full).unwrap();
    let path = manifest_path(&repository, &id, last);
    let good = fs::read(&path).unwrap();
    for position in 0..good.len() {
        for bit in [0, 3, 5] {
            let mut bad = good.clone();
            bad[position] ^= 1 << bit;
            fs::write(&path, &bad).unwrap();
            let list = repository.catalog().points(&id).unwrap();
            assert_eq!(list.points[0].id, full);
            // Space may become another space; nothing else may pass.
            if list.points.len() == 2 {
                let same = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).ok();
                assert_eq!(same(&bad), same(&good), "byte {position} bit {bit} passed");
                continue;
            }
            assert_eq!(list.damaged.len(), 1);
            assert_eq!(list.damaged[0].error.kind(), ErrorKind::Damaged);
            assert!(list.damaged[0].error.chain().contains(&last.to_string()));
        }
    }
    for len in 0..good.len() - 1 {
        fs::write(&path, &good[..len]).unwrap();
        assert_eq!(repository.catalog().points(&id).unwrap().damaged.len(), 1, "cut at {len}");
    }
}

/// A damaged manifest may be the latest point: an older one is not given in its place.
#[test]
fn a_missing_archive_is_named_with_the_point_that_needs_it() {
    let (_dir, repository) = fresh();
    let id = disk("vm/vda");
    let full = back_up(&repository, &id, Kind::Full).unwrap();
    back_up(&repository, &id, Kind::Incremental).unwrap();
    let archive =
        repository.describe(&repository.disk_dir(&id)).join(format!("{full}-full-01010101.qdelta"));
    fs::remove_file(&archive).unwrap();
    let list = repository.catalog().points(&id).unwrap();
    assert_eq!(
        list.points.iter().map(|point| point.archive_present).collect::<Vec<_>>(),
        [false, true]
    );
    let error = repository.catalog().chain_of(&list.points[1]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(error.chain().contains(archive.to_str().unwrap()), "{}", error.chain());

    // Even with no archive left, the disk does not vanish.
    fs::remove_dir_all(repository.describe(&repository.disk_dir(&id))).unwrap();
    assert_eq!(repository.catalog().survey().unwrap().disks.as_slice(), std::slice::from_ref(&id));
    assert_eq!(repository.catalog().points(&id).unwrap().points.len(), 2);
}

/// What was once a parent must not become useless because its manifest is.
#[test]
fn a_chain_outlives_a_lost_manifest() {
    use crate::formats::archive::{Geometry, Metadata, Parent, header};
    let (_dir, repository) = fresh();
    let id = disk("vm/vda");
    let full = back_up(&repository, &id, Kind::Full).unwrap();
    let middle = back_up(&repository, &id, Kind::Incremental).unwrap();
    back_up(&repository, &id, Kind::Incremental).unwrap();
    let latest = repository.catalog().resolve(&id, &Selector::Latest).unwrap();
    let whole = repository.catalog().chain_of(&latest).unwrap();
    assert_eq!(whole.len(), 3);

    fs::write(manifest_path(&repository, &id, middle), "{}").unwrap();
    let error = repository.catalog().chain_of(&latest).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "the archive holds no header");
    assert!(error.chain().contains(&middle.to_string()), "{}", error.chain());

    let write_header = |point: PointId, parent: PointId| {
        let metadata = Metadata {
            archive_id: ID,
            point: point.to_string(),
            domain: "vm".to_owned(),
            disk: "vda".to_owned(),
            kind: Kind::Incremental,
            tracker: Tracker::Scan,
            consistency: Consistency::Offline,
            created_ms: point.as_ms(),
            geometry: Geometry::new(1 << 30, 65536).unwrap(),
            frame_blocks: 1,
            parent: Some(Parent {
                domain: "vm".to_owned(),
                disk: "vda".to_owned(),
                point: parent.to_string(),
                root: Digest([3; 32]),
            }),
            generator: "qdelta".to_owned(),
            extensions: Vec::new(),
        };
        fs::write(repository.describe(&whole[1]), header::encode(&metadata).unwrap()).unwrap();
    };
    write_header(middle, full);
    assert_eq!(repository.catalog().chain_of(&latest).unwrap(), whole);
    fs::remove_file(manifest_path(&repository, &id, middle)).unwrap();
    assert_eq!(repository.catalog().chain_of(&latest).unwrap(), whole);

    // A header that belongs elsewhere, or leads forward. None can name its own point.
    for (point, parent) in [(full, middle), (middle, latest.id)] {
        write_header(point, parent);
        assert_eq!(repository.catalog().chain_of(&latest).unwrap_err().kind(), ErrorKind::Damaged);
    }
}

/// A manifest with a good digest that somebody made to lead elsewhere.
#[test]
fn a_hostile_manifest_leads_nowhere() {
    let (_dir, repository) = fresh();
    let id = disk("vm/vda");
    let point = back_up(&repository, &id, Kind::Full).unwrap();
    let path = manifest_path(&repository, &id, point);
    let good: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let refused = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut value = good.clone();
        value.as_object_mut().unwrap().remove("digest");
        change(&mut value);
        let digest = manifest_digest::digest_of(&value);
        value["digest"] = digest.into();
        fs::write(&path, serde_json::to_vec(&value).unwrap()).unwrap();
        let list = repository.catalog().points(&id).unwrap();
        assert_eq!(list.points.len() + list.damaged.len(), 1);
        list.points.is_empty()
    };
    assert!(!refused(&|_| {}), "the unchanged one must pass");
    assert!(!refused(&|value| value["later"] = 1.into()), "new fields must pass");
    for name in ["../x", "/etc/passwd", "", ".", "20261122T153823.412Z-full-01010101.qdelta"] {
        assert!(refused(&|value| value["disks"][0]["archive"] = name.into()), "{name}");
    }
    for name in ["../x", "points", "", "a/b"] {
        assert!(refused(&|value| value["disks"][0]["disk"] = name.into()), "{name}");
    }
    assert!(refused(&|value| value["domain"] = "other".into()));
    assert!(refused(&|value| value["point"] = "20261122T153823.412Z".into()));
    assert!(refused(&|value| value["format"] = 2.into()));
    assert!(refused(&|value| value["disks"][0]["parent"] = "20261122T153823.412Z".into()));
    assert!(refused(&|value| value["disks"][0]["block_size"] = 3.into()));
    assert!(refused(&|value| {
        let again = value["disks"][0].clone();
        value["disks"].as_array_mut().unwrap().push(again);
    }));
    assert!(refused(&|value| {
        value["disks"][0]["kind"] = "incremental".into();
        value["disks"][0]["archive"] = format!("{point}-incremental-01010101.qdelta").into();
        value["disks"][0]["parent"] = point.to_string().into();
    }));
}

#[test]
fn a_folder_that_cannot_be_read_is_an_error_and_not_empty() {
    let (_dir, repository) = fresh();
    let id = disk("vm/vda");
    back_up(&repository, &id, Kind::Full).unwrap();
    // Root reads every folder, so something that is none stands in for one that can't be read.
    let points = repository.describe(&repository.points_dir(&id.domain));
    fs::rename(&points, points.with_file_name("elsewhere")).unwrap();
    fs::write(&points, "").unwrap();
    assert_eq!(repository.catalog().points(&id).unwrap().unreadable[0].path, points);
    let survey = repository.catalog().survey().unwrap();
    assert_eq!((survey.disks.as_slice(), survey.unreadable.len()), (&[id.clone()][..], 1));
    let error = repository.catalog().resolve(&id, &Selector::Latest).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{}", error.chain());
}

#[test]
fn a_pipe_in_the_place_of_a_manifest_does_not_stop_the_program() {
    let (_dir, repository) = fresh();
    let id = disk("vm/vda");
    let point = back_up(&repository, &id, Kind::Full).unwrap();
    let path = manifest_path(&repository, &id, point);
    fs::remove_file(&path).unwrap();
    let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR);
    rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, 0).unwrap();
    assert_eq!(repository.catalog().points(&id).unwrap().damaged.len(), 1);
}
