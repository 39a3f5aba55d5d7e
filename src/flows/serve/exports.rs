//! What a server has to give: points by name.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::scratch::Scratch;
use crate::base::error::{Error, ErrorKind, Result};
use crate::flows::report::ExportReport;
use crate::formats::nbd::{ExportFlags, NAME_LEN_MAX};
use crate::vault::point::{Content, OpenPoint, OpenPoints, Proved, Run};
use crate::vault::repository::storage::Wait;
use crate::vault::repository::{DiskAt, DiskId, Point, Selector};

/// The most names that a client is told.
const LIST_MAX: usize = 4096;

/// What is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// Every point of the repository, also those that are made meanwhile.
    Everything,
    /// These disks at these points; without a point, the latest.
    Disks(Vec<DiskAt>),
    /// All disks of a guest.
    Guest(String, Selector),
}

/// A point as clients see it: a disk.
#[derive(Debug)]
pub struct Export {
    point: OpenPoint,
    /// Whether its name means the same point for as long as it exists.
    is_fixed: bool,
    /// Where goes what is written; none if nothing can be.
    scratch: Option<Scratch>,
}

/// The exports of a server.
#[derive(Debug)]
pub struct Exports {
    points: Arc<OpenPoints>,
    /// All there are; none if every point can be had.
    fixed: Option<Vec<Arc<Export>>>,
}

impl Export {
    /// `GUEST/DISK@ID`.
    pub fn name(&self) -> String {
        self.point.name().display().to_string()
    }

    /// What it is, for people.
    pub fn description(&self) -> String {
        describe(self.point.point())
    }

    /// Size of the disk in bytes.
    pub fn size(&self) -> u64 {
        self.point.size()
    }

    /// The size of reads that suits it best, in bytes.
    pub fn block_size(&self) -> u32 {
        self.point.block_size()
    }

    /// What it can do.
    pub fn flags(&self) -> ExportFlags {
        let flags = ExportFlags::BASE.with(match self.scratch {
            Some(_) => ExportFlags::WRITABLE,
            None => ExportFlags::READ_ONLY,
        });
        // Connections that ask for a name at different times may mean different points by it.
        if self.is_fixed { flags.with(ExportFlags::MULTI_CONN) } else { flags }
    }

    /// Where goes what is written.
    pub fn scratch(&self) -> Option<Writable<'_>> {
        self.scratch.as_ref().map(|scratch| Writable { scratch, point: &self.point })
    }

    /// What a range of the disk is, as far as `limit` runs go: there is at least one.
    pub fn runs(&self, range: Range<u64>, limit: usize) -> Result<Vec<Run>> {
        let Some(scratch) = &self.scratch else { return self.point.extents(range, limit) };
        let mut runs: Vec<Run> = Vec::new();
        let mut failure = None;
        scratch.parts(range, |part, is_written| {
            let found = match is_written {
                true => Ok(vec![Run { range: part, content: Content::Data }]),
                false => self.point.extents(part, limit),
            };
            for run in found.unwrap_or_else(|error| {
                failure = Some(error);
                Vec::new()
            }) {
                match runs.last_mut().filter(|last| last.content == run.content) {
                    Some(last) => last.range.end = run.range.end,
                    None => runs.push(run),
                }
            }
            failure.is_none() && runs.len() < limit
        });
        runs.truncate(limit);
        match failure.filter(|_| runs.is_empty()) {
            Some(error) => Err(error),
            None => Ok(runs),
        }
    }

    /// Fills `out` with the bytes at `offset`.
    pub fn read(&self, out: &mut [u8], offset: u64) -> Result<()> {
        let from_point = |out: &mut [u8], offset| match self.point.read(out, offset)? == out.len() {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::Usage, "the range ends behind the disk")),
        };
        let Some(scratch) = &self.scratch else { return from_point(out, offset) };
        let mut outcome = Ok(());
        scratch.parts(offset..offset + out.len() as u64, |part, is_written| {
            let place = (part.start - offset) as usize..(part.end - offset) as usize;
            let out = out.get_mut(place).unwrap_or_default();
            outcome = match is_written {
                true => scratch.read(out, part.start),
                false => from_point(out, part.start),
            };
            outcome.is_ok()
        });
        outcome
    }

    /// The bytes of a range where they lie in memory, as [`OpenPoint::lend`]; none where clients write.
    pub fn lend(&self, range: &Range<u64>, limit: usize) -> Result<Option<Vec<Proved>>> {
        match self.scratch {
            Some(_) => Ok(None),
            None => self.point.lend(range.clone(), limit),
        }
    }

    fn report(&self) -> ExportReport {
        let point = self.point.point();
        ExportReport {
            name: self.name(),
            uri: String::new(),
            disk: point.disk.to_string(),
            point: point.id,
            virtual_size: point.record.virtual_size,
            writable: self.scratch.is_some(),
        }
    }
}

/// An export that can be written to.
pub struct Writable<'a> {
    scratch: &'a Scratch,
    point: &'a OpenPoint,
}

impl Writable<'_> {
    /// As [`Scratch::write`].
    pub fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.scratch.write(self.point, bytes, offset)
    }

    /// As [`Scratch::zero`].
    pub fn zero(&self, range: Range<u64>, holes: bool) -> Result<()> {
        self.scratch.zero(self.point, range, holes)
    }

    /// As [`Scratch::trim`].
    pub fn trim(&self, range: &Range<u64>) -> Result<()> {
        self.scratch.trim(range)
    }

    /// As [`Scratch::flush`].
    pub fn flush(&self) -> Result<()> {
        self.scratch.flush()
    }
}

