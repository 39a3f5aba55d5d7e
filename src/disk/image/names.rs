//! What the name of a backing file means: a path, or a description in JSON.
//!
//! Names come from inside images, and images come from strangers. Only what leads to a local file
//! is understood; everything else is refused by name.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Format;
use super::policy::folder_of;
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::files::paths::is_same_file;

/// An image as a name describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    /// Its format, if the name says.
    pub(super) format: Option<Format>,
    /// Its format, if the overlay names one that is not read here.
    pub(super) foreign_format: Option<String>,
    /// Its file, as written.
    pub(super) file: PathBuf,
    /// Whether the name replaces the image's own backing file.
    pub(super) backing: Backing,
    /// The external data file, if the name replaces the image's own.
    pub(super) data_file: Option<PathBuf>,
}

/// Where an image's backing file is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Backing {
    /// In the image itself.
    InImage,
    /// It is to have none, whatever the image says.
    None,
    /// In the name of the image.
    Replaced(Box<Node>),
}

impl Node {
    /// A file without anything said about it.
    pub(super) fn plain(file: PathBuf, format: Option<Format>) -> Self {
        Self { format, foreign_format: None, file, backing: Backing::InImage, data_file: None }
    }
}

/// Understands the name of a backing file as it stands in an image.
pub(super) fn parse(name: &[u8]) -> Result<Node> {
    match name.strip_prefix(b"json:") {
        Some(json) => parse_json(json),
        None => Ok(Node::plain(parse_path(name)?, None)),
    }
}

/// Understands a name that must be a path, relative to the image's folder. QEMU takes everything with
/// a colon before the first slash for a protocol, so such a file would have to be called `./a:b`.
/// Behind `file:` a colon means nothing, and a relative path leads elsewhere.
fn parse_path(name: &[u8]) -> Result<PathBuf> {
    if let Some(path) = name.strip_prefix(b"file:") {
        return absolute(path, "behind file:");
    }
    if name.is_empty() {
        return Err(refused("the name is empty"));
    }
    match protocol(name) {
        Some(protocol) => {
            Err(refused(format!("protocol '{}' is not a local file", protocol.escape_debug())))
        }
        None => Ok(PathBuf::from(OsStr::from_bytes(name))),
    }
}

/// What QEMU takes for a protocol.
fn protocol(name: &[u8]) -> Option<String> {
    let first = name.iter().position(|byte| matches!(byte, b':' | b'/'))?;
    let protocol = (name.get(first) == Some(&b':')).then(|| name.get(..first))??;
    Some(String::from_utf8_lossy(protocol).into_owned())
}

/// A path that QEMU takes relative to the folder that it is started in, whatever folder that is: only an
/// absolute one means one thing.
fn absolute(path: &[u8], place: &str) -> Result<PathBuf> {
    if path.starts_with(b"/") {
        return Ok(PathBuf::from(OsStr::from_bytes(path)));
    }
    let shown = String::from_utf8_lossy(path);
    let text = format!("the relative path '{}' {place} means two things", shown.escape_debug());
    Err(Error::new(ErrorKind::Image, text)
        .because("QEMU looks for it in the folder that it is started in, and not beside the image")
        .advise("give the image an absolute name (`qemu-img rebase -u -F FORMAT -b /PATH IMAGE`)"))
}

/// Understands the name of an external data file as it stands in the image at `image`. QEMU takes it as it
/// is, whatever it begins with, and relative to the folder that it is started in; libvirt takes it as it
/// takes the name of a backing file.
///
/// # Errors
/// Both are there and not the same file, or it is no path for libvirt.
pub(super) fn parse_data_file(name: &[u8], image: &Path) -> Result<PathBuf> {
    let path = PathBuf::from(OsStr::from_bytes(name));
    let (beside, here) = (folder_of(image).join(&path), path.as_path());
    let differs = path.is_relative() && here.exists() && !is_same_file(&beside, here);
    if name.is_empty() || protocol(name).is_some() || differs {
        let text = format!("the name of the data file, '{}', means two things", path.display());
        return Err(Error::new(ErrorKind::Image, text)
            .because("QEMU looks for it in the folder that it is started in, libvirt beside the image")
            .advise(
                "give the image an absolute one (`qemu-img amend -o data_file=/PATH IMAGE`), or run this \
                 in the image's folder",
            ));
    }
    Ok(path)
}

