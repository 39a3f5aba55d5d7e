//! ext2, ext3 and ext4. A journal that was not written to its place yet is read in its place, as a mount
//! would do, and nothing is written for it.

mod data;
mod replay;

use std::collections::BTreeMap;
use std::sync::Arc;

use qdelta_formats::FormatError;
use qdelta_formats::filesystems::ext::attributes::{self, Value};
use qdelta_formats::filesystems::ext::inode::{BODY_LEN, Inode};
use qdelta_formats::filesystems::ext::{self, Superblock, folder, journal};

use super::source::Source;
use super::{Attributes, Data, ENTRIES_MAX, Entry, FileKind, Filesystem, Id, Node, Place, damaged};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::shelf::Shelf;
use crate::disk::io::ReadAt;
use crate::inside::volumes::Content;
use data::{Blocks, Inline};

/// How many inodes are kept, about 300 bytes each.
const INODES: u64 = 4096;
/// The longest folder that is read, with its holes.
const FOLDER_LEN_MAX: u64 = 4 << 30;
/// The longest target of a link; the kernel takes one of a block at most.
const TARGET_LEN_MAX: u64 = 65536;
/// The most bytes of all attributes of a file.
const ATTRIBUTES_LEN_MAX: usize = 16 << 20;

/// Blocks that are newer in the journal: where each lies there in bytes, and whether its start was escaped.
type Newer = BTreeMap<u64, (u64, bool)>;

/// A filesystem of the ext family.
pub(super) struct Ext {
    source: Source,
    superblock: Superblock,
    inodes: Shelf<u32, Inode>,
    newer: Newer,
    notes: Vec<String>,
}

impl Ext {
    pub fn open(volume: Arc<dyn ReadAt>) -> Result<Self> {
        let source = Source::new(volume)?;
        let bytes = source.bytes(ext::SUPERBLOCK_AT, ext::SUPERBLOCK_LEN)?;
        let superblock = Superblock::parse(&bytes).map_err(|error| wrong(&source, error))?;
        let mut opened = Self {
            source,
            superblock,
            inodes: Shelf::new(16, INODES),
            newer: BTreeMap::new(),
            notes: Vec::new(),
        };
        opened.replay()?;
        Ok(opened)
    }

    /// Fills `out` with the bytes at `offset`, those of the journal where it has newer ones.
    fn read(&self, out: &mut [u8], offset: u64) -> Result<()> {
        if self.newer.is_empty() {
            return self.source.read(out, offset);
        }
        let block = self.superblock.block;
        let mut done = 0;
        while done < out.len() {
            let at = offset.saturating_add(done as u64);
            let count = (block - at % block).min((out.len() - done) as u64) as usize;
            let part = out.get_mut(done..done + count).unwrap_or_default();
            match self.newer.get(&(at / block)) {
                None => self.source.read(part, at)?,
                Some((place, escaped)) => {
                    let mut whole = self.source.bytes(*place, block as usize)?;
                    if *escaped {
                        journal::unescape(&mut whole);
                    }
                    let from = whole.get((at % block) as usize..).unwrap_or_default();
                    for (to, from) in part.iter_mut().zip(from) {
                        *to = *from;
                    }
                }
            }
            done += count;
        }
        Ok(())
    }

    /// A block of the filesystem.
    fn block(&self, number: u64) -> Result<Vec<u8>> {
        let at = number.checked_mul(self.superblock.block);
        let at = at.ok_or_else(|| self.damaged("a block behind the end is named"))?;
        let mut bytes = vec![0; self.superblock.block as usize];
        self.read(&mut bytes, at)?;
        Ok(bytes)
    }

    /// Where an inode lies in bytes.
    fn place_of(&self, number: u32) -> Result<u64> {
        let no_such = || self.damaged(&format!("inode {number} is named, which does not exist"));
        let (group, index) = self.superblock.place_of(number).ok_or_else(no_such)?;
        let (at, len) = self.superblock.descriptor_at(group).ok_or_else(no_such)?;
        let mut descriptor = vec![0; len];
        self.read(&mut descriptor, at)?;
        let table = ext::inode_table(&descriptor).map_err(|error| wrong(&self.source, error))?;
        let within = u64::from(index) * u64::from(self.superblock.inode_len);
        let at = table.checked_mul(self.superblock.block).and_then(|at| at.checked_add(within));
        at.ok_or_else(no_such)
    }

