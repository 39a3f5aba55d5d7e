//! What is to be done with a domain, before anything is done.

use std::path::{Path, PathBuf};

use super::GuestRequest;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::warning::{Code, Warning};
use crate::disk::files::image_lock;
use crate::disk::image::{Format, OpenOptions, StatedChain, StatedLayer};
use crate::disk::io::{Opener, not_opened};
use crate::flows::anchors::is_anchor;
use crate::guest::libvirt::{Choice, Disk, Domain, Found, Link, decide};
use crate::vault::repository::{DiskId, DomainName, LeftOut};

/// Whether somebody uses the guest's disks, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// Nobody writes to them.
    Stopped,
    /// The guest runs.
    Running,
    /// The guest is paused: nobody writes, and nobody could answer.
    Paused,
}

/// A disk that is to be backed up.
#[derive(Debug)]
pub(super) struct DiskPlan {
    /// Its name in the guest's words.
    pub target: String,
    /// Its name in the repository.
    pub id: DiskId,
    /// The image.
    pub image: PathBuf,
    /// How to open it.
    pub open: OpenOptions,
    /// It is a block device.
    pub block: bool,
}

/// What is to be done with a domain.
#[derive(Debug)]
pub(super) struct Plan {
    /// Its name in the repository.
    pub name: DomainName,
    pub disks: Vec<DiskPlan>,
    pub left_out: Vec<LeftOut>,
    pub usage: Use,
    pub warnings: Vec<Warning>,
}

impl Plan {
    /// Decides.
    ///
    /// # Errors
    /// A disk that belongs to the machine can't be backed up; there is none that can; an image
    /// can't be opened.
    pub fn new(found: &Found, request: &GuestRequest, name: DomainName) -> Result<Self> {
        let domain = &found.domain;
        let (mut disks, mut left_out, mut warnings) = (Vec::new(), Vec::new(), Vec::new());
        for (number, disk) in domain.disks.iter().enumerate() {
            if domain.disks.iter().take(number).any(|other| other.target == disk.target) {
                let text =
                    format!("the definition of {} has two disks {}", domain.name, disk.target);
                return Err(Error::new(ErrorKind::Image, text)
                    .advise("give one of them another target (virsh edit)"));
            }
            match decide(disk, &request.excluded) {
                Choice::Take { image, format, block } => {
                    let id = DiskId { domain: name.clone(), disk: disk.target.parse()? };
                    check_home(&id, &image)?;
                    let open = open_options(disk, format, &request.how.image_roots)?;
                    if disk.mirrored {
                        let text = format!("a block job is copying disk {}", disk.target);
                        warnings.push(Warning::new(Code::GuestState, text));
                    }
                    disks.push(DiskPlan { target: disk.target.clone(), id, image, open, block });
                }
                Choice::LeaveOut(reason) => {
                    left_out.push(LeftOut { disk: disk.target.clone(), reason: reason.0 });
                }
                Choice::Refuse(reason) => {
                    let target = &disk.target;
                    let text = format!("disk {target} of {} {reason}", domain.name);
                    return Err(Error::new(ErrorKind::Image, text).advise(format!(
                        "--exclude {}/{target} makes points without it; back it up by other means",
                        domain.name
                    )));
                }
            }
        }
        if disks.is_empty() {
            let text = format!("{} has no disk that could be backed up", domain.name);
            return Err(Error::new(ErrorKind::Image, text));
        }
        let usage = usage(found, &disks, &mut warnings)?;
        Ok(Self { name, disks, left_out, usage, warnings })
    }
}

/// Fails if a disk is on the overlay of a backup by a snapshot command: whoever goes on with another command, or with
/// none, would leave the guest there, with an overlay that grows for ever.
fn check_home(disk: &DiskId, image: &Path) -> Result<()> {
    let name = image.file_name().unwrap_or_default().as_encoded_bytes();
    let mut ends = name.windows(2).enumerate().filter(|(_, pair)| pair == b".q");
    if !ends.any(|(at, _)| is_anchor(&name[at + 1..])) {
        return Ok(());
    }
    let text = format!(
        "{disk} is on {}, which a snapshot command made for a backup that was cut off",
        image.display()
    );
    Err(Error::new(ErrorKind::Guest, text).advise(
        "the guest must come back to its own image first: run the backup once with the command that made the overlay \
         (--snapshot-command …/external-snapshot, or the guest's job of before)",
    ))
}

