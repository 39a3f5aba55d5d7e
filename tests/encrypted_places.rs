//! What lies in an encrypted repository under other names than it was given, and what is damaged where no
//! point is: named, never passed over.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::encrypted::{files, keygen};
use crate::harness::images::{filled, oracle};
use crate::harness::repo::Repo;
use crate::harness::{Lab, args, qdelta, run, tool};

/// The same path with the last letter of its name changed.
fn renamed(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap().to_str().unwrap();
    let (start, last) = name.split_at(name.len() - 1);
    path.with_file_name(format!("{start}{}", if last == "0" { "1" } else { "0" }))
}

/// The folders of guests.
fn guests(repo: &Repo) -> Vec<PathBuf> {
    let entries = fs::read_dir(&repo.path).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.is_dir() && !path.ends_with("keys")).collect()
}

/// The files of a repository: the manifest of the newest point, and its archive.
fn newest(repo: &Repo, disk: &str) -> (PathBuf, PathBuf) {
    let list = repo.run(args!["points", disk, "--json"]).ok().json();
    let points = list["disks"][0]["points"].as_array().unwrap();
    let archive = PathBuf::from(points.last().unwrap()["archive"].as_str().unwrap());
    let time = |path: &PathBuf| fs::metadata(path).unwrap().modified().unwrap();
    let is_manifest = |path: &PathBuf| path.parent() != archive.parent();
    let manifest = files(repo).into_iter().filter(is_manifest).max_by_key(time).unwrap();
    (manifest, archive)
}

/// A guest's folder was renamed, or filled with the files of another guest: `points` no longer listed it, and
/// `verify` said that everything was as it was written.
#[test]
fn what_was_renamed_or_moved_is_named() {
    let lab = Lab::new();
    let repo = Repo::encrypted(lab.path("repo")).without_ring();
    let image = filled(&lab, "web", "", 1 << 20, 5);
    repo.backup(&image, "secret/vda", &[]);
    let verify = || repo.run(args!["verify", "--io", "threads"]);
    verify().ok();
    let [folder] = &guests(&repo)[..] else { panic!("{:?}", guests(&repo)) };
    let gone = renamed(folder);
    fs::rename(folder, &gone).unwrap();
    let found = |path: &Path| {
        let outcome = verify();
        let text = outcome.text();
        assert_eq!(outcome.code(), Some(4), "{}", outcome.report());
        assert!(text.contains("nobody of this repository has given"), "{text}");
        assert!(text.contains(path.to_str().unwrap()), "{text}");
    };
    found(&gone);
    assert!(repo.run(args!["points"]).ok().stderr.contains(gone.to_str().unwrap()));
    let said = repo.restore("secret/vda", &lab.path("out"), &[]).fails_with(6);
    assert!(said.contains("nobody of this repository has given"), "{said}");
    // A new guest in its place does not hide it.
    let said = repo.backup_run(&image, "other/vda", &[]);
    assert!(said.ok().stderr.contains(gone.to_str().unwrap()));
    found(&gone);
    // The files of one guest below the name of another.
    let other = guests(&repo).into_iter().find(|path| *path != gone).unwrap();
    fs::rename(&gone, folder).unwrap();
    verify().ok();
    fs::remove_dir_all(&other).unwrap();
    crate::harness::files::copy_tree(folder, &other);
    found(&other);
}

/// The newest manifest was renamed: `restore` gave the point before it, status 0 and without a word.
#[test]
fn no_older_point_stands_for_one_that_was_renamed() {
    let lab = Lab::new();
    let repo = Repo::encrypted(lab.path("repo")).without_ring();
    let image = filled(&lab, "web", "", 1 << 20, 5);
    repo.backup(&image, "web/vda", &[]);
    repo.backup(&image, "web/vda", &["--kind", "full"]);
    let (manifest, archive) = newest(&repo, "web/vda");
    fs::rename(&manifest, renamed(&manifest)).unwrap();
    let said = repo.restore("web/vda", &lab.path("out"), &[]).fails_with(4);
    assert!(said.contains("is lost, though its archive is there"), "{said}");
    // With its archive, nothing tells how old it is: it is warned of.
    fs::rename(&archive, renamed(&archive)).unwrap();
    let said = repo.restore("web/vda", &lab.path("out"), &[]).ok().stderr;
    assert!(said.contains("that nobody of this repository has given"), "{said}");
    let said = repo.backup_run(&image, "web/vda", &[]);
    assert!(said.ok().stderr.contains("that nobody of this repository has given"));
}

