//! The machine around the disks: the files that describe a domain and hold its firmware's state.
//!
//! Each is stored once, compressed, as `machine/<digest>.zst` in the domain's folder, named after
//! the BLAKE3 digest of its content: what has not changed since the point before takes no space.
//! Manifests name the digests. A file gets its name before any manifest that names it does, so a
//! manifest never names what is not there; what a killed backup leaves is content without a use, and
//! the next one may find a use for it.

use std::collections::BTreeSet;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tempfile::SpooledTempFile;

use super::catalog::DomainReading;
use super::manifest::Manifest;
use super::names::{DiskId, DiskName, DomainName, MACHINE};
use super::point::PointId;
use super::storage::{Name, Publish};
use super::{Catalog, Clearance, DomainLock, Repository};
use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::io::ReadAt;
use crate::formats::archive::Digest;

/// The longest file of a machine that is stored, in bytes: the variables of an ARM guest's firmware
/// have 64 MiB.
pub const MACHINE_FILE_MAX: u64 = 256 << 20;

/// The most files that a machine has: a manifest that names more is damaged, and a backup takes no more.
pub const MACHINE_FILES_MAX: usize = 20_000;

/// A compressed file stays in memory up to this many bytes before it is stored; what is longer goes to
/// a temporary file without a name.
const PACKED_MEMORY_MAX: usize = 8 << 20;

/// How much of a file is in memory at a time, in bytes.
const PIECE: usize = 64 << 10;

/// The zstd level of these files: they are small.
const LEVEL: i32 = 9;

/// The machine at a recovery point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineRecord {
    /// The domain's name, as libvirt has it.
    pub name: String,
    /// Its UUID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Why its filesystems were not frozen although they should have been; none if it was as asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fell_back: Option<String>,
    /// How long the guest's filesystems can have been frozen, in milliseconds; none if they were not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeze_ms: Option<u64>,
    /// How many filesystems were frozen; none if none were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen_filesystems: Option<u32>,
    /// libvirt starts it with the host.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub autostart: bool,
    /// Its memory, which libvirt had saved; none if the point does not resume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryRecord>,
    /// Its files.
    pub files: Vec<MachineFile>,
    /// The disks that are not in the point, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<LeftOut>,
    /// What of the machine could not be taken, and why: a sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
}

/// The disk of a point that is the file of the guest's memory.
pub const MEMORY: &str = "saved-memory";

/// A guest's memory, as libvirt has saved it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryRecord {
    /// The disk of the point that is the file's bytes.
    pub disk: DiskName,
    /// Where the file was.
    #[serde(with = "crate::base::json")]
    pub path: PathBuf,
    /// Its mode: the lowest nine bits.
    pub mode: u32,
}

/// A file of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineFile {
    /// What it is for.
    pub role: Role,
    /// Where it was.
    #[serde(with = "crate::base::json")]
    pub path: PathBuf,
    /// Its length in bytes.
    pub length: u64,
    /// Its mode: the lowest nine bits.
    pub mode: u32,
    /// BLAKE3 of its content: also what it is called in the repository.
    #[serde(with = "crate::base::json::text")]
    pub digest: Digest,
}

/// What a file of a machine is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The XML that defines the domain.
    DomainXml,
    /// The XML of the running domain.
    LiveXml,
    /// The variables of its firmware.
    Nvram,
    /// The state of its TPM.
    Tpm,
    /// A file that it starts from and only reads: a kernel, an initrd, an ACPI table.
    BootFile,
    /// Another file that it keeps its state in.
    GuestState,
    /// The configuration of the host.
    HostConfig,
}

/// A disk that is not in the point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Its target, such as `vdb`.
    pub disk: String,
    /// Why, as a sentence without its subject.
    pub reason: String,
}

impl MachineRecord {
    /// The first file of a role.
    pub fn file(&self, role: Role) -> Option<&MachineFile> {
        self.files.iter().find(|file| file.role == role)
    }

    /// Whether a record can have this UUID: it becomes the name of a folder.
    pub fn is_uuid(uuid: &str) -> bool {
        let fits = |c: u8| c == b'-' || c.is_ascii_hexdigit();
        (1..=36).contains(&uuid.len()) && uuid.bytes().all(fits)
    }

