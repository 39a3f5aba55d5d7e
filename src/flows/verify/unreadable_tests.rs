//! What becomes of a verification when a disk can't read an archive's bytes.

use std::fs;
use std::sync::Arc;

use super::*;
use crate::base::observer::Silent;
use crate::disk::image::{Format, OpenOptions};
use crate::flows::backup::{self, BackupRequest, ImageRequest};
use crate::flows::report::BackupReport;
use crate::vault::repository::storage::Local;
use crate::vault::repository::storage::faulty::Faulty;

/// Makes a point of a disk of so many bytes that do not compress.
fn back_up(repository: &Repository, image: &Path, len: usize) -> BackupReport {
    let mut state = 1_u32;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    });
    fs::write(image, Vec::from_iter(noise.take(len))).unwrap();
    let open = OpenOptions { format: Some(Format::Raw), ..OpenOptions::default() };
    let disk = Some("vm".parse().unwrap());
    let image = ImageRequest { path: image.to_owned(), open, disk };
    let options = backup::Options::default();
    let request = BackupRequest { image, options };
    backup::run(repository, &request, &Silent, &Cancel::default()).unwrap()
}

/// A frame that could not be read was a problem of its own in a small archive, and in a large one, which
/// is read ahead, the end of the check: what a finding said hung on the archive's length.
#[test]
fn a_bad_sector_ends_the_check_of_an_archive_whatever_its_length() {
    for (len, is_large) in [(700 << 10, false), (3 << 20, true)] {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("repo");
        let repository = Repository::init(&root).unwrap();
        let report = back_up(&repository, &dir.path().join("disk"), len);
        let limit = crate::disk::flow::pipeline::TASK_SIZE_MIN;
        assert_eq!(report.bytes_written > limit, is_large, "this test checks nothing else");
        let bad = Faulty::with_bad_bytes(Arc::new(Local::new(&root)), 200_000..204_096);
        let repository = Repository::open_in(Arc::new(bad)).unwrap();
        for quick in [false, true] {
            let request = VerifyRequest {
                targets: Vec::new(),
                quick,
                scrub: None,
                resources: Resources::default(),
            };
            let found = run(&repository, &request, &Silent, &Cancel::default()).unwrap();
            let [finding] = &found.findings[..] else { panic!("{:?}", found.findings) };
            assert!(finding.problem.starts_with("the rest was not looked at: "), "{finding:?}");
            assert!(finding.problem.contains("bad sector"), "{finding:?}");
            assert_eq!(finding.points, [report.point], "{finding:?}");
            assert!(!found.proved);
        }
    }
}
