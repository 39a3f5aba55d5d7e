//! Snapshot commands that answer an export: the disk of a guest that runs is read from its server.

use serde_json::json;

use super::*;
use crate::harness::guest::{Guest, Host};
use crate::harness::run::script;

/// A guest that runs, and a command that has qemu-nbd give out `copy.qcow2` in the place of its first disk.
struct Scene<'a> {
    host: &'a Host,
    guest: Guest<'a>,
    copy: PathBuf,
    command: PathBuf,
}

impl<'a> Scene<'a> {
    fn new(host: &'a Host) -> Self {
        let mut guest = Guest::define(host, host.lab.dir());
        guest_io(&guest.vda(), "qcow2", &["write -q -P 1 0 1M".to_owned()]);
        let copy = host.lab.path("copy.qcow2");
        std::fs::copy(guest.vda(), &copy).unwrap();
        guest.start("running");
        let command = host.lab.path("command");
        Self { host, guest, copy, command }
    }

    /// The command answers this about the first disk; `NAME` is the name that it was asked to give.
    fn answer(&self, options: &str, disk: &Value) {
        let (socket, pid) = (self.host.lab.path("nbd.sock"), self.host.lab.path("nbd.pid"));
        let answer = json!({"protocol": 2, "disks": [disk]}).to_string();
        let text = format!(
            "#!/bin/bash
request=$(cat)
name=$(sed -E 's/.*\"name\":\"([^\"]*)\".*/\\1/' <<<\"$request\")
case $1 in
snapshot)
    echo \"$request\" >{}
    qemu-nbd --fork -t -r -e 8 -f qcow2 -x vda -k {} --pid-file {} {options} {} >&2 || exit 1
    sed \"s/NAME/$name/\" <<<'{answer}' ;;
release)
    kill $(cat {}); echo '{{\"protocol\": 2}}' ;;
*) echo '{{\"protocol\": 2}}' ;;
esac\n",
            self.host.lab.path("request").display(),
            socket.display(),
            pid.display(),
            self.copy.display(),
            pid.display()
        );
        script(&self.command, &text);
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///vda?socket={}", self.host.lab.path("nbd.sock").display())
    }

    fn arguments(&self) -> [&str; 6] {
        let command = self.command.to_str().unwrap();
        ["--snapshot-command", command, "--exclude", "vdb", "--sample", "0"]
    }

    #[track_caller]
    fn backup(&self) -> Value {
        let report = self.host.web(&self.arguments());
        let expected = self.host.lab.path("expected.raw");
        oracle(args!["-f", "qcow2", self.copy.as_path()], &expected);
        self.host.repo.assert_restores_raw(&self.host.lab, "web/vda", &expected);
        report["disks"][0].clone()
    }

    fn write(&self, act: &str) {
        guest_io(&self.copy, "qcow2", &[act.to_owned()]);
    }
}

#[test]
fn a_guest_is_read_from_the_export_of_a_command_and_by_its_bitmap() {
    let host = Host::new();
    let scene = Scene::new(&host);
    scene.answer("", &json!({"disk": "vda", "nbd": {"uri": scene.uri()}, "leaves": "NAME"}));
    let first = scene.backup();
    let anchor = first["anchor"].as_str().unwrap();
    assert!(anchor.starts_with("qdelta-"), "{first:#}");
    // What the guest writes from then on, a bitmap has, which is called otherwise at the server.
    qemu_img(args!["bitmap", "--add", scene.copy.as_path(), "backup-vda"]).ok();
    scene.write("write -q -P 7 2M 64k");
    let nbd = |since: &str| {
        let bitmap = "qemu:dirty-bitmap:backup-vda";
        json!({"uri": scene.uri(), "bitmap": bitmap, "since": since})
    };
    scene.answer("-B backup-vda", &json!({"disk": "vda", "nbd": nbd(anchor), "leaves": "NAME"}));
    let second = scene.backup();
    assert_eq!(second["tracker"], "live-bitmap", "{second:#}");
    assert_eq!(second["bytes_changed"], 64 << 10);
    // It counts from another point than the latest one.
    scene.write("write -q -P 8 3M 64k");
    let third = scene.backup();
    let why = reason(&third, "live-bitmap");
    assert!(why.contains("counts from") && why.contains(anchor), "{why}");
    // The manifest knows in which format the guest has the disk, and restores give that.
    let to = host.lab.path("restored");
    host.repo.run(args!["restore", "--domain", "web", "--to", to.as_path()]).ok();
    let disk = to.join("web-vda.qcow2");
    let expected = host.lab.path("expected.raw");
    qemu_img(args!["compare", "-f", "raw", "-F", "qcow2", expected.as_path(), disk.as_path()]).ok();
    assert!(scene.guest.vda().exists());
}

