//! One request and its answer: signed, tried again where that helps, and read to its end.

use std::fmt;
use std::io::Read;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use ureq::http::{HeaderMap, HeaderValue};
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};

use super::address::Address;
use super::clocks::{Clocks, Date};
use super::credentials::Credentials;
use super::failure::{self, Failure, Remedy, broken, unreached};
use super::past::{self, Past};
use super::sign::{self, Keys, Request, Scope};
use crate::base::cancel::Cancel;
use crate::base::clock;
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::io::Opener;

/// How long it may take to reach a store.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
/// How long a store may say nothing, or take nothing: no longer than failed requests are tried again, but a
/// while.
const SILENCE: RangeInclusive<Duration> = Duration::from_secs(10)..=Duration::from_secs(120);
/// Of a request for a lock no longer than for this part of its lease, which runs out meanwhile, but a while.
const LOCK_SILENCE: (u32, Duration) = (4, Duration::from_secs(2));
/// Of a request that only reads no longer than this: a request to stop is heard when it is over, and services are killed after
/// a minute and a half.
const READ_SILENCE: Duration = Duration::from_secs(60);
/// How long a name is looked for that leads to no store: mostly it was mistyped.
const UNKNOWN_TIME_MAX: Duration = Duration::from_secs(10);
/// The first pause after a failure is no longer than this, each later one than twice the one before.
const PAUSE: Duration = Duration::from_millis(100);
/// No pause is longer.
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(10);
/// How often something is asked again of which it was said, without a word, that it is not there.
const DOUBTS_MAX: u32 = 3;
/// How soon a request to stop is heard.
const HEARD: Duration = Duration::from_millis(200);
/// How often an answer is asked for again that makes no sense.
const PARSES_MAX: u32 = 3;
/// Connections that are kept for the next request.
const CONNECTIONS_MAX: usize = 64;
/// The longest answer that is read of a failure, in bytes.
const REFUSAL_LEN_MAX: u64 = 64 << 10;
/// The longest file of trusted certificates, in bytes.
const CA_LEN_MAX: u64 = 4 << 20;

/// Speaks to one store.
pub(super) struct Client {
    agent: ureq::Agent,
    pub address: Address,
    credentials: Credentials,
    /// The moment as of which everything is read; none for now.
    pub past: Option<Past>,
    pub clocks: Clocks,
    /// What ends all trying again.
    stop: Mutex<Option<Cancel>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("address", &self.address.text).finish_non_exhaustive()
    }
}

/// A request.
#[derive(Debug, Clone)]
pub(super) struct Ask<'a> {
    pub method: &'static str,
    /// The key of an object; nothing for the bucket itself.
    pub key: &'a str,
    pub query: Vec<(String, String)>,
    pub headers: Vec<(String, String)>,
    pub body: &'a [u8],
    /// The longest answer that makes sense, in bytes.
    pub limit: u64,
    /// The store must refuse the request when it comes later, by the store's own clock.
    pub until: Option<Timestamp>,
    /// When it was signed, where that is not now.
    signed: Option<Timestamp>,
    /// It is for a lock.
    is_of_lock: bool,
}

impl<'a> Ask<'a> {
    pub fn new(method: &'static str, key: &'a str) -> Self {
        Self {
            method,
            key,
            query: Vec::new(),
            headers: Vec::new(),
            body: &[],
            limit: 0,
            until: None,
            signed: None,
            is_of_lock: false,
        }
    }

    pub fn query(mut self, name: &str, value: impl Into<String>) -> Self {
        self.query.push((name.to_owned(), value.into()));
        self
    }

    /// With a header; its name is in small letters.
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub fn body(self, body: &'a [u8]) -> Self {
        Self { body, ..self }
    }

    pub fn at_most(self, limit: u64) -> Self {
        Self { limit, ..self }
    }

    pub fn until(self, until: Option<Timestamp>) -> Self {
        Self { until, ..self }
    }

    /// For a lock, whose lease runs out while nobody answers.
    pub fn of_lock(self) -> Self {
        Self { is_of_lock: true, ..self }
    }

    /// As if it had been sent at another time, to arrive within so many seconds.
    pub fn signed_at(self, at: Timestamp, seconds: i64) -> Self {
        Self { signed: Some(at), until: Some(at + SignedDuration::from_secs(seconds)), ..self }
    }
}

/// An answer to a request that was done.
#[derive(Debug)]
pub(super) struct Answer {
    headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// What the object is told from others of its key by.
    pub fn etag(&self) -> Option<String> {
        self.header("etag").map(super::xml::strong_etag)
    }

