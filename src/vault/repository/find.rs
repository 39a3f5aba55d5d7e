//! What people call a disk or a guest, and which one they mean.

use std::fmt;
use std::str::FromStr;

use super::Catalog;
use super::names::{DiskId, DiskName, DiskSpec, DomainName};
use super::point::Selector;
use super::storage::Name;
use crate::base::error::{Error, ErrorKind, Result};

/// The longest name of a guest that is looked for, in bytes.
const NAME_LEN_MAX: usize = 1024;

/// A guest or a disk as people name it: `GUEST` or `GUEST/DISK`. The guest is called as in the
/// repository or as libvirt has it, or by its UUID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    guest: String,
    disk: Option<DiskName>,
}

impl FromStr for Wanted {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (guest, disk) = match text.split_once('/') {
            Some((guest, disk)) => (guest, Some(disk.parse()?)),
            None => (text, None),
        };
        let is_name = !guest.is_empty()
            && guest.len() <= NAME_LEN_MAX
            && !matches!(guest, "." | "..")
            && !guest.chars().any(char::is_control);
        if !is_name {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("{text:?} names no guest and no disk"),
            )
            .advise("say GUEST or GUEST/DISK; qdelta points lists them"));
        }
        Ok(Self { guest: guest.to_owned(), disk })
    }
}

impl Wanted {
    /// The disk, if one of the guest's was named.
    pub fn disk(&self) -> Option<&DiskName> {
        self.disk.as_ref()
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.disk {
            Some(disk) => write!(f, "{}/{disk}", self.guest),
            None => f.write_str(&self.guest),
        }
    }
}

/// A disk or a guest, and perhaps a point of it: `DISK` or `DISK@POINT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskAt {
    /// The disk or the guest.
    pub disk: Wanted,
    /// The point, if one was named.
    pub point: Option<Selector>,
}

impl FromStr for DiskAt {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        // The last one: libvirt's names may have such a sign, too.
        let (disk, point) = match text.rsplit_once('@') {
            Some((disk, point)) => (disk, Some(point.parse()?)),
            None => (text, None),
        };
        if let Some((_, other)) = disk.rsplit_once('@')
            && other.parse::<Selector>().is_ok()
        {
            return Err(Error::new(ErrorKind::Usage, format!("{text:?} names two points"))
                .advise("say DISK@POINT"));
        }
        Ok(Self { disk: disk.parse()?, point })
    }
}

impl Catalog {
    /// The disks that are meant by a name: one, or all of a guest.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is none, [`ErrorKind::Usage`] if several guests are called
    /// so.
    pub fn find_disks(&self, wanted: &Wanted) -> Result<Vec<DiskId>> {
        let domain = match wanted.guest.parse::<DomainName>() {
            // A disk that is named as the repository names it needs only its own files.
            Ok(domain) if self.has_domain(&domain)? => Some(domain),
            _ => self.guest_called(&wanted.guest)?,
        };
        let mut disks = match (&domain, &wanted.disk) {
            // The archives of a disk are proof enough that it is there.
            (Some(domain), Some(disk)) if self.domain(domain).holds_archives(disk) => {
                vec![DiskId { domain: domain.clone(), disk: disk.clone() }]
            }
            (Some(domain), _) => self.disks_of(domain)?,
            (None, _) => Vec::new(),
        };
        disks.retain(|id| wanted.disk.as_ref().is_none_or(|disk| id.disk == *disk));
        if disks.is_empty() {
            return Err(self.nothing_called("disk", &wanted.to_string()));
        }
        Ok(disks)
    }

    /// The only disk that is meant by a name.
    ///
    /// # Errors
    /// As [`Self::find_disks`]; [`ErrorKind::Usage`] if a guest has several and none was named.
    pub fn find_one(&self, wanted: &Wanted) -> Result<DiskId> {
        let disks = self.find_disks(wanted)?;
        match disks.as_slice() {
            [only] => Ok(only.clone()),
            several => {
                let names: Vec<_> = several.iter().map(ToString::to_string).collect();
                let text = format!("{wanted} has several disks: {}", names.join(", "));
                Err(Error::new(ErrorKind::Usage, text).advise("name the disk as well: DOMAIN/DISK"))
            }
        }
    }

