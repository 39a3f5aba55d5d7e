//! The manifest of a recovery point: the file that makes it one. What has no manifest did not
//! happen.
//!
//! It is JSON, so an admin can read it, and carries the BLAKE3 digest of its own content, so a
//! flipped bit in a number is not taken for the number.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::machine::MachineRecord;
use super::manifest_digest::{digest_of, without_digest};
use super::marks::{Pin, Removal};
use super::names::{DiskId, DiskName, DomainName};
use super::point::PointId;
use super::snapshot::SnapshotRecord;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::json::text;
use crate::disk::files::fingerprint::Fingerprint;
use crate::disk::files::paths::is_uri;
use crate::disk::image::Format;
use crate::formats::archive::{ArchiveId, Consistency, Digest, Geometry, Kind, Parent, Tracker};

/// The longest manifest that is read, in bytes.
pub(super) const LEN_MAX: u64 = 16 << 20;

/// The newest format of a manifest that this program writes and reads.
const FORMAT: u32 = 1;

/// The field that holds the digest of all others.
const DIGEST: &str = "digest";

/// A recovery point: every disk's archive and what it takes to prove it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this layout: 1.
    pub format: u32,
    /// The point's id.
    pub point: PointId,
    /// When it was made. Before the id's time only if the clock had been set back.
    #[serde(with = "text")]
    pub created: Timestamp,
    /// The domain whose disks it holds.
    pub domain: DomainName,
    /// The program that made it, with its version.
    pub generator: String,
    /// The id of the repository that it was made in, so that a lost `qdelta.toml` can be made anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// The id of the repository that a copied point was made in first; none if that is the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// In what state the guest was.
    #[serde(with = "text")]
    pub consistency: Consistency,
    /// Its disks.
    pub disks: Vec<DiskRecord>,
    /// How long making it took, in milliseconds.
    pub elapsed_ms: u64,
    /// The machine around the disks, if it is a domain of libvirt's that was backed up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<MachineRecord>,
    /// It is a safety point: it holds what was there before a roll back, and nobody asked for a backup.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub safety: bool,
    /// Its pins: while one holds, no rule removes it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pins: Vec<Pin>,
    /// It is removed: nobody is shown it, and its data goes one day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removed: Option<Removal>,
    /// The archives whose place its own have taken, and that are not removed yet: also those of earlier
    /// points, which go with their archives.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replaces: Vec<Replaced>,
}

/// An archive whose place another one has taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replaced {
    /// The point that it was of.
    pub point: PointId,
    /// Its disk.
    pub disk: DiskName,
    /// Its file name, in the disk's folder.
    pub archive: String,
}

/// One disk at a recovery point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRecord {
    /// Its name in the domain.
    pub disk: DiskName,
    /// File name of its archive, in the disk's folder.
    pub archive: String,
    /// The archive's id.
    #[serde(with = "text")]
    pub archive_id: ArchiveId,
    /// Against what it was made.
    #[serde(with = "text")]
    pub kind: Kind,
    /// How the changed blocks were found.
    #[serde(with = "text")]
    pub tracker: Tracker,
    /// The point it was made against; none for a full.
    pub parent: Option<ParentRecord>,
    /// Digest of what the guest sees.
    #[serde(with = "text")]
    pub root: Digest,
    /// Size of the disk, in bytes.
    pub virtual_size: u64,
    /// Size of a block, in bytes.
    pub block_size: u32,
    /// Bytes read from the image.
    pub bytes_read: u64,
    /// Bytes of the disk that differ from the parent.
    pub bytes_changed: u64,
    /// Bytes of the frames in the archive.
    pub payload_bytes: u64,
    /// Length of the archive, in bytes.
    pub bytes_written: u64,
    /// The image that it was made from.
    pub image: ImageRecord,
    /// Bytes read of blocks that were thought unchanged, to check that they are. Part of
    /// `bytes_read`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub bytes_sampled: u64,
    /// The trackers that were tried and could not be used, or gave a claim that proved wrong.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<Refusal>,
    /// From what the next backup can learn what has changed since this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anchor: Option<Anchor>,
    /// What kind of anchor was wanted, whether it could be left or not: the next backup tries again.
    #[serde(default, with = "text::optional", skip_serializing_if = "Option::is_none")]
    pub anchor_wanted: Option<Tracker>,
    /// The first bytes of the archive's file in an encrypted repository, in base 64: without them nothing else of
    /// the file can be read, so they are kept twice. A key is needed for them as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opening: Option<String>,
    /// The internal snapshot of the image that it holds in the place of the image's state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotRecord>,
}

