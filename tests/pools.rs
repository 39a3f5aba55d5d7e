//! Guests that are restored into storage pools.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::Value;

use super::block_devices::Device;
use super::harness::guest::{Guest, Host, MIB, disk};
use super::harness::run::as_root;
use super::harness::{args, run};

/// Defines the pool `p` whose volumes lie in this folder.
fn pool(host: &Host, kind: &str, target: &Path) {
    let folder = host.lab.path("etc/storage");
    fs::create_dir_all(&folder).unwrap();
    let target = target.display();
    let xml =
        format!("<pool type='{kind}'><name>p</name><target><path>{target}</path></target></pool>");
    fs::write(folder.join("p.xml"), xml).unwrap();
}

/// A guest with a point, and the words that restore it into the pool.
fn scene(host: &Host) -> Vec<OsString> {
    let mut guest = Guest::define(host, host.lab.dir());
    guest.start("running");
    guest.write(0, MIB, MIB, 1);
    guest.write(1, 0, MIB, 2);
    guest.stop();
    host.web(&[]);
    args!["--domain", "web", "--to", host.lab.path("to"), "--to-pool", "p", "--rename", "new"]
}

fn commands(report: &Value) -> Vec<&str> {
    report["commands"].as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect()
}

#[test]
fn disks_become_volumes_of_a_pool_of_files() {
    let host = Host::new();
    let words = scene(&host);
    let images = host.lab.path("images");
    pool(&host, "dir", &images);
    let said = host.restore(words.clone()).fails_with(6);
    assert!(said.contains("virsh pool-start p"), "{said}");
    fs::create_dir(&images).unwrap();
    let report = host.restore([words.clone(), args!["--json"]].concat()).ok().json();
    assert_eq!(
        commands(&report)[0],
        "virsh pool-start p",
        "libvirt refreshes no pool that is not active"
    );
    let active = host.lab.path("run/storage");
    fs::create_dir_all(&active).unwrap();
    fs::copy(host.lab.path("etc/storage/p.xml"), active.join("p.xml")).unwrap();
    fs::remove_dir_all(host.lab.path("to")).unwrap();
    let again = host.restore([words.clone(), args!["--json", "--force"]].concat()).ok().json();
    assert_eq!(commands(&again)[0], "virsh pool-refresh p");
    let (vda, vdb) = (images.join("new-vda.qcow2"), images.join("new-vdb.raw"));
    let text = fs::read_to_string(host.lab.path("to/new.xml")).unwrap();
    for path in [&vda, &vdb] {
        assert!(text.contains(&format!("<source file='{}'/>", path.display())), "{text}");
    }
    assert!(fs::read(&vdb).unwrap() == disk(4, &[(0, MIB, 2)]));
    let mut there: Vec<_> = fs::read_dir(&images).unwrap().map(|it| it.unwrap().path()).collect();
    there.sort();
    assert_eq!(there, [vda.clone(), vdb]);
    // What is there stays.
    fs::remove_dir_all(host.lab.path("to")).unwrap();
    let said = host.restore(words).fails_with(7);
    assert!(said.contains("new-vda.qcow2 exists already"), "{said}");
    assert!(!host.lab.path("to").exists());
}

/// A filesystem that is not mounted leaves a folder, and the disks would have filled what lies below.
#[test]
fn a_pool_that_is_not_mounted_gets_nothing() {
    let host = Host::new();
    let words = scene(&host);
    let images = host.lab.path("images");
    fs::create_dir(&images).unwrap();
    for kind in ["netfs", "fs"] {
        pool(&host, kind, &images);
        let said = host.restore(words.clone()).fails_with(6);
        assert!(said.contains("not mounted") && said.contains("virsh pool-start p"), "{said}");
    }
    assert!(fs::read_dir(&images).unwrap().next().is_none() && !host.lab.path("to").exists());
}

#[test]
fn disks_become_logical_volumes_that_are_there() {
    let host = Host::new();
    let words = scene(&host);
    let group = host.lab.path("vg");
    fs::create_dir(&group).unwrap();
    pool(&host, "logical", &group);
    let said = host.restore(words.clone()).fails_with(6);
    for line in ["virsh vol-create-as p new-vda 8388608", "virsh vol-create-as p new-vdb 4194304"] {
        assert!(said.contains(line), "{said}");
    }
    let device = |name: &str, size: u64| {
        let file = host.lab.path(name);
        fs::File::create(&file).unwrap().set_len(size).unwrap();
        let device = Device::over(file.clone());
        let _ = fs::remove_file(group.join(name));
        symlink(&device.path, group.join(name)).unwrap();
        (device, file)
    };
    let (_vda, vda) = device("new-vda", 8 * MIB);
    {
        // Seen before the first disk is written.
        let _short = device("new-vdb", 2 * MIB);
        let said = host.restore(words.clone()).fails_with(8);
        assert!(said.contains("2097152 bytes and the disk has 4194304"), "{said}");
        assert!(fs::read(&vda).unwrap() == disk(8, &[]));
    }
    let (_vdb, vdb) = device("new-vdb", 4 * MIB);
    let qcow2 = [words.clone(), args!["--format", "qcow2"]].concat();
    let said = host.restore(qcow2).fails_with(2);
    assert!(said.contains("hold raw disks"), "{said}");
    host.restore(words.clone()).ok();
    let text = fs::read_to_string(host.lab.path("to/new.xml")).unwrap();
    let source = format!("<source dev='{}'/>", group.join("new-vda").display());
    assert!(text.contains(&source) && text.contains("type='block'"), "{text}");
    for (file, expected) in [(vda, disk(8, &[(MIB, MIB, 1)])), (vdb, disk(4, &[(0, MIB, 2)]))] {
        assert!(fs::read(file).unwrap() == expected);
    }
    fs::remove_dir_all(host.lab.path("to")).unwrap();
    let said = host.restore(words.clone()).fails_with(7);
    assert!(said.contains("is not empty"), "{said}");
    host.restore([words, args!["--force"]].concat()).ok();
}

