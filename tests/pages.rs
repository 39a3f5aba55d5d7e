//! The pages for people name paths that exist, and the library's first page leads to every call that
//! the library offers.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The pages at the top of the tree and in `docs/`, with their text.
fn pages() -> Vec<(PathBuf, String)> {
    let mut pages = Vec::new();
    for folder in [top().to_path_buf(), top().join("docs")] {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "md") {
                let text = std::fs::read_to_string(&path).unwrap();
                pages.push((path, text));
            }
        }
    }
    assert!(pages.len() > 10, "these can't be all pages");
    pages
}

/// A page that names a folder by the name that it had before sends people looking.
#[test]
fn paths_that_pages_name_exist() {
    let places =
        ["src/", "formats/", "tests/", "scripts/", "fuzz/", "benches/", "examples/", "docs/"];
    let mut missing = Vec::new();
    let mut checked = 0;
    for (page, text) in pages() {
        // The log of changes names what was there at the time.
        if page.ends_with("CHANGELOG.md") {
            continue;
        }
        // Pieces in backquotes may go over the end of a line; blocks of code show other things.
        let prose: String = text.split("```").step_by(2).collect();
        for code in prose.split('`').skip(1).step_by(2) {
            // Code may be a command; a word with braces, stars or capitals stands for several paths.
            for word in code.split_whitespace() {
                let whole = word.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
                let stands_for_others =
                    word.chars().any(|c| c.is_ascii_uppercase()) && !word.ends_with(".md");
                if !places.iter().any(|place| word.starts_with(place))
                    || !whole
                    || stands_for_others
                {
                    continue;
                }
                checked += 1;
                if !top().join(word).exists() {
                    missing.push(format!("{}: {word}", page.display()));
                }
            }
        }
    }
    assert!(checked > 20, "{checked} paths can't be all");
    assert!(missing.is_empty(), "paths that are not there:\n{}", missing.join("\n"));
}

/// The first page is the map of the library: who is offered an item finds the way to it there, or
/// sees it used in an example.
#[test]
fn the_first_page_of_the_library_leads_to_every_call() {
    let text = std::fs::read_to_string(top().join("src/lib.rs")).unwrap();
    let page: String = text.lines().filter(|line| line.starts_with("//!")).collect();
    let code: String = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join(" ");
    let offered: BTreeSet<&str> = code
        .split("pub use ")
        .skip(1)
        .filter_map(|item| item.split_once(';'))
        .flat_map(|(item, _)| {
            let list = item.rsplit_once('{').map_or_else(
                || item.rsplit("::").next().unwrap(),
                |(_, list)| list.trim_end().trim_end_matches('}'),
            );
            list.split(',').map(str::trim).filter(|name| !name.is_empty())
        })
        .map(|name| name.rsplit(" as ").next().unwrap().trim())
        .collect();
    assert!(offered.contains("Repository") && offered.contains("backup"), "{offered:?}");
    let is_call = |name: &&&str| name.starts_with(|c: char| c.is_ascii_lowercase());
    let lost: Vec<_> = offered
        .iter()
        .filter(is_call)
        .filter(|name| **name != "formats" && !page.contains(&format!("[`{name}`]")))
        .collect();
    assert!(lost.is_empty(), "the first page does not lead to {lost:?}");
}

/// A caller who writes down what an example shows must not depend on what may change at any time.
#[test]
fn examples_use_the_chosen_interface_alone() {
    let hidden =
        ["base", "disk", "flows", "guest", "vault"].map(|room| format!("qdelta::{room}::"));
    let mut checked = 0;
    for entry in std::fs::read_dir(top().join("examples")).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        checked += 1;
        let found = hidden.iter().find(|room| text.contains(room.as_str()));
        assert_eq!(found, None, "{}", path.display());
    }
    assert!(checked >= 2, "{checked} examples can't be all");
}

/// The text of a file of the tree.
fn text_of(path: &str) -> String {
    std::fs::read_to_string(top().join(path)).unwrap()
}

/// Scripts look for words of results; the word of a missing key was on no page.
#[test]
fn the_pages_name_every_word_that_a_result_may_hold() {
    let pages = text_of("docs/json.md") + &text_of("docs/jobs.md");
    let mut sources = vec![top().join("src/base/error.rs")];
    let reports = std::fs::read_dir(top().join("src/flows/report")).unwrap();
    sources.extend(reports.map(|entry| entry.unwrap().path()));
    let (mut checked, mut missing) = (0, Vec::new());
    for source in sources {
        let text = std::fs::read_to_string(&source).unwrap();
        for words in text.split("rename_all = \"kebab-case\"").skip(1) {
            let Some((_, body)) = words.split_once(" enum ") else { continue };
            let body = body.split("\n}").next().unwrap();
            for line in body.lines().skip(1).filter_map(|line| line.strip_prefix("    ")) {
                let name: String = line.chars().take_while(char::is_ascii_alphanumeric).collect();
                // That nobody reads the output any more is told to nobody.
                if !name.starts_with(|c: char| c.is_ascii_uppercase()) || name == "Closed" {
                    continue;
                }
                let mut word = String::new();
                for letter in name.chars() {
                    if letter.is_ascii_uppercase() && !word.is_empty() {
                        word.push('-');
                    }
                    word.push(letter.to_ascii_lowercase());
                }
                checked += 1;
                if !pages.contains(&format!("`{word}`")) && !pages.contains(&format!("\"{word}\""))
                {
                    missing.push(format!("{}: {word}", source.display()));
                }
            }
        }
    }
    assert!(checked > 80, "{checked} words can't be all");
    assert!(missing.is_empty(), "no page names these words of results:\n{}", missing.join("\n"));
}

