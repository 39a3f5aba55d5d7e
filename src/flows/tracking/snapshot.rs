//! The tracker `snapshot`: the image's tables are compared with those of an internal snapshot.

use qdelta_formats::archive::Tracker;
use qdelta_formats::qcow2::Snapshot;

use super::case::Case;
use super::changes::Claim;
use super::{Answer, Claiming};
use crate::disk::edit;
use crate::disk::image::{self, Image, OpenOptions, Unwritten};
use crate::vault::repository::AnchorKind;

pub(super) const SNAPSHOT: Claiming =
    Claiming { tracker: Tracker::Snapshot, of_exports: false, below_new_layers: false, claim };

fn claim(case: &Case<'_>) -> Answer {
    let anchor = case.anchor(Tracker::Snapshot)?;
    let file = case.top()?;
    case.check_below()?;
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
    case.check_sound(&file)?;
    let options = OpenOptions { snapshot: Some(id.clone()), ..case.source.options.clone() };
    let mut claim = Claim::none(case.geometry);
    let compared = Image::open(&case.source.path, &options).and_then(|older| {
        image::differences(&older, case.image(), &Unwritten, |range| {
            claim.add(range);
            Ok(())
        })
    });
    compared.and_then(|()| case.add_holes(&mut claim)).map_err(|error| error.chain())?;
    Ok((claim, format!("the tables differ from those of the snapshot {}", anchor.name)))
}
