//! The XML of a restored domain: the XML of the backup with the necessary changes spliced into its
//! text. Everything else stays byte for byte.

use std::cmp::Reverse;
use std::ops::Range;
use std::path::PathBuf;

use roxmltree::Node;

use super::parse::{child, document, domain_node, elements};
use super::resources::{Fate, MEMORY, Named, at, walk};
use crate::base::error::Result;
use crate::disk::files::paths::absolute;

/// The changes to make.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// The new name.
    pub name: Option<String>,
    /// The new UUID.
    pub uuid: Option<String>,
    /// New MAC addresses for the network interfaces, in order. Interfaces beyond these lose theirs,
    /// so that libvirt gives them new ones. None leaves all as they are.
    pub macs: Option<Vec<String>>,
    /// The disks that were restored.
    pub disks: Vec<RestoredDisk>,
    /// What becomes of the firmware's variables.
    pub nvram: Place,
    /// What becomes of the firmware's variables in a store of their own.
    pub varstore: Place,
    /// Restored files, as pairs of the old and the new path.
    pub files: Vec<(PathBuf, PathBuf)>,
    /// The definition describes a second guest: everything that it would share with the first is
    /// removed.
    pub second: bool,
    /// What becomes of the TPM's state, if the definition says where it is: libvirt finds it by the
    /// UUID otherwise.
    pub tpm: Place,
    /// The generation id, if the domain has one: a new generation id tells a guest that it was
    /// restored, and that agreements with others since the point do not count.
    pub genid: Option<String>,
    /// Targets of disks that are to be left out.
    pub dropped: Vec<String>,
}

/// Where a restored disk is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoredDisk {
    /// The disk's name in the definition.
    pub target: String,
    /// The file or block device.
    pub path: PathBuf,
    /// It is a block device.
    pub block: bool,
    /// Its format, as QEMU names formats.
    pub format: &'static str,
    /// What shows where the file has nothing; none if all of the disk is in the file.
    pub served: Option<Served>,
}

/// A raw disk that a server gives out by NBD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// Its name at the server.
    pub export: String,
    /// Where the server listens.
    pub socket: PathBuf,
}

/// How long QEMU tries to reach a lost server before the guest learns of it, in seconds.
const RECONNECT_SECONDS: u32 = 10;

impl Served {
    /// The disk as the image below another.
    fn backing_store(&self) -> String {
        format!(
            "<backingStore type='network'><format type='raw'/><source protocol='nbd' name='{}'><host \
             transport='unix' socket='{}'/><reconnect delay='{RECONNECT_SECONDS}'/></source>\
             <backingStore/></backingStore>",
            escaped(&self.export),
            escaped(&self.socket.to_string_lossy())
        )
    }
}

/// What becomes of state that lies beside the disks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Place {
    /// The definition stays as it is.
    #[default]
    AsItWas,
    /// The state was restored to this path.
    At(PathBuf),
    /// The definition names no state, so libvirt makes it anew.
    New,
}

/// Writes the XML of a domain with `changes`. The state that libvirt wraps around the XML of a
/// running domain is left out.
///
/// # Errors
/// [`crate::ErrorKind::Image`] if it is no domain's XML.
pub fn rewrite(text: &str, changes: &Changes) -> Result<String> {
    let document = document(text)?;
    let domain = domain_node(&document)?;
    let mut edits = Edits { text, list: Vec::new() };
    if let (Some(name), Some(node)) = (&changes.name, child(domain, "name")) {
        edits.content(node, name);
    }
    if let Some(uuid) = &changes.uuid {
        edits.uuid(domain, uuid);
    }
    if let (Some(id), Some(node)) = (&changes.genid, child(domain, "genid")) {
        edits.content(node, id);
    }
    if let Some(os) = child(domain, "os") {
        edits.nvram(os, &changes.nvram);
        edits.varstore(os, &changes.varstore);
    }
    walk(domain, &mut |named| edits.named(named, changes));
    if let Some(devices) = child(domain, "devices") {
        let mut macs = changes.macs.as_ref().map(|macs| macs.iter());
        for device in elements(devices) {
            match device.tag_name().name() {
                "disk" => edits.disk(device, changes),
                "tpm" => edits.tpm(device, &changes.tpm),
                "interface" => {
                    if let (Some(macs), Some(mac)) = (&mut macs, child(device, "mac")) {
                        match macs.next() {
                            Some(new) => edits.attribute(mac, "address", new),
                            None => edits.replace(mac.range(), String::new()),
                        }
                    }
                }
                _ => {}
            }
        }
    }
    Ok(edits.apply(domain.range()))
}

