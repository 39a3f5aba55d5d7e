//! The flow that brings a whole machine back: its disks, its firmware's variables, and a definition
//! that libvirt takes.
//!
//! All that can be known to be wrong is found before anything is written. The definition comes last:
//! where it is, everything is.

mod definition;
mod instant;
mod memory;
mod pool;

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::time::Instant;

use super::{Destination, RestoreRequest, guests, rebuild};
use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::{Event, Observer, OfDisk, Recorder};
use crate::base::warning::{Code, Warning};
use crate::disk::create::{self, Plan, Target};
use crate::disk::files::image_lock;
use crate::disk::files::paths::absolute;
use crate::disk::files::{check_new_file, room};
use crate::disk::flow::pipeline::Resources;
use crate::disk::image::Format;
use crate::disk::io::{Opener, not_opened};
use crate::flows::report::{InstantReport, MachineReport, RestoreReport};
use crate::guest::libvirt::{Domain, Libvirt, Pool, Served, Volumes, XML_LEN_MAX, parse};
use crate::vault::chain::Chain;
use crate::vault::point::{check_indexes, open_chain};
use crate::vault::repository::storage::Wait;
use crate::vault::repository::{
    Catalog, DiskId, DiskName, DomainName, MachineFile, MachineRecord, Manifest, PointId,
    Repository, Role, Selector,
};
use definition::Definition;
use instant::Service;
use memory::saved_xml;

/// Which machine to restore, and how.
#[derive(Debug, Clone)]
pub struct MachineRequest {
    /// The domain: as libvirt has it, or as the repository does.
    pub domain: String,
    /// The point.
    pub selector: Selector,
    /// The folder for all its files, which is made if it is missing.
    pub to: PathBuf,
    /// The storage pool whose volumes the disks become; none for files in the folder.
    pub pool: Option<Pool>,
    /// A new name; the machine gets a new UUID and new MAC addresses then, so that it can live
    /// beside the one it was made from.
    pub rename: Option<String>,
    /// The format of the disks; unless told, that of the images that were backed up.
    pub format: Option<Format>,
    /// Replace files that exist.
    pub force: bool,
    /// Restore the guest's memory, too, if the point has it.
    pub with_memory: bool,
    /// Copy no disk: make overlays over disks that a server reads out of the point.
    pub instant: Option<InstantRequest>,
    /// Where libvirt keeps its files.
    pub libvirt: Libvirt,
    /// Threads and I/O.
    pub resources: Resources,
}

/// How a guest reads its disks out of the point.
#[derive(Debug, Clone)]
pub struct InstantRequest {
    /// Where the server of the disks is to listen; none for a place among libvirt's.
    pub socket: Option<PathBuf>,
    /// The program that serves them.
    pub program: PathBuf,
    /// The options by which that program gets the key of an encrypted repository, with their values.
    pub key: Vec<String>,
}

/// A disk that is about to be restored.
struct Disk {
    target: String,
    chain: Chain,
    format: Format,
    path: PathBuf,
    /// It is a block device, which is there already.
    block: bool,
    /// The disk below, if the file is an overlay.
    served: Option<Served>,
}

/// All that is about to be restored.
struct MachineRestore<'a> {
    catalog: &'a Catalog,
    request: &'a MachineRequest,
    domain: DomainName,
    machine: MachineRecord,
    /// The name of the restored machine.
    name: String,
    folder: PathBuf,
    disks: Vec<Disk>,
    /// The file of its memory, if that is restored, too.
    memory: Option<Disk>,
    /// Small files: what they hold, where they go, and with which mode.
    files: Vec<(MachineFile, PathBuf)>,
    /// Where the TPM's state was: a folder, or its only file.
    tpm_root: PathBuf,
    /// The server of the disks, if they are served.
    service: Option<Service>,
}

