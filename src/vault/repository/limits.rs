//! A point is never made that can't be read: every limit of a reader is its writer's.

use std::fs;

use std::path::Path;

use super::manifest::{self, LEN_MAX};
use super::tests::{disk, fresh};
use super::*;
use crate::formats::archive::{
    ArchiveId, Consistency, Digest, Geometry, Metadata, NAME_LEN_MAX, Tracker, frame_blocks, header,
};
use crate::formats::qcow2::{self, ClusterSize};

/// What is at the limit and beyond it, for one limit.
struct Limit {
    name: &'static str,
    /// Writes what is at the limit, or beyond it by one, and reads it again.
    round: fn(beyond: bool) -> Result<(), String>,
}

const LIMITS: &[Limit] = &[
    Limit { name: "length of a manifest", round: manifest_of_length },
    Limit { name: "files of a machine", round: machine_of_files },
    Limit { name: "length of a machine's file", round: machine_file_of_length },
    Limit { name: "UUID of a machine", round: machine_of_uuid },
    Limit { name: "names in an archive", round: archive_names },
    Limit { name: "name of a domain", round: name_of_length },
    Limit { name: "snapshots of an image", round: snapshots_of_number },
    Limit { name: "bitmaps of an image", round: bitmaps_of_number },
];

/// A manifest of 17 MiB was written, and no reader took it: the point was lost when it was made.
#[test]
fn what_is_at_a_limit_is_read_and_what_is_beyond_is_never_written() {
    for Limit { name, round } in LIMITS {
        round(false).unwrap_or_else(|error| panic!("{name}, at the limit: {error}"));
        let refused = round(true);
        assert!(refused.is_err(), "{name}: what nobody reads was written");
    }
}

/// What the writer refuses is an error; what the reader refuses of what was written is a panic.
fn read_again<T, E: std::fmt::Debug>(read: Result<T, E>) -> T {
    read.unwrap_or_else(|error| panic!("it was written, and can't be read: {error:?}"))
}

fn point() -> PointId {
    PointId::from_ms(1_795_361_903_412).unwrap()
}

fn machine() -> MachineRecord {
    MachineRecord {
        autostart: false,
        memory: None,
        name: "web".to_owned(),
        uuid: None,
        fell_back: None,
        freeze_ms: None,
        frozen_filesystems: None,
        files: Vec::new(),
        left_out: Vec::new(),
        missing: Vec::new(),
    }
}

fn write_and_read(machine: MachineRecord) -> Result<(), String> {
    let domain: DomainName = "web".parse().unwrap();
    let mut manifest = Manifest::new(point(), domain.clone(), Consistency::Offline);
    manifest.machine = Some(machine);
    let bytes = manifest.encode().map_err(|error| error.chain())?;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(Manifest::file_name(point()));
    fs::write(&path, bytes).unwrap();
    let bytes = read_again(super::storage::durable::read_small(&path, LEN_MAX));
    assert_eq!(read_again(Manifest::decode(&bytes, &path, &domain, point())), manifest);
    Ok(())
}

fn manifest_of_length(beyond: bool) -> Result<(), String> {
    let of = |length: usize| MachineRecord { missing: vec!["x".repeat(length)], ..machine() };
    let mut manifest = Manifest::new(point(), "web".parse().unwrap(), Consistency::Offline);
    manifest.machine = Some(of(1));
    let rest = manifest.encode().unwrap().len() - 1;
    write_and_read(of(LEN_MAX as usize - rest + usize::from(beyond)))
}

fn machine_of_files(beyond: bool) -> Result<(), String> {
    let file = MachineFile {
        role: Role::HostConfig,
        path: "/etc/libvirt/x".into(),
        length: 1,
        mode: 0o600,
        digest: Digest([1; 32]),
    };
    let files = vec![file; MACHINE_FILES_MAX + usize::from(beyond)];
    write_and_read(MachineRecord { files, ..machine() })
}

/// The files themselves have the same limit where they are stored and where they are read; here is what
/// manifests say of them.
fn machine_file_of_length(beyond: bool) -> Result<(), String> {
    let file = MachineFile {
        role: Role::Nvram,
        path: "/x".into(),
        length: MACHINE_FILE_MAX + u64::from(beyond),
        mode: 0o600,
        digest: Digest([1; 32]),
    };
    write_and_read(MachineRecord { files: vec![file], ..machine() })
}

