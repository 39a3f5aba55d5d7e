//! Encrypted repositories: Debian's `age` opens what is written and writes what is opened, and whoever can
//! write to the repository can change nothing unnoticed.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::files::{assert_same, tree};
use crate::harness::images::{filled, patch, qemu_img};
use crate::harness::repo::Repo;
use crate::harness::{Lab, Outcome, args, qdelta, run};

/// Runs a program of age's.
#[track_caller]
pub fn age(program: &str, arguments: Vec<OsString>) -> Outcome {
    let mut command = Command::new(program);
    command.args(arguments);
    run(command).ok()
}

/// A new identity of age's own, and its recipient.
pub fn keygen(lab: &Lab, name: &str) -> (PathBuf, String) {
    let path = lab.path(name);
    let said = age("age-keygen", args!["-o", path.as_path()]).stderr;
    (path, said.trim().rsplit(' ').next().unwrap().to_owned())
}

/// The encrypted files of a repository that are not in `keys`, the largest last.
pub fn files(repo: &Repo) -> Vec<PathBuf> {
    let mut files: Vec<_> = tree(&repo.path)
        .into_iter()
        .map(|name| repo.path.join(name))
        .filter(|path| path.is_file() && !path.starts_with(repo.path.join("keys")))
        .filter(|path| fs::read(path).unwrap().starts_with(b"age-encryption.org/v1\n"))
        .collect();
    files.sort_by_key(|path| fs::metadata(path).unwrap().len());
    files
}

/// An image with content that does not compress well, in a repository with two points of it.
fn two_points(lab: &Lab, repo: &Repo) -> PathBuf {
    let image = filled(lab, "web", "", 8 << 20, 5);
    repo.backup(&image, "web/vda", &[]);
    let noise: Vec<u8> =
        (0..200_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let raw = lab.path("raw");
    qemu_img(args!["convert", "-O", "raw", image.as_path(), raw.as_path()]).ok();
    patch(&raw, 1 << 20, &noise);
    qemu_img(args!["convert", "-O", "qcow2", raw.as_path(), image.as_path()]).ok();
    repo.backup(&image, "web/vda", &["--kind", "incremental"]);
    raw
}

#[test]
fn age_opens_every_file_and_replay_goes_on_from_there() {
    let lab = Lab::new();
    let (admin, recipient) = keygen(&lab, "admin.key");
    let (path, recovery) = (lab.path("repo"), lab.path("recovery.key"));
    run(qdelta(args![
        "init",
        path.as_path(),
        "--encrypt",
        "--recipient",
        recipient.as_str(),
        "--recovery",
        recovery.as_path()
    ]))
    .ok();
    let repo = Repo::at(path).with_key(&recovery);
    let raw = two_points(&lab, &repo);
    // The admin's key opens the repository's, and that one everything.
    let opened = lab.path("opened.key");
    let wrapped = repo.path.join("keys/admin.age");
    age("age", args!["-d", "-i", admin.as_path(), "-o", opened.as_path(), wrapped.as_path()]);
    assert_same(&recovery, &opened, "the identity");
    let mut archives = Vec::new();
    for (number, file) in files(&repo).iter().enumerate() {
        let out = lab.path(format!("{number}.plain"));
        age("age", args!["-d", "-i", opened.as_path(), "-o", out.as_path(), file.as_path()]);
        let bytes = fs::read(&out).unwrap();
        match bytes.starts_with(b"qdelta") {
            true => archives.push((fs::metadata(file).unwrap().modified().unwrap(), out)),
            false => assert!(bytes.starts_with(b"{"), "{}", file.display()),
        }
    }
    assert_eq!(archives.len(), 2);
    archives.sort();
    let output = lab.path("replayed");
    let mut words = args!["replay"];
    words.extend(archives.iter().map(|(_, path)| OsString::from(path)));
    words.extend(args!["--output", output.as_path()]);
    run(qdelta(words)).ok();
    assert_same(&raw, &output, "what age and replay give");
    repo.assert_restores_raw(&lab, "web/vda", &raw);
    // With the admin's own key, too: it opens the one that lies in the repository.
    repo.with_key(&admin).assert_restores_raw(&lab, "web/vda", &raw);
}

/// age asks for passphrases at a terminal alone.
fn age_at_a_terminal(lab: &Lab, command: &str, passphrase: &str) {
    let mut child = Command::new("script");
    child.args(["-q", "-e", "-c", command]).arg(lab.path("typescript"));
    child.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null());
    let mut child = child.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    for _ in 0..2 {
        // Whatever was typed before the question is thrown away.
        std::thread::sleep(std::time::Duration::from_millis(700));
        let _ = std::io::Write::write_all(&mut stdin, format!("{passphrase}\n").as_bytes());
    }
    assert!(child.wait().unwrap().success(), "{command}");
}

