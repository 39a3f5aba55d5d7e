//! Every command that the pages show can be typed.
//!
//! On the page about attacks, the restore that everybody would copy was refused: a disk has no `--to`.

use std::path::Path;

use clap::CommandFactory;

use super::super::super::args::Cli;
use super::accepts;

/// The pages, by name, with their text.
fn pages() -> Vec<(String, String)> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = Vec::new();
    for folder in [top.to_path_buf(), top.join("docs")] {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|end| end == "md") {
                let text = std::fs::read_to_string(&path).unwrap();
                pages.push((path.display().to_string(), text));
            }
        }
    }
    assert!(pages.len() > 20, "these can't be all pages");
    pages
}

/// The words of a line for a shell, up to what is no longer the first command's.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quote = None;
    for character in line.chars() {
        match (character, quote) {
            ('\'' | '"', None) => quote = Some(character),
            (it, Some(open)) if it == open => quote = None,
            ('|' | '>' | '<' | '&' | ';' | ')', None) => break,
            ('#', None) if words.last().unwrap().is_empty() => break,
            (' ', None) => words.push(String::new()),
            (other, _) => words.last_mut().unwrap().push(other),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// The command that words name, how many they are, and whether all of it is one that there is.
fn command_of(words: &[String]) -> (clap::Command, usize) {
    let mut command = Cli::command();
    command.build();
    let mut depth = 0;
    for word in words {
        let Some(inner) = command.find_subcommand(word).cloned() else { break };
        command = inner;
        depth += 1;
    }
    (command, depth)
}

#[test]
fn every_command_that_a_page_shows_can_be_typed() {
    let mut shown = 0;
    for (page, text) in pages() {
        for block in text.split("```").skip(1).step_by(2) {
            for line in block.replace("\\\n", " ").lines() {
                let line = line.trim_start().trim_start_matches("$ ");
                let line = line.trim_start_matches("ExecStart=/usr/bin/");
                let Some(line) = line.strip_prefix("qdelta ") else { continue };
                let words = words(line);
                // What stands for something else, and lines of prose in a drawing.
                let (_, depth) = command_of(&words);
                let stands_for_others = words.iter().any(|word| word.contains(['…', '[']));
                if stands_for_others || (depth == 0 && !line.starts_with('-')) {
                    continue;
                }
                let (command, words) = words.split_at(depth);
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                if words == ["--version"] {
                    continue;
                }
                let accepted = accepts(&command.join(" "), &words);
                accepted.unwrap_or_else(|why| panic!("{page}: {line}: {why}"));
                shown += 1;
            }
        }
    }
    assert!(shown > 80, "{shown} commands can't be all");
}

/// In a sentence a command has words in capitals for what it means: its options are looked at alone.
#[test]
fn every_option_that_a_page_names_with_a_command_is_one_of_it() {
    let mut named = 0;
    for (page, text) in pages() {
        let prose: String = text.split("```").step_by(2).collect();
        for code in prose.split('`').skip(1).step_by(2) {
            let Some(line) = code.strip_prefix("qdelta ") else { continue };
            let words = words(&line.replace('\n', " "));
            let (command, depth) = command_of(&words);
            let is_any = words.first().is_none_or(|word| word.starts_with(['-', 'C', '[']));
            assert!(depth > 0 || is_any, "{page}: {line}: there is no such command");
            if depth == 0 {
                continue;
            }
            for word in words.iter().filter_map(|word| word.strip_prefix("--")) {
                let name = word.split('=').next().unwrap();
                let is_one = command.get_arguments().any(|it| it.get_long() == Some(name));
                assert!(is_one || name == "help", "{page}: {line}: there is no --{name}");
                named += 1;
            }
        }
    }
    assert!(named > 40, "{named} options can't be all");
}
