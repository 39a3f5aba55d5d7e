//! Rolling the disks of libvirt guests back where they lie: never below a guest that would be harmed.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::cli::json::compare;
use super::harness::args;
use super::harness::guest::{Guest, Host, MIB, UUID, content, disk};
use super::harness::images::{guest_io, qemu_img};

/// A guest that is stopped, with a point of both disks; they have changed since.
fn changed(host: &Host) -> (Guest<'_>, String) {
    let guest = Guest::define(host, host.lab.dir());
    guest_io(&guest.vda(), "qcow2", &["write -q -P 1 0 1M".to_owned()]);
    guest_io(&guest.vdb(), "raw", &["write -q -P 2 0 1M".to_owned()]);
    let point = host.web(&[])["point"].as_str().unwrap().to_owned();
    guest_io(&guest.vda(), "qcow2", &["write -q -P 3 1M 1M".to_owned()]);
    guest_io(&guest.vdb(), "raw", &["write -q -P 4 2M 1M".to_owned()]);
    (guest, point)
}

/// What the disks were at the point.
fn then() -> [Vec<u8>; 2] {
    [disk(8, &[(0, MIB, 1)]), disk(4, &[(0, MIB, 2)])]
}

fn now(guest: &Guest<'_>) -> [Vec<u8>; 2] {
    [content(&guest.vda(), "qcow2"), content(&guest.vdb(), "raw")]
}

/// The guest's next start resumed a memory that knew another disk, which destroyed it.
#[test]
fn a_guest_whose_memory_is_saved_is_not_rolled_back() {
    let host = Host::new();
    let (guest, point) = changed(&host);
    let saved = host.save_memory();
    let (before, points) = (now(&guest), host.points());
    let vda = format!("web/vda@{point}");
    for words in [
        args![vda.as_str(), "--in-place"],
        args![vda.as_str(), guest.vda(), "--in-place"],
        args!["--domain", "web", "--at", point.as_str(), "--in-place"],
        args![vda.as_str(), guest.vda(), "--force"],
    ] {
        let said = host.restore(words).fails_with(5);
        assert!(said.contains("virsh managedsave-remove web"), "{said}");
        assert!(said.contains(saved.to_str().unwrap()), "{said}");
    }
    assert!(now(&guest) == before && host.points() == points);
    fs::remove_file(saved).unwrap();
    host.restore(args![vda, "--in-place"]).ok();
    assert!(content(&guest.vda(), "qcow2") == then()[0]);
}