#[test]
fn age_and_qdelta_open_each_other_s_passphrases() {
    let lab = Lab::new();
    let repo = Repo::encrypted_by_a_passphrase(lab.path("repo"));
    let (wrapped, out) = (repo.path.join("keys/passphrase.age"), lab.path("opened.key"));
    let command = format!("age -d -o {} {}", out.display(), wrapped.display());
    age_at_a_terminal(&lab, &command, "a passphrase");
    let key = repo.key.clone().unwrap();
    assert_same(&key, &out, "the identity");
    // What age has wrapped opens the repository just as well.
    let own = repo.path.join("keys/own.age");
    let command = format!("age -p -o {} {}", own.display(), key.display());
    age_at_a_terminal(&lab, &command, "another one");
    fs::remove_file(wrapped).unwrap();
    let passphrase = lab.path("passphrase");
    fs::write(&passphrase, "another one\n").unwrap();
    let image = filled(&lab, "web", "", 1 << 20, 5);
    repo.with_key(&passphrase).backup(&image, "web/vda", &[]);
    fs::write(&passphrase, "a passphrase\n").unwrap();
    let said = repo.with_key(&passphrase).run(args!["points"]).fails_with(16);
    assert!(said.contains("passphrase"), "{said}");
}

#[test]
fn without_its_key_nothing_is_shown_and_nothing_written() {
    let lab = Lab::new();
    let repo = Repo::encrypted(lab.path("repo"));
    let image = filled(&lab, "web", "", 1 << 20, 5);
    repo.backup(&image, "web/vda", &[]);
    let (other, _) = keygen(&lab, "other.key");
    let half = lab.path("half.key");
    let key = fs::read_to_string(repo.key.as_ref().unwrap()).unwrap();
    fs::write(&half, &key[..key.len() - 30]).unwrap();
    let none = repo.without_key();
    let before = tree(&repo.path);
    for words in
        [args!["points"], args!["verify"], args!["prune"], args!["backup", image.as_path()]]
    {
        let said = none.run(words.clone()).fails_with(16);
        assert!(said.contains("--key-file"), "{said}");
        let said = repo.with_key(&other).run(words.clone()).fails_with(16);
        assert!(said.contains("none of the repository"), "{said}");
        let said = repo.with_key(&half).run(words).fails_with(2);
        assert!(!said.contains(&key[100..120]), "{said}");
    }
    assert_eq!(tree(&repo.path), before);
    // Somebody has put a repository that is not encrypted in its place.
    let plain = Repo::init(lab.path("plain"));
    let said = plain.with_key(repo.key.as_ref().unwrap()).run(args!["points"]);
    match plain.key {
        None => assert!(said.fails_with(2).contains("is not encrypted")),
        Some(_) => assert!(said.fails_with(16).contains("none of the repository")),
    }
}

/// A file of `keys` that an admin's key opens can be made by anybody who knows the admin's recipient.
#[test]
fn nobody_backs_up_to_a_key_that_was_put_there() {
    let lab = Lab::new();
    let (admin, recipient) = keygen(&lab, "admin.key");
    let repo = Repo::encrypted(lab.path("repo"));
    let image = filled(&lab, "web", "", 1 << 20, 5);
    repo.backup(&image, "web/vda", &[]);
    let key = repo.key.as_ref().unwrap();
    let wrapped = repo.path.join("keys/admin.age");
    age("age", args!["-r", recipient.as_str(), "-o", wrapped.as_path(), key.as_path()]);
    let by_admin = repo.with_key(&admin);
    let state = lab.path("another-host");
    let options = ["--state", state.to_str().unwrap()];
    let said = by_admin.run(args!["points", "--state", state.as_path()]).ok().stderr;
    assert!(said.contains("for the first time"), "{said}");
    let said = by_admin.backup_run(&image, "web/vda", &options).fails_with(16);
    assert!(said.contains("anybody could have made"), "{said}");
    // The host that was given the repository's own key before knows what the admin's key opens.
    by_admin.backup(&image, "web/vda", &[]);
}

