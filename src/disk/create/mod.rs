//! Where a restored disk goes: a new raw or qcow2 file, a block device, a pipe, or nowhere.
//!
//! Before anything is read from an archive, [`create`] looks at what the path names, refuses an
//! output that must not be overwritten, and checks the room. It gives an [`ImageWriter`], which
//! takes whole blocks, and from many threads at once where the output can be written in any order.
//! Nothing has its final name before [`ImageWriter::finish`].

mod device;
mod discard;
mod existing;
mod pipe;
mod plan;
mod qcow2;
mod raw;
mod stream;
mod target;

use std::path::Path;
use std::sync::Arc;

use roaring::RoaringBitmap;

pub(crate) use device::check_device;
pub use discard::Discard;
pub use pipe::Pipe;
pub use plan::Plan;
pub use stream::Stream;
pub use target::Target;

use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::Observer;
use crate::disk::files::{check_new_file, room};
use crate::disk::image::Format;
use crate::disk::io::Store;
use crate::disk::sys::FileId;
use crate::formats::archive::Geometry;
use crate::formats::qcow2::BACKING_NAME_LEN_MAX;

/// How to write an output.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The format.
    pub format: Format,
    /// Whether an existing file may be replaced, and a device that is not empty overwritten.
    pub force: bool,
    /// The files that the restore reads: none of them can be the output.
    pub inputs: Vec<FileId>,
    /// Ends the wait for the reader of a pipe.
    pub cancel: Cancel,
}

/// Takes the blocks of a disk.
pub trait ImageWriter: Send + Sync {
    /// Whether blocks must come in ascending order, and so from one thread at a time. Otherwise
    /// any number of threads may write at once, each block once.
    fn in_order(&self) -> bool {
        false
    }

    /// Writes neighbouring blocks of the [`Plan`]'s data. `guest_offset` is where the first one
    /// starts, `bytes` are whole blocks; bytes past the end of the disk are left out.
    ///
    /// Blocks that are never written read as zeros in the end.
    ///
    /// # Errors
    /// `NoSpace`, `Io`; `Closed` if a pipe's reader has gone away; `Usage` for a block that is not
    /// in the plan, or out of order.
    fn write(&self, guest_offset: u64, bytes: &[u8]) -> Result<()>;

    /// Where blocks can be written without [`Self::write`], at the offset that [`Self::place`]
    /// gives: a file that a [`crate::disk::io::Queue`] can write to.
    fn store(&self) -> Option<Arc<dyn Store>> {
        None
    }

    /// The offset in [`Self::store`] of the block at `guest_offset`; `None` if the block is not in
    /// the plan or if there is no store. Neighbouring blocks of the plan have neighbouring places.
    fn place(&self, guest_offset: u64) -> Option<u64> {
        let _ = guest_offset;
        None
    }

    /// How many of the `len` bytes from `guest_offset` on, which has a place, lie in one run there.
    fn run_len(&self, guest_offset: u64, len: usize) -> usize {
        let _ = guest_offset;
        len
    }

    /// Completes the output, puts it on stable storage, and gives it its final name. If the output
    /// is a file and the writer is dropped before this call, the file is removed.
    ///
    /// # Errors
    /// `NoSpace`, `Io`, `Closed`; `Interrupted` if `cancel` says so; `Exists` if a file has got the
    /// name meanwhile.
    fn finish(self: Box<Self>, cancel: &Cancel, observer: &dyn Observer) -> Result<()>;
}

