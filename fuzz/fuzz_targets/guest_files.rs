#![no_main]
//! Filesystems that a guest has damaged or made to attack: everything is read that can be reached. No panic,
//! bounded work and memory.
//!
//! The input says which of some real filesystems, made by their own tools, and what is written over where.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

use libfuzzer_sys::fuzz_target;
use qdelta::ReadAt;
use qdelta::disk::io::in_memory::Bytes;
use qdelta::inside::filesystem::{FileKind, Filesystem, Id, Place, Step, find, open, walk};
use qdelta::inside::volumes::survey;

/// How to make the filesystems that inputs are laid over: a size, and a shell's line. Each gets a file
/// `$IMAGE` of that size and a folder `$TREE`.
const SEEDS: &[(u64, &str)] = &[
    (256 << 10, "mke2fs -q -F -t ext4 -O ^has_journal -b 1024 -N 64 -d $TREE $IMAGE"),
    (
        256 << 10,
        "mke2fs -q -F -t ext4 -O ^has_journal,inline_data -I 256 -b 1024 -N 64 -d $TREE $IMAGE",
    ),
    (256 << 10, "mke2fs -q -F -t ext2 -b 1024 -N 64 -d $TREE $IMAGE"),
    (
        4 << 20,
        "mke2fs -q -F -t ext4 -b 1024 -N 64 -d $TREE $IMAGE && debugfs -w -R 'feature needs_recovery' $IMAGE",
    ),
    (128 << 10, "mkfs.fat -F 12 $IMAGE && mcopy -s -i $IMAGE $TREE/small $TREE/folder ::/"),
    (3 << 20, "mkfs.fat -F 16 -s 1 $IMAGE && mcopy -s -i $IMAGE $TREE/small $TREE/folder ::/"),
    (34 << 20, "mkfs.fat -F 32 -s 1 $IMAGE && mcopy -s -i $IMAGE $TREE/small $TREE/folder ::/"),
    (
        256 << 10,
        "tar -C $TREE --format=pax -cf - . | dd of=$IMAGE conv=notrunc status=none",
    ),
    (
        2 << 20,
        "mkntfs -q -F -c 512 $IMAGE && ntfscp $IMAGE $TREE/folder/below/large large && ntfscp $IMAGE $TREE/small small",
    ),
];

/// Files whose content is read; a small image can name any number of them.
const FILES_MAX: u64 = 2000;

fn seeds() -> &'static [Vec<u8>] {
    static MADE: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    MADE.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a folder");
        let tree = dir.path().join("tree");
        plant(&tree);
        SEEDS.iter().map(|(size, line)| make(dir.path(), &tree, *size, line)).collect()
    })
}

fn plant(tree: &Path) {
    std::fs::create_dir_all(tree.join("folder/below")).expect("folders");
    for (name, len) in [("small", 20), ("folder/middle", 3000), ("folder/below/large", 40_000)] {
        std::fs::write(tree.join(name), vec![b'x'; len]).expect("a file");
    }
    for number in 0..20 {
        std::fs::write(tree.join(format!("folder/a name that is long {number}")), b"")
            .expect("a file");
    }
    std::os::unix::fs::symlink("folder/small", tree.join("short")).expect("a link");
    std::os::unix::fs::symlink("x".repeat(100), tree.join("long")).expect("a link");
}

fn make(dir: &Path, tree: &Path, size: u64, line: &str) -> Vec<u8> {
    let image = dir.join("image");
    std::fs::File::create(&image).and_then(|file| file.set_len(size)).expect("an image");
    let path = std::env::var("PATH").unwrap_or_default();
    let made = Command::new("sh")
        .args(["-c", line])
        .env("IMAGE", &image)
        .env("TREE", tree)
        .env("PATH", format!("{path}:/sbin:/usr/sbin"))
        .output()
        .expect("sh");
    assert!(made.status.success(), "{line}: {}", String::from_utf8_lossy(&made.stderr));
    std::fs::read(&image).expect("the image")
}

fuzz_target!(|data: &[u8]| {
    let Some((which, edits)) = data.split_first() else { return };
    let seeds = seeds();
    let mut image = seeds[usize::from(*which) % seeds.len()].clone();
    let mut rest = edits;
    // Three bytes of a place, one of a length, and the bytes.
    while let Some((head, behind)) = rest.split_first_chunk::<4>() {
        let [a, b, c, len] = *head;
        let at = usize::from(a) | usize::from(b) << 8 | usize::from(c) << 16;
        let at = at % image.len();
        let len = usize::from(len % 64).min(behind.len()).min(image.len() - at);
        image[at..at + len].copy_from_slice(&behind[..len]);
        rest = &behind[len..];
    }
    let volume: Arc<dyn ReadAt> = Arc::new(Bytes::new(Arc::new(image), PathBuf::from("volume")));
    let found = survey(&volume).expect("a volume in memory can be read");
    let Some(first) = found.volumes.first() else { return };
    if let Ok(filesystem) = open(volume, first.content) {
        read_all(&*filesystem);
    }
});

fn read_all(filesystem: &dyn Filesystem) {
    let _ = find(filesystem, b"/folder/../short/x", true);
    let Ok(root) = find(filesystem, b"/", true) else { return };
    let mut count = 0;
    let _ = walk(filesystem, &root, &mut |step| {
        let Step::Item(item) = step else { return Ok(false) };
        count += 1;
        if count > FILES_MAX {
            return Ok(false);
        }
        let _ = filesystem.attributes(item.id);
        match item.node.kind {
            FileKind::Link => drop(filesystem.target(item.id)),
            _ => read_file(filesystem, item.id),
        }
        Ok(true)
    });
}

/// Reads a file at its beginning, its end and along its map, as far as the map has some pieces.
fn read_file(filesystem: &dyn Filesystem, id: Id) {
    let Ok(data) = filesystem.open(id) else { return };
    let mut buffer = [0; 3000];
    let _ = data.read(&mut buffer, 0);
    let _ = data.read(&mut buffer, data.size().saturating_sub(100));
    let mut at = 0;
    for _ in 0..200 {
        if at >= data.size() {
            break;
        }
        let Ok((place, end)) = data.stretch(at) else { break };
        assert!(end > at, "a stretch of nothing");
        if place == Place::Elsewhere {
            let _ = data.read(&mut buffer, at);
        }
        at = end;
    }
}
