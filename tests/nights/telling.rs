//! Telling people: each thing once, by the right way, with the right words; and nobody who can't be told
//! harms a night.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};

use super::*;

/// A request that came in: its first line, its headers, its body.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub line: String,
    pub headers: Vec<String>,
    pub body: String,
}

/// A server that takes whatever is sent to it.
pub(super) struct Sink {
    pub address: String,
    taken: Arc<Mutex<Vec<Request>>>,
    status: Arc<Mutex<u16>>,
}

impl Sink {
    pub fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (taken, status) = (Arc::<Mutex<Vec<Request>>>::default(), Arc::new(Mutex::new(200)));
        let sink = Self { address, taken: Arc::clone(&taken), status: Arc::clone(&status) };
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut lines = Vec::new();
                loop {
                    let mut line = String::new();
                    if reader.read_line(&mut line).unwrap_or(0) == 0 || line.trim().is_empty() {
                        break;
                    }
                    lines.push(line.trim().to_lowercase());
                }
                let len = lines.iter().find_map(|it| it.strip_prefix("content-length: "));
                let mut body = vec![0; len.map_or(0, |len| len.parse().unwrap())];
                let _ = reader.read_exact(&mut body);
                let (line, headers) = match lines.split_first() {
                    Some((line, headers)) => (line.clone(), headers.to_vec()),
                    None => continue,
                };
                let body = String::from_utf8(body).unwrap();
                taken.lock().unwrap().push(Request { line, headers, body });
                let status = *status.lock().unwrap();
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status} Said\r\ncontent-length: 4\r\nconnection: close\r\n\r\nsaid"
                );
            }
        });
        sink
    }

    /// What came in since the last call, to addresses that begin so.
    pub fn take(&self, path: &str) -> Vec<Request> {
        let start = format!("post {path}");
        let mut taken = self.taken.lock().unwrap();
        let (found, rest) = taken.drain(..).partition(|it: &Request| it.line.starts_with(&start));
        *taken = rest;
        found
    }

    pub fn answer(&self, status: u16) {
        *self.status.lock().unwrap() = status;
    }
}

/// A host on which everybody is told in every way.
pub(super) struct Told {
    pub night: Night,
    pub sink: Sink,
    journal: Arc<Mutex<String>>,
}

