//! Who we are for a store: found where every S3 tool looks, in their order, and renewed before it ends.
//!
//! They are asked for by a thread of its own, by one for all requests. Nobody waits for it whose keys still hold, and a
//! request to stop ends what takes long.

use std::fmt;
use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, TryRecvError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::Deserializer;

use super::profile::Profile;
use super::sign::{self, Keys};
use super::xml;
use crate::base::cancel::Cancel;
use crate::base::clock;
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::io::Opener;

/// So long before their end credentials are renewed.
const AHEAD: SignedDuration = SignedDuration::from_mins(5);
/// How long a command may take that tells credentials.
const COMMAND_TIME_MAX: Duration = Duration::from_secs(60);
/// How long it may take after a request to stop: what is cleaned up needs them, too.
const STOPPED_TIME_MAX: Duration = Duration::from_secs(2);
/// So long after they were asked for they are not asked for again, if the keys still hold or there were none.
const PAUSE: Duration = Duration::from_secs(10);
/// How soon a command hears that nobody needs its answer.
const HEARD: Duration = Duration::from_millis(200);
/// How long a service of this machine may take.
const SERVICE_TIME_MAX: Duration = Duration::from_secs(5);
/// The longest answer that makes sense, in bytes.
const LEN_MAX: u64 = 64 << 10;
/// The address that every cloud gives the service which tells an instance of its role.
const INSTANCE: &str = "http://169.254.169.254";
/// The same of containers.
const CONTAINER: &str = "http://169.254.170.2";

/// Where a program finds its variables.
pub(super) type Environment = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// Keys, and where new ones come from.
pub(super) struct Credentials(Arc<Source>);

struct Source {
    environment: Environment,
    profile: String,
    region: String,
    asked: Mutex<Asked>,
    /// Whoever was asking has an answer.
    answered: Condvar,
    stop: Mutex<Option<Cancel>>,
    /// Nobody needs keys any more.
    is_over: AtomicBool,
}

/// What came of asking.
#[derive(Default)]
struct Asked {
    known: Option<Known>,
    is_asking: bool,
    /// When an answer came last.
    last: Option<Instant>,
    /// Why it held no keys.
    failed: Option<Error>,
}

impl Asked {
    fn is_lately(&self) -> bool {
        self.last.is_some_and(|last| last.elapsed() < PAUSE)
    }
}

#[derive(Clone)]
struct Known {
    keys: Arc<Keys>,
    ends: Option<Timestamp>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("profile", &self.0.profile).finish_non_exhaustive()
    }
}

/// Credentials as a command and the services of clouds tell them.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Told {
    access_key_id: String,
    secret_access_key: String,
    #[serde(alias = "Token")]
    session_token: Option<String>,
    expiration: Option<String>,
}

impl Told {
    fn known(self) -> Result<Known> {
        let ends = self.expiration.filter(|it| !it.is_empty()).map(|text| {
            text.parse::<Timestamp>().map_err(|error| {
                let text = format!("{text:?} is no time at which credentials end");
                Error::new(ErrorKind::Io, text).because(error)
            })
        });
        let token = self.session_token.filter(|it| !it.is_empty());
        let keys = Keys { id: self.access_key_id, secret: self.secret_access_key, token };
        Ok(Known { keys: Arc::new(keys), ends: ends.transpose()? })
    }
}

impl Drop for Credentials {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Relaxed);
        // No command stays behind that nobody hears.
        let asked = self.0.asked();
        let _ = self.0.answered.wait_timeout_while(asked, HEARD, |asked| asked.is_asking);
    }
}

impl Credentials {
    /// Credentials of a profile, for a region. Nothing is looked for before they are needed.
    pub fn new(environment: Environment, profile: String, region: String) -> Self {
        Self(Arc::new(Source {
            environment,
            profile,
            region,
            asked: Mutex::default(),
            answered: Condvar::new(),
            stop: Mutex::default(),
            is_over: AtomicBool::new(false),
        }))
    }

