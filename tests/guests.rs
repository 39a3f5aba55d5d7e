//! Backing up libvirt's guests: stopped, running, paused, with and without what a moment needs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use qdelta::disk::files::image_lock;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::cli::json::compare;
use super::harness::faults::traced;
use super::harness::files::{Mount, tree};
use super::harness::guest::{Guest, Host, MIB, UUID, disk};
use super::harness::run::{as_root, describe, finish, script, start};
use super::harness::virsh::wait_until;
use super::harness::{args, qdelta, run, sweep};

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn text_of(warning: &Value) -> &str {
    text(&warning["text"])
}

/// The roles of the files of the machine at the latest point.
fn roles(host: &Host) -> Vec<String> {
    let points = host.points();
    let path = host.lab.path("manifest");
    let name = format!("web/points/{}.json", points.last().unwrap());
    host.repo.take_out(Path::new(&name), &path);
    let manifest: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    assert_eq!(text(&manifest["machine"]["uuid"]), UUID);
    let files = manifest["machine"]["files"].as_array().unwrap();
    files.iter().map(|file| text(&file["role"]).to_owned()).collect()
}

#[test]
fn a_stopped_guest_is_one_point() {
    let host = Host::new();
    let mut guest = Guest::define(&host, host.lab.dir());
    guest.start("running");
    guest.write(0, 0, MIB, 7);
    guest.write(1, MIB, MIB, 8);
    guest.stop();
    let report = host.web(&["--with-host-config"]);
    assert_eq!(report["consistency"], "offline");
    assert_eq!((&report["freeze_ms"], &report["frozen_filesystems"]), (&Value::Null, &Value::Null));
    assert_eq!(report["disks"].as_array().unwrap().len(), 2);
    assert_eq!(report["left_out"][0]["reason"], "is a CD-ROM drive");
    host.assert_restores("vda", &disk(8, &[(0, MIB, 7)]));
    host.assert_restores("vdb", &disk(4, &[(MIB, MIB, 8)]));
    assert_eq!(roles(&host), ["domain-xml", "nvram", "host-config", "host-config"]);
    assert!(host.virsh.log().is_empty(), "nothing was frozen");
    // The next point holds one disk less and changes nothing of the first.
    let report = host.web(&["--exclude", "vdb"]);
    assert_eq!(report["disks"].as_array().unwrap().len(), 1);
    assert_eq!(report["left_out"][0]["disk"], "vdb");
    assert_eq!(roles(&host), ["domain-xml", "nvram"]);
    host.assert_sound();
}

/// What such a guest had not written yet is in its memory: its disks are not what a shutdown leaves.
#[test]
fn a_guest_whose_memory_is_saved_was_not_shut_down() {
    let host = Host::new();
    let _guest = Guest::define(&host, host.lab.dir());
    let saved = host.save_memory();
    let report = host.web(&[]);
    assert_eq!(report["consistency"], "crash-consistent");
    assert!(report["warnings"].to_string().contains("managedsave"), "{report}");
    fs::remove_file(saved).unwrap();
    assert_eq!(host.web(&[])["consistency"], "offline");
}

