//! What the disks of a point hold: whether their partition tables and the superblocks of their
//! filesystems hold together.

use std::sync::Arc;

use super::ladder::{Found, Guest};
use crate::base::error::Result;
use crate::disk::io::ReadAt;
use crate::formats::filesystems::superblock::{self, State, Superblock};
use crate::inside::volumes::{self, Content, Kind, Survey, Table, Volume};
use crate::vault::point::OpenPoints;
use crate::vault::repository::storage::Wait;
use crate::vault::repository::{Climb, DiskId, Part, Rung, Selector};

/// A volume of the guest.
pub(super) struct Place {
    pub disk: DiskId,
    pub volume: Volume,
    /// What its superblock says, or what is wrong with it; none if that is not known here.
    pub superblock: Result<Option<Superblock>, String>,
}

impl Place {
    /// `vda/p1`, or `vda` where the disk is one volume.
    pub fn name(&self) -> String {
        match self.volume.kind {
            Kind::Whole => self.disk.disk.to_string(),
            _ => format!("{}/{}", self.disk.disk, self.volume.name),
        }
    }

    /// Whether it holds a filesystem of a kind that is known.
    pub fn is_filesystem(&self) -> bool {
        !matches!(
            self.volume.content,
            Content::Unknown
                | Content::Swap
                | Content::LvmMember
                | Content::RaidMember
                | Content::Luks
                | Content::BitLocker
        )
    }
}

/// Reads the partition tables, and collects the volumes.
pub(super) fn partitions(
    points: &Arc<OpenPoints>,
    guest: &Guest,
    volumes: &mut Vec<Place>,
    wait: Wait<'_>,
) -> Found {
    let mut parts = Vec::new();
    for disk in &guest.disks {
        let part = |result, text: String| Part { name: disk.disk.to_string(), result, text };
        let selector = Selector::Id(guest.manifest.point.to_string());
        let surveyed = points.open(disk, &selector, wait).and_then(|point| {
            let disk: Arc<dyn ReadAt> = Arc::new(point);
            Ok((volumes::survey(&disk)?, disk))
        });
        let (survey, bytes) = match surveyed {
            Ok(surveyed) => surveyed,
            Err(error) => {
                parts.push(part(Climb::Failed, error.chain()));
                continue;
            }
        };
        let (result, text) = match (judge(&survey), guest.was(Rung::Partitions, disk.disk.as_str()))
        {
            // Whoever writes over all of a disk leaves nothing that could be found damaged.
            ((Climb::NotTried, text), Some(was)) => {
                (Climb::Failed, format!("{text}, and it held {was}"))
            }
            (judged, _) => judged,
        };
        parts.push(part(result, text));
        for volume in survey.volumes {
            let superblock = superblock_of(&bytes, &volume);
            volumes.push(Place { disk: disk.clone(), volume, superblock });
        }
    }
    // A disk that holds nothing that is known says nothing about the others.
    let known = parts.iter().any(|part| part.result != Climb::NotTried);
    parts.retain(|part| !known || part.result != Climb::NotTried);
    Found::of(parts, "the point has no disks")
}

/// What a disk's table is worth.
fn judge(survey: &Survey) -> (Climb, String) {
    if let Some(note) = survey.notes.first() {
        return (Climb::Failed, note.clone());
    }
    let count = survey.volumes.len();
    match (survey.table, survey.volumes.first()) {
        (Table::None, Some(volume)) if volume.content != Content::Unknown => {
            (Climb::Passed, format!("{} without partitions", volume.content))
        }
        (Table::None, _) => (Climb::NotTried, "nothing on it is known here".to_owned()),
        (table, _) => {
            let table = if table == Table::Gpt { "GPT" } else { "MBR" };
            (Climb::Passed, format!("{table} with {count} volumes"))
        }
    }
}

/// What a volume's superblock says.
fn superblock_of(disk: &Arc<dyn ReadAt>, volume: &Volume) -> Result<Option<Superblock>, String> {
    if volume.pieces().is_empty() {
        return Ok(None);
    }
    let bytes = volume.open(disk).map_err(|error| error.chain())?;
    let len = bytes.len().map_err(|error| error.to_string())?;
    let mut head = vec![0; superblock::LEN.min(usize::try_from(len).unwrap_or(usize::MAX))];
    bytes.read_exact_at(&mut head, 0).map_err(|error| error.to_string())?;
    let read = Superblock::parse(volume.content, &head).map_err(|error| error.to_string())?;
    match read {
        Some(block) if block.size > volume.size => Err(format!(
            "it says that it has {} bytes, and the volume has {}",
            block.size, volume.size
        )),
        read => Ok(read),
    }
}

/// Judges the superblocks of the volumes.
pub(super) fn filesystems(guest: &Guest, volumes: &[Place]) -> Found {
    let filesystems = volumes.iter().filter(|found| found.is_filesystem());
    let lost = volumes.iter().filter(|found| found.volume.content == Content::Unknown);
    let lost = lost.filter_map(|found| {
        let was = guest.was(Rung::Filesystems, &found.name())?;
        let text = format!("nothing in it is known here, and it held {was}");
        Some(Part { name: found.name(), result: Climb::Failed, text })
    });
    let parts = filesystems.map(|found| {
        let content = found.volume.content;
        let (result, text) = match &found.superblock {
            Err(problem) => (Climb::Failed, format!("{content}: {problem}")),
            Ok(None) => (Climb::NotTried, format!("{content} is not looked into here")),
            Ok(Some(block)) if block.state == State::Errors => {
                (Climb::Failed, format!("{content}: {}", block.state))
            }
            Ok(Some(block)) => (Climb::Passed, format!("{content}: {}", block.state)),
        };
        Part { name: found.name(), result, text }
    });
    Found::of(parts.chain(lost).collect(), "no filesystem that is known here")
}
