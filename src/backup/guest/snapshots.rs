//! The admin's own command that makes the moment where the filesystem can't: LVM, ZFS, a SAN.
//!
//! `COMMAND create FILE` makes it and prints the path to read in the place of FILE;
//! `COMMAND release FILE PATH` takes it away again.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::program::{self, End, Failure};
use crate::repository::PointId;

/// How long a release may take.
const RELEASE_MAX: Duration = Duration::from_secs(120);

/// What a command has made of some files. Dropped, it is released.
#[derive(Debug)]
pub(super) struct Snapshots {
    command: PathBuf,
    domain: String,
    point: PointId,
    /// Each file and what is to be read in its place.
    taken: Vec<(PathBuf, PathBuf)>,
}

impl Snapshots {
    /// None yet.
    pub fn new(command: &Path, domain: &str, point: PointId) -> Self {
        let (command, domain) = (command.to_path_buf(), domain.to_owned());
        Self { command, domain, point, taken: Vec::new() }
    }

    /// Makes the moment of a file, within `limit`.
    ///
    /// # Errors
    /// The command fails, is not ready in time, or prints no path of a file that is there.
    pub fn create(&mut self, file: &Path, limit: Duration) -> Result<()> {
        let path = match self.call("create", file, None, limit) {
            Ok(path) => path,
            Err(error) => {
                // It may have got halfway. What it made without saying where, it must find itself.
                self.taken.push((file.to_path_buf(), PathBuf::new()));
                return Err(error);
            }
        };
        self.taken.push((file.to_path_buf(), path.clone()));
        if !path.is_absolute() || !path.exists() {
            let text = format!("{} create printed {:?}", self.command.display(), path);
            return Err(Error::new(ErrorKind::Guest, text)
                .because("that is no absolute path of a file or block device that is there"));
        }
        Ok(())
    }

    /// Each file and the real path of what is to be read in its place: the name of a logical volume
    /// is a symlink.
    ///
    /// # Errors
    /// It is not there any more.
    pub fn substitutes(&self) -> Result<Vec<(PathBuf, PathBuf)>> {
        let real = |(file, made): &(PathBuf, PathBuf)| {
            let made = made.canonicalize().map_err(|error| Error::io("resolve", made, error))?;
            Ok((file.clone(), made))
        };
        self.taken.iter().map(real).collect()
    }

    fn call(
        &self,
        verb: &str,
        file: &Path,
        made: Option<&Path>,
        limit: Duration,
    ) -> Result<PathBuf> {
        let name = format!("{} {verb} {}", self.command.display(), file.display());
        let failed = |why: String| {
            Error::new(ErrorKind::Guest, "the snapshot command failed")
                .because(format!("{name}: {why}"))
        };
        let mut command = Command::new(&self.command);
        command.arg(verb).arg(file).args(made).env("QDELTA_DOMAIN", &self.domain);
        // A name that no snapshot of an earlier point has.
        command.env("QDELTA_POINT", self.point.to_string());
        match program::run(command, limit, None) {
            Ok((End::Exit(status), said)) if status.success() => {
                let line = said.stdout.split(|byte| *byte == b'\n').next().unwrap_or_default();
                Ok(PathBuf::from(OsString::from_vec(line.to_vec())))
            }
            Ok((End::Exit(status), said)) => Err(failed(format!("{status}{}", said.problem()))),
            Ok(_) => Err(failed(format!("not ready after {} ms, and ended", limit.as_millis()))),
            Err(Failure::Start(error) | Failure::Wait(error)) => Err(failed(error.to_string())),
        }
    }
}

impl Drop for Snapshots {
    fn drop(&mut self) {
        for (file, made) in self.taken.iter().rev() {
            if let Err(error) = self.call("release", file, Some(made), RELEASE_MAX) {
                tracing::error!("{}", error.chain());
            }
        }
    }
}
