//! The files of AWS's tools: `~/.aws/config` and `~/.aws/credentials`, as far as one profile of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::base::error::{Error, Result};
use crate::disk::io::Opener;

/// The longest of these files that is read, in bytes.
const LEN_MAX: u64 = 1 << 20;

/// The settings of a profile. Those below another one, as `addressing_style` below `s3`, have both
/// names, with a dot between them.
#[derive(Debug, Default)]
pub(super) struct Profile {
    settings: BTreeMap<String, String>,
    /// Whether one of the files has it.
    pub is_there: bool,
}

impl Profile {
    /// Reads a profile from the files that the environment names, or from those in the home folder.
    ///
    /// # Errors
    /// One of the files is there and can't be read.
    pub fn read(environment: &dyn Fn(&str) -> Option<String>, name: &str) -> Result<Self> {
        let text = |variable: &str, file: &str| -> Result<String> {
            let home =
                || environment("HOME").map(|home| PathBuf::from(home).join(".aws").join(file));
            let Some(path) = environment(variable).map(PathBuf::from).or_else(home) else {
                return Ok(String::new());
            };
            // How one says that there is none.
            if path == Path::new("/dev/null") {
                return Ok(String::new());
            }
            match Opener::READ.read_text(&path, LEN_MAX) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
                read => read.map_err(|error| Error::io("read", &path, error)),
            }
        };
        let config = text("AWS_CONFIG_FILE", "config")?;
        Ok(Self::parse(&config, &text("AWS_SHARED_CREDENTIALS_FILE", "credentials")?, name))
    }

    /// The settings of a profile in the texts of both files.
    pub fn parse(config: &str, credentials: &str, name: &str) -> Self {
        let mut profile = Self::default();
        let heads: &[String] = match name {
            "default" => &["default".to_owned(), "profile default".to_owned()],
            _ => &[format!("profile {name}")],
        };
        profile.take(config, heads);
        // Keys of the second file count more.
        profile.take(credentials, &[name.to_owned()]);
        profile
    }

    fn take(&mut self, text: &str, heads: &[String]) {
        let (mut is_ours, mut above) = (false, None::<String>);
        for line in text.lines() {
            let is_below = line.starts_with([' ', '\t']);
            let line = line.trim();
            if line.is_empty() || line.starts_with(['#', ';']) {
                continue;
            }
            if let Some(head) = line.strip_prefix('[') {
                let head = head.split(']').next().unwrap_or_default();
                let head = head.split_whitespace().collect::<Vec<_>>().join(" ");
                is_ours = heads.contains(&head);
                self.is_there |= is_ours;
                above = None;
                continue;
            }
            let Some((name, value)) = line.split_once('=').filter(|_| is_ours) else { continue };
            let (name, value) = (name.trim().to_ascii_lowercase(), value.trim().to_owned());
            let name = match (&above, is_below) {
                (Some(above), true) => format!("{above}.{name}"),
                _ => name,
            };
            if !is_below {
                above = value.is_empty().then(|| name.clone());
            }
            if !value.is_empty() {
                self.settings.insert(name, value);
            }
        }
    }

    /// A setting, if it is there.
    pub fn get(&self, name: &str) -> Option<String> {
        self.settings.get(name).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_read_out_of_both_files() {
        let config = "# mine\n[default]\nregion = a\n[profile  b]\nREGION=c\ns3 =\n    addressing_style = path\n\
             \tother = 1\ncredential_process = /bin/x --y=\"1 2\"\n[b]\nregion = wrong\n";
        let credentials = "[default]\naws_access_key_id = D\n[b]\n ; no\naws_access_key_id=E\n";
        let of = |name: &str| Profile::parse(config, credentials, name);
        let b = of("b");
        let found: Vec<_> =
            b.settings.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(
            found,
            [
                "aws_access_key_id=E",
                "credential_process=/bin/x --y=\"1 2\"",
                "region=c",
                "s3.addressing_style=path",
                "s3.other=1",
            ]
        );
        assert_eq!(of("default").get("aws_access_key_id").as_deref(), Some("D"));
        assert!(b.is_there && !of("nobody").is_there);
    }
}
