//! Repositories in which files are missing, in each other's place, or many: what a restore would
//! stumble over, a verification says before.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Run, qdelta};

/// A repository with a full and increments of a small raw disk.
struct Chain {
    dir: tempfile::TempDir,
}

impl Chain {
    fn of(points: u8) -> Self {
        let chain = Self { dir: tempfile::tempdir().unwrap() };
        chain.done(&["init", "repo"]);
        for number in 1..=points {
            std::fs::write(chain.dir.path().join("vm.raw"), [number; 10_000]).unwrap();
            chain.done(&["backup", "vm.raw"]);
        }
        chain
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = qdelta();
        command.args(words).env("QDELTA_REPO", "repo").current_dir(self.dir.path());
        command
    }

    fn run(&self, words: &[&str]) -> Run {
        self.command(words).output().unwrap().into()
    }

    #[track_caller]
    fn done(&self, words: &[&str]) -> String {
        let run = self.run(words);
        assert_eq!(run.status, 0, "{words:?}: {}{}", run.stdout, run.stderr);
        run.stdout
    }

    /// Verification finds damage, quickly and thoroughly; gives what it said.
    #[track_caller]
    fn damaged(&self) -> String {
        let quick = self.run(&["verify", "--quick"]);
        assert_eq!(quick.status, 4, "{}{}", quick.stdout, quick.stderr);
        let whole = self.run(&["verify"]);
        assert_eq!(whole.status, 4, "{}{}", whole.stdout, whole.stderr);
        whole.stdout
    }

    fn files(&self, folder: &str) -> Vec<PathBuf> {
        let dir = self.dir.path().join("repo/vm").join(folder);
        let mut files: Vec<_> =
            std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }
}

fn swap(one: &Path, other: &Path) {
    let aside = one.with_extension("aside");
    std::fs::rename(one, &aside).unwrap();
    std::fs::rename(other, one).unwrap();
    std::fs::rename(&aside, other).unwrap();
}

/// Somebody copied the archives and forgot the folder `points`: every recovery point was gone, and
/// `verify` said that there was nothing to verify yet, or, with some of the manifests left, that
/// everything was as it was written.
#[test]
fn a_lost_manifest_is_damage() {
    let chain = Chain::of(3);
    let archives = chain.files("disk");
    std::fs::remove_file(&chain.files("points")[2]).unwrap();
    let said = chain.damaged();
    assert!(said.contains(archives[2].file_name().unwrap().to_str().unwrap()), "{said}");
    assert!(said.contains("found: 1 stray"), "{said}");
    // The points that are left are well, each by itself; none of them is given for the lost one.
    let points = chain.files("points");
    chain.done(&["verify", &format!("vm@{}", points[1].file_stem().unwrap().to_str().unwrap())]);
    let latest = chain.run(&["verify", "vm@latest"]);
    assert_eq!(latest.status, 4, "{}", latest.stderr);
    assert!(latest.stderr.contains("is lost, though its archive is there"), "{}", latest.stderr);
    for manifest in chain.files("points") {
        std::fs::remove_file(manifest).unwrap();
    }
    assert!(chain.damaged().contains("found: 3 stray"));
}

/// A point had lost its manifest, and a torn or foreign archive that is named after the point lay beside the
/// right one: the first by name was taken for the parent, and every later point of the chain for lost.
#[test]
fn a_torn_or_foreign_archive_hides_no_parent_that_lost_its_manifest() {
    let chain = Chain::of(3);
    let archives = chain.files("disk");
    std::fs::remove_file(&chain.files("points")[1]).unwrap();
    let name = archives[1].file_name().unwrap().to_str().unwrap();
    let (point, _) = name.split_once("-incremental-").unwrap();
    let beside = |kind: &str| archives[1].with_file_name(format!("{point}-{kind}-00000000.qdelta"));
    let restores = || {
        chain.done(&["restore", "vm", "out.raw", "--force"]);
    };
    restores();
    let bytes = std::fs::read(&archives[1]).unwrap();
    // A header that is sound, and no end.
    std::fs::write(beside("incremental"), &bytes[..bytes.len() - 1]).unwrap();
    restores();
    // An archive of another point that somebody named after this one.
    std::fs::copy(&archives[0], beside("full")).unwrap();
    restores();
    // Without the right archive the chain is broken, whatever else lies there.
    std::fs::remove_file(&archives[1]).unwrap();
    assert_eq!(chain.run(&["restore", "vm", "out.raw", "--force"]).status, 4);
}

