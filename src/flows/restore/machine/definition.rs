//! The definition of a restored machine: what is different in it, and what is left to do.

use std::path::{Path, PathBuf};

use super::memory::saved_xml;
use super::{MachineRequest, MachineRestore};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::printable::shell_word;
use crate::base::random;
use crate::guest::libvirt::{
    Changes, Device, Disk, Domain, Place, Resource, RestoredDisk, StorageSource, parse, resources,
    rewrite,
};
use crate::vault::repository::Role;

/// The definition that a machine is restored with.
pub(super) struct Definition {
    /// The XML.
    pub text: String,
    pub uuid: Option<String>,
    /// What the XML said before.
    before: Domain,
    /// What it says now.
    now: Domain,
    changes: Changes,
    /// What the XML named of the host before.
    resources: Vec<Resource>,
}

/// Where the firmware's variables are restored to, if in a file of their own.
struct Variables {
    nvram: Option<PathBuf>,
    varstore: Option<PathBuf>,
}

impl Variables {
    fn of(job: &MachineRestore<'_>, before: &Domain) -> Self {
        let (mut nvram, mut varstore) = (None, None);
        let firmware = &before.firmware;
        for (file, path) in job.files.iter().filter(|(file, _)| file.role == Role::Nvram) {
            let is_json = file.path.extension().is_some_and(|it| it == "json");
            // One that is the loader, too, is named where the loader was.
            if firmware.loader.as_ref() == Some(&file.path) {
                continue;
            }
            let place = if firmware.is_varstore || is_json { &mut varstore } else { &mut nvram };
            place.get_or_insert_with(|| path.clone());
        }
        // libvirt takes one of them.
        if nvram.is_some() && !firmware.is_varstore {
            varstore = None;
        }
        Self { nvram, varstore }
    }
}

/// Where the files that the XML names were, and where they are restored to.
fn restored_files(job: &MachineRestore<'_>) -> Vec<(PathBuf, PathBuf)> {
    let named = [Role::Nvram, Role::BootFile, Role::GuestState];
    let files = job.files.iter().filter(|(file, _)| named.contains(&file.role));
    files.map(|(file, path)| (file.path.clone(), path.clone())).collect()
}

/// Fails if the name or the folder can't stand in a definition.
pub(super) fn check_words(request: &MachineRequest) -> Result<()> {
    let usage = |what: String| Err(Error::new(ErrorKind::Usage, what));
    if let Some(name) = &request.rename {
        let unfit = |c: char| c == '/' || c.is_control();
        if name.is_empty() || name.trim() != name || name.contains(unfit) {
            return usage(format!("no domain can be called {name:?}"));
        }
    }
    match request.to.to_str() {
        Some(folder) if !folder.contains(char::is_control) => Ok(()),
        _ => usage(format!("{:?} can't stand in a domain's definition", request.to)),
    }
}

impl Definition {
    /// Makes it, and sees that it says what it should.
    ///
    /// # Errors
    /// `Usage` if a path or the name can't stand in it; `Image` if it makes no sense.
    pub fn new(job: &MachineRestore<'_>, text: &str, before: Domain) -> Result<Self> {
        let renamed = job.request.rename.is_some();
        let disks = job.disks.iter();
        let variables = Variables::of(job, &before);
        let mut changes = Changes {
            uuid: if renamed { Some(new_uuid()?) } else { job.machine.uuid.clone() },
            disks: disks
                .map(|disk| RestoredDisk {
                    target: disk.target.clone(),
                    path: disk.path.clone(),
                    block: disk.block,
                    format: disk.format.as_str(),
                    served: disk.served.clone(),
                })
                .collect(),
            nvram: place(variables.nvram.as_deref(), renamed && names_nvram(&before)),
            varstore: place(variables.varstore.as_deref(), renamed && before.firmware.is_varstore),
            files: restored_files(job),
            second: renamed,
            tpm: place(tpm_place(job).as_deref(), renamed),
            genid: Some(new_uuid()?),
            ..Changes::default()
        };
        if renamed {
            // Two guests that write to one disk destroy it.
            changes.dropped = shared_disks(job, &before);
            changes.name = Some(job.name.clone());
            changes.macs = Some(new_macs(text.matches("<interface").count())?);
        }
        let resources = resources(text)?;
        let text = rewrite(text, &changes)?;
        let now = parse(&text)?;
        let definition = Self { text, uuid: changes.uuid.clone(), before, now, changes, resources };
        definition.check(job)?;
        Ok(definition)
    }

