//! The way back with the names of a site: the page of the documentation, in which what belongs to a site is put
//! between the marks.

use bytesize::ByteSize;

use crate::base::printable::printable;
use crate::base::printable::shell_word as word;
use crate::flows::jobs::words::{operand, option};
use crate::flows::report::{KitGuest, KitKind, KitReport, KitRepository};

/// The page.
const PAGE: &str = include_str!("../../../../docs/disaster-recovery.md");
/// What a place for the site's own begins with, and ends with.
const BEGIN: &str = "<!-- site: ";
const END: &str = "<!-- end -->";

/// The page of a site.
pub(super) fn of(kit: &KitReport) -> String {
    let mut page = String::new();
    let mut lines = PAGE.lines();
    while let Some(line) = lines.next() {
        page += &format!("{}\n", without_links(line));
        let Some(name) = line.strip_prefix(BEGIN).and_then(|rest| rest.strip_suffix(" -->")) else {
            continue;
        };
        let own = match name {
            "assess" => assess(kit),
            "provision" => provision(kit),
            "repositories" => repositories(kit),
            "host" => host(kit),
            "guests" => guests(kit),
            "check" => check(kit),
            _ => report(kit),
        };
        page += &format!("{}\n{END}\n", own.trim_end());
        // What the page has there belongs to another site.
        lines.by_ref().find(|line| *line == END);
    }
    page
}

/// A line whose links lead to pages that the kit does not have: their names stay.
fn without_links(line: &str) -> String {
    let mut text = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("](") {
        let (Some(open), Some((page, after))) = (before.rfind('['), after.split_once(')')) else {
            break;
        };
        let name = before.get(open + 1..).unwrap_or("");
        text += before.get(..open).unwrap_or("");
        text += &match page.contains("://") {
            true => format!("[{name}]({page})"),
            false => format!("{name} in qdelta's documentation"),
        };
        rest = after;
    }
    text + rest
}

/// Text in which nothing is Markdown, for a cell of a table or a heading.
fn cell(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in printable(text).chars() {
        if "\\`*_<>[]|".contains(c) {
            plain.push('\\');
        }
        plain.push(c);
    }
    plain
}

fn size(guest: &KitGuest) -> u64 {
    guest.disks.iter().map(|disk| disk.bytes).sum()
}

fn gib(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}

fn or_dash(text: Option<impl ToString>) -> String {
    text.map_or("-".to_owned(), |text| text.to_string())
}

/// The job of a guest.
fn class(guest: &KitGuest) -> &str {
    if guest.job.is_empty() { "no job covers it" } else { &guest.job }
}

/// What a guest's files are called below `$TO`.
fn stem(text: &str) -> String {
    let fitting = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    let stem: String = text.chars().map(fitting).take(100).collect();
    stem.trim_start_matches(['.', '-']).to_owned()
}

/// The options that open a guest's repository.
fn options(kit: &KitReport, name: &str) -> String {
    let place = kit.repositories.iter().find(|it| it.repository == name);
    let Some(repository) = place else { return format!("--repo PLACE-OF-{name}") };
    let key = match repository.with_key {
        true => format!(" --key-file \"${}\"", key_variable(repository)),
        false => String::new(),
    };
    format!("--repo {}{key}", word(&repository.place))
}

fn key_variable(repository: &KitRepository) -> String {
    format!("KEY_{}", stem(&repository.repository).replace(['.', '-'], "_").to_uppercase())
}

fn assess(kit: &KitReport) -> String {
    let mut text = format!(
        "This page is of the host **{}**, written at {} by qdelta {}.\n\n",
        cell(&kit.host),
        kit.made.strftime("%Y-%m-%d %H:%M UTC"),
        kit.version
    );
    text += "| order | guest | class | RTO | RPO | disks | newest point | repository |\n";
    text += "| ---: | --- | --- | --- | --- | ---: | --- | --- |\n";
    for (index, guest) in kit.guests.iter().enumerate() {
        text += &format!(
            "| {} | {} | {} | {} | {} | {} | {} | {} |\n",
            index + 1,
            cell(&guest.guest),
            or_dash(Some(&guest.job).filter(|job| !job.is_empty())),
            or_dash(guest.rto),
            or_dash(guest.rpo),
            gib(size(guest)),
            guest
                .made
                .map_or("**none**".to_owned(), |it| it.strftime("%Y-%m-%d %H:%M UTC").to_string()),
            or_dash(Some(&guest.repository).filter(|it| !it.is_empty())),
        );
    }
    if !kit.problems.is_empty() {
        text += "\nWhen this page was written, not all was right:\n\n";
        for problem in &kit.problems {
            text += &format!("- {}\n", cell(&problem.text));
        }
    }
    text
}

fn provision(kit: &KitReport) -> String {
    let room: u64 = kit.guests.iter().map(size).sum();
    let program = match kit.program_is_static {
        true => {
            "The program of this kit needs nothing of the system: it runs on every Linux of x86-64."
        }
        false => {
            "The program of this kit needs the libraries that it was built with (`ldd qdelta` shows them): where it does \
             not start, install a package of qdelta."
        }
    };
    format!(
        "All disks together have {}. {program}\n\n```sh\nTO=/srv/restored\nmkdir -p \"$TO\"\n\
         install -m 755 qdelta /usr/local/bin/qdelta\nqdelta --version\n```\n",
        gib(room)
    )
}