/// Two archives of a disk had changed places: each of their bytes was right, so `verify --quick`
/// was content, and no point above the full could be restored.
#[test]
fn archives_in_each_others_place_are_damage_even_to_a_quick_look() {
    let chain = Chain::of(3);
    let archives = chain.files("disk");
    swap(&archives[1], &archives[2]);
    let said = chain.damaged();
    assert!(said.contains("not what the manifest"), "{said}");
    assert_eq!(chain.run(&["restore", "vm", "out.raw"]).status, 4);
    swap(&archives[1], &archives[2]);
    chain.done(&["verify", "--quick"]);
}

/// A named pipe in the place of an archive made every command wait for somebody to write to it.
#[test]
fn a_pipe_in_the_place_of_an_archive_is_damage() {
    let chain = Chain::of(2);
    let archive = &chain.files("disk")[0];
    std::fs::remove_file(archive).unwrap();
    assert!(Command::new("mkfifo").arg(archive).status().unwrap().success());
    assert!(chain.damaged().contains("it is a named pipe, not a regular file"));
    assert_eq!(chain.run(&["backup", "vm.raw"]).status, 4);
}

/// A chain kept all its archives open. Longer than the usual limit of open files, it could neither
/// go on nor be restored, and `verify` took the last of them for damaged.
#[test]
fn a_chain_may_be_longer_than_the_limit_of_open_files() {
    let chain = Chain::of(200);
    let limited = |limit: &str, words: &[&str]| -> Run {
        let mut command = Command::new("prlimit");
        command.arg(format!("--nofile={limit}")).arg(chain.command(&[]).get_program());
        command.args(words).env("QDELTA_REPO", "repo").current_dir(chain.dir.path());
        command.output().unwrap().into()
    };
    for words in [&["restore", "vm", "out.raw"] as &[&str], &["backup", "vm.raw"], &["verify"]] {
        let run = limited("192:192", words);
        assert_eq!(run.status, 0, "{words:?}: {}{}", run.stdout, run.stderr);
    }
    // Where not even these are allowed, nobody blames the archives.
    let run = limited("32:32", &["verify"]);
    assert_eq!(run.status, 1, "{}{}", run.stdout, run.stderr);
    assert!(run.stderr.contains("Too many open files"), "{}", run.stderr);
}

/// Two images of one name in different folders are taken for one disk: that was not said.
#[test]
fn another_image_of_the_same_name_is_pointed_out() {
    let chain = Chain::of(1);
    std::fs::create_dir(chain.dir.path().join("other")).unwrap();
    std::fs::copy(chain.dir.path().join("vm.raw"), chain.dir.path().join("other/vm.raw")).unwrap();
    let run = chain.run(&["backup", "other/vm.raw"]);
    assert_eq!(run.status, 2, "{}", run.stderr);
    assert!(run.stderr.contains("--disk"), "{}", run.stderr);
    // Who names the disk means it: a clone of the image has another path every night.
    let run = chain.run(&["backup", "other/vm.raw", "--disk", "vm"]);
    assert_eq!((run.status, run.stderr.as_str()), (0, ""));
}

/// With one archive of a chain missing, `verify` called the two beside it DAMAGED, and said "proved" at
/// once: the next thing somebody does is to delete what is damaged.
#[test]
fn a_missing_archive_makes_no_other_one_damaged() {
    let chain = Chain::of(4);
    let archives = chain.files("disk");
    std::fs::remove_file(&archives[1]).unwrap();
    let said = chain.damaged();
    assert!(said.contains(&format!("MISSING {}", relative(&chain, &archives[1]))), "{said}");
    assert!(!said.contains("DAMAGED"), "{said}");
    assert!(said.contains("3 points of 4 can't be restored whole"), "{said}");
    assert!(said.contains("3 archives sound: keep every one"), "{said}");

    let run = chain.run(&["verify", "--json"]);
    assert_eq!(run.status, 4);
    let json: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(json["proved"], false);
    assert_eq!(json["findings"].as_array().unwrap().len(), 1, "{json}");
    assert_eq!(json["findings"][0]["state"], "missing");
    assert_eq!(json["findings"][0]["points"].as_array().unwrap().len(), 3);
    let disk = &json["disks"][0];
    let states = disk["archives"].as_array().unwrap().iter().map(|it| it["state"].clone());
    assert_eq!(states.collect::<Vec<_>>(), ["sound", "missing", "sound", "sound"]);
    let points = disk["points"].as_array().unwrap();
    let restorable = points.iter().map(|it| it["restorable"].clone()).collect::<Vec<_>>();
    assert_eq!(restorable, [true, false, false, false]);
    for point in &points[1..] {
        assert_eq!(point["because"], serde_json::json!([relative(&chain, &archives[1])]));
    }
}

