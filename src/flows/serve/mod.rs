//! Points as disks over the network block device protocol: for QEMU, for nbdcopy, for everything that
//! speaks it. Every byte is proved before it is sent.
//!
//! ```text
//! client → handshake (which export) → session (requests) → OpenPoint → proved bytes
//! ```

mod exports;
mod handshake;
mod listen;
mod scratch;
mod session;
mod stream;
mod tls;

use std::collections::HashMap;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::base::cancel::Cancel;
use crate::base::error::{Error, Result};
use crate::base::observer::Observer;
use crate::base::warning::{Code, Warning};
use crate::disk::files::paths::absolute;
use crate::disk::io::Pool;
use crate::flows::report::ServeReport;
use crate::formats::nbd::{tls_uri, unix_uri};
use crate::vault::point::OpenPoints;
use crate::vault::repository::Repository;
use crate::vault::repository::storage::Wait;
use exports::Exports;
pub use exports::Wanted;
use handshake::Handshake;
use listen::Listener;
use session::Session;
use stream::{Ender, Stream};
use tls::Keys;

/// The most bytes of a reply that are in memory at once.
const PIECE: usize = 256 << 10;
/// How many such pieces all clients have together: 16 MiB.
const PIECES: usize = 64;
/// The most clients at a time.
const CLIENTS_MAX: usize = 400;
/// How many failures of reads are told.
const COMPLAINTS_MAX: usize = 100;
/// How long a request that is being answered may take once the server is to stop.
const STOP_MAX: Duration = Duration::from_secs(10);
/// How often the server looks whether it is to stop.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// What is served, and where.
#[derive(Debug, Clone)]
pub struct ServeRequest {
    /// What is served.
    pub wanted: Wanted,
    /// Where clients come in.
    pub places: Vec<Place>,
    /// Where goes what is written; nothing can be written without it.
    pub scratch: Option<PathBuf>,
    /// How many requests of one client are worked on at once.
    pub threads: usize,
}

/// Where clients come in.
#[derive(Debug, Clone)]
pub enum Place {
    /// A socket that is made.
    Socket(PathBuf),
    /// An address of a network, `HOST:PORT`, and the file with the keys that clients must have.
    Network(String, PathBuf),
    /// So many sockets that another program has opened for this one.
    Inherited(u32),
}

/// A server that is ready for clients.
#[derive(Debug)]
pub struct Server {
    exports: Exports,
    listeners: Vec<Listener>,
    threads: usize,
    report: ServeReport,
}

/// What all sessions share.
struct Shared<'a> {
    buffers: Pool,
    threads: usize,
    observer: &'a dyn Observer,
    cancel: &'a Cancel,
    complaints: AtomicUsize,
}

impl Shared<'_> {
    /// Tells the admin that something could not be read.
    fn complain(&self, error: &Error) {
        match self.complaints.fetch_add(1, Ordering::Relaxed) {
            COMPLAINTS_MAX => self.observer.warn(Warning::new(
                Code::NotServed,
                format!("{COMPLAINTS_MAX} reads have failed; no more are told"),
            )),
            number if number < COMPLAINTS_MAX => {
                self.observer.warn(Warning::failed(Code::NotServed, error));
            }
            _ => {}
        }
    }
}

impl Server {
    /// Opens what is to be served, and where clients come in.
    ///
    /// # Errors
    /// A point can't be opened; a socket can't be made, or a file of keys not be read.
    pub fn open(
        repository: Repository,
        request: &ServeRequest,
        observer: &dyn Observer,
        cancel: &Cancel,
    ) -> Result<Self> {
        let scratch = request.scratch.as_deref();
        let (points, wait) = (OpenPoints::new(repository, cancel), Wait::by(observer, cancel));
        let exports = Exports::open(points, &request.wanted, scratch, wait)?;
        let mut listeners = Vec::new();
        for place in &request.places {
            match place {
                Place::Socket(path) => listeners.push(Listener::bind(path)?),
                Place::Network(address, keys) => {
                    listeners.push(Listener::network(address, Keys::read(keys)?)?);
                }
                Place::Inherited(count) => listeners.extend(Listener::inherited(*count)?),
            }
        }
        let named = request.places.iter().find_map(|place| match place {
            Place::Socket(path) => Some(absolute(path)),
            _ => None,
        });
        let socket = named.or_else(|| listeners.iter().find_map(Listener::path));
        let address = listeners.iter().find_map(Listener::address);
        let uri = |name: &str| match (&socket, &address) {
            (None, Some(address)) => tls_uri(name, address),
            _ => {
                let socket = socket.as_deref().unwrap_or(Path::new("SOCKET")).to_string_lossy();
                unix_uri(name, &socket)
            }
        };
        let mut exported = exports.report();
        for export in exported.iter_mut().flatten() {
            export.uri = uri(&export.name);
        }
        let report = ServeReport {
            on_demand: exported.is_none(),
            uri: uri("GUEST/DISK@POINT"),
            listen: address.clone(),
            socket: socket.clone(),
            exports: exported.unwrap_or_default(),
        };
        Ok(Self { exports, listeners, threads: request.threads.max(1), report })
    }

