//! Backs an image up into a repository, and makes the repository if there is none.
//!
//! ```sh
//! cargo run --example back_up -- web01.qcow2 /backup
//! ```
//!
//! The first run makes a full, every further one an increment.

use std::path::{Path, PathBuf};

use qdelta::{
    BackupOptions, BackupReport, BackupRequest, Cancel, Error, ErrorKind, Event, ImageRequest,
    Observer, OpenOptions, Repository, Result,
};

/// Shows warnings, and nothing else of what happens.
struct Warnings;

impl Observer for Warnings {
    fn event(&self, event: &Event<'_>) {
        if let Event::Warning(warning) = event {
            eprintln!("warning: {}", warning.text);
        }
    }
}

fn main() -> Result<()> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [image, folder] = arguments.as_slice() else {
        return Err(Error::new(ErrorKind::Usage, "usage: back_up IMAGE REPOSITORY"));
    };
    let report = back_up(image, folder)?;
    println!("{}@{}: {} bytes changed", report.disk, report.point, report.bytes_changed);
    Ok(())
}

/// Makes a recovery point of an image.
pub fn back_up(image: &Path, folder: &Path) -> Result<BackupReport> {
    let repository = match Repository::open(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => Repository::init(folder)?,
        opened => opened?,
    };
    // Without a name the disk is called after the image's file: web01.qcow2 becomes web01/disk.
    let image = ImageRequest { path: image.to_owned(), open: OpenOptions::default(), disk: None };
    let request = BackupRequest { image, options: BackupOptions::default() };
    qdelta::backup(&repository, &request, &Warnings, &Cancel::default())
}
