//! Which tracker says what has changed since the parent: the best whose claim can be proved valid.
//!
//! A claim is believed only if nothing of what it rests on can have changed behind its back. What
//! can't be proved is refused with the reason, and the next tracker is tried; the last one is to
//! read everything.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

use qdelta_formats::archive::{Geometry, Tracker};
use qdelta_formats::qcow2::{Bitmap, Snapshot};
use roaring::RoaringTreemap;

use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::edit::{self, ImageFile};
use crate::disk::files::fingerprint::{self, Fingerprint};
use crate::disk::image::extent::FileIndex;
use crate::disk::image::{self, Format, Image, OpenOptions, SameBytes, Unwritten};
use crate::disk::io::Opener;
use crate::disk::reflink::{self, ByteRanges};
use crate::flows::anchors;
use crate::flows::capture::Source;
use crate::flows::tracking::changes::Claim;
use crate::vault::chain::Chain;
use crate::vault::point::{Base, open_chain};
use crate::vault::repository::{Anchor, AnchorKind, Catalog, CloneRecord, Point, Refusal};

/// The trackers that need no reading, the best first.
const CLAIMING: [Tracker; 4] =
    [Tracker::Bitmap, Tracker::Snapshot, Tracker::Overlay, Tracker::Reflink];

/// How the changed blocks are found.
pub(crate) struct Tracked {
    pub tracker: Tracker,
    /// What may have changed; everything if there is no claim.
    pub claim: Option<Claim>,
    /// Why this one, in one line.
    pub why: String,
    /// Which ones were tried before, and why they could not be used.
    pub refused: Vec<Refusal>,
}

impl Tracked {
    /// Everything is read.
    pub fn scan(why: impl Into<String>, refused: Vec<Refusal>) -> Self {
        Self { tracker: Tracker::Scan, claim: None, why: why.into(), refused }
    }
}

/// A claim and what it rests on, or why there is none.
type Answer = Result<(Claim, String), String>;

/// Finds out what has changed between the base and the source. `forced` is the tracker that the
/// user wants.
///
/// # Errors
/// The forced tracker can't be used.
pub(crate) fn choose(
    catalog: &Catalog,
    base: &Base,
    source: &Source,
    geometry: Geometry,
    forced: Option<Tracker>,
) -> Result<Tracked> {
    let (Some((parent, chain)), Some(latest)) = (&base.against, &base.latest) else {
        return Ok(Tracked::scan("a full needs everything", Vec::new()));
    };
    if forced == Some(Tracker::Scan) {
        return Ok(Tracked::scan("as asked for", Vec::new()));
    }
    let opened = match parent.id == latest.id {
        true => Ok(None),
        false => open_chain(catalog, latest).map(Some),
    };
    // That is no failure of a backup that does without.
    let opened =
        opened.map_err(|error| format!("what lies between can't be read: {}", error.chain()));
    let case = opened.as_ref().map(|opened| {
        let chain = opened.as_ref().unwrap_or(chain);
        Case { source, geometry, latest, chain }
    });
    let mut refused = Vec::new();
    for tracker in CLAIMING.into_iter().filter(|it| forced.is_none_or(|forced| forced == *it)) {
        let answer = match &case {
            Err(unreadable) => Err((*unreadable).clone()),
            Ok(case) => case.claim(tracker).and_then(|(mut claim, why)| {
                case.add_what_lies_between(parent, &mut claim).map_err(|error| error.chain())?;
                Ok((claim, why))
            }),
        };
        match answer {
            Ok((claim, why)) => {
                return Ok(Tracked { tracker, claim: Some(claim), why, refused });
            }
            Err(reason) => refused.push(Refusal { tracker, reason }),
        }
    }
    match (forced, refused.pop()) {
        (Some(tracker), Some(refusal)) => {
            let text = format!("tracker {tracker} can't be used: {}", refusal.reason);
            Err(Error::new(ErrorKind::Usage, text)
                .advise("without --track the best one that can be is taken"))
        }
        (_, last) => {
            refused.extend(last);
            Ok(Tracked::scan("no other tracker can be used", refused))
        }
    }
}

