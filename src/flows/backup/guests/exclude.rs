//! What is left out of a backup of guests: what each word means, before anything is backed up. A word
//! that means nothing is an error: the disk that it was meant for would be backed up, or a guest's disk be
//! left out that nobody thought of.

use std::collections::{BTreeMap, BTreeSet};

use super::super::repository_name;
use super::{Guests, GuestsRequest};
use crate::base::error::{Error, ErrorKind, Result};
use crate::guest::libvirt::Libvirt;

/// The targets of the disks to leave out, by the guests' names.
pub(super) type Excluded = BTreeMap<String, Vec<String>>;

/// Leaves guests out.
///
/// # Errors
/// `Usage` for one that is not among them, and if none is left.
pub(super) fn guests(names: &mut Vec<String>, excluded: &[String]) -> Result<()> {
    for guest in excluded {
        if !names.contains(guest) {
            let text = format!("--exclude-guest {guest}: libvirt has no such guest");
            return Err(usage(text).advise("virsh list --all shows those that there are"));
        }
    }
    names.retain(|name| !excluded.contains(name));
    match names.is_empty() {
        true => Err(usage("every guest is excluded: nothing is left to be backed up".to_owned())),
        false => Ok(()),
    }
}

/// What `--exclude` means for each of these guests.
///
/// # Errors
/// `Usage` for what no guest has, or what any of several could have.
pub(super) fn disks(
    libvirt: &Libvirt,
    names: &[String],
    request: &GuestsRequest,
) -> Result<Excluded> {
    let mut excluded = Excluded::new();
    for word in &request.excluded_disks {
        let (guest, target) = match (word.rsplit_once('/'), names) {
            (Some((guest, target)), _) => (named(libvirt, names, guest), target),
            (None, [only]) if request.which != Guests::All => (Some(only), word.as_str()),
            (None, _) => {
                let text = format!("--exclude {word} does not say of which guest");
                return Err(usage(text).advise(format!("say --exclude GUEST/{word}")));
            }
        };
        let guest = guest.ok_or_else(|| {
            usage(format!("--exclude {word}: no such guest is to be backed up"))
                .advise("give its name as libvirt has it, and a target such as vdb: GUEST/TARGET")
        })?;
        // A guest that can't be looked at fails by itself.
        if let Some(targets) = targets(libvirt, guest)
            && !targets.contains(target)
        {
            let has: Vec<String> = targets.into_iter().collect();
            let text = format!("--exclude {word}: {guest} has no disk {target:?}");
            return Err(usage(text).advise(format!("it has {}", has.join(", "))));
        }
        excluded.entry(guest.clone()).or_default().push(target.to_owned());
    }
    Ok(excluded)
}

/// The guest that is called so by libvirt, or in the repository.
fn named<'a>(libvirt: &Libvirt, names: &'a [String], guest: &str) -> Option<&'a String> {
    let in_repository = |name: &&String| {
        let found = libvirt.find(name).and_then(|found| repository_name(&found.domain));
        found.is_ok_and(|name| name.as_str() == guest)
    };
    names.iter().find(|name| *name == guest).or_else(|| names.iter().find(in_repository))
}

/// The targets of a guest's disks: as it runs, and as it is defined.
fn targets(libvirt: &Libvirt, guest: &str) -> Option<BTreeSet<String>> {
    let found = libvirt.find(guest).ok()?;
    let disks = found.domain.disks.into_iter().chain(found.next_disks);
    Some(disks.map(|disk| disk.target).collect())
}

fn usage(text: String) -> Error {
    Error::new(ErrorKind::Usage, text)
}
