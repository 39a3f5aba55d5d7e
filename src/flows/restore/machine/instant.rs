//! A guest that runs on its point at once: overlays on disks that a server gives out, the units of that
//! server, and what to type until all is home.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::{Disk, InstantRequest, MachineRestore};
use crate::base::cancel::Cancel;
use crate::base::clock;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::{Event, Observer};
use crate::base::printable::shell_word;
use crate::base::warning::{Code, Warning};
use crate::disk::create::Plan;
use crate::disk::files::paths::absolute;
use crate::disk::files::room;
use crate::flows::report::{InstantReport, ServedDisk};
use crate::formats::nbd::unix_uri;
use crate::guest::libvirt::Served;
use crate::vault::repository::storage::Wait;
use crate::vault::repository::storage::{S3, host_name};
use crate::vault::repository::{Pin, PointId};

/// The longest path that a socket can have, in bytes.
const SOCKET_PATH_MAX: usize = 107;
/// The longest reason of a pin, in characters.
const REASON_MAX: usize = 200;
/// How fast disks are brought home, in MiB/s: the guest's own reads come first.
const HOME_RATE: u32 = 200;
/// Where an admin puts units.
const UNIT_FOLDER: &str = "/etc/systemd/system";

/// The server of the disks.
pub(super) struct Service {
    /// The name of its units, without their endings.
    unit: String,
    /// Where it listens.
    pub socket: PathBuf,
    /// The words that start it, where something else has made the socket.
    words: Vec<String>,
    /// The options that open the repository: where it is, and its key.
    options: Vec<String>,
    /// Where the points are, if that is a folder.
    folder: Option<PathBuf>,
    /// The account whose programs may connect.
    user: Option<String>,
}

/// What pinning a point came to.
pub(super) enum Pinned {
    /// It is pinned by this holder.
    Now(String),
    /// Somebody writes to the guest's points, or nobody can.
    Not,
}

impl Service {
    /// The server that a restored guest needs.
    ///
    /// # Errors
    /// `Usage` if the socket's path is too long or no text.
    pub fn new(job: &MachineRestore<'_>, request: &InstantRequest) -> Result<Self> {
        let libvirt = &job.request.libvirt;
        let socket = match &request.socket {
            Some(socket) => absolute(socket),
            None => {
                absolute(&libvirt.run).join("qdelta").join(format!("{}.sock", unique_stem(job)))
            }
        };
        let text = socket.to_str().unwrap_or_default();
        if text.is_empty() || text.len() > SOCKET_PATH_MAX || text.contains(char::is_control) {
            let text = format!("{} can't be the path of a socket", socket.display());
            return Err(Error::new(ErrorKind::Usage, text)
                .advise(format!("give --socket PATH, of at most {SOCKET_PATH_MAX} bytes")));
        }
        let repository = job.catalog.repository().place();
        let program = request.program.to_string_lossy().into_owned();
        let place = repository.to_string_lossy().into_owned();
        let mut options = vec!["--repo".to_owned(), place];
        options.extend_from_slice(&request.key);
        let words = [vec![program, "serve".to_owned()], options.clone()].concat();
        let unit = format!("qdelta-serve-{}", unique_stem(job));
        let folder = Some(repository).filter(|place| !S3::is_address(place));
        Ok(Self { unit, socket, words, options, folder, user: libvirt.qemu_user() })
    }

    /// A disk as the server gives it out.
    pub fn served(&self, export: String) -> Served {
        Served { export, socket: self.socket.clone() }
    }

    /// The paths of its units in a folder.
    pub fn units(&self, folder: &Path) -> [PathBuf; 2] {
        ["socket", "service"].map(|kind| folder.join(format!("{}.{kind}", self.unit)))
    }

