//! A connection to a client: bytes in and out, with limits on how long either may take.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A client that takes nothing of a reply for so long is gone.
const SEND_MAX: Duration = Duration::from_secs(120);

/// A connection to a client. One thread reads at a time, and one writes.
#[derive(Debug)]
pub struct Stream {
    socket: Socket,
    /// When the client must have said what is read now.
    until: Mutex<Option<Instant>>,
}

#[derive(Debug)]
enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// Ends a connection from another thread.
#[derive(Debug)]
pub struct Ender(Socket);

impl Stream {
    /// A connection over a socket of this machine.
    pub fn unix(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(false)?;
        socket.set_write_timeout(Some(SEND_MAX))?;
        Ok(Self { socket: Socket::Unix(socket), until: Mutex::default() })
    }

    /// A connection over a network.
    pub fn tcp(socket: TcpStream) -> io::Result<Self> {
        socket.set_nonblocking(false)?;
        socket.set_nodelay(true)?;
        socket.set_write_timeout(Some(SEND_MAX))?;
        Ok(Self { socket: Socket::Tcp(socket), until: Mutex::default() })
    }

    /// What ends the connection.
    pub fn ender(&self) -> io::Result<Ender> {
        Ok(Ender(match &self.socket {
            Socket::Unix(socket) => Socket::Unix(socket.try_clone()?),
            Socket::Tcp(socket) => Socket::Tcp(socket.try_clone()?),
        }))
    }

    /// Until when the client must have said everything that is read; none for ever.
    pub fn limit(&self, until: Option<Instant>) -> io::Result<()> {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = until;
        match until {
            Some(_) => Ok(()),
            None => self.set_read_timeout(None),
        }
    }

    fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match &self.socket {
            Socket::Unix(socket) => socket.set_read_timeout(timeout),
            Socket::Tcp(socket) => socket.set_read_timeout(timeout),
        }
    }

    /// Sends all of `parts`, one after the other.
    pub fn send(&self, parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        let mut parts = parts;
        IoSlice::advance_slices(&mut parts, 0);
        while !parts.is_empty() {
            let sent = match &self.socket {
                Socket::Unix(socket) => (&*socket).write_vectored(parts),
                Socket::Tcp(socket) => (&*socket).write_vectored(parts),
            };
            match sent {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => IoSlice::advance_slices(&mut parts, sent),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Read for &Stream {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let until = *self.until.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(until) = until {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.set_read_timeout(Some(left))?;
        }
        match &self.socket {
            Socket::Unix(socket) => (&*socket).read(out),
            Socket::Tcp(socket) => (&*socket).read(out),
        }
    }
}

impl Ender {
    /// Nothing more is read from the client; what it asked for before is still answered.
    pub fn stop_reading(&self) {
        self.shut_down(Shutdown::Read);
    }

    /// Whoever reads or writes now fails.
    pub fn end(&self) {
        self.shut_down(Shutdown::Both);
    }

    fn shut_down(&self, how: Shutdown) {
        // A connection that has ended already is as it should be.
        let _ = match &self.0 {
            Socket::Unix(socket) => socket.shutdown(how),
            Socket::Tcp(socket) => socket.shutdown(how),
        };
    }
}