/// The locks of a disk ended when it was cloned: a guest that was started and stopped before the next
/// one was left a point of two moments.
#[test]
fn a_stopped_guest_can_not_start_between_two_disks() {
    let host = Host::new();
    let mount = Mount::on_loop(host.lab.dir(), "xfs", 400 * MIB);
    let mut guest = Guest::define(&host, &mount.dir);
    guest.start("running");
    guest.write(0, 0, MIB, 1);
    guest.stop();
    let cloned = || {
        let files = tree(&mount.dir).into_iter().filter(|path| path.starts_with(".qdelta"));
        let mut whole = Vec::new();
        for file in files {
            // It may have gone since.
            let len = fs::metadata(mount.dir.join(&file)).map_or(0, |data| data.len());
            whole.extend((len > 0).then(|| mount.dir.join(file.file_name().unwrap())));
        }
        whole
    };
    // Every clone takes half a second.
    let slowly = "inject=ioctl:delay_enter=500000";
    let options = args!["-e", "trace=ioctl", "-e", slowly, "-o", "/dev/null"];
    let words = host.words(&["--domain", "web", "--anchor", "reflink"]);
    let mut command = traced(options, words);
    let mut child = start(&mut command);
    let mut looked = 0;
    while child.try_wait().unwrap().is_none() {
        let before = cloned();
        if let [image] = before.as_slice() {
            let held = image_lock::probe(fs::File::open(image).unwrap()).unwrap().is_some();
            if cloned() == before {
                looked += 1;
                assert!(held, "{} could be written to", image.display());
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    finish(child, describe(&command)).ok();
    assert!(looked > 0, "there was never one clone alone");
    host.assert_restores("vda", &disk(8, &[(0, MIB, 1)]));
    host.assert_sound();
}

#[test]
fn a_running_guest_is_frozen_cloned_and_thawed() {
    let host = Host::new();
    let mount = Mount::on_loop(host.lab.dir(), "xfs", 400 * MIB);
    let mut guest = Guest::define(&host, &mount.dir);
    guest.start("running");
    guest.write(0, 0, MIB, 1);
    guest.write(1, 0, MIB, 2);
    let report = host.web(&["--anchor", "reflink"]);
    assert_eq!(report["consistency"], "filesystem-quiesced");
    assert_eq!(report["frozen_filesystems"], 2);
    let points = run(qdelta(host.repo.args(args!["points", "web/vda", "--json"]))).ok().json();
    let point = &points["disks"][0]["points"][0];
    assert_eq!(point["freeze_ms"], report["freeze_ms"]);
    assert_eq!(point["frozen_filesystems"], 2);
    host.assert_restores("vda", &disk(8, &[(0, MIB, 1)]));
    host.assert_restores("vdb", &disk(4, &[(0, MIB, 2)]));
    assert_eq!(roles(&host), ["domain-xml", "live-xml", "nvram"]);
    let whole = serde_json::json!({ "outcome": "done", "domains": [{
        "domain": "web", "outcome": "done", "error": null, "result": report,
    }], "excluded": [] });
    let rare = [
        ".excluded[]",
        ".domains[].result.missing[]",
        ".domains[].error",
        ".domains[].error.kind",
        ".domains[].error.text",
        ".domains[].error.advice",
    ];
    compare("backup of guests", &[&whole], &rare);
    // What the guest writes after the thaw is in the next point, found by the clones.
    guest.write(0, 2 * MIB, 65536, 3);
    guest.write(1, 2 * MIB, 65536, 4);
    let report = host.web(&[]);
    for disk in report["disks"].as_array().unwrap() {
        assert_eq!(disk["tracker"], "reflink", "{disk}");
        assert_eq!(disk["bytes_changed"], 65536, "{disk}");
    }
    host.assert_restores("vda", &disk(8, &[(0, MIB, 1), (2 * MIB, 65536, 3)]));
    host.assert_restores("vdb", &disk(4, &[(0, MIB, 2), (2 * MIB, 65536, 4)]));
    assert_eq!(host.virsh.log().len(), 4);
    let clones = fs::read_dir(mount.dir.join(".qdelta")).unwrap().count();
    assert_eq!(clones, 2, "one for each disk");
    // Without an anchor nothing stays.
    host.web(&["--anchor", "none"]);
    assert!(!mount.dir.join(".qdelta").exists());
    host.assert_sound();
    guest.stop();
    assert_eq!(host.web(&[])["consistency"], "offline");
    host.assert_sound();
}

/// Whose the folder of clones is shows before anything is frozen.
#[test]
fn a_folder_of_clones_that_is_not_ours_is_left_alone() {
    let host = Host::new();
    let mount = Mount::on_loop(host.lab.dir(), "xfs", 400 * MIB);
    let mut guest = Guest::define(&host, &mount.dir);
    guest.start("running");
    guest.write(0, 0, MIB, 1);
    let clones = mount.dir.join(".qdelta");
    fs::create_dir(&clones).unwrap();
    fs::set_permissions(&clones, fs::Permissions::from_mode(0o777)).unwrap();
    let said = host.web_fails(10, &["--anchor", "reflink"]);
    assert!(said.contains("is not qdelta's"), "{said}");
    assert!(host.virsh.log().is_empty(), "it was refused before anything was frozen");
    fs::remove_dir(&clones).unwrap();
    host.web(&["--anchor", "reflink"]);
    host.assert_restores("vda", &disk(8, &[(0, MIB, 1)]));
    host.assert_sound();
}

#[test]
fn where_nothing_can_be_cloned_the_choices_are_listed_and_each_works() {
    let host = Host::new();
    let mount = Mount::in_memory(host.lab.dir(), 64 * MIB);
    let mut guest = Guest::define(&host, &mount.dir);
    guest.start("running");
    guest.write(0, 0, MIB, 1);
    guest.write(1, 0, MIB, 2);
    let said = host.web_fails(10, &[]);
    for choice in ["XFS", "--snapshot-command", "freeze-copy", "external-snapshot", "stop"] {
        assert!(said.contains(choice), "{choice}: {said}");
    }
    assert!(host.virsh.log().is_empty(), "it was refused before anything was frozen");

    let report = host.web(&["--consistency", "freeze-copy"]);
    assert_eq!(report["consistency"], "filesystem-quiesced");
    host.assert_restores("vda", &disk(8, &[(0, MIB, 1)]));
    host.assert_restores("vdb", &disk(4, &[(0, MIB, 2)]));

    // A command that makes the moment: here by copying. What it names may be a symlink, as the names
    // of logical volumes are.
    guest.write(0, MIB, MIB, 3);
    let command = host.lab.path("snapshot");
    let text = "#!/bin/bash
case $1 in
create) cp \"$2\" \"$2.copy\" && ln -s \"$2.copy\" \"$2.link\" && echo \"$2.link\" ;;
release) ! ls -l /proc/[0-9]*/fd 2>/dev/null | grep -qF -- \"$2.copy\" && [ \"$3\" = \"$2.link\" ] && rm \"$3\" \"$2.copy\" && echo \"$QDELTA_DOMAIN $2\" >>\"$(dirname \"$0\")/released\" ;;
esac\n";
    script(&command, text);
    let report = host.web(&["--snapshot-command", command.to_str().unwrap()]);
    assert_eq!(report["consistency"], "filesystem-quiesced");
    host.assert_restores("vda", &disk(8, &[(0, 2 * MIB, 0), (0, MIB, 1), (MIB, MIB, 3)]));
    let released = fs::read_to_string(host.lab.path("released")).unwrap();
    assert_eq!(released.lines().count(), 2, "{released}");
    assert!(released.starts_with("web /"), "{released}");
    // One that fails, one that prints nonsense, one that is too slow: no point, and a thaw.
    let before = host.virsh.log().len();
    for (line, why, limit) in [
        ("exit 3", "exit status: 3", "60000"),
        ("echo gone", "no absolute path", "60000"),
        ("sleep 60", "not ready", "8000"),
    ] {
        script(&command, &format!("#!/bin/bash\n[ $1 = create ] || exit 0\n{line}\n"));
        let word = command.to_str().unwrap();
        let said = host.web_fails(10, &["--snapshot-command", word, "--freeze-max", limit]);
        assert!(said.contains(why), "{why}: {said}");
        assert!(!host.virsh.is_frozen());
    }
    let calls = host.virsh.log().split_off(before);
    assert_eq!(verbs(&calls), ["domfsfreeze", "domfsthaw"].repeat(3));
    host.assert_sound();
}

/// A command printed the live image itself, and what was read of it while the guest wrote was called
/// quiesced. Nor is anything believed that is the image by another name, that lies over it, that
/// somebody else writes to, or that is older than the image.
#[test]
fn a_snapshot_command_that_makes_no_moment() {
    let host = Host::new();
    let mut guest = Guest::define(&host, host.lab.dir());
    guest.start("running");
    guest.write(0, 0, MIB, 1);
    let command = host.lab.path("snapshot");
    let word = command.to_str().unwrap();
    for (line, why) in [
        ("echo \"$2\"", "it is the live image"),
        ("ln -sf \"$2\" \"$2.link\" && echo \"$2.link\"", "it is the live image"),
        ("ln -f \"$2\" \"$2.hard\" && echo \"$2.hard\"", "it is the live image"),
        ("exec 7<\"$2\"; echo /proc/$$/fd/7; sleep 1 >&- &", "that is no absolute path"),
        ("mkfifo \"$2.fifo\"; echo \"$2.fifo\"", "neither a regular file"),
        ("dirname \"$2\"", "neither a regular file"),
        ("echo", "that is no absolute path"),
        ("cp \"$2\" \"$2.old\"; touch -d '1 hour ago' \"$2.old\"; echo \"$2.old\"", "it is older"),
    ] {
        script(&command, &format!("#!/bin/bash\n[ $1 = create ] || exit 0\n{line}\n"));
        let said = host.web_fails(10, &["--snapshot-command", word]);
        assert!(said.contains(why), "{line}: {said}");
        assert!(!host.virsh.is_frozen());
    }
    // What lies over the live image, of the same disk and of the other.
    let (vda, vdb) = (guest.vda(), guest.vdb());
    for (below, format, status, why) in
        [(&vda, "qcow2", 3, "form a loop"), (&vdb, "raw", 10, "a guest writes to it")]
    {
        let text = format!(
            "#!/bin/bash
[ $1 = create ] || exit 0
case $2 in
*.qcow2) qemu-img create -q -f qcow2 -F {format} -b {} \"$2.over\" 8M >&2; echo \"$2.over\" ;;
*) cp \"$2\" \"$2.copy\"; echo \"$2.copy\" ;;
esac\n",
            below.display()
        );
        script(&command, &text);
        let said = host.web_fails(status, &["--snapshot-command", word]);
        assert!(said.contains(why), "{said}");
        fs::remove_file(vda.with_extension("qcow2.over")).unwrap();
    }
    // A device over it.
    let device = run(as_root("losetup", args!["-f", "--show", vdb.as_path()])).ok().text();
    let device = device.trim();
    run(as_root("chmod", args!["0666", device])).ok();
    let copy = "cp \"$2\" \"$2.copy\" && echo \"$2.copy\"";
    let line = format!("case $2 in *.qcow2) {copy} ;; *) echo {device} ;; esac");
    script(&command, &format!("#!/bin/bash\n[ $1 = create ] || exit 0\n{line}\n"));
    let said = host.backup(&["--domain", "web", "--snapshot-command", word]);
    run(as_root("losetup", args!["-d", device])).ok();
    assert!(said.fails_with(10).contains("it is the live image"));
    assert!(host.points().is_empty());
    host.assert_sound();
}