    /// The texts of its units, in the same order.
    pub fn unit_texts(&self, job: &MachineRestore<'_>, point: PointId) -> [String; 2] {
        let what = escaped_for_unit(&format!("Disks of {} from the backup {point}", job.name));
        let head =
            "# Made by qdelta restore --instant; docs/instant-recovery.md says how it is used.\n";
        let user = match &self.user {
            Some(user) => format!("SocketUser={}\n", escaped_for_unit(user)),
            None => "# libvirt's account for QEMU is not known here: root's programs alone may connect.\n"
                .to_owned(),
        };
        let socket = format!(
            "{head}[Unit]\nDescription={what} (socket)\n\n\
             [Socket]\nListenStream={}\nSocketMode=0600\n{user}RemoveOnStop=yes\n\
             # A guest that asks again and again while the backup is away must not end this socket.\n\
             TriggerLimitIntervalSec=0\n\n\
             [Install]\nWantedBy=sockets.target\n",
            escaped_for_unit(&self.socket.to_string_lossy()),
        );
        let words = self.words.iter().map(String::as_str);
        let exports = job.disks.iter().filter_map(|disk| disk.served.as_ref());
        let words = words.chain(exports.map(|served| served.export.as_str()));
        let words: Vec<String> = words.map(word_of_unit).collect();
        let place = match &self.folder {
            Some(folder) => {
                format!("RequiresMountsFor={}\n", word_of_unit(&folder.to_string_lossy()))
            }
            None => "Wants=network-online.target\nAfter=network-online.target\n\
                     # The store's credentials: what your shell has in variables is not here. Give them by systemctl edit.\n"
                .to_owned(),
        };
        let service = format!(
            "{head}[Unit]\nDescription={what}\n{place}\
             # When the host goes down, guests end before their disks do.\n\
             Before=libvirt-guests.service\n\
             StartLimitIntervalSec=0\n\n\
             [Service]\nExecStart={}\nRestart=on-failure\nRestartSec=5\n",
            words.join(" "),
        );
        [socket, service]
    }

    /// What to type before the guest is defined.
    pub fn install(&self, job: &MachineRestore<'_>) -> Vec<String> {
        let mut commands: Vec<String> = self
            .units(&job.folder)
            .iter()
            .map(|unit| format!("cp {} {UNIT_FOLDER}/", shell_word(&unit.to_string_lossy())))
            .collect();
        commands.push("systemctl daemon-reload".to_owned());
        commands.push(format!("systemctl enable --now {}.socket", self.unit));
        commands
    }

    /// What to type when nothing is read from the server any more.
    fn uninstall(&self) -> Vec<String> {
        let units = [format!("{}.socket", self.unit), format!("{}.service", self.unit)];
        vec![
            format!("systemctl disable --now {}", units.join(" ")),
            format!("rm {}", units.map(|unit| format!("{UNIT_FOLDER}/{unit}")).join(" ")),
            "systemctl daemon-reload".to_owned(),
        ]
    }

    /// What starts the server without systemd.
    fn by_hand(&self, disks: &[Disk]) -> String {
        let exports = disks.iter().filter_map(|disk| disk.served.as_ref());
        let socket = self.socket.to_string_lossy();
        let words = self.words.iter().map(String::as_str).chain(["--socket", &socket]);
        let words = words.chain(exports.map(|served| served.export.as_str()));
        words.map(shell_word).collect::<Vec<_>>().join(" ")
    }

    /// What takes this recovery's pin away.
    fn unpin(&self, job: &MachineRestore<'_>, point: PointId, pinned: &Pinned) -> Option<String> {
        let Pinned::Now(holder) = pinned else { return None };
        let point = shell_word(&format!("{}@{point}", job.domain));
        let pairs = self.options.chunks(2).flat_map(|pair| match pair {
            [option, value] => vec![option.clone(), shell_word(value)],
            rest => rest.to_vec(),
        });
        let options: Vec<String> = pairs.collect();
        Some(format!("qdelta unpin {} {point} --holder {holder}", options.join(" ")))
    }

    /// What becomes of the guest: the report.
    pub fn report(
        &self,
        job: &MachineRestore<'_>,
        point: PointId,
        pinned: &Pinned,
    ) -> InstantReport {
        let disks = job.disks.iter().filter_map(|disk| {
            Some(ServedDisk {
                target: disk.target.clone(),
                overlay: disk.path.clone(),
                export: disk.served.as_ref()?.export.clone(),
                virtual_size: disk.chain.geometry().virtual_size(),
            })
        });
        let home = |disk: &Disk| {
            let (name, target) = (shell_word(&job.name), shell_word(&disk.target));
            format!("virsh blockpull {name} {target} --wait --verbose --bandwidth {HOME_RATE}")
        };
        let mut after = self.uninstall();
        after.extend(self.unpin(job, point, pinned));
        InstantReport {
            socket: self.socket.clone(),
            disks: disks.collect(),
            units: self.units(&job.folder).to_vec(),
            serve: self.by_hand(&job.disks),
            pinned: matches!(pinned, Pinned::Now(_)),
            home: job.disks.iter().map(home).collect(),
            after,
        }
    }
}

