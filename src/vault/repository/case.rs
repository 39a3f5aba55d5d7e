//! Names that differ only in case, on filesystems for which they are one: exFAT, FAT, NTFS, SMB, and
//! folders of ext4 and F2FS that were made so.

use super::names::{DiskName, DomainName, MACHINE, POINTS};
use super::storage::Name;
use super::{CONFIG, Repository};
use crate::base::error::{Error, ErrorKind, Result};

/// Fails if the folder of a domain, or of one of its disks, would be another one's.
pub(super) fn check<'a>(
    repository: &Repository,
    domain: &DomainName,
    disks: impl IntoIterator<Item = &'a DiskName>,
) -> Result<()> {
    if !repository.storage().may_fold_case() {
        return Ok(());
    }
    let dir = repository.domain_dir(domain);
    let domains = repository.names_in(&Name::top())?;
    check_name(repository, &Name::top(), &domains, domain.as_str())?;
    let there = Vec::from_iter(repository.folder(&dir)?.names);
    let folds = folds_case(repository)?;
    // The names of the other disks will be there, too, by the time that one is made.
    let mut taken = vec![POINTS, MACHINE];
    for disk in disks {
        let disk = disk.as_str();
        check_name(repository, &dir, &there, disk)?;
        if let Some(other) = taken.iter().find(|other| folds && other.eq_ignore_ascii_case(disk)) {
            return Err(refused(repository, &dir, disk, other));
        }
        taken.push(disk);
    }
    Ok(())
}

/// Fails if `name` leads to something in `folder` that is not called so. `there` are the names in it.
fn check_name(repository: &Repository, folder: &Name, there: &[String], name: &str) -> Result<()> {
    if there.iter().any(|it| it == name) || !repository.is_there(&folder.join(name))? {
        return Ok(());
    }
    let other = there.iter().find(|it| it.eq_ignore_ascii_case(name));
    match other {
        Some(other) => Err(refused(repository, folder, name, other)),
        // It was made since the folder was listed.
        None => Ok(()),
    }
}

/// Whether one name leads to another in the repository's own folder.
fn folds_case(repository: &Repository) -> Result<bool> {
    let other = CONFIG.to_ascii_uppercase();
    let top = Name::top();
    Ok(repository.is_there(&top.join(&other))? && !repository.names_in(&top)?.contains(&other))
}

fn refused(repository: &Repository, folder: &Name, name: &str, other: &str) -> Error {
    let folder = repository.describe(folder);
    let text = format!("{name} can't be told from {other} in {}", folder.display());
    Error::new(ErrorKind::Usage, text)
        .because("on this filesystem they are one name, in capitals or not")
        .advise("rename one of them (--disk names an image), or keep them in other repositories")
}
