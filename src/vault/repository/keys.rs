//! `keys/`: the identity of an encrypted repository, encrypted to each admin or passphrase on its own.
//!
//! Each file is one of age that holds the text of the identity and nothing else: `age -d` gives a file that
//! opens all others.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use super::config::holds_domains;
use super::storage::{EntryKind, HostKey, KeyText, Keys, Name, Publish, Sealed, Storage};
use crate::base::error::{Error, ErrorKind, Result};
use crate::formats::age::{Header, Payload};
use crate::vault::age::{
    For, Identity, Opened, Recipient, no_header, open_bytes, passphrase_steps, seal_bytes,
};

/// The folder of the wrapped identities.
pub(super) const KEYS: &str = "keys";

/// How their files end.
const ENDING: &str = ".age";

/// The longest file of a wrapped identity that is read, in bytes.
const LEN_MAX: u64 = 128 << 10;

/// What the key of the passphrase is called that `init` was given.
const PASSPHRASE: &str = "passphrase";

/// So many steps of scrypt are made at most to find what a passphrase opens: ten files as qdelta and age
/// wrap them.
const STEPS_MAX: u64 = 5 << 19;

/// The length of an identity as text, in bytes.
const IDENTITY_LEN: u64 = 74;

/// The longest name of a key.
const NAME_LEN_MAX: usize = 64;

/// What to do where a key is not proved.
const PROVE: &str = "give the repository's identity, as init --recovery wrote it, a passphrase, or a key that qdelta \
                     key host made: then this host knows the repository";

/// The keys that an encrypted repository begins with.
#[derive(Debug)]
pub struct NewKeys<'a> {
    /// Its identity.
    pub identity: &'a Identity,
    /// To whom the identity is encrypted, each under a name.
    pub wraps: Vec<(String, For<'a>)>,
}

/// What an open repository knows of its encryption.
#[derive(Debug, Clone)]
pub struct Encryption {
    ring: KeyRing,
    keys: Keys,
    /// What was given to open the repository.
    given: Option<KeyText>,
}

impl Encryption {
    /// What is in a storage whose files are encrypted, for somebody with these keys.
    pub(super) fn of(storage: &Arc<dyn Storage>, keys: Keys) -> (Arc<dyn Storage>, Self) {
        let ring = KeyRing::new(Arc::clone(storage), Some(keys.host.recipient()));
        let sealed = Sealed::new(Arc::clone(storage), keys.clone());
        (Arc::new(sealed), Self { ring, keys, given: None })
    }

    /// The same, with what was given to open the repository.
    pub(super) fn by(self, given: &KeyText) -> Self {
        Self { given: Some(given.clone()), ..self }
    }

    /// The wrapped keys that are not as they were written, each with what is wrong: in its form, and in its
    /// content if what was given opens it.
    ///
    /// # Errors
    /// The folder of keys can't be listed.
    pub fn damaged_keys(&self) -> Result<Vec<(PathBuf, Error)>> {
        let mut damaged = Vec::new();
        let tried = match &self.given {
            Some(text) => self.ring.worth_trying(text)?.0,
            None => Vec::new(),
        };
        for name in self.ring.names()? {
            let text = self.given.as_ref().filter(|_| tried.contains(&name));
            if let Err(error) = self.ring.check(&name, text) {
                damaged.push((self.ring.storage.describe(&file(&name)), error));
            }
        }
        Ok(damaged)
    }

    /// The storage of a host that keeps in `folder` what it knows of the files that it writes.
    pub(super) fn storage_with(&self, folder: PathBuf) -> Arc<dyn Storage> {
        let sealed = Sealed::new(Arc::clone(&self.ring.storage), self.keys.clone());
        Arc::new(sealed.with_known(folder))
    }

    /// The key of the hosts that add points.
    pub fn host(&self) -> &HostKey {
        &self.keys.host
    }

    /// Fails unless files can be opened.
    ///
    /// # Errors
    /// [`ErrorKind::Key`].
    pub fn check_readable(&self) -> Result<()> {
        match self.keys.identity {
            Some(_) => Ok(()),
            None => Err(Error::new(
                ErrorKind::Key,
                "the key of a host adds points, and opens none",
            )
            .advise(
                "give the repository's identity, an admin's, or a passphrase: --key-file FILE",
            )),
        }
    }

    /// To whom everything is encrypted.
    pub fn recipient(&self) -> Recipient {
        self.keys.host.recipient()
    }

