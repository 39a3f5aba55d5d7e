//! Copying files and trees out of a point.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::FileType;

use super::list::{joined, last_name, trimmed};
use super::metadata::{self, Rights};
use super::target::{Target, unfinished_name};
use super::{LeftOut, OpenVolume, begin, is_of_one_file};
use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::{Observer, Recorder};
use crate::base::warning::{Code, Warning};
use crate::disk::files::{check_new_file, rename_new};
use crate::flows::report::TakenReport;
use crate::inside::filesystem::{
    Attributes, Data, FileKind, Found, Id, Item, Node, Place, Step, open_content, walk,
};

/// How much of a content is read at once.
const PIECE: usize = 1 << 20;

/// Where files go.
pub enum Output {
    /// Into the folder of this path, if it is one; else to this path.
    Path(PathBuf),
    /// The content of one file goes here.
    Stream(Box<dyn Write + Send>),
}

/// Copies what is at `paths` out of a volume: each with its last name, and all that is below. Nothing that
/// exists is replaced, unless `force` says so.
///
/// # Errors
/// There is no such file; something exists already; the target can't be written; the volume can't be
/// read. A single file that can't be read is left out, with a warning.
pub fn get(
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
    begin(volume, paths, true, watch, cancel)?;
    match output {
        Output::Stream(mut stream) => {
            to_stream(volume, paths, &mut stream, watch, cancel, &mut report)?;
        }
        Output::Path(path) => {
            report.output.clone_from(&path);
            let all = paths.iter().map(|path| Ok((path, volume.find(path, true)?)));
            let all: Vec<(&Vec<u8>, Found)> = all.collect::<Result<_>>()?;
            let into_folder = path.is_dir();
            if !into_folder && all.len() > 1 {
                let text = format!("{} is no folder, and several files go there", path.display());
                return Err(Error::new(ErrorKind::Usage, text).advise("make the folder first"));
            }
            check_new_file(&path)?;
            for (from, found) in all {
                let to = if into_folder {
                    path.join(own_name(&found, from, volume))
                } else {
                    path.clone()
                };
                let left_out = LeftOut::new(&recorder);
                let mut copy = Copy::new(volume, from, force, left_out, cancel, &mut report);
                copy.to(&found, &to)?;
            }
        }
    }
    watch.end();
    report.seconds = started.elapsed().as_secs_f64();
    report.warnings = recorder.take();
    Ok(report)
}

/// The name of a copy: the last one of its path. The root of a volume is called after the volume.
fn own_name(found: &Found, path: &[u8], volume: &OpenVolume) -> PathBuf {
    let name = last_name(found, path);
    let name = name.unwrap_or_else(|| volume.volume.name.replace('/', "-").into_bytes());
    PathBuf::from(OsString::from_vec(name))
}

fn to_stream(
    volume: &OpenVolume,
    paths: &[Vec<u8>],
    stream: &mut dyn Write,
    observer: &dyn Observer,
    cancel: &Cancel,
    report: &mut TakenReport,
) -> Result<()> {
    let one = |text: &str| {
        Error::new(ErrorKind::Usage, text.to_owned())
            .advise("`qdelta files tar` writes several files and folders to standard output")
    };
    let [path] = paths else { return Err(one("standard output takes the content of one file")) };
    let found = volume.find(path, true)?;
    if found.node.kind != FileKind::File {
        return Err(one("standard output takes the content of a regular file"));
    }
    let data = open_content(&*volume.filesystem, found.id)?;
    let failed = |error: io::Error| Error::io("write", Path::new("standard output"), error);
    report.bytes = pour(&*data, cancel, &mut |bytes| {
        observer.advance(bytes.len() as u64);
        stream.write_all(bytes).map_err(failed)
    })?;
    stream.flush().map_err(failed)?;
    report.files = 1;
    Ok(())
}

/// Gives all of a content to `take`, in pieces, with its holes as zeros.
pub(super) fn pour(
    data: &dyn Data,
    cancel: &Cancel,
    take: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<u64> {
    let mut buffer = vec![0; PIECE];
    let mut at = 0;
    while at < data.size() {
        cancel.check()?;
        let count = data.read(&mut buffer, at)?;
        take(buffer.get(..count).unwrap_or_default())?;
        at += count as u64;
    }
    Ok(at)
}

/// One file or tree that is copied.
struct Copy<'a> {
    volume: &'a OpenVolume,
    /// Its path in the volume, for messages.
    from: Vec<u8>,
    /// The file that is being copied, by its path below that; what is written may have another name yet.
    copied: Vec<u8>,
    force: bool,
    left_out: LeftOut<'a>,
    cancel: &'a Cancel,
    report: &'a mut TakenReport,
    rights: Rights,
    /// Where files with further names were written.
    names: HashMap<Id, (Vec<u8>, u32)>,
    /// Folders whose attributes are set when all is in them.
    folders: Vec<(Vec<u8>, Id, Node)>,
    /// Whether some extended attribute was not taken.
    lost_attributes: bool,
    /// A tree is synced as a whole.
    is_tree: bool,
}

