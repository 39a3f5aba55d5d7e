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
use super::past::{self, Past};
use super::sign::{self, Keys, Request, Scope};
use super::xml::{self, Refusal};
use crate::base::cancel::Cancel;
use crate::base::clock;
use crate::base::duration;
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::io::Opener;

/// How long it may take to reach a store.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
/// How long a store may say nothing, or take nothing: no longer than failed requests are tried again, but a
/// while.
const SILENCE: RangeInclusive<Duration> = Duration::from_secs(10)..=Duration::from_secs(120);
/// How long a name is looked for that leads to no store: mostly it was mistyped.
const UNKNOWN_TIME_MAX: Duration = Duration::from_secs(10);
/// The first pause after a failure is no longer than this, each later one than twice the one before.
const PAUSE: Duration = Duration::from_millis(100);
/// No pause is longer.
const PAUSE_MAX: Duration = Duration::from_secs(10);
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
}

impl<'a> Ask<'a> {
    pub fn new(method: &'static str, key: &'a str) -> Self {
        let (query, headers) = (Vec::new(), Vec::new());
        Self { method, key, query, headers, body: &[], limit: 0, until: None, signed: None }
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

/// What a store says of credentials that have ended.
const ENDED: [&str; 4] =
    ["ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired"];

/// A request that was not done, or of which nobody knows.
#[derive(Debug)]
pub(super) struct Failure {
    /// What the store answered, if it did.
    pub status: Option<u16>,
    /// The name of the error where the store gave one.
    pub code: String,
    error: Box<Error>,
    /// The request was sent more than once: an earlier one may have been done.
    pub again: bool,
    /// No store has the name that the address gives.
    is_unknown_host: bool,
    remedy: Remedy,
}

/// What may help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Remedy {
    /// Nothing.
    None,
    /// The same once more, after a pause, and after this one at least.
    Again(Duration),
    /// Other credentials.
    Keys,
    /// The end of the request by another clock, if this one was not over.
    Clock,
    /// The same a few times more: something in front of the store may have answered.
    Doubt,
}

impl Failure {
    pub(super) fn local(error: Error) -> Self {
        Self::of(None, String::new(), error, Remedy::None)
    }

    fn of(status: Option<u16>, code: String, error: Error, remedy: Remedy) -> Self {
        let (error, again, is_unknown_host) = (Box::new(error), false, false);
        Self { status, code, error, again, is_unknown_host, remedy }
    }

    /// A success that its own answer denies, or that makes no sense.
    pub fn unclear(why: &str) -> Self {
        Self { again: true, ..broken(why) }
    }

    /// The same, of a request that had an end: of one that is over the store says that access is denied.
    fn timed(self) -> Self {
        let words = self.error.chain().to_lowercase();
        let is_over = self.code == "RequestTimeTooSkewed"
            || self.status == Some(403)
                && ["expired", "too old"].iter().any(|it| words.contains(it));
        // Nor of one whose credentials have ended.
        if !is_over || self.remedy != Remedy::None || ENDED.contains(&self.code.as_str()) {
            return self;
        }
        let error = Error::new(ErrorKind::Busy, self.error.chain())
            .because("it was sent or done too late for the lock that it needs, or clocks differ")
            .advise(
                "see whether this host slept, and whether its clock and those of the store are right, then try again",
            );
        Self { error: Box::new(error), remedy: Remedy::Clock, ..self }
    }

    /// Nobody can tell whether it was done: no answer came, or one that says nothing.
    pub fn is_unknown(&self) -> bool {
        self.again || self.status.is_none_or(|status| status >= 500)
    }

    /// There is no such object.
    pub fn is_missing(&self) -> bool {
        self.status == Some(404) && self.code != "NoSuchBucket"
    }

    /// The object is not as the request says that it must be.
    pub fn is_conflict(&self) -> bool {
        matches!(self.status, Some(409 | 412))
    }