#[test]
fn every_byte_of_every_file_counts() {
    let lab = Lab::new();
    let repo = Repo::encrypted(lab.path("repo")).without_ring();
    let image = filled(&lab, "web", "", 1 << 20, 5);
    repo.backup(&image, "web/vda", &[]);
    let files = files(&repo);
    assert_eq!(files.len(), 2);
    for file in files {
        let bytes = fs::read(&file).unwrap();
        let step = (bytes.len() / 8).max(1);
        for at in (0..bytes.len()).step_by(step).chain([bytes.len() - 1]) {
            let mut changed = bytes.clone();
            changed[at] ^= 4;
            fs::write(&file, &changed).unwrap();
            assert_eq!(repo.run(args!["verify", "--io", "threads"]).code(), Some(4));
            repo.restore("web/vda", &lab.path("out"), &[]).fails_with(4);
        }
        fs::write(&file, &bytes[..bytes.len() - step]).unwrap();
        assert_eq!(repo.run(args!["verify", "--io", "threads"]).code(), Some(4));
        fs::write(&file, &bytes).unwrap();
    }
    repo.run(args!["verify", "--io", "threads"]).ok();
}

#[test]
fn a_lost_configuration_is_made_anew_by_the_key() {
    let lab = Lab::new();
    let repo = Repo::encrypted(lab.path("repo"));
    let image = filled(&lab, "web", "", 1 << 20, 5);
    repo.backup(&image, "web/vda", &[]);
    let config = repo.path.join("qdelta.toml");
    let before = fs::read_to_string(&config).unwrap();
    fs::remove_file(&config).unwrap();
    // A list says what is wrong, and all that can be read.
    let list = repo.run(args!["points", "web/vda", "--json"]);
    assert_eq!(
        (list.code(), list.json()["disks"][0]["points"].as_array().unwrap().len()),
        (Some(4), 1)
    );
    let none = repo.without_key();
    none.run(args!["points"]).fails_with(16);
    let words = || args!["init", "--repair", repo.path.as_path()];
    run(qdelta(words())).fails_with(16);
    let (other, _) = keygen(&lab, "other.key");
    let with = |key: &Path| [words(), args!["--key-file", key]].concat();
    assert!(!run(qdelta(with(&other))).status.success());
    run(qdelta(with(repo.key.as_ref().unwrap()))).ok();
    let after = fs::read_to_string(&config).unwrap();
    let line =
        |text: &str, what: &str| text.lines().find(|it| it.starts_with(what)).unwrap().to_owned();
    for what in ["id = ", "recipient = "] {
        assert_eq!(line(&before, what), line(&after, what));
    }
    repo.backup(&image, "web/vda", &["--kind", "incremental"]);
}

/// A command without an end was waited for without an end, and a key in the place of its file stood in the log.
#[test]
fn what_is_no_key_is_refused_at_once_and_never_shown() {
    let lab = Lab::new();
    let repo = Repo::encrypted(lab.path("repo"));
    let points = |how: &str, value: &str| repo.without_key().run(args!["points", how, value]);
    let said = points("--key-command", "yes").fails_with(16);
    assert!(said.contains("more than 65536 bytes"), "{said}");
    points("--key-command", &format!("cat {}", repo.key.as_ref().unwrap().display())).ok();
    let secret = fs::read_to_string(repo.key.as_ref().unwrap()).unwrap();
    let secret = secret.lines().find(|line| line.starts_with("AGE-SECRET-KEY-")).unwrap();
    let said = points("--key-file", secret).fails_with(2);
    assert!(!said.contains(secret) && said.contains("in the place of"), "{said}");
    for place in
        ["s3://id:hidden@b/p", "s3://b/p?endpoint=http://u:hidden@h", "s3://b/p?secret=hidden"]
    {
        let said = run(qdelta(args!["points", "--repo", place])).fails_with(2);
        assert!(!said.contains("hidden"), "{said}");
    }
}

