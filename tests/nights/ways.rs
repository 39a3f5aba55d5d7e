//! What mail programs and the system's journal get.

use std::os::unix::fs::MetadataExt;
use std::process::Stdio;

use super::telling::Told;
use super::*;

/// What Python's reader of mails says of one.
const READER: &str = r#"
import email, email.policy, email.utils, json, sys
raw = open(sys.argv[1], "rb").read()
mail = email.message_from_bytes(raw, policy=email.policy.default)
defects = [str(d) for part in mail.walk() for d in part.defects]
defects += [f"{name}: {d}" for name, value in mail.items() for d in value.defects]
print(json.dumps({
    "plain": raw.isascii() and b"\r" not in raw and b"\0" not in raw and raw.endswith(b"\n"),
    "longest": max(len(line) for line in raw.split(b"\n")),
    "defects": defects,
    "type": mail.get_content_type(),
    "subject": mail["Subject"], "id": mail["Message-ID"],
    "from": [str(it) for it in mail["From"].addresses], "to": [str(it) for it in mail["To"].addresses],
    "date": mail["Date"].datetime.isoformat(),
    "parts": [[part.get_content_type(), part.get_content_charset(), part.get_content()]
              for part in mail.iter_parts()],
}))
"#;

/// Each mail since the last call, as Python reads it.
fn read(told: &Told) -> Vec<Value> {
    let folder = told.night.lab.path("mails");
    let mut paths = crate::harness::files::tree(&folder);
    paths.retain(|path| path.extension().is_some_and(|it| it == "mail"));
    let read = |path: &PathBuf| {
        let path = folder.join(path);
        let mut command = Command::new("python3");
        command.args(["-c", READER]).arg(&path).env("PYTHONIOENCODING", "utf-8");
        let mail = run(command).ok().json();
        fs::rename(&path, path.with_extension("read")).unwrap();
        mail
    };
    paths.iter().map(read).collect()
}

/// A mail without an identity or with a name in the wrong letters ends among what nobody reads.
#[test]
fn a_mail_arrives_whole_and_has_what_programs_of_mail_want() {
    let told = Told::new();
    let heard = told.night.lab.path("heard");
    let many: Vec<String> = (0..40).map(|at| format!("somebody-{at}@long.example.org")).collect();
    let more = format!(
        "[jobs.office.hooks]\nbefore = \"echo 'kein Plätzchen ☃ <frei>' >&2; echo . >&2; exit 3\"\n\
         [notify.ear]\ncommand = \"cat >>{0}\"\n\
         [notify.plain]\nmail = [\"root\", \"a@example.org\"]\nsendmail = \"{2}/sendmail -oi\"\n\
         [notify.many]\nmail = [\"{1}\"]\nfrom = \"Rechner Ü <root@example.org>\"\nsendmail = \"{2}/sendmail -oi\"\n",
        heard.display(),
        many.join("\", \""),
        told.night.lab.path("bin").display()
    );
    told.configure("", &more);
    told.run("2026-10-18 10:00:00");
    let _ = (read(&told), fs::remove_file(&heard));
    told.run("2026-10-19 00:35:00");
    let mails = read(&told);
    // The two seconds of `admin` may be over on a slow machine; these have longer.
    let of = |count: usize| {
        let found = mails.iter().find(|it| it["to"].as_array().unwrap().len() == count);
        found.unwrap_or_else(|| panic!("{mails:#?}"))
    };
    let (admin, other) = (of(2), of(40));
    for mail in [admin, other] {
        assert_eq!(mail["plain"], true, "{mail:#}");
        assert!(mail["longest"].as_u64().unwrap() <= 78, "{mail:#}");
        assert_eq!(mail["type"], "multipart/alternative");
        assert!(mail["date"].as_str().unwrap().starts_with("2026-10-19T00:35:"), "{mail:#}");
        assert!(mail["date"].as_str().unwrap().ends_with("+00:00"), "{mail:#}");
        let subject = mail["subject"].as_str().unwrap();
        assert!(
            subject.contains("CRITICAL: office: backup not tried: ")
                && subject.contains("Plätzchen ☃")
        );
        let parts = &mail["parts"];
        assert_eq!([&parts[0][0], &parts[1][0]], ["text/plain", "text/html"]);
        assert_eq!([&parts[0][1], &parts[1][1]], ["utf-8", "utf-8"]);
        // The same text as everybody else has, whole.
        assert_eq!(parts[0][2].as_str().unwrap(), fs::read_to_string(&heard).unwrap());
        let html = parts[1][2].as_str().unwrap();
        assert!(html.contains("Plätzchen ☃ &lt;frei&gt;") && html.ends_with("</html>\n"), "{html}");
    }
    // Names without a domain are of this host: whoever takes the mail adds it. Not every Python minds.
    let local = "addr-spec local part with no domain";
    let known = [format!("From: {local}"), format!("To: {local}")];
    let defects = admin["defects"].as_array().unwrap();
    assert!(defects.iter().all(|it| known.iter().any(|known| it == known)), "{admin:#}");
    assert_eq!(other["defects"], serde_json::json!([]), "{other:#}");
    assert_eq!(admin["to"], serde_json::json!(["root", "a@example.org"]));
    assert_eq!(other["to"], serde_json::json!(many));
    assert_eq!(other["from"], serde_json::json!(["Rechner Ü <root@example.org>"]));
    let id = |mail: &Value| mail["id"].as_str().unwrap().to_owned();
    assert!(id(admin).starts_with("<qdelta.") && id(admin).ends_with('>'), "{admin:#}");
    assert_ne!(id(admin), id(other));
}

