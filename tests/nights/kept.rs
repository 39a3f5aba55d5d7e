//! What is asked of the repositories, and not of the jobs: a job that was renamed, left out or never has its time knows
//! nothing, and each of these was "everything is all right".

use super::telling::Told;
use super::*;
use crate::harness::files::copy_tree;
use qdelta::base::duration;
use serde_json::json;

impl Night {
    /// How a guest stands.
    fn standing(&self, time: &str, guest: &str) -> Value {
        let report = self.at(time, args!["status", "--json"]).json();
        let guests = report["guests"].as_array().unwrap();
        guests.iter().find(|it| it["guest"] == guest).unwrap_or_else(|| panic!("{report}")).clone()
    }
}

/// The only archive of a guest's disk.
fn archive(night: &Night, guest: &str) -> PathBuf {
    let repo = night.repo();
    let archive = repo.archives().into_iter().find(|it| it.starts_with(guest));
    repo.place_of(archive.unwrap())
}

/// A guest went, and then its job got another name: its points were nobody's, and a damaged one stayed unseen.
#[test]
fn points_of_a_guest_that_went_outlive_the_name_of_its_job() {
    let night = Night::new();
    night.run("2026-10-18 10:00:00");
    assert_quiet(&night.run("2026-10-19 00:35:00"));
    fs::remove_file(night.definition("db")).unwrap();
    night.edit("jobs.production", "jobs.nightly");
    night.run("2026-10-19 10:00:00");
    let open = |rules: &str| format!("any more; its 1 point in main stay, {rules}");
    let (gone, none) = ("gone db", open("and no rule removes them"));
    night.assert_open("2026-10-19 10:01:00", &[(gone, &none)]);
    // Somebody goes on proving them.
    let archive = archive(&night, "db");
    let mut bytes = fs::read(&archive).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&archive, &bytes).unwrap();
    let records = night.run("2026-10-20 00:35:00");
    assert_eq!(ends(&records, "nightly verify -"), ["failed"], "{records:#?}");
    night.assert_open_has("2026-10-20 00:40:00", "damaged db", "1 of its 1 points in main");
    // That a guest went is no news to whoever says so; that its points are damaged is.
    night.edit("\n[repositories.main]", "\nignore = [\"db\"]\n[repositories.main]");
    let found = night.findings("2026-10-20 00:41:00");
    let named: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(named, ["failed nightly", "damaged db"], "{found:#?}");
    // What a job of the file had last, goes by its rules.
    fs::remove_file(night.definition("web")).unwrap();
    let found = night.findings("2026-10-20 00:42:00");
    let web = found.iter().find(|(name, _)| name == "failed web" || name == "no-point web");
    assert!(web.is_none(), "it is named, and fails at its next time: {found:#?}");
    night.edit("\"web\", ", "");
    night.assert_open_has("2026-10-20 00:43:00", "gone web", "stay, by the rules of nightly");
}

/// The guests of another host lie in the same repository: they are its own, as long as it backs them up.
#[test]
fn guests_of_another_host_are_its_own() {
    let night = Night::new();
    night.run("2026-10-18 10:00:00");
    let image = night.image("mail", "vda");
    let words = args!["backup", image, "--disk", "theirs/vda", "--repo", night.main()];
    let mut command = night.command("2026-10-19 00:10:00", words);
    command.env("STATE_DIRECTORY", night.lab.path("state-of-another"));
    run(command).sane().ok();
    assert_quiet(&night.run("2026-10-19 00:35:00"));
    night.assert_open("2026-10-19 08:00:00", &[]);
    night.assert_open_has("2026-12-01 08:00:00", "gone theirs", "no job backs it up any more");
}

