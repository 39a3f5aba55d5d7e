//! Disks behind NBD servers in a job.

use super::*;
use crate::exports::Server;
use crate::harness::images::{create, filled_raw, guest_io, qemu_img};

/// An export could stand in no job: "begins nowhere". It has its nights, its status and its history as an image has.
#[test]
fn an_export_has_its_nights_in_a_job() {
    let night = Night::new();
    let raw = filled_raw(&night.lab, "disk.raw", MIB, 4);
    let server = Server::qemu(&night.lab, &raw, "raw", &["-t", "-r"]).unwrap();
    let uri = server.uri("vda").display().to_string();
    // Spelled otherwise it is the same export.
    let spelled = uri.replace("nbd+unix:///vda?", "NBD+unix:///%76da?x=1&");
    let words =
        format!("[[jobs.production.images]]\npath = \"{spelled}\"\ndisk = \"appliance/vda\"\n");
    night.configure("", &words);
    let check = night.at("2026-10-18 10:00:00", args!["config", "check"]).ok().text();
    assert!(check.contains(&uri), "{check}");
    night.run("2026-10-18 10:00:00");
    let its = format!("production backup {uri}");
    let records = night.run("2026-10-19 00:35:00");
    assert_quiet(&records);
    assert_eq!(ends(&records, &its), ["done"], "{records:#?}");
    night.assert_open("2026-10-19 08:00:00", &[]);
    let text = night.history("production", &uri).pop().unwrap();
    assert!(text.starts_with("done: consistency unknown: 1 disk, "), "{text}");
    let status = night.at("2026-10-19 08:00:00", args!["status"]).ok().text();
    assert!(status.contains(&uri), "{status}");
    let copy = night.lab.path("copy.raw");
    let repo = night.main();
    let restore = args!["restore", "appliance/vda", copy.as_path(), "--repo", repo.as_path()];
    night.at("2026-10-19 08:00:00", restore).ok();
    assert!(fs::read(&copy).unwrap() == fs::read(&raw).unwrap());

    // What the job says of anchors is for image files: no warning of each night comes of it.
    night.configure("", &(words.clone() + "[jobs.production.drill]\nschedule = \"yearly\"\n"));
    let config = night.lab.path("qdelta.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(
        &config,
        text.replace(
            "rpo = \"26h\"\n[jobs.production.v",
            "rpo = \"26h\"\nanchor = \"bitmap\"\n[jobs.production.v",
        ),
    )
    .unwrap();
    let records = night.run("2026-10-20 00:35:00");
    assert_eq!(ends(&records, &its), ["done"], "{records:#?}");

    // Its server is away: that is told, and no other guest suffers.
    drop(server);
    let records = night.run("2026-10-21 00:35:00");
    assert_eq!([ends(&records, &its), ends(&records, WEB)], [["failed"], ["done"]]);
    night.assert_open_has("2026-10-21 08:00:00", &format!("failed {uri}"), "no server is there");
}

/// A job read all of an export each night: it could name no bitmap that had begun.
#[test]
fn a_job_takes_the_bitmap_that_a_hook_has_begun() {
    let night = Night::new();
    let image = night.lab.path("disk.qcow2");
    create(&image, "", 8 * MIB);
    guest_io(&image, "qcow2", &["write -q -P 1 0 4M".to_owned()]);
    let uri = format!("nbd+unix:///vda?socket={}", night.lab.path("s.sock").display());
    let file = night.lab.path("bitmap");
    let next = night.lab.path("next");
    let words = format!(
        "[jobs.production.hooks]\nbefore = \"cp {} {}\"\n[[jobs.production.images]]\npath = \"{uri}\"\n\
         disk = \"appliance/vda\"\nlive_bitmap_file = \"{}\"\n",
        next.display(),
        file.display(),
        file.display()
    );
    night.configure("", &words);
    night.run("2026-10-18 10:00:00");
    let its = format!("production backup {uri}");
    let status = "2026-10-19 08:00:00";
    let begin = |name: &str| {
        qemu_img(args!["bitmap", "--add", image.as_path(), name]).ok();
        fs::write(&next, format!("{name}\n")).unwrap();
    };
    let serve = |bitmap: &str| {
        Server::qemu(&night.lab, &image, "qcow2", &["-t", "-r", "-B", bitmap]).unwrap()
    };
    begin("one");
    let server = serve("one");
    let records = night.run("2026-10-19 00:35:00");
    assert_eq!(ends(&records, &its), ["done"], "{records:#?}");
    drop(server);
    guest_io(&image, "qcow2", &["write -q -P 2 1M 64k".to_owned()]);
    begin("two");
    let server = serve("one");
    let records = night.run("2026-10-20 00:35:00");
    assert_eq!(ends(&records, &its), ["done"], "{records:#?}");
    let repo = night.main();
    let list = args!["points", "appliance/vda", "--json", "--repo", repo.as_path()];
    let listed = night.at(status, list).ok().json();
    let points = listed["disks"][0]["points"].as_array().unwrap();
    let trackers: Vec<&Value> = points.iter().map(|point| &point["tracker"]).collect();
    assert_eq!(trackers, ["scan", "live-bitmap"], "{listed:#}");
    drop(server);

    // A bitmap of the night before was taken for one that began just now, where the hook had not written its name: a
    // later night was wrong without a word.
    let server = serve("two");
    let fails = |words: &str| {
        let done = night.at("2026-10-20 09:00:00", args!["run", "production"]);
        assert!(done.report().contains(words), "{}", done.report());
    };
    fails("the bitmap two began at point");
    for (text, words) in [("", "has no name of a bitmap"), ("a\nb\n", "has no name of a bitmap")] {
        fs::write(&next, text).unwrap();
        fails(words);
    }
    let idle = words.replace(&format!("cp {} {}", next.display(), file.display()), "true");
    night.configure("", &idle);
    fs::write(&file, "three\n").unwrap();
    let long_ago = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_500_000_000);
    fs::File::options().write(true).open(&file).unwrap().set_modified(long_ago).unwrap();
    fails("was not written in this run");
    fs::remove_file(&file).unwrap();
    fails("live_bitmap_file");
    drop(server);
}
