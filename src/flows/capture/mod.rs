//! The image that a backup reads: the files themselves, held still, or clones of them.

mod hold;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::warning::{Code, Warning};
use crate::disk::files::paths::absolute;
use crate::disk::image::{self, Format, Image, OpenOptions};
use crate::disk::io::ReadAt;
use crate::disk::nbd::Export;
use crate::flows::anchors::reflink::{Clones, sweep_clones};
use crate::flows::anchors::{self, NewAnchor};
use crate::vault::repository::{Anchor, AnchorKind};
use hold::Hold;

/// A bitmap of an export, as whoever made the export names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Counted {
    /// What it is called at the server.
    pub bitmap: String,
    /// The name of the anchor that was left when it began.
    pub since: String,
    /// Bytes of the disk that it had from the beginning: without one of them it was cleared, or made anew.
    pub marks: Vec<u64>,
}

/// An image at one moment, to be read at leisure.
pub(crate) struct Captured {
    /// What is read.
    pub image: Image,
    /// The name it is known by.
    pub path: PathBuf,
    /// How it was opened.
    pub options: OpenOptions,
    /// What was left behind for the next backup.
    pub anchor: Option<Anchor>,
    /// Which bitmap of the export counts from which anchor; without it, one that is called like the anchor.
    pub counted: Option<Counted>,
    /// What was allocated at that moment, if the anchor needs this host to keep it: as bytes of
    /// [`Allocation`](crate::formats::allocation::Allocation).
    pub allocation: Option<Vec<u8>>,
    /// What the admin should know.
    pub warnings: Vec<Warning>,
    hold: Hold,
    clones: Option<Clones>,
    /// The locks of the image that was cloned.
    cloned: Option<Hold>,
}

impl Captured {
    /// Takes an image that nobody writes to, and holds it until it is read; if it is cloned, until
    /// [`Self::let_go`]. An anchor that can't be left is a warning.
    ///
    /// # Errors
    /// `Busy` if somebody writes to it; it can't be opened.
    pub fn take(path: &Path, options: &OpenOptions, new: Option<&NewAnchor<'_>>) -> Result<Self> {
        let Some(new) = new else { return Self::hold(path, options) };
        if options.export.is_some() {
            let mut source = Self::hold(path, options)?;
            if let Some(began) = new.began {
                note_unknown(&new.name, options);
                let what = AnchorKind::LiveBitmap { began };
                source.anchor = Some(Anchor { name: new.name.clone(), what });
                return Ok(source);
            }
            let text = format!("{} is an export of a server", path.display());
            source.warnings.push(no_anchor(&Error::new(ErrorKind::Usage, text)));
            return Ok(source);
        }
        if !new.is_in_image() {
            return Self::hold_and_clone(path, options, new);
        }
        if options.as_file || options.format == Some(Format::Raw) {
            let mut source = Self::hold(path, options)?;
            let text = format!("{} is taken as a raw file", path.display());
            source.warnings.push(no_anchor(&Error::new(ErrorKind::Usage, text)));
            return Ok(source);
        }
        // The file is held until all files are.
        match anchors::write(path, options, new) {
            Ok((file, anchor)) => match Self::hold(path, options) {
                // It goes with those of earlier points.
                Ok(source) if source.hold.is_lost() => Ok(source.without_anchor()),
                Ok(source) => Ok(Self { anchor: Some(anchor), ..source }),
                Err(error) => {
                    drop(file);
                    // What can't be removed now is removed by the next run.
                    let _ = anchors::remove(path, &anchor);
                    Err(error)
                }
            },
            Err(error) => {
                let mut source = Self::hold(path, options)?;
                source.warnings.push(no_anchor(&error));
                Ok(source)
            }
        }
    }

    /// The bytes that are read may be gone tomorrow, and no tracker would know.
    fn without_anchor(mut self) -> Self {
        let text = format!("{} could not be written back", self.path.display());
        self.warnings.push(no_anchor(&Error::new(ErrorKind::Io, text)));
        self
    }

