//! How the files of a point differ from those that are on this host now.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::base::cancel::Cancel;
use crate::base::error::Result;
use crate::disk::io::Opener;
use crate::flows::report::{HostChange, HostDifference};
use crate::inside::filesystem::{
    FileKind, Filesystem, Found, Item, Step, find, open_content, walk,
};

/// The longest file that is compared.
const LEN_MAX: u64 = 64 << 20;
/// The longest text whose lines are compared.
const TEXT_MAX: usize = 256 << 10;
/// The most lines that are shown of a file.
const LINES_MAX: usize = 60;
/// The most differences that are told.
const CHANGES_MAX: usize = 10_000;

/// How many files are the same below `root`, and what is not.
///
/// # Errors
/// The point can't be read. A file of this host that can't be read differs.
pub(super) fn with_here(
    filesystem: &dyn Filesystem,
    root: &Path,
    cancel: &Cancel,
) -> Result<(u64, Vec<HostChange>)> {
    let start: Found = find(filesystem, b"/", false)?;
    let (same, changes, closed) = (0, Vec::new(), HashSet::new());
    let mut compared = Compared { filesystem, root, same, changes, closed };
    let (mut folders, mut known) = (Vec::new(), HashSet::new());
    walk(filesystem, &start, &mut |step| {
        cancel.check()?;
        let item = match step {
            Step::Item(item) => item,
            Step::Problem(_, error) => return Err(error),
        };
        let path = root.join(OsStr::from_bytes(item.path));
        // Of a folder that only leads to what is kept nothing is known, and nothing is asked.
        if item.node.place.1 > 0 {
            if item.node.kind == FileKind::Folder && item.node.mode & 0o001 == 0 {
                compared.closed.insert(path.clone());
            }
            compared.item(&path, &item)?;
            if item.node.kind == FileKind::Folder {
                folders.push(path.clone());
            }
        }
        known.insert(path);
        Ok(true)
    })?;
    for folder in folders {
        compared.new_in(&folder, &known);
    }
    compared.changes.sort_by(|one, other| one.path.cmp(&other.path));
    Ok((compared.same, compared.changes))
}

struct Compared<'a> {
    filesystem: &'a dyn Filesystem,
    root: &'a Path,
    same: u64,
    changes: Vec<HostChange>,
    /// The folders that not everybody could enter at the point.
    closed: HashSet<PathBuf>,
}