    /// Fails if the definition does not say what it should: not every path can stand in XML.
    fn check(&self, job: &MachineRestore<'_>) -> Result<()> {
        let is_at = |source: &StorageSource, path: &Path| {
            let path = path.to_path_buf();
            [StorageSource::File(path.clone()), StorageSource::Block(path)].contains(source)
        };
        let disks = self.changes.disks.iter().all(|restored| {
            let mut disks = self.now.disks.iter().filter(|disk| disk.target == restored.target);
            disks.all(|disk| is_at(&disk.source, &restored.path))
        });
        let nvram = match (&self.changes.nvram, &self.now.nvram) {
            (Place::At(path), Some(nvram)) => is_at(&nvram.source, path),
            _ => true,
        };
        if disks && nvram && self.now.name == job.name {
            return Ok(());
        }
        let text =
            format!("{:?} in {} can't stand in a definition", job.name, job.folder.display());
        Err(Error::new(ErrorKind::Usage, text).advise("restore to another folder"))
    }

    /// The definition in the guest's memory, with the paths of the restored files.
    ///
    /// # Errors
    /// It makes no sense, or a path can't stand in it.
    pub fn of_saved(&self, text: &str) -> Result<String> {
        // It goes on, and does not begin anew: a new generation id would be another machine.
        let text = rewrite(text, &Changes { genid: None, ..self.changes.clone() })?;
        let now = parse(&text)?;
        for restored in &self.changes.disks {
            let path = restored.path.as_path();
            let is_there =
                |disk: &Disk| disk.target == restored.target && disk.source.path() == Some(path);
            if !now.disks.iter().any(is_there) {
                let text =
                    format!("it has no disk {} that could be {}", restored.target, path.display());
                return Err(Error::new(ErrorKind::Image, text));
            }
        }
        Ok(text)
    }

    /// What is left to do. `is_resumed`: the guest goes on with its memory.
    pub fn commands(&self, job: &MachineRestore<'_>, xml: &Path, is_resumed: bool) -> Vec<String> {
        let mut commands =
            job.service.as_ref().map_or_else(Vec::new, |service| service.install(job));
        if job.request.libvirt.managed_save(&job.name).is_some() {
            commands.push(format!("virsh managedsave-remove {}", shell_word(&job.name)));
        }
        // What the definition says the path of needs not be put anywhere.
        let own = self.before.tpm.as_ref().and_then(|tpm| tpm.path.as_ref());
        let restored = job.restored(Role::Tpm).filter(|_| own.is_none());
        // …/swtpm/UUID/VERSION
        let (version, swtpm) = (job.tpm_root.file_name(), job.tpm_root.ancestors().nth(2));
        if let (Some(_), Some(uuid), Some(version), Some(swtpm)) =
            (restored, &self.uuid, version, swtpm)
        {
            let own = shell_word(&swtpm.join(uuid).join(version).to_string_lossy());
            let from = shell_word(&job.folder.join("tpm").to_string_lossy());
            commands.push(format!("mkdir -p {own}"));
            commands.push(format!("cp -a {from}/. {own}"));
        }
        if let Some(pool) = &job.request.pool {
            // libvirt learns of the new volumes.
            let verb = if pool.is_active { "pool-refresh" } else { "pool-start" };
            commands.push(format!("virsh {verb} {}", shell_word(&pool.name)));
        }
        commands.push(format!("virsh define {}", shell_word(&xml.to_string_lossy())));
        if job.machine.autostart && job.request.rename.is_none() {
            commands.push(format!("virsh autostart {}", shell_word(&job.name)));
        }
        let resume = job.memory.as_ref().filter(|_| is_resumed).map(|memory| {
            let (memory, xml) = (&memory.path, saved_xml(&memory.path));
            let [memory, xml] = [memory, &xml].map(|path| shell_word(&path.to_string_lossy()));
            format!("virsh restore {memory} --xml {xml}")
        });
        commands.push(resume.unwrap_or_else(|| format!("virsh start {}", shell_word(&job.name))));
        commands
    }