    /// The wrapped keys of the repository.
    pub fn ring(&self) -> &KeyRing {
        &self.ring
    }

    /// What opens files; none for a host that only adds points.
    pub fn identity(&self) -> Option<&Identity> {
        self.keys.identity.as_ref()
    }

    /// Whether whoever gave the key knows that it is the repository's, whatever its storage says.
    pub(super) fn is_proved(&self) -> bool {
        self.keys.is_proved
    }

    /// Somebody else vouches for the key.
    pub(super) fn prove(&mut self) {
        self.keys.is_proved = true;
    }

    /// Fails unless the keys are those of the repository, whatever its storage says.
    ///
    /// # Errors
    /// [`ErrorKind::Key`].
    pub fn check_proved(&self) -> Result<()> {
        if self.keys.is_proved {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Key, "nothing says that this key is the repository's")
            .because("anybody could have made the file of the folder keys that it opens")
            .advise(PROVE))
    }

    /// Fails unless something may be written with the keys.
    pub(super) fn check_writable(&self) -> Result<()> {
        let failed = |error: Error| error.within("nothing is written to this repository");
        self.check_proved().map_err(failed)
    }
}

/// A wrapped identity, as far as its file tells without a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyEntry {
    /// What it is called.
    pub name: String,
    /// What opens it: the types of its stanzas. None if it is damaged.
    pub kinds: Vec<String>,
}

/// The keys of a repository, as they lie in its storage.
#[derive(Debug, Clone)]
pub struct KeyRing {
    storage: Arc<dyn Storage>,
    /// None where `qdelta.toml` is lost: then every identity may be the repository's.
    recipient: Option<Recipient>,
}

impl KeyRing {
    pub(super) fn new(storage: Arc<dyn Storage>, recipient: Option<Recipient>) -> Self {
        Self { storage, recipient }
    }

