//! Which tracker says what has changed since the parent: the best whose claim can be proved valid.
//!
//! A claim is believed only if nothing of what it rests on can have changed behind its back. A claim
//! that can't be proved is refused with the reason, and the next tracker is tried; the last one is
//! to read everything.
//!
//! Each tracker is a file of this folder and a line in `CLAIMING`.

mod bitmap;
mod case;
pub mod changes;
mod live_bitmap;
mod overlay;
mod reflink;
mod snapshot;

use qdelta_formats::archive::{Geometry, Tracker};

use crate::base::error::{Error, ErrorKind, Result};
use crate::flows::capture::Captured;
use crate::vault::point::{Base, open_chain};
use crate::vault::repository::{Catalog, PointId, Refusal};
use case::Case;
use changes::Claim;

pub(crate) use case::fingerprints;

/// The trackers that need no reading, the best first.
const CLAIMING: [Claiming; 5] = [
    live_bitmap::LIVE_BITMAP,
    bitmap::BITMAP,
    snapshot::SNAPSHOT,
    overlay::OVERLAY,
    reflink::REFLINK,
];

/// A tracker that tells what has changed without reading the disk.
struct Claiming {
    tracker: Tracker,
    /// Whether it is for exports of servers; all others are for files.
    of_exports: bool,
    /// Whether the image of the latest point may have become a backing file since.
    below_new_layers: bool,
    /// Proves that what the claim rests on is valid, and makes the claim.
    claim: fn(&Case<'_>) -> Answer,
}

/// A claim and what it rests on, or why there is none.
type Answer = Result<(Claim, String), String>;

impl Claiming {
    fn claim(&self, case: &Case<'_>) -> Answer {
        case.check_comparable(self.below_new_layers)?;
        (self.claim)(case)
    }
}

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

/// Finds out what has changed between the base and the source. `forced` is the tracker that the
/// user wants.
///
/// # Errors
/// The forced tracker can't be used.
pub(crate) fn choose(
    catalog: &Catalog,
    base: &Base,
    source: &Captured,
    geometry: Geometry,
    forced: Option<Tracker>,
) -> Result<Tracked> {
    let (Some((parent, before)), Some(latest)) = (&base.against, &base.latest) else {
        return Ok(Tracked::scan("a full needs everything", Vec::new()));
    };
    if forced == Some(Tracker::Scan) {
        return Ok(Tracked::scan("as asked for", Vec::new()));
    }
    let is_latest = |point: PointId| point == latest.id;
    let needs_none =
        is_latest(parent.id) && live_bitmap::began(latest, source).is_none_or(is_latest);
    let opened = match needs_none {
        true => Ok(None),
        false => open_chain(catalog, latest).map(Some),
    };
    // That is no failure of a backup that does without.
    let opened =
        opened.map_err(|error| format!("what lies between can't be read: {}", error.chain()));
    let case = opened.as_ref().map(|opened| Case {
        source,
        geometry,
        repository: catalog.repository(),
        latest,
        before,
        chain: opened.as_ref(),
    });
    let mut refused = Vec::new();
    for claiming in &CLAIMING {
        let tracker = claiming.tracker;
        // Whoever names a tracker hears why it is of no use.
        let is_tried = match forced {
            Some(forced) => forced == tracker,
            None => claiming.of_exports == source.options.export.is_some(),
        };
        if !is_tried {
            continue;
        }
        let answer = match &case {
            Err(unreadable) => Err((*unreadable).clone()),
            Ok(case) => claiming.claim(case).and_then(|(mut claim, why)| {
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