/// Whoever writes the file of jobs finds every key on the page.
#[test]
fn the_pages_name_every_key_of_the_file_of_jobs() {
    let pages = text_of("docs/jobs.md") + &text_of("docs/alarms.md");
    let top = "[repositories.main]\nplace = \"r\"\n[jobs.a]\nguests = [\"x\"]\n";
    let mut checked = 0;
    for table in [
        "[repositories.b]\nplace = \"s\"",
        "[limits]",
        "[libvirt]",
        "[hooks]",
        "[metrics]",
        "[notify.a]\nmail = \"root\"",
        "",
        "[[jobs.a.images]]\npath = \"/x\"",
        "[jobs.a.copy]\nto = \"b\"",
        "[jobs.a.verify]",
        "[jobs.a.prune]",
        "[jobs.a.drill]",
        "[jobs.a.hooks]",
    ] {
        for known in keys_beside(&format!("{top}{table}\nqqqqqqqqqqqqqqqq = 1\n")) {
            let forms = [format!("`{known}`"), format!("\n{known} = "), format!(".{known}]")];
            assert!(forms.iter().any(|it| pages.contains(it)), "no page names {known} of {table}");
            checked += 1;
        }
    }
    for known in keys_beside(&format!("qqqqqqqqqqqqqqqq = 1\n{top}")) {
        let forms = [format!("`{known}`"), format!("`[{known}")];
        assert!(forms.iter().any(|it| pages.contains(it)), "no page names {known}");
        checked += 1;
    }
    assert!(checked > 70, "{checked} keys can't be all");
}

/// What qdelta says might have been meant by a key that means nothing.
fn keys_beside(text: &str) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qdelta.toml");
    std::fs::write(&path, text).unwrap();
    let mut qdelta = std::process::Command::new(env!("CARGO_BIN_EXE_qdelta"));
    let ran = qdelta.args(["config", "check", "--config"]).arg(path).output().unwrap();
    let said = String::from_utf8(ran.stderr).unwrap();
    let (_, known) = said.split_once("there are ").unwrap_or_else(|| panic!("{text}: {said}"));
    known.split([',', '\n']).map(str::trim).filter(|it| !it.is_empty()).map(str::to_owned).collect()
}

/// The page on tests lacked two of the scenarios with real guests.
#[test]
fn the_page_on_tests_names_every_scenario() {
    let page = text_of("docs/testing.md");
    let list = text_of("scripts/rig/scenarios/__init__.py");
    let names = list.lines().filter_map(|line| line.strip_prefix("    \"")?.split('"').next());
    let names: Vec<&str> = names.collect();
    assert!(names.len() > 20, "{names:?}");
    let words: BTreeSet<&str> = page.split([' ', '`', ',', '\n']).collect();
    let missing: Vec<_> = names.iter().filter(|name| !words.contains(**name)).collect();
    assert!(missing.is_empty(), "docs/testing.md does not name {missing:?}");
}

/// The map had neither archives of tar nor programs.
#[test]
fn the_map_shows_every_room_of_the_formats() {
    let map = text_of("ARCHITECTURE.md");
    let rooms = text_of("formats/src/lib.rs");
    let rooms = rooms.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    let missing: Vec<&str> = rooms.filter(|room| !map.contains(&format!("`{room}`"))).collect();
    assert!(missing.is_empty(), "the map of ARCHITECTURE.md does not show {missing:?}");
}

/// Pages are read in terminals, and as changes; tables and samples can't be broken.
#[test]
fn prose_keeps_to_its_margin() {
    let mut wide = Vec::new();
    for (page, text) in pages() {
        let (mut is_sample, mut is_made) = (false, false);
        for (index, line) in text.lines().enumerate() {
            is_sample ^= line.starts_with("```");
            // What `export-kit` fills in.
            is_made = (is_made || line.starts_with("<!-- site")) && !line.starts_with("<!-- end");
            let len = line.chars().count();
            if len > 130 && !is_sample && !is_made && !line.starts_with('|') {
                wide.push(format!("{}:{}: {len}", page.display(), index + 1));
            }
        }
    }
    assert!(wide.is_empty(), "lines of more than 130 characters:\n{}", wide.join("\n"));
}

/// Who writes a unit or a script finds every variable that qdelta and the programs beside it read.
#[test]
fn the_pages_name_every_variable() {
    let all: String = pages().into_iter().map(|(_, text)| text).collect();
    let mut folders = vec![top().join("src"), top().join("scripts/snapshot-commands")];
    let mut files = vec![top().join("scripts/drill-boot")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    let mut missing = BTreeSet::new();
    let mut found = BTreeSet::new();
    for file in files {
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        for piece in text.split('"') {
            let is_variable = (piece.starts_with("QDELTA_") || piece.starts_with("DRILL_"))
                && piece.chars().all(|c| c.is_ascii_uppercase() || c == '_');
            if is_variable {
                found.insert(piece.to_owned());
                if !all.contains(piece) {
                    missing.insert(piece.to_owned());
                }
            }
        }
    }
    assert!(found.len() > 25, "{found:?} can't be all");
    assert!(missing.is_empty(), "no page names {missing:?}");
}

/// Six pages were reached from a cell of a table or from other pages alone.
#[test]
fn the_first_page_lists_every_page() {
    let first = text_of("README.md");
    let list = first.split("## Where to read on").nth(1).unwrap().split("\n## ").next().unwrap();
    let names = std::fs::read_dir(top().join("docs")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let is_missing =
        |name: &String| name.ends_with(".md") && !list.contains(&format!("(docs/{name})"));
    let missing: Vec<String> = names.filter(is_missing).collect();
    assert!(missing.is_empty(), "README.md does not list {missing:?}");
}
