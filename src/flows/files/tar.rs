//! Files and trees of a point as a tar archive, with everything that a filesystem of Unix knows of a file.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use qdelta_formats::tar::{END, Entry, Kind, padding, sparse_map};

use super::get::{Output, exists_already, pour};
use super::list::{joined, trimmed};
use super::target::unfinished_name;
use super::{LeftOut, OpenVolume, begin};
use crate::base::cancel::Cancel;
use crate::base::error::{Error, Result};
use crate::base::observer::{Observer, Recorder};
use crate::base::warning::{Code, Warning};
use crate::disk::files::{check_new_file, rename_new};
use crate::disk::io::Opener;
use crate::flows::report::TakenReport;
use crate::inside::filesystem::{
    Attribute, Attributes, Data, FileKind, Id, Item, Place, Step, Time, open_content, walk,
};

/// The most pieces of a file with holes that are listed: 1 MiB of text or so.
const PIECES_MAX: usize = 1 << 16;
/// Holes that are worth a map, in bytes of a file.
const HOLES_MIN: u64 = 64 << 10;

/// Writes what is at `paths`, with all that is below, as a tar archive.
///
/// # Errors
/// There is no such file; the archive exists already and `force` says nothing; it can't be written; the
/// volume can't be read. A single file that can't be read is left out, with a warning.
pub fn tar(
    volume: &OpenVolume,
    paths: &[Vec<u8>],
    output: Output,
    force: bool,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<TakenReport> {
    let started = Instant::now();
    let recorder = Recorder::new(observer);
    let mut report = TakenReport::of(volume.source.clone(), volume.volume.name.clone());
    let watch: &dyn Observer = &recorder;
    begin(volume, paths, false, watch, cancel)?;
    match output {
        Output::Stream(stream) => {
            let name = PathBuf::from("standard output");
            let mut archive = Archive::new(volume, stream, name, &recorder, cancel, &mut report);
            archive.all(paths)?;
        }
        Output::Path(path) => {
            report.output.clone_from(&path);
            to_file(volume, paths, &path, force, &recorder, cancel, &mut report)?;
        }
    }
    watch.end();
    report.seconds = started.elapsed().as_secs_f64();
    report.warnings = recorder.take();
    Ok(report)
}

/// Writes under another name first, which is given up when all is there.
fn to_file(
    volume: &OpenVolume,
    paths: &[Vec<u8>],
    path: &Path,
    force: bool,
    observer: &dyn Observer,
    cancel: &Cancel,
    report: &mut TakenReport,
) -> Result<()> {
    let exists = path.symlink_metadata();
    if exists.as_ref().is_ok_and(|metadata| !force || !metadata.is_file()) {
        return Err(exists_already(path, exists.is_ok_and(|metadata| metadata.is_dir())));
    }
    check_new_file(path)?;
    let unfinished = path.with_file_name(OsString::from_vec(unfinished_name()?));
    let file = Opener::CHANGE.or_create(0o600).open(&unfinished);
    let file = file.map_err(|error| Error::io("make", &unfinished, error))?;
    let clone = file.try_clone().map_err(|error| Error::io("write", &unfinished, error))?;
    let mut archive =
        Archive::new(volume, Box::new(clone), unfinished.clone(), observer, cancel, report);
    let written = archive.all(paths);
    drop(archive);
    let named = written.and_then(|()| {
        file.sync_all().map_err(|error| Error::io("sync", &unfinished, error))?;
        match force {
            true => std::fs::rename(&unfinished, path),
            false => rename_new(&unfinished, path),
        }
        .map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => exists_already(path, false),
            _ => Error::io("name", path, error),
        })
    });
    if named.is_err() {
        // The failure counts more than that of the removal.
        let _ = std::fs::remove_file(&unfinished);
    }
    named
}

/// An archive that is written.
struct Archive<'a> {
    volume: &'a OpenVolume,
    out: BufWriter<Box<dyn Write + Send>>,
    /// What errors call the archive.
    name: PathBuf,
    left_out: LeftOut<'a>,
    cancel: &'a Cancel,
    report: &'a mut TakenReport,
    /// The paths in the archive of files with further names, and how many of these are still to come.
    names: HashMap<Id, (Vec<u8>, u32)>,
    sockets: u64,
}