/// A host that has the public key alone, and its own folder of state.
struct Host {
    repo: Repo,
    state: PathBuf,
}

impl Host {
    fn new(lab: &Lab, repo: &Repo) -> Self {
        let key = lab.path("host.key");
        repo.run(args!["key", "host", key.as_path()]).ok();
        Self { repo: repo.with_key(&key), state: lab.path("host-state") }
    }

    fn run(&self, words: Vec<OsString>) -> Outcome {
        self.repo.run([words, args!["--state", self.state.as_path()]].concat())
    }

    #[track_caller]
    fn backup(&self, image: &Path) -> serde_json::Value {
        let words = args!["backup", image, "--disk", "web/vda", "--json", "--io", "threads"];
        self.run([words, args!["--format", "raw"]].concat()).ok().json()
    }
}

#[test]
fn a_host_with_the_public_key_alone_adds_increments_and_reads_nothing() {
    let lab = Lab::new();
    let repo = Repo::encrypted(lab.path("repo")).without_ring();
    let host = Host::new(&lab, &repo);
    let image = lab.path("image");
    fs::write(&image, vec![7; 4 << 20]).unwrap();
    assert_eq!(host.backup(&image)["kind"], "full");
    for night in 1..5_u8 {
        patch(&image, u64::from(night) << 18, &[night; 70_000]);
        // The summary is what spares opening the chain; what is known of the archives is enough.
        if night == 3 {
            for file in tree(&host.state) {
                let path = host.state.join(&file);
                if path.extension().is_some_and(|it| it == "summary") {
                    fs::remove_file(path).unwrap();
                }
            }
        }
        let report = host.backup(&image);
        assert_eq!(report["kind"], "incremental", "night {night}");
        assert!(report["bytes_changed"].as_u64().unwrap() <= 3 * 65536, "night {night}");
    }
    assert_eq!(repo.points("web/vda").len(), 5);
    assert_eq!(host.repo.with_key(&lab.path("host.key")).key, host.repo.key);
    let list = host.run(args!["points", "--json"]).ok().json();
    assert_eq!(list["disks"][0]["points"].as_array().unwrap().len(), 5);
    repo.assert_restores_raw(&lab, "web/vda", &image);
    repo.run(args!["verify", "--io", "threads"]).ok();
    // Nothing that it was given, or keeps, opens content.
    for words in [
        args!["restore", "web/vda", lab.path("out")],
        args!["verify"],
        args!["merge", "web/vda@latest..latest"],
        args!["files", "ls", "web/vda"],
        args!["drill"],
        args!["key", "paper"],
        args![
            "key",
            "add",
            "mine",
            "--recipient",
            "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"
        ],
    ] {
        let said = host.run(words).fails_with(16);
        assert!(said.contains("opens none"), "{said}");
    }
    for file in tree(&host.state) {
        let path = host.state.join(file);
        if path.is_file() {
            let bytes = fs::read(&path).unwrap();
            assert!(!bytes.windows(64).any(|window| window == [7; 64]), "{}", path.display());
        }
    }
    // An admin's pin made a full of the next night: what the host knows of the point is enough to build on it, and
    // changes nothing of it.
    repo.run(args!["pin", "web/vda@latest", "--reason", "the audit"]).ok();
    patch(&image, 0, &[8; 100]);
    assert_eq!(host.backup(&image)["kind"], "incremental");
    let list = repo.run(args!["points", "--json"]).ok().json();
    assert_eq!(list["disks"][0]["points"][4]["pins"][0]["reason"], "the audit", "{list}");
    repo.assert_restores_raw(&lab, "web/vda", &image);
    repo.run(args!["unpin", "web/vda@latest"]).sane();
    // A merge has put another archive in the place of the one that the host knows: a full, which says why.
    let points = repo.points("web/vda");
    let (before, last) = (&points[0], &points[3]);
    repo.run(args!["merge", format!("web@{before}..{last}")]).ok();
    let points = repo.points("web/vda");
    repo.run(args!["unpin", format!("web@{}", points[1])]).ok();
    repo.run(args!["merge", format!("web@{}..{}", points[0], points[2])]).ok();
    let words = args!["backup", image.as_path(), "--disk", "web/vda", "--format", "raw", "--json"];
    let outcome = host.run(words);
    assert_eq!(outcome.json()["kind"], "full");
    assert!(
        outcome.stderr.contains("has changed it since this host wrote it"),
        "{}",
        outcome.stderr
    );
    assert_eq!(host.backup(&image)["kind"], "incremental");
    // Its state is lost: a full, and it says why.
    fs::remove_dir_all(&host.state).unwrap();
    let words = args!["backup", image.as_path(), "--disk", "web/vda", "--format", "raw", "--json"];
    let outcome = host.run(words);
    assert_eq!(outcome.code(), Some(4), "{}", outcome.report());
    assert_eq!(outcome.json()["kind"], "full");
    assert!(outcome.stderr.contains("no longer has what it kept"), "{}", outcome.stderr);
    patch(&image, 0, &[9; 100]);
    assert_eq!(host.backup(&image)["kind"], "incremental");
    repo.assert_restores_raw(&lab, "web/vda", &image);
}

