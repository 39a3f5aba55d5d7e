//! Random lives of a disk: a guest writes, zeroes, discards; an admin resizes, snapshots, converts
//! and commits; in between come backups of every kind. In the end every point must restore to what
//! the disk was at that moment.
//!
//! A failure prints its seed. `QDELTA_SEED=0x… cargo test histories` repeats that life alone,
//! `QDELTA_SWEEP=10` lives ten times as many.

use std::path::{Path, PathBuf};

use crate::harness::content::{Guest, Random};
use crate::harness::files::{assert_same, tree};
use crate::harness::images::{create, create_raw, filled_raw, guest_io, oracle, overlay, qemu_img};
use crate::harness::repo::{Repo, point_of};
use crate::harness::{Lab, args, qdelta, run, sweep, tool};

/// Lives in a run without `QDELTA_SWEEP`, for each of the two tests.
const LIVES: u64 = 8;
/// Recovery points in a life.
const POINTS: u64 = 6;

/// Tells which life it was, should the thread die in it.
struct Story {
    seed: u64,
    told: Vec<String>,
}

impl Story {
    fn tell(&mut self, line: String) {
        self.told.push(line);
    }
}

impl Drop for Story {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let told = self.told.join("\n  ");
            eprintln!("this life failed; QDELTA_SEED={:#x} repeats it:\n  {told}", self.seed);
        }
    }
}

/// A disk, and how it is seen by those who change it.
struct Disk {
    path: PathBuf,
    format: &'static str,
    size: u64,
    options: String,
    snapshots: Vec<String>,
    /// Its backing file, as long as it has one.
    backing: Option<PathBuf>,
    made: u64,
}

impl Disk {
    /// A disk of a random make.
    fn new(lab: &Lab, random: &mut Random, format: &'static str) -> Self {
        let size = (1 + random.below(24)) * 512 * 1024 + random.below(4) * 512;
        let path = lab.path(format!("disk.{format}"));
        let mut disk = Self {
            path,
            format,
            size,
            options: String::new(),
            snapshots: Vec::new(),
            backing: None,
            made: 0,
        };
        if format == "raw" {
            create_raw(&disk.path, size);
            return disk;
        }
        disk.options = options(random);
        if random.one_in(3) {
            let backing =
                filled_raw(lab, "backing.raw", 512 * (1 + random.below(16 << 10)), random.next());
            overlay(&disk.path, "backing.raw", "raw", Some(size), &disk.options);
            disk.backing = Some(backing);
        } else {
            create(&disk.path, &disk.options, size);
        }
        disk
    }

    /// Something happens to the disk; gives what it was.
    fn change(&mut self, lab: &Lab, guest: &mut Guest) -> String {
        let what = if self.format == "raw" { 7 } else { guest.random.below(14) };
        match what {
            0 => self.resize(guest),
            1 => self.snapshot(),
            2 => self.revert(guest),
            3 => self.convert(lab, guest),
            4 => self.commit(lab),
            5 => self.write_compressed(guest),
            6 => self.wipe(guest),
            _ => self.write(guest),
        }
    }

    fn write(&self, guest: &mut Guest) -> String {
        let count = 1 + guest.random.below(8);
        let acts: Vec<String> = (0..count).map(|_| guest.act(self.size)).collect();
        guest_io(&self.path, self.format, &acts);
        acts.join("; ")
    }

    fn resize(&mut self, guest: &mut Guest) -> String {
        let size = (512 + guest.random.below(12 << 20)) / 512 * 512;
        let mut arguments = args!["resize", "-q"];
        if size < self.size {
            arguments.push("--shrink".into());
        }
        arguments.extend(args![self.path.as_path(), size.to_string()]);
        // QEMU does not shrink an image that has snapshots, nor grow one of version 2 into what its
        // backing file has there.
        if qemu_img(arguments).code() != Some(0) {
            return format!("resize to {size}: refused");
        }
        let old = std::mem::replace(&mut self.size, size);
        format!("resize from {old} to {size}")
    }

