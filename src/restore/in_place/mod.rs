//! The flow that rolls images back where they lie: only the blocks that differ are written.
//!
//! ```text
//! a point of what is there → lock → compare by digest → write what differs → compare again
//! ```
//!
//! A qcow2 image becomes the old disk in one step: whenever it is killed, it is as it was, or
//! done. A raw one is written where it lies: killed in the middle it is half of each, and running it
//! again goes on.
//!
//! The disks of a guest go back together: what would fail for one of them is found before any is
//! written, and what is there is one point of all.

mod write;

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

use super::guests;
use crate::backup::{self, AnchorChoice, ImageRequest, check_indexes, open_chain};
use crate::chain::Chain;
use crate::domain::Libvirt;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Format, Image, OpenOptions};
use crate::pipeline::Resources;
use crate::progress::{Cancel, Progress};
use crate::repository::{DiskId, DiskSpec, MachineRecord, Point, Repository, Selector};
use write::Held;

/// What to roll back, and to which point.
#[derive(Debug, Clone)]
pub struct InPlaceRequest {
    /// The disk.
    pub disk: DiskSpec,
    /// The point.
    pub selector: Selector,
    /// The image; unless told, the one that the guest has as this disk now, or if libvirt does not
    /// know the guest, the one that the point was made from.
    pub image: Option<PathBuf>,
    /// How.
    pub options: InPlaceOptions,
}

/// A guest whose disks are to be rolled back, and to which point.
#[derive(Debug, Clone)]
pub struct MachineInPlaceRequest {
    /// The domain: as libvirt has it, or as the repository does.
    pub domain: String,
    /// The point.
    pub selector: Selector,
    /// How.
    pub options: InPlaceOptions,
}

/// How to roll back.
#[derive(Debug, Clone)]
pub struct InPlaceOptions {
    /// The format of the image; unless told, what libvirt says, or that of the image that the point
    /// was made from.
    pub format: Option<Format>,
    /// Folders besides the images' own into which names inside images may lead.
    pub image_roots: Vec<PathBuf>,
    /// First make a point of what is there now.
    pub keep: bool,
    /// Where libvirt keeps its files.
    pub libvirt: Libvirt,
    /// Threads and I/O.
    pub resources: Resources,
}

/// What a roll back did.
#[derive(Debug, Clone, Serialize)]
pub struct InPlaceReport {
    /// The disk, as `domain/disk`.
    pub disk: String,
    /// The recovery point whose content the image has now.
    pub point: String,
    /// The image.
    #[serde(serialize_with = "crate::json::serialize")]
    pub image: PathBuf,
    /// The point that holds what was there before; none if it was not wanted.
    pub kept: Option<String>,
    /// Size of the disk, in bytes.
    pub virtual_size: u64,
    /// Bytes of the disk that differed, in whole blocks, and were written.
    pub bytes_changed: u64,
    /// Digest of what the image shows now, which is the point's.
    pub root: String,
    /// How long it took.
    pub seconds: f64,
}

/// What the roll back of a guest did.
#[derive(Debug, Clone, Serialize)]
pub struct MachineInPlaceReport {
    /// The domain's name, as the repository has it.
    pub domain: String,
    /// The recovery point whose content the disks have now.
    pub point: String,
    /// The point that holds what was there before; none if it was not wanted.
    pub kept: Option<String>,
    /// Its disks.
    pub disks: Vec<InPlaceReport>,
    /// What the admin should know.
    pub warnings: Vec<String>,
    /// How long it took.
    pub seconds: f64,
}

