//! The files of a volume, behind one trait. Readers never write, never believe a length or a count, and
//! end on every volume.

mod ext;
mod fat;
mod ntfs;
mod path;
mod runs;
mod source;
mod tar;
mod walk;

use std::sync::Arc;

pub use qdelta_formats::filesystems::{FileKind, Time};

pub use path::{Found, find};
pub use walk::{Item, Step, walk};

use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::io::ReadAt;
use crate::inside::volumes::Content;

/// The most entries of a folder that are listed.
pub const ENTRIES_MAX: usize = 2 << 20;

/// What stands for a file in its filesystem: the number of an inode, or of a record.
pub type Id = u64;

/// What a filesystem says of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What kind of file it is.
    pub kind: FileKind,
    /// Permissions: 12 bits. A filesystem without owners has 0755 for folders and 0644 for files.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size of the content in bytes; of a link, of its target.
    pub size: u64,
    /// How many names the file has in its filesystem.
    pub links: u32,
    /// Last access, if the filesystem keeps the time of it.
    pub accessed: Option<Time>,
    /// Last change of the file's attributes, if the filesystem keeps the time of it.
    pub changed: Option<Time>,
    /// Last change of the content.
    pub modified: Time,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Where the node itself lies on the volume, in bytes.
    pub place: (u64, u64),
}

/// A name in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name: any bytes but `/` and zero.
    pub name: Vec<u8>,
    /// What it stands for.
    pub id: Id,
}

/// What a stretch of a file's content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Nothing was written: it reads as zeros.
    Hole,
    /// It lies as it is at this byte of the volume.
    At(u64),
    /// It lies somewhere in another form: in the file's own record, in a journal, compressed.
    Elsewhere,
}

/// The content of a file, to be read anywhere.
pub trait Data {
    /// Its size in bytes.
    fn size(&self) -> u64;
    /// What the content is from `offset` on, and the byte at which that ends; at least one byte, where
    /// `offset` lies before the end of the content.
    ///
    /// # Errors
    /// The filesystem is damaged, or can't be read.
    fn stretch(&self, offset: u64) -> Result<(Place, u64)>;
    /// Fills `out` with the content at `offset`, as far as the content goes; gives how many bytes.
    ///
    /// # Errors
    /// As [`Data::stretch`].
    fn read(&self, out: &mut [u8], offset: u64) -> Result<usize>;
}

/// An extended attribute: its name with its prefix, and its value, as `getxattr` has them.
pub type Attribute = (Vec<u8>, Vec<u8>);

/// The extended attributes of a file, as far as they can be had.
#[derive(Debug, Default)]
pub struct Attributes {
    /// Those that are whole, by name.
    pub list: Vec<Attribute>,
    /// Why each of the others is missing.
    pub problems: Vec<Error>,
}

/// A filesystem that is read.
pub trait Filesystem: Send + Sync {
    /// Which one it is.
    fn content(&self) -> Content;
    /// What somebody who reads from it should know, in words.
    fn notes(&self) -> &[String];
    /// The root folder.
    fn root(&self) -> Id;
    /// What the filesystem says of a file.
    ///
    /// # Errors
    /// [`ErrorKind::Image`]: the filesystem is damaged. Others: the volume can't be read.
    fn node(&self, id: Id) -> Result<Node>;
    /// The names in a folder, in any order, without `.` and `..`.
    ///
    /// # Errors
    /// As [`Filesystem::node`]; and the folder is encrypted, or has more than [`ENTRIES_MAX`] names.
    fn list(&self, folder: Id) -> Result<Vec<Entry>>;
    /// What a name in a folder stands for.
    ///
    /// # Errors
    /// As [`Filesystem::list`].
    fn lookup(&self, folder: Id, name: &[u8]) -> Result<Option<Id>>;
    /// The content of a file, or of a folder as it lies on the volume.
    ///
    /// # Errors
    /// As [`Filesystem::node`]; and the content is encrypted, or in a form that is not read here.
    fn open(&self, id: Id) -> Result<Box<dyn Data + '_>>;
    /// The target of a symbolic link.
    ///
    /// # Errors
    /// As [`Filesystem::open`].
    fn target(&self, link: Id) -> Result<Vec<u8>>;
    /// The extended attributes of a file. One that can't be had keeps none of the others back.
    ///
    /// # Errors
    /// As [`Filesystem::node`]: nothing is known of any of them.
    fn attributes(&self, id: Id) -> Result<Attributes>;
}

/// Opens the filesystem of a volume that holds `content`.
///
/// # Errors
/// [`ErrorKind::Image`]: the filesystem is damaged, or is one that is not read here.
pub fn open(volume: Arc<dyn ReadAt>, content: Content) -> Result<Box<dyn Filesystem>> {
    match content {
        Content::Ext => Ok(Box::new(ext::Ext::open(volume)?)),
        Content::Ntfs => Ok(Box::new(ntfs::Ntfs::open(volume)?)),
        Content::Fat => Ok(Box::new(fat::Fat::open(volume)?)),
        Content::Tar => Ok(Box::new(tar::Tar::open(volume)?)),
        other => Err(not_read_here(&*volume, other)),
    }
}

/// Opens the content of a file, whose size is one that a file can have.
///
/// # Errors
/// As [`Filesystem::open`]; [`ErrorKind::Image`]: the size is none that an offset reaches.
pub fn open_content(filesystem: &dyn Filesystem, id: Id) -> Result<Box<dyn Data + '_>> {
    let data = filesystem.open(id)?;
    match i64::try_from(data.size()) {
        Ok(_) => Ok(data),
        Err(_) => Err(damaged(format!("the file has a size of {} bytes", data.size()))),
    }
}

/// Whether the files of a volume that holds `content` can be read here.
pub fn is_readable(content: Content) -> bool {
    matches!(content, Content::Ext | Content::Fat | Content::Ntfs | Content::Tar)
}

fn not_read_here(volume: &dyn ReadAt, content: Content) -> Error {
    let what = match content {
        Content::Unknown => "nothing that is known here".to_owned(),
        known => format!("{known}, whose files are not read here"),
    };
    Error::new(ErrorKind::Image, format!("{} holds {what}", volume.path().display())).advise(
        "`qdelta mount` shows the volume as a file for other programs; docs/files.md has the lines",
    )
}

/// A filesystem makes no sense at some place.
fn damaged(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::Image, text.into())
}

/// A folder has more names than are listed.
fn too_many(volume: &str) -> Error {
    Error::new(ErrorKind::Image, format!("{volume}: a folder has more than {ENTRIES_MAX} names"))
        .advise("`qdelta mount` shows the volume as a file, which other programs read")
}
