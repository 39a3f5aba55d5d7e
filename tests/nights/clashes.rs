//! Jobs that work against each other, and a night of which nobody was told.

use super::*;
use crate::harness::tool;

/// What `status` counts as the points of a guest.
fn points(night: &Night, time: &str, guest: &str) -> u64 {
    let report = night.at(time, args!["status", "--json"]).json();
    let guests = report["guests"].as_array().unwrap().clone();
    let found =
        guests.iter().find(|it| it["guest"] == guest).unwrap_or_else(|| panic!("{guests:?}"));
    found["points"].as_u64().unwrap()
}

/// Two jobs had the same guest in one repository, `daily = 30` in one and `last = 2` in the other: the first run of the
/// other removed the thirty days, and all was well.
#[test]
fn two_jobs_do_not_prune_each_other_s_points() {
    let night = Night::new();
    let hourly = |keep: &str| {
        let job = "[jobs.hourly]\nrepository = \"main\"\nguests = [\"d*\"]\n[jobs.hourly.prune]\n";
        night.configure("", &format!("{job}keep = {{ {keep} }}"));
    };
    hourly("last = 1");
    night.run("2026-10-18 10:00:00");
    let check = night.at("2026-10-18 10:00:00", args!["config", "check"]).fails_with(2);
    assert!(check.contains("db is in the jobs hourly and production"), "{check}");
    night.run("2026-10-19 00:35:00");
    let records = night.run("2026-10-20 00:35:00");
    assert_eq!([ends(&records, WEB), ends(&records, DB)], [["done"], ["done"]]);
    assert_eq!(ends(&records, "production prune -"), ["failed"], "{records:#?}");
    let words = args!["run", "hourly", "--json"];
    let records = records_in(&night.at("2026-10-20 10:00:00", words.clone()).json());
    let prune = records.iter().find(|it| it.name == "hourly prune -").unwrap();
    assert!(prune.end == "failed" && prune.text.contains("db is in the jobs"), "{records:#?}");
    assert_eq!(points(&night, "2026-10-20 10:05:00", "db"), 3);
    assert_eq!(points(&night, "2026-10-20 10:05:00", "web"), 2);

    // Nor do they when libvirt does not have the guest any more.
    fs::rename(night.definition("db"), night.lab.path("db.xml")).unwrap();
    let records = records_in(&night.at("2026-10-20 11:00:00", words.clone()).json());
    let prune = records.iter().find(|it| it.name == "hourly prune -").unwrap();
    assert!(prune.end == "failed" && prune.text.contains("db is in the jobs"), "{records:#?}");
    fs::rename(night.lab.path("db.xml"), night.definition("db")).unwrap();
    assert_eq!(points(&night, "2026-10-20 11:05:00", "db"), 3);

    // By the same rules both may.
    hourly("daily = 5");
    night.at("2026-10-20 12:00:00", args!["config", "check"]).ok();
    let records = records_in(&night.at("2026-10-20 12:00:00", words).json());
    assert_eq!(ends(&records, "hourly prune -"), ["done"], "{records:#?}");
}

/// An image was named as a disk of a guest: `restore web` gave the image, and the guest was not backed up from the next
/// night on.
#[test]
fn an_image_does_not_become_a_disk_of_a_guest() {
    let night = Night::new();
    let image = night.image("mail", "vda");
    let words =
        format!("[[jobs.production.images]]\npath = \"{}\"\ndisk = \"web/vda\"", image.display());
    night.configure("", &words);
    let check = night.at("2026-10-18 10:00:00", args!["config", "check"]).fails_with(2);
    assert!(check.contains("would be a disk of web"), "{check}");
    night.run("2026-10-18 10:00:00");
    for day in ["19", "20"] {
        let records = night.run(&format!("2026-10-{day} 00:35:00"));
        assert_eq!([ends(&records, WEB), ends(&records, DB)], [["done"], ["done"]]);
        let of_image = format!("production backup {}", image.display());
        assert_eq!(ends(&records, &of_image), ["failed"], "{records:#?}");
    }
    assert_eq!(points(&night, "2026-10-20 08:00:00", "web"), 2);
}

/// The unit's mail was left out as soon as the file had any `[notify.NAME]`, also one that could not be reached: nobody
/// heard of the night.
#[test]
fn the_unit_mails_where_nobody_was_told() {
    let night = Night::new();
    let bin = night.lab.path("bin");
    script(
        &bin.join("systemctl"),
        "#!/bin/sh\ncase $1 in show) echo 12 ;; *) echo active ;; esac\n",
    );
    script(
        &bin.join("sendmail"),
        &format!("#!/bin/sh\ncat >{}\n", night.lab.path("mail").display()),
    );
    let mails = |what: &str| {
        let script =
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/packaging/failed");
        let mut command = tool(script.to_str().unwrap(), args!["qdelta.service"]);
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        command
            .env("PATH", path)
            .env("SENDMAIL", bin.join("sendmail"))
            .env("STATE_DIRECTORY", night.lab.path("state"));
        run(command).ok();
        let is_there = fs::remove_file(night.lab.path("mail")).is_ok();
        println!("{what}: {is_there}");
        is_there
    };
    night.run("2026-10-18 10:00:00");
    fs::rename(night.image("web", "vda"), night.lab.path("away")).unwrap();
    let notifier = |line: &str| night.configure("", &format!("[notify.boss]\n{line}"));
    notifier("command = \"true\"\non = []\ndigest = \"Mon 08:00\"");
    night.at("2026-10-20 00:35:00", args!["run"]).fails_with(12);
    assert!(mails("a digest that is not due"));
    notifier("command = \"exit 1\"");
    night.at("2026-10-21 00:35:00", args!["run"]).fails_with(12);
    assert!(mails("one that can't be reached"));
    notifier("command = \"cat >/dev/null\"");
    night.at("2026-10-22 00:35:00", args!["run"]).fails_with(12);
    assert!(!mails("one that was told"));
}