/// What names may lead to, in the words of an error.
fn refused(why: impl Into<String>) -> Error {
    Error::new(ErrorKind::Image, why)
        .advise("names inside images are followed only to local files: copy the data there first")
}

/// Options that change how a file is opened or cached, but not what is read from it.
const HARMLESS: &[&str] = &[
    "aio",
    "aio-max-batch",
    "auto-read-only",
    "cache-clean-interval",
    "cache-size",
    "cache.direct",
    "cache.no-flush",
    "detect-zeroes",
    "discard",
    "discard-no-unref",
    "drop-cache",
    "force-share",
    "l2-cache-entry-size",
    "l2-cache-size",
    "lazy-refcounts",
    "locking",
    "node-name",
    "overlap-check",
    "pass-discard-other",
    "pass-discard-request",
    "pass-discard-snapshot",
    "pr-manager",
    "read-only",
    "refcount-cache-size",
    "x-check-cache-dropped",
];

fn parse_json(json: &[u8]) -> Result<Node> {
    let invalid = || refused("the json: name is not valid");
    let text = std::str::from_utf8(json).map_err(|error| invalid().because(error))?;
    let value: Value =
        serde_json::from_str(&double_quoted(text)).map_err(|error| invalid().because(error))?;
    let mut options = Options(BTreeMap::new());
    options.flatten(String::new(), value)?;
    let node = options.take_node("")?;
    match options.0.keys().find(|key| !is_harmless(key)) {
        Some(key) => Err(refused(format!(
            "option '{}' of a json: name is not supported",
            key.escape_debug()
        ))),
        None => Ok(node),
    }
}

/// QEMU's JSON allows strings in single quotes.
fn double_quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\\', Some(_)) => match chars.next() {
                Some('\'') => out.push('\''),
                Some(escaped) => out.extend(['\\', escaped]),
                None => out.push('\\'),
            },
            ('"' | '\'', None) => {
                quote = Some(c);
                out.push('"');
            }
            (_, Some(open)) if c == open => {
                quote = None;
                out.push('"');
            }
            ('"', Some(_)) => out.push_str("\\\""),
            _ => out.push(c),
        }
    }
    out
}

/// Whether the option `key`, of whatever node, does not change what is read.
fn is_harmless(key: &str) -> bool {
    HARMLESS.iter().any(|option| {
        key.strip_suffix(option).is_some_and(|node| {
            node.is_empty() || node.ends_with("file.") || node.ends_with("backing.")
        })
    })
}

/// The options of a `json:` name by their dotted keys. `{"file": {"driver": "file"}}` and
/// `{"file.driver": "file"}` say the same.
struct Options(BTreeMap<String, Value>);

impl Options {
    fn flatten(&mut self, prefix: String, value: Value) -> Result<()> {
        match value {
            Value::Object(members) => {
                for (key, value) in members {
                    let dot = if prefix.is_empty() { "" } else { "." };
                    self.flatten(format!("{prefix}{dot}{key}"), value)?;
                }
                Ok(())
            }
            _ if prefix.is_empty() => Err(refused("the json: name is not an object")),
            value => match self.0.insert(prefix, value) {
                None => Ok(()),
                Some(_) => Err(refused("the json: name says the same thing twice")),
            },
        }
    }

    /// Removes the option `key` and gives its text.
    fn take_text(&mut self, key: &str) -> Result<Option<String>> {
        match self.0.remove(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(refused(format!("'{key}' of a json: name is not a string"))),
        }
    }

    fn has_node(&self, prefix: &str) -> bool {
        self.0.keys().any(|key| key.starts_with(prefix))
    }

    /// The image whose options begin with `prefix`.
    fn take_node(&mut self, prefix: &str) -> Result<Node> {
        let key = |name: &str| format!("{prefix}{name}");
        let driver = self.take_text(&key("driver"))?;
        let mut node = match driver.as_deref() {
            // Without a format, the file is all there is; the overlay may still know the format.
            Some("file" | "host_device") => Node::plain(self.take_filename(prefix)?, None),
            Some("qcow2") => Node::plain(self.take_file(prefix)?, Some(Format::Qcow2)),
            Some("raw") => Node::plain(self.take_file(prefix)?, Some(Format::Raw)),
            None => Node::plain(self.take_file(prefix)?, None),
            Some(other) => {
                let other = other.escape_debug();
                return Err(refused(format!("driver '{other}' of a json: name is not supported")));
            }
        };
        node.backing = self.take_backing(prefix)?;
        if self.has_node(&key("data-file.")) {
            node.data_file = Some(self.take_file_node(&key("data-file."))?);
        }
        Ok(node)
    }

