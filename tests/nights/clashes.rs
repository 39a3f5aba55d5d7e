//! Images and guests that would be one disk.

use super::*;

/// A guest that is called as the configuration of this host: each spoke for the other.
#[test]
fn a_guest_and_the_configuration_of_this_host_are_not_one() {
    let night = Night::new();
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let own = format!("host.{}", host.trim());
    night.define(&own, 9, &["vda"]);
    let other =
        format!("[jobs.other]\nrepository = \"small\"\nguests = [\"{own}\"]\nschedule = \"02:30\"");
    night.configure("host_files = [\"/etc/hostname\"]\n", "");
    night.edit("[jobs.production.verify]", "with_host_config = true\n[jobs.production.verify]");
    night.run("2026-10-18 10:00:00");
    let records = night.run("2026-10-19 00:35:00");
    let name = format!("production backup {own}");
    assert_eq!(ends(&records, &name), ["done"], "{records:#?}");
    let path = night.lab.path("qdelta.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{text}{other}\n")).unwrap();
    let said = night.at("2026-10-19 08:00:00", args!["config", "check"]).fails_with(2);
    assert!(said.contains(&format!("is called {own}, and so is a guest of job other")), "{said}");
    let records = night.run("2026-10-20 00:35:00");
    assert_eq!(ends(&records, &name), ["failed"], "{records:#?}");
    assert_eq!(ends(&records, WEB), ["done"]);
}

/// A repository that nothing goes into any more was nowhere told of.
#[test]
fn a_repository_of_no_job_is_a_problem_of_the_file() {
    let night = Night::new();
    night.configure_with_copy("");
    assert_eq!(night.at("2026-10-18 10:00:00", args!["config", "check"]).code(), Some(0));
    night.edit("[jobs.production.copy]", "[jobs.production.hooks]");
    night.edit("to = \"offsite\"\nrpo = \"50h\"\nlimit_rate = \"50M\"", "before = \"true\"");
    let said = night.at("2026-10-18 10:00:00", args!["config", "check"]).fails_with(2);
    assert!(
        said.contains("repositories.offsite: no job backs up or copies anything into it"),
        "{said}"
    );
    // The status looks at it all the same.
    fs::remove_dir_all(night.lab.path("offsite")).unwrap();
    night.assert_open_has("2026-10-18 10:01:00", "repository offsite", "no such folder");
}

/// What `status` counts as the points of a guest.
fn points(night: &Night, time: &str, guest: &str) -> u64 {
    let report = night.at(time, args!["status", "--json"]).json();
    let guests = report["guests"].as_array().unwrap().clone();
    let found =
        guests.iter().find(|it| it["guest"] == guest).unwrap_or_else(|| panic!("{guests:?}"));
    found["points"].as_u64().unwrap()
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