/// A bitmap of a running guest that was cleared, or made anew, counted from then on, and was believed.
#[test]
fn a_bitmap_of_a_command_that_lost_its_marks_is_refused() {
    let host = Host::new();
    let scene = Scene::new(&host);
    scene.answer("", &json!({"disk": "vda", "nbd": {"uri": scene.uri()}, "leaves": "NAME"}));
    let first = scene.backup();
    let bitmap = |act: &str| {
        qemu_img(args!["bitmap", act, scene.copy.as_path(), "backup-vda"]).ok();
    };
    bitmap("--add");
    for mark in marks(&host) {
        scene.write(&format!("write -q -P 9 {mark} 512"));
    }
    scene.write("write -q -P 7 2M 64k");
    let marked = |since: &Value| {
        let bitmap = "qemu:dirty-bitmap:backup-vda";
        let nbd = json!({"uri": scene.uri(), "bitmap": bitmap, "since": since, "marked": true});
        scene.answer("-B backup-vda", &json!({"disk": "vda", "nbd": nbd, "leaves": "NAME"}));
    };
    marked(&first["anchor"]);
    let second = scene.backup();
    assert_eq!(second["tracker"], "live-bitmap", "{second:#}");
    scene.write("write -q -P 8 3M 64k");
    bitmap("--clear");
    scene.write("write -q -P 8 4M 64k");
    marked(&second["anchor"]);
    let third = scene.backup();
    assert_eq!(third["tracker"], "scan", "{third:#}");
    let why = reason(&third, "live-bitmap");
    assert!(why.contains("was cleared, or is another one, or the disk was shrunk"), "{why}");
}

/// What the command was asked to mark in the disk that is called last.
fn marks(host: &Host) -> Vec<u64> {
    let request = std::fs::read(host.lab.path("request")).unwrap();
    let request: Value = serde_json::from_slice(&request).unwrap();
    serde_json::from_value(request["disks"][0]["marks"].clone()).unwrap()
}

#[test]
fn an_export_that_can_t_be_the_guest_s_disk_makes_no_point() {
    let host = Host::new();
    let scene = Scene::new(&host);
    let fails = |options: &str, disk: Value, status: i32| {
        scene.answer(options, &disk);
        let said = host.web_fails(status, &scene.arguments());
        // It was released.
        assert!(!super::is_listening(&host.lab.path("nbd.sock")));
        said
    };
    let uri = scene.uri();
    let said = fails("", json!({"disk": "vda", "nbd": {"uri": "http://host/"}}), 10);
    assert!(said.contains("http://host/"), "{said}");
    let bitmap = json!({"uri": uri, "bitmap": "qemu:dirty-bitmap:b"});
    let said = fails("", json!({"disk": "vda", "nbd": bitmap}), 10);
    assert!(said.contains("with what it counts from"), "{said}");
    let missing = uri.replace("/vda", "/vdc");
    // It is the guest that can't be had, and no file that is missing.
    let said = fails("", json!({"disk": "vda", "nbd": {"uri": missing}}), 10);
    assert!(said.contains("no export 'vdc'"), "{said}");
    let nobody = "nbd+unix:///vda?socket=/nowhere/nbd.sock";
    let said = fails("", json!({"disk": "vda", "nbd": {"uri": nobody}}), 10);
    assert!(said.contains("no server is there"), "{said}");
    qemu_img(args!["resize", "-q", scene.copy.as_path(), "9M"]).ok();
    let said = fails("", json!({"disk": "vda", "nbd": {"uri": uri}}), 10);
    assert!(said.contains("that of another disk"), "{said}");
}