    fn hold(path: &Path, options: &OpenOptions) -> Result<Self> {
        let (image, hold) = Hold::open(path, options)?;
        let warnings = image.warnings().iter().cloned().chain(hold.warnings()).collect();
        Ok(Self {
            image,
            path: path.to_path_buf(),
            options: options.clone(),
            anchor: None,
            counted: None,
            allocation: None,
            warnings,
            hold,
            clones: None,
            cloned: None,
        })
    }

    fn hold_and_clone(path: &Path, options: &OpenOptions, new: &NewAnchor<'_>) -> Result<Self> {
        let mut held = Self::hold(path, options)?;
        if held.hold.is_lost() {
            return Ok(held.without_anchor());
        }
        let mut swept = Vec::new();
        let cloned = written_files(path, options).and_then(|files| {
            swept = sweep_beside(&files, new);
            check_text(path, files.iter().map(|(file, _)| file.clone()))?;
            Clones::take(&files, &new.name)
        });
        match cloned {
            Ok(clones) => {
                let mut source = Self::of_clones(path, options, clones, true)?;
                source.warnings.extend(swept);
                Ok(Self { cloned: Some(held.hold), ..source })
            }
            Err(error) => {
                held.warnings.extend(swept);
                held.warnings.push(no_anchor(&error));
                Ok(held)
            }
        }
    }

    /// Takes the image of which `clones` were made, to be kept as an anchor or only to be read.
    ///
    /// # Errors
    /// It can't be opened.
    pub fn of_clones(
        path: &Path,
        options: &OpenOptions,
        clones: Clones,
        keep: bool,
    ) -> Result<Self> {
        let mut source = Self::of_copies(path, options, clones.substitutes())?;
        let files = clones.substitutes().into_iter().map(|(file, _)| file);
        let anchor = || check_text(path, files).and_then(|()| clones.anchor());
        match keep.then(anchor).transpose() {
            Ok(anchor) => source.anchor = anchor,
            Err(error) => source.warnings.push(no_anchor(&error)),
        }
        source.clones = Some(clones);
        Ok(source)
    }

    /// Takes the image of which there are copies: each of its files, and what is to be read in its
    /// place. Nobody writes to them.
    ///
    /// # Errors
    /// It can't be opened.
    pub fn of_copies(
        path: &Path,
        options: &OpenOptions,
        substitutes: Vec<(PathBuf, PathBuf)>,
    ) -> Result<Self> {
        Self::live(path, &OpenOptions { clones: substitutes, ..options.clone() })
    }

    /// Takes the disk in the file at `path` as the server of an export gives it out. `anchor` is the bitmap that
    /// goes on to count.
    ///
    /// # Errors
    /// The server can't be reached, or has no such export.
    pub fn of_export(
        path: &Path,
        options: &OpenOptions,
        export: Export,
        counted: Option<Counted>,
        anchor: Option<Anchor>,
    ) -> Result<Self> {
        let options = OpenOptions { export: Some(Arc::new(export)), ..options.clone() };
        Ok(Self { counted, anchor, ..Self::live(path, &options)? })
    }

    /// Takes the image as it is, although somebody may write to it: for as long as the guest is
    /// frozen that does.
    ///
    /// # Errors
    /// It can't be opened.
    pub fn live(path: &Path, options: &OpenOptions) -> Result<Self> {
        let image = Image::open(path, options)?;
        let hold = Hold::watch(&image, &options.clones)?;
        Ok(Self {
            path: path.to_path_buf(),
            options: options.clone(),
            anchor: None,
            counted: None,
            allocation: None,
            warnings: image.warnings().iter().cloned().chain(hold.warnings()).collect(),
            hold,
            image,
            clones: None,
            cloned: None,
        })
    }

    /// All disks are taken: of those of which there are clones, these are read, and the guest may
    /// start. Not before: it could start and stop between two disks, and they would be of two
    /// moments.
    pub fn let_go(&mut self) {
        self.cloned = None;
    }

    /// Fails if somebody wrote to a file of the image since it was taken.
    pub fn check_unchanged(&self) -> Result<()> {
        self.hold.check_unchanged(&self.image)
    }

