//! An archive of tar as a filesystem: the configuration of a host is kept in this form.

use std::collections::BTreeMap;
use std::sync::Arc;

use qdelta_formats::FormatError;
use qdelta_formats::tar::{BLOCK, Block, Header, Headers, Kind, padding};

use super::runs::{InRuns, Runs};
use super::source::Source;
use super::{Attributes, Data, Entry, FileKind, Filesystem, Id, Node, Time, damaged};
use crate::base::error::{Error, Result};
use crate::disk::io::ReadAt;
use crate::inside::volumes::Content;

/// The most files of an archive that is read.
const FILES_MAX: usize = 100_000;
/// Bytes of the names and targets of all files together.
const NAMES_MAX: usize = 32 << 20;
/// The root folder: an entry of its own does not exist.
const ROOT: Id = 0;

/// A file of the archive.
struct File {
    header: Header,
    /// Where its content lies.
    content: u64,
    /// What is in it, if it is a folder.
    names: BTreeMap<Vec<u8>, Id>,
}

/// An archive of tar.
pub(super) struct Tar {
    source: Source,
    /// By id.
    files: Vec<File>,
    /// Bytes of names and targets.
    named: usize,
}

impl Tar {
    pub fn open(volume: Arc<dyn ReadAt>) -> Result<Self> {
        let source = Source::new(volume)?;
        let mut tar = Self { source, files: vec![folder(b"")], named: 0 };
        let (mut headers, mut at) = (Headers::default(), 0);
        loop {
            let (name, start) = (tar.source.name(), at);
            let wrong =
                move |error: FormatError| damaged(name.clone()).because(error.relative_to(start));
            let block = headers.read(&tar.source.bytes(at, BLOCK)?).map_err(&wrong)?;
            at += BLOCK as u64;
            match block {
                Block::End => return Ok(tar),
                Block::Records(len) => {
                    let records = tar.source.bytes(at, len as usize)?;
                    headers.records(&records).map_err(wrong)?;
                    at += len + padding(len) as u64;
                }
                Block::File(header) => {
                    let end = at.checked_add(header.size).filter(|end| *end < u64::MAX / 2);
                    let end = end.ok_or_else(|| tar.damaged("a file has no end"))?;
                    tar.add(header, at)?;
                    at = end + padding(end) as u64;
                }
            }
        }
    }

    fn damaged(&self, text: &str) -> Error {
        damaged(format!("{}: {text}", self.source.name()))
    }

    fn file(&self, id: Id) -> Result<&File> {
        let file = usize::try_from(id).ok().and_then(|index| self.files.get(index));
        file.ok_or_else(|| self.damaged("a file is named that the archive does not have"))
    }

    /// Adds a file, and the folders that it is in.
    fn add(&mut self, header: Header, content: u64) -> Result<()> {
        let path = header.path.clone();
        let names = path.split(|byte| *byte == b'/').filter(|it| !matches!(*it, b"" | b"."));
        let mut names = names.peekable();
        let mut here = ROOT;
        while let Some(name) = names.next() {
            if name == b".." {
                return Err(self.damaged("a path leads out of the archive"));
            }
            let known = self.file(here)?.names.get(name).copied();
            let is_last = names.peek().is_none();
            here = match known {
                Some(id) if !is_last => id,
                None if !is_last => self.put(here, name, folder(name), 0)?,
                Some(_) => return Err(self.damaged("two files have the same path")),
                None => {
                    let target = header.target.len();
                    let file = File { header, content, names: BTreeMap::new() };
                    self.put(here, name, file, target)?;
                    return Ok(());
                }
            };
            if self.file(here)?.header.kind != Kind::Folder {
                return Err(self.damaged("a file lies in another file"));
            }
        }
        Ok(())
    }

    fn put(&mut self, folder: Id, name: &[u8], file: File, more: usize) -> Result<Id> {
        let id = self.files.len();
        self.named = self.named.saturating_add(2 * name.len() + more + file.header.path.len());
        if id >= FILES_MAX || self.named > NAMES_MAX {
            let text = format!("the archive has more than {FILES_MAX} files, or too long names");
            return Err(self.damaged(&text));
        }
        self.files.push(file);
        if let Some(folder) = usize::try_from(folder).ok().and_then(|at| self.files.get_mut(at)) {
            folder.names.insert(name.to_vec(), id as Id);
        }
        Ok(id as Id)
    }
}

/// A folder of which the archive says nothing but its name.
fn folder(name: &[u8]) -> File {
    let header = Header {
        path: name.to_vec(),
        kind: Kind::Folder,
        target: Vec::new(),
        mode: 0o755,
        uid: 0,
        gid: 0,
        size: 0,
        modified: (0, 0),
    };
    File { header, content: 0, names: BTreeMap::new() }
}

impl Filesystem for Tar {
    fn content(&self) -> Content {
        Content::Tar
    }

    fn notes(&self) -> &[String] {
        &[]
    }

    fn root(&self) -> Id {
        ROOT
    }

    fn node(&self, id: Id) -> Result<Node> {
        let File { header, content, .. } = self.file(id)?;
        let (seconds, nanoseconds) = header.modified;
        Ok(Node {
            kind: match header.kind {
                Kind::File | Kind::HardLink => FileKind::File,
                Kind::Link => FileKind::Link,
                Kind::CharacterDevice => FileKind::CharacterDevice,
                Kind::BlockDevice => FileKind::BlockDevice,
                Kind::Folder => FileKind::Folder,
                Kind::Fifo => FileKind::Fifo,
            },
            mode: header.mode,
            uid: header.uid,
            gid: header.gid,
            size: match header.kind {
                Kind::Link => header.target.len() as u64,
                _ => header.size,
            },
            links: 1,
            accessed: None,
            changed: None,
            modified: Time { seconds, nanoseconds },
            device: (0, 0),
            // A folder that has no entry of its own lies nowhere.
            place: match content.checked_sub(BLOCK as u64) {
                Some(at) => (at, BLOCK as u64),
                None => (0, 0),
            },
        })
    }

