//! Random lives of images to which QEMU and qdelta do things in turn.
//!
//! A failure prints its seed; `QDELTA_SEED=0x… cargo test histories` repeats that life alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use qdelta::disk::edit::{ImageFile, bitmap, snapshot};

use super::{Random, Shape, check_clean, content, qemu_io, run, seeds, shapes, text};

/// An image, and what should be in it.
struct Life {
    path: PathBuf,
    shape: Shape,
    random: Random,
    /// Name → the disk when it was taken.
    snapshots: BTreeMap<String, Vec<u8>>,
    /// Name → granularity, and the disk when the bitmap was empty.
    bitmaps: BTreeMap<String, (u64, Vec<u8>)>,
    named: u64,
}

impl Life {
    fn name(&mut self) -> String {
        self.named += 1;
        format!("name-{}", self.named)
    }

    fn open(&self) -> ImageFile {
        ImageFile::open(&self.path).unwrap()
    }

    /// Whether qdelta does it, and not QEMU.
    fn is_ours(&mut self) -> bool {
        self.random.below(2) == 0
    }

    /// Two bits count to three, and the disk is one.
    fn is_full(&self) -> bool {
        self.shape.options.contains("refcount_bits=2") && self.snapshots.len() == 2
    }

    fn step(&mut self) {
        let path = self.path.clone();
        match self.random.below(8) {
            0 | 1 => self.take_snapshot(&path),
            2 => self.delete_snapshot(&path),
            3 if !self.shape.is_version_2() => self.add_bitmap(&path),
            4 => self.remove_bitmap(&path),
            // Applying one counts one more reference for a moment.
            5 if self.bitmaps.is_empty() && !self.is_full() => self.apply_snapshot(&path),
            _ => {
                let count = 1 + self.random.below(8);
                let commands = self.shape.writes(&mut self.random, count);
                qemu_io(&path, &commands);
            }
        }
    }

    fn take_snapshot(&mut self, path: &Path) {
        if self.is_full() {
            return;
        }
        let name = self.name();
        if self.is_ours() {
            snapshot::create(&self.open(), &name, SystemTime::now()).unwrap();
        } else {
            run("qemu-img", &["snapshot", "-c", &name, text(path)]);
        }
        self.snapshots.insert(name, content(path, None));
    }

    fn any<T>(random: &mut Random, list: &BTreeMap<String, T>) -> Option<String> {
        let names: Vec<_> = list.keys().cloned().collect();
        (!names.is_empty()).then(|| random.pick(&names).clone())
    }

    fn delete_snapshot(&mut self, path: &Path) {
        let Some(name) = Self::any(&mut self.random, &self.snapshots) else { return };
        if self.is_ours() {
            let image = self.open();
            let list = snapshot::list(&image).unwrap();
            let id = &list.iter().find(|it| it.name == name.as_bytes()).unwrap().id;
            snapshot::delete(&image, id).unwrap();
        } else {
            run("qemu-img", &["snapshot", "-d", &name, text(path)]);
        }
        self.snapshots.remove(&name);
    }

    fn apply_snapshot(&mut self, path: &Path) {
        let Some(name) = Self::any(&mut self.random, &self.snapshots) else { return };
        run("qemu-img", &["snapshot", "-a", &name, text(path)]);
        assert!(content(path, None) == self.snapshots[&name]);
    }

    fn add_bitmap(&mut self, path: &Path) {
        let (name, granularity) = (self.name(), 512 << self.random.below(10));
        if self.is_ours() {
            bitmap::create(&self.open(), &name, granularity).unwrap();
        } else {
            let granularity = granularity.to_string();
            run("qemu-img", &["bitmap", "--add", "-g", &granularity, text(path), &name]);
        }
        self.bitmaps.insert(name, (granularity, content(path, None)));
    }

    fn remove_bitmap(&mut self, path: &Path) {
        let Some(name) = Self::any(&mut self.random, &self.bitmaps) else { return };
        if self.is_ours() {
            bitmap::remove(&self.open(), &name).unwrap();
        } else {
            run("qemu-img", &["bitmap", "--remove", text(path), &name]);
        }
        self.bitmaps.remove(&name);
    }

    /// Checks that everything is as it should be.
    fn look(&mut self, disk: &[u8]) {
        let image = self.open();
        let names: Vec<_> = snapshot::list(&image)
            .unwrap()
            .into_iter()
            .map(|it| String::from_utf8(it.name).unwrap())
            .collect();
        assert_eq!(names.len(), self.snapshots.len());
        assert!(names.iter().all(|name| self.snapshots.contains_key(name)));
        assert_eq!(bitmap::list(&image).unwrap().len(), self.bitmaps.len());
        // What a bitmap does not claim is what it was.
        for (name, (granularity, then)) in &self.bitmaps {
            let mut clean = vec![true; then.len().div_ceil(*granularity as usize)];
            bitmap::read(&image, name, |range| {
                let range = range.start / granularity..range.end.div_ceil(*granularity);
                clean[range.start as usize..range.end as usize].fill(false);
                Ok(())
            })
            .unwrap();
            let size = *granularity as usize;
            for (index, (then, now)) in then.chunks(size).zip(disk.chunks(size)).enumerate() {
                assert!(!clean[index] || then == now, "{name} missed a write to block {index}");
            }
        }
        drop(image);
        if let Some(name) = Self::any(&mut self.random, &self.snapshots) {
            assert!(content(&self.path, Some(&name)) == self.snapshots[&name], "{name}");
        }
    }
}

#[test]
fn lives_of_images() {
    let folder = tempfile::tempdir().unwrap();
    for (number, seed) in seeds(10).into_iter().enumerate() {
        let mut random = Random::new(seed);
        let mut shape = random.pick(&shapes()).clone();
        // Small, so that much happens in few clusters.
        shape.size = shape.size.min(1 << 20);
        let path = folder.path().join(format!("{number}.qcow2"));
        shape.create(&path);
        let (snapshots, bitmaps) = (BTreeMap::new(), BTreeMap::new());
        let mut life = Life { path, shape, random, snapshots, bitmaps, named: 0 };
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..14 {
                life.step();
                check_clean(&life.path);
            }
            let disk = content(&life.path, None);
            life.look(&disk);
        }));
        if let Err(panic) = caught {
            eprintln!("this life failed: QDELTA_SEED={seed:#x} repeats it ({:?})", life.shape);
            std::panic::resume_unwind(panic);
        }
        std::fs::remove_file(&life.path).unwrap();
    }
}
