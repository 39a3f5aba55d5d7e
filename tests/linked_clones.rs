//! Guests whose images lie over a template, with their moment made by an overlay: QEMU's bitmap and what the host has kept
//! of the image's allocation tell what has changed, whatever happens to the image; or everything is read.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use qdelta::formats::allocation::Allocation;
use serde_json::{Value, json};

use crate::harness::content::{self, Random};
use crate::harness::disk::Disk;
use crate::harness::guest::{Guest, Host};
use crate::harness::images::{create, create_raw, guest_io, oracle, overlay, qemu_img};
use crate::harness::repo::{number, point_of};
use crate::harness::run::script;
use crate::harness::story::Story;
use crate::harness::{args, run, seeds, tool};
use crate::trackers::histories::Uses;

const MIB: u64 = 1 << 20;

/// The guest `web`, of whose first disk points are made, and the command that makes the moment.
struct Scene<'a> {
    host: &'a Host,
    guest: Guest<'a>,
}

/// What the command leaves in an image is done by this program: it plays QEMU, too.
const COMMAND: &str = r#"#!/bin/bash
request=$(cat)
cd "$(dirname "$0")" || exit 9
case $1 in
snapshot | release)
    echo "$request" >want.new && mv want.new want
    for i in {1..3000}; do [ -e want ] || break; sleep 0.02; done
    cat answer ;;
*) echo '{"protocol": 2}' ;;
esac
"#;

impl<'a> Scene<'a> {
    fn new(host: &'a Host) -> Self {
        let guest = Guest::define(host, host.lab.dir());
        script(&host.lab.path("command"), COMMAND);
        Self { host, guest }
    }

    /// A guest whose first disk is an image with clusters of this size over a template of 8 MiB.
    fn over_template(host: &'a Host, cluster: &str) -> Self {
        let scene = Self::new(host);
        for (name, pattern) in [("template.raw", 9), ("other.raw", 8)] {
            let template = host.lab.path(name);
            create_raw(&template, 8 * MIB);
            guest_io(&template, "raw", &[format!("write -q -P {pattern} 0 8M")]);
        }
        let options = format!("cluster_size={cluster}");
        overlay(&scene.guest.vda(), "template.raw", "raw", None, &options);
        scene.write("write -q -P 1 0 1M");
        scene
    }

    /// The guest is stopped, and this is done to its disk.
    fn write(&self, act: &str) {
        guest_io(&self.guest.vda(), "qcow2", &[act.to_owned()]);
    }

    /// The image gets this template, and is not told so.
    fn rebase(&self, template: &str) {
        let image = self.guest.vda();
        qemu_img(args!["rebase", "-u", "-b", template, "-F", "raw", image.as_path()]).ok();
    }

    /// Makes a point while the guest runs, which does `acts` while it is read; gives what is said of the disk.
    #[track_caller]
    fn backup(&mut self, acts: &[String], options: &[&str], expected: &Path) -> Value {
        self.guest.start("running");
        let (host, guest) = (self.host, &mut self.guest);
        let is_done = AtomicBool::new(false);
        let command = host.lab.path("command");
        let mut all = vec!["--domain", "web", "--exclude", "vdb", "--freeze-max", "60000"];
        all.extend(["--snapshot-command", command.to_str().unwrap()]);
        all.extend(options);
        let report = thread::scope(|scope| {
            let is_done = &is_done;
            let player = scope.spawn(move || play(host, guest, acts, expected, is_done));
            let done = host.backup(&all);
            is_done.store(true, Ordering::Relaxed);
            player.join().unwrap();
            done.ok().json()
        });
        self.guest.stop();
        report["domains"][0]["result"]["disks"][0].clone()
    }

    /// The same by this tracker; the restored disk must be what the image was at the moment.
    #[track_caller]
    fn tracked(&mut self, tracker: &str, options: &[&str]) -> Value {
        let expected = self.host.lab.path("expected.raw");
        let acts = ["write -q -P 6 2M 100k".to_owned()];
        let done = self.backup(&acts, options, &expected);
        assert_eq!(done["tracker"], tracker, "{done:#}");
        self.host.repo.assert_restores_raw(&self.host.lab, "web/vda", &expected);
        done
    }