/// The file that the point was made from had become a backing file: what was written to it damaged
/// the disk above.
#[test]
fn after_an_external_snapshot_the_image_of_now_is_rolled_back() {
    let host = Host::new();
    let (guest, point) = changed(&host);
    let base = guest.vda();
    let overlay = host.lab.path("web.snap1");
    let words = args!["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base.as_path()];
    qemu_img([words, args![overlay.as_path()]].concat()).ok();
    guest_io(&overlay, "qcow2", &["write -q -P 9 4M 1M".to_owned()]);
    guest.redefine(&[(base.to_str().unwrap(), overlay.to_str().unwrap())]);
    let (below, above) = (fs::read(&base).unwrap(), content(&overlay, "qcow2"));
    let vda = format!("web/vda@{point}");
    let said = host.restore(args![vda.as_str(), base.as_path(), "--in-place"]).fails_with(5);
    assert!(said.contains("is a backing file of disk vda of web"), "{said}");
    assert!(said.contains("web.snap1 now"), "{said}");
    let words = args![vda.as_str(), base.as_path(), "--force", "--format", "qcow2"];
    host.restore(words).fails_with(5);
    assert!(content(&overlay, "qcow2") == above);
    let report = host.restore(args![vda.as_str(), "--in-place", "--json"]).ok().json();
    assert_eq!(report["image"].as_str(), overlay.to_str());
    assert!(content(&overlay, "qcow2") == then()[0]);
    assert!(fs::read(&base).unwrap() == below, "the backing file was written to");
    // A disk that is no more, and a guest that is another one.
    guest.redefine(&[("'vda'", "'vdz'"), (base.to_str().unwrap(), overlay.to_str().unwrap())]);
    let said = host.restore(args![vda.as_str(), "--in-place"]).fails_with(6);
    assert!(said.contains("disk vda of web is no more"), "{said}");
    guest.redefine(&[(UUID, "11111111-2222-4333-8444-555555555555")]);
    let said = host.restore(args![vda.as_str(), "--in-place"]).fails_with(2);
    assert!(said.contains("another UUID"), "{said}");
}

/// A template that another guest's disk lies on.
#[test]
fn the_backing_file_of_another_guest_is_left_alone() {
    let host = Host::new();
    let (guest, point) = changed(&host);
    let base = guest.vda();
    let overlay = host.lab.path("other.qcow2");
    let words = args!["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base.as_path()];
    qemu_img([words, args![overlay.as_path()]].concat()).ok();
    let other = guest.xml().replace("<name>web", "<name>other");
    let other = other.replace(base.to_str().unwrap(), overlay.to_str().unwrap());
    let other = other.replace(guest.vdb().to_str().unwrap(), "/nonexistent/other.raw");
    fs::write(host.lab.path("etc/qemu/other.xml"), other).unwrap();
    let before = fs::read(&base).unwrap();
    let vda = format!("web/vda@{point}");
    let said = host.restore(args![vda, "--in-place"]).fails_with(5);
    assert!(said.contains("is a backing file of disk vda of other"), "{said}");
    assert!(fs::read(&base).unwrap() == before);
    host.restore(args![format!("web/vdb@{point}"), "--in-place"]).ok();
}

#[test]
fn all_disks_of_a_guest_go_back_together() {
    let host = Host::new();
    let (guest, point) = changed(&host);
    let before = now(&guest);
    let words = args!["--domain", "web", "--at", point.as_str(), "--in-place", "--json"];
    let report = host.restore(words.clone()).ok().json();
    assert!(now(&guest) == then(), "{report}");
    let kept = report["kept"].as_str().unwrap();
    assert_eq!(host.points(), [point.as_str(), kept], "one point of both");
    assert_eq!(report["disks"].as_array().unwrap().len(), 2);
    assert!(report["warnings"].to_string().contains("firmware's variables"), "{report}");
    let single = host.restore(args![format!("web/vda@{point}"), "--in-place", "--json"]).ok();
    compare("restore in place", &[&single.json()], &[]);
    compare("restore of a guest in place", &[&report], &[]);
    // What was there is a point of disks alone, and the newest: the machine needs an older one.
    let to = host.lab.path("to");
    let said = host.restore(args!["--domain", "web", "--to", to.as_path()]).fails_with(6);
    assert!(said.contains(&format!("--at {point}")), "{said}");
    host.restore(args!["--domain", "web", "--to", to.as_path(), "--at", point.as_str()]).ok();
    let words = args!["--domain", "web", "--at", kept, "--in-place", "--no-point", "--json"];
    let report = host.restore(words).ok().json();
    assert_eq!((&report["kept"], now(&guest) == before), (&Value::Null, true));
    host.assert_sound();
}

/// Half of a guest's disks in the past is worse than none.
#[test]
fn what_is_wrong_with_one_disk_is_found_before_any_is_written() {
    let host = Host::new();
    let (guest, point) = changed(&host);
    let all = || args!["--domain", "web", "--at", point.as_str(), "--in-place"];
    let unchanged = |status: i32, path: &Path| {
        let (before, points) = (fs::read(path).unwrap(), host.points());
        let said = host.restore(all()).fails_with(status);
        assert!(fs::read(path).unwrap() == before, "{said}");
        assert_eq!(host.points(), points, "{said}");
    };
    let file = fs::File::options().read(true).write(true).open(guest.vdb()).unwrap();
    let lock = qdelta::sys::image_lock::ImageLock::exclusive(&file, &guest.vdb()).unwrap();
    unchanged(5, &guest.vda());
    drop(lock);
    qemu_img(args!["resize", "-q", "-f", "raw", guest.vdb(), "5M"]).ok();
    unchanged(3, &guest.vda());
    fs::remove_file(guest.vdb()).unwrap();
    unchanged(6, &guest.vda());
    host.restore(args!["--domain", "web", "--at", point.as_str()]).fails_with(2);
    let words = args!["--domain", "web", "--in-place", "--to", "x"];
    host.restore(words).fails_with(2);
}