    /// What every record must fulfil, or what it does not.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.files.len() > MACHINE_FILES_MAX {
            return Err(format!("names {} files of the machine", self.files.len()));
        }
        if let Some(uuid) = self.uuid.as_ref().filter(|uuid| !Self::is_uuid(uuid)) {
            return Err(format!("gives the machine the UUID {uuid:?}"));
        }
        match self.files.iter().find(|file| file.length > MACHINE_FILE_MAX) {
            Some(file) => Err(format!("gives {} {} bytes", file.path.display(), file.length)),
            None => Ok(()),
        }
    }
}

impl DomainReading {
    /// The machines of the points whose manifest can be read and has one, the oldest first.
    pub(super) fn machines(&self) -> impl DoubleEndedIterator<Item = (PointId, &MachineRecord)> {
        self.good().filter_map(|manifest| Some((manifest.point, manifest.machine.as_ref()?)))
    }
}

impl Catalog {
    /// The machines of a domain's points, oldest first: of those whose manifest can be read and has
    /// one.
    pub fn machines(&self, domain: &DomainName) -> Vec<(PointId, MachineRecord)> {
        let domain = self.domain(domain);
        domain.machines().map(|(point, machine)| (point, machine.clone())).collect()
    }

    /// The machines of some points of a domain, as far as they have one.
    pub fn machines_at(
        &self,
        domain: &DomainName,
        points: &BTreeSet<PointId>,
    ) -> Vec<(PointId, MachineRecord)> {
        let domain = self.domain(domain);
        let machine = |point: &PointId| {
            let manifest = domain.manifest(*point)?.as_ref().ok()?;
            Some((*point, manifest.machine.clone()?))
        };
        points.iter().filter_map(machine).collect()
    }

    /// The machine of the latest point of a domain that has one.
    pub fn last_machine(&self, domain: &DomainName) -> Option<(PointId, MachineRecord)> {
        let domain = self.domain(domain);
        domain.machines().next_back().map(|(point, machine)| (point, machine.clone()))
    }

    /// The disks of the latest point of a domain that has a machine: none if there is no such point.
    pub fn disks_of_machine(&self, domain: &DomainName) -> Vec<DiskName> {
        let domain = self.domain(domain);
        let latest = domain.good().rfind(|manifest| manifest.machine.is_some());
        let disks = latest.into_iter().flat_map(Manifest::guest_disks);
        disks.map(|record| record.disk.clone()).collect()
    }

    /// The machine that a disk belonged to at a point: of a point that has none, such as a
    /// safety point, the one of the latest point before it that has both.
    pub fn machine_at(&self, disk: &DiskId, point: PointId) -> Option<MachineRecord> {
        let domain = self.domain(&disk.domain);
        let mut until = domain.good_until(point).rev();
        let found = until.find(|it| it.machine.is_some() && it.disk(&disk.disk).is_some());
        found.and_then(|manifest| manifest.machine.clone())
    }
}

impl Repository {
    /// Stores what `content` gives, unless it is there already. Gives its digest and length.
    ///
    /// # Errors
    /// It is longer than [`MACHINE_FILE_MAX`], can't be read, or can't be stored.
    pub fn store_machine_file(
        &self,
        lock: &DomainLock,
        mut content: impl Read + Seek,
        shown: &Path,
    ) -> Result<(Digest, u64)> {
        // What a file is called follows from all of its content, and most have not changed: to compress a kernel only
        // to find that it is there would take half a second of each night.
        let (digest, length) = read_all(&mut content, shown, |_| Ok(()))?;
        let named = |digest| self.machine_dir(lock.domain()).join(&file_name(digest));
        match copy(self, &named(digest), digest, length, &mut io::sink()) {
            Ok(()) => return Ok((digest, length)),
            // A host that can open no file believes what lies under that name.
            Err(error) if error.kind() == ErrorKind::Key => return Ok((digest, length)),
            Err(_) => {}
        }
        content.rewind().map_err(|error| Error::io("read", shown, error))?;
        let mut packed = SpooledTempFile::new(PACKED_MEMORY_MAX);
        // It may have changed meanwhile.
        let (digest, length) = compress(content, &mut packed, shown)?;
        let name = named(digest);
        let mut staged = match self.storage.stage(&name) {
            // Nobody else writes while the domain is locked: whoever did was killed.
            Err(error) if error.kind() == ErrorKind::Exists => {
                self.storage.discard(&name)?;
                self.storage.stage(&name)?
            }
            staged => staged?,
        };
        let failed = |error| Error::io("write", &self.describe(&name), error);
        packed.rewind().map_err(failed)?;
        io::copy(&mut packed, &mut staged).map_err(failed)?;
        staged.seal()?;
        // One that is there is damaged. What replaces it serves the older points as well.
        staged.publish(Publish::Replace).map_err(|unpublished| unpublished.error)?;
        Ok((digest, length))
    }