    /// Where this host keeps what the image had allocated.
    fn allocation(&self) -> PathBuf {
        self.host.repo.frozen_mark("web").with_file_name("web+vda.allocated")
    }
}

/// Plays QEMU and the command until the backup is done.
fn play(
    host: &Host,
    guest: &mut Guest<'_>,
    acts: &[String],
    expected: &Path,
    is_done: &AtomicBool,
) {
    let (want, answer) = (host.lab.path("want"), host.lab.path("answer"));
    while !is_done.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(5));
        let Ok(request) = fs::read(&want) else { continue };
        let request: Value = serde_json::from_slice(&request).unwrap();
        let disk = &request["disks"][0];
        let said = match request["verb"].as_str().unwrap() {
            "snapshot" => {
                fs::write(host.lab.path("asked"), disk["marks"].to_string()).unwrap();
                let mut leaves = Value::Null;
                guest.leave_after(0, |image| {
                    if begin(host, image, disk) {
                        leaves = disk["bitmap"].clone();
                    }
                    oracle(args!["-f", "qcow2", image], expected);
                });
                acts.iter().for_each(|act| guest.does(0, act));
                let file = &disk["files"][0];
                let files = json!([{"file": file, "read": file}]);
                json!({"protocol": 2, "disks": [{"disk": "vda", "files": files, "leaves": leaves}]})
            }
            _ => {
                let keep = if request["kept"] == true { &disk["bitmap"] } else { &disk["since"] };
                guest.come_back(0, |image| forget(image, keep));
                json!({"protocol": 2})
            }
        };
        fs::write(&answer, said.to_string()).unwrap();
        fs::remove_file(&want).unwrap();
    }
}

/// A bitmap begins that has its marks, and beside it its end. Not in every image there can be one.
fn begin(host: &Host, image: &Path, disk: &Value) -> bool {
    let name = disk["bitmap"].as_str().unwrap();
    let (end, size) = (format!("{name}.end"), disk["size"].as_u64().unwrap());
    let marks: Vec<u64> = serde_json::from_value(disk["marks"].clone()).unwrap();
    if qemu_img(args!["bitmap", "--add", "-g", "64K", image, name]).code() != Some(0) {
        return false;
    }
    qemu_img(args!["bitmap", "--add", "-g", "64K", "--disable", image, end.as_str()]).ok();
    for (name, bytes) in [(name, marks), (end.as_str(), vec![size - 1])] {
        mark(host, image, name, size, &bytes);
    }
    true
}

/// Gives a bitmap bits, as writes at these bytes would.
fn mark(host: &Host, image: &Path, name: &str, size: u64, bytes: &[u64]) {
    let memory = host.lab.path("marks.qcow2");
    create(&memory, "", size);
    qemu_img(args!["bitmap", "--add", memory.as_path(), "marks"]).ok();
    let writes: Vec<String> = bytes.iter().map(|at| format!("write -q {at} 1")).collect();
    guest_io(&memory, "qcow2", &writes);
    let source = args!["bitmap", "--merge", "marks", "-b", memory.as_path(), "-F", "qcow2"];
    qemu_img([source, args![image, name]].concat()).ok();
}

/// Removes all bitmaps of backups but one.
fn forget(image: &Path, keep: &Value) {
    let info = qemu_img(args!["info", "--output=json", image]).ok().json();
    let bitmaps = info["format-specific"]["data"]["bitmaps"].as_array().cloned();
    for bitmap in bitmaps.unwrap_or_default() {
        let name = bitmap["name"].as_str().unwrap();
        let base = name.trim_end_matches(".end").trim_end_matches(".map");
        if keep.as_str() != Some(base) {
            qemu_img(args!["bitmap", "--remove", image, name]).ok();
        }
    }
}

