//! One message to one notifier, within a time.

use std::process::Command;
use std::time::Duration;

use ureq::tls::{RootCerts, TlsConfig, TlsProvider};

use super::config::{Notifier, Way, host_of};
use super::mail::{self, encoded_words};
use super::message::{cut, one_line, text};
use super::template::{self, priority};
use crate::base::duration;
use crate::base::error::{Error, ErrorKind, Result};
use crate::flows::report::{Event, Level, Message};
use crate::guest::program::{self, End, Failure};

/// Where sendmail is if the file does not say.
pub(super) const SENDMAIL: &str = "/usr/sbin/sendmail";

/// The most that ntfy takes as a message, in bytes.
const NTFY_MAX: usize = 4000;

/// The most of a text that is put into a template of a chat, in bytes.
const CHAT_MAX: usize = 4000;

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
            post(&source.read()?, &headers, cut(&text(message), NTFY_MAX), limit)
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
                Some(template) => {
                    // Chats refuse what is longer, and would never get any of it.
                    template::filled(template, message, cut(&text(message), CHAT_MAX))?
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