    fn snapshot(&mut self) -> String {
        self.made += 1;
        let name = format!("s{}", self.made);
        qemu_img(args!["snapshot", "-c", name.as_str(), self.path.as_path()]).ok();
        self.snapshots.push(name.clone());
        format!("snapshot {name}")
    }

    fn revert(&mut self, guest: &mut Guest) -> String {
        if self.snapshots.is_empty() {
            return "no snapshot to go back to".to_owned();
        }
        let which = guest.random.below(self.snapshots.len() as u64) as usize;
        if guest.random.one_in(2) {
            let name = self.snapshots.remove(which);
            qemu_img(args!["snapshot", "-d", name.as_str(), self.path.as_path()]).ok();
            return format!("delete snapshot {name}");
        }
        let name = self.snapshots[which].clone();
        qemu_img(args!["snapshot", "-a", name.as_str(), self.path.as_path()]).ok();
        let info = qemu_img(args!["info", "--output=json", self.path.as_path()]).ok().json();
        self.size = info["virtual-size"].as_u64().unwrap();
        format!("go back to snapshot {name}, {} bytes", self.size)
    }

    /// The same content in an image of another make.
    fn convert(&mut self, lab: &Lab, guest: &mut Guest) -> String {
        self.options = options(&mut guest.random);
        let new = lab.path("converted.qcow2");
        let mut arguments = args!["convert", "-O", "qcow2"];
        if guest.random.one_in(2) {
            arguments.push("-c".into());
        }
        arguments.extend(args!["-o", self.options.as_str(), self.path.as_path(), new.as_path()]);
        qemu_img(arguments).ok();
        std::fs::rename(&new, &self.path).unwrap();
        self.snapshots.clear();
        self.backing = None;
        format!("convert to {}", self.options)
    }

    /// What the overlay holds goes down into its backing file, or a new overlay comes on top.
    fn commit(&mut self, lab: &Lab) -> String {
        match self.backing.take() {
            Some(_) => {
                qemu_img(args!["rebase", "-q", "-b", "", self.path.as_path()]).ok();
                "pull everything up from the backing file".to_owned()
            }
            None => {
                self.made += 1;
                let below = lab.path(format!("below{}.qcow2", self.made));
                std::fs::rename(&self.path, &below).unwrap();
                let name = below.file_name().unwrap().to_str().unwrap();
                overlay(&self.path, name, "qcow2", None, "");
                self.snapshots.clear();
                self.backing = Some(below.clone());
                format!("a new overlay over {name}")
            }
        }
    }

    fn write_compressed(&self, guest: &mut Guest) -> String {
        let cluster = 2 << 20;
        if self.size < cluster {
            return "too small for a compressed write of 2 MiB".to_owned();
        }
        let offset = guest.random.below(self.size / cluster) * cluster;
        let write = guest.write(offset, cluster).replacen("write -q", "write -q -c", 1);
        let command = args!["-f", "qcow2", "-c", write.as_str(), self.path.as_path()];
        // QEMU compresses only what is not allocated yet.
        match run(tool("qemu-io", command)).code() {
            Some(0) => write,
            _ => format!("{write}: refused"),
        }
    }

    fn wipe(&self, guest: &mut Guest) -> String {
        let offset = guest.random.below(self.size) / 512 * 512;
        let act = match guest.random.below(3) {
            0 => format!("discard -q {offset} {}", self.size - offset),
            1 => format!("write -q -z {offset} {}", self.size - offset),
            _ => format!("write -q -z -u {offset} {}", self.size - offset),
        };
        guest_io(&self.path, self.format, std::slice::from_ref(&act));
        act
    }
}

/// Options of a random make of image.
fn options(random: &mut Random) -> String {
    let cluster = random.pick(&["512", "4k", "32k", "64k", "256k", "2M"]);
    match random.below(5) {
        0 => format!("compat=0.10,cluster_size={cluster}"),
        1 => format!("extended_l2=on,cluster_size={}", random.pick(&["16k", "64k", "2M"])),
        2 => format!("compression_type=zstd,cluster_size={cluster}"),
        3 => format!("lazy_refcounts=on,cluster_size={cluster}"),
        _ => format!("cluster_size={cluster}"),
    }
}

