//! What can be typed about points that are given to others as disks.

use std::path::PathBuf;

use clap::{Args, ValueHint};
use qdelta::vault::repository::Selector;

use super::{examples, values};

/// The ways to call `serve`.
const SERVE_USAGE: &str = "qdelta serve [OPTIONS] --socket <PATH> [DISK@POINT]...
       qdelta serve [OPTIONS] --socket <PATH> --domain <NAME>
       qdelta serve [OPTIONS] --socket <PATH> --scratch <FILE> <DISK@POINT>";

/// Give recovery points as disks to QEMU, nbdcopy and others, over the network block device protocol.
///
/// Without DISK and --domain, every point of the repository can be had, also those that are made
/// meanwhile. An export is called GUEST/DISK@POINT. A point is never written to; every byte is proved before
/// it is sent, and what is damaged is an error of its place. As long as a client has a point open, no
/// point of its guest is removed. SIGTERM or Ctrl-C ends the server, with status 0: requests that came
/// before are answered.
#[derive(Debug, Args)]
#[command(
    override_usage = SERVE_USAGE,
    after_help = examples::of("serve"),
    after_long_help = examples::long(Some("serve"))
)]
pub struct Serve {
    /// Which points; without a point, the latest of the disk when the server starts
    ///
    /// DISK is GUEST/DISK, or a guest with one disk; POINT as qdelta restore --help has it.
    #[arg(value_name = "DISK@POINT", value_parser = values::disk_at)]
    pub disks: Vec<values::DiskAt>,

    /// All disks of a guest
    #[arg(long, value_name = "NAME")]
    pub domain: Option<String>,

    /// Which point of the guest [default: latest]
    #[arg(long, value_name = "POINT")]
    pub at: Option<Selector>,

    /// The socket to make. Its owner alone may use it
    /// [default: the sockets that systemd has opened for the service]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub socket: Option<PathBuf>,

    /// Let clients write: into FILE, which is made, and nowhere else. The next server of the same point goes
    /// on with it
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub scratch: Option<PathBuf>,

    /// How many requests of one client are worked on at once [default: one for each core]
    #[arg(long, value_name = "N", value_parser = values::threads)]
    pub threads: Option<usize>,
}
