//! The tracker `reflink`: the files of the image lie elsewhere than their clones wherever they were
//! written to.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd;
use std::path::PathBuf;

use qdelta_formats::archive::Tracker;

use super::case::Case;
use super::changes::Claim;
use super::{Answer, Claiming};
use crate::base::error::{Error, Result};
use crate::disk::image::extent::FileIndex;
use crate::disk::image::{self, Image, OpenOptions, SameBytes};
use crate::disk::io::Opener;
use crate::disk::reflink::{self, ByteRanges};
use crate::flows::anchors::reflink::{descriptor, record_of};
use crate::vault::repository::{AnchorKind, CloneRecord};

pub(super) const REFLINK: Claiming =
    Claiming { tracker: Tracker::Reflink, of_exports: false, below_new_layers: false, claim };

fn claim(case: &Case<'_>) -> Answer {
    let anchor = case.anchor(Tracker::Reflink)?;
    let AnchorKind::Reflink { clones } = &anchor.what else {
        return Err("the anchor is no clone".into());
    };
    let kept = clones.iter().map(open_clone).collect::<Result<Vec<File>, String>>()?;
    let older = older(case, clones)?;
    let bytes = match_files(case, &older, clones, &kept)?;
    let mut claim = Claim::none(case.geometry);
    let compared = image::differences(&older, case.image(), &bytes, |range| {
        claim.add(range);
        Ok(())
    });
    compared.map_err(|error| error.chain())?;
    let differing = bytesize::ByteSize(bytes.differing_bytes()).display().iec();
    Ok((claim, format!("{differing} of the files lie elsewhere than in their kept clones")))
}

/// The image as it was at the point before, by its clones and by what has not changed below.
fn older(case: &Case<'_>, clones: &[CloneRecord]) -> Result<Image, String> {
    let substitutes = clones.iter().map(|it| (it.file.clone(), it.clone.clone())).collect();
    let path = &case.latest.record.image.path;
    // The image may have become a backing file since.
    let chain = case.source.options.chain.seen_from(&case.source.path, path);
    let options = OpenOptions { clones: substitutes, chain, ..case.source.options.clone() };
    let older = Image::open(path, &options).map_err(|error| error.chain())?;
    let recorded = case.recorded_fingerprints();
    let now = older.fingerprints().map_err(|error| error.chain())?;
    case.check_same("a backing file", recorded.get(1..), now.get(1..))?;
    Ok(older)
}

/// Finds for each file of the older image the one that it is now, and compares where they lie.
fn match_files(
    case: &Case<'_>,
    older: &Image,
    clones: &[CloneRecord],
    kept: &[File],
) -> Result<FileMatches, String> {
    let names = real_names(case.image())?;
    let older_names = real_names(older)?;
    // A data file whose name leads somewhere else now would be read as it is.
    if let Some(lost) = clones.iter().find(|clone| !older_names.contains(&clone.file)) {
        return Err(format!("the image had its bytes in {}", lost.file.display()));
    }
    let mut files = Vec::new();
    for (index, name) in older_names.iter().enumerate() {
        let now = names.iter().position(|other| other == name);
        let cloned = clones.iter().position(|clone| clone.file == *name);
        let Some(now) = now else {
            files.push(None);
            continue;
        };
        let differing = match cloned.and_then(|position| kept.get(position)) {
            Some(clone) => {
                let store = case.image().files().get(now);
                let store = store.ok_or("the image has lost a file")?;
                let newer = descriptor(store.as_ref());
                let newer = newer.map_err(|error| error.chain())?;
                reflink::differing(clone.as_fd(), newer, name).map_err(|error| error.chain())?
            }
            // A layer below the top, which was proved to be the same.
            None if index > 0 => ByteRanges::default(),
            None => return Err(format!("no clone of {} was kept", name.display())),
        };
        files.push(Some((FileIndex(now as u16), differing)));
    }
    let same_count = names.len() == files.len();
    Ok(FileMatches { files, same_count })
}

/// The real paths of an image's files.
fn real_names(image: &Image) -> Result<Vec<PathBuf>, String> {
    let real = |name: PathBuf| {
        name.canonicalize().map_err(|error| Error::io("resolve", &name, error).chain())
    };
    image.file_names().into_iter().map(real).collect()
}

/// Opens a kept clone that is what it was.
fn open_clone(record: &CloneRecord) -> Result<File, String> {
    let shown = record.clone.display();
    let file = Opener::READ.itself().open(&record.clone);
    let file = file.map_err(|error| format!("its clone {shown}: {error}"))?;
    let now = record_of(&record.file, &record.clone, &file);
    if now.map_err(|error| error.chain())? != *record {
        return Err(format!("the clone {shown} is not the one that was kept"));
    }
    Ok(file)
}

/// For each file of the older image, which one it is now, and where they differ.
struct FileMatches {
    files: Vec<Option<(FileIndex, ByteRanges)>>,
    /// The image has as many files now.
    same_count: bool,
}

impl FileMatches {
    fn get(&self, older: FileIndex) -> Option<&(FileIndex, ByteRanges)> {
        self.files.get(usize::from(older.0)).and_then(Option::as_ref)
    }

    fn differing_bytes(&self) -> u64 {
        self.files.iter().flatten().map(|(_, ranges)| ranges.bytes()).sum()
    }
}

impl SameBytes for FileMatches {
    fn counterpart(&self, older: FileIndex) -> Option<FileIndex> {
        self.get(older).map(|(newer, _)| *newer)
    }

    fn differing(
        &self,
        older: FileIndex,
        range: Range<u64>,
    ) -> Box<dyn Iterator<Item = Range<u64>> + '_> {
        match self.get(older) {
            Some((_, ranges)) => Box::new(ranges.within(range)),
            None => Box::new(std::iter::once(range)),
        }
    }

    fn is_identity(&self) -> bool {
        let same = |(index, file): (usize, &Option<(FileIndex, ByteRanges)>)| {
            file.as_ref()
                .is_some_and(|(newer, ranges)| usize::from(newer.0) == index && ranges.is_empty())
        };
        self.same_count && self.files.iter().enumerate().all(same)
    }
}