/// What a claim is made of: the image now, and what the latest point says of it.
struct Case<'a> {
    source: &'a Source,
    geometry: Geometry,
    latest: &'a Point,
    /// The chain of the latest point.
    chain: &'a Chain,
}

impl Case<'_> {
    /// A claim speaks of the time since the latest point. What changed between the parent and that
    /// one is in the archives; where they ended, the disk may have had another size.
    fn add_what_lies_between(&self, parent: &Point, claim: &mut Claim) -> Result<()> {
        claim.add_resize(self.latest.record.virtual_size);
        if parent.id == self.latest.id {
            return Ok(());
        }
        claim.add_resize(parent.record.virtual_size);
        // Every archive of a chain is of another point.
        let name = parent.id.to_string();
        let is_parent = |archive: &Arc<crate::vault::archive::Reader>| {
            archive.metadata().point == name && archive.root() == parent.record.root
        };
        let position = self.chain.archives().iter().position(is_parent).ok_or_else(|| {
            let text = format!("point {} does not follow point {}", self.latest.id, parent.id);
            Error::new(ErrorKind::Usage, text)
        })?;
        claim.add_blocks(&self.chain.changed_since(position)?);
        Ok(())
    }

    /// QEMU records what guests write in a bitmap, but not the clusters that `qemu-img check -r`
    /// makes zero because their entries are damaged; and in a table that an image shares with its
    /// snapshot, they become zero in both. So whatever was not zero and has holes is claimed.
    fn add_holes(&self, claim: &mut Claim) -> Result<()> {
        let mut holes = Claim::none(self.geometry);
        self.image().holes(|range| {
            holes.add(range);
            Ok(())
        })?;
        claim.add_blocks(&(holes.blocks() & &self.chain.nonzero()?));
        Ok(())
    }

    /// Where two guest clusters shared a host cluster that was counted once, QEMU wrote to both and recorded
    /// one. `qemu-img check -r all` corrects the count, and the image is sound from then on; that they
    /// share it still shows. QEMU itself lets none share without a snapshot.
    fn add_aliased(&self, claim: &mut Claim) -> Result<()> {
        self.image().aliased(|range| {
            claim.add(range);
            Ok(())
        })
    }

    fn claim(&self, tracker: Tracker) -> Answer {
        if self.source.options.snapshot.is_some() {
            return Err("it is a snapshot of the image that is backed up".into());
        }
        self.check_same_formats(tracker)?;
        if self.latest.record.image.layers.iter().any(|layer| layer.fingerprint.is_none())
            && self.latest.record.anchor.is_none()
        {
            return Err("the point before left nothing to compare with".into());
        }
        match tracker {
            Tracker::Bitmap => self.bitmap(),
            Tracker::Snapshot => self.snapshot(),
            Tracker::Overlay => self.overlay(),
            Tracker::Reflink => self.reflink(),
            Tracker::Scan => Err("it makes no claim".into()),
        }
    }

    /// Fails if the image of the latest point is read in another way now: the bytes of a container
    /// are another disk than the one in it. Only an overlay may lie above it.
    fn check_same_formats(&self, tracker: Tracker) -> Result<(), String> {
        let (now, record) = (self.image().layers(), &self.latest.record.image);
        let above = match tracker {
            Tracker::Overlay => now.len().saturating_sub(record.layers.len()),
            _ => 0,
        };
        let format = &record.format;
        match now.get(above) {
            Some(layer) if layer.format.as_str() == format => Ok(()),
            _ if above > 0 => Err(format!(
                "it does not lie over the image of the point before, which was read as {format}"
            )),
            _ => Err(format!("the image was read as {format} the last time")),
        }
    }

    fn image(&self) -> &Image {
        &self.source.image
    }

    fn anchor(&self, tracker: Tracker) -> Result<&Anchor, String> {
        let anchor = self.latest.record.anchor.as_ref();
        anchor
            .filter(|anchor| anchor.what.tracker() == tracker)
            .ok_or_else(|| format!("the point before left no anchor for it (--anchor {tracker})"))
    }

    /// The qcow2 file at the top, whose own tables hold the anchor.
    fn top(&self) -> Result<ImageFile, String> {
        let top = self.image().layers().first();
        if self.source.options.as_file || top.is_none_or(|top| top.format != Format::Qcow2) {
            return Err("the image is no qcow2".into());
        }
        if top.is_some_and(|top| top.data_file.is_some()) {
            return Err("its data lies in another file, which may change on its own".into());
        }
        let store = self.image().files().first().cloned();
        store.map(ImageFile::to_read).ok_or_else(|| "the image has no file".into())
    }

    /// Whether the new anchor was written into the image itself.
    fn left_in_image(&self) -> bool {
        let anchor = self.source.anchor.as_ref();
        anchor.is_some_and(|new| !matches!(new.what, AnchorKind::Reflink { .. }))
    }

    /// Fails unless the image is sound. Where two guest clusters share a host cluster that is counted
    /// once, QEMU writes in place: it changes both, a bitmap has one of them, and no table differs.
    fn check_sound(&self, file: &ImageFile) -> Result<(), String> {
        // Before a new anchor was written into it, it was proved, and nobody could write since.
        if self.left_in_image() {
            return Ok(());
        }
        edit::prove(file).map_err(|error| error.chain())
    }

    /// Fails unless the files below the top are what they were.
    fn check_below(&self) -> Result<(), String> {
        let now = self.fingerprints()?;
        let recorded = self.recorded_fingerprints();
        if recorded.len() != now.len() {
            return Err("it lies over other backing files than at the point before".into());
        }
        self.check_same("a backing file", recorded.get(1..), now.get(1..))
    }

    /// Fails unless all these files are what they were recorded as. Times are believed only of mounts
    /// that were there all the time: what was cut off can have lost the time of a write, and not the
    /// write.
    fn check_same(
        &self,
        what: &str,
        recorded: Option<&[Option<Fingerprint>]>,
        now: Option<&[Option<Fingerprint>]>,
    ) -> Result<(), String> {
        let (recorded, now) = (recorded.unwrap_or_default(), now.unwrap_or_default());
        let changed = || Err(format!("{what} has changed since the point before"));
        if recorded.len() != now.len() {
            return changed();
        }
        let (mut same_mount, boot) = (true, &self.latest.record.image.boot);
        for (then, now) in recorded.iter().zip(now) {
            let (Some(then), Some(now)) = (then, now) else {
                return Err(format!(
                    "{what} can't be recognised again: it is a device, its data lies in another \
                     file, or it was not itself that was read"
                ));
            };
            if then.modified_ns.is_none() || now.modified_ns.is_none() {
                return Err(format!(
                    "the time of {what} proves nothing: it was being written to at the point before, \
                     or it was not written back, or it lies where not every write shows in it (tmpfs, \
                     overlayfs, Btrfs before Linux 6.10)"
                ));
            }
            let apart =
                |it: &Fingerprint| Fingerprint { mount: None, changed_ns: None, ..it.clone() };
            if apart(then) != apart(now) {
                return changed();
            }
            same_mount &= then.mount == now.mount;
        }
        if !recorded.is_empty() && (boot.is_none() || *boot != fingerprint::boot()) {
            let text = "the machine was started anew since the point before, or it is another one: a \
                        power cut can take back the time of a write, and not the write";
            return Err(text.into());
        }
        if !same_mount {
            return Err(format!(
                "the filesystem of {what} was mounted anew since the point before (or qdelta runs in \
                 a mount namespace of its own): one that went down can lose the time of a write, and \
                 not the write"
            ));
        }
        Ok(())
    }

    fn fingerprints(&self) -> Result<Vec<Option<Fingerprint>>, String> {
        self.image().fingerprints().map_err(|error| error.chain())
    }

    fn recorded_fingerprints(&self) -> Vec<Option<Fingerprint>> {
        let layers = &self.latest.record.image.layers;
        layers.iter().map(|layer| layer.fingerprint.clone()).collect()
    }

    fn bitmap(&self) -> Answer {
        let anchor = self.anchor(Tracker::Bitmap)?;
        let file = self.top()?;
        self.check_below()?;
        let bitmaps = edit::bitmap::list(&file).map_err(|error| error.chain())?;
        let ours = bitmaps.iter().find(|bitmap| bitmap.name == anchor.name.as_bytes());
        let ours = ours.ok_or_else(|| {
            format!(
                "the image has no valid bitmap {}: it was restored or replaced, or written to by a \
                 program that knows no bitmaps",
                anchor.name
            )
        })?;
        if ours.in_use {
            return Err(format!(
                "the bitmap {} is not saved: QEMU is using it, or was killed",
                anchor.name
            ));
        }
        if !ours.auto {
            return Err(format!("the bitmap {} does not record every write", anchor.name));
        }
        self.check_sound(&file)?;
        self.check_same_file()?;
        let mut claim = Claim::none(self.geometry);
        let unit = self.add_by_map(&file, &bitmaps, &anchor.name, &mut claim)?;
        let mut canaries = anchors::canaries(&anchor.name, self.latest.record.virtual_size);
        edit::bitmap::read(&file, &anchor.name, |range| {
            canaries.retain(|byte| !range.contains(byte));
            // A cluster that is written in part is filled from below, and no bit says so.
            claim.add(range.start / unit * unit..range.end.next_multiple_of(unit));
            Ok(())
        })
        .and_then(|()| self.add_holes(&mut claim))
        .and_then(|()| self.add_aliased(&mut claim))
        .map_err(|error| error.chain())?;
        if !canaries.is_empty() {
            return Err(format!(
                "the bitmap {} was cleared, or is another one, or the disk was shrunk",
                anchor.name
            ));
        }
        Ok((claim, format!("QEMU recorded every write in the bitmap {}", anchor.name)))
    }

    /// Whoever copies an image may copy its bitmaps along and the disk of an older state:
    /// `qemu-img convert --bitmaps` does so of a snapshot. Fails if the top is another file now.
    fn check_same_file(&self) -> Result<(), String> {
        let recorded = self.recorded_fingerprints().into_iter().next().flatten();
        // The file itself, also if it is a clone of it that is read.
        let name = self.image().file_names().into_iter().next().unwrap_or_default();
        let now = image::identity(&name).map_err(|error| error.chain())?;
        match (recorded.map(|it| it.identity()), now) {
            // Of a device, neither says anything.
            (None, None) => Ok(()),
            (Some(then), Some(now)) if then == now => Ok(()),
            _ => Err("the image is another file than at the point before".into()),
        }
    }

    /// QEMU records in a bitmap what is written to the disk. It does not record what a disk loses
    /// when it shrinks, nor the zeros that it writes when the disk grows again; not that a cluster is
    /// filled from a backing file, which may be another one for a while, nor that a commit empties
    /// the image. The map beside the bitmap called `name` shows all that: claims what was allocated
    /// then or is now, and not both. Gives how many bytes are allocated at once.
    fn add_by_map(
        &self,
        file: &ImageFile,
        bitmaps: &[Bitmap],
        name: &str,
        claim: &mut Claim,
    ) -> Result<u64, String> {
        let map_name = anchors::map_of(name);
        let usable = |it: &&Bitmap| it.name == map_name.as_bytes() && !it.in_use && !it.auto;
        let Some(map) = bitmaps.iter().find(usable) else {
            return Err(format!("nothing shows what was allocated: no bitmap {map_name}"));
        };
        let now = anchors::allocated(self.image()).map_err(|error| error.chain())?;
        if map.granularity() != now.unit {
            return Err(format!("the bitmap {map_name} is of other clusters"));
        }
        let mut then = RoaringTreemap::new();
        edit::bitmap::read(file, &map_name, |range| {
            then.insert_range(range.start / now.unit..range.end.div_ceil(now.unit));
            Ok(())
        })
        .map_err(|error| error.chain())?;
        let last = self.latest.record.virtual_size.saturating_sub(1) / now.unit;
        if !then.contains(last) {
            return Err("the disk was shrunk, which bitmaps do not record".into());
        }
        // Its bit is always set; and less than it stands for may have been cut off.
        claim.add(last * now.unit..(last + 1) * now.unit);
        for number in then ^ now.units {
            claim.add(number * now.unit..(number + 1) * now.unit);
        }
        Ok(now.unit)
    }

    fn snapshot(&self) -> Answer {
        let anchor = self.anchor(Tracker::Snapshot)?;
        let file = self.top()?;
        self.check_below()?;
        let AnchorKind::Snapshot { id, date_s, date_ns } = &anchor.what else {
            return Err("the anchor is no snapshot".into());
        };
        let snapshots = edit::snapshot::list(&file).map_err(|error| error.chain())?;
        let named = |it: &&Snapshot| it.name == anchor.name.as_bytes();
        let mut named = snapshots.iter().filter(named);
        let (Some(ours), None) = (named.next(), named.next()) else {
            return Err(format!("the image does not have exactly one snapshot {}", anchor.name));
        };
        if ours.id != id.as_bytes() || (ours.date_s, ours.date_ns) != (*date_s, *date_ns) {
            return Err(format!("the snapshot {} is somebody else's", anchor.name));
        }
        self.check_sound(&file)?;
        let options = OpenOptions { snapshot: Some(id.clone()), ..self.source.options.clone() };
        let mut claim = Claim::none(self.geometry);
        let compared = Image::open(&self.source.path, &options).and_then(|older| {
            image::differences(&older, self.image(), &Unwritten, |range| {
                claim.add(range);
                Ok(())
            })
        });
        compared.and_then(|()| self.add_holes(&mut claim)).map_err(|error| error.chain())?;
        Ok((claim, format!("the tables differ from those of the snapshot {}", anchor.name)))
    }

    fn overlay(&self) -> Answer {
        let now = self.fingerprints()?;
        let recorded = self.recorded_fingerprints();
        let above = now.len().saturating_sub(recorded.len());
        if above == 0 && !self.source.options.clones.is_empty() {
            return Err("a clone of the image is read, which has times of its own".into());
        }
        if above == 0 && self.left_in_image() {
            return Err("the new anchor has just been written into the image".into());
        }
        self.check_same("a file of the image", Some(&recorded), now.get(above..))?;
        let changed_ns = |files: &[Option<Fingerprint>]| files.first()?.as_ref()?.changed_ns;
        if above == 0 && changed_ns(&recorded) != changed_ns(&now) {
            return Err("a file of the image has changed since the point before".into());
        }
        let mut claim = Claim::none(self.geometry);
        let walked = self.image().above(above, |range| {
            claim.add(range);
            Ok(())
        });
        walked.map_err(|error| error.chain())?;
        let why = match above {
            0 => "no file of the image was written to since".to_owned(),
            1 => "what is allocated in the layer above the image of the point before".to_owned(),
            _ => format!("what is allocated in {above} layers above the image of the point before"),
        };
        Ok((claim, why))
    }

    fn reflink(&self) -> Answer {
        let anchor = self.anchor(Tracker::Reflink)?;
        let AnchorKind::Reflink { clones } = &anchor.what else {
            return Err("the anchor is no clone".into());
        };
        let kept = clones.iter().map(open_kept).collect::<Result<Vec<File>, String>>()?;
        let older = self.older(clones)?;
        let bytes = self.counterparts(&older, clones, &kept)?;
        let mut claim = Claim::none(self.geometry);
        let compared = image::differences(&older, self.image(), &bytes, |range| {
            claim.add(range);
            Ok(())
        });
        compared.map_err(|error| error.chain())?;
        let differing = bytesize::ByteSize(bytes.differing_bytes()).display().iec();
        Ok((claim, format!("{differing} of the files lie elsewhere than in their kept clones")))
    }

    /// The image as it was at the point before, by its clones and by what has not changed below.
    fn older(&self, clones: &[CloneRecord]) -> Result<Image, String> {
        let substitutes = clones.iter().map(|it| (it.file.clone(), it.clone.clone())).collect();
        let path = &self.latest.record.image.path;
        // The image may have become a backing file since.
        let chain = self.source.options.chain.seen_from(&self.source.path, path);
        let options = OpenOptions { clones: substitutes, chain, ..self.source.options.clone() };
        let older = Image::open(path, &options).map_err(|error| error.chain())?;
        let recorded = self.recorded_fingerprints();
        let now = older.fingerprints().map_err(|error| error.chain())?;
        self.check_same("a backing file", recorded.get(1..), now.get(1..))?;
        Ok(older)
    }

    /// Finds for each file of the older image the one that it is now, and compares where they lie.
    fn counterparts(
        &self,
        older: &Image,
        clones: &[CloneRecord],
        kept: &[File],
    ) -> Result<Counterparts, String> {
        let names = real_names(self.image())?;
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
                    let store = self.image().files().get(now);
                    let store = store.ok_or("the image has lost a file")?;
                    let newer = anchors::descriptor(store.as_ref());
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
        Ok(Counterparts { files, same_count })
    }
}

