//! The flow that rolls images back where they lie: only the blocks that differ are written.
//!
//! ```text
//! lock → compare by digest → rehearse → safety point → write what differs → compare again
//! ```
//!
//! A qcow2 image becomes the old disk in one step: whenever it is killed, it is as it was, or
//! done. A raw one is written where it lies: killed in the middle it is half of each, and running it
//! again goes on.
//!
//! The disks of a guest go back together: what would fail for one of them is found before any is
//! written, and one safety point is made of all.

mod compare;
mod pages;
mod ready;
mod roll_back;
mod room;
mod write;

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::guests;
use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::{Observer, OfDisk, Recorder};
use crate::base::warning::{Code, Warning};
use crate::disk::files::paths::{is_same_place, is_uri};
use crate::disk::flow::pipeline::Resources;
use crate::disk::image::{self, Format, Image, OpenOptions, StatedChain};
use crate::flows::report::{InPlaceReport, MachineInPlaceReport};
use crate::guest::libvirt::Libvirt;
use crate::vault::chain::Chain;
use crate::vault::point::{check_indexes, open_chain};
use crate::vault::repository::storage::Wait;
use crate::vault::repository::{
    Catalog, DiskId, DiskSpec, MachineRecord, Manifest, Point, PointId, Repository, Selector,
};
use roll_back::roll_back;

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
    /// First make a safety point of what is there now.
    pub safety_point: bool,
    /// The guest that has the name of the point's is the same one, though its UUID is another.
    pub same_guest: bool,
    /// Where libvirt keeps its files.
    pub libvirt: Libvirt,
    /// Threads and I/O.
    pub resources: Resources,
}

