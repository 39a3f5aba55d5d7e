//! `qdelta init`: a new repository, or the `qdelta.toml` of one that lost it.

use std::path::Path;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use qdelta::base::period::Period;
use qdelta::base::printable::shell_word;
use qdelta::base::warning::{Code, Warning};
use qdelta::flows::report::InitReport;
use qdelta::vault::age::{For, Identity, Recipient};
use qdelta::vault::repository::storage::S3;
use qdelta::vault::repository::{NewKeys, Repair, Repository, Settings};
use qdelta::{Error, ErrorKind, Result};

use crate::cli::key_args::{Init, NewEncryption};
use crate::cli::values::LockFor;
use crate::cli::{Context, keys, state, status};

/// Locks of less than two nights, in seconds, are short.
const SHORT_LOCK: i64 = 48 * 3600;

/// Makes the repository.
pub fn run(args: &Init, context: &mut Context) -> Result<u8> {
    let dir = args.dir.as_ref().or(context.global.repo.as_ref()).ok_or_else(|| {
        Error::new(ErrorKind::Usage, "no folder was named").advise("qdelta init DIR")
    })?;
    let mut settings = Settings::of_machine();
    if let Some(zone) = &args.time_zone {
        settings.time_zone.clone_from(zone);
    }
    settings.lock = match args.lock {
        Some(how) => Some(lock_period(dir, how)?),
        None => None,
    };
    if let Some(period) = settings.lock
        && period.after(Timestamp::UNIX_EPOCH, &TimeZone::UTC).as_second() < SHORT_LOCK
    {
        let text =
            format!("a lock of {period} may end before the next backup of a night renews it");
        context.warn(Warning::new(Code::ShortLock, text).advise(
            "say many times the time between two backups, and more than the time between two whole verifies and \
             until somebody acts: qdelta init --repair --lock 30d",
        ));
    }
    let (mut repository, repair) = match args.repair {
        true => {
            let key = keys::given(&context.global)?;
            let (repository, repair) = Repository::repair_with(dir, key.as_ref(), settings.lock)?;
            (repository, Some(repair))
        }
        false if args.encryption.encrypt => (encrypted(dir, &settings, &args.encryption)?, None),
        false => (Repository::init_with(dir, &settings)?, None),
    };
    // This host knows it from now on.
    for warning in
        repository.recognize(state::folder(context.global.state.as_deref()).as_deref())?
    {
        context.warn(warning);
    }
    if repair.is_none() {
        context.out.was_done(format!("the repository {} was made", dir.display()));
    }
    let time_zone = repository.settings().map_or(settings.time_zone, |it| it.time_zone);
    if context.out.json {
        context.out.json(&InitReport {
            repository: repository.path().to_owned(),
            id: repository.id().to_owned(),
            time_zone,
            recipient: repository.encryption().map(|it| it.recipient().to_string()),
            repaired: repair,
        })?;
        return Ok(status::DONE);
    }
    let place = shell_word(&dir.to_string_lossy());
    let dir = dir.display();
    context.out.success(match repair {
        None => format!("made the repository {dir}"),
        Some(Repair::Sound) => format!("{dir}: qdelta.toml is sound; nothing was changed"),
        Some(Repair::SameId) => format!("{dir}: made qdelta.toml anew, with the id that it had"),
        Some(Repair::NewId) => format!(
            "{dir}: made qdelta.toml anew, with a new id: no point knows the old one, so anchors that \
             earlier backups have left in images must be removed by hand"
        ),
    })?;
    if let (None, Some(recovery)) = (repair, &args.encryption.recovery) {
        let recovery = recovery.display();
        context.out.success(format!(
            "its key is in {recovery}: keep that file elsewhere; without a key nobody can read anything"
        ))?;
        context.out.success(format!(
            "back up into it with: qdelta backup IMAGE --repo {place} --key-file {}",
            shell_word(&recovery.to_string())
        ))?;
    } else if repair.is_none() {
        context.out.success(format!("back up into it with: qdelta backup IMAGE --repo {place}"))?;
    }
    Ok(status::DONE)
}

/// Makes an encrypted repository, whose key is outside of it before it is there.
fn encrypted(dir: &Path, settings: &Settings, how: &NewEncryption) -> Result<Repository> {
    let recovery = how.recovery.as_deref().ok_or_else(|| {
        Error::new(ErrorKind::Usage, "an encrypted repository needs --recovery FILE")
    })?;
    let recipients: Vec<Recipient> =
        how.recipients.iter().map(|recipient| recipient.parse()).collect::<Result<_>>()?;
    let passphrase = how.passphrase_file.as_deref().map(keys::passphrase).transpose()?;
    let mut wraps = Vec::new();
    for (number, recipient) in (1..).zip(&recipients) {
        let name = if number == 1 { "admin".to_owned() } else { format!("admin-{number}") };
        wraps.push((name, For::Recipient(recipient)));
    }
    wraps.extend(passphrase.iter().map(|it| ("passphrase".to_owned(), For::Passphrase(it))));
    if lies_in(recovery, dir) {
        let text = format!("{} lies in the repository", recovery.display());
        return Err(Error::new(ErrorKind::Usage, text)
            .because("who loses the repository would lose its key as well")
            .advise("name a file elsewhere, best on a medium that leaves the house"));
    }
    let identity = Identity::new()?;
    keys::write_new(recovery, &identity.to_file())?;
    let made = Repository::init_encrypted(dir, settings, &NewKeys { identity: &identity, wraps });
    made.inspect_err(|_| {
        // No repository has this key.
        let _ = std::fs::remove_file(recovery);
    })
}

/// Whether a file that is to be made would lie in a folder, which may not be there yet: by its path, or by
/// links on the way.
fn lies_in(file: &Path, folder: &Path) -> bool {
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let (file, folder) = (absolute(file), absolute(folder));
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let outer = file.parent().map(real).unwrap_or_default();
    file.starts_with(&folder) || outer.starts_with(real(&folder))
}

/// For how long what is written to a bucket is to be locked.
fn lock_period(dir: &Path, how: LockFor) -> Result<Period> {
    let none = |text: String| Err(Error::new(ErrorKind::Usage, text));
    match how {
        LockFor::Period(period) => Ok(period),
        LockFor::Bucket if !S3::is_address(dir) => {
            none(format!("{} is no bucket, and locks nothing by itself", dir.display()))
        }
        LockFor::Bucket => match S3::new(dir)?.default_lock()? {
            Some(period) => Ok(period),
            None => none("the bucket locks nothing by itself: say for how long".to_owned()),
        },
    }
}