    /// The time of the store.
    pub fn date(&self) -> Option<Date> {
        Date::parse(self.header("date")?)
    }
}

fn date_of(value: &HeaderValue) -> Option<Date> {
    Date::parse(value.to_str().ok()?)
}

/// Which certificates are trusted: the system's, or those in a file.
pub(super) fn trust(ca: Option<&Path>) -> Result<TlsConfig> {
    let roots = match ca {
        None => RootCerts::PlatformVerifier,
        Some(path) => {
            let pem = Opener::READ.read(path, CA_LEN_MAX);
            let pem = pem.map_err(|error| Error::io("read", path, error))?;
            let wrong = |why: String| {
                let text = format!("{} holds no certificates", path.display());
                Error::new(ErrorKind::Usage, text).because(why).advise("name a file in PEM")
            };
            let found = openssl::x509::X509::stack_from_pem(&pem);
            let found = found.map_err(|error| wrong(error.to_string()))?;
            let mut certificates = Vec::new();
            for certificate in found {
                let der = certificate.to_der().map_err(|error| wrong(error.to_string()))?;
                certificates.push(Certificate::from_der(&der).to_owned());
            }
            if certificates.is_empty() {
                return Err(wrong("it is empty".to_owned()));
            }
            RootCerts::from(certificates)
        }
    };
    Ok(TlsConfig::builder().provider(TlsProvider::NativeTls).root_certs(roots).build())
}

