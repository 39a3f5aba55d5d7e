//! Where a repository in an object store is: `s3://BUCKET/PREFIX`, the options behind it, and what the
//! environment and the files of every S3 tool say about the rest.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::profile::Profile;
use super::sign;
use crate::base::error::{Error, ErrorKind, Result};

/// How an address of this kind begins.
pub(super) const SCHEME: &str = "s3://";

/// How long a request is tried again before it fails, where nothing else is said.
const PATIENCE: Duration = Duration::from_secs(180);
/// How long a lock holds that nobody renews, where nothing else is said.
const LEASE: Duration = Duration::from_secs(120);
/// How long a lock holds at least, and at most, in seconds: within less no store answers for sure.
const LEASES: std::ops::RangeInclusive<u64> = 10..=3600;
/// Within a part the length of what is uploaded must stay: 5 GiB is the most that any store takes.
const PART_SIZES: std::ops::RangeInclusive<u64> = 5..=5120;

/// The options that may stand behind an address.
const OPTIONS: &[&str] =
    &["endpoint", "region", "style", "ca", "profile", "part-size", "patience", "cache", "lease"];

/// Where copies of small things are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// In this user's folder for such.
    Usual,
    /// Nowhere.
    None,
    /// In this folder.
    Folder(PathBuf),
}

/// A bucket, a prefix in it, and how to get there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    /// As it was given.
    pub text: String,
    pub bucket: String,
    /// What stands before every key: nothing, or ends with a slash.
    pub prefix: String,
    /// Scheme and host, without a slash at the end.
    pub base: String,
    /// What the store is called in a request, with its port where that is not the usual one.
    pub host: String,
    pub region: String,
    /// The bucket is the first part of the path, and not of the host's name.
    pub in_path: bool,
    /// The file with the certificates that are trusted in the place of the system's.
    pub ca: Option<PathBuf>,
    /// How large the parts of an upload are, in bytes, where that was said.
    pub part_size: Option<u64>,
    /// For how long a failed request is tried again.
    pub patience: Duration,
    /// Where copies of small things are kept.
    pub cache: Place,
    /// How long a lock holds that its holder does not renew.
    pub lease: Duration,
}

/// What was typed, before anything else was asked.
#[derive(Debug)]
pub(super) struct Typed {
    text: String,
    bucket: String,
    prefix: String,
    options: BTreeMap<String, String>,
}

