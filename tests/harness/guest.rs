//! A libvirt guest for tests: libvirt's files, a `qemu-io` that has the disks open as QEMU would, and
//! a `virsh` that plays along.

use std::ffi::OsString;
use std::fs;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use serde_json::Value;

use super::images::{create, create_raw, overlay, qemu_img};
use super::repo::Repo;
use super::virsh::Virsh;
use super::{Lab, Outcome, args, qdelta, run, tool};

pub const MIB: u64 = 1 << 20;
pub const UUID: &str = "c7a5fdbd-edaf-9455-926a-d65c16db1809";

/// A host with one repository.
pub struct Host {
    pub lab: Lab,
    pub repo: Repo,
    pub virsh: Virsh,
}

impl Host {
    pub fn new() -> Self {
        let lab = Lab::new();
        for folder in ["etc/qemu/networks", "run/qemu", "lib"] {
            fs::create_dir_all(lab.path(folder)).unwrap();
        }
        fs::write(lab.path("etc/qemu/networks/default.xml"), "<network/>").unwrap();
        let repo = Repo::init(lab.path("repo"));
        let virsh = Virsh::new(lab.path("virsh"));
        Self { lab, repo, virsh }
    }

    /// Words that say where this host's libvirt is, and which virsh reaches it.
    pub fn place(&self) -> Vec<OsString> {
        let mut words = args!["--virsh", self.virsh.program()];
        words.extend(self.folders());
        words
    }

    /// Words that say where this host's libvirt keeps its files.
    pub fn folders(&self) -> Vec<OsString> {
        args![
            "--libvirt-config",
            self.lab.path("etc"),
            "--libvirt-run",
            self.lab.path("run"),
            "--libvirt-state",
            self.lab.path("lib"),
        ]
    }

    /// Restores, with these words.
    #[track_caller]
    pub fn restore(&self, words: Vec<OsString>) -> Outcome {
        let mut all = self.repo.args(args!["restore"]);
        all.extend(self.folders());
        all.extend(words);
        run(qdelta(all))
    }

    /// The file of the guest's memory, as `virsh managedsave` would leave it.
    pub fn save_memory(&self) -> PathBuf {
        let path = self.lab.path("lib/qemu/save/web.save");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "LibvirtQemudSave").unwrap();
        path
    }

    /// The words of a backup.
    pub fn words(&self, options: &[&str]) -> Vec<OsString> {
        let mut words = self.repo.args(args!["backup", "--json"]);
        words.extend(self.place());
        words.extend(options.iter().map(OsString::from));
        words
    }

    #[track_caller]
    pub fn backup(&self, options: &[&str]) -> Outcome {
        run(qdelta(self.words(options)))
    }

    /// Backs up the domain `web`, which must work; gives its result.
    #[track_caller]
    pub fn web(&self, options: &[&str]) -> Value {
        let mut all = vec!["--domain", "web"];
        all.extend(options);
        let outcome = self.backup(&all).ok().json();
        assert_eq!(outcome["domains"][0]["error"], Value::Null);
        outcome["domains"][0]["result"].clone()
    }

    /// Backs up the domain `web`, which must fail with this status; gives what was said.
    #[track_caller]
    pub fn web_fails(&self, status: i32, options: &[&str]) -> String {
        let mut all = vec!["--domain", "web"];
        all.extend(options);
        let before = self.points();
        let said = self.backup(&all).fails_with(status);
        assert_eq!(self.points(), before, "a point was made");
        said
    }

    /// The points of `web`'s first disk.
    pub fn points(&self) -> Vec<String> {
        let outcome = run(qdelta(self.repo.args(args!["points", "web/vda", "--json"])));
        if outcome.code() != Some(0) {
            return Vec::new();
        }
        let points = &outcome.json()["disks"][0]["points"];
        let points = points.as_array().unwrap().iter();
        points.map(|point| point["point"].as_str().unwrap().to_owned()).collect()
    }

    /// Every point proves to be sound.
    #[track_caller]
    pub fn assert_sound(&self) {
        run(qdelta(self.repo.args(args!["verify", "--json"]))).ok();
        let mark = self.repo.frozen_mark("web");
        assert!(!mark.exists(), "the mark is still there");
    }

    /// Restores a disk of the latest point, and compares it with what the image shows.
    #[track_caller]
    pub fn assert_restores(&self, disk: &str, expected: &[u8]) {
        let output = self.lab.path(format!("{disk}.restored"));
        let words = args!["restore", format!("web/{disk}"), output.as_path(), "--format", "raw"];
        run(qdelta(self.repo.args(words))).ok();
        assert!(fs::read(&output).unwrap() == expected, "{disk} is not what it was");
        fs::remove_file(output).unwrap();
    }
}

