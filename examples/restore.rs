//! Lists the points of a disk and restores one of them to a new raw file.
//!
//! ```sh
//! cargo run --example restore -- /backup web01 latest restored.raw
//! ```
//!
//! The point is `latest` or the beginning of a point's id.

use std::path::Path;

use qdelta::{
    Cancel, Destination, DiskSpec, Error, ErrorKind, Format, Libvirt, Point, Repository, Resources,
    RestoreReport, RestoreRequest, Result, Selector, Silent,
};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, disk, point, output] = arguments.as_slice() else {
        return Err(Error::new(ErrorKind::Usage, "usage: restore REPOSITORY DISK POINT OUTPUT"));
    };
    let selector = match point.as_str() {
        "latest" => Selector::Latest,
        id => Selector::Id(id.to_owned()),
    };
    let repository = Repository::open(Path::new(folder))?;
    let disk = disk.parse()?;
    for point in points(&repository, &disk)? {
        println!("{} is a point of {}", point.id, point.disk);
    }
    let report = restore(&repository, &disk, &selector, Path::new(output))?;
    println!("{}@{}: {} bytes written", report.disk, report.point, report.bytes_written);
    Ok(())
}

/// The points of a disk, the oldest first.
pub fn points(repository: &Repository, disk: &DiskSpec) -> Result<Vec<Point>> {
    // A catalog reads the repository's lists once, and answers every question about them.
    let catalog = repository.catalog();
    Ok(catalog.points(&catalog.find_disk(disk)?)?.points)
}

/// Restores the disk of a point. An existing file is left alone.
pub fn restore(
    repository: &Repository,
    disk: &DiskSpec,
    selector: &Selector,
    output: &Path,
) -> Result<RestoreReport> {
    let request = RestoreRequest {
        destination: Destination::Path(output.to_owned()),
        format: Format::Raw,
        force: false,
        libvirt: Libvirt::default(),
        salvage: false,
        resources: Resources::default(),
    };
    qdelta::restore(repository, disk, selector, request, &Silent, &Cancel::default())
}