/// The path as commands in the folder of the repository show it.
fn relative(chain: &Chain, path: &Path) -> String {
    path.strip_prefix(chain.dir.path()).unwrap().to_str().unwrap().to_owned()
}

/// What may lie in the place of a file.
fn put_in_place(path: &Path, what: &str) {
    let _ = std::fs::remove_file(path);
    match what {
        "pipe" => assert!(Command::new("mkfifo").arg(path).status().unwrap().success()),
        "folder" => std::fs::create_dir(path).unwrap(),
        "socket" => drop(std::os::unix::net::UnixListener::bind(path).unwrap()),
        "device" => std::os::unix::fs::symlink("/dev/zero", path).unwrap(),
        "loop" => std::os::unix::fs::symlink(path, path).unwrap(),
        "empty" => std::fs::write(path, "").unwrap(),
        "lost" => {}
        other => panic!("{other}"),
    }
}

/// `restore --salvage` and `replay --salvage` waited for ever for the writer of a named pipe in the place
/// of an archive.
#[test]
fn a_salvage_waits_for_nobody() {
    for what in ["pipe", "folder", "socket", "device", "loop"] {
        let chain = Chain::of(3);
        let archives = chain.files("disk");
        put_in_place(&archives[1], what);
        let first = archives[0].to_str().unwrap();
        let second = archives[1].to_str().unwrap();
        for words in [
            &["restore", "vm", "out.raw", "--salvage"] as &[&str],
            &["replay", first, second, "--salvage", "--output", "out2.raw"],
            &["info", second],
            &["verify"],
            &["points"],
        ] {
            let mut command = Command::new("timeout");
            command.args(["--signal=KILL", "60"]).arg(chain.command(&[]).get_program());
            command.args(words).env("QDELTA_REPO", "repo").current_dir(chain.dir.path());
            let run: Run = command.output().unwrap().into();
            // Whoever asks what a folder is has named the wrong thing.
            let ended = [0, 1, 3, 4, 6, 7, 9].contains(&run.status)
                || (what, words.first(), run.status) == ("folder", Some(&"info"), 2);
            assert!(ended, "{what} {words:?}: {} {}", run.status, run.stderr);
            assert!(!run.stderr.contains("panicked"), "{}", run.stderr);
        }
    }
}

/// Without `qdelta.toml`, or with one letter of it wrong, every command refused: also a restore of
/// sound points, which needs nothing of it.
#[test]
fn a_lost_qdelta_toml_costs_no_point_and_comes_back() {
    let chain = Chain::of(2);
    let toml = chain.dir.path().join("repo/qdelta.toml");
    let good = std::fs::read_to_string(&toml).unwrap();
    let id = |text: &str| text.lines().find(|line| line.starts_with("id")).unwrap().to_owned();
    let wrong_id = good.replacen("id = \"", "id = \"f", 1);
    let wrong_name = good.replace("format", "fgrmat");
    for what in ["lost", "empty", "folder", "pipe", &wrong_id, &wrong_name] {
        match what.len() > 10 {
            true => std::fs::write(&toml, what).unwrap(),
            false => put_in_place(&toml, what),
        }
        let restored = chain.run(&["restore", "vm", "out.raw", "--force"]);
        assert_eq!(restored.status, 0, "{what}: {}", restored.stderr);
        assert!(restored.stderr.contains("init --repair"), "{what}: {}", restored.stderr);
        assert_eq!(std::fs::read(chain.dir.path().join("out.raw")).unwrap()[..10_000], [2; 10_000]);
        for words in [&["points"] as &[&str], &["verify"], &["anchors"]] {
            let run = chain.run(words);
            assert_eq!(run.status, 4, "{what} {words:?}: {}{}", run.stdout, run.stderr);
        }
        let refused = chain.run(&["backup", "vm.raw"]);
        assert_eq!(refused.status, 4, "{what}: {}", refused.stderr);
        assert!(refused.stderr.contains("init --repair"), "{what}: {}", refused.stderr);
        assert_eq!(chain.run(&["init", "repo"]).status, 7, "{what}");
        let again = chain.run(&["init", "repo"]);
        assert!(again.stderr.contains("init --repair"), "{what}: {}", again.stderr);
        let made = chain.run(&["init", "--repair", "repo"]);
        if what == "folder" {
            // Somebody's folder is not removed.
            assert_ne!(made.status, 0, "{}", made.stdout);
            std::fs::remove_dir(&toml).unwrap();
            chain.done(&["init", "--repair", "repo"]);
        } else {
            assert_eq!(made.status, 0, "{what}: {}", made.stderr);
        }
        let now = std::fs::read_to_string(&toml).unwrap();
        assert_eq!(id(&now), id(&good), "{what}: the points know the id");
        chain.done(&["verify"]);
    }
    chain.done(&["backup", "vm.raw"]);
    assert!(chain.done(&["init", "--repair", "repo"]).contains("sound"));
}