    fn inode(&self, id: Id) -> Result<Arc<Inode>> {
        let number = u32::try_from(id).map_err(|_| self.damaged("an inode number out of range"))?;
        self.inodes.get(number, 1, || {
            let mut bytes = vec![0; self.superblock.inode_len.into()];
            self.read(&mut bytes, self.place_of(number)?)?;
            Inode::parse(&bytes).map_err(|error| wrong(&self.source, error))
        })
    }

    fn damaged(&self, text: &str) -> Error {
        damaged(format!("{}: {text}", self.source.name()))
    }

    /// The content of an inode, whatever it is.
    fn content_of(&self, inode: &Arc<Inode>) -> Result<Box<dyn Data + '_>> {
        if !inode.is_inline() {
            return Ok(Box::new(Blocks::new(self, Arc::clone(inode))));
        }
        Ok(Box::new(Inline::new(self.inline(inode)?, inode.size)))
    }

    /// The bytes of a content that lies in its inode.
    fn inline(&self, inode: &Inode) -> Result<Vec<u8>> {
        let mut bytes = inode.body.to_vec();
        let found = attributes::in_inode(&inode.tail);
        for attribute in found.map_err(|error| wrong(&self.source, error))? {
            if let (attributes::INLINE, Value::Bytes(rest)) = (&*attribute.name, &attribute.value) {
                bytes.extend_from_slice(rest);
            }
        }
        Ok(bytes)
    }

    /// Calls `found` for each entry of a folder, until it says that it has enough.
    fn entries(&self, id: Id, mut found: impl FnMut(folder::Entry<'_>) -> bool) -> Result<()> {
        let inode = self.inode(id)?;
        if inode.kind != Some(FileKind::Folder) {
            return Err(self.damaged(&format!("inode {id} is no folder")));
        }
        if inode.is_encrypted() {
            return Err(self.encrypted("a folder"));
        }
        let has_types = self.superblock.has_file_types();
        let mut each = |block: &[u8]| -> Result<bool> {
            let entries = folder::entries(block, has_types);
            let entries = entries.map_err(|error| {
                wrong(&self.source, error).within(format!("the folder of inode {id} is damaged"))
            })?;
            Ok(entries.into_iter().all(&mut found))
        };
        if inode.is_inline() {
            // The folder's parent comes first; what does not fit goes on in an attribute.
            let bytes = self.inline(&inode)?;
            let (body, rest) = bytes.split_at(BODY_LEN.min(bytes.len()));
            if each(body.get(4..).unwrap_or_default())? && !rest.is_empty() {
                each(rest)?;
            }
            return Ok(());
        }
        let block = self.superblock.block;
        if inode.size > FOLDER_LEN_MAX {
            return Err(self.damaged(&format!("the folder of inode {id} has {} bytes", inode.size)));
        }
        let data = Blocks::new(self, inode);
        let mut bytes = vec![0; block as usize];
        let mut at = 0;
        while at < data.size() {
            let (place, end) = data.stretch(at)?;
            if place == Place::Hole {
                at = end.next_multiple_of(block);
                continue;
            }
            let count = data.read(&mut bytes, at)?;
            if !each(bytes.get(..count).unwrap_or_default())? {
                return Ok(());
            }
            at += block;
        }
        Ok(())
    }

    fn encrypted(&self, what: &str) -> Error {
        let text = format!("{}: {what} is encrypted by the guest", self.source.name());
        Error::new(ErrorKind::Image, text).advise("only the guest has the key: restore the disk")
    }

    /// The value of an attribute.
    fn value(&self, value: Value) -> Result<Vec<u8>> {
        match value {
            Value::Bytes(bytes) => Ok(bytes),
            Value::Inode(number, len) => {
                let inode = self.inode(number.into())?;
                let mut bytes = vec![0; len as usize];
                let count = self.content_of(&inode)?.read(&mut bytes, 0)?;
                bytes.truncate(count);
                Ok(bytes)
            }
        }
    }
}