    fn take_backing(&mut self, prefix: &str) -> Result<Backing> {
        let key = format!("{prefix}backing");
        match self.0.remove(&key) {
            Some(Value::Null) => return Ok(Backing::None),
            Some(Value::String(text)) if text.is_empty() => return Ok(Backing::None),
            Some(_) => return Err(refused("a backing file that is given by reference")),
            None => {}
        }
        let inner = format!("{key}.");
        if !self.has_node(&inner) {
            return Ok(Backing::InImage);
        }
        Ok(Backing::Replaced(Box::new(self.take_node(&inner)?)))
    }

    /// The file of the image whose options begin with `prefix`.
    fn take_file(&mut self, prefix: &str) -> Result<PathBuf> {
        let inner = format!("{prefix}file.");
        if self.has_node(&inner) { self.take_file_node(&inner) } else { self.take_filename(prefix) }
    }

    /// The file whose options begin with `prefix`.
    fn take_file_node(&mut self, prefix: &str) -> Result<PathBuf> {
        match self.take_text(&format!("{prefix}driver"))?.as_deref() {
            None | Some("file" | "host_device") => self.take_filename(prefix),
            Some(other) => {
                let other = other.escape_debug();
                Err(refused(format!("driver '{other}' of a json: name is not a local file")))
            }
        }
    }

    /// A path as it stands: what would be a protocol elsewhere is a part of it.
    fn take_filename(&mut self, prefix: &str) -> Result<PathBuf> {
        let name = self
            .take_text(&format!("{prefix}filename"))?
            .ok_or_else(|| refused("a json: name without a file name"))?;
        absolute(name.as_bytes(), "in a json: name")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str) -> PathBuf {
        parse(name.as_bytes()).unwrap().file
    }

    fn refusal(name: &str) -> String {
        parse(name.as_bytes()).unwrap_err().chain()
    }

    #[test]
    fn paths() {
        assert_eq!(file("base.img"), PathBuf::from("base.img"));
        assert_eq!(file("/a/b:c"), PathBuf::from("/a/b:c"));
        assert_eq!(file("./image:base.qcow2"), PathBuf::from("./image:base.qcow2"));
        // Behind `file:` a colon is part of the name.
        assert_eq!(file("file:/a/base.img"), PathBuf::from("/a/base.img"));
        assert_eq!(file("file:/a:b/c:d"), PathBuf::from("/a:b/c:d"));
        assert_eq!(file("file:///a/b"), PathBuf::from("///a/b"));
    }

