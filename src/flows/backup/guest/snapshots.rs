//! The admin's own command that makes the moment where the filesystem can't: LVM, ZFS, a SAN.
//!
//! `COMMAND create FILE` makes it and prints the path to read in the place of FILE;
//! `COMMAND release FILE PATH` takes it away again.
//!
//! What it prints is not believed: it must be nothing that a guest writes to.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::still::Look;
use crate::base::duration;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::Observer;
use crate::base::warning::{Code, Warning};
use crate::disk::image::Image;
use crate::guest::program::{self, End, Failure};
use crate::vault::repository::PointId;

/// How long a release may take.
const RELEASE_MAX: Duration = Duration::from_secs(120);

/// What a command has made of some files. Dropped, it is released.
pub(super) struct Snapshots<'a> {
    command: PathBuf,
    domain: String,
    point: PointId,
    taken: Vec<Taken>,
    observer: &'a dyn Observer,
}

/// A file that a guest writes to, and what the command has made of it.
struct Taken {
    file: PathBuf,
    /// What is to be read in its place; nothing if the command failed.
    made: PathBuf,
    /// The file as it was before.
    before: Look,
    /// The command has moved the guest to another file, so that this one is the moment.
    is_left: bool,
}

impl<'a> Snapshots<'a> {
    /// None yet.
    pub fn new(command: &Path, domain: &str, point: PointId, observer: &'a dyn Observer) -> Self {
        let (command, domain) = (command.to_path_buf(), domain.to_owned());
        Self { command, domain, point, taken: Vec::new(), observer }
    }

    /// Makes the moment of a file, within `limit`.
    ///
    /// # Errors
    /// The command fails, is not ready in time, or prints no path of a file that is there; or what it
    /// prints is the live file, which a guest still writes to, or older than that.
    pub fn create(&mut self, file: &Path, limit: Duration) -> Result<()> {
        let before = Look::at(file)?;
        let (made, failure) = match self.call("create", file, None, limit) {
            Ok(path) => (path, None),
            // It may have got halfway. What it made without saying where, it must find itself.
            Err(error) => (PathBuf::new(), Some(error)),
        };
        let taken = Taken { file: file.to_path_buf(), made, before, is_left: false };
        self.taken.push(taken);
        match (failure, self.taken.last_mut()) {
            (Some(error), _) => Err(error),
            (None, Some(taken)) => taken.check().map_err(|why| {
                let text = format!("{} create printed {:?}", self.command.display(), taken.made);
                Error::new(ErrorKind::Guest, text).because(why).advise(
                    "it must print a snapshot or a copy that was made now; FILE itself only where it \
                     has moved the guest to another file",
                )
            }),
            (None, None) => Ok(()),
        }
    }

    /// Each file and the real path of what is to be read in its place: the name of a logical volume
    /// is a symlink.
    ///
    /// # Errors
    /// It is not there any more.
    pub fn substitutes(&self) -> Result<Vec<(PathBuf, PathBuf)>> {
        let real = |taken: &Taken| {
            let made = &taken.made;
            let made = made.canonicalize().map_err(|error| Error::io("resolve", made, error))?;
            Ok((taken.file.clone(), made))
        };
        self.taken.iter().map(real).collect()
    }

    /// The files that the guest was moved away from.
    pub fn left(&self) -> impl Iterator<Item = PathBuf> + '_ {
        self.taken.iter().filter(|taken| taken.is_left).map(|taken| taken.file.clone())
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
            Ok(_) => Err(failed(format!("not ready after {}, and ended", duration::in_ms(limit)))),
            Err(Failure::Start(error) | Failure::Wait(error)) => Err(failed(error.to_string())),
        }
    }
}

impl Taken {
    /// Finds out whether what was made is the moment, or why not.
    fn check(&mut self) -> Result<(), String> {
        let text = "that is no absolute path of a file or block device that is there";
        if !self.made.is_absolute() {
            return Err(text.to_owned());
        }
        let made = Look::at(&self.made).map_err(|error| format!("{text}: {}", error.chain()))?;
        if made.leads_to(&self.before) {
            self.is_left = made.is_same(&self.before) && self.before.is_written && !made.is_written;
            return match self.is_left {
                true => Ok(()),
                false if made.is_written => {
                    Err("it is the live image, and the guest writes to it".to_owned())
                }
                false => {
                    Err("it is the live image, and nothing shows that the guest left it".to_owned())
                }
            };
        }
        if made.is_written {
            return Err("somebody writes to it".to_owned());
        }
        if made.is_older(&self.before) {
            return Err("it is older than what the guest has written".to_owned());
        }
        Ok(())
    }
}

/// Fails if a guest writes to a file of an image that is read in the place of a live one: what a
/// command prints may lie over that.
///
/// # Errors
/// It does, as far as anything tells.
pub(super) fn check_read(all: &[Snapshots<'_>], image: &Image) -> Result<()> {
    for file in image.files() {
        let Some(fd) = file.fd() else { continue };
        let look = Look::of(fd, file.path())?;
        let mut live = all.iter().flat_map(|it| &it.taken).filter(|taken| !taken.is_left);
        if look.is_written || live.any(|taken| look.leads_to(&taken.before)) {
            let text = format!("what the snapshot command made needs {}", file.path().display());
            return Err(Error::new(ErrorKind::Guest, text)
                .because("a guest writes to it, so it is of no moment")
                .advise("it must print what needs no file that a guest writes to"));
        }
    }
    Ok(())
}

impl Drop for Snapshots<'_> {
    fn drop(&mut self) {
        for taken in self.taken.iter().rev() {
            if let Err(error) = self.call("release", &taken.file, Some(&taken.made), RELEASE_MAX) {
                let error = error.within("what --snapshot-command made may still be there");
                self.observer.warn(Warning::failed(Code::NotReleased, &error));
            }
        }
    }
}
