//! Nights on which something was silent, or said what was not so.

use std::ffi::OsString;
use std::fs;

use super::telling::Told;
use super::{MAIL, MIB, Night, WEB, ends, records};
use crate::harness::files::Mount;
use crate::harness::images::guest_io;
use crate::harness::run::as_root;
use crate::harness::{args, run};

/// "All right again" was told of guests whose repository was away, they were shown as OK, and an alarm that was sent on
/// to another address by a redirect arrived nowhere and counted as told.
#[test]
fn nothing_is_all_right_of_which_nothing_is_known() {
    let told = Told::new();
    let night = &told.night;
    told.run("2026-10-18 10:00:00");
    told.run("2026-10-19 00:35:00");
    told.at("2026-10-21 00:20:00", args!["notify"]);
    let (_, text) = told.mails().pop().unwrap();
    assert!(text.contains("web: its newest good point is"), "{text}");
    fs::rename(night.main(), night.lab.path("away")).unwrap();
    told.at("2026-10-21 00:25:00", args!["notify"]);
    let (_, text) = told.mail();
    assert!(text.contains("CRITICAL main: ") && !text.contains("Over"), "{text}");
    let status = told.at("2026-10-21 00:26:00", args!["status", "--json"]).json();
    let web = status["guests"].as_array().unwrap().iter().find(|it| it["guest"] == "web").unwrap();
    assert_eq!(web["level"], "critical", "{web}");
    fs::rename(night.lab.path("away"), night.main()).unwrap();
    told.at("2026-10-21 00:27:00", args!["notify"]);
    let (_, text) = told.mail();
    assert!(!text.contains("CRITICAL web"), "it was told before: {text}");

    // Libvirt's folder is empty: no guest is over its RPO then, and nothing is all right.
    let etc = night.lab.path("etc/qemu");
    fs::rename(&etc, night.lab.path("etc/away")).unwrap();
    night.assert_open_has("2026-10-21 00:28:00", "unreadable libvirt", "no guest at all");
    told.at("2026-10-21 00:28:30", args!["notify"]);
    let (_, text) = told.mail();
    assert!(text.contains("CRITICAL libvirt: ") && !text.contains("Over\n  web"), "{text}");
    fs::rename(night.lab.path("etc/away"), &etc).unwrap();

    told.sink.answer(302);
    let tested = told.at("2026-10-21 00:29:00", args!["notify", "--test", "--json"]).json();
    let phone = tested["notifiers"].as_array().unwrap();
    let phone = phone.iter().find(|it| it["notifier"] == "phone").unwrap();
    let text = phone["error"]["text"].as_str().unwrap();
    assert!(text.contains("answered 302, and sends on to another address"), "{text}");
}

/// Of a guest in two jobs, each removed the points that the other keeps.
#[test]
fn two_jobs_with_other_rules_prune_no_guest_of_both() {
    let night = Night::new();
    let hourly = "[jobs.hourly]\nrepository = \"main\"\nguests = [\"web\"]\n\
                  [jobs.hourly.prune]\nkeep = { last = 1 }";
    night.configure("", hourly);
    let checked = night.at("2026-10-18 10:00:00", args!["config", "check"]);
    assert!(checked.report().contains("neither prunes it"), "{}", checked.report());
    for minute in 0..3 {
        let time = format!("2026-10-18 10:1{minute}:00");
        let made = records(&night.at(&time, args!["run", "hourly", "--json"]));
        assert_eq!(ends(&made, "hourly prune -"), ["warned"]);
    }
    let points =
        night.at("2026-10-18 11:00:00", args!["points", "web", "--repo", night.main(), "--json"]);
    assert_eq!(
        points.json()["disks"][0]["points"].as_array().map_or(0, Vec::len),
        3,
        "{}",
        points.report()
    );
    night.assert_open_has(
        "2026-10-18 11:00:00",
        "warned hourly",
        "production prunes web by other rules",
    );
}

