//! Single files and trees out of a point, by readers of filesystems in this process: no mount, no root,
//! and no filesystem of a guest in the kernel of the host.

mod diff;
mod get;
mod list;
mod metadata;
mod tar;
mod target;

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

pub use diff::{Pair, diff};
pub use get::{Output, get};
pub use list::{list, volumes};
pub use tar::tar;

use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::{Event, Observer};
use crate::base::warning::{Code, Warning};
use crate::disk::io::ReadAt;
use crate::inside::filesystem::{self, FileKind, Filesystem, Found, Id, Step};
use crate::inside::volumes::{self, Content, Kind, Survey, Volume};
use crate::vault::point::{OpenPoint, OpenPoints};
use crate::vault::repository::storage::Wait;
use crate::vault::repository::{DiskAt, Repository};

/// Warnings about single files that a result holds; more are only counted.
const WARNINGS_MAX: u64 = 100;

/// A disk at a point, with the volumes on it.
pub struct OpenDisk {
    point: Arc<OpenPoint>,
    disk: Arc<dyn ReadAt>,
    survey: Survey,
}

/// A volume whose files are read.
pub struct OpenVolume {
    /// `GUEST/DISK@POINT`.
    pub source: String,
    /// The volume.
    pub volume: Volume,
    /// Its filesystem.
    pub filesystem: Box<dyn Filesystem>,
}

impl OpenDisk {
    /// Opens the disk of a point, and looks for its volumes.
    ///
    /// # Errors
    /// There is no such point, or it can't be read.
    pub fn open(
        repository: Repository,
        at: &DiskAt,
        observer: &dyn Observer,
        cancel: &Cancel,
    ) -> Result<Self> {
        Self::of(&OpenPoints::new(repository, cancel), at, Wait::by(observer, cancel))
    }

    /// The same of open points, whose caches it shares.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn of(points: &Arc<OpenPoints>, at: &DiskAt, wait: Wait<'_>) -> Result<Self> {
        let point = Arc::new(points.open_named(at, wait)?);
        let disk: Arc<dyn ReadAt> = point.clone();
        let survey = volumes::survey(&disk)?;
        Ok(Self { point, disk, survey })
    }

    /// `GUEST/DISK@POINT`.
    pub fn name(&self) -> &Path {
        self.point.name()
    }

    /// What is on the disk.
    pub fn survey(&self) -> &Survey {
        &self.survey
    }

    /// The volume of this name, or the only one whose filesystem has all of `paths`.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]: there is no such volume, or no volume has the paths.
    /// [`ErrorKind::Usage`]: several have them. [`ErrorKind::Image`]: the filesystem can't be read.
    pub fn volume(
        &self,
        wanted: Option<&str>,
        paths: &[Vec<u8>],
        observer: &dyn Observer,
    ) -> Result<OpenVolume> {
        for note in &self.survey.notes {
            observer.warn(Warning::new(Code::Volume, note.clone()).of(self.name().display()));
        }
        let volume = match wanted {
            Some(name) => {
                let found = self.survey.volumes.iter().find(|volume| volume.name == name);
                let volume = found.ok_or_else(|| {
                    let text = format!("{} has no volume {name:?}", self.name().display());
                    Error::new(ErrorKind::NotFound, text).advise(self.choices())
                })?;
                self.open_volume(volume)?
            }
            None => self.only_one(paths)?,
        };
        for note in volume.filesystem.notes() {
            let text = format!("{}: {note}", volume.volume.name);
            observer.warn(Warning::new(Code::Volume, text).of(self.name().display()));
        }
        Ok(volume)
    }

    fn open_volume(&self, volume: &Volume) -> Result<OpenVolume> {
        let filesystem = filesystem::open(volume.open(&self.disk)?, volume.content)?;
        let source = self.name().display().to_string();
        Ok(OpenVolume { source, volume: volume.clone(), filesystem })
    }

    /// The only volume that has the paths.
    fn only_one(&self, paths: &[Vec<u8>]) -> Result<OpenVolume> {
        let readable = |volume: &&Volume| filesystem::is_readable(volume.content);
        let volumes: Vec<&Volume> = self.survey.volumes.iter().filter(readable).collect();
        if let [volume] = volumes.as_slice() {
            return self.open_volume(volume);
        }
        if volumes.is_empty() {
            let text =
                format!("no volume of {} has files that are read here", self.name().display());
            let advice = format!("{}; {}", self.choices(), self.by_mount());
            return Err(Error::new(ErrorKind::Image, text).advise(advice));
        }
        let mut with: Vec<OpenVolume> = Vec::new();
        let mut failure = None;
        for volume in volumes {
            match self.open_volume(volume).and_then(|open| Ok((open.has_all(paths)?, open))) {
                Ok((true, open)) => with.push(open),
                Ok((false, _)) => {}
                Err(error) => failure = Some(error),
            }
        }
        match (with.len(), with.pop(), failure) {
            (1, Some(only), _) => Ok(only),
            (0, _, Some(failure)) => Err(failure),
            (0, ..) => {
                let text = format!("no volume of {} has such a file", self.name().display());
                Err(Error::new(ErrorKind::NotFound, text).advise(self.choices()))
            }
            _ => {
                let text = "several volumes of the disk have this path: say which one by --volume";
                Err(Error::new(ErrorKind::Usage, text).advise(self.choices()))
            }
        }
    }

    /// The lines that show the files of a volume that is not read here.
    fn by_mount(&self) -> String {
        let known = self.survey.volumes.iter().find_map(|volume| {
            let options = match volume.content {
                Content::Xfs => "loop,ro,norecovery,nouuid",
                Content::Btrfs | Content::ExFat | Content::Iso9660 | Content::Squashfs => "loop,ro",
                _ => return None,
            };
            Some((volume, options))
        });
        let Some((volume, options)) = known else {
            return "`qdelta mount` shows each as a file for other programs (docs/files.md)"
                .to_owned();
        };
        let (disk, id) = (&self.point.point().disk, self.point.point().id);
        let file = match volume.kind {
            Kind::Whole => format!("{id}.raw"),
            // As device mapper has names: a dash within one is doubled.
            _ => format!("{id}/{}.raw", volume.name.replace('-', "--").replace('/', "-")),
        };
        format!(
            "`qdelta mount DIR {}`, and beside it, as root, `mount -o {options} DIR/{disk}/{file} /mnt` (docs/files.md)",
            self.name().display()
        )
    }

    /// The volumes, for somebody who has to choose one.
    fn choices(&self) -> String {
        let one = |volume: &Volume| {
            let label = volume.label.as_ref().map(|label| format!(" {label:?}"));
            let (name, content, size) = (&volume.name, volume.content, volume.size >> 20);
            format!("{name}{} ({content}, {size} MiB)", label.unwrap_or_default())
        };
        let list: Vec<String> = self.survey.volumes.iter().map(one).collect();
        format!("the volumes are {}", list.join(", "))
    }
}

