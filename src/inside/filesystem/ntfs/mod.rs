//! NTFS. Names of DOS and the filesystem's own files are not shown; other streams of a file are shown as
//! attributes, as Linux shows them.

mod data;
mod records;

use std::collections::HashSet;
use std::sync::Arc;

use qdelta_formats::FormatError;
use qdelta_formats::filesystems::ntfs::record::{Reparse, Value, kind};
use qdelta_formats::filesystems::ntfs::{self, Parameters, Reference, index};

use super::runs::Runs;
use super::source::Source;
use super::{Attributes, Data, ENTRIES_MAX, Entry, FileKind, Filesystem, Id, Node, Place, damaged};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::shelf::Shelf;
use crate::disk::io::ReadAt;
use crate::inside::volumes::Content;
use records::File;

/// What the files that are kept may weigh, about as many bytes.
const FILES: u64 = 16 << 20;
/// The longest value of an attribute that Linux knows.
const STREAM_LEN_MAX: u64 = 64 << 10;
/// The most bytes of all attributes of a file.
const STREAMS_LEN_MAX: u64 = 16 << 20;
/// How the content of a link begins that was made by other systems than Windows.
const LINK_MAGIC: &[u8] = b"IntxLNK\x01";
/// The longest target of such a link.
const TARGET_LEN_MAX: u64 = 64 << 10;

/// An NTFS.
pub(super) struct Ntfs {
    source: Source,
    parameters: Parameters,
    /// Where the table of records lies.
    table: Runs,
    files: Shelf<u64, File>,
}

/// What a file is, and where its link leads if it is one.
enum Is {
    Plain(FileKind),
    Link(Vec<u8>),
    /// Something else stands in the place of its content.
    Foreign(u32),
}

impl Ntfs {
    pub fn open(volume: Arc<dyn ReadAt>) -> Result<Self> {
        let source = Source::new(volume)?;
        let parameters = Parameters::parse(&source.bytes(0, ntfs::BOOT_LEN)?);
        let parameters = parameters.map_err(|error| wrong(&source, error))?;
        let mut opened =
            Self { source, parameters, table: Runs::default(), files: Shelf::new(16, FILES) };
        opened.find_table()?;
        Ok(opened)
    }

    fn damaged(&self, text: &str) -> Error {
        damaged(format!("{}: {text}", self.source.name()))
    }

    fn wrong(&self, error: FormatError) -> Error {
        wrong(&self.source, error)
    }

    fn what(&self, file: &File) -> Result<Is> {
        if let Some(Value::Here(bytes)) = file.first(kind::REPARSE, b"").map(|found| &found.value) {
            return Ok(match Reparse::parse(bytes).map_err(|error| self.wrong(error))? {
                Reparse::Link(target) => Is::Link(target),
                Reparse::Other(tag) => Is::Foreign(tag),
            });
        }
        if file.is_folder {
            return Ok(Is::Plain(FileKind::Folder));
        }
        if file.standard.is_system {
            let data = self.stream(file, b"")?;
            if data.size() > LINK_MAGIC.len() as u64 && data.size() < TARGET_LEN_MAX {
                let mut bytes = vec![0; data.size() as usize];
                data.read(&mut bytes, 0)?;
                if let Some(target) = bytes.strip_prefix(LINK_MAGIC) {
                    return Ok(Is::Link(ntfs::text_of(target)));
                }
            }
        }
        Ok(Is::Plain(FileKind::File))
    }