impl Filesystem for Ext {
    fn content(&self) -> Content {
        Content::Ext
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }

    fn root(&self) -> Id {
        ext::ROOT.into()
    }

    fn node(&self, id: Id) -> Result<Node> {
        let inode = self.inode(id)?;
        let kind = inode.kind.filter(|_| inode.links > 0 || id == self.root());
        let kind = kind.ok_or_else(|| self.damaged(&format!("inode {id} is not one of a file")))?;
        let is_device = matches!(kind, FileKind::CharacterDevice | FileKind::BlockDevice);
        Ok(Node {
            kind,
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            size: inode.size,
            links: inode.links.into(),
            accessed: Some(inode.accessed),
            changed: Some(inode.changed),
            modified: inode.modified,
            device: if is_device { inode.device() } else { (0, 0) },
            place: (self.place_of(id as u32)?, self.superblock.inode_len.into()),
        })
    }

    fn list(&self, folder: Id) -> Result<Vec<Entry>> {
        let mut list = Vec::new();
        self.entries(folder, |entry| {
            list.push(Entry { name: entry.name.to_vec(), id: entry.inode.into() });
            list.len() <= ENTRIES_MAX
        })?;
        if list.len() > ENTRIES_MAX {
            return Err(super::too_many(&self.source.name()));
        }
        Ok(list)
    }

    fn lookup(&self, folder: Id, name: &[u8]) -> Result<Option<Id>> {
        let mut found = None;
        self.entries(folder, |entry| {
            if entry.name == name {
                found = Some(entry.inode.into());
            }
            found.is_none()
        })?;
        Ok(found)
    }

    fn open(&self, id: Id) -> Result<Box<dyn Data + '_>> {
        let inode = self.inode(id)?;
        if inode.is_encrypted() {
            return Err(self.encrypted("the content of a file"));
        }
        self.content_of(&inode)
    }

    fn target(&self, link: Id) -> Result<Vec<u8>> {
        let inode = self.inode(link)?;
        if inode.is_encrypted() {
            return Err(self.encrypted("the target of a link"));
        }
        if inode.is_short_link() {
            return Ok(inode.body.get(..inode.size as usize).unwrap_or_default().to_vec());
        }
        if inode.size > TARGET_LEN_MAX {
            return Err(self.damaged(&format!("the link of inode {link} is too long")));
        }
        let mut target = vec![0; inode.size as usize];
        let count = self.content_of(&inode)?.read(&mut target, 0)?;
        target.truncate(count);
        Ok(target)
    }

    fn attributes(&self, id: Id) -> Result<Attributes> {
        let inode = self.inode(id)?;
        let wrong = |error| wrong(&self.source, error);
        let mut found = attributes::in_inode(&inode.tail).map_err(wrong)?;
        if inode.attributes != 0 {
            found.extend(attributes::in_block(&self.block(inode.attributes)?).map_err(wrong)?);
        }
        let mut list = Vec::new();
        let mut total = 0;
        for attribute in found.into_iter().filter(|attribute| attribute.name != attributes::INLINE)
        {
            let mut value = self.value(attribute.value)?;
            if attribute.name.starts_with(b"system.posix_acl_") {
                let acl = attributes::access_list(&value);
                value = acl.ok_or_else(|| self.damaged(&format!("inode {id} has a bad ACL")))?;
            }
            total += value.len();
            if total > ATTRIBUTES_LEN_MAX {
                return Err(self.damaged(&format!("inode {id} has too many attributes")));
            }
            list.push((attribute.name, value));
        }
        list.sort();
        Ok(Attributes { list, problems: Vec::new() })
    }
}

/// Bytes of a volume that do not follow the format.
fn wrong(source: &Source, error: FormatError) -> Error {
    damaged(source.name()).because(error)
}