/// The guest `web`: `vda` is qcow2, `vdb` raw.
pub struct Guest<'a> {
    host: &'a Host,
    dir: PathBuf,
    agent: &'static str,
    running: Vec<Running>,
}

impl<'a> Guest<'a> {
    /// A guest that is defined, with its images in `dir`, and stopped.
    pub fn define(host: &'a Host, dir: &Path) -> Self {
        let guest =
            Self { host, dir: dir.to_path_buf(), agent: "state='connected' ", running: Vec::new() };
        create(&guest.vda(), "", 8 * MIB);
        create_raw(&guest.vdb(), 4 * MIB);
        fs::write(guest.nvram(), vec![0xff; 3000]).unwrap();
        fs::write(host.lab.path("etc/qemu/web.xml"), guest.xml()).unwrap();
        guest
    }

    pub fn vda(&self) -> PathBuf {
        self.dir.join("web.qcow2")
    }

    pub fn vdb(&self) -> PathBuf {
        self.dir.join("web-data.raw")
    }

    /// It is defined with these words in the place of others.
    #[track_caller]
    pub fn redefine(&self, changes: &[(&str, &str)]) {
        let mut xml = self.xml();
        for (old, new) in changes {
            assert!(xml.contains(old), "{old} is not in {xml}");
            xml = xml.replace(old, new);
        }
        fs::write(self.host.lab.path("etc/qemu/web.xml"), xml).unwrap();
    }

    pub fn nvram(&self) -> PathBuf {
        self.dir.join("web_VARS.fd")
    }

    /// The agent has ended.
    pub fn lose_agent(&mut self) {
        self.agent = "state='disconnected' ";
    }

    pub fn xml(&self) -> String {
        format!(
            "<domain type='qemu'><name>web</name><uuid>{UUID}</uuid>
  <os><type>hvm</type><nvram>{nvram}</nvram></os>
  <devices>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
      <source file='{vda}'/><target dev='vda' bus='virtio'/></disk>
    <disk type='file' device='disk'><driver name='qemu' type='raw'/>
      <source file='{vdb}'/><target dev='vdb' bus='virtio'/></disk>
    <disk type='file' device='cdrom'><target dev='sda'/><readonly/></disk>
    <interface type='user'><mac address='52:54:00:11:22:33'/></interface>
    <channel type='unix'>
      <target type='virtio' name='org.qemu.guest_agent.0' {agent}/></channel>
  </devices></domain>\n",
            nvram = self.nvram().display(),
            vda = self.vda().display(),
            vdb = self.vdb().display(),
            agent = self.agent,
        )
    }

    /// Starts it: both disks are opened as QEMU opens them.
    pub fn start(&mut self, state: &str) {
        self.running = vec![Running::open(&self.vda(), "qcow2"), Running::open(&self.vdb(), "raw")];
        self.set_state(state);
    }

    /// libvirt notes what the guest does.
    pub fn set_state(&self, state: &str) {
        let pid = self.running.first().unwrap().child.id();
        let xml = format!("<domstatus state='{state}' pid='{pid}'>{}</domstatus>", self.xml());
        fs::write(self.host.lab.path("run/qemu/web.xml"), xml).unwrap();
    }

