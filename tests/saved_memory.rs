//! Guests whose memory libvirt has saved: the memory goes along with the disks, and comes back with them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use serde_json::Value;

use super::harness::content::Random;
use super::harness::guest::{Guest, Host, MIB, disk};
use super::harness::{args, qdelta, run};

/// The file of the guest's memory as libvirt writes it: head, definition, and what QEMU writes.
fn save(host: &Host, xml: &str, seed: u64) -> (PathBuf, Vec<u8>) {
    let mut bytes = b"LibvirtQemudSave".to_vec();
    let data_len = (xml.len() as u32 + 1).next_multiple_of(1024);
    for number in [2, data_len, 1, 0, 0] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    bytes.resize(92, 0);
    bytes.extend_from_slice(xml.as_bytes());
    bytes.resize(92 + data_len as usize, 0);
    // Not a multiple of anything.
    bytes.extend(Random::new(seed).noise(3 * MIB as usize + 777));
    let path = host.save_memory();
    fs::write(&path, &bytes).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    (path, bytes)
}

fn codes(report: &Value) -> Vec<&str> {
    let warnings = report["warnings"].as_array().unwrap().iter();
    warnings.map(|it| it["code"].as_str().unwrap()).collect()
}

#[test]
fn a_point_with_memory_goes_on_where_the_guest_stood() {
    let host = Host::new();
    let mut guest = Guest::define(&host, host.lab.dir());
    guest.start("running");
    guest.write(0, 0, MIB, 7);
    guest.stop();
    let (_, bytes) = save(&host, &guest.xml(), 1);
    let without = host.web(&[]);
    assert_eq!(
        (&without["resumes"], &without["consistency"]),
        (&false.into(), &"crash-consistent".into())
    );
    assert_eq!(codes(&without)[0], "memory-left-out", "{without}");
    let report = host.web(&["--with-memory"]);
    assert_eq!(report["resumes"], true);
    assert!(!codes(&report).contains(&"memory-left-out"), "{report}");
    let disks: Vec<&str> =
        report["disks"].as_array().unwrap().iter().map(|it| it["disk"].as_str().unwrap()).collect();
    assert_eq!(disks, ["web/vda", "web/vdb", "web/saved-memory"]);
    let point = report["point"].as_str().unwrap();
    // Nothing has changed: the night costs nothing. Another save is stored as what differs.
    let again = host.web(&["--with-memory"]);
    assert_eq!(again["disks"][2]["bytes_changed"], 0);
    let listed = run(qdelta(host.repo.args(args!["points", "web/vda"]))).ok().text();
    assert!(listed.contains("crash-consistent, resumes"), "{listed}");

    let to = host.lab.path("to");
    let words = |more: &[&str]| {
        let mut words = args!["--domain", "web", "--at", point, "--to", to.as_path(), "--json"];
        words.extend(more.iter().map(Into::into));
        words
    };
    // Without its memory it is what a power cut leaves, and says so.
    let plain = host.restore(words(&[])).ok().json();
    assert!(codes(&plain).contains(&"memory-left-out"), "{plain}");
    assert_eq!(plain["memory"], Value::Null);
    assert_eq!(plain["commands"].as_array().unwrap().last().unwrap(), "virsh start web");
    fs::remove_dir_all(&to).unwrap();

    let resumed = host.restore(words(&["--with-memory"])).ok().json();
    assert!(!codes(&resumed).contains(&"memory-left-out"), "{resumed}");
    let saved = to.join("web.save");
    assert_eq!(resumed["memory"], saved.to_str().unwrap());
    assert!(fs::read(&saved).unwrap() == bytes, "the memory is not what it was");
    assert_eq!(fs::metadata(&saved).unwrap().permissions().mode() & 0o777, 0o600);
    let xml = fs::read_to_string(to.join("web.save.xml")).unwrap();
    for name in ["web-vda.qcow2", "web-vdb.raw", "web_VARS.fd"] {
        assert!(xml.contains(to.join(name).to_str().unwrap()), "{xml}");
    }
    let (saved, xml) = (saved.display(), to.join("web.save.xml"));
    let last = resumed["commands"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(last, format!("virsh restore {saved} --xml {}", xml.display()));
    host.assert_restores("vda", &disk(8, &[(0, MIB, 7)]));
    // All disks of the guest go back in place, and its memory is no disk of it.
    fs::remove_file(host.lab.path("lib/qemu/save/web.save")).unwrap();
    host.restore(args!["--domain", "web", "--at", point, "--in-place"]).ok();
    host.assert_sound();
}

/// The memory of a point kept it for ever: it was the newest of its disk.
#[test]
fn the_memory_of_a_guest_is_no_disk_of_it() {
    let host = Host::new();
    let guest = Guest::define(&host, host.lab.dir());
    let (path, _) = save(&host, &guest.xml(), 1);
    let with = host.web(&["--with-memory"])["point"].as_str().unwrap().to_owned();
    fs::remove_file(path).unwrap();
    let next = host.web(&["--with-memory"]);
    assert_eq!(next["resumes"], false, "there is none now, and nobody asked for one");
    assert_eq!(codes(&next), [""; 0], "no disk is gone");
    let words = args!["prune", "--keep-last", "1", "--grace", "0"];
    run(qdelta(host.repo.args(words))).ok();
    assert!(!host.points().contains(&with));
    host.assert_sound();
}

/// A file that libvirt had not finished, and one of a guest that had other disks.
#[test]
fn what_can_not_be_resumed_is_said() {
    let host = Host::new();
    let guest = Guest::define(&host, host.lab.dir());
    let (path, mut bytes) = save(&host, &guest.xml(), 1);
    bytes[12..16].copy_from_slice(b"Part");
    fs::write(&path, &bytes).unwrap();
    let said = host.web_fails(3, &["--with-memory"]);
    assert!(said.contains("memory of web") && said.contains("leave --with-memory out"), "{said}");
    let other = guest.xml().replace("web.qcow2", "other.qcow2");
    save(&host, &other, 1);
    let report = host.web(&["--with-memory"]);
    let text = report["warnings"][0]["text"].as_str().unwrap();
    assert!(text.contains("disk vda was") && text.contains("other.qcow2"), "{text}");
    // What asks for it where there is none, or where it can't be resumed, is refused.
    let to = host.lab.path("to");
    for more in ["--rename=new", "--instant"] {
        let words = args!["--domain", "web", "--to", to.as_path(), "--with-memory", more];
        host.restore(words).fails_with(2);
    }
}

/// A file that was cut in its definition made a point that "resumes", and so did the memory of another guest.
#[test]
fn no_memory_is_taken_that_is_cut_or_another_guest_s() {
    let host = Host::new();
    let guest = Guest::define(&host, host.lab.dir());
    let (path, bytes) = save(&host, &guest.xml(), 1);
    for len in [92, 500, bytes.len() - (3 * MIB as usize + 777)] {
        fs::write(&path, &bytes[..len]).unwrap();
        let said = host.web_fails(3, &["--with-memory"]);
        assert!(said.contains("is cut short"), "{len}: {said}");
    }
    // The memory would go on over a disk of another moment.
    fs::write(&path, &bytes).unwrap();
    let said = host.web_fails(2, &["--with-memory", "--exclude", "web/vdb"]);
    assert!(said.contains("vdb is left out"), "{said}");
    let other = guest.xml().replace("<name>web<", "<name>db<").replace("<uuid>", "<uuid>0");
    save(&host, &other, 1);
    let said = host.web_fails(2, &["--with-memory"]);
    assert!(said.contains("memory of another guest, db"), "{said}");
    assert!(host.points().is_empty());
}