impl<'a> Archive<'a> {
    fn new(
        volume: &'a OpenVolume,
        out: Box<dyn Write + Send>,
        name: PathBuf,
        observer: &'a dyn Observer,
        cancel: &'a Cancel,
        report: &'a mut TakenReport,
    ) -> Self {
        let out = BufWriter::with_capacity(1 << 20, out);
        let left_out = LeftOut::new(observer);
        Self { volume, out, name, left_out, cancel, report, names: HashMap::new(), sockets: 0 }
    }

    fn all(&mut self, paths: &[Vec<u8>]) -> Result<()> {
        let all = paths.iter().map(|path| Ok((trimmed(path), self.volume.find(path, false)?)));
        let all: Vec<_> = all.collect::<Result<_>>()?;
        for (base, found) in all {
            let volume = self.volume;
            walk(&*volume.filesystem, &found, &mut |step| {
                self.cancel.check()?;
                match step {
                    Step::Problem(path, error) => {
                        self.leave_out(&joined(&base, path), &error);
                        Ok(false)
                    }
                    Step::Item(item) => {
                        let path = joined(&base, item.path);
                        match self.item(&path, &item) {
                            Ok(()) => Ok(true),
                            Err(error) if super::is_of_one_file(&error) => {
                                self.leave_out(&path, &error);
                                Ok(false)
                            }
                            Err(error) => Err(error),
                        }
                    }
                }
            })?;
        }
        if self.sockets > 0 {
            let text = format!(
                "{} sockets are not in the archive: tar has no form for them",
                self.sockets
            );
            self.left_out.observer.warn(Warning::new(Code::LeftOut, text));
        }
        self.write(&END)?;
        self.out.flush().map_err(|error| Error::io("write", &self.name, error))
    }

    fn leave_out(&mut self, path: &[u8], error: &Error) {
        self.left_out.add(path, error);
        self.report.left_out += 1;
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(|error| Error::io("write", &self.name, error))
    }

    /// Adds a file, whose path begins with a slash.
    fn item(&mut self, path: &[u8], item: &Item<'_>) -> Result<()> {
        let name = name_of(path, item.node.kind == FileKind::Folder);
        let kind = match item.node.kind {
            FileKind::File => Kind::File,
            FileKind::Folder => Kind::Folder,
            FileKind::Link => Kind::Link,
            FileKind::CharacterDevice => Kind::CharacterDevice,
            FileKind::BlockDevice => Kind::BlockDevice,
            FileKind::Fifo => Kind::Fifo,
            FileKind::Socket => {
                self.sockets += 1;
                return Ok(());
            }
        };
        let node = item.node;
        let mut entry = Entry {
            path: &name,
            kind,
            target: b"",
            mode: node.mode,
            uid: node.uid,
            gid: node.gid,
            size: 0,
            modified: pair(node.modified),
            accessed: node.accessed.map(pair),
            device: node.device,
            attributes: &[],
            sparse: None,
        };
        if let Some((first, left)) = self.names.get_mut(&item.id) {
            let first = first.clone();
            *left = left.saturating_sub(1);
            if *left == 0 {
                self.names.remove(&item.id);
            }
            let headers = Entry { kind: Kind::HardLink, target: &first, ..entry }.headers();
            self.report.files += 1;
            return self.write(&headers);
        }
        let attributes = self.attributes(path, item.id)?;
        entry.attributes = &attributes;
        let target;
        match kind {
            Kind::File => {
                let data = open_content(&*self.volume.filesystem, item.id)?;
                self.content(path, entry, &*data)?;
            }
            Kind::Link => {
                target = self.volume.filesystem.target(item.id)?;
                entry.target = &target;
                self.write(&entry.headers())?;
            }
            _ => self.write(&entry.headers())?,
        }
        self.report.files += 1;
        if node.links > 1 && node.kind != FileKind::Folder {
            self.names.insert(item.id, (name, node.links - 1));
        }
        Ok(())
    }

    fn attributes(&mut self, path: &[u8], id: Id) -> Result<Vec<Attribute>> {
        match self.volume.filesystem.attributes(id) {
            Err(error) if super::is_of_one_file(&error) => {
                self.leave_out(path, &error.within("its extended attributes can't be read"));
                Ok(Vec::new())
            }
            Err(error) => Err(error),
            Ok(Attributes { list, problems }) => {
                problems.iter().for_each(|problem| self.leave_out(path, problem));
                Ok(list)
            }
        }
    }

