//! What a block device is called by those who made it, whatever name leads to it: the kernel gives out `sdb` and
//! `dm-3` anew at every start.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::{major, minor};

use crate::disk::io::Opener;

/// Where the kernel tells of block devices by their numbers.
const KNOWN: &str = "/sys/dev/block";
/// The longest id that is believed, in bytes: NVMe's are some hundred.
const ID_LEN_MAX: u64 = 512;

/// The lasting id of the block device at `path`: of a logical volume, a path of multipath and whatever else device
/// mapper makes, its UUID; of a disk its world wide id; of a partition that of its disk with its number. Nothing of a
/// file, and of a device that has none.
pub(crate) fn device_id(path: &Path) -> Option<String> {
    let metadata = fs::metadata(path).ok().filter(|it| it.file_type().is_block_device())?;
    let number = format!("{}:{}", major(metadata.rdev()), minor(metadata.rdev()));
    id_in(&Path::new(KNOWN).join(number))
}

/// The id of the device that this folder of the kernel's tells of.
fn id_in(folder: &Path) -> Option<String> {
    let word = |folder: &Path, name: &str| {
        let text = Opener::READ.read_text(&folder.join(name), ID_LEN_MAX).ok()?;
        let text = text.trim();
        (!text.is_empty()).then(|| text.to_owned())
    };
    if let Some(uuid) = word(folder, "dm/uuid") {
        return Some(format!("dm:{uuid}"));
    }
    if let Some(number) = word(folder, "partition") {
        // The folder of a partition lies in that of its disk.
        let disk = folder.canonicalize().ok()?;
        return Some(format!("{}:part{number}", id_in(disk.parent()?)?));
    }
    // NVMe and virtio have it here, SCSI one level below.
    let own = word(folder, "wwid").or_else(|| word(folder, "device/wwid"));
    own.map(|wwid| format!("wwid:{wwid}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_known_by_what_lasts() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        file("dm-3/dm/uuid", "LVM-q3Zk\n");
        file("sdb/device/wwid", "naa.5000c500\n");
        file("sdb/sdb2/partition", "2\n");
        file("nvme0n1/wwid", "eui.0025\n");
        file("loop0/dm/uuid", "\n");
        std::os::unix::fs::symlink(dir.path().join("sdb/sdb2"), dir.path().join("8:18")).unwrap();
        let id = |name: &str| id_in(&dir.path().join(name));
        assert_eq!(id("dm-3").as_deref(), Some("dm:LVM-q3Zk"));
        assert_eq!(id("sdb").as_deref(), Some("wwid:naa.5000c500"));
        assert_eq!(id("8:18").as_deref(), Some("wwid:naa.5000c500:part2"));
        assert_eq!(id("nvme0n1").as_deref(), Some("wwid:eui.0025"));
        assert_eq!((id("loop0"), id("sdc")), (None, None));
        assert_eq!(device_id(Path::new("/dev/null")), None);
    }
}
