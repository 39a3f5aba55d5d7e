//! Points in a store as disks, as files and as a mount.

use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::files::assert_same;
use crate::harness::images::qemu_img;
use crate::harness::run::{finish, start};
use crate::harness::store::new_repo;
use crate::harness::{Lab, args, qdelta, run, tool};

#[test]
fn points_are_served_mounted_and_looked_into() {
    let lab = Lab::new();
    let repo = new_repo();
    let (folder, disk) = (lab.path("tree"), lab.path("disk.raw"));
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("hello"), "of the guest").unwrap();
    let mut make = args!["-q", "-t", "ext4", "-d", folder.as_path()];
    make.extend(args![disk.as_path(), "16M"]);
    run(tool("mke2fs", make)).ok();
    let image = lab.path("disk.qcow2");
    qemu_img(args!["convert", "-O", "qcow2", disk.as_path(), image.as_path()]).ok();
    repo.backup(&image, "vm/disk", &[]);

    std::fs::create_dir(lab.path("got")).unwrap();
    repo.run(args!["files", "get", "vm/disk", "/hello", "--to", lab.path("got")]).ok();
    assert_eq!(std::fs::read_to_string(lab.path("got/hello")).unwrap(), "of the guest");

    let socket = lab.path("nbd");
    let words = args!["serve", "vm/disk", "--socket", socket.as_path()];
    let mut server = start(&mut qdelta(repo.args(words)));
    let begin = Instant::now();
    while !socket.exists() && begin.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(20));
    }
    let url = format!("nbd+unix:///?socket={}", socket.display());
    let copy = lab.path("copy.raw");
    let copied = qemu_img(args!["convert", "-f", "raw", "-O", "raw", url, copy.as_path()]);
    server.kill().unwrap();
    server.wait().unwrap();
    copied.ok();
    assert_same(&disk, &copy, "served");

    let folder = lab.path("mnt");
    std::fs::create_dir(&folder).unwrap();
    let mut mount = start(&mut qdelta(repo.args(args!["mount", folder.as_path(), "--json"])));
    let mut line = String::new();
    BufReader::new(mount.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(!line.is_empty(), "{}", finish(mount, "qdelta mount".to_owned()).report());
    let id = repo.points("vm/disk").remove(0);
    let file = folder.join("vm/disk").join(format!("{id}.raw"));
    assert_same(&disk, &file, "mounted");
    kill_process(Pid::from_child(&mount), Signal::TERM).unwrap();
    finish(mount, "qdelta mount".to_owned()).ok();
}