/// The image itself is right where the command has moved the guest to another file.
#[test]
fn a_snapshot_command_that_moves_the_guest_away() {
    let host = Host::new();
    let mut guest = Guest::define(&host, host.lab.dir());
    guest.start("running");
    guest.write(0, 0, MIB, 1);
    guest.write(1, 0, MIB, 2);
    let command = host.lab.path("snapshot");
    let text = "#!/bin/bash
[ $1 = create ] || exit 0
touch \"$2.want\"
for i in {1..500}; do [ -e \"$2.want\" ] || break; sleep 0.02; done
echo \"$2\"\n";
    script(&command, text);
    let images = [guest.vda(), guest.vdb()];
    std::thread::scope(|scope| {
        let guest = &mut guest;
        scope.spawn(move || {
            for (disk, image) in images.iter().enumerate() {
                let want = std::path::PathBuf::from(format!("{}.want", image.display()));
                wait_until("a call of the command", || want.exists());
                guest.leave(disk);
                guest.write(disk, 0, MIB, 9);
                fs::remove_file(want).unwrap();
            }
        });
        let word = command.to_str().unwrap();
        let report = host.web(&["--snapshot-command", word, "--freeze-max", "60000"]);
        assert_eq!(report["consistency"], "filesystem-quiesced");
    });
    host.assert_restores("vda", &disk(8, &[(0, MIB, 1)]));
    host.assert_restores("vdb", &disk(4, &[(0, MIB, 2)]));
    host.assert_sound();
}

/// A release failed night by night, with status 0 and in no JSON, until the volume group was full.
#[test]
fn a_snapshot_command_that_does_not_release() {
    let host = Host::new();
    let mut guest = Guest::define(&host, host.lab.dir());
    guest.start("running");
    guest.write(0, 0, MIB, 1);
    let command = host.lab.path("snapshot");
    let text = "#!/bin/bash
case $1 in
create) cp \"$2\" \"$2.copy\" && echo \"$2.copy\" ;;
release) case $2 in *.raw) echo 'the volume is busy' >&2; exit 5 ;; esac ;;
esac\n";
    script(&command, text);
    let word = command.to_str().unwrap();
    let done = host.backup(&["--domain", "web", "--snapshot-command", word]);
    assert_eq!(done.code(), Some(13), "{}", done.report());
    let outcome = &done.json()["domains"][0];
    assert_eq!(outcome["error"], Value::Null);
    assert_eq!(outcome["outcome"], "not-released");
    assert_eq!(done.json()["outcome"], "not-released");
    let warnings = outcome["result"]["warnings"].as_array().unwrap();
    let warning = warnings.iter().find(|it| it["code"] == "not-released").unwrap();
    assert!(text_of(warning).contains("the volume is busy"), "{warning}");
    assert!(done.stderr.contains("the volume is busy"), "{}", done.report());
    assert_eq!(host.points().len(), 1, "the point is good");
    host.assert_restores("vda", &disk(8, &[(0, MIB, 1)]));
    // Also where the backup fails: the first error is what it ends with, and both are said.
    let text = "#!/bin/bash\n[ $1 = check ] || { echo 'no such luck' >&2; exit 5; }\n";
    script(&command, text);
    let said = host.web_fails(10, &["--snapshot-command", word]);
    assert!(said.contains("create") && said.contains("release"), "{said}");
    host.assert_sound();
}