    /// What the restored machine does not have, or shares with the one it was made from.
    pub fn warnings(&self, job: &MachineRestore<'_>) -> Vec<String> {
        let mut warnings = self.disk_warnings(job);
        warnings.extend(self.namesakes(job));
        let varstore = (&self.changes.varstore, &self.before.firmware.varstore);
        if self.changes.nvram == Place::New || matches!(varstore, (Place::New, Some(_))) {
            warnings.push(
                "the firmware's variables are not in the point: the new guest begins with fresh ones"
                    .to_owned(),
            );
        } else if let (Place::AsItWas, Some(nvram)) = (&self.changes.nvram, &self.now.nvram)
            && nvram.source != StorageSource::Nothing
        {
            warnings.push(format!(
                "the firmware's variables are not in the point: the definition still names {}",
                nvram.source
            ));
        }
        if let Some(tpm) = self.before.tpm.as_ref().filter(|_| job.restored(Role::Tpm).is_none()) {
            warnings.push(match (&tpm.path, job.request.rename.is_some()) {
                (_, true) => "the TPM's state is not in the point: the new guest begins with an \
                              empty one"
                    .to_owned(),
                (Some(path), false) => format!(
                    "the TPM's state is not in the point: the definition still names {}",
                    path.display()
                ),
                (None, false) => {
                    "the TPM's state is not in the point: the guest gets the one that \
                                  this host has for it, or an empty one"
                        .to_owned()
                }
            });
        }
        if let Some(saved) = job.request.libvirt.managed_save(&job.name) {
            warnings.push(format!(
                "{} holds the memory of {}, which a start would resume over the restored disks: it has \
                 to go first",
                saved.display(),
                job.name
            ));
        }
        if job.request.with_memory && job.machine.memory.is_none() {
            warnings.push("the guest's memory is not in the point".to_owned());
        }
        if let (Place::AsItWas, Some(path)) = varstore {
            warnings.push(format!(
                "the firmware's variables are not in the point: the definition still names {}",
                path.display()
            ));
        }
        if job.request.rename.is_some() {
            warnings.extend(self.taken_from_second(job));
        }
        warnings.extend(job.machine.missing.iter().map(|it| format!("not in the point: {it}")));
        warnings
    }

    /// What a second guest does not have, since the first one has it.
    fn taken_from_second(&self, job: &MachineRestore<'_>) -> Vec<String> {
        let is_restored = |path: &PathBuf| self.changes.files.iter().any(|(old, _)| old == path);
        let gone = self.resources.iter().filter(|it| it.shared);
        let gone = gone.filter(|it| !it.path.as_ref().is_some_and(is_restored));
        let first = &self.before.name;
        let mut gone: Vec<String> = gone
            .map(|it| format!("{} is {first}'s: it is not in the new definition", it.what))
            .collect();
        gone.dedup();
        if job.machine.autostart {
            gone.push(format!(
                "{first} is started with the host, the new guest is not: virsh autostart {}",
                shell_word(&job.name)
            ));
        }
        gone
    }

