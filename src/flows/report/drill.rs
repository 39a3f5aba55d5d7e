//! What drills have shown.

use serde::{Deserialize, Serialize};

use super::Failure;
use crate::base::warning::Warning;
use crate::vault::repository::{Climb, DomainName, Drill};

/// What drills of some guests have shown.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DrillsReport {
    /// The guests, in the order in which they were drilled.
    pub guests: Vec<DrillReport>,
    /// Whether somebody asked to stop before the end.
    pub interrupted: bool,
    /// How long it took.
    pub seconds: f64,
}

/// What a drill of a guest has shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DrillReport {
    /// The guest.
    pub domain: DomainName,
    /// The drill; none if it could not begin.
    pub drill: Option<Drill>,
    /// Why it could not begin.
    pub error: Option<Failure>,
    /// What the admin should know.
    pub warnings: Vec<Warning>,
}

impl DrillsReport {
    /// What all of them come to: a drill that could not begin has failed.
    pub fn result(&self) -> Climb {
        let results = self.guests.iter().map(|guest| match &guest.drill {
            Some(drill) => drill.result,
            None => Climb::Failed,
        });
        results.max().unwrap_or(Climb::NotTried)
    }
}

/// What this host remembers of drills.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DrillHistory {
    /// The guests, also those that were never drilled.
    pub guests: Vec<GuestDrills>,
}

/// What this host remembers of the drills of a guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GuestDrills {
    /// The guest.
    pub domain: DomainName,
    /// Its drills, the oldest first.
    pub drills: Vec<Drill>,
}
