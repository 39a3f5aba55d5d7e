//! The disks of a restored machine as volumes of a storage pool.
//!
//! Files are made in the pool's folder. Block devices must be there: qdelta makes no logical volumes and no
//! partitions, and says what does.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::Disk;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::printable::shell_word;
use crate::disk::image::Format;
use crate::guest::libvirt::{Pool, StorageSource, Volumes};
use crate::vault::repository::DomainName;

/// Kinds of pools whose folder is where a filesystem is mounted.
const MOUNTED: [&str; 2] = ["fs", "netfs"];

/// Where a disk goes, in which format, and whether that is a block device. `format` is that of its image, `wanted` the
/// one that was asked for.
///
/// # Errors
/// The pool's volumes can't be written, or hold no disk of that format.
pub(super) fn place(
    pool: &Pool,
    stem: &str,
    format: Format,
    wanted: Option<Format>,
) -> Result<(PathBuf, Format, bool)> {
    let name = match pool.volumes {
        Volumes::Files(_) => format!("{stem}.{format}"),
        Volumes::Devices(_) | Volumes::Partitions(_) | Volumes::OnServer => stem.to_owned(),
    };
    match (&pool.volumes, pool.volume(&name)) {
        (Volumes::Partitions(_), _) => Err(no_volumes(pool, "partitions, which the kernel names")
            .advise(
                "restore each disk onto its partition (qdelta restore GUEST/DISK /dev/PARTITION), and name those \
                 in the definition, which qdelta restore --domain GUEST --to DIR makes",
            )),
        (_, StorageSource::File(path)) => Ok((path, format, false)),
        (_, StorageSource::Block(path)) if wanted.is_none_or(|it| it == Format::Raw) => {
            Ok((path, Format::Raw, true))
        }
        (_, StorageSource::Block(_)) => {
            let text = format!("volumes of the pool {} hold raw disks", pool.name);
            Err(Error::new(ErrorKind::Usage, text).advise("leave out --format"))
        }
        _ => Err(no_volumes(pool, "on a server, where qdelta does not write").advise(
            "restore to a folder without --to-pool, make volumes (virsh vol-create-as) and copy the disks into \
             them (virsh vol-upload), and name those in the definition",
        )),
    }
}

fn no_volumes(pool: &Pool, what: &str) -> Error {
    let text = format!("nothing can be restored into the pool {}", pool.name);
    Error::new(ErrorKind::Usage, text).because(format!("its volumes ({}) are {what}", pool.kind))
}

/// Fails if the pool is not there, or has not all the devices that the disks need.
///
/// # Errors
/// `NotFound`, with the commands that help.
pub(super) fn check(pool: &Pool, disks: &[Disk], domain: &DomainName) -> Result<()> {
    if let Volumes::Files(folder) = &pool.volumes {
        return check_folder(pool, folder);
    }
    let missing: Vec<&Disk> = disks.iter().filter(|disk| !disk.path.exists()).collect();
    if missing.is_empty() {
        return disks.iter().try_for_each(check_device);
    }
    let name =
        |disk: &Disk| disk.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let names: Vec<String> = missing.iter().map(|disk| name(disk)).collect();
    let make = |disk: &&Disk| {
        let size = disk.chain.geometry().virtual_size();
        format!("virsh vol-create-as {} {} {size}", shell_word(&pool.name), shell_word(&name(disk)))
    };
    let make: Vec<String> = missing.iter().map(make).collect();
    let text = format!("the pool {} has no volume {}", pool.name, names.join(", "));
    Err(Error::new(ErrorKind::NotFound, text)
        .because(format!("the disks of {domain} need volumes that are there"))
        .advise(format!("make them, and try again: {}", make.join("; "))))
}

/// Fails if what has the name of a volume is no block device: a file is left there by whoever wrote to a volume that
/// was not active.
fn check_device(disk: &Disk) -> Result<()> {
    let metadata = std::fs::metadata(&disk.path);
    let metadata = metadata.map_err(|error| Error::io("look at", &disk.path, error))?;
    if metadata.file_type().is_block_device() {
        return Ok(());
    }
    let text = format!("{} is no block device", disk.path.display());
    Err(Error::new(ErrorKind::Usage, text).advise(
        "move it away, and activate the volume: lvchange --activate y, or virsh pool-start",
    ))
}

/// Fails if the folder of a pool is not there: what is mounted there may be missing, and the disks would fill
/// what lies below.
fn check_folder(pool: &Pool, folder: &Path) -> Result<()> {
    let start = format!("virsh pool-start {}", shell_word(&pool.name));
    let at = |path: &Path| std::fs::metadata(path);
    let metadata = at(folder).map_err(|error| {
        Error::new(ErrorKind::NotFound, format!("the pool {} is not there", pool.name))
            .because(format!("{}: {error}", folder.display()))
            .advise(start.clone())
    })?;
    let above = folder.parent().and_then(|parent| at(parent).ok());
    let is_mounted = above.is_none_or(|above| above.dev() != metadata.dev());
    if MOUNTED.contains(&pool.kind.as_str()) && !is_mounted {
        let text = format!("the pool {} is not mounted at {}", pool.name, folder.display());
        return Err(Error::new(ErrorKind::NotFound, text).advise(start));
    }
    Ok(())
}