    /// Adds a regular file; of one with holes only the pieces between them.
    fn content(&mut self, path: &[u8], mut entry: Entry<'_>, data: &dyn Data) -> Result<()> {
        let Some(pieces) = pieces_of(data)? else {
            entry.size = data.size();
            self.write(&entry.headers())?;
            return self.pieces(path, data, &[(0, data.size())]);
        };
        let map = sparse_map(&pieces);
        entry.size = map.len() as u64 + pieces.iter().map(|(_, len)| len).sum::<u64>();
        entry.sparse = Some(data.size());
        self.write(&entry.headers())?;
        self.write(&map)?;
        self.pieces(path, data, &pieces)
    }

    /// Writes pieces of a content. What can't be read is zeros: the archive goes on, and its reader must
    /// find as many bytes as the header says.
    fn pieces(&mut self, path: &[u8], data: &dyn Data, pieces: &[(u64, u64)]) -> Result<()> {
        let mut total = 0;
        let mut failure = None;
        for (offset, len) in pieces {
            total += len;
            let piece = Piece { data, offset: *offset, len: *len };
            let mut done = 0;
            if failure.is_none() {
                let poured = pour(&piece, self.cancel, &mut |bytes| {
                    done += bytes.len() as u64;
                    self.left_out.observer.advance(bytes.len() as u64);
                    self.out.write_all(bytes).map_err(|error| Error::io("write", &self.name, error))
                });
                match poured {
                    Err(error) if super::is_of_one_file(&error) => failure = Some(error),
                    poured => drop(poured?),
                }
            }
            self.zeros(len - done)?;
            self.left_out.observer.advance(len - done);
        }
        // What is left of the content are holes.
        self.left_out.observer.advance(data.size().saturating_sub(total));
        if let Some(error) = failure {
            self.leave_out(
                path,
                &error.within(
                    "the file is in the archive with zeros in place of bytes that can't be read",
                ),
            );
        }
        self.report.bytes = self.report.bytes.saturating_add(data.size());
        self.zeros(padding(total) as u64)
    }

    fn zeros(&mut self, mut count: u64) -> Result<()> {
        let zeros = [0; 4096];
        while count > 0 {
            self.cancel.check()?;
            let part = zeros.get(..count.min(4096) as usize).unwrap_or_default();
            self.write(part)?;
            count -= part.len() as u64;
        }
        Ok(())
    }
}

/// A part of a content as a content.
struct Piece<'a> {
    data: &'a dyn Data,
    offset: u64,
    len: u64,
}

impl Data for Piece<'_> {
    fn size(&self) -> u64 {
        self.len
    }

    fn stretch(&self, offset: u64) -> Result<(Place, u64)> {
        let (place, end) = self.data.stretch(self.offset + offset)?;
        Ok((place, end.saturating_sub(self.offset).min(self.len)))
    }

    fn read(&self, out: &mut [u8], offset: u64) -> Result<usize> {
        let len = self.len.saturating_sub(offset).min(out.len() as u64) as usize;
        self.data.read(out.get_mut(..len).unwrap_or_default(), self.offset + offset)
    }
}

/// The pieces of a file between its holes, if these are worth a map. Of too many, those that have the smallest
/// holes between them are joined.
fn pieces_of(data: &dyn Data) -> Result<Option<Vec<(u64, u64)>>> {
    let mut pieces: Vec<(u64, u64)> = Vec::new();
    let (mut at, mut holes, mut joined) = (0, 0, 512);
    while at < data.size() {
        let (place, end) = data.stretch(at)?;
        let end = end.min(data.size());
        match pieces.last_mut() {
            _ if place == Place::Hole => holes += end - at,
            Some((offset, len)) if *offset + *len == at => *len += end - at,
            _ => pieces.push((at, end - at)),
        }
        while pieces.len() > PIECES_MAX {
            joined *= 2;
            pieces.dedup_by(|next, before| {
                let is_near = next.0 - (before.0 + before.1) <= joined;
                if is_near {
                    before.1 = next.0 + next.1 - before.0;
                }
                is_near
            });
        }
        at = end;
    }
    // A hole at the end is told by an empty piece.
    if pieces.last().is_none_or(|(offset, len)| offset + len < data.size()) {
        pieces.push((data.size(), 0));
    }
    Ok((holes >= HOLES_MIN).then_some(pieces))
}

/// A path as archives have it: without a slash before it, with one behind a folder's.
fn name_of(path: &[u8], is_folder: bool) -> Vec<u8> {
    let mut name = match path.strip_prefix(b"/") {
        Some(b"") | None => b".".to_vec(),
        Some(name) => name.to_vec(),
    };
    if is_folder {
        name.push(b'/');
    }
    name
}

fn pair(time: Time) -> (i64, u32) {
    (time.seconds, time.nanoseconds)
}
