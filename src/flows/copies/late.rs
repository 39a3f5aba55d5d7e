//! Points that came into the source of a copy after later ones. Whoever is root there can slip them in, and rules
//! that keep one point of a day would keep them in the place of the true one.

use std::collections::BTreeSet;

use crate::base::observer::Observer;
use crate::base::warning::{Code, Warning};
use crate::vault::repository::{DomainName, PointId, Repository};

/// So many points are named.
const NAMED_MAX: usize = 5;

/// Warns of points that the source did not have when this host copied the guest last, though it had later ones.
pub(super) fn warn(
    from: &Repository,
    domain: &DomainName,
    points: &BTreeSet<PointId>,
    observer: &dyn Observer,
) {
    let Some(before) = from.points_seen(domain) else { return };
    let Some(newest) = before.last() else { return };
    let late: Vec<PointId> =
        points.range(..newest).filter(|it| !before.contains(it)).copied().collect();
    if late.is_empty() {
        return;
    }
    let named: Vec<String> = late.iter().take(NAMED_MAX).map(PointId::to_string).collect();
    let more = match late.len() - named.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let text = format!(
        "points of {domain} came into {} that are older than what it had when this host copied it last: {}{more}",
        from.path().display(),
        named.join(", ")
    );
    observer.warn(Warning::new(Code::CameLate, text).advise(
        "if no copy and no repair brought them there, somebody has slipped them in: rules that keep one point of a \
         day or a month may keep them and remove the true ones. Look at them before the copy is pruned",
    ));
}