/// A job lost its line `schedule`, and guests without any point were all right.
#[test]
fn a_guest_that_is_backed_up_by_hand_alone_is_not_all_right_without_a_point() {
    let night = Night::new();
    night.configure("", "[jobs.by-hand]\nrepository = \"main\"\nguests = [\"play\"]");
    night.define("play", 9, &["vda"]);
    night.run("2026-10-18 10:00:00");
    night.run("2026-10-19 00:35:00");
    let play = "it has no point: by-hand is done only when somebody names it";
    night.assert_open("2026-10-19 08:00:00", &[("no-point play", play)]);
    night.at("2026-10-19 08:01:00", args!["run", "by-hand"]).ok();
    night.assert_open("2026-10-19 08:02:00", &[]);
    // A time that never comes is none.
    night.edit("guests = [\"play\"]", "guests = [\"play\"]\nschedule = \"2020-01-01 01:00\"");
    night.assert_open_has("2026-10-19 08:03:00", "overdue by-hand", "does not come again");
}

/// Another repository lay where all points had been, and one night later everything was all right. So it was when the
/// right one was put back to what it had been a night before.
#[test]
fn another_repository_and_an_earlier_one_are_noticed() {
    let night = Night::new();
    night.run("2026-10-18 10:00:00");
    assert_quiet(&night.run("2026-10-19 00:35:00"));
    let (earlier, away) = (night.lab.path("earlier"), night.lab.path("away"));
    copy_tree(&night.main(), &earlier);
    assert_quiet(&night.run("2026-10-20 00:35:00"));
    fs::rename(night.main(), &away).unwrap();
    night.init_another("2026-10-20 08:00:00", &night.main());
    night.assert_open_has("2026-10-20 08:01:00", "replaced main", "its id is ");
    assert_quiet(&night.run("2026-10-21 00:35:00"));
    night.assert_open("2026-10-21 08:00:00", &[("replaced main", "no point of before is in it")]);
    // Whoever means it says so.
    night.edit("repositories.main", "repositories.second");
    night.edit("\"main\"", "\"second\"");
    night.assert_open("2026-10-21 08:01:00", &[]);
    night.edit("\"second\"", "\"main\"");
    night.edit("repositories.second", "repositories.main");

    fs::remove_dir_all(night.main()).unwrap();
    fs::rename(&earlier, night.main()).unwrap();
    night.show_key(&night.main());
    let found = night.findings("2026-10-21 08:02:00");
    let lost = |it: &&(String, String)| {
        it.0.starts_with("lost ") && it.1.contains("in main when this host looked last")
    };
    assert_eq!(found.iter().filter(lost).count(), 2, "{found:#?}");
    assert!(!found.iter().any(|(name, _)| name == "replaced main"), "{found:#?}");
    night.run("2026-10-22 00:35:00");
    night.assert_open(
        "2026-10-22 08:00:00",
        &[("warned db", "when this host looked last"), ("warned web", "when this host")],
    );
}

/// Nothing on the disk is known here: the age of a drill that came to nothing stood where that of a success stands.
#[test]
fn a_drill_that_could_not_go_so_far_is_no_success() {
    let night = Night::new();
    night.configure("", "[jobs.production.drill]\nto = \"filesystems\"");
    night.run("2026-10-18 10:00:00");
    night.run("2026-10-19 00:35:00");
    let standing = night.standing("2026-10-19 08:00:00", "web");
    assert_eq!(standing["drilled"], "not-tried", "{standing}");
    assert!(standing["drilled_at"].is_null() && standing["level"] == "warning", "{standing}");
    night.assert_open_has("2026-10-19 08:00:00", "drill web", "did not come to filesystems");
    night.edit("to = \"filesystems\"", "to = \"bytes\"");
    night.run("2026-10-20 00:35:00");
    let standing = night.standing("2026-10-20 08:00:00", "web");
    assert_eq!(standing["drilled"], "passed", "{standing}");
    assert!(standing["drilled_at"].is_string(), "{standing}");
    night.assert_open("2026-10-20 08:00:00", &[]);
}

