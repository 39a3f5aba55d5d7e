//! A disk to which a guest and an admin do whatever they like.

use std::path::PathBuf;

use super::content::{Guest, Random};
use super::images::{create, create_raw, filled_raw, guest_io, overlay, qemu_img};
use super::{Lab, args, run, tool};

/// A disk, and how it is seen by those who change it.
#[derive(Debug)]
pub struct Disk {
    pub path: PathBuf,
    pub format: &'static str,
    pub size: u64,
    pub options: String,
    snapshots: Vec<String>,
    /// Its backing file, as long as it has one.
    pub backing: Option<PathBuf>,
    made: u64,
    /// How it was made when a copy was put aside.
    remembered: Option<(u64, String, Vec<String>)>,
}

impl Disk {
    /// A disk of a random make.
    pub fn new(lab: &Lab, random: &mut Random, format: &'static str) -> Self {
        Self::at(lab.path(format!("disk.{format}")), lab, random, format, false)
    }

    /// A qcow2 disk of a random make in the file at `path`, over a backing file.
    pub fn over_another(path: PathBuf, lab: &Lab, random: &mut Random) -> Self {
        Self::at(path, lab, random, "qcow2", true)
    }

    fn at(
        path: PathBuf,
        lab: &Lab,
        random: &mut Random,
        format: &'static str,
        is_over: bool,
    ) -> Self {
        let size = (1 + random.below(24)) * 512 * 1024 + random.below(4) * 512;
        let mut disk = Self {
            path,
            format,
            size,
            options: String::new(),
            snapshots: Vec::new(),
            backing: None,
            made: 0,
            remembered: None,
        };
        if format == "raw" {
            create_raw(&disk.path, size);
            return disk;
        }
        disk.options = options(random);
        if is_over || random.one_in(3) {
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
    pub fn change(&mut self, lab: &Lab, guest: &mut Guest) -> String {
        let what = if self.format == "raw" { 8 } else { guest.random.below(15) };
        match what {
            0 => self.resize(guest),
            1 => self.snapshot(),
            2 => self.revert(guest),
            3 => self.convert(lab, guest),
            4 => self.commit(lab),
            5 => self.write_compressed(guest),
            6 => self.wipe(guest),
            7 => self.run_over_another_backing_file(lab, guest),
            _ => self.write(guest),
        }
    }

    /// Somebody puts a copy aside.
    pub fn remember(&mut self) {
        self.remembered = Some((self.made, self.options.clone(), self.snapshots.clone()));
    }

    /// Whether that copy can be put in its place: no new layer has come, and it had the same form.
    pub fn is_as_it_was(&self) -> bool {
        self.remembered
            .as_ref()
            .is_some_and(|(made, options, _)| *made == self.made && *options == self.options)
    }

    /// After that copy has come back.
    pub fn look_again(&mut self) -> String {
        if let Some((_, _, snapshots)) = self.remembered.take() {
            self.snapshots = snapshots;
        }
        if self.format == "raw" {
            self.size = std::fs::metadata(&self.path).unwrap().len();
        } else {
            let info = qemu_img(args!["info", "--output=json", self.path.as_path()]).ok().json();
            self.size = info["virtual-size"].as_u64().unwrap();
        }
        format!("{} bytes", self.size)
    }

    pub fn write(&self, guest: &mut Guest) -> String {
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
        // Not while a bitmap records what is written.
        if qemu_img(args!["snapshot", "-a", name.as_str(), self.path.as_path()]).code() != Some(0) {
            return format!("go back to snapshot {name}: refused");
        }
        let info = qemu_img(args!["info", "--output=json", self.path.as_path()]).ok().json();
        self.size = info["virtual-size"].as_u64().unwrap();
        format!("go back to snapshot {name}, {} bytes", self.size)
    }

    /// The same content in an image of another make.
    fn convert(&mut self, lab: &Lab, guest: &mut Guest) -> String {
        self.options = options(&mut guest.random);
        let new = lab.path("converted.qcow2");
        let mut arguments = args!["convert", "-O", "qcow2"];
        // qemu-img takes minutes to compress some megabytes in clusters of 512 bytes.
        let smallest = self.options.split(',').any(|option| option == "cluster_size=512");
        if guest.random.one_in(2) && !smallest {
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

    /// For a while, another file is in place of the backing file: the guest runs over it, or the image
    /// is committed into it. Then the backing file itself comes back, with all its times.
    fn run_over_another_backing_file(&self, lab: &Lab, guest: &mut Guest) -> String {
        let Some(backing) = &self.backing else { return "it has no backing file".to_owned() };
        let format = backing.extension().unwrap().to_str().unwrap();
        let aside = lab.path("aside");
        std::fs::rename(backing, &aside).unwrap();
        run(tool("cp", args!["--sparse=always", aside.as_path(), backing.as_path()])).ok();
        let mut told = Vec::new();
        if guest.random.one_in(3) {
            // A version 2 image that is longer than its backing file can't be committed.
            let outcome = qemu_img(args!["commit", "-q", self.path.as_path()]);
            told.push(format!("commit: {:?}", outcome.code()));
        } else {
            let info = qemu_img(args!["info", "--output=json", backing.as_path()]).ok().json();
            let pattern = 1 + guest.random.below(255);
            guest_io(
                backing,
                format,
                &[format!("write -q -P {pattern} 0 {}", info["virtual-size"])],
            );
            let offset = guest.random.below(self.size);
            let length = (1 + guest.random.below(1 << 20)).min(self.size - offset);
            // What is read is copied into the image.
            let read = format!("read -q {offset} {length}");
            if guest.random.one_in(2) {
                let arguments = args!["-C", "-f", self.format, "-c", read.as_str()];
                run(tool("qemu-io", [arguments, args![self.path.as_path()]].concat())).ok();
                told.push(format!("copy on {read}"));
            }
            told.push(self.write(guest));
        }
        std::fs::rename(&aside, backing).unwrap();
        format!("over another backing file: {}", told.join("; "))
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