impl Told {
    pub fn new() -> Self {
        let (night, sink) = (Night::new(), Sink::new());
        fs::create_dir(night.lab.path("mails")).unwrap();
        let mails = night.lab.path("mails");
        script(
            &night.lab.path("bin/sendmail"),
            &format!(
                "#!/bin/bash\n[ -e {0}/down ] && {{ cat {0}/down >&2; exit 75; }}\n\
                 [ -e {0}/hung ] && exec sleep 1000\n\
                 exec cat >{0}/$(ls {0} | wc -l).$$.mail\n",
                mails.display()
            ),
        );
        fs::write(night.lab.path("token"), "tk_secret\n").unwrap();
        let journal = UnixDatagram::bind(night.lab.path("journal")).unwrap();
        let heard = Arc::<Mutex<String>>::default();
        let told = Self { night, sink, journal: Arc::clone(&heard) };
        std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 18];
            while let Ok(len) = journal.recv(&mut buffer) {
                *heard.lock().unwrap() += &String::from_utf8_lossy(&buffer[..len]);
            }
        });
        told.configure("", "");
        told
    }

    /// A day and a night in which all went well.
    pub fn after_a_good_night() -> Self {
        let told = Self::new();
        told.run("2026-10-18 10:00:00");
        assert_quiet(&told.run("2026-10-19 00:35:00"));
        told
    }

    /// After a good night, one in which the disk of `db` was not there.
    pub fn after_db_failed() -> Self {
        let told = Self::after_a_good_night();
        fs::rename(told.night.image("db", "vda"), told.night.lab.path("away")).unwrap();
        told.run("2026-10-20 00:35:00");
        told
    }

    /// Writes the file of jobs, with lines for the job `production`, and more at the end.
    pub fn configure(&self, production: &str, more: &str) {
        let at = |name: &str| self.night.lab.path(name).display().to_string();
        let (sink, bin) = (&self.sink.address, at("bin"));
        let notifiers = format!(
            "{production}\n[notify.admin]\nmail = [\"root\", \"a@example.org\"]\n\
             sendmail = \"{bin}/sendmail -oi\"\ntime_limit = \"2s\"\n\
             [notify.watch]\nping = \"{sink}/ping\"\njobs = [\"production\"]\n\
             [notify.phone]\nntfy = \"{sink}/ntfy\"\ntoken = \"file:{}\"\nlevel = \"critical\"\n\
             [notify.board]\ngotify = \"{sink}/gotify\"\ntoken = \"env:QDELTA_TEST_TOKEN\"\n\
             on = [\"failure\"]\n\
             [notify.chat]\nwebhook = \"{sink}/chat\"\n\
             template = '{{\"text\": \"{{{{title}}}}\"}}'\non = [\"success\"]\n\
             [notify.program]\ncommand = \"cat >{}\"\non = []\ndigest = \"Mon 08:00\"\n\
             [metrics]\ntextfile = \"{}\"\n{more}",
            at("token"),
            at("digest"),
            at("qdelta.prom"),
        );
        self.night.configure("", &notifiers);
    }

    pub fn at(&self, time: &str, words: Vec<OsString>) -> Outcome {
        run(self.command(time, words)).sane()
    }

    pub fn command(&self, time: &str, words: Vec<OsString>) -> Command {
        let mut command = self.night.command(time, words);
        command.env("QDELTA_TEST_TOKEN", "gotify-secret");
        command.envs([("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b")]);
        command.env("QDELTA_JOURNAL_SOCKET", self.night.lab.path("journal"));
        command
    }

    pub fn run(&self, time: &str) -> Vec<Record> {
        records(&self.at(time, args!["run", "--json"]))
    }

    /// The mails since the last call: the subject and the text of each.
    pub fn mails(&self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        let mut paths: Vec<_> = fs::read_dir(self.night.lab.path("mails"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|it| it == "mail"))
            .collect();
        paths.sort();
        for path in paths {
            let mail = fs::read_to_string(&path).unwrap();
            fs::rename(&path, path.with_extension("read")).unwrap();
            let subject = mail.lines().find_map(|line| line.strip_prefix("Subject: ")).unwrap();
            found.push((subject.to_owned(), plain_part(&mail)));
        }
        found
    }

    /// The one mail since the last call.
    #[track_caller]
    pub fn mail(&self) -> (String, String) {
        let mut mails = self.mails();
        assert_eq!(mails.len(), 1, "{mails:#?}");
        mails.remove(0)
    }

    /// What the journal heard since the last call.
    pub fn journal(&self) -> String {
        std::mem::take(&mut *self.journal.lock().unwrap())
    }

    fn metrics(&self) -> String {
        fs::read_to_string(self.night.lab.path("qdelta.prom")).unwrap()
    }
}

/// The first part of a mail, decoded by the system's own program.
fn plain_part(mail: &str) -> String {
    let part = mail.split("Content-Transfer-Encoding: base64\n\n").nth(1).unwrap();
    let encoded: String = part.lines().take_while(|line| !line.starts_with("--")).collect();
    let decode = format!("echo {encoded} | base64 -d");
    let output = Command::new("sh").args(["-c", &decode]).output().unwrap();
    assert!(output.status.success(), "{encoded}");
    String::from_utf8(output.stdout).unwrap()
}

