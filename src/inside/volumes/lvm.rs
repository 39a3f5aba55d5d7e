//! LVM's linear volumes over the partitions of a disk.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use qdelta_formats::volumes::lvm::{self, Group, Label, Logical, Physical, TextPlace};

use super::{Content, Kind, Survey, VOLUMES_MAX, Volume, content_of, read_some, refused};
use crate::base::error::Result;
use crate::disk::io::ReadAt;

/// The most segments of a volume.
const STRETCHES_MAX: usize = 1 << 16;

/// Adds the logical volumes of the groups that have a physical volume on this disk.
pub(super) fn add_logical(disk: &Arc<dyn ReadAt>, survey: &mut Survey) -> Result<()> {
    // Where the physical volume with an id lies on the disk.
    let mut places: HashMap<String, Range<u64>> = HashMap::new();
    let mut groups: HashMap<String, Group> = HashMap::new();
    let members = survey.volumes.iter().filter(|volume| volume.content == Content::LvmMember);
    let members: Vec<Volume> = members.cloned().collect();
    for member in members {
        let Some(place) = member.pieces().first().cloned() else { continue };
        let volume = member.open(disk)?;
        match physical(&*volume)? {
            Ok((label, found)) => {
                places.insert(label.id, place);
                for group in found {
                    // Each physical volume has a copy of the text; the newest counts.
                    let known = groups.get(&group.name);
                    if known.is_none_or(|known| known.sequence < group.sequence) {
                        groups.insert(group.name.clone(), group);
                    }
                }
            }
            Err(problem) => {
                survey.notes.push(format!("{}: LVM's metadata: {problem}", member.name));
            }
        }
    }
    let mut groups: Vec<Group> = groups.into_values().collect();
    groups.sort_by(|one, other| one.name.cmp(&other.name));
    for group in groups {
        let by_name = group.physical.iter().map(|physical| (physical.name.as_str(), physical));
        let by_name: HashMap<&str, &Physical> = by_name.collect();
        for logical in &group.logical {
            if survey.volumes.len() >= VOLUMES_MAX {
                survey.notes.push(format!("only the first {VOLUMES_MAX} volumes are looked at"));
                return Ok(());
            }
            let mut volume = volume_of(&group, logical, &by_name, &places);
            if volume.pieces.is_ok() {
                volume.content = content_of(&*volume.open(disk)?)?;
            }
            survey.volumes.push(volume);
        }
    }
    Ok(())
}

/// The label of a physical volume and the texts of its group; or what is wrong with them.
fn physical(volume: &dyn ReadAt) -> Result<Result<(Label, Vec<Group>), String>> {
    let mut bytes = vec![0; lvm::LABEL_LEN];
    read_some(volume, &mut bytes, 0)?;
    let label = match Label::parse(&bytes) {
        Ok(Some(label)) => label,
        Ok(None) => return Ok(Err("there is no label".to_owned())),
        Err(error) => return Ok(Err(error.to_string())),
    };
    let mut groups = Vec::new();
    let mut problem = None;
    for (at, len) in &label.areas {
        match group_of(volume, *at, *len)? {
            Ok(group) => groups.extend(group),
            Err(found) => problem = Some(found),
        }
    }
    Ok(match problem {
        Some(problem) if groups.is_empty() => Err(problem),
        _ => Ok((label, groups)),
    })
}

/// The group that an area of metadata describes, if it describes one.
fn group_of(volume: &dyn ReadAt, at: u64, len: u64) -> Result<Result<Option<Group>, String>> {
    let mut header = vec![0; lvm::AREA_HEADER_LEN];
    read_some(volume, &mut header, at)?;
    let place = match TextPlace::parse(&header, len) {
        Ok(Some(place)) => place,
        Ok(None) => return Ok(Ok(None)),
        Err(error) => return Ok(Err(error.to_string())),
    };
    let mut text = vec![0; place.len as usize];
    let (before, behind) = text.split_at_mut(place.before_end as usize);
    read_some(volume, before, at.saturating_add(place.offset))?;
    read_some(volume, behind, at.saturating_add(lvm::AREA_HEADER_LEN as u64))?;
    let group = place.check(&text).and_then(|()| lvm::parse_group(&text));
    Ok(group.map(Some).map_err(|error| error.to_string()))
}

fn volume_of(
    group: &Group,
    logical: &Logical,
    by_name: &HashMap<&str, &Physical>,
    places: &HashMap<String, Range<u64>>,
) -> Volume {
    let name = format!("{}/{}", group.name, logical.name);
    let pieces = pieces_of(&name, group, logical, by_name, places);
    let size = logical.extents.saturating_mul(group.extent);
    let (kind, content) = (Kind::Logical, Content::Unknown);
    Volume { name, kind, label: None, size, content, pieces }
}

/// Where a logical volume lies on the disk.
fn pieces_of(
    name: &str,
    group: &Group,
    logical: &Logical,
    by_name: &HashMap<&str, &Physical>,
    places: &HashMap<String, Range<u64>>,
) -> Result<Vec<Range<u64>>> {
    const ADVICE: &str = "`qdelta mount` shows the disk as a file: a loop device over it gives LVM's own tools the volume";
    let stretches = logical.stretches.as_ref().map_err(|kind| {
        let text =
            format!("volume {name} is one of LVM's type {kind:?}; only linear ones are read");
        refused(text, ADVICE)
    })?;
    if stretches.len() > STRETCHES_MAX {
        return Err(refused(format!("volume {name} has {} segments", stretches.len()), ADVICE));
    }
    let mut pieces = Vec::new();
    for stretch in stretches {
        let physical = by_name.get(stretch.physical.as_str());
        let place = physical.and_then(|physical| places.get(&physical.id));
        let Some((physical, place)) = physical.zip(place) else {
            let text = format!("volume {name} lies partly on another disk of the guest");
            return Err(refused(text, ADVICE));
        };
        let start = stretch.first.checked_mul(group.extent);
        let start = start.and_then(|start| start.checked_add(physical.start));
        let start = start.and_then(|start| start.checked_add(place.start));
        let len = stretch.extents.checked_mul(group.extent);
        let range = start.zip(len).and_then(|(start, len)| Some(start..start.checked_add(len)?));
        match range {
            Some(range) if range.end <= place.end => pieces.push(range),
            _ => {
                let text = format!("volume {name} goes beyond its physical volume");
                return Err(refused(text, ADVICE));
            }
        }
    }
    Ok(pieces)
}
