//! The key of an encrypted repository, as whoever calls gives it: never on the command line, where every
//! user of the machine reads it.

use std::fs::Metadata;
use std::io::{IsTerminal, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use qdelta::disk::io::{Opener, sync_folder};
use qdelta::vault::repository::storage::{KEY_TEXT_MAX, KeyText};
use qdelta::{Code, Error, ErrorKind, Result, Warning};
use rustix::process::{Pid, Signal, kill_process_group};

use super::args::Global;
use super::copy_args::OtherKey;

/// The credential that systemd hands to a service.
const CREDENTIAL: &str = "qdelta.key";

/// The right of everybody to read a file.
const OTHERS_READ: u32 = 0o004;

/// How long a command may take that gives a key, where nobody sits at a terminal.
const COMMAND_MAX: Duration = Duration::from_secs(30);

/// Where the key comes from.
enum Source {
    File(PathBuf),
    Command(String),
}

/// The key that was given, if one was: by an option, by a variable, or by systemd.
pub(super) fn given(global: &Global) -> Result<Option<KeyText>> {
    let source = source(global, |name| std::env::var_os(name).map(PathBuf::from));
    source
        .map(|source| match source {
            Source::File(path) => from_file(&path),
            Source::Command(command) => from_command(&command),
        })
        .transpose()
}

/// The key that is given for one repository, or else the one that was given for all.
pub(super) fn of(
    key_file: Option<&Path>,
    key_command: Option<&str>,
    global: &Global,
) -> Result<Option<KeyText>> {
    match (key_file, key_command) {
        (Some(path), _) => from_file(path).map(Some),
        (None, Some(command)) => from_command(command).map(Some),
        (None, None) => given(global),
    }
}

/// The key of the second repository of a command; what was given for all if nothing was given for it.
pub(super) fn of_other(other: &OtherKey, global: &Global) -> Result<Option<KeyText>> {
    of(other.other_key_file.as_deref(), other.other_key_command.as_deref(), global)
}

fn source(global: &Global, variable: impl Fn(&str) -> Option<PathBuf>) -> Option<Source> {
    if let Some(path) = &global.key_file {
        return Some(Source::File(path.clone()));
    }
    if let Some(command) = &global.key_command {
        return Some(Source::Command(command.clone()));
    }
    let set = |name: &str| variable(name).filter(|value| !value.as_os_str().is_empty());
    if let Some(path) = set("QDELTA_KEY_FILE") {
        return Some(Source::File(path));
    }
    if let Some(command) = set("QDELTA_KEY_COMMAND") {
        return Some(Source::Command(command.to_string_lossy().into_owned()));
    }
    let credential = set("CREDENTIALS_DIRECTORY")?.join(CREDENTIAL);
    credential.exists().then_some(Source::File(credential))
}

/// The options by which another command gets the same key, with their values.
pub(super) fn options(global: &Global) -> Vec<String> {
    let given = source(global, |name| std::env::var_os(name).map(PathBuf::from));
    given.map_or_else(Vec::new, |source| match source {
        Source::File(path) => {
            let path = std::path::absolute(&path).unwrap_or(path);
            vec!["--key-file".to_owned(), path.to_string_lossy().into_owned()]
        }
        Source::Command(command) => vec!["--key-command".to_owned(), command],
    })
}

/// Warns of files with keys that everybody on this host can read: those that were given by hand or by a variable.
pub(super) fn exposed(files: &[Option<&Path>], global: &Global) -> Option<Warning> {
    let given = source(global, |name| std::env::var_os(name).map(PathBuf::from));
    let given = given.and_then(|source| match source {
        Source::File(path) => Some(path),
        Source::Command(_) => None,
    });
    let mut all = files.iter().copied().flatten().chain(given.as_deref());
    let path = all.find(|path| {
        let is_open = |it: Metadata| it.is_file() && it.permissions().mode() & OTHERS_READ != 0;
        std::fs::metadata(path).is_ok_and(is_open)
    })?;
    let shown = path.display();
    let text = format!("everybody on this host can read the key in {shown}");
    Some(Warning::new(Code::ExposedKey, text).advise(format!("chmod 600 {shown}")))
}

/// The key in a file.
pub(super) fn from_file(path: &Path) -> Result<KeyText> {
    // Whatever is said goes to the log.
    if path.as_os_str().as_encoded_bytes().to_ascii_uppercase().starts_with(b"AGE-SECRET-KEY-") {
        let text = "a key was given in the place of the name of its file";
        return Err(Error::new(ErrorKind::Usage, text).advise(
            "write it to a file that you alone can read: its name is what --key-file and QDELTA_KEY_FILE take",
        ));
    }
    let bytes = Opener::READ.read(path, KEY_TEXT_MAX);
    let bytes = bytes.map_err(|error| Error::io("read the key", path, error))?;
    parse(&bytes).map_err(|error| error.within(path.display().to_string()))
}

/// The key that a command of the shell writes.
fn from_command(command: &str) -> Result<KeyText> {
    // Where somebody sits at a terminal, the command may ask, and can be broken off.
    let limit = Some(COMMAND_MAX).filter(|_| !std::io::stdin().is_terminal());
    from_command_within(command, limit)
}

/// The same, within a time.
fn from_command_within(command: &str, limit: Option<Duration>) -> Result<KeyText> {
    let failed = |why: String| {
        Error::new(ErrorKind::Key, format!("the command for the key gave none: {command}"))
            .because(why)
    };
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(command).stdout(Stdio::piped());
    if limit.is_some() {
        // A group of its own, so that whatever it starts can be ended with it.
        shell.stdin(Stdio::null()).process_group(0);
    }
    let mut child = shell.spawn().map_err(|error| failed(error.to_string()))?;
    let (over, ended) = mpsc::sync_channel::<()>(1);
    let group = Pid::from_child(&child);
    let watch = limit.map(|limit| {
        thread::spawn(move || {
            let is_late = ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout);
            is_late && kill_process_group(group, Signal::KILL).is_ok()
        })
    });
    let mut written = Vec::new();
    if let Some(output) = child.stdout.take() {
        let read = output.take(KEY_TEXT_MAX + 1).read_to_end(&mut written);
        read.map_err(|error| failed(error.to_string()))?;
    }
    // What is written from now on finds nobody who reads it.
    let is_too_long = written.len() as u64 > KEY_TEXT_MAX;
    let ended = child.wait().map_err(|error| failed(error.to_string()))?;
    drop(over);
    if watch.is_some_and(|watch| watch.join().unwrap_or(false)) {
        return Err(failed("it was ended: it took too long".to_owned()));
    }
    match is_too_long {
        true => Err(failed(format!("it writes more than {KEY_TEXT_MAX} bytes"))),
        false if !ended.success() => Err(failed(ended.to_string())),
        false => parse(&written).map_err(|error| failed(error.chain())),
    }
}

