//! Whether a store keeps what a repository rests on, tried once, when one is made.

use jiff::SignedDuration;

use super::S3;
use super::client::Ask;
use super::failure::Failure;
use crate::base::clock;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::random;
use crate::vault::repository::config::CONFIG;

/// The longest answer that makes sense, in bytes.
const ANSWER_MAX: u64 = 64 << 10;

impl S3 {
    /// Fails unless the store refuses what must be refused: to write what is there already, to replace
    /// what has changed, and what comes too late.
    pub(in crate::vault::repository) fn probe(&self) -> Result<()> {
        let shared = &self.0;
        let mark: [u8; 8] = random::bytes()?;
        let mark: String = mark.iter().map(|byte| format!("{byte:02x}")).collect();
        let key = format!("{}.probe-{mark}", shared.client.address.prefix);
        let put = || Ask::new("PUT", &key).body(b"qdelta").at_most(ANSWER_MAX);
        let failed = |failure: Failure| failure.into_error("write", &shared.shown(&key));
        let sent = clock::now()?;
        let made = shared.client.send(&put().header("if-none-match", "*")).map_err(failed)?;
        // Where nobody can look at it, the conditions say so.
        let modified = shared.look(&key).ok().flatten().and_then(|seen| seen.modified);
        let clocks = &shared.client.clocks;
        let date = made.date().or_else(|| modified.map(|it| clocks.hear_written(it, sent)));
        clocks.compare(date, modified);
        let tried = self.check_around().and_then(|()| self.try_conditions(put));
        let removed = shared.delete(&key);
        tried?;
        removed
    }

    /// Fails if the prefix lies within that of another repository, which would take it for a guest.
    fn check_around(&self) -> Result<()> {
        let shared = &self.0;
        let prefix = &shared.client.address.prefix;
        let mut around: Vec<&str> = prefix.split_inclusive('/').collect();
        while around.pop().is_some() {
            let key = format!("{}{CONFIG}", around.concat());
            // Whoever may look only below the own prefix is told nothing of others.
            if let Ok(Some(_)) = shared.look(&key) {
                let text = format!("{} lies within another repository", shared.client.address.text);
                return Err(Error::new(ErrorKind::Usage, text)
                    .because(format!("{} is there", shared.shown(&key)))
                    .advise("choose a prefix beside it"));
            }
        }
        Ok(())
    }

    fn try_conditions<'a>(&self, put: impl Fn() -> Ask<'a>) -> Result<()> {
        let client = &self.0.client;
        let refuse = |what: &str| {
            let text = format!("the store at {} can't hold a repository", client.address.base);
            Err(Error::new(ErrorKind::Usage, text)
                .because(format!("it {what}: two writers could destroy each other's work"))
                .advise(
                    "use a store that keeps conditional writes, or a newer version of this one",
                ))
        };
        let is_refused = |ask: Ask<'_>| match client.send(&ask) {
            Ok(_) => Ok(false),
            Err(failure) if matches!(failure.status, Some(403 | 409 | 412)) => Ok(true),
            // This store does not know the header.
            Err(failure) if failure.status == Some(501) => Ok(false),
            Err(failure) => Err(failure.into_error("write", &client.address.shown(ask.key))),
        };
        if !is_refused(put().header("if-none-match", "*"))? {
            return refuse("ignores If-None-Match");
        }
        if !is_refused(put().header("if-match", "\"00000000000000000000000000000000\""))? {
            return refuse("ignores If-Match");
        }
        // Signed to have ended a minute ago.
        let signed = client.now()? - SignedDuration::from_secs(70);
        if !is_refused(put().signed_at(signed, 10))? {
            return refuse("takes requests whose time is over");
        }
        Ok(())
    }
}