    /// The domain that is meant by a name: its own in the repository, the one that libvirt has for
    /// it, or its UUID.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is none, [`ErrorKind::Usage`] if there are several.
    pub fn find_domain(&self, name: &str) -> Result<DomainName> {
        if let Ok(domain) = name.parse::<DomainName>()
            && self.has_domain(&domain)?
        {
            return Ok(domain);
        }
        self.guest_called(name)?.ok_or_else(|| self.nothing_called("domain", name))
    }

    /// Whether there is a domain of this very name: a filesystem that folds case opens the folder of
    /// another one, too. A root that can't be listed hides no domain.
    fn has_domain(&self, domain: &DomainName) -> Result<bool> {
        let is_listed = |names: Vec<String>| names.iter().any(|name| name == domain.as_str());
        // What can't be looked at is there; why it can't be is told when it is used.
        let repository = self.repository();
        let is_folder = || repository.may_be_folder(&repository.domain_dir(domain));
        if !repository.storage().may_fold_case() {
            // Where there are points, there is a folder, and their list is needed anyway.
            return Ok(!self.domain(domain).points().is_empty() || is_folder());
        }
        Ok(is_folder() && repository.names_in(&Name::top()).map_or(true, is_listed))
    }

    /// The domain of a guest that libvirt calls so, or that has this UUID.
    fn guest_called(&self, name: &str) -> Result<Option<DomainName>> {
        let uuid = hex_digits(name);
        let mut found = Vec::new();
        for domain in self.repository().domains()? {
            // One folder that can't be read is no reason not to find what is in another.
            let reading = self.domain(&domain);
            let mut machines = reading.machines().map(|(_, machine)| machine);
            let is_meant = machines.any(|machine| {
                let its = || machine.uuid.as_deref().and_then(hex_digits);
                machine.name == name || uuid.is_some() && its() == uuid
            });
            if is_meant {
                found.push(domain);
            }
        }
        match found.as_slice() {
            [] => Ok(None),
            [only] => Ok(Some(only.clone())),
            several => {
                let names: Vec<_> = several.iter().map(DomainName::as_str).collect();
                let text = format!("{name:?} may be any of {}", names.join(", "));
                Err(Error::new(ErrorKind::Usage, text).advise("give one of these names"))
            }
        }
    }

    /// Says that nothing is called so, and what nearly is.
    fn nothing_called(&self, what: &str, name: &str) -> Error {
        let mut known = Vec::new();
        for domain in self.repository().domains().unwrap_or_default() {
            known.extend(self.disks_of(&domain).unwrap_or_default().iter().map(DiskId::to_string));
            known.extend(self.last_machine(&domain).map(|(_, machine)| machine.name));
            known.push(domain.to_string());
        }
        let text =
            format!("no {what} {name} in the repository {}", self.repository().path().display());
        let error = Error::new(ErrorKind::NotFound, text);
        let error = match self.strangers() {
            Some(strangers) => error.because(strangers),
            None => error,
        };
        // Its folder is there: a lock was taken in it, or all that it held is gone.
        if known.iter().any(|other| other == name) {
            return error.advise(
                "its folder is there, and no disk in it; qdelta points lists what there is",
            );
        }
        error.advise(match nearest(name, &known) {
            Some(near) => format!("did you mean {near}? qdelta points lists what there is"),
            None => "qdelta points lists the guests and disks that are there".to_owned(),
        })
    }

    /// The disk that is meant by a name of the repository: `domain/disk`, or a domain that has only
    /// one.
    ///
    /// # Errors
    /// As [`Self::find_one`].
    pub fn find_disk(&self, spec: &DiskSpec) -> Result<DiskId> {
        self.find_one(&spec.to_string().parse()?)
    }
}

