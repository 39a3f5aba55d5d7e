//! One message to one notifier, within a time.

use std::process::Command;
use std::time::Duration;

use ureq::tls::{RootCerts, TlsConfig, TlsProvider};

use super::config::{Notifier, Way, host_of};
use super::mail::{self, encoded_words};
use super::message::{cut, one_line, shortened, text};
use super::template::{self, priority};
use crate::base::duration;
use crate::base::error::{Error, ErrorKind, Result};
use crate::flows::report::{Event, Level, Message};
use crate::guest::program::{self, End, Failure};

/// Where sendmail is if the file does not say.
pub(super) const SENDMAIL: &str = "/usr/sbin/sendmail";

/// The most that ntfy takes as a message, in bytes, and more than a phone shows.
const NTFY_MAX: usize = 4000;

/// The most that a watch keeps of what a ping says, in bytes.
const PING_MAX: usize = 90_000;

/// The most of a text that a template is filled with, in bytes: Discord takes 2,000 characters with all that the
/// template adds, and no chat shows a part of what is too long for it.
const CHAT_MAX: usize = 1600;

/// The most of a title there.
const TITLE_MAX: usize = 200;

/// The most that is shown of an answer, in bytes.
const SHOWN_MAX: usize = 120;

/// The most that is shown of the name of a host.
const HOST_MAX: usize = 100;

/// A shorter part of an address is no secret.
const SECRET_LEN_MIN: usize = 4;

/// How much of an answer is looked at, in bytes.
const ANSWER_MAX: u64 = 2048;

/// What a run tells a watch.
#[derive(Debug, Clone)]
pub(crate) struct Ping {
    /// Whether it began, went well, or failed.
    pub event: Event,
    /// What ties the beginning of a run to its end.
    pub run: String,
    /// The end of its log.
    pub log: String,
}

/// Tells a watch how a run goes.
///
/// # Errors
/// It can't be reached, or does not answer as it should.
pub(crate) fn ping(notifier: &Notifier, ping: &Ping) -> Result<()> {
    let Some(source) = &notifier.ping else { return Ok(()) };
    let address = source.read()?;
    let (path, query) = address.split_once('?').unwrap_or((&address, ""));
    let path = path.trim_end_matches('/');
    let event = match ping.event {
        Event::Start => "/start",
        Event::Failure => "/fail",
        _ => "",
    };
    let and = if query.is_empty() { "" } else { "&" };
    let address = format!("{path}{event}?{query}{and}rid={}", ping.run);
    let from = ping.log.len().saturating_sub(PING_MAX);
    let from = (from..=ping.log.len()).find(|at| ping.log.is_char_boundary(*at)).unwrap_or(0);
    let log = ping.log.get(from..).unwrap_or("");
    post(&address, &[("content-type", "text/plain; charset=utf-8")], log, notifier.time_limit())
}

