//! Writing to an existing block device: its old content must be gone afterwards.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use roaring::RoaringBitmap;

use super::existing::refuse_input;
use super::{ImageWriter, Options, Plan, on_disk, write_at};
use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::Observer;
use crate::base::warning::{Code, Warning};
use crate::disk::files::image_lock::ImageLock;
use crate::disk::files::{Zeroes, layers, open_device};
use crate::disk::io::{FileStore, ReadAt, Store};
use crate::disk::sys::FileId;

/// How much of the device's start and end is looked at for signs of use, in bytes.
const LOOKED_AT: u64 = 1 << 20;
/// How many bytes are zeroed between two checks for a request to stop.
const ZEROED_AT_ONCE: u64 = 256 << 20;

pub(super) struct Device {
    store: Arc<FileStore>,
    plan: Plan,
    /// The blocks that have been written. All other blocks are zeroed in the end, even planned
    /// blocks that never came: old bytes must not shine through.
    written: Mutex<RoaringBitmap>,
    _lock: ImageLock,
}

impl Device {
    pub(super) fn open(
        path: &Path,
        plan: Plan,
        options: &Options,
        observer: &dyn Observer,
    ) -> Result<Self> {
        let file = open_device(path)?;
        refuse_input(&file, path, &options.inputs)?;
        let lock = ImageLock::exclusive(&file, path)?;
        if let Some(warning) = lock.warning() {
            observer.warn(Warning::new(Code::NoLocks, warning));
        }
        let store = Arc::new(FileStore::new(file, path));
        check(&store, plan.virtual_size(), options.force)?;
        if let Some(warning) = longer(&store, plan.virtual_size())? {
            observer.warn(warning);
        }
        Ok(Self { store, plan, written: Mutex::default(), _lock: lock })
    }

    fn mark(&self, guest_offset: u64, len: usize) {
        let size = u64::from(self.plan.geometry().block_size());
        let first = guest_offset.div_ceil(size);
        let end = guest_offset + len as u64;
        // A block that was written in part counts as not written; only the disk's last block may be
        // cut.
        let last = if end >= self.plan.virtual_size() {
            self.plan.geometry().block_count()
        } else {
            end / size
        };
        if first < last {
            let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
            // Block numbers of a geometry fit 32 bits.
            written.insert_range(first as u32..=(last - 1) as u32);
        }
    }
}

impl ImageWriter for Device {
    fn write(&self, guest_offset: u64, bytes: &[u8]) -> Result<()> {
        let bytes = on_disk(&self.plan, guest_offset, bytes);
        write_at(self.store.as_ref(), guest_offset, bytes)?;
        self.mark(guest_offset, bytes.len());
        Ok(())
    }

    fn finish(self: Box<Self>, cancel: &Cancel, observer: &dyn Observer) -> Result<()> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        written.optimize();
        let total = self.plan.outside(&written).map(|gap| gap.end - gap.start).sum();
        observer.begin("zero", total);
        let mut zeroes = Zeroes::on_device(&self.store);
        for gap in self.plan.outside(&written) {
            let mut start = gap.start;
            while start < gap.end {
                cancel.check()?;
                let end = gap.end.min(start + ZEROED_AT_ONCE);
                zeroes.write(start..end).map_err(|error| {
                    let operation = format!("zero {} bytes at {start} of", end - start);
                    Error::io(operation, self.store.path(), error)
                })?;
                observer.advance(end - start);
                start = end;
            }
        }
        self.store.sync().map_err(|error| Error::io("sync", self.store.path(), error))?;
        observer.end();
        Ok(())
    }
}

/// Fails if the device at `path` can't take a disk of this length, or holds something that is not to be replaced.
///
/// # Errors
/// It is in use, too short, or not empty.
pub(crate) fn check_device(path: &Path, virtual_size: u64, force: bool) -> Result<()> {
    let file = open_device(path)?;
    let _lock = ImageLock::exclusive(&file, path)?;
    check(&FileStore::new(file, path), virtual_size, force)
}

fn check(store: &FileStore, virtual_size: u64, force: bool) -> Result<()> {
    let path = store.path();
    let size = store.len().map_err(|error| Error::io("measure", path, error))?;
    check_writable(store)?;
    if size < virtual_size {
        let text = format!("{} has {size} bytes and the disk has {virtual_size}", path.display());
        return Err(Error::new(ErrorKind::NoSpace, text));
    }
    if !force && !is_empty(store, size)? {
        let text = format!("{} is not empty", path.display());
        return Err(
            Error::new(ErrorKind::Exists, text).advise("give --force to overwrite the device")
        );
    }
    Ok(())
}

/// Warns if bytes that somebody else left lie behind the end of a disk of this length: the guest sees them.
fn longer(store: &FileStore, virtual_size: u64) -> Result<Option<Warning>> {
    let path = store.path();
    let size = store.len().map_err(|error| Error::io("measure", path, error))?;
    let len = LOOKED_AT.min(size.saturating_sub(virtual_size));
    let mut bytes = vec![0; len as usize];
    for offset in [virtual_size, size - len] {
        store
            .read_exact_at(&mut bytes, offset)
            .map_err(|error| Error::io(format!("read {len} bytes at {offset} of"), path, error))?;
        if bytes.iter().any(|byte| *byte != 0) {
            let text = format!(
                "{} has {size} bytes and the disk {virtual_size}: what lies behind its end stays there, and the \
                 guest sees it",
                path.display()
            );
            let warning = Warning::new(Code::Longer, text);
            return Ok(Some(warning.advise("blkdiscard or dd clears the device beforehand")));
        }
    }
    Ok(None)
}

/// Fails if the kernel lets nobody write to the device.
fn check_writable(store: &FileStore) -> Result<()> {
    let path = store.path();
    let id = FileId::of(store.file()).map_err(|error| Error::io("look at", path, error))?;
    if layers::is_read_only(id) {
        let text = format!("{} can only be read", path.display());
        return Err(Error::new(ErrorKind::Io, text)
            .advise("blockdev --setrw, or lvchange --permission rw, lets it be written to"));
    }
    Ok(())
}

/// Whether the device shows no sign of use: nothing but zeros where partition tables, filesystems
/// and volume managers put their marks.
fn is_empty(store: &FileStore, size: u64) -> Result<bool> {
    let len = LOOKED_AT.min(size);
    let mut bytes = vec![0; len as usize];
    for offset in [0, size - len] {
        store.read_exact_at(&mut bytes, offset).map_err(|error| {
            Error::io(format!("read {len} bytes at {offset} of"), store.path(), error)
        })?;
        if bytes.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}
