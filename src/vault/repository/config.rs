//! `qdelta.toml`: what makes a folder a repository, and how it comes back when it is lost.
//!
//! It holds nothing that a restore needs. So without it, or when it is damaged, everything can still be
//! read; only writing is refused, until it was made anew with the id that the manifests know.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::catalog::DomainReading;
use super::names::{DomainName, POINTS};
use super::storage::Local;
use super::{Repository, durable, folder_names, is_there, manifest};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::random;
use crate::disk::files::check_new_file;
use crate::disk::io::OpenFiles;

/// The file that makes a folder a repository.
pub(super) const CONFIG: &str = "qdelta.toml";

/// The longest configuration that is read, in bytes.
const LEN_MAX: u64 = 64 << 10;

/// The newest repository format that this program writes and reads.
const FORMAT: u32 = 1;

/// What `qdelta.toml` says. Fields that a later version adds are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Config {
    /// Version of the layout of the repository: 1.
    format: u32,
    /// 32 hexadecimal digits that no other repository has.
    pub id: String,
    /// When it was made, for people.
    created: String,
    /// BLAKE3 of the three above: a flipped bit in the id is not taken for the id.
    digest: String,
}

impl Config {
    fn new(id: String) -> Result<Self> {
        let created = crate::base::clock::now()?.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let digest = digest(FORMAT, &id, &created);
        Ok(Self { format: FORMAT, id, created, digest })
    }

    /// Reads the configuration of the repository in `root`.
    fn read(root: &Path) -> Result<Self> {
        let path = root.join(CONFIG);
        let bytes = durable::read_small(&path, LEN_MAX)?;
        let damaged = || Error::new(ErrorKind::Damaged, format!("{} is damaged", path.display()));
        let text = std::str::from_utf8(&bytes).map_err(|error| damaged().because(error))?;
        let config: Self =
            toml::from_str(text).map_err(|error| damaged().because(error.message().to_owned()))?;
        if config.digest != digest(config.format, &config.id, &config.created) {
            return Err(damaged().because("its digest is not that of its content"));
        }
        if config.format > FORMAT {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("{}: repository format {}", root.display(), config.format),
            )
            .because(format!("this qdelta knows formats up to {FORMAT}"))
            .advise("use the qdelta that made it, or a newer one"));
        }
        Ok(config)
    }

    /// Writes it into the repository in `root`; over one that is there only if `replace`.
    fn write(&self, root: &Path, replace: bool) -> Result<()> {
        let text = toml::to_string(self).map_err(|error| {
            Error::new(ErrorKind::Io, "cannot write qdelta.toml").because(error)
        })?;
        let partial = root.join(format!(".{CONFIG}.partial"));
        // Left by an init that was killed; whoever made it is gone or loses the rename.
        if is_there(&partial)? {
            durable::remove(&partial)?;
        }
        let text = format!("# A repository of qdelta. Please do not edit.\n{text}");
        durable::write_new(&partial, text.as_bytes())?;
        let path = root.join(CONFIG);
        if replace && is_there(&path)? {
            durable::remove(&path)?;
        }
        durable::rename_new(&partial, &path)?;
        durable::sync_dir(root)
    }
}

fn digest(format: u32, id: &str, created: &str) -> String {
    blake3::hash(format!("{format}\n{id}\n{created}\n").as_bytes()).to_hex().to_string()
}

/// What became of a repository whose `qdelta.toml` was to be repaired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Repair {
    /// There was nothing to repair.
    Sound,
    /// It has the id that its points know.
    SameId,
    /// No point knows its id, so it has a new one: anchors of earlier backups are strangers to it.
    NewId,
}

impl Repository {
    fn at(root: &Path, id: String, trouble: Option<String>) -> Self {
        let storage = Arc::new(Local::new(root));
        Self { root: root.to_owned(), storage, id, trouble, files: Arc::default() }
    }

    /// Makes an empty repository of the folder `root`, which is made if it is missing (but not
    /// the folder around it).
    ///
    /// # Errors
    /// [`ErrorKind::Exists`] if `root` is a repository already or has other things in it;
    /// [`ErrorKind::Usage`] if it would lie among the kernel's own files.
    pub fn init(root: &Path) -> Result<Self> {
        match fs::metadata(root) {
            Ok(_) => {
                check_new_file(&root.join(CONFIG))?;
                check_empty(root)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                check_new_file(root)?;
                durable::create_dir(root).map_err(|error| {
                    error.advise("is the disk mounted? If it is, make the folder around it first")
                })?;
            }
            Err(error) => return Err(Error::io("look at", root, error)),
        }
        let config = Config::new(new_id()?)?;
        config.write(root, false)?;
        Ok(Self::at(root, config.id, None))
    }

