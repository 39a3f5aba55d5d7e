//! Guests that went, moved, or were never meant: their points, and what is told of them.

use super::telling::Told;
use super::*;

/// The points of a guest in the repository `main` that are not removed.
#[track_caller]
fn points(night: &Night, time: &str, guest: &str) -> usize {
    let words = args!["points", guest, "--json", "--repo", night.main()];
    let list = night.at(time, words).ok().json();
    list["disks"][0]["points"].as_array().unwrap().len()
}

/// A guest that was gone for 30 days was never pruned any more: its own points alone let the clock be doubted, each night.
#[test]
fn a_guest_that_is_gone_for_long_is_pruned_by_the_rules() {
    let night = Night::new();
    night.edit("daily = 5", "last = 1");
    night.run("2026-01-01 10:00:00");
    for day in ["02", "03", "04"] {
        night.run(&format!("2026-01-{day} 02:05:00"));
    }
    fs::remove_file(night.definition("db")).unwrap();
    let undelete = |at: &str| {
        let words = args!["points", "db", "--json", "--removed", "--repo", night.main()];
        let list = night.at(at, words).ok().json();
        let removed = list["disks"][0]["points"].as_array().unwrap().clone();
        for point in removed.iter().filter(|it| !it["removed"].is_null()) {
            let point = format!("db@{}", point["point"].as_str().unwrap());
            night.at(at, args!["undelete", point, "--repo", night.main()]).ok();
        }
    };
    undelete("2026-01-04 08:00:00");
    let pruned = |records: &[Record]| {
        let record = records.iter().find(|it| it.name == "production prune -").unwrap();
        (record.end.clone(), record.text.clone())
    };
    // The nights of the others go on.
    night.run("2026-01-24 02:05:00");
    undelete("2026-01-24 08:00:00");
    let before = points(&night, "2026-01-24 08:00:00", "db");
    assert!(before > 1, "{before}");
    let records = night.run("2026-02-13 02:05:00");
    assert_eq!(pruned(&records).0, "done", "{records:#?}");
    assert_eq!(points(&night, "2026-02-13 08:00:00", "db"), 1);
    // A clock that really jumps is doubted still, for everybody.
    undelete("2026-02-13 08:00:00");
    let records = night.run("2026-06-13 01:05:00");
    assert_eq!(pruned(&records).0, "warned", "{records:#?}");
    assert_eq!(points(&night, "2026-06-13 08:00:00", "db"), before);
}

/// A guest moved to another host, which uses the same repository: this one went on pruning its points, those that the
/// other made, by its own rules.
#[test]
fn the_points_of_a_guest_that_moved_are_the_other_hosts() {
    let night = Night::new();
    night.edit("daily = 5", "last = 1");
    night.edit("guests = [\"web\", \"d*\"]", "guests = [\"d*\", \"w*\"]");
    night.run("2026-10-18 10:00:00");
    assert_quiet(&night.run("2026-10-19 00:35:00"));
    fs::remove_file(night.definition("web")).unwrap();
    night.run("2026-10-20 00:35:00");
    night.assert_open_has("2026-10-20 08:00:00", "gone web", "stay, by the rules of production");
    for time in ["2026-10-20 09:00:00", "2026-10-20 10:00:00", "2026-10-20 11:00:00"] {
        let image = night.image("web", "vda");
        let words = args!["backup", image, "--disk", "web/vda", "--repo", night.main()];
        let mut command = night.command(time, words);
        command.env("STATE_DIRECTORY", night.lab.path("state-of-another"));
        run(command).sane().ok();
    }
    let before = points(&night, "2026-10-20 12:00:00", "web");
    assert_eq!(before, 4);
    night.run("2026-10-21 00:35:00");
    assert_eq!(points(&night, "2026-10-21 08:00:00", "web"), before);
    let found = night.findings("2026-10-21 08:00:00");
    let gone = |it: &(String, String)| {
        it.0.starts_with("gone") && it.1.contains("another host backs it up into main")
    };
    assert!(found.iter().any(gone), "{found:#?}");
}

