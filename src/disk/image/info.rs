//! What there is to know about an image without reading its disk.

use std::path::{Path, PathBuf};

use qdelta_formats::qcow2::{
    Autoclear, Bitmap, Compatible, CompressionType, Encryption, Header, Incompatible, bitmap,
};

use super::chain;
use super::layer::{Layer, LayerFile};
use super::snapshots;
use super::{Format, Image, LayerDescription, OpenOptions};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::warning::Warning;
use crate::disk::nbd::Description;

/// What there is to know about an image. Fields that `qemu-img info --output=json` has, too, are
/// called the same.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ImageInfo {
    /// Its file.
    #[serde(serialize_with = "crate::base::json::serialize")]
    pub filename: PathBuf,
    /// Its format.
    pub format: Format,
    /// Size of its disk in bytes: the snapshot's, if one was asked for.
    pub virtual_size: u64,
    /// Length of its file in bytes.
    pub file_length: u64,
    /// Bytes that its file occupies on its file system; nothing for a device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actual_size: Option<u64>,
    /// Why its disk can't be read, if it can't.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// What its owner should know about it.
    pub warnings: Vec<Warning>,
    /// What only qcow2 images have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qcow2: Option<Qcow2Info>,
    /// What only exports of servers have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub export: Option<Description>,
    /// The files of its chain, top first; empty if they can't be opened.
    pub layers: Vec<LayerDescription>,
}

/// What only qcow2 images have.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Qcow2Info {
    /// Version of the format: 2 or 3.
    pub version: u32,
    /// Size of its clusters in bytes.
    pub cluster_size: u64,
    /// How compressed clusters are compressed: `zlib` (which is deflate) or `zstd`.
    pub compression_type: String,
    /// Width of its reference counts in bits.
    pub refcount_bits: u32,
    /// Whether its refcounts may be stale. Reading does not need them.
    pub dirty_flag: bool,
    /// Whether somebody found its tables damaged.
    pub corrupt: bool,
    /// Whether clusters have subclusters.
    pub extended_l2: bool,
    /// Whether refcounts are updated late.
    pub lazy_refcounts: bool,
    /// How its data is encrypted, if it is: `aes` or `luks`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encryption: Option<String>,
    /// Name of its external data file, as it stands in the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_file: Option<String>,
    /// Whether its external data file can be read alone.
    pub data_file_raw: bool,
    /// Name of its backing file, as it stands in the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_filename: Option<String>,
    /// Format of its backing file, as it stands in the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_filename_format: Option<String>,
    /// Names of all features that are on and known.
    pub features: Vec<String>,
    /// Its internal snapshots.
    pub snapshots: Vec<SnapshotInfo>,
    /// Why its snapshots can't be read, if they can't.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshots_problem: Option<String>,
    /// Its persistent bitmaps.
    pub bitmaps: Vec<BitmapInfo>,
    /// Why its bitmaps can't be read or trusted, if they can't.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bitmaps_problem: Option<String>,
}

/// An internal snapshot.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SnapshotInfo {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// When it was taken: whole seconds since 1970, UTC.
    pub date_sec: u32,
    /// When it was taken: nanoseconds beyond the seconds.
    pub date_nsec: u32,
    /// How long the guest had run, in nanoseconds.
    pub vm_clock_nsec: u64,
    /// Size of the saved state of the guest's machine in bytes; 0 for the disk alone.
    pub vm_state_size: u64,
    /// Size of the disk in bytes.
    pub virtual_size: u64,
}

/// A persistent bitmap.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BitmapInfo {
    /// Its name.
    pub name: String,
    /// Bytes of the disk that one bit stands for.
    pub granularity: u64,
    /// `in-use`: it was not saved properly. `auto`: it records every write.
    pub flags: Vec<String>,
}

/// Finds out what there is to know about the image at `path`, also if its disk can't be read: if
/// it is encrypted, say, or a file of its chain is missing.
///
/// # Errors
/// The file can't be opened, or is no image of the format that it must have.
pub fn inspect(path: &Path, options: &OpenOptions) -> Result<ImageInfo> {
    match Image::open(path, options) {
        Ok(image) => {
            let export = options.export.as_ref().map(|export| export.open()).transpose()?;
            Ok(ImageInfo { export: export.map(|disk| disk.description()), ..image.info()? })
        }
        Err(error) => {
            let Some((file, header)) = chain::top_header(path, options)? else {
                return Err(error);
            };
            let virtual_size = header.virtual_size();
            let mut info = describe(&file, Some(&header), virtual_size)?;
            info.problem = Some(error.chain());
            Ok(info)
        }
    }
}

impl Image {
    /// What there is to know about the image.
    ///
    /// # Errors
    /// Reading the file fails. A damaged snapshot table or bitmap directory is no error, but told.
    pub fn info(&self) -> Result<ImageInfo> {
        let top = self
            .layers
            .first()
            .ok_or_else(|| Error::new(ErrorKind::Image, "an image without any layer"))?;
        let header = match top {
            Layer::Raw(_) => None,
            Layer::Qcow2(qcow2) => Some(&qcow2.header),
        };
        let mut info = describe(top.file(), header, self.virtual_size())?;
        info.layers = self.descriptions.clone();
        info.warnings.clone_from(&self.warnings);
        Ok(info)
    }
}

