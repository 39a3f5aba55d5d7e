//! Images that belong to no guest: files, devices, and exports of NBD servers.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer};

use super::{optional, parsed};
use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::files::paths::is_uri;
use crate::disk::image::OpenOptions;
use crate::disk::io::Opener;
use crate::disk::nbd::Export;
use crate::formats::nbd::{BITMAP_NAME_LEN_MAX, Place, Uri, is_bitmap_name};
use crate::vault::repository::DiskSpec;

/// The longest file with the name of a bitmap, in bytes: the name, and the end of a line.
const FILE_MAX: u64 = BITMAP_NAME_LEN_MAX as u64 + 2;

/// So much earlier than it was written a file may seem to be.
const TICK: Duration = Duration::from_secs(2);

/// An image that belongs to no guest.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobImage {
    /// The image: a file, a device, or the URI of an export, in the one spelling that all others of it mean.
    #[serde(deserialize_with = "place")]
    pub path: PathBuf,
    /// The disk's name in the repository.
    #[serde(default, deserialize_with = "optional")]
    pub disk: Option<DiskSpec>,
    /// Of an export: the file in which the name of the bitmap stands that has begun at the moment of the backup.
    pub live_bitmap_file: Option<PathBuf>,
}

impl JobImage {
    /// Whether it is an export of a server.
    pub(in super::super) fn is_export(&self) -> bool {
        is_uri(&self.path)
    }

    /// What it is called in the repository.
    ///
    /// # Errors
    /// It has no name there, and can't be called after its file or its export.
    pub(in super::super) fn spec(&self) -> Result<DiskSpec> {
        match (&self.disk, self.export()?) {
            (Some(spec), _) => Ok(spec.clone()),
            (None, Some(export)) => DiskSpec::for_export(export.export()),
            (None, None) => DiskSpec::for_image(&self.path),
        }
    }

    /// How it is opened. Whoever cancels ends all waiting for its server.
    ///
    /// # Errors
    /// It is no URI of NBD.
    pub(in super::super) fn open(&self, cancel: &Cancel) -> Result<OpenOptions> {
        let uri = self.path.to_str().filter(|_| self.is_export());
        let export = uri.map(|uri| Export::new(uri, cancel)).transpose()?;
        Ok(OpenOptions { export: export.map(Arc::new), ..OpenOptions::default() })
    }

    /// The bitmap that has begun at this moment, if a file says which: in the run that began at `run`.
    ///
    /// # Errors
    /// The file can't be read, is of an earlier run, or has no name of a bitmap.
    pub(in super::super) fn begun(&self, run: Timestamp) -> Result<Option<String>> {
        let Some(file) = &self.live_bitmap_file else { return Ok(None) };
        let advice = "the hook `before` that begins the bitmap writes its name there";
        let written = file.metadata().and_then(|it| it.modified());
        let written = written
            .map_err(|error| Error::io("look at live_bitmap_file", file, error).advise(advice))?;
        if Timestamp::try_from(written).is_ok_and(|written| written + TICK < run) {
            let text = format!(
                "live_bitmap_file: {} was not written in this run: which bitmap has begun is not known",
                file.display()
            );
            return Err(Error::new(ErrorKind::Usage, text).advise(advice));
        }
        let text = Opener::READ.read_text(file, FILE_MAX);
        let text =
            text.map_err(|error| Error::io("read live_bitmap_file", file, error).advise(advice))?;
        match text.trim_end_matches(['\n', '\r']) {
            name if is_bitmap_name(name) => Ok(Some(name.to_owned())),
            _ => {
                let text = format!("live_bitmap_file: {} has no name of a bitmap", file.display());
                Err(Error::new(ErrorKind::Usage, text).advise(advice))
            }
        }
    }

    fn export(&self) -> Result<Option<Arc<Export>>> {
        Ok(self.open(&Cancel::default())?.export)
    }
}

/// The place of an image, as text.
struct ImagePlace(PathBuf);

impl FromStr for ImagePlace {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if !Uri::is_meant(text) {
            return Ok(Self(text.into()));
        }
        let export = Export::new(text, &Cancel::default())?;
        // Nobody knows the folder in which a run is started.
        if let Ok(Uri { place, psk_file, .. }) = Uri::parse(text) {
            let socket = match &place {
                Place::Unix(socket) => Some(socket),
                Place::Tcp(..) => None,
            };
            let begins_nowhere = |path: &&String| !Path::new(path).is_absolute();
            if let Some(path) = socket.into_iter().chain(&psk_file).find(begins_nowhere) {
                let text = format!("{path} of an export begins nowhere");
                return Err(Error::new(ErrorKind::Usage, text)
                    .advise("give paths that begin with /: nbd+unix:///EXPORT?socket=/PATH"));
            }
        }
        Ok(Self(export.name().to_owned()))
    }
}

fn place<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    parsed::<ImagePlace, _>(&String::deserialize(deserializer)?).map(|place| place.0)
}