/// Findings are told once and when they end, runs to the watch, and a digest at its time.
#[test]
fn each_hears_what_it_asked_for_once() {
    let told = Told::new();
    told.run("2026-10-18 10:00:00");
    // What is open when somebody is first told.
    let (subject, text) = told.mail();
    assert!(subject.contains("WARNING: ") && subject.contains("and 2 more"), "{subject}");
    assert!(text.contains("New\n  WARNING  db: it has no point yet"), "{text}");
    // Nobody is disturbed by a warning who wants to hear of what is critical.
    assert!(told.sink.take("/").is_empty());

    // A night as it should be: the watch hears of its begin and of its end, which belong together.
    let records = told.run("2026-10-19 00:35:00");
    assert_eq!(ends(&records, "- notify admin"), ["done"]);
    let pings = told.sink.take("/ping");
    let [start, end] = pings.as_slice() else { panic!("{pings:?}") };
    let (path, rid) = start.line.split_once("?rid=").unwrap();
    assert_eq!(path, "post /ping/start");
    assert_eq!(end.line, format!("post /ping?rid={rid}"));
    assert!(end.body.contains("production backup web: done"), "{}", end.body);
    assert!(!end.body.contains("office"), "another job's: {}", end.body);
    let (subject, text) = told.mail();
    assert!(subject.contains("all right again"), "{subject}");
    assert!(text.contains("Over\n") && text.contains("  db: it has no point yet"), "{text}");
    let chats = told.sink.take("/chat");
    assert_eq!(chats.len(), 1, "{chats:?}");
    assert_eq!(chats[0].body, "{\"text\": \"a run went well\"}");
    assert!(told.run("2026-10-19 00:45:00").is_empty());
    assert!(told.mails().is_empty() && told.sink.take("/").is_empty());
    let last = "MESSAGE=ended: WARNING web: it has no point yet";
    wait_until("the journal", || told.journal.lock().unwrap().contains(last));
    let journal = told.journal();
    for words in [
        "MESSAGE=backup production web: done: ",
        "QDELTA_SUBJECT=web\n",
        "QDELTA_ACT=verify\n",
        "PRIORITY=6\n",
        "MESSAGE=ended: WARNING db: it has no point yet",
        "QDELTA_FINDING=no-point\n",
        "SYSLOG_IDENTIFIER=qdelta\n",
    ] {
        assert!(journal.contains(words), "{words}: {journal}");
    }

    // A guest fails: everybody hears of it, in their own way.
    let (image, away) = (told.night.image("db", "vda"), told.night.lab.path("away"));
    fs::rename(&image, &away).unwrap();
    told.run("2026-10-20 00:35:00");
    let (subject, text) = told.mail();
    assert!(subject.contains("CRITICAL: db: backup failed: "), "{subject}");
    assert!(text.contains("No such file or directory"), "{text}");
    let pings = told.sink.take("/ping");
    assert!(pings[1].line.starts_with("post /ping/fail?rid="), "{pings:?}");
    assert!(pings[1].body.contains("production backup db: failed: "), "{pings:?}");
    let phone = told.sink.take("/ntfy").remove(0);
    assert!(phone.headers.contains(&"authorization: bearer tk_secret".to_owned()), "{phone:?}");
    assert!(phone.headers.contains(&"priority: 5".to_owned()), "{phone:?}");
    assert!(
        phone.headers.iter().any(|it| it.contains("title: ") && it.contains("db: backup failed"))
    );
    let board = told.sink.take("/gotify/message").remove(0);
    assert!(board.headers.contains(&"x-gotify-key: gotify-secret".to_owned()), "{board:?}");
    let body: Value = serde_json::from_str(&board.body).unwrap();
    assert!(body["title"].as_str().unwrap().contains("db: failed"), "{body}");
    assert!(told.sink.take("/chat").is_empty(), "a run that failed is no success");
    let open = "MESSAGE=open: CRITICAL db: backup failed";
    wait_until("the journal", || told.journal.lock().unwrap().contains(open));

    // The next night it fails again: who hears of findings has heard of it, who hears of failures hears.
    told.run("2026-10-21 00:35:00");
    let mails = told.mails();
    assert_eq!(mails.len(), 1, "{mails:#?}");
    assert!(
        mails[0].0.contains("its RPO is 26h") && !mails[0].1.contains("New\n  CRITICAL db: backup")
    );
    assert_eq!(told.sink.take("/gotify").len(), 1);
    fs::rename(&away, &image).unwrap();
    told.run("2026-10-22 00:35:00");
    let (subject, text) = told.mail();
    assert!(subject.contains("OK: all right again: 2 findings are over"), "{subject}");
    assert!(text.contains("db: backup failed"), "{text}");
    let _ = told.sink.take("/");

    // The digest comes at its time, with what was done since the one before, also when nothing is wrong.
    let digest = || fs::read_to_string(told.night.lab.path("digest")).unwrap();
    assert!(digest().contains("CRITICAL db: backup failed"), "of the Monday before: {}", digest());
    fs::remove_file(told.night.lab.path("digest")).unwrap();
    for day in 23..26 {
        told.run(&format!("2026-10-{day} 00:35:00"));
    }
    told.run("2026-10-26 06:35:00");
    let _ = told.mails();
    told.run("2026-10-26 06:59:00");
    assert!(told.mails().is_empty());
    assert!(!told.night.lab.path("digest").exists());
    told.run("2026-10-26 07:05:00");
    let (digest, wanted) = (
        digest(),
        ["Open\n  nothing", "In the last ", "backups: 17 made, 1 not, ", "next: 2026-10-27 "],
    );
    for words in wanted {
        assert!(digest.contains(words), "{words}: {digest}");
    }
    fs::remove_file(told.night.lab.path("digest")).unwrap();
    told.run("2026-10-26 08:35:00");
    assert!(!told.night.lab.path("digest").exists());
}

