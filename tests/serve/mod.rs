//! Points as disks over NBD: the real clients, and some that speak nonsense.

mod bad_days;
mod client;
mod clients;
mod protocol;
mod scratch;

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::content::Random;
use crate::harness::repo::{Repo, point_of};
use crate::harness::run::{finish, start};
use crate::harness::{Lab, Outcome, args, qdelta};

const MIB: usize = 1 << 20;
/// No multiple of anything.
const SIZE: usize = 9 * MIB + 4096 * 3 + 512;

/// A repository with points of a disk, and what the disk was at each.
struct Scene {
    lab: Lab,
    repo: Repo,
    /// The ids of the points, and raw images of the disk.
    points: Vec<(String, PathBuf)>,
}

impl Scene {
    /// Points of `web/vda`: noise, text and holes.
    fn new(count: usize, block: &str) -> Self {
        let lab = Lab::new();
        let repo = Repo::init(lab.path("repo")).without_ring();
        let mut random = Random::new(14);
        let mut bytes = vec![0; SIZE];
        bytes[MIB..3 * MIB].copy_from_slice(&random.noise(2 * MIB));
        bytes[4 * MIB..6 * MIB].copy_from_slice(&random.text(2 * MIB));
        bytes[SIZE - 3000..].copy_from_slice(&random.noise(3000));
        let mut points = Vec::new();
        for number in 0..count {
            let image = lab.path(format!("disk{number}.raw"));
            std::fs::write(&image, &bytes).unwrap();
            let done = repo.backup(&image, "web/vda", &["--block-size", block]);
            points.push((point_of(&done), image));
            for _ in 0..4 {
                let at = random.below(5 * MIB as u64) as usize;
                bytes[at..at + 70_000].copy_from_slice(&random.noise(70_000));
            }
            bytes[4 * MIB + number * 4096..4 * MIB + number * 4096 + 9000].fill(0);
        }
        Self { lab, repo, points }
    }

    /// What a client calls the point of this number.
    fn name(&self, number: usize) -> String {
        format!("web/vda@{}", self.points[number].0)
    }

    fn bytes(&self, number: usize) -> Vec<u8> {
        std::fs::read(&self.points[number].1).unwrap()
    }

    fn serve(&self, arguments: &[&str]) -> Serving {
        let socket = self.lab.path("s.sock");
        let mut all = args!["serve", "--socket", socket.as_path()];
        all.extend(arguments.iter().map(Into::into));
        Serving::start(self.repo.args(all), socket)
    }
}

/// A server that runs. It is stopped in the end.
struct Serving {
    child: Option<Child>,
    socket: PathBuf,
}

impl Serving {
    fn start(arguments: Vec<std::ffi::OsString>, socket: PathBuf) -> Self {
        let child = start(&mut qdelta(arguments));
        let mut serving = Self { child: Some(child), socket };
        for _ in 0..1200 {
            // One that a killed server has left is no sign.
            if UnixStream::connect(&serving.socket).is_ok() {
                return serving;
            }
            if serving.child.as_mut().unwrap().try_wait().unwrap().is_some() {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("the server did not start: {}", serving.stop().report());
    }

    fn uri(&self, name: &str) -> String {
        format!("nbd+unix:///{name}?socket={}", self.socket.display())
    }

    fn signal(&self, signal: Signal) {
        let pid = self.child.as_ref().unwrap().id();
        kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
    }

    /// Asks it to stop; gives what it said.
    fn stop(mut self) -> Outcome {
        if self.child.as_mut().unwrap().try_wait().unwrap().is_none() {
            self.signal(Signal::TERM);
        }
        self.end()
    }

    /// Waits for its end; gives what it said.
    fn end(mut self) -> Outcome {
        finish(self.child.take().unwrap(), "qdelta serve".to_owned())
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The two files hold the same bytes.
#[track_caller]
fn same(one: &Path, other: &Path) {
    assert!(std::fs::read(one).unwrap() == std::fs::read(other).unwrap(), "{one:?} {other:?}");
}
