//! The flow that brings a whole machine back: its disks, its firmware's variables, and a definition
//! that libvirt takes.
//!
//! All that can be known to be wrong is found before anything is written. The definition comes last:
//! where it is, everything is.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

use super::{Destination, Report, Request, nonzero_blocks, rebuild};
use crate::backup::{check_indexes, open_chain};
use crate::chain::Chain;
use crate::domain::{Changes, Device, Domain, Source, parse, rewrite};
use crate::error::{Error, ErrorKind, Result};
use crate::io::Store;
use crate::output::{Format, Plan, Target};
use crate::pipeline::Resources;
use crate::progress::{Cancel, Progress};
use crate::repository::{
    DiskId, DomainName, MachineFile, MachineRecord, Manifest, Repository, Role, Selector,
};
use crate::sys::image_lock;

/// Which machine to restore, and how.
#[derive(Debug, Clone)]
pub struct MachineRequest {
    /// The domain: as libvirt has it, or as the repository does.
    pub domain: String,
    /// The point.
    pub selector: Selector,
    /// The folder for all its files, which is made if it is missing.
    pub to: PathBuf,
    /// A new name; the machine gets a new UUID and new MAC addresses then, so that it can live
    /// beside the one it was made from.
    pub rename: Option<String>,
    /// The format of the disks; unless told, that of the images that were backed up.
    pub format: Option<Format>,
    /// Replace files that exist.
    pub force: bool,
    /// Threads and I/O.
    pub resources: Resources,
}

/// What the restore of a machine did.
#[derive(Debug, Clone, Serialize)]
pub struct MachineReport {
    /// The domain's name now.
    pub domain: String,
    /// Its UUID now.
    pub uuid: Option<String>,
    /// The recovery point.
    pub point: String,
    /// In what state the guest was.
    pub consistency: &'static str,
    /// Its disks.
    pub disks: Vec<Report>,
    /// The definition.
    #[serde(serialize_with = "crate::json::serialize")]
    pub xml: PathBuf,
    /// The firmware's variables.
    #[serde(serialize_with = "crate::json::optional::serialize")]
    pub nvram: Option<PathBuf>,
    /// What is left to do, as commands for a shell.
    pub commands: Vec<String>,
    /// What the admin should know.
    pub warnings: Vec<String>,
    /// How long it took.
    pub seconds: f64,
}

/// A disk that is about to be restored.
struct Disk {
    target: String,
    chain: Chain,
    format: Format,
    path: PathBuf,
}

/// All that is about to be restored.
struct Job<'a> {
    repository: &'a Repository,
    request: &'a MachineRequest,
    domain: DomainName,
    machine: MachineRecord,
    /// The name of the restored machine.
    name: String,
    uuid: Option<String>,
    definition: String,
    folder: PathBuf,
    disks: Vec<Disk>,
    /// Small files: what they hold, where they go, and with which mode.
    files: Vec<(MachineFile, PathBuf)>,
}