    /// The digests of the files of a domain's machines that are there, sound or not.
    ///
    /// # Errors
    /// The folder can't be listed.
    pub(crate) fn machine_digests(&self, domain: &DomainName) -> Result<BTreeSet<String>> {
        let names = self.folder(&self.machine_dir(domain))?.names.into_iter();
        Ok(names.filter_map(|name| name.strip_suffix(".zst").map(str::to_owned)).collect())
    }

    /// The content of a file of a machine, proved by its digest.
    ///
    /// # Errors
    /// `Damaged` if it is not what was stored, or gone.
    pub fn machine_file(&self, domain: &DomainName, file: &MachineFile) -> Result<Vec<u8>> {
        let mut content = Vec::new();
        self.copy_machine_file(domain, file, &mut content)?;
        Ok(content)
    }

    /// Writes the content of a file of a machine to `out`. It is proved only when all of it was
    /// written: throw it away after an error.
    ///
    /// # Errors
    /// As [`Self::machine_file`]; it can't be written.
    pub fn copy_machine_file(
        &self,
        domain: &DomainName,
        file: &MachineFile,
        out: &mut dyn Write,
    ) -> Result<()> {
        let name = self.machine_dir(domain).join(&file_name(file.digest));
        let path = self.describe(&name);
        let error = match copy(self, &name, file.digest, file.length, out) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let text =
                    format!("{} is missing: it held {}", path.display(), file.path.display());
                Error::new(ErrorKind::Damaged, text)
            }
            Err(error) if error.kind() == ErrorKind::Damaged => error,
            done => return done,
        };
        Err(error.advise(format!(
            "qdelta verify tells which points need it; their disks come back all the same: qdelta \
             restore {domain}/DISK@POINT OUTPUT"
        )))
    }

    /// Removes the machine files of a domain that no manifest names; gives how many there were.
    ///
    /// # Errors
    /// A manifest can't be read: what it names is not known. A file can't be removed. Where lists may lag, what this host
    /// has not seen unnamed for long stays for a later run.
    pub(crate) fn remove_unnamed_machine_files(
        &self,
        lock: &DomainLock,
        _clearance: &Clearance,
        cancel: &Cancel,
    ) -> Result<u64> {
        let domain = lock.domain();
        let folder = self.machine_dir(domain);
        let is_file = |name: &String| {
            name.strip_suffix(".zst").is_some_and(|digest| digest.parse::<Digest>().is_ok())
        };
        let mut unnamed: BTreeSet<String> =
            self.folder(&folder)?.names.into_iter().filter(is_file).collect();
        if unnamed.is_empty() {
            self.unnamed_for_long(domain, unnamed)?;
            return Ok(0);
        }
        let list = self.catalog().whole_list(domain, cancel)?;
        for (_, manifest) in list.manifests() {
            let machine = &manifest.as_ref().map_err(Error::clone)?.machine;
            for file in machine.iter().flat_map(|machine| &machine.files) {
                unnamed.remove(&file_name(file.digest));
            }
        }
        let unnamed: Vec<String> = self.unnamed_for_long(domain, unnamed)?.into_iter().collect();
        match unnamed.is_empty() {
            true => Ok(0),
            false => self.remove_for_good(lock, &list, &folder, &unnamed),
        }
    }

    /// What to call a stored file of a machine where people read of it.
    pub fn machine_file_path(&self, domain: &DomainName, file: &MachineFile) -> PathBuf {
        self.describe(&self.machine_file_name(domain, file))
    }

    /// The name of a stored file of a machine.
    pub(super) fn machine_file_name(&self, domain: &DomainName, file: &MachineFile) -> Name {
        self.machine_dir(domain).join(&file_name(file.digest))
    }

    pub(super) fn machine_dir(&self, domain: &DomainName) -> Name {
        self.domain_dir(domain).join(MACHINE)
    }
}

