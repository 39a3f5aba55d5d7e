//! The tracker `live-bitmap`: what a server tells of a bitmap of QEMU's is believed as far as it can be proved,
//! and whatever happens to a disk, an increment restores exactly.

use std::collections::BTreeMap;

use super::*;
use crate::harness::content::{Guest, Random};
use crate::harness::disk::Disk;
use crate::harness::images::create;
use crate::harness::repo::{number, point_of};
use crate::harness::run::run;
use crate::harness::seeds;
use crate::harness::story::Story;

/// An image of 8 MiB with 4 MiB of data, a repository, and a server when it is asked.
struct Scene {
    lab: Lab,
    repo: Repo,
    image: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let lab = Lab::new();
        let repo = Repo::init(lab.path("repo")).without_ring();
        let image = lab.path("disk.qcow2");
        create(&image, "", 8 * MIB);
        let scene = Self { lab, repo, image };
        scene.guest(&["write -q -P 1 0 4M"]);
        scene
    }

    fn guest(&self, acts: &[&str]) {
        let acts: Vec<String> = acts.iter().map(|act| (*act).to_owned()).collect();
        guest_io(&self.image, "qcow2", &acts);
    }

    /// QEMU begins a bitmap.
    fn begin(&self, name: &str) {
        begin(&self.image, name).ok();
    }

    /// A server that tells of a bitmap.
    fn serve(&self, bitmap: &str) -> Server {
        Server::qemu(&self.lab, &self.image, "qcow2", &["-t", "-r", "-B", bitmap]).unwrap()
    }

    /// A backup by this server; the restored disk must be what the image is.
    #[track_caller]
    fn backup(&self, server: &Server, options: &[&str]) -> Value {
        let done = self.repo.backup(&server.uri("vda"), "disk", options);
        self.assert_restores();
        done
    }

    #[track_caller]
    fn assert_restores(&self) {
        let expected = self.lab.path("expected.raw");
        oracle(args!["-U", "-f", "qcow2", self.image.as_path()], &expected);
        self.repo.assert_restores_raw(&self.lab, "disk", &expected);
    }

    /// A first point at which the bitmap `a` begins.
    fn with_a_point() -> Self {
        let scene = Self::new();
        scene.begin("a");
        let server = scene.serve("a");
        let done = scene.backup(&server, &["--live-bitmap", "a", "--sample", "0"]);
        assert_eq!((&done["anchor"], &done["warnings"]), (&"a".into(), &serde_json::json!([])));
        scene
    }
}

fn begin(image: &Path, name: &str) -> Outcome {
    qemu_img(args!["bitmap", "--add", image, name])
}

#[test]
fn what_was_written_is_read_and_nothing_else() {
    let scene = Scene::with_a_point();
    scene.guest(&["write -q -P 2 1M 100k", "write -q -z 3M 64k", "discard -q 2M 64k"]);
    scene.begin("b");
    let options = ["--live-bitmap", "b", "--sample", "0"];
    let done = scene.backup(&scene.serve("a"), &options);
    assert_eq!((&done["tracker"], &done["anchor"]), (&"live-bitmap".into(), &"b".into()));
    assert!(done["why"].as_str().unwrap().starts_with("trusted: the bitmap a has"), "{done:#}");
    // The list of points did not say so.
    let list = scene.repo.run(args!["points"]).ok().text();
    assert_eq!(list.matches("live-bitmap, trusted").count(), 1, "{list}");
    // Zeros and what was given up are not read.
    assert_eq!(number(&done, "bytes_read"), 128 << 10, "{done:#}");
    assert_eq!(number(&done, "bytes_changed"), 256 << 10, "{done:#}");
    let anchors = scene.repo.run(args!["anchors", "disk", "--json"]).ok().json();
    let anchor = &anchors["anchors"][0];
    assert_eq!((&anchor["name"], &anchor["state"]), (&"b".into(), &"current".into()));
    let said = scene.repo.run(args!["anchors", "disk", "--remove", "b"]).fails_with(2);
    assert!(said.contains("a bitmap of QEMU's"), "{said}");
    scene.repo.run(args!["anchors", "disk", "--remove-all"]).ok();
    // With the net below, and by a differential.
    scene.guest(&["write -q -P 3 7M 64k"]);
    let done = scene.backup(&scene.serve("b"), &["--kind", "differential", "--live-bitmap", "b"]);
    assert_eq!(done["tracker"], "live-bitmap", "{done:#}");
    assert_eq!(number(&done, "bytes_changed"), 320 << 10, "{done:#}");
    assert!(number(&done, "bytes_sampled") > 0);
    scene.repo.verify();
}