/// A damaged file was named by its encrypted path alone: nobody could tell which guest or point it was of.
#[test]
fn damage_is_named_as_the_admin_calls_it() {
    let lab = Lab::new();
    let repo = Repo::encrypted(lab.path("repo")).without_ring();
    let image = filled(&lab, "web", "", 1 << 20, 5);
    repo.backup(&image, "secret/vda", &[]);
    let (manifest, archive) = newest(&repo, "secret/vda");
    for (file, shown) in [(archive, "secret/vda/"), (manifest, "secret/points/")] {
        let bytes = fs::read(&file).unwrap();
        let mut changed = bytes.clone();
        changed[bytes.len() / 2] ^= 1;
        fs::write(&file, &changed).unwrap();
        let outcome = repo.run(args!["verify", "--io", "threads"]);
        let text = outcome.text();
        assert_eq!(outcome.code(), Some(4), "{}", outcome.report());
        assert!(text.contains(&format!("DAMAGED {shown}")), "{text}");
        assert!(text.contains(file.to_str().unwrap()), "{text}");
        fs::write(&file, &bytes).unwrap();
    }
}

/// `verify` looked at no wrapped key: one that was cut to nothing went unnoticed until it was needed.
#[test]
fn a_wrapped_key_that_is_damaged_is_found() {
    let lab = Lab::new();
    let repo = Repo::encrypted(lab.path("repo")).without_ring();
    let (admin, recipient) = keygen(&lab, "admin.key");
    repo.run(args!["key", "add", "anna", "--recipient", recipient.as_str()]).ok();
    let wrapped = repo.path.join("keys/anna.age");
    let bytes = fs::read(&wrapped).unwrap();
    let verify = |repo: &Repo| repo.run(args!["verify", "--io", "threads"]);
    verify(&repo).ok();
    for len in [0, 20, bytes.len() / 2] {
        fs::write(&wrapped, &bytes[..len]).unwrap();
        let outcome = verify(&repo);
        assert!(outcome.text().contains("keys/anna.age"), "{}", outcome.report());
        assert_eq!(outcome.code(), Some(4), "{}", outcome.report());
    }
    // A list shows all the same which there are.
    fs::write(&wrapped, "").unwrap();
    let list = repo.run(args!["key", "list", "--json"]).ok().json();
    let anna = list["keys"].as_array().unwrap().iter().find(|key| key["name"] == "anna").unwrap();
    assert_eq!(anna["kinds"].as_array().unwrap().len(), 0);
    // What has the right form, only the key that opens it can tell.
    let mut changed = bytes.clone();
    *changed.last_mut().unwrap() ^= 1;
    fs::write(&wrapped, &changed).unwrap();
    verify(&repo).ok();
    repo.with_key(&admin).run(args!["verify"]).fails_with(16);
}

/// Files that ask for a GiB of scrypt each were tried before the one that the passphrase opens: four of them
/// took a minute.
#[test]
fn nobody_makes_a_passphrase_useless_by_files_that_cost_work() {
    let lab = Lab::new();
    let repo = Repo::encrypted_by_a_passphrase(lab.path("repo")).without_ring();
    let wrapped = repo.path.join("keys/passphrase.age");
    let text = fs::read(&wrapped).unwrap();
    let at = text.windows(4).position(|it| it == b" 18\n").unwrap();
    let costly = |work: &[u8]| [&text[..at], b" ", work, b"\n", &text[at + 4..]].concat();
    fs::write(repo.path.join("keys/aaa.age"), costly(b"30")).unwrap();
    for name in ["aab", "aac", "aad", "aae", "aaf", "aag"] {
        fs::write(repo.path.join(format!("keys/{name}.age")), costly(b"20")).unwrap();
    }
    let passphrase = repo.with_key(&lab.path("repo.passphrase"));
    passphrase.run(args!["points"]).ok();
    // Under another name it is the first of all others, and what is left out is said.
    fs::rename(&wrapped, repo.path.join("keys/zzz.age")).unwrap();
    passphrase.run(args!["points"]).ok();
    fs::remove_file(repo.path.join("keys/zzz.age")).unwrap();
    for name in ["aab", "aac", "aad", "aae", "aaf", "aag"] {
        fs::write(repo.path.join(format!("keys/{name}.age")), costly(b"30")).unwrap();
    }
    let said = passphrase.run(args!["points"]).fails_with(16);
    assert!(said.contains("not tried") && said.contains("aag"), "{said}");
}

