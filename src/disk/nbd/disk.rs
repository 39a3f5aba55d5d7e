//! The disk behind an export: read anywhere, by any number of threads, over one connection or several.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use super::connection::{Connection, Target};
use super::handshake::{Agreement, BITMAPS_MAX};
use super::{Failure, seen, tls};
use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::io::{Part, ReadAt};
use crate::formats::nbd::{ALLOCATION, DIRTY_BITMAP, ExportFlags, STATE_DIRTY, STATE_ZERO, Uri};

/// How long a server may take until an export is agreed on.
const OPEN_MAX: Duration = Duration::from_secs(20);
/// How long it may take for each further connection: one that serves a single client leaves others waiting.
const FURTHER_MAX: Duration = Duration::from_secs(3);
/// The most connections to a server that allows several.
const CONNECTIONS_MAX: usize = 4;
/// How much of a disk is asked about at once, in bytes.
const STATUS_SPAN: u64 = 1 << 30;

/// The disk behind an export.
pub struct Disk {
    target: Arc<Target>,
    name: PathBuf,
    of_command: bool,
    agreed: Agreement,
    state: Mutex<State>,
    /// A connection has become free, or the last one broke.
    freed: Condvar,
    /// What was learnt last of where the disk is zero.
    allocation: Mutex<Window>,
    itself: Weak<Self>,
}

#[derive(Debug, Default)]
struct State {
    idle: Vec<Connection>,
    /// Further connections were tried, or are none.
    is_grown: bool,
    /// Why a connection broke.
    broken: Option<Error>,
}

/// So many answers are waited for before it is judged how much each tells.
const ANSWERS_MIN: u64 = 256;
/// A server whose answers tell of less than this on average, in bytes, can't tell: to ask it takes longer than to read.
const TOLD_MIN: u64 = 64 << 10;

/// Ranges that follow each other: where each ends, and whether it is zero.
#[derive(Debug, Default)]
struct Window {
    start: u64,
    ends: Vec<(u64, Part)>,
    /// How many answers there were, and of how many bytes they told.
    answers: u64,
    told: u64,
}

/// What an export is, as its server says.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Description {
    /// Whether the server lets nobody write to it.
    pub read_only: bool,
    /// Whether the server tells which ranges are zero.
    pub tells_zeros: bool,
    /// The bitmaps of what was written.
    pub bitmaps: Vec<String>,
    /// What the server says of it, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

impl Disk {
    /// Connects to a server.
    pub(super) fn open(
        uri: &Uri,
        name: &Path,
        cancel: &Cancel,
        of_command: bool,
    ) -> Result<Arc<Self>> {
        let failed = |error: Error| {
            seen(error.within(format!("cannot open {}", name.display())), of_command)
        };
        let tls = tls::client(uri).map_err(failed)?;
        let target = Arc::new(Target { uri: uri.clone(), tls, cancel: cancel.clone() });
        let connection = Connection::open(&target, OPEN_MAX);
        let connection = connection.map_err(|failure| failed(failure.into_error()))?;
        let agreed = connection.agreed.clone();
        let is_grown = !agreed.flags.has(ExportFlags::MULTI_CONN);
        let state = State { idle: vec![connection], is_grown, broken: None };
        Ok(Arc::new_cyclic(|itself| Self {
            target,
            name: name.to_owned(),
            of_command,
            agreed,
            state: Mutex::new(state),
            freed: Condvar::new(),
            allocation: Mutex::default(),
            itself: Weak::clone(itself),
        }))
    }