    /// From now on nobody waits for long after a request to stop.
    pub fn heed(&self, cancel: &Cancel) {
        *self.0.stop.lock().unwrap_or_else(PoisonError::into_inner) = Some(cancel.clone());
    }

    /// The keys, which hold for some minutes if whoever has them tells in time.
    ///
    /// # Errors
    /// There are none, or whoever has them does not tell.
    pub fn keys(&self) -> Result<Arc<Keys>> {
        let mut asked = self.0.asked();
        let mut has_waited = false;
        loop {
            let now = clock::now()?;
            if let Some(known) = asked.known.clone() {
                if known.ends.is_none_or(|ends| now + AHEAD < ends) {
                    return Ok(known.keys);
                }
                // The old ones hold until their very end.
                if known.ends.is_some_and(|ends| now < ends) {
                    if !asked.is_asking && !asked.is_lately() {
                        self.ask(&mut asked)?;
                    }
                    return Ok(known.keys);
                }
            }
            let is_answered = !asked.is_asking && (has_waited || asked.is_lately());
            match (&asked.failed, &asked.known) {
                (Some(error), _) if is_answered => return Err(error.clone()),
                // The store says whether they have ended.
                (None, Some(known)) if is_answered && has_waited => {
                    return Ok(Arc::clone(&known.keys));
                }
                _ => {}
            }
            if !asked.is_asking {
                self.ask(&mut asked)?;
            }
            let answered = self.0.answered.wait_while(asked, |asked| asked.is_asking);
            asked = answered.unwrap_or_else(PoisonError::into_inner);
            has_waited = true;
        }
    }

    /// Begins to ask for keys.
    fn ask(&self, asked: &mut Asked) -> Result<()> {
        let source = Arc::clone(&self.0);
        let begun = std::thread::Builder::new().name("credentials".to_owned()).spawn(move || {
            let found = source.find();
            let mut asked = source.asked();
            (asked.is_asking, asked.last) = (false, Some(Instant::now()));
            match found {
                Ok(known) => (asked.known, asked.failed) = (Some(known), None),
                Err(error) => asked.failed = Some(error),
            }
            source.answered.notify_all();
        });
        begun.map_err(|error| Error::new(ErrorKind::Io, "cannot start a thread").because(error))?;
        asked.is_asking = true;
        Ok(())
    }

    /// Forgets keys that the store does not take any more. Whether there are others.
    pub fn renew(&self, refused: &Keys) -> Result<bool> {
        {
            let mut asked = self.0.asked();
            if asked.known.as_ref().is_some_and(|it| *it.keys == *refused) {
                asked.known = None;
            }
        }
        Ok(*self.keys()? != *refused)
    }
}

