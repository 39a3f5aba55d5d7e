//! The command line: what is typed becomes a request to the library, what comes back is shown.

mod args;
mod bar;
mod combination;
mod commands;
mod copy_args;
mod examples;
mod export_args;
mod files_args;
mod guest_args;
mod job_args;
mod key_args;
mod keys;
mod near;
mod out;
mod point_args;
mod ready;
mod screen;
mod serve_args;
mod signals;
mod state;
mod status;
mod text;
mod tracking_args;
mod tree;
mod values;

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::{ArgMatches, CommandFactory, FromArgMatches};
use qdelta::base::observer::Observer;
use qdelta::base::warning::Warning;
use qdelta::vault::repository::Repository;
use qdelta::vault::repository::storage::KeyText;
use qdelta::{Error, ErrorKind, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use args::{Cli, Command, Global};
use copy_args::OtherKey;
use out::Out;
use screen::Screen;

/// Runs the program; what it returns is its exit status.
pub fn main() -> ExitCode {
    // First of all: otherwise OpenSSL frees what it has while the process ends, and threads of ours that nobody waits for
    // may just be using that.
    openssl::init();
    let (cli, matches) = match parse() {
        Ok(parsed) => parsed,
        Err(error) if error.use_stderr() && is_for_nagios() => return unknown(&error.to_string()),
        Err(error) => return refused(&error),
    };
    raise_open_files();
    let Global { quiet, json, verbose, .. } = cli.global;
    let screen = Screen::new(quiet || json, verbose > 0);
    screen::show_notes(&screen, verbose);
    let mut context = Context { out: Out::new(json, quiet), screen, global: cli.global };
    let fits = combination::check(&Cli::command(), &matches);
    if let Some(error) = fits.as_ref().err().filter(|_| is_for_nagios()) {
        return unknown(&error.chain());
    }
    let outcome = fits.and_then(|()| run(cli.command, &mut context));
    let Context { out, screen, .. } = context;
    match outcome.and_then(|status| out.finish().map(|()| status)) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            screen.end();
            screen.say(&describe(&error));
            ExitCode::from(status::of(error.kind()))
        }
    }
}

/// Whether a plugin of Nagios was asked for: its status is never that of another program.
fn is_for_nagios() -> bool {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    words.iter().any(|word| word == "status") && words.iter().any(|word| word == "--nagios")
}

/// Says on standard output, where Nagios reads, that nothing is known.
fn unknown(why: &str) -> ExitCode {
    let why = why.lines().next().unwrap_or_default().trim_start_matches("error: ");
    let mut out = Out::new(false, false);
    let _ = out.line(format!("QDELTA UNKNOWN - {}", why.replace('|', "/")));
    let _ = out.finish();
    ExitCode::from(commands::UNKNOWN)
}

/// What was typed, as values and as words.
fn parse() -> std::result::Result<(Cli, ArgMatches), clap::Error> {
    let mut program = Cli::command();
    let matches = program.try_get_matches_from_mut(std::env::args_os())?;
    let cli = Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut program))?;
    Ok((cli, matches))
}

/// Allows as many open files as the system lets us have: an image with all the layers that libvirt
/// allows has 400 of them, the disks of a guest together more.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    // Where it can't be raised, opening the file too many says so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// What a command has to work with.
struct Context {
    out: Out,
    screen: Screen,
    global: Global,
}

impl Context {
    /// The repository that was named, by somebody whose key opens what it holds.
    fn readable(&self) -> Result<Repository> {
        let repository = self.repository()?;
        if let Some(encryption) = repository.encryption() {
            encryption.check_readable()?;
        }
        Ok(repository)
    }