    /// A stream that an attribute of Linux can hold, and that there is room for.
    fn small_stream(&self, file: &File, name: &[u8], room: u64) -> Result<Vec<u8>> {
        let data = self.stream(file, name)?;
        let size = data.size();
        if size > STREAM_LEN_MAX || size > room {
            let text = match size > STREAM_LEN_MAX {
                true => format!("it has {size} bytes: too many for an attribute"),
                false => format!("the streams of the file have more than {STREAMS_LEN_MAX} bytes"),
            };
            return Err(Error::new(ErrorKind::Image, text)
                .advise("restore the disk, and let Windows read it"));
        }
        let mut bytes = vec![0; size as usize];
        data.read(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// Calls `found` for each name in a folder, until it has enough.
    fn entries(&self, folder: Id, mut found: impl FnMut(Vec<u8>, Reference) -> bool) -> Result<()> {
        let file = self.file(folder)?;
        let root = file.first(kind::INDEX_ROOT, index::NAMES);
        let Some(Value::Here(bytes)) = root.map(|root| &root.value) else {
            return Err(self.damaged("a folder has no tree of names"));
        };
        let (mut node, len) = index::root(bytes).map_err(|error| self.wrong(error))?;
        let len = u64::from(len);
        if !(512..=65536).contains(&len) || !len.is_power_of_two() {
            return Err(self.damaged("the tree of a folder has nodes of no size"));
        }
        // Nodes are counted in clusters, or in sectors where they are smaller.
        let unit = if len >= self.parameters.cluster { self.parameters.cluster } else { 512 };
        let mut tree = None;
        let mut todo: Vec<u64> = Vec::new();
        let mut seen: HashSet<u64> = HashSet::new();
        loop {
            for (name, reference) in node.entries {
                let own = reference.number() < ntfs::FIRST_USERS;
                let leads_elsewhere = matches!(&*name, b"" | b"." | b"..")
                    || name.iter().any(|byte| matches!(byte, 0 | b'/'));
                if !own && !leads_elsewhere && !found(name, reference) {
                    return Ok(());
                }
            }
            todo.extend(node.below);
            let Some(below) = todo.pop() else { return Ok(()) };
            if !seen.insert(below) {
                return Err(self.damaged("the tree of a folder goes round in a circle"));
            }
            if tree.is_none() {
                tree = Some(self.value(&file, kind::INDEX, index::NAMES)?);
            }
            let mut bytes = vec![0; len as usize];
            let at = below.checked_mul(unit);
            let count = match (&tree, at) {
                (Some(tree), Some(at)) => tree.read(&mut bytes, at)?,
                _ => 0,
            };
            if count < bytes.len() {
                return Err(self.damaged("the tree of a folder leads outside the folder"));
            }
            ntfs::put_back(&mut bytes, b"INDX").map_err(|error| self.wrong(error))?;
            node = index::inner(&bytes).map_err(|error| self.wrong(error))?;
        }
    }
}

impl Filesystem for Ntfs {
    fn content(&self) -> Content {
        Content::Ntfs
    }

    fn notes(&self) -> &[String] {
        &[]
    }

    fn root(&self) -> Id {
        ntfs::ROOT
    }

    fn node(&self, id: Id) -> Result<Node> {
        let file = self.file(id)?;
        let (kind, size) = match self.what(&file)? {
            Is::Plain(FileKind::Folder) => (FileKind::Folder, 0),
            Is::Plain(kind) => (kind, self.stream_size(&file, b"")),
            Is::Link(target) => (FileKind::Link, target.len() as u64),
            Is::Foreign(_) if file.is_folder => (FileKind::Folder, 0),
            Is::Foreign(_) => (FileKind::File, self.stream_size(&file, b"")),
        };
        let mode = match kind {
            FileKind::Folder => 0o755,
            FileKind::Link => 0o777,
            _ if file.standard.is_read_only => 0o444,
            _ => 0o644,
        };
        Ok(Node {
            kind,
            mode,
            uid: 0,
            gid: 0,
            size,
            links: file.links,
            accessed: Some(file.standard.accessed),
            changed: Some(file.standard.changed),
            modified: file.standard.modified,
            device: (0, 0),
            place: file.place,
        })
    }

    fn list(&self, folder: Id) -> Result<Vec<Entry>> {
        let mut list = Vec::new();
        self.entries(folder, |name, reference| {
            list.push(Entry { name, id: reference.0 });
            list.len() <= ENTRIES_MAX
        })?;
        if list.len() > ENTRIES_MAX {
            return Err(super::too_many(&self.source.name()));
        }
        Ok(list)
    }

    /// The name as it is written; or one that differs from it in upper and lower case alone.
    fn lookup(&self, folder: Id, name: &[u8]) -> Result<Option<Id>> {
        let wanted = String::from_utf8_lossy(name).to_uppercase();
        let (mut exact, mut similar) = (None, None);
        self.entries(folder, |found, reference| {
            if found == name {
                exact = Some(reference.0);
            } else if similar.is_none() && String::from_utf8_lossy(&found).to_uppercase() == wanted
            {
                similar = Some(reference.0);
            }
            exact.is_none()
        })?;
        Ok(exact.or(similar))
    }

    fn open(&self, id: Id) -> Result<Box<dyn Data + '_>> {
        let file = self.file(id)?;
        match self.what(&file)? {
            Is::Foreign(tag) => {
                let text = format!(
                    "{}: a file's content is kept in another form by Windows (reparse tag {tag:#x})",
                    self.source.name()
                );
                Err(Error::new(ErrorKind::Image, text)
                    .advise("restore the disk, and let Windows read it"))
            }
            Is::Plain(FileKind::Folder) => self.value(&file, kind::INDEX, index::NAMES),
            _ => self.stream(&file, b""),
        }
    }

    fn target(&self, link: Id) -> Result<Vec<u8>> {
        match self.what(&*self.file(link)?)? {
            Is::Link(target) => Ok(target),
            _ => Err(self.damaged("a file is taken for a link")),
        }
    }

    /// The other streams of a file, which have no other place in a tree of Unix.
    fn attributes(&self, id: Id) -> Result<Attributes> {
        let file = self.file(id)?;
        let mut found = Attributes::default();
        let mut room = STREAMS_LEN_MAX;
        for name in file.streams() {
            match self.small_stream(&file, &name, room) {
                Ok(bytes) => {
                    room = room.saturating_sub(bytes.len() as u64);
                    found.list.push(([b"user.", name.as_slice()].concat(), bytes));
                }
                Err(error) if matches!(error.kind(), ErrorKind::Image | ErrorKind::Damaged) => {
                    let name = String::from_utf8_lossy(&name).into_owned();
                    let text = format!("the stream {name:?} is left out");
                    found.problems.push(error.within(text));
                }
                Err(error) => return Err(error),
            }
        }
        found.list.sort();
        Ok(found)
    }
}

/// Bytes of a volume that do not follow the format.
fn wrong(source: &Source, error: FormatError) -> Error {
    damaged(source.name()).because(error)
}