/// Restores a machine.
///
/// # Errors
/// `Exists`, `Busy` and `NoSpace` come before anything is written. What is written is removed if
/// something fails later, unless it took the place of something else.
pub fn run_machine(
    repository: &Repository,
    request: &MachineRequest,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<MachineReport> {
    let started = Instant::now();
    let recorder = Recorder::new(observer);
    super::warn_of_trouble(repository, &recorder);
    let catalog = repository.catalog();
    let (domain, manifest) = find(&catalog, request)?;
    let _hold = repository.hold(&domain, Wait::by(&recorder, cancel))?;
    let machine = match manifest.machine.clone() {
        Some(machine) => machine,
        None => return Err(no_machine(&catalog, &domain, &manifest)),
    };
    let disks = manifest.disks.iter().map(|record| record.disk.clone());
    let disks: Vec<_> = disks.map(|disk| DiskId { domain: domain.clone(), disk }).collect();
    catalog.warn_of_damage(&disks, &recorder);
    definition::check_words(request)?;
    check_new_file(&request.to)?;
    let made = make_folder(&request.to)?;
    let prepared = MachineRestore::prepare(&catalog, request, domain, machine, &manifest);
    let result = prepared.and_then(|(job, definition)| {
        job.check()?;
        let mut written = Written::default();
        let report = job.run(&definition, &manifest, &mut written, &recorder, cancel)?;
        written.done = true;
        Ok(report)
    });
    match result {
        Ok(mut report) => {
            report.warnings = recorder.take();
            report.seconds = started.elapsed().as_secs_f64();
            Ok(report)
        }
        Err(error) => {
            catalog.note_damage(&error);
            if made {
                // Only if nothing is in it.
                let _ = std::fs::remove_dir(&request.to);
            }
            Err(error)
        }
    }
}

/// The domain that is meant, and the manifest of the point.
fn find(catalog: &Catalog, request: &MachineRequest) -> Result<(DomainName, Manifest)> {
    let domain = catalog.find_domain(&request.domain)?;
    let manifest = catalog.resolve_domain(&domain, &request.selector)?;
    Ok((domain, manifest))
}

/// Says why a point can't be restored as a machine, and which one can.
fn no_machine(catalog: &Catalog, domain: &DomainName, manifest: &Manifest) -> Error {
    let text = format!("point {} of {domain} holds disks alone", manifest.point);
    let error = Error::new(ErrorKind::NotFound, text);
    if manifest.is_of_snapshots() {
        let point = manifest.point;
        return error.because("they are snapshots that the images had in them").advise(format!(
            "restore its disks: qdelta restore {domain}/DISK@{point} OUTPUT; or put all back at once: qdelta \
             restore --domain {domain} --at {point} --in-place"
        ));
    }
    match catalog.last_machine(domain) {
        Some((point, _)) => error
            .because("it was made of images, as a safety point of restore --in-place is")
            .advise(format!("the latest point with the machine is {point}: give --at {point}")),
        None => error
            .because("it was made of images, not of a libvirt domain")
            .advise(format!("restore its disks: qdelta restore {domain}/DISK OUTPUT")),
    }
}

/// Makes the folder if it is missing; says whether it did.
fn make_folder(path: &Path) -> Result<bool> {
    match std::fs::create_dir(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && path.is_dir() => {
            Ok(false)
        }
        Err(error) => Err(Error::io("make the folder", path, error)),
    }
}

/// Files and folders that were made, to be removed unless all is well.
#[derive(Default)]
struct Written {
    paths: Vec<PathBuf>,
    /// The outer ones first.
    folders: Vec<PathBuf>,
    done: bool,
}

impl Written {
    /// Makes a folder, and those that it is in.
    fn make_folders(&mut self, folder: &Path) -> std::io::Result<()> {
        let missing: Vec<_> = folder.ancestors().take_while(|folder| !folder.exists()).collect();
        self.folders.extend(missing.into_iter().rev().map(Path::to_path_buf));
        std::fs::create_dir_all(folder)
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        if !self.done {
            for path in &self.paths {
                let _ = std::fs::remove_file(path);
            }
            for folder in self.folders.iter().rev() {
                // Only if nothing is in it.
                let _ = std::fs::remove_dir(folder);
            }
        }
    }
}

impl<'a> MachineRestore<'a> {
    /// Finds everything, and what would fail of the definition.
    fn prepare(
        catalog: &'a Catalog,
        request: &'a MachineRequest,
        domain: DomainName,
        machine: MachineRecord,
        manifest: &Manifest,
    ) -> Result<(Self, Definition)> {
        let text = definition_of(catalog.repository(), &domain, &machine, manifest)?;
        let before = parse(&text)?;
        let folder = absolute(&request.to);
        let name = request.rename.clone().unwrap_or_else(|| machine.name.clone());
        let tpm_root = tpm_root(&before, &machine);
        let (disks, memory, files, service) = (Vec::new(), None, Vec::new(), None);
        let mut job = Self {
            catalog,
            request,
            domain,
            name,
            folder,
            disks,
            memory,
            files,
            tpm_root,
            machine,
            service,
        };
        if let Some(instant) = &request.instant {
            job.service = Some(Service::new(&job, instant)?);
        }
        job.add_disks(manifest)?;
        job.add_files();
        let definition = Definition::new(&job, &text, before)?;
        Ok((job, definition))
    }

    /// The beginning of the names of all files.
    fn stem(&self) -> String {
        let fitting =
            |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
        let stem: String = self.name.chars().map(fitting).take(100).collect();
        match stem.trim_start_matches(['.', '-']) {
            "" => "domain".to_owned(),
            stem => stem.to_owned(),
        }
    }

    fn add_disks(&mut self, manifest: &Manifest) -> Result<()> {
        self.add_memory(manifest)?;
        for record in manifest.guest_disks() {
            let id = DiskId { domain: self.domain.clone(), disk: record.disk.clone() };
            let chain = self.open(&record.disk, manifest)?;
            let target = record.disk.to_string();
            let export = format!("{id}@{}", manifest.point);
            let served = self.service.as_ref().map(|service| service.served(export));
            let format = match &served {
                Some(_) => Format::Qcow2,
                None => self.request.format.unwrap_or(record.image.format),
            };
            let stem = format!("{}-{target}", self.stem());
            // An overlay over a served disk is no volume.
            let pool = self.request.pool.as_ref().filter(|_| served.is_none());
            let (path, format, block) = match pool {
                None => (self.folder.join(format!("{stem}.{format}")), format, false),
                Some(pool) => pool::place(pool, &stem, format, self.request.format)?,
            };
            self.disks.push(Disk { target, chain, format, path, block, served });
        }
        match &self.request.pool {
            Some(pool) if self.service.is_none() => pool::check(pool, &self.disks, &self.domain),
            _ => Ok(()),
        }
    }

    fn open(&self, disk: &DiskName, manifest: &Manifest) -> Result<Chain> {
        let id = DiskId { domain: self.domain.clone(), disk: disk.clone() };
        let point = self.catalog.resolve(&id, &Selector::Id(manifest.point.to_string()))?;
        check_indexes(open_chain(self.catalog, &point)?)
    }

    fn add_files(&mut self) {
        let stem = self.stem();
        let mut variables = 0;
        for file in &self.machine.files {
            let path = match file.role {
                Role::DomainXml | Role::LiveXml => continue,
                Role::Nvram => {
                    variables += 1;
                    let number = if variables > 1 { variables.to_string() } else { String::new() };
                    let extension = file.path.extension().and_then(OsStr::to_str);
                    let extension = extension.filter(|it| ["json", "qcow2"].contains(it));
                    let extension = extension.unwrap_or("fd");
                    PathBuf::from(format!("{stem}_VARS{number}.{extension}"))
                }
                Role::BootFile => Path::new("boot").join(inside(&file.path)),
                Role::GuestState => Path::new("state").join(inside(&file.path)),
                Role::Tpm => match file.path.strip_prefix(&self.tpm_root) {
                    Ok(path) if path != Path::new("") => Path::new("tpm").join(inside(path)),
                    _ => Path::new("tpm").join(file.path.file_name().unwrap_or_default()),
                },
                Role::HostConfig => Path::new("host-config").join(inside(&file.path)),
            };
            self.files.push((file.clone(), self.folder.join(path)));
        }
    }

    fn xml_path(&self) -> PathBuf {
        self.folder.join(format!("{}.xml", self.stem()))
    }

    /// Finds what would fail, before anything is written.
    fn check(&self) -> Result<()> {
        let xml = self.xml_path();
        let disks = self.disks.iter().chain(&self.memory).map(|disk| disk.path.as_path());
        let saved_xml = self.memory.as_ref().map(|memory| saved_xml(&memory.path));
        let files = self.files.iter().map(|(_, path)| path.as_path());
        let units = self.service.as_ref().map(|service| service.units(&self.folder));
        let units = units.iter().flatten().map(PathBuf::as_path);
        let paths: Vec<&Path> = disks
            .chain(files)
            .chain(units)
            .chain([xml.as_path()])
            .chain(saved_xml.as_deref())
            .collect();
        let devices: Vec<&Disk> = self.disks.iter().filter(|disk| disk.block).collect();
        for path in paths.iter().filter(|path| devices.iter().all(|disk| disk.path != **path)) {
            self.check_target(path)?;
        }
        for (number, disk) in devices.iter().enumerate() {
            let is_same = |other: &&&Disk| guests::share_bytes(&other.path, &disk.path);
            if let Some(other) = devices.iter().take(number).find(is_same) {
                let (one, two) = (other.path.display(), disk.path.display());
                let text =
                    format!("{one} and {two} are one device, and disks of their own need one each");
                return Err(
                    Error::new(ErrorKind::Usage, text).advise("look at the volumes of the pool")
                );
            }
            self.check_not_others(&disk.path)?;
            guests::check(&self.request.libvirt, &disk.path)?;
            let size = disk.chain.geometry().virtual_size();
            create::check_device(&disk.path, size, self.request.force)?;
        }
        if let Some(path) = taken_twice(paths) {
            let text = format!("two files of the point would be {}", path.display());
            return Err(Error::new(ErrorKind::Damaged, text)
                .advise(format!("restore its disks: qdelta restore {}/DISK OUTPUT", self.domain)));
        }
        for (file, _) in &self.files {
            // What is damaged is found now, and not when half of it is there.
            self.catalog.repository().copy_machine_file(
                &self.domain,
                file,
                &mut std::io::sink(),
            )?;
        }
        self.check_space()
    }

    fn check_target(&self, path: &Path) -> Result<()> {
        let file = match Opener::READ.open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => {
                return Err(
                    not_opened(path, error, ErrorKind::Exists).advise("restore to another folder")
                );
            }
        };
        if let Ok(Some(_)) = image_lock::probe_living(&file) {
            let text = format!("{} is in use by another program", path.display());
            return Err(Error::new(ErrorKind::Busy, text)
                .advise("stop the guest that uses it, or restore to another folder"));
        }
        if !self.request.force {
            let text = format!("{} exists already", path.display());
            return Err(Error::new(ErrorKind::Exists, text).advise(match self.service {
                // Its overlays may hold what the guest has written since.
                Some(_) => "restore to another folder: what a guest wrote there is never replaced",
                None => "restore to another folder, or give --force to replace it",
            }));
        }
        self.check_not_others(path)?;
        guests::check(&self.request.libvirt, path)
    }

    /// Fails if a file or device is a disk of another guest, whatever `--force` says.
    fn check_not_others(&self, path: &Path) -> Result<()> {
        let own = self.machine.uuid.as_deref().filter(|_| self.request.rename.is_none());
        guests::check_not_others(&self.request.libvirt, path, (&self.name, own))
    }

    /// Fails if a filesystem has no room for all that goes there. What is replaced goes when the new
    /// file is there.
    fn check_space(&self) -> Result<()> {
        let memory = self.memory.as_ref().map_or(0, |it| it.chain.geometry().virtual_size());
        let files: u64 = self.files.iter().map(|(file, _)| file.length).sum::<u64>() + memory;
        let mut disks = 0_u64;
        for disk in self.disks.iter().filter(|disk| disk.served.is_none() && !disk.block) {
            let plan = Plan::new(disk.chain.geometry(), disk.chain.nonzero()?)?;
            disks = disks.saturating_add(create::room_needed(&plan, disk.format)?);
        }
        let elsewhere = match self.request.pool.as_ref().map(|pool| &pool.volumes) {
            Some(Volumes::Files(folder)) if !is_same_filesystem(folder, &self.folder) => {
                self.check_room(folder, disks)?;
                disks
            }
            _ => 0,
        };
        self.check_room(&self.folder, files.saturating_add(disks - elsewhere))
    }

    fn check_room(&self, folder: &Path, needed: u64) -> Result<()> {
        let what = format!("{} in {}", self.name, folder.display());
        room::check(folder, needed, &what).map_err(|error| match self.request.force {
            true => error
                .advise("remove the files that are to be replaced, or restore to another folder"),
            false => error.advise("restore to a folder on another filesystem"),
        })
    }

    fn run(
        self,
        definition: &Definition,
        manifest: &Manifest,
        written: &mut Written,
        recorder: &Recorder<'_>,
        cancel: &Cancel,
    ) -> Result<MachineReport> {
        let reports = self.write_disks(written, recorder, cancel)?;
        for (file, path) in &self.files {
            cancel.check()?;
            self.write(path, file.mode, written, |out| {
                self.catalog.repository().copy_machine_file(&self.domain, file, out)
            })?;
        }
        let is_resumed = match &self.memory {
            Some(memory) => self.restore_saved_xml(definition, memory, written, recorder)?,
            None => false,
        };
        let uuid_here = guests::uuid_here(&self.request.libvirt, &self.machine, recorder);
        let xml = self.xml_path();
        let instant = match &self.service {
            None => {
                self.write_text(&xml, &definition.text, written)?;
                None
            }
            Some(service) => Some(self.finish_instant(
                service,
                definition,
                manifest.point,
                written,
                recorder,
                cancel,
            )?),
        };
        self.warn_of_memory(recorder);
        for text in definition.warnings(&self) {
            recorder.event(&Event::Warning(&Warning::new(Code::Machine, text)));
        }
        if self.name == self.machine.name {
            let text = "its disks are other files now than at its latest point";
            let warning = Warning::new(Code::OtherFiles, text);
            let warning = warning.advise("say --same-guest at its next backup, once");
            recorder.event(&Event::Warning(&warning));
        }
        Ok(MachineReport {
            domain: self.name.clone(),
            uuid: definition.uuid.clone(),
            guest: self.machine.name.clone(),
            guest_uuid: self.machine.uuid.clone(),
            uuid_here,
            point: manifest.point,
            safety: manifest.safety,
            passed_over: self.passed_over(manifest.point)?,
            consistency: manifest.consistency,
            disks: reports,
            instant,
            commands: definition.commands(&self, &xml, is_resumed),
            memory: self.memory.as_ref().map(|memory| memory.path.clone()),
            warnings: Vec::new(),
            xml,
            nvram: self.restored(Role::Nvram).map(Path::to_path_buf),
            seconds: 0.0,
        })
    }

    /// Writes the disks, or what stands for them. Gives reports of those that were copied.
    fn write_disks(
        &self,
        written: &mut Written,
        recorder: &Recorder<'_>,
        cancel: &Cancel,
    ) -> Result<Vec<RestoreReport>> {
        let mut reports = Vec::new();
        for disk in self.disks.iter().chain(&self.memory) {
            if let Some(served) = &disk.served {
                let name = instant::uri(served);
                let geometry = disk.chain.geometry();
                create::overlay(&disk.path, geometry, &name, cancel, recorder)?;
                written.paths.push(disk.path.clone());
                continue;
            }
            let request = RestoreRequest {
                destination: Destination::Path(disk.path.clone()),
                format: disk.format,
                force: self.request.force,
                libvirt: self.request.libvirt.clone(),
                salvage: false,
                resources: self.request.resources,
            };
            let new = !disk.path.exists();
            let id = format!("{}/{}", self.domain, disk.target);
            let observer = OfDisk::new(recorder, &id);
            let mut report = rebuild(&disk.chain, Vec::new(), request, &|_| {}, &observer, cancel)
                .map_err(|error| error.within(format!("cannot restore disk {}", disk.target)))?;
            if new {
                written.paths.push(disk.path.clone());
            }
            report.warnings = recorder.take_of(&id);
            reports.push(report);
        }
        Ok(reports)
    }

    /// Writes the units and the definition, and pins the point before there is anything that runs on it.
    fn finish_instant(
        &self,
        service: &Service,
        definition: &Definition,
        point: PointId,
        written: &mut Written,
        recorder: &Recorder<'_>,
        cancel: &Cancel,
    ) -> Result<InstantReport> {
        let texts = service.unit_texts(self, point);
        for (path, text) in service.units(&self.folder).iter().zip(&texts) {
            self.write_text(path, text, written)?;
        }
        instant::warn_of_room(self, recorder)?;
        let pinned = instant::pin(self, point, recorder, cancel);
        self.write_text(&self.xml_path(), &definition.text, written).inspect_err(|_| {
            instant::unpin_failed(self, point, &pinned, Wait::by(recorder, cancel))
        })?;
        Ok(service.report(self, point, &pinned))
    }

    fn write_text(&self, path: &Path, text: &str, written: &mut Written) -> Result<()> {
        self.write(path, 0o600, written, |out| {
            out.write_all(text.as_bytes()).map_err(|error| Error::io("write", path, error))
        })
    }

    /// The last safety point of one of the disks that the selector passed over.
    fn passed_over(&self, point: PointId) -> Result<Option<PointId>> {
        let mut last = None;
        for disk in &self.disks {
            let id = DiskId { domain: self.domain.clone(), disk: disk.target.parse()? };
            last = last.max(self.catalog.passed_over(&id, &self.request.selector, point)?);
        }
        Ok(last)
    }

    /// Where the first file of a role is restored to.
    fn restored(&self, role: Role) -> Option<&Path> {
        self.files.iter().find(|(file, _)| file.role == role).map(|(_, path)| path.as_path())
    }

    /// Makes a file of what `fill` writes, durably and whole.
    fn write(
        &self,
        path: &Path,
        mode: u32,
        written: &mut Written,
        fill: impl FnOnce(&mut dyn Write) -> Result<()>,
    ) -> Result<()> {
        let failed = |error| Error::io("write", path, error);
        if let Some(folder) = path.parent() {
            written.make_folders(folder).map_err(failed)?;
        }
        let new = !path.exists();
        let target = Target::create(path, self.request.force, &[])?;
        fill(&mut target.store().file())?;
        let permissions = std::fs::Permissions::from_mode(mode & 0o777);
        target.store().file().set_permissions(permissions).map_err(failed)?;
        target.commit()?;
        if new {
            written.paths.push(path.to_path_buf());
        }
        Ok(())
    }
}

