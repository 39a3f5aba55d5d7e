//! The file of an image that is to be changed.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use qdelta_formats::FormatError;
use qdelta_formats::qcow2::{ClusterSize, FirstCluster, HeaderPrefix, Incompatible};
use roaring::RoaringTreemap;

use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::files::image_lock::ImageLock;
use crate::disk::files::{open_device, punch};
use crate::disk::io::{FileStore, Opener, ReadAt, Store, not_opened};

/// A qcow2 image that nobody else uses, open for reading and writing. As long as this lives,
/// nobody else can open it who heeds QEMU's locks.
pub struct ImageFile {
    store: Arc<dyn Store>,
    lock: Option<ImageLock>,
    /// Its length can be changed.
    is_regular: bool,
    /// Once it is proved to be sound: the clusters that were counted once and that nothing used.
    leaked: Mutex<Option<Arc<RoaringTreemap>>>,
}

/// A file that can only be read, where one is asked for that could be written.
struct ReadOnly(Arc<dyn ReadAt>);

impl ReadAt for ReadOnly {
    fn path(&self) -> &Path {
        self.0.path()
    }

    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.fd()
    }
}

impl Store for ReadOnly {
    fn write_at(&self, _: &[u8], _: u64) -> io::Result<usize> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

impl std::fmt::Debug for ImageFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageFile").field("path", &self.path()).finish_non_exhaustive()
    }
}

/// Opens the file or block device at `path` for reading and writing; says whether it is a file. No
/// lock is taken yet.
///
/// # Errors
/// [`ErrorKind::Busy`] if it is a device that is mounted here, or otherwise in use, though no lock
/// says so; [`ErrorKind::Image`] if it is neither a file nor a device; [`ErrorKind::NotFound`] or
/// [`ErrorKind::Io`] if it can't be opened.
pub fn open_to_change(path: &Path) -> Result<(File, bool)> {
    let failed = |error| Error::io("look at", path, error);
    let file = match std::fs::metadata(path).map_err(failed)?.file_type().is_block_device() {
        true => open_device(path)?,
        false => {
            Opener::CHANGE.open(path).map_err(|error| not_opened(path, error, ErrorKind::Image))?
        }
    };
    let is_regular = file.metadata().map_err(failed)?.is_file();
    Ok((file, is_regular))
}

impl ImageFile {
    /// Opens the image at `path`, which must be a regular file or a block device, and locks it as
    /// QEMU does. Whether it can be changed shows when it is.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if somebody uses it in any way; otherwise as [`open_to_change`].
    pub fn open(path: &Path) -> Result<Self> {
        let (file, is_regular) = open_to_change(path)?;
        let lock = ImageLock::exclusive(&file, path)?;
        let store = Arc::new(FileStore::new(file, path));
        Ok(Self { store, lock: Some(lock), is_regular, leaked: Mutex::default() })
    }

    /// The image in `store`. No lock is taken: whoever opened the store sees to it that nobody
    /// writes to it, and, if it is to be changed, that nobody uses it.
    pub fn over(store: Arc<dyn Store>) -> Self {
        Self { store, lock: None, is_regular: true, leaked: Mutex::default() }
    }

    /// The image in a file that can only be read: every change fails.
    pub fn to_read(file: Arc<dyn ReadAt>) -> Self {
        Self::over(Arc::new(ReadOnly(file)))
    }

    /// From now on it is only read, and others may read it, too. In between nobody could write.
    pub fn downgrade(&mut self) {
        if let Some(lock) = &mut self.lock {
            lock.downgrade();
        }
    }

    /// Why others may not heed that it is in use, if there is a reason.
    pub fn warning(&self) -> Option<&str> {
        self.lock.as_ref().and_then(ImageLock::warning)
    }

    /// The name that it was opened by.
    pub fn path(&self) -> &Path {
        self.store.path()
    }

    /// Size of the disk in bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Image`] if the image's header breaks the rules; [`ErrorKind::Io`].
    pub fn virtual_size(&self) -> Result<u64> {
        Ok(self.first_cluster()?.header().virtual_size())
    }

