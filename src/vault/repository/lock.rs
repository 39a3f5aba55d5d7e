//! One writer a domain.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use super::durable;
use super::names::{DomainName, POINTS};
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::io::Opener;
use crate::disk::sys::patience;

/// The lock file of a domain. It is never removed: whoever locked a removed file would not be
/// alone.
const LOCK: &str = ".lock";

/// The right to write to a domain. It ends when this is dropped, or the process, however it ends.
#[derive(Debug)]
pub struct DomainLock {
    domain: DomainName,
    dir: PathBuf,
    /// The id of the repository.
    repository: String,
    /// Holds the lock as long as it is open.
    file: File,
}

impl DomainLock {
    /// Locks the domain in the folder `dir`, which is made if it is missing.
    pub(super) fn take(dir: PathBuf, domain: DomainName, repository: String) -> Result<Self> {
        durable::create_dir(&dir)?;
        let path = dir.join(LOCK);
        let mut file = durable::open_or_create(&path)?;
        match patience::lock(&file) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(busy(&domain, &mut file)),
            Err(TryLockError::Error(error)) => return Err(Error::io("lock", &path, error)),
        }
        durable::create_dir(&dir.join(POINTS))?;
        // Only so that a second caller can say who holds it: no reason to fail.
        let _ = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "process {} on {}", std::process::id(), host_name()));
        Ok(Self { domain, dir, repository, file })
    }

    /// The domain that is locked.
    pub fn domain(&self) -> &DomainName {
        &self.domain
    }

    /// The id of the repository that the domain is in.
    pub(super) fn repository(&self) -> &str {
        &self.repository
    }

    /// The domain's folder.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The folder of the domain's manifests.
    pub(super) fn points_dir(&self) -> PathBuf {
        self.dir.join(POINTS)
    }
}

impl Drop for DomainLock {
    fn drop(&mut self) {
        // Closing the file is not enough: a child that another thread is just starting holds a
        // copy of it until its exec, and the lock with it.
        let _ = self.file.unlock();
    }
}

/// Says who holds the lock, as far as the holder said.
fn busy(domain: &DomainName, file: &mut File) -> Error {
    let mut holder = String::new();
    let read = file.take(200).read_to_string(&mut holder);
    let known = read.is_ok() && holder.starts_with("process ");
    let holder = if known { holder.trim_end() } else { "another process" };
    let clean: String = holder.chars().filter(|c| !c.is_control()).collect();
    Error::new(ErrorKind::Busy, format!("{domain} is being written to by {clean}"))
        .advise("wait until it is done, then try again")
}

/// This machine's name: a repository may be shared over a network.
fn host_name() -> String {
    let name =
        Opener::READ.read_text(Path::new("/proc/sys/kernel/hostname"), 4096).unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "this machine".to_owned() } else { name.to_owned() }
}
