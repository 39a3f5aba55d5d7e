//! An image: a qcow2 or raw file with its backing chain, and where the bytes of its disk are.
//!
//! [`Image::open`] opens everything that the image consists of, by the rules of `policy`.
//! [`Mapper`] then says for each range of the disk which bytes of which file hold it; reading them
//! is for others. Nothing here writes.

mod allocated;
mod below;
mod chain;
mod compare;
mod decompress;
pub mod extent;
mod fingerprint;
mod holes;
mod info;
mod layer;
mod map;
mod mapper;
mod names;
mod policy;
mod qcow2;
pub mod read_plan;
mod reader;
mod recognise;
mod snapshots;
mod soundness;
mod stated;
mod tables;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use allocated::Allocated;
pub use below::files_below;
pub use compare::{SameBytes, Unwritten, differences};
pub use decompress::{Inflater, inflate};
pub use fingerprint::identity;
pub use info::{BitmapInfo, ImageInfo, Qcow2Info, SnapshotInfo, inspect};
pub use map::{Map, MapEntry};
pub use mapper::Mapper;
pub use reader::ImageReader;
pub use stated::{StatedChain, StatedLayer};

use crate::base::error::Result;
use crate::base::warning::Warning;
use crate::disk::image::extent::{Extent, Source};
use crate::disk::io::ReadAt;
use crate::disk::nbd::Export;
use layer::{Detail, Layer};

/// Extents that a walk over the whole disk has in memory.
const EXTENTS_AT_A_TIME: usize = 4096;

/// A format in which a disk can be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// qcow2, version 2 or 3 when read, 3 when written.
    Qcow2,
    /// The bytes of the disk and nothing else.
    #[default]
    Raw,
}

impl Format {
    /// The name that QEMU has for it, too.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
        }
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Format {
    type Err = crate::base::error::Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "qcow2" => Ok(Self::Qcow2),
            "raw" => Ok(Self::Raw),
            other => Err(crate::base::error::Error::new(
                crate::base::error::ErrorKind::Usage,
                format!("'{other}' is no format that can be read: it is qcow2 or raw"),
            )),
        }
    }
}

/// How an image is to be opened.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// Its format; without one, qcow2 if it begins like qcow2, and raw unless it looks like something
    /// else. A raw disk whose guest can write a qcow2 header into it must be given its format.
    pub format: Option<Format>,
    /// Folders besides the image's own into which names inside images may lead.
    pub image_roots: Vec<PathBuf>,
    /// The id or name of an internal snapshot, to be read instead of the current state.
    pub snapshot: Option<String>,
    /// What the definition of the guest says of the image's chain: it counts more than headers. The files
    /// that it names may lie anywhere.
    pub chain: StatedChain,
    /// Take the file's own bytes for the disk, whatever they are.
    pub as_file: bool,
    /// Files of which a clone is to be opened in their place: the file's real path, and the
    /// clone's, which must not be a symlink. Names inside images are judged and resolved as if the
    /// file itself were open.
    pub clones: Vec<(PathBuf, PathBuf)>,
    /// The export of a server to be read: the bytes of its disk are the disk. Its name is the path; or the path
    /// is that of a file in whose place it stands, and the format that of the file.
    pub export: Option<Arc<Export>>,
    /// The caller has claimed the image's own file for itself: whoever reads it makes no claim of its
    /// own on that, which would be refused.
    pub is_claimed: bool,
}

/// Opens those files of the image at `path` that a guest writes to: its own and its external data
/// file. Nothing of its backing chain is looked at, so this works while a guest is running.
///
/// # Errors
/// As [`Image::open`].
pub fn open_written_files(path: &Path, options: &OpenOptions) -> Result<Vec<Arc<dyn ReadAt>>> {
    chain::written_files(path, options)
}

/// What the file at `path` looks like, if that is a container of a disk: whoever reads it as a raw disk
/// should know.
///
/// # Errors
/// It can't be read.
pub fn container(path: &Path) -> Result<Option<&'static str>> {
    Ok(chain::look(path)?.as_container())
}

/// Whether the file at `path` begins like a qcow2 image.
///
/// # Errors
/// It can't be read.
pub fn is_qcow2(path: &Path) -> Result<bool> {
    Ok(chain::look(path)? == recognise::Look::Qcow2)
}

/// An open image. Files stay open, and are opened for reading only.
pub struct Image {
    layers: Arc<Vec<Layer>>,
    files: Vec<Arc<dyn ReadAt>>,
    descriptions: Vec<LayerDescription>,
    warnings: Vec<Warning>,
}

/// One layer of an image, as one would describe it to a person.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LayerDescription {
    /// Its file.
    #[serde(serialize_with = "crate::base::json::serialize")]
    pub path: PathBuf,
    /// Its external data file.
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "crate::base::json::optional::serialize"
    )]
    pub data_file: Option<PathBuf>,
    /// Its format.
    pub format: Format,
    /// Nothing said what format it has: it was taken from its first bytes.
    pub format_guessed: bool,
    /// Size of its disk in bytes.
    pub virtual_size: u64,
    /// Size of its clusters in bytes, if it has any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_size: Option<u64>,
    /// How many layers lie above it.
    pub depth: u16,
}