/// A bitmap that is named again counts on from the point at which it began.
#[test]
fn a_bitmap_that_is_named_again_counts_on() {
    let scene = Scene::with_a_point();
    for number in 1..4 {
        scene.guest(&[&format!("write -q -P {number} {number}M 64k")]);
        let done = scene.backup(&scene.serve("a"), &["--live-bitmap", "a", "--sample", "0"]);
        assert_eq!((&done["tracker"], &done["anchor"]), (&"live-bitmap".into(), &"a".into()));
        assert_eq!(done["warnings"], serde_json::json!([]));
        assert_eq!(self::number(&done, "bytes_read"), number * (64 << 10), "{done:#}");
    }
    // Its first point is merged into a later one: nothing shows what changed in between.
    let points = scene.repo.points("disk");
    let range = format!("disk@{}..{}", points[0], points[2]);
    scene.repo.run(args!["merge", range]).ok();
    let done = scene.backup(&scene.serve("a"), &["--live-bitmap", "a"]);
    assert!(reason(&done, "live-bitmap").contains("from which no archives lead"), "{done:#}");
    assert_eq!(done["anchor"], Value::Null);
}

/// With the older state of a disk comes its bitmap of then: what the points in between had changed is not in it.
#[test]
fn an_older_state_with_its_bitmap_is_noticed() {
    let scene = Scene::with_a_point();
    let older = scene.lab.path("older");
    scene.guest(&["write -q -P 5 1M 64k"]);
    std::fs::copy(&scene.image, &older).unwrap();
    scene.guest(&["write -q -P 6 2M 64k"]);
    let options = ["--live-bitmap", "a", "--sample", "0"];
    scene.backup(&scene.serve("a"), &options);
    std::fs::copy(&older, &scene.image).unwrap();
    let done = scene.backup(&scene.serve("a"), &options);
    assert!(reason(&done, "live-bitmap").contains("no more has all"), "{done:#}");
    assert_eq!(number(&done, "bytes_changed"), 64 << 10);
}

#[test]
fn what_can_t_be_proved_is_refused_with_the_reason() {
    let scene = Scene::with_a_point();
    let refused = |server: &Server, options: &[&str]| {
        let done = scene.backup(server, options);
        assert_eq!(done["tracker"], "scan", "{done:#}");
        reason(&done, "live-bitmap")
    };
    scene.begin("b");
    let forced = scene.repo.backup_run(
        &scene.serve("b").uri("vda"),
        "disk",
        &["--track", "live-bitmap", "--live-bitmap", "b"],
    );
    let said = forced.fails_with(2);
    assert!(said.contains("no bitmap 'a'") && said.contains("tells of 'b'"), "{said}");
    let server = Server::qemu(&scene.lab, &scene.image, "qcow2", &["-t", "-r"]).unwrap();
    let why = refused(&server, &["--live-bitmap", "b"]);
    assert!(why.contains("no bitmap 'a'") && why.contains("tells of none"), "{why}");
    // No bitmap was named, whether or not the one before is there.
    let done = scene.backup(&server, &[]);
    assert!(reason(&done, "live-bitmap").contains("no bitmap is named"), "{done:#}");
    assert_eq!(done["warnings"][0]["code"], "no-anchor", "{done:#}");
    let why = refused(&server, &[]);
    assert_eq!(why, "the point before left nothing to compare with");
    drop(server);
    let said = scene.repo.backup_run(&scene.image, "disk", &["--live-bitmap", "c"]).fails_with(2);
    assert!(said.contains("--anchor bitmap"), "{said}");
}