/// Prepares `path` to be written to: a new file, an existing one if `options` allow it, a block
/// device, or a named pipe.
///
/// # Errors
/// - `Exists`: there is a file, or the device is not empty, and nothing was forced.
/// - `NoSpace`: the filesystem or the device is too small for the plan.
/// - `Busy`: the device or file is in use, or another process writes this output.
/// - `Usage`: the output is one of the inputs, a folder, a new file among devices, or can't hold the
///   format.
/// - `NotFound`: there is no such folder.
/// - `Interrupted`: nobody reads from the pipe, and the options say so.
pub fn create(
    path: &Path,
    plan: Plan,
    options: &Options,
    observer: &dyn Observer,
) -> Result<Box<dyn ImageWriter>> {
    match existing::Existing::look(path)? {
        existing::Existing::Device => {
            need_raw(path, options, "a block device")?;
            Ok(Box::new(device::Device::open(path, plan, options, observer)?))
        }
        existing::Existing::Pipe => {
            need_raw(path, options, "a pipe")?;
            let pipe = Pipe::open(path, &options.cancel)?;
            Ok(Box::new(Stream::new(Box::new(pipe), path, plan)))
        }
        existing::Existing::Character => {
            need_raw(path, options, "a character device")?;
            let device = std::fs::File::options().write(true).open(path);
            let device = device.map_err(|error| Error::io("open", path, error))?;
            Ok(Box::new(Stream::new(Box::new(device), path, plan)))
        }
        existing::Existing::Nothing | existing::Existing::File => {
            check_new_file(path)?;
            let target = Target::create(path, options.force, &options.inputs)?;
            match options.format {
                Format::Raw => Ok(Box::new(raw::Raw::new(target, plan)?)),
                Format::Qcow2 => Ok(Box::new(qcow2::Qcow2::new(target, plan, None)?)),
            }
        }
    }
}

/// Makes a qcow2 image that holds nothing yet: what is not written to it reads from a raw disk of the same
/// size, which QEMU finds by the name `backing`.
///
/// # Errors
/// `Exists`, `NoSpace`, `Io`, as [`create`]; `Usage` if the name is longer than the format takes.
pub fn overlay(
    path: &Path,
    geometry: Geometry,
    backing: &str,
    cancel: &Cancel,
    observer: &dyn Observer,
) -> Result<()> {
    if backing.len() > BACKING_NAME_LEN_MAX as usize {
        let text = format!(
            "{} would need a backing file's name of {} bytes, and qcow2 takes {BACKING_NAME_LEN_MAX}",
            path.display(),
            backing.len()
        );
        return Err(Error::new(ErrorKind::Usage, text));
    }
    check_new_file(path)?;
    let target = Target::create(path, false, &[])?;
    let plan = Plan::new(geometry, RoaringBitmap::new())?;
    Box::new(qcow2::Qcow2::new(target, plan, Some(backing))?).finish(cancel, observer)
}

/// How much room a new file for the plan takes, at most, in bytes.
///
/// # Errors
/// `Usage` if the disk does not fit into the format.
pub fn room_needed(plan: &Plan, format: Format) -> Result<u64> {
    Ok(match format {
        Format::Raw => room::with_pieces(plan.data_bytes(), plan.pieces()),
        Format::Qcow2 => qcow2::room_needed(plan)?,
    })
}

fn need_raw(path: &Path, options: &Options, what: &str) -> Result<()> {
    if options.format == Format::Raw {
        return Ok(());
    }
    let text = format!("{} is {what}, which can't take {}", path.display(), options.format);
    Err(Error::new(ErrorKind::Usage, text).advise("restore raw to it, or qcow2 to a file"))
}

/// The part of `bytes` that lies on the disk.
fn on_disk<'a>(plan: &Plan, guest_offset: u64, bytes: &'a [u8]) -> &'a [u8] {
    let room = plan.virtual_size().saturating_sub(guest_offset);
    let len = usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len());
    bytes.get(..len).unwrap_or(bytes)
}

/// Writes all of `bytes` at `offset`.
fn write_at(store: &dyn Store, offset: u64, bytes: &[u8]) -> Result<()> {
    store.write_all_at(bytes, offset).map_err(|error| {
        Error::io(format!("write {} bytes at {offset} to", bytes.len()), store.path(), error)
    })
}
