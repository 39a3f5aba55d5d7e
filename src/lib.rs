//! qdelta: a native qcow2 engine for block-level incremental backup of virtual machines.
//!
//! A *recovery point* is the state of a disk at one moment. [`backup`] makes one: the first point of
//! a disk is a full, and every later point holds the blocks that changed. [`restore`] rebuilds the
//! disk of any point and proves it by its digest before the result gets its name. [`verify`] proves
//! what a repository holds without restoring it.
//!
//! ```
//! use std::path::Path;
//! use qdelta::{
//!     BackupOptions, BackupRequest, Cancel, Destination, Format, ImageRequest, Libvirt, OpenOptions,
//!     Repository, Resources, RestoreRequest, Selector, Silent,
//! };
//!
//! fn back_up_and_restore(image: &Path, folder: &Path, output: &Path) -> qdelta::Result<()> {
//!     let repository = Repository::init(folder)?;
//!     let image = ImageRequest {
//!         path: image.to_owned(),
//!         open: OpenOptions::default(),
//!         disk: Some("web01".parse()?),
//!     };
//!     let request = BackupRequest { image, options: BackupOptions::default() };
//!     let made = qdelta::backup(&repository, &request, &Silent, &Cancel::default())?;
//!     assert_eq!(made.disk, "web01/disk");
//!
//!     let request = RestoreRequest {
//!         destination: Destination::Path(output.to_owned()),
//!         format: Format::Raw,
//!         force: false,
//!         libvirt: Libvirt::default(),
//!         salvage: false,
//!         resources: Resources::default(),
//!     };
//!     let (disk, latest) = ("web01".parse()?, Selector::Latest);
//!     qdelta::restore(&repository, &disk, &latest, request, &Silent, &Cancel::default())?;
//!     Ok(())
//! }
//! # let dir = tempfile::tempdir().unwrap();
//! # let (image, repository) = (dir.path().join("web01.raw"), dir.path().join("repository"));
//! # let output = dir.path().join("restored.raw");
//! # let content: Vec<u8> = (0..3 << 20).map(|at: u32| (at >> 8) as u8).collect();
//! # std::fs::write(&image, &content).unwrap();
//! # back_up_and_restore(&image, &repository, &output).unwrap();
//! # assert_eq!(std::fs::read(&output).unwrap(), content);
//! ```
//!
//! | to do this | call | with |
//! | --- | --- | --- |
//! | make or open a repository | [`Repository::init`], [`Repository::open`] | a folder |
//! | back up one image | [`backup`] | [`BackupRequest`] |
//! | back up several images at one moment | [`backup_together`] | [`ImageRequest`], [`BackupOptions`] |
//! | back up a guest of libvirt | [`backup_guest`] | [`GuestRequest`] |
//! | back up many guests, one after the other | [`backup_guests`] | [`GuestsRequest`] |
//! | list disks and their points | [`Repository::catalog`] | [`Catalog`] |
//! | restore a disk | [`restore`] | [`RestoreRequest`], [`Selector`] |
//! | restore from archive files alone | [`replay`] | [`RestoreRequest`] |
//! | restore a whole guest | [`restore_machine`] | [`MachineRequest`] |
//! | roll back an image, a stopped guest | [`roll_back`], [`roll_back_machine`] | [`InPlaceRequest`], [`MachineInPlaceRequest`] |
//! | read a point's disk anywhere | [`open_point`] | [`PointReader`], [`ReadAt`] |
//! | read many points, opened on demand | [`OpenPoints::open_named`], [`OpenPoints::open`] | [`OpenPoint`], [`DiskAt`] |
//! | read an image's disk anywhere | [`ImageReader::new`] | [`Image`], [`OpenOptions`] |
//! | prove points and archives | [`verify`] | [`VerifyRequest`] |
//!
//! Every call takes an [`Observer`], which hears of progress and warnings ([`Silent`] ignores them),
//! and a [`Cancel`], by which another thread asks the call to stop. Every result holds its warnings,
//! too. A failure is an [`Error`]: its [`ErrorKind`] is for programs, its text and advice are for
//! people.
//!
//! The library never prints, never exits and has no globals. Its items on this page are its public
//! interface. The modules behind them are public for this package's own program, tests and benches,
//! and may change at any time; `ARCHITECTURE.md` has their map. The programs in `examples/` show
//! the calls at work.

// Hidden, and not private: the program, the tests, the benches and the fuzz targets are other crates.
#[doc(hidden)]
pub mod base;
#[doc(hidden)]
pub mod disk;
#[doc(hidden)]
pub mod flows;
#[doc(hidden)]
pub mod guest;
#[doc(hidden)]
pub mod inside;
#[doc(hidden)]
pub mod vault;

pub use base::cancel::Cancel;
pub use base::error::{Error, ErrorKind, Result};
pub use base::observer::{Event, Observer, Silent};
pub use base::warning::{Code, Warning};
pub use disk::flow::pipeline::Resources;
pub use disk::image::Format;
pub use disk::image::{Image, ImageReader, OpenOptions};
pub use disk::io::{Backend, Direct, ReadAt};
pub use flows::backup::{
    AnchorChoice, BackupRequest, ConsistencyChoice, GuestOptions, GuestRequest, Guests,
    GuestsRequest, HostConfig, ImageRequest, KindChoice, Options as BackupOptions, run as backup,
    run_guest as backup_guest, run_guests as backup_guests, run_together as backup_together,
};
pub use flows::report::{
    ArchiveVerdict, BackupReport, DiskVerdict, Failure, FileState, Finding, GuestOutcome,
    GuestRange, GuestReport, GuestsReport, InPlaceReport, MachineInPlaceReport, MachineReport,
    Outcome, PointVerdict, RestoreReport, SalvageReport, VerifyReport,
};
pub use flows::restore::{
    Destination, InPlaceOptions, InPlaceRequest, MachineInPlaceRequest, MachineRequest,
    RestoreRequest, replay, run as restore, run_in_place as roll_back,
    run_machine as restore_machine, run_machine_in_place as roll_back_machine,
};
pub use flows::verify::{VerifyRequest, run as verify};
pub use guest::libvirt::Libvirt;
pub use qdelta_formats as formats;
pub use vault::point::{Content, OpenPoint, OpenPoints, PointReader, Run, open as open_point};
pub use vault::repository::{
    Catalog, DiskAt, DiskId, DiskName, DiskSpec, DomainName, Point, PointId, PointList, Repository,
    Selector, Survey, Wanted,
};