/// A night's backups went on into the room that was to stay free: it was looked at once, before the first of them.
#[test]
fn no_backup_begins_where_those_before_it_took_the_room() {
    let night = Night::new();
    night.define("d-two", 4, &["vda"]);
    let mut state = 7_u32;
    let byte = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let noise: Vec<u8> = std::iter::repeat_with(byte).take(2 * MIB as usize).collect();
    fs::write(night.lab.path("noise"), noise).unwrap();
    for guest in ["web", "db", "d-two"] {
        let write = format!("write -q -s {} 0 2M", night.lab.path("noise").display());
        guest_io(&night.image(guest, "vda"), "qcow2", &[write]);
    }
    let file = night.lab.path("qdelta.toml");
    let text = fs::read_to_string(&file).unwrap();
    let text = text.replace("guests_at_once = 2", "guests_at_once = 1");
    let text = text.replace("repository = \"main\"", "repository = \"small\"");
    let text = text.replace("/repo\"\n[libvirt]", "/repo\"\nkeep_free = \"5M\"\n[libvirt]");
    fs::write(&file, text).unwrap();
    let made = records(&night.at("2026-10-18 10:00:00", args!["run", "production", "--json"]));
    let backup = |guest: &str| ends(&made, &format!("production backup {guest}"));
    assert_eq!([backup("d-two"), backup("db")], [["done"], ["done"]], "{made:#?}");
    assert_eq!([backup("web"), backup("-")], [["not-tried"], ["failed"]], "{made:#?}");
    let open = "2026-10-18 10:05:00";
    night.assert_open_has(open, "failed web", "backup not tried: nothing was begun: ");
    night.assert_open_has(open, "room small", "is to stay free");
}

/// In the night in which half past two comes twice, nobody knew which of the two was missed.
#[test]
fn a_time_that_comes_twice_is_missed_as_what_it_is() {
    let night = Night::new();
    night.run("2026-10-23 12:00:00");
    night.run("2026-10-24 00:35:00");
    assert!(night.run("2026-10-25 00:15:00").is_empty());
    night.assert_open("2026-10-25 01:25:00", &[]);
    let missed = "backup was due at 2026-10-25 02:30 CEST, and nothing has started it";
    night.assert_open(
        "2026-10-25 01:31:00",
        &[("overdue office", missed), ("overdue production", missed)],
    );
    assert_eq!(ends(&night.run("2026-10-25 01:35:00"), WEB), ["done"]);
    night.assert_open("2026-10-25 02:35:00", &[]);
    assert!(night.run("2026-10-25 02:45:00").is_empty());
    assert_eq!(ends(&night.run("2026-10-26 01:35:00"), WEB), ["done"]);
}

/// The state lay on a filesystem that went read-only, as ext4's do: no run began any more, and nobody was told, because it
/// could not be noted who was.
#[test]
fn who_can_not_remember_tells_all_the_same_and_once() {
    let night = Night::new();
    let folder = night.lab.path("state-of-host");
    fs::create_dir(&folder).unwrap();
    let state = Mount::in_memory(&folder, 4 * MIB);
    let heard = night.lab.path("heard");
    night.configure("", &format!("[notify.ear]\ncommand = \"cat >>{}\"", heard.display()));
    let at = |time: &str, words: Vec<OsString>| {
        let mut command = night.command(time, words);
        command.env("STATE_DIRECTORY", &state.dir);
        run(command).sane()
    };
    let remount = |how: &str| {
        run(as_root("mount", args!["-o", format!("remount,{how}"), &state.dir])).ok();
    };
    let told = || {
        let text = fs::read_to_string(&heard).unwrap_or_default();
        let _ = fs::remove_file(&heard);
        text
    };
    at("2026-10-18 10:00:00", args!["run"]).ok();
    at("2026-10-19 00:35:00", args!["run"]).ok();
    let _ = told();
    remount("ro");
    let said = at("2026-10-20 00:35:00", args!["run"]).fails_with(1);
    assert!(said.contains("Read-only file system"), "{said}");
    let text = told();
    for words in [
        "CRITICAL run: a run failed: ",
        "CRITICAL state: what this host remembers can't be written: ",
    ] {
        assert_eq!(text.matches(words).count(), 1, "{words}: {text}");
    }
    for time in ["2026-10-20 00:45:00", "2026-10-20 00:55:00"] {
        at(time, args!["run"]).fails_with(1);
        assert_eq!(told(), "", "it was told before");
    }
    let open = at("2026-10-20 00:56:00", args!["status", "--json"]).json();
    let open = open["findings"].as_array().unwrap();
    assert!(open.iter().any(|it| it["subject"] == "state"), "{open:#?}");
    remount("rw");
    let done = records(&at("2026-10-20 01:05:00", args!["run", "--json"]));
    assert_eq!([ends(&done, WEB), ends(&done, MAIL)], [["done"], ["done"]]);
    let text = told();
    assert!(text.contains("  state: what this host remembers can't be written"), "{text}");
    assert!(!text.contains("New\n"), "{text}");
    assert!(at("2026-10-20 01:15:00", args!["run", "--json"]).stdout.len() < 1000);
    assert_eq!(told(), "");
}

