//! The programs in `examples/` do what they show, on a real image.
//!
//! The examples are modules of this binary, so that a test never runs one that was built before the
//! last change.

#[path = "../examples/back_up.rs"]
#[allow(dead_code, reason = "an example's main is for those who run it")]
mod back_up;
#[path = "../examples/read_point.rs"]
#[allow(dead_code, reason = "an example's main is for those who run it")]
mod read_point;
#[path = "../examples/restore.rs"]
#[allow(dead_code, reason = "an example's main is for those who run it")]
mod restore;

use std::path::Path;

use qdelta::{ErrorKind, Repository, Selector};

use crate::harness::{Lab, args, images};

/// The bytes that the guest sees, by QEMU's word.
fn seen(lab: &Lab, image: &Path) -> Vec<u8> {
    let raw = lab.path("seen.raw");
    images::oracle(args![image], &raw);
    std::fs::read(raw).unwrap()
}

#[test]
fn the_examples_back_up_and_restore_every_point() {
    const SIZE: u64 = 24 << 20;
    let lab = Lab::new();
    let image = images::filled(&lab, "web01.qcow2", "", SIZE, 7);
    let folder = lab.path("backup");
    let full = seen(&lab, &image);
    assert_eq!(back_up::back_up(&image, &folder).unwrap().kind.to_string(), "full");
    images::guest_io(&image, "qcow2", &["write -q -P 0x5a 3M 1M".to_owned()]);
    let increment = seen(&lab, &image);
    assert_ne!(full, increment, "the guest has written");
    assert_eq!(back_up::back_up(&image, &folder).unwrap().kind.to_string(), "incremental");

    let repository = Repository::open(&folder).unwrap();
    let disk = "web01".parse().unwrap();
    let points = restore::points(&repository, &disk).unwrap();
    assert_eq!(points.len(), 2);
    for (point, expected) in points.iter().zip([full, increment]) {
        let output = lab.path(format!("{}.raw", point.id));
        let selector = Selector::Id(point.id.to_string());
        restore::restore(&repository, &disk, &selector, &output).unwrap();
        assert!(std::fs::read(&output).unwrap() == expected, "{} is not as it was", point.id);
        let (offset, length) = (expected.len() as u64 - 100_000, 200_000);
        let end = read_point::read(&repository, &disk, &selector, offset, length).unwrap();
        assert!(end == expected[offset as usize..], "{} is read as it was", point.id);
        let again = restore::restore(&repository, &disk, &selector, &output).unwrap_err();
        assert_eq!(again.kind(), ErrorKind::Exists, "an existing file is left alone");
    }
}