/// A mail server that was down kept a run waiting, and nobody knew that nobody was told.
#[test]
fn who_cannot_be_told_harms_nothing_and_is_told_of() {
    let told = Told::new();
    told.run("2026-10-18 10:00:00");
    let _ = told.mails();
    // The mail server does not take it, and the watch has no use for it.
    fs::write(told.night.lab.path("mails/down"), "queue is full").unwrap();
    fs::rename(told.night.image("db", "vda"), told.night.lab.path("away")).unwrap();
    told.sink.answer(500);
    let outcome = told.at("2026-10-19 00:35:00", args!["run", "--json"]);
    let records_of = records(&outcome);
    assert_eq!(ends(&records_of, "- notify admin"), ["failed"], "{records_of:#?}");
    assert_eq!(ends(&records_of, "- notify watch"), ["failed"]);
    assert_eq!([ends(&records_of, WEB), ends(&records_of, MAIL)], [["done"], ["done"]]);
    told.sink.answer(200);
    let open = told.night.findings("2026-10-19 08:00:00");
    let text = |name: &str| open.iter().find(|(it, _)| it == name).map(|(_, text)| text.clone());
    assert!(text("notifier admin").unwrap().contains("ended with exit status: 75: queue is full"));
    assert!(text("notifier watch").unwrap().contains("127.0.0.1"), "{open:?}");
    assert!(text("notifier watch").unwrap().contains("answered 500: said"), "{open:?}");
    assert!(!text("notifier watch").unwrap().contains("/ping"), "its address is a secret");
    assert!(told.metrics().contains("qdelta_notifier_failing{notifier=\"admin\"} 1"));

    // An hour later the others hear of it, and nothing that was not told is forgotten.
    let _ = told.sink.take("/");
    told.configure("", "[notify.second]\ncommand = \"cat >>$(dirname $QDELTA_CONFIG)/second\"\n");
    told.run("2026-10-19 02:00:00");
    let second = fs::read_to_string(told.night.lab.path("second")).unwrap();
    assert!(second.contains("WARNING  admin: it could not be told: "), "{second}");
    assert_eq!(second.matches("backup failed").count(), 1, "{second}");

    // A mail server that does not answer: no run waits for it for ever.
    fs::remove_file(told.night.lab.path("mails/down")).unwrap();
    fs::write(told.night.lab.path("mails/hung"), "").unwrap();
    let records = told.run("2026-10-19 04:00:00");
    let text = &records.iter().find(|it| it.name == "- notify admin").unwrap().text;
    assert!(text.contains("it took longer than 2.0 s"), "{text}");

    // It is back: what was not told is told.
    fs::remove_file(told.night.lab.path("mails/hung")).unwrap();
    told.run("2026-10-19 06:00:00");
    let (subject, text) = told.mail();
    assert!(subject.contains("CRITICAL: db: "), "{subject}");
    assert!(text.contains("CRITICAL db: backup failed: "), "{text}");
    assert!(
        !text.contains("it could not be told: `"),
        "what it never heard of is not over: {text}"
    );
    let second = fs::read_to_string(told.night.lab.path("second")).unwrap();
    assert!(second.contains("Over\n  admin: it could not be told"), "{second}");
    let open = told.night.findings("2026-10-19 06:05:00");
    assert!(!open.iter().any(|(name, _)| name == "notifier admin"), "{open:?}");
}

/// Whoever asked a run to stop while it told people waited ten minutes, systemd killed it, and all were told again.
#[test]
fn a_run_ends_soon_that_is_asked_to_stop_while_it_tells() {
    let told = Told::new();
    let (hook, go) = (told.night.lab.path("hangs"), told.night.lab.path("go"));
    let slow = format!(
        "[notify.slow]\ncommand = \"touch {}; while [ ! -e {} ]; do sleep 0.05; done\"\ntime_limit = \"10m\"\n",
        hook.display(),
        go.display()
    );
    told.configure("", &slow);
    let mut command = told.command("2026-10-18 10:00:00", args!["run"]);
    let child = start(&mut command);
    wait_until("the notifier", || {
        hook.exists() && fs::read_dir(told.night.lab.path("mails")).unwrap().count() > 0
    });
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    finish(child, describe(&command));
    fs::write(go, "").unwrap();
    let _ = told.mail();
    // Who was told is remembered, and who was not is told now.
    let records = told.run("2026-10-18 11:05:00");
    assert_eq!(ends(&records, "- notify slow"), ["done"], "{records:#?}");
    assert!(told.mails().iter().all(|(_, text)| !text.contains("no point yet")));
}