/// With a full state folder each tick of the timer froze and backed up all guests again, and pruned a night each time.
#[test]
fn a_run_that_can_not_be_noted_does_not_begin() {
    let night = Night::new();
    let folder = night.lab.path("state-of-host");
    fs::create_dir(&folder).unwrap();
    let state = Mount::in_memory(&folder, MIB / 2);
    let at = |time: &str| {
        let mut command = night.command(time, args!["run", "--json"]);
        command.env("STATE_DIRECTORY", &state.dir);
        run(command).sane()
    };
    let heard = night.lab.path("heard");
    let ear = format!("[notify.ear]\ncommand = \"cat >>{0}; echo == >>{0}\"", heard.display());
    night.configure("", &ear);
    at("2026-10-18 10:00:00").ok();
    fs::remove_file(&heard).unwrap();
    // The last page of the history is filled as well: nothing more can be noted.
    let history = state.dir.join("jobs/history.jsonl");
    let rest = 4096 - fs::metadata(&history).unwrap().len() as usize % 4096;
    let mut file = fs::OpenOptions::new().append(true).open(history).unwrap();
    std::io::Write::write_all(&mut file, &vec![b'\n'; rest]).unwrap();
    let mut len = 1 << 20;
    while len > 0 {
        let file = fs::OpenOptions::new().create(true).append(true).open(state.dir.join("fill"));
        if std::io::Write::write_all(&mut file.unwrap(), &vec![0; len]).is_err() {
            len /= 2;
        }
    }
    let outcome = at("2026-10-19 00:35:00");
    assert_eq!(outcome.code(), Some(8), "{}", outcome.report());
    assert!(outcome.stderr.contains("could not be noted"), "{}", outcome.report());
    assert!(!night.repo().place_of("web").exists(), "nothing was backed up");
    let told = fs::read_to_string(&heard).unwrap();
    assert!(told.contains("a run failed: ") && told.matches("==").count() == 1, "{told}");
    fs::remove_file(state.dir.join("fill")).unwrap();
    let done = records(&at("2026-10-19 00:45:00"));
    assert_eq!([ends(&done, WEB), ends(&done, MAIL)], [["done"], ["done"]]);
}

/// History showed times of the host's zone without saying so; a name that was typed wrong, and a repository that nobody
/// reads, were passed over in silence; and more was to stay free than there is.
#[test]
fn what_would_be_passed_over_in_silence_is_said() {
    let night = Night::new();
    night.run("2026-10-18 10:00:00");
    night.run("2026-10-19 00:35:00");
    let at = |words| night.at("2026-10-19 01:00:00", words);
    let shown = at(args!["history", "--act", "backup", "--job", "prodution"]).ok();
    let said = &shown.stderr;
    assert!(
        said.contains("knows no job \"prodution\"") && said.contains("\"production\""),
        "{said}"
    );
    let mut command = night.command("2026-10-19 01:00:00", args!["history", "--act", "backup"]);
    command.env("TZ", "America/New_York");
    let shown = run(command).ok().text();
    assert!(shown.contains("times are of Europe/Berlin"), "{shown}");
    assert!(shown.contains("2026-10-19 02:35"), "{shown}");
    for command in ["run", "status", "history"] {
        let said = at(args![command, "--repo", night.main()]).fails_with(2);
        assert!(said.contains("--repo has no effect: the file of jobs"), "{said}");
    }
    let path = night.lab.path("qdelta.toml");
    let text = fs::read_to_string(&path).unwrap();
    let main = "[repositories.main]\n";
    fs::write(&path, text.replace(main, &format!("{main}keep_free = \"900T\"\n"))).unwrap();
    let said = at(args!["config", "check"]).fails_with(2);
    assert!(
        said.contains("repository main: keep_free is") && said.contains("filesystem has"),
        "{said}"
    );
}