fn file_name(digest: Digest) -> String {
    format!("{digest}.zst")
}

/// Compresses `content` into `packed`; gives digest and length of what was read.
fn compress(content: impl Read, packed: impl Write, shown: &Path) -> Result<(Digest, u64)> {
    let failed = |error| Error::io("compress", shown, error);
    let mut encoder = zstd::stream::write::Encoder::new(packed, LEVEL).map_err(failed)?;
    let read = read_all(content, shown, |part| encoder.write_all(part).map_err(failed))?;
    encoder.finish().map_err(failed)?;
    Ok(read)
}

/// Reads a file of a machine, a piece at a time; gives digest and length.
fn read_all(
    content: impl Read,
    shown: &Path,
    mut each: impl FnMut(&[u8]) -> Result<()>,
) -> Result<(Digest, u64)> {
    let mut content = content.take(MACHINE_FILE_MAX + 1);
    let mut hasher = blake3::Hasher::new();
    let mut length = 0;
    let mut bytes = vec![0; PIECE];
    loop {
        let len = match content.read(&mut bytes) {
            Ok(0) => break,
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Error::io("read", shown, error)),
        };
        let part = bytes.get(..len).unwrap_or_default();
        hasher.update(part);
        each(part)?;
        length += len as u64;
    }
    if length > MACHINE_FILE_MAX {
        let text = format!("{} is longer than {MACHINE_FILE_MAX} bytes", shown.display());
        return Err(Error::new(ErrorKind::Usage, text));
    }
    Ok((Digest(*hasher.finalize().as_bytes()), length))
}

/// A stored file, read from its beginning.
struct Stored {
    store: Arc<dyn ReadAt>,
    offset: u64,
}