impl Client {
    /// A client of the store at an address.
    ///
    /// # Errors
    /// The file of trusted certificates can't be read.
    pub fn new(address: Address, credentials: Credentials, past: Option<Past>) -> Result<Self> {
        let silence = silence(&address);
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(CONNECT_TIME_MAX))
            .timeout_per_read(Some(silence))
            .timeout_per_write(Some(silence))
            .max_idle_connections(CONNECTIONS_MAX)
            .max_idle_connections_per_host(CONNECTIONS_MAX)
            .user_agent(concat!("qdelta/", env!("CARGO_PKG_VERSION")));
        // A system's certificates take longer to read than a small backup takes.
        let agent = match address.base.starts_with("https:") {
            true => agent.tls_config(trust(address.ca.as_deref())?),
            false => agent,
        };
        let agent = agent.build().new_agent();
        Ok(Self {
            agent,
            address,
            credentials,
            past,
            clocks: Clocks::default(),
            stop: Mutex::default(),
        })
    }

    /// The time by the store's clock, as far as the `Date` of its answers says.
    pub fn now(&self) -> Result<Timestamp> {
        self.clocks.now()
    }

    /// Sends a request until it is done, refused, or its time is over.
    pub fn send(&self, ask: &Ask<'_>) -> Result<Answer, Failure> {
        let Some(past) = &self.past else { return self.send_now(ask) };
        if !matches!(ask.method, "GET" | "HEAD") {
            // As of somebody who may only read.
            let (code, error) = ("AccessDenied".to_owned(), past::refused());
            return Err(Failure::of(Some(403), code, error, Remedy::None));
        }
        if ask.key.is_empty() {
            return self.send_now(ask);
        }
        match past.version(self, ask.key)? {
            Some(version) => self.send_now(&ask.clone().query("versionId", version)),
            None => {
                let error =
                    Error::new(ErrorKind::NotFound, format!("nothing was there at {}", past.at));
                Err(Failure::of(Some(404), "NoSuchKey".to_owned(), error, Remedy::None))
            }
        }
    }

    fn send_now(&self, ask: &Ask<'_>) -> Result<Answer, Failure> {
        let begin = Instant::now();
        let (mut tries, mut renewals) = (0_u32, 0);
        let (mut is_turned, mut doubts, mut is_afresh) = (false, 0, false);
        // One before may have been done.
        let mut is_doubtful = false;
        loop {
            let sent = clock::now().map_err(Failure::local)?;
            let mut failure = match self.once(ask, sent, is_afresh) {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            // What a connection hangs by, others may hang by that were left idle.
            is_afresh = failure.status.is_none();
            // At random: many hosts that failed together must not come back together.
            let first = PAUSE.saturating_mul(1 << tries.min(10)).min(PAUSE_MAX);
            let pause = match failure.remedy {
                Remedy::Again(least) => least.max(first.mul_f64(fastrand::f64())),
                Remedy::Keys if renewals < 2 => {
                    renewals += 1;
                    Duration::ZERO
                }
                Remedy::Clock if !is_turned && self.was_early(ask, sent) && self.clocks.turn() => {
                    is_turned = true;
                    Duration::ZERO
                }
                Remedy::Doubt if doubts < DOUBTS_MAX => {
                    doubts += 1;
                    first
                }
                _ => Duration::MAX,
            };
            let patience = match failure.is_unknown_host {
                true => self.address.patience.min(UNKNOWN_TIME_MAX),
                false => self.address.patience,
            };
            let left = patience.checked_sub(begin.elapsed());
            failure.again |= is_doubtful;
            if left.is_none_or(|left| pause > left) {
                return Err(failure);
            }
            // By keys or an end that the store does not take it does nothing.
            is_doubtful |= !matches!(failure.remedy, Remedy::Keys | Remedy::Clock);
            let error = failure.error.chain();
            if let Err(stopped) = self.pause(pause, || {
                tracing::debug!("{} {}: {error}; again in {pause:?}", ask.method, ask.key);
            }) {
                return Err(Failure { error: Box::new(stopped.because(error)), ..failure });
            }
            tries += 1;
        }
    }

    /// From now on nothing is tried again after a request to stop.
    pub fn heed(&self, cancel: &Cancel) {
        self.credentials.heed(cancel);
        *self.stop.lock().unwrap_or_else(PoisonError::into_inner) = Some(cancel.clone());
    }

    /// Waits before something is tried again.
    fn pause(&self, pause: Duration, note: impl FnOnce()) -> Result<()> {
        let stop = self.stop.lock().unwrap_or_else(PoisonError::into_inner).clone();
        stop.as_ref().map_or(Ok(()), Cancel::check)?;
        note();
        let end = Instant::now() + pause;
        loop {
            stop.as_ref().map_or(Ok(()), Cancel::check)?;
            match end.checked_duration_since(Instant::now()) {
                Some(left) if !left.is_zero() => std::thread::sleep(left.min(HEARD)),
                _ => return Ok(()),
            }
        }
    }

    /// Sends a request whose answer is read by `parse`: one that makes no sense was cut or damaged on its
    /// way, and is asked for again.
    pub fn parsed<T>(
        &self,
        ask: &Ask<'_>,
        parse: impl Fn(&[u8]) -> Result<T, String>,
    ) -> Result<(Answer, T), Failure> {
        let mut again = 0;
        loop {
            let answer = self.send(ask)?;
            match parse(&answer.body) {
                Ok(parsed) => return Ok((answer, parsed)),
                Err(why) if again == PARSES_MAX => {
                    return Err(Failure::unclear(&why));
                }
                Err(_) => again += 1,
            }
        }
    }

    /// Whether a request that was sent at a time came long before it was over, by this host's clock.
    fn was_early(&self, ask: &Ask<'_>, sent: Timestamp) -> bool {
        let (Some(until), None) = (ask.until, ask.signed) else { return false };
        self.clocks.was_early(until, sent)
    }

    /// Sends a request once, `afresh` on a connection that nothing was sent by before.
    fn once(&self, ask: &Ask<'_>, begun: Timestamp, afresh: bool) -> Result<Answer, Failure> {
        let keys = self.credentials.keys().map_err(Failure::local)?;
        let request = self.signed(ask, &keys)?;
        tracing::trace!("{} {} {}", ask.method, ask.key, sign::query(&ask.query));
        let has_body = matches!(ask.method, "PUT" | "POST");
        let sent = match has_body {
            true => self.agent.run(self.tuned(ask, afresh, request.map(|()| ask.body))),
            false => self.agent.run(self.tuned(ask, afresh, request)),
        };
        let mut answer = sent.map_err(|error| unreached(&error, &self.address))?;
        let status = answer.status().as_u16();
        let is_done = (200..300).contains(&status);
        let limit = if is_done { ask.limit } else { REFUSAL_LEN_MAX };
        let read = match ask.method {
            "HEAD" => Ok(Vec::new()),
            _ => read_whole(answer.body_mut(), limit),
        };
        let headers = std::mem::take(answer.headers_mut());
        if let Some(theirs) = headers.get("date").and_then(date_of) {
            self.clocks.hear(theirs, begun);
        }
        match read {
            Ok(body) if is_done => Ok(Answer { headers, body }),
            // The answer of a failure says enough by its status.
            body => match (is_done, body) {
                (true, Err(Unread::Broken(why))) => Err(broken(&why)),
                (true, Err(Unread::TooLong(why))) => {
                    Err(Failure::local(Error::new(ErrorKind::Damaged, why)))
                }
                (_, body) => {
                    let body = body.unwrap_or_default();
                    let mut failure =
                        failure::refused(status, &headers, &body, || self.credentials.renew(&keys));
                    // A store says what it is that is not there.
                    if failure.is_missing() && failure.code.is_empty() && ask.method != "HEAD" {
                        failure.remedy = Remedy::Doubt;
                    }
                    Err(if ask.until.is_some() { failure.timed() } else { failure })
                }
            },
        }
    }

    /// How long it may take, and by which connection it goes, where that is not as for others.
    fn tuned<B: ureq::AsSendBody>(
        &self,
        ask: &Ask<'_>,
        afresh: bool,
        request: ureq::http::Request<B>,
    ) -> ureq::http::Request<B> {
        let mut config = self.agent.configure_request(request);
        if ask.is_of_lock {
            let (part, least) = LOCK_SILENCE;
            let most = (self.address.lease / part).max(least).min(silence(&self.address));
            config = config
                .timeout_connect(Some(most.min(CONNECT_TIME_MAX)))
                .timeout_per_read(Some(most))
                .timeout_per_write(Some(most));
        }
        if !ask.is_of_lock && matches!(ask.method, "GET" | "HEAD") {
            config = config.timeout_per_read(Some(silence(&self.address).min(READ_SILENCE)));
        }
        if afresh {
            config = config.max_idle_age(Duration::ZERO);
        }
        config.build()
    }

    fn signed(&self, ask: &Ask<'_>, keys: &Keys) -> Result<ureq::http::Request<()>, Failure> {
        // What must come in time is measured by the store's clocks alone.
        let behind = match ask.signed {
            Some(_) => self.clocks.earlier(),
            None => self.clocks.judging(),
        };
        let now = match (ask.signed, ask.until) {
            (Some(at), _) => at - behind,
            (None, Some(_)) => self.now().map_err(Failure::local)? - behind,
            (None, None) => clock::now().map_err(Failure::local)?,
        };
        let path = self.address.path(ask.key);
        let digest;
        let payload = match ask.until {
            Some(_) => sign::UNSIGNED,
            None => {
                digest = sign::sha256(ask.body);
                &digest
            }
        };
        let mut request = Request {
            method: ask.method,
            host: &self.address.host,
            path: &path,
            query: ask.query.clone(),
            headers: ask.headers.clone(),
            payload,
        };
        let scope = Scope { region: &self.address.region, service: "s3", at: now };
        let signed = match ask.until {
            None => sign::sign(&mut request, scope, keys),
            Some(until) => {
                // What is signed has whole seconds.
                let left = (until - behind).as_second() - now.as_second();
                if left < 1 {
                    return Err(Failure::run_out());
                }
                sign::presign(&mut request, scope, keys, left.unsigned_abs())
            }
        };
        let failed = |why: String| {
            Failure::local(Error::new(ErrorKind::Io, "cannot sign a request").because(why))
        };
        signed.map_err(|error| failed(error.to_string()))?;
        let query = sign::query(&request.query);
        let mark = if query.is_empty() { "" } else { "?" };
        let uri = format!("{}{path}{mark}{query}", self.address.base);
        let mut built = ureq::http::Request::builder().method(ask.method).uri(uri);
        for (name, value) in &request.headers {
            built = built.header(name, value);
        }
        built.body(()).map_err(|error| failed(error.to_string()))
    }
}

/// How long a store may say nothing.
fn silence(address: &Address) -> Duration {
    address.patience.clamp(*SILENCE.start(), *SILENCE.end())
}

/// Why a body was not read.
enum Unread {
    Broken(String),
    TooLong(String),
}

/// Reads a body to its end, which must be where its length says.
fn read_whole(body: &mut ureq::Body, limit: u64) -> Result<Vec<u8>, Unread> {
    let expected = body.content_length();
    if let Some(len) = expected.filter(|len| *len > limit) {
        return Err(Unread::TooLong(format!("{len} bytes long, and at most {limit} make sense")));
    }
    let mut bytes = Vec::with_capacity(expected.unwrap_or(0).min(limit) as usize);
    let reader = body.with_config().limit(limit.saturating_add(1)).reader();
    let read = reader.take(limit.saturating_add(1)).read_to_end(&mut bytes);
    read.map_err(|error| Unread::Broken(error.to_string()))?;
    let len = bytes.len() as u64;
    match expected {
        Some(expected) if expected != len => {
            Err(Unread::Broken(format!("{len} of {expected} bytes came")))
        }
        _ if len > limit => {
            Err(Unread::TooLong(format!("longer than the {limit} bytes that make sense")))
        }
        _ => Ok(bytes),
    }
}