    /// Guests of this host that stand in the way of `virsh define`: it takes no second guest of a name
    /// or of a UUID, and takes a guest that has both for the same one.
    fn namesakes(&self, job: &MachineRestore<'_>) -> Vec<String> {
        let libvirt = &job.request.libvirt;
        let mut warnings = Vec::new();
        for name in libvirt.list().map(|listing| listing.names).unwrap_or_default() {
            // What can't be read is in nobody's way: libvirt would not have it either.
            let Ok(found) = libvirt.find(&name) else { continue };
            let same_name = found.domain.name == job.name;
            let same_uuid = self.uuid.is_some() && found.domain.uuid == self.uuid;
            let other = shell_word(&found.domain.name);
            let way_out =
                "restore with --rename NEW for a guest beside it, or give the other one up";
            match (same_name, same_uuid) {
                (true, true) if found.live.is_some() => warnings.push(format!(
                    "{} runs here: shut it down first (virsh shutdown {other}). virsh define then \
                     gives it the restored disks in the place of its own; with --rename NEW the \
                     restored guest would live beside it",
                    job.name
                )),
                (true, true) => warnings.push(format!(
                    "{} is defined here: virsh define gives it the restored disks in the place of its \
                     own; with --rename NEW the restored guest would live beside it",
                    job.name
                )),
                (true, false) => warnings.push(format!(
                    "another guest is called {} here (UUID {}), and virsh define will fail: {way_out} \
                     (virsh undefine {other})",
                    job.name,
                    found.domain.uuid.as_deref().unwrap_or("unknown")
                )),
                (false, true) => warnings.push(format!(
                    "the guest with this UUID is called {} here, and virsh define will fail: {way_out} \
                     (virsh undefine {other})",
                    found.domain.name
                )),
                (false, false) => {}
            }
        }
        warnings
    }

    fn disk_warnings(&self, job: &MachineRestore<'_>) -> Vec<String> {
        let mut warnings = Vec::new();
        let why = |target: &str| {
            let left_out = job.machine.left_out.iter().find(|it| it.disk == target);
            left_out.map_or("only the definition has it", |it| it.reason.as_str())
        };
        for target in &self.changes.dropped {
            let why = why(target);
            warnings.push(format!(
                "disk {target} is not in the point ({why}): it is not in the new definition either"
            ));
        }
        for disk in self.now.disks.iter().filter(|disk| disk.source != StorageSource::Nothing) {
            if job.disks.iter().all(|restored| restored.target != disk.target) {
                warnings.push(format!(
                    "disk {} is not in the point ({}): the definition still names {}",
                    disk.target,
                    why(&disk.target),
                    disk.source
                ));
            }
        }
        for restored in &job.disks {
            if self.now.disks.iter().all(|disk| disk.target != restored.target) {
                warnings.push(format!(
                    "disk {} is restored to {}, and the definition has no such disk",
                    restored.target,
                    restored.path.display()
                ));
            }
        }
        warnings
    }
}

/// What becomes of state beside the disks; `shared` says that the guest it is of keeps it.
fn place(restored: Option<&Path>, shared: bool) -> Place {
    match restored {
        Some(path) => Place::At(path.to_path_buf()),
        None if shared => Place::New,
        None => Place::AsItWas,
    }
}

fn names_nvram(domain: &Domain) -> bool {
    domain.nvram.as_ref().is_some_and(|nvram| nvram.source != StorageSource::Nothing)
}

/// The restored state of a TPM: a folder, or a file if it was one.
fn tpm_place(job: &MachineRestore<'_>) -> Option<PathBuf> {
    let restored = job.restored(Role::Tpm)?;
    let was_file = job.machine.file(Role::Tpm).is_some_and(|file| file.path == job.tpm_root);
    Some(if was_file { restored.to_path_buf() } else { job.folder.join("tpm") })
}

/// The targets of disks that the guest can write to and that are not in the point: a second guest
/// must not have them.
fn shared_disks(job: &MachineRestore<'_>, before: &Domain) -> Vec<String> {
    let restored = |target: &String| job.disks.iter().any(|disk| disk.target == *target);
    let disks = before.disks.iter().filter(|disk| {
        matches!(disk.device, Device::Disk | Device::Lun)
            && !disk.readonly
            && disk.source != StorageSource::Nothing
    });
    disks.map(|disk| disk.target.clone()).filter(|target| !restored(target)).collect()
}

/// A UUID of version 4.
fn new_uuid() -> Result<String> {
    let mut bytes: [u8; 16] = random::bytes()?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
    Ok(parts.join("-"))
}

/// MAC addresses of the range that QEMU's guests have.
fn new_macs(count: usize) -> Result<Vec<String>> {
    let mac = |_| {
        let bytes: [u8; 3] = random::bytes()?;
        Ok(format!("52:54:00:{:02x}:{:02x}:{:02x}", bytes[0], bytes[1], bytes[2]))
    };
    (0..count.min(1000)).map(mac).collect()
}