fn machine_of_uuid(beyond: bool) -> Result<(), String> {
    let uuid = "0".repeat(36 + usize::from(beyond));
    assert_eq!(MachineRecord::is_uuid(&uuid), !beyond, "the backup leaves it out");
    write_and_read(MachineRecord { uuid: Some(uuid), ..machine() })
}

fn archive_names(beyond: bool) -> Result<(), String> {
    let geometry = Geometry::new(1 << 20, 65536).unwrap();
    let metadata = Metadata {
        archive_id: ArchiveId([1; 16]),
        point: point().to_string(),
        domain: "d".repeat(NAME_LEN_MAX + usize::from(beyond)),
        disk: "e".repeat(NAME_LEN_MAX),
        kind: Kind::Full,
        tracker: Tracker::Scan,
        consistency: Consistency::Offline,
        created_ms: 0,
        geometry,
        frame_blocks: frame_blocks(geometry.block_size()),
        parent: None,
        generator: "g".repeat(NAME_LEN_MAX),
        extensions: Vec::new(),
    };
    let bytes = header::encode(&metadata).map_err(|error| error.to_string())?;
    assert!(bytes.len() <= header::HEADER_LEN_MAX);
    assert_eq!(read_again(header::decode(&bytes)).0, metadata);
    Ok(())
}

/// Names of the repository stand in archives, and in names of files: with all that is put around them.
fn name_of_length(beyond: bool) -> Result<(), String> {
    let name = "n".repeat(128 + usize::from(beyond));
    let domain: DomainName = name.parse().map_err(|error: Error| error.chain())?;
    let id = disk(&format!("{domain}/{name}"));
    let (_dir, repository) = fresh();
    super::tests::back_up(&repository, &id, Kind::Full).map_err(|error| error.chain())?;
    let points = read_again(repository.catalog().points(&id));
    assert_eq!((points.points.len(), points.damaged.len()), (1, 0));
    read_again(repository.catalog().chain_of(&points.points[0]));
    let file = manifest::archive_name(point(), Kind::Differential, ArchiveId([1; 16]));
    assert!(format!(".{file}.partial").len() < 255 && name.len() <= NAME_LEN_MAX);
    Ok(())
}

fn snapshots_of_number(beyond: bool) -> Result<(), String> {
    let snapshot = qcow2::Snapshot {
        l1_offset: 0,
        l1_entries: 0,
        id: b"1".to_vec(),
        name: b"n".to_vec(),
        date_s: 0,
        date_ns: 0,
        vm_clock_ns: 0,
        vm_state_size: 0,
        disk_size: Some(1 << 30),
        icount: None,
        unknown_extra: Vec::new(),
    };
    let all = vec![snapshot; qcow2::snapshot::SNAPSHOTS_MAX + usize::from(beyond)];
    qcow2::snapshot::encode_table(&all).map(drop).map_err(|error| error.to_string())
}

fn bitmaps_of_number(beyond: bool) -> Result<(), String> {
    let cluster = ClusterSize::from_bits(16).unwrap();
    let bitmap = qcow2::Bitmap::new(b"x", 65536, 1 << 30, cluster).unwrap();
    let all = vec![bitmap; qcow2::BITMAPS_MAX as usize + usize::from(beyond)];
    qcow2::bitmap::encode_directory(&all).map(drop).map_err(|error| error.to_string())
}

/// What can't be written says what is too long, and what to do.
#[test]
fn a_manifest_that_nobody_could_read_says_what_makes_it_so_long() {
    let file = MachineFile {
        role: Role::HostConfig,
        path: Path::new("/etc/libvirt").join("x".repeat(2000)),
        length: 1,
        mode: 0o600,
        digest: Digest([1; 32]),
    };
    let mut manifest = Manifest::new(point(), "web".parse().unwrap(), Consistency::Offline);
    manifest.machine = Some(MachineRecord { files: vec![file; 9000], ..machine() });
    let error = manifest.encode().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.chain().contains("could never be restored"), "{}", error.chain());
    assert!(error.advice().unwrap().contains("--with-host-config"));
}