/// Who hears of failures alone never heard of one that could not be told.
#[test]
fn a_failure_that_could_not_be_told_is_told_later() {
    let told = Told::new();
    told.run("2026-10-18 10:00:00");
    fs::remove_file(told.night.image("db", "vda")).unwrap();
    told.sink.answer(500);
    told.run("2026-10-19 00:35:00");
    told.sink.answer(200);
    let _ = told.sink.take("/");
    told.run("2026-10-19 02:00:00");
    let board = told.sink.take("/gotify/message");
    assert_eq!(board.len(), 1, "{board:?}");
    let lost = "not told then: the run of 2026-10-19 00:35 UTC: production backup db: failed";
    assert!(board[0].body.contains(lost), "{board:?}");
    told.run("2026-10-19 04:00:00");
    assert!(told.sink.take("/gotify/message").is_empty());
}

/// The file said nothing of a job of which nobody hears; and qdelta in a hook spoke of the file in /etc.
#[test]
fn each_job_is_heard_of_and_programs_know_the_host() {
    let night = Night::new();
    let at = |name: &str| night.lab.path(name).display().to_string();
    let words = "echo $QDELTA_CONFIG $STATE_DIRECTORY >";
    let (hook, notifier) = (format!("{words}{}", at("hook")), format!("{words}{}", at("notifier")));
    night.configure(
        "",
        &format!(
            "[jobs.production.hooks]\nafter = \"{hook}\"\n[notify.x]\ncommand = \"{notifier}\"\n\
             on = [\"success\", \"failure\"]\njobs = [\"production\"]"
        ),
    );
    let checked = night.at("2026-10-18 10:00:00", args!["config", "check"]).ok().text();
    assert!(checked.contains("nobody is told of what fails in office:"), "{checked}");
    assert!(checked.contains("nobody is told of findings about office, production:"), "{checked}");
    let (config, state) = (night.lab.path("qdelta.toml"), night.lab.path("state"));
    let words = args!["run", "production", "--config", &config, "--state", &state];
    let mut command = night.command("2026-10-18 10:00:00", words);
    command.env_remove("QDELTA_CONFIG").env_remove("STATE_DIRECTORY");
    run(command).ok();
    let expected = format!("{} {}\n", config.display(), state.display());
    assert_eq!(fs::read_to_string(at("hook")).unwrap(), expected);
    assert_eq!(fs::read_to_string(at("notifier")).unwrap(), expected);
}

/// The first digest that reached somebody again listed as open that it could not be told.
#[test]
fn who_is_reached_again_does_not_hear_that_it_could_not_be() {
    let night = Night::new();
    let (down, digest) = (night.lab.path("down"), night.lab.path("digest"));
    let line = format!("test ! -e {} && cat >{}", down.display(), digest.display());
    let notifier =
        format!("[notify.x]\ncommand = \"{line}\"\non = [\"finding\"]\ndigest = \"Mon 08:00\"");
    night.configure("", &notifier);
    night.run("2026-10-18 10:00:00");
    night.run("2026-10-19 00:35:00");
    fs::write(&down, "").unwrap();
    let words = args!["notify", "--digest", "--json"];
    let told = night.at("2026-10-19 01:00:00", words.clone()).text();
    assert!(told.contains("ended with"), "{told}");
    fs::remove_file(&down).unwrap();
    let told = night.at("2026-10-19 02:00:00", words).text();
    assert!(told.contains("3 guests, everything is all right"), "{told}");
    let text = fs::read_to_string(&digest).unwrap();
    assert!(text.contains("you could not be told"), "{text}");
    assert!(!text.contains("it could not be told"), "{text}");
}

