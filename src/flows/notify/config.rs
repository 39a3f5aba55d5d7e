//! What `[notify.NAME]` says: who is told, by which way, and of what.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;

use crate::base::calendar::Calendar;
use crate::base::duration::Stretch;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::json::text;
use crate::disk::io::Opener;
use crate::flows::report::{Event, Level};
use crate::guest::program;

/// The longest secret, in bytes.
const SECRET_MAX: u64 = 64 << 10;

/// How long telling may take if the file does not say.
const TIME_MAX: Duration = Duration::from_secs(30);

/// After how long a finding that stays is told again if the file does not say.
const AGAIN: Duration = Duration::from_secs(7 * 86_400);

/// Somebody who is told.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Notifier {
    /// Mail to these addresses.
    pub mail: Option<Addresses>,
    /// The sender of mail; `root` if it is not said.
    pub from: Option<String>,
    /// The program that takes mail, with its arguments.
    pub sendmail: Option<String>,
    /// A watch that expects pings: at the start of a run, after one that went well, after one that failed.
    #[serde(with = "text::optional")]
    pub ping: Option<Source>,
    /// The address of a topic of ntfy.
    #[serde(with = "text::optional")]
    pub ntfy: Option<Source>,
    /// The address of a Gotify server.
    #[serde(with = "text::optional")]
    pub gotify: Option<Source>,
    /// Any address that takes a POST.
    #[serde(with = "text::optional")]
    pub webhook: Option<Source>,
    /// What a webhook is sent, with words in `{{ }}`; all of it as JSON if it is not said.
    pub template: Option<String>,
    /// The secret that proves who we are.
    #[serde(with = "text::optional")]
    pub token: Option<Source>,
    /// A line for `/bin/sh`, which finds the text on its standard input.
    pub command: Option<String>,
    /// Of what; findings and their end if it is not said.
    pub on: Option<Vec<Event>>,
    /// Only what is at least so grave.
    pub level: Option<Level>,
    /// Only of these jobs, and of what belongs to no job.
    pub jobs: Vec<String>,
    /// When all of it is told, whether something is wrong or not.
    #[serde(with = "text::optional")]
    pub digest: Option<Calendar>,
    /// After how long a finding that stays is told again.
    #[serde(with = "text::optional")]
    pub again: Option<Stretch>,
    /// How long telling may take.
    #[serde(with = "text::optional")]
    pub time_limit: Option<Stretch>,
}

/// One address, or several.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Addresses {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl Addresses {
    /// All of them, with commas between.
    pub(crate) fn joined(&self) -> String {
        match self {
            Self::One(one) => one.clone(),
            Self::Many(many) => many.join(", "),
        }
    }
}