#[test]
fn a_freeze_copy_gives_up_at_its_limit() {
    let host = Host::new();
    let mut guest = Guest::define(&host, host.lab.dir());
    guest.start("running");
    guest.write(1, 0, MIB, 1);
    // Whatever is read of this image takes longer than that.
    let words = ["--domain", "web", "--consistency", "freeze-copy", "--freeze-max", "3000"];
    let words = [host.words(&words), args!["--io", "threads"]].concat();
    let slowly = "inject=pread64:delay_enter=4s";
    let options = args!["-P", guest.vdb(), "-e", "trace=pread64", "-e", slowly, "-o", "/dev/null"];
    // strace may fail where a thaw that it traces is ended in the middle of a signal.
    let alone = args!["-b", "execve"];
    let said = run(traced([alone, options].concat(), words)).fails_with(10);
    assert!(said.contains("could not be read within 3000 ms of freeze"), "{said}");
    assert!(host.points().is_empty());
    assert_eq!(verbs(&host.virsh.log()), ["domfsfreeze", "domfsthaw"]);
    assert!(!host.virsh.is_frozen());
    host.assert_sound();
}

#[test]
fn a_paused_guest_is_still_and_is_not_asked() {
    let host = Host::new();
    let mount = Mount::on_loop(host.lab.dir(), "xfs", 400 * MIB);
    let mut guest = Guest::define(&host, &mount.dir);
    guest.start("paused");
    let report = host.web(&[]);
    assert_eq!(report["consistency"], "crash-consistent");
    assert!(report["warnings"].to_string().contains("paused"));
    assert!(host.virsh.log().is_empty());
    host.assert_sound();
}

