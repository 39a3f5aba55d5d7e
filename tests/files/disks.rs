//! Files on disks with several volumes, on large disks, and in large trees.

use std::os::unix::fs::FileExt;
use std::path::Path;

use super::tree::noise;
use super::{Guest, args, make_ext, needs_root, run, tool};
use crate::harness::run::qdelta;

const MIB: u64 = 1 << 20;

/// A disk with a GPT: volumes of these sizes in MiB from the first MiB on, one after the other.
fn partitioned(sizes: &[u64]) -> Guest {
    let guest = Guest::new((sizes.iter().sum::<u64>() + 2) * MIB);
    let mut script = "label: gpt\n".to_owned();
    let mut start = 1;
    for size in sizes {
        script.push_str(&format!("start={start}MiB, size={size}MiB\n"));
        start += size;
    }
    let lines = guest.lab.path("partitions");
    std::fs::write(&lines, script).unwrap();
    let shell = format!("sfdisk -q {} < {}", guest.image.display(), lines.display());
    run(tool("sh", args!["-c", shell])).ok();
    guest
}

/// Makes a filesystem with one file, and lays it into the disk.
fn lay(guest: &Guest, offset: u64, size: u64, file: &str, options: &[&str]) {
    let (part, tree) = (guest.lab.path("part"), guest.lab.path("tree"));
    let _ = std::fs::remove_dir_all(&tree);
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join(file), file).unwrap();
    std::fs::File::create(&part).unwrap().set_len(size).unwrap();
    make_ext(&part, &[options, &["-d", tree.to_str().unwrap()]].concat());
    let disk = std::fs::File::options().write(true).open(&guest.image).unwrap();
    disk.write_all_at(&std::fs::read(&part).unwrap(), offset).unwrap();
}

#[test]
fn the_volume_is_the_one_that_has_the_path() {
    let guest = partitioned(&[16, 16, 8]);
    lay(&guest, MIB, 16 * MIB, "first", &["-t", "ext2"]);
    lay(&guest, 17 * MIB, 16 * MIB, "second", &["-t", "ext4"]);
    guest.backup();
    let volumes = guest.files("ls", &["--json"]).ok().json();
    let names = volumes["volumes"].as_array().unwrap().iter().map(|volume| &volume["volume"]);
    assert_eq!(names.collect::<Vec<_>>(), ["p1", "p2", "p3"]);
    for (path, content) in [("/first", "first"), ("/second", "second")] {
        let got = guest.files("get", &[path, "--to", "-"]).ok();
        assert_eq!(String::from_utf8(got.stdout).unwrap(), content);
    }
    let said = guest.files("ls", &["/"]).fails_with(2);
    assert!(said.contains("--volume") && said.contains("p1 (ext, 16 MiB)"), "{said}");
    guest.files("ls", &["/", "--volume", "p2"]).ok();
    assert!(guest.files("ls", &["/", "--volume", "p9"]).fails_with(6).contains("p2"));
    assert!(guest.files("ls", &["/", "--volume", "p3"]).fails_with(3).contains("mount"));
    assert!(guest.files("ls", &["/third"]).fails_with(6).contains("no volume"));
}

/// A file of 1 MiB out of a disk of a terabyte: the tables and the blocks that it lies in are read, and
/// nothing else.
#[test]
fn a_file_of_a_large_disk_costs_little() {
    needs_root();
    let guest = Guest::new(1 << 40);
    make_ext(&guest.image, &["-t", "ext4", "-E", "lazy_itable_init=1,lazy_journal_init=1"]);
    let content = noise(7, MIB as usize);
    guest.within(0, |root| {
        std::fs::create_dir_all(root.join("srv/data/deep")).unwrap();
        for number in 0..200 {
            std::fs::write(root.join(format!("srv/data/{number}")), noise(number, 300_000))
                .unwrap();
        }
        std::fs::write(root.join("srv/data/deep/wanted"), &content).unwrap();
    });
    guest.backup();
    let log = guest.lab.path("calls");
    let out = guest.lab.path("wanted");
    let words = args!["files", "get", "web", "/srv/data/deep/wanted", "--to", out.as_path()];
    let inner = qdelta(guest.repo.args(words));
    let mut traced =
        args!["-f", "-y", "-e", "trace=read,pread64,preadv,preadv2", "-o", log.as_path()];
    traced.push(inner.get_program().into());
    traced.extend(inner.get_args().map(Into::into));
    let mut strace = tool("strace", traced);
    strace.env("STATE_DIRECTORY", crate::harness::state());
    run(strace).ok();
    assert_eq!(std::fs::read(&out).unwrap(), content);
    let read = bytes_read(&log);
    assert!(read > MIB && read <= 8 * MIB, "{read} bytes of archives were read");
}

/// Bytes that calls in a log of strace read from archives.
fn bytes_read(log: &Path) -> u64 {
    let text = std::fs::read_to_string(log).unwrap();
    let calls = text.lines().filter(|line| line.contains(".qdelta>"));
    calls.filter_map(|line| line.rsplit_once("= ")?.1.trim().parse::<u64>().ok()).sum()
}

/// `QDELTA_FILES=100000` makes the tree as large as that.
#[test]
fn a_large_tree_is_what_the_kernel_shows() {
    needs_root();
    let count = std::env::var("QDELTA_FILES").ok().and_then(|count| count.parse().ok());
    let count: u64 = count.unwrap_or(3000);
    let guest = Guest::new((64 + count / 100) * MIB);
    let inodes = (count * 2).to_string();
    make_ext(&guest.image, &["-t", "ext4", "-N", &inodes]);
    guest.within(0, |root| {
        for number in 0..count {
            let folder = root.join(format!("{}/{}", number % 7, number % 101));
            std::fs::create_dir_all(&folder).unwrap();
            let len = if number % 10 == 0 { (number % 9000) as usize } else { 0 };
            std::fs::write(folder.join(format!("file {number}")), noise(number, len)).unwrap();
            if number % 50 == 0 {
                std::fs::hard_link(
                    folder.join(format!("file {number}")),
                    root.join(format!("link {number}")),
                )
                .unwrap();
            }
        }
    });
    guest.backup();
    let wanted = guest.seen_by_kernel(0);
    assert!(wanted.len() as u64 > count);
    guest.unpacked("/").assert_eq(&wanted);
}