/// A way to somebody.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Way<'a> {
    /// Mail through the system's sendmail.
    Mail(&'a Addresses),
    /// A watch that expects pings.
    Ping(&'a Source),
    /// A topic of ntfy.
    Ntfy(&'a Source),
    /// A Gotify server.
    Gotify(&'a Source),
    /// Any address.
    Webhook(&'a Source),
    /// A command.
    Command(&'a str),
}

impl Way<'_> {
    /// What the file calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mail(_) => "mail",
            Self::Ping(_) => "ping",
            Self::Ntfy(_) => "ntfy",
            Self::Gotify(_) => "gotify",
            Self::Webhook(_) => "webhook",
            Self::Command(_) => "command",
        }
    }
}

impl Notifier {
    /// The way to whom it may concern.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] if there is none, or more than one.
    pub(crate) fn way(&self) -> Result<Way<'_>> {
        let ways = [
            self.mail.as_ref().map(Way::Mail),
            self.ping.as_ref().map(Way::Ping),
            self.ntfy.as_ref().map(Way::Ntfy),
            self.gotify.as_ref().map(Way::Gotify),
            self.webhook.as_ref().map(Way::Webhook),
            self.command.as_deref().map(Way::Command),
        ];
        let mut ways = ways.into_iter().flatten();
        match (ways.next(), ways.next()) {
            (Some(way), None) => Ok(way),
            (None, _) => Err(Error::new(ErrorKind::Usage, "it does not say how")
                .advise("say one of mail, ping, ntfy, gotify, webhook and command")),
            (Some(one), Some(other)) => {
                let text = format!("it says {} and {}", one.name(), other.name());
                Err(Error::new(ErrorKind::Usage, text)
                    .advise("give each way a name of its own: [notify.NAME]"))
            }
        }
    }

    /// What no type can check.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] says what.
    pub fn check(&self) -> Result<()> {
        let refused = |text: &str, advice: &'static str| {
            Err(Error::new(ErrorKind::Usage, text.to_owned()).advise(advice))
        };
        let way = self.way()?;
        if let Some(Source::Text(_)) = self.token {
            return refused(
                "a token is a secret, and no secret belongs into this file",
                "say file:PATH, credential:NAME or env:NAME",
            );
        }
        if self.template.is_some() && !matches!(way, Way::Webhook(_)) {
            return refused("only a webhook has a template", "leave template out");
        }
        let is_mail = matches!(way, Way::Mail(_));
        if !is_mail && (self.from.is_some() || self.sendmail.is_some()) {
            return refused("only mail has from and sendmail", "leave both out");
        }
        if let Way::Mail(addresses) = way {
            let text = addresses.joined();
            if text.trim().is_empty() || text.contains(['\n', '\r']) {
                return refused("mail goes to nobody", "say mail = \"root\", or an address");
            }
        }
        let is_address =
            |from: &String| !from.trim().is_empty() && !from.contains(char::is_control);
        if self.from.as_ref().is_some_and(|from| !is_address(from)) {
            return refused(
                "from is no sender",
                "say from = \"root@example.org\", or leave it out",
            );
        }
        let is_ping = matches!(way, Way::Ping(_));
        if is_ping && (self.on.is_some() || self.digest.is_some() || self.level.is_some()) {
            return refused(
                "a ping says that a run began, went well, or failed, and nothing else",
                "leave on, level and digest out",
            );
        }
        self.check_what_is_told(way)?;
        if self.time_limit.is_some_and(|limit| limit.0 > Duration::from_secs(600)) {
            return refused("no run should wait so long", "time_limit is at most 10m");
        }
        Ok(())
    }

    /// Fails where a word would mean nothing: whoever wrote it waits to be told.
    fn check_what_is_told(&self, way: Way<'_>) -> Result<()> {
        let refused = |text: String, advice: &'static str| {
            Err(Error::new(ErrorKind::Usage, text).advise(advice))
        };
        let is_ping = matches!(way, Way::Ping(_));
        let has = |event: Event| self.on.as_ref().is_some_and(|on| on.contains(&event));
        if has(Event::Digest) {
            let text = "on says what is told when it happens, and a digest has a time";
            return refused(text.to_owned(), "say digest = \"Mon 08:00\" beside on");
        }
        if has(Event::Start) {
            let text = "only a ping hears of the start of a run";
            return refused(text.to_owned(), "leave start out of on");
        }
        if self.on.as_ref().is_some_and(Vec::is_empty) && self.digest.is_none() {
            let text = "on is empty: it is never told anything";
            return refused(text.to_owned(), "leave on out, or say digest = \"Mon 08:00\"");
        }
        if self.level == Some(Level::Ok) {
            let text = "level = \"ok\" leaves nothing out";
            return refused(text.to_owned(), "leave level out, or say warning or critical");
        }
        if is_ping && self.again.is_some() {
            return refused("a ping has no use for again".to_owned(), "leave again out");
        }
        if self.token.is_some() && matches!(way, Way::Mail(_) | Way::Ping(_)) {
            return refused(format!("{} has no use for a token", way.name()), "leave token out");
        }
        match way {
            Way::Gotify(_) if self.token.is_none() => refused(
                "Gotify takes nothing without the token of an application".to_owned(),
                "say token = \"file:PATH\"",
            ),
            Way::Command(line) if line.trim().is_empty() => {
                refused("an empty command tells nobody".to_owned(), "say command = \"LINE\"")
            }
            _ => Ok(()),
        }
    }

    /// The addresses that stand in the file itself.
    pub(crate) fn addresses(&self) -> Vec<&str> {
        let all = [&self.ping, &self.ntfy, &self.gotify, &self.webhook];
        all.into_iter().filter_map(|it| it.as_ref()?.plain()).collect()
    }

    /// Whether an address in the file itself has what nobody else may know: a password, or the path that alone lets
    /// somebody in.
    pub(crate) fn shows_a_secret(&self) -> bool {
        let is_path_secret = self.ping.is_some()
            || self.webhook.is_some()
            || (self.ntfy.is_some() && self.token.is_none());
        self.addresses().into_iter().any(|address| {
            let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
            let path = rest.find(['/', '?', '#']).and_then(|at| rest.get(at..)).unwrap_or("");
            let has_user = rest.get(..rest.len() - path.len()).is_some_and(|it| it.contains('@'));
            has_user || (is_path_secret && path.len() > 1)
        })
    }

    /// The files of its secrets.
    pub(crate) fn secret_files(&self) -> Vec<&Path> {
        let sources = [&self.token, &self.ping, &self.ntfy, &self.gotify, &self.webhook];
        fn file(source: &Source) -> Option<&Path> {
            match source {
                Source::File(path) => Some(path.as_path()),
                _ => None,
            }
        }
        sources.into_iter().flatten().filter_map(file).collect()
    }

    /// What it needs and this host does not have.
    pub(crate) fn problem(&self) -> Option<Error> {
        // Credentials and variables are those of the service.
        let mut files = self.secret_files().into_iter().map(|path| Source::File(path.to_owned()));
        if let Some(error) = files.find_map(|it| it.read().err()) {
            return Some(error);
        }
        let line = self.sendmail.as_deref().unwrap_or(super::SENDMAIL);
        let name = line.split_whitespace().next().unwrap_or_default();
        let is_missing = !program::is_there(Path::new(name));
        (self.mail.is_some() && is_missing).then(|| {
            Error::new(ErrorKind::NotFound, format!("there is no {name}: no mail goes from here"))
                .advise("install a program that takes mail, as msmtp-mta or postfix, or say sendmail = \"…\"")
        })
    }

    /// Whether it is told of this.
    pub fn hears(&self, event: Event) -> bool {
        match (&self.on, event) {
            _ if self.ping.is_some() => {
                matches!(event, Event::Start | Event::Success | Event::Failure)
            }
            (_, Event::Digest) => self.digest.is_some(),
            (Some(on), _) => on.contains(&event),
            (None, _) => matches!(event, Event::Finding | Event::Recovery),
        }
    }

    /// Whether it is told of what belongs to a job, or to none.
    pub(crate) fn hears_of(&self, job: Option<&str>) -> bool {
        self.jobs.is_empty() || job.is_none_or(|job| self.jobs.iter().any(|it| it == job))
    }

    /// After how long a finding that stays is told again.
    pub(crate) fn again(&self) -> Duration {
        self.again.map_or(AGAIN, |stretch| stretch.0)
    }

    /// How long telling may take.
    pub(crate) fn time_limit(&self) -> Duration {
        self.time_limit.map_or(TIME_MAX, |stretch| stretch.0)
    }

    /// Whom it tells, in a line without secrets.
    pub fn shown(&self) -> String {
        match self.way() {
            Ok(Way::Mail(addresses)) => format!("mail to {}", addresses.joined()),
            Ok(Way::Command(line)) => format!("command {line}"),
            Ok(way @ (Way::Ping(url) | Way::Ntfy(url) | Way::Gotify(url) | Way::Webhook(url))) => {
                format!("{} to {}", way.name(), url.shown())
            }
            Err(error) => error.chain(),
        }
    }
}