impl DiskRecord {
    /// The point that it was made against, as people name it.
    pub fn parent_point(&self) -> Option<PointId> {
        self.parent.as_ref().map(|parent| parent.point)
    }

    /// Whether what changed was told by a bitmap of a server that was named by hand: nothing but the sample has
    /// proved it.
    pub fn is_trusted(&self) -> bool {
        self.tracker == Tracker::LiveBitmap && is_uri(&self.image.path)
    }
}

/// The point that an archive was made against, as the archive's header names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParentRecord {
    /// The domain of the parent's disk.
    pub domain: DomainName,
    /// The parent's disk.
    pub disk: DiskName,
    /// The point of that disk.
    pub point: PointId,
    /// The root of that point.
    #[serde(with = "text")]
    pub root: Digest,
}

impl ParentRecord {
    /// Whether it is a point of this disk.
    pub(super) fn is_of(&self, disk: &DiskId) -> bool {
        (&self.domain, &self.disk) == (&disk.domain, &disk.disk)
    }
}

impl TryFrom<&Parent> for ParentRecord {
    type Error = Error;

    fn try_from(parent: &Parent) -> Result<Self> {
        Ok(Self {
            domain: parent.domain.parse()?,
            disk: parent.disk.parse()?,
            point: parent.point.parse()?,
            root: parent.root,
        })
    }
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Why a tracker was not used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The tracker.
    #[serde(with = "text")]
    pub tracker: Tracker,
    /// Why, for people.
    pub reason: String,
}

/// What was left behind at a point for the next backup to compare with. It is called the same
/// wherever it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anchor {
    /// Its name, which no other anchor has.
    pub name: String,
    /// What it is.
    #[serde(flatten)]
    pub what: AnchorKind,
}

/// The kinds of anchors, called like the trackers that use them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "tracker", rename_all = "kebab-case")]
pub enum AnchorKind {
    /// A persistent bitmap in the image, empty at the point.
    Bitmap,
    /// An internal snapshot of the image.
    Snapshot {
        /// Its id.
        id: String,
        /// When it was taken: whole seconds since 1970.
        date_s: u32,
        /// Nanoseconds beyond the seconds.
        date_ns: u32,
    },
    /// Clones of files of the image, in the folder `.qdelta` beside each.
    Reflink {
        /// The clones.
        clones: Vec<CloneRecord>,
    },
    /// A bitmap of QEMU's that the server of an export tells of. Nothing of it is in a file of qdelta's.
    LiveBitmap {
        /// The point from which it counts: this one, or an earlier one of the disk.
        began: PointId,
    },
}

impl AnchorKind {
    /// The tracker that uses it.
    pub fn tracker(&self) -> Tracker {
        match self {
            Self::Bitmap => Tracker::Bitmap,
            Self::Snapshot { .. } => Tracker::Snapshot,
            Self::Reflink { .. } => Tracker::Reflink,
            Self::LiveBitmap { .. } => Tracker::LiveBitmap,
        }
    }
}

/// A clone that is kept as an anchor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloneRecord {
    /// Real path of the file that was cloned.
    #[serde(with = "crate::base::json")]
    pub file: PathBuf,
    /// Path of the clone.
    #[serde(with = "crate::base::json")]
    pub clone: PathBuf,
    /// Inode of the clone.
    pub inode: u64,
    /// Length of the clone in bytes.
    pub length: u64,
    /// When the clone was written to, in nanoseconds since 1970.
    pub modified_ns: i64,
}

/// The image that a backup was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Path of the image.
    #[serde(with = "crate::base::json")]
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// It and its backing files, the top first.
    pub layers: Vec<LayerRecord>,
    /// The kernel's name for the time since the machine was started; none if it tells none. A power
    /// cut can take back the time of a write, and not the write: times say nothing across a start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<String>,
}

impl ImageRecord {
    /// Whether an export of a server was read, and no file.
    pub fn is_export(&self) -> bool {
        self.layers.first().is_some_and(|top| is_uri(&top.path))
    }
}

