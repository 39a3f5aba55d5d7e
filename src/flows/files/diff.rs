//! What is different between the files of a disk at two points. Names and attributes are read at both
//! points; of contents only what lies in blocks whose digests differ.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

use super::list::{joined, kind_of, trimmed};
use super::{LeftOut, OpenDisk, OpenVolume, is_of_one_file};
use crate::base::cancel::Cancel;
use crate::base::error::{ErrorKind, Result};
use crate::base::observer::Observer;
use crate::flows::report::{Change, FileChange, GuestPath};
use crate::inside::filesystem::{Data, FileKind, Found, Id, Node, Place, Step, open_content, walk};

/// How much of two contents is compared at once.
const PIECE: usize = 1 << 20;
/// How deep folders may lie in each other.
const DEPTH_MAX: usize = 1000;

/// A disk at two points, and a volume of it.
pub struct Pair<'a> {
    /// The disk at the first point.
    pub old_disk: &'a OpenDisk,
    /// The volume there.
    pub old: &'a OpenVolume,
    /// The disk at the second point.
    pub new_disk: &'a OpenDisk,
    /// The volume there.
    pub new: &'a OpenVolume,
}

/// Tells of each difference below `path`, in the order of paths. `show` says whether more is wanted. Gives
/// how many files could not be read.
///
/// # Errors
/// There is no such path at either point; a volume can't be read; somebody asked to stop; those of `show`.
pub fn diff(
    pair: &Pair<'_>,
    path: &[u8],
    show: &mut dyn FnMut(FileChange) -> Result<bool>,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<u64> {
    let (old, new) = (there(pair.old, path)?, there(pair.new, path)?);
    let left_out = LeftOut::new(observer);
    let goes_on = true;
    let seen = HashSet::new();
    let mut diff = Diff { pair, base: trimmed(path), show, left_out, cancel, goes_on, seen };
    match (&old, &new) {
        (None, None) => pair.new.find(path, false).map(drop)?,
        (old, new) => diff.pair(b"", old.as_ref(), new.as_ref(), 0)?,
    }
    Ok(diff.left_out.count)
}

/// The file at a path, if there is one.
fn there(volume: &OpenVolume, path: &[u8]) -> Result<Option<Found>> {
    match volume.find(path, false) {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

struct Diff<'a> {
    pair: &'a Pair<'a>,
    base: Vec<u8>,
    show: &'a mut dyn FnMut(FileChange) -> Result<bool>,
    left_out: LeftOut<'a>,
    cancel: &'a Cancel,
    goes_on: bool,
    /// The folders of the second point that were compared: one that comes again is not entered.
    seen: HashSet<Id>,
}

impl Diff<'_> {
    /// Compares what has one path at both points.
    fn pair(
        &mut self,
        path: &[u8],
        old: Option<&Found>,
        new: Option<&Found>,
        depth: usize,
    ) -> Result<()> {
        self.cancel.check()?;
        match (old, new) {
            _ if !self.goes_on => Ok(()),
            (None, None) => Ok(()),
            (Some(old), None) => self.all(self.pair.old, path, old, Change::Removed),
            (None, Some(new)) => self.all(self.pair.new, path, new, Change::Added),
            (Some(old), Some(new)) if old.node.kind != new.node.kind => {
                self.all(self.pair.old, path, old, Change::Removed)?;
                self.all(self.pair.new, path, new, Change::Added)
            }
            (Some(old), Some(new)) => {
                let compared = self.compare(old, new);
                if let Some(change) = self.sound(path, compared)?.flatten() {
                    self.tell(path, &new.node, change)?;
                }
                if new.node.kind == FileKind::Folder {
                    self.folder(path, old, new, depth)?;
                }
                Ok(())
            }
        }
    }

    fn folder(&mut self, path: &[u8], old: &Found, new: &Found, depth: usize) -> Result<()> {
        if depth >= DEPTH_MAX || !self.seen.insert(new.id) {
            let error = super::refused_folder();
            self.left_out.add(&joined(&self.base, path), &error);
            return Ok(());
        }
        let pair = self.pair;
        let lists = pair
            .old
            .filesystem
            .list(old.id)
            .and_then(|old| Ok((old, pair.new.filesystem.list(new.id)?)));
        let Some((olds, news)) = self.sound(path, lists)? else { return Ok(()) };
        let mut names: BTreeMap<Vec<u8>, (Option<Id>, Option<Id>)> = BTreeMap::new();
        for entry in olds {
            names.entry(entry.name).or_default().0 = Some(entry.id);
        }
        for entry in news {
            names.entry(entry.name).or_default().1 = Some(entry.id);
        }
        for (name, (old, new)) in names {
            let below = match path {
                b"" => name,
                path => [path, b"/", &name].concat(),
            };
            let found = found_at(pair.old, old).and_then(|old| Ok((old, found_at(pair.new, new)?)));
            if let Some((old, new)) = self.sound(&below, found)? {
                self.pair(&below, old.as_ref(), new.as_ref(), depth + 1)?;
            }
        }
        Ok(())
    }

    /// Tells of a file, and all below it, that is at one point alone.
    fn all(
        &mut self,
        volume: &OpenVolume,
        path: &[u8],
        found: &Found,
        change: Change,
    ) -> Result<()> {
        walk(&*volume.filesystem, found, &mut |step| {
            self.cancel.check()?;
            match step {
                Step::Item(item) => self.tell(&within(path, item.path), item.node, change)?,
                Step::Problem(below, error) => {
                    self.left_out.add(&joined(&self.base, &within(path, below)), &error);
                    return Ok(false);
                }
            }
            Ok(self.goes_on)
        })
    }

    fn tell(&mut self, path: &[u8], node: &Node, change: Change) -> Result<()> {
        if self.goes_on {
            let name = GuestPath::new(&joined(&self.base, path));
            self.goes_on = (self.show)(FileChange { change, name, kind: kind_of(node.kind) })?;
        }
        Ok(())
    }

    /// The result, unless it is a failure of one file, which is noted.
    fn sound<T>(&mut self, path: &[u8], result: Result<T>) -> Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) if is_of_one_file(&error) => {
                self.left_out.add(&joined(&self.base, path), &error);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// How two files of one kind differ.
    fn compare(&self, old: &Found, new: &Found) -> Result<Option<Change>> {
        let (one, other) = (&old.node, &new.node);
        if one.kind == FileKind::File {
            if one.size != other.size {
                return Ok(Some(Change::Content));
            }
            let data = open_content(&*self.pair.old.filesystem, old.id)?;
            let other = open_content(&*self.pair.new.filesystem, new.id)?;
            if !self.is_same_content(&*data, &*other)? {
                return Ok(Some(Change::Content));
            }
        }
        if one.kind == FileKind::Link {
            let target = self.pair.old.filesystem.target(old.id)?;
            if target != self.pair.new.filesystem.target(new.id)? {
                return Ok(Some(Change::Content));
            }
        }
        let of = |node: &Node| (node.mode, node.uid, node.gid, node.device);
        // The time of a folder changes with every name in it, which is told anyway.
        let is_older = one.modified != other.modified && one.kind != FileKind::Folder;
        if of(one) != of(other) || is_older {
            return Ok(Some(Change::Attributes));
        }
        let before = self.pair.old.filesystem.attributes(old.id)?;
        let now = self.pair.new.filesystem.attributes(new.id)?;
        if before.list != now.list {
            return Ok(Some(Change::Attributes));
        }
        match before.problems.into_iter().chain(now.problems).next() {
            Some(problem) => Err(problem),
            None => Ok(None),
        }
    }

    /// Whether two contents of one size are equal. What lies at one place in blocks with equal digests is,
    /// and is not read.
    fn is_same_content(&self, old: &dyn Data, new: &dyn Data) -> Result<bool> {
        let mut buffers = [vec![0; PIECE], vec![0; PIECE]];
        let mut at = 0;
        while at < new.size() {
            self.cancel.check()?;
            let ((one, end), (other, other_end)) = (old.stretch(at)?, new.stretch(at)?);
            let end = end.min(other_end).min(new.size());
            let is_same = match (one, other) {
                (Place::Hole, Place::Hole) => true,
                (Place::At(one), Place::At(other)) if one == other => {
                    self.is_same_on_disk(one..one + (end - at))?
                }
                _ => false,
            };
            if is_same {
                at = end;
                continue;
            }
            let len = (end - at).min(PIECE as u64) as usize;
            let [one, other] = &mut buffers;
            let (one, other) =
                (one.get_mut(..len).unwrap_or_default(), other.get_mut(..len).unwrap_or_default());
            old.read(one, at)?;
            new.read(other, at)?;
            if one != other {
                return Ok(false);
            }
            at += len as u64;
        }
        Ok(true)
    }

    /// Whether bytes of the volume lie in blocks of the disk that are equal at both points.
    fn is_same_on_disk(&self, range: Range<u64>) -> Result<bool> {
        let (old, new) = (self.pair.old.volume.pieces(), self.pair.new.volume.pieces());
        if old != new {
            return Ok(false);
        }
        let mut start = 0;
        for piece in old {
            let len = piece.end - piece.start;
            let (from, to) = (range.start.max(start), range.end.min(start + len));
            if from < to {
                let on_disk = piece.start + (from - start)..piece.start + (to - start);
                if !self.pair.new_disk.point.is_same(&self.pair.old_disk.point, on_disk)? {
                    return Ok(false);
                }
            }
            start += len;
        }
        Ok(range.end <= start)
    }
}

fn found_at(volume: &OpenVolume, id: Option<Id>) -> Result<Option<Found>> {
    let found = id.map(|id| Ok(Found { id, node: volume.filesystem.node(id)?, name: None }));
    found.transpose()
}

fn within(path: &[u8], below: &[u8]) -> Vec<u8> {
    match (path, below) {
        (path, b"") => path.to_vec(),
        (b"", below) => below.to_vec(),
        (path, below) => [path, b"/", below].concat(),
    }
}
