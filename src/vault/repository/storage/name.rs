//! What a file or folder of a repository is called.

use std::fmt;

/// The name of a file or folder, from the top of the repository on, its parts separated by slashes.
/// None of its parts leads anywhere but to the folder or file of that name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

impl Name {
    /// The repository itself.
    pub fn top() -> Self {
        Self(String::new())
    }

    /// Whether it is the repository itself.
    pub fn is_top(&self) -> bool {
        self.0.is_empty()
    }

    /// What is called `part` in this folder. A part that no file can be called, such as `..`, is
    /// written in another way: it leads to nothing, and nowhere else.
    #[must_use]
    pub fn join(&self, part: &str) -> Self {
        let part = match part {
            "" | "." | ".." => part.replace('.', "%2E") + "%",
            _ => part.replace('/', "%2F").replace('\0', "%00"),
        };
        match self.0.is_empty() {
            true => Self(part),
            false => Self(format!("{}/{part}", self.0)),
        }
    }

    /// The folder that it is in; none for the top.
    pub fn folder(&self) -> Option<Self> {
        let (folder, _) = self.0.rsplit_once('/').unwrap_or_default();
        (!self.0.is_empty()).then(|| Self(folder.to_owned()))
    }

    /// Its last part; nothing for the top.
    pub fn last(&self) -> &str {
        self.0.rsplit_once('/').map_or(&self.0, |(_, last)| last)
    }

    /// The whole name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_part_leads_elsewhere() {
        let folder = Name::top().join("web");
        for bad in ["", ".", "..", "../x", "/etc", "a/../../b", "a\0b", "/"] {
            let name = folder.join(bad);
            assert_eq!(name.folder().as_ref(), Some(&folder), "{bad:?} became {name}");
            assert!(!["", ".", ".."].contains(&name.last()) && !name.as_str().contains('\0'));
        }
    }

    #[test]
    fn a_name_has_a_folder_and_a_last_part() {
        let name = Name::top().join("web").join("points").join("x.json");
        assert_eq!((name.as_str(), name.last()), ("web/points/x.json", "x.json"));
        let above: Vec<_> =
            std::iter::successors(name.folder(), Name::folder).map(|it| it.to_string()).collect();
        assert_eq!(above, ["web/points", "web", ""]);
    }
}