    /// Whether this host itself may write to what is read: a filesystem of its own is mounted from there.
    pub fn is_in_use(&self) -> bool {
        self.hold.is_in_use()
    }

    /// Whether an unchanged time of the file at `path` proves that nobody wrote to the file since the
    /// image was taken.
    pub fn is_settled(&self, path: &Path) -> bool {
        self.hold.is_settled(path)
    }

    /// The point is safe: the anchor stays. Clones that are none go.
    pub fn settle(self) {
        if let Some(clones) = self.clones
            && self.anchor.is_some()
        {
            clones.keep();
        }
    }

    /// The backup failed: the anchor goes, if it can.
    pub fn discard(self) {
        let Self { anchor, path, image, hold, clones, cloned, .. } = self;
        drop((image, hold, clones, cloned));
        if let Some(anchor) = anchor {
            // What can't be removed now is removed by the next run.
            let _ = anchors::remove(&path, &anchor);
        }
    }
}

/// Says that a server does not tell of a bitmap. That is no fault yet: many a server tells of a bitmap only when
/// the next one has begun.
fn note_unknown(name: &str, options: &OpenOptions) {
    let disk = options.export.as_ref().and_then(|export| export.open().ok());
    if disk.is_some_and(|disk| !disk.description().bitmaps.iter().any(|bitmap| bitmap == name)) {
        tracing::debug!(
            "the server does not tell of the bitmap {} now; the next backup needs it",
            name.escape_debug()
        );
    }
}

/// The files of an image that a guest writes to, with their real paths.
///
/// # Errors
/// The image can't be opened.
pub(crate) fn written_files(
    path: &Path,
    options: &OpenOptions,
) -> Result<Vec<(PathBuf, Arc<dyn ReadAt>)>> {
    let files = image::open_written_files(path, options)?;
    files
        .into_iter()
        .map(|file| {
            let real = file.path().canonicalize();
            let real = real.map_err(|error| Error::io("resolve", file.path(), error))?;
            Ok((real, file))
        })
        .collect()
}

/// Fails if a path that clones are found again by is no text: a manifest can't hold it.
fn check_text(path: &Path, files: impl Iterator<Item = PathBuf>) -> Result<()> {
    let mut paths = files.chain([absolute(path)]);
    let Some(odd) = paths.find(|path| path.to_str().is_none()) else { return Ok(()) };
    let text = format!("the path {} is not UTF-8", odd.display());
    Err(Error::new(ErrorKind::Usage, text)
        .because("a manifest can't name it, so the clone would never be found again"))
}

/// Removes what interrupted backups have left beside the files.
fn sweep_beside(files: &[(PathBuf, Arc<dyn ReadAt>)], new: &NewAnchor<'_>) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let keep = [new.previous.as_deref().unwrap_or_default()];
    for folder in files.iter().filter_map(|(path, _)| path.parent()) {
        match sweep_clones(folder, new.tag, &keep) {
            // That the folder is not ours is why no clone can be made, either.
            Err(error) if error.kind() != ErrorKind::Usage => {
                warnings.push(old_clone(&error));
            }
            _ => {}
        }
    }
    warnings
}

/// A clone that should have gone is still there.
pub(crate) fn old_clone(error: &Error) -> Warning {
    Warning::failed(Code::OldAnchor, error).within("an old clone stays")
}

/// How a warning begins that says that no anchor was left.
pub(crate) const NO_ANCHOR: &str = "no anchor is left for the next backup";

/// How to be rid of such warnings.
pub(crate) const NO_MORE_TRIES: &str =
    "--anchor none ends the attempts (of a job: anchor = \"none\")";

fn no_anchor(error: &Error) -> Warning {
    let end = match error.kind() {
        ErrorKind::Usage | ErrorKind::Image => Some(NO_MORE_TRIES),
        _ => None,
    };
    let advice: Vec<&str> = error.advice().into_iter().chain(end).collect();
    let warning = Warning::failed(Code::NoAnchor, error).within(NO_ANCHOR);
    if advice.is_empty() { warning } else { warning.advise(advice.join("; ")) }
}
