//! `qdelta complete`: the disks, points and anchors that a word of a command line may be. Only the
//! scripts of `qdelta completions` start it.

use std::path::PathBuf;

use clap::CommandFactory;
use qdelta::Result;
use qdelta::base::observer::Silent;
use qdelta::flows::anchors::inventory;
use qdelta::vault::repository::{DiskId, Repository, Wanted};

use crate::cli::args::{Cli, Complete};
use crate::cli::{Context, status};

/// What stands at the cursor.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// A disk or a guest.
    Disk,
    /// A disk or a guest, and perhaps a point.
    DiskAt,
    /// A guest.
    Guest,
    /// A point of a guest, or of a disk.
    Point(String),
    /// An anchor of a disk.
    Anchor(String),
}

/// A command line, taken apart as far as it matters.
#[derive(Debug, Default)]
struct Line {
    command: Option<String>,
    /// What stands there that belongs to no option.
    words: Vec<String>,
    /// Options and their values.
    options: Vec<(String, String)>,
    /// The option whose value is at the cursor.
    open: Option<String>,
    /// The word at the cursor, as far as it was typed.
    typed: String,
}

/// Lists what fits. Whatever fails, there is nothing to list: nobody wants to read of it while they
/// type.
pub fn run(args: &Complete, context: &mut Context) -> Result<u8> {
    let line = Line::read(&args.line);
    for candidate in candidates(&line, context).unwrap_or_default() {
        if candidate.starts_with(&line.typed) {
            context.out.line(candidate)?;
        }
    }
    Ok(status::DONE)
}

fn candidates(line: &Line, context: &Context) -> Option<Vec<String>> {
    let place = line.place()?;
    let named = line.option("repo").map(PathBuf::from);
    let repository = Repository::open(&named.or_else(|| context.global.repo.clone())?).ok()?;
    match place {
        Place::Disk => names(&repository).ok(),
        Place::Guest => Some(repository.domains().ok()?.iter().map(ToString::to_string).collect()),
        Place::DiskAt => match line.typed.rsplit_once('@') {
            Some((name, _)) => {
                let points = points(&repository, name)?;
                Some(points.into_iter().map(|point| format!("{name}@{point}")).collect())
            }
            None => names(&repository).ok(),
        },
        Place::Point(guest) => points(&repository, &guest),
        Place::Anchor(disk) => {
            let (catalog, disks) = (repository.catalog(), disks(&repository, &disk)?);
            let anchors = disks.iter().flat_map(|disk| inventory::list(&catalog, disk, &Silent));
            Some(anchors.flatten().map(|anchor| anchor.name).collect())
        }
    }
}

/// The disks, and the guests that have several.
fn names(repository: &Repository) -> Result<Vec<String>> {
    let disks = repository.catalog().survey()?.disks;
    let mut names: Vec<String> = disks.iter().map(ToString::to_string).collect();
    names.extend(disks.iter().map(|disk| disk.domain.to_string()));
    names.sort_unstable();
    names.dedup();
    Ok(names)
}

fn disks(repository: &Repository, name: &str) -> Option<Vec<DiskId>> {
    repository.catalog().find_disks(&name.parse::<Wanted>().ok()?).ok()
}

/// The points of a disk or a guest, the latest first.
fn points(repository: &Repository, name: &str) -> Option<Vec<String>> {
    let mut ids = Vec::new();
    let catalog = repository.catalog();
    for disk in disks(repository, name)? {
        let points = catalog.points(&disk).ok()?.points.into_iter();
        ids.extend(points.filter(|point| point.removed.is_none()).map(|point| point.id));
    }
    ids.sort_unstable();
    ids.dedup();
    let latest = std::iter::once("latest".to_owned());
    Some(latest.chain(ids.iter().rev().map(ToString::to_string)).collect())
}

impl Line {
    /// Takes a line apart by the program's own definition.
    fn read(text: &str) -> Self {
        let program = Cli::command();
        let mut words = split(text);
        let mut line = Self { typed: words.pop().unwrap_or_default(), ..Self::default() };
        for word in words.into_iter().skip(1) {
            if let Some(option) = line.open.take() {
                line.options.push((option, word));
            } else if let Some(option) = word.strip_prefix("--").filter(|it| !it.is_empty()) {
                match option.split_once('=') {
                    Some((name, value)) => line.options.push((name.to_owned(), value.to_owned())),
                    None if line.takes_value(&program, option) => {
                        line.open = Some(option.to_owned())
                    }
                    None => {}
                }
            } else if !word.starts_with('-') {
                match line.command {
                    None => line.command = Some(word),
                    Some(_) => line.words.push(word),
                }
            }
        }
        line
    }