#[test]
fn a_freeze_that_did_not_hold_makes_no_point() {
    let host = Host::new();
    let mount = Mount::on_loop(host.lab.dir(), "xfs", 400 * MIB);
    let mut guest = Guest::define(&host, &mount.dir);
    guest.start("running");
    host.virsh.tell("thaw-fails", "1");
    let said = host.web_fails(10, &[]);
    assert!(said.contains("was not frozen all the time"), "{said}");
    host.virsh.tell("freeze-fails", "");
    let said = host.web_fails(10, &[]);
    assert!(said.contains("Guest agent is not responding"), "{said}");
    assert!(!mount.dir.join(".qdelta").exists(), "no clone is left");
    host.assert_sound();
}

#[test]
fn an_image_that_somebody_else_uses_is_left_alone() {
    let host = Host::new();
    let mut guest = Guest::define(&host, host.lab.dir());
    guest.start("running");
    fs::remove_file(host.lab.path("run/qemu/web.xml")).unwrap();
    let said = host.web_fails(5, &[]);
    assert!(said.contains("being written to"), "{said}");
    fs::write(host.lab.path("run/qemu/web.xml"), "").unwrap();
    host.web_fails(3, &[]);
}

#[test]
fn one_domain_that_fails_does_not_stop_the_others() {
    let host = Host::new();
    let guest = Guest::define(&host, host.lab.dir());
    let broken = guest.xml().replace("<name>web", "<name>broken").replace("web.qcow2", "gone");
    fs::write(host.lab.path("etc/qemu/broken.xml"), broken).unwrap();
    let remote = guest.xml().replace("<name>web", "<name>remote");
    let remote = remote.replace("type='file' device='disk'", "type='network' device='disk'");
    fs::write(host.lab.path("etc/qemu/remote.xml"), remote).unwrap();
    let outcome = host.backup(&["--all"]);
    assert_eq!(outcome.code(), Some(12), "{}", outcome.report());
    let domains = outcome.json()["domains"].clone();
    let outcomes: Vec<_> = (0..3).map(|index| text(&domains[index]["outcome"])).collect();
    assert_eq!(outcomes, ["failed", "failed", "done"], "{domains}");
    let kinds: Vec<_> = (0..2).map(|index| text(&domains[index]["error"]["kind"])).collect();
    assert_eq!(kinds, ["not-found", "image"], "{domains}");
    assert!(text(&domains[1]["error"]["text"]).contains("lies on a server"));
    assert!(text(&domains[1]["error"]["advice"]).contains("--exclude remote/vda"), "{domains}");
    assert_eq!(outcome.json()["outcome"], "some-failed");
    assert_eq!(domains[2]["domain"], "web");
    assert!(outcome.stderr.contains("broken") && outcome.stderr.contains("--exclude remote/vda"));
    let words = host.words(&["--domain", "web", "--domain", "nobody"]);
    let text: Vec<_> = words.into_iter().filter(|word| word != "--json").collect();
    let outcome = run(qdelta(text));
    assert_eq!(outcome.code(), Some(12));
    assert!(outcome.text().contains("1 of 2 domains were backed up; not nobody"));
    host.backup(&["--domain", "nobody"]).fails_with(6);
    host.backup(&["--domain", "web", "--all"]).fails_with(2);
    host.assert_sound();
}