/// A bitmap that was cleared has lost what was written before: the sample finds that.
#[test]
fn a_planted_miss_is_caught() {
    let scene = Scene::with_a_point();
    scene.guest(&["write -q -P 9 1M 64k"]);
    qemu_img(args!["bitmap", "--clear", scene.image.as_path(), "a"]).ok();
    let options = ["--live-bitmap", "a"];
    let done = scene.backup(&scene.serve("a"), &options);
    assert_eq!(done["tracker"], "scan", "{done:#}");
    assert_eq!(done["warnings"][0]["code"], "wrong-claim", "{done:#}");
    assert!(reason(&done, "live-bitmap").contains("its claim is wrong"), "{done:#}");
    // It is not believed again, and no backup fails for that.
    for _ in 0..2 {
        let done = scene.backup(&scene.serve("a"), &options);
        assert_eq!((&done["tracker"], &done["anchor"]), (&"scan".into(), &Value::Null));
        assert_eq!(done["warnings"][0]["code"], "no-anchor", "{done:#}");
        assert!(done["warnings"][0]["text"].as_str().unwrap().contains("a new name"), "{done:#}");
    }
    scene.begin("b");
    let done = scene.backup(&scene.serve("a"), &["--live-bitmap", "b"]);
    assert_eq!(done["anchor"], "b", "{done:#}");
}

/// A script that clears the bitmap after each of its own backups took writes out of it: an increment was wrong
/// without a word. A bitmap that counts on must still have all that had changed before.
#[test]
fn a_bitmap_that_lost_what_it_had_is_refused_without_a_sample() {
    let scene = Scene::with_a_point();
    let options = ["--live-bitmap", "a", "--sample", "0"];
    scene.guest(&["write -q -P 9 1M 64k"]);
    assert_eq!(scene.backup(&scene.serve("a"), &options)["tracker"], "live-bitmap");
    scene.guest(&["write -q -P 8 2M 64k"]);
    qemu_img(args!["bitmap", "--clear", scene.image.as_path(), "a"]).ok();
    scene.guest(&["write -q -P 7 3M 64k"]);
    let done = scene.backup(&scene.serve("a"), &options);
    assert!(reason(&done, "live-bitmap").contains("no more has all"), "{done:#}");
    assert_eq!((&done["tracker"], &done["anchor"]), (&"scan".into(), &Value::Null));
}