impl Typed {
    /// Takes an address apart.
    pub fn parse(text: &str) -> Result<Self> {
        // Whoever writes a password into an address does not find it in a log.
        let shown = match text.contains('@') || text.contains("secret") {
            true => format!("{SCHEME}…"),
            false => text.to_owned(),
        };
        let wrong = |why: &str| {
            Err(Error::new(ErrorKind::Usage, format!("{shown}: {why}")).advise(
                "name it as s3://BUCKET/PREFIX, with options as s3://BUCKET/PREFIX?endpoint=URL&region=NAME",
            ))
        };
        let Some(rest) = text.strip_prefix(SCHEME) else {
            return wrong("an address of a bucket begins with s3:// in small letters");
        };
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if bucket.is_empty() || !bucket.chars().all(is_name) {
            return wrong("that is no name of a bucket");
        }
        let parts: Vec<&str> = prefix.split('/').filter(|part| !part.is_empty()).collect();
        if parts.iter().any(|part| matches!(*part, "." | "..") || part.contains(char::is_control)) {
            return wrong("no part of a prefix is . or .. or holds control characters");
        }
        let prefix = parts.iter().map(|part| format!("{part}/")).collect();
        let mut options = BTreeMap::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if OPTIONS.contains(&name) && value.is_empty() {
                return wrong(&format!("{name} has no value"));
            }
            if !OPTIONS.contains(&name) {
                return wrong(&format!("{name:?} is no option: they are {}", OPTIONS.join(", ")));
            }
            options.insert(name.to_owned(), value.to_owned());
        }
        Ok(Self { text: text.to_owned(), bucket: bucket.to_owned(), prefix, options })
    }

    /// The profile of the AWS files that counts: the option, `AWS_PROFILE`, or `default`.
    pub fn profile(&self, environment: &dyn Fn(&str) -> Option<String>) -> String {
        let named = self.options.get("profile").cloned();
        named.or_else(|| environment("AWS_PROFILE")).unwrap_or_else(|| "default".to_owned())
    }

    /// The whole address: options first, then the environment, then the profile.
    pub fn resolve(
        self,
        environment: &dyn Fn(&str) -> Option<String>,
        profile: &Profile,
    ) -> Result<Address> {
        let wrong = |why: String| Error::new(ErrorKind::Usage, format!("{}: {why}", self.text));
        let found = |option: &str, variables: &[&str], setting: &str| {
            let variable = || variables.iter().find_map(|name| environment(name));
            let typed = self.options.get(option).cloned();
            typed.or_else(variable).or_else(|| profile.get(setting))
        };
        let region = found("region", &["AWS_REGION", "AWS_DEFAULT_REGION"], "region");
        let endpoint =
            found("endpoint", &["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"], "s3.endpoint_url");
        let endpoint = endpoint.or_else(|| profile.get("endpoint_url"));
        let is_own = endpoint.is_some();
        let region = match (region, is_own) {
            (Some(region), _) => region,
            // Stores of one's own mostly take this one, whatever they are called.
            (None, _) => "us-east-1".to_owned(),
        };
        let endpoint = endpoint.unwrap_or_else(|| format!("https://s3.{region}.amazonaws.com"));
        let endpoint = match endpoint.contains("://") {
            true => endpoint,
            false => format!("https://{endpoint}"),
        };
        let (scheme, host) = endpoint.split_once("://").unwrap_or_default();
        let host = host.trim_end_matches('/').to_ascii_lowercase();
        let is_host = |c: char| c.is_ascii_alphanumeric() || "._-:[]".contains(c);
        if host.contains('@') {
            let text = format!(
                "{SCHEME}{}: an endpoint has no name of a user and no password",
                self.bucket
            );
            return Err(Error::new(ErrorKind::Usage, text)
                .advise("give them by AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or in ~/.aws/credentials"));
        }
        if !matches!(scheme, "http" | "https") || host.is_empty() || !host.chars().all(is_host) {
            return Err(wrong(format!("{endpoint:?} is no endpoint"))
                .advise("name it as https://HOST or https://HOST:PORT"));
        }
        let style = found("style", &[], "s3.addressing_style");
        let in_path = match style.as_deref() {
            Some("path") => true,
            Some("virtual") => false,
            // The certificate of a store is for one name in front of its own.
            None | Some("auto") => is_own || self.bucket.contains('.'),
            Some(other) => {
                return Err(wrong(format!("the style {other:?} is neither path nor virtual")));
            }
        };
        let host = match scheme {
            "https" => host.trim_end_matches(":443"),
            _ => host.trim_end_matches(":80"),
        };
        let host = match in_path {
            true => host.to_owned(),
            false => format!("{}.{host}", self.bucket),
        };
        let part_size = match self.options.get("part-size") {
            None => None,
            Some(text) => {
                let mib = text.trim_end_matches("MiB").parse::<u64>().ok();
                let mib = mib.filter(|mib| PART_SIZES.contains(mib)).ok_or_else(|| {
                    wrong(format!("the part size {text:?} is none of 5MiB to 5120MiB"))
                })?;
                Some(mib << 20)
            }
        };
        let seconds = |option: &str, usual: Duration, range: std::ops::RangeInclusive<u64>| {
            let Some(text) = self.options.get(option) else { return Ok(usual) };
            let seconds = text.trim_end_matches('s').parse::<u64>().ok();
            let seconds = seconds.filter(|it| range.contains(it)).ok_or_else(|| {
                let (first, last) = (range.start(), range.end());
                wrong(format!("{option}={text:?} is no number of seconds from {first} to {last}"))
            });
            seconds.map(Duration::from_secs)
        };
        let patience = seconds("patience", PATIENCE, 0..=86_400)?;
        let lease = seconds("lease", LEASE, LEASES)?;
        let cache = match self.options.get("cache").map(String::as_str) {
            None => Place::Usual,
            Some("none") => Place::None,
            Some(folder) => Place::Folder(folder.into()),
        };
        let ca = found("ca", &["AWS_CA_BUNDLE"], "ca_bundle").map(PathBuf::from);
        Ok(Address {
            base: format!("{scheme}://{host}"),
            host: host.clone(),
            region,
            in_path,
            ca,
            part_size,
            patience,
            cache,
            lease,
            text: self.text,
            bucket: self.bucket,
            prefix: self.prefix,
        })
    }
}

