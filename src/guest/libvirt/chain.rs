//! What the XML of a disk says of its backing chain.
//!
//! libvirt follows the XML as far as it goes: a `<backingStore>` with a type names the image below, one
//! without ends the chain, and where there is none, the image's header counts. A running domain's file
//! has the whole chain that QEMU was given.

use std::path::PathBuf;

use roxmltree::Node;

use super::parse::{child, source_of, special_of};
use super::{Chain, Disk, StorageSource, Store};

/// What a chain consists of, if all of it is in files and in block devices.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Links {
    /// The external data file of the disk's own image.
    pub data_file: Option<PathBuf>,
    /// The images below it, the next one first.
    pub below: Vec<Link>,
    /// Nothing lies below the last of them.
    pub is_whole: bool,
}

/// An image of a backing chain in a file or block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The file or device.
    pub path: PathBuf,
    /// Its format, `qcow2` or `raw`.
    pub format: &'static str,
    /// Its external data file.
    pub data_file: Option<PathBuf>,
}

/// The chain of the disk whose `<source>` is `source`.
pub(super) fn parse(disk: Node<'_, '_>, source: Option<Node<'_, '_>>) -> Chain {
    let mut chain = Chain { data: source.and_then(data_of), ..Chain::default() };
    let mut outer = disk;
    while let Some(inner) = child(outer, "backingStore") {
        let Some(kind) = inner.attribute("type") else {
            chain.is_whole = true;
            break;
        };
        chain.below.push(store_of(inner, kind));
        outer = inner;
    }
    chain
}

/// The external data file that a `<source>` names.
fn data_of(source: Node<'_, '_>) -> Option<Box<Store>> {
    let data = child(source, "dataStore")?;
    Some(Box::new(store_of(data, data.attribute("type").unwrap_or("file"))))
}

fn store_of(node: Node<'_, '_>, kind: &str) -> Store {
    let source = child(node, "source");
    let format = child(node, "format").and_then(|format| format.attribute("type"));
    Store {
        source: source_of(kind, source),
        format: format.map(str::to_owned),
        special: source.and_then(special_of).or_else(|| special_of(node)),
        // A data file has none itself.
        data: if node.tag_name().name() == "dataStore" { None } else { source.and_then(data_of) },
    }
}

/// All sources that an element names: its own and those below, the data files, too.
pub(super) fn sources(outer: Node<'_, '_>) -> Vec<StorageSource> {
    let named = outer.descendants().filter(|node| node.tag_name().name() == "source");
    let kind = |source: &Node<'_, '_>| {
        source.parent().and_then(|outer| outer.attribute("type")).unwrap_or("file").to_owned()
    };
    named.map(|source| source_of(&kind(&source), Some(source))).collect()
}

impl Chain {
    /// The chain as files and block devices; or why it can't be read, as the end of a sentence.
    ///
    /// # Errors
    /// Some of it lies elsewhere, or has a format that can't be read.
    pub fn links(&self) -> Result<Links, String> {
        Ok(Links {
            data_file: self.data.as_deref().map(data_file).transpose()?,
            below: self.below.iter().map(link).collect::<Result<_, _>>()?,
            is_whole: self.is_whole,
        })
    }

    /// All stores of the chain, the data files, too.
    pub fn stores(&self) -> impl Iterator<Item = &Store> {
        let below = self.below.iter().flat_map(|store| [Some(store), store.data.as_deref()]);
        below.flatten().chain(self.data.as_deref())
    }

    /// Calls `each` with the source of every store of the chain.
    fn each_source(&mut self, each: &mut impl FnMut(&mut StorageSource)) {
        for store in self.data.as_deref_mut().into_iter().chain(&mut self.below) {
            each(&mut store.source);
            if let Some(data) = &mut store.data {
                each(&mut data.source);
            }
        }
    }
}

impl Disk {
    /// All sources that the XML names for the disk besides its own: below it, its data files, and where a
    /// block job copies it to.
    pub fn other_sources(&self) -> impl Iterator<Item = &StorageSource> {
        self.chain.stores().map(|store| &store.source).chain(&self.mirror)
    }

    /// Calls `each` with every source that the XML names for the disk.
    pub(super) fn each_source(&mut self, mut each: impl FnMut(&mut StorageSource)) {
        each(&mut self.source);
        self.chain.each_source(&mut each);
        self.mirror.iter_mut().for_each(each);
    }
}

fn link(store: &Store) -> Result<Link, String> {
    let path = path_of(store, "backing file")?;
    let format = match store.format.as_deref() {
        Some("qcow2") => "qcow2",
        Some("raw") => "raw",
        Some(other) => {
            return Err(format!("its backing file {} has the format {other:?}", path.display()));
        }
        None => return Err(format!("its backing file {} has no format", path.display())),
    };
    Ok(Link { path, format, data_file: store.data.as_deref().map(data_file).transpose()? })
}

fn data_file(store: &Store) -> Result<PathBuf, String> {
    match store.format.as_deref() {
        None | Some("raw") => path_of(store, "data file"),
        Some(other) => Err(format!("its data file has the format {other:?}")),
    }
}

fn path_of(store: &Store, what: &str) -> Result<PathBuf, String> {
    let path = match &store.source {
        StorageSource::File(path) | StorageSource::Block(path) => path,
        StorageSource::Network(protocol) => {
            return Err(format!(
                "its {what} lies on a server (protocol {protocol}), not in a file"
            ));
        }
        StorageSource::Volume { pool, volume, why } => {
            return Err(format!(
                "its {what} is volume {volume:?} of the storage pool {pool:?}, and it is not known \
                 which file that is: {why}"
            ));
        }
        StorageSource::Other(kind) => {
            return Err(format!("its {what} is of type {kind:?}, no file"));
        }
        StorageSource::Nothing => return Err(format!("its {what} has no name")),
    };
    if let Some(special) = store.special {
        return Err(format!("its {what} {}: {special}", path.display()));
    }
    if !path.is_absolute() {
        return Err(format!("its {what} has the relative path {}", path.display()));
    }
    Ok(path.clone())
}