impl Image {
    /// Opens the image at `path` and every file that it consists of.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`] if there is no such file or snapshot;
    /// [`crate::ErrorKind::Image`] if a file of the chain is missing, is not what it should be, is
    /// encrypted, is marked as corrupt and is corrupt, or lies where names inside images must not lead.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Self> {
        let opening = chain::open(path, options)?;
        let descriptions = (0..)
            .zip(&opening.layers)
            .zip(&opening.guessed)
            .map(|((depth, layer), guessed)| layer.describe(depth, *guessed))
            .collect();
        Ok(Self {
            layers: Arc::new(opening.layers),
            files: opening.files,
            descriptions,
            warnings: opening.warnings,
        })
    }

    /// Size of the disk in bytes.
    pub fn virtual_size(&self) -> u64 {
        self.layers.first().map_or(0, Layer::virtual_size)
    }

    /// All files that hold bytes of the disk or say where they are. A
    /// [`crate::disk::image::extent::FileIndex`] is a position in this list.
    pub fn files(&self) -> &[Arc<dyn ReadAt>] {
        &self.files
    }

    /// The layers, top first.
    pub fn layers(&self) -> &[LayerDescription] {
        &self.descriptions
    }

    /// What its owner should know about it. Nothing of it stops a reader.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// A walk over the disk that says where its bytes are. Holes of files count as zeros.
    pub fn mapper(&self) -> Mapper {
        Mapper::new(Arc::clone(&self.layers), Detail::Readable)
    }

    /// Calls `each` with every range of the disk, in bytes, ascending, about which one of the first
    /// `count` layers says something: all others are what the layers below them show. Nothing below
    /// is looked at.
    ///
    /// # Errors
    /// A table can't be read or is damaged; whatever `each` fails with.
    pub fn above(
        &self,
        count: usize,
        mut each: impl FnMut(Range<u64>) -> Result<()>,
    ) -> Result<()> {
        let Some(last) = count.checked_sub(1) else { return Ok(()) };
        self.walk(Mapper::above(Arc::clone(&self.layers), count), |extent| {
            let below = extent.source == Source::Unallocated && usize::from(extent.depth) == last;
            if below { Ok(()) } else { each(extent.range()) }
        })
    }

    /// Calls `each` with every range of the disk, in bytes, ascending, that is zero by what the
    /// tables say.
    ///
    /// # Errors
    /// A table can't be read or is damaged; whatever `each` fails with.
    pub fn holes(&self, mut each: impl FnMut(Range<u64>) -> Result<()>) -> Result<()> {
        self.walk(self.mapper(), |extent| match extent.source {
            Source::Unallocated | Source::Zero { .. } => each(extent.range()),
            _ => Ok(()),
        })
    }

    fn walk(&self, mut mapper: Mapper, mut each: impl FnMut(&Extent) -> Result<()>) -> Result<()> {
        let mut extents = Vec::new();
        let (mut at, end) = (0, self.virtual_size());
        while at < end {
            extents.clear();
            at = mapper.extents_up_to(EXTENTS_AT_A_TIME, at..end, &mut extents)?;
            extents.iter().try_for_each(&mut each)?;
        }
        Ok(())
    }

    /// The name of each of [`Self::files`], also where its clone was opened in its place.
    pub fn file_names(&self) -> Vec<PathBuf> {
        let mut names: Vec<PathBuf> =
            self.files.iter().map(|file| file.path().to_path_buf()).collect();
        for layer in self.layers.iter() {
            let data = match layer {
                Layer::Qcow2(qcow2) => Some(&qcow2.data),
                Layer::Raw(_) => None,
            };
            for file in data.into_iter().chain([layer.file()]) {
                if let Some(name) = names.get_mut(usize::from(file.index.0)) {
                    name.clone_from(&file.path);
                }
            }
        }
        names
    }

    /// The map of the disk as `qemu-img map` shows it.
    pub fn map(&self) -> Map {
        Map::new(Arc::clone(&self.layers))
    }
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Image").field("layers", &self.descriptions).finish_non_exhaustive()
    }
}

impl Layer {
    fn describe(&self, depth: u16, format_guessed: bool) -> LayerDescription {
        let (format, cluster_size, data_file) = match self {
            Self::Raw(_) => (Format::Raw, None, None),
            Self::Qcow2(qcow2) => {
                let external = qcow2.format.external_data.then(|| qcow2.data.path.clone());
                (Format::Qcow2, Some(qcow2.header.cluster.bytes()), external)
            }
        };
        LayerDescription {
            path: self.path().to_path_buf(),
            data_file,
            format,
            format_guessed,
            virtual_size: self.virtual_size(),
            cluster_size,
            depth,
        }
    }
}
