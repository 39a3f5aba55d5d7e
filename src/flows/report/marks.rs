//! What became of the marks of a point.

use serde::{Deserialize, Serialize};

use crate::vault::repository::{DomainName, Marks, Pin, PointId, Removal};

/// A point whose marks were changed, or were so already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MarkReport {
    /// The guest.
    pub domain: String,
    /// The point, of all its disks.
    pub point: PointId,
    /// Its pins.
    pub pins: Vec<Pin>,
    /// It is removed; none if it is not.
    pub removed: Option<Removal>,
}

impl MarkReport {
    /// What the marks of a point are now.
    pub fn new(domain: &DomainName, point: PointId, marks: Marks) -> Self {
        let Marks { pins, removed } = marks;
        Self { domain: domain.to_string(), point, pins, removed }
    }
}
