//! Makes images with the real `qemu-img` and `qemu-io`, and asks them what an image says.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::content::Guest;
use super::{Lab, Outcome, args, run, tool};

#[track_caller]
pub fn qemu_img(arguments: Vec<OsString>) -> Outcome {
    run(tool("qemu-img", arguments))
}

/// A new qcow2 image; `options` is what follows `-o`, and may be empty.
#[track_caller]
pub fn create(path: &Path, options: &str, size: u64) {
    let mut arguments = args!["create", "-q", "-f", "qcow2"];
    if !options.is_empty() {
        arguments.extend(args!["-o", options]);
    }
    arguments.extend(args![path, size.to_string()]);
    qemu_img(arguments).ok();
}

/// A new raw image of zeros.
pub fn create_raw(path: &Path, size: u64) {
    std::fs::File::create(path).unwrap().set_len(size).unwrap();
}

/// Lets a guest do `commands` to an image. Every one of them must work.
#[track_caller]
pub fn guest_io(path: &Path, format: &str, commands: &[String]) {
    let mut arguments = args!["-f", format, "-d", "unmap"];
    for command in commands {
        arguments.extend(args!["-c", command.as_str()]);
    }
    arguments.push(path.into());
    let outcome = run(tool("qemu-io", arguments)).ok();
    assert!(outcome.text().trim().is_empty(), "qemu-io complains:\n{}", outcome.report());
}

/// A qcow2 image of `size` bytes with something of everything in it.
#[track_caller]
pub fn filled(lab: &Lab, name: &str, options: &str, size: u64, seed: u64) -> PathBuf {
    let path = lab.path(name);
    create(&path, options, size);
    let commands = Guest::new(lab.dir(), seed).fill(size, 12);
    guest_io(&path, "qcow2", &commands);
    path
}

/// A raw image of `size` bytes with something of everything in it.
#[track_caller]
pub fn filled_raw(lab: &Lab, name: &str, size: u64, seed: u64) -> PathBuf {
    let path = lab.path(name);
    create_raw(&path, size);
    let commands = Guest::new(lab.dir(), seed).fill(size, 12);
    guest_io(&path, "raw", &commands);
    path
}

/// An overlay of `size` bytes (that of its backing file if none is given) over `backing`, which
/// may be any name that QEMU takes.
#[track_caller]
pub fn overlay(path: &Path, backing: &str, backing_format: &str, size: Option<u64>, options: &str) {
    let mut arguments = args!["create", "-q", "-f", "qcow2", "-b", backing, "-F", backing_format];
    if !options.is_empty() {
        arguments.extend(args!["-o", options]);
    }
    arguments.push(path.into());
    if let Some(size) = size {
        arguments.push(size.to_string().into());
    }
    qemu_img(arguments).ok();
}

/// What the guest sees, by QEMU's word, as a raw file. `source` is how QEMU is told to find it:
/// a file name, after any options.
#[track_caller]
pub fn oracle(source: Vec<OsString>, output: &Path) {
    let mut arguments = args!["convert", "-O", "raw"];
    arguments.extend(source);
    arguments.push(output.into());
    qemu_img(arguments).ok();
}

/// The qcow2 image must be sound in QEMU's eyes: not a word, not a leaked cluster.
#[track_caller]
pub fn check_is_silent(path: &Path) {
    let outcome = qemu_img(args!["check", "-q", "-f", "qcow2", path]).ok();
    assert!(
        outcome.stdout.is_empty() && outcome.stderr.is_empty(),
        "qemu-img check says something:\n{}",
        outcome.report()
    );
    let found = qemu_img(args!["check", "-f", "qcow2", "--output=json", path]).ok().json();
    for problem in ["leaks", "corruptions", "check-errors", "leaks-fixed"] {
        assert_eq!(found[problem].as_u64().unwrap_or(0), 0, "{found}");
    }
}

/// Overwrites bytes of a file in place.
pub fn patch(path: &Path, offset: u64, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, offset).unwrap();
}

/// Reads a big-endian number from a file, as qcow2 stores them.
pub fn read_u64(path: &Path, offset: u64) -> u64 {
    use std::os::unix::fs::FileExt;
    let mut bytes = [0; 8];
    std::fs::File::open(path).unwrap().read_exact_at(&mut bytes, offset).unwrap();
    u64::from_be_bytes(bytes)
}
