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
