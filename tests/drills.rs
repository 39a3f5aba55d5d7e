//! Drills: how far each guest comes, and that whatever is broken fails at its own rung.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::cli::json::compare;
use crate::harness::content::Random;
use crate::harness::files::unmount;
use crate::harness::guest::{Guest, Host};
use crate::harness::images::{create_raw, patch};
use crate::harness::repo::Repo;
use crate::harness::run::{self, as_root, finish, script, start};
use crate::harness::{Lab, Outcome, args, qdelta, tool};

const MIB: u64 = 1 << 20;

/// A repository with a state folder of its own: drills are remembered there.
struct Scene {
    lab: Lab,
    repo: Repo,
}

impl Scene {
    fn new() -> Self {
        let lab = Lab::new();
        let repo = Repo::init(lab.path("repo")).without_ring();
        Self { lab, repo }
    }

    /// A disk with a GPT, an ext4 in its first partition and a FAT in its second.
    fn disk(&self, name: &str) -> PathBuf {
        let disk = self.lab.path(name);
        create_raw(&disk, 64 * MIB);
        let divide = self.lab.path("divide");
        script(
            &divide,
            "#!/bin/sh\nprintf 'label: gpt\\nsize=24M\\nsize=20M\\n' | sfdisk -q \"$1\"\n",
        );
        run::run(tool(divide.to_str().unwrap(), args![disk.as_path()])).ok();
        let tree = self.lab.path("tree");
        fs::create_dir_all(&tree).unwrap();
        fs::write(tree.join("noise"), Random::new(3).noise(500_000)).unwrap();
        let part = self.lab.path("part");
        create_raw(&part, 24 * MIB);
        run::run(tool("mkfs.ext4", args!["-q", "-F", "-d", tree.as_path(), part.as_path()])).ok();
        patch(&disk, MIB, &fs::read(&part).unwrap());
        fs::remove_file(&part).unwrap();
        create_raw(&part, 20 * MIB);
        run::run(tool("mkfs.fat", args!["-F", "16", part.as_path()])).ok();
        patch(&disk, 25 * MIB, &fs::read(&part).unwrap());
        disk
    }

    fn back_up(&self, disk: &Path, name: &str) {
        self.repo.backup(disk, name, &["--format", "raw"]);
    }

    fn run(&self, words: Vec<std::ffi::OsString>) -> Outcome {
        let state = args!["--state", self.lab.path("state")];
        self.repo.run([state, words].concat())
    }

    /// Drills a guest; gives the status and the drill.
    #[track_caller]
    fn drill(&self, words: &[&str]) -> (i32, Value) {
        let mut all = args!["drill", "--json", "--io", "threads"];
        all.extend(words.iter().map(Into::into));
        let outcome = self.run(all);
        let status = outcome.status.code().unwrap();
        assert!([0, 14, 15].contains(&status), "{}", outcome.report());
        let report = outcome.json();
        compare("drill", &[&report], RARE);
        let drill = report["guests"][0]["drill"].clone();
        assert!(drill.is_object(), "{report:#}");
        (status, drill)
    }

    /// A program for `--boot-command`.
    fn command(&self, text: &str) -> String {
        let program = self.lab.path(format!("boot-{}", text.len()));
        script(&program, &format!("#!/bin/sh\n{text}\n"));
        program.to_str().unwrap().to_owned()
    }

    /// No mount and no folder is left of any drill.
    #[track_caller]
    fn assert_nothing_is_left(&self) {
        let entries = fs::read_dir(self.lab.path("state/drills")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let left: Vec<_> = names.filter(|name| name.starts_with("drill-")).collect();
        assert!(left.is_empty(), "{left:?}");
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(self.lab.dir().to_str().unwrap()), "{mounts}");
    }
}

/// What is not in every result.
const RARE: &[&str] = &[
    ".guests[].drill.gap",
    ".guests[].drill.recovery",
    ".guests[].drill.screenshot",
    ".guests[].drill.console",
    ".guests[].drill.reached",
    ".guests[].drill.missed[]",
    ".guests[].drill.steps[].parts[]",
    ".guests[].drill.steps[].parts[].name",
    ".guests[].drill.steps[].parts[].result",
    ".guests[].drill.steps[].parts[].text",
    ".guests[].error.kind",
    ".guests[].error.text",
    ".guests[].error.advice",
    ".guests[].error",
];

