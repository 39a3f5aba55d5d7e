//! Nights on which something was silent, or said what was not so.

use std::fs;

use super::telling::Told;
use super::{MAIL, MIB, Night, WEB, ends, records};
use crate::harness::files::Mount;
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
    at("2026-10-18 10:00:00").ok();
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
    assert!(!night.main().join("web").exists(), "nothing was backed up");
    fs::remove_file(state.dir.join("fill")).unwrap();
    let done = records(&at("2026-10-19 00:45:00"));
    assert_eq!([ends(&done, WEB), ends(&done, MAIL)], [["done"], ["done"]]);
}
