//! FAT12, FAT16 and FAT32. There are no owners and no links; a file is known by the place of its entry.

use std::sync::Arc;

use qdelta_formats::FormatError;
use qdelta_formats::filesystems::fat::{
    self, Entries, Entry as Named, Facts, Next, Parameters, Read,
};

use super::runs::{InRuns, Runs};
use super::source::Source;
use super::{
    Attributes, Data, ENTRIES_MAX, Entry, FileKind, Filesystem, Id, Node, Place, Time, damaged,
};
use crate::base::error::{Error, Result};
use crate::disk::io::ReadAt;
use crate::inside::volumes::Content;

/// The root folder: an entry of its own does not exist.
const ROOT: Id = 0;
/// The longest folder; FAT allows half of it.
const FOLDER_LEN_MAX: u64 = 4 << 20;

/// A FAT.
pub(super) struct Fat {
    source: Source,
    parameters: Parameters,
}

impl Fat {
    pub fn open(volume: Arc<dyn ReadAt>) -> Result<Self> {
        let source = Source::new(volume)?;
        let parameters = Parameters::parse(&source.bytes(0, fat::BOOT_LEN)?);
        let parameters = parameters.map_err(|error| wrong(&source, error))?;
        Ok(Self { source, parameters })
    }

    fn damaged(&self, text: &str) -> Error {
        damaged(format!("{}: {text}", self.source.name()))
    }

    /// What the entry of a file says.
    fn file(&self, id: Id) -> Result<Facts> {
        if id == ROOT {
            let (is_folder, cluster) = (true, self.parameters.root_cluster);
            let (size, modified, accessed) = (0, 0, None);
            return Ok(Facts { is_folder, is_read_only: false, cluster, size, modified, accessed });
        }
        let bytes = self.source.bytes(id, fat::ENTRY_LEN)?;
        Facts::parse(&bytes).map_err(|error| wrong(&self.source, error))
    }

    /// Where a chain of clusters lies, up to `len` bytes of it, and whether it ends there.
    fn chain(&self, first: u32, len: u64) -> Result<(Runs, bool)> {
        let mut runs = Runs::default();
        let mut cluster = first;
        // A chain that goes round would never end; one of this length has the whole file.
        while runs.len() < len {
            if !self.parameters.has(cluster) {
                return Err(self.damaged("a chain of clusters leads outside the volume"));
            }
            runs.push(Some(self.parameters.cluster_at(cluster)), self.parameters.cluster);
            let (at, entry_len) = self.parameters.entry_at(cluster);
            match self.parameters.next(cluster, &self.source.bytes(at, entry_len)?) {
                Next::Cluster(next) => cluster = next,
                Next::End => return Ok((runs, true)),
                Next::Broken if runs.len() >= len => break,
                Next::Broken => return Err(self.damaged("a chain of clusters is broken")),
            }
        }
        Ok((runs, false))
    }

    fn data(&self, file: &Facts, id: Id) -> Result<InRuns<'_>> {
        let mut runs = Runs::default();
        match (file.is_folder, id) {
            (true, ROOT) if self.parameters.root_len > 0 => {
                runs.push(Some(self.parameters.root), self.parameters.root_len);
            }
            (true, _) => {
                let (chain, ends) = self.chain(file.cluster, FOLDER_LEN_MAX)?;
                if !ends {
                    return Err(self.damaged("a folder is longer than any can be"));
                }
                runs = chain;
            }
            (false, _) if file.size == 0 => {}
            (false, _) => (runs, _) = self.chain(file.cluster, file.size.into())?,
        }
        let size = if file.is_folder { runs.len() } else { file.size.into() };
        if runs.len() < size {
            return Err(self.damaged("a chain of clusters ends before its file"));
        }
        Ok(InRuns { source: &self.source, runs, size, written: size })
    }

    /// Calls `found` for each file of a folder with the place of its entry, until it has enough.
    fn entries(&self, folder: Id, mut found: impl FnMut(Named, Id) -> bool) -> Result<()> {
        let file = self.file(folder)?;
        if !file.is_folder {
            return Err(self.damaged("a file is taken for a folder"));
        }
        let data = self.data(&file, folder)?;
        let mut entries = Entries::default();
        let mut bytes = vec![0; fat::ENTRY_LEN];
        let mut at = 0;
        while at < data.size() {
            let Place::At(place) = data.runs.at(at).0 else { break };
            data.read(&mut bytes, at)?;
            match entries.read(&bytes, place).map_err(|error| wrong(&self.source, error))? {
                Read::End => break,
                Read::Nothing => {}
                Read::Entry(entry) => {
                    if !found(entry, place) {
                        break;
                    }
                }
            }
            at += fat::ENTRY_LEN as u64;
        }
        Ok(())
    }
}

impl Filesystem for Fat {
    fn content(&self) -> Content {
        Content::Fat
    }

    fn notes(&self) -> &[String] {
        &[]
    }

    fn root(&self) -> Id {
        ROOT
    }

    fn node(&self, id: Id) -> Result<Node> {
        let file = self.file(id)?;
        let size = match file.is_folder {
            true => 0,
            false => file.size.into(),
        };
        let mode = if file.is_folder { 0o755 } else { 0o644 };
        let time = |seconds| Time { seconds, nanoseconds: 0 };
        Ok(Node {
            kind: if file.is_folder { FileKind::Folder } else { FileKind::File },
            mode: if file.is_read_only { mode & 0o555 } else { mode },
            uid: 0,
            gid: 0,
            size,
            links: 1,
            accessed: file.accessed.map(time),
            changed: None,
            modified: time(file.modified),
            device: (0, 0),
            place: (id, fat::ENTRY_LEN as u64),
        })
    }

    fn list(&self, folder: Id) -> Result<Vec<Entry>> {
        let mut list = Vec::new();
        self.entries(folder, |entry, id| {
            list.push(Entry { name: entry.name.into_bytes(), id });
            list.len() <= ENTRIES_MAX
        })?;
        Ok(list)
    }

    /// Upper and lower case are the same to FAT.
    fn lookup(&self, folder: Id, name: &[u8]) -> Result<Option<Id>> {
        let wanted = String::from_utf8_lossy(name).to_lowercase();
        let mut found = None;
        self.entries(folder, |entry, id| {
            if entry.name.to_lowercase() == wanted {
                found = Some(id);
            }
            found.is_none()
        })?;
        Ok(found)
    }

    fn open(&self, id: Id) -> Result<Box<dyn Data + '_>> {
        Ok(Box::new(self.data(&self.file(id)?, id)?))
    }

    fn target(&self, _: Id) -> Result<Vec<u8>> {
        Err(self.damaged("there are no links"))
    }

    fn attributes(&self, _: Id) -> Result<Attributes> {
        Ok(Attributes::default())
    }
}

/// Bytes of a volume that do not follow the format.
fn wrong(source: &Source, error: FormatError) -> Error {
    damaged(source.name()).because(error)
}