/// Over a longer backing file, QEMU writes zeros into the rest of the last cluster of a disk that grows again, and
/// records them in no bitmap: an increment left the bytes of before there.
#[test]
fn the_last_cluster_of_a_disk_that_shrank_and_grew_is_read() {
    let lab = Lab::new();
    let repo = Repo::init(lab.path("repo")).without_ring();
    let (base, image) = (lab.path("base.qcow2"), lab.path("disk.qcow2"));
    create(&base, "", 9 * MIB);
    guest_io(&base, "qcow2", &["write -q -P 9 0 9M".to_owned()]);
    let over = args!["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base.as_path()];
    qemu_img([over, args![image.as_path(), "8M"]].concat()).ok();
    let scene = Scene { lab, repo, image };
    scene.guest(&["write -q -P 1 0 8M"]);
    scene.begin("a");
    scene.backup(&scene.serve("a"), &["--live-bitmap", "a"]);
    let image = scene.image.as_path();
    qemu_img(args!["resize", "-q", "--shrink", image, (8 * MIB - 61440).to_string()]).ok();
    qemu_img(args!["resize", "-q", image, "8M"]).ok();
    scene.begin("b");
    let done = scene.backup(&scene.serve("a"), &["--live-bitmap", "b", "--sample", "0"]);
    assert_eq!(done["tracker"], "live-bitmap", "{done:#}");
    assert_eq!(number(&done, "bytes_changed"), 64 << 10);
}

/// How often which tracker was used, and for what `live-bitmap` was refused.
type Uses = BTreeMap<String, u64>;

/// Why the tracker may be refused, and what must have happened since the point before.
const CAUSES: [(&str, &[&str]); 6] = [
    // Without a server that tells, or in another image.
    ("has no bitmap", &["killed", "convert", "overlay", "pull", "older copy", "removed", "commit"]),
    ("left nothing to compare with", &["no bitmap began"]),
    ("no bitmap began at the point before", &["no bitmap began"]),
    ("from which no archives lead", &["full", "differential"]),
    ("no bitmap is named", &["no bitmap was named"]),
    // Any time since it began.
    ("no more has all", &["older copy", "resize"]),
];

const LIVES: u64 = 6;
const POINTS: u64 = 6;

fn live(seed: u64, uses: &mut Uses) {
    let lab = Lab::new();
    let mut story = Story { seed, told: Vec::new() };
    let mut random = Random::new(seed);
    let mut disk = Disk::new(&lab, &mut random, "qcow2");
    let mut guest = Guest::new(lab.dir(), random.next());
    guest_io(&disk.path, "qcow2", &guest.fill(disk.size, 3));
    story.tell(format!("{} bytes, {}, over {:?}", disk.size, disk.options, disk.backing));
    let repo = Repo::init(lab.path("repo")).without_ring();
    let block = random.pick(&["4K", "64K", "1M"]);
    let mut points = Vec::new();
    let mut happened: Vec<String> = Vec::new();
    let mut since_began: Vec<String> = Vec::new();
    // The bitmap that the latest point has as its anchor.
    let mut counted: Option<String> = None;
    for round in 0..POINTS {
        let kind = match round {
            0 => "full",
            _ => random.pick(&["auto", "incremental", "incremental", "differential"]),
        };
        let fresh = format!("b{round}");
        // Nothing shows it behind a server: the admin must know, and trust no bitmap.
        let is_told = happened.iter().any(|it| it.contains("over another backing file"));
        let begun = random.below(4) > 0 && !is_told && begin(&disk.path, &fresh).code() == Some(0);
        let mut options = vec!["--kind", kind, "--sample", "0"];
        let again = counted.clone().filter(|_| random.below(4) > 0 && !is_told);
        match begun.then_some(fresh.as_str()).or(again.as_deref()) {
            Some(name) => options.extend(["--live-bitmap", name]),
            None => happened.push("no bitmap was named".to_owned()),
        }
        since_began.append(&mut happened.clone());
        if kind == "full" {
            options.extend(["--block-size", block]);
        }
        let with = |bitmap: &str| {
            // Before qemu-nbd finds out that there is none, it listens.
            if !can_count(&disk.path, bitmap) {
                return None;
            }
            Server::qemu(&lab, &disk.path, "qcow2", &["-t", "-r", "-e", "4", "-B", bitmap])
        };
        let server = counted.as_deref().and_then(with);
        let server = server.or_else(|| Server::qemu(&lab, &disk.path, "qcow2", &["-t", "-r"]));
        let Some(server) = server else { break };
        let expected = lab.path(format!("expected{round}.raw"));
        let converted = args!["convert", "-U", "-f", "qcow2", "-O", "raw", disk.path.as_path()];
        if qemu_img([converted, args![expected.as_path()]].concat()).code() != Some(0) {
            // Killed while it discarded, QEMU can't read a compressed cluster any more.
            let _ = repo.backup_run(&server.uri("vda"), "disk", &options).fails_with(1);
            break;
        }
        let done = repo.backup(&server.uri("vda"), "disk", &options);
        drop(server);
        story.tell(format!("backup {done}"));
        *uses.entry(done["tracker"].as_str().unwrap().to_owned()).or_default() += 1;
        if kind != "full" && done["tracker"] == "scan" {
            let why = reason(&done, "live-bitmap");
            let known = CAUSES.iter().find(|(words, _)| why.contains(words));
            let (words, causes) = known.unwrap_or_else(|| panic!("nobody foresaw: {why}"));
            let is_cause = |what: &String| causes.iter().any(|cause| what.contains(cause));
            let all = if *words == "no more has all" { &since_began } else { &happened };
            assert!(all.iter().any(is_cause), "{why}, but all that happened is {all:?}");
            *uses.entry((*words).to_owned()).or_default() += 1;
        }
        counted = done["anchor"].as_str().map(str::to_owned);
        if counted.as_deref() == Some(fresh.as_str()) {
            since_began.clear();
        }
        points.push((point_of(&done), expected));
        happened = vec![kind.to_owned()];
        if counted.is_none() {
            happened.push("no bitmap began".to_owned());
        }
        for _ in 0..random.below(4) {
            let what = match guest.random.below(8) {
                0 => kill_a_writer(&disk, &mut guest),
                1 => put_an_older_copy_in_place(&lab, &mut disk),
                2 => remove_a_bitmap(&disk, counted.as_deref()),
                _ => disk.change(&lab, &mut guest),
            };
            story.tell(what.clone());
            happened.push(what);
        }
    }
    for (id, expected) in &points {
        story.tell(format!("restore {id}"));
        repo.assert_restores_raw(&lab, &format!("disk@{id}"), expected);
    }
}

/// Whether QEMU can tell what a bitmap in an image has.
fn can_count(image: &Path, name: &str) -> bool {
    let info = qemu_img(args!["info", "-U", "--output=json", image]).ok().json();
    let bitmaps = info["format-specific"]["data"]["bitmaps"].as_array().cloned();
    bitmaps.unwrap_or_default().iter().any(|bitmap| {
        let is_in_use = bitmap["flags"].as_array().unwrap().contains(&"in-use".into());
        bitmap["name"] == name && !is_in_use
    })
}

fn kill_a_writer(disk: &Disk, guest: &mut Guest) -> String {
    use std::io::Write;
    let act = guest.act(disk.size);
    let mut command = tool("qemu-io", args!["-f", "qcow2", "-d", "unmap", disk.path.as_path()]);
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null());
    let mut child = command.stderr(std::process::Stdio::null()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let _ = writeln!(stdin, "{act}\nflush");
    std::thread::sleep(Duration::from_millis(20 + guest.random.below(40)));
    child.kill().unwrap();
    child.wait().unwrap();
    format!("killed while it did {act}")
}

fn put_an_older_copy_in_place(lab: &Lab, disk: &mut Disk) -> String {
    let older = lab.path("older.qcow2");
    if older.exists() && disk.backing.is_none() && disk.is_as_it_was() {
        std::fs::rename(&older, &disk.path).unwrap();
        return format!("an older copy is put in its place: {}", disk.look_again());
    }
    run(tool("cp", args!["--sparse=always", disk.path.as_path(), older.as_path()])).ok();
    disk.remember();
    "a copy is put aside".to_owned()
}

fn remove_a_bitmap(disk: &Disk, name: Option<&str>) -> String {
    let Some(name) = name else { return "there is no bitmap".to_owned() };
    match qemu_img(args!["bitmap", "--remove", disk.path.as_path(), name]).code() {
        Some(0) => format!("the bitmap {name} is removed"),
        _ => format!("the bitmap {name} is gone already"),
    }
}

#[test]
fn random_lives_of_disks_with_live_bitmaps() {
    let mut uses = Uses::new();
    let seeds = seeds(0x90_0000, LIVES);
    for seed in &seeds {
        live(*seed, &mut uses);
    }
    eprintln!("{} lives: {uses:#?}", seeds.len());
    let alone = std::env::var_os("QDELTA_SEED").is_some();
    assert!(alone || uses.contains_key("live-bitmap") && uses.contains_key("scan"), "{uses:?}");
}