impl Address {
    /// The path of a request for a key, encoded; of one for the bucket where there is none.
    pub fn path(&self, key: &str) -> String {
        match self.in_path {
            true if key.is_empty() => sign::encode_path(&format!("/{}", self.bucket)),
            true => sign::encode_path(&format!("/{}/{key}", self.bucket)),
            false => sign::encode_path(&format!("/{key}")),
        }
    }

    /// What to call a key where people read of it.
    pub fn shown(&self, key: &str) -> String {
        format!("{SCHEME}{}/{key}", self.bucket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(text: &str, environment: &[(&str, &str)], profile: &str) -> Result<Address> {
        let variable = |name: &str| {
            let found = environment.iter().find(|(it, _)| *it == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let typed = Typed::parse(text)?;
        let name = typed.profile(&variable);
        typed.resolve(&variable, &Profile::parse(profile, "", &name))
    }

    #[test]
    fn a_bucket_of_amazon_stands_in_the_host() {
        let address =
            resolve("s3://backups/hosts/a", &[("AWS_REGION", "eu-central-1")], "").unwrap();
        assert_eq!(address.base, "https://backups.s3.eu-central-1.amazonaws.com");
        assert_eq!(address.prefix, "hosts/a/");
        assert_eq!(address.path("hosts/a/qdelta.toml"), "/hosts/a/qdelta.toml");
        let dotted = resolve("s3://back.ups", &[], "").unwrap();
        assert_eq!(dotted.base, "https://s3.us-east-1.amazonaws.com", "no certificate covers it");
        assert_eq!((dotted.path("a"), dotted.path("")), ("/back.ups/a".into(), "/back.ups".into()));
    }

    #[test]
    fn options_count_more_than_the_environment_and_that_more_than_files() {
        let profile = "[default]\nregion = one\nendpoint_url = http://file:1\n[profile x]\nregion=two\n\
             s3 =\n  addressing_style = virtual\nca_bundle = /file.pem\n";
        let file = resolve("s3://b/", &[], profile).unwrap();
        assert_eq!((file.base.as_str(), file.region.as_str()), ("http://file:1", "one"));
        let environment = [("AWS_PROFILE", "x"), ("AWS_ENDPOINT_URL", "https://env:443/")];
        let env = resolve("s3://b//p//q/", &environment, profile).unwrap();
        assert_eq!((env.base.as_str(), env.region.as_str()), ("https://b.env", "two"));
        assert_eq!((env.ca.as_deref(), env.prefix.as_str()), (Some("/file.pem".as_ref()), "p/q/"));
        let text = "s3://b/p?endpoint=http://[::1]:9000&region=r&style=path&ca=/c&part-size=64MiB&patience=5s";
        let typed = resolve(text, &environment, profile).unwrap();
        assert_eq!((typed.base.as_str(), typed.region.as_str()), ("http://[::1]:9000", "r"));
        assert_eq!((typed.part_size, typed.patience), (Some(64 << 20), Duration::from_secs(5)));
        assert_eq!(typed.ca, Some("/c".into()));
    }

    #[test]
    fn what_makes_no_sense_is_told() {
        for (text, why) in [
            ("s3://", "no name of a bucket"),
            ("s3:///a", "no name of a bucket"),
            ("s3://a b/", "no name of a bucket"),
            ("s3://b/a/../c", "no part of a prefix"),
            ("s3://b/a?colour=red", "is no option: they are endpoint"),
            ("s3://b/a?endpoint=", "endpoint has no value"),
            ("S3://b/a", "in small letters"),
            ("s3://b/a?endpoint=ftp://x", "is no endpoint"),
            ("s3://b/a?endpoint=http://x/path", "is no endpoint"),
            ("s3://b/a?style=round", "neither path nor virtual"),
            ("s3://b/a?part-size=1MiB", "none of 5MiB"),
            ("s3://b/a?patience=long", "no number of seconds"),
            ("s3://b/a?lease=9", "no number of seconds from 10 to 3600"),
        ] {
            let error = resolve(text, &[], "").unwrap_err();
            assert!(error.chain().contains(why), "{text}: {}", error.chain());
        }
    }
}
