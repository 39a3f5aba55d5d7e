//! The progress bar, as it is drawn on a real terminal of any width, and what is said above it.

use std::path::Path;
use std::process::Stdio;
use std::sync::Mutex;

use qdelta::base::cancel::Cancel;
use qdelta::base::observer::{Event, Observer};
use qdelta::disk::flow::pipeline::Resources;
use qdelta::disk::image::OpenOptions;
use qdelta::flows::backup::{self, AnchorChoice, BackupRequest, ImageRequest, KindChoice, Options};
use qdelta::flows::files::{self, OpenDisk, Output};
use qdelta::flows::restore::{self, Destination};
use qdelta::vault::repository::Repository;

use qdelta::formats::archive::Tracker;
use qdelta::guest::libvirt::Libvirt;
use qdelta::vault::repository::Selector;

use super::super::files::{Guest as Files, make_ext};
use super::super::harness::content::Random;
use super::super::harness::guest::{Guest, Host, UUID};
use super::super::harness::repo::Repo;
use super::super::harness::{
    Lab, args, qdelta, run,
    run::{binary, in_tests},
    tool,
};

const SECOND_UUID: &str = "11111111-edaf-9455-926a-d65c16db1809";

/// What a command draws on a terminal of so many columns: every state of a line, without what only
/// moves the cursor.
fn drawn(columns: usize, dir: &Path, repo: &Repo, command: &str) -> Vec<String> {
    let line = format!("stty cols {columns} rows 24; {} {command}", binary().display());
    let mut script = tool("script", args!["-qec", line, "/dev/null"]);
    script.current_dir(dir).env("TERM", "xterm").env_remove("COLUMNS").stdin(Stdio::null());
    in_tests(&mut script);
    script.env("QDELTA_REPO", &repo.path).envs(repo.key.iter().map(|key| ("QDELTA_KEY_FILE", key)));
    let text = run(script).ok().text();
    let mut states = vec![String::new()];
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\r' | '\n' => states.push(String::new()),
            '\x1b' => {
                let _ = characters.by_ref().find(|c| c.is_ascii_alphabetic());
                states.push(String::new());
            }
            other => states.last_mut().unwrap().push(other),
        }
    }
    states.retain(|state| !state.trim().is_empty());
    states
}

/// A raw image of noise, which takes a while to back up at level 19.
fn noise(lab: &Lab, name: &str, mib: usize) {
    std::fs::write(lab.path(name), Random::new(mib as u64).noise(mib << 20)).unwrap();
}

/// The bar wrapped on a narrow terminal, and each of its states stayed there as a line.
#[test]
fn the_bar_names_its_disk_and_never_wraps() {
    let lab = Lab::new();
    let repo = Repo::init(lab.path("repo"));
    noise(&lab, "web.raw", 3);
    let long = "a-guest-whose-name-says-where-it-lives-and-what-it-is-for.raw";
    std::fs::copy(lab.path("web.raw"), lab.path(long)).unwrap();
    for (columns, image, name) in [
        (60, "web.raw", "web/disk backup"),
        (80, "web.raw", "web/disk backup"),
        (200, "web.raw", "web/disk backup"),
        (40, long, "backup"),
        (20, long, ".."),
    ] {
        let command = format!("backup {image} --kind full --level 19 --threads 1 --format raw");
        let states = drawn(columns, lab.dir(), &repo, &command);
        let bars: Vec<&String> = states.iter().filter(|state| state.contains('%')).collect();
        assert!(!bars.is_empty(), "no bar at {columns} columns: {states:?}");
        for bar in bars {
            // Behind it the rest of the line is filled with spaces.
            assert!(bar.chars().count() <= columns, "{columns} columns: {bar:?}");
            assert!(bar.trim_end().chars().count() < columns, "{columns} columns: {bar:?}");
            assert!(bar.contains(name), "{columns} columns: {bar:?}");
        }
    }
}

/// Under --all nobody could tell which guest the bar was at, and every result came at the end.
#[test]
fn each_guest_and_disk_has_its_own_bar_and_its_result_when_it_is_there() {
    let host = Host::new();
    let guest = Guest::define(&host, host.lab.dir());
    let second = guest.xml().replace("<name>web", "<name>second").replace(UUID, SECOND_UUID);
    std::fs::write(host.lab.path("etc/qemu/second.xml"), second).unwrap();
    std::fs::write(guest.vdb(), Random::new(7).noise(2 << 20)).unwrap();
    let mut words = args!["backup", "--all", "--level", "19", "--threads", "1"];
    words.extend(host.place());
    let words: Vec<String> = words.into_iter().map(|word| word.into_string().unwrap()).collect();
    let states = drawn(80, host.lab.dir(), &host.repo, &words.join(" "));
    let at = |what: &str| {
        let found = states.iter().position(|state| state.contains(what));
        found.unwrap_or_else(|| panic!("{what} is not in {states:#?}"))
    };
    let order = ["second/vdb backup", "second@", "web/vdb backup", "web@"].map(at);
    assert!(order.is_sorted(), "{order:?}: {states:#?}");
}