/// One file of an image's backing chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// Path of the file.
    #[serde(with = "crate::base::json")]
    pub path: PathBuf,
    /// Path of its external data file.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "crate::base::json::optional::serialize"
    )]
    pub data_file: Option<PathBuf>,
    /// Its format.
    pub format: Format,
    /// Size of the disk it shows, in bytes.
    pub virtual_size: u64,
    /// What it is recognised by; none if it was not the image's current state that was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<Fingerprint>,
    /// The lasting id of a block device, such as device mapper's UUID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
}

impl Manifest {
    /// What its archives take, in bytes.
    pub fn bytes_stored(&self) -> u64 {
        self.disks.iter().map(|record| record.bytes_written).sum()
    }

    /// The manifest of a point made by this program, with no disks yet.
    pub fn new(point: PointId, domain: DomainName, consistency: Consistency) -> Self {
        Self {
            format: FORMAT,
            point,
            created: now_ms().map_or(point.time(), |now| now.min(point.time())),
            domain,
            generator: concat!("qdelta ", env!("CARGO_PKG_VERSION")).to_owned(),
            repository: None,
            origin: None,
            consistency,
            disks: Vec::new(),
            elapsed_ms: 0,
            machine: None,
            safety: false,
            pins: Vec::new(),
            removed: None,
            replaces: Vec::new(),
        }
    }

    /// The file name of the manifest of `point`.
    pub(super) fn file_name(point: PointId) -> String {
        format!("{point}.json")
    }

    /// The record of one of its disks.
    pub fn disk(&self, disk: &DiskName) -> Option<&DiskRecord> {
        self.disks.iter().find(|record| record.disk == *disk)
    }

    /// The records of the guest's disks: without that of its memory.
    pub fn guest_disks(&self) -> impl Iterator<Item = &DiskRecord> {
        let memory = self.machine.as_ref().and_then(|machine| machine.memory.as_ref());
        self.disks.iter().filter(move |record| memory.is_none_or(|it| it.disk != record.disk))
    }

    /// Whether it holds internal snapshots of the images, and not the state that the guest had.
    pub fn is_of_snapshots(&self) -> bool {
        self.disks.iter().any(|record| record.snapshot.is_some())
    }

