//! The XML of a domain, and of a running domain's state, as libvirt's documentation of the formats
//! describes them.

use std::path::PathBuf;

use roxmltree::{Document, Node, ParsingOptions};

use super::{
    Agent, Device, Disk, Domain, Nvram, State, StorageSource, Tpm, chain, limits, malformed,
    resources,
};
use crate::base::error::Result;

/// A domain with more disks than this does not start.
const DISKS_MAX: usize = 4096;
/// The name of the agent's channel.
const AGENT: &str = "org.qemu.guest_agent.0";

/// Parses XML within the limits.
pub(super) fn document(text: &str) -> Result<Document<'_>> {
    limits::check(text)?;
    let options = ParsingOptions { nodes_limit: limits::NODES_MAX, ..ParsingOptions::default() };
    Document::parse_with_options(text, options)
        .map_err(|error| malformed("is no well-formed XML").because(error))
}

/// The `<domain>` element of a document, whatever wraps it.
pub(super) fn domain_node<'a>(document: &'a Document<'a>) -> Result<Node<'a, 'a>> {
    let root = document.root_element();
    match root.tag_name().name() {
        "domain" => Ok(root),
        "domstatus" => child(root, "domain")
            .ok_or_else(|| malformed("is the state of a domain and has none in it")),
        other => Err(malformed(format!("is the XML of a {}, not of a domain", short(other)))),
    }
}

/// Takes a domain from its XML.
pub(super) fn parse(text: &str) -> Result<Domain> {
    let document = document(text)?;
    let root = document.root_element();
    let node = domain_node(&document)?;
    let name = child_text(node, "name").ok_or_else(|| malformed("gives the domain no name"))?;
    let status = (root.tag_name().name() == "domstatus").then_some(root);
    let mut domain = Domain {
        name,
        uuid: child_text(node, "uuid"),
        os: os_of(node),
        state: status.map(state_of),
        pid: status.and_then(|status| status.attribute("pid")?.parse().ok()),
        ..Domain::default()
    };
    domain.nvram = child(node, "os").and_then(nvram_of);
    domain.firmware = child(node, "os").map(resources::firmware_of).unwrap_or_default();
    domain.tpm_secret = resources::tpm_secret(node);
    let Some(devices) = child(node, "devices") else { return Ok(domain) };
    for device in elements(devices) {
        match device.tag_name().name() {
            "disk" if domain.disks.len() < DISKS_MAX => domain.disks.push(disk_of(device)?),
            "disk" => return Err(malformed(format!("has more than {DISKS_MAX} disks"))),
            "channel" => domain.agent = agent_of(device).unwrap_or(domain.agent),
            "tpm" => domain.tpm = tpm_of(device).or(domain.tpm),
            _ => {}
        }
    }
    Ok(domain)
}

fn state_of(status: Node<'_, '_>) -> State {
    match status.attribute("state") {
        Some("paused" | "pmsuspended") => State::Paused,
        Some("shutoff" | "crashed") => State::Off,
        _ => State::Running,
    }
}

fn os_of(domain: Node<'_, '_>) -> Option<String> {
    let metadata = child(domain, "metadata")?;
    let os = metadata.descendants().find(|node| node.tag_name().name() == "os")?;
    os.attribute("id").map(str::to_owned)
}

fn nvram_of(os: Node<'_, '_>) -> Option<Nvram> {
    let nvram = child(os, "nvram")?;
    // Newer libvirt may describe it like a disk's source.
    let source = match (child(nvram, "source"), text_of(nvram)) {
        (None, Some(path)) => StorageSource::File(PathBuf::from(path)),
        (source, _) => source_of(nvram.attribute("type").unwrap_or("file"), source),
    };
    let format = nvram.attribute("format").unwrap_or("raw").to_owned();
    Some(Nvram { source, format })
}