    /// Whether the disk's data lies in another file.
    ///
    /// # Errors
    /// As [`Self::virtual_size`].
    pub fn has_data_file(&self) -> Result<bool> {
        Ok(self.first_cluster()?.header().incompatible.contains(Incompatible::DATA_FILE))
    }

    /// The clusters that were counted once and used by nothing when it was proved to be sound; none if
    /// it was not proved since it was opened.
    pub(super) fn leaked(&self) -> Option<Arc<RoaringTreemap>> {
        self.leaked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// It is sound, but for these clusters: they were counted once, and nothing uses them.
    pub(super) fn set_proved(&self, leaked: RoaringTreemap) {
        let mut proved = self.leaked.lock().unwrap_or_else(PoisonError::into_inner);
        *proved = Some(Arc::new(leaked));
    }

    pub(super) fn len(&self) -> Result<u64> {
        self.store.len().map_err(|error| Error::io("find the end of", self.path(), error))
    }

    /// Fills `buffer` from `offset` on; what lies behind the end of the file reads as zeros.
    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let len = buffer.len();
        let failed = |error| {
            Error::io(format_args!("read {len} bytes at {offset:#x} of"), self.path(), error)
        };
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.store.read_at(rest, offset + done as u64) {
                Ok(0) => {
                    rest.fill(0);
                    break;
                }
                Ok(count) => done += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(())
    }

    pub(super) fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.store.write_all_at(bytes, offset).map_err(|error| {
            let len = bytes.len();
            Error::io(format_args!("write {len} bytes at {offset:#x} of"), self.path(), error)
        })
    }

    pub(super) fn sync(&self) -> Result<()> {
        self.store.sync().map_err(|error| Error::io("sync", self.path(), error))
    }

    /// Cuts the file to `len` bytes, if it has become longer and can be cut.
    pub(super) fn cut(&self, len: u64) -> Result<()> {
        if self.is_regular && self.len()? > len {
            return self.store.set_len(len).map_err(|error| Error::io("cut", self.path(), error));
        }
        Ok(())
    }

    /// Lets clusters that nothing leads to be holes of the file, as far as its filesystem can.
    pub(super) fn give_back(&self, clusters: &RoaringTreemap, size: ClusterSize) -> Result<()> {
        let Some(fd) = self.store.fd().filter(|_| self.is_regular) else { return Ok(()) };
        let mut numbers = clusters.iter().peekable();
        while let Some(first) = numbers.next() {
            let mut end = first + 1;
            while numbers.next_if_eq(&end).is_some() {
                end += 1;
            }
            let (start, len) = (first << size.bits(), (end - first) << size.bits());
            punch(fd, start..start + len)
                .map_err(|error| Error::io("punch a hole into", self.path(), error))?;
        }
        Ok(())
    }

    /// Whether the image is a file, and no device.
    pub fn is_regular(&self) -> bool {
        self.is_regular
    }

    /// The file itself.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The first cluster and the header in it.
    pub(super) fn first_cluster(&self) -> Result<FirstCluster> {
        let mut prefix = [0; HeaderPrefix::LEN];
        self.read(&mut prefix, 0)?;
        let prefix = HeaderPrefix::parse(&prefix).map_err(|error| self.wrong(error))?;
        let mut bytes = vec![0; prefix.cluster.len()];
        self.read(&mut bytes, 0)?;
        FirstCluster::parse(bytes).map_err(|error| self.wrong(error))
    }

    pub(super) fn wrong(&self, error: FormatError) -> Error {
        Error::format(ErrorKind::Image, self.path(), error)
    }

    pub(super) fn damaged(&self, what: impl std::fmt::Display) -> Error {
        Error::new(ErrorKind::Image, format!("{} is damaged: {what}", self.path().display()))
            .advise("look at it with `qemu-img check`")
    }

    /// It is in order, but this can't be done to it.
    pub(super) fn refused(&self, why: impl std::fmt::Display) -> Error {
        Error::new(ErrorKind::Image, format!("{} {why}", self.path().display()))
    }
}
