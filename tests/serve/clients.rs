//! nbdinfo, nbdcopy, qemu-img and others read what was backed up.

use super::*;
use crate::harness::images::qemu_img;
use crate::harness::{run, tool};

#[track_caller]
fn client(name: &str, arguments: Vec<std::ffi::OsString>) -> String {
    run(tool(name, arguments)).ok().text()
}

#[test]
fn real_clients_read_every_point_as_it_was() {
    let scene = Scene::new(3, "64K");
    let serving = scene.serve(&[]);
    for number in 0..3 {
        let uri = serving.uri(&scene.name(number));
        let expected = &scene.points[number].1;
        let copy = scene.lab.path("copy.raw");
        client("nbdcopy", args!["--connections=4", uri.as_str(), copy.as_path()]);
        same(&copy, expected);
        qemu_img(args!["compare", "-f", "raw", "-F", "raw", uri.as_str(), expected.as_path()]).ok();
        let converted = scene.lab.path("converted.qcow2");
        qemu_img(args!["convert", "-f", "raw", "-O", "qcow2", uri.as_str(), converted.as_path()])
            .ok();
        qemu_img(args![
            "compare",
            "-f",
            "qcow2",
            "-F",
            "raw",
            converted.as_path(),
            expected.as_path()
        ])
        .ok();
        std::fs::remove_file(&copy).unwrap();
    }
    // All of it without a proof that anything was told twice or not at all.
    let uri = serving.uri("web/vda@latest");
    let map = client("nbdinfo", args!["--map", uri.as_str()]);
    let mut at = 0;
    let bytes = scene.bytes(2);
    for line in map.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        let (start, len): (usize, usize) = (words[0].parse().unwrap(), words[1].parse().unwrap());
        assert_eq!(start, at);
        at += len;
        let is_zero = bytes[start..at].iter().all(|byte| *byte == 0);
        assert_eq!(is_zero, words[2] == "3", "{line}");
    }
    assert_eq!(at, SIZE);
    assert!(map.lines().count() > 4, "{map}");
    let list = client("nbdinfo", args!["--list", "--json", serving.uri("").as_str()]);
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    let names = list["exports"].as_array().unwrap().iter();
    let names: Vec<_> = names.map(|export| export["export-name"].as_str().unwrap()).collect();
    assert_eq!(names, [scene.name(2), scene.name(1), scene.name(0)]);
    let can = |what: &str, name: &str| {
        run(tool("nbdinfo", args!["--can", what, serving.uri(name).as_str()])).code()
    };
    let id = scene.name(1);
    assert_eq!(
        (can("write", &id), can("multi-conn", &id), can("df", &id)),
        (Some(2), Some(0), Some(0))
    );
    assert_eq!(can("cache", &id), Some(0));
    // Two connections that ask for the latest point at different times may get two.
    assert_eq!(can("multi-conn", "web/vda@latest"), Some(2));
    let report = serving.stop().ok();
    assert!(
        report.text().contains("nbd+unix:///GUEST/DISK%40POINT?socket=/"),
        "{}",
        report.report()
    );
}

#[test]
fn what_was_named_is_served_and_nothing_else() {
    let scene = Scene::new(2, "4K");
    let first = scene.name(0);
    let serving = scene.serve(&[first.as_str(), "--json"]);
    let report = serving.stop().ok().json();
    crate::cli::json::compare("serve", &[&report], &[]);
    assert_eq!(report["exports"][0]["name"], first.as_str());
    let serving = scene.serve(&[first.as_str()]);
    let uri = serving.uri("");
    let expected = scene.points[0].1.as_path();
    qemu_img(args!["compare", "-f", "raw", "-F", "raw", uri.as_str(), expected]).ok();
    let other = serving.uri(&scene.name(1));
    let error = run(tool("nbdinfo", args![other.as_str()])).fails_with(1);
    assert!(error.contains("No such file or directory for export"), "{error}");
    assert!(!scene.lab.path("s.sock").symlink_metadata().unwrap().permissions().readonly());
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &scene.lab.path("s.sock").metadata().unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
    // A second server is refused; one that was killed leaves its socket, which is replaced.
    let socket = scene.lab.path("s.sock");
    let again = scene.repo.run(args!["serve", "--socket", socket.as_path()]).fails_with(5);
    assert!(again.contains("another server listens"), "{again}");
    serving.signal(Signal::KILL);
    drop(serving);
    assert!(socket.exists());
    let serving = scene.serve(&["--domain", "web", "--at", &scene.points[0].0]);
    qemu_img(args!["compare", "-f", "raw", "-F", "raw", uri.as_str(), expected]).ok();
    let report = serving.stop().ok();
    assert!(report.text().contains(&first), "{}", report.report());
    assert!(!socket.exists());
    std::fs::write(&socket, "mine").unwrap();
    scene.repo.run(args!["serve", "--socket", socket.as_path()]).fails_with(7);
    scene.repo.run(args!["serve", "db", "--socket", scene.lab.path("t")]).fails_with(6);
}