    /// The repository that was named.
    fn repository(&self) -> Result<Repository> {
        let dir = self.global.repo.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::Usage, "no repository was named")
                .advise("say --repo DIR, or set QDELTA_REPO")
        })?;
        let key = keys::given(&self.global)?;
        keys::exposed(&[], &self.global).into_iter().for_each(|warning| self.warn(warning));
        let state = state::folder(self.global.state.as_deref());
        let opened = match self.global.as_of {
            Some(at) => Repository::open_as_of(dir, key.as_ref(), at),
            None => Repository::open_with(dir, key.as_ref()),
        };
        Self::known(opened?, state.as_deref(), &|warning| self.warn(warning))
    }

    /// Warns of something before there is a result.
    fn warn(&self, warning: Warning) {
        let observer: &dyn Observer = &self.screen;
        observer.warn(warning.clone());
        self.out.warned(warning);
    }

    /// The second repository of a command, by somebody whose key opens what it holds.
    fn other(&self, place: &Path, key: &OtherKey) -> Result<Repository> {
        let state = state::folder(self.global.state.as_deref());
        let is_given = key.other_key_file.is_some() || key.other_key_command.is_some();
        // The key that was given for the first one opens the second one, too, if that has any.
        let has_keys = || matches!(Repository::key_ring(place), Ok(Some(_)));
        let key = match is_given || has_keys() {
            true => {
                let files = [key.other_key_file.as_deref()];
                keys::exposed(&files, &self.global).into_iter().for_each(|it| self.warn(it));
                keys::of_other(key, &self.global)?
            }
            false => None,
        };
        let opened =
            Self::open(place, key.as_ref(), state.as_deref(), &|warning| self.warn(warning));
        let repository = opened.map_err(|error| match error.kind() {
            ErrorKind::Key if !is_given => error.advise(
                "say which key opens the second repository: --other-key-file FILE, or --other-key-command COMMAND",
            ),
            _ => error,
        })?;
        if let Some(encryption) = repository.encryption() {
            encryption.check_readable()?;
        }
        Ok(repository)
    }

    /// The repository at a place, for a host that keeps its own state in this folder.
    fn open(
        place: &Path,
        key: Option<&KeyText>,
        state: Option<&Path>,
        warn: &dyn Fn(Warning),
    ) -> Result<Repository> {
        Self::known(Repository::open_with(place, key)?, state, warn)
    }

    /// A repository that was opened, for a host that keeps its own state in this folder.
    fn known(
        mut repository: Repository,
        state: Option<&Path>,
        warn: &dyn Fn(Warning),
    ) -> Result<Repository> {
        repository.recognize(state)?.into_iter().for_each(warn);
        Ok(match state {
            Some(folder) => repository.with_state(folder),
            None => repository,
        })
    }
}

/// Runs a command. The status it gives is that of a command that did its work.
fn run(command: Command, context: &mut Context) -> Result<u8> {
    if context.global.as_of.is_some() && !command.reads_only() {
        let text = "--as-of reads a repository as it was, and nothing can be written there";
        return Err(Error::new(ErrorKind::Usage, text).advise(
            "it goes with points, restore, verify, files, mount, serve, drill, copy and space",
        ));
    }
    match command {
        Command::Init(args) => commands::init::run(&args, context),
        Command::Key(args) => commands::key::run(&args, context),
        Command::Backup(args) => commands::backup::run(args, context),
        Command::Restore(args) => commands::restore::run(&args, context),
        Command::Replay(args) => commands::restore::replay(&args, context),
        Command::Files(args) => commands::files::run(&args, context),
        Command::Verify(args) => commands::verify::run(args, context),
        Command::Copy(args) => commands::copy::run(&args, context),
        Command::Repair(args) => commands::repair::run(&args, context),
        Command::Merge(args) => commands::merge::run(args, context),
        Command::Anchors(args) => commands::anchors::run(&args, context),
        Command::Points(args) => commands::points::run(&args, context),
        Command::Serve(args) => commands::serve::run(args, context),
        Command::Space(args) => commands::space::run(&args, context),
        Command::Prune(args) => commands::prune::run(&args, context),
        Command::Undelete(args) => commands::prune::undelete(&args, context),
        Command::Pin(args) => commands::pin::run(&args, context),
        Command::Unpin(args) => commands::pin::unpin(&args, context),
        Command::Info(args) => commands::info::run(&args, context),
        Command::Completions(args) => commands::shell::completions(&args, context),
        Command::Man(args) => commands::shell::man(&args, context),
        Command::Bench(args) => commands::bench::run(args, context),
        Command::Drill(args) => commands::drill::run(&args, context),
        Command::Mount(args) => commands::mount::run(&args, context),
        Command::Complete(args) => commands::complete::run(&args, context),
        Command::Map(args) => commands::map::run(args, context),
        Command::Run(args) => commands::run::run(&args, context),
        Command::Status(args) => commands::status::run(&args, context),
        Command::Notify(args) => commands::notify::run(&args, context),
        Command::Report(args) => commands::report::run(&args, context),
        Command::History(args) => commands::history::run(&args, context),
        Command::ExportKit(args) => commands::kit::run(&args, context),
        Command::Config(args) => commands::config::run(&args, context),
        Command::Watchdog => commands::watchdog::run(),
    }
}

