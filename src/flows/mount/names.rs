//! What the files of the mount are called, and the numbers that the kernel knows them by.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::inside::volumes::{Kind, Survey, Volume};
use crate::vault::repository::{DiskId, DomainName, PointId};

/// What the name of every file ends in.
const ENDING: &str = ".raw";

/// A file or folder of the mount.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Node {
    /// The mount itself: a folder for each guest.
    Top,
    /// A guest: a folder for each disk.
    Guest(DomainName),
    /// A disk: a file and a folder for each point.
    Disk(DiskId),
    /// The whole disk at a point.
    Point(DiskId, PointId),
    /// The folder of the volumes of a point.
    Volumes(DiskId, PointId),
    /// A volume at a point, by its file's name.
    Volume(DiskId, PointId, String),
}

impl Node {
    /// Whether it is a folder.
    pub fn is_folder(&self) -> bool {
        !matches!(self, Self::Point(..) | Self::Volume(..))
    }

    /// The guest whose it is; none of the mount itself.
    pub fn guest(&self) -> Option<&DomainName> {
        match self {
            Self::Top => None,
            Self::Guest(guest) => Some(guest),
            Self::Disk(disk)
            | Self::Point(disk, _)
            | Self::Volumes(disk, _)
            | Self::Volume(disk, ..) => Some(&disk.domain),
        }
    }

    /// When it was made.
    pub fn time(&self) -> Option<SystemTime> {
        match self {
            Self::Point(_, point) | Self::Volumes(_, point) | Self::Volume(_, point, _) => {
                Some(time_of(*point))
            }
            _ => None,
        }
    }
}

/// The time of a point.
pub(super) fn time_of(point: PointId) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(point.as_ms())
}

/// What the file of a point is called.
pub(super) fn file_of(point: PointId) -> String {
    format!("{point}{ENDING}")
}

/// What of a disk's folder is called so: the file of a point, or the folder of its volumes.
pub(super) fn child_of(disk: &DiskId, name: &str) -> Option<Node> {
    match name.strip_suffix(ENDING) {
        Some(point) => Some(Node::Point(disk.clone(), point.parse().ok()?)),
        None => Some(Node::Volumes(disk.clone(), name.parse().ok()?)),
    }
}

/// The volumes that are shown as files, by the names of the files. The whole of an undivided disk is
/// none: it has a file already. Guests choose the names of LVM's volumes.
pub(super) fn files_of(survey: &Survey) -> impl Iterator<Item = (String, &Volume)> {
    let parts = survey.volumes.iter().filter(|volume| volume.kind != Kind::Whole);
    let parts = parts.filter(|volume| !volume.pieces().is_empty());
    parts.filter_map(|volume| Some((volume_file(&volume.name)?, volume)))
}

/// What the file of a volume of this name is called; nothing if the name is none for a file.
pub(super) fn volume_file(name: &str) -> Option<String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "+_.-".contains(c);
    let words: Vec<&str> = name.split('/').collect();
    let is_word =
        |word: &&str| !word.is_empty() && !word.starts_with('.') && word.chars().all(is_plain);
    if !words.iter().all(is_word) || name.len() > 120 {
        return None;
    }
    // As device mapper has it: what is written differently is called differently.
    let words: Vec<String> = words.iter().map(|word| word.replace('-', "--")).collect();
    Some(format!("{}{ENDING}", words.join("-")))
}

/// The numbers of files and folders. A number is never given to anything else, so what the kernel has
/// in its cache is right for ever.
#[derive(Debug)]
pub(super) struct Numbers {
    of: HashMap<Node, u64>,
    known: Vec<Known>,
}

/// What is known of a file.
#[derive(Debug, Clone)]
pub(super) struct Known {
    /// What it is.
    pub node: Node,
    /// Its size in bytes.
    pub size: u64,
    /// How many of its bytes are not zero: at most so many, as long as nobody has looked.
    pub data: u64,
    /// Whether somebody has looked.
    pub is_exact: bool,
}

impl Numbers {
    /// Only the mount itself, which is number 1.
    pub fn new() -> Self {
        let mut numbers = Self { of: HashMap::new(), known: Vec::new() };
        numbers.number(Node::Top, 0, 0);
        numbers
    }

    /// The number of a file or folder.
    pub fn number(&mut self, node: Node, size: u64, data_max: u64) -> u64 {
        let known = &mut self.known;
        *self.of.entry(node).or_insert_with_key(|node| {
            known.push(Known { node: node.clone(), size, data: data_max, is_exact: false });
            known.len() as u64
        })
    }

    /// What has this number.
    pub fn known(&self, number: u64) -> Option<&Known> {
        self.known.get(usize::try_from(number.checked_sub(1)?).ok()?)
    }

    /// Somebody has looked how many bytes of a file are not zero.
    pub fn learn(&mut self, number: u64, data: u64) {
        let index = number.checked_sub(1).and_then(|index| usize::try_from(index).ok());
        if let Some(known) = index.and_then(|index| self.known.get_mut(index)) {
            (known.data, known.is_exact) = (data, true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A guest names its volumes, and nothing that it says may become a path.
    #[test]
    fn volumes_that_guests_named_become_plain_names_or_nothing() {
        for (name, file) in [
            ("p1", "p1.raw"),
            ("vg/root", "vg-root.raw"),
            ("v-g/lv", "v--g-lv.raw"),
            ("v/g-lv", "v-g--lv.raw"),
        ] {
            assert_eq!(volume_file(name).unwrap(), file);
        }
        let long = "x".repeat(121);
        for name in ["vg/..", "../x", "vg/a\nb", "vg//x", "vg/", "", "größe/x", &long] {
            assert_eq!(volume_file(name), None, "{name:?}");
        }
    }
}
