//! The configuration of the host itself: libvirt's folder, the network, the firewall. It is kept as a disk of the
//! repository like any other, so that what is true of disks is true of it, too: increments, proofs, pruning,
//! encryption. The disk holds an archive of tar, which any tar reads.

mod compare;
mod pack;

use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::{Observer, Recorder};
use crate::base::warning::{Code, Warning};
use crate::disk::image::{Format, OpenOptions};
use crate::flows::backup::{self, BackupRequest, ImageRequest, Options};
use crate::flows::files::{self, OpenDisk, Output};
use crate::flows::report::{BackupReport, HostReport};
use crate::vault::repository::storage::host_name;
use crate::vault::repository::{DiskAt, DiskId, DiskSpec, DomainName, Repository, Selector};

/// What is kept of a host beside libvirt's folder and the file of jobs, unless somebody says otherwise: what it takes to
/// have its network, its firewall and its mounts again.
pub const FILES: &[&str] = &[
    "/etc/NetworkManager/system-connections",
    "/etc/crypttab",
    "/etc/firewalld",
    "/etc/fstab",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/iptables",
    "/etc/netplan",
    "/etc/network",
    "/etc/nftables.conf",
    "/etc/nftables.d",
    "/etc/sysconfig/network-scripts",
    "/etc/sysctl.conf",
    "/etc/sysctl.d",
    "/etc/systemd/network",
    "/etc/ufw",
];

/// What the names of hosts begin with in a repository: guests have others.
const PREFIX: &str = "host.";
/// What the disk is called.
const DISK: &str = "config";
/// The archive, as long as it is being backed up.
const SCRATCH: &str = "host-config.tar";

/// What is kept of this host.
#[derive(Debug, Clone)]
pub struct HostFiles {
    /// Files and folders, by their absolute paths.
    pub paths: Vec<PathBuf>,
    /// Whether somebody named them: then one that is missing is worth a warning.
    pub named: bool,
}

/// What this host is called in a repository.
///
/// # Errors
/// It has no name that a repository takes.
pub fn domain() -> Result<DomainName> {
    domain_of(&host_name())
}

/// Whether a domain is the configuration of a host, and no guest.
pub fn is_host(domain: &DomainName) -> bool {
    domain.as_str().starts_with(PREFIX)
}

fn domain_of(host: &str) -> Result<DomainName> {
    let fitting = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    let name: String = host.chars().map(fitting).take(100).collect();
    format!("{PREFIX}{name}").parse()
}

/// Backs the configuration of this host up. `folder` is for the archive, and only this host's own.
///
/// # Errors
/// As those of a backup; and the archive can't be written. What can't be read of the files is a warning.
pub fn back_up(
    repository: &Repository,
    files: &HostFiles,
    folder: &Path,
    options: Options,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<BackupReport> {
    let domain = domain()?;
    let namesake = repository.catalog().is_made_elsewhere(&domain).then(|| namesake(&domain));
    let disk = DiskSpec { domain, disk: Some(DISK.parse()?) };
    let path = folder.join(SCRATCH);
    let scratch = Scratch(path.clone());
    let mut left_out = pack::pack(files, &scratch.0, cancel)?;
    left_out.extend(namesake);
    for warning in &left_out {
        observer.warn(warning.clone());
    }
    let open = OpenOptions { format: Some(Format::Raw), ..OpenOptions::default() };
    let image = ImageRequest { path, open, disk: Some(disk) };
    let mut report = backup::run(repository, &BackupRequest { image, options }, observer, cancel)?;
    report.warnings.extend(left_out);
    Ok(report)
}

/// Two hosts of one name would take each other's place in the repository, night by night.
fn namesake(domain: &DomainName) -> Warning {
    let text = format!(
        "the newest point of {domain} is not this host's: another host has its name, or the state of this one was lost"
    );
    let advice = "give each host a name of its own (hostnamectl), or its configuration a repository of its own; \
                  after the loss of the state this is told once";
    Warning::new(Code::OtherGuest, text).advise(advice)
}

/// A file that goes when nobody needs it any more: it holds secrets.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // One that stays is written over by the next run, and only root can read it.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Which configuration to bring back.
#[derive(Debug, Clone)]
pub struct HostRequest {
    /// The host; this one, or the only one there is, unless told.
    pub host: Option<String>,
    /// The point.
    pub selector: Selector,
    /// A folder that is made.
    pub to: PathBuf,
}

/// Writes the configuration of a host into a new folder, and says how it differs from what is on this host. Nothing
/// outside the folder is changed.
///
/// # Errors
/// There is no such host or point, the folder exists already, or it can't be written.
pub fn restore(
    repository: Repository,
    request: &HostRequest,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<HostReport> {
    let started = Instant::now();
    let recorder = Recorder::new(observer);
    let domain = find(&repository, request.host.as_deref())?;
    let id = DiskId { domain, disk: DISK.parse()? };
    let at = DiskAt { disk: id.to_string().parse()?, point: Some(request.selector.clone()) };
    let disk = OpenDisk::open(repository, &at, &recorder, cancel)?;
    let volume = disk.volume(None, &[], &recorder)?;
    make_way(&request.to)?;
    let (all, output) = ([b"/".to_vec()], Output::Path(request.to.clone()));
    let taken = files::get(&volume, &all, output, false, &recorder, cancel)?;
    let (same, changes) = compare::with_here(&*volume.filesystem, Path::new("/"), cancel)?;
    let host = id.domain.as_str().strip_prefix(PREFIX).unwrap_or_default().to_owned();
    Ok(HostReport {
        host,
        source: taken.source,
        output: taken.output,
        files: taken.files,
        bytes: taken.bytes,
        left_out: taken.left_out,
        same,
        changes,
        seconds: started.elapsed().as_secs_f64(),
        warnings: recorder.take(),
    })
}

/// The domain of a host.
fn find(repository: &Repository, host: Option<&str>) -> Result<DomainName> {
    let all = repository.domains()?;
    let hosts: Vec<&DomainName> = all.iter().filter(|it| is_host(it)).collect();
    let known = || {
        let names = hosts.iter().filter_map(|it| it.as_str().strip_prefix(PREFIX));
        names.collect::<Vec<_>>().join(", ")
    };
    if hosts.is_empty() {
        let text = "the configuration of no host is in the repository";
        return Err(Error::new(ErrorKind::NotFound, text).advise(
            "with_host_config = true in a job keeps it; a guest that was backed up --with-host-config has it, too",
        ));
    }
    let wanted = match host {
        Some(host) => domain_of(host)?,
        None => domain()?,
    };
    match (hosts.iter().find(|it| ***it == wanted), host, hosts.as_slice()) {
        (Some(found), ..) => Ok((*found).clone()),
        (None, None, [only]) => Ok((*only).clone()),
        (None, Some(host), _) => {
            let text = format!("the configuration of {host} is not in the repository");
            Err(Error::new(ErrorKind::NotFound, text).advise(format!("there are {}", known())))
        }
        (None, None, _) => {
            let text = "several hosts are in the repository, and none is this one";
            Err(Error::new(ErrorKind::Usage, text).advise(format!("say --host: {}", known())))
        }
    }
}

/// An empty folder may be there: it is in nobody's way.
fn make_way(to: &Path) -> Result<()> {
    if std::fs::remove_dir(to).is_ok() || to.symlink_metadata().is_err() {
        return Ok(());
    }
    let text = format!("{} exists already, and is no empty folder", to.display());
    Err(Error::new(ErrorKind::Exists, text).advise("name a folder that is new"))
}