    fn list(&self, folder: Id) -> Result<Vec<Entry>> {
        let names = self.file(folder)?.names.iter();
        Ok(names.map(|(name, id)| Entry { name: name.clone(), id: *id }).collect())
    }

    fn lookup(&self, folder: Id, name: &[u8]) -> Result<Option<Id>> {
        Ok(self.file(folder)?.names.get(name).copied())
    }

    fn open(&self, id: Id) -> Result<Box<dyn Data + '_>> {
        let file = self.file(id)?;
        let (mut runs, size) = (Runs::default(), file.header.size);
        if size > 0 {
            runs.push(Some(file.content), size);
        }
        Ok(Box::new(InRuns { source: &self.source, runs, size, written: size }))
    }

    fn target(&self, link: Id) -> Result<Vec<u8>> {
        Ok(self.file(link)?.header.target.clone())
    }

    fn attributes(&self, _: Id) -> Result<Attributes> {
        Ok(Attributes::default())
    }
}

#[cfg(test)]
mod tests {
    use qdelta_formats::tar::{END, Entry as Written, sparse_map};

    use super::*;
    use crate::disk::io::in_memory::Bytes;
    use crate::inside::filesystem::find;

    /// An entry as an archive has it, with content.
    fn entry(path: &str, kind: Kind, content: &[u8]) -> Vec<u8> {
        let entry = Written {
            path: path.as_bytes(),
            kind,
            target: b"",
            mode: 0o640,
            uid: 7,
            gid: 8,
            size: content.len() as u64,
            modified: (100, 5),
            accessed: None,
            device: (0, 0),
            attributes: &[],
            sparse: None,
        };
        let mut bytes = entry.headers();
        bytes.extend(content);
        bytes.resize(bytes.len() + padding(content.len() as u64), 0);
        bytes
    }

    fn opened(parts: &[Vec<u8>]) -> Result<Tar> {
        Tar::open(Bytes::store("archive", &parts.concat()))
    }

    #[test]
    fn files_are_found_with_what_the_archive_says_of_them() {
        let long = format!("etc/{}/file", "x".repeat(150));
        let parts = [
            entry("./etc/", Kind::Folder, b""),
            entry("etc/a", Kind::File, b"hello"),
            entry(&long, Kind::File, &[7; 1000]),
            END.to_vec(),
            b"what follows is nobody's".to_vec(),
        ];
        let tar = opened(&parts).unwrap();
        let found = find(&tar, b"/etc/a", false).unwrap();
        let mut content = [0; 5];
        assert_eq!(tar.open(found.id).unwrap().read(&mut content, 0).unwrap(), 5);
        assert_eq!(&content, b"hello");
        let Node { mode, uid, gid, size, modified, .. } = found.node;
        assert_eq!((mode, uid, gid, size), (0o640, 7, 8, 5));
        assert_eq!(modified, Time { seconds: 100, nanoseconds: 5 });
        assert_eq!(find(&tar, long.as_bytes(), false).unwrap().node.size, 1000);
        // A folder that has an entry lies somewhere, and one that only leads to files does not.
        let place = |path: &[u8]| find(&tar, path, false).unwrap().node.place;
        assert!(place(b"/etc").1 > 0);
        assert_eq!(place(long.rsplit_once('/').unwrap().0.as_bytes()), (0, 0));
    }

    #[test]
    fn an_archive_that_makes_no_sense_is_refused() {
        let file = |path: &str| entry(path, Kind::File, b"x");
        let mut long = entry("a", Kind::File, b"");
        // A size of 8 GiB less one byte, and its checksum made anew; records come before the header.
        let at = long.len() - BLOCK;
        long.splice(at + 124..at + 136, *b"77777777777\0");
        long.splice(at + 148..at + 156, *b"        ");
        let sum: u32 = long[at..].iter().map(|byte| u32::from(*byte)).sum();
        long.splice(at + 148..at + 156, format!("{sum:06o}\0 ").into_bytes());
        let mut sparse = Written {
            path: b"a",
            kind: Kind::File,
            target: b"",
            mode: 0,
            uid: 0,
            gid: 0,
            size: 512,
            modified: (0, 0),
            accessed: None,
            device: (0, 0),
            attributes: &[],
            sparse: Some(1 << 20),
        }
        .headers();
        sparse.extend(sparse_map(&[(0, 0)]));
        for (parts, said) in [
            (vec![file("a/../b"), END.to_vec()], "leads out of the archive"),
            (vec![file("a"), file("./a"), END.to_vec()], "the same path"),
            (vec![file("a"), file("a/b"), END.to_vec()], "lies in another file"),
            (vec![file("a")], "behind the end"),
            (vec![long, END.to_vec()], "behind the end"),
            (vec![sparse, END.to_vec()], "files with holes"),
            (vec![entry("a", Kind::HardLink, b""), END.to_vec()], "entries of type"),
            (vec![vec![1; BLOCK]], "octal"),
        ] {
            let error = opened(&parts).err().map(|error| error.chain()).unwrap_or_default();
            assert!(error.contains(said), "{said}: {error}");
        }
    }
}