impl OpenVolume {
    /// The file at a path of the volume, where a link at its end leads if `follow` says so.
    ///
    /// # Errors
    /// As [`filesystem::find`].
    pub fn find(&self, path: &[u8], follow: bool) -> Result<Found> {
        filesystem::find(&*self.filesystem, path, follow)
    }

    fn has_all(&self, paths: &[Vec<u8>]) -> Result<bool> {
        for path in paths {
            match self.find(path, false) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// A folder that is not entered.
fn refused_folder() -> Error {
    Error::new(ErrorKind::Image, "the folder has two names, or lies too deep: it is not entered")
}

/// Whether a failure is one of a single file, and the others are worth going on.
fn is_of_one_file(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Image | ErrorKind::Damaged)
}

/// Tells that `paths` are going to be copied, of as many bytes as they have if somebody looks on. What can't be
/// read is found when it is copied.
fn begin(
    volume: &OpenVolume,
    paths: &[Vec<u8>],
    follow: bool,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<()> {
    if !observer.is_watched() {
        return Ok(());
    }
    let mut total = 0_u64;
    let mut several: HashSet<Id> = HashSet::new();
    for path in paths {
        let found = volume.find(path, follow)?;
        filesystem::walk(&*volume.filesystem, &found, &mut |step| {
            cancel.check()?;
            let Step::Item(item) = step else { return Ok(false) };
            let is_new = item.node.links <= 1 || several.insert(item.id);
            if item.node.kind == FileKind::File && is_new {
                total = total.saturating_add(item.node.size);
            }
            Ok(true)
        })?;
    }
    observer.event(&Event::Begin { disk: Some(&volume.source), phase: "files", total });
    Ok(())
}

/// What could not be read or written, told of each file, but kept of a bounded number of them.
struct LeftOut<'a> {
    observer: &'a dyn Observer,
    count: u64,
}

impl<'a> LeftOut<'a> {
    fn new(observer: &'a dyn Observer) -> Self {
        Self { observer, count: 0 }
    }

    fn add(&mut self, path: &[u8], error: &Error) {
        self.count += 1;
        if self.count <= WARNINGS_MAX {
            let path = String::from_utf8_lossy(path);
            self.observer.warn(Warning::failed(Code::LeftOut, error).within(&path));
        }
    }
}