/// How the image of a disk is opened: as the domain's XML says. Names in images may lead into `roots`,
/// too.
///
/// # Errors
/// The chain that the XML describes can't be read.
pub(crate) fn open_options(disk: &Disk, format: Format, roots: &[PathBuf]) -> Result<OpenOptions> {
    let chain = match format {
        Format::Qcow2 => stated_chain(disk)?,
        // Nothing lies below a raw image.
        Format::Raw => StatedChain::default(),
    };
    let image_roots = roots.to_vec();
    Ok(OpenOptions { format: Some(format), image_roots, chain, ..OpenOptions::default() })
}

/// What the domain's XML says of the chain of a disk.
///
/// # Errors
/// It can't be read.
pub(crate) fn stated_chain(disk: &Disk) -> Result<StatedChain> {
    let unreadable = |why| {
        let text = format!("disk {} can't be read as the guest sees it: {why}", disk.target);
        Error::new(ErrorKind::Image, text)
    };
    let links = disk.chain.links().map_err(unreadable)?;
    let layer = |link: Link| {
        let format = link.format.parse()?;
        Ok(StatedLayer { path: link.path, format, data_file: link.data_file })
    };
    Ok(StatedChain {
        data_file: links.data_file,
        below: links.below.into_iter().map(layer).collect::<Result<_>>()?,
        is_whole: links.is_whole,
    })
}

/// What a domain is called in the repository: its name, if that can be a folder's there. Otherwise
/// what of it can be, and the beginning of its UUID, so that no two domains meet.
///
/// # Errors
/// Neither makes a name.
pub fn repository_name(domain: &Domain) -> Result<DomainName> {
    if let Ok(name) = domain.name.parse() {
        return Ok(name);
    }
    let fitting = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    let name: String = domain.name.chars().map(fitting).take(64).collect();
    let name = name.trim_start_matches(['.', '-']);
    let uuid: String = domain.uuid.as_deref().unwrap_or_default().chars().take(8).collect();
    if uuid.len() < 8 {
        let text = format!("{:?} can't be the name of a domain in the repository", domain.name);
        return Err(Error::new(ErrorKind::Usage, text));
    }
    format!("{name}-{uuid}").parse()
}

/// Finds out by QEMU's own locks whether the guest's disks are in use. Where these say nothing, the
/// process that libvirt has noted does.
fn usage(found: &Found, disks: &[DiskPlan], warnings: &mut Vec<Warning>) -> Result<Use> {
    let mut writers = Vec::new();
    for disk in disks {
        let within = |error: Error| error.within(format!("cannot look at disk {}", disk.target));
        let file = Opener::READ.or_device().open(&disk.image);
        let file =
            file.map_err(|error| within(not_opened(&disk.image, error, ErrorKind::Image)))?;
        // A filesystem without locks says nothing.
        if let Ok(Some(holder)) = image_lock::probe(&file)
            && holder.writes()
        {
            writers.push(disk.target.as_str());
        }
    }
    let alive = found.domain.pid.is_some_and(|pid| Path::new(&format!("/proc/{pid}")).exists());
    match (writers.is_empty(), found.live.is_some() && (alive || found.domain.pid.is_none())) {
        (_, true) => {
            if writers.is_empty() && !found.domain.is_paused() {
                warnings.push(Warning::new(
                    Code::NoLocks,
                    "it runs, and no lock on its disks says so: they are not seen on this \
                     filesystem, or switched off",
                ));
            }
            Ok(if found.domain.is_paused() { Use::Paused } else { Use::Running })
        }
        (true, false) => Ok(Use::Stopped),
        (false, false) => {
            let text = format!(
                "disk {} of {} is being written to, though libvirt says that it does not run",
                writers.join(" and "),
                found.domain.name
            );
            Err(Error::new(ErrorKind::Busy, text)
                .advise("end the program that uses the image first"))
        }
    }
}