impl<'a> Copy<'a> {
    fn new(
        volume: &'a OpenVolume,
        from: &[u8],
        force: bool,
        left_out: LeftOut<'a>,
        cancel: &'a Cancel,
        report: &'a mut TakenReport,
    ) -> Self {
        Self {
            volume,
            from: trimmed(from),
            copied: Vec::new(),
            force,
            left_out,
            cancel,
            report,
            rights: Rights::own(),
            names: HashMap::new(),
            folders: Vec::new(),
            lost_attributes: false,
            is_tree: false,
        }
    }

    /// Copies to exactly this path: under another name first, which is given up when all is there.
    fn to(&mut self, found: &Found, to: &Path) -> Result<()> {
        let exists = to.symlink_metadata();
        if let Ok(metadata) = &exists {
            let is_folder = found.node.kind == FileKind::Folder;
            if !self.force || metadata.is_dir() != is_folder {
                return Err(exists_already(to, metadata.is_dir() != is_folder));
            }
            if is_folder {
                return self.tree(found, &mut Target::open(to)?, true);
            }
        }
        let folder = match to.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        let name = unfinished_name()?;
        let unfinished = folder.join(OsString::from_vec(name.clone()));
        let written = self.unfinished(found, folder, &name, &unfinished);
        let named = written.and_then(|()| match self.force && exists.is_ok() {
            true => {
                std::fs::rename(&unfinished, to).map_err(|error| Error::io("replace", to, error))
            }
            false => rename_new(&unfinished, to).map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => exists_already(to, false),
                _ => Error::io("name", to, error),
            }),
        });
        if named.is_err() {
            // What is left of it would only confuse. The failure counts more than that of a removal.
            let _ = match unfinished.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
                true => std::fs::remove_dir_all(&unfinished),
                false => std::fs::remove_file(&unfinished),
            };
        }
        named
    }

    fn unfinished(&mut self, found: &Found, folder: &Path, name: &[u8], path: &Path) -> Result<()> {
        let mut target = Target::open(folder)?;
        if found.node.kind == FileKind::Folder {
            target.make_folder(name, false)?;
            return self.tree(found, &mut Target::open(path)?, false);
        }
        self.write(&mut target, name, found.id, &found.node)?;
        self.say_lost();
        Ok(())
    }

    /// Copies all that is in a folder into `target`.
    fn tree(&mut self, found: &Found, target: &mut Target, merge: bool) -> Result<()> {
        let volume = self.volume;
        self.is_tree = true;
        walk(&*volume.filesystem, found, &mut |step| {
            self.cancel.check()?;
            match step {
                Step::Problem(path, error) => {
                    self.leave_out(path, &error);
                    Ok(false)
                }
                Step::Item(item) if item.path.is_empty() => {
                    self.folders.push((Vec::new(), item.id, item.node.clone()));
                    Ok(true)
                }
                Step::Item(item) => {
                    item.path.clone_into(&mut self.copied);
                    match self.item(target, &item, merge) {
                        Ok(()) => Ok(true),
                        Err(error) if is_of_one_file(&error) => {
                            self.leave_out(item.path, &error);
                            Ok(false)
                        }
                        Err(error) => Err(error),
                    }
                }
            }
        })?;
        while let Some((path, id, node)) = self.folders.pop() {
            let fd = match path.as_slice() {
                b"" => target
                    .fd()
                    .try_clone_to_owned()
                    .map_err(|e| Error::io("open", Path::new("."), e))?,
                path => target.open_folder(path)?,
            };
            path.clone_into(&mut self.copied);
            self.set(target, &path, fd.as_fd(), id, &node)?;
        }
        self.say_lost();
        rustix::fs::syncfs(target.fd()).map_err(|error| target.failed("sync", b"", error))
    }

    fn item(&mut self, target: &mut Target, item: &Item<'_>, merge: bool) -> Result<()> {
        if item.node.kind == FileKind::Folder {
            target.make_folder(item.path, merge)?;
            self.folders.push((item.path.to_vec(), item.id, item.node.clone()));
            self.report.files += 1;
            return Ok(());
        }
        if !merge {
            return self.write_or_link(target, item.path, item);
        }
        let mut unfinished = item.path.to_vec();
        let name_at = unfinished.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
        unfinished.truncate(name_at);
        unfinished.extend(unfinished_name()?);
        let written = self.write_or_link(target, &unfinished, item);
        let replaced = written.and_then(|()| target.replace(&unfinished, item.path));
        match &replaced {
            Err(_) => target.remove(&unfinished),
            Ok(()) => {
                if let Some((path, _)) = self.names.get_mut(&item.id) {
                    item.path.clone_into(path);
                }
            }
        }
        replaced
    }

    fn write_or_link(&mut self, target: &mut Target, path: &[u8], item: &Item<'_>) -> Result<()> {
        if let Some((first, left)) = self.names.get_mut(&item.id) {
            let first = first.clone();
            *left = left.saturating_sub(1);
            if *left == 0 {
                self.names.remove(&item.id);
            }
            self.report.files += 1;
            return target.make_name(&first, path);
        }
        self.write(target, path, item.id, item.node)?;
        if item.node.links > 1 {
            self.names.insert(item.id, (path.to_vec(), item.node.links - 1));
        }
        Ok(())
    }

    /// Writes a file that is no folder.
    fn write(&mut self, target: &mut Target, path: &[u8], id: Id, node: &Node) -> Result<()> {
        let special = match node.kind {
            FileKind::File => {
                self.content(target, path, id, node)?;
                self.report.files += 1;
                return Ok(());
            }
            FileKind::Folder => return Ok(()),
            FileKind::Link => {
                let link_target = self.volume.filesystem.target(id)?;
                target.make_link(path, &link_target)?;
                None
            }
            FileKind::CharacterDevice => Some(FileType::CharacterDevice),
            FileKind::BlockDevice => Some(FileType::BlockDevice),
            FileKind::Fifo => Some(FileType::Fifo),
            FileKind::Socket => Some(FileType::Socket),
        };
        if let Some(kind) = special {
            if node.device != (0, 0) && !self.rights.devices() {
                let text = "only root can make a device";
                return Err(Error::new(ErrorKind::Image, text)
                    .advise("run qdelta as root, or let `qdelta files tar` write an archive"));
            }
            target.make_special(path, kind, node.device)?;
        }
        metadata::set_by_name(target, path, node, self.rights)?;
        self.report.files += 1;
        Ok(())
    }

    fn content(&mut self, target: &mut Target, path: &[u8], id: Id, node: &Node) -> Result<()> {
        let data = open_content(&*self.volume.filesystem, id)?;
        let file = target.make_file(path)?;
        let written = self.copy_content(&*data, &file, &target.path_of(path));
        if let Err(error) = written {
            target.remove(path);
            return Err(error);
        }
        self.set(target, path, file.as_fd(), id, node)
    }

    /// Copies a content; its holes stay holes.
    fn copy_content(&mut self, data: &dyn Data, file: &File, path: &Path) -> Result<()> {
        let failed = |error: io::Error| Error::io("write", path, error);
        file.set_len(data.size()).map_err(|error| match error.kind() {
            // Another file may be shorter. A full filesystem is no matter of one file.
            io::ErrorKind::FileTooLarge => {
                let text = format!("the target takes no file of {} bytes", data.size());
                Error::new(ErrorKind::Image, text).because(error)
            }
            _ => failed(error),
        })?;
        let mut buffer = vec![0; PIECE.min(data.size() as usize)];
        let mut at = 0;
        while at < data.size() {
            self.cancel.check()?;
            let (place, end) = data.stretch(at)?;
            if place == Place::Hole {
                let end = end.min(data.size());
                self.left_out.observer.advance(end - at);
                at = end;
                continue;
            }
            let count = (end - at).min(PIECE as u64) as usize;
            let part = buffer.get_mut(..count).unwrap_or_default();
            let count = data.read(part, at)?;
            file.write_all_at(buffer.get(..count).unwrap_or_default(), at).map_err(failed)?;
            self.left_out.observer.advance(count as u64);
            at += count as u64;
        }
        if !self.is_tree {
            file.sync_data().map_err(failed)?;
        }
        self.report.bytes = self.report.bytes.saturating_add(data.size());
        Ok(())
    }

    /// Sets the attributes of what was written.
    fn set(
        &mut self,
        target: &Target,
        path: &[u8],
        fd: std::os::fd::BorrowedFd<'_>,
        id: Id,
        node: &Node,
    ) -> Result<()> {
        let attributes = match self.volume.filesystem.attributes(id) {
            Ok(Attributes { list, problems }) => {
                problems.iter().for_each(|problem| self.leave_out_attributes(problem));
                list
            }
            Err(error) if is_of_one_file(&error) => {
                self.leave_out_attributes(&error.within("its extended attributes can't be read"));
                Vec::new()
            }
            Err(error) => return Err(error),
        };
        match metadata::set(fd, node, &attributes, self.rights) {
            Ok(all) => self.lost_attributes |= !all,
            Err(error) => return Err(target.failed("set the attributes of", path, error)),
        }
        Ok(())
    }

    fn leave_out(&mut self, path: &[u8], error: &Error) {
        self.left_out.add(&joined(&self.from, path), error);
        self.report.left_out += 1;
    }

    fn leave_out_attributes(&mut self, error: &Error) {
        self.left_out.add(&joined(&self.from, &self.copied), error);
        self.report.left_out += 1;
    }

    fn say_lost(&mut self) {
        if std::mem::take(&mut self.lost_attributes) {
            let text =
                "some extended attributes were not set: the target takes none, or root alone may";
            self.left_out.observer.warn(
                Warning::new(Code::LeftOut, text).advise("`qdelta files tar` keeps all of them"),
            );
        }
    }
}

pub(super) fn exists_already(path: &Path, is_folder: bool) -> Error {
    let error = Error::new(ErrorKind::Exists, format!("{} exists already", path.display()));
    error.advise(match is_folder {
        true => {
            "a folder is never replaced by a file, nor the other way round: choose another name"
        }
        false => "choose another name, or say --force to write over it",
    })
}