impl Compared<'_> {
    fn add(&mut self, path: &Path, difference: HostDifference, lines: Vec<String>) {
        if self.changes.len() < CHANGES_MAX {
            let path = Path::new("/").join(path.strip_prefix(self.root).unwrap_or(path));
            self.changes.push(HostChange { path, difference, lines });
        }
    }

    fn item(&mut self, path: &Path, item: &Item<'_>) -> Result<()> {
        let Ok(here) = path.symlink_metadata() else {
            self.add(path, HostDifference::Missing, Vec::new());
            return Ok(());
        };
        let is_kind = match item.node.kind {
            FileKind::Folder => here.is_dir(),
            FileKind::Link => here.is_symlink(),
            _ => here.is_file(),
        };
        if !is_kind {
            self.add(path, HostDifference::Kind, Vec::new());
            return Ok(());
        }
        let lines = match item.node.kind {
            FileKind::File => self.content(path, item, &here)?,
            FileKind::Link => {
                let target = self.filesystem.target(item.id)?;
                let there = fs::read_link(path).map(|it| it.as_os_str().as_bytes().to_vec());
                let shown =
                    |sign: &str, to: &[u8]| format!("{sign}-> {}", String::from_utf8_lossy(to));
                match there {
                    Ok(there) if there == target => None,
                    Ok(there) => Some(vec![shown("-", &there), shown("+", &target)]),
                    Err(_) => Some(Vec::new()),
                }
            }
            _ => None,
        };
        match lines {
            Some(lines) => self.add(path, HostDifference::Content, lines),
            None if has_rights_of(&here, item) => self.same += 1,
            None => self.add(path, HostDifference::Rights, Vec::new()),
        }
        Ok(())
    }

    /// Nothing if the content is the same; else the lines that differ, if everybody may read them.
    fn content(
        &self,
        path: &Path,
        item: &Item<'_>,
        here: &Metadata,
    ) -> Result<Option<Vec<String>>> {
        // Passwords stand in files that others may not read, and these lines go to screens and into mails.
        let is_open =
            item.node.mode & 0o004 != 0 && here.mode() & 0o004 != 0 && self.is_open_to(path);
        let data = open_content(self.filesystem, item.id)?;
        let len = data.size().min(LEN_MAX) as usize;
        let mut point = vec![0; len];
        let count = data.read(&mut point, 0)?;
        point.truncate(count);
        let Ok(here) = Opener::READ.itself().read(path, LEN_MAX) else {
            return Ok(Some(Vec::new()));
        };
        if here == point && data.size() == len as u64 {
            return Ok(None);
        }
        let texts = str::from_utf8(&here).ok().zip(str::from_utf8(&point).ok());
        let texts = texts.filter(|(one, other)| is_open && one.len().max(other.len()) <= TEXT_MAX);
        Ok(Some(texts.map(|(here, point)| lines(here, point)).unwrap_or_default()))
    }

    /// Whether everybody can enter all folders above a file, at the point and now.
    fn is_open_to(&self, path: &Path) -> bool {
        let can_enter = |folder: &Path| {
            let here = folder.symlink_metadata().is_ok_and(|it| it.mode() & 0o001 != 0);
            here && !self.closed.contains(folder)
        };
        path.ancestors().skip(1).all(can_enter)
    }

    /// What is in a folder of this host and not in the point.
    fn new_in(&mut self, folder: &Path, known: &HashSet<PathBuf>) {
        // One that can't be read was told of as one that differs, or is missing.
        let Ok(entries) = fs::read_dir(folder) else { return };
        for entry in entries.flatten() {
            let is_kept =
                entry.file_type().is_ok_and(|it| it.is_dir() || it.is_file() || it.is_symlink());
            if is_kept && !known.contains(&entry.path()) {
                self.add(&entry.path(), HostDifference::New, Vec::new());
            }
        }
    }
}

fn has_rights_of(here: &Metadata, item: &Item<'_>) -> bool {
    let node = item.node;
    let is_owner = (here.uid(), here.gid()) == (node.uid, node.gid);
    // The mode of a link means nothing.
    is_owner && (node.kind == FileKind::Link || here.mode() & 0o7777 == u32::from(node.mode))
}

/// What has to go from this host's lines (`-`) and to come (`+`) to have those of the point: all between the first
/// line that differs and the last.
fn lines(here: &str, point: &str) -> Vec<String> {
    let (here, point): (Vec<&str>, Vec<&str>) = (here.lines().collect(), point.lines().collect());
    let before = here.iter().zip(&point).take_while(|(one, other)| one == other).count();
    let (here, point) =
        (here.get(before..).unwrap_or_default(), point.get(before..).unwrap_or_default());
    let pairs = here.iter().rev().zip(point.iter().rev());
    let after = pairs.take_while(|(one, other)| one == other).count();
    let of = |sign: &'static str, all: &[&str]| {
        let middle = all.get(..all.len() - after).unwrap_or_default();
        middle.iter().map(|line| format!("{sign}{line}")).collect::<Vec<_>>()
    };
    let mut lines = [of("-", here), of("+", point)].concat();
    if lines.len() > LINES_MAX {
        let more = lines.len() - LINES_MAX;
        lines.truncate(LINES_MAX);
        lines.push(format!("… and {more} more lines"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_that_differ_are_shown() {
        assert_eq!(lines("a\nb\nc\n", "a\nx\ny\nc\n"), ["-b", "+x", "+y"]);
        assert_eq!(lines("a\n", "a\nb\n"), ["+b"]);
        assert_eq!(lines("a\na\n", "a\n"), ["-a"]);
        assert_eq!(lines("", ""), [""; 0]);
        let long = "x\n".repeat(100);
        assert_eq!(lines(&long, "").len(), LINES_MAX + 1);
    }
}
