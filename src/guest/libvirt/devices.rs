//! Devices that are the host's, or that two guests can't both have, as a whole; and what the command
//! line of QEMU names.

use roxmltree::Node;

use super::parse::{child, elements, short};
use super::resources::Fate;

/// An element of a definition that is listed as a whole.
#[derive(Debug)]
pub(super) struct Held {
    /// What it is, for people.
    pub what: String,
    pub fate: Fate,
    /// A second guest must not have it.
    pub shared: bool,
}

const ANOTHER_HOST: &str = "a restore on another host needs one there";
const ITS_FILES: &str = "back up its files by other means";
const BY_OTHER_MEANS: &str = "back it up by other means if the guest needs it";
const NOTHING_LASTS: &str = "nothing in it lasts longer than the guests that use it";
const ITS_SERIAL: &str = "it is the serial port before it under another name";
const A_CONNECTION: &str = "it leads to another program, and holds nothing of the guest's";

/// What an element is if it has to be listed as a whole.
pub(super) fn held(node: Node<'_, '_>) -> Option<Held> {
    let kind = node.attribute("type").unwrap_or_default();
    let missing =
        |what: String, advice, shared| Some(Held { what, fate: Fate::Missing(advice), shared });
    let harmless = |what: &str, why| {
        Some(Held { what: what.to_owned(), fate: Fate::Harmless(why), shared: true })
    };
    match node.tag_name().name() {
        "hostdev" => {
            missing(format!("a host device ({kind}{})", source_of(node)), ANOTHER_HOST, true)
        }
        "tpm" => {
            let backend = child(node, "backend")?;
            let kind = backend.attribute("type").unwrap_or_default();
            (kind != "emulator").then(|| Held {
                what: format!("a TPM of the host ({})", words(backend)),
                fate: Fate::Missing(ANOTHER_HOST),
                shared: true,
            })
        }
        "filesystem" if kind == "ram" => None,
        "filesystem" => {
            let what = format!("what the guest shares with the host ({})", words(node));
            missing(what, ITS_FILES, child(node, "readonly").is_none())
        }
        "shmem" => harmless("memory that guests share", NOTHING_LASTS),
        "lease" => missing(format!("a lease ({})", words(node)), BY_OTHER_MEANS, true),
        "input" if child(node, "source").is_some() => missing(
            format!("an input device of the host ({kind}{})", source_of(node)),
            ANOTHER_HOST,
            true,
        ),
        "interface" => match kind {
            "hostdev" | "vdpa" => {
                let what = format!("a network device of the host ({kind}{})", source_of(node));
                missing(what, ANOTHER_HOST, true)
            }
            "vhostuser" => harmless("a socket of its network", A_CONNECTION),
            _ => None,
        },
        "smartcard" => match node.attribute("mode") {
            Some("host") => missing("a smart card of the host".to_owned(), ANOTHER_HOST, true),
            Some("host-certificates") => {
                let what = format!("certificates of the host ({})", words(node));
                missing(what, BY_OTHER_MEANS, false)
            }
            _ => character(node, kind),
        },
        "serial" | "parallel" | "console" | "channel" | "redirdev" => character(node, kind),
        "commandline" => command_line(node),
        _ => None,
    }
}

/// A device that reads and writes characters.
fn character(node: Node<'_, '_>, kind: &str) -> Option<Held> {
    let what =
        |what: &str| format!("{what} of its {} port{}", node.tag_name().name(), source_of(node));
    let is_serial = is_serial_again(node);
    let missing =
        |advice| if is_serial { Fate::Harmless(ITS_SERIAL) } else { Fate::Missing(advice) };
    let fate = missing(BY_OTHER_MEANS);
    match kind {
        "file" => Some(Held { what: what("the output"), fate, shared: true }),
        "pipe" => Some(Held { what: what("the pipe"), fate, shared: true }),
        "dev" => {
            let fate = missing(ANOTHER_HOST);
            Some(Held { what: what("the host's device"), fate, shared: true })
        }
        "unix" => {
            let source = child(node, "source")?;
            let binds = source.attribute("mode") == Some("bind") && source.has_attribute("path");
            let fate = Fate::Harmless(A_CONNECTION);
            binds.then(|| Held { what: what("the socket"), fate, shared: true })
        }
        _ => None,
    }
}

