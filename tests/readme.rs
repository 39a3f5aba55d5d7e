//! What the README shows is what the program does: its console sessions are run, and its links lead
//! somewhere.
//!
//! `QDELTA_SAMPLES=write cargo test --test qdelta readme::` puts what the program says now in their
//! place.

use std::path::{Path, PathBuf};

use super::harness::images::{create, guest_io};
use super::harness::repo::Repo;
use super::harness::{Lab, args, run, run::binary, state, tool};

/// Pages with sessions that can be run: those between "```console" and "```".
const PAGES: [&str; 2] = ["README.md", "docs/trackers.md"];

/// The repository as the pages call it.
const REPOSITORY: &str = "/backup";

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A session while it is run.
struct Session {
    lab: Lab,
    /// Whether the image was backed up before: then the guest writes first.
    is_used: bool,
    /// The ids of points that the page has, and the ids of those that were made instead.
    ids: Vec<(String, String)>,
}

impl Session {
    /// A folder with the images that the pages speak of: 20 GiB, of which a guest has written a
    /// little.
    fn new() -> Self {
        let lab = Lab::new();
        for name in ["web01.qcow2", "web.qcow2"] {
            create(&lab.path(name), "", 20 << 30);
            let writes = [(0, 16), (6000, 24), (19_000, 8)];
            let writes =
                writes.map(|(at, len)| format!("write -q -P {} {at}M {len}M", at % 250 + 1));
            guest_io(&lab.path(name), "qcow2", &writes);
        }
        Self { lab, is_used: false, ids: Vec::new() }
    }

    fn repository(&self) -> PathBuf {
        self.lab.path("backup")
    }

    /// A command of the page with what it names here.
    fn here(&self, command: &str) -> String {
        let mut command = command.replace(REPOSITORY, &self.repository().to_string_lossy());
        for (page, real) in &self.ids {
            command = command.replace(page, real);
        }
        command
    }

    /// Runs a command of the page; gives what it said, as the page would have it.
    fn run(&mut self, command: &str) -> String {
        let is_backup = command.starts_with("qdelta backup");
        if is_backup && self.is_used {
            for name in ["web01.qcow2", "web.qcow2"] {
                let write = "write -q -P 77 6001M 1M".to_owned();
                guest_io(&self.lab.path(name), "qcow2", &[write]);
            }
        }
        self.is_used |= is_backup;
        let path = format!("{}:{}", binary().parent().unwrap().display(), env!("PATH"));
        let mut shell = tool("sh", args!["-c", self.here(command)]);
        shell.current_dir(self.lab.dir()).env("PATH", path).env("LANG", "C.UTF-8");
        shell
            .env_remove("LC_ALL")
            .env("QDELTA_REPO", self.repository())
            .env("TZ", "UTC")
            .env("STATE_DIRECTORY", state());
        if command.starts_with("qdelta points") {
            // A page is no wider.
            shell.env("COLUMNS", "100");
        }
        let outcome = run(shell).ok();
        assert_eq!(outcome.stderr, "", "{command}");
        outcome.text().replace(&*self.repository().to_string_lossy(), REPOSITORY)
    }

    /// Notes that the page's ids in `shown` stand for those in `said`.
    fn learn(&mut self, shown: &str, said: &str) {
        for pair in ids(shown).into_iter().zip(ids(said)) {
            if !self.ids.contains(&pair) {
                self.ids.push(pair);
            }
        }
    }
}

/// The ids of points in a text, in its order.
fn ids(text: &str) -> Vec<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '.');
    words.filter(|word| word.len() == 20 && word.ends_with('Z')).map(str::to_owned).collect()
}

/// A line without what differs from run to run: numbers, their units, and how wide columns are.
pub fn shape(line: &str) -> String {
    let mut words: Vec<String> = Vec::new();
    for word in line.split_whitespace() {
        let bare = word.trim_matches([',', '(', ')', ';', ':']);
        let after_number = words.last().is_some_and(|last: &String| last.ends_with('#'));
        let is_unit = after_number
            && ["B", "KiB", "MiB", "GiB", "s", "min", "h", "m", "d", "MiB/s", "GiB/s", "KiB/s"]
                .contains(&bare);
        let word = match word.rsplit_once("Z-") {
            // The end of an anchor's name is drawn by lot.
            Some((point, lot)) if lot.len() == 8 => format!("{point}Z-lot"),
            _ if is_unit => word.replace(bare, "unit"),
            // A ring is not to be had everywhere.
            _ => word.replace("threads", "uring"),
        };
        let mut shaped = String::new();
        for character in word.chars() {
            match character {
                '0'..='9' | '.' if shaped.ends_with('#') => {}
                '0'..='9' => shaped.push('#'),
                other => shaped.push(other),
            }
        }
        // An age of nothing has no number.
        words.push(if shaped == "now" { "# unit".to_owned() } else { shaped });
    }
    words.join(" ").replace("# unit", "#")
}

/// One command of a session, and the lines that the page shows below it.
struct Step {
    command: String,
    shown: Vec<String>,
}

