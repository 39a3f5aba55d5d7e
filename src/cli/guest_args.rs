//! What can be typed about libvirt's guests.

use std::path::PathBuf;

use clap::{Args, ValueHint};
use qdelta::flows::backup::ConsistencyChoice;
use qdelta::guest::libvirt::{Libvirt, is_session};
use qdelta::guest::quiesce::Virsh;
use qdelta::vault::repository::Selector;

use super::values::{Words, one_of};

/// Which guests to back up, and how.
#[derive(Debug, Args)]
#[command(next_help_heading = "Backing up libvirt guests")]
pub struct Guests {
    /// Back up all disks of this libvirt guest as one point, running or not; can be repeated
    #[arg(long = "domain", value_name = "NAME")]
    pub domains: Vec<String>,

    /// Back up every guest that libvirt has
    #[arg(long, conflicts_with = "domains")]
    pub all: bool,

    /// Leave out this disk of this guest, such as web/vdb; with a single --domain, vdb is enough;
    /// can be repeated
    #[arg(long, value_name = "GUEST/TARGET")]
    pub exclude: Vec<String>,

    /// Leave out this guest of --all; can be repeated
    #[arg(long, value_name = "NAME")]
    pub exclude_guest: Vec<String>,

    /// Confirm that this is the guest of the points before, though its UUID or the file of a disk
    /// has changed
    #[arg(long)]
    pub same_guest: bool,

    /// How to bring a running guest to rest
    #[arg(long, value_name = "CONSISTENCY", value_parser = one_of::<ConsistencyChoice>(CONSISTENCIES), default_value = "quiesced")]
    pub consistency: ConsistencyChoice,

    /// How long a guest may be frozen; Windows thaws itself after 10000
    #[arg(long, value_name = "MS", default_value_t = 5000, value_parser = clap::value_parser!(u64).range(50..=600_000))]
    pub freeze_max: u64,

    /// Let this program make the moment, where the images can't be cloned (ext4, LVM, ZFS, a SAN)
    ///
    /// qdelta calls CMD check, recover, prepare, snapshot and release, with JSON on standard input and output; or, of
    /// programs that know no better, CMD create FILE and CMD release FILE PATH. See
    /// docs/snapshot-commands.md.
    #[arg(long, value_name = "CMD", value_hint = ValueHint::ExecutablePath)]
    pub snapshot_command: Option<PathBuf>,

    /// Keep the host's configuration in the point, too: networks, pools, all of /etc/libvirt
    #[arg(long)]
    pub with_host_config: bool,

    /// Take the memory along of a guest that virsh managedsave has stopped: the point resumes where it stood
    #[arg(long)]
    pub with_memory: bool,

    /// Where libvirt is.
    #[command(flatten)]
    pub host: Host,
}

impl Guests {
    /// Whether it is guests that are to be backed up.
    pub fn are_meant(&self) -> bool {
        self.all || !self.domains.is_empty()
    }
}

/// Which guest to restore, and where to.
#[derive(Debug, Args)]
#[command(next_help_heading = "Restoring a guest")]
pub struct Machine {
    /// Restore this guest: its disks, firmware variables and definition; with --in-place, its disks
    /// alone
    #[arg(long, value_name = "NAME")]
    pub domain: Option<String>,

    /// The point, as in DISK@POINT: latest, an id or its beginning, a time, how long ago
    #[arg(long, value_name = "POINT", default_value = "latest")]
    pub at: Selector,

    /// The folder for the guest's files, which is made if it is missing
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub to: Option<PathBuf>,

    /// Make the disks volumes of this storage pool of libvirt's; the other files go to --to
    ///
    /// In a pool of files (dir, fs, netfs) they are made. In one of logical volumes they must be there, called
    /// GUEST-DISK and as long as the disk: what makes them is said.
    #[arg(long, value_name = "POOL")]
    pub to_pool: Option<String>,

    /// Give the restored guest this name, a new UUID and new MAC addresses: it can run beside the
    /// old one
    #[arg(long, value_name = "NEW")]
    pub rename: Option<String>,

    /// Restore the guest's memory, too, if the point has it: the guest goes on where it stood
    #[arg(long, conflicts_with_all = ["rename", "instant"])]
    pub with_memory: bool,

    /// Copy nothing: the guest runs at once on a point that qdelta serve gives out
    ///
    /// DIR gets the definition with an overlay for each disk, which takes what the guest writes, and the
    /// server's units for systemd. The point is pinned. What is to be typed is printed: to start the guest, and to
    /// bring its disks home while it runs. Each byte is proved when it is read.
    #[arg(long)]
    pub instant: bool,