    /// The names of the wrapped identities, sorted.
    ///
    /// # Errors
    /// The folder can't be listed.
    pub fn names(&self) -> Result<Vec<String>> {
        let entries = match self.storage.list(&folder()) {
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            entries => entries?,
        };
        let files = entries
            .into_iter()
            .filter(|entry| !matches!(entry.kind, EntryKind::Folder | EntryKind::Staged));
        let mut names: Vec<String> =
            files.filter_map(|it| Some(it.name.strip_suffix(ENDING)?.to_owned())).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// The wrapped identities, sorted by name.
    ///
    /// # Errors
    /// One can't be read.
    pub fn list(&self) -> Result<Vec<KeyEntry>> {
        let entry = |name: String| {
            let (_, bytes) = self.read(&name)?;
            let header = Header::decode(&bytes).ok().map(|(header, _)| header);
            let stanzas = header.iter().flat_map(|header| &header.stanzas);
            let kinds = stanzas.map(|stanza| stanza.kind().to_owned()).collect();
            Ok(KeyEntry { name, kinds })
        };
        self.names()?.into_iter().map(entry).collect()
    }

    /// The files of the wrapped identities, and the storage that they lie in.
    pub(super) fn files(&self) -> Result<(&dyn Storage, Vec<Name>)> {
        Ok((&*self.storage, self.names()?.iter().map(|name| file(name)).collect()))
    }

    /// To whom everything is encrypted, where `qdelta.toml` says so.
    pub fn recipient(&self) -> Option<Recipient> {
        self.recipient
    }

    fn is_ours(&self, recipient: Recipient) -> bool {
        self.recipient.is_none_or(|own| own == recipient)
    }

    fn read(&self, name: &str) -> Result<(PathBuf, Vec<u8>)> {
        let file = file(name);
        Ok((self.storage.describe(&file), self.storage.read(&file, LEN_MAX)?))
    }

    /// Fails unless the file of a wrapped key has the form of one and, if this text opens it, the repository's
    /// identity in it. Of the rest its owner alone can tell.
    fn check(&self, name: &str, text: Option<&KeyText>) -> Result<()> {
        let (path, bytes) = self.read(name)?;
        let format = |error| Error::format(ErrorKind::Damaged, &path, error);
        let (_, header_len) = Header::decode(&bytes).map_err(|error| no_header(&path, error))?;
        let payload = Payload::new(header_len as u64, bytes.len() as u64).map_err(format)?;
        if payload.len() < IDENTITY_LEN {
            let text = format!("{} is too short to hold a key", path.display());
            return Err(Error::new(ErrorKind::Damaged, text).of_file(&path));
        }
        text.map_or(Ok(()), |text| self.open(name, text).map(|_| ()))
    }

    /// The names of the wrapped identities that a text may open, those that cost least first, and of those
    /// that are not worth it: whoever can write there can ask for any work.
    fn worth_trying(&self, text: &KeyText) -> Result<(Vec<String>, Vec<String>)> {
        let names = self.names()?;
        let KeyText::Passphrase(_) = text else { return Ok((names, Vec::new())) };
        let mut costs = Vec::new();
        for name in names {
            let Ok((_, bytes)) = self.read(&name) else { continue };
            let Ok((header, _)) = Header::decode(&bytes) else { continue };
            if header.stanzas.iter().any(|stanza| stanza.kind() == "scrypt") {
                costs.push((name != PASSPHRASE, passphrase_steps(&header), name));
            }
        }
        // What has no number of steps asks for too many, and stands first otherwise.
        costs.sort_by_key(|(is_other, steps, _)| (*is_other, steps.unwrap_or(u64::MAX)));
        let (mut sum, mut tried, mut left) = (0_u64, Vec::new(), Vec::new());
        for (_, steps, name) in costs {
            sum = sum.saturating_add(steps.unwrap_or(0));
            match steps.is_some() && sum <= STEPS_MAX {
                true => tried.push(name),
                false => left.push(name),
            }
        }
        Ok((tried, left))
    }

    /// The identity that is wrapped under a name, if this text opens it.
    ///
    /// # Errors
    /// The file is damaged, or holds another identity.
    pub fn open(&self, name: &str, text: &KeyText) -> Result<Option<Identity>> {
        let (path, bytes) = self.read(name)?;
        let open = |header: &Header| {
            let mut opened = Opened::NotFor;
            match text {
                KeyText::Passphrase(passphrase) => {
                    opened = Opened::by_passphrase(header, passphrase)?;
                }
                KeyText::Identities(identities) => {
                    for identity in identities {
                        if matches!(opened, Opened::NotFor) {
                            opened = Opened::by_identity(header, identity)?;
                        }
                    }
                }
                KeyText::Own(_) | KeyText::Host(_) => {}
            }
            Ok(opened)
        };
        let Some(plain) = open_bytes(&bytes, &path, open)? else { return Ok(None) };
        let other = || {
            let text = format!("{} holds another key than the repository's", path.display());
            Error::new(ErrorKind::Damaged, text)
                .advise("remove it: qdelta key remove; and give another key")
        };
        let plain = String::from_utf8(plain).map_err(|_| other())?;
        match plain.parse().map_err(|_| other())? {
            KeyText::Own(found) | KeyText::Identities(found) => found
                .into_iter()
                .find(|it| self.is_ours(it.recipient()))
                .map(Some)
                .ok_or_else(other),
            _ => Err(other()),
        }
    }

    /// What somebody has of the keys who gives this text.
    ///
    /// # Errors
    /// [`ErrorKind::Key`]: it opens nothing here.
    pub fn unlock(&self, text: &KeyText) -> Result<Keys> {
        match text {
            KeyText::Host(host)
                if match self.recipient {
                    Some(recipient) => recipient == host.recipient(),
                    None => names_something(&self.storage, Keys::from(host.clone())),
                } =>
            {
                return Ok(Keys::from(host.clone()));
            }
            KeyText::Own(identities) | KeyText::Identities(identities) => {
                let own = |it: &&Identity| match self.recipient {
                    Some(recipient) => recipient == it.recipient(),
                    None => names_something(&self.storage, Keys::from((*it).clone())),
                };
                if let Some(own) = identities.iter().find(own) {
                    return Ok(Keys::from(own.clone()));
                }
            }
            _ => {}
        }
        if let KeyText::Own(_) = text {
            let text = format!("the key that was given is none of the repository {}", self.shown());
            return Err(Error::new(ErrorKind::Key, text)
                .because("it is the identity of another repository")
                .advise("somebody may have put another one in the place of yours: look before you go on"));
        }
        let mut damaged = None;
        let (names, left) = self.worth_trying(text)?;
        for name in names {
            match self.open(&name, text) {
                // A passphrase is known to whoever wrote the file; a recipient is known to anybody.
                Ok(Some(identity)) => {
                    let is_proved = matches!(text, KeyText::Passphrase(_));
                    return Ok(Keys { is_proved, ..Keys::from(identity) });
                }
                Ok(None) => {}
                Err(error) => damaged = Some(error),
            }
        }
        let what = match text {
            KeyText::Passphrase(_) => "the passphrase",
            KeyText::Host(_) => "the host key",
            KeyText::Own(_) | KeyText::Identities(_) => "the key",
        };
        let error = Error::new(
            ErrorKind::Key,
            format!("{what} that was given is none of the repository {}", self.shown()),
        );
        let error = match (damaged, left.as_slice()) {
            (Some(damaged), _) => error.because(damaged.chain()),
            (None, []) => error,
            (None, left) => {
                let names = left.join(", ");
                error.because(format!("not tried, because they ask for too much work: {names}"))
            }
        };
        Err(error.advise("qdelta key list shows what can open it"))
    }

    /// Wraps the identity for somebody else, under a new name.
    ///
    /// # Errors
    /// The name is taken or none; the file can't be written.
    pub fn add(&self, name: &str, identity: &Identity, to: For<'_>) -> Result<()> {
        check_name(name)?;
        let bytes = seal_bytes(identity.to_file().as_bytes(), to)?;
        let file = file(name);
        if self.storage.entry(&file)?.is_some() {
            let path = self.storage.describe(&file);
            let text = format!("there is a key {} already", path.display());
            return Err(Error::new(ErrorKind::Exists, text).advise("choose another name"));
        }
        self.put(name, &bytes)
    }

    /// Writes a wrapped identity under a name that is free.
    fn put(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let file = file(name);
        let mut staged = match self.storage.stage(&file) {
            // Left by somebody who was killed.
            Err(error) if error.kind() == ErrorKind::Exists => {
                self.storage.discard(&file)?;
                self.storage.stage(&file)?
            }
            staged => staged?,
        };
        let failed = |error| Error::io("write", &self.storage.describe(&file), error);
        staged.write_all(bytes).map_err(failed)?;
        staged.seal()?;
        staged.publish(Publish::New).map_err(|unpublished| unpublished.error)
    }

    /// Removes a wrapped identity. Whoever has opened it before keeps the identity.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::Usage`]: it is the last one.
    pub fn remove(&self, name: &str) -> Result<()> {
        let names = self.names()?;
        if !names.iter().any(|it| it == name) {
            let text = format!("the repository {} has no key {name:?}", self.shown());
            return Err(Error::new(ErrorKind::NotFound, text).advise("qdelta key list shows them"));
        }
        let is_sound = |other: &String| {
            other != name && self.read(other).is_ok_and(|(_, it)| Header::decode(&it).is_ok())
        };
        let last = || {
            let text = format!("{name} is the last key of the repository {}", self.shown());
            Error::new(ErrorKind::Usage, text).advise("add another one first: qdelta key add")
        };
        if !names.iter().any(is_sound) {
            return Err(last());
        }
        let kept = self.read(name).ok().filter(|(_, bytes)| Header::decode(bytes).is_ok());
        self.storage.remove(&file(name))?;
        let Some((_, bytes)) = kept else { return Ok(()) };
        // Somebody else may have removed the others at the same time: whoever comes last puts the own one back.
        let why = match self.names() {
            Ok(left) if left.iter().any(is_sound) => return Ok(()),
            Ok(_) => last(),
            Err(error) => error.within(format!(
                "{name} stays: nobody can tell whether it is the last key of the repository {}",
                self.shown()
            )),
        };
        self.put(name, &bytes)?;
        Err(why)
    }

    fn shown(&self) -> String {
        self.storage.describe(&Name::top()).display().to_string()
    }
}

/// Whether something in a storage has a name that these keys have made.
fn names_something(storage: &Arc<dyn Storage>, keys: Keys) -> bool {
    holds_domains(&Sealed::new(Arc::clone(storage), keys))
}

/// Whether a storage has wrapped identities: then it is an encrypted repository, whatever is lost.
pub(super) fn are_there(storage: &dyn Storage) -> bool {
    storage
        .list(&folder())
        .is_ok_and(|entries| entries.iter().any(|entry| entry.name.ends_with(ENDING)))
}

fn folder() -> Name {
    Name::top().join(KEYS)
}

fn file(name: &str) -> Name {
    folder().join(&format!("{name}{ENDING}"))
}

fn check_name(name: &str) -> Result<()> {
    let is_letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '@');
    let is_name = !name.is_empty()
        && name.len() <= NAME_LEN_MAX
        && !name.starts_with(['.', '-'])
        && name.chars().all(is_letter);
    match is_name {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::Usage, format!("{name:?} is no name for a key"))
            .advise(
                "use letters, digits, dot, dash and underscore, and neither dot nor dash in front",
            )),
    }
}