/// A page as it is, with its sessions run: the page as it should be, and what differs.
fn tried(page: &str, text: &str) -> (String, Vec<String>) {
    let (mut should, mut wrong) = (String::new(), Vec::new());
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        should.push_str(&format!("{line}\n"));
        if line != "```console" {
            continue;
        }
        let mut steps: Vec<Step> = Vec::new();
        for line in lines.by_ref().take_while(|line| *line != "```") {
            match (line.strip_prefix("$ "), steps.last_mut()) {
                (Some(command), _) => {
                    steps.push(Step { command: command.to_owned(), shown: Vec::new() });
                }
                (None, Some(step)) => step.shown.push(line.to_owned()),
                (None, None) => panic!("{page}: a session begins with a command: {line}"),
            }
        }
        let mut session = Session::new();
        if !steps.iter().any(|step| step.command.starts_with("qdelta init")) {
            Repo::init(session.repository());
        }
        for step in steps {
            let said = match step.command.starts_with("export ") {
                true => String::new(),
                false => session.run(&step.command),
            };
            session.learn(&step.shown.join("\n"), &said);
            let command = session.here(&step.command);
            let command = command.replace(&*session.repository().to_string_lossy(), REPOSITORY);
            should.push_str(&format!("$ {command}\n{said}"));
            let shapes =
                |lines: &mut dyn Iterator<Item = &str>| lines.map(shape).collect::<Vec<_>>();
            let shown = shapes(&mut step.shown.iter().map(String::as_str));
            if shown != shapes(&mut said.lines()) {
                wrong.push(format!("{page}: {} says\n{said}", step.command));
            }
        }
        should.push_str("```\n");
    }
    (should, wrong)
}

/// The README showed three lines of a backup that prints one, and a table with other columns: a
/// newcomer who compared them thought that something had failed.
#[test]
fn the_sessions_of_the_pages_are_what_the_program_says() {
    let mut wrong = Vec::new();
    for page in PAGES {
        let path = top().join(page);
        let text = std::fs::read_to_string(&path).unwrap();
        let (should, found) = tried(page, &text);
        if std::env::var("QDELTA_SAMPLES").is_ok_and(|what| what == "write") {
            std::fs::write(&path, should).unwrap();
        }
        wrong.extend(found);
    }
    let advice = "QDELTA_SAMPLES=write cargo test --test qdelta readme:: mends the samples";
    assert!(wrong.is_empty(), "{}\n{advice}", wrong.join("\n"));
}

#[test]
fn a_sample_may_differ_in_its_numbers_and_in_nothing_else() {
    let sample = "web/disk@20261122T165717.873Z: full, read 300 MiB, 2.1 s";
    assert_eq!(shape(sample), shape("web/disk@20261123T000000.001Z: full, read 1.5 GiB, 12 s"));
    assert_ne!(shape(sample), shape("web/disk@20261122T165717.873Z: full, changed 300 MiB, 2.1 s"));
    assert_eq!(shape("full  20 GiB   1 MiB  now"), shape("full 20 GiB 64 KiB 3 s"));
    assert_ne!(shape("2 points in 1 chain"), shape("2 points"));
}

/// The headings of a page, as links name them.
fn headings(text: &str) -> Vec<String> {
    let prose: String = text.split("```").step_by(2).collect();
    let lines = prose.lines().filter(|line| line.starts_with('#'));
    let plain = |line: &str| -> String {
        let kept = |c: &char| c.is_alphanumeric() || " -_".contains(*c);
        line.trim_start_matches('#').trim().to_lowercase().chars().filter(kept).collect()
    };
    lines.map(|line| plain(line).replace(' ', "-")).collect()
}

/// The pages that a README's reader is sent to were names in backquotes: nothing to click on, and
/// nobody noticed when one was renamed.
#[test]
fn every_link_leads_somewhere_and_every_page_is_reached_by_one() {
    let mut pages = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"].map(PathBuf::from).to_vec();
    let docs = std::fs::read_dir(top().join("docs")).unwrap();
    let docs = docs.map(|entry| Path::new("docs").join(entry.unwrap().file_name()));
    pages.extend(docs.filter(|path| path.extension().is_some_and(|end| end == "md")));
    let mut linked = Vec::new();
    for page in &pages {
        let text = std::fs::read_to_string(top().join(page)).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            let file = link.split('#').next().unwrap_or_default();
            let target = top().join(page).parent().unwrap().join(file);
            assert!(file.is_empty() || target.exists(), "{}: {link}", page.display());
            if let Some((_, heading)) = link.split_once('#') {
                let page_there = if file.is_empty() { top().join(page) } else { target.clone() };
                let there = headings(&std::fs::read_to_string(page_there).unwrap());
                assert!(there.iter().any(|it| it == heading), "{}: {link}", page.display());
            }
            linked.push(target.canonicalize().unwrap());
        }
    }
    for page in pages.iter().skip(1) {
        let path = top().join(page).canonicalize().unwrap();
        assert!(linked.contains(&path), "no link leads to {}", page.display());
    }
}