impl Exports {
    /// Opens what is wanted.
    ///
    /// # Errors
    /// There is no such point, or it can't be opened; as [`Scratch::open`].
    pub fn open(
        points: Arc<OpenPoints>,
        wanted: &Wanted,
        scratch: Option<&Path>,
        wait: Wait<'_>,
    ) -> Result<Self> {
        let mut opened: Vec<OpenPoint> = Vec::new();
        let mut add = |point: OpenPoint| {
            if opened.iter().all(|known| known.name() != point.name()) {
                opened.push(point);
            }
        };
        let one = || {
            Error::new(ErrorKind::Usage, "a scratch file is for one disk")
                .advise("name one disk at one point")
        };
        match wanted {
            Wanted::Everything if scratch.is_some() => return Err(one()),
            Wanted::Everything => return Ok(Self { points, fixed: None }),
            Wanted::Disks(disks) => {
                for disk in disks {
                    add(points.open_named(disk, wait)?);
                }
            }
            Wanted::Guest(guest, selector) => {
                let catalog = points.repository().catalog();
                let domain = catalog.find_domain(guest)?;
                let manifest = catalog.resolve_domain(&domain, selector)?;
                let point = Selector::Id(manifest.point.to_string());
                for record in &manifest.disks {
                    let disk = DiskId { domain: domain.clone(), disk: record.disk.clone() };
                    add(points.open(&disk, &point, wait)?);
                }
            }
        }
        if scratch.is_some() && opened.len() != 1 {
            return Err(one());
        }
        let mut fixed = Vec::new();
        for point in opened {
            let scratch = scratch.map(|path| Scratch::open(path, &point)).transpose()?;
            fixed.push(Arc::new(Export { point, is_fixed: true, scratch }));
        }
        Ok(Self { points, fixed: Some(fixed) })
    }

    /// The export of a name; the empty one means the only export.
    ///
    /// # Errors
    /// There is none, or it can't be opened.
    pub fn find(&self, name: &str, wait: Wait<'_>) -> Result<Arc<Export>> {
        let Some(fixed) = &self.fixed else { return self.find_point(name, wait) };
        if let ("", [only]) = (name, fixed.as_slice()) {
            return Ok(Arc::clone(only));
        }
        let is_it = |export: &&Arc<Export>| export.point.name().as_os_str() == name;
        if let Some(export) = fixed.iter().find(is_it) {
            return Ok(Arc::clone(export));
        }
        // Another way to name a point that is served.
        let wanted = match name {
            "" => Err(no_export(name)),
            name => self.find_point(name, wait),
        };
        let wanted = wanted?.point.name().to_owned();
        let found = fixed.iter().find(|export| export.point.name() == wanted);
        found.cloned().ok_or_else(|| no_export(name))
    }

    fn find_point(&self, name: &str, wait: Wait<'_>) -> Result<Arc<Export>> {
        let at: DiskAt =
            name.parse().map_err(|error: Error| error.within(no_export(name).chain()))?;
        let point = self.points.open_named(&at, wait)?;
        let is_id = |id: &str| id == point.point().id.to_string();
        let is_fixed = name.rsplit_once('@').is_some_and(|(_, id)| is_id(id));
        Ok(Arc::new(Export { point, is_fixed, scratch: None }))
    }

    /// The names of the exports and what they are, the newest points of a disk first.
    ///
    /// # Errors
    /// The repository can't be listed.
    pub fn list(&self) -> Result<Vec<(String, String)>> {
        let told = |export: &Arc<Export>| (export.name(), export.description());
        if let Some(fixed) = &self.fixed {
            return Ok(fixed.iter().map(told).collect());
        }
        let catalog = self.points.repository().catalog();
        let mut names = Vec::new();
        for disk in catalog.survey()?.disks {
            // A guest whose points can't be told hides no other.
            let Ok(points) = catalog.latest_first(&disk) else { continue };
            let points = points.take(LIST_MAX - names.len().min(LIST_MAX));
            names.extend(points.map(|point| (format!("{disk}@{}", point.id), describe(&point))));
        }
        names.retain(|(name, _)| name.len() <= NAME_LEN_MAX);
        Ok(names)
    }

    /// What is served, without where; none if everything is.
    pub fn report(&self) -> Option<Vec<ExportReport>> {
        Some(self.fixed.as_ref()?.iter().map(|export| export.report()).collect())
    }
}

/// A point, for people.
fn describe(point: &Point) -> String {
    let size = bytesize::ByteSize(point.record.virtual_size).display().iec();
    let time = point.id.time().strftime("%Y-%m-%d %H:%M:%S");
    let what = match &point.record.snapshot {
        Some(snapshot) => format!("snapshot {} of {}", snapshot.name.escape_debug(), point.disk),
        None => point.disk.to_string(),
    };
    format!("{what} at {time} UTC, {size}, {}", point.consistency)
}

fn no_export(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no export {name:?}"))
        .advise("nbdinfo --list shows the exports")
}

/// Whether a range has bytes that an archive stores, or that nobody knows any more.
pub fn is_zero(run: &Run) -> bool {
    run.content == Content::Zero
}
