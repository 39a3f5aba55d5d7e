//! One message to one notifier, within a time.

use std::ffi::OsString;
use std::process::Command;
use std::time::Duration;

use ureq::tls::{RootCerts, TlsConfig, TlsProvider};

use super::config::{Notifier, Way, host_of};
use super::mail::{self, encoded_words};
use super::message::{self, cut, one_line, short, text};
use super::template::{self, priority};
use crate::base::duration;
use crate::base::error::{Error, ErrorKind, Result};
use crate::flows::report::{Event, Level, Message};
use crate::guest::program::{self, End, Failure};

/// Where sendmail is if the file does not say.
pub(super) const SENDMAIL: &str = "/usr/sbin/sendmail";

/// The most that ntfy takes as a message, in bytes: what is longer becomes a file that nobody opens.
const NTFY_MAX: usize = 4096;

/// The most that a template is filled with, in units of UTF-16: Discord takes nothing that is longer, and other chats
/// little more.
const CHAT_MAX: usize = 2000;

/// The most that a watch keeps of what a ping says, in bytes.
const PING_MAX: usize = 90_000;

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
    let event = match ping.event {
        Event::Start => "/start",
        Event::Failure => "/fail",
        _ => "",
    };
    ping_at(notifier, event, ping)
}

/// Sends a ping to a place below the address of a watch.
fn ping_at(notifier: &Notifier, event: &str, ping: &Ping) -> Result<()> {
    let Some(source) = &notifier.ping else { return Ok(()) };
    let address = source.read()?;
    let (path, query) = address.split_once('?').unwrap_or((&address, ""));
    let path = path.trim_end_matches('/');
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
pub(crate) fn send(
    notifier: &Notifier,
    message: &Message,
    variables: &[(&str, OsString)],
) -> Result<()> {
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
        // Only runs are for a watch. A test says neither that one went well nor that one failed.
        Way::Ping(_) => {
            let ping = Ping { event: Event::Start, run: run_id(message.at), log: text(message) };
            ping_at(notifier, "/log", &ping)
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
            let body = short(message, |text| text.len() <= NTFY_MAX);
            post(&source.read()?, &headers, &body, limit)
        }
        Way::Gotify(source) => {
            // Gotify's scale ends at 10.
            let body = serde_json::json!({
                "title": title(message),
                "message": text(message),
                "priority": priority(message.level) * 2,
            });
            let mut headers = vec![("content-type", "application/json")];
            headers.extend(token.as_deref().map(|it| ("x-gotify-key", it)));
            let address = format!("{}/message", source.read()?.trim_end_matches('/'));
            post(&address, &headers, &body.to_string(), limit)
        }
        Way::Webhook(source) => {
            let body = match &notifier.template {
                Some(template) => chat(template, message)?,
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
                ("QDELTA_TITLE", message::title(&message.title)),
                ("QDELTA_LEVEL", message.level.to_string().to_lowercase()),
                ("QDELTA_EVENTS", events.join(" ")),
                ("QDELTA_HOST", message.host.clone()),
            ]);
            command.envs(variables.iter().map(|(name, value)| (*name, value)));
            command.envs(token.map(|token| ("QDELTA_TOKEN", token)));
            run(command, line, &text(message), limit)
        }
    }
}

/// A template with a message in it that a chat takes.
fn chat(template: &str, message: &Message) -> Result<String> {
    let len = |text: &str| text.encode_utf16().count();
    // It may stand there more than once.
    let (without, with) =
        (template::filled(template, message, "")?, template::filled(template, message, "x")?);
    let times = len(&with).saturating_sub(len(&without)).max(1);
    let room = CHAT_MAX.saturating_sub(len(&without)) / times;
    template::filled(template, message, &short(message, |text| len(text) <= room))
}

/// The name of a run as a UUID, as watches want it.
pub(crate) fn run_id(at: jiff::Timestamp) -> String {
    let hash = blake3::hash(format!("qdelta run {at}").as_bytes()).to_hex();
    let part = |from: usize, to: usize| hash.get(from..to).unwrap_or("0");
    format!("{}-{}-4{}-8{}-{}", part(0, 8), part(8, 12), part(12, 15), part(15, 18), part(18, 30))
}

