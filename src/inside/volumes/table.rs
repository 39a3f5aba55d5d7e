//! The partitions of a disk.

use std::collections::HashSet;
use std::ops::Range;

use qdelta_formats::volumes::{gpt, mbr};

use super::{Content, Kind, Survey, Table, VOLUMES_MAX, Volume, content_of, read_some};
use crate::base::error::{Error, Result};
use crate::disk::io::ReadAt;

/// The size of sectors is not written in a table: it is that of the disk that the guest sees.
const SECTORS: [u64; 2] = [512, 4096];
/// The first number of a logical partition.
const FIRST_LOGICAL: u32 = 5;

/// The partitions of a disk, or the whole of it as one volume. What they hold is not looked at.
pub(super) fn partitions(disk: &dyn ReadAt) -> Result<Survey> {
    let size = disk.len().map_err(|error| Error::io("look at", disk.path(), error))?;
    let mut survey = Survey { table: Table::None, volumes: Vec::new(), notes: Vec::new() };
    let mut sector = [0; mbr::LEN];
    read_some(disk, &mut sector, 0)?;
    let entries = mbr::parse(&sector).ok().flatten();
    // A GPT is looked for where the MBR says so, and where there is no MBR any more.
    let protected = entries
        .as_ref()
        .is_none_or(|entries| entries.is_empty() || entries.iter().any(mbr::Entry::is_protective));
    if protected && of_gpt(disk, size, &mut survey)? {
        return Ok(survey);
    }
    if entries.as_ref().is_some_and(|entries| entries.iter().any(mbr::Entry::is_protective))
        && survey.notes.is_empty()
    {
        survey.notes.push("the MBR says that there is a GPT, and both copies are gone".to_owned());
    }
    // A boot sector of a filesystem has the signature of an MBR, and code where its entries would be.
    let is_filesystem = matches!(content_of(disk)?, Content::Ntfs | Content::Fat | Content::ExFat);
    match entries {
        Some(entries) if !is_filesystem && !entries.is_empty() => {
            let sector = sector_of_mbr(disk, size, &entries)?;
            of_mbr(disk, size, sector, &entries, &mut survey)?;
        }
        _ => {
            survey.volumes.push(Volume::at("disk".to_owned(), Kind::Whole, 0..size));
        }
    }
    Ok(survey)
}

/// Adds the partitions of a GPT, by its first copy or by its last; says whether there is one.
fn of_gpt(disk: &dyn ReadAt, size: u64, survey: &mut Survey) -> Result<bool> {
    let mut damaged = None;
    for sector in SECTORS {
        let last = (size / sector).saturating_sub(1);
        for (place, which) in [(1, "first"), (last, "last")] {
            match table_at(disk, size, sector, place)? {
                Ok(None) => {}
                Ok(Some(entries)) => {
                    survey.table = Table::Gpt;
                    if place != 1 && damaged.is_none() {
                        damaged = Some("the first copy of the GPT is missing".to_owned());
                    }
                    survey.notes.extend(damaged);
                    add_gpt(&entries, sector, size, survey);
                    return Ok(true);
                }
                Err(problem) => {
                    damaged = Some(format!("the {which} copy of the GPT is damaged: {problem}"));
                }
            }
        }
    }
    survey.notes.extend(damaged);
    Ok(false)
}

/// The entries of the GPT whose header is at sector `place`: none without one, or what is wrong with it.
fn table_at(
    disk: &dyn ReadAt,
    size: u64,
    sector: u64,
    place: u64,
) -> Result<Result<Option<Vec<gpt::Entry>>, String>> {
    let mut header = [0; 512];
    read_some(disk, &mut header, place.saturating_mul(sector))?;
    let header = match gpt::Header::parse(&header, place) {
        Ok(Some(header)) => header,
        Ok(None) => return Ok(Ok(None)),
        Err(error) => return Ok(Err(error.to_string())),
    };
    let at = header.entries_at.checked_mul(sector);
    let Some(at) = at.filter(|at| at.checked_add(header.entries_len()).is_some_and(|e| e <= size))
    else {
        return Ok(Err("its entries lie behind the end of the disk".to_owned()));
    };
    let mut bytes = vec![0; header.entries_len() as usize];
    read_some(disk, &mut bytes, at)?;
    Ok(header.parse_entries(&bytes).map(Some).map_err(|error| error.to_string()))
}

