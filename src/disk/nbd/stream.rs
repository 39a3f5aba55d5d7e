//! A connection to a server as bytes: whatever is read or sent has a deadline, and ends when somebody asks to
//! stop.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, bounded};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::tls::{Channel, Encryption, Step};
use crate::base::cancel::Cancel;
use crate::formats::nbd::Place;

/// How long nobody looks whether somebody asked to stop.
const PATIENCE: Duration = Duration::from_millis(100);

/// A connection to a server. Nothing waits longer than until a moment that the caller sets.
#[derive(Debug)]
pub(super) struct Stream {
    socket: Socket,
    /// Set once the connection is encrypted.
    channel: Option<Channel<Socket>>,
    cancel: Cancel,
    until: Instant,
}

#[derive(Debug)]
enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    /// Connects to a server. All until the next [`Self::limit`] must be over within `max`.
    ///
    /// # Errors
    /// Nobody listens there, or nobody answers in time.
    pub fn connect(place: &Place, cancel: &Cancel, max: Duration) -> io::Result<Self> {
        let until = Instant::now() + max;
        // Neither looking a name up nor waiting in the queue of a socket has a deadline of its own.
        let (sender, connected) = bounded(1);
        let (place, cancel) = (place.clone(), cancel.clone());
        std::thread::Builder::new().name("nbd-connect".to_owned()).spawn(move || {
            // Whoever waited may be gone.
            let _ = sender.send(connect(&place, max));
        })?;
        loop {
            match connected.recv_timeout(left(until, &cancel)?) {
                Ok(socket) => return Ok(Self { socket: socket?, channel: None, cancel, until }),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(io::ErrorKind::Other.into()),
            }
        }
    }

    /// All until the next call must be over within `max`.
    pub fn limit(&mut self, max: Duration) {
        self.until = Instant::now() + max;
    }

    /// Encrypts the connection from now on.
    ///
    /// # Errors
    /// The server has another key, or does not come to the point.
    pub fn encrypt(&mut self, encryption: &Encryption) -> io::Result<()> {
        let mut channel = encryption.over(self.socket.try_clone()?)?;
        self.through(&mut channel, Channel::agree)?;
        self.channel = Some(channel);
        Ok(())
    }

    /// Does a step through the channel as often as it takes, and waits for the socket in between.
    fn through<T>(
        &self,
        channel: &mut Channel<Socket>,
        mut step: impl FnMut(&mut Channel<Socket>) -> io::Result<Step<T>>,
    ) -> io::Result<T> {
        loop {
            match step(channel)? {
                Step::Done(done) => return Ok(done),
                Step::Read => self.wait(PollFlags::IN)?,
                Step::Write => self.wait(PollFlags::OUT)?,
            }
        }
    }

    fn wait(&self, wanted: PollFlags) -> io::Result<()> {
        loop {
            let left = left(self.until, &self.cancel)?;
            let limit = Timespec::try_from(left).ok();
            let mut polled = [PollFd::from_borrowed_fd(self.as_fd(), wanted)];
            match poll(&mut polled, limit.as_ref()) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Does a step as often as it takes, and waits for the socket in between.
    fn until_done<T>(
        &mut self,
        wanted: PollFlags,
        mut step: impl FnMut(&mut Socket) -> io::Result<T>,
    ) -> io::Result<T> {
        loop {
            match step(&mut self.socket) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait(wanted)?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }
}

fn connect(place: &Place, max: Duration) -> io::Result<Socket> {
    Ok(match place {
        Place::Unix(path) => {
            let socket = UnixStream::connect(path)?;
            socket.set_nonblocking(true)?;
            Socket::Unix(socket)
        }
        Place::Tcp(host, port) => {
            let addresses = std::net::ToSocketAddrs::to_socket_addrs(&(host.as_str(), *port))?;
            let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
            for address in addresses {
                match TcpStream::connect_timeout(&address, max) {
                    Ok(socket) => {
                        socket.set_nodelay(true)?;
                        socket.set_nonblocking(true)?;
                        return Ok(Socket::Tcp(socket));
                    }
                    Err(error) => last = error,
                }
            }
            return Err(last);
        }
    })
}

/// How long may be waited before the next look at both.
fn left(until: Instant, cancel: &Cancel) -> io::Result<Duration> {
    cancel.check().map_err(io::Error::other)?;
    let left = until.saturating_duration_since(Instant::now());
    match left.is_zero() {
        true => Err(io::Error::new(io::ErrorKind::TimedOut, "the server does not answer in time")),
        false => Ok(left.min(PATIENCE)),
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Unix(socket) => socket.as_fd(),
            Socket::Tcp(socket) => socket.as_fd(),
        }
    }
}

impl Socket {
    fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Unix(socket) => Self::Unix(socket.try_clone()?),
            Self::Tcp(socket) => Self::Tcp(socket.try_clone()?),
        })
    }
}

impl Read for Socket {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(socket) => socket.read(out),
            Self::Tcp(socket) => socket.read(out),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(socket) => socket.write(bytes),
            Self::Tcp(socket) => socket.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Stream {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        // A server that sends a byte now and then waits for no socket.
        left(self.until, &self.cancel)?;
        let read = match self.channel.take() {
            None => self.until_done(PollFlags::IN, |socket| socket.read(out))?,
            Some(mut channel) => {
                let read = self.through(&mut channel, |channel| channel.read(out));
                self.channel = Some(channel);
                read?
            }
        };
        match read {
            0 if !out.is_empty() => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the server has closed the connection",
            )),
            read => Ok(read),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        left(self.until, &self.cancel)?;
        let Some(mut channel) = self.channel.take() else {
            return self.until_done(PollFlags::OUT, |socket| socket.write(bytes));
        };
        let written = self.through(&mut channel, |channel| channel.write(bytes));
        self.channel = Some(channel);
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
