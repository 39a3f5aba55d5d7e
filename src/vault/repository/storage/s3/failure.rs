//! Requests that were not done, or of which nobody knows, and what may help.

use std::time::Duration;

use jiff::SignedDuration;
use ureq::http::HeaderMap;

use super::address::Address;
use super::client::PAUSE_MAX;
use super::clocks::Date;
use super::xml::{self, Refusal};
use crate::base::duration;
use crate::base::error::{Error, ErrorKind, Result};

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
    pub error: Box<Error>,
    /// The request was sent more than once, and one before may have been done.
    pub again: bool,
    /// No store has the name that the address gives.
    pub is_unknown_host: bool,
    pub remedy: Remedy,
}

/// What may help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remedy {
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
    pub fn local(error: Error) -> Self {
        Self::of(None, String::new(), error, Remedy::None)
    }

    pub fn of(status: Option<u16>, code: String, error: Error, remedy: Remedy) -> Self {
        let (error, again, is_unknown_host) = (Box::new(error), false, false);
        Self { status, code, error, again, is_unknown_host, remedy }
    }

    /// A request is not sent whose time is over.
    pub fn run_out() -> Self {
        let error = Error::new(
            ErrorKind::Busy,
            "the lock that this needs has run out: the store could not be reached in time",
        );
        Self::of(None, String::new(), error, Remedy::Clock)
    }

    /// A success that its own answer denies, or that makes no sense.
    pub fn unclear(why: &str) -> Self {
        Self { again: true, ..broken(why) }
    }

    /// The same, of a request that had an end: of one that is over the store says that access is denied.
    pub fn timed(self) -> Self {
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

    /// It came when its time was over, and was surely not done.
    pub fn is_late(&self) -> bool {
        self.remedy == Remedy::Clock && !self.again
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

/// What a store says that does not do what it is asked for. `renew`: whether there are other credentials.
pub(super) fn refused(
    status: u16,
    headers: &HeaderMap,
    body: &[u8],
    renew: impl FnOnce() -> Result<bool>,
) -> Failure {
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
            let remedy = match renew() {
                Ok(true) => Remedy::Keys,
                Ok(false) => Remedy::None,
                Err(error) => {
                    return Failure::of(
                        Some(status),
                        code.to_owned(),
                        error.within(said),
                        Remedy::None,
                    );
                }
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

pub(super) fn unreached(error: &ureq::Error, address: &Address) -> Failure {
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
pub(super) fn broken(why: &str) -> Failure {
    let error = Error::new(ErrorKind::Io, "the answer of the store is not whole").because(why);
    Failure::of(None, String::new(), error, Remedy::Again(Duration::ZERO))
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