/// With a host's key `points` said "0 points" of guests whose points are there.
#[test]
fn points_that_a_key_cannot_open_are_counted() {
    let lab = Lab::new();
    let repo = Repo::encrypted(lab.path("repo")).without_ring();
    let image = filled(&lab, "web", "", 1 << 20, 5);
    repo.backup(&image, "web/vda", &[]);
    repo.backup(&image, "web/vda", &[]);
    let key = lab.path("host.key");
    repo.run(args!["key", "host", key.as_path()]).ok();
    let state = lab.path("other-host");
    let host = repo.with_key(&key);
    let list = host.run(args!["points", "--state", state.as_path()]);
    let text = list.text();
    let said = list.fails_with(16);
    assert!(text.contains("web: 2 points that this key can't open"), "{text}\n{said}");
    assert!(!text.contains("0 points") && said.contains("--key-file"), "{text}\n{said}");
    let list = host.run(args!["points", "--json", "--state", state.as_path()]).json();
    assert_eq!(list["locked"], serde_json::json!([{ "domain": "web", "points": 2 }]));
}

/// One flipped byte in the header of an archive, or in its last 64 KiB, cost all of it: `--salvage` gave zeros.
#[test]
fn a_flipped_byte_costs_a_salvage_no_more_than_its_piece() {
    let lab = Lab::new();
    let repo = Repo::encrypted(lab.path("repo")).without_ring();
    let raw = lab.path("raw");
    let mut random = fastrand::Rng::with_seed(5);
    let noise: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(600_000).collect();
    fs::write(&raw, &noise).unwrap();
    repo.backup(&raw, "web/vda", &["--format", "raw"]);
    let (_, archive) = newest(&repo, "web/vda");
    let bytes = fs::read(&archive).unwrap();
    let salvaged = |changed: &[u8]| {
        fs::write(&archive, changed).unwrap();
        let out = lab.path("out");
        repo.restore("web/vda", &out, &[]).fails_with(4);
        let outcome = repo.restore("web/vda", &out, &["--salvage"]);
        assert!(matches!(outcome.code(), Some(0 | 9)), "{}", outcome.report());
        let found = fs::read(&out).unwrap();
        fs::remove_file(out).unwrap();
        found.chunks(65_536).zip(noise.chunks(65_536)).filter(|(one, other)| one != other).count()
    };
    for at in [3, 60, 130, 215, 222, 230, bytes.len() / 2, bytes.len() - 40, bytes.len() - 1] {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        let lost = salvaged(&changed);
        let most = if at < 239 { 0 } else { 2 };
        assert!(lost <= most, "byte {at} of {}: {lost} blocks", bytes.len());
    }
    for cut in [1, 20, 30_000, 70_000] {
        let lost = salvaged(&bytes[..bytes.len() - cut]);
        assert!(lost <= 3, "{cut} bytes less: {lost} blocks");
    }
}

/// The recovery key got into the repository through a link, the path of which lies elsewhere.
#[test]
fn no_key_is_left_inside_and_no_passphrase_is_short() {
    let lab = Lab::new();
    let (repo, link) = (lab.path("repo"), lab.path("link"));
    fs::create_dir(&repo).unwrap();
    std::os::unix::fs::symlink(&repo, &link).unwrap();
    let passphrase = lab.path("passphrase");
    let init = |recovery: PathBuf| {
        let words = args!["init", repo.as_path(), "--encrypt", "--recovery", recovery.as_path()];
        run(qdelta([words, args!["--passphrase-file", passphrase.as_path()]].concat()))
    };
    fs::write(&passphrase, "Age-of-empires\n").unwrap();
    let said = init(link.join("key")).fails_with(2);
    assert!(said.contains("lies in the repository"), "{said}");
    fs::write(&passphrase, "short\n").unwrap();
    let said = init(lab.path("key")).fails_with(2);
    assert!(said.contains("too short"), "{said}");
    fs::write(&passphrase, "Age-of-empires\n").unwrap();
    init(lab.path("key")).ok();
    let repo = Repo::at(repo);
    repo.with_key(&passphrase).run(args!["points"]).ok();
    // A guest that is called as the file of the settings was a folder in its place.
    let image = filled(&lab, "web", "", 1 << 20, 5);
    let said = repo.with_key(&passphrase).backup_run(&image, "qdelta.toml/vda", &[]).fails_with(2);
    assert!(said.contains("is no name for a domain"), "{said}");
}