/// Tells somebody.
///
/// # Errors
/// The message was not taken.
pub(crate) fn send(notifier: &Notifier, message: &Message) -> Result<()> {
    let limit = notifier.time_limit();
    let token = notifier.token.as_ref().map(super::Source::read).transpose()?;
    match notifier.way()? {
        Way::Mail(to) => {
            let from = notifier.from.as_deref().unwrap_or("qdelta <root>");
            let mail = mail::mail(message, from, &to.joined());
            let line = notifier.sendmail.as_deref().unwrap_or(SENDMAIL);
            let mut words = line.split_whitespace();
            let mut command = Command::new(words.next().unwrap_or(SENDMAIL));
            // Dots in the text end nothing, and the addresses stand in the mail.
            command.args(words).args(["-i", "-t"]);
            run(command, line, &mail, limit)
        }
        // Only the end of a run is for a watch; a test says that a run went well.
        Way::Ping(_) => {
            let event = match message.level {
                Level::Critical => Event::Failure,
                _ => Event::Success,
            };
            ping(notifier, &Ping { event, run: run_id(message.at), log: text(message) })
        }
        Way::Ntfy(source) => {
            let (title, level) = (encoded_words(&title(message)).replace('\n', ""), message.level);
            let (priority, bearer) = (priority(level).to_string(), bearer(token.as_deref()));
            let tag = match level {
                Level::Ok => "white_check_mark",
                Level::Warning => "warning",
                Level::Critical => "rotating_light",
            };
            let mut headers =
                vec![("title", title.as_str()), ("priority", &priority), ("tags", tag)];
            headers.extend(bearer.as_deref().map(|it| ("authorization", it)));
            post(&source.read()?, &headers, &shortened(&text(message), NTFY_MAX), limit)
        }
        Way::Gotify(source) => {
            // Gotify's scale ends at 10.
            let body = serde_json::json!({
                "title": title(message),
                "message": shortened(&text(message), NTFY_MAX),
                "priority": priority(message.level) * 2,
            });
            let mut headers = vec![("content-type", "application/json")];
            headers.extend(token.as_deref().map(|it| ("x-gotify-key", it)));
            let address = format!("{}/message", source.read()?.trim_end_matches('/'));
            post(&address, &headers, &body.to_string(), limit)
        }
        Way::Webhook(source) => {
            let body = match &notifier.template {
                Some(template) => {
                    let short = Message {
                        title: cut(&message.title, TITLE_MAX).to_owned(),
                        ..message.clone()
                    };
                    template::filled(template, &short, &shortened(&text(message), CHAT_MAX))?
                }
                None => serde_json::to_string(message).map_err(|error| {
                    Error::new(ErrorKind::Io, "a message can't be written as JSON").because(error)
                })?,
            };
            let is_json = body.trim_start().starts_with(['{', '[']);
            let kind = if is_json { "application/json" } else { "text/plain; charset=utf-8" };
            let bearer = bearer(token.as_deref());
            let mut headers = vec![("content-type", kind)];
            headers.extend(bearer.as_deref().map(|it| ("authorization", it)));
            post(&source.read()?, &headers, &body, limit)
        }
        Way::Command(line) => {
            let mut command = Command::new("/bin/sh");
            let events: Vec<String> = message.events.iter().map(ToString::to_string).collect();
            command.args(["-c", line]).envs([
                ("QDELTA_TITLE", one_line(&message.title)),
                ("QDELTA_LEVEL", message.level.to_string().to_lowercase()),
                ("QDELTA_EVENTS", events.join(" ")),
                ("QDELTA_HOST", message.host.clone()),
            ]);
            command.envs(token.map(|token| ("QDELTA_TOKEN", token)));
            run(command, line, &text(message), limit)
        }
    }
}

/// The name of a run as a UUID, as watches want it.
pub(crate) fn run_id(at: jiff::Timestamp) -> String {
    let hash = blake3::hash(format!("qdelta run {at}").as_bytes()).to_hex();
    let part = |from: usize, to: usize| hash.get(from..to).unwrap_or("0");
    format!("{}-{}-4{}-8{}-{}", part(0, 8), part(8, 12), part(12, 15), part(15, 18), part(18, 30))
}

fn title(message: &Message) -> String {
    one_line(&format!("{}: {}", message.host, message.title))
}

fn bearer(token: Option<&str>) -> Option<String> {
    token.map(|token| format!("Bearer {token}"))
}

/// Runs a program that reads a text.
fn run(command: Command, line: &str, text: &str, limit: Duration) -> Result<()> {
    let failed = |why: String| Err(Error::new(ErrorKind::Io, format!("`{line}` {why}")));
    match program::ask(command, text.as_bytes(), limit, None) {
        Ok((End::Exit(status), _)) if status.success() => Ok(()),
        Ok((End::Exit(status), said)) => failed(format!("ended with {status}{}", said.problem())),
        Ok(_) => failed(format!("was ended: it took longer than {}", duration::shown(limit))),
        Err(Failure::Start(error) | Failure::Wait(error)) => {
            Err(Error::new(ErrorKind::Io, format!("cannot run `{line}`")).because(error))
        }
    }
}

