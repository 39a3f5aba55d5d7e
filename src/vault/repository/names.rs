//! What a disk may be called: the names are folders of the repository, so nothing that could
//! leave it, hide in it or be taken for an option is one.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::config::CONFIG;
use super::storage::Name;
use crate::base::error::{Error, ErrorKind, Result};

/// The longest name of a domain or disk, in bytes.
const NAME_LEN_MAX: usize = 128;

/// The folder of a domain's manifests; no disk can be called so.
pub(super) const POINTS: &str = "points";

/// The folder of the files of a domain's machine; no disk can be called so.
pub(super) const MACHINE: &str = "machine";

/// The disk of a domain that has only one and gave it no name.
const ONLY_DISK: &str = "disk";

/// Says why `name` can't be a folder of the repository, or that it can.
fn check(what: &str, name: &str) -> Result<()> {
    let problem = if name.is_empty() {
        "is empty".to_owned()
    } else if name.len() > NAME_LEN_MAX {
        format!("is longer than {NAME_LEN_MAX} bytes")
    } else if name.starts_with(['.', '-']) {
        "starts with a dot or a dash".to_owned()
    } else if let Some(bad) =
        name.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')))
    {
        format!("contains {bad:?}")
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::Usage, format!("{name:?} is no name for a {what}: it {problem}"))
        .advise("use letters, digits, dot, dash and underscore, and neither dot nor dash in front"))
}

/// Implements what the two kinds of names share.
macro_rules! name {
    ($type:ident, $what:literal) => {
        impl $type {
            /// The name itself.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $type {
            type Error = Error;

            fn try_from(name: String) -> Result<Self> {
                name.parse()
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

/// The name of a domain: a virtual machine, or a single image on its own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DomainName(String);

name!(DomainName, "domain");

impl DomainName {
    /// The folder of the domain.
    pub(super) fn folder(&self) -> Name {
        Name::top().join(&self.0)
    }
}

impl FromStr for DomainName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        check("domain", name)?;
        if name == CONFIG {
            let text =
                format!("{name:?} is no name for a domain: a repository keeps its settings there");
            return Err(Error::new(ErrorKind::Usage, text));
        }
        Ok(Self(name.to_owned()))
    }
}

/// The name of a disk within its domain.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DiskName(String);

name!(DiskName, "disk");

impl Default for DiskName {
    /// `disk`, the name of a domain's only disk.
    fn default() -> Self {
        Self(ONLY_DISK.to_owned())
    }
}

impl FromStr for DiskName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        check("disk", name)?;
        let kept = match name {
            POINTS => "manifests",
            MACHINE => "machine",
            _ => return Ok(Self(name.to_owned())),
        };
        Err(Error::new(
            ErrorKind::Usage,
            format!("{name:?} is no name for a disk: a domain keeps its {kept} there"),
        ))
    }
}

/// A disk of the repository: `domain/disk`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiskId {
    /// The domain it belongs to.
    pub domain: DomainName,
    /// Its name in that domain.
    pub disk: DiskName,
}

impl fmt::Display for DiskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}", self.domain, self.disk))
    }
}

impl FromStr for DiskId {
    type Err = Error;

    /// Takes `domain/disk` alone; [`DiskSpec`] takes what people type.
    fn from_str(text: &str) -> Result<Self> {
        let spec: DiskSpec = text.parse()?;
        let disk = spec.disk.ok_or_else(|| {
            Error::new(ErrorKind::Usage, format!("{text:?} names a domain and no disk"))
                .advise("write it as DOMAIN/DISK")
        })?;
        Ok(Self { domain: spec.domain, disk })
    }
}

/// A disk as people name it: `domain/disk`, or `domain` alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskSpec {
    /// The domain.
    pub domain: DomainName,
    /// The disk, if one was named.
    pub disk: Option<DiskName>,
}

impl DiskSpec {
    /// The disk that a backup under this name makes: the one named, or the domain's only one.
    pub fn or_only_disk(self) -> DiskId {
        DiskId { domain: self.domain, disk: self.disk.unwrap_or_default() }
    }

    /// The name for the disk of an image that was given none: its file name without the last
    /// extension.
    ///
    /// # Errors
    /// The file name has characters that no name may have.
    pub fn for_image(image: &Path) -> Result<Self> {
        let stem = image.file_stem().map(|stem| stem.to_string_lossy()).unwrap_or_default();
        let domain = DomainName::from_str(&stem).map_err(|error| {
            error
                .within(format!("cannot name a disk after {}", image.display()))
                .advise("say what to call it: --disk NAME")
        })?;
        Ok(Self { domain, disk: None })
    }

    /// The disk of an export of this name, which may be DOMAIN/DISK.
    ///
    /// # Errors
    /// The export has no name, or one with characters that no name may have.
    pub fn for_export(export: &str) -> Result<Self> {
        Self::from_str(export).map_err(|error| {
            error
                .within(format!("cannot name a disk after the export '{}'", export.escape_debug()))
                .advise("say what to call it: --disk NAME")
        })
    }
}

impl From<DiskId> for DiskSpec {
    fn from(id: DiskId) -> Self {
        Self { domain: id.domain, disk: Some(id.disk) }
    }
}

impl fmt::Display for DiskSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.disk {
            Some(disk) => f.pad(&format!("{}/{disk}", self.domain)),
            None => self.domain.fmt(f),
        }
    }
}

impl FromStr for DiskSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (domain, disk) = match text.split_once('/') {
            Some((domain, disk)) => (domain, Some(disk.parse()?)),
            None => (text, None),
        };
        Ok(Self { domain: domain.parse()?, disk })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_the_repository() {
        for bad in [
            "",
            ".",
            "..",
            "../x",
            "../x/y",
            "a/..",
            "a/../b",
            "/etc",
            "a//b",
            "a/b/c",
            "-rf",
            ".hidden",
            "a/.hidden",
            "a b",
            "a\0b",
            "a\nb",
            "ä",
            "a/points",
            "a/machine",
            "vm@1",
            "a\\b",
            "a/",
        ] {
            assert!(bad.parse::<DiskSpec>().is_err(), "{bad:?} was taken for a disk");
        }
        assert!("x".repeat(129).parse::<DomainName>().is_err());
        assert!("x".repeat(128).parse::<DomainName>().is_ok());
    }

    #[test]
    fn a_domain_may_stand_for_its_only_disk() {
        let spec: DiskSpec = "vm-1".parse().unwrap();
        assert_eq!(spec.disk, None);
        assert_eq!(spec.or_only_disk().to_string(), "vm-1/disk");
        let id: DiskId = "vm-1/vda".parse().unwrap();
        assert_eq!(id.to_string(), "vm-1/vda");
        assert!("vm-1".parse::<DiskId>().is_err());
    }

    #[test]
    fn an_image_gives_its_disk_a_name() {
        let name = |path: &str| DiskSpec::for_image(Path::new(path)).map(|spec| spec.to_string());
        assert_eq!(name("/images/web.qcow2").unwrap(), "web");
        assert_eq!(name("web.2026.qcow2").unwrap(), "web.2026");
        assert_eq!(name("/dev/vg/web").unwrap(), "web");
        let error = name("/images/my disk.qcow2").unwrap_err();
        assert_eq!(error.advice(), Some("say what to call it: --disk NAME"));
    }
}