    /// What is served, and where.
    pub fn report(&self) -> &ServeReport {
        &self.report
    }

    /// Serves clients until somebody asks to stop; requests that came before are answered.
    ///
    /// # Errors
    /// The system has no memory for buffers, or fails to say whether somebody came.
    pub fn run(self, observer: &dyn Observer, cancel: &Cancel) -> Result<()> {
        let shared = Shared {
            buffers: Pool::new(PIECES, PIECE)?,
            threads: self.threads,
            observer,
            cancel,
            complaints: AtomicUsize::new(0),
        };
        let clients = Clients::default();
        std::thread::scope(|scope| {
            let outcome = loop {
                if cancel.is_cancelled() {
                    break Ok(());
                }
                let ready = match self.wait() {
                    Ok(ready) => ready,
                    Err(error) => break Err(error),
                };
                for listener in ready {
                    let Ok(stream) = listener.accept() else { continue };
                    // One too many hears nothing but the end.
                    let Some(client) = clients.add(&stream) else { continue };
                    let (exports, keys, shared) = (&self.exports, listener.keys(), &shared);
                    let serve = move || {
                        let _client = client;
                        if let Err(error) = serve(&stream, exports, keys, shared) {
                            tracing::debug!("a client is gone: {error}");
                        }
                    };
                    let thread = std::thread::Builder::new().name("nbd".to_owned());
                    // Without a thread, the stream is dropped, and with it the connection.
                    let _ = thread.spawn_scoped(scope, serve);
                }
            };
            clients.end();
            outcome
        })
    }

    /// Waits for a client; gives the listeners that have one.
    fn wait(&self) -> Result<Vec<&Listener>> {
        let mut polled: Vec<_> =
            self.listeners.iter().map(|it| PollFd::new(it, PollFlags::IN)).collect();
        match poll(&mut polled, Some(&LOOK)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => {
                let path = self.report.socket.clone().unwrap_or_default();
                return Err(Error::io("wait for clients on", &path, errno.into()));
            }
        }
        let is_ready = polled.iter().map(|it| !it.revents().is_empty());
        Ok(self.listeners.iter().zip(is_ready).filter_map(|(it, is)| is.then_some(it)).collect())
    }
}

/// Serves a client to its end.
fn serve<'a>(
    stream: &'a Stream,
    exports: &'a Exports,
    keys: Option<&'a Keys>,
    shared: &'a Shared<'a>,
) -> io::Result<()> {
    let mut incoming = BufReader::with_capacity(8 << 10, stream);
    let wait = Wait::by(shared.observer, shared.cancel);
    let Some(agreed) = Handshake::begin(stream, &mut incoming, exports, keys, wait)?.run()? else {
        return Ok(());
    };
    Session::new(stream, incoming, agreed, shared)?.run();
    Ok(())
}

/// The clients that are there.
#[derive(Debug, Default)]
struct Clients {
    enders: Mutex<HashMap<u64, Ender>>,
    next: std::sync::atomic::AtomicU64,
}

/// A client's place among the clients, as long as it is there.
#[derive(Debug)]
struct Client<'a> {
    clients: &'a Clients,
    number: u64,
}

impl Clients {
    /// A place for another client, if there is one.
    fn add(&self, stream: &Stream) -> Option<Client<'_>> {
        let mut enders = self.enders.lock().unwrap_or_else(PoisonError::into_inner);
        if enders.len() >= CLIENTS_MAX {
            return None;
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        enders.insert(number, stream.ender().ok()?);
        Some(Client { clients: self, number })
    }

    /// Reads no more requests, waits for the answers to those that came, and ends what takes too
    /// long.
    fn end(&self) {
        let enders = || self.enders.lock().unwrap_or_else(PoisonError::into_inner);
        enders().values().for_each(Ender::stop_reading);
        let until = Instant::now() + STOP_MAX;
        while !enders().is_empty() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        enders().values().for_each(Ender::end);
    }
}

impl Drop for Client<'_> {
    fn drop(&mut self) {
        let enders = &self.clients.enders;
        enders.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
    }
}
