//! The trackers: whatever happens to a disk, an increment by any of them restores exactly, or the
//! tracker is refused with the right reason.

mod faults;
pub(crate) mod histories;
mod hostile;
mod leftovers;
mod lost;
mod misses;
mod net;
mod reasons;
mod reflink;
mod unsound;

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::harness::images::{create, guest_io};
use crate::harness::repo::Repo;
use crate::harness::{Lab, args, temp_dir};

const MIB: u64 = 1 << 20;

/// An image of 8 MiB with 4 MiB of data, and a repository.
struct Scene {
    lab: Lab,
    repo: Repo,
    image: PathBuf,
}

impl Scene {
    fn new() -> Self {
        Self::within(&temp_dir())
    }

    fn within(folder: &Path) -> Self {
        let lab = Lab::within(folder);
        let repo = Repo::init(lab.path("repo")).without_ring();
        let image = lab.path("disk.qcow2");
        create(&image, "", 8 * MIB);
        let scene = Self { lab, repo, image };
        scene.guest(&["write -q -P 1 0 4M"]);
        scene
    }

    fn guest(&self, acts: &[&str]) {
        let acts: Vec<String> = acts.iter().map(|act| (*act).to_owned()).collect();
        guest_io(&self.image, "qcow2", &acts);
    }

    /// A backup without the net below the trackers.
    #[track_caller]
    fn backup(&self, options: &[&str]) -> Value {
        let mut all = vec!["--sample", "0"];
        all.extend(options);
        self.repo.backup(&self.image, "disk", &all)
    }

    /// A backup by this tracker, of which the restored disk must be what the image is.
    #[track_caller]
    fn tracked(&self, tracker: &str, options: &[&str]) -> Value {
        let done = self.backup(options);
        assert_eq!(done["tracker"], tracker, "{done:#}");
        self.assert_restores();
        done
    }

    #[track_caller]
    fn assert_restores(&self) {
        let expected = self.lab.path("expected.raw");
        crate::harness::images::oracle(args!["-f", "qcow2", self.image.as_path()], &expected);
        self.repo.assert_restores_raw(&self.lab, "disk", &expected);
    }
}

/// Why a tracker was not used.
#[track_caller]
fn reason(done: &Value, tracker: &str) -> String {
    let refused = done["refused"].as_array().unwrap();
    let found = refused.iter().find(|it| it["tracker"] == tracker);
    let found = found.unwrap_or_else(|| panic!("{tracker} was not refused: {done:#}"));
    found["reason"].as_str().unwrap().to_owned()
}