impl Source {
    fn asked(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nobody waits any more for what has taken so long.
    fn is_given_up(&self, took: Duration) -> bool {
        let stop = self.stop.lock().unwrap_or_else(PoisonError::into_inner);
        let is_stopped = stop.as_ref().is_some_and(Cancel::is_cancelled);
        self.is_over.load(Ordering::Relaxed) || is_stopped && took > STOPPED_TIME_MAX
    }

    fn variable(&self, name: &str) -> Option<String> {
        (self.environment)(name).filter(|value| !value.is_empty())
    }

    /// Looks everywhere, in the order of AWS's tools.
    fn find(&self) -> Result<Known> {
        let is_named = self.profile != "default";
        if let Some(id) = self.variable("AWS_ACCESS_KEY_ID").filter(|_| !is_named) {
            let secret = self.variable("AWS_SECRET_ACCESS_KEY").ok_or_else(|| {
                Error::new(
                    ErrorKind::Usage,
                    "AWS_ACCESS_KEY_ID is set without AWS_SECRET_ACCESS_KEY",
                )
            })?;
            let token = self.variable("AWS_SESSION_TOKEN");
            return Ok(Known { keys: Arc::new(Keys { id, secret, token }), ends: None });
        }
        let profile = Profile::read(&*self.environment, &self.profile)?;
        if is_named && !profile.is_there {
            let text = format!("there is no profile {:?} in ~/.aws", self.profile);
            return Err(Error::new(ErrorKind::NotFound, text).advise("aws configure list-profiles"));
        }
        if let Some(role) = self.variable("AWS_ROLE_ARN").filter(|_| !is_named)
            && let Some(file) = self.variable("AWS_WEB_IDENTITY_TOKEN_FILE")
        {
            return self.assume(&role, &file);
        }
        if let (Some(id), Some(secret)) =
            (profile.get("aws_access_key_id"), profile.get("aws_secret_access_key"))
        {
            let token = profile.get("aws_session_token");
            return Ok(Known { keys: Arc::new(Keys { id, secret, token }), ends: None });
        }
        if let Some(command) = profile.get("credential_process") {
            return self.by_command(&command);
        }
        if let Some(found) = self.of_container().transpose() {
            return found;
        }
        self.of_instance()
    }

    /// The role of a container, if one has been given.
    fn of_container(&self) -> Result<Option<Known>> {
        let relative = self.variable("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI");
        let url = relative.map(|path| format!("{CONTAINER}{path}"));
        let full = || self.variable("AWS_CONTAINER_CREDENTIALS_FULL_URI");
        let Some(url) = url.or_else(full) else { return Ok(None) };
        let token = match self.variable("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE") {
            Some(file) => Some(read_token(&file)?),
            None => self.variable("AWS_CONTAINER_AUTHORIZATION_TOKEN"),
        };
        let headers = token.iter().map(|token| ("authorization", token.as_str()));
        let text = ask("GET", &url, &headers.collect::<Vec<_>>(), "")?;
        told(serde_json::from_str(&text), &url).map(Some)
    }

    /// The role of a virtual machine in a cloud.
    fn of_instance(&self) -> Result<Known> {
        let none = |why: String| {
            Error::new(ErrorKind::Usage, "there are no credentials for the object store")
                .because(why)
                .advise(
                    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write them to ~/.aws/credentials",
                )
        };
        if self.variable("AWS_EC2_METADATA_DISABLED").is_some_and(|it| it == "true") {
            return Err(none("neither the environment nor ~/.aws has any".to_owned()));
        }
        let base = self.variable("AWS_EC2_METADATA_SERVICE_ENDPOINT");
        let base = base.as_deref().unwrap_or(INSTANCE).trim_end_matches('/').to_owned();
        let lifetime = [("x-aws-ec2-metadata-token-ttl-seconds", "21600")];
        let token = ask("PUT", &format!("{base}/latest/api/token"), &lifetime, "");
        let token = token.map_err(|error| {
            none(format!(
                "neither the environment nor ~/.aws nor the machine has any ({})",
                error.chain()
            ))
        })?;
        let token = [("x-aws-ec2-metadata-token", token.trim())];
        let roles = format!("{base}/latest/meta-data/iam/security-credentials/");
        let role = ask("GET", &roles, &token, "")
            .map_err(|error| none(format!("this machine has no role ({})", error.chain())))?;
        let role = role.lines().next().unwrap_or_default().trim().to_owned();
        let url = format!("{roles}{role}");
        told(serde_json::from_str(&ask("GET", &url, &token, "")?), &url)
    }

    /// The role that a token of another service stands for.
    fn assume(&self, role: &str, file: &str) -> Result<Known> {
        let token = read_token(file)?;
        let name = self.variable("AWS_ROLE_SESSION_NAME").unwrap_or_else(|| "qdelta".to_owned());
        let base = self.variable("AWS_ENDPOINT_URL_STS");
        let url = base.unwrap_or_else(|| format!("https://sts.{}.amazonaws.com", self.region));
        let fields = [
            ("Action", "AssumeRoleWithWebIdentity"),
            ("Version", "2011-06-15"),
            ("RoleArn", role),
            ("RoleSessionName", &name),
            ("WebIdentityToken", &token),
        ];
        let fields = fields.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let headers = [("content-type", "application/x-www-form-urlencoded")];
        let text = ask("POST", &url, &headers, &sign::query(&fields))?;
        let [id, secret, token, ends] = xml::assumed(text.as_bytes()).map_err(|why| {
            Error::new(ErrorKind::Io, format!("the answer of {url} makes no sense")).because(why)
        })?;
        Told {
            access_key_id: id,
            secret_access_key: secret,
            session_token: Some(token),
            expiration: Some(ends),
        }
        .known()
    }

    /// What a command of the admin's tells.
    fn by_command(&self, command: &str) -> Result<Known> {
        let failed = |why: String| {
            Error::new(ErrorKind::Io, format!("the credential_process {command:?} failed"))
                .because(why)
        };
        // As AWS's tools: words, in which quotes hold spaces, and no shell.
        let words = words(command).filter(|words| !words.is_empty());
        let words = words.ok_or_else(|| failed("a quote is not closed".to_owned()))?;
        let (program, arguments) =
            words.split_first().map_or(("", &[][..]), |(it, rest)| (it, rest));
        let spawned = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn();
        let mut child = spawned.map_err(|error| failed(error.to_string()))?;
        // The answer ends with itself: what the command leaves behind may hold its output open.
        let (stdout, (answer, answered)) = (child.stdout.take(), mpsc::sync_channel(1));
        std::thread::spawn(move || {
            let out = stdout.map(|out| Deserializer::from_reader(out.take(LEN_MAX)).into_iter());
            let _ = answer.send(out.and_then(|mut values| values.next()));
        });
        let (begin, mut status) = (Instant::now(), None);
        loop {
            if status.is_none() {
                status = child.try_wait().map_err(|error| failed(error.to_string()))?;
            }
            match status {
                Some(status) if !status.success() => return Err(failed(status.to_string())),
                Some(_) => match answered.try_recv() {
                    Ok(Some(answer)) => return told(answer, program),
                    Ok(None) | Err(TryRecvError::Disconnected) => {
                        return Err(failed("it told nothing".to_owned()));
                    }
                    Err(TryRecvError::Empty) => {}
                },
                None => {}
            }
            let is_given_up = self.is_given_up(begin.elapsed());
            if is_given_up || begin.elapsed() > COMMAND_TIME_MAX {
                let _ = child.kill();
                let _ = child.wait();
            }
            if is_given_up {
                let error = Error::new(ErrorKind::Interrupted, "stopped on request");
                return Err(error.within(format!("the credential_process {command:?} was ended")));
            }
            if begin.elapsed() > COMMAND_TIME_MAX {
                return Err(failed(format!("it did not end within {COMMAND_TIME_MAX:?}")));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn told(answer: serde_json::Result<Told>, who: &str) -> Result<Known> {
    let told = answer.map_err(|error| {
        // The answer may hold a secret: no part of it is shown.
        let text = format!("{who} told no credentials");
        Error::new(ErrorKind::Io, text).because(format!("line {}: not as agreed", error.line()))
    })?;
    told.known()
}

fn read_token(file: &str) -> Result<String> {
    let read = Opener::READ.read_text(file.as_ref(), LEN_MAX);
    let text = read.map_err(|error| Error::io("read", file.as_ref(), error))?;
    Ok(text.trim().to_owned())
}

/// One request to a service of this machine or its cloud.
fn ask(method: &str, url: &str, headers: &[(&str, &str)], body: &str) -> Result<String> {
    let failed = |why: String| {
        Error::new(ErrorKind::Io, format!("cannot get credentials from {url}")).because(why)
    };
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(SERVICE_TIME_MAX))
        .http_status_as_error(false)
        .tls_config(super::client::trust(None)?)
        .build();
    let mut request = ureq::http::Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(body).map_err(|error| failed(error.to_string()))?;
    let mut answer = config.new_agent().run(request).map_err(|error| failed(error.to_string()))?;
    let text = answer.body_mut().with_config().limit(LEN_MAX).read_to_string();
    let text = text.map_err(|error| failed(error.to_string()))?;
    match answer.status().as_u16() {
        200 => Ok(text),
        status => Err(failed(format!("it answered {status}"))),
    }
}

/// The words of a command; none where a quote is not closed.
fn words(command: &str) -> Option<Vec<String>> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in command.chars() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, _) if c.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Credentials that a script tells: how often it was called stands in `calls`, and after the first time it waits until
    /// there is a file `go`.
    fn told_slowly(dir: &std::path::Path, first_ends: &str) -> Credentials {
        let told = |id: &str, ends: &str| {
            format!(
                r#"echo '{{"AccessKeyId":"{id}","SecretAccessKey":"s","Expiration":"{ends}"}}'"#
            )
        };
        let script = format!(
            "cd {}\necho x >>calls\nif [ $(wc -l <calls) = 1 ]; then {}; exit; fi\n\
             while [ ! -e go ]; do sleep 0.05; done\n{}\n",
            dir.display(),
            told("old", first_ends),
            told("new", "2999-01-01T00:00:00Z"),
        );
        std::fs::write(dir.join("script"), script).unwrap();
        let config = dir.join("config");
        let command = format!("[default]\ncredential_process = sh {}/script\n", dir.display());
        std::fs::write(&config, command).unwrap();
        let config = config.display().to_string();
        let variable = move |name: &str| (name == "AWS_CONFIG_FILE").then(|| config.clone());
        Credentials::new(Arc::new(variable), "default".to_owned(), "r".to_owned())
    }

    fn calls(dir: &std::path::Path) -> usize {
        std::fs::read_to_string(dir.join("calls")).unwrap_or_default().lines().count()
    }

    /// A command that hung was waited for by each request for a minute, though the keys that were known held.
    #[test]
    fn keys_that_hold_are_used_while_new_ones_are_asked_for_once() {
        let dir = tempfile::tempdir().unwrap();
        let soon = (clock::now().unwrap() + SignedDuration::from_mins(3)).to_string();
        let credentials = told_slowly(dir.path(), &soon);
        assert_eq!(credentials.keys().unwrap().id, "old");
        for _ in 0..3 {
            // However often they are needed.
            credentials.0.asked().last = None;
            assert_eq!(credentials.keys().unwrap().id, "old");
        }
        assert!(credentials.0.asked().is_asking, "nobody asks for new ones");
        std::fs::write(dir.path().join("go"), "").unwrap();
        let asked = credentials.0.asked();
        drop(credentials.0.answered.wait_while(asked, |asked| asked.is_asking).unwrap());
        assert_eq!(credentials.keys().unwrap().id, "new");
        assert_eq!(calls(dir.path()), 2);
    }

    /// What a command left behind, as an agent, held its output open: its answer was waited for as long as that lived, and no
    /// request to stop was heard.
    #[test]
    fn an_answer_ends_where_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let credentials = told_slowly(dir.path(), "2001-01-01T00:00:00Z");
        let script = dir.path().join("script");
        let agent = "while [ -e script ]; do sleep 0.1; done &\n";
        let text = std::fs::read_to_string(&script).unwrap();
        std::fs::write(&script, text.replacen("echo x", &format!("{agent}echo x"), 1)).unwrap();
        assert_eq!(credentials.keys().unwrap().id, "old");
    }

    /// A command that hung was waited for by each request, and no request to stop was heard.
    #[test]
    fn a_stop_ends_the_wait_for_keys_of_all_who_need_them() {
        let dir = tempfile::tempdir().unwrap();
        let credentials = told_slowly(dir.path(), "2001-01-01T00:00:00Z");
        let cancel = Cancel::default();
        credentials.heed(&cancel);
        assert_eq!(credentials.keys().unwrap().id, "old", "the store says that they have ended");
        let failed = std::thread::scope(|scope| {
            let waiting = [(); 4].map(|()| scope.spawn(|| credentials.keys().unwrap_err()));
            while calls(dir.path()) < 2 {
                std::thread::sleep(Duration::from_millis(10));
            }
            cancel.cancel();
            waiting.map(|it| it.join().unwrap().kind())
        });
        assert_eq!(failed, [ErrorKind::Interrupted; 4]);
        assert_eq!(calls(dir.path()), 2);
        // Nor does whoever comes after that wait.
        assert_eq!(credentials.keys().unwrap_err().kind(), ErrorKind::Interrupted);
        assert_eq!(calls(dir.path()), 2);
    }
}