/// Such a night read the whole disk. What is read is what has changed, and the sample.
#[test]
fn a_night_costs_what_has_changed() {
    let host = Host::new();
    let mut scene = Scene::over_template(&host, "64k");
    scene.tracked("scan", &[]);
    scene.write("write -q -P 2 4M 100k");
    let done = scene.tracked("bitmap", &["--sample", "0"]);
    // What the guest wrote while the first point was read, and since; the marks and the end are claimed, too.
    let (changed, read) = (number(&done, "bytes_changed"), number(&done, "bytes_read"));
    assert_eq!(changed, 256 << 10, "{done:#}");
    assert!(read <= changed + (5 << 16), "{done:#}");
    // The guest is stopped, and qdelta leaves the bitmap and its map itself; then it runs again.
    scene.write("write -q -P 3 6M 64k");
    let words = ["--domain", "web", "--exclude", "vdb", "--sample", "0"];
    let done = host.backup(&words).ok().json();
    assert_eq!(done["domains"][0]["result"]["disks"][0]["tracker"], "bitmap", "{done:#}");
    scene.write("write -q -P 4 7M 64k");
    scene.tracked("bitmap", &["--sample", "0"]);
    host.repo.verify();
}

/// What a guest does not write of a cluster comes from the template, and what it reads may be copied from there: no
/// bitmap shows that the template was another one for a while. Nor does it show what a commit takes away.
#[test]
fn what_no_bitmap_records_is_claimed() {
    for cluster in ["4k", "2M"] {
        let host = Host::new();
        let mut scene = Scene::over_template(&host, cluster);
        scene.tracked("scan", &[]);
        scene.rebase("other.raw");
        scene.write("write -q -P 2 4M 512");
        let read = args!["-C", "-f", "qcow2", "-c", "read -q 5M 100k"];
        run(tool("qemu-io", [read, args![scene.guest.vda()]].concat())).ok();
        scene.rebase("template.raw");
        scene.tracked("bitmap", &["--sample", "0"]);
        // A commit empties the image. It went into a copy of the template.
        let (template, aside) = (host.lab.path("template.raw"), host.lab.path("aside.raw"));
        fs::rename(&template, &aside).unwrap();
        fs::copy(&aside, &template).unwrap();
        qemu_img(args!["commit", "-q", scene.guest.vda()]).ok();
        fs::rename(&aside, &template).unwrap();
        scene.tracked("bitmap", &["--sample", "0"]);
    }
}

#[test]
fn what_can_t_be_proved_is_read_as_a_whole() {
    let host = Host::new();
    let mut scene = Scene::over_template(&host, "64k");
    scene.tracked("scan", &[]);
    let bytes = fs::read(scene.allocation()).unwrap();
    let refused = |scene: &mut Scene<'_>, words: &str| {
        scene.write("write -q -P 2 4M 100k");
        let done = scene.tracked("scan", &["--sample", "0"]);
        assert!(done["refused"].to_string().contains(words), "{done:#}");
        // And one night later it is believed again.
        scene.write("write -q -P 3 5M 100k");
        scene.tracked("bitmap", &["--sample", "0"]);
    };
    // The state of this host is lost, damaged, or of an earlier night.
    let words = "kept in the state folder of the host";
    fs::remove_file(scene.allocation()).unwrap();
    refused(&mut scene, words);
    let mut damaged = fs::read(scene.allocation()).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    fs::write(scene.allocation(), damaged).unwrap();
    refused(&mut scene, words);
    fs::write(scene.allocation(), bytes).unwrap();
    refused(&mut scene, words);
    // Units that the disk can't have ended the program, or were gone through one by one for hours.
    let bytes = fs::read(scene.allocation()).unwrap();
    let mut odd = Allocation::decode(&bytes).unwrap();
    odd.units.insert_range(8 * MIB / odd.unit..1 << 28);
    odd.units.insert(1 << 60);
    fs::write(scene.allocation(), odd.encode()).unwrap();
    refused(&mut scene, words);
    // The disk lost its end, and got it back.
    let image = scene.guest.vda();
    for size in ["6M", "8M"] {
        qemu_img(args!["resize", "-q", "--shrink", image.as_path(), size]).ok();
    }
    refused(&mut scene, "the disk was shrunk");
    // The template was written to.
    guest_io(&host.lab.path("template.raw"), "raw", &["write -q -P 5 7M 4k".to_owned()]);
    refused(&mut scene, "a backing file has changed");
}