/// A run that ended while another process was telling was told to nobody.
#[test]
fn the_end_of_a_run_waits_for_its_turn_to_be_told() {
    let night = Night::new();
    let at = |name: &str| night.lab.path(name);
    let (begun, gate, said) = (at("begun"), at("gate"), at("said"));
    let slow = format!("touch {}; cat {}", begun.display(), gate.display());
    let notifiers = format!(
        "[notify.slow]\ncommand = \"{slow}\"\non = []\ndigest = \"Mon 08:00\"\n\
         [notify.x]\ncommand = \"cat >>{}\"\non = [\"success\"]",
        said.display()
    );
    night.configure("", &notifiers);
    let made = Command::new("mkfifo").arg(&gate).status().unwrap();
    assert!(made.success());
    let telling = args!["notify", "slow", "--digest"];
    let mut telling = night.command("2026-10-18 10:00:00", telling);
    let telling = start(&mut telling);
    wait_until("somebody is being told", || begun.exists());
    let mut running = night.command("2026-10-18 10:00:00", args!["run", "production"]);
    let running = start(&mut running);
    let history = || {
        let words = args!["history", "--act", "backup", "--json"];
        ends(&records(&night.at("2026-10-18 10:00:00", words)), WEB)
    };
    wait_until("the backups are done", || !history().is_empty());
    fs::write(&gate, "").unwrap();
    finish(telling, "notify".to_owned()).ok();
    finish(running, "run".to_owned()).ok();
    let said = fs::read_to_string(said).unwrap();
    assert!(said.contains("run: done: all that was due was done"), "{said}");
}

/// A screen on the wall went out for good when the file of jobs was being written for a moment.
#[test]
fn a_watch_of_the_status_goes_on_after_an_error() {
    let night = Night::new();
    let (good, away) = (night.lab.path("qdelta.toml"), night.lab.path("away.toml"));
    fs::rename(&good, &away).unwrap();
    let mut watch = night.command("2026-10-18 10:00:00", args!["status", "--watch"]);
    let mut child = start(&mut watch);
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    assert!(first.contains("qdelta.toml"), "{first}");
    fs::rename(&away, &good).unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let found = lines.take(200).any(|line| line.unwrap().contains("3 guests"));
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    child.wait().unwrap();
    assert!(found);
}

/// Whoever could be told had two mails at once: what is new, and that somebody else could not be told.
#[test]
fn nobody_has_two_mails_of_one_look() {
    let told = Told::new();
    told.run("2026-10-18 10:00:00");
    let _ = told.mails();
    fs::remove_file(told.night.image("db", "vda")).unwrap();
    fs::remove_file(told.night.lab.path("token")).unwrap();
    told.run("2026-10-19 00:35:00");
    let (_, text) = told.mail();
    assert!(text.contains("db: backup failed") && !text.contains("phone"), "{text}");
    // The rest comes at the next start, and not an hour later.
    told.run("2026-10-19 00:45:00");
    let (subject, text) = told.mail();
    assert!(subject.contains("phone: it could not be told: "), "{subject}: {text}");
    assert!(told.run("2026-10-19 00:55:00").is_empty());
    assert!(told.mails().is_empty());
}