    /// QEMU takes these relative to the folder that it is started in, which here was the image's: another
    /// file was backed up than the one that the guest had.
    #[test]
    fn names_that_mean_two_things_are_refused() {
        for name in [
            "file:base.img",
            "file:./base.img",
            "file:a:b",
            "file:nbd:x",
            "file:",
            r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"base.img"}}"#,
            r#"json:{"driver":"qcow2","file.filename":"./base.img"}"#,
            r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"file:/base.img"}}"#,
            r#"json:{"driver":"file","filename":"a:b"}"#,
            r#"json:{"file":{"filename":"nbd://h"}}"#,
            r#"json:{"file":{"filename":"json:{}"}}"#,
            r#"json:{"driver":"qcow2","file.filename":"/a","data-file.filename":"d"}"#,
            r#"json:{"driver":"qcow2","file.filename":"/a","backing":{"driver":"raw","file.filename":"b"}}"#,
        ] {
            let error = parse(name.as_bytes()).unwrap_err();
            assert!(error.chain().contains("means two things"), "{name}: {}", error.chain());
            assert!(error.advice().unwrap().contains("absolute name"), "{name}");
        }
    }

    /// QEMU takes the name as it is; libvirt as it takes the name of a backing file.
    #[test]
    fn data_files() {
        let (image, data) = (Path::new("/images/top"), |name: &str| name.as_bytes().to_vec());
        for name in ["/a/b", "/a:b", "d.raw", "./a:b", "sub/d.raw"] {
            let path = parse_data_file(&data(name), image).unwrap();
            assert_eq!(path, PathBuf::from(name));
        }
        // The last is in the folder that the test runs in, and not in the image's.
        for name in ["", "file:/a/b", "json:{}", "a:b", "nbd://h", "Cargo.toml"] {
            let error = parse_data_file(&data(name), image).unwrap_err();
            assert!(error.chain().contains("means two things"), "{name}: {}", error.chain());
        }
        assert!(parse_data_file(b"Cargo.toml", Path::new("./top")).is_ok());
    }

    #[test]
    fn protocols_are_refused_by_name() {
        for (name, protocol) in [
            ("nbd://host/export", "nbd"),
            ("nbd:unix:/tmp/socket", "nbd"),
            ("https://host/image.qcow2", "https"),
            ("ssh://host/a", "ssh"),
            ("fat:rw:/etc", "fat"),
            ("blkdebug::a.qcow2", "blkdebug"),
            ("a:b", "a"),
            (":x", ""),
        ] {
            assert!(refusal(name).contains(&format!("protocol '{protocol}'")), "{name}");
        }
        assert!(parse(b"").is_err());
    }

    #[test]
    fn json_with_nested_and_dotted_keys() {
        for name in [
            r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"/a b"}}"#,
            r#"json:{"driver":"qcow2","file.driver":"file","file.filename":"/a b"}"#,
            r#"json:{"driver":"qcow2","file.filename":"/a b"}"#,
            r#"json:{"driver":"qcow2","file":{"filename":"/a b","locking":"off","cache":{"direct":true}},"read-only":true}"#,
            r#"json:{'driver':'qcow2','file':{'driver':'file','filename':'/a b'}}"#,
        ] {
            let node = parse(name.as_bytes()).unwrap();
            assert_eq!(node, Node::plain("/a b".into(), Some(Format::Qcow2)), "{name}");
        }
        let node = parse(br#"json:{"driver":"file","filename":"/a:b"}"#).unwrap();
        assert_eq!(node, Node::plain("/a:b".into(), None));
    }

    #[test]
    fn json_quotes() {
        assert_eq!(file(r#"json:{'file.filename':'/a"b\'c\\d'}"#), PathBuf::from(r#"/a"b'c\d"#));
        assert_eq!(file(r#"json:{"file.filename":"/a'b\"c"}"#), PathBuf::from(r#"/a'b"c"#));
    }

    #[test]
    fn json_may_replace_what_the_image_says() {
        let node =
            parse(br#"json:{"driver":"qcow2","file.filename":"/a","backing":null}"#).unwrap();
        assert_eq!(node.backing, Backing::None);
        let name = br#"json:{"driver":"qcow2","file.filename":"/a","data-file":{"filename":"/d"},
            "backing":{"driver":"raw","file":{"driver":"host_device","filename":"/dev/x"}}}"#;
        let node = parse(name).unwrap();
        let below = Node::plain("/dev/x".into(), Some(Format::Raw));
        assert_eq!(node.backing, Backing::Replaced(Box::new(below)));
        assert_eq!(node.data_file, Some("/d".into()));
    }

    #[test]
    fn json_that_is_refused_by_name() {
        for (name, text) in [
            (r#"json:{"driver":"nbd","host":"h"}"#, "driver 'nbd'"),
            (r#"json:{"driver":"qcow2","file":{"driver":"https","url":"u"}}"#, "driver 'https'"),
            (r#"json:{"driver":"qcow2","file.driver":"nbd"}"#, "driver 'nbd'"),
            (r#"json:{"driver":"raw","offset":512,"file.filename":"/a"}"#, "option 'offset'"),
            (r#"json:{"driver":"blkdebug","image":"a"}"#, "driver 'blkdebug'"),
            (r#"json:{"file":"node","driver":"raw"}"#, "without a file name"),
            (r#"json:{"file.filename":"/a","backing":"node"}"#, "by reference"),
            (r#"json:{"file.filename":"a","file":{"filename":"b"}}"#, "twice"),
            (r#"json:{"file.filename":7}"#, "not a string"),
            (r#"json:["a"]"#, "not an object"),
            (r#"json:{"#, "not valid"),
            (r#"json:{"driver":"qcow2"}"#, "without a file name"),
        ] {
            assert!(refusal(name).contains(text), "{name}: {}", refusal(name));
        }
        let deep = format!("json:{}", "{\"a\":".repeat(1000));
        assert!(refusal(&deep).contains("not valid"));
    }
}
