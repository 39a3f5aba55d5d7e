//! Chains of points as a small tree in front of a list.
//!
//! A root's children hang below it, each the first of a run; whoever has one child goes on in the
//! same column, so a chain of a hundred increments is as wide as one of two.

/// Branches deeper than this are drawn as if they were of this depth: there is no room.
const DEPTH_MAX: usize = 3;

/// What the tree is drawn with.
pub struct Lines {
    fork: &'static str,
    last: &'static str,
    pass: &'static str,
    none: &'static str,
}

/// Lines for terminals that show them.
const UNICODE: Lines = Lines { fork: "├─ ", last: "└─ ", pass: "│  ", none: "   " };
/// Lines for logs and mail of a job without a locale.
const ASCII: Lines = Lines { fork: "|- ", last: "`- ", pass: "|  ", none: "   " };

impl Lines {
    /// The lines that the user's locale can show.
    pub fn for_locale() -> Self {
        let set = ["LC_ALL", "LC_CTYPE", "LANG"]
            .iter()
            .filter_map(|name| std::env::var(name).ok())
            .find(|value| !value.is_empty())
            .unwrap_or_default()
            .to_ascii_lowercase();
        if set.contains("utf-8") || set.contains("utf8") { UNICODE } else { ASCII }
    }
}

/// A node that is still to be drawn.
struct Open {
    node: usize,
    /// What stands in front of it.
    lead: String,
    /// What stands in front of what follows below it.
    below: String,
    depth: usize,
    is_root: bool,
}

/// Every node once, in the order to show them, with what to draw in front of it. `parents` says
/// for each node which it hangs on: one before it, or none.
pub fn draw(parents: &[Option<usize>], lines: &Lines) -> Vec<(usize, String)> {
    let parent_of = |node: usize| parents.get(node).copied().flatten().filter(|&up| up < node);
    let mut children = vec![Vec::new(); parents.len()];
    for node in 0..parents.len() {
        if let Some(siblings) = parent_of(node).and_then(|parent| children.get_mut(parent)) {
            siblings.push(node);
        }
    }
    let root =
        |node| Open { node, lead: String::new(), below: String::new(), depth: 0, is_root: true };
    let roots = (0..parents.len()).rev().filter(|&node| parent_of(node).is_none());
    let mut open: Vec<Open> = roots.map(root).collect();
    let mut drawn = Vec::with_capacity(parents.len());
    while let Some(Open { node, lead, below, depth, is_root }) = open.pop() {
        drawn.push((node, lead));
        let Some(below_it) = children.get(node) else { continue };
        let forks = (is_root || below_it.len() > 1) && depth < DEPTH_MAX;
        for (from_last, &child) in below_it.iter().rev().enumerate() {
            let (mark, rest) = match (forks, from_last) {
                (false, _) => ("", ""),
                (true, 0) => (lines.last, lines.none),
                (true, _) => (lines.fork, lines.pass),
            };
            open.push(Open {
                node: child,
                lead: format!("{below}{mark}"),
                below: format!("{below}{rest}"),
                depth: depth + usize::from(forks),
                is_root: false,
            });
        }
    }
    drawn
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(parents: &[Option<usize>]) -> Vec<String> {
        let tree = draw(parents, &UNICODE);
        assert_eq!(tree.len(), parents.len(), "every node once");
        tree.into_iter().map(|(node, lead)| format!("{lead}{node}")).collect()
    }

    #[test]
    fn increments_go_on_in_one_column() {
        assert_eq!(
            drawn(&[None, Some(0), Some(1), Some(2), None]),
            ["0", "└─ 1", "   2", "   3", "4"]
        );
    }

    #[test]
    fn differentials_fork_at_their_full() {
        assert_eq!(
            drawn(&[None, Some(0), Some(1), Some(0), Some(3), Some(0)]),
            ["0", "├─ 1", "│  2", "├─ 3", "│  4", "└─ 5"]
        );
    }

    #[test]
    fn deep_forks_do_not_run_off_the_screen() {
        // Every node forks: each has a leaf and a child that forks again.
        let mut parents = vec![None];
        for node in 0..200 {
            parents.extend([Some(2 * node), Some(2 * node)]);
        }
        let widest = draw(&parents, &UNICODE).iter().map(|(_, lead)| lead.chars().count()).max();
        assert_eq!(widest, Some(3 * DEPTH_MAX));
    }

    #[test]
    fn nonsense_draws_every_node_and_ends() {
        assert_eq!(drawn(&[Some(0), Some(5), Some(1)]), ["0", "1", "└─ 2"]);
        assert!(drawn(&[]).is_empty());
    }
}
