//! A second reader, in another language and by the documents alone: whoever has the key and the documents gets every
//! point back, also when there is no qdelta any more.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::harness::content::Guest;
use crate::harness::files::{assert_same, tree};
use crate::harness::images::{create, guest_io, oracle, qemu_img};
use crate::harness::repo::{Repo, point_of};
use crate::harness::{Lab, Outcome, args, run};

const MIB: u64 = 1 << 20;

/// Reads a whole repository with the other program. A test without its programs fails: `scripts/test` installs them.
fn read(repo: &Repo, output: &Path) -> Outcome {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/second_reader/reader.py");
    let mut command = Command::new("python3");
    command.args(args![program, repo.path.as_path(), repo.key.as_deref().unwrap(), output]);
    run(command)
}

#[test]
fn the_documents_are_enough_to_read_an_encrypted_repository() {
    let lab = Lab::new();
    let repo = Repo::encrypted(lab.path("repo"));
    let image = lab.path("disk.qcow2");
    // Two groups of blocks, and an end within a block.
    create(&image, "", 68 * MIB + 512);
    let mut guest = Guest::new(lab.dir(), 16);
    let mut points = Vec::new();
    let changes = [
        guest.fill(4 * MIB, 6),
        [guest.fill(66 * MIB, 3), vec!["write -q -P 7 68M 512".to_owned()]].concat(),
        vec!["write -q -z 0 2M".to_owned()],
        vec!["write -q -P 9 65M 200k".to_owned()],
    ];
    for (number, change) in changes.into_iter().enumerate() {
        if number == 3 {
            // What was behind the new end is forgotten.
            qemu_img(args!["resize", "-q", "--shrink", image.as_path(), "66M"]).ok();
        }
        guest_io(&image, "qcow2", &change);
        let expected = lab.path(format!("{number}.raw"));
        oracle(args!["-f", "qcow2", image.as_path()], &expected);
        points.push((point_of(&repo.backup(&image, "vm/disk", &[])), expected));
    }
    let output = lab.path("read");
    fs::create_dir(&output).unwrap();
    assert_eq!(read(&repo, &output).ok().text(), "4 points, 4 archives, 0 other files\n");
    for (point, expected) in &points {
        assert_same(expected, &output.join(format!("vm+disk@{point}.raw")), point);
    }
    // It proves what it reads: a file that was put under the name of another one has another code.
    let archives = tree(&repo.path).into_iter().map(|name| repo.path.join(name));
    let mut archives: Vec<_> = archives.filter(|path| path.is_file() && is_archive(path)).collect();
    archives.sort();
    fs::copy(&archives[0], &archives[1]).unwrap();
    assert!(read(&repo, &output).fails_with(1).contains("its code is not ours"));
}

/// Whether it is the file of an archive: those lie in the folder of their disk, and there are as many points.
fn is_archive(path: &Path) -> bool {
    let bytes = fs::read(path).unwrap();
    bytes.starts_with(b"age-encryption.org/v1\n") && bytes.len() > 4096
}
