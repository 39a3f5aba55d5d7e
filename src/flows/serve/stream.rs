//! A connection to a client: bytes in and out, with limits on how long either may take.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::net::sockopt;

use super::tls::{Channel, Keys};

/// A client that takes nothing of a reply for so long is gone.
const SEND_MAX: Duration = Duration::from_secs(120);
/// A client of a network whose host says nothing for so long is asked whether it is still there: one that
/// lost its power would hold its connection, and the archives of its guest, for ever.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How often it is asked, and how many times.
const PROBE_EACH: Duration = Duration::from_secs(20);
const PROBES: u32 = 6;

/// A connection to a client. One thread reads at a time, and one writes.
#[derive(Debug)]
pub struct Stream {
    socket: Socket,
    /// When the client must have said what is read now.
    until: Mutex<Option<Instant>>,
    /// Set once the connection is encrypted.
    channel: OnceLock<Channel>,
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
        Ok(Self::over(Socket::Unix(socket)))
    }

    /// A connection over a network.
    pub fn tcp(socket: TcpStream) -> io::Result<Self> {
        socket.set_nonblocking(false)?;
        socket.set_nodelay(true)?;
        sockopt::set_socket_keepalive(&socket, true)?;
        sockopt::set_tcp_keepidle(&socket, SILENCE_MAX)?;
        sockopt::set_tcp_keepintvl(&socket, PROBE_EACH)?;
        sockopt::set_tcp_keepcnt(&socket, PROBES)?;
        socket.set_write_timeout(Some(SEND_MAX))?;
        Ok(Self::over(Socket::Tcp(socket)))
    }

    fn over(socket: Socket) -> Self {
        Self { socket, until: Mutex::default(), channel: OnceLock::new() }
    }

    /// Encrypts the connection from now on.
    pub fn encrypt(&self, keys: &Keys) -> io::Result<()> {
        match &self.socket {
            Socket::Tcp(socket) => {
                let channel = Channel::accept(keys, socket, self.until())?;
                self.channel.set(channel).map_err(|_| io::ErrorKind::InvalidInput.into())
            }
            Socket::Unix(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn until(&self) -> Option<Instant> {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner)
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
        while let Some(first) = parts.first() {
            let sent = match (&self.channel.get(), &self.socket) {
                (Some(channel), _) => channel.write(first, Some(Instant::now() + SEND_MAX)),
                (None, Socket::Unix(socket)) => (&*socket).write_vectored(parts),
                (None, Socket::Tcp(socket)) => (&*socket).write_vectored(parts),
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
        let until = self.until();
        if let Some(channel) = self.channel.get() {
            return channel.read(out, until);
        }
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

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// A client whose host had lost its power kept its connection for ever: the server waited for its next
    /// request, and nobody could remove archives of the guest.
    #[test]
    fn a_host_that_is_gone_is_noticed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let stream = Stream::tcp(listener.accept().unwrap().0).unwrap();
        let Socket::Tcp(socket) = &stream.socket else { panic!("it came over a network") };
        assert!(sockopt::socket_keepalive(socket).unwrap());
        let idle = sockopt::tcp_keepidle(socket).unwrap();
        let probes =
            sockopt::tcp_keepintvl(socket).unwrap() * sockopt::tcp_keepcnt(socket).unwrap();
        assert!(idle + probes <= Duration::from_secs(200), "{idle:?} and {probes:?}");
    }
}
