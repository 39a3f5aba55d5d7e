//! A guest whose points lie in a store, behind a proxy.

use std::path::PathBuf;

use crate::harness::images::patch;
use crate::harness::proxy::Proxy;
use crate::harness::repo::{Repo, point_of};
use crate::harness::store::{address, endpoint, fresh_place};
use crate::harness::{Lab, args, qdelta, run};

/// A guest behind a proxy, and what each of its points holds.
pub struct Guest {
    pub lab: Lab,
    pub proxy: Proxy,
    pub place: String,
    /// By the proxy.
    pub repo: Repo,
    pub image: PathBuf,
    pub points: Vec<(String, PathBuf)>,
}

impl Guest {
    /// One with points of these kinds.
    pub fn new(kinds: &[&str]) -> Self {
        let (lab, proxy, place) = (Lab::new(), Proxy::new(endpoint()), fresh_place());
        // In the plain: who cuts lists or takes locks must know which object is which.
        let address = address(&proxy.endpoint, &place);
        run(qdelta(args!["init", address.as_path()])).ok();
        let repo = Repo::at(address).without_ring();
        let image = lab.path("image.raw");
        std::fs::write(&image, vec![1; 1 << 20]).unwrap();
        let mut guest = Self { lab, proxy, place, repo, image, points: Vec::new() };
        for kind in kinds {
            guest.change();
            let options = ["--format", "raw", "--kind", kind];
            let point = point_of(&guest.repo.backup(&guest.image, "vm/disk", &options));
            guest.keep(point);
        }
        guest
    }

    /// The guest writes.
    pub fn change(&self) {
        let number = self.points.len() as u64;
        patch(&self.image, (number % 8) << 17, &[number as u8 + 2; 70_000]);
    }

    /// Takes a point of the image as it is now for one of the guest.
    pub fn keep(&mut self, point: String) {
        let kept = self.lab.path(format!("{}.raw", self.points.len()));
        std::fs::copy(&self.image, &kept).unwrap();
        self.points.push((point, kept));
    }

    /// The repository as another host reaches it.
    pub fn direct(&self) -> Repo {
        self.repo.copy_at(address(endpoint(), &self.place))
    }

    /// Every one of these points is there, whole.
    #[track_caller]
    pub fn assert_has(&self, points: &[(String, PathBuf)]) {
        self.proxy.pass();
        for (point, content) in points {
            self.direct().assert_restores_raw(&self.lab, &format!("vm/disk@{point}"), content);
        }
    }
}