    /// Its archives, and all those whose place they have taken.
    pub(crate) fn archives(&self) -> impl Iterator<Item = Replaced> + '_ {
        let own = self.disks.iter().map(|record| Replaced {
            point: self.point,
            disk: record.disk.clone(),
            archive: record.archive.clone(),
        });
        own.chain(self.replaces.iter().cloned())
    }

    /// Whether an archive of its own point is one whose place another has taken.
    pub(super) fn has_replaced(&self, disk: &DiskName, archive: &str) -> bool {
        let is_it = |it: &Replaced| it.point == self.point && it.disk == *disk;
        self.replaces.iter().any(|replaced| is_it(replaced) && replaced.archive == archive)
    }

    /// The bytes of the file.
    pub(super) fn encode(&self) -> Result<Vec<u8>> {
        self.check().map_err(|problem| {
            let text = format!("the manifest of point {} {problem}", self.point);
            Error::new(ErrorKind::Usage, text)
        })?;
        let unwritable = |error| {
            Error::new(ErrorKind::Io, format!("cannot write the manifest of point {}", self.point))
                .because(error)
        };
        let mut value = serde_json::to_value(self).map_err(unwritable)?;
        let digest = digest_of(&value);
        if let Value::Object(fields) = &mut value {
            fields.insert(DIGEST.to_owned(), Value::String(digest));
        }
        let mut bytes = serde_json::to_vec_pretty(&value).map_err(unwritable)?;
        bytes.push(b'\n');
        match bytes.len() as u64 {
            len if len > LEN_MAX => Err(self.too_long(len)),
            _ => Ok(bytes),
        }
    }

    /// Says that nobody could read the manifest, and what makes it so long.
    fn too_long(&self, len: u64) -> Error {
        let text = format!("the manifest of point {} would have {len} bytes", self.point);
        let error = Error::new(ErrorKind::Usage, text)
            .because(format!("at most {LEN_MAX} are read, so the point could never be restored"));
        let files = self.machine.as_ref().map_or(0, |machine| machine.files.len());
        match files > self.disks.len() {
            true => error.advise(format!(
                "it names {files} files of the machine: leave --with-host-config out"
            )),
            false => error.advise(format!(
                "it names {} disks with all their layers: leave some out (--exclude), or merge \
                 layers (virsh blockcommit)",
                self.disks.len()
            )),
        }
    }

    /// Takes the bytes of the file at `path`, the manifest of `point` of `domain`.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] if they are not what was written, or belong elsewhere.
    pub(super) fn decode(
        bytes: &[u8],
        path: &Path,
        domain: &DomainName,
        point: PointId,
    ) -> Result<Self> {
        let damaged = |problem: String| {
            Error::new(ErrorKind::Damaged, format!("the manifest {} {problem}", path.display()))
        };
        let head: Head = serde_json::from_slice(bytes)
            .map_err(|error| damaged("is not JSON".to_owned()).because(error))?;
        if let Some(newer) = head.format.filter(|&found| found > u64::from(FORMAT)) {
            return Err(damaged(format!("has format {newer}, which this qdelta does not know"))
                .advise("use the qdelta that made it, or a newer one"));
        }
        let computed = blake3::hash(&without_digest(bytes)).to_hex();
        if head.digest.as_deref() != Some(computed.as_str()) {
            return Err(damaged("was changed: its digest is not that of its content".to_owned()));
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(|error| {
            damaged("has a field that makes no sense".to_owned()).because(error)
        })?;
        if manifest.domain != *domain || manifest.point != point {
            return Err(damaged(format!(
                "belongs to point {} of {}",
                manifest.point, manifest.domain
            )));
        }
        manifest.check().map_err(damaged)?;
        Ok(manifest)
    }

    /// What every manifest must fulfil, whoever wrote it; or what it does not.
    fn check(&self) -> Result<(), String> {
        if self.format != FORMAT {
            return Err(format!("has format {}", self.format));
        }
        if let Some(machine) = &self.machine {
            machine.check()?;
        }
        let memory = self.machine.as_ref().and_then(|machine| machine.memory.as_ref());
        if let Some(memory) = memory.filter(|memory| self.disk(&memory.disk).is_none()) {
            return Err(format!("has no disk {} with the guest's memory", memory.disk));
        }
        for (index, record) in self.disks.iter().enumerate() {
            let disk = &record.disk;
            if self.disks.iter().take(index).any(|other| other.disk == *disk) {
                return Err(format!("names disk {disk} twice"));
            }
            // The name follows from other fields, so a manifest can never point elsewhere.
            if record.archive != archive_name(self.point, record.kind, record.archive_id) {
                return Err(format!("names the archive {:?} for disk {disk}", record.archive));
            }
            if (record.kind == Kind::Full) != record.parent.is_none() {
                return Err(format!("gives disk {disk} a kind that its parent does not fit"));
            }
            // Also what makes every walk along parents end.
            if record.parent.as_ref().is_some_and(|parent| parent.point >= self.point) {
                return Err(format!("gives disk {disk} a parent that is not before it"));
            }
            if record.snapshot.is_some() != self.is_of_snapshots() {
                return Err(format!("mixes the state of disk {disk} with snapshots of others"));
            }
            // The next backup would compare the image with another state than the anchor's.
            if record.snapshot.is_some() && record.anchor.is_some() {
                return Err(format!("gives disk {disk} the anchor of another state"));
            }
            if let Err(error) = Geometry::new(record.virtual_size, record.block_size) {
                return Err(format!("gives disk {disk} an impossible geometry: {error}"));
            }
        }
        for replaced in &self.replaces {
            let name = &replaced.archive;
            // What it names is removed: nothing but an archive of that very point, and none that stays.
            let is_of_point = parse_archive_name(name).is_some_and(|it| it.0 == replaced.point);
            let stays = self.disks.iter().any(|record| record.archive == *name);
            if !is_of_point || stays || replaced.point > self.point {
                return Err(format!("says that the archive {name:?} was replaced"));
            }
        }
        Ok(())
    }
}

/// The time, in whole milliseconds.
fn now_ms() -> Option<Timestamp> {
    Timestamp::from_millisecond(crate::base::clock::now().ok()?.as_millisecond()).ok()
}

/// The point whose manifest has this file name.
pub(super) fn parse_file_name(name: &str) -> Option<PointId> {
    name.strip_suffix(".json")?.parse().ok()
}

/// The name of the file that says that a point had archives and no manifest before somebody began to bring the
/// manifest back.
pub(super) fn lost_name(point: PointId) -> String {
    format!("{point}.lost")
}

/// The point of a file that is called so.
pub(super) fn parse_lost_name(name: &str) -> Option<PointId> {
    name.strip_suffix(".lost")?.parse().ok()
}