#[test]
fn keys_are_added_shown_and_removed() {
    let lab = Lab::new();
    let repo = Repo::encrypted_by_a_passphrase(lab.path("repo")).without_ring();
    let (admin, recipient) = keygen(&lab, "admin.key");
    let names = |value: &serde_json::Value| -> Vec<String> {
        let keys = value["keys"].as_array().unwrap().iter();
        keys.map(|key| format!("{} {}", key["name"], key["kinds"])).collect()
    };
    let list = repo.without_key().run(args!["key", "list", "--json"]).ok().json();
    assert_eq!(names(&list), [r#""passphrase" ["scrypt"]"#]);
    let add = || args!["key", "add", "anna", "--recipient", recipient.as_str(), "--json"];
    repo.with_key(&admin).run(add()).fails_with(16);
    let added = repo.run(add()).ok().json();
    assert_eq!(names(&added), [r#""anna" ["X25519"]"#, r#""passphrase" ["scrypt"]"#]);
    repo.run(add()).fails_with(7);
    let verified = repo.with_key(&admin).run(args!["key", "verify", "--json"]).ok().json();
    assert_eq!(verified["opened"], serde_json::json!(["anna"]));
    let paper = repo.with_key(&admin).run(args!["key", "paper"]).ok().text();
    let secret = fs::read_to_string(repo.key.as_ref().unwrap()).unwrap();
    assert!(paper.contains(secret.lines().last().unwrap()) && paper.contains('█'), "{paper}");
    repo.without_key().run(args!["key", "remove", "anna"]).ok();
    repo.with_key(&admin).run(args!["key", "verify"]).fails_with(16);
    let said = repo.run(args!["key", "remove", "passphrase"]).fails_with(2);
    assert!(said.contains("the last key"), "{said}");
    // What is no key does not stand for one.
    fs::write(repo.path.join("keys/junk.age"), "junk").unwrap();
    repo.run(args!["key", "remove", "passphrase"]).fails_with(2);
    repo.run(args!["key", "remove", "nobody"]).fails_with(6);
    let secret = secret.lines().last().unwrap();
    let said = repo.run(args!["key", "add", "x", "--recipient", secret]).fails_with(2);
    assert!(!said.contains(secret), "a secret was shown: {said}");
    for bad in ["../x", "", ".x", "a/b"] {
        let words = args!["key", "add", bad, "--recipient", recipient.as_str()];
        repo.run(words).fails_with(2);
    }
}

/// Whoever can write there puts the repository back to what it was two nights before.
#[test]
fn a_repository_that_went_back_is_noticed() {
    let lab = Lab::new();
    let repo = Repo::encrypted(lab.path("repo")).without_ring();
    let image = filled(&lab, "web", "", 1 << 20, 5);
    repo.backup(&image, "web/vda", &[]);
    let old = lab.path("old");
    crate::harness::files::copy_tree(&repo.path, &old);
    repo.backup(&image, "web/vda", &[]);
    let said =
        |outcome: Outcome| outcome.ok().stderr.contains("was there when this host looked last");
    let backup = || repo.backup_run(&image, "web/vda", &[]);
    assert!(!said(backup()));
    fs::remove_dir_all(&repo.path).unwrap();
    fs::rename(old, &repo.path).unwrap();
    assert!(said(backup()), "an earlier state was taken for today's");
    assert!(!said(backup()), "it is said once");
}