/// `--exclude vdb` left out `vdb` of every guest of `--all`, and a name with a typo nothing, in silence.
#[test]
fn an_exclusion_means_one_disk_of_one_guest() {
    let host = Host::new();
    let guest = Guest::define(&host, host.lab.dir());
    let other =
        guest.xml().replace("<name>web", "<name>my db").replace(UUID, &UUID.replace('c', "d"));
    fs::write(host.lab.path("etc/qemu/my db.xml"), other).unwrap();
    let left_out = |report: &Value| -> Vec<(String, String)> {
        let domains = report["domains"].as_array().unwrap().iter();
        let disks = domains.flat_map(|domain| {
            let left_out = domain["result"]["left_out"].as_array().unwrap().iter();
            let ours = left_out.filter(|it| it["reason"] == "was excluded");
            ours.map(|it| (text(&domain["domain"]).to_owned(), text(&it["disk"]).to_owned()))
        });
        disks.collect()
    };
    let both = &["--domain", "web", "--domain", "my db"];
    let wrong: &[(&[&str], &[&str], &str)] = &[
        (&["--all"], &["--exclude", "vdb"], "--exclude GUEST/vdb"),
        (both, &["--exclude", "vdb"], "--exclude GUEST/vdb"),
        (&["--all"], &["--exclude", "wbe/vdb"], "no such guest"),
        (&["--domain", "web"], &["--exclude", "my db/vdb"], "no such guest"),
        (&["--all"], &["--exclude", "web/vdz"], "it has sda, vda, vdb"),
        (&["--domain", "web"], &["--exclude", "vdz"], "it has sda, vda, vdb"),
        (&["--domain", "web"], &["--exclude", ""], "it has sda, vda, vdb"),
        (&["--all"], &["--exclude", "web/vdb", "--exclude", "my db/vdz"], "it has sda, vda, vdb"),
        (&["--all"], &["--exclude-guest", "wbe"], "no such guest"),
        (&["--all"], &["--exclude-guest", "web", "--exclude", "web/vdb"], "no such guest"),
        (&["--all"], &["--exclude-guest", "web", "--exclude-guest", "my db"], "nothing is left"),
        (&["--domain", "web"], &["--exclude-guest", "web"], "--exclude-guest is for --all"),
    ];
    for (which, options, why) in wrong {
        let said = host.backup(&[*which, *options].concat()).fails_with(2);
        assert!(said.contains(why), "{options:?}: {said}");
        assert!(host.points().is_empty(), "{options:?}: something was backed up");
    }
    let folder = format!("my_db-{}", &UUID.replace('c', "d")[..8]);
    let in_repository = format!("{folder}/vdb");
    // Which guests, which options, and which disks are left out.
    type Case<'a> = (&'a [&'a str], &'a [&'a str], &'a [(&'a str, &'a str)]);
    let right: &[Case<'_>] = &[
        (&["--all"], &["--exclude", "web/vdb"], &[("web", "vdb")]),
        (&["--all"], &["--exclude", "my db/vdb"], &[("my db", "vdb")]),
        (&["--all"], &["--exclude", &in_repository], &[("my db", "vdb")]),
        (
            both,
            &["--exclude", "web/vda", "--exclude", "my db/vdb"],
            &[("web", "vda"), ("my db", "vdb")],
        ),
        (&["--domain", "web"], &["--exclude", "vdb"], &[("web", "vdb")]),
        (&["--domain", "web"], &["--exclude", "web/vdb"], &[("web", "vdb")]),
    ];
    for (which, options, expected) in right {
        let report = host.backup(&[*which, *options].concat()).ok().json();
        let expected: Vec<_> =
            expected.iter().map(|(guest, disk)| (guest.to_string(), disk.to_string())).collect();
        assert_eq!(left_out(&report), expected, "{options:?}");
        assert_eq!(report["excluded"].as_array().unwrap().len(), 0);
    }
    let report = host.backup(&["--all", "--exclude-guest", "my db"]).ok().json();
    assert_eq!(report["excluded"][0], "my db");
    assert_eq!(report["domains"].as_array().unwrap().len(), 1);
    // A guest that can't be looked at fails by itself, and not the others with it.
    fs::write(host.lab.path("etc/qemu/my db.xml"), "").unwrap();
    let outcome = host.backup(&["--all", "--exclude", "my db/vdb"]);
    assert_eq!(outcome.code(), Some(12), "{}", outcome.report());
}

/// Under cron virsh reached no libvirt: a minute of thawing for each guest, and an alarm, without the words
/// that would have helped.
#[test]
fn where_virsh_reaches_no_libvirt_it_is_said_at_once() {
    let host = Host::new();
    let mount = Mount::on_loop(host.lab.dir(), "xfs", 400 * MIB);
    let mut guest = Guest::define(&host, &mount.dir);
    guest.start("running");
    let begin = std::time::Instant::now();
    let reasons = ["failed to connect to the hypervisor", "failed to get domain 'web'"];
    for said in reasons {
        host.virsh.tell("says-domfsfreeze", &format!("error: {said}"));
        host.virsh.tell("says-domfsthaw", &format!("error: {said}"));
        let shown = host.web_fails(10, &[]);
        assert!(shown.contains(said) && shown.contains("--connect"), "{shown}");
        assert!(!shown.contains("ALARM"), "{shown}");
    }
    assert!(begin.elapsed() < Duration::from_secs(50), "{:?}", begin.elapsed());
    host.virsh.forget("says-domfsfreeze");
    host.virsh.forget("says-domfsthaw");
    host.web(&[]);
    host.assert_sound();
}

/// An alarm is the status of the whole run, and the next run thaws first.
#[test]
fn a_guest_that_may_be_frozen_is_thawed_first_by_the_next_run() {
    let host = Host::new();
    let mount = Mount::on_loop(host.lab.dir(), "xfs", 400 * MIB);
    let mut guest = Guest::define(&host, &mount.dir);
    guest.start("running");
    // Both the program and its watchdog are killed: only the mark is left.
    host.virsh.tell("freeze-hangs", "");
    let mut command = qdelta(host.words(&["--domain", "web", "--freeze-max", "60000"]));
    let child = start(&mut command);
    wait_until("the freeze", || host.virsh.is_frozen());
    let own = i32::try_from(child.id()).unwrap();
    // The first to die must not be missed by the other one, which would thaw.
    kill(own, Signal::STOP);
    for pid in children_of(own).into_iter().chain([own]) {
        kill(pid, Signal::KILL);
    }
    finish(child, describe(&command));
    host.virsh.forget("freeze-hangs");
    assert!(host.repo.frozen_mark("web").exists() && host.virsh.is_frozen());
    let before = host.virsh.log().len();
    // Also if the run can do nothing else.
    let elsewhere = guest.vdb().with_extension("elsewhere");
    fs::rename(guest.vdb(), &elsewhere).unwrap();
    assert_ne!(host.backup(&["--domain", "web"]).code(), Some(0));
    assert!(!host.virsh.is_frozen());
    fs::rename(&elsewhere, guest.vdb()).unwrap();
    host.web(&[]);
    let calls = host.virsh.log().split_off(before);
    assert_eq!(verbs(&calls), ["domfsthaw", "domfsfreeze", "domfsthaw"]);
    host.assert_sound();
}

/// What virsh was called for. One call stands for all the tries of a thaw: a short one may be too short
/// on a busy machine.
fn verbs(calls: &[String]) -> Vec<&str> {
    let mut verbs: Vec<&str> = calls.iter().filter_map(|call| call.split(' ').next()).collect();
    verbs.dedup();
    verbs
}

fn kill(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// The processes that a process has started.
fn children_of(pid: i32) -> Vec<i32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = fs::read_to_string(path).unwrap();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// The program is killed at any moment of its work: the guest is thawed, and what the repository
/// held is there.
#[test]
fn the_program_is_killed_at_any_moment() {
    let host = Host::new();
    let mount = Mount::on_loop(host.lab.dir(), "xfs", 400 * MIB);
    let mut guest = Guest::define(&host, &mount.dir);
    guest.start("running");
    guest.write(0, 0, MIB, 1);
    host.web(&["--anchor", "reflink"]);
    host.virsh.tell("freeze-takes", "0.05");
    let mut killed = 0;
    for round in 0..25 * sweep() {
        guest.write(0, MIB, 65536, round as u8);
        let mut command = qdelta(host.words(&["--domain", "web", "--io", "threads"]));
        let child = start(&mut command);
        std::thread::sleep(Duration::from_millis(round * 7 % 200));
        // It may be done already.
        let _ = kill_process(Pid::from_child(&child), Signal::KILL);
        killed += u32::from(finish(child, describe(&command)).killed());
        wait_until("the thaw", || !host.virsh.is_frozen());
        wait_until("the mark's end", || !host.repo.frozen_mark("web").exists());
    }
    assert!(killed > 0, "nothing was ever killed");
    host.web(&[]);
    host.assert_sound();
    let clones = fs::read_dir(mount.dir.join(".qdelta")).unwrap().count();
    assert_eq!(clones, 2, "what the killed ones left was removed");
}

#[test]
fn a_name_that_no_folder_can_have_is_changed() {
    let host = Host::new();
    let guest = Guest::define(&host, host.lab.dir());
    let xml = guest.xml().replace("<name>web", "<name>My VM");
    fs::write(host.lab.path("etc/qemu/My VM.xml"), xml).unwrap();
    let report = host.backup(&["--domain", "My VM"]).ok().json()["domains"][0]["result"].clone();
    assert_eq!(report["domain"], "My VM");
    assert_eq!(report["disks"][0]["disk"], format!("My_VM-{}/vda", &UUID[..8]));
    run(qdelta(host.repo.args(args!["verify"]))).ok();
}

/// A guest with a qcow2 disk and a raw one got bitmaps, and every night warned that the raw one has none, with
/// an advice that would have ended those of the other, too.
#[test]
fn a_raw_disk_beside_one_with_a_bitmap_is_no_news_every_night() {
    let host = Host::new();
    let _guest = Guest::define(&host, host.lab.dir());
    let codes = |options: &[&str]| {
        let report = host.web(options);
        let disks = report["disks"].as_array().unwrap().iter();
        let found = disks.flat_map(|disk| disk["warnings"].as_array().unwrap());
        let found: Vec<String> = found.map(|it| text(&it["code"]).to_owned()).collect();
        (found, report["disks"][0]["anchor"].is_string())
    };
    let warned = (vec!["no-anchor".to_owned()], true);
    assert_eq!(codes(&["--anchor", "bitmap"]), warned);
    assert_eq!(codes(&[]), (Vec::new(), true));
    assert_eq!(codes(&[]), (Vec::new(), true));
    // What is asked for and can't be is said.
    assert_eq!(codes(&["--anchor", "bitmap"]), warned);
}