/// The rungs with what became of them, in short.
fn rungs(drill: &Value) -> String {
    let steps = drill["steps"].as_array().unwrap().iter();
    let words = steps.map(|step| {
        let mark = match step["result"].as_str().unwrap() {
            "passed" => "+",
            "failed" => "!",
            "not-tried" => "-",
            other => panic!("{other}"),
        };
        format!("{mark}{}", step["rung"].as_str().unwrap())
    });
    words.collect::<Vec<_>>().join(" ")
}

fn text_of(drill: &Value, rung: &str) -> String {
    let steps = drill["steps"].as_array().unwrap();
    let step = steps.iter().find(|step| step["rung"] == rung).unwrap();
    step["text"].as_str().unwrap().to_owned()
}

#[test]
fn a_sound_guest_comes_as_far_as_its_filesystems_can_be_checked() {
    let scene = Scene::new();
    scene.back_up(&scene.disk("disk"), "web/vda");
    let (status, drill) = scene.drill(&["web"]);
    let all = "+bytes +partitions +filesystems +check -boot -agent -service";
    assert_eq!((status, rungs(&drill).as_str()), (0, all), "{drill:#}");
    assert_eq!((&drill["reached"], &drill["result"]), (&"check".into(), &"passed".into()));
    let check = drill["steps"][3]["parts"].as_array().unwrap();
    let names: Vec<_> = check.iter().map(|part| part["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["vda/p1", "vda/p2"]);
    assert!(text_of(&drill, "check").contains("e2fsck"), "{drill:#}");
    // What it has shown is shown.
    let points = scene.run(args!["points", "web", "--json"]).ok().json();
    let point = &points["disks"][0]["points"][0];
    assert_eq!(point["drilled"]["result"], "passed", "{point:#}");
    assert_eq!(point["drilled"]["reached"], "check");
    let list = scene.run(args!["points", "web"]).ok().text();
    assert!(list.contains("full, drilled"), "{list}");
    let history = scene.run(args!["drill", "--report", "--json"]).ok().json();
    compare("drill --report", &[&history], RARE_IN_HISTORY);
    assert_eq!(history["guests"][0]["drills"][0], drill);
    let shown = scene.run(args!["drill", "--report"]).ok().text();
    assert!(shown.contains("web") && shown.contains("came to check"), "{shown}");
    scene.assert_nothing_is_left();
}

const RARE_IN_HISTORY: &[&str] = &[
    ".guests[].drills[].gap",
    ".guests[].drills[].recovery",
    ".guests[].drills[].screenshot",
    ".guests[].drills[].console",
    ".guests[].drills[].missed[]",
];

#[test]
fn a_flipped_byte_fails_at_the_bytes() {
    let scene = Scene::new();
    scene.back_up(&scene.disk("disk"), "web/vda");
    let archive = scene.repo.stored_as(&scene.repo.archives()[0]);
    let bytes = archive.bytes();
    let middle = bytes.len() / 2;
    archive.patch(middle as u64, &[!bytes[middle]]);
    let (status, drill) = scene.drill(&["web"]);
    let all = "!bytes -partitions -filesystems -check -boot -agent -service";
    assert_eq!((status, rungs(&drill).as_str()), (14, all), "{drill:#}");
    assert_eq!(drill["reached"], Value::Null);
    let list = scene.run(args!["points", "web"]).text();
    assert!(list.contains("DRILL FAILED"), "{list}");
}

#[test]
fn a_broken_partition_table_fails_at_the_partitions() {
    let scene = Scene::new();
    let disk = scene.disk("disk");
    // The first copy alone, then both.
    for (name, places) in [("one", vec![512]), ("both", vec![512, 64 * MIB - 512])] {
        for place in places {
            patch(&disk, place, &[0; 512]);
        }
        scene.back_up(&disk, &format!("{name}/vda"));
        let (status, drill) = scene.drill(&[name]);
        let all = "+bytes !partitions -filesystems -check -boot -agent -service";
        assert_eq!((status, rungs(&drill).as_str()), (14, all), "{name}: {drill:#}");
        assert!(text_of(&drill, "partitions").contains("GPT"), "{drill:#}");
    }
}

#[test]
fn a_broken_filesystem_fails_at_its_superblock_or_at_its_check() {
    let scene = Scene::new();
    let disk = scene.disk("disk");
    // The number of free blocks of a group: the superblock knows nothing of it.
    let ext = MIB;
    let descriptor = ext + 4096 + 12;
    let was = fs::read(&disk).unwrap();
    let is_4k = was[(ext + 1024 + 24) as usize] == 2;
    let descriptor = if is_4k { descriptor } else { ext + 2048 + 12 };
    patch(&disk, descriptor, &[0xff, 0xff]);
    scene.back_up(&disk, "below/vda");
    let (status, drill) = scene.drill(&["below"]);
    let all = "+bytes +partitions +filesystems !check -boot -agent -service";
    assert_eq!((status, rungs(&drill).as_str()), (14, all), "{drill:#}");
    assert!(text_of(&drill, "check").contains("vda/p1: e2fsck"), "{drill:#}");
    // A letter of the superblock's name of the filesystem: its checksum knows.
    patch(&disk, ext + 1024 + 120, b"x");
    scene.back_up(&disk, "above/vda");
    let (status, drill) = scene.drill(&["above"]);
    let all = "+bytes +partitions !filesystems -check -boot -agent -service";
    assert_eq!((status, rungs(&drill).as_str()), (14, all), "{drill:#}");
    assert!(text_of(&drill, "filesystems").contains("checksum"), "{drill:#}");
}

/// A disk that was written over from end to end holds nothing that could be found damaged.
#[test]
fn what_was_there_at_the_last_drill_and_is_gone_has_failed() {
    let scene = Scene::new();
    let disk = scene.disk("disk");
    let whole = scene.lab.path("whole");
    fs::copy(&disk, &whole).unwrap();
    scene.back_up(&disk, "web/vda");
    assert_eq!(scene.drill(&["web"]).0, 0);
    patch(&disk, MIB, &vec![0; 2 * MIB as usize]);
    scene.back_up(&disk, "web/vda");
    let (status, drill) = scene.drill(&["web"]);
    let all = "+bytes +partitions !filesystems -check -boot -agent -service";
    assert_eq!((status, rungs(&drill).as_str()), (14, all), "{drill:#}");
    fs::write(&disk, Random::new(1).noise(64 << 20)).unwrap();
    scene.back_up(&disk, "web/vda");
    let (status, drill) = scene.drill(&["web"]);
    let all = "+bytes !partitions -filesystems -check -boot -agent -service";
    assert_eq!((status, rungs(&drill).as_str()), (14, all), "{drill:#}");
    assert!(text_of(&drill, "partitions").contains("it held GPT with 2 volumes"), "{drill:#}");
    // Nothing is held against the guest once it is back.
    fs::copy(&whole, &disk).unwrap();
    scene.back_up(&disk, "web/vda");
    assert_eq!(scene.drill(&["web"]).0, 0);
}

#[test]
fn every_kind_of_filesystem_is_checked_and_one_that_was_cut_is_found() {
    let scene = Scene::new();
    let kinds: [(&str, u64, &[&str]); 5] = [
        ("mkfs.ext4", 32, &["-q", "-F"]),
        ("mkfs.xfs", 320, &["-q", "-f"]),
        ("mkfs.btrfs", 128, &["-q", "-f"]),
        ("mkfs.fat", 16, &[]),
        ("mkntfs", 16, &["-q", "-F"]),
    ];
    for (number, (program, mib, options)) in kinds.into_iter().enumerate() {
        let disk = scene.lab.path(format!("disk-{number}"));
        create_raw(&disk, mib * MIB);
        let mut words: Vec<_> = options.iter().map(Into::into).collect();
        words.push(disk.clone().into());
        run::run(tool(program, words)).ok();
        scene.back_up(&disk, &format!("g{number}/vda"));
        let (status, drill) = scene.drill(&[&format!("g{number}")]);
        assert_eq!(status, 0, "{program}: {drill:#}");
        assert_eq!(drill["reached"], "check", "{program}");
        File::options().write(true).open(&disk).unwrap().set_len((mib - 4) * MIB).unwrap();
        scene.back_up(&disk, &format!("cut{number}/vda"));
        let (status, drill) = scene.drill(&[&format!("cut{number}")]);
        assert_eq!(status, 14, "{program}: {drill:#}");
        assert!(rungs(&drill).contains("!filesystems"), "{program}: {drill:#}");
    }
}

/// A running guest's filesystem has a journal that is to be replayed: that is no damage, and where the
/// checker can't tell, nothing is known.
#[test]
fn a_filesystem_in_use_is_not_called_broken() {
    let scene = Scene::new();
    let disk = scene.lab.path("disk");
    create_raw(&disk, 64 * MIB);
    run::run(tool("mkfs.ext4", args!["-q", "-F", disk.as_path()])).ok();
    let place = scene.lab.path("inside");
    fs::create_dir(&place).unwrap();
    run::run(as_root("mount", args!["-o", "loop", disk.as_path(), place.as_path()])).ok();
    for number in 0..200 {
        fs::create_dir(place.join(format!("folder-{number}"))).unwrap();
    }
    let file = File::open(&place).unwrap();
    rustix::fs::syncfs(&file).unwrap();
    for number in 0..100 {
        fs::remove_dir(place.join(format!("folder-{number}"))).unwrap();
    }
    // Into the journal, and not yet into the places that it is about.
    file.sync_all().unwrap();
    drop(file);
    let copy = scene.lab.path("copy");
    fs::copy(&disk, &copy).unwrap();
    unmount(&place);
    scene.back_up(&copy, "web/vda");
    let (status, drill) = scene.drill(&["web"]);
    assert!(text_of(&drill, "filesystems").contains("journal is to be replayed"), "{drill:#}");
    assert!(status == 0 || status == 15, "{drill:#}");
    assert!(!rungs(&drill).contains('!'), "{drill:#}");
    if status == 15 {
        assert_eq!(drill["result"], "not-tried");
        assert!(text_of(&drill, "check").contains("can't tell"), "{drill:#}");
    }
    // A frozen XFS has a log to be replayed, too, and a FAT is marked as in use.
    let xfs = scene.lab.path("xfs");
    create_raw(&xfs, 320 * MIB);
    run::run(tool("mkfs.xfs", args!["-q", "-f", xfs.as_path()])).ok();
    run::run(as_root("mount", args!["-o", "loop", xfs.as_path(), place.as_path()])).ok();
    for number in 0..100 {
        fs::create_dir(place.join(format!("folder-{number}"))).unwrap();
    }
    run::run(as_root("fsfreeze", args!["-f", place.as_path()])).ok();
    let frozen = scene.lab.path("frozen");
    run::run(tool("cp", args!["--sparse=always", xfs.as_path(), frozen.as_path()])).ok();
    run::run(as_root("fsfreeze", args!["-u", place.as_path()])).ok();
    unmount(&place);
    let fat = |name: &str, width: &str, at: u64| {
        let path = scene.lab.path(name);
        create_raw(&path, 40 * MIB);
        run::run(tool("mkfs.fat", args!["-F", width, path.as_path()])).ok();
        patch(&path, at, &[1]);
        path
    };
    for (name, disk) in
        [("xfs", frozen), ("fat16", fat("fat16", "16", 37)), ("fat32", fat("fat32", "32", 65))]
    {
        scene.back_up(&disk, &format!("{name}/vda"));
        let (status, drill) = scene.drill(&[name]);
        assert_eq!(status, 0, "{name}: {drill:#}");
        assert!(text_of(&drill, "check").contains("in use, and nothing wrong"), "{drill:#}");
    }
    // And one that is damaged as well is damaged.
    let damaged = scene.lab.path("fat16");
    // The first table alone says that a cluster is taken.
    patch(&damaged, 4 * 512 + 200, &[0xff, 0xff]);
    scene.back_up(&damaged, "damaged/vda");
    let (status, drill) = scene.drill(&["damaged"]);
    assert_eq!(status, 14, "{drill:#}");
    // A disk of which nothing is known is not called sound, either.
    fs::write(&copy, Random::new(8).noise(MIB as usize)).unwrap();
    scene.back_up(&copy, "odd/vda");
    let (status, drill) = scene.drill(&["odd"]);
    assert_eq!(status, 15, "{drill:#}");
    assert!(rungs(&drill).starts_with("+bytes -partitions -filesystems -check"), "{drill:#}");
}

#[test]
fn the_boot_command_decides_the_rungs_of_the_running_guest() {
    let scene = Scene::new();
    scene.back_up(&scene.disk("disk"), "web/vda");
    let below = "+bytes +partitions +filesystems +check";
    let agent = r#"echo '{"reached":"agent","seconds":{"boot":1.5,"agent":4},"text":"Debian"}'"#;
    let boot = r#"echo '{"reached":"boot","seconds":{"boot":1.5},"text":"no answer"}'"#;
    let service = r#"echo '{"reached":"service","seconds":{"boot":1,"agent":2,"service":3}}'"#;
    let none = r#"echo '{"reached":"none","text":"no kernel"}'"#;
    for (text, to, status, above) in [
        (format!("{boot}; {agent}"), "agent", 0, "+boot +agent -service"),
        (agent.to_owned(), "service", 15, "+boot +agent -service"),
        (service.to_owned(), "service", 0, "+boot +agent +service"),
        (format!("{agent}; exit 1"), "agent", 14, "+boot +agent !service"),
        (format!("{boot}; exit 1"), "agent", 14, "+boot !agent -service"),
        (format!("{none}; exit 1"), "agent", 14, "!boot -agent -service"),
        (format!("{none}; exit 77"), "agent", 15, "-boot -agent -service"),
        ("echo no qemu >&2; exit 77".to_owned(), "agent", 15, "-boot -agent -service"),
        ("exit 0".to_owned(), "agent", 14, "!boot -agent -service"),
        ("echo nonsense".to_owned(), "agent", 14, "!boot -agent -service"),
        (format!("{boot}; kill -9 $$"), "agent", 14, "+boot !agent -service"),
        // A torn line counts for nothing, and the one before it does.
        (
            format!("{boot}; printf '{{\"reached\":\"agent\"'; exit 1"),
            "agent",
            14,
            "+boot !agent -service",
        ),
    ] {
        let command = scene.command(&text);
        let (got, drill) = scene.drill(&["web", "--boot-command", &command, "--to", to]);
        assert_eq!((got, rungs(&drill)), (status, format!("{below} {above}")), "{text}: {drill:#}");
        if text == format!("{boot}; {agent}") {
            let recovery = drill["recovery"].as_f64().unwrap();
            // The guest's own 4 seconds, and what the rungs below took on this machine.
            assert!(recovery >= 4.0, "{drill:#}");
            assert_eq!(text_of(&drill, "agent"), "Debian");
        }
    }
    // One that hangs is killed with all that it started, and what it said counts.
    let left = scene.lab.path("left");
    let hang = format!("{boot}; (sleep 600 & echo $! > {}; wait)", left.display());
    let command = scene.command(&hang);
    let (status, drill) = scene.drill(&["web", "--boot-command", &command, "--time-limit", "4s"]);
    assert_eq!(
        (status, rungs(&drill)),
        (14, format!("{below} +boot !agent -service")),
        "{drill:#}"
    );
    let pid = fs::read_to_string(&left).unwrap();
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    assert!(stat.is_empty() || stat.contains(") Z "), "{stat}");
    let (status, drill) = scene.drill(&["web", "--boot-command", "/nowhere/boot"]);
    assert_eq!(
        (status, rungs(&drill)),
        (14, format!("{below} !boot -agent -service")),
        "{drill:#}"
    );
    scene.assert_nothing_is_left();
}

#[test]
fn the_boot_command_is_told_what_it_needs() {
    let host = Host::new();
    let dir = host.lab.dir().to_owned();
    let guest = Guest::define(&host, &dir);
    fs::write(guest.nvram(), b"variables").unwrap();
    host.web(&[]);
    let text = r#"set -e
out="$0.out"
{
    echo "domain=$QDELTA_DOMAIN" "point=$QDELTA_POINT" "seconds=$QDELTA_SECONDS" "verb=$1"
    shift
    for disk in "$@"; do echo "disk=${disk%%=*}" "$(wc -c <"${disk#*=}")"; done
    echo "scratch=$(ls "$QDELTA_SCRATCH" | wc -l)"
    (cd "$QDELTA_MACHINE"; ls)
    grep -c '<domain' "$QDELTA_MACHINE/domain.xml"
} >"$out"
for file in "$QDELTA_MACHINE"/*; do echo more >>"$file"; done
printf 'P6 1 1 255\nabc' >"$QDELTA_SCRATCH/screen.ppm"
echo '{"reached":"agent","seconds":{"boot":1,"agent":2},"screenshot":"'"$QDELTA_SCRATCH"'/screen.ppm","console":"/etc/passwd"}'
"#;
    let program = dir.join("boot");
    script(&program, &format!("#!/bin/sh\n{text}"));
    let state = dir.join("drill-state");
    let mut words = args!["drill", "web", "--json", "--io", "threads", "--to", "agent"];
    words.extend(args!["--state", state.as_path(), "--boot-command", program.as_path()]);
    let outcome = host.repo.run(words);
    let told = fs::read_to_string(dir.join("boot.out")).unwrap();
    let report = outcome.json();
    let drill = &report["guests"][0]["drill"];
    assert_eq!(drill["steps"][4]["result"], "passed", "{report:#}\n{told}");
    let point = drill["point"].as_str().unwrap();
    assert!(told.contains(&format!("point={point} seconds=1800 verb=boot")), "{told}");
    for wanted in ["disk=vda ", "disk=vdb ", "scratch=0\n", "domain.xml\n"] {
        assert!(told.contains(wanted), "{wanted}: {told}");
    }
    let nvram = guest.nvram();
    assert!(told.contains(nvram.file_name().unwrap().to_str().unwrap()), "{told}");
    // The picture is kept; a file that is none of the command's own is not.
    let picture = fs::read(drill["screenshot"].as_str().unwrap()).unwrap();
    assert!(picture.starts_with(b"P6"));
    assert_eq!(drill["console"], Value::Null);
    assert!(outcome.stderr.contains("outside the scratch folder"), "{}", outcome.stderr);
    // Only its owner may look: it shows what is on the guest's screen.
    assert_eq!(fs::metadata(drill["screenshot"].as_str().unwrap()).unwrap().mode() & 0o77, 0);
}

/// Of a guest that libvirt keeps no definition of, there is that of its last run alone: the boot command got
/// none, and booted a machine with a processor and a firmware that the guest never had.
#[test]
fn a_guest_of_one_run_is_booted_by_the_definition_of_that_run() {
    let host = Host::new();
    let dir = host.lab.dir().to_owned();
    let mut guest = Guest::define(&host, &dir);
    guest.start("running");
    fs::remove_file(host.lab.path("etc/qemu/web.xml")).unwrap();
    host.web(&["--consistency", "freeze-copy"]);
    guest.stop();
    let text = "set -e\ngrep -c '<domain' \"$QDELTA_MACHINE/domain.xml\" >\"$0.out\"\n\
                echo '{\"reached\":\"agent\",\"seconds\":{\"boot\":1,\"agent\":2}}'\n";
    let program = dir.join("boot");
    script(&program, &format!("#!/bin/sh\n{text}"));
    let state = dir.join("drill-state");
    let mut words = args!["drill", "web", "--json", "--io", "threads", "--to", "agent"];
    words.extend(args!["--state", state.as_path(), "--boot-command", program.as_path()]);
    let report = host.repo.run(words).json();
    assert_eq!(report["guests"][0]["drill"]["steps"][4]["result"], "passed", "{report:#}");
    assert_eq!(fs::read_to_string(dir.join("boot.out")).unwrap(), "1\n");
}

#[test]
fn targets_that_are_missed_fail_the_drill() {
    let scene = Scene::new();
    let disk = scene.disk("disk");
    scene.back_up(&disk, "web/vda");
    std::thread::sleep(Duration::from_millis(1100));
    scene.back_up(&disk, "web/vda");
    let (status, drill) = scene.drill(&["web", "--rpo", "1h"]);
    assert_eq!((status, drill["missed"].as_array().unwrap().len()), (0, 0), "{drill:#}");
    let (status, drill) = scene.drill(&["web", "--rpo", "1s"]);
    assert_eq!(status, 14, "{drill:#}");
    let missed = drill["missed"].as_array().unwrap();
    assert!(missed.iter().any(|text| text.as_str().unwrap().contains("earlier")), "{drill:#}");
    assert!(drill["gap"].as_f64().unwrap() >= 1.1);
    let answers = r#"echo '{"reached":"agent","seconds":{"boot":1,"agent":300.5}}'"#;
    let command = scene.command(answers);
    let booted = ["web", "--boot-command", &command, "--rto"];
    assert_eq!(scene.drill(&[&booted[..], &["10m"]].concat()).0, 0);
    let (status, drill) = scene.drill(&[&booted[..], &["5m"]].concat());
    assert_eq!((status, &drill["reached"]), (14, &"agent".into()), "{drill:#}");
    // What the settings say holds where the command line says nothing.
    let settings = "[drill]\nrto = \"5m\"\nrpo = \"1s\"";
    scene.repo.edit_settings(|text| format!("{text}\n{settings}\n"));
    assert_eq!(scene.drill(&["web", "--boot-command", &command]).0, 14);
    let all = [&booted[..], &["10m", "--rpo", "1h"]].concat();
    assert_eq!(scene.drill(&all).0, 0);
}

#[test]
fn those_whose_drill_is_longest_ago_are_picked() {
    let scene = Scene::new();
    let disk = scene.lab.path("disk");
    create_raw(&disk, 2 * MIB);
    run::run(tool("mkfs.fat", args![disk.as_path()])).ok();
    for guest in ["a", "b", "c"] {
        scene.back_up(&disk, &format!("{guest}/vda"));
    }
    let picked = || {
        let words = args!["drill", "--pick", "1", "--to", "bytes", "--json", "--io", "threads"];
        let report = scene.run(words).ok().json();
        report["guests"][0]["domain"].as_str().unwrap().to_owned()
    };
    let order: Vec<_> = (0..6).map(|_| picked()).collect();
    assert_eq!(order, ["a", "b", "c", "a", "b", "c"]);
    let report = scene.run(args!["drill", "--report", "a", "--json"]).ok().json();
    assert_eq!(report["guests"].as_array().unwrap().len(), 1);
    assert_eq!(report["guests"][0]["drills"].as_array().unwrap().len(), 2);
    scene.run(args!["drill", "a/vda"]).fails_with(2);
    scene.run(args!["drill", "nobody"]).fails_with(6);
}

#[test]
fn a_drill_that_is_stopped_or_killed_leaves_nothing_for_long() {
    let scene = Scene::new();
    scene.back_up(&scene.disk("disk"), "web/vda");
    let begun = scene.lab.path("begun");
    let command = scene.command(&format!("echo $$ > {}; exec sleep 600", begun.display()));
    let state = scene.lab.path("state");
    for signal in [Signal::TERM, Signal::KILL] {
        let mut words = args!["drill", "web", "--state", state.as_path(), "--to", "agent"];
        words.extend(args!["--io", "threads", "--boot-command", command.as_str()]);
        let child = start(&mut qdelta(scene.repo.args(words)));
        while fs::read_to_string(&begun).unwrap_or_default().is_empty() {
            std::thread::sleep(Duration::from_millis(10));
        }
        // Two at a time would say nothing of how long one takes.
        let second = scene.run(args!["drill", "web", "--io", "threads"]);
        assert_eq!(second.status.code(), Some(5), "{}", second.stderr);
        kill_process(Pid::from_child(&child), signal).unwrap();
        let outcome = finish(child, "qdelta drill".to_owned());
        match signal {
            Signal::TERM => {
                assert_eq!(outcome.status.code(), Some(130), "{}", outcome.stderr);
                scene.assert_nothing_is_left();
            }
            _ => assert!(outcome.killed()),
        }
        let pid = fs::read_to_string(&begun).unwrap();
        fs::remove_file(&begun).unwrap();
        let stat = Path::new("/proc").join(pid.trim()).join("stat");
        for _ in 0..500 {
            let text = fs::read_to_string(&stat).unwrap_or_default();
            if text.is_empty() || text.contains(") Z ") {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let text = fs::read_to_string(&stat).unwrap_or_default();
        assert!(text.is_empty() || text.contains(") Z "), "the command lives: {text}");
    }
    assert_eq!(scene.drill(&["web"]).0, 0);
    scene.assert_nothing_is_left();
}