/// Somebody takes out of a bitmap what the guest has written, and leaves its marks: nothing shows that but the sample.
#[test]
fn a_planted_miss_is_caught() {
    let host = Host::new();
    let mut scene = Scene::over_template(&host, "64k");
    // What is allocated then and now shows nothing; and no mark stands in all of it.
    scene.write("write -q -P 1 0 1M");
    let first = scene.tracked("scan", &[]);
    let (image, name) = (scene.guest.vda(), first["anchor"].as_str().unwrap().to_owned());
    scene.write("write -q -P 2 0 1M");
    let marks: Vec<u64> =
        serde_json::from_slice(&fs::read(host.lab.path("asked")).unwrap()).unwrap();
    qemu_img(args!["bitmap", "--clear", image.as_path(), name.as_str()]).ok();
    mark(&host, &image, &name, 8 * MIB, &marks);
    let done = scene.tracked("scan", &[]);
    assert!(done["refused"].to_string().contains("its claim is wrong"), "{done:#}");
    assert!(done["warnings"].to_string().contains("its claim is wrong"), "{done:#}");
}

const LIVES: u64 = 3;
const POINTS: u64 = 5;

/// A life of such a guest: what happens to its image between two points, an admin's tools do while it is stopped. Gives
/// how many points were made by a bitmap over a backing file.
fn live(seed: u64, uses: &mut Uses) -> u64 {
    let host = Host::new();
    let mut scene = Scene::new(&host);
    let lab = &host.lab;
    let mut story = Story { seed, told: Vec::new() };
    let mut random = Random::new(seed);
    let mut disk = Disk::over_another(scene.guest.vda(), lab, &mut random);
    let mut guest = content::Guest::new(lab.dir(), random.next());
    guest_io(&disk.path, "qcow2", &guest.fill(disk.size, 3));
    story.tell(format!("{} bytes, {}, over {:?}", disk.size, disk.options, disk.backing));
    let (mut points, mut happened, mut has_anchor) = (Vec::new(), Vec::new(), false);
    let mut proved = 0;
    for round in 0..POINTS {
        let expected = lab.path(format!("expected{round}.raw"));
        let mut options = vec!["--sample", "0", "--same-guest"];
        if round > 0 {
            options.extend(["--kind", random.pick(&["auto", "incremental", "differential"])]);
        }
        let acts: Vec<String> = (0..random.below(4)).map(|_| guest.act(disk.size)).collect();
        story.tell(format!("a point, and meanwhile {}", acts.join("; ")));
        let done = scene.backup(&acts, &options, &expected);
        story.tell(format!("backup {done}"));
        if round > 0 {
            uses.add(&done, &happened);
        }
        proved += u64::from(done["tracker"] == "bitmap" && disk.backing.is_some());
        points.push((point_of(&done), expected));
        happened = vec!["the guest wrote".to_owned()];
        if done["anchor"].is_null() && has_anchor {
            happened.push("the old anchor is removed".to_owned());
        }
        has_anchor = done["anchor"].is_string();
        for _ in 0..random.below(3) {
            let what = match random.below(8) {
                0 => match fs::remove_file(scene.allocation()) {
                    Ok(()) => "what this host knows beside the bitmap is lost".to_owned(),
                    Err(_) => "this host knows nothing".to_owned(),
                },
                _ => disk.change(lab, &mut guest),
            };
            story.tell(what.clone());
            happened.push(what);
        }
    }
    for (id, expected) in &points {
        story.tell(format!("restore {id}"));
        host.repo.assert_restores_raw(lab, &format!("web/vda@{id}"), expected);
    }
    proved
}

#[test]
fn random_lives_of_linked_clones() {
    let mut uses = Uses::default();
    let seeds = seeds(0xa0_0000, LIVES);
    let proved: u64 = seeds.iter().map(|seed| live(*seed, &mut uses)).sum();
    eprintln!("{} lives, {proved} points by a bitmap over a backing file: {uses:#?}", seeds.len());
    // A tracker that is always refused would pass every life.
    assert!(std::env::var_os("QDELTA_SEED").is_some() || proved > 0, "{uses:?}");
}
