//! Images and guests that would be one disk.

use super::*;

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