/// With a budget that is too small, two of three guests were never proved, and nobody heard of it.
#[test]
fn a_budget_that_is_too_small_is_told() {
    let night = Night::new();
    night.edit(
        "[jobs.production.verify]\n",
        "[jobs.production.verify]\nbudget = \"1K\"\nmax_age = \"1d\"\n",
    );
    night.run("2026-10-18 10:00:00");
    for day in 19..25 {
        assert_quiet(&night.run(&format!("2026-10-{day} 00:35:00")));
    }
    night.assert_open(
        "2026-10-24 08:00:00",
        &[("unproved production", "not proved for longer than 1d: one of ")],
    );
    night.edit("budget = \"1K\"\n", "");
    assert_quiet(&night.run("2026-10-25 00:35:00"));
    night.assert_open("2026-10-25 08:00:00", &[]);
}

/// The history was emptied while a guest failed: the night was not made up for, and "all right again" was told.
#[test]
fn a_history_that_is_lost_makes_nothing_new_and_nothing_right() {
    let told = Told::after_db_failed();
    let night = &told.night;
    told.mails();
    let history = night.lab.path("state/jobs/history.jsonl");
    fs::write(&history, "").unwrap();
    night.assert_open_has("2026-10-20 12:00:00", "unreadable history", "it is lost");
    told.at("2026-10-20 12:00:00", args!["notify"]);
    let (_, text) = told.mail();
    assert!(text.contains("history: it is lost") && !text.contains("Over"), "{text}");
    // At noon nothing is due: the newest points are of the night.
    let records = told.run("2026-10-20 12:10:00");
    assert_eq!(ends(&records, "production backup -"), ["seen"], "{records:#?}");
    let records = told.run("2026-10-21 00:35:00");
    assert_eq!([ends(&records, WEB), ends(&records, DB)], [["done"], ["failed"]]);
    let texts: String = told.mails().into_iter().map(|(_, text)| text).collect();
    assert!(!texts.contains("  db: backup failed"), "it fails still: {texts}");
    // With all that lies beside it.
    fs::remove_dir_all(night.lab.path("state/jobs")).unwrap();
    night.assert_open_has("2026-10-22 00:10:00", "unreadable history", "it is lost");
    // The time is past when somebody comes back to it.
    let records = told.run("2026-10-22 03:00:00");
    assert_eq!([ends(&records, WEB), ends(&records, MAIL)], [["done"], ["done"]], "{records:#?}");

    // What stands between sound lines and makes no sense.
    let text = fs::read_to_string(&history).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let (first, rest) = lines.split_at(lines.len() / 2);
    let torn = [first.join("\n"), "?\n{\n\0".to_owned(), rest.join("\n")].join("\n") + "\n";
    fs::write(&history, torn).unwrap();
    night.assert_open_has("2026-10-22 08:00:00", "unreadable history", "3 lines of it");
    told.run("2026-10-23 00:35:00");
    let open = night.findings("2026-10-23 08:00:00");
    let is_told = |(name, text): &(String, String)| {
        name == "unreadable history" && text.starts_with("3 lines of the history")
    };
    assert!(open.iter().any(is_told), "{open:#?}");
    told.run("2026-10-24 00:35:00");
    let open = night.findings("2026-10-24 08:00:00");
    assert!(!open.iter().any(|(name, _)| name == "unreadable history"), "{open:#?}");
    assert!(fs::read_to_string(night.lab.path("state/jobs/history.torn")).unwrap().contains('?'));
}

/// The job of a guest whose backup failed got another name, and that was "all right again".
#[test]
fn what_failed_in_a_job_of_another_name_is_not_over() {
    let told = Told::after_a_good_night();
    let night = &told.night;
    fs::rename(night.image("mail", "vda"), night.lab.path("away")).unwrap();
    night.edit("[jobs.office]", "[jobs.bureau]");
    night.edit("[jobs.bureau]", "[jobs.office]");
    told.run("2026-10-20 00:35:00");
    told.mails();
    night.edit("[jobs.office]", "[jobs.bureau]");
    told.at("2026-10-20 00:40:00", args!["run"]);
    told.at("2026-10-20 00:41:00", args!["notify"]);
    let over = |texts: Vec<(String, String)>| {
        texts.iter().any(|(_, it)| it.contains("mail: backup failed"))
    };
    assert!(!over(told.mails()));
    night.assert_open_has("2026-10-20 00:42:00", "failed mail", "backup failed");
    fs::rename(night.lab.path("away"), night.image("mail", "vda")).unwrap();
    let records = told.run("2026-10-21 00:35:00");
    assert_eq!(ends(&records, "bureau backup mail"), ["done"]);
    assert!(over(told.mails()), "it is over now");
}

