//! Where this host keeps what belongs to itself: not to a repository, and not to a user's settings.

use std::path::{Path, PathBuf};

/// Where root keeps it.
const OF_ROOT: &str = "/var/lib/qdelta";

/// Where root keeps what the next start of the host may forget.
const SPARE_OF_ROOT: &str = "/run/qdelta";

/// The folder: the one that was named, the one that systemd made for the service, or the usual one.
/// None if a user has no home.
pub(super) fn folder(named: Option<&Path>) -> Option<PathBuf> {
    let is_root = rustix::process::geteuid().is_root();
    named.map(Path::to_owned).or_else(|| usual(|name| std::env::var(name).ok(), is_root))
}

fn usual(variable: impl Fn(&str) -> Option<String>, is_root: bool) -> Option<PathBuf> {
    let absolute = |path: PathBuf| path.is_absolute().then_some(path);
    let of = |name| absolute(PathBuf::from(variable(name)?));
    // A service may have several; the first is enough.
    let listed = variable("STATE_DIRECTORY").unwrap_or_default();
    let of_service = listed.split(':').next().map(PathBuf::from).and_then(absolute);
    let of_user = || Some(of("HOME")?.join(".local/state"));
    of_service.or_else(|| match is_root {
        true => Some(PathBuf::from(OF_ROOT)),
        false => Some(of("XDG_STATE_HOME").or_else(of_user)?.join("qdelta")),
    })
}

/// A folder that is there until the host starts anew: the one that systemd made for the service, or root's own.
pub(super) fn spare() -> Option<PathBuf> {
    let listed = std::env::var("RUNTIME_DIRECTORY").unwrap_or_default();
    let of_service = listed.split(':').next().map(PathBuf::from).filter(|path| path.is_absolute());
    let is_root = rustix::process::geteuid().is_root();
    of_service.or_else(|| is_root.then(|| PathBuf::from(SPARE_OF_ROOT)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_place_that_is_known_is_taken() {
        let with = |set: &[(&str, &str)], is_root| {
            let value = |name: &str| {
                set.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            };
            usual(value, is_root).map(|path| path.display().to_string())
        };
        let (service, xdg, home) =
            (("STATE_DIRECTORY", "/s/a:/s/b"), ("XDG_STATE_HOME", "/x"), ("HOME", "/h"));
        assert_eq!(with(&[service, xdg, home], false).unwrap(), "/s/a");
        assert_eq!(with(&[service], true).unwrap(), "/s/a");
        assert_eq!(with(&[xdg, home], true).unwrap(), OF_ROOT);
        assert_eq!(with(&[xdg, home], false).unwrap(), "/x/qdelta");
        assert_eq!(with(&[home], false).unwrap(), "/h/.local/state/qdelta");
        assert_eq!(
            with(&[("XDG_STATE_HOME", "relative"), home], false).unwrap(),
            "/h/.local/state/qdelta"
        );
        assert_eq!(with(&[], false), None);
        assert_eq!(folder(Some(Path::new("/named"))).unwrap(), Path::new("/named"));
    }
}