/// A failure as people see it: what, and why; in a second line what to do.
fn describe(error: &Error) -> String {
    two_lines(&error.chain(), error.advice())
}

/// What went wrong, and in a second line what to do about it.
fn two_lines(what: &str, advice: Option<&str>) -> String {
    let advice = advice.map(|advice| format!("\n        {}", text::printable(advice)));
    format!("qdelta: {}{}", text::printable(what), advice.unwrap_or_default())
}

/// Shows what the parser has to say: help, the version, or what is wrong with the arguments.
fn refused(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        let mut out = Out::new(false, false);
        let text = error.render();
        let text =
            if io::stdout().is_terminal() { text.ansi().to_string() } else { text.to_string() };
        let shown = out.raw(&text).and_then(|()| out.finish());
        return match shown {
            Ok(()) => ExitCode::from(status::DONE),
            Err(error) => {
                let _ = writeln!(io::stderr(), "{}", describe(&error));
                ExitCode::from(status::of(error.kind()))
            }
        };
    }
    // Like every other error of the program.
    let text = near::tip(error).map(|tip| format!("error: {tip}\n"));
    let text = text.unwrap_or_else(|| error.render().to_string());
    let text = match text.strip_prefix("error: ") {
        Some(text) => format!("qdelta: {text}"),
        None => text,
    };
    let _ = write!(io::stderr(), "{}", text::printable_lines(&text));
    ExitCode::from(status::USAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_of_the_arguments_is_sound() {
        Cli::command().debug_assert();
    }

    /// The words of an example: quoted ones are one, and what follows a pipe or a redirection is
    /// somebody else's.
    fn words(example: &str) -> Vec<String> {
        let mut words = vec![String::new()];
        let mut quoted = false;
        for character in example.chars() {
            match character {
                '\'' => quoted = !quoted,
                '|' | '>' if !quoted => break,
                ' ' if !quoted => words.push(String::new()),
                other => words.last_mut().unwrap().push(other),
            }
        }
        words.retain(|word| !word.is_empty());
        words
    }

    #[test]
    fn every_example_can_be_typed() {
        let program = Cli::command();
        let commands = program.get_subcommands().filter(|command| !command.is_hide_set());
        let commands = commands.map(|command| command.get_name().to_owned());
        for name in commands.chain(["qdelta".to_owned()]) {
            let examples = examples::list(&name);
            assert!(!examples.is_empty(), "{name} has no example");
            for (_, example) in examples {
                if example.starts_with("export ") {
                    continue;
                }
                let matches = Cli::command().try_get_matches_from(words(example));
                let matches = matches.unwrap_or_else(|error| panic!("{example}: {error}"));
                assert!(name == "qdelta" || matches.subcommand_name() == Some(&name), "{example}");
            }
        }
    }

    #[test]
    fn every_argument_says_what_it_is_for() {
        let mut program = Cli::command();
        program.build();
        for command in program.get_subcommands() {
            assert!(command.get_long_about().or(command.get_about()).is_some());
            for argument in command.get_arguments() {
                let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
                assert!(!help.is_empty(), "{} {}", command.get_name(), argument.get_id());
                assert!(!help.ends_with('.'), "{} {help}", command.get_name());
            }
        }
    }

    #[test]
    fn an_error_says_what_and_then_what_to_do() {
        let error = Error::new(ErrorKind::Io, "cannot do it").because("the moon is full");
        assert_eq!(describe(&error), "qdelta: cannot do it: the moon is full");
        let error = error.advise("wait");
        assert_eq!(describe(&error), "qdelta: cannot do it: the moon is full\n        wait");
    }
}
