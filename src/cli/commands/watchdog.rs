//! `qdelta watchdog`: what the program starts beside itself before it freezes a guest.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use qdelta::guest::quiesce;
use qdelta::{Error, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use crate::cli::status;

/// Freezes and thaws as it is told, and thaws when nobody is left to tell it anything.
pub fn run() -> Result<u8> {
    // Whatever ends the program must not end its watchdog: it ends by itself when all is well.
    for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::default())
            .map_err(|error| Error::io("catch signals for", Path::new("the watchdog"), error))?;
    }
    let own = |fd: io::Result<std::os::fd::OwnedFd>| {
        fd.map(File::from).map_err(|error| Error::io("open", Path::new("a pipe"), error))
    };
    let orders = own(io::stdin().as_fd().try_clone_to_owned())?;
    let replies = own(io::stdout().as_fd().try_clone_to_owned())?;
    quiesce::watch(orders, replies)?;
    Ok(status::DONE)
}