/// Sends a request. No error repeats the address: its path may be a secret.
fn post(address: &str, headers: &[(&str, &str)], body: &str, limit: Duration) -> Result<()> {
    let host = host_of(address).to_owned();
    let failed = |why: String| Error::new(ErrorKind::Io, format!("{host} {why}"));
    let tls = TlsConfig::builder()
        .provider(TlsProvider::NativeTls)
        .root_certs(RootCerts::PlatformVerifier)
        .build();
    let agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        // Followed, a POST becomes a GET without its text, and a token goes to somebody else.
        .max_redirects(0)
        .timeout_global(Some(limit))
        .user_agent(concat!("qdelta/", env!("CARGO_PKG_VERSION")))
        .tls_config(tls)
        .build()
        .new_agent();
    let mut request = agent.post(address);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut answer = match request.send(body) {
        Ok(answer) => answer,
        Err(ureq::Error::Timeout(_)) => {
            return Err(failed(format!("did not answer within {}", duration::shown(limit))));
        }
        Err(ureq::Error::BadUri(_) | ureq::Error::Http(_)) => {
            return Err(Error::new(ErrorKind::Usage, "the address makes no sense"));
        }
        Err(error) => return Err(failed("can't be reached".to_owned()).because(error)),
    };
    let status = answer.status().as_u16();
    if (200..300).contains(&status) {
        return Ok(());
    }
    if (300..400).contains(&status) {
        let to = answer.headers().get("location").and_then(|it| it.to_str().ok());
        let to =
            to.and_then(|it| it.split_once("://")).map(|(scheme, _)| scheme).zip(to.map(host_of));
        let to = to.filter(|(scheme, _)| matches!(*scheme, "http" | "https"));
        let to =
            to.map(|(scheme, host)| format!(" and leads to {scheme}://{}", cut(host, HOST_MAX)));
        let error = failed(format!("answered {status}{}", one_line(&to.unwrap_or_default())));
        return Err(
            error.advise("give the address that takes messages: none is sent on to another")
        );
    }
    let said = answer.body_mut().with_config().limit(ANSWER_MAX).lossy_utf8(true).read_to_string();
    let said = fit_to_show(&said.unwrap_or_default(), address, headers);
    let said = said.map_or(String::new(), |said| format!(": {said}"));
    Err(failed(format!("answered {status}{said}")))
}

