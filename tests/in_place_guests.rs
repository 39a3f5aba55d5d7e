//! Rolling the disks of libvirt guests back where they lie: never below a guest that would be harmed.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use qdelta::ErrorKind;
use qdelta::base::cancel::Cancel;
use qdelta::base::observer::{Event, Observer, Silent};
use qdelta::disk::flow::pipeline::Resources;
use qdelta::flows::restore::{
    InPlaceOptions, InPlaceRequest, MachineInPlaceRequest, run_in_place, run_machine_in_place,
};
use qdelta::guest::libvirt::Libvirt;
use qdelta::vault::repository::Selector;
use serde_json::Value;

use super::block_devices::Device;
use super::cli::json::compare;
use super::harness::args;
use super::harness::files::{Mount, disk_usage};
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
    assert!(said.contains("is another guest than that of the point"), "{said}");
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

/// The guest of the point is gone, and another one has its image now.
#[test]
fn the_disk_of_another_guest_is_left_alone() {
    let host = Host::new();
    let (guest, point) = changed(&host);
    fs::remove_file(host.lab.path("etc/qemu/web.xml")).unwrap();
    let other = guest.xml().replace("<name>web", "<name>shop");
    let other = other.replace(UUID, "5c0ad46c-8b0d-4f4c-9a55-1f6a2b7f3c11");
    fs::write(host.lab.path("etc/qemu/shop.xml"), other).unwrap();
    let before = now(&guest);
    let vda = format!("web/vda@{point}");
    let said = host.restore(args![vda.as_str(), "--in-place"]).fails_with(2);
    assert!(said.contains("is disk vda of shop now"), "{said}");
    assert!(now(&guest) == before);
    // Who means it can say so.
    host.restore(args![vda, guest.vda(), "--in-place"]).ok();
    assert!(content(&guest.vda(), "qcow2") == then()[0]);
}