    /// What the server says of it.
    pub fn description(&self) -> Description {
        Description {
            read_only: self.agreed.flags.has(ExportFlags::READ_ONLY),
            tells_zeros: self.agreed.context(ALLOCATION).is_some(),
            bitmaps: self.agreed.bitmaps.clone(),
            description: self.agreed.description.clone(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with a connection that nobody else uses meanwhile.
    fn with<T>(&self, act: impl FnOnce(&mut Connection) -> Result<T, Failure>) -> Result<T> {
        let mut lent = Lent { disk: self, connection: Some(self.take()?), broken: None };
        // Should this panic, nobody may wait for the connection.
        lent.broken = Some(Error::new(ErrorKind::Io, "a thread that used the connection failed"));
        let done = match &mut lent.connection {
            Some(connection) => act(connection),
            None => Err(Failure::odd("no connection")),
        };
        lent.broken = match &done {
            Err(Failure::Broken(error)) => Some(error.clone()),
            _ => None,
        };
        drop(lent);
        done.map_err(|failure| seen(failure.into_error(), self.of_command))
    }

    fn take(&self) -> Result<Connection> {
        let mut state = self.state();
        loop {
            // One broke: the disk behind the others may be gone as well, and nobody needs half of it.
            if let Some(broken) = &state.broken {
                return Err(broken.clone());
            }
            if let Some(connection) = state.idle.pop() {
                return Ok(connection);
            }
            if !std::mem::replace(&mut state.is_grown, true) {
                self.grow();
            }
            state = self.freed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Makes further connections, while the first one is used. What can't be had is done without.
    fn grow(&self) {
        let itself = Weak::clone(&self.itself);
        let target = Arc::clone(&self.target);
        let further = move || {
            for _ in 1..CONNECTIONS_MAX {
                let connection = Connection::open(&target, FURTHER_MAX);
                let (Ok(mut connection), Some(disk)) = (connection, itself.upgrade()) else {
                    return;
                };
                if connection.agreed != disk.agreed {
                    connection.end();
                    return;
                }
                let mut state = disk.state();
                state.idle.push(connection);
                drop(state);
                disk.freed.notify_one();
            }
        };
        // Without a thread, one connection must do.
        let _ = std::thread::Builder::new().name("nbd-connect".to_owned()).spawn(further);
    }

    /// Reads what begins and ends anywhere: the server may have a least size of requests.
    fn read_any(&self, out: &mut [u8], offset: u64) -> Result<()> {
        let least = u64::from(self.agreed.least);
        let (start, end) = (offset, offset + out.len() as u64);
        if start.is_multiple_of(least) && end.is_multiple_of(least) {
            let all = (0..out.len(), offset);
            return self.with(|connection| connection.read(out, &[all]));
        }
        let from = start / least * least;
        let to = end.next_multiple_of(least);
        let mut around = vec![0; (to - from) as usize];
        let all = (0..around.len(), from);
        self.with(|connection| connection.read(&mut around, &[all]))?;
        if let Some(part) = around.get((start - from) as usize..(end - from) as usize) {
            out.copy_from_slice(part);
        }
        Ok(())
    }

    /// Calls `each` with every range that the bitmap `name` has as written to, ascending.
    ///
    /// # Errors
    /// The export has no such bitmap, or the server can't tell.
    pub fn written(&self, name: &str, mut each: impl FnMut(Range<u64>)) -> Result<()> {
        let Some(context) = self.agreed.context(&format!("{DIRTY_BITMAP}{name}")) else {
            return Err(self.no_bitmap(name));
        };
        let (mut at, mut answers) = (0, 0);
        while at < self.agreed.size {
            if answers >= ANSWERS_MIN && at / answers < TOLD_MIN {
                let text = format!("its answers tell of {} bytes each", at / answers);
                return Err(Failure::odd(&text).into_error());
            }
            let parts = self.parts(at, context)?;
            answers += 1;
            for (part, state) in parts {
                at = part.end;
                if state & STATE_DIRTY != 0 {
                    each(part);
                }
            }
        }
        Ok(())
    }

    fn no_bitmap(&self, name: &str) -> Error {
        let bitmaps = &self.agreed.bitmaps;
        let text = format!("the export has no bitmap {}", super::quoted(name));
        let error = Error::new(ErrorKind::NotFound, text);
        let shown: Vec<String> =
            bitmaps.iter().take(BITMAPS_MAX).map(|name| super::quoted(name)).collect();
        match bitmaps.len() {
            0 => error.because("the server tells of none"),
            count if bitmaps.iter().any(|it| it == name) => error.because(format!(
                "the server has {count}, and at most {BITMAPS_MAX} are asked for"
            )),
            _ => error.because(format!("the server tells of {}", shown.join(", "))),
        }
    }

    /// What the disk is from `at` on by a kind of metadata: ranges that follow each other, at least one.
    fn parts(&self, at: u64, context: u32) -> Result<Vec<(Range<u64>, u32)>> {
        let least = u64::from(self.agreed.least);
        let start = at / least * least;
        let range = start..self.agreed.size.min(start + STATUS_SPAN);
        let mut parts: Vec<(Range<u64>, u32)> = Vec::new();
        let mut is_whole = true;
        self.with(|connection| {
            connection.status(range.clone(), |of, ranges| {
                if of != context {
                    return;
                }
                let mut from = range.start;
                for (len, state) in ranges {
                    // The last one may go on behind what was asked for.
                    let end = range.end.min(from.saturating_add((*len).into()));
                    is_whole &= from < end;
                    match parts.last_mut() {
                        Some((last, of)) if of == state => last.end = end,
                        _ => parts.push((from.max(at)..end, *state)),
                    }
                    from = end;
                }
            })
        })?;
        // A part that ends before `at` lies in the least size of a request.
        parts.retain(|(part, _)| part.start < part.end);
        if parts.is_empty() || !is_whole {
            return Err(Failure::odd("it tells the status of nothing").into_error());
        }
        Ok(parts)
    }
}

impl ReadAt for Disk {
    fn path(&self) -> &Path {
        &self.name
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.agreed.size)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let len = self.agreed.size.saturating_sub(offset).min(buffer.len() as u64) as usize;
        if let Some(part) = buffer.get_mut(..len).filter(|part| !part.is_empty()) {
            self.read_any(part, offset).map_err(io::Error::other)?;
        }
        Ok(len)
    }

    fn read_parts(
        &self,
        buffer: &mut [u8],
        parts: &[(Range<usize>, u64)],
    ) -> Option<io::Result<()>> {
        let least = u64::from(self.agreed.least);
        let fits = |(range, offset): &(Range<usize>, u64)| {
            let end = offset.checked_add(range.len() as u64);
            let is_whole =
                offset.is_multiple_of(least) && end.is_some_and(|it| it.is_multiple_of(least));
            is_whole && end.is_some_and(|it| it <= self.agreed.size)
        };
        if !parts.iter().all(fits) {
            return None;
        }
        Some(self.with(|connection| connection.read(buffer, parts)).map_err(io::Error::other))
    }

    fn part_at(&self, offset: u64) -> Option<(u64, Part)> {
        let context = self.agreed.context(ALLOCATION)?;
        let mut window = self.allocation.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = window.at(offset) {
            return Some(known);
        }
        // Who can't tell lets everything be read.
        if window.answers >= ANSWERS_MIN && window.told / window.answers < TOLD_MIN {
            return None;
        }
        let parts = self.parts(offset, context).ok()?;
        window.answers += 1;
        window.told += parts.last().map_or(0, |(range, _)| range.end - offset);
        let part = |state| if state & STATE_ZERO != 0 { Part::Hole } else { Part::Data };
        window.start = offset;
        window.ends = parts.into_iter().map(|(range, state)| (range.end, part(state))).collect();
        window.at(offset)
    }
}

/// A connection that a thread uses.
struct Lent<'a> {
    disk: &'a Disk,
    connection: Option<Connection>,
    /// Why it is of no more use.
    broken: Option<Error>,
}

impl Window {
    /// What lies at an offset, and where that ends.
    fn at(&self, offset: u64) -> Option<(u64, Part)> {
        let first = self.ends.partition_point(|(end, _)| *end <= offset);
        self.ends.get(first).copied().filter(|_| self.start <= offset)
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let mut state = self.disk.state();
        match self.broken.take() {
            None => state.idle.extend(self.connection.take()),
            Some(error) => {
                state.broken.get_or_insert(error);
            }
        }
        drop(state);
        self.disk.freed.notify_all();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        state.idle.iter_mut().for_each(Connection::end);
    }
}