fn repositories(kit: &KitReport) -> String {
    let mut text = String::new();
    for repository in &kit.repositories {
        let name = &repository.repository;
        text += &format!("**{name}** is at `{}`", printable(&repository.place).replace('`', "'"));
        let on_this_host = match repository.on_this_host {
            Some(true) => " It lies on disks of this host: if they are lost, it is, too.",
            _ => "",
        };
        match &repository.recipient {
            None if !repository.opened => {
                text += &format!(
                    ", and could not be opened when this page was written.{on_this_host}\n\n```sh\n"
                );
                if repository.with_key {
                    text += &format!("{}=/media/keys/{name}.key\n", key_variable(repository));
                }
            }
            None => text += &format!(", and is not encrypted.{on_this_host}\n\n```sh\n"),
            Some(recipient) => {
                text += &format!(
                    ", encrypted to `{recipient}`.{on_this_host} These keys open it:\n\n| key | by |\n| --- | --- |\n"
                );
                for key in &repository.keys {
                    let by = key.kinds.iter().map(|kind| match kind.as_str() {
                        "scrypt" => "a passphrase, which somebody knows or has on paper",
                        "X25519" => "a file that an admin keeps (`AGE-SECRET-KEY-1…`)",
                        other => other,
                    });
                    text += &format!(
                        "| {} | {} |\n",
                        cell(&key.name),
                        by.collect::<Vec<_>>().join(", ")
                    );
                }
                text += "\nSay where it is: the file, or one with the passphrase in it.\n\n```sh\n";
                text += &format!("{}=/media/keys/{name}.key\n", key_variable(repository));
                text += &format!("qdelta key verify {}\n", options(kit, name));
            }
        }
        text += &format!("qdelta points {}\n```\n\n", options(kit, name));
    }
    text
}

fn host(kit: &KitReport) -> String {
    let hosts: Vec<&KitGuest> =
        kit.guests.iter().filter(|it| it.kind == KitKind::Host && it.point.is_some()).collect();
    if hosts.is_empty() {
        return "No repository has it: `with_host_config = true` in a job keeps it.\n".to_owned();
    }
    let mut text = "```sh\n".to_owned();
    for host in hosts {
        let name = host.domain.strip_prefix("host.").unwrap_or(&host.domain);
        let options = options(kit, &host.repository);
        text += &format!(
            "qdelta restore --host-config {} --to \"$TO\"/host {options}\n",
            option("--host", name)
        );
    }
    text + "```\n"
}

fn guests(kit: &KitReport) -> String {
    let mut text = String::new();
    for guest in kit.guests.iter().filter(|guest| guest.kind != KitKind::Host) {
        let rto = guest.rto.map(|rto| format!(", to be back within {rto}")).unwrap_or_default();
        text += &format!(
            "**{}** ({}{rto}), {}:\n\n",
            cell(&guest.guest),
            class(guest),
            gib(size(guest))
        );
        if guest.point.is_none() {
            text += "there is no point of it: it can't be restored.\n\n";
            continue;
        }
        if !guest.others.is_empty() {
            text += &format!(
                "It comes from {}, and is in {}, too.\n\n",
                guest.repository,
                guest.others.join(", ")
            );
        }
        let (options, stem) = (options(kit, &guest.repository), stem(&guest.domain));
        text += "```sh\n";
        match guest.kind {
            KitKind::Guest => {
                let name = operand(&guest.guest);
                text += &format!(
                    "qdelta restore --domain {} --to \"$TO\"/{stem} {options}\n",
                    word(&guest.domain)
                );
                text += &format!(
                    "virsh define \"$TO\"/{stem}/{}.xml\nvirsh start {name}\n",
                    self::stem(&guest.guest)
                );
            }
            KitKind::Disks | KitKind::Host => {
                for disk in &guest.disks {
                    let from = word(&format!("{}/{}", guest.domain, disk.disk));
                    text += &format!(
                        "qdelta restore {from} \"$TO\"/{stem}-{}.raw {options}\n",
                        self::stem(&disk.disk)
                    );
                }
            }
        }
        text += "```\n\n";
    }
    text
}

fn check(kit: &KitReport) -> String {
    let mut text = "```sh\n".to_owned();
    let running = kit.guests.iter().filter(|it| it.kind == KitKind::Guest && it.point.is_some());
    for guest in running {
        text += &format!("virsh domstate {}\n", operand(&guest.guest));
    }
    text + "install -D -m 600 qdelta.toml /etc/qdelta/qdelta.toml\nqdelta config check\n```\n"
}

fn report(kit: &KitReport) -> String {
    let mut text =
        "| guest | may take | began | worked again | its data is of | by whom |\n".to_owned();
    text += "| --- | --- | --- | --- | --- | --- |\n";
    for guest in &kit.guests {
        text += &format!("| {} | {} | | | | |\n", cell(&guest.guest), or_dash(guest.rto));
    }
    text
}
