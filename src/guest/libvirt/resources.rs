//! What of the host a definition names besides its disks: files, folders, devices, sockets. Each is
//! kept in the point, or missing from the point with advice, or not needed for a reason. A path at
//! an unknown place of the definition counts as missing, so that nothing is passed over in silence.

use std::path::PathBuf;

use roxmltree::Node;

use super::devices::{self, Held};
use super::parse::{child, document, domain_node, elements, short, text_of};
use crate::base::error::Result;

/// Something of the host that a definition names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    /// What it is, for people, with the name of it.
    pub what: String,
    /// The file or folder, if it is one.
    pub path: Option<PathBuf>,
    /// What becomes of it.
    pub fate: Fate,
    /// Two guests that share it would overwrite each other's data or get in each other's way.
    pub shared: bool,
}

/// What becomes of something of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// A file that the guest starts from and only reads: the point keeps it.
    Boot,
    /// A file that holds the guest's state: the point keeps it.
    State,
    /// The same, but the guest writes to it at any moment: the point keeps it if the guest is stopped. Else the
    /// text says what to do.
    StateAtRest(&'static str),
    /// It is taken by what knows more of it: the firmware's variables, the TPM's state.
    TakenApart,
    /// The point does not hold it. The text says what to do about that.
    Missing(&'static str),
    /// A point does not need it. The text says why.
    Harmless(&'static str),
}

/// Where the firmware's variables are, if not in the file of `<nvram>`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Firmware {
    /// It has variables that last, wherever they are.
    pub has_variables: bool,
    /// It has them in the store of QEMU's own `uefi-vars` device.
    pub is_varstore: bool,
    /// The file of that store, if the definition names it.
    pub varstore: Option<PathBuf>,
    /// Code and variables are in one file, which the guest writes to.
    pub loader: Option<PathBuf>,
}

const BY_OTHER_MEANS: &str = "back it up by other means if the guest needs it";
const LIBVIRT_MAKES_IT: &str = "libvirt or QEMU makes it when the guest starts";
const HOSTS_OWN: &str = "it belongs to the host, and every host has its own";
const A_CONNECTION: &str = "it leads to another program, and holds nothing of the guest's";
const A_LOG: &str = "it is the host's log, and the guest can't read it";
const WHILE_STOPPED: &str = "a point of the guest while it is stopped has it, if it is a file of up to 256 MiB; any \
                             other: qdelta backup FILE --format raw, while the guest is stopped";
/// Where the file of an nvdimm or virtio-pmem stands.
pub(super) const MEMORY: &str = "devices/memory/source/path";
const ELSEWHERE: &str = "the device that it belongs to is listed";
const NOT_QEMU: &str = "QEMU's guests have none";

/// What stands at a place of a definition, counted from `<domain>`; attributes begin with `@`. `*` is any
/// one step, `**` at the end whatever follows, `**` at the beginning whatever comes before.
const PLACES: &[(&str, &str, Fate)] = &[
    ("os/kernel", "the kernel", Fate::Boot),
    ("os/initrd", "the initrd", Fate::Boot),
    ("os/dtb", "the device tree", Fate::Boot),
    ("os/shim", "the shim", Fate::Boot),
    ("os/acpi/table", "the ACPI table", Fate::Boot),
    ("os/loader", "the firmware", Fate::Boot),
    ("sysinfo/entry/@file", "the fw_cfg blob", Fate::Boot),
    ("devices/*/rom/@file", "the option ROM", Fate::Boot),
    ("os/varstore/@path", "the firmware's variables", Fate::TakenApart),
    ("os/nvram", "the firmware's variables", Fate::TakenApart),
    ("os/nvram/source/**", "the firmware's variables", Fate::TakenApart),
    ("os/nvram/@template", "a template", Fate::Harmless("it serves to make the variables once")),
    ("os/varstore/@template", "a template", Fate::Harmless("it serves to make the variables once")),
    ("devices/pstore/path", "the guest's pstore", Fate::State),
    (MEMORY, "the memory that lasts", Fate::StateAtRest(WHILE_STOPPED)),
    ("devices/tpm/backend/source/@path", "the TPM's state", Fate::TakenApart),
    ("devices/interface/script/@path", "the script", Fate::Missing(BY_OTHER_MEANS)),
    ("devices/interface/downscript/@path", "the script", Fate::Missing(BY_OTHER_MEANS)),
    ("bootloader", "the boot loader", Fate::Missing(BY_OTHER_MEANS)),
    ("os/root", "the root", Fate::Harmless("it is an argument of the guest's kernel")),
    ("os/cmdline", "the kernel's arguments", Fate::Harmless("they are in the definition")),
    ("os/init", "the init program", Fate::Harmless(NOT_QEMU)),
    ("os/initarg", "the init program's arguments", Fate::Harmless(NOT_QEMU)),
    ("os/initdir", "the init program's folder", Fate::Harmless(NOT_QEMU)),
    ("title", "text", Fate::Harmless("it is a text")),
    ("description", "text", Fate::Harmless("it is a text")),
    ("**/seclabel/**", "a label", Fate::Harmless("it names no file")),
    ("resource/partition", "a cgroup", Fate::Harmless(LIBVIRT_MAKES_IT)),
    ("blkiotune/device/path", "a device", Fate::Harmless("it is only named for a limit")),
    ("devices/emulator", "the emulator", Fate::Harmless(HOSTS_OWN)),
    ("devices/*/log/@file", "a log", Fate::Harmless(A_LOG)),
    ("devices/interface/backend/@logFile", "a log", Fate::Harmless(A_LOG)),
    ("devices/interface/backend/@tap", "a device", Fate::Harmless(HOSTS_OWN)),
    ("devices/interface/backend/@vhost", "a device", Fate::Harmless(HOSTS_OWN)),
    ("devices/interface/source/**", "a network", Fate::Harmless(A_CONNECTION)),
    ("devices/hostdev/source/**", "a host device", Fate::Harmless(ELSEWHERE)),
    ("devices/rng/backend", "a source of random numbers", Fate::Harmless(HOSTS_OWN)),
    (
        "devices/rng/backend/source/@path",
        "a source of random numbers",
        Fate::Harmless(A_CONNECTION),
    ),
    ("devices/graphics/**", "a display", Fate::Harmless(A_CONNECTION)),
    ("devices/video/**", "a graphics card", Fate::Harmless(HOSTS_OWN)),
    ("devices/audio/**", "a sound device", Fate::Harmless(HOSTS_OWN)),
    ("devices/shmem/server/@path", "shared memory", Fate::Harmless(A_CONNECTION)),
    ("devices/filesystem/binary/**", "a program", Fate::Harmless(HOSTS_OWN)),
    ("devices/filesystem/target/@dir", "a name", Fate::Harmless("it is the guest's name for it")),
    ("launchSecurity/**", "a socket", Fate::Harmless(HOSTS_OWN)),
    ("devices/*/@tty", "a terminal", Fate::Harmless(LIBVIRT_MAKES_IT)),
    ("devices/serial/source/@path", "a terminal or socket", Fate::Harmless(LIBVIRT_MAKES_IT)),
    ("devices/parallel/source/@path", "a terminal or socket", Fate::Harmless(LIBVIRT_MAKES_IT)),
    ("devices/console/source/@path", "a terminal or socket", Fate::Harmless(LIBVIRT_MAKES_IT)),
    ("devices/channel/source/@path", "a terminal or socket", Fate::Harmless(LIBVIRT_MAKES_IT)),
    ("devices/redirdev/source/@path", "a terminal or socket", Fate::Harmless(LIBVIRT_MAKES_IT)),
    ("devices/smartcard/source/@path", "a terminal or socket", Fate::Harmless(LIBVIRT_MAKES_IT)),
];

/// The folder of the firmware's code that the host's packages bring: nobody restores from a backup what a
/// package has. Other files below it may be the admin's own: QEMU may read them there under AppArmor.
const PACKAGES: &str = "/usr/";
/// The part of it that no package writes to.
const LOCAL: &str = "/usr/local/";

/// What a definition names of the host, besides its disks (`decide` tells what becomes of these).
///
/// # Errors
/// [`crate::ErrorKind::Image`] if it is no domain's XML.
pub fn resources(text: &str) -> Result<Vec<Resource>> {
    let document = document(text)?;
    let mut found = Vec::new();
    walk(domain_node(&document)?, &mut |named| match named {
        Named::Value { place, value, node, .. } => found.push(at(&place, value, node)),
        Named::Device(held, _) => found.push(Resource {
            what: held.what,
            path: None,
            fate: held.fate,
            shared: held.shared,
        }),
    });
    Ok(found)
}

/// Something that a definition names, and where.
pub(super) enum Named<'a, 'b> {
    /// The text of an element, or an attribute of it, that is an absolute path.
    Value { place: String, value: &'b str, node: Node<'a, 'a>, attribute: Option<&'b str> },
    /// A whole element.
    Device(Held, Node<'a, 'a>),
}

/// Calls `each` for everything of the host that a domain names. Nothing is looked at below metadata, disks,
/// and devices that are listed as a whole.
pub(super) fn walk<'a>(domain: Node<'a, 'a>, each: &mut dyn FnMut(Named<'a, 'a>)) {
    let mut above: Vec<Node<'a, 'a>> = Vec::new();
    let mut skipped = 0;
    for node in domain.descendants().skip(1).filter(Node::is_element) {
        if node.range().start < skipped {
            continue;
        }
        while above.last().is_some_and(|outer| node.parent() != Some(*outer)) {
            above.pop();
        }
        above.push(node);
        let names: Vec<&str> = above.iter().map(|node| node.tag_name().name()).collect();
        match names.as_slice() {
            // Libvirt itself makes nothing of the first; disks have decisions of their own.
            ["metadata"] | ["devices", "disk"] => {
                skipped = node.range().end;
                continue;
            }
            ["commandline"] | ["devices", _] => {
                if let Some(held) = devices::held(node) {
                    // The first two have an option ROM besides.
                    if !matches!(names.last(), Some(&("hostdev" | "interface"))) {
                        skipped = node.range().end;
                    }
                    each(Named::Device(held, node));
                }
                if skipped > node.range().start {
                    continue;
                }
            }
            _ => {}
        }
        for attribute in node.attributes().filter(|it| is_path(it.value())) {
            let place = format!("{}/@{}", names.join("/"), attribute.name());
            let (value, name) = (attribute.value(), Some(attribute.name()));
            each(Named::Value { place, value, node, attribute: name });
        }
        if let Some(value) = node.text().map(str::trim).filter(|text| is_path(text)) {
            each(Named::Value { place: names.join("/"), value, node, attribute: None });
        }
    }
}

