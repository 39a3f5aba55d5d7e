//! One archive of a point, brought from one repository into another. What the point builds on there decides
//! what is brought: its own archive byte for byte, or one that stands for several.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use qdelta_formats::archive::Digest;

use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::{Observer, OfDisk};
use crate::disk::flow::pipeline::{self, Consumer, TASK_SIZE_MIN};
use crate::disk::flow::read_ahead::{Loaded, ReadAhead};
use crate::disk::io::{Buffer, Direct, Segment};
use crate::flows::merge::{Groups, MergeOptions, write_merged};
use crate::flows::report::Carried;
use crate::flows::verify::Proof;
use crate::formats::age::base64;
use crate::vault::archive::Reader;
use crate::vault::chain::Stretch;
use crate::vault::repository::storage::Name;
use crate::vault::repository::{
    Beside, Catalog, DiskId, DiskRecord, DomainLock, Link, ParentRecord, PointId, Repository,
};

/// The points of a disk that something new can build on.
pub(super) type Have = BTreeMap<PointId, DiskRecord>;

/// Brings archives of one guest from one repository into another.
#[derive(Clone, Copy)]
pub(super) struct Carrier<'a> {
    /// Where they are.
    pub from: &'a Catalog,
    /// Where they go.
    pub to: &'a Repository,
    /// The guest there.
    pub lock: &'a DomainLock,
    /// How to merge, and threads and I/O.
    pub options: &'a MergeOptions,
    /// Told of the bytes on their way.
    pub observer: &'a dyn Observer,
    /// A request to stop.
    pub cancel: &'a Cancel,
}

/// An archive that has arrived, and that no manifest names yet.
pub(super) struct Arrived<'a> {
    /// The archive, opened where it has arrived.
    pub reader: Arc<Reader>,
    /// What is removed again if the point is not finished; none of one that was there.
    pub beside: Option<Beside<'a>>,
    /// What it is called.
    pub name: Name,
    /// What its record says of its first bytes.
    pub opening: Option<String>,
    /// How it came.
    pub how: Carried,
    /// How many archives it stands for.
    pub archives: u64,
}

/// The archives that a point's own must stand for so that it can be built on one of `have`: the newest first.
///
/// # Errors
/// [`ErrorKind::Damaged`]: one of them is missing, or what it builds on can't be told.
pub(super) fn path(from: &Catalog, disk: &DiskId, link: Link, have: &Have) -> Result<Vec<Link>> {
    let mut path: Vec<Link> = Vec::new();
    let mut next = Some(link);
    while let Some(link) = next {
        if have.get(&link.point).is_some_and(|record| record.root == link.root) {
            break;
        }
        let step = from.step(disk, &link);
        step.archive.map_err(|gap| gap.error)?;
        next = step.parent.map_err(|gap| gap.error)?;
        path.push(link);
    }
    Ok(path)
}