    /// As an error of an operation on something that has a name.
    pub fn into_error(self, operation: &str, shown: &str) -> Error {
        let text = format!("cannot {operation} {shown}");
        match self.is_missing() {
            true => Error::new(ErrorKind::NotFound, text).because(self.error.chain()),
            false => self.error.within(text),
        }
    }
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
        let silence = address.patience.clamp(*SILENCE.start(), *SILENCE.end());
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
        let (mut is_turned, mut doubts) = (false, 0);
        loop {
            let sent = clock::now().map_err(Failure::local)?;
            let mut failure = match self.once(ask, sent) {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
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
            if left.is_none_or(|left| pause > left) {
                failure.again = tries > 0;
                return Err(failure);
            }
            let error = failure.error.chain();
            if let Err(stopped) = self.pause(pause, || {
                tracing::debug!("{} {}: {error}; again in {pause:?}", ask.method, ask.key);
            }) {
                failure.again = tries > 0;
                return Err(Failure { error: Box::new(stopped.because(error)), ..failure });
            }
            tries += 1;
        }
    }

    /// From now on nothing is tried again after a request to stop.
    pub fn heed(&self, cancel: &Cancel) {
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

    fn once(&self, ask: &Ask<'_>, begun: Timestamp) -> Result<Answer, Failure> {
        let keys = self.credentials.keys().map_err(Failure::local)?;
        let request = self.signed(ask, &keys).map_err(Failure::local)?;
        tracing::trace!("{} {} {}", ask.method, ask.key, sign::query(&ask.query));
        let has_body = matches!(ask.method, "PUT" | "POST");
        let sent = match has_body {
            true => self.agent.run(request.map(|()| ask.body)),
            false => self.agent.run(request),
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
                    let mut failure = self.refused(status, &headers, &body, &keys);
                    // A store says what it is that is not there.
                    if failure.is_missing() && failure.code.is_empty() && ask.method != "HEAD" {
                        failure.remedy = Remedy::Doubt;
                    }
                    Err(if ask.until.is_some() { failure.timed() } else { failure })
                }
            },
        }
    }

    fn signed(&self, ask: &Ask<'_>, keys: &Keys) -> Result<ureq::http::Request<()>> {
        // What must come in time is measured by the store's clocks alone.
        let behind = match ask.signed {
            Some(_) => self.clocks.earlier(),
            None => self.clocks.judging(),
        };
        let now = match (ask.signed, ask.until) {
            (Some(at), _) => at - behind,
            (None, Some(_)) => self.now()? - behind,
            (None, None) => clock::now()?,
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
                    return Err(Error::new(
                        ErrorKind::Busy,
                        "the lock that this needs has run out: the store could not be reached in time",
                    ));
                }
                sign::presign(&mut request, scope, keys, left.unsigned_abs())
            }
        };
        let failed = |why: String| Error::new(ErrorKind::Io, "cannot sign a request").because(why);
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

    /// What a store says that does not do what it is asked for.
    fn refused(&self, status: u16, headers: &HeaderMap, body: &[u8], keys: &Keys) -> Failure {
        let header = |name: &str| headers.get(name).and_then(|it| it.to_str().ok());
        let Refusal { code, message } = xml::refusal(body).unwrap_or_default();
        let words = [code.as_str(), message.as_str()].into_iter().filter(|it| !it.is_empty());
        let words = words.collect::<Vec<_>>().join(": ");
        let said = match words.is_empty() {
            true => format!("the store answered {status}"),
            false => format!("the store answered {status} {words}"),
        };
        let (kind, advice, remedy) = match (status, code.as_str()) {
            (_, "RequestTimeTooSkewed") => {
                let error = skewed(header("date").and_then(Date::parse));
                return Failure::of(Some(status), code, error, Remedy::None);
            }
            (_, code) if ENDED.contains(&code) => {
                let remedy = match self.credentials.renew(keys) {
                    Ok(true) => Remedy::Keys,
                    _ => Remedy::None,
                };
                let advice = "the credentials have ended: get new ones";
                (ErrorKind::Io, Some(advice.to_owned()), remedy)
            }
            (301 | 307 | 400, _) if header("x-amz-bucket-region").is_some() => {
                let region = header("x-amz-bucket-region").unwrap_or_default();
                let advice = format!("the bucket is in another region: say region={region}");
                (ErrorKind::Usage, Some(advice), Remedy::None)
            }
            (_, "NoSuchBucket") => (
                ErrorKind::NotFound,
                Some("make the bucket, or correct its name".to_owned()),
                Remedy::None,
            ),
            (403, _) => {
                let advice = "see whether the access key is right, and what its policy allows";
                (ErrorKind::Io, Some(advice.to_owned()), Remedy::None)
            }
            (507, _) | (_, "QuotaExceeded" | "InsufficientStorage" | "XMinioStorageFull") => {
                (ErrorKind::NoSpace, None, Remedy::None)
            }
            (408 | 429 | 500 | 502 | 503 | 504, _) | (_, "RequestTimeout" | "SlowDown") => {
                let least = header("retry-after").and_then(|it| it.parse().ok()).unwrap_or(0);
                (ErrorKind::Io, None, Remedy::Again(Duration::from_secs(least).min(PAUSE_MAX)))
            }
            _ => (ErrorKind::Io, None, Remedy::None),
        };
        let error = Error::new(kind, said);
        let error = match advice {
            Some(advice) => error.advise(advice),
            None => error,
        };
        Failure::of(Some(status), code, error, remedy)
    }
}

