//! Disks behind NBD servers, which are backed up like images: what real servers give out, what happens when
//! one stops or fails, and what bitmaps of QEMU's tell.

mod encrypted;
mod guests;
mod live_bitmaps;
mod sources;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use serde_json::Value;

use crate::harness::images::{guest_io, oracle, qemu_img};
use crate::harness::repo::Repo;
use crate::harness::run::start;
use crate::harness::{Lab, Outcome, args, tool};

const MIB: u64 = 1 << 20;

/// A server that runs until it is dropped.
pub(crate) struct Server {
    child: Child,
    socket: PathBuf,
}

impl Server {
    /// Starts a program that is to listen at a socket; nothing if it ends before.
    fn start(name: &str, arguments: Vec<OsString>, socket: &Path) -> Option<Self> {
        let _ = std::fs::remove_file(socket);
        assert!(
            !is_listening(socket),
            "another server has {socket:?}: give this one a lab of its own"
        );
        let child = start(&mut tool(name, arguments));
        let mut server = Self { child, socket: socket.to_owned() };
        // A server of a single client ends with the one that only looks.
        let begin = std::time::Instant::now();
        while !is_listening(socket) {
            assert!(begin.elapsed() < Duration::from_secs(60), "nobody listens at {socket:?}");
            if server.child.try_wait().unwrap().is_some() {
                return None;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Some(server)
    }

    /// qemu-nbd on an image, with these options.
    pub(crate) fn qemu(lab: &Lab, image: &Path, format: &str, options: &[&str]) -> Option<Self> {
        let socket = lab.path("s.sock");
        let mut all = args!["-k", socket.as_path(), "-x", "vda", "-f", format];
        all.extend(options.iter().map(OsString::from));
        all.push(image.into());
        Self::start("qemu-nbd", all, &socket)
    }

    /// nbdkit with these arguments, in the foreground.
    fn nbdkit(lab: &Lab, arguments: &[&str]) -> Self {
        let socket = lab.path("s.sock");
        let mut all = args!["-f", "-r", "-U", socket.as_path()];
        all.extend(arguments.iter().map(OsString::from));
        Self::start("nbdkit", all, &socket).expect("nbdkit starts")
    }

    pub(crate) fn uri(&self, export: &str) -> PathBuf {
        format!("nbd+unix:///{export}?socket={}", self.socket.display()).into()
    }
}

/// Whether somebody listens at a socket, by what the kernel says of it.
fn is_listening(socket: &Path) -> bool {
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
    let is_it = |line: &str| {
        let mut words = line.split_whitespace();
        words.nth(3) == Some("00010000") && words.last() == socket.to_str()
    };
    sockets.lines().any(is_it)
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
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