/// Libvirt's folder was empty for a night, and the watch heard that it went well.
#[test]
fn a_night_without_a_single_guest_has_failed() {
    let told = Told::new();
    told.run("2026-10-18 10:00:00");
    told.night.edit("guests = [\"web\", \"d*\"]", "guests = [\"*\"]\nexcept = [\"mail\"]");
    told.sink.take("/");
    let etc = told.night.lab.path("etc/qemu");
    fs::rename(&etc, told.night.lab.path("etc/away")).unwrap();
    fs::create_dir(&etc).unwrap();
    let records = told.run("2026-10-19 00:35:00");
    assert_eq!(ends(&records, "production backup -"), ["failed"], "{records:#?}");
    let pings = told.sink.take("/ping");
    assert!(pings[1].line.starts_with("post /ping/fail?rid="), "{pings:?}");
}

/// Two images of one name before the slash are disks of one guest in the repository, and the backups of one spoke for
/// the other. So did those of a job that leaves a disk out.
#[test]
fn each_disk_has_an_age_of_its_own() {
    let night = Night::new();
    let image = |name: &str| {
        let path = night.lab.path(format!("images/{name}.qcow2"));
        create(&path, "", 4 * MIB);
        path
    };
    let (a, b) = (image("a"), image("b"));
    let images = [(&a, "srv/a"), (&b, "srv/b")].map(|(path, disk)| {
        format!("[[jobs.production.images]]\npath = \"{}\"\ndisk = \"{disk}\"\n", path.display())
    });
    night.define("web", 0, &["vda", "vdb"]);
    let often = "[jobs.often]\nrepository = \"main\"\nguests = [\"web\"]\nexclude_disks = [\"web/vdb\"]\n\
                 rpo = \"4h\"\nschedule = \"*:30\"\n";
    night.configure("", &(images.concat() + often));
    night.run("2026-10-18 10:00:00");
    night.run("2026-10-19 00:35:00");
    night.assert_open("2026-10-19 01:00:00", &[("warned often", "14 times were missed")]);
    // The image of one is away for two nights, and so is the job that takes all disks.
    fs::rename(&a, night.lab.path("away")).unwrap();
    night.run("2026-10-20 00:35:00");
    night.edit(
        "schedule = \"02:30\"\nrpo = \"26h\"\n[jobs.production.verify]",
        "rpo = \"26h\"\n[jobs.production.verify]",
    );
    night.run("2026-10-21 02:35:00");
    let found = night.findings("2026-10-21 02:40:00");
    let has =
        |name: &str, words: &str| found.iter().any(|(it, text)| it == name && text.contains(words));
    let of_a = a.display().to_string();
    assert!(has(&format!("rpo {of_a}"), "its newest good point is 2 d old"), "{found:#?}");
    assert!(has("rpo web", "its newest good point with disk vdb is 26 h old"), "{found:#?}");
    assert_eq!(night.standing("2026-10-21 02:40:00", &of_a)["points"], 1);
}