/// The points of a guest that was gone were lost, and that was told as "all right again".
#[test]
fn points_of_a_guest_that_went_are_missed_when_they_are_lost() {
    let told = Told::after_a_good_night();
    let night = &told.night;
    fs::remove_file(night.definition("db")).unwrap();
    told.run("2026-10-20 00:35:00");
    night.assert_open_has("2026-10-20 08:00:00", "gone db", "any more");
    fs::remove_dir_all(night.repo().place_of("db")).unwrap();
    night.assert_open_has("2026-10-20 08:01:00", "lost db", "it has none there now");
    told.mails();
    told.run("2026-10-21 00:35:00");
    let texts: String = told.mails().into_iter().map(|(_, text)| text).collect();
    assert!(texts.contains("db: point ") && !texts.contains("any more; its"), "{texts}");
    // Also of who is ignored. Whoever has removed them says so.
    night.edit("\n[repositories.main]", "\nignore = [\"db\"]\n[repositories.main]");
    let report = night.at("2026-10-21 08:00:00", args!["status", "--json"]).json();
    let findings = report["findings"].as_array().unwrap();
    let lost = findings.iter().find(|it| it["code"] == "lost").unwrap();
    let file = lost["advice"].as_str().unwrap().rsplit_once("remove ").unwrap().1;
    fs::remove_file(file).unwrap();
    let found = night.findings("2026-10-21 08:01:00");
    assert!(!found.iter().any(|(name, _)| name.starts_with("lost")), "{found:#?}");
}

/// A guest whose backup failed was given to another job, whose time was to come on Sunday: "all right again".
#[test]
fn what_failed_is_not_over_when_another_job_has_the_guest() {
    let told = Told::after_db_failed();
    let night = &told.night;
    night.edit("guests = [\"web\", \"d*\"]", "guests = [\"web\"]");
    night.edit("guests = [\"mail\"]", "guests = [\"mail\", \"db\"]");
    night.edit("repository = \"small\"", "repository = \"main\"");
    night.edit(
        "guests = [\"mail\", \"db\"]\nschedule = \"02:30\"",
        "guests = [\"mail\", \"db\"]\nschedule = \"Sun 02:30\"",
    );
    told.mails();
    told.run("2026-10-21 00:35:00");
    told.at("2026-10-21 00:40:00", args!["notify"]);
    let over =
        |texts: Vec<(String, String)>| texts.iter().any(|(_, it)| it.contains("db: backup failed"));
    assert!(!over(told.mails()));
    night.assert_open_has("2026-10-21 08:00:00", "failed db", "backup failed");
    fs::rename(night.lab.path("away"), night.image("db", "vda")).unwrap();
    let records = told.run("2026-10-25 02:35:00");
    assert_eq!(ends(&records, "office backup db"), ["done"], "{records:#?}");
    assert!(over(told.mails()), "it is over now");
}

/// A guest was moved to a job of another repository: what it had in the first was proved and pruned by nobody.
#[test]
fn points_that_a_guest_has_left_behind_are_told_of() {
    let night = Night::new();
    night.run("2026-10-18 10:00:00");
    assert_quiet(&night.run("2026-10-19 00:35:00"));
    night.edit("guests = [\"web\", \"d*\"]", "guests = [\"web\"]");
    night.edit("guests = [\"mail\"]", "guests = [\"mail\", \"db\"]");
    night.run("2026-10-20 00:35:00");
    night.assert_open(
        "2026-10-20 08:00:00",
        &[("gone db", "no job backs it up into main any more: its 1 point there stay")],
    );
    fs::remove_dir_all(night.repo().place_of("db")).unwrap();
    night.assert_open_has("2026-10-20 08:01:00", "lost db", "it has none there now");
}

/// The copies of a guest that went failed each night, and nobody but the history said so.
#[test]
fn a_copy_that_fails_of_a_guest_that_went_is_told_at_the_job() {
    let night = Night::new();
    night.configure_with_copy("");
    night.run("2026-10-18 10:00:00");
    assert_quiet(&night.run("2026-10-19 00:35:00"));
    fs::remove_file(night.definition("db")).unwrap();
    let there = Repo::at(night.lab.path("offsite")).place_of("db");
    fs::remove_dir_all(&there).unwrap();
    fs::write(&there, "no folder").unwrap();
    let records = night.run("2026-10-20 00:35:00");
    assert_eq!(ends(&records, "production copy db"), ["failed"], "{records:#?}");
    night.assert_open_has("2026-10-20 08:00:00", "failed production", "db: ");
}