/// A template in another folder than the overlays: names inside images lead there only with
/// --image-root, so that the overlay could not be opened, and the template was written over. So it was
/// below a disk that no backup takes.
#[test]
fn a_template_in_another_folder_is_left_alone() {
    let host = Host::new();
    let (guest, point) = changed(&host);
    let base = guest.vda();
    let folder = host.lab.path("overlays");
    fs::create_dir(&folder).unwrap();
    let overlay = folder.join("other.qcow2");
    let words = args!["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base.as_path()];
    qemu_img([words, args![overlay.as_path()]].concat()).ok();
    let other = guest.xml().replace("<name>web", "<name>other");
    let other = other.replace(base.to_str().unwrap(), overlay.to_str().unwrap());
    let other = other.replace(guest.vdb().to_str().unwrap(), "/nonexistent/other.raw");
    let file = host.lab.path("etc/qemu/other.xml");
    let before = fs::read(&base).unwrap();
    let to = host.lab.path("to");
    fs::create_dir(&to).unwrap();
    let replaced = to.join("web-vda.qcow2");
    fs::hard_link(&base, &replaced).unwrap();
    for more in ["", "<readonly/>", "<transient/>"] {
        let vda = "<target dev='vda' bus='virtio'/>";
        fs::write(&file, other.replace(vda, &format!("{vda}{more}"))).unwrap();
        for words in [
            args![format!("web/vda@{point}"), "--in-place"],
            args![format!("web/vda@{point}"), base.as_path(), "--in-place", "--no-point"],
            args!["--domain", "web", "--at", point.as_str(), "--in-place"],
            args!["--domain", "web", "--at", point.as_str(), "--to", to.as_path(), "--force"],
        ] {
            let said = host.restore(words).fails_with(5);
            assert!(said.contains("is a backing file of disk vda of other"), "{more}: {said}");
            assert!(fs::read(&base).unwrap() == before && fs::read(&replaced).unwrap() == before);
        }
    }
    // What can't be followed may lead there.
    fs::write(&overlay, "QFI\u{fb}, but no more").unwrap();
    let said = host.restore(args![format!("web/vda@{point}"), "--in-place"]).fails_with(5);
    assert!(said.contains("not known whether"), "{said}");
    assert!(fs::read(&base).unwrap() == before);
    // Without its image it is no disk.
    fs::remove_file(&overlay).unwrap();
    host.restore(args![format!("web/vda@{point}"), "--in-place"]).ok();
}

/// Lets something happen when a phase begins for the nth time.
struct At<F>(&'static str, AtomicU32, F);

impl<F: Fn() + Send + Sync> Observer for At<F> {
    fn event(&self, event: &Event<'_>) {
        if let Event::Begin { phase, .. } = event
            && *phase == self.0
            && self.1.fetch_sub(1, Ordering::Relaxed) == 1
        {
            (self.2)();
        }
    }
}

fn options(host: &Host) -> InPlaceOptions {
    InPlaceOptions {
        format: None,
        image_roots: Vec::new(),
        safety_point: true,
        same_guest: false,
        libvirt: Libvirt {
            config: host.lab.path("etc"),
            run: host.lab.path("run"),
            state: host.lab.path("lib"),
            session: false,
        },
        resources: Resources::default(),
    }
}

/// Guests were looked at once, before what is there was kept, which may take hours: one that was started
/// meanwhile was written under.
#[test]
fn a_guest_that_starts_while_what_is_there_is_kept_is_left_alone() {
    let host = Host::new();
    let (guest, point) = changed(&host);
    let before = now(&guest);
    let xml = format!("<domstatus state='running' pid='1'>{}</domstatus>", guest.xml());
    let live = host.lab.path("run/qemu/web.xml");
    let request = MachineInPlaceRequest {
        domain: "web".to_owned(),
        selector: Selector::Id(point.clone()),
        options: options(&host),
    };
    let repository = host.repo.open();
    let start = At("backup", AtomicU32::new(1), || fs::write(&live, &xml).unwrap());
    let error =
        run_machine_in_place(&repository, &request, &start, &Cancel::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(error.chain().contains("disk vda of web, which runs"), "{}", error.chain());
    let points = host.points();
    assert_eq!(points.len(), 2, "what was there was kept by then");
    let advice = error.advice().unwrap();
    assert!(advice.contains(&points[1]) && advice.contains(&point), "{advice}");
    // What the guest writes from now on is not in what was kept.
    assert!(!advice.contains("--no-point"), "{advice}");
    assert!(now(&guest) == before);
}

/// libvirt gives QEMU a node of its own for a block device, so that nobody sees the other's locks.
#[test]
fn a_guest_that_starts_while_its_device_is_written_is_not_passed_over() {
    let host = Host::new();
    let guest = Guest::define(&host, host.lab.dir());
    guest_io(&guest.vdb(), "raw", &["write -q -P 2 0 1M".to_owned()]);
    let device = Device::over(guest.vdb());
    let path = device.path.to_str().unwrap();
    let source = format!("file='{}'", guest.vdb().display());
    let changes = [(source.as_str(), &*format!("dev='{path}'"))];
    guest.redefine(&changes);
    let xml = fs::read_to_string(host.lab.path("etc/qemu/web.xml")).unwrap();
    let xml = xml.replace("<disk type='file'", "<disk type='block'");
    let xml = xml.replacen("type='block'", "type='file'", 1);
    fs::write(host.lab.path("etc/qemu/web.xml"), &xml).unwrap();
    let point = host.web(&[])["point"].as_str().unwrap().to_owned();
    guest_io(&device.path, "raw", &["write -q -P 4 0 1M".to_owned()]);
    let live = host.lab.path("run/qemu/web.xml");
    let xml = format!("<domstatus state='running' pid='1'>{xml}</domstatus>");
    let request = InPlaceRequest {
        disk: "web/vdb".parse().unwrap(),
        selector: Selector::Id(point.clone()),
        image: None,
        options: options(&host),
    };
    let repository = host.repo.open();
    // What was written is compared with the point.
    let start = At("compare", AtomicU32::new(2), || fs::write(&live, &xml).unwrap());
    let error = run_in_place(&repository, &request, &start, &Cancel::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(error.chain().contains("may be damaged"), "{}", error.chain());
    let again = run_in_place(&repository, &request, &Silent, &Cancel::default()).unwrap_err();
    assert!(again.chain().contains("which runs"), "{}", again.chain());
    fs::remove_file(&live).unwrap();
    let report = run_in_place(&repository, &request, &Silent, &Cancel::default()).unwrap();
    assert_eq!(report.image, device.path);
    drop(device);
    assert!(content(&guest.vdb(), "raw") == then()[1]);
}

/// The kept point has no machine in it: its images were taken for those of now, though a snapshot had
/// been merged since.
#[test]
fn what_was_kept_goes_back_to_the_image_of_now() {
    let host = Host::new();
    let (guest, point) = changed(&host);
    let base = guest.vda();
    let overlay = host.lab.path("web.snap1");
    let words = args!["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base.as_path()];
    qemu_img([words, args![overlay.as_path()]].concat()).ok();
    guest_io(&overlay, "qcow2", &["write -q -P 9 4M 1M".to_owned()]);
    let was = content(&overlay, "qcow2");
    guest.redefine(&[(base.to_str().unwrap(), overlay.to_str().unwrap())]);
    let vda = format!("web/vda@{point}");
    let report = host.restore(args![vda.as_str(), "--in-place", "--json"]).ok().json();
    let kept = report["safety_point"].as_str().unwrap();
    qemu_img(args!["commit", "-q", "-d", overlay.as_path()]).ok();
    guest.redefine(&[]);
    let left = fs::read(&overlay).unwrap();
    let words = args![format!("web/vda@{kept}"), "--in-place", "--json"];
    let report = host.restore(words).ok().json();
    assert_eq!(report["image"].as_str(), base.to_str());
    assert!(content(&base, "qcow2") == was);
    assert!(fs::read(&overlay).unwrap() == left, "the overlay that is no more was written to");
}

/// The second disk was found to be in the way when the first was the other disk already.
#[test]
fn a_second_disk_that_cannot_be_changed_is_found_before_the_first_is() {
    let host = Host::new();
    let guest = Guest::define(&host, host.lab.dir());
    let vdb = host.lab.path("data.qcow2");
    qemu_img(args!["create", "-q", "-f", "qcow2", vdb.as_path(), "4M"]).ok();
    let raw = format!("type='raw'/>\n      <source file='{}'/>", guest.vdb().display());
    let qcow2 = format!("type='qcow2'/>\n      <source file='{}'/>", vdb.display());
    guest.redefine(&[(&raw, &qcow2)]);
    guest_io(&guest.vda(), "qcow2", &["write -q -P 1 0 1M".to_owned()]);
    guest_io(&vdb, "qcow2", &["write -q -P 2 0 1M".to_owned()]);
    let point = host.web(&[])["point"].as_str().unwrap().to_owned();
    guest_io(&guest.vda(), "qcow2", &["write -q -P 3 1M 1M".to_owned()]);
    guest_io(&vdb, "qcow2", &["write -q -P 4 2M 1M".to_owned(), "discard -q 0 1M".to_owned()]);
    let all = || args!["--domain", "web", "--at", point.as_str(), "--in-place"];
    let (vda, good) = (fs::read(guest.vda()).unwrap(), fs::read(&vdb).unwrap());
    let unchanged = |status: i32, word: &str| {
        let said = host.restore(all()).fails_with(status);
        assert!(said.contains(word), "{said}");
        assert!(fs::read(guest.vda()).unwrap() == vda, "{said}");
        assert_eq!(host.points(), [point.as_str()], "{said}");
    };
    // The header's incompatible features: bit 0 is dirty.
    let mut dirty = good.clone();
    dirty[79] |= 1;
    fs::write(&vdb, dirty).unwrap();
    unchanged(3, "not closed properly");
    // The cluster of the L1 table counts as free.
    let mut damaged = good.clone();
    let table = u64::from_be_bytes(damaged[48..56].try_into().unwrap()) as usize;
    let block = u64::from_be_bytes(damaged[table..table + 8].try_into().unwrap()) as usize;
    let l1 = u64::from_be_bytes(damaged[40..48].try_into().unwrap()) as usize;
    let l2 = u64::from_be_bytes(damaged[l1..l1 + 8].try_into().unwrap()) & 0x00ff_ffff_ffff_ffff;
    let at = block + (l2 as usize >> 16) * 2;
    damaged[at..at + 2].fill(0);
    fs::write(&vdb, damaged).unwrap();
    unchanged(3, "counts as free");
    fs::write(&vdb, &good).unwrap();
    // A frame of the archive, of which only the second disk's is needed.
    let archive = host.repo.files_below("web/vdb").remove(0);
    let sound = archive.bytes();
    let frame = sound.windows(4).position(|it| it == b"QDFR").unwrap_or(sound.len() / 2);
    archive.patch(frame as u64 + 40, &[sound[frame + 40] ^ 1]);
    unchanged(4, if host.repo.key.is_some() { "was changed" } else { "damaged" });
    archive.write(&sound);
    host.restore(all()).ok();
    assert!(content(&guest.vda(), "qcow2") == then()[0] && content(&vdb, "qcow2") == then()[1]);
}

/// There was room for the first disk alone.
#[test]
fn room_for_all_disks_is_looked_for_before_the_first_is_written() {
    let host = Host::new();
    let mount = Mount::in_memory(host.lab.dir(), 24 * MIB);
    let guest = Guest::define(&host, &mount.dir);
    guest_io(&guest.vda(), "qcow2", &["write -q -P 1 0 3M".to_owned()]);
    guest_io(&guest.vdb(), "raw", &["write -q -P 2 0 3M".to_owned()]);
    let point = host.web(&[])["point"].as_str().unwrap().to_owned();
    guest_io(&guest.vda(), "qcow2", &["write -q -P 3 0 3M".to_owned()]);
    // Not a hole is left of what the point has.
    fs::File::create(guest.vdb()).unwrap().set_len(4 * MIB).unwrap();
    let all = || args!["--domain", "web", "--at", point.as_str(), "--in-place"];
    let image = |path: &Path| fs::read(path).unwrap();
    let bytes = [image(&guest.vda()), image(&guest.vdb())];
    // Of 24 MiB all but 4 are taken: one of the two would fit.
    let taken = [guest.vda(), guest.nvram()].iter().map(|it| disk_usage(it)).sum::<u64>();
    let filler = mount.dir.join("filler");
    fs::write(&filler, vec![1; (20 * MIB - taken) as usize]).unwrap();
    let said = host.restore(all()).fails_with(8);
    assert!(said.contains("its filesystem has"), "{said}");
    assert!([image(&guest.vda()), image(&guest.vdb())] == bytes, "{said}");
    assert_eq!(host.points(), [point.as_str()], "{said}");
    fs::remove_file(&filler).unwrap();
    host.restore(all()).ok();
    assert!(content(&guest.vda(), "qcow2") == disk(8, &[(0, 3 * MIB, 1)]));
}

/// A disk that came after the point was passed over without a word.
#[test]
fn a_disk_that_the_guest_has_got_since_is_named() {
    let host = Host::new();
    let (guest, point) = changed(&host);
    let disk = "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
        <source file='/nonexistent/new.qcow2'/><target dev='vdc' bus='virtio'/></disk>";
    guest.redefine(&[("<interface", &format!("{disk}<interface"))]);
    let words = args!["--domain", "web", "--at", point.as_str(), "--in-place", "--json"];
    let report = host.restore(words).ok().json();
    let warnings = report["warnings"].to_string();
    assert!(warnings.contains("disk vdc is as it is now"), "{warnings}");
    assert!(!warnings.contains("vda") && !warnings.contains("vdb"), "{warnings}");
}

#[test]
fn all_disks_of_a_guest_go_back_together() {
    let host = Host::new();
    let (guest, point) = changed(&host);
    let before = now(&guest);
    let words = args!["--domain", "web", "--at", point.as_str(), "--in-place", "--json"];
    let report = host.restore(words.clone()).ok().json();
    assert!(now(&guest) == then(), "{report}");
    let kept = report["safety_point"].as_str().unwrap();
    assert_eq!(host.points(), [point.as_str(), kept], "one point of both");
    assert_eq!(report["disks"].as_array().unwrap().len(), 2);
    assert!(report["warnings"].to_string().contains("firmware's variables"), "{report}");
    let single = host.restore(args![format!("web/vda@{point}"), "--in-place", "--json"]).ok();
    compare("restore in place", &[&single.json()], &[]);
    compare("restore of a guest in place", &[&report], &[]);
    // The latest point is the backup, and no safety point, which has disks alone.
    let to = host.lab.path("to");
    let words = args!["--domain", "web", "--to", to.as_path(), "--json"];
    let report = host.restore(words).ok().json();
    assert_eq!(report["point"].as_str(), Some(point.as_str()));
    assert_eq!(report["passed_over"].as_str(), host.points().last().map(String::as_str));
    let words = args!["--domain", "web", "--to", to.as_path(), "--at", kept, "--force"];
    let said = host.restore(words).fails_with(6);
    assert!(said.contains(&format!("--at {point}")), "{said}");
    let words = args!["--domain", "web", "--at", kept, "--in-place", "--no-point", "--json"];
    let report = host.restore(words).ok().json();
    assert_eq!((&report["safety_point"], now(&guest) == before), (&Value::Null, true));
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
    let lock = qdelta::disk::files::image_lock::ImageLock::exclusive(&file, &guest.vdb()).unwrap();
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
