//! The flow that backs up one guest after the other. A guest that fails does not stop the others.

mod exclude;

use super::guest::{GuestOptions, GuestRequest, run_guest};
use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::{Observer, OfGuest};
use crate::flows::report::{Failure, GuestOutcome, GuestsReport};
use crate::vault::repository::Repository;

/// Which guests are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Guests {
    /// Every guest that libvirt has.
    All,
    /// Those that libvirt calls so.
    Named(Vec<String>),
}

/// Which guests to back up, and how.
#[derive(Debug, Clone)]
pub struct GuestsRequest {
    /// Which.
    pub which: Guests,
    /// Guests to leave out.
    pub excluded_guests: Vec<String>,
    /// Disks to leave out, as `GUEST/TARGET`; if one guest is named, `TARGET` will do.
    pub excluded_disks: Vec<String>,
    /// How to back up each.
    pub how: GuestOptions,
}

/// Backs up guests in the order in which they are named, or by their names. `told` hears of each when its
/// turn is over: there may be many, and nobody should wait for the last to hear of the first.
///
/// # Errors
/// There is no guest, or what is to be left out makes no sense: nothing is backed up then. A guest that
/// fails is no error here but an outcome.
pub fn run_guests(
    repository: &Repository,
    request: &GuestsRequest,
    observer: &dyn Observer,
    cancel: &Cancel,
    told: &mut dyn FnMut(&GuestOutcome),
) -> Result<GuestsReport> {
    let libvirt = &request.how.libvirt;
    let mut names = match &request.which {
        Guests::All => libvirt.list()?.names,
        Guests::Named(names) => names.clone(),
    };
    if names.is_empty() {
        let text = format!("libvirt has no domain in {}", libvirt.config.display());
        return Err(Error::new(ErrorKind::NotFound, text));
    }
    exclude::guests(&mut names, &request.excluded_guests)?;
    let excluded = exclude::disks(libvirt, &names, request)?;
    let mut outcomes = Vec::new();
    for name in names {
        let guest = GuestRequest {
            excluded: excluded.get(&name).cloned().unwrap_or_default(),
            domain: name,
            how: request.how.clone(),
        };
        let outcome = back_up(repository, &guest, observer, cancel);
        told(&outcome);
        outcomes.push(outcome);
        if cancel.is_cancelled() {
            break;
        }
    }
    Ok(GuestsReport::new(outcomes, request.excluded_guests.clone()))
}

fn back_up(
    repository: &Repository,
    guest: &GuestRequest,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> GuestOutcome {
    let name = &guest.domain;
    match run_guest(repository, guest, &OfGuest::new(observer, name), cancel) {
        Ok(report) => GuestOutcome::made(report),
        Err(error) => {
            let error = error.within(format!("{name} was not backed up"));
            GuestOutcome::failed(name, Failure::from(&error))
        }
    }
}