#[test]
fn what_no_pool_can_take_is_refused_with_what_to_do() {
    let host = Host::new();
    let words = scene(&host);
    for (kind, what) in [("disk", "partitions"), ("rbd", "virsh vol-upload")] {
        pool(&host, kind, host.lab.dir());
        let said = host.restore(words.clone()).fails_with(2);
        assert!(said.contains(what), "{said}");
    }
    // No pool lies in a store.
    if !host.repo.is_in_a_store() {
        pool(&host, "dir", &host.repo.path);
        let said = host.restore(words.clone()).fails_with(2);
        assert!(said.contains("repository"), "{said}");
    }
    fs::remove_file(host.lab.path("etc/storage/p.xml")).unwrap();
    let said = host.restore(words).fails_with(6);
    assert!(said.contains("there is no p.xml in") && said.contains("virsh pool-list"), "{said}");
    let said = host.restore(args!["--domain", "web", "--to-pool", "p"]).fails_with(2);
    assert!(said.contains("--to DIR"), "{said}");
}

/// The name of a volume was cut after a hundred characters, and the backup took the volume of that name.
#[test]
fn a_volume_of_a_long_name_is_the_one_that_is_meant() {
    let host = Host::new();
    let images = host.lab.path("images");
    fs::create_dir(&images).unwrap();
    pool(&host, "dir", &images);
    let short = "v".repeat(100);
    let long = format!("{short}-second");
    fs::write(images.join(&short), vec![1; MIB as usize]).unwrap();
    fs::write(images.join(&long), vec![2; MIB as usize]).unwrap();
    let guest = Guest::define(&host, host.lab.dir());
    let xml = guest.xml();
    let old = format!("<source file='{}'/>", guest.vdb().display());
    assert!(xml.contains(&old));
    let xml = xml.replace(&old, &format!("<source pool='p' volume='{long}'/>"));
    let (head, tail) = xml.split_at(xml.rfind("<disk type='file' device='disk'>").unwrap());
    let xml = format!("{head}{}", tail.replacen("type='file'", "type='volume'", 1));
    fs::write(host.lab.path("etc/qemu/web.xml"), xml).unwrap();
    host.web(&[]);
    host.assert_restores("vdb", &vec![2; MIB as usize]);
}

/// Two disks were written to one device, a file in the place of a volume was replaced by another file, and the first
/// disk was overwritten before it was seen that the second can't be.
#[test]
fn volumes_are_looked_at_before_anything_is_written() {
    let host = Host::new();
    let words = [scene(&host), args!["--force"]].concat();
    let group = host.lab.path("vg");
    fs::create_dir(&group).unwrap();
    pool(&host, "logical", &group);
    let file = host.lab.path("device");
    fs::write(&file, vec![7; 16 * MIB as usize]).unwrap();
    let device = Device::over(file.clone());
    let link = |name: &str, to: &Path| {
        let _ = fs::remove_file(group.join(name));
        symlink(to, group.join(name)).unwrap();
    };
    let refused = |status: i32, what: &str| {
        let said = host.restore(words.clone()).fails_with(status);
        assert!(said.contains(what), "{what}: {said}");
        assert!(fs::read(&file).unwrap().iter().all(|byte| *byte == 7), "something was written");
        assert!(!host.lab.path("to").exists());
    };
    for name in ["new-vda", "new-vdb"] {
        link(name, &device.path);
    }
    refused(2, "are one device");
    let second = Device::over(file.clone());
    link("new-vdb", &second.path);
    refused(2, "are one device");
    drop(second);
    fs::remove_file(group.join("new-vdb")).unwrap();
    fs::write(group.join("new-vdb"), vec![0; 4 * MIB as usize]).unwrap();
    refused(2, "is no block device");
    let other = host.lab.path("other-device");
    fs::write(&other, vec![7; 8 * MIB as usize]).unwrap();
    let read_only = Device::over(other);
    run(as_root("blockdev", args!["--setro", read_only.path.as_path()])).ok();
    link("new-vdb", &read_only.path);
    refused(1, "can only be read");
    run(as_root("blockdev", args!["--setrw", read_only.path.as_path()])).ok();
    // The rest of a longer device is what it was, and the guest sees it.
    let report = host.restore([words.clone(), args!["--json"]].concat()).ok().json();
    for disk in report["disks"].as_array().unwrap() {
        let warnings = disk["warnings"].as_array().unwrap();
        assert!(warnings.iter().any(|it| it["code"] == "longer"), "{disk}");
    }
}

/// Two guests whose names differ in one odd character have files of one name, and `--force` replaced the other's disk.
#[test]
fn no_disk_of_another_guest_is_replaced() {
    let host = Host::new();
    let words = [scene(&host), args!["--force"]].concat();
    let images = host.lab.path("images");
    fs::create_dir(&images).unwrap();
    pool(&host, "dir", &images);
    let disk = images.join("new-vdb.raw");
    fs::write(&disk, "another guest's").unwrap();
    let xml = format!(
        "<domain type='qemu'><name>n+w</name><uuid>11111111-edaf-9455-926a-d65c16db1809</uuid><devices>\
         <disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{}'/>\
         <target dev='vda'/></disk></devices></domain>",
        disk.display()
    );
    fs::write(host.lab.path("etc/qemu/n+w.xml"), xml).unwrap();
    let said = host.restore(words).fails_with(5);
    assert!(said.contains("is disk vda of n+w, another guest"), "{said}");
    assert_eq!(fs::read_to_string(&disk).unwrap(), "another guest's");
}