/// The file name of an archive. Names sort by time. The beginning of the archive's id lets two
/// archives of one point lie side by side while one takes the other's place.
pub(super) fn archive_name(point: PointId, kind: Kind, id: ArchiveId) -> String {
    format!("{point}-{kind}-{}.qdelta", id.short())
}

/// Point and kind of the archive that has this file name.
pub(super) fn parse_archive_name(name: &str) -> Option<(PointId, Kind)> {
    let mut parts = name.strip_suffix(".qdelta")?.split('-');
    let (point, kind, id) = (parts.next()?, parts.next()?, parts.next()?);
    let is_id = id.len() == 8 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let is_whole = is_id && parts.next().is_none();
    is_whole.then(|| Some((point.parse().ok()?, kind.parse().ok()?)))?
}

/// What is looked at before the digest vouches for the rest.
#[derive(Deserialize)]
struct Head {
    format: Option<u64>,
    digest: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A manifest as the first version wrote it.
    const GOLDEN: &str = r#"{
  "consistency": "offline",
  "created": "2026-11-22T15:38:23.412Z",
  "digest": "fe39919d8eca90b301b7a743c211b6d9b6e909b48352f569b2445581100f02da",
  "disks": [
    {
      "archive": "20261122T153823.412Z-incremental-01010101.qdelta",
      "archive_id": "01010101010101010101010101010101",
      "block_size": 65536,
      "bytes_changed": 3,
      "bytes_read": 2,
      "bytes_written": 5,
      "disk": "vda",
      "image": {
        "format": "qcow2",
        "layers": [
          {
            "format": "qcow2",
            "path": "/images/größe.qcow2",
            "virtual_size": 1073741824
          }
        ],
        "path": "/images/größe.qcow2"
      },
      "kind": "incremental",
      "parent": {
        "disk": "vda",
        "domain": "web",
        "point": "20261121T153823.412Z",
        "root": "0404040404040404040404040404040404040404040404040404040404040404"
      },
      "payload_bytes": 4,
      "root": "0303030303030303030303030303030303030303030303030303030303030303",
      "tracker": "scan",
      "virtual_size": 1073741824
    }
  ],
  "domain": "web",
  "elapsed_ms": 1,
  "format": 1,
  "generator": "qdelta 0.1.0",
  "point": "20261122T153823.412Z"
}
"#;

    #[test]
    fn the_first_manifest_is_still_read_and_written() {
        let (domain, point) = ("web".parse().unwrap(), "20261122T153823.412Z".parse().unwrap());
        let path = Path::new("golden.json");
        let manifest = Manifest::decode(GOLDEN.as_bytes(), path, &domain, point).unwrap();
        assert_eq!(manifest.disks[0].image.path, Path::new("/images/größe.qcow2"));
        assert_eq!(String::from_utf8(manifest.encode().unwrap()).unwrap(), GOLDEN);
        // Layout and order do not matter to the digest.
        let value: Value = serde_json::from_str(GOLDEN).unwrap();
        let compact = serde_json::to_vec(&value).unwrap();
        assert_eq!(Manifest::decode(&compact, path, &domain, point).unwrap(), manifest);
    }

    #[test]
    fn an_archive_name_says_point_and_kind() {
        let point = "20261122T153823.412Z".parse().unwrap();
        let id = ArchiveId([0x0a; 16]);
        for kind in Kind::ALL {
            let name = archive_name(point, *kind, id);
            assert_eq!(parse_archive_name(&name), Some((point, *kind)));
        }
        assert_eq!(
            archive_name(point, Kind::Full, id),
            "20261122T153823.412Z-full-0a0a0a0a.qdelta"
        );
        for other in [
            "20261122T153823.412Z.qdelta",
            "20261122T153823.412Z-full.qdelta",
            "20261122T153823.412Z-full-0a0a0a.qdelta",
            "20261122T153823.412Z-full-0A0A0A0A.qdelta",
            "20261122T153823.412Z-full-0a0a0a0a0a.qdelta",
            "20261122T153823.412Z-full-0a0a0a0a-x.qdelta",
            "20261122T153823.412Z-0a0a0a0a-full.qdelta",
            "x-full-0a0a0a0a.qdelta",
            "readme",
            ".qdelta",
        ] {
            assert_eq!(parse_archive_name(other), None, "{other}");
        }
    }
}