impl<'a> Carrier<'a> {
    /// Brings the archive of a disk's point. `is_new` asks for one with an id of its own, where another with
    /// the old one may lie. It is proved when [`Self::prove`] has proved it.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`]: an archive that it is made of is damaged. Others: something can't be read or
    /// written. Nothing is left.
    pub fn carry(
        &self,
        disk: &DiskId,
        link: Link,
        have: &Have,
        is_new: bool,
    ) -> Result<Arrived<'a>> {
        let point = link.point;
        let path = path(self.from, disk, link, have)?;
        let mut archives = Vec::with_capacity(path.len());
        for link in path.iter().rev() {
            archives.push(self.open(disk, link)?);
        }
        let count = archives.len() as u64;
        let copied = match archives.as_slice() {
            [own] if !is_new => self.copy(disk, point, own)?,
            _ => None,
        };
        let (beside, how) = match copied {
            Some(beside) => (beside, Carried::Copied),
            None => {
                let stretch = Stretch::new(archives.clone())?;
                let with = (self.options, self.observer, self.cancel);
                let to = (self.lock, disk, point);
                (write_merged(self.to, to, &stretch, with)?.0, Carried::Merged)
            }
        };
        let name = beside.name().clone();
        let reader = self.to.storage().open(&name).and_then(Reader::open);
        let proved = reader.and_then(|reader| {
            let reader = Arc::new(reader);
            self.prove(disk, &reader).map(|()| reader)
        });
        let reader = proved.map_err(|error| self.blame(disk, error, &archives))?;
        let opening = beside.opening();
        Ok(Arrived { reader, beside: Some(beside), name, opening, how, archives: count })
    }

    /// An archive of the point that lies there already, sound, and builds on one of `have`.
    ///
    /// # Errors
    /// The folder can't be listed; the system fails.
    pub fn find(
        &self,
        to: &Catalog,
        disk: &DiskId,
        record: (PointId, &DiskRecord),
        have: &Have,
    ) -> Result<Option<Arrived<'a>>> {
        for name in to.archives_at(disk, record.0)? {
            let found = self.to.storage().open(&name).and_then(Reader::open);
            let found = found.and_then(|reader| {
                let reader = Arc::new(reader);
                fits(&reader, disk, record)?;
                let parent = parent_of(&reader)?;
                let is_there = parent.is_none_or(|parent| {
                    have.get(&parent.point).is_some_and(|it| it.root == parent.root)
                });
                if !is_there {
                    return Err(Error::new(ErrorKind::Damaged, "its parent is gone"));
                }
                self.prove(disk, &reader)?;
                let opening = self.to.storage().opening_of(&name)?;
                Ok((reader, opening.map(|bytes| base64::encode(&bytes))))
            });
            match found {
                Ok((reader, opening)) => {
                    let (beside, how) = (None, Carried::Found);
                    return Ok(Some(Arrived { reader, beside, name, opening, how, archives: 1 }));
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
                Err(error) => tracing::debug!("{name} is of no use: {}", error.chain()),
            }
        }
        Ok(None)
    }

    /// Opens an archive where it is, and checks its index.
    fn open(&self, disk: &DiskId, link: &Link) -> Result<Arc<Reader>> {
        self.cancel.check()?;
        let opened = self.from.repository().storage().open(&link.archive).and_then(Reader::open);
        let opened = opened.and_then(|reader| {
            let metadata = reader.metadata();
            let is_it = metadata.point == link.point.to_string()
                && metadata.domain == disk.domain.as_str()
                && metadata.disk == disk.disk.as_str()
                && reader.root() == link.root;
            if !is_it {
                let text = format!(
                    "{} is not the archive of point {} of {disk}",
                    reader.path().display(),
                    link.point
                );
                return Err(Error::new(ErrorKind::Damaged, text));
            }
            reader.check_index()?;
            Ok(Arc::new(reader))
        });
        opened.inspect_err(|error| self.from.note_damage(error))
    }

    /// Brings an archive byte for byte; nothing if a file is called so already.
    fn copy(&self, disk: &DiskId, point: PointId, own: &Arc<Reader>) -> Result<Option<Beside<'a>>> {
        let metadata = own.metadata();
        let begun = self.to.begin(self.lock, disk, point, metadata.kind, metadata.archive_id);
        let pending = match begun {
            Err(error) if error.kind() == ErrorKind::Exists => return Ok(None),
            begun => begun?,
        };
        let writer = pending.writer();
        let observer = OfDisk::new(self.observer, disk);
        let observer: &dyn Observer = &observer;
        observer.begin("copy", own.file_len());
        let path = pending.path().clone();
        let sink = Sink { writer, path: &path, observer };
        match own.file_len() {
            0..=TASK_SIZE_MIN => copy_small(own, sink)?,
            _ => self.copy_large(own, sink)?,
        }
        observer.end();
        pending.publish().map(Some)
    }

    fn copy_large(&self, own: &Arc<Reader>, sink: Sink<'_>) -> Result<()> {
        let resources = &self.options.resources;
        let files = vec![Arc::clone(own.store())];
        let mut ahead = ReadAhead::new(resources, files, TASK_SIZE_MIN as usize, Direct::Off)?;
        ahead.warn_of_fallback(self.observer);
        pipeline::run(
            resources,
            |producer| {
                for offset in (0..own.file_len()).step_by(TASK_SIZE_MIN as usize) {
                    self.cancel.check()?;
                    let len = (own.file_len() - offset).min(TASK_SIZE_MIN) as usize;
                    let segments = vec![Segment { file: 0, offset, range: 0..len }];
                    ahead.read(producer, segments, len)?;
                }
                ahead.finish(producer)
            },
            || Ok(|Loaded { task, buffer }: Loaded<usize>| Ok((buffer, task))),
            sink,
        )
    }

    /// Proves what an archive holds: its index by checksums, each block by its digest.
    pub fn prove(&self, disk: &DiskId, archive: &Arc<Reader>) -> Result<()> {
        archive.check_index()?;
        let observer = OfDisk::new(self.observer, disk);
        let observer: &dyn Observer = &observer;
        observer.begin("verify", archive.file_len());
        let resources = &self.options.resources;
        let proof = Proof { resources, quick: false, observer, cancel: self.cancel };
        let checked = proof.check(archive)?;
        observer.end();
        match checked.problems.into_iter().next() {
            None => Ok(()),
            Some(problem) => {
                let text = format!("{} is damaged", archive.path().display());
                Err(Error::new(ErrorKind::Damaged, text).because(problem))
            }
        }
    }

    /// What an archive that can't be proved where it has arrived says of those that it was made of.
    fn blame(&self, disk: &DiskId, error: Error, archives: &[Arc<Reader>]) -> Error {
        if error.kind() != ErrorKind::Damaged {
            return error;
        }
        for archive in archives {
            if let Err(own) = self.prove(disk, archive) {
                self.from.note_damage(&own.clone().of_file(archive.path()));
                return own;
            }
        }
        Error::new(ErrorKind::Io, error.chain())
            .within("what has arrived is not what was sent")
            .advise("look at the disk and the memory of both sides, and try again")
    }
}