/// Rolls an image back to a point.
///
/// # Errors
/// `Busy` if somebody uses the image, or a guest needs it as it is; `Image` if it can't be changed,
/// or has another size than the point's disk.
pub fn run_in_place(
    repository: &Repository,
    request: &InPlaceRequest,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<InPlaceReport> {
    let recorder = Recorder::new(observer);
    let observer: &dyn Observer = &recorder;
    let catalog = repository.catalog();
    let disk = catalog.find_disk(&request.disk)?;
    let _hold = repository.hold(&disk.domain, Wait::by(observer, cancel))?;
    let point = catalog.resolve(&disk, &request.selector)?;
    let image = request.image.as_deref();
    catalog.warn_of_damage([&disk], observer);
    let mut job = RollBack::prepare(&catalog, &point, image, &request.options, observer)?;
    job.passed_over = catalog.passed_over(&disk, &request.selector, point.id)?;
    let mut reports = roll_back(&catalog, &[job], &request.options, observer, cancel)?;
    let report = reports.pop().ok_or_else(|| Error::new(ErrorKind::Usage, "no disk"))?;
    Ok(InPlaceReport { warnings: recorder.take(), ..report })
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
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<MachineInPlaceReport> {
    let started = Instant::now();
    let recorder = Recorder::new(observer);
    let observer: &dyn Observer = &recorder;
    let catalog = repository.catalog();
    let domain = catalog.find_domain(&request.domain)?;
    let _hold = repository.hold(&domain, Wait::by(observer, cancel))?;
    let manifest = catalog.resolve_domain(&domain, &request.selector)?;
    let mut jobs = Vec::new();
    for record in manifest.guest_disks() {
        let id = DiskId { domain: domain.clone(), disk: record.disk.clone() };
        let point = catalog.resolve(&id, &Selector::Id(manifest.point.to_string()))?;
        catalog.warn_of_damage([&id], observer);
        let mut job = RollBack::prepare(&catalog, &point, None, &request.options, observer)?;
        job.passed_over = catalog.passed_over(&id, &request.selector, point.id)?;
        jobs.push(job);
    }
    // A snapshot's point holds no machine: which disks it lacks, the latest one tells.
    let machine = jobs.iter().find_map(|job| job.machine.clone());
    let machine = machine.or_else(|| catalog.last_machine(&domain).map(|(_, machine)| machine));
    for text in as_now(&manifest, machine.as_ref(), &request.options.libvirt) {
        observer.warn(Warning::new(Code::Machine, text));
    }
    let mut disks = roll_back(&catalog, &jobs, &request.options, observer, cancel)?;
    for disk in &mut disks {
        disk.warnings = recorder.take_of(&disk.disk);
    }
    Ok(MachineInPlaceReport {
        domain: domain.to_string(),
        point: manifest.point,
        safety_point: disks.first().and_then(|disk| disk.safety_point),
        passed_over: disks.iter().filter_map(|disk| disk.passed_over).max(),
        disks,
        warnings: recorder.take(),
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// Fails if what is to be rolled back is the export of a server.
fn check_file(disk: &DiskId, path: &Path, is_named: bool) -> Result<()> {
    if !is_uri(path) {
        return Ok(());
    }
    let text = match is_named {
        true => format!("{} can't be rolled back in place", path.display()),
        false => {
            format!("{disk} was read from {}, and can't be rolled back in place", path.display())
        }
    };
    Err(Error::new(ErrorKind::Usage, text)
        .because("nothing is written to a server")
        .advise("restore to a new file, or name the image's own file"))
}

/// What of the guest is not as it was at the point.
fn as_now(manifest: &Manifest, machine: Option<&MachineRecord>, libvirt: &Libvirt) -> Vec<String> {
    let Some(machine) = machine else { return Vec::new() };
    let as_now = |disk: &str| format!("disk {disk} is as it is now: it is not in the point");
    let left_out = machine.left_out.iter();
    let mut texts: Vec<String> =
        left_out.map(|it| format!("{} ({})", as_now(&it.disk), it.reason)).collect();
    let is_known = |target: &str| {
        let mut disks = manifest.disks.iter();
        disks.any(|it| it.disk.as_str() == target)
            || machine.left_out.iter().any(|it| it.disk == target)
    };
    let now = guests::disks_now(libvirt, machine).into_iter();
    texts.extend(now.filter(|target| !is_known(target)).map(|target| as_now(&target)));
    if manifest.machine.as_ref().is_some_and(|machine| machine.memory.is_some()) {
        texts.push(
            "the memory of the point is not resumed: the disks are what a power cut would leave"
                .to_owned(),
        );
    }
    texts.push(
        "the definition, the firmware's variables and the TPM are as they are now".to_owned(),
    );
    texts
}

/// An image that is about to be rolled back.
struct RollBack {
    disk: DiskId,
    point: PointId,
    passed_over: Option<PointId>,
    chain: Chain,
    path: PathBuf,
    open: OpenOptions,
    format: Format,
    /// Size of a cluster of the image, in bytes, if it has any.
    cluster: Option<u64>,
    /// Something lies below it, by its header or by the guest's definition.
    is_overlay: bool,
    /// The machine that it belonged to.
    machine: Option<MachineRecord>,
}

impl RollBack {
    /// Finds the image, and what would fail.
    fn prepare(
        catalog: &Catalog,
        point: &Point,
        image: Option<&Path>,
        options: &InPlaceOptions,
        observer: &dyn Observer,
    ) -> Result<Self> {
        let observer: &dyn Observer = &OfDisk::new(observer, &point.disk);
        let (record, roots) = (&point.record, &options.image_roots);
        let machine = catalog.machine_at(&point.disk, point.id);
        let now = match (image, &machine) {
            (None, Some(machine)) => guests::image_now(
                &options.libvirt,
                machine,
                point.disk.disk.as_str(),
                (roots, options.same_guest),
                observer,
            )?,
            _ => None,
        };
        let is_vouched = image.is_some() || now.is_some();
        let (path, open) = match now {
            Some((path, open)) => {
                if !is_same_place(&path, &record.image.path) {
                    let (was, now) = (record.image.path.display(), path.display());
                    let text = format!("the image was {was} at the point, and is {now}");
                    observer.warn(Warning::new(Code::OtherImage, text));
                }
                (path, open)
            }
            None => {
                let path = image.unwrap_or(&record.image.path).to_path_buf();
                check_file(&point.disk, &path, image.is_some())?;
                let chain = guests::chain_of(&options.libvirt, &path)?;
                let image_roots = roots.clone();
                (path, OpenOptions { image_roots, chain, ..OpenOptions::default() })
            }
        };
        let format = match options.format.or(open.format) {
            Some(format) => format,
            None => format_at(point, &path)?,
        };
        let chain = if format == Format::Raw { StatedChain::default() } else { open.chain.clone() };
        let open = OpenOptions { format: Some(format), chain, ..open };
        if !is_vouched {
            check_unvouched(point, &path, format, observer)?;
            if let Some(machine) = &machine {
                guests::check_owner(&options.libvirt, &path, machine)?;
            }
        }
        guests::check(&options.libvirt, &path)?;
        let chain = open_chain(catalog, point).and_then(check_indexes);
        let chain = chain.inspect_err(|error| catalog.note_damage(error))?;
        let opened = Image::open(&path, &open)?;
        opened.warnings().iter().for_each(|warning| observer.warn(warning.clone()));
        check_size(&path, &opened, &chain)?;
        let cluster = opened.layers().first().and_then(|top| top.cluster_size);
        let is_overlay = opened.layers().len() > 1;
        Ok(Self {
            disk: point.disk.clone(),
            point: point.id,
            passed_over: None,
            chain,
            path,
            open,
            format,
            cluster,
            is_overlay,
            machine,
        })
    }
}

/// The format that an image had at a point, if it is still to be read so.
///
/// # Errors
/// It was raw, and the image looks like a container of a disk now.
fn format_at(point: &Point, path: &Path) -> Result<Format> {
    let format = point.record.image.format;
    if format == Format::Raw
        && let Some(what) = image::container(path)?
    {
        let (disk, path) = (&point.disk, path.display());
        let text = format!("{disk} was a raw disk at the point, and {path} looks like {what}");
        return Err(Error::new(ErrorKind::Image, text)
            .advise("say which it is: --format raw or --format qcow2"));
    }
    Ok(format)
}

/// Fails if an image that the repository alone names must not be written to: whoever can write there
/// could name any file, and any file can be taken for a raw disk.
fn check_unvouched(
    point: &Point,
    path: &Path,
    format: Format,
    observer: &dyn Observer,
) -> Result<()> {
    let (disk, id, path) = (&point.disk, point.id, path.display());
    if format == Format::Raw {
        let text =
            format!("only the point says that {path} is {disk}, and any file can be a raw image");
        return Err(Error::new(ErrorKind::Usage, text).advise(format!(
            "name the image that is meant: qdelta restore {disk}@{id} IMAGE --in-place"
        )));
    }
    let text = format!("it is rolled back in {path}, from which the point was made");
    observer.warn(Warning::new(Code::OtherImage, text));
    Ok(())
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