/// Whoever reads the result alone did not learn that nothing proves the key.
#[test]
fn an_unproved_key_is_warned_of_in_json() {
    let lab = Lab::new();
    let (admin, recipient) = keygen(&lab, "admin.key");
    let repo = Repo::encrypted(lab.path("repo")).without_ring();
    repo.run(args!["key", "add", "anna", "--recipient", recipient.as_str()]).ok();
    let state = lab.path("another-host");
    let words = args!["points", "--json", "--state", state.as_path()];
    let list = repo.with_key(&admin).run(words).ok().json();
    assert_eq!(list["warnings"][0]["code"], "unproved", "{list}");
}

/// A key that everybody on the host could read was used without a word.
#[test]
fn a_key_that_everybody_can_read_is_warned_of() {
    let lab = Lab::new();
    let repo = Repo::encrypted(lab.path("repo")).without_ring();
    let codes = |repo: &Repo| {
        let list = repo.run(args!["points", "--json"]).ok().json();
        list["warnings"].as_array().unwrap().iter().map(|it| it["code"].to_string()).collect()
    };
    let said: Vec<String> = codes(&repo);
    assert!(said.is_empty(), "{said:?}");
    let open = lab.path("open.key");
    fs::copy(repo.key.as_ref().unwrap(), &open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o644)).unwrap();
    let said: Vec<String> = codes(&repo.with_key(&open));
    assert_eq!(said, ["\"exposed-key\""]);
    // A group that the admin has made for it may.
    fs::set_permissions(&open, fs::Permissions::from_mode(0o640)).unwrap();
    let said: Vec<String> = codes(&repo.with_key(&open));
    assert!(said.is_empty(), "{said:?}");
}

/// It was not said what can be done without a key: what the document says of copies and checksums is tried as it
/// stands there, and nothing else is done.
#[test]
fn copies_and_checksums_need_no_key() {
    let lab = Lab::new();
    let repo = Repo::encrypted(lab.path("repo")).without_ring();
    let image = filled(&lab, "web", "", 1 << 20, 5);
    repo.backup(&image, "web/vda", &[]);
    let document = include_str!("../docs/encryption.md");
    let recipe = document.split("```sh").nth(1).unwrap().split("```").next().unwrap();
    let recipe = recipe.replace("/mnt/backup/repo", repo.path.to_str().unwrap());
    let recipe = recipe.replace("/elsewhere/sums", lab.path("sums").to_str().unwrap());
    let (make, check) = recipe.split_at(recipe.find("b3sum --quiet").unwrap());
    let shell = |text: &str| run(tool("sh", args!["-e", "-c", text]));
    shell(make).ok();
    let check = format!("cd {}\n{check}", repo.path.display());
    shell(&check).ok();
    // Any tool copies it, and the copy opens with the same key.
    let copy = repo.copy_at(lab.path("copy"));
    run(tool("cp", args!["-a", repo.path.as_path(), copy.path.as_path()])).ok();
    let raw = lab.path("raw");
    oracle(args!["-f", "qcow2", image.as_path()], &raw);
    copy.assert_restores_raw(&lab, "web/vda", &raw);
    // Nothing is removed without one.
    let prune = args!["prune", "--keep-last", "1", "--grace", "0h"];
    repo.without_key().run(prune).fails_with(16);
    shell(&check).ok();
    let largest = files(&repo).pop().unwrap();
    let mut bytes = fs::read(&largest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&largest, bytes).unwrap();
    let found = shell(&check);
    assert!(!found.status.success(), "a flipped bit was not found");
    assert!(
        found.text().contains(largest.file_name().unwrap().to_str().unwrap()),
        "{}",
        found.report()
    );
}