fn is_path(value: &str) -> bool {
    value.starts_with('/') && value.len() > 1
}

/// What stands at a place.
pub(super) fn at(place: &str, value: &str, node: Node<'_, '_>) -> Resource {
    let known = PLACES.iter().find(|(pattern, ..)| matches(pattern, place));
    let (what, fate) = match known {
        Some((_, what, fate)) => (*what, *fate),
        None => ("a file or device", Fate::Missing(BY_OTHER_MEANS)),
    };
    let is_written = place == "os/loader" && is_writable(node);
    let is_package =
        place == "os/loader" && value.starts_with(PACKAGES) && !value.starts_with(LOCAL);
    let fate = match fate {
        Fate::Boot if is_written => Fate::TakenApart,
        Fate::Boot if is_package => Fate::Harmless("a package of the host has it"),
        fate => fate,
    };
    let shared = is_written
        || matches!(fate, Fate::State | Fate::StateAtRest(_))
        || ["os/varstore/@path", "devices/graphics/@socket", "devices/graphics/listen/@socket"]
            .contains(&place)
        || place.ends_with("/log/@file");
    let what = match known {
        Some(_) => format!("{what} {}", short(value)),
        None => format!("{} (the definition names it as {})", short(value), short(place)),
    };
    Resource { what, path: Some(PathBuf::from(value)), fate, shared }
}

