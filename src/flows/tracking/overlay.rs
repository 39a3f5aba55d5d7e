//! The tracker `overlay`: the files of the image of the latest point are unchanged, and what lies
//! in the layers above them is claimed.

use qdelta_formats::archive::Tracker;

use super::case::Case;
use super::changes::Claim;
use super::{Answer, Claiming};
use crate::disk::files::fingerprint::Fingerprint;

pub(super) const OVERLAY: Claiming =
    Claiming { tracker: Tracker::Overlay, of_exports: false, below_new_layers: true, claim };

fn claim(case: &Case<'_>) -> Answer {
    let now = case.fingerprints()?;
    let recorded = case.recorded_fingerprints();
    let above = now.len().saturating_sub(recorded.len());
    if above == 0 && !case.source.options.clones.is_empty() {
        return Err("a clone of the image is read, which has times of its own".into());
    }
    if above == 0 && case.left_in_image() {
        return Err("the new anchor has just been written into the image".into());
    }
    case.check_same("a file of the image", Some(&recorded), now.get(above..))?;
    let changed_ns = |files: &[Option<Fingerprint>]| files.first()?.as_ref()?.changed_ns;
    if above == 0 && changed_ns(&recorded) != changed_ns(&now) {
        return Err("a file of the image has changed since the point before".into());
    }
    let mut claim = Claim::none(case.geometry);
    let walked = case.image().above(above, |range| {
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
