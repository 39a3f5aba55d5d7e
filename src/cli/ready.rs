//! Telling whoever has started the program, as systemd does for a unit with `Type=notify`, that what it
//! shows is there.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Tells it. Nobody who waits for it is no failure.
pub fn tell() {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&name),
    };
    let sent = address.and_then(|address| {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        socket.send_to_addr(b"READY=1", &address)
    });
    if let Err(error) = sent {
        tracing::debug!("nobody could be told that it is ready: {error}");
    }
}