fn title(message: &Message) -> String {
    message::title(&format!("{}: {}", message.host, message.title))
}

fn bearer(token: Option<&str>) -> Option<String> {
    token.map(|token| format!("Bearer {token}"))
}

/// Runs a program that reads a text.
fn run(command: Command, line: &str, text: &str, limit: Duration) -> Result<()> {
    let failed = |why: String| Err(Error::new(ErrorKind::Io, format!("`{line}` {why}")));
    match program::ask(command, text.as_bytes(), limit, None) {
        Ok((End::Exit(status), _)) if status.success() => Ok(()),
        Ok((End::Exit(status), said)) => {
            failed(format!("ended with {status}{}", said.last_words()))
        }
        Ok(_) => failed(format!("was ended: it took longer than {}", duration::shown(limit))),
        Err(Failure::Start(error) | Failure::Wait(error)) => {
            Err(Error::new(ErrorKind::Io, format!("cannot run `{line}`")).because(error))
        }
    }
}

/// Whether an answer repeats a part of the address behind its host, or of a header.
fn repeats_secret(said: &str, address: &str, headers: &[(&str, &str)]) -> bool {
    let behind = address.split_once("://").map_or(address, |(_, rest)| rest);
    let behind = behind.find(['/', '?', '@']).and_then(|at| behind.get(at..)).unwrap_or("");
    let user = address.split_once("://").and_then(|(_, rest)| rest.split('/').next());
    let user = user.and_then(|it| it.rsplit_once('@')).map_or("", |(user, _)| user);
    let tokens =
        headers.iter().filter(|(name, _)| matches!(*name, "authorization" | "x-gotify-key"));
    let secrets = [behind, user].into_iter().chain(tokens.map(|(_, value)| *value));
    let mut words = secrets.flat_map(|it| it.split(|c: char| !c.is_ascii_alphanumeric()));
    let said = said.to_ascii_lowercase();
    words.any(|word| {
        word.len() >= 4 && word != "Bearer" && said.contains(&word.to_ascii_lowercase())
    })
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
        .max_redirects(0)
        .max_redirects_will_error(false)
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
        // What is sent on to another address arrives there without its text, and a token would go along.
        let to = answer.headers().get("location").and_then(|it| it.to_str().ok());
        let to = to.filter(|it| it.contains("://")).map(host_of).unwrap_or("another address");
        return Err(failed(format!("answered {status}, and sends on to {to}"))
            .advise("give the address that it leads to"));
    }
    let said = answer.body_mut().with_config().limit(ANSWER_MAX).read_to_string();
    let said = one_line(&said.unwrap_or_default());
    // A page of an error often repeats what it was asked for.
    let said = if repeats_secret(&said, address, headers) { String::new() } else { said };
    let said =
        if said.trim().is_empty() { String::new() } else { format!(": {}", cut(&said, 300)) };
    Err(failed(format!("answered {status}{said}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::notify::message::tests::message;

    /// Discord takes no message of more than 2,000 characters, and whoever had many guests heard nothing from it.
    #[test]
    fn no_template_is_filled_with_more_than_a_chat_takes() {
        let message = Message { title: "t".repeat(3000), ..message(300, 100, "\"bröken\" 🖴") };
        for template in [
            r#"{"content": "**{{host}}: {{title}}**\n{{text}}"}"#,
            r#"{"content": "{{text}}", "again": ["{{text}}", "{{ text }}"]}"#,
            "{{text}}",
            "{{title}}",
        ] {
            let filled = chat(template, &message).unwrap();
            let read: serde_json::Value = serde_json::from_str(&filled).unwrap_or_default();
            let content = read["content"].as_str().unwrap_or(&filled).to_owned();
            assert!(content.encode_utf16().count() <= CHAT_MAX, "{content}");
            let has_text = template.contains("text");
            assert_eq!(content.contains(" are left out: qdelta status has all\n"), has_text);
            let is_long = content.encode_utf16().count() > if has_text { 500 } else { 200 };
            assert!(is_long, "{content}");
        }
    }
}