/// One life. Gives nothing: it ends well or panics.
fn live(seed: u64, format: &'static str) {
    let lab = Lab::new();
    let mut story = Story { seed, told: vec![format!("a {format} disk")] };
    let mut random = Random::new(seed);
    let mut disk = Disk::new(&lab, &mut random, format);
    let mut guest = Guest::new(lab.dir(), random.next());
    guest_io(&disk.path, format, &guest.fill(disk.size, 3));
    story.tell(format!("{} bytes, {}, over {:?}", disk.size, disk.options, disk.backing));

    let repo = Repo::init(lab.path("repo"));
    let block = random.pick(&["4K", "64K", "1M"]);
    let mut points = Vec::new();
    for number in 0..POINTS {
        let kind = if number == 0 {
            "full"
        } else {
            random.pick(&["auto", "incremental", "incremental", "differential", "full"])
        };
        let mut options = vec!["--kind", kind, "--io", random.pick(&["auto", "threads"])];
        if kind == "full" {
            options.extend(["--block-size", block]);
        }
        let expected = lab.path(format!("expected{number}.raw"));
        oracle(args!["-f", format, disk.path.as_path()], &expected);
        let done = repo.backup(&disk.path, "disk", &options);
        story.tell(format!("backup {done}"));
        points.push((point_of(&done), expected));
        for _ in 0..random.below(5) {
            let what = disk.change(&lab, &mut guest);
            story.tell(what);
        }
    }

    repo.verify();
    let ids: Vec<String> = points.iter().map(|(id, _)| id.clone()).collect();
    assert_eq!(repo.points("disk"), ids, "points, oldest first");
    for (id, expected) in &points {
        story.tell(format!("restore {id}"));
        repo.assert_restores(&lab, &format!("disk@{id}"), expected);
    }
    repo.assert_no_leftovers();
    replay_the_last(&lab, &repo, &points.last().unwrap().1);
}

/// Bare archives do without a repository. The last chain: from its full on, increments in order;
/// of differentials only the newest one, and what came after it.
fn replay_the_last(lab: &Lab, repo: &Repo, expected: &Path) {
    let mut chain: Vec<PathBuf> = Vec::new();
    for file in
        tree(&repo.path).into_iter().filter(|file| file.extension().is_some_and(|e| e == "qdelta"))
    {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        if name.ends_with("-full.qdelta") {
            chain.clear();
        } else if name.ends_with("-differential.qdelta") {
            chain.truncate(1);
        }
        chain.push(repo.path.join(file));
    }
    let output = lab.path("replayed.raw");
    let mut arguments = args!["replay"];
    arguments.extend(chain.into_iter().map(PathBuf::into_os_string));
    arguments.extend(args!["--output", output.as_path()]);
    run(qdelta(arguments)).ok();
    assert_same(expected, &output, "replay of the last chain");
}

/// Lives all lives of this run.
fn live_all(first_seed: u64, format: &'static str) {
    if let Ok(text) = std::env::var("QDELTA_SEED") {
        let digits = text.trim_start_matches("0x");
        let seed = u64::from_str_radix(digits, 16)
            .unwrap_or_else(|_| panic!("QDELTA_SEED={text} is no hex number"));
        return live(seed, format);
    }
    for number in 0..LIVES * sweep() {
        live(first_seed + number, format);
    }
}

#[test]
fn every_point_of_a_qcow2_disk_restores() {
    live_all(0x1000, "qcow2");
}

#[test]
fn every_point_of_another_qcow2_disk_restores() {
    live_all(0x10_0000, "qcow2");
}

#[test]
fn every_point_of_a_raw_disk_restores() {
    live_all(0x2000, "raw");
}
