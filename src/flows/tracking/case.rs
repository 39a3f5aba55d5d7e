//! What every tracker asks: the image now, the latest point, and whether the files that both speak
//! of are the same.

use std::sync::Arc;

use qdelta_formats::archive::{Geometry, Tracker};

use super::changes::Claim;
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::edit::{self, ImageFile};
use crate::disk::files::fingerprint::{self, Fingerprint};
use crate::disk::image::{Format, Image};
use crate::flows::capture::Captured;
use crate::vault::archive::Reader;
use crate::vault::chain::Chain;
use crate::vault::point::Before;
use crate::vault::repository::{Anchor, AnchorKind, Point, PointId, Repository};

/// What a claim is made of: the image now, and what the latest point says of it.
pub(super) struct Case<'a> {
    pub source: &'a Captured,
    pub geometry: Geometry,
    pub repository: &'a Repository,
    pub latest: &'a Point,
    /// What is known of the disk at the parent.
    pub before: &'a Before,
    /// The chain of the latest point, if the parent is another one, or a bitmap began at another one.
    pub chain: Option<&'a Chain>,
}

impl Case<'_> {
    /// A claim speaks of the time since the latest point. What changed between the parent and that
    /// one is in the archives; where they ended, the disk may have had another size.
    pub fn add_what_lies_between(&self, parent: &Point, claim: &mut Claim) -> Result<()> {
        claim.add_resize(self.latest.record.virtual_size);
        let Some(chain) = self.chain else { return Ok(()) };
        claim.add_resize(parent.record.virtual_size);
        // Every archive of a chain is of another point.
        let name = parent.id.to_string();
        let is_parent = |archive: &Arc<Reader>| {
            archive.metadata().point == name && archive.root() == parent.record.root
        };
        let position = chain.archives().iter().position(is_parent).ok_or_else(|| {
            let text = format!("point {} does not follow point {}", self.latest.id, parent.id);
            Error::new(ErrorKind::Usage, text)
        })?;
        claim.add_blocks(&chain.changed_since(position)?);
        Ok(())
    }

    /// Adds what the archives have as changed between a point and the latest one. Whoever puts an older state
    /// of a disk in its place puts back the bitmap of then, which counts from there.
    pub fn add_since(&self, began: PointId, claim: &mut Claim) -> Result<(), String> {
        if began == self.latest.id {
            return Ok(());
        }
        let name = began.to_string();
        let chain = self.chain.map(|chain| (chain, chain.archives().iter()));
        let found = chain.and_then(|(chain, mut archives)| {
            Some((chain, archives.position(|archive| archive.metadata().point == name)?))
        });
        let Some((chain, position)) = found else {
            return Err(format!(
                "the bitmap began at point {began}, from which no archives lead to the point before"
            ));
        };
        claim.add_blocks(&chain.changed_since(position).map_err(|error| error.chain())?);
        Ok(())
    }

    /// What must hold for every tracker, before any looks at its own anchor. `below_new_layers`: the
    /// image of the latest point may have become a backing file.
    pub fn check_comparable(&self, below_new_layers: bool) -> Result<(), String> {
        if self.source.options.snapshot.is_some() {
            return Err("it is a snapshot of the image that is backed up".into());
        }
        self.check_same_format(below_new_layers)?;
        let record = &self.latest.record;
        if record.image.layers.iter().any(|layer| layer.fingerprint.is_none())
            && record.anchor.is_none()
        {
            return Err("the point before left nothing to compare with".into());
        }
        Ok(())
    }

    /// Fails if the image of the latest point is read in another way now: the bytes of a container
    /// are another disk than the one in it. Only an overlay may lie above it.
    fn check_same_format(&self, below_new_layers: bool) -> Result<(), String> {
        let (now, record) = (self.image().layers(), &self.latest.record.image);
        match (self.source.options.export.is_some(), record.is_export()) {
            (true, false) => return Err("the disk was read from its file the last time".into()),
            (false, true) => return Err("the disk was read from a server the last time".into()),
            (true, true) => return Ok(()),
            (false, false) => {}
        }
        let above = match below_new_layers {
            true => now.len().saturating_sub(record.layers.len()),
            false => 0,
        };
        let format = record.format;
        match now.get(above) {
            Some(layer) if layer.format == format => Ok(()),
            _ if above > 0 => Err(format!(
                "it does not lie over the image of the point before, which was read as {format}"
            )),
            _ => Err(format!("the image was read as {format} the last time")),
        }
    }

    /// QEMU records what guests write in a bitmap, but not the clusters that `qemu-img check -r`
    /// makes zero because their entries are damaged; and in a table that an image shares with its
    /// snapshot, they become zero in both. So whatever was not zero and has holes is claimed.
    pub fn add_holes(&self, claim: &mut Claim) -> Result<()> {
        let mut holes = Claim::none(self.geometry);
        self.image().holes(|range| {
            holes.add(range);
            Ok(())
        })?;
        let nonzero = self.chain.map_or_else(|| self.before.nonzero(), Chain::nonzero)?;
        claim.add_blocks(&(holes.blocks() & &nonzero));
        Ok(())
    }

    pub fn image(&self) -> &Image {
        &self.source.image
    }

    pub fn anchor(&self, tracker: Tracker) -> Result<&Anchor, String> {
        let anchor = self.latest.record.anchor.as_ref();
        anchor.filter(|anchor| anchor.what.tracker() == tracker).ok_or_else(|| match tracker {
            Tracker::LiveBitmap => {
                "no bitmap began at the point before (--live-bitmap NAME)".into()
            }
            _ => format!("the point before left no anchor for it (--anchor {tracker})"),
        })
    }

    /// The qcow2 file at the top, whose own tables hold the anchor.
    pub fn top(&self) -> Result<ImageFile, String> {
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
    pub fn left_in_image(&self) -> bool {
        let anchor = self.source.anchor.as_ref();
        let in_image =
            |what: &AnchorKind| matches!(what, AnchorKind::Bitmap | AnchorKind::Snapshot { .. });
        anchor.is_some_and(|new| in_image(&new.what))
    }

    /// Fails unless the image is sound. Where two guest clusters share a host cluster that is counted
    /// once, QEMU writes in place: it changes both, a bitmap has one of them, and no table differs.
    pub fn check_sound(&self, file: &ImageFile) -> Result<(), String> {
        // Before a new anchor was written into it, it was proved, and nobody could write since.
        if self.left_in_image() {
            return Ok(());
        }
        edit::prove(file).map_err(|error| error.chain())
    }

    /// Fails unless the files below the top are what they were.
    pub fn check_below(&self) -> Result<(), String> {
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
    pub fn check_same(
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

    pub fn fingerprints(&self) -> Result<Vec<Option<Fingerprint>>, String> {
        self.image().fingerprints().map_err(|error| error.chain())
    }

    pub fn recorded_fingerprints(&self) -> Vec<Option<Fingerprint>> {
        let layers = &self.latest.record.image.layers;
        layers.iter().map(|layer| layer.fingerprint.clone()).collect()
    }
}

/// By what the files of an image are recognised the next time.
pub(crate) fn fingerprints(source: &Captured) -> Result<Vec<Option<Fingerprint>>> {
    if source.options.snapshot.is_some() {
        // It is not the current state of the files that was read.
        return Ok(vec![None; source.image.layers().len()]);
    }
    let mut fingerprints = source.image.fingerprints()?;
    // Where a guest was moved away from a file, that file itself was read.
    if source.options.clones.iter().any(|(file, clone)| file != clone)
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