/// Warnings were said twice, or beside the result and not in it, or not at all with --quiet; and under
/// --all nobody could tell whose they were.
#[test]
fn each_warning_is_said_once_with_its_disk_and_what_to_do() {
    let host = Host::new();
    let guest = Guest::define(&host, host.lab.dir());
    let second = guest.xml().replace("<name>web", "<name>second").replace(UUID, SECOND_UUID);
    std::fs::write(host.lab.path("etc/qemu/second.xml"), second).unwrap();
    // A bitmap can't be left in vdb, which is raw.
    for option in [None, Some("--json"), Some("--quiet"), Some("-v")] {
        let mut words = host.repo.args(args!["backup", "--all", "--anchor", "bitmap"]);
        words.extend(host.place());
        words.extend(option.map(Into::into));
        let outcome = run(qdelta(words)).ok();
        for disk in ["second/vdb", "web/vdb"] {
            let warning = format!("qdelta: warning: {disk}: no anchor is left");
            let lines: Vec<&str> = outcome.stderr.lines().collect();
            let at: Vec<usize> =
                (0..lines.len()).filter(|&line| lines[line].starts_with(&warning)).collect();
            let [at] = at.as_slice() else { panic!("{disk}, {option:?}: {}", outcome.stderr) };
            assert!(lines[at + 1].starts_with("        --anchor none"), "{}", outcome.stderr);
        }
        if option == Some("--json") {
            for domain in outcome.json()["domains"].as_array().unwrap() {
                let disks = domain["result"]["disks"].as_array().unwrap();
                let codes = disks.iter().map(|disk| &disk["warnings"][0]["code"]);
                assert_eq!(codes.filter(|code| *code == "no-anchor").count(), 1, "{domain}");
            }
        }
    }
}

/// All that an observer hears of phases: whose, what, how much, and every step.
#[derive(Default)]
struct Heard(Mutex<Vec<Phase>>);

#[derive(Default)]
struct Phase {
    name: &'static str,
    disk: Option<String>,
    total: u64,
    steps: Vec<u64>,
}

impl Observer for Heard {
    fn event(&self, event: &Event<'_>) {
        let mut phases = self.0.lock().unwrap();
        match event {
            Event::Begin { disk, phase, total } => {
                let disk = disk.map(str::to_owned);
                phases.push(Phase { name: phase, disk, total: *total, steps: Vec::new() });
            }
            Event::Advance { bytes } => phases.last_mut().unwrap().steps.push(*bytes),
            _ => {}
        }
    }

    fn is_watched(&self) -> bool {
        true
    }
}

/// A tree of a terabyte was copied for hours, and the terminal showed nothing.
#[test]
fn files_of_a_point_are_counted_as_they_are_copied() {
    let guest = Files::new(64 << 20);
    let tree = guest.lab.path("tree");
    std::fs::create_dir(&tree).unwrap();
    noise(&guest.lab, "tree/noise", 5);
    std::fs::hard_link(tree.join("noise"), tree.join("second name")).unwrap();
    std::fs::File::create(tree.join("holes")).unwrap().set_len(9 << 20).unwrap();
    std::fs::write(tree.join("small"), "some bytes").unwrap();
    make_ext(&guest.image, &["-t", "ext4", "-d", tree.to_str().unwrap()]);
    guest.backup();
    let command = "files tar web / --to tree.tar";
    let states = drawn(100, guest.lab.dir(), &guest.repo, command);
    let has_bar = |state: &String| state.contains(" files [") && state.contains('%');
    assert!(states.iter().any(has_bar), "{states:?}");

    let cancel = Cancel::default();
    let heard = Heard::default();
    let disk = OpenDisk::open(guest.repo.open(), &"web".parse().unwrap(), &heard, &cancel);
    let disk = disk.unwrap();
    let root = [b"/".to_vec()];
    let volume = disk.volume(None, &root, &heard).unwrap();
    let to = |name: &str| Output::Path(guest.lab.path(name));
    files::tar(&volume, &root, to("other.tar"), false, &heard, &cancel).unwrap();
    files::get(&volume, &root, to("copy"), false, &heard, &cancel).unwrap();
    let one = [b"/noise".to_vec()];
    files::get(&volume, &one, Output::Stream(Box::new(std::io::sink())), false, &heard, &cancel)
        .unwrap();
    let phases = heard.0.into_inner().unwrap();
    let totals: Vec<_> = phases.iter().map(|phase| phase.total).collect();
    assert_eq!(totals, [(14 << 20) + 10, (14 << 20) + 10, 5 << 20]);
    for phase in phases {
        assert_eq!(phase.steps.iter().sum::<u64>(), phase.total);
        assert!(phase.disk.unwrap().starts_with("web/disk@"));
    }
}