fn add_gpt(entries: &[gpt::Entry], sector: u64, size: u64, survey: &mut Survey) {
    for entry in entries {
        let name = format!("p{}", entry.slot + 1);
        let end = entry.last.checked_add(1).and_then(|end| end.checked_mul(sector));
        let range = entry.first.checked_mul(sector).zip(end).map(|(start, end)| start..end);
        add(survey, name, range, size);
        if let Some(volume) = survey.volumes.last_mut() {
            volume.label = Some(entry.name.clone()).filter(|label| !label.is_empty());
        }
        if survey.volumes.len() >= VOLUMES_MAX {
            survey.notes.push(format!("only the first {VOLUMES_MAX} partitions are looked at"));
            return;
        }
    }
}

/// Adds a partition, if its range makes sense.
fn add(survey: &mut Survey, name: String, range: Option<Range<u64>>, size: u64) {
    match range {
        Some(range) if range.start < range.end && range.end <= size => {
            survey.volumes.push(Volume::at(name, Kind::Partition, range));
        }
        Some(range) if range.start < size && range.start < range.end => {
            let text = format!("partition {name} ends behind the end of the disk, where it is cut");
            survey.notes.push(text);
            survey.volumes.push(Volume::at(name, Kind::Partition, range.start..size));
        }
        _ => survey.notes.push(format!("partition {name} lies outside the disk and is left out")),
    }
}

/// The size of sectors that an MBR counts in: that with which its partitions hold something known.
fn sector_of_mbr(disk: &dyn ReadAt, size: u64, entries: &[mbr::Entry]) -> Result<u64> {
    for sector in SECTORS {
        for entry in entries.iter().filter(|entry| !entry.is_extended()) {
            let range = range_of(entry, 0, sector);
            if range.end > size {
                continue;
            }
            let mut bytes = vec![0; qdelta_formats::volumes::content::LEN];
            read_some(disk, &mut bytes, range.start)?;
            if Content::of(&bytes) != Content::Unknown {
                return Ok(sector);
            }
        }
    }
    Ok(SECTORS[0])
}

/// Where an entry lies whose sectors count from `base`.
fn range_of(entry: &mbr::Entry, base: u64, sector: u64) -> Range<u64> {
    let start = base + u64::from(entry.start) * sector;
    start..start + u64::from(entry.sectors) * sector
}

fn of_mbr(
    disk: &dyn ReadAt,
    size: u64,
    sector: u64,
    entries: &[mbr::Entry],
    survey: &mut Survey,
) -> Result<()> {
    survey.table = Table::Mbr;
    let mut next = FIRST_LOGICAL;
    for entry in entries.iter().filter(|entry| !entry.is_extended()) {
        add(survey, format!("p{}", entry.slot + 1), Some(range_of(entry, 0, sector)), size);
    }
    for entry in entries.iter().filter(|entry| entry.is_extended()) {
        let container = range_of(entry, 0, sector).start;
        logical(disk, size, sector, container, &mut next, survey)?;
    }
    Ok(())
}

/// Adds the logical partitions of the container at `container`: a list of boot records, each of which
/// names a partition and the next record.
fn logical(
    disk: &dyn ReadAt,
    size: u64,
    sector: u64,
    container: u64,
    next: &mut u32,
    survey: &mut Survey,
) -> Result<()> {
    let mut seen = HashSet::new();
    let mut at = container;
    loop {
        if at >= size {
            survey.notes.push("a record of logical partitions lies outside the disk".to_owned());
            return Ok(());
        }
        if !seen.insert(at) || seen.len() > VOLUMES_MAX {
            survey.notes.push("the list of logical partitions goes round in a circle".to_owned());
            return Ok(());
        }
        let mut bytes = [0; mbr::LEN];
        read_some(disk, &mut bytes, at)?;
        let Some(entries) = mbr::parse(&bytes).ok().flatten() else {
            survey.notes.push("a record of logical partitions is damaged".to_owned());
            return Ok(());
        };
        if let Some(entry) = entries.iter().find(|entry| !entry.is_extended()) {
            add(survey, format!("p{next}"), Some(range_of(entry, at, sector)), size);
            *next += 1;
        }
        match entries.iter().find(|entry| entry.is_extended()) {
            Some(entry) => at = range_of(entry, container, sector).start,
            None => return Ok(()),
        }
    }
}