fn tpm_of(tpm: Node<'_, '_>) -> Option<Tpm> {
    let backend = child(tpm, "backend")?;
    // A TPM of the host itself can't be taken along.
    if backend.attribute("type") != Some("emulator") {
        return None;
    }
    let version = backend.attribute("version").unwrap_or("2.0").to_owned();
    let path = child(backend, "source").and_then(|source| source.attribute("path"));
    Some(Tpm { version, path: path.map(PathBuf::from) })
}

fn agent_of(channel: Node<'_, '_>) -> Option<Agent> {
    let target = child(channel, "target")?;
    if target.attribute("name") != Some(AGENT) {
        return None;
    }
    Some(match target.attribute("state") {
        Some("connected") => Agent::Connected,
        Some("disconnected") => Agent::Disconnected,
        _ => Agent::Channel,
    })
}

fn disk_of(disk: Node<'_, '_>) -> Result<Disk> {
    let target = child(disk, "target").and_then(|target| target.attribute("dev"));
    let target = target.ok_or_else(|| malformed("has a disk without a target"))?.to_owned();
    let device = match disk.attribute("device").unwrap_or("disk") {
        "disk" => Device::Disk,
        "lun" => Device::Lun,
        "cdrom" => Device::Cdrom,
        "floppy" => Device::Floppy,
        other => Device::Other(short(other)),
    };
    let driver = child(disk, "driver");
    let source_node = child(disk, "source");
    let special = source_node.and_then(special_of).or_else(|| special_of(disk));
    Ok(Disk {
        target,
        device,
        source: source_of(disk.attribute("type").unwrap_or("file"), source_node),
        format: driver.and_then(|driver| driver.attribute("type")).map(str::to_owned),
        readonly: child(disk, "readonly").is_some(),
        transient: child(disk, "transient").is_some(),
        mirrored: child(disk, "mirror").is_some(),
        special,
        chain: chain::parse(disk, source_node),
        mirror: child(disk, "mirror").map(chain::sources).unwrap_or_default(),
    })
}

/// What keeps the bytes of a source from being the image.
pub(super) fn special_of(node: Node<'_, '_>) -> Option<&'static str> {
    if child(node, "slices").is_some() {
        return Some("it is a slice of its source");
    }
    let encryption = child(node, "encryption")?;
    // LUKS inside qcow2 is refused where the image is opened; around it only the XML says so.
    (encryption.attribute("format") != Some("default")).then_some("QEMU encrypts it")
}

pub(super) fn source_of(kind: &str, source: Option<Node<'_, '_>>) -> StorageSource {
    let attribute = |name: &str| source.and_then(|source| source.attribute(name));
    let path = |name: &str| attribute(name).filter(|path| !path.is_empty()).map(PathBuf::from);
    match kind {
        "file" => path("file").map_or(StorageSource::Nothing, StorageSource::File),
        "block" => path("dev").map_or(StorageSource::Nothing, StorageSource::Block),
        "network" => {
            StorageSource::Network(short(attribute("protocol").unwrap_or("an unknown one")))
        }
        "volume" => match (attribute("pool"), attribute("volume")) {
            (Some(pool), Some(volume)) => {
                let why = "its pool was not looked at".to_owned();
                // Whole: a longer name is another volume's.
                let (pool, volume) = (pool.to_owned(), volume.to_owned());
                StorageSource::Volume { pool, volume, why }
            }
            _ => StorageSource::Nothing,
        },
        other => StorageSource::Other(short(other)),
    }
}

pub(super) fn elements<'a>(node: Node<'a, 'a>) -> impl Iterator<Item = Node<'a, 'a>> {
    node.children().filter(Node::is_element)
}

pub(super) fn child<'a, 'b>(node: Node<'a, 'b>, name: &str) -> Option<Node<'a, 'b>> {
    node.children().find(|child| child.is_element() && child.tag_name().name() == name)
}

pub(super) fn text_of(node: Node<'_, '_>) -> Option<String> {
    let text = node.text()?.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

fn child_text(node: Node<'_, '_>, name: &str) -> Option<String> {
    child(node, name).and_then(text_of)
}

/// A word of the XML, short enough for a message.
pub(super) fn short(text: &str) -> String {
    text.chars().take(100).collect()
}
