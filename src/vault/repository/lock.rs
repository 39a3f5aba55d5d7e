//! Who may do what in a domain at the same time.
//!
//! Two locks decide. Whoever adds points holds the first one alone: one writer a domain. Whoever
//! reads points shares the second one, and whoever removes archives holds it alone: what a reader has
//! begun to read stays until it is done. So a restore goes on beside a backup. `ARCHITECTURE.md` has
//! the table of every operation against every other.

use std::sync::Arc;
use std::time::Duration;

use super::PointId;
use super::names::DomainName;
use super::storage::{Lock, LockMode, Locked, Storage, Wait};
use crate::base::error::{Error, ErrorKind, Result};

/// Held alone by whoever writes to the domain.
const ADD: &str = ".lock";
/// Shared by readers; held alone by whoever takes archives away.
const KEEP: &str = ".keep";
/// What was proved so long ago need not be proved again where nothing goes.
const LATELY: Duration = Duration::from_secs(1);

/// The right to write to a domain. It ends when this is dropped, or the process, however it ends.
#[derive(Debug)]
pub struct DomainLock {
    domain: DomainName,
    /// The id of the repository.
    repository: String,
    storage: Arc<dyn Storage>,
    lock: Box<dyn Lock>,
}

/// The promise that the archives of a domain stay. It ends when this is dropped, or the process.
#[derive(Debug)]
pub struct Hold(#[expect(dead_code, reason = "held until it is dropped")] Box<dyn Lock>);

/// The right to take archives of a domain away: nobody reads one. It ends when this is dropped, or the
/// process.
#[derive(Debug)]
pub struct Clearance(#[expect(dead_code, reason = "held until it is dropped")] Box<dyn Lock>);

impl DomainLock {
    /// Locks the domain, whose folder is made if it is missing.
    pub(super) fn take(
        storage: &Arc<dyn Storage>,
        domain: DomainName,
        repository: String,
        wait: Wait<'_>,
    ) -> Result<Self> {
        match storage.lock(&domain.folder().join(ADD), LockMode::Exclusive, wait)? {
            Locked::Held(lock) => {
                // Readers find the file of their lock there, also those who can write nothing.
                storage.prepare_lock(&domain.folder().join(KEEP));
                Ok(Self { domain, repository, storage: Arc::clone(storage), lock })
            }
            Locked::Busy(holder) => Err(busy(format!("{domain} is being written to by {holder}"))),
        }
    }

    /// The domain that is locked.
    pub fn domain(&self) -> &DomainName {
        &self.domain
    }

    /// The id of the repository that the domain is in.
    pub(super) fn repository(&self) -> &str {
        &self.repository
    }

    /// Fails if somebody else has had the lock meanwhile: before what was replaced goes for good, and before it is said
    /// that something is done. Whoever had it may have taken what has no manifest yet for a leftover.
    pub(crate) fn prove(&self) -> Result<()> {
        self.lock.prove(Duration::ZERO)
    }

    /// As [`Self::prove`], where nothing goes and it is proved once more afterwards: what was proved a moment ago is not
    /// asked for again, so that a short night asks the store nothing more.
    pub(super) fn prove_lately(&self) -> Result<()> {
        self.lock.prove(LATELY)
    }

    /// Fails if somebody else has had the lock until the manifest of a point stood there: then its archives may be gone.
    pub(super) fn prove_made(&self, point: PointId) -> Result<()> {
        self.prove().map_err(|error| {
            let domain = &self.domain;
            let text = match error.kind() {
                ErrorKind::Busy => format!(
                    "point {point} of {domain} was made while somebody else wrote there: its archives may be missing"
                ),
                _ => format!(
                    "point {point} of {domain} is made, and nobody can tell whether somebody else wrote there meanwhile"
                ),
            };
            error.within(text).advise("see what is there with qdelta verify, and do it again")
        })
    }

    /// Where the files of the repository are.
    pub(super) fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }
}

/// Holds the archives of a domain in their places. Whoever was asked to stop reads nothing any more, and holds nothing.
pub(super) fn hold(storage: &dyn Storage, domain: &DomainName, wait: Wait<'_>) -> Result<Hold> {
    wait.check()?;
    let locked = storage.lock(&domain.folder().join(KEEP), LockMode::Shared, wait)?;
    wait.check()?;
    match locked {
        Locked::Held(lock) => Ok(Hold(lock)),
        Locked::Busy(holder) => {
            Err(busy(format!("points of {domain} are being removed by {holder}")))
        }
    }
}

/// Makes sure that nobody reads the archives of a domain, which the caller writes to alone; nothing if somebody does.
pub(super) fn clear(lock: &DomainLock, wait: Wait<'_>) -> Result<Option<Clearance>> {
    let domain = lock.domain();
    match lock.storage().lock(&domain.folder().join(KEEP), LockMode::Exclusive, wait)? {
        Locked::Held(lock) => Ok(Some(Clearance(lock))),
        Locked::Busy(_) => Ok(None),
    }
}

fn busy(text: String) -> Error {
    Error::new(ErrorKind::Busy, text).advise("wait until it is done, then try again")
}
