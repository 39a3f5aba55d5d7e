//! Which file or block device a volume of a storage pool is, by libvirt's own files:
//! `/etc/libvirt/storage/POOL.xml` for a pool that is defined, `/run/libvirt/storage/POOL.xml` for one
//! that is active.

use std::path::PathBuf;

use super::files::{Libvirt, read};
use super::parse::{child, document, text_of};
use super::{Domain, StorageSource};
use crate::base::error::{Error, ErrorKind, Result};

/// Pools whose volumes are files in the folder that is their target.
const OF_FILES: [&str; 3] = ["dir", "fs", "netfs"];
/// Pools whose volumes QEMU reaches on a server.
const OF_SERVERS: [&str; 4] = ["rbd", "sheepdog", "gluster", "iscsi-direct"];

impl Libvirt {
    /// Replaces each volume of a domain by its file or block device, or by the reason why that
    /// can't be found.
    pub(super) fn resolve_volumes(&self, domain: &mut Domain) {
        for disk in &mut domain.disks {
            disk.each_source(|source| self.resolve(source));
        }
        if let Some(nvram) = &mut domain.nvram {
            self.resolve(&mut nvram.source);
        }
    }

    fn resolve(&self, source: &mut StorageSource) {
        let StorageSource::Volume { pool, volume, .. } = source else { return };
        let (pool, volume) = (std::mem::take(pool), std::mem::take(volume));
        *source = match self.volume(&pool, &volume) {
            Ok(found) => found,
            Err(why) => StorageSource::Volume { pool, volume, why },
        };
    }

    /// Finds the file or device of a volume, or says why it can't be found.
    fn volume(&self, pool: &str, volume: &str) -> Result<StorageSource, String> {
        let pool = self.read_pool(pool)?;
        if !is_name(volume) {
            return Err(format!("no volume is called {volume:?}"));
        }
        Ok(pool.volume(volume))
    }

    /// A storage pool by its definition.
    ///
    /// # Errors
    /// `NotFound` if there is none, or its definition does not say where its volumes are.
    pub fn pool(&self, name: &str) -> Result<Pool> {
        self.read_pool(name).map_err(|why| {
            let text = format!("the storage pool {name:?} can't be used: {why}");
            Error::new(ErrorKind::NotFound, text).advise(
                "virsh pool-list --all shows the pools, and virsh pool-dumpxml a definition",
            )
        })
    }

    fn read_pool(&self, name: &str) -> Result<Pool, String> {
        if !is_name(name) || name.starts_with('.') {
            return Err(format!("no pool is called {name:?}"));
        }
        let file = format!("{name}.xml");
        // A guest gets the active pool, which may have been defined anew since.
        let folders = [self.active_pools(), self.config.join("storage")];
        for folder in &folders {
            let path = folder.join(&file);
            let Some(xml) = read(&path).map_err(|error| error.chain())? else { continue };
            let pool = Pool::of(&xml.text, name);
            let pool = pool.map_err(|why| format!("{} {why}", path.display()))?;
            return Ok(Pool { is_active: *folder == self.active_pools(), ..pool });
        }
        Err(format!("there is no {file} in {} or {}", folders[1].display(), folders[0].display()))
    }
}

/// Whether a pool or a volume can be called so.
fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['/', '\0']) && name != "." && name != ".."
}

/// A storage pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// What libvirt calls its kind, such as `dir` or `logical`.
    pub kind: String,
    /// What its volumes are.
    pub volumes: Volumes,
    /// Whether libvirt has started it.
    pub is_active: bool,
}

/// What the volumes of a pool are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Volumes {
    /// Files in this folder.
    Files(PathBuf),
    /// Block devices whose names are in this folder.
    Devices(PathBuf),
    /// Partitions, which are called as the kernel calls them; their names should be in this folder.
    Partitions(PathBuf),
    /// What QEMU reaches on a server.
    OnServer,
}

impl Pool {
    /// Reads a pool's XML, or says what in the XML is in the way.
    fn of(text: &str, name: &str) -> Result<Self, String> {
        let document = document(text).map_err(|error| error.chain())?;
        let root = document.root_element();
        // An active pool's file wraps it.
        let pool = if root.tag_name().name() == "pool" { Some(root) } else { child(root, "pool") };
        let pool = pool.ok_or("is no pool's XML")?;
        let of = |node, name: &str| child(node, name).and_then(text_of);
        if of(pool, "name").as_deref() != Some(name) {
            return Err("describes another pool".to_owned());
        }
        let kind = pool.attribute("type").unwrap_or_default();
        let (name, kind) = (name.to_owned(), kind.to_owned());
        let of_kind = |volumes| Self { name, kind: kind.clone(), volumes, is_active: false };
        if OF_SERVERS.contains(&kind.as_str()) {
            return Ok(of_kind(Volumes::OnServer));
        }
        let target = child(pool, "target").and_then(|target| of(target, "path"));
        let group = || child(pool, "source").and_then(|source| of(source, "name"));
        // The folder of a volume group's devices follows from its name.
        let target = match target {
            None if kind.as_str() == "logical" => {
                group().map(|group| PathBuf::from("/dev").join(group))
            }
            target => target.map(PathBuf::from),
        };
        let target = target.filter(|target| target.is_absolute());
        let target = target.ok_or("has no target with an absolute path")?;
        match kind.as_str() {
            kind if OF_FILES.contains(&kind) => Ok(of_kind(Volumes::Files(target))),
            "logical" => Ok(of_kind(Volumes::Devices(target))),
            "disk" => Ok(of_kind(Volumes::Partitions(target))),
            other => Err(format!("has the type {other:?}, whose volumes can't be found by it")),
        }
    }

    /// The file or device of a volume.
    pub fn volume(&self, volume: &str) -> StorageSource {
        match &self.volumes {
            Volumes::Files(folder) => StorageSource::File(folder.join(volume)),
            Volumes::Devices(folder) => StorageSource::Block(folder.join(volume)),
            Volumes::Partitions(folder) => {
                let known = folder.join(volume);
                let device = PathBuf::from("/dev").join(volume);
                // Wherever the pool looks for devices.
                let is_elsewhere = !known.exists() && device.exists();
                StorageSource::Block(if is_elsewhere { device } else { known })
            }
            Volumes::OnServer => StorageSource::Network(self.kind.clone()),
        }
    }
}
