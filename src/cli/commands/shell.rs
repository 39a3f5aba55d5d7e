//! `qdelta completions` and `qdelta man`: what a shell and a reader need to know of the program,
//! from the definition of its arguments.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use clap_complete::generate;
use clap_mangen::{Man as Page, roff};
use qdelta::disk::io::Opener;
use qdelta::flows::report::ManReport;
use qdelta::{Error, Result};
use roff::{Roff, bold, roman};

use crate::cli::args::{Cli, Completions, Man, Shell};
use crate::cli::{Context, examples, status};

/// Writes the completions of a shell to standard output.
pub fn completions(args: &Completions, context: &mut Context) -> Result<u8> {
    let mut command = visible();
    let mut script = Vec::new();
    let shell = match args.shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    generate(shell, &mut command, "qdelta", &mut script);
    let script = String::from_utf8_lossy(&script);
    context.out.raw(&match args.shell {
        Shell::Bash => format!("{script}{BASH}"),
        Shell::Zsh => zsh(&script),
        Shell::Fish => format!("{script}{FISH}"),
    })?;
    Ok(status::DONE)
}

/// The program without what nobody types.
fn visible() -> clap::Command {
    let program = Cli::command();
    let commands = program.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    clap::Command::default()
        .name("qdelta")
        .version(env!("CARGO_PKG_VERSION"))
        .args(program.get_arguments().cloned())
        .subcommands(commands.collect::<Vec<_>>())
}

/// Disks, points and anchors, which are in no definition: the program is asked for them. Bash takes
/// `@`, `:` and `=` for ends of words and replaces only what follows the last of them.
const BASH: &str = r#"
_qdelta_values() {
    local line="${COMP_LINE:0:COMP_POINT}" values word cut
    values="$("${COMP_WORDS[0]}" complete -- "$line" 2>/dev/null)"
    if [[ -z "$values" ]]; then
        _qdelta "$@"
        return
    fi
    word="${line##* }"
    cut="${word%"${word##*[@:=]}"}"
    COMPREPLY=()
    while IFS= read -r word; do
        COMPREPLY+=("${word#"$cut"}")
    done <<< "$values"
}
complete -F _qdelta_values -o bashdefault -o default qdelta
"#;

/// As [`BASH`].
const ZSH: &str = r#"
_qdelta() {
    local -a values
    values=("${(@f)$(${words[1]} complete -- "$LBUFFER" 2>/dev/null)}")
    if [[ -n "$values" ]]; then
        compadd -- "${values[@]}"
    else
        _qdelta_words "$@"
    fi
}
"#;

/// As [`BASH`].
const FISH: &str = r#"
function __qdelta_values
    qdelta complete -- (commandline -cp | string collect) 2>/dev/null
end
complete -c qdelta -n "__qdelta_values | string length -q" -f -a "(__qdelta_values)"
complete -c qdelta -n "__fish_qdelta_using_subcommand restore" -l at -x -a "(__qdelta_values)"
complete -c qdelta -n "__fish_qdelta_using_subcommand restore" -l domain -x -a "(__qdelta_values)"
complete -c qdelta -n "__fish_qdelta_using_subcommand anchors" -l remove -x -a "(__qdelta_values)"
complete -c qdelta -n "__fish_qdelta_using_subcommand backup" -l disk -x -a "(__qdelta_values)"
"#;

/// clap's script for zsh, with the question for values before it.
fn zsh(script: &str) -> String {
    let script = script.replace("\n_qdelta() {", "\n_qdelta_words() {");
    let end = script.rfind("\nif [ \"$funcstack[1]\"").unwrap_or(script.len());
    let (functions, start) = script.split_at(end);
    format!("{functions}{ZSH}{start}")
}

/// Writes a man page of the program and one of each command into a folder.
pub fn man(args: &Man, context: &mut Context) -> Result<u8> {
    fs::create_dir_all(&args.dir)
        .map_err(|error| Error::io("make the folder", &args.dir, error))?;
    let mut program = Cli::command().disable_help_subcommand(true);
    program.build();
    let mut pages = vec![page(&args.dir, &program, "qdelta")?];
    for command in program.get_subcommands().filter(|command| !command.is_hide_set()) {
        pages.push(page(&args.dir, command, command.get_name())?);
        for verb in command.get_subcommands() {
            pages.push(page(&args.dir, verb, command.get_name())?);
        }
    }
    if context.out.json {
        context.out.json(&ManReport { pages })?;
    } else {
        for page in pages {
            context.out.success(page.display().to_string())?;
        }
    }
    Ok(status::DONE)
}

/// Writes the page of one command, and says where it is.
fn page(dir: &Path, command: &clap::Command, name: &str) -> Result<PathBuf> {
    let page = Page::new(command.clone()).manual("qdelta").date("");
    let path = dir.join(page.get_filename());
    let text = render(&page, command, name).map_err(|error| Error::io("render", &path, error))?;
    let mut file = Opener::CHANGE
        .or_create(0o666)
        .open(&path)
        .map_err(|error| Error::io("write", &path, error))?;
    file.set_len(0)
        .and_then(|()| file.write_all(&text))
        .map_err(|error| Error::io("write", &path, error))?;
    Ok(path)
}

/// A page: what the arguments say, then examples, exit statuses and where else to look.
fn render(page: &Page, command: &clap::Command, name: &str) -> std::io::Result<Vec<u8>> {
    let mut out = Vec::new();
    page.render_title(&mut out)?;
    page.render_name_section(&mut out)?;
    page.render_synopsis_section(&mut out)?;
    page.render_description_section(&mut out)?;
    page.render_options_section(&mut out)?;
    if command.has_subcommands() {
        page.render_subcommands_section(&mut out)?;
    }

    let mut roff = Roff::new();
    roff.control("SH", ["EXAMPLES"]);
    for (purpose, command) in examples::list(name) {
        roff.control("PP", []);
        roff.text([roman(format!("{purpose}:"))]);
        roff.control("PP", []);
        roff.control("RS", ["4"]);
        roff.text([bold(*command)]);
        roff.control("RE", []);
    }
    roff.control("SH", ["EXIT STATUS"]);
    for (status, meaning) in status::TABLE {
        roff.control("TP", ["6"]);
        roff.text([bold(status.to_string())]);
        roff.text([roman(*meaning)]);
    }
    roff.control("SH", ["ENVIRONMENT"]);
    roff.control("TP", []);
    roff.text([bold("QDELTA_REPO")]);
    roff.text([roman("The repository, if --repo does not say another.")]);
    roff.control("TP", []);
    roff.text([bold("STATE_DIRECTORY")]);
    roff.text([roman("The folder of what belongs to this host, if --state does not say another.")]);
    roff.control("TP", []);
    roff.text([bold("TZ")]);
    roff.text([roman("The zone of times that do not name one.")]);
    roff.control("SH", ["SEE ALSO"]);
    let others: Vec<String> = match name {
        "qdelta" => command
            .get_subcommands()
            .filter(|other| !other.is_hide_set())
            .map(|other| format!("qdelta-{}(1)", other.get_name()))
            .collect(),
        _ => vec!["qdelta(1)".to_owned()],
    };
    roff.text([roman(others.join(", "))]);
    roff.to_writer(&mut out)?;
    Ok(out)
}