fn describe(file: &LayerFile, header: Option<&Header>, virtual_size: u64) -> Result<ImageInfo> {
    Ok(ImageInfo {
        filename: file.path.clone(),
        format: if header.is_some() { Format::Qcow2 } else { Format::Raw },
        virtual_size,
        file_length: file.len,
        actual_size: file.allocated,
        problem: None,
        warnings: Vec::new(),
        qcow2: header.map(|header| Qcow2Info::new(file, header)).transpose()?,
        export: None,
        layers: Vec::new(),
    })
}

/// `result`, or a default and what is wrong; failures of the system stay failures.
fn or_problem<T: Default>(result: Result<T>) -> Result<(T, Option<String>)> {
    match result {
        Ok(value) => Ok((value, None)),
        Err(error) if error.kind() == ErrorKind::Image => Ok((T::default(), Some(error.chain()))),
        Err(error) => Err(error),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Qcow2Info {
    fn new(file: &LayerFile, header: &Header) -> Result<Self> {
        let (entries, snapshots_problem) = or_problem(snapshots::read_table(file, header))?;
        let (bitmaps, mut bitmaps_problem) = or_problem(read_bitmaps(file, header))?;
        if !bitmaps.is_empty() && !header.autoclear.contains(Autoclear::BITMAPS) {
            let stale = "a program that does not know bitmaps has written to the image";
            bitmaps_problem = Some(stale.to_owned());
        }
        let size = header.virtual_size();
        let snapshots = entries.iter().map(|entry| SnapshotInfo {
            id: text(&entry.snapshot.id),
            name: text(&entry.snapshot.name),
            date_sec: entry.snapshot.date_s,
            date_nsec: entry.snapshot.date_ns,
            vm_clock_nsec: entry.snapshot.vm_clock_ns,
            vm_state_size: entry.snapshot.vm_state_size,
            virtual_size: entry.snapshot.virtual_size(size),
        });
        let (incompatible, extensions) = (header.incompatible, &header.extensions);
        let features = incompatible.names().chain(header.compatible.names());
        Ok(Self {
            version: header.version.number(),
            cluster_size: header.cluster.bytes(),
            compression_type: match header.compression {
                CompressionType::Deflate => "zlib".to_owned(),
                CompressionType::Zstd => "zstd".to_owned(),
            },
            refcount_bits: header.refcount_order.bits(),
            dirty_flag: incompatible.contains(Incompatible::DIRTY),
            corrupt: incompatible.contains(Incompatible::CORRUPT),
            extended_l2: incompatible.contains(Incompatible::EXTENDED_L2),
            lazy_refcounts: header.compatible.contains(Compatible::LAZY_REFCOUNTS),
            encryption: match header.encryption {
                Encryption::None => None,
                Encryption::Aes => Some("aes".to_owned()),
                Encryption::Luks => Some("luks".to_owned()),
            },
            data_file: extensions.data_file.as_deref().map(text),
            data_file_raw: header.autoclear.contains(Autoclear::DATA_FILE_RAW),
            backing_filename: header.backing_name.as_deref().map(text),
            backing_filename_format: extensions.backing_format.as_deref().map(text),
            features: features.chain(header.autoclear.names()).map(str::to_owned).collect(),
            snapshots: snapshots.collect(),
            snapshots_problem,
            bitmaps: bitmaps.iter().map(BitmapInfo::new).collect(),
            bitmaps_problem,
        })
    }
}

impl BitmapInfo {
    fn new(bitmap: &Bitmap) -> Self {
        let in_use = bitmap.in_use.then_some("in-use");
        let auto = bitmap.auto.then_some("auto");
        Self {
            name: text(&bitmap.name),
            granularity: bitmap.granularity(),
            flags: in_use.into_iter().chain(auto).map(str::to_owned).collect(),
        }
    }
}

/// The directory of the bitmaps that the image with this header stores.
fn read_bitmaps(file: &LayerFile, header: &Header) -> Result<Vec<Bitmap>> {
    let Some(place) = header.extensions.bitmaps else { return Ok(Vec::new()) };
    let start = place.directory.0;
    // Rounded up, as the last sector of a file may be cut short.
    if start.saturating_add(place.directory_len) > file.len.saturating_add(header.cluster.bytes()) {
        let (path, len) = (file.path.display(), file.len);
        let text = format!(
            "{path} is cut short: its bitmap directory at {start:#x} lies behind its end at {len:#x}"
        );
        return Err(Error::new(ErrorKind::Image, text));
    }
    // At most 64 MiB, and no longer than the file.
    let mut directory = vec![0; place.directory_len as usize];
    file.read_padded(&mut directory, start)?;
    bitmap::parse_directory(&directory, start, place.count, header.cluster, header.virtual_size())
        .map_err(|error| Error::format(ErrorKind::Image, &file.path, error))
}