/// A guest that no job covers was on no list of what would be lost, and one whose backup fails for days was nowhere named.
#[test]
fn losses_name_who_is_not_covered_and_whose_backup_is_old() {
    let night = Night::new();
    night.define("play", 9, &["vda"]);
    night.run("2026-10-18 10:00:00");
    night.run("2026-10-19 00:35:00");
    fs::rename(night.image("db", "vda"), night.lab.path("away")).unwrap();
    night.run("2026-10-21 00:35:00");
    let file = night.lab.path("page.html");
    let time = "2026-10-21 12:00:00";
    let report = night.at(time, args!["report", file.as_path(), "--json"]).json();
    let sites = report["sites"].as_array().unwrap();
    let main = sites.iter().find(|it| it["site"] == "main").unwrap();
    assert_eq!(main["nothing_left"], serde_json::json!(["db", "play", "web"]), "{main}");
    let small = sites.iter().find(|it| it["site"] == "small").unwrap();
    assert_eq!(small["nothing_left"], serde_json::json!(["mail", "play"]), "{small}");
    let page = fs::read_to_string(&file).unwrap();
    let late = "1 guest would lose more than the RPO allows</b>: db (2 d, its RPO is 26h)";
    assert!(page.contains(late), "{page}");
    // The page begins with the history, and not with days of which nothing is known.
    assert_eq!(report["days"].as_array().unwrap().len(), 4);
    assert!(
        page.contains("the history of this host since 18 October 2026") || page.contains("since ")
    );

    let outcome = night.at(time, args!["export-kit", night.lab.path("kit"), "--json"]);
    assert_eq!(outcome.code(), Some(9), "{}", outcome.report());
    let kit = outcome.json();
    let guests = kit["guests"].as_array().unwrap();
    let play = guests.iter().find(|it| it["guest"] == "play").unwrap();
    assert_eq!((&play["job"], &play["point"]), (&"".into(), &Value::Null), "{play}");
    let problems: Vec<&str> =
        kit["problems"].as_array().unwrap().iter().map(|it| it["text"].as_str().unwrap()).collect();
    for wanted in ["play: no job covers it", "db: its newest good point is", "db: backup failed"] {
        assert!(problems.iter().any(|it| it.starts_with(wanted)), "{wanted}: {problems:#?}");
    }
    let document = fs::read_to_string(night.lab.path("kit/disaster-recovery.md")).unwrap();
    assert!(document.contains("| play | - | - | - | 0 B | **none** | - |"), "{document}");
    assert!(document.contains("**play** (no job covers it)"), "{document}");
}

/// The mark of a freeze that somebody has just begun by hand was told as one that was never taken away.
#[test]
fn a_mark_of_a_freeze_that_has_just_begun_is_no_alarm() {
    let night = Night::new();
    night.run("2026-10-18 10:00:00");
    assert_quiet(&night.run("2026-10-19 00:35:00"));
    let id = fs::read_to_string(night.main().join("qdelta.toml")).unwrap();
    let id = id.split("id = \"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    let mark = night.lab.path("state").join(id).join("web.frozen");
    leave_mark(&mark, "2026-10-19T07:59:30Z");
    night.assert_open("2026-10-19 08:00:00", &[]);
    leave_mark(&mark, "2026-10-19T07:50:00Z");
    night.assert_open_has("2026-10-19 08:00:00", "frozen web", "may still be frozen");
}

/// What pruning merged came after the night's verification, so the points of a guest that was proved each night were never
/// proved.
#[test]
fn what_pruning_has_merged_is_proved_in_the_same_night() {
    let night = Night::new();
    night.edit("daily = 5 }", "last = 1 }\ngrace = \"0\"");
    night.run("2026-10-18 10:00:00");
    for day in [19, 20, 21] {
        let words = format!("write -q -P {day} 1M 64k");
        guest_io(&night.image("web", "vda"), "qcow2", &[words]);
        assert_quiet(&night.run(&format!("2026-10-{day} 00:35:00")));
    }
    assert_eq!(points(&night, "2026-10-21 08:00:00", "web"), 1);
    let report = night.at("2026-10-21 08:00:00", args!["status", "--json"]).ok().json();
    let guests = report["guests"].as_array().unwrap();
    let web = guests.iter().find(|it| it["guest"] == "web").unwrap();
    assert_eq!((&web["never_proved"], web["proved_at"].is_string()), (&0.into(), true), "{web}");
}

/// A guest whose name needs its UUID in the repository was defined anew with another: its old points were nobody's.
#[test]
fn the_points_of_a_guest_before_it_was_defined_anew_are_told_of() {
    let night = Night::new();
    night.edit("\"d*\"", "\"d*\", \"w *\"");
    night.define("w 1", 7, &["vda"]);
    night.run("2026-10-18 10:00:00");
    assert_quiet(&night.run("2026-10-19 00:35:00"));
    let xml = fs::read_to_string(night.definition("w 1")).unwrap();
    fs::write(night.definition("w 1"), xml.replace("c7a5fdbd", "11111111")).unwrap();
    night.run("2026-10-20 00:35:00");
    let found = night.findings("2026-10-20 08:00:00");
    let told = |it: &(String, String)| {
        it.0 == "gone w 1" && it.1.contains("another guest of this name now; its 1 point")
    };
    assert!(found.iter().any(told), "{found:#?}");
}
