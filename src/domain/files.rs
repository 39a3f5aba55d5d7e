//! Where libvirt keeps its files, and reading them.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use super::{Domain, State, Tpm, parse};
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Opener, not_opened};

/// The longest XML that is read, in bytes. libvirt itself takes no more over its own protocol.
pub const XML_LEN_MAX: u64 = 4 << 20;

/// libvirt's folders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Libvirt {
    /// The folder of its configuration: `/etc/libvirt`.
    pub config: PathBuf,
    /// The folder of what runs: `/run/libvirt`.
    pub run: PathBuf,
    /// The folder of its state: `/var/lib/libvirt`.
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
    /// The domain as it is now: as it runs if it does, as it is defined otherwise.
    pub domain: Domain,
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

impl Libvirt {
    /// Finds a domain by its name.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if libvirt has no file of it; [`ErrorKind::Image`] if a file makes no
    /// sense; [`ErrorKind::Usage`] if no file can have the name.
    pub fn find(&self, name: &str) -> Result<Found> {
        if name.is_empty() || name.contains(['/', '\0']) || name.starts_with('.') {
            return Err(Error::new(ErrorKind::Usage, format!("no domain is called {name:?}")));
        }
        let file = format!("{name}.xml");
        let persistent = read(&self.config.join("qemu").join(&file))?;
        let live = read(&self.run.join("qemu").join(&file))?;
        let defined = persistent.as_ref().map(|file| parsed(file, name)).transpose()?;
        let running = live.as_ref().map(|file| parsed(file, name)).transpose()?;
        // A domain that is over may have left its file behind for a moment.
        let running = running.filter(|domain| domain.state != Some(State::Off));
        let live = live.filter(|_| running.is_some());
        let domain = running.or(defined).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("libvirt has no domain {name:?}")).advise(
                format!(
                    "virsh list --all shows what there is; the files are looked for in {} and {}",
                    self.config.join("qemu").display(),
                    self.run.join("qemu").display()
                ),
            )
        })?;
        Ok(Found { domain, persistent, live })
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
                // Names are text in XML; what is none is no domain's file.
                let name = name.to_str().and_then(|name| name.strip_suffix(".xml"));
                names.extend(name.filter(|name| !name.starts_with('.')).map(str::to_owned));
            }
        }
        Ok(Listing { names: names.into_iter().collect() })
    }

    /// The memory of a guest that `virsh managedsave` has stopped, if there is some: the next start
    /// resumes it, whatever its disks hold by then.
    pub fn managed_save(&self, name: &str) -> Option<PathBuf> {
        let path = self.state.join("qemu/save").join(format!("{name}.save"));
        // What can't be looked at may be there.
        let is_gone = |error: io::Error| error.kind() == io::ErrorKind::NotFound;
        let gone = name.contains('/') || path.symlink_metadata().is_err_and(is_gone);
        (!gone).then_some(path)
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

/// Parses a file, and sees that it is the domain that it is called after.
fn parsed(file: &XmlFile, name: &str) -> Result<Domain> {
    let within = |error: Error| error.within(file.path.display().to_string());
    let domain = parse::parse(&file.text).map_err(within)?;
    if domain.name != name {
        return Err(within(super::malformed(format!("describes {:?}", domain.name))));
    }
    Ok(domain)
}

/// Reads a file of libvirt's, if it is there.
fn read(path: &Path) -> Result<Option<XmlFile>> {
    match Opener::READ.read_text(path, XML_LEN_MAX) {
        Ok(text) => Ok(Some(XmlFile { path: path.to_path_buf(), text })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(Error::new(ErrorKind::Image, path.display().to_string()).because(error))
        }
        Err(error) => Err(not_opened(path, error, ErrorKind::Image)),
    }
}