/// The clock of this host and that of the store differ so much that no signature holds.
fn skewed(theirs: Option<Date>) -> Error {
    let by = theirs.and_then(Date::behind);
    let text = match by {
        Some(by) if by.abs() >= SignedDuration::from_mins(1) => {
            let side = if by.is_negative() { "behind" } else { "ahead of" };
            let by = duration::shown(by.unsigned_abs());
            format!("the clock of this host is {by} {side} that of the store")
        }
        _ => "the store says that the clock of this host differs from its own".to_owned(),
    };
    Error::new(ErrorKind::Io, text).advise("set the clock: timedatectl set-ntp true")
}

fn unreached(error: &ureq::Error, address: &Address) -> Failure {
    let text = match error {
        ureq::Error::Timeout(_) => "the store does not answer".to_owned(),
        _ => format!("the store at {} can't be reached", address.base),
    };
    // A certificate that is not trusted is not trusted in a minute either.
    let is_final = matches!(error, ureq::Error::Tls(_) | ureq::Error::NativeTls(_));
    let is_unknown_host = matches!(error, ureq::Error::HostNotFound) || is_lookup(error);
    let error = Error::new(ErrorKind::Io, text).because(error.to_string());
    let (error, remedy) = match is_final {
        true => (error.advise("name the store's own CA: ca=FILE"), Remedy::None),
        false => (
            error.advise(
                "see whether the endpoint is right (endpoint=URL), and whether the store runs",
            ),
            Remedy::Again(Duration::ZERO),
        ),
    };
    Failure { is_unknown_host, ..Failure::of(None, String::new(), error, remedy) }
}

/// Whether it is the name that leads nowhere: the system tells it in words alone.
fn is_lookup(error: &ureq::Error) -> bool {
    matches!(error, ureq::Error::Io(error) if error.to_string().contains("lookup address"))
}

/// An answer that came in parts, or not to its end.
fn broken(why: &str) -> Failure {
    let error = Error::new(ErrorKind::Io, "the answer of the store is not whole").because(why);
    Failure::of(None, String::new(), error, Remedy::Again(Duration::ZERO))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Of credentials that have ended a store said `403`, and it was told as a change that came too late.
    #[test]
    fn credentials_that_have_ended_are_no_change_that_came_too_late() {
        let refused = |code: &str, text: &str| {
            let error = Error::new(ErrorKind::Io, text);
            Failure::of(Some(403), code.to_owned(), error, Remedy::None).timed().error.kind()
        };
        assert_eq!(refused("AccessDenied", "Request has expired"), ErrorKind::Busy);
        assert_eq!(refused("ExpiredToken", "The provided token has expired"), ErrorKind::Io);
    }
}