    /// Where the server of an instant restore is to listen [default: qdelta/NAME.sock in the folder for the
    /// state of libvirt's running guests]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub socket: Option<PathBuf>,

    /// Confirm that this is the guest of the point, though its UUID has changed
    #[arg(long)]
    pub same_guest: bool,

    /// Restore the configuration of a host into the folder --to, and say how this host's differs from it
    ///
    /// DIR is a new folder, in which the files lie below their paths: DIR/etc/libvirt. Nothing else is changed.
    #[arg(long)]
    pub host_config: bool,

    /// Which host's configuration [default: this host's, or the only one that there is]
    #[arg(long, value_name = "NAME")]
    pub host: Option<String>,
}

/// Where libvirt is, and how `virsh` reaches it.
#[derive(Debug, Args)]
#[command(next_help_heading = "Where libvirt is")]
pub struct Host {
    /// The hypervisor for virsh [default: the one that virsh takes]
    #[arg(long, value_name = "URI")]
    pub connect: Option<String>,

    /// The virsh program, which freezes and thaws guests
    #[arg(long, value_name = "PROGRAM", env = "QDELTA_VIRSH", default_value = "virsh", value_hint = ValueHint::ExecutablePath, hide_env_values = true)]
    pub virsh: PathBuf,

    /// Its folders.
    #[command(flatten)]
    pub folders: Folders,
}

/// Where libvirt keeps its files.
#[derive(Debug, Args)]
#[command(next_help_heading = "Where libvirt is")]
pub struct Folders {
    /// libvirt's configuration [default: /etc/libvirt; ~/.config/libvirt of a user's own libvirt]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub libvirt_config: Option<PathBuf>,

    /// libvirt's folder for the state of running guests [default: /run/libvirt; $XDG_RUNTIME_DIR/libvirt of a user's
    /// own]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub libvirt_run: Option<PathBuf>,

    /// libvirt's folder for lasting state, such as saved memory and TPMs [default: /var/lib/libvirt; ~/.config/libvirt of
    /// a user's own]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub libvirt_state: Option<PathBuf>,
}

impl Folders {
    /// Where libvirt keeps its files, for this connection of virsh's; for the one that virsh takes if nothing is said.
    pub fn libvirt(&self, connect: Option<&str>) -> Libvirt {
        let typed = [&self.libvirt_config, &self.libvirt_run, &self.libvirt_state];
        let usual = match is_of_session(connect, typed.iter().any(|folder| folder.is_some())) {
            true => Libvirt::of_session(&config_home(), &runtime()),
            false => Libvirt::default(),
        };
        let or = |folder: &Option<PathBuf>, usual| folder.clone().unwrap_or(usual);
        Libvirt {
            config: or(&self.libvirt_config, usual.config),
            run: or(&self.libvirt_run, usual.run),
            state: or(&self.libvirt_state, usual.state),
            session: usual.session,
        }
    }
}

/// Whether a user's own libvirt is meant, as virsh decides it. Whoever names folders says with --connect what they are of.
fn is_of_session(connect: Option<&str>, has_folders: bool) -> bool {
    let said = ["VIRSH_DEFAULT_CONNECT_URI", "LIBVIRT_DEFAULT_URI"];
    let said = said.iter().filter_map(|name| std::env::var(name).ok()).find(|it| !it.is_empty());
    match connect {
        Some(uri) => is_session(uri),
        None if has_folders => false,
        None => said.map_or(!rustix::process::geteuid().is_root(), |uri| is_session(&uri)),
    }
}

fn config_home() -> PathBuf {
    let folder = |name| std::env::var_os(name).map(PathBuf::from).filter(|it| it.is_absolute());
    let home = || folder("HOME").unwrap_or_else(|| "/".into());
    folder("XDG_CONFIG_HOME").unwrap_or_else(|| home().join(".config"))
}

fn runtime() -> PathBuf {
    let own = || PathBuf::from(format!("/run/user/{}", rustix::process::geteuid().as_raw()));
    std::env::var_os("XDG_RUNTIME_DIR").map_or_else(own, PathBuf::from)
}

impl Host {
    /// How `virsh` is called.
    pub fn virsh(&self) -> Virsh {
        Virsh { program: self.virsh.clone(), connect: self.connect.clone() }
    }
}

/// How far a running guest can be brought to rest.
const CONSISTENCIES: Words = &[
    ("quiesced", "Freeze its filesystems while its images are cloned"),
    (
        "quiesced-or-crash",
        "The same if its agent can freeze them; else the point is what a power cut would leave, and says so",
    ),
    ("freeze-copy", "Freeze its filesystems while the changed blocks are read: needs no clone"),
    ("crash", "Freeze nothing: the point is what a power cut would leave"),
];