/// Rolls an image back to a point.
///
/// # Errors
/// `Busy` if somebody uses the image, or a guest needs it as it is; `Image` if it can't be changed,
/// or has another size than the point's disk.
pub fn run_in_place(
    repository: &Repository,
    request: &InPlaceRequest,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<InPlaceReport> {
    let disk = repository.find_disk(&request.disk)?;
    let point = repository.resolve(&disk, &request.selector)?;
    let id = Selector::Id(point.id.to_string());
    let machine = repository.resolve_domain(&disk.domain, &id)?.machine;
    let image = request.image.as_deref();
    let job = Job::prepare(repository, &point, machine.as_ref(), image, &request.options)?;
    let mut reports = roll_back(repository, &[job], &request.options, progress, cancel)?;
    reports.pop().ok_or_else(|| Error::new(ErrorKind::Usage, "no disk"))
}

/// Rolls all disks of a guest back that a point has. Everything that can be known to be wrong is
/// found before the first is written.
///
/// # Errors
/// As [`run_in_place`]. If a disk can't be written, those before it are rolled back: the error says
/// so, and running it again goes on.
pub fn run_machine_in_place(
    repository: &Repository,
    request: &MachineInPlaceRequest,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<MachineInPlaceReport> {
    let started = Instant::now();
    let domain = repository.find_domain(&request.domain)?;
    let manifest = repository.resolve_domain(&domain, &request.selector)?;
    let machine = manifest.machine.as_ref();
    let mut jobs = Vec::new();
    for record in &manifest.disks {
        let id = DiskId { domain: domain.clone(), disk: record.disk.clone() };
        let point = repository.resolve(&id, &Selector::Id(manifest.point.to_string()))?;
        jobs.push(Job::prepare(repository, &point, machine, None, &request.options)?);
    }
    let disks = roll_back(repository, &jobs, &request.options, progress, cancel)?;
    Ok(MachineInPlaceReport {
        domain: domain.to_string(),
        point: manifest.point.to_string(),
        kept: disks.first().and_then(|disk| disk.kept.clone()),
        disks,
        warnings: machine.map(warnings).unwrap_or_default(),
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// What of the guest is not as it was at the point.
fn warnings(machine: &MachineRecord) -> Vec<String> {
    let left_out = machine.left_out.iter();
    let mut warnings: Vec<String> = left_out
        .map(|it| {
            format!("disk {} is as it is now: it is not in the point ({})", it.disk, it.reason)
        })
        .collect();
    warnings.push(
        "the definition, the firmware's variables and the TPM are as they are now".to_owned(),
    );
    warnings
}

/// An image that is about to be rolled back.
struct Job {
    disk: DiskId,
    point: String,
    chain: Chain,
    path: PathBuf,
    open: OpenOptions,
    format: Format,
}

impl Job {
    /// Finds the image, and what would fail.
    fn prepare(
        repository: &Repository,
        point: &Point,
        machine: Option<&MachineRecord>,
        image: Option<&Path>,
        options: &InPlaceOptions,
    ) -> Result<Self> {
        let (record, roots) = (&point.record, &options.image_roots);
        let now = match (image, machine) {
            (None, Some(machine)) => {
                guests::image_now(&options.libvirt, machine, point.disk.disk.as_str(), roots)?
            }
            _ => None,
        };
        let (path, open) = match now {
            Some((path, open)) => {
                if path != record.image.path {
                    let (was, now) = (record.image.path.display(), path.display());
                    tracing::warn!(
                        "the image of {} was {was} at the point, and is {now}",
                        point.disk
                    );
                }
                (path, open)
            }
            None => {
                let path = image.unwrap_or(&record.image.path).to_path_buf();
                (path, OpenOptions { image_roots: roots.clone(), ..OpenOptions::default() })
            }
        };
        let format = match options.format.or(open.format) {
            Some(format) => format,
            None => record.image.format.parse()?,
        };
        let open = OpenOptions { format: Some(format), ..open };
        guests::check(&options.libvirt, &path, roots)?;
        let chain = check_indexes(open_chain(repository, point)?)?;
        check_size(&path, &Image::open(&path, &open)?, &chain)?;
        Ok(Self {
            disk: point.disk.clone(),
            point: point.id.to_string(),
            chain,
            path,
            open,
            format,
        })
    }

    /// Makes it the disk of the point.
    fn run(
        &self,
        held: &Held,
        options: &InPlaceOptions,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<InPlaceReport> {
        let started = Instant::now();
        let resources = &options.resources;
        let job = write::Job {
            chain: &self.chain,
            path: &self.path,
            open: &self.open,
            resources,
            progress,
            cancel,
        };
        let (changed, root) = job.run(held)?;
        let geometry = self.chain.geometry();
        Ok(InPlaceReport {
            disk: self.disk.to_string(),
            point: self.point.clone(),
            image: self.path.clone(),
            kept: None,
            virtual_size: geometry.virtual_size(),
            bytes_changed: changed * u64::from(geometry.block_size()),
            root,
            seconds: started.elapsed().as_secs_f64(),
        })
    }
}

fn check_size(path: &Path, image: &Image, chain: &Chain) -> Result<()> {
    let (now, then) = (image.virtual_size(), chain.geometry().virtual_size());
    if now == then {
        return Ok(());
    }
    let text = format!("the disk of {} has {now} bytes now, and had {then}", path.display());
    Err(Error::new(ErrorKind::Image, text)
        .advise("resize it first (qemu-img resize), or restore to a new file"))
}

/// Keeps what is there, holds all images, and then writes one after the other.
fn roll_back(
    repository: &Repository,
    jobs: &[Job],
    options: &InPlaceOptions,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Vec<InPlaceReport>> {
    let started = Instant::now();
    let kept = match options.keep {
        true => Some(keep(repository, jobs, options, progress, cancel)?),
        false => None,
    };
    let mut held = Vec::new();
    for job in jobs {
        held.push(Held::open(&job.path, job.format)?);
    }
    if let Some((_, stamps)) = &kept {
        for (job, before) in jobs.iter().zip(stamps) {
            check_stamp(&job.path, *before)?;
        }
    }
    let mut reports: Vec<InPlaceReport> = Vec::new();
    for (job, held) in jobs.iter().zip(&held) {
        match job.run(held, options, progress, cancel) {
            Ok(report) => reports.push(report),
            Err(error) if jobs.len() == 1 => return Err(error),
            Err(error) => {
                let done: Vec<&str> = reports.iter().map(|it| it.disk.as_str()).collect();
                let done = if done.is_empty() { "none".to_owned() } else { done.join(", ") };
                return Err(error.within(format!(
                    "{} is not rolled back (of its domain's disks: {done}); run it again with the id \
                     {}",
                    job.disk, job.point
                )));
            }
        }
    }
    for report in &mut reports {
        report.kept = kept.as_ref().map(|(point, _)| point.clone());
    }
    if let [only] = reports.as_mut_slice() {
        only.seconds = started.elapsed().as_secs_f64();
    }
    Ok(reports)
}

/// What a write changes: inode, length, and time of the last write.
type Stamp = (u64, u64, i64, i64);

fn stamp(path: &Path) -> Result<Stamp> {
    let data = File::open(path).and_then(|file| file.metadata());
    let data = data.map_err(|error| Error::io("look at", path, error))?;
    Ok((data.ino(), data.len(), data.mtime(), data.mtime_nsec()))
}

fn check_stamp(path: &Path, before: Stamp) -> Result<()> {
    if stamp(path)? == before {
        return Ok(());
    }
    let text = format!("{} was written to meanwhile", path.display());
    Err(Error::new(ErrorKind::Busy, text).advise("nothing was rolled back: try again"))
}

/// Makes one point of what is there; gives it, and what tells that nobody has written since.
fn keep(
    repository: &Repository,
    jobs: &[Job],
    options: &InPlaceOptions,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<(String, Vec<Stamp>)> {
    let image = |job: &Job| ImageRequest {
        path: job.path.clone(),
        open: job.open.clone(),
        disk: Some(DiskSpec { domain: job.disk.domain.clone(), disk: Some(job.disk.disk.clone()) }),
    };
    let images: Vec<_> = jobs.iter().map(image).collect();
    let how = backup::Options {
        // The images are about to become others: nothing can be learned from them later.
        anchor: AnchorChoice::None,
        resources: options.resources,
        ..backup::Options::default()
    };
    let reports = backup::run_together(repository, &images, &how, progress, cancel);
    let reports = reports.map_err(|error| {
        error
            .within("cannot keep what is there now")
            .advise("--no-point rolls back without keeping it")
    })?;
    let point = reports.into_iter().next().map(|report| report.point).unwrap_or_default();
    let stamps = jobs.iter().map(|job| stamp(&job.path)).collect::<Result<_>>()?;
    Ok((point, stamps))
}