/// Pieces of a text and what is to stand in their place.
struct Edits<'a> {
    text: &'a str,
    list: Vec<(Range<usize>, String)>,
}

impl Edits<'_> {
    fn replace(&mut self, range: Range<usize>, new: String) {
        self.list.push((range, new));
    }

    /// Gives an element nothing but `text` as its content.
    fn content(&mut self, node: Node<'_, '_>, text: &str) {
        let inside = node.children().map(|child| child.range());
        let inside = inside.reduce(|all, one| all.start.min(one.start)..all.end.max(one.end));
        match inside {
            Some(range) => self.replace(range, escaped(text)),
            // An empty element has no place for content: write it anew, with its attributes.
            None => {
                let name = node.tag_name().name();
                let mut attributes = String::new();
                for attribute in node.attributes() {
                    let value = escaped(attribute.value());
                    attributes.push_str(&format!(" {}='{value}'", attribute.name()));
                }
                let text = escaped(text);
                self.replace(node.range(), format!("<{name}{attributes}>{text}</{name}>"));
            }
        }
    }

    /// Gives an attribute another value; a missing attribute stays missing.
    fn attribute(&mut self, node: Node<'_, '_>, name: &str, value: &str) {
        if let Some(attribute) = node.attribute_node(name) {
            self.replace(attribute.range_value(), escaped(value));
        }
    }

    /// Sets the domain's UUID, and the copy of it in the guest's firmware tables: libvirt wants
    /// them equal.
    fn uuid(&mut self, domain: Node<'_, '_>, uuid: &str) {
        if let Some(node) = child(domain, "uuid") {
            self.content(node, uuid);
        } else if let Some(name) = child(domain, "name") {
            let end = name.range().end;
            self.replace(end..end, format!("<uuid>{}</uuid>", escaped(uuid)));
        }
        for sysinfo in elements(domain).filter(|node| node.tag_name().name() == "sysinfo") {
            let system = child(sysinfo, "system").into_iter().flat_map(elements);
            for entry in system.filter(|entry| entry.attribute("name") == Some("uuid")) {
                self.content(entry, uuid);
            }
        }
    }

    fn nvram(&mut self, os: Node<'_, '_>, place: &Place) {
        let Some(nvram) = child(os, "nvram") else {
            // libvirt chose the file when it was started, and did not note it here.
            if let (Place::At(path), Some(last)) = (place, elements(os).last()) {
                let (end, path) = (last.range().end, escaped(&path.to_string_lossy()));
                let format = if path.ends_with(".qcow2") { " format='qcow2'" } else { "" };
                self.replace(end..end, format!("<nvram{format}>{path}</nvram>"));
            }
            return;
        };
        match (place, child(nvram, "source")) {
            (Place::AsItWas, _) => {}
            (Place::At(path), Some(source)) => {
                self.attribute(source, "file", &path.to_string_lossy());
            }
            (Place::At(path), None) => self.content(nvram, &path.to_string_lossy()),
            (Place::New, _) => {
                // From this libvirt makes them.
                let mut kept = String::new();
                for name in ["template", "templateFormat", "format"] {
                    if let Some(value) = nvram.attribute(name) {
                        kept.push_str(&format!(" {name}='{}'", escaped(value)));
                    }
                }
                let new = if kept.is_empty() { kept } else { format!("<nvram{kept}/>") };
                self.replace(nvram.range(), new);
            }
        }
    }

    fn varstore(&mut self, os: Node<'_, '_>, place: &Place) {
        let path = match place {
            Place::AsItWas => return,
            Place::At(path) => format!(" path='{}'", escaped(&path.to_string_lossy())),
            Place::New => String::new(),
        };
        let Some(varstore) = child(os, "varstore") else {
            if let (false, Some(last)) = (path.is_empty(), elements(os).last()) {
                let end = last.range().end;
                self.replace(end..end, format!("<varstore{path}/>"));
            }
            return;
        };
        if let Some(old) = varstore.attribute_node("path") {
            self.replace(old.range(), path.trim_start().to_owned());
        } else {
            let end = varstore.range().start + 1 + "varstore".len();
            self.replace(end..end, path);
        }
    }

    /// Names a restored file at its new place, and removes from a second guest everything that it
    /// would share with the first.
    fn named(&mut self, named: Named<'_, '_>, changes: &Changes) {
        let (place, value, node, attribute) = match named {
            Named::Device(held, node) => {
                let is_gone = changes.second && held.shared;
                return if is_gone {
                    self.replace(node.range(), String::new())
                };
            }
            Named::Value { place, value, node, attribute } => (place, value, node, attribute),
        };
        let resource = at(&place, value, node);
        let is_taken = matches!(
            resource.fate,
            Fate::Boot | Fate::State | Fate::StateAtRest(_) | Fate::TakenApart
        );
        // However it is spelled here.
        let named = resource.path.as_deref().map(absolute);
        let restored = changes.files.iter().find(|(old, _)| Some(old) == named.as_ref());
        if let Some((_, new)) = restored.filter(|_| is_taken) {
            let new = new.to_string_lossy();
            return match attribute {
                Some(name) => self.attribute(node, name, &new),
                None => self.content(node, &new),
            };
        }
        if !changes.second || !resource.shared || place.starts_with("os/varstore") {
            return;
        }
        let whole = match place.as_str() {
            "devices/pstore/path" => node.parent().unwrap_or(node),
            MEMORY => node.ancestors().nth(2).unwrap_or(node),
            _ => node,
        };
        match attribute.and_then(|name| node.attribute_node(name)) {
            // A socket of which libvirt chooses the place.
            Some(socket) if place.starts_with("devices/graphics") => {
                self.replace(socket.range(), String::new());
            }
            _ => self.replace(whole.range(), String::new()),
        }
    }

    fn tpm(&mut self, tpm: Node<'_, '_>, place: &Place) {
        let source = child(tpm, "backend").and_then(|backend| child(backend, "source"));
        match (place, source) {
            (Place::AsItWas, _) | (_, None) => {}
            (Place::At(path), Some(source)) => {
                self.attribute(source, "path", &path.to_string_lossy());
            }
            (Place::New, Some(source)) => self.replace(source.range(), String::new()),
        }
    }

    fn disk(&mut self, disk: Node<'_, '_>, changes: &Changes) {
        let target = child(disk, "target").and_then(|target| target.attribute("dev"));
        if target.is_some_and(|target| changes.dropped.iter().any(|it| it == target)) {
            return self.replace(disk.range(), String::new());
        }
        let restored = changes.disks.iter().find(|it| Some(it.target.as_str()) == target);
        let Some(restored) = restored else { return };
        let (kind, place) = if restored.block { ("block", "dev") } else { ("file", "file") };
        self.attribute(disk, "type", kind);
        let mut driver = vec![("type", restored.format)];
        if restored.served.is_some() {
            // A guest that is told of a lost server as of a bad disk gives up its filesystem.
            driver.extend([("error_policy", "stop"), ("rerror_policy", "stop")]);
        }
        let written = |(name, value): &(_, _)| format!(" {name}='{value}'");
        let mut source = String::new();
        match child(disk, "driver") {
            Some(node) => {
                let (old, new): (Vec<_>, Vec<_>) =
                    driver.into_iter().partition(|(name, _)| node.has_attribute(*name));
                old.iter().for_each(|(name, value)| self.attribute(node, name, value));
                let end = node.range().start + 1 + "driver".len();
                self.replace(end..end, new.iter().map(written).collect());
            }
            // An edit of its own would have the place of the source's, which wins.
            None => {
                let driver: String = driver.iter().map(written).collect();
                source.push_str(&format!("<driver name='qemu'{driver}/>"));
            }
        }
        let path = escaped(&restored.path.to_string_lossy());
        source.push_str(&format!("<source {place}='{path}'/>"));
        source.extend(restored.served.as_ref().map(Served::backing_store));
        for part in elements(disk) {
            match part.tag_name().name() {
                "source" => self.replace(part.range(), source.clone()),
                // All that was below is in the restored disk, or in the served one.
                "backingStore" | "dataStore" | "mirror" => {
                    self.replace(part.range(), String::new())
                }
                _ => {}
            }
        }
    }

    /// The part `whole` of the text with all edits made.
    fn apply(mut self, whole: Range<usize>) -> String {
        // If one edit lies inside another, the outer edit comes first and wins.
        self.list.sort_by_key(|(range, _)| (range.start, Reverse(range.end)));
        let mut out = String::new();
        let mut position = whole.start;
        for (range, new) in &self.list {
            if range.start < position {
                continue;
            }
            out.push_str(self.text.get(position..range.start).unwrap_or_default());
            out.push_str(new);
            position = position.max(range.end);
        }
        out.push_str(self.text.get(position..whole.end).unwrap_or_default());
        out.push('\n');
        out
    }
}

/// Text as it stands in XML, in an attribute or between tags.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            other => out.push(other),
        }
    }
    out
}