/// Whether a place is one that a pattern means.
fn matches(pattern: &str, place: &str) -> bool {
    if let Some(inner) = pattern.strip_prefix("**/").and_then(|it| it.strip_suffix("/**")) {
        return place.split('/').any(|step| step == inner);
    }
    let mut steps = place.split('/');
    for wanted in pattern.split('/') {
        match (wanted, steps.next()) {
            ("**", Some(_)) => return true,
            ("*", Some(_)) => {}
            (wanted, Some(step)) if wanted == step => {}
            _ => return false,
        }
    }
    steps.next().is_none()
}

/// Whether the guest may write to its loader, as QEMU opens it.
fn is_writable(loader: Node<'_, '_>) -> bool {
    let attribute = |name: &str| loader.attribute(name);
    let beside = loader
        .parent()
        .is_some_and(|os| child(os, "nvram").is_some() || child(os, "varstore").is_some());
    match attribute("readonly") {
        Some("yes") => false,
        Some(_) => attribute("type") != Some("rom"),
        // With variables of its own the code is not written to.
        None => attribute("type") == Some("pflash") && !beside && !is_stateless(loader),
    }
}

fn is_stateless(loader: Node<'_, '_>) -> bool {
    loader.attribute("stateless") == Some("yes")
}

/// What `<os>` says of the firmware's variables.
pub(super) fn firmware_of(os: Node<'_, '_>) -> Firmware {
    let loader = child(os, "loader");
    let varstore = child(os, "varstore");
    let is_flash = |loader: &Node<'_, '_>| loader.attribute("type") == Some("pflash");
    let named = child(os, "nvram").is_some() || varstore.is_some();
    let is_efi = os.attribute("firmware") == Some("efi");
    let path = |node: Node<'_, '_>| text_of(node).filter(|it| is_path(it)).map(PathBuf::from);
    Firmware {
        has_variables: (named || is_efi || loader.as_ref().is_some_and(is_flash))
            && !loader.is_some_and(is_stateless),
        is_varstore: varstore.is_some(),
        varstore: varstore.and_then(|it| it.attribute("path")).map(PathBuf::from),
        loader: loader.filter(|loader| is_writable(*loader)).and_then(path),
    }
}

/// The secrets that a domain's TPM is encrypted with.
pub(super) fn tpm_secret(domain: Node<'_, '_>) -> Option<String> {
    let devices = child(domain, "devices")?;
    let tpms = elements(devices).filter(|node| node.tag_name().name() == "tpm");
    let backends = tpms.filter_map(|tpm| child(tpm, "backend"));
    let mut secrets =
        backends.filter_map(|backend| child(backend, "encryption")?.attribute("secret"));
    secrets.next().map(short)
}

#[cfg(test)]
mod tests;