/// A job that leaves a disk out and copies every night spoke for the copy of all disks, which stood still.
#[test]
fn each_disk_has_an_age_of_its_own_in_a_copy() {
    let night = Night::new();
    night.define("web", 0, &["vda", "vdb"]);
    let often = "[jobs.often]\nrepository = \"main\"\nguests = [\"web\"]\nexclude_disks = [\"web/vdb\"]\n\
                 rpo = \"26h\"\nschedule = \"02:00\"\n\
                 [jobs.often.copy]\nto = \"offsite\"\nrpo = \"26h\"\n";
    night.configure_with_copy(often);
    night.edit("limit_rate = \"50M\"", "schedule = \"Mon 05:00\"");
    night.run("2026-10-18 10:00:00");
    night.run("2026-10-19 00:05:00");
    night.run("2026-10-19 00:35:00");
    night.assert_open_has(
        "2026-10-19 00:40:00",
        "copy web",
        "it has no point with disk vdb in offsite yet",
    );
    // What would be left if the first repository burned down.
    let left = |time: &str| {
        let words = args!["report", night.lab.path("page.html"), "--json", "--force"];
        let report = night.at(time, words).json();
        let sites = report["sites"].as_array().unwrap();
        let main = sites.iter().find(|it| it["site"] == "main").unwrap();
        let web = main["left"].as_array().unwrap().iter().find(|it| it["guest"] == "web");
        let web = web.unwrap_or_else(|| panic!("{main}")).clone();
        (duration::age(web["age"].as_f64().unwrap() as i64), web["without"].clone())
    };
    assert_eq!(left("2026-10-19 00:40:00"), ("35 m".to_owned(), json!(["vdb"])));
    let page = fs::read_to_string(night.lab.path("page.html")).unwrap();
    assert!(page.contains("1 guest would come back without disks</b>: web (vdb)"), "{page}");
    night.run("2026-10-19 03:05:00");
    night.assert_open("2026-10-19 03:10:00", &[]);
    night.edit(
        "schedule = \"02:30\"\nrpo = \"26h\"\n[jobs.production.verify]",
        "[jobs.production.verify]",
    );
    for day in 20..23 {
        night.run(&format!("2026-10-{day} 00:05:00"));
    }
    let late = "its newest point with disk vdb in offsite is 3 d old, and its RPO there is 50h";
    night.assert_open_has("2026-10-22 01:00:00", "copy web", late);
    assert_eq!(left("2026-10-22 01:00:00"), ("3 d".to_owned(), json!([])));
}

/// The times of a clock that was set back made every schedule new, and a night was lost.
#[test]
fn a_clock_that_is_set_back_makes_nothing_new() {
    let night = Night::new();
    night.run("2026-10-18 10:00:00");
    assert_quiet(&night.run("2026-10-19 00:35:00"));
    let records = night.run("2026-10-07 00:35:00");
    for name in [WEB, DB, MAIL] {
        assert_eq!(ends(&records, name).len(), 1, "{records:#?}");
    }
}

/// A new user's first command was `run production`, and all other jobs were alarms.
#[test]
fn whoever_begins_with_one_job_has_no_alarms_of_the_others() {
    let night = Night::new();
    night.at("2026-10-18 10:00:00", args!["run", "production"]).ok();
    night.assert_open("2026-10-18 10:01:00", &[("no-point mail", "still to come")]);
}

/// A verification of its own schedule had failed. Everything was mended and proved by hand, and the alarm stood until the
/// next Sunday.
#[test]
fn a_verification_that_failed_is_over_when_all_is_proved() {
    let night = Night::new();
    night.edit("[jobs.production.verify]", "[jobs.production.verify]\nschedule = \"Mon 03:00\"");
    night.run("2026-10-18 10:00:00");
    night.run("2026-10-19 00:35:00");
    let archive = archive(&night, "db");
    let sound = fs::read(&archive).unwrap();
    fs::write(&archive, b"damaged").unwrap();
    night.run("2026-10-19 01:05:00");
    night.assert_open_has("2026-10-19 08:00:00", "failed production", "verify failed");
    fs::write(&archive, sound).unwrap();
    night.at("2026-10-19 09:00:00", args!["verify", "--repo", night.main()]).ok();
    night.assert_open("2026-10-19 09:05:00", &[]);
}