/// What a server answered, as a short line of text; nothing if it repeats what nobody else may know: a part of the
/// address, or a header.
fn fit_to_show(said: &str, address: &str, headers: &[(&str, &str)]) -> Option<String> {
    let lower = said.to_lowercase();
    let host = host_of(address);
    let secret = address.replacen(host, "", 1);
    let is_token = |name: &str| matches!(name, "authorization" | "x-gotify-key");
    let tokens = headers.iter().filter(|(name, _)| is_token(name)).map(|(_, value)| *value);
    let is_repeated = |text: &str| {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric());
        let mut long = words.filter(|word| {
            word.len() >= SECRET_LEN_MIN && !matches!(*word, "http" | "https" | "Bearer")
        });
        long.any(|word| lower.contains(&word.to_lowercase()))
    };
    if is_repeated(&secret) || tokens.into_iter().any(is_repeated) {
        return None;
    }
    let mut text = String::new();
    let mut is_mark = false;
    for c in said.chars() {
        match c {
            '<' => is_mark = true,
            '>' if is_mark => {
                is_mark = false;
                text.push(' ');
            }
            c if !is_mark => text.push(c),
            _ => {}
        }
    }
    let line = one_line(&text).split_whitespace().collect::<Vec<_>>().join(" ");
    (!line.is_empty()).then(|| cut(&line, SHOWN_MAX).to_owned())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread::{self, JoinHandle};

    use super::*;
    use crate::flows::report::{MessagePart, OpenFinding};

    /// A server that answers once; gives its address, and what it was sent.
    fn server(answer: String) -> (String, JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let thread = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let (mut taken, mut buffer) = (Vec::new(), [0; 4096]);
            loop {
                let count = stream.read(&mut buffer).unwrap();
                taken.extend_from_slice(&buffer[..count]);
                let text = String::from_utf8_lossy(&taken).to_lowercase();
                let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                let len = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                if count == 0 || body.len() >= len.map_or(0, |len| len.parse().unwrap()) {
                    break;
                }
            }
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8_lossy(&taken).into_owned()
        });
        (address, thread)
    }

    fn answer(head: &str, body: &str) -> String {
        format!(
            "HTTP/1.1 {head}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        )
    }

    fn message(findings: usize) -> Message {
        let finding = |number: usize| OpenFinding {
            level: Level::Critical,
            code: crate::flows::report::FindingCode::NoPoint,
            subject: format!("guest{number}"),
            job: None,
            act: None,
            text: "it has no good point".to_owned(),
            advice: None,
            since: None,
        };
        Message {
            events: Vec::new(),
            level: Level::Critical,
            host: "h".to_owned(),
            at: jiff::Timestamp::UNIX_EPOCH,
            title: "many".to_owned(),
            parts: vec![MessagePart {
                heading: "New".to_owned(),
                findings: (0..findings).map(finding).collect(),
                lines: Vec::new(),
            }],
        }
    }

    /// A server that redirects was followed: the message became a GET without a text, whose 200 counted as told,
    /// and Gotify's token went to the host to which it led.
    #[test]
    fn nobody_is_told_by_a_redirect() {
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        other.set_nonblocking(true).unwrap();
        let port = other.local_addr().unwrap().port();
        for status in [301, 302, 303, 307, 308] {
            let to = format!("location: http://user:pw@127.0.0.1:{port}/landing?token=t");
            let (address, taken) = server(answer(&format!("{status} Moved\r\n{to}"), ""));
            let dir = tempfile::tempdir().unwrap();
            let token = dir.path().join("token");
            std::fs::write(&token, "SECRETTOKEN").unwrap();
            let notifier = Notifier {
                gotify: Some(address.parse().unwrap()),
                token: Some(format!("file:{}", token.display()).parse().unwrap()),
                ..Notifier::default()
            };
            let error = send(&notifier, &message(1)).unwrap_err();
            assert!(taken.join().unwrap().starts_with("POST "), "{status}");
            let said = error.chain();
            let wanted = format!("answered {status} and leads to http://127.0.0.1:{port}");
            assert!(said.ends_with(&wanted), "{said}");
            assert!(other.accept().is_err(), "{status} was followed");
        }
    }

    /// A page for 404 named the address that was not found, which went into mails, the history and the status.
    #[test]
    fn no_answer_gives_away_the_address() {
        for (body, shown) in [
            ("<html><h1>Not&nbsp;Found</h1>The URL /hook-SECRETPATH?k=SECRETQ was not found", ""),
            ("no such hook: secretpath", ""),
            ("who is SECRETUSER?", ""),
            ("bad bearer SECRETTOKEN", ""),
            ("<html>\n<body><h1>Not   here</h1>\n", ": Not here"),
            ("", ""),
        ] {
            let (address, taken) = server(answer("404 Not Found", body));
            let address = address.replacen("http://", "http://SECRETUSER:pw@", 1);
            let address = format!("{address}/hook-SECRETPATH?k=SECRETQ");
            let headers = [("authorization", "Bearer SECRETTOKEN")];
            let error = post(&address, &headers, "x", Duration::from_secs(30)).unwrap_err();
            taken.join().unwrap();
            let said = error.chain();
            assert!(said.ends_with(&format!("answered 404{shown}")), "{body}: {said}");
        }
        assert!(fit_to_show(&"x ".repeat(1000), "http://h/", &[]).unwrap().len() <= SHOWN_MAX);
    }

    /// When a whole fleet failed, the text was longer than any chat takes: each look tried it again, and the
    /// alarm never came.
    #[test]
    fn a_long_text_is_short_enough_for_a_chat() {
        let (address, taken) = server(answer("200 OK", ""));
        let notifier = Notifier {
            webhook: Some(format!("{address}/hook").parse().unwrap()),
            template: Some(r#"{"content": "**{{host}}: {{title}}**\n{{text}}"}"#.to_owned()),
            ..Notifier::default()
        };
        send(&notifier, &message(150)).unwrap();
        let taken = taken.join().unwrap();
        let body = taken.split_once("\r\n\r\n").unwrap().1;
        let sent: serde_json::Value = serde_json::from_str(body).unwrap();
        let text = sent["content"].as_str().unwrap();
        assert!(text.chars().count() < 2000, "{}", text.len());
        assert!(text.contains("guest0: it has no good point\n"), "{text}");
        let lines = text.lines().filter(|line| line.contains(": it has")).count();
        assert!(text.contains(&format!("and {} more lines", 152 - lines)), "{text}");
        // What fits is whole.
        assert_eq!(shortened("a\nb\n", 4), "a\nb\n");
    }
}