/// Whether a console is only libvirt's second name for the serial port before it: one file is not to be
/// told of twice.
fn is_serial_again(node: Node<'_, '_>) -> bool {
    let key = |node: Node<'_, '_>| {
        let path = child(node, "source")?.attribute("path")?;
        Some((node.attribute("type")?.to_owned(), path.to_owned()))
    };
    let before = node.prev_sibling_element().filter(|it| it.tag_name().name() == "serial");
    let is_console = node.tag_name().name() == "console";
    is_console && key(node).is_some_and(|own| before.and_then(key) == Some(own))
}

/// The sources of an element, in words, with a space in front.
fn source_of(node: Node<'_, '_>) -> String {
    let sources = elements(node).filter(|it| it.tag_name().name() == "source");
    short(&sources.map(|source| format!(" {}", words(source))).collect::<String>())
}

/// What an element and those in it say, as far as it is short.
fn words(node: Node<'_, '_>) -> String {
    let mut said = String::new();
    for part in node.descendants() {
        let values = part.attributes().map(|it| format!(" {}={}", it.name(), it.value()));
        let text = part.is_text().then(|| part.text()).flatten().map(str::trim);
        let text = text.filter(|text| !text.is_empty()).map(|text| format!(" {text}"));
        said.extend(values.chain(text));
        if said.len() > 200 {
            break;
        }
    }
    short(said.trim_start())
}

/// Options of QEMU that name nothing of the host's as long as their argument has no path in it.
const PLAIN: &[&str] = &[
    "accel",
    "action",
    "append",
    "audiodev",
    "boot",
    "cpu",
    "d",
    "device",
    "display",
    "enable-kvm",
    "global",
    "icount",
    "k",
    "M",
    "m",
    "machine",
    "msg",
    "name",
    "netdev",
    "nic",
    "no-hpet",
    "no-reboot",
    "no-shutdown",
    "no-user-config",
    "nodefaults",
    "overcommit",
    "rtc",
    "S",
    "sandbox",
    "set",
    "smbios",
    "smp",
    "spice",
    "uuid",
    "vga",
    "vnc",
    "watchdog",
    "watchdog-action",
];

/// What QEMU is told besides the definition, if it may name something of the host's.
fn command_line(node: Node<'_, '_>) -> Option<Held> {
    let arguments: Vec<&str> = elements(node)
        .filter(|it| it.tag_name().name() == "arg")
        .filter_map(|it| it.attribute("value"))
        .collect();
    let mut named: Vec<String> = Vec::new();
    let mut option: Option<&str> = None;
    for (index, argument) in arguments.iter().enumerate() {
        let next_is_option = arguments.get(index + 1).is_none_or(|next| next.starts_with('-'));
        match (option, argument.strip_prefix('-')) {
            (None, Some(name)) if !next_is_option => option = Some(name.trim_start_matches('-')),
            (None, Some(name)) if is_plain(name.trim_start_matches('-'), "") => {}
            (None, _) => named.push((*argument).to_owned()),
            (Some(name), _) => {
                if !is_plain(name, argument) {
                    named.push(format!("-{name} {argument}"));
                }
                option = None;
            }
        }
    }
    let paths = elements(node).filter(|it| it.tag_name().name() == "env");
    let paths = paths.filter(|it| it.attribute("value").is_some_and(|value| value.contains('/')));
    named.extend(
        paths.map(|it| format!("the variable {}", it.attribute("name").unwrap_or_default())),
    );
    let shown: Vec<String> = named.iter().map(|it| short(it)).take(20).collect();
    (!named.is_empty()).then(|| Held {
        what: format!("what QEMU's command line names ({})", shown.join(", ")),
        fate: Fate::Missing(BY_OTHER_MEANS),
        shared: true,
    })
}

/// Whether an option with its argument names nothing of the host's.
fn is_plain(name: &str, argument: &str) -> bool {
    let device = argument.split(',').next().unwrap_or_default().trim_start_matches("driver=");
    let hosts =
        ["vfio", "usb-host", "vhost", "scsi-generic", "scsi-block", "ivshmem", "ccid-card", "{"];
    let is_hosts = name == "device" && hosts.iter().any(|it| device.starts_with(it));
    PLAIN.contains(&name) && !is_hosts && !argument.contains('/') && !argument.contains("file=")
}