/// Whether two folders are on one filesystem; not where nobody can tell.
fn is_same_filesystem(one: &Path, other: &Path) -> bool {
    let of = |path: &Path| std::fs::metadata(path).map(|it| it.dev()).ok();
    of(one).is_some() && of(one) == of(other)
}

/// A path that two files would have, or that is a file's and leads to another.
fn taken_twice(mut paths: Vec<&Path>) -> Option<&Path> {
    // A path comes right before those that lead through it.
    paths.sort_unstable();
    let mut pairs = paths.iter().zip(paths.iter().skip(1));
    pairs.find(|(path, next)| next.starts_with(path)).map(|(path, _)| *path)
}

/// The XML that a machine's definition is made from.
fn definition_of(
    repository: &Repository,
    domain: &DomainName,
    machine: &MachineRecord,
    manifest: &Manifest,
) -> Result<String> {
    let xml = machine.file(Role::DomainXml).or(machine.file(Role::LiveXml)).ok_or_else(|| {
        let text = format!("point {} of {domain} has no definition", manifest.point);
        Error::new(ErrorKind::NotFound, text)
    })?;
    let damaged = |what: &str| {
        let path = repository.machine_file_path(domain, xml);
        Error::new(ErrorKind::Damaged, format!("{} {what}", path.display()))
    };
    if xml.length > XML_LEN_MAX {
        return Err(damaged("is longer than any definition"));
    }
    let text = repository.machine_file(domain, xml)?;
    String::from_utf8(text).map_err(|error| damaged("is no text").because(error))
}

/// Where a TPM's state was: where the definition says, or in libvirt's folder …/swtpm/UUID/VERSION.
fn tpm_root(before: &Domain, machine: &MachineRecord) -> PathBuf {
    let Some(file) = machine.file(Role::Tpm) else { return PathBuf::new() };
    let named = before.tpm.as_ref().and_then(|tpm| tpm.path.as_deref().map(absolute));
    if let Some(path) = named.filter(|path| file.path.starts_with(path)) {
        return path;
    }
    let uuid = machine.uuid.as_deref().map(OsStr::new);
    let is_of_uuid = |folder: &&Path| folder.parent().is_some_and(|it| it.file_name() == uuid);
    let root = file.path.ancestors().skip(1).find(is_of_uuid).or(file.path.parent());
    root.map(Path::to_path_buf).unwrap_or_default()
}

/// A path without what leads out of a folder that it is put into.
fn inside(path: &Path) -> PathBuf {
    let normal = |part| match part {
        Component::Normal(name) => Some(name),
        _ => None,
    };
    path.components().filter_map(normal).collect()
}

#[cfg(test)]
mod tests;