/// Restores a machine.
///
/// # Errors
/// `Exists`, `Busy` and `NoSpace` come before anything is written. What is written is removed if
/// something fails later, unless it took the place of something else.
pub fn run_machine(
    repository: &Repository,
    request: &MachineRequest,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<MachineReport> {
    let started = Instant::now();
    let (domain, manifest) = find(repository, request)?;
    let machine = manifest.machine.clone().ok_or_else(|| {
        let text = format!("point {} of {domain} holds disks alone", manifest.point);
        Error::new(ErrorKind::NotFound, text)
            .because("it was made of images, not of a libvirt domain")
            .advise(format!("restore its disks: qdelta restore {domain}/DISK OUTPUT"))
    })?;
    let made = make_folder(&request.to)?;
    let prepared = Job::prepare(repository, request, domain, machine, &manifest);
    let result = prepared.and_then(|job| {
        job.check()?;
        let mut written = Written::default();
        let report = job.run(&manifest, &mut written, progress, cancel)?;
        written.done = true;
        Ok(report)
    });
    match result {
        Ok(mut report) => {
            report.seconds = started.elapsed().as_secs_f64();
            Ok(report)
        }
        Err(error) => {
            if made {
                // Only if nothing is in it.
                let _ = std::fs::remove_dir(&request.to);
            }
            Err(error)
        }
    }
}

/// The domain that is meant, and the manifest of the point.
fn find(repository: &Repository, request: &MachineRequest) -> Result<(DomainName, Manifest)> {
    let domain = repository.find_domain(&request.domain)?;
    let manifest = repository.resolve_domain(&domain, &request.selector)?;
    Ok((domain, manifest))
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

/// Files that were made, to be removed unless all is well.
#[derive(Default)]
struct Written {
    paths: Vec<PathBuf>,
    done: bool,
}

impl Drop for Written {
    fn drop(&mut self) {
        if !self.done {
            for path in &self.paths {
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

impl<'a> Job<'a> {
    fn prepare(
        repository: &'a Repository,
        request: &'a MachineRequest,
        domain: DomainName,
        machine: MachineRecord,
        manifest: &Manifest,
    ) -> Result<Self> {
        let xml =
            machine.file(Role::DomainXml).or(machine.file(Role::LiveXml)).ok_or_else(|| {
                let text = format!("point {} of {domain} has no definition", manifest.point);
                Error::new(ErrorKind::NotFound, text)
            })?;
        let definition = repository.machine_file(&domain, xml)?;
        let definition = String::from_utf8(definition).map_err(|error| {
            let path = repository.machine_file_path(&domain, xml);
            Error::new(ErrorKind::Damaged, format!("{} is no text", path.display())).because(error)
        })?;
        let folder = std::path::absolute(&request.to)
            .map_err(|error| Error::io("find", &request.to, error))?;
        let name = request.rename.clone().unwrap_or_else(|| machine.name.clone());
        let uuid = match &request.rename {
            Some(_) => Some(new_uuid()?),
            None => machine.uuid.clone(),
        };
        let mut job = Self {
            repository,
            request,
            domain,
            name,
            uuid,
            definition,
            folder,
            disks: Vec::new(),
            files: Vec::new(),
            machine,
        };
        job.add_disks(manifest)?;
        job.add_files();
        Ok(job)
    }

    /// The beginning of the names of all files.
    fn stem(&self) -> String {
        let fitting =
            |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
        let stem: String = self.name.chars().map(fitting).take(100).collect();
        stem.trim_start_matches(['.', '-']).to_owned()
    }

    fn add_disks(&mut self, manifest: &Manifest) -> Result<()> {
        for record in &manifest.disks {
            let id = DiskId { domain: self.domain.clone(), disk: record.disk.clone() };
            let point = self.repository.resolve(&id, &Selector::Id(manifest.point.to_string()))?;
            let chain = check_indexes(open_chain(self.repository, &point)?)?;
            let as_before =
                if record.image.format == "qcow2" { Format::Qcow2 } else { Format::Raw };
            let format = self.request.format.unwrap_or(as_before);
            let target = record.disk.to_string();
            let path = self.folder.join(format!("{}-{target}.{format}", self.stem()));
            self.disks.push(Disk { target, chain, format, path });
        }
        Ok(())
    }

    fn add_files(&mut self) {
        let stem = self.stem();
        for file in &self.machine.files {
            let last = file.path.file_name().map(PathBuf::from).unwrap_or_default();
            let path = match file.role {
                Role::DomainXml | Role::LiveXml => continue,
                Role::Nvram => PathBuf::from(format!("{stem}_VARS.fd")),
                Role::Tpm => Path::new("tpm").join(last),
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
        let disks = self.disks.iter().map(|disk| disk.path.as_path());
        let files = self.files.iter().map(|(_, path)| path.as_path());
        for path in disks.chain(files).chain([xml.as_path()]) {
            self.check_target(path)?;
        }
        for (file, _) in &self.files {
            // What is damaged is found now, and not when half of it is there.
            self.repository.machine_file(&self.domain, file)?;
        }
        self.check_space()
    }

    fn check_target(&self, path: &Path) -> Result<()> {
        let Ok(file) = std::fs::File::open(path) else { return Ok(()) };
        if let Ok(Some(_)) = image_lock::probe(&file) {
            let text = format!("{} is in use by another program", path.display());
            return Err(Error::new(ErrorKind::Busy, text)
                .advise("stop the guest that uses it, or restore to another folder"));
        }
        if !self.request.force {
            let text = format!("{} exists already", path.display());
            return Err(Error::new(ErrorKind::Exists, text)
                .advise("restore to another folder, or give --force to replace it"));
        }
        Ok(())
    }

    /// Fails if the folder's filesystem has no room for all of it.
    fn check_space(&self) -> Result<()> {
        let mut needed: u64 = self.files.iter().map(|(file, _)| file.length).sum();
        for disk in &self.disks {
            let plan = Plan::new(disk.chain.geometry(), nonzero_blocks(&disk.chain))?;
            needed = needed.saturating_add(plan.data_bytes());
        }
        let Ok(space) = rustix::fs::statvfs(&self.folder) else { return Ok(()) };
        let root = rustix::process::geteuid().is_root();
        let blocks = if root { space.f_bfree } else { space.f_bavail };
        let free = blocks.saturating_mul(space.f_frsize);
        if space.f_blocks == 0 || free >= needed {
            return Ok(());
        }
        let text = format!(
            "{} needs {} and the filesystem of {} has {} free",
            self.name,
            bytesize::ByteSize(needed),
            self.folder.display(),
            bytesize::ByteSize(free)
        );
        Err(Error::new(ErrorKind::NoSpace, text))
    }

    fn run(
        self,
        manifest: &Manifest,
        written: &mut Written,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<MachineReport> {
        let mut reports = Vec::new();
        let mut changes = Changes { uuid: self.uuid.clone(), ..Changes::default() };
        for disk in &self.disks {
            let request = Request {
                destination: Destination::Path(disk.path.clone()),
                format: disk.format,
                force: self.request.force,
                salvage: false,
                resources: self.request.resources,
            };
            let new = !disk.path.exists();
            let report = rebuild(&disk.chain, Vec::new(), request, progress, cancel)
                .map_err(|error| error.within(format!("cannot restore disk {}", disk.target)))?;
            if new {
                written.paths.push(disk.path.clone());
            }
            reports.push(report);
            changes.disks.push((disk.target.clone(), disk.path.clone(), disk.format.as_str()));
        }
        let mut nvram = None;
        for (file, path) in &self.files {
            cancel.check()?;
            let content = self.repository.machine_file(&self.domain, file)?;
            self.write(path, &content, file.mode, written)?;
            if file.role == Role::Nvram {
                nvram = Some(path.clone());
            }
        }
        changes.nvram.clone_from(&nvram);
        changes.genid = Some(new_uuid()?);
        if self.request.rename.is_some() {
            // Two guests that write to one disk destroy it.
            changes.dropped = self.shared_disks()?;
            changes.name = Some(self.name.clone());
            changes.macs = Some(new_macs(self.definition.matches("<interface").count())?);
        }
        let xml = self.xml_path();
        let definition = rewrite(&self.definition, &changes)?;
        let domain = parse(&definition)?;
        self.write(&xml, definition.as_bytes(), 0o600, written)?;
        Ok(MachineReport {
            domain: self.name.clone(),
            uuid: self.uuid.clone(),
            point: manifest.point.to_string(),
            consistency: manifest.consistency.as_str(),
            disks: reports,
            commands: self.commands(&xml),
            warnings: self.warnings(&domain, &changes.dropped),
            xml,
            nvram,
            seconds: 0.0,
        })
    }

    /// Writes a small file, durably and whole.
    fn write(&self, path: &Path, content: &[u8], mode: u32, written: &mut Written) -> Result<()> {
        let failed = |error| Error::io("write", path, error);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        let new = !path.exists();
        let target = Target::create(path, self.request.force, &[])?;
        target.store().write_all_at(content, 0).map_err(failed)?;
        let permissions = std::fs::Permissions::from_mode(mode & 0o777);
        target.store().file().set_permissions(permissions).map_err(failed)?;
        target.commit()?;
        if new {
            written.paths.push(path.to_path_buf());
        }
        Ok(())
    }

    /// What is left to do.
    fn commands(&self, xml: &Path) -> Vec<String> {
        let mut commands = Vec::new();
        let tpm = self.files.iter().find(|(file, _)| file.role == Role::Tpm);
        if let (Some((file, path)), Some(uuid)) = (tpm, &self.uuid) {
            // …/swtpm/UUID/tpm2/FILE
            let mut parts = file.path.ancestors().skip(1);
            let (version, root) = (parts.next(), parts.nth(1));
            if let (Some(version), Some(root)) = (version.and_then(Path::file_name), root) {
                let own = root.join(uuid).join(version);
                let from = path.parent().unwrap_or(path);
                commands.push(format!("mkdir -p {}", quoted(&own.to_string_lossy())));
                commands.push(format!(
                    "cp -a {}/. {}",
                    quoted(&from.to_string_lossy()),
                    quoted(&own.to_string_lossy())
                ));
            }
        }
        commands.push(format!("virsh define {}", quoted(&xml.to_string_lossy())));
        commands.push(format!("virsh start {}", quoted(&self.name)));
        commands
    }

    /// The targets of disks that the guest can write to and that are not in the point: a second
    /// guest must not have them.
    fn shared_disks(&self) -> Result<Vec<String>> {
        let domain = parse(&self.definition)?;
        let restored = |target: &String| self.disks.iter().any(|disk| disk.target == *target);
        let disks = domain.disks.into_iter().filter(|disk| {
            matches!(disk.device, Device::Disk | Device::Lun)
                && !disk.readonly
                && disk.source != Source::Nothing
        });
        Ok(disks.map(|disk| disk.target).filter(|target| !restored(target)).collect())
    }

    /// What the restored machine does not have, or shares with the one it was made from.
    fn warnings(&self, domain: &Domain, dropped: &[String]) -> Vec<String> {
        let mut warnings: Vec<String> = Vec::new();
        let why = |target: &str| {
            let left_out = self.machine.left_out.iter().find(|it| it.disk == target);
            left_out.map_or("only the definition has it", |it| it.reason.as_str())
        };
        for target in dropped {
            let why = why(target);
            warnings.push(format!(
                "disk {target} is not in the point ({why}): it is not in the new definition either"
            ));
        }
        for disk in domain.disks.iter().filter(|disk| disk.source != Source::Nothing) {
            if self.disks.iter().all(|restored| restored.target != disk.target) {
                warnings.push(format!(
                    "disk {} is not in the point ({}): the definition still names {}",
                    disk.target,
                    why(&disk.target),
                    named(&disk.source)
                ));
            }
        }
        for restored in &self.disks {
            if domain.disks.iter().all(|disk| disk.target != restored.target) {
                warnings.push(format!(
                    "disk {} is restored to {}, and the definition has no such disk",
                    restored.target,
                    restored.path.display()
                ));
            }
        }
        warnings.extend(self.machine.missing.iter().map(|it| format!("not in the point: {it}")));
        warnings
    }
}

/// A source in words.
fn named(source: &Source) -> String {
    match source {
        Source::File(path) | Source::Block(path) => path.display().to_string(),
        Source::Network(protocol) => format!("its source on a server ({protocol})"),
        Source::Volume { pool, volume } => format!("volume {volume} of pool {pool}"),
        Source::Other(kind) => format!("its source ({kind})"),
        Source::Nothing => "nothing".to_owned(),
    }
}

/// A path that was absolute, as one inside a folder: nothing of it leads out.
fn inside(path: &Path) -> PathBuf {
    path.components()
        .filter_map(|part| match part {
            std::path::Component::Normal(name) => Some(name),
            _ => None,
        })
        .collect()
}

/// A word for a shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:,@%".contains(c);
    if !word.is_empty() && !word.starts_with('-') && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| {
        Error::new(ErrorKind::Io, "cannot get random numbers").because(error.to_string())
    })?;
    Ok(bytes)
}

/// A UUID of version 4.
fn new_uuid() -> Result<String> {
    let mut bytes: [u8; 16] = random()?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
    Ok(parts.join("-"))
}

/// MAC addresses of the range that QEMU's guests have.
fn new_macs(count: usize) -> Result<Vec<String>> {
    let mac = |_| {
        let bytes: [u8; 3] = random()?;
        Ok(format!("52:54:00:{:02x}:{:02x}:{:02x}", bytes[0], bytes[1], bytes[2]))
    };
    (0..count.min(1000)).map(mac).collect()
}