    fn takes_value(&self, program: &clap::Command, option: &str) -> bool {
        let command = self.command.as_ref().and_then(|name| program.find_subcommand(name));
        let own = command.into_iter().flat_map(clap::Command::get_arguments);
        let mut all = own.chain(program.get_arguments());
        let found = all.find(|arg| arg.get_long() == Some(option));
        found.is_some_and(|arg| arg.get_action().takes_values())
    }

    fn option(&self, name: &str) -> Option<&str> {
        self.options.iter().find(|(option, _)| option == name).map(|(_, value)| value.as_str())
    }

    /// What can stand at the cursor; nothing where the repository can't help.
    fn place(&self) -> Option<Place> {
        let command = self.command.as_deref()?;
        let first = || self.words.first().cloned().unwrap_or_default();
        if let Some(option) = &self.open {
            return match (command, option.as_str()) {
                ("restore", "domain") => Some(Place::Guest),
                ("restore", "at") => Some(Place::Point(self.option("domain")?.to_owned())),
                ("backup", "disk") => Some(Place::Disk),
                ("anchors", "remove") => Some(Place::Anchor(first())),
                _ => None,
            };
        }
        if self.typed.starts_with('-') {
            return None;
        }
        match command {
            "verify" => Some(Place::DiskAt),
            // A folder comes first.
            "mount" if !self.words.is_empty() => Some(Place::DiskAt),
            "drill" => Some(Place::Guest),
            // A verb comes first.
            "files" if self.words.len() == 1 => Some(Place::DiskAt),
            _ if !self.words.is_empty() => None,
            "restore" if self.option("domain").is_some() => None,
            "restore" | "pin" | "unpin" | "undelete" => Some(Place::DiskAt),
            "points" | "anchors" => Some(Place::Disk),
            _ => None,
        }
    }
}

/// The words of a line as a shell takes them, of quotes and backslashes what names need. The last
/// one is at the cursor, and may be empty.
fn split(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quote = None;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        let mut add = |character| words.last_mut().map(|word| word.push(character));
        match (character, quote) {
            ('\\', None | Some('"')) => drop(characters.next().and_then(add)),
            (mark @ ('\'' | '"'), None) => quote = Some(mark),
            (mark, Some(open)) if mark == open => quote = None,
            (' ' | '\t', None) => {
                if words.last().is_some_and(|word| !word.is_empty()) {
                    words.push(String::new());
                }
            }
            (other, _) => drop(add(other)),
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_is_wanted() {
        let place = |text: &str| Line::read(text).place();
        assert_eq!(place("qdelta restore "), Some(Place::DiskAt));
        assert_eq!(place("qdelta --repo /r -q restore we"), Some(Place::DiskAt));
        assert_eq!(place("qdelta --repo=/r verify web@2026"), Some(Place::DiskAt));
        assert_eq!(place("qdelta restore --format raw w"), Some(Place::DiskAt));
        assert_eq!(place("qdelta files ls we"), Some(Place::DiskAt));
        assert_eq!(place("qdelta points --json w"), Some(Place::Disk));
        assert_eq!(place("qdelta restore --domain "), Some(Place::Guest));
        assert_eq!(place("qdelta backup i.qcow2 --disk "), Some(Place::Disk));
        let point = |guest: &str| Some(Place::Point(guest.to_owned()));
        assert_eq!(place("qdelta restore --domain 'Windows 2019' --at "), point("Windows 2019"));
        assert_eq!(place("qdelta restore --domain Windows\\ 2019 --at 2"), point("Windows 2019"));
        let anchor = Some(Place::Anchor("web".to_owned()));
        assert_eq!(place("qdelta anchors web --remove "), anchor);
        for nothing in [
            "qdelta ",
            "qdelta rest",
            "qdelta restore web ",
            "qdelta files g",
            "qdelta files get web /e",
            "qdelta restore web out",
            "qdelta restore -",
            "qdelta restore --format ",
            "qdelta restore --domain web --to ",
            "qdelta backup ",
            "qdelta info w",
            "qdelta --repo ",
            "",
        ] {
            assert_eq!(place(nothing), None, "{nothing}");
        }
        assert_eq!(Line::read("qdelta --repo /r restore w").option("repo"), Some("/r"));
    }
}