    /// It writes to a disk (0 or 1), and flushes.
    pub fn write(&mut self, disk: usize, offset: u64, len: u64, byte: u8) {
        self.running[disk].command(&format!("write -P {byte} {offset} {len}"));
        self.running[disk].command("flush");
    }

    /// It is moved to an overlay over its image, as by an external snapshot, and libvirt notes it.
    pub fn leave(&mut self, disk: usize) {
        self.leave_after(disk, |_| ());
    }

    /// The same; before it is on the overlay, something is done to its image, which nobody has open.
    pub fn leave_after(&mut self, disk: usize, act: impl FnOnce(&Path)) {
        let (image, format) = self.image(disk);
        let over = image.with_extension("over");
        self.running[disk].command("close");
        act(&image);
        overlay(&over, image.to_str().unwrap(), format, None, "");
        self.move_to(disk, (&image, &over), "qcow2");
    }

    /// What it has written to the overlay goes down into its image, and it is moved there again; between both,
    /// something is done to the image.
    pub fn come_back(&mut self, disk: usize, act: impl FnOnce(&Path)) {
        let (image, format) = self.image(disk);
        let over = image.with_extension("over");
        self.running[disk].command("close");
        qemu_img(args!["commit", "-q", "-f", "qcow2", over.as_path()]).ok();
        fs::remove_file(&over).unwrap();
        act(&image);
        self.move_to(disk, (&over, &image), format);
    }

    fn image(&self, disk: usize) -> (PathBuf, &'static str) {
        [(self.vda(), "qcow2"), (self.vdb(), "raw")][disk].clone()
    }

    fn move_to(&mut self, disk: usize, (old, new): (&Path, &Path), format: &str) {
        self.running[disk].command(&format!("open -o driver={format} {}", new.display()));
        let live = self.host.lab.path("run/qemu/web.xml");
        let xml = fs::read_to_string(&live).unwrap();
        let (old, new) = (format!("'{}'", old.display()), format!("'{}'", new.display()));
        fs::write(live, xml.replace(&old, &new)).unwrap();
    }

    /// It does something to a disk, in the words of qemu-io.
    pub fn does(&mut self, disk: usize, command: &str) {
        self.running[disk].command(command);
    }

    pub fn stop(&mut self) {
        self.running.clear();
        fs::remove_file(self.host.lab.path("run/qemu/web.xml")).unwrap();
    }
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        self.running.clear();
    }
}

/// A `qemu-io` that has an image open.
pub struct Running {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Running {
    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Opens an image as QEMU does.
    pub fn open(path: &Path, format: &str) -> Self {
        let mut child = tool("qemu-io", args!["-f", format, path])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut running = Self { child, stdin, stdout };
        running.wait();
        running
    }

    /// Does it, and returns when it is done.
    fn command(&mut self, command: &str) {
        writeln!(self.stdin, "{command}").unwrap();
        self.wait();
    }

    /// Returns when it asks what to do next.
    fn wait(&mut self) {
        let mut said = Vec::new();
        while !said.ends_with(b"qemu-io> ") {
            let mut byte = [0];
            assert!(self.stdout.read(&mut byte).unwrap() == 1, "qemu-io has ended");
            said.extend(byte);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = writeln!(self.stdin, "quit");
        let _ = self.child.wait();
    }
}

/// What an image shows.
#[track_caller]
pub fn content(path: &Path, format: &str) -> Vec<u8> {
    let raw = path.with_extension("content");
    qemu_img(args!["convert", "-f", format, "-O", "raw", path, raw.as_path()]).ok();
    let bytes = fs::read(&raw).unwrap();
    fs::remove_file(raw).unwrap();
    bytes
}

/// A disk of `mib` MiB with these bytes in it: offset, length, byte.
pub fn disk(mib: u64, pieces: &[(u64, u64, u8)]) -> Vec<u8> {
    let mut bytes = vec![0; (mib * MIB) as usize];
    for &(offset, len, byte) in pieces {
        bytes[offset as usize..(offset + len) as usize].fill(byte);
    }
    bytes
}
