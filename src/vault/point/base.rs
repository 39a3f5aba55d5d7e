//! What a new point is made against: the chain of an earlier one, or nothing.

use qdelta_formats::archive::Kind;

use super::before::Before;
use crate::base::error::{Error, ErrorKind, Result};
use crate::vault::chain::CHAIN_LEN_MAX;
use crate::vault::repository::{Catalog, DiskId, Point};

/// What to compare the image with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KindChoice {
    /// The latest point if there is one, nothing otherwise.
    #[default]
    Auto,
    /// Nothing: a new chain begins.
    Full,
    /// The latest point.
    Incremental,
    /// The latest full, also a removed one if the latest point builds on it.
    Differential,
}

/// What a new point of a disk is made against.
pub(crate) struct Base {
    /// What the new archive is.
    pub kind: Kind,
    /// The point that it is made against, and what is known of the disk there.
    pub against: Option<(Point, Before)>,
    /// The latest point of the disk that can be read, whatever the new one is made against: anchors
    /// belong to it.
    pub latest: Option<Point>,
    /// Why it is a full though there is a point and nobody asked for one.
    pub broken_chain: Option<String>,
    /// There were points, and none can be read: which anchor the next one wants is not known.
    pub is_forgotten: bool,
}

impl Base {
    /// For a full of which nothing came before.
    fn nothing() -> Self {
        Self {
            kind: Kind::Full,
            against: None,
            latest: None,
            broken_chain: None,
            is_forgotten: false,
        }
    }

    /// Finds it, and opens its chain.
    ///
    /// # Errors
    /// What was asked for can't be; the chain is damaged, unless anything was asked for that can
    /// be a full instead.
    pub fn choose(catalog: &Catalog, disk: &DiskId, choice: KindChoice) -> Result<Self> {
        let mut base = Self::nothing();
        let newest = catalog.newest(disk).or_else(|error| match error.kind() {
            ErrorKind::Key => catalog.newest_own(disk).ok_or(error),
            _ => Err(error),
        });
        match newest {
            Ok(point) => base.latest = Some(point),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            // A full needs nothing of what was there, but for the anchor.
            Err(error) => {
                match choice {
                    KindChoice::Full => {}
                    KindChoice::Auto if is_lost(&error) => {
                        base.broken_chain = Some(begins_anew(&error));
                    }
                    _ => return Err(error.advise("--kind full begins a new chain")),
                }
                base.latest = catalog.latest_first(disk)?.find(|it| !it.is_of_snapshot());
                base.is_forgotten = base.latest.is_none();
                return Ok(base);
            }
        }
        let point = match (choice, &base.latest) {
            (KindChoice::Full, _) | (KindChoice::Auto, None) => return Ok(base),
            (KindChoice::Auto | KindChoice::Incremental, Some(point)) => {
                base.kind = Kind::Incremental;
                point.clone()
            }
            (KindChoice::Differential, Some(point)) => {
                base.kind = Kind::Differential;
                latest_full(catalog, disk, point)?
            }
            (KindChoice::Incremental, None) => return Err(no_base(disk, "recovery point")),
            (KindChoice::Differential, None) => return Err(no_base(disk, "full")),
        };
        match open_base(catalog, &point) {
            Ok(before) if has_room(before.archives(), choice)? => {
                base.against = Some((point, before));
            }
            Ok(_) => base.kind = Kind::Full,
            Err(error) if choice == KindChoice::Auto && is_lost(&error) => {
                base.kind = Kind::Full;
                base.broken_chain = Some(begins_anew(&error));
            }
            Err(error) => return Err(error),
        }
        Ok(base)
    }

    /// What follows `point`, whichever the latest is: for what is no state of the disk, and has no anchor.
    ///
    /// # Errors
    /// The chain is damaged.
    pub fn after(catalog: &Catalog, point: Point) -> Result<Self> {
        let before = open_base(catalog, &point)?;
        let mut base = Self::nothing();
        if has_room(before.archives(), KindChoice::Auto)? {
            base.kind = Kind::Incremental;
            base.against = Some((point, before));
        }
        Ok(base)
    }

    /// Whether the disk has no point yet that could be built on, readable or not.
    pub fn is_first(&self) -> bool {
        self.against.is_none()
            && self.latest.is_none()
            && self.broken_chain.is_none()
            && !self.is_forgotten
    }

    /// The point that it is made against.
    pub fn point(&self) -> Option<&Point> {
        self.against.as_ref().map(|(point, _)| point)
    }

    /// What is known of the disk at that point.
    pub fn before(&self) -> Option<&Before> {
        self.against.as_ref().map(|(_, before)| before)
    }
}

/// The full that a differential is made against. Rules remove the full of a chain before the points that
/// build on it, and as long as one of these stays, so does its data.
fn latest_full(catalog: &Catalog, disk: &DiskId, latest: &Point) -> Result<Point> {
    let is_full = |point: &Point| point.record.kind == Kind::Full;
    let kept = catalog.latest_first(disk)?.find(|it| is_full(it) && !it.is_of_snapshot());
    let chain = catalog.needed_by(disk, std::slice::from_ref(latest));
    let begins = chain.first().and_then(|first| catalog.point(disk, first.link.point));
    let full = kept.into_iter().chain(begins.filter(is_full)).max_by_key(|full| full.id);
    full.ok_or_else(|| no_base(disk, "full"))
}

/// Whether another archive can follow a chain of so many; if not, a full can be made instead, unless it
/// was to be another kind.
fn has_room(archives: usize, choice: KindChoice) -> Result<bool> {
    if archives < CHAIN_LEN_MAX {
        return Ok(true);
    }
    if choice == KindChoice::Auto {
        return Ok(false);
    }
    let text = format!("the chain has {archives} archives, and a longer one is not read");
    Err(Error::new(ErrorKind::Usage, text).advise("--kind full begins a new chain"))
}

/// Whether the failure says that the chain is no good, and not that it could not be looked at.
fn is_lost(error: &Error) -> bool {
    // What a host has lost that can open no file is lost to it.
    matches!(error.kind(), ErrorKind::Damaged | ErrorKind::NotFound | ErrorKind::Key)
}

fn begins_anew(error: &Error) -> String {
    if error.kind() == ErrorKind::Key {
        return format!("{}; a full begins a new chain", error.chain());
    }
    format!("{}; a full begins a new chain. qdelta verify tells what is damaged", error.chain())
}

fn no_base(disk: &DiskId, what: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("{disk} has no {what} to compare with"))
        .advise("begin with --kind full (or auto)")
}

/// Finds out what the new point is made against.
fn open_base(catalog: &Catalog, point: &Point) -> Result<Before> {
    Before::open(catalog, point).map_err(|error| {
        catalog.note_damage(&error);
        let error = error.within(format!("cannot compare with point {}", point.id));
        match error.kind() {
            ErrorKind::Damaged | ErrorKind::NotFound => {
                error.advise("--kind full begins a new chain; qdelta verify tells what is damaged")
            }
            // The chain may well be sound.
            _ => error,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A backup made the 50,001st archive of a chain, and no chain of so many was ever opened again.
    #[test]
    fn a_chain_never_becomes_longer_than_is_read() {
        for choice in [KindChoice::Auto, KindChoice::Incremental] {
            assert!(has_room(CHAIN_LEN_MAX - 1, choice).unwrap());
        }
        assert!(!has_room(CHAIN_LEN_MAX, KindChoice::Auto).unwrap(), "a full begins a new one");
        let error = has_room(CHAIN_LEN_MAX, KindChoice::Incremental).unwrap_err();
        assert_eq!(error.advice(), Some("--kind full begins a new chain"));
    }
}
