//! Where libvirt keeps its files, and reading them.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use super::limits::XML_LEN_MAX;
use super::{Disk, Domain, State, StorageSource, Tpm, parse};
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::io::{Opener, not_opened};

/// libvirt's folders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Libvirt {
    /// The folder of its configuration: `/etc/libvirt`.
    pub config: PathBuf,
    /// The folder for the state of running guests: `/run/libvirt`.
    pub run: PathBuf,
    /// The folder for lasting state: `/var/lib/libvirt`.
    pub state: PathBuf,
}

impl Default for Libvirt {
    fn default() -> Self {
        Self {
            config: PathBuf::from("/etc/libvirt"),
            run: PathBuf::from("/run/libvirt"),
            state: PathBuf::from("/var/lib/libvirt"),
        }
    }
}

/// One of libvirt's files, as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XmlFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
}

/// A domain and the files that describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The domain as it is now: the running domain, or the defined one if the guest doesn't run.
    pub domain: Domain,
    /// The disks of the next start, if the guest runs now and is defined.
    pub next_disks: Vec<Disk>,
    /// The file that defines it; none for a transient domain.
    pub persistent: Option<XmlFile>,
    /// The file of the running domain; none if it doesn't run.
    pub live: Option<XmlFile>,
}

/// The domains of a host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listing {
    /// The names of their files, sorted.
    pub names: Vec<String>,
}

/// The accounts that libvirt runs QEMU with, unless its configuration says another: Debian's and Fedora's.
const QEMU_ACCOUNTS: [&str; 2] = ["libvirt-qemu", "qemu"];

impl Libvirt {
    /// The account that libvirt runs QEMU with, if this host has one.
    pub fn qemu_user(&self) -> Option<String> {
        let text_of = |path: &Path| Opener::READ.read_text(path, XML_LEN_MAX).unwrap_or_default();
        let config = text_of(&self.config.join("qemu.conf"));
        let mut said = config.lines().filter_map(|line| {
            let value = line.trim().strip_prefix("user")?.trim_start().strip_prefix('=')?;
            value.trim().strip_prefix('"')?.split('"').next()
        });
        if let Some(user) = said.next_back() {
            return Some(user.trim_start_matches('+').to_owned());
        }
        let accounts = text_of(Path::new("/etc/passwd"));
        let is_there =
            |user: &&str| accounts.lines().any(|line| line.split(':').next() == Some(*user));
        QEMU_ACCOUNTS.iter().copied().find(is_there).map(str::to_owned)
    }