fn parse(bytes: &[u8]) -> Result<KeyText> {
    let text = std::str::from_utf8(bytes).ok().filter(|it| it.len() as u64 <= KEY_TEXT_MAX);
    text.ok_or_else(|| Error::new(ErrorKind::Usage, "what was given as the key is no text"))?
        .parse()
}

/// The shortest passphrase that a key is wrapped with, in letters: whoever has the file can try as many as
/// he likes.
const PASSPHRASE_LEN_MIN: usize = 8;

/// The passphrase in a file, which has one line, to wrap a key with.
pub(super) fn passphrase(path: &Path) -> Result<String> {
    match from_file(path)? {
        KeyText::Passphrase(text) if text.chars().count() < PASSPHRASE_LEN_MIN => {
            let text = format!("the passphrase in {} is too short", path.display());
            Err(Error::new(ErrorKind::Usage, text)
                .because("whoever can read the repository can try as many as he likes")
                .advise("take several words by chance, eight letters at the very least"))
        }
        KeyText::Passphrase(passphrase) => Ok(passphrase),
        _ => Err(Error::new(ErrorKind::Usage, format!("{} holds a key", path.display()))
            .because("a passphrase is one line of text")),
    }
}

/// Writes a secret to a new file that its owner alone reads, durably.
pub(super) fn write_new(path: &Path, text: &str) -> Result<()> {
    let failed = |error| Error::io("write the key to", path, error);
    let file = Opener::CHANGE.create(0o600).open(path);
    let mut file = file.map_err(|error| Error::io("create", path, error))?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    let folder = path.parent().filter(|it| *it != Path::new("")).unwrap_or(Path::new("."));
    written.and_then(|()| sync_folder(folder)).map_err(failed).inspect_err(|_| {
        let _ = std::fs::remove_file(path);
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::args::Cli;

    /// The command waited for a vault that did not answer, and `status` and `run` waited with it for ever.
    #[test]
    fn a_command_for_a_key_is_not_waited_for_for_ever() {
        let of = |line: &str, limit: Duration| from_command_within(line, Some(limit));
        assert!(of("echo several words by chance", Duration::from_secs(60)).is_ok());
        let late = of("sleep 1000 & sleep 1000", Duration::from_millis(100));
        assert!(late.unwrap_err().chain().contains("it took too long"));
    }

    #[test]
    fn what_was_typed_counts_before_what_is_set() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(CREDENTIAL), "x").unwrap();
        let from = |typed: &[&str], set: &[(&str, &str)]| {
            let words = ["qdelta", "points"].iter().chain(typed);
            let global = Cli::try_parse_from(words).unwrap().global;
            let value = |name: &str| {
                set.iter().find(|(known, _)| *known == name).map(|(_, value)| PathBuf::from(value))
            };
            match source(&global, value) {
                Some(Source::File(path)) => path.display().to_string(),
                Some(Source::Command(command)) => format!("!{command}"),
                None => String::new(),
            }
        };
        let credentials = ("CREDENTIALS_DIRECTORY", dir.path().to_str().unwrap());
        let (file, command) = (("QDELTA_KEY_FILE", "/f"), ("QDELTA_KEY_COMMAND", "pass qdelta"));
        let all = [credentials, file, command];
        assert_eq!(from(&["--key-file", "/k"], &all), "/k");
        assert_eq!(from(&["--key-command", "c"], &all), "!c");
        assert_eq!(from(&[], &all), "/f");
        assert_eq!(from(&[], &[credentials, command]), "!pass qdelta");
        assert!(from(&[], &[credentials]).ends_with(CREDENTIAL));
        assert_eq!(from(&[], &[("CREDENTIALS_DIRECTORY", "/nowhere")]), "");
        assert_eq!(from(&[], &[("QDELTA_KEY_FILE", "")]), "");
    }
}