/// Each can be tried, and a mistake in the file is told before the night.
#[test]
fn a_test_tells_who_can_be_told() {
    let told = Told::new();
    let outcome = told.at("2026-10-18 10:00:00", args!["notify", "--test", "--json"]).ok();
    let report = outcome.json();
    compare("notify", &[&report], &[".notifiers[].error", ".findings[]"]);
    assert_eq!(report["notifiers"].as_array().unwrap().len(), 6);
    let (subject, _) = told.mail();
    assert!(subject.contains("OK: a test: qdelta reaches you"), "{subject}");
    // A watch that is down because backups failed turned green by a test.
    let pings = told.sink.take("/ping");
    assert!(pings.len() == 1 && pings[0].line.starts_with("post /ping/log?rid="), "{pings:?}");
    assert_eq!(told.sink.take("/chat")[0].body, "{\"text\": \"a test: qdelta reaches you\"}");
    told.sink.answer(403);
    let said = told.at("2026-10-18 10:00:00", args!["notify", "--test", "phone"]).fails_with(12);
    assert!(said.contains("phone: 127.0.0.1") && said.contains("answered 403: said"), "{said}");
    let said = told.at("2026-10-18 10:00:00", args!["notify", "--test", "fhone"]).fails_with(2);
    assert!(said.contains("did you mean phone?"), "{said}");

    let check = told.at("2026-10-18 10:00:00", args!["config", "check", "--json"]);
    let plan = check.json();
    let mail = plan["notifiers"].as_array().unwrap().iter().find(|it| it["notifier"] == "admin");
    assert_eq!(mail.unwrap()["to"], "mail to root, a@example.org");
    assert_eq!(mail.unwrap()["on"], serde_json::json!(["finding", "recovery"]));
    // What is missing on this host is told, too.
    fs::remove_file(told.night.lab.path("token")).unwrap();
    told.configure("", "[notify.x]\nmail = \"root\"\nsendmail = \"/nowhere/sendmail -v\"\n");
    let said = told.at("2026-10-18 10:00:00", args!["config", "check"]).fails_with(6);
    assert!(said.contains("notify.phone: cannot read "), "{said}");
    assert!(said.contains("notify.x: there is no /nowhere/sendmail"), "{said}");
    for (lines, said) in [
        ("[notify.x]\n", "say one of mail, ping"),
        ("[notify.x]\nmail = \"a\"\nntfy = \"http://h/t\"", "mail and ntfy"),
        ("[notify.x]\nntfy = \"http://h/t\"\ntoken = \"tk_secret\"", "neither an address"),
        ("[notify.x]\nntfy = \"http://h/t\"\ntoken = \"http://x\"", "no secret belongs"),
        ("[notify.x]\nmial = \"root\"", "did you mean `mail`?"),
        ("[notify.x]\nmail = \"root\"\non = [\"failures\"]", "did you mean `failure`?"),
        ("[notify.x]\nmail = \"root\"\njobs = [\"prodcution\"]", "did you mean \"production\"?"),
        ("[notify.x]\nwebhook = \"http://h\"\ntemplate = \"{{titel}}\"", "there are title, text"),
        ("[notify.x]\nping = \"http://h\"\ndigest = \"8:00\"", "leave on, level and digest out"),
    ] {
        told.configure("", lines);
        let said_now = told.at("2026-10-18 10:00:00", args!["config", "check"]).fails_with(2);
        assert!(said_now.contains(said), "{lines}: {said_now}");
        assert!(!said_now.contains("tk_secret"), "{said_now}");
    }
}

/// The rules and the picture name only what the program writes, and the exporter can read it.
#[test]
fn the_rules_and_the_picture_know_the_metrics() {
    let told = Told::new();
    told.run("2026-10-18 10:00:00");
    told.run("2026-10-19 00:35:00");
    let text = told.metrics();
    let mode = fs::metadata(told.night.lab.path("qdelta.prom")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o644);
    let left = fs::read_dir(told.night.lab.dir()).unwrap();
    let left =
        left.filter(|it| it.as_ref().unwrap().file_name().to_string_lossy().ends_with(".next"));
    assert_eq!(left.count(), 0);
    let written: BTreeSet<&str> =
        text.lines().filter_map(|it| it.strip_prefix("# TYPE ")).collect();
    let written: BTreeSet<&str> = written.iter().map(|it| it.split(' ').next().unwrap()).collect();
    // Each line is a name, labels, and one value: a time of its own would have the file passed over.
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok(), "{line}");
        assert!(name.ends_with('}') || !name.contains(' '), "{line}");
        assert!(written.contains(name.split('{').next().unwrap()), "{line}");
    }
    for words in [
        "qdelta_status 0",
        "qdelta_last_status{guest=\"web\",job=\"production\"} 2",
        "qdelta_rpo_seconds{guest=\"web\",job=\"production\"} 93600",
        "qdelta_points{guest=\"mail\",job=\"office\"} 1",
        "qdelta_job_last_status{job=\"production\",act=\"verify\"} 2",
        "qdelta_last_success_timestamp_seconds{guest=\"db\",job=\"production\"} 17923",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    for page in ["docs/prometheus/qdelta.rules.yml", "docs/grafana/qdelta.json", "docs/alarms.md"] {
        let page_text = fs::read_to_string(page).unwrap();
        let named: BTreeSet<&str> = page_text
            .match_indices("qdelta_")
            .map(|(at, _)| {
                let rest = &page_text[at..];
                let end = rest.find(|c: char| !(c.is_ascii_lowercase() || c == '_'));
                &rest[..end.unwrap_or(rest.len())]
            })
            .collect();
        assert!(named.len() > 5, "{page}");
        let unknown: Vec<&&str> = named.difference(&written).collect();
        assert!(unknown.is_empty(), "{page} names {unknown:?}");
        if page.ends_with(".md") {
            let unsaid: Vec<&&str> = written.difference(&named).collect();
            assert!(unsaid.is_empty(), "{page} does not name {unsaid:?}");
        }
    }
}