/// With 2 MiB blocks a group has 2 GiB, and only whole groups were counted: the bar stood at 0 %
/// from the beginning of a backup to its end.
#[test]
fn a_backup_and_a_restore_are_counted_in_small_steps_whatever_the_block_size() {
    let lab = Lab::new();
    noise(&lab, "web.raw", 16);
    for block_size in [4 << 10, 64 << 10, 2 << 20] {
        let folder = lab.path(block_size.to_string());
        let repository = Repository::init(&folder).unwrap();
        let options = Options {
            kind: KindChoice::Full,
            level: 1,
            block_size: Some(block_size),
            track: None,
            anchor: AnchorChoice::None,
            sample: 0,
            resources: Resources::default(),
            ..Options::default()
        };
        let open = OpenOptions { format: Some("raw".parse().unwrap()), ..OpenOptions::default() };
        let image = ImageRequest { path: lab.path("web.raw"), open, disk: None };
        let heard = Heard::default();
        backup::run(&repository, &BackupRequest { image, options }, &heard, &Cancel::default())
            .unwrap();
        let request = restore::RestoreRequest {
            destination: Destination::Path(lab.path(format!("{block_size}.raw"))),
            format: qdelta::disk::image::Format::Raw,
            force: false,
            libvirt: Libvirt::default(),
            salvage: false,
            resources: Resources::default(),
        };
        let (disk, latest) = ("web".parse().unwrap(), Selector::Latest);
        let cancel = Cancel::default();
        restore::run(&repository, &disk, &latest, request, &heard, &cancel).unwrap();
        let phases = heard.0.into_inner().unwrap();
        assert_eq!(phases.len(), 2);
        for phase in phases {
            assert_eq!(phase.disk.as_deref(), Some("web/disk"));
            assert_eq!(phase.steps.iter().sum::<u64>(), phase.total, "{block_size}");
            let largest = phase.steps.iter().max().unwrap();
            assert!(*largest <= 2 << 20, "a step of {largest} with blocks of {block_size}");
        }
    }
}

/// The proof that an image is sound reads all its tables, which takes minutes for a large one; nothing on
/// the terminal moved meanwhile.
#[test]
fn the_proof_of_an_image_is_a_phase_of_its_own() {
    let lab = Lab::new();
    noise(&lab, "web.raw", 1);
    let (raw, path) = (lab.path("web.raw"), lab.path("web.qcow2"));
    run(tool("qemu-img", args!["convert", "-O", "qcow2", raw, path.as_path()])).ok();
    let repository = Repository::init(&lab.path("repo")).unwrap();
    // The first backup writes an anchor, the second believes it, too; without one, nothing is proved.
    for (anchor, proofs) in [
        (AnchorChoice::For(Tracker::Bitmap), 1),
        (AnchorChoice::For(Tracker::Bitmap), 2),
        (AnchorChoice::None, 1),
    ] {
        let options = Options {
            kind: KindChoice::Auto,
            level: 1,
            block_size: None,
            track: None,
            anchor: anchor.clone(),
            sample: 0,
            resources: Resources::default(),
            ..Options::default()
        };
        let image = ImageRequest { path: path.clone(), open: OpenOptions::default(), disk: None };
        let heard = Heard::default();
        backup::run(&repository, &BackupRequest { image, options }, &heard, &Cancel::default())
            .unwrap();
        let phases = heard.0.into_inner().unwrap();
        let checks: Vec<_> = phases.iter().filter(|phase| phase.name == "check").collect();
        assert_eq!(checks.len(), proofs, "{anchor:?}");
        assert!(checks.iter().all(|phase| phase.disk.as_deref() == Some("web/disk")));
        assert!(checks.iter().all(|phase| phase.steps.iter().sum::<u64>() == phase.total));
    }
}