/// Under systemd the journal had each line twice: what the program prints, and the entry with its fields.
#[test]
fn the_journal_has_each_line_once() {
    let told = Told::new();
    told.run("2026-10-18 10:00:00");
    fs::remove_file(told.night.image("db", "vda")).unwrap();
    // What systemd gives a service: a stream whose device and inode it names.
    let at = |time: &str, name: &str, is_output: bool| {
        let path = told.night.lab.path(name);
        let file = fs::File::create(&path).unwrap();
        let meta = file.metadata().unwrap();
        let mut command = told.command(time, args!["run"]);
        command.env("JOURNAL_STREAM", format!("{}:{}", meta.dev(), meta.ino()));
        if is_output {
            command.stdout(Stdio::from(file.try_clone().unwrap()));
        } else {
            command.stdout(Stdio::null());
        }
        let status = command.stderr(Stdio::from(file)).status().unwrap();
        (status.code(), fs::read_to_string(path).unwrap())
    };
    let _ = told.journal();
    let (code, said) = at("2026-10-19 00:35:00", "stream", true);
    assert_eq!((code, said.as_str()), (Some(12), ""));
    let mut journal = String::new();
    wait_until("the journal", || {
        journal += &told.journal();
        journal.contains("MESSAGE=open: CRITICAL db: backup failed")
    });
    for line in ["MESSAGE=backup production web: done: ", "MESSAGE=backup production db: failed: "]
    {
        assert_eq!(journal.matches(line).count(), 1, "{line}: {journal}");
    }
    // Nothing is due: nothing is said each ten minutes.
    assert_eq!(at("2026-10-19 00:45:00", "stream", true), (Some(0), String::new()));

    // A second run is refused.
    let (first, command) = told.night.start_waiting("2026-10-20 00:35:00");
    assert_eq!(at("2026-10-20 00:45:00", "stream", false), (Some(5), String::new()));
    wait_until("the journal", || told.journal().contains("refused: another run is at work"));
    fs::write(told.night.lab.path("go"), "").unwrap();
    finish(first, command);

    // Where the stream is another one, everything is said.
    told.configure("", "");
    let mut command = told.command("2026-10-21 00:35:00", args!["run"]);
    command.env("JOURNAL_STREAM", "1:1");
    let outcome = run(command).sane();
    assert!(outcome.text().contains("production backup web: "), "{}", outcome.report());
    assert!(outcome.stderr.contains("production backup db: failed: "), "{}", outcome.report());
}
