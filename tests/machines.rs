//! Restoring whole machines: everything comes back, under its own name or a new one, and nothing is
//! overwritten by accident.

use std::fs;
use std::path::Path;

use qdelta::domain::{Choice, decide, parse};
use serde_json::Value;

use super::harness::guest::{Guest, Host, MIB, UUID, disk};
use super::harness::images::qemu_img;
use super::harness::{Outcome, args, qdelta, run};

/// A host whose guest has two points, and then is gone.
fn lost() -> (Host, [Vec<u8>; 2], String) {
    let host = Host::new();
    let mut guest = Guest::define(&host, host.lab.dir());
    let tpm = host.lab.path(format!("lib/swtpm/{UUID}/tpm2"));
    fs::create_dir_all(&tpm).unwrap();
    fs::write(tpm.join("tpm2-00.permall"), "sealed").unwrap();
    let xml = guest.xml().replace(
        "<channel",
        "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm><channel",
    );
    fs::write(host.lab.path("etc/qemu/web.xml"), xml).unwrap();
    guest.start("running");
    guest.write(0, 0, MIB, 7);
    guest.stop();
    let first = host.web(&[])["point"].as_str().unwrap().to_owned();
    guest.start("running");
    guest.write(0, MIB, MIB, 9);
    guest.write(1, 0, MIB, 8);
    guest.stop();
    host.web(&["--with-host-config"]);
    for path in [guest.vda(), guest.vdb(), guest.nvram()] {
        fs::remove_file(path).unwrap();
    }
    drop(guest);
    (host, [disk(8, &[(0, MIB, 7), (MIB, MIB, 9)]), disk(4, &[(0, MIB, 8)])], first)
}

fn restore(host: &Host, to: &Path, options: &[&str]) -> Outcome {
    let mut words = host.repo.args(args!["restore", "--domain", "web", "--to", to]);
    words.extend(options.iter().map(std::ffi::OsString::from));
    run(qdelta(words))
}

/// What an image shows.
#[track_caller]
fn content(path: &Path, format: &str) -> Vec<u8> {
    let raw = path.with_extension("content");
    qemu_img(args!["convert", "-f", format, "-O", "raw", path, raw.as_path()]).ok();
    let bytes = fs::read(&raw).unwrap();
    fs::remove_file(raw).unwrap();
    bytes
}

#[test]
fn a_machine_that_is_lost_comes_back() {
    let (host, expected, _) = lost();
    let to = host.lab.path("to");
    let outcome = restore(&host, &to, &[]).ok();
    let text = outcome.text();
    let commands: Vec<&str> =
        text.lines().map(str::trim).filter(|line| line.starts_with("virsh ")).collect();
    let xml = to.join("web.xml");
    assert_eq!(commands, [format!("virsh define {}", xml.display()), "virsh start web".to_owned()]);
    assert!(text.contains("cp -a ") && text.contains(&format!("swtpm/{UUID}/tpm2")), "{text}");

    let domain = parse(&fs::read_to_string(&xml).unwrap()).unwrap();
    assert_eq!((domain.name.as_str(), domain.handle()), ("web", UUID));
    for (disk, (name, format, bytes)) in domain
        .disks
        .iter()
        .zip([("web-vda.qcow2", "qcow2", &expected[0]), ("web-vdb.raw", "raw", &expected[1])])
    {
        let image = to.join(name);
        assert_eq!(decide(disk, &[]), Choice::Take { image: image.clone(), format, block: false });
        assert!(content(&image, format) == *bytes, "{name}");
    }
    assert_eq!(domain.nvram.unwrap().path, to.join("web_VARS.fd"));
    assert_eq!(fs::read(to.join("web_VARS.fd")).unwrap(), vec![0xff; 3000]);
    assert_eq!(fs::read_to_string(to.join("tpm/tpm2-00.permall")).unwrap(), "sealed");
    let config = to.join("host-config").join(host.lab.path("etc").strip_prefix("/").unwrap());
    assert_eq!(fs::read_to_string(config.join("qemu/networks/default.xml")).unwrap(), "<network/>");
}

