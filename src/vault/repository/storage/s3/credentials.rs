//! Who we are for a store: found where every S3 tool looks, in their order, and renewed before it ends.

use std::fmt;
use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;

use super::profile::Profile;
use super::sign::{self, Keys};
use super::xml;
use crate::base::clock;
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::io::Opener;

/// So long before their end credentials are renewed.
const AHEAD: SignedDuration = SignedDuration::from_mins(5);
/// How long a command may take that tells credentials.
const COMMAND_TIME_MAX: Duration = Duration::from_secs(60);
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
pub(super) struct Credentials {
    environment: Environment,
    profile: String,
    region: String,
    known: Mutex<Option<Known>>,
}

#[derive(Clone)]
struct Known {
    keys: Arc<Keys>,
    ends: Option<Timestamp>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("profile", &self.profile).finish_non_exhaustive()
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

impl Credentials {
    /// Credentials of a profile, for a region. Nothing is looked for before they are needed.
    pub fn new(environment: Environment, profile: String, region: String) -> Self {
        Self { environment, profile, region, known: Mutex::default() }
    }

    /// The keys, which hold for some minutes at least.
    ///
    /// # Errors
    /// There are none, or whoever has them does not tell.
    pub fn keys(&self) -> Result<Arc<Keys>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let now = clock::now()?;
        let still = known.as_ref().filter(|it| it.ends.is_none_or(|ends| now + AHEAD < ends));
        if let Some(still) = still {
            return Ok(Arc::clone(&still.keys));
        }
        let found = match (self.find(), known.as_ref()) {
            // The old ones hold until their very end.
            (Err(_), Some(old)) if old.ends.is_some_and(|ends| now < ends) => old.clone(),
            (found, _) => found?,
        };
        *known = Some(found.clone());
        Ok(found.keys)
    }

    /// Forgets keys that the store does not take any more. Whether there are others.
    pub fn renew(&self, refused: &Keys) -> Result<bool> {
        {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            if known.as_ref().is_some_and(|it| *it.keys == *refused) {
                *known = None;
            }
        }
        Ok(*self.keys()? != *refused)
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
            return by_command(&command);
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
        told(&text, &url).map(Some)
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
        told(&ask("GET", &url, &token, "")?, &url)
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
}

fn told(text: &str, who: &str) -> Result<Known> {
    let told: Told = serde_json::from_str(text).map_err(|error| {
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

/// What a command of the admin's tells.
fn by_command(command: &str) -> Result<Known> {
    let failed = |why: String| {
        Error::new(ErrorKind::Io, format!("the credential_process {command:?} failed")).because(why)
    };
    // As AWS's tools: words, in which quotes hold spaces, and no shell.
    let words = words(command).filter(|words| !words.is_empty());
    let words = words.ok_or_else(|| failed("a quote is not closed".to_owned()))?;
    let (program, arguments) = words.split_first().map_or(("", &[][..]), |(it, rest)| (it, rest));
    let spawned = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn();
    let mut child = spawned.map_err(|error| failed(error.to_string()))?;
    let stdout = child.stdout.take();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        let read = stdout.map(|out| out.take(LEN_MAX).read_to_string(&mut text));
        read.is_some_and(|it| it.is_ok()).then_some(text)
    });
    let begin = Instant::now();
    let status = loop {
        match child.try_wait().map_err(|error| failed(error.to_string()))? {
            Some(status) => break status,
            None if begin.elapsed() > COMMAND_TIME_MAX => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed(format!("it did not end within {COMMAND_TIME_MAX:?}")));
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    if !status.success() {
        return Err(failed(status.to_string()));
    }
    let text = reader.join().ok().flatten();
    told(&text.ok_or_else(|| failed("its answer is no text".to_owned()))?, program)
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