/// Whose the pin is: the same one for each try on this host, with this folder and guest, and another one for every
/// other recovery, so that none of them takes away the pin of another.
fn holder(job: &MachineRestore<'_>) -> String {
    let mut sum = crc32fast::Hasher::new();
    for part in [host_name().as_bytes(), job.folder.as_os_str().as_bytes(), job.name.as_bytes()] {
        sum.update(part);
        sum.update(&[0]);
    }
    format!("instant-{:08x}", sum.finalize())
}

/// Pins the point: while its server is idle or the host restarts, nothing else would keep it.
pub(super) fn pin(
    job: &MachineRestore<'_>,
    point: PointId,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Pinned {
    match try_pin(job, point, Wait::by(observer, cancel)) {
        Ok(holder) => Pinned::Now(holder),
        Err(error) => {
            // The guest matters more at this moment, and a repository that nobody can write to loses no
            // points.
            let warning = Warning::failed(Code::NotPinned, &error)
                .within("the point is not pinned, and qdelta prune may remove it under the guest")
                .advise(format!(
                    "qdelta pin {}@{point} --holder {}, as soon as it can be done",
                    job.domain,
                    holder(job)
                ));
            observer.event(&Event::Warning(&warning));
            Pinned::Not
        }
    }
}

fn try_pin(job: &MachineRestore<'_>, point: PointId, wait: Wait<'_>) -> Result<String> {
    let repository = job.catalog.repository();
    let at = clock::now()?;
    let lock = repository.lock(&job.domain, wait)?;
    let holder = holder(job);
    let reason = format!("instant recovery of {} in {}", job.name, job.folder.display());
    let reason = reason.chars().take(REASON_MAX).collect();
    repository.mark(&lock, point, |marks| {
        marks.pin(Pin { holder: Some(holder.clone()), at, reason: Some(reason), until: None });
        Ok(())
    })?;
    Ok(holder)
}

/// Takes the pin back after a failure.
pub(super) fn unpin_failed(
    job: &MachineRestore<'_>,
    point: PointId,
    pinned: &Pinned,
    wait: Wait<'_>,
) {
    let Pinned::Now(holder) = pinned else { return };
    let repository = job.catalog.repository();
    if let Ok(lock) = repository.lock(&job.domain, wait) {
        // A pin that stays too long costs room, and the list of points shows it.
        let _ = repository.mark(&lock, point, |marks| {
            marks.unpin(Some(holder));
            Ok(())
        });
    }
}

/// Warns if the disks, all of them home, would not fit the folder's filesystem.
pub(super) fn warn_of_room(job: &MachineRestore<'_>, observer: &dyn Observer) -> Result<()> {
    let mut needed = 0_u64;
    for disk in &job.disks {
        let plan = Plan::new(disk.chain.geometry(), disk.chain.nonzero()?)?;
        needed = needed.saturating_add(plan.data_bytes());
    }
    if let Some(free) = room::free(&job.folder).filter(|free| *free < needed) {
        let text = format!(
            "the disks have {needed} bytes, and the filesystem of {} has room for {free}: the guest can run \
             there, and its disks can't be brought home",
            job.folder.display()
        );
        let warning = Warning::new(Code::LittleRoom, text);
        let advice =
            "make room before blockpull, or bring them to another place by virsh blockcopy";
        observer.event(&Event::Warning(&warning.advise(advice)));
    }
    Ok(())
}

/// A name by which QEMU finds a served disk.
pub(super) fn uri(served: &Served) -> String {
    unix_uri(&served.export, &served.socket.to_string_lossy())
}

/// A word of a unit's command line.
fn word_of_unit(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:,@=".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    let word = word.replace('\\', "\\\\").replace('"', "\\\"").replace('$', "$$");
    format!("\"{}\"", escaped_for_unit(&word))
}

/// The beginning of names that all guests of the host share: where letters of the guest's name have no place in
/// it, a checksum of the whole name tells guests apart that would be called the same.
fn unique_stem(job: &MachineRestore<'_>) -> String {
    let stem = job.stem();
    match stem == job.name {
        true => stem,
        false => format!("{stem}-{:08x}", crc32fast::hash(job.name.as_bytes())),
    }
}

/// Text of a unit: systemd reads `%` as the beginning of a specifier.
fn escaped_for_unit(text: &str) -> String {
    text.replace('%', "%%")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_units_are_read_as_they_were_meant() {
        assert_eq!(word_of_unit("web/vda@2026"), "web/vda@2026");
        assert_eq!(word_of_unit("50% of $HOME"), "\"50%% of $$HOME\"");
        assert_eq!(word_of_unit("a\"b\\c"), "\"a\\\"b\\\\c\"");
        assert_eq!(word_of_unit(""), "\"\"");
    }
}