    /// Finds a domain by its name.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if libvirt has no file of it; [`ErrorKind::Image`] if a file makes no
    /// sense; [`ErrorKind::Usage`] if no file can have the name.
    pub fn find(&self, name: &str) -> Result<Found> {
        if name.is_empty() || name.contains(['/', '\0']) {
            return Err(Error::new(ErrorKind::Usage, format!("no domain is called {name:?}")));
        }
        let file = format!("{name}.xml");
        let persistent = read(&self.config.join("qemu").join(&file))?;
        let live = read(&self.run.join("qemu").join(&file))?;
        let defined = persistent.as_ref().map(|file| self.parsed(file, name)).transpose()?;
        let running = live.as_ref().map(|file| self.parsed(file, name)).transpose()?;
        // A domain that has just ended may have left its file for a moment.
        let running = running.filter(|domain| domain.state != Some(State::Off));
        let live = live.filter(|_| running.is_some());
        let next_disks = match (&running, &defined) {
            (Some(_), Some(defined)) => defined.disks.clone(),
            _ => Vec::new(),
        };
        let domain = running.or(defined).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("libvirt has no domain {name:?}")).advise(
                format!(
                    "virsh list --all shows what there is; the files are looked for in {} and {}",
                    self.config.join("qemu").display(),
                    self.run.join("qemu").display()
                ),
            )
        })?;
        Ok(Found { domain, next_disks, persistent, live })
    }

    /// Parses a file, and checks that it describes the domain in its name.
    fn parsed(&self, file: &XmlFile, name: &str) -> Result<Domain> {
        let within = |error: Error| error.within(file.path.display().to_string());
        let mut domain = parse::parse(&file.text).map_err(within)?;
        if domain.name != name {
            let text = format!("the file describes another guest, {:?}", domain.name);
            return Err(within(super::malformed(text)).advise(
                "libvirt calls the file after the guest: virsh define makes it anew, and virsh undefine ends the other one",
            ));
        }
        self.resolve_volumes(&mut domain);
        Ok(domain)
    }

    /// The names of all domains, defined or running.
    ///
    /// # Errors
    /// A folder can't be read. One that is missing holds nothing.
    pub fn list(&self) -> Result<Listing> {
        let mut names = BTreeSet::new();
        for folder in [self.config.join("qemu"), self.run.join("qemu")] {
            let failed = |error| Error::io("list", &folder, error);
            let entries = match std::fs::read_dir(&folder) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(error)),
            };
            for entry in entries {
                let name = entry.map_err(failed)?.file_name();
                // Names in XML are text; a file whose name is no text is no domain's file.
                let name = name.to_str().and_then(|name| name.strip_suffix(".xml"));
                names.extend(name.filter(|name| !name.is_empty()).map(str::to_owned));
            }
        }
        Ok(Listing { names: names.into_iter().collect() })
    }

    /// The saved memory of a guest that `virsh managedsave` has stopped, if there is one: the next
    /// start resumes it, whatever the disks hold by then.
    pub fn managed_save(&self, name: &str) -> Option<PathBuf> {
        let path = self.state.join("qemu/save").join(format!("{name}.save"));
        // A file that can't be looked at may exist.
        let is_gone = |error: io::Error| error.kind() == io::ErrorKind::NotFound;
        let gone = name.contains('/') || path.symlink_metadata().is_err_and(is_gone);
        (!gone).then_some(path)
    }

    /// The files of the firmware's variables that exist or that the definition names: a file that
    /// libvirt chooses may stand in no definition.
    pub fn variables(&self, domain: &Domain) -> Vec<PathBuf> {
        let nvram = match domain.nvram.as_ref().map(|nvram| &nvram.source) {
            Some(StorageSource::File(path)) => Some(path.clone()),
            Some(StorageSource::Nothing) | None => None,
            // A device or a server: no file.
            Some(_) => return domain.firmware.loader.iter().cloned().collect(),
        };
        let firmware = &domain.firmware;
        let named = [&nvram, &firmware.varstore, &firmware.loader];
        let named: Vec<PathBuf> = named.into_iter().flatten().cloned().collect();
        if !named.is_empty() || !firmware.has_variables || domain.name.contains('/') {
            return named;
        }
        let (name, qemu) = (&domain.name, self.state.join("qemu"));
        let chosen = [
            qemu.join(format!("nvram/{name}_VARS.fd")),
            qemu.join(format!("nvram/{name}_VARS.qcow2")),
            qemu.join(format!("varstore/{name}.json")),
        ];
        // What can't be looked at may be there, and reading it says why it can't be taken.
        let is_gone = |path: &PathBuf| {
            path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        };
        chosen.into_iter().filter(|path| !is_gone(path)).collect()
    }

    /// Whether the guest is started with the host.
    pub fn starts_with_host(&self, name: &str) -> bool {
        !name.contains('/')
            && self.config.join(format!("qemu/autostart/{name}.xml")).symlink_metadata().is_ok()
    }

    /// The names of what libvirt has noted of a guest besides its definition: of `snapshot`s or of
    /// `checkpoint`s.
    pub fn notes(&self, kind: &str, name: &str) -> Vec<String> {
        let folder = self.state.join("qemu").join(kind).join(name);
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".xml").map(str::to_owned))
            .collect();
        names.sort_unstable();
        names
    }

    /// The folder of a TPM's state, or its only file.
    pub fn tpm_place(&self, domain: &Domain, tpm: &Tpm) -> Option<PathBuf> {
        if let Some(path) = &tpm.path {
            return Some(path.clone());
        }
        let version = if tpm.version == "1.2" { "tpm1.2" } else { "tpm2" };
        let uuid = domain.uuid.as_ref().filter(|uuid| !uuid.contains(['/', '.']))?;
        Some(self.state.join("swtpm").join(uuid).join(version))
    }
}

/// Reads a file of libvirt's, if it is there.
pub(super) fn read(path: &Path) -> Result<Option<XmlFile>> {
    match Opener::READ.read_text(path, XML_LEN_MAX) {
        Ok(text) => Ok(Some(XmlFile { path: path.to_path_buf(), text })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(Error::new(ErrorKind::Image, path.display().to_string()).because(error))
        }
        Err(error) => Err(not_opened(path, error, ErrorKind::Image)),
    }
}