/// The record of a disk in the repository that its archive has arrived in.
pub(super) fn record_of(record: &DiskRecord, arrived: &Arrived<'_>) -> Result<DiskRecord> {
    let (reader, metadata) = (&arrived.reader, arrived.reader.metadata());
    Ok(DiskRecord {
        archive: arrived.name.last().to_owned(),
        archive_id: metadata.archive_id,
        kind: metadata.kind,
        parent: parent_of(reader)?,
        payload_bytes: reader.payload_bytes(),
        bytes_written: reader.file_len(),
        // An anchor lies beside the image, and bears the name of the repository that counts it.
        anchor: None,
        // That of the file here: the other one's is under another key.
        opening: arrived.opening.clone(),
        ..record.clone()
    })
}

/// Fails unless an archive is of a disk's point.
pub(super) fn fits(
    reader: &Reader,
    disk: &DiskId,
    (point, record): (PointId, &DiskRecord),
) -> Result<()> {
    let (metadata, geometry) = (reader.metadata(), reader.geometry());
    let is_it = metadata.domain == disk.domain.as_str()
        && metadata.disk == disk.disk.as_str()
        && metadata.point == point.to_string()
        && reader.root() == record.root
        && (geometry.virtual_size(), geometry.block_size())
            == (record.virtual_size, record.block_size);
    if is_it {
        return Ok(());
    }
    let text = format!("{} is not the archive of point {point} of {disk}", reader.path().display());
    Err(Error::new(ErrorKind::Damaged, text))
}

pub(super) fn parent_of(reader: &Reader) -> Result<Option<ParentRecord>> {
    reader.metadata().parent.as_ref().map(ParentRecord::try_from).transpose()
}

/// Where the bytes of an archive go, in their order.
struct Sink<'a> {
    writer: Box<dyn Write + Send>,
    path: &'a std::path::Path,
    observer: &'a dyn Observer,
}

impl Consumer<(Buffer, usize)> for Sink<'_> {
    type Output = ();

    fn take(&mut self, (buffer, len): (Buffer, usize)) -> Result<()> {
        self.put(buffer.get(..len).unwrap_or_default())
    }

    fn finish(self) -> Result<()> {
        Ok(())
    }
}

impl Sink<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        let written = self.writer.write_all(bytes);
        written.map_err(|error| Error::io("write", self.path, error))?;
        self.observer.advance(bytes.len() as u64);
        Ok(())
    }
}

/// Copies what is not worth threads and a queue.
fn copy_small(own: &Reader, mut sink: Sink<'_>) -> Result<()> {
    let mut bytes = vec![0; own.file_len() as usize];
    let read = own.store().read_exact_at(&mut bytes, 0);
    read.map_err(|error| Error::io("read", own.path(), error))?;
    sink.put(&bytes)
}

/// The digests of a disk's groups at the last point that was proved, so that the next one costs only its own
/// archive.
#[derive(Default)]
pub(super) struct Roots {
    groups: Groups,
    at: Option<(PointId, Digest)>,
}

impl Roots {
    /// Fails unless an archive and those that it builds on give the root of its point.
    pub fn prove(
        &mut self,
        to: &Catalog,
        disk: &DiskId,
        archive: &Reader,
        have: &Have,
        cancel: &Cancel,
    ) -> Result<()> {
        let parent = parent_of(archive)?;
        let point = archive.metadata().point.parse()?;
        if self.at != parent.as_ref().map(|parent| (parent.point, parent.root)) {
            self.go_to(to, disk, parent.as_ref(), have, cancel)?;
        }
        self.at = None;
        self.groups.lay(archive)?;
        if self.groups.root(archive.geometry()) != archive.root() {
            let path = archive.path().display();
            let text = format!("{path}: its chain does not give the root of point {point}");
            return Err(Error::new(ErrorKind::Damaged, text)
                .advise("`qdelta verify` tells which files are damaged"));
        }
        self.at = Some((point, archive.root()));
        Ok(())
    }

    /// Lays the chain of a point.
    fn go_to(
        &mut self,
        to: &Catalog,
        disk: &DiskId,
        point: Option<&ParentRecord>,
        have: &Have,
        cancel: &Cancel,
    ) -> Result<()> {
        (self.groups, self.at) = (Groups::default(), None);
        let mut chain = Vec::new();
        let mut next = point.map(|parent| parent.point);
        while let Some(point) = next {
            let record = have.get(&point).ok_or_else(|| {
                let text = format!("{disk} has no sound point {point}");
                Error::new(ErrorKind::Damaged, text)
            })?;
            chain.push((point, record));
            next = record.parent_point();
        }
        for (point, record) in chain.into_iter().rev() {
            cancel.check()?;
            self.groups.lay(&to.open_archive(disk, point, record)?)?;
        }
        Ok(())
    }
}
