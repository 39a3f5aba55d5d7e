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
    /// It is a user's own libvirt (`qemu:///session`), which has some folders in other places.
    pub session: bool,
}

/// Whether a connection of virsh's is to a user's own libvirt on this host.
pub fn is_session(uri: &str) -> bool {
    let uri = uri.split('?').next().unwrap_or_default();
    uri.split_once(":///").is_some_and(|(_, path)| path == "session")
}

impl Default for Libvirt {
    fn default() -> Self {
        Self {
            config: PathBuf::from("/etc/libvirt"),
            run: PathBuf::from("/run/libvirt"),
            state: PathBuf::from("/var/lib/libvirt"),
            session: false,
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
    /// A user's own libvirt: `config` is the user's folder for configuration, such as `~/.config`, `runtime` the one
    /// that lasts as long as the user is logged in, such as `/run/user/1000`.
    pub fn of_session(config: &Path, runtime: &Path) -> Self {
        let config = config.join("libvirt");
        Self { state: config.clone(), config, run: runtime.join("libvirt"), session: true }
    }

    /// What virsh calls the libvirt whose files these are.
    pub fn uri(&self) -> &'static str {
        if self.session { "qemu:///session" } else { "qemu:///system" }
    }

    /// The folder of the guests that run.
    fn running(&self) -> PathBuf {
        self.run.join(if self.session { "qemu/run" } else { "qemu" })
    }

    /// The folder of the pools that are active.
    pub(super) fn active_pools(&self) -> PathBuf {
        self.run.join(if self.session { "storage/run" } else { "storage" })
    }

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
        let live = read(&self.running().join(&file))?;
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
                    "virsh --connect {} list --all shows what there is; the files are looked for in {} and {}",
                    self.uri(),
                    self.config.join("qemu").display(),
                    self.running().display()
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
        for folder in [self.config.join("qemu"), self.running()] {
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
        let raw = qemu.join(format!("nvram/{name}_VARS.fd"));
        let qcow2 = qemu.join(format!("nvram/{name}_VARS.qcow2"));
        // One of an earlier firmware may lie beside the guest's own: what the definition says decides.
        let is_qcow2 = domain.nvram.as_ref().map(|nvram| nvram.format == "qcow2");
        let json = qemu.join(format!("varstore/{name}.json"));
        let chosen = match (firmware.is_varstore, is_qcow2) {
            (true, _) => vec![json],
            (false, Some(true)) => vec![qcow2, raw, json],
            (false, Some(false)) => vec![raw, qcow2, json],
            (false, None) => [newest_first([raw, qcow2]), vec![json]].concat(),
        };
        // What can't be looked at may be there, and reading it says why it can't be taken.
        let is_gone = |path: &PathBuf| {
            path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        };
        chosen.into_iter().find(|path| !is_gone(path)).into_iter().collect()
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
        let folder = if self.session { "qemu/swtpm" } else { "swtpm" };
        Some(self.state.join(folder).join(uuid).join(version))
    }
}

/// These files, the one that was written to last first.
fn newest_first(files: [PathBuf; 2]) -> Vec<PathBuf> {
    let written = |path: &Path| path.metadata().and_then(|data| data.modified()).ok();
    let [one, other] = files;
    if written(&other) > written(&one) { vec![other, one] } else { vec![one, other] }
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