/// Where a text comes from that may be a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// It stands in the file of jobs.
    Text(String),
    /// It stands in a file of its own.
    File(PathBuf),
    /// systemd hands it to the service.
    Credential(String),
    /// It is in the environment.
    Variable(String),
}

impl FromStr for Source {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refused = |why: String| {
            Err(Error::new(ErrorKind::Usage, why)
                .advise("say file:PATH, credential:NAME, env:NAME, or an address"))
        };
        let is_name = |name: &str| !name.is_empty() && !name.contains(['/', '=', '\0']);
        match text.split_once(':') {
            Some(("file", path)) if path.starts_with('/') => Ok(Self::File(path.into())),
            Some(("credential", name)) if is_name(name) => Ok(Self::Credential(name.to_owned())),
            Some(("env", name)) if is_name(name) => Ok(Self::Variable(name.to_owned())),
            Some(("http" | "https", rest)) if rest.starts_with("//") && is_address(text) => {
                Ok(Self::Text(text.to_owned()))
            }
            // What was meant as a secret must not be repeated on a screen.
            _ => refused("this is neither an address nor a place of one".to_owned()),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Credential(name) => write!(f, "credential:{name}"),
            Self::Variable(name) => write!(f, "env:{name}"),
        }
    }
}

impl Source {
    /// The text itself.
    ///
    /// # Errors
    /// It is not there, or no text.
    pub(crate) fn read(&self) -> Result<String> {
        let of_file = |path: &Path| {
            Opener::READ.read_text(path, SECRET_MAX).map_err(|error| Error::io("read", path, error))
        };
        let text = match self {
            Self::Text(text) => text.clone(),
            Self::File(path) => of_file(path)?,
            Self::Credential(name) => match std::env::var_os("CREDENTIALS_DIRECTORY") {
                Some(folder) => of_file(&Path::new(&folder).join(name))?,
                None => {
                    let text = format!("systemd hands no credential {name} to this process");
                    return Err(Error::new(ErrorKind::NotFound, text)
                        .advise(format!("LoadCredential={name}:PATH in the service does")));
                }
            },
            Self::Variable(name) => std::env::var(name).map_err(|_| {
                Error::new(ErrorKind::NotFound, format!("the variable {name} is not set"))
                    .advise("Environment= or EnvironmentFile= in the service sets it")
            })?,
        };
        let text = text.trim().to_owned();
        if text.is_empty() || text.contains(char::is_control) {
            return Err(Error::new(ErrorKind::Usage, format!("{self} is empty, or not one line")));
        }
        Ok(text)
    }