#[test]
fn an_earlier_point_lives_beside_the_machine_under_a_new_name() {
    let (host, _, first) = lost();
    let to = host.lab.path("to");
    let report =
        restore(&host, &to, &["--at", &first, "--rename", "it's old", "--json"]).ok().json();
    assert_eq!(report["point"].as_str(), Some(first.as_str()));
    assert_eq!(
        report["commands"].as_array().unwrap().last().unwrap(),
        "virsh start 'it'\\''s old'"
    );
    let xml = Path::new(report["xml"].as_str().unwrap()).to_owned();
    let text = fs::read_to_string(&xml).unwrap();
    let domain = parse(&text).unwrap();
    assert_eq!(domain.name, "it's old");
    assert_ne!(domain.handle(), UUID);
    assert_eq!(domain.handle(), report["uuid"].as_str().unwrap());
    assert!(!text.contains("52:54:00:11:22:33"), "{text}");
    assert!(content(&to.join("it_s_old-vda.qcow2"), "qcow2") == disk(8, &[(0, MIB, 7)]));
}

#[test]
fn nothing_is_overwritten_by_accident() {
    let (host, expected, _) = lost();
    let to = host.lab.path("to");
    restore(&host, &to, &[]).ok();
    let said = restore(&host, &to, &[]).fails_with(7);
    assert!(said.contains("exists already"), "{said}");
    restore(&host, &to, &["--force"]).ok();
    // Files that are in use are not replaced, force or not, and none of the others is.
    let image = to.join("web-vda.qcow2");
    fs::write(to.join("web-vdb.raw"), "mine").unwrap();
    let file = fs::File::options().read(true).write(true).open(&image).unwrap();
    let lock = qdelta::sys::image_lock::ImageLock::shared_read(&file, &image).unwrap();
    restore(&host, &to, &["--force"]).fails_with(5);
    assert_eq!(fs::read_to_string(to.join("web-vdb.raw")).unwrap(), "mine");
    drop(lock);
    // One that fails later leaves nothing behind.
    let to = host.lab.path("other");
    let machine = host.repo.path.join("web/machine");
    for entry in fs::read_dir(&machine).unwrap() {
        let path = entry.unwrap().path();
        fs::rename(&path, path.with_extension("away")).unwrap();
    }
    let verified = run(qdelta(host.repo.args(args!["verify", "--json"])));
    assert_eq!(verified.code(), Some(4));
    let damaged = verified.json()["damaged"].as_array().unwrap().len();
    assert_eq!(damaged, fs::read_dir(&machine).unwrap().count(), "each lost file is found");
    restore(&host, &to, &[]).fails_with(6);
    assert!(!to.exists());
    // The disks can still be had, one by one.
    host.assert_restores("vda", &expected[0]);
}

#[test]
fn a_restore_that_can_not_be_is_refused_with_what_to_do() {
    let (host, ..) = lost();
    let to = host.lab.path("to");
    let words = args!["restore", "--domain", "nobody", "--to", to.as_path()];
    run(qdelta(host.repo.args(words))).fails_with(6);
    restore(&host, &to, &["--at", "2001-01-01"]).fails_with(6);
    restore(&host, &host.repo.path.join("web"), &[]).fails_with(2);
    run(qdelta(host.repo.args(args!["restore", "--domain", "web"]))).fails_with(2);
    // A domain that is a mere image has no machine.
    let image = host.lab.path("plain.qcow2");
    super::harness::images::create(&image, "", MIB);
    host.repo.backup(&image, "plain", &[]);
    let words = args!["restore", "--domain", "plain", "--to", to.as_path()];
    let said = run(qdelta(host.repo.args(words))).fails_with(6);
    assert!(said.contains("qdelta restore plain/DISK OUTPUT"), "{said}");
    assert!(!to.exists());
    // A manifest that names a machine is as readable as any.
    let points = run(qdelta(host.repo.args(args!["points", "--json"]))).ok().json();
    assert_ne!(points["disks"][0], Value::Null);
}
