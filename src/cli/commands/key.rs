//! `qdelta key`: who can open an encrypted repository.

use qdelta::flows::report::{KeyRecord, KeysReport};
use qdelta::vault::age::{For, Identity, Recipient};
use qdelta::vault::repository::{Encryption, KeyRing, Repository};
use qdelta::{Error, ErrorKind, Result};
use qrcode::{Color, QrCode};

use crate::cli::key_args::{Key, KeyAction, KeyAdd};
use crate::cli::{Context, keys, status};

/// Lines around a QR code that scanners want to be empty.
const QUIET: isize = 2;

/// Does it.
pub fn run(args: &Key, context: &mut Context) -> Result<u8> {
    match &args.action {
        KeyAction::List(_) => list(&ring(context)?, None, context),
        KeyAction::Add(args) => add(args, context),
        KeyAction::Remove(args) => {
            let ring = ring(context)?;
            ring.remove(&args.name)?;
            context.out.was_done(format!("the key {} was removed", args.name));
            if !context.out.json {
                context.out.success(format!(
                    "removed {}; whoever has opened the repository with it before can still do so",
                    args.name
                ))?;
            }
            list_json(&ring, None, context)
        }
        KeyAction::Verify(_) => verify(context),
        KeyAction::Host(args) => {
            let repository = context.repository()?;
            let host = encryption(&repository)?.host();
            let text = format!(
                "# adds points to the repository {} and opens none\n# public key: {}\n{}\n",
                repository.id(),
                host.recipient(),
                host.to_text()
            );
            keys::write_new(&args.file, &text)?;
            context.out.was_done(format!("{} was written", args.file.display()));
            if !context.out.json {
                let file = args.file.display();
                context.out.success(format!("wrote the key of a host to {file}"))?;
            }
            list_json(encryption(&repository)?.ring(), None, context)
        }
        KeyAction::Paper(_) => paper(context),
    }
}

/// The keys of the repository that was named, for which no key is needed.
fn ring(context: &Context) -> Result<KeyRing> {
    let dir = context.global.repo.as_ref().ok_or_else(|| {
        Error::new(ErrorKind::Usage, "no repository was named")
            .advise("say --repo DIR, or set QDELTA_REPO")
    })?;
    Repository::key_ring(dir)?.ok_or_else(not_encrypted)
}

fn not_encrypted() -> Error {
    Error::new(ErrorKind::Usage, "the repository is not encrypted: it has no keys")
}

fn encryption(repository: &Repository) -> Result<&Encryption> {
    repository.encryption().ok_or_else(not_encrypted)
}

/// The identity of the repository that was named.
fn identity(repository: &Repository) -> Result<&Identity> {
    let encryption = encryption(repository)?;
    encryption.check_readable()?;
    encryption.identity().ok_or_else(not_encrypted)
}

fn report(ring: &KeyRing, opened: Option<Vec<String>>) -> Result<KeysReport> {
    let keys = ring.list()?.into_iter();
    Ok(KeysReport {
        recipient: ring.recipient().map(|recipient| recipient.to_string()),
        keys: keys.map(|key| KeyRecord { name: key.name, kinds: key.kinds }).collect(),
        opened,
    })
}

fn list_json(ring: &KeyRing, opened: Option<Vec<String>>, context: &mut Context) -> Result<u8> {
    if context.out.json {
        context.out.json(&report(ring, opened)?)?;
    }
    Ok(status::DONE)
}

fn list(ring: &KeyRing, opened: Option<Vec<String>>, context: &mut Context) -> Result<u8> {
    if context.out.json {
        return list_json(ring, opened, context);
    }
    let report = report(ring, opened)?;
    context.out.line(format!("encrypted to {}", report.recipient.unwrap_or_default()))?;
    for key in report.keys {
        let kinds: Vec<_> = key.kinds.iter().map(|kind| shown(kind)).collect();
        context.out.line(format!("{}: {}", key.name, kinds.join(", ")))?;
    }
    Ok(status::DONE)
}

fn shown(kind: &str) -> &str {
    match kind {
        "X25519" => "a recipient of age",
        "scrypt" => "a passphrase",
        other => other,
    }
}

fn add(args: &KeyAdd, context: &mut Context) -> Result<u8> {
    let recipient: Option<Recipient> = args.recipient.as_ref().map(|it| it.parse()).transpose()?;
    let passphrase = args.passphrase_file.as_deref().map(keys::passphrase).transpose()?;
    let to = match (&recipient, &passphrase) {
        (Some(recipient), _) => For::Recipient(recipient),
        (None, Some(passphrase)) => For::Passphrase(passphrase),
        (None, None) => {
            return Err(Error::new(ErrorKind::Usage, "nobody was named who is to have the key"));
        }
    };
    let repository = context.repository()?;
    let ring = encryption(&repository)?.ring();
    ring.add(&args.name, identity(&repository)?, to)?;
    context.out.was_done(format!("the key {} was added", args.name));
    if !context.out.json {
        context.out.success(format!("added {}", args.name))?;
    }
    list_json(ring, None, context)
}

/// Opens what the given key opens.
fn verify(context: &mut Context) -> Result<u8> {
    let repository = context.repository()?;
    let encryption = encryption(&repository)?;
    let text = keys::given(&context.global)?.ok_or_else(not_encrypted)?;
    let mut opened = Vec::new();
    for name in encryption.ring().names()? {
        if encryption.ring().open(&name, &text)?.is_some() {
            opened.push(name);
        }
    }
    if context.out.json {
        return list_json(encryption.ring(), Some(opened), context);
    }
    let what = match (encryption.identity(), opened.as_slice()) {
        (None, _) => "the key of a host: it adds points, and opens none".to_owned(),
        (Some(_), []) => "the repository's identity: it opens everything".to_owned(),
        (Some(_), names) => format!("it opens the repository by {}", names.join(", ")),
    };
    context.out.line(what)?;
    Ok(status::DONE)
}

/// Shows the identity for a printer.
fn paper(context: &mut Context) -> Result<u8> {
    let repository = context.repository()?;
    let text = identity(&repository)?.to_text();
    let failed = |error| Error::new(ErrorKind::Io, "cannot draw the key").because(error);
    let code = QrCode::new(text.as_bytes()).map_err(failed)?;
    context.out.line(format!("The key of the repository {}", repository.id()))?;
    context.out.line(format!(
        "It opens everything that is encrypted to {}",
        identity(&repository)?.recipient()
    ))?;
    context.out.line("")?;
    context.out.line(&text)?;
    context.out.line("")?;
    let width = code.width() as isize;
    let colors = code.to_colors();
    let is_dark = |x: isize, y: isize| {
        let is_inside = (0..width).contains(&x) && (0..width).contains(&y);
        is_inside && colors.get((y * width + x) as usize) == Some(&Color::Dark)
    };
    for y in (-QUIET..width + QUIET).step_by(2) {
        let row = (-QUIET..width + QUIET).map(|x| match (is_dark(x, y), is_dark(x, y + 1)) {
            (true, true) => ' ',
            (true, false) => '▄',
            (false, true) => '▀',
            (false, false) => '█',
        });
        context.out.line(row.collect::<String>())?;
    }
    context.out.line("")?;
    context.out.line(
        "Without qdelta: write the line that begins with AGE-SECRET-KEY into a file FILE, then",
    )?;
    context.out.line(
        "age -d -i FILE opens every file of the repository; docs/encryption.md goes on from there.",
    )?;
    Ok(status::DONE)
}