/// With the manifests lost, too, every command said that this is no repository and advised a new one:
/// nobody was told that the archives alone give the disks back.
#[test]
fn archives_without_any_manifest_are_still_a_repository() {
    let chain = Chain::of(2);
    let repo = chain.dir.path().join("repo");
    std::fs::remove_file(repo.join("qdelta.toml")).unwrap();
    for manifest in std::fs::read_dir(repo.join("vm/points")).unwrap() {
        std::fs::remove_file(manifest.unwrap().path()).unwrap();
    }
    for command in ["points", "verify"] {
        let run = chain.run(&[command]);
        let said = format!("{}{}", run.stdout, run.stderr);
        assert_eq!(run.status, 4, "{command}: {said}");
        assert!(said.contains("replay") && said.contains("init --repair"), "{command}: {said}");
    }
    chain.done(&["init", "--repair", "repo"]);
    let begun = chain.run(&["backup", "vm.raw"]);
    assert!(begun.status == 4 && begun.stdout.contains("full"), "{}", begun.stderr);
    // A damaged file where nothing else is comes back, too: that was advised, and then refused.
    std::fs::remove_dir_all(repo.join("vm")).unwrap();
    std::fs::write(repo.join("qdelta.toml"), "x").unwrap();
    assert!(chain.run(&["points"]).stderr.contains("init --repair"));
    chain.done(&["init", "--repair", "repo"]);
    chain.done(&["points"]);
}

/// One folder that could not be listed hid every other disk, and `points` and `verify` of the whole
/// repository gave up.
#[test]
fn a_folder_that_cant_be_listed_hides_nothing_beside_it() {
    for (place, what) in
        [("vm/vdb", "loop"), ("vm/vdb", "empty"), ("bad", "loop"), ("vm2/points", "empty")]
    {
        let chain = Chain::of(1);
        chain.done(&["backup", "vm.raw", "--disk", "vm/vdb"]);
        chain.done(&["backup", "vm.raw", "--disk", "other/vda"]);
        chain.done(&["backup", "vm.raw", "--disk", "vm2/vda"]);
        let path = chain.dir.path().join("repo").join(place);
        if path.exists() {
            std::fs::rename(&path, chain.dir.path().join("aside")).unwrap();
        }
        put_in_place(&path, what);
        for disk in ["vm/disk", "other/vda"] {
            chain.done(&["restore", disk, "out.raw", "--force"]);
            chain.done(&["verify", disk]);
            chain.done(&["backup", "vm.raw", "--disk", disk]);
        }
        for command in ["points", "verify"] {
            let run = chain.run(&[command]);
            assert_eq!(run.status, 4, "{place} {command}: {}{}", run.stdout, run.stderr);
            let said = format!("{}{}", run.stdout, run.stderr);
            assert!(said.contains(place), "{place} {command}: {said}");
            if command == "points" {
                assert!(
                    said.contains("vm/disk: 2 points") && said.contains("other/vda: 2"),
                    "{said}"
                );
            }
        }
    }
}

/// A manifest of 16 MiB that is all small values took 1.6 GiB of memory.
#[test]
fn a_manifest_takes_no_more_than_some_times_its_length() {
    let chain = Chain::of(1);
    let path = &chain.files("points")[0];
    let text = std::fs::read_to_string(path).unwrap();
    let fields: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut fields = fields.as_object().unwrap().clone();
    fields.remove("digest");
    let small = serde_json::json!({"": 0});
    fields.insert("zz".to_owned(), vec![small; 2_000_000].into());
    let canonical = serde_json::to_string(&fields).unwrap();
    let digest = blake3::hash(canonical.as_bytes()).to_hex();
    let body = canonical.strip_prefix('{').unwrap();
    std::fs::write(path, format!("{{\"digest\":\"{digest}\",{body}")).unwrap();
    let mut command = Command::new("prlimit");
    command.arg("--as=400000000").arg(chain.command(&[]).get_program());
    command.arg("points").env("QDELTA_REPO", "repo").current_dir(chain.dir.path());
    let run: Run = command.output().unwrap().into();
    // A field that this version does not know is no damage.
    assert_eq!(run.status, 0, "{}{}", run.stdout, run.stderr);
}