/// The real paths of an image's files.
fn real_names(image: &Image) -> Result<Vec<PathBuf>, String> {
    let real = |name: PathBuf| {
        name.canonicalize().map_err(|error| Error::io("resolve", &name, error).chain())
    };
    image.file_names().into_iter().map(real).collect()
}

/// Opens a kept clone that is what it was.
fn open_kept(record: &CloneRecord) -> Result<File, String> {
    let shown = record.clone.display();
    let file = Opener::READ.itself().open(&record.clone);
    let file = file.map_err(|error| format!("its clone {shown}: {error}"))?;
    let now = anchors::identity(&file, &record.clone).map_err(|error| error.chain())?;
    if now != (record.inode, record.length, record.modified_ns) {
        return Err(format!("the clone {shown} is not the one that was kept"));
    }
    Ok(file)
}

/// For each file of the older image, which one it is now, and where they differ.
struct Counterparts {
    files: Vec<Option<(FileIndex, ByteRanges)>>,
    /// The image has as many files now.
    same_count: bool,
}

impl Counterparts {
    fn get(&self, older: FileIndex) -> Option<&(FileIndex, ByteRanges)> {
        self.files.get(usize::from(older.0)).and_then(Option::as_ref)
    }

    fn differing_bytes(&self) -> u64 {
        self.files.iter().flatten().map(|(_, ranges)| ranges.bytes()).sum()
    }
}

impl SameBytes for Counterparts {
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

/// By what the files of an image are recognised the next time.
pub(crate) fn fingerprints(source: &Source) -> Result<Vec<Option<Fingerprint>>> {
    if source.options.snapshot.is_some() {
        // It is not the current state of the files that was read.
        return Ok(vec![None; source.image.layers().len()]);
    }
    let mut fingerprints = source.image.fingerprints()?;
    if !source.options.clones.is_empty()
        && let Some(top) = fingerprints.first_mut()
    {
        // A clone was read. The file itself may have been written to since.
        *top = None;
    }
    for (layer, fingerprint) in source.image.layers().iter().zip(&mut fingerprints) {
        if let Some(fingerprint) = fingerprint
            && !source.is_settled(&layer.path)
        {
            fingerprint.modified_ns = None;
        }
    }
    Ok(fingerprints)
}