/// The 32 digits of a UUID, with or without its dashes.
fn hex_digits(text: &str) -> Option<String> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    let is_uuid = digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_uuid.then(|| digits.to_ascii_lowercase())
}

/// What of `known` may have been meant by `name`.
fn nearest<'a>(name: &str, known: &'a [String]) -> Option<&'a str> {
    // Whoever types a long name wrong by three characters still means it.
    let most = (name.chars().count() / 3).clamp(1, 3);
    let lower = name.to_lowercase();
    let costs = known.iter().map(|other| (distance(&lower, &other.to_lowercase()), other));
    let (cost, other) = costs.min_by_key(|(cost, other)| (*cost, other.len()))?;
    let begins = || known.iter().find(|other| other.to_lowercase().starts_with(&lower));
    match cost <= most {
        true => Some(other),
        false => begins().map(String::as_str),
    }
}

/// How many characters must be changed, added or left out to make one text of another. Two that
/// changed places count as one.
fn distance(one: &str, other: &str) -> usize {
    let (one, other): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
    // Names are short; what is not is no near miss.
    if one.len() > 200 || other.len() > 200 {
        return usize::MAX;
    }
    let mut before = Vec::new();
    let mut last: Vec<usize> = (0..=other.len()).collect();
    for (row, left) in one.iter().enumerate() {
        let mut line = vec![row + 1];
        for (column, right) in other.iter().enumerate() {
            let at = |line: &[usize], index: usize| line.get(index).copied().unwrap_or(usize::MAX);
            let changed = at(&last, column) + usize::from(left != right);
            let mut cost = changed.min(at(&last, column + 1) + 1).min(at(&line, column) + 1);
            let swapped = row > 0
                && column > 0
                && one.get(row - 1) == Some(right)
                && other.get(column - 1) == Some(left);
            if swapped {
                cost = cost.min(at(&before, column - 1) + 1);
            }
            line.push(cost);
        }
        before = std::mem::replace(&mut last, line);
    }
    last.last().copied().unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_miss_is_told_and_a_far_one_is_not() {
        let known = ["web01/vda", "web01", "Windows 2019", "db"].map(str::to_owned);
        for (typed, meant) in [
            ("wbe01", Some("web01")),
            ("WEB01", Some("web01")),
            ("windows 2019", Some("Windows 2019")),
            ("web01/vdb", Some("web01/vda")),
            ("Win", Some("Windows 2019")),
            ("dbb", Some("db")),
            ("mail", None),
            ("x", None),
        ] {
            assert_eq!(nearest(typed, &known), meant, "{typed}");
        }
        assert_eq!(distance("abcd", "abdc"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(nearest("web", &[]), None);
    }

    #[test]
    fn a_guest_may_be_called_as_libvirt_calls_it_and_nothing_leaves_the_repository() {
        for good in ["web", "web/vda", "Windows 2019", "Windows 2019/vda", "größe", "a@b"] {
            assert_eq!(good.parse::<Wanted>().unwrap().to_string(), good);
        }
        for bad in ["", "/", "..", "../x", "a/b/c", "a/..", "a/points", "/etc", "a\nb", "a/"] {
            assert!(bad.parse::<Wanted>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_disk_and_a_point() {
        let both: DiskAt = "vm/vda@2026-11-22 15:38".parse().unwrap();
        assert_eq!(both.disk.to_string(), "vm/vda");
        assert!(matches!(both.point, Some(Selector::At(_))));
        let disk: DiskAt = "vm".parse().unwrap();
        assert_eq!(disk.point, None);
        for bad in ["", "@latest", "vm@", "vm@soon", "vm@latest@latest", "../vm@latest"] {
            assert!(bad.parse::<DiskAt>().is_err(), "{bad:?}");
        }
    }
}