    /// Opens the repository in the folder `root`. If its `qdelta.toml` is lost or damaged, and domains
    /// are there, it can be read all the same: [`Self::trouble`] says so.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if the folder is missing or no repository: a backup disk that
    /// isn't mounted must not fill the disk below. [`ErrorKind::Damaged`] if its configuration
    /// makes no sense and nothing else is there, [`ErrorKind::Usage`] if a newer program made it.
    pub fn open(root: &Path) -> Result<Self> {
        let error = match Config::read(root) {
            Ok(config) => return Ok(Self::at(root, config.id, None)),
            Err(error) if error.kind() == ErrorKind::Usage => return Err(error),
            Err(error) => error,
        };
        if holds_domains(root) {
            let what = match error.kind() {
                ErrorKind::NotFound => format!("{} is lost", root.join(CONFIG).display()),
                _ => error.chain(),
            };
            let mut repository = Self::at(root, String::new(), Some(what));
            repository.id = repository.known_id().unwrap_or_default();
            return Ok(repository);
        }
        let what = match fs::metadata(root) {
            Ok(metadata) if !metadata.is_dir() => "not a folder",
            _ if error.kind() != ErrorKind::NotFound => {
                return Err(error.advise(repair_advice(root)));
            }
            Ok(_) => "not a repository",
            Err(_) => "no such folder",
        };
        let shown = root.display();
        Err(Error::new(ErrorKind::NotFound, format!("{shown}: {what}")).advise(format!(
            "mount the disk it is on, or make a new repository: qdelta init {shown}"
        )))
    }

    /// What its archives are opened through.
    pub(crate) fn files(&self) -> &Arc<OpenFiles> {
        &self.files
    }

    /// What is wrong with the repository's `qdelta.toml`, if anything is: then it can only be read.
    pub fn trouble(&self) -> Option<Error> {
        let text = self.trouble.clone()?;
        Some(Error::new(ErrorKind::Damaged, text).advise(repair_advice(&self.root)))
    }

    /// Fails unless the repository may be written to.
    pub(super) fn check_writable(&self) -> Result<()> {
        match self.trouble() {
            Some(error) => Err(error.within("nothing is written to a damaged repository")),
            None => Ok(()),
        }
    }

    /// Makes a lost or damaged `qdelta.toml` anew. Nothing else is touched.
    ///
    /// # Errors
    /// As [`Self::open`]; it can't be written.
    pub fn repair(root: &Path) -> Result<(Self, Repair)> {
        match Config::read(root) {
            Ok(config) => {
                let sound = Self::at(root, config.id, None);
                return Ok((sound, Repair::Sound));
            }
            Err(error) if error.kind() == ErrorKind::Usage => return Err(error),
            Err(_) => {}
        }
        if !holds_domains(root) && !is_there(&root.join(CONFIG))? {
            let text = format!("{} holds no domain of a repository", root.display());
            return Err(Error::new(ErrorKind::NotFound, text)
                .advise("mount the disk it is on, or make a new repository in an empty folder"));
        }
        let mut repository = Self::at(root, String::new(), None);
        let (id, repair) = match repository.known_id() {
            Some(id) => (id, Repair::SameId),
            None => (new_id()?, Repair::NewId),
        };
        let config = Config::new(id)?;
        config.write(root, true)?;
        repository.id = config.id;
        Ok((repository, repair))
    }

    /// The id that most manifests say that their repository has. Somebody may have copied a domain here
    /// from another one.
    fn known_id(&self) -> Option<String> {
        let mut votes: BTreeMap<String, usize> = BTreeMap::new();
        for domain in self.domains().ok()? {
            let reading = DomainReading::new(self, &domain);
            for id in reading.good().filter_map(|manifest| manifest.repository.as_ref()) {
                *votes.entry(id.clone()).or_default() += 1;
            }
        }
        votes.into_iter().max_by_key(|(_, votes)| *votes).map(|(id, _)| id)
    }
}

fn repair_advice(root: &Path) -> String {
    format!(
        "what is there can still be restored; qdelta init --repair {} makes qdelta.toml anew",
        root.display()
    )
}

/// Whether a folder holds domains as a repository does: a folder with manifests, with archives, or with
/// a folder of manifests that can't be listed.
fn holds_domains(root: &Path) -> bool {
    let has = |folder: &Path, is_one: fn(&str) -> bool| match folder_names(folder) {
        Ok(names) => names.iter().any(|name| is_one(name)),
        Err(error) => error.kind() != ErrorKind::NotFound && folder.is_dir(),
    };
    let is_domain = |name: &String| {
        let domain = root.join(name);
        name.parse::<DomainName>().is_ok()
            && (has(&domain.join(POINTS), |name| manifest::parse_file_name(name).is_some())
                || folder_names(&domain).is_ok_and(|disks| {
                    let is_archive = |name: &str| manifest::parse_archive_name(name).is_some();
                    disks.iter().any(|disk| has(&domain.join(disk), is_archive))
                }))
    };
    folder_names(root).is_ok_and(|names| names.iter().any(is_domain))
}

/// Fails unless nothing that matters is in a folder that becomes a repository.
fn check_empty(root: &Path) -> Result<()> {
    let names = folder_names(root)?;
    let exists = |what| Error::new(ErrorKind::Exists, format!("{}: {what}", root.display()));
    if names.iter().any(|name| name == CONFIG) {
        let error = exists("is a repository already");
        return Err(match Config::read(root) {
            Err(problem) if problem.kind() != ErrorKind::Usage && holds_domains(root) => {
                error.because(problem.chain()).advise(repair_advice(root))
            }
            _ => error,
        });
    }
    if holds_domains(root) {
        return Err(exists("is a repository whose qdelta.toml is lost").advise(repair_advice(root)));
    }
    // A fresh filesystem may be mounted there; an init may have been killed there.
    let ours = format!(".{CONFIG}.partial");
    if names.iter().any(|name| name != "lost+found" && *name != ours) {
        return Err(exists("the folder is not empty").advise("name a new folder inside it"));
    }
    Ok(())
}

/// 32 hexadecimal digits at random.
fn new_id() -> Result<String> {
    let bytes: [u8; 16] = random::bytes()?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