    /// The text, if it stands in the file of jobs.
    fn plain(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::File(_) | Self::Credential(_) | Self::Variable(_) => None,
        }
    }

    /// What may be shown of it: of an address in the file, the host alone, as its path may be a secret.
    fn shown(&self) -> String {
        match self {
            Self::Text(text) => host_of(text).to_owned(),
            other => other.to_string(),
        }
    }
}

/// Whether an address has a host, and no space within.
fn is_address(text: &str) -> bool {
    let host = host_of(text);
    !host.is_empty()
        && !host.starts_with(':')
        && !text.contains(|c: char| c.is_whitespace() || c.is_control())
}

/// The host of an address, without what may be secret.
pub(crate) fn host_of(address: &str) -> &str {
    let start = address.find("://").map_or(0, |at| at + 3);
    let rest = address.get(start..).unwrap_or("");
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let host = rest.get(..end).unwrap_or("");
    host.rsplit('@').next().unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_lets_somebody_in_is_a_secret() {
        let of = |address: &str| Some(address.parse().unwrap());
        let ping = |address| Notifier { ping: of(address), ..Notifier::default() };
        let ntfy = |address| Notifier { ntfy: of(address), ..Notifier::default() };
        for secret in [
            ping("https://hc.example/uuid"),
            ntfy("https://ntfy.sh/topic"),
            ntfy("https://u:pw@h"),
            Notifier { webhook: of("http://h?key=1"), ..Notifier::default() },
            Notifier { gotify: of("http://u@h/"), ..Notifier::default() },
        ] {
            assert!(secret.shows_a_secret(), "{secret:?}");
        }
        for plain in [
            ping("file:/etc/qdelta/ping.url"),
            ntfy("http://h/"),
            Notifier { token: of("file:/t"), ..ntfy("http://h/topic") },
            Notifier { gotify: of("http://h/gotify"), ..Notifier::default() },
        ] {
            assert!(!plain.shows_a_secret(), "{plain:?}");
        }
    }
}