impl Read for Stored {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = self.store.read_at(bytes, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

/// Copies a stored file of `length` bytes that has this digest, a piece at a time.
fn copy(
    repository: &Repository,
    name: &Name,
    digest: Digest,
    length: u64,
    out: &mut dyn Write,
) -> Result<()> {
    let path = repository.describe(name);
    let damaged =
        |what: String| Error::new(ErrorKind::Damaged, format!("{} {what}", path.display()));
    if length > MACHINE_FILE_MAX {
        return Err(damaged(format!("is to have {length} bytes, which makes no sense")));
    }
    let unpacking = |error| damaged("can't be decompressed".to_owned()).because(error);
    let stored = Stored { store: repository.storage().open(name)?, offset: 0 };
    let decoder = zstd::stream::read::Decoder::new(stored).map_err(unpacking)?;
    let mut decoder = decoder.take(length + 1);
    let mut hasher = blake3::Hasher::new();
    let mut copied = 0;
    let mut bytes = vec![0; PIECE];
    loop {
        let len = match decoder.read(&mut bytes) {
            Ok(0) => break,
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(unpacking(error)),
        };
        let part = bytes.get(..len).unwrap_or_default();
        hasher.update(part);
        out.write_all(part).map_err(|error| Error::io("write what is in", &path, error))?;
        copied += len as u64;
    }
    if copied != length || Digest(*hasher.finalize().as_bytes()) != digest {
        return Err(damaged("is not what was stored".to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Cursor;

    use super::*;
    use crate::vault::repository::storage::Wait;
    use crate::vault::repository::tests::fresh;

    fn file(digest: Digest, length: u64) -> MachineFile {
        MachineFile { role: Role::Nvram, path: "/x".into(), length, mode: 0o600, digest }
    }

    /// The commands that are printed after a restore put the TPM's state into a folder of this name.
    #[test]
    fn a_uuid_leads_nowhere_else() {
        let machine = |uuid: &str| MachineRecord {
            name: "web".to_owned(),
            uuid: Some(uuid.to_owned()),
            fell_back: None,
            freeze_ms: None,
            frozen_filesystems: None,
            autostart: false,
            memory: None,
            files: Vec::new(),
            left_out: Vec::new(),
            missing: Vec::new(),
        };
        machine("c7a5fdbd-edaf-9455-926a-d65c16db1809").check().unwrap();
        for bad in ["", "/etc", "..", "c7a5fdbd/../..", "c7a5fdbd-edaf-9455-926a-d65c16db18090"] {
            assert!(machine(bad).check().unwrap_err().contains("UUID"), "{bad}");
        }
    }

    /// Content that can be read once.
    struct Once<'a>(&'a [u8]);

    impl Read for Once<'_> {
        fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
            self.0.read(bytes)
        }
    }

    impl Seek for Once<'_> {
        fn seek(&mut self, _to: io::SeekFrom) -> io::Result<u64> {
            Err(io::Error::other("read twice"))
        }
    }

    #[test]
    fn what_is_stored_comes_back_and_is_stored_once() {
        let (_dir, repository) = fresh();
        let domain: DomainName = "web".parse().unwrap();
        let lock = repository.lock(&domain, Wait::UNHEARD).unwrap();
        let shown = Path::new("/var/nvram");
        for content in [&b""[..], &[0xff; 600 << 10], b"<domain/>"] {
            let (digest, length) =
                repository.store_machine_file(&lock, Cursor::new(content), shown).unwrap();
            let again = repository.store_machine_file(&lock, Cursor::new(content), shown).unwrap();
            assert_eq!(again, (digest, length));
            // Each night a kernel was compressed, while the guest was slowed, only to find that it is there.
            let again = repository.store_machine_file(&lock, Once(content), shown).unwrap();
            assert_eq!(again, (digest, length));
            let file = file(digest, length);
            assert_eq!(repository.machine_file(&domain, &file).unwrap(), content);
        }
        let dir = repository.describe(&repository.machine_dir(&domain));
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 3, "no partial file, and each once");
        assert!(repository.catalog().survey().unwrap().disks.is_empty(), "the folder is no disk");
        repository.clean(&lock).unwrap();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 3);
    }

    #[test]
    fn damage_is_seen_and_the_next_backup_replaces_it() {
        let (_dir, repository) = fresh();
        let domain: DomainName = "web".parse().unwrap();
        let lock = repository.lock(&domain, Wait::UNHEARD).unwrap();
        let content = vec![7; 100_000];
        let (digest, length) =
            repository.store_machine_file(&lock, Cursor::new(&content), Path::new("/x")).unwrap();
        let path = repository.machine_file_path(&domain, &file(digest, length));
        let good = fs::read(&path).unwrap();
        let look = |length| repository.machine_file(&domain, &file(digest, length));
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            fs::write(&path, bad).unwrap();
            // zstd need not look at every bit of its header; the digest vouches for the content.
            assert!(
                look(length).map_or_else(|e| e.kind() == ErrorKind::Damaged, |it| it == content)
            );
        }
        for (bad, length) in [(&good[..good.len() - 1], length), (&good, length - 1), (&[], length)]
        {
            fs::write(&path, bad).unwrap();
            assert_eq!(look(length).unwrap_err().kind(), ErrorKind::Damaged);
        }
        assert_eq!(look(u64::MAX).unwrap_err().kind(), ErrorKind::Damaged);
        repository.store_machine_file(&lock, Cursor::new(&content), Path::new("/x")).unwrap();
        assert_eq!(look(length).unwrap(), content);
        fs::remove_file(&path).unwrap();
        let gone = look(length).unwrap_err();
        assert_eq!(gone.kind(), ErrorKind::Damaged);
        assert!(gone.chain().contains("is missing") && gone.advice().is_some(), "{}", gone.chain());
    }

    /// The program dies at each step of storing a file: the next one stores it all the same.
    #[test]
    fn a_killed_store_is_no_obstacle() {
        use crate::vault::repository::storage::durable::faults::{Mode, arm, disarm};
        for mode in [Mode::Kill, Mode::Fail] {
            for step in 0.. {
                let (_dir, repository) = fresh();
                let lock = repository.lock(&"web".parse().unwrap(), Wait::UNHEARD).unwrap();
                arm(step, mode);
                let stored =
                    repository.store_machine_file(&lock, Cursor::new(b"content"), Path::new("/x"));
                let taken = disarm();
                let (digest, length) = repository
                    .store_machine_file(&lock, Cursor::new(b"content"), Path::new("/x"))
                    .unwrap();
                let found = repository.machine_file(lock.domain(), &file(digest, length)).unwrap();
                assert_eq!(found, b"content");
                if taken <= step {
                    stored.unwrap();
                    break;
                }
            }
        }
    }
}
