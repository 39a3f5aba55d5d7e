//! What the client and a server agree on before the first request.

use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use super::stream::Stream;
use super::tls::Encryption;
use super::{Failure, quoted};
use crate::base::error::{Error, ErrorKind};
use crate::formats::nbd::{
    ALLOCATION, ANSWER_HEADER_LEN, AnswerHeader, Choice, ClientFlags, DIRTY_BITMAP, ExportFlags,
    GREETING_LEN, Greeting, Info, MetaQuery, NAME_LEN_MAX, OptionHeader, OptionKind, OptionReply,
};

/// The most answers to one option: a server may have as many exports.
const ANSWERS_MAX: usize = 10_000;
/// The longest data of an answer, in bytes: an export's name and what it is, for people.
const ANSWER_LEN_MAX: u32 = 4 + 2 * NAME_LEN_MAX as u32;
/// The most bitmaps of an export that can be asked about.
pub(super) const BITMAPS_MAX: usize = 16;
/// How many names an error lists.
const SHOWN_MAX: usize = 10;
/// Bounds of the least size of a request in bytes, by the specification.
const LEAST_MAX: u32 = 64 << 10;
/// What a request is at most if the server says nothing, in bytes.
const MOST_DEFAULT: u32 = 32 << 20;

/// What a server has said of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Agreement {
    /// Size of the disk in bytes.
    pub size: u64,
    /// What can be done with it.
    pub flags: ExportFlags,
    /// The least size of a request in bytes: a power of two.
    pub least: u32,
    /// The largest size of a request in bytes.
    pub most: u32,
    /// The kinds of metadata that were agreed on, and by which number each is called.
    pub contexts: Vec<(u32, String)>,
    /// The names of all bitmaps that the server has told of.
    pub bitmaps: Vec<String>,
    /// What the export is, for people.
    pub description: Option<String>,
}

type Outcome<T> = Result<T, Failure>;

/// Agrees with a server on an export, and before that on encryption if there is to be any.
pub(super) fn agree(
    incoming: &mut BufReader<Stream>,
    export: &str,
    tls: Option<&Encryption>,
) -> Outcome<Agreement> {
    let mut handshake = Handshake { incoming, export };
    handshake.greet()?;
    if let Some(tls) = tls {
        handshake.encrypt(tls)?;
    }
    handshake.run()
}

struct Handshake<'a> {
    incoming: &'a mut BufReader<Stream>,
    export: &'a str,
}

impl Handshake<'_> {
    fn greet(&mut self) -> Outcome<()> {
        let mut greeting = [0; GREETING_LEN];
        self.incoming.read_exact(&mut greeting)?;
        let Greeting { no_zeroes } = Greeting::decode(&greeting)?;
        let flags = ClientFlags { no_zeroes }.encode();
        Ok(self.incoming.get_mut().write_all(&flags)?)
    }

    fn encrypt(&mut self, tls: &Encryption) -> Outcome<()> {
        if !self.is_acked(OptionKind::StartTls, &[])? {
            let error = Error::new(ErrorKind::Usage, "the server does not encrypt");
            return Err(Failure::Told(error.advise("nbd:// and nbd+unix:// go in clear")));
        }
        // What was sent in clear could be anybody's, and must not count as said in private.
        if !self.incoming.buffer().is_empty() {
            return Err(Failure::odd("it goes on in clear after it agreed to encrypt"));
        }
        self.incoming.get_mut().encrypt(tls).map_err(|error| {
            let error = Error::io("agree on encryption with", Path::new("the server"), error);
            Failure::Broken(error.advise("both must have the same key under the same name"))
        })
    }

    fn run(&mut self) -> Outcome<Agreement> {
        let structured = self.is_acked(OptionKind::StructuredReply, &[])?;
        let (mut contexts, mut bitmaps) = (Vec::new(), Vec::new());
        if structured {
            bitmaps = self.bitmaps()?;
            contexts = self.contexts(&bitmaps)?;
        }
        self.go(contexts, bitmaps)
    }

    /// Sends an option.
    fn send(&mut self, kind: OptionKind, data: &[u8]) -> io::Result<()> {
        let header = OptionHeader { kind, len: data.len() as u32 }.encode();
        self.incoming.get_mut().write_all(&[&header, data].concat())
    }

    /// The next answer to an option.
    fn answer(&mut self, kind: OptionKind) -> Outcome<OptionReply> {
        let mut header = [0; ANSWER_HEADER_LEN];
        self.incoming.read_exact(&mut header)?;
        let header = AnswerHeader::decode(&header)?;
        if header.option != kind {
            return Err(Failure::odd("it answers an option that was not named"));
        }
        if header.len > ANSWER_LEN_MAX {
            let text =
                format!("an answer of {} bytes; at most {ANSWER_LEN_MAX} are read", header.len);
            return Err(Failure::odd(text));
        }
        let mut data = vec![0; header.len as usize];
        self.incoming.read_exact(&mut data)?;
        Ok(OptionReply::decode(header.kind, &data)?)
    }

    /// All answers to an option up to the one that ends it.
    fn answers(
        &mut self,
        kind: OptionKind,
        data: &[u8],
    ) -> Outcome<(Vec<OptionReply>, OptionReply)> {
        self.send(kind, data)?;
        let mut answers = Vec::new();
        loop {
            match self.answer(kind)? {
                answer @ (OptionReply::Server(..)
                | OptionReply::Info(_)
                | OptionReply::Meta(..)) => {
                    if answers.len() >= ANSWERS_MAX {
                        return Err(Failure::odd("it answers an option without an end"));
                    }
                    answers.push(answer);
                }
                end => return Ok((answers, end)),
            }
        }
    }

    /// Whether the server agrees to an option.
    fn is_acked(&mut self, kind: OptionKind, data: &[u8]) -> Outcome<bool> {
        match self.answers(kind, data)?.1 {
            OptionReply::TlsRequired(text) => Err(tls_required(&text)),
            end => Ok(end == OptionReply::Ack),
        }
    }

    /// The bitmaps of the export. Servers that can't tell have none.
    fn bitmaps(&mut self) -> Outcome<Vec<String>> {
        let queries = vec![DIRTY_BITMAP.as_bytes().to_vec()];
        let query = MetaQuery { name: self.export.to_owned(), queries };
        let (answers, _) = self.answers(OptionKind::ListMetaContext, &query.encode())?;
        let name = |answer: OptionReply| match answer {
            OptionReply::Meta(_, name) => name.strip_prefix(DIRTY_BITMAP).map(str::to_owned),
            _ => None,
        };
        Ok(answers.into_iter().filter_map(name).collect())
    }

    /// Agrees on what can be asked about ranges of the disk.
    fn contexts(&mut self, bitmaps: &[String]) -> Outcome<Vec<(u32, String)>> {
        let bitmaps = bitmaps.iter().take(BITMAPS_MAX).map(|name| format!("{DIRTY_BITMAP}{name}"));
        let wanted: Vec<String> = std::iter::once(ALLOCATION.to_owned()).chain(bitmaps).collect();
        let queries = wanted.iter().map(|name| name.clone().into_bytes()).collect();
        let query = MetaQuery { name: self.export.to_owned(), queries };
        let (answers, end) = self.answers(OptionKind::SetMetaContext, &query.encode())?;
        if end != OptionReply::Ack {
            return Ok(Vec::new());
        }
        let mut contexts: Vec<(u32, String)> = Vec::new();
        for answer in answers {
            let OptionReply::Meta(id, name) = answer else { continue };
            let is_twice = contexts.iter().any(|(other, of)| *other == id || *of == name);
            if is_twice || !wanted.contains(&name) {
                return Err(Failure::odd("it offers metadata that were not asked for, or twice"));
            }
            contexts.push((id, name));
        }
        Ok(contexts)
    }

    fn go(&mut self, contexts: Vec<(u32, String)>, bitmaps: Vec<String>) -> Outcome<Agreement> {
        let wanted = vec![Info::BLOCK_SIZE, Info::DESCRIPTION];
        let choice = Choice { name: self.export.to_owned(), wanted };
        let (answers, end) = self.answers(OptionKind::Go, &choice.encode())?;
        match end {
            OptionReply::Ack => {}
            OptionReply::TlsRequired(text) => return Err(tls_required(&text)),
            OptionReply::Unknown(_) => return Err(self.no_such_export()),
            OptionReply::Unsupported => {
                return Err(Failure::odd("it is too old: it does not know NBD_OPT_GO"));
            }
            OptionReply::Policy(text)
            | OptionReply::Invalid(text)
            | OptionReply::TooBig(text)
            | OptionReply::Refused(_, text) => {
                let text =
                    format!("it refuses the export {}: {}", quoted(self.export), quoted(&text));
                return Err(Failure::Told(Error::new(ErrorKind::Io, text)));
            }
            _ => {
                return Err(Failure::odd("it answers the choice of an export with something else"));
            }
        }
        let mut agreed = Agreement {
            size: 0,
            flags: ExportFlags::NONE,
            least: 1,
            most: MOST_DEFAULT,
            contexts,
            bitmaps,
            description: None,
        };
        let mut is_told = false;
        for answer in answers {
            match answer {
                OptionReply::Info(Info::Export(size, flags)) => {
                    (agreed.size, agreed.flags, is_told) = (size, flags, true);
                }
                OptionReply::Info(Info::BlockSize(least, _, most)) => {
                    (agreed.least, agreed.most) = (least, most.min(MOST_DEFAULT));
                }
                OptionReply::Info(Info::Description(text)) => agreed.description = Some(text),
                _ => {}
            }
        }
        if !is_told {
            return Err(Failure::odd("it does not say how large the export is"));
        }
        agreed.check()?;
        Ok(agreed)
    }

    /// The failure that there is no such export, with those that there are.
    fn no_such_export(&mut self) -> Failure {
        let text = format!("the server has no export {}", quoted(self.export));
        let error = Error::new(ErrorKind::NotFound, text);
        let names: Vec<String> = match self.answers(OptionKind::List, &[]) {
            Ok((answers, OptionReply::Ack)) => {
                let name = |answer| match answer {
                    OptionReply::Server(name, _) => Some(quoted(&name)),
                    _ => None,
                };
                answers.into_iter().filter_map(name).collect()
            }
            // Some servers tell nobody.
            _ => Vec::new(),
        };
        Failure::Told(match names.len() {
            0 => error,
            count if count > SHOWN_MAX => error.advise(format!("it has {count} others")),
            _ => error.advise(format!("it has {}", names.join(", "))),
        })
    }
}

impl Agreement {
    /// Fails if what the server says makes no sense.
    fn check(&self) -> Outcome<()> {
        let Self { size, least, most, .. } = *self;
        if !least.is_power_of_two() || least > LEAST_MAX || most < least {
            let text = format!("requests of {least} to {most} bytes, which makes no sense");
            return Err(Failure::odd(text));
        }
        if size > i64::MAX as u64 {
            return Err(Failure::odd(format!("a disk of {size} bytes, which is too large")));
        }
        if !size.is_multiple_of(u64::from(least)) {
            let text =
                format!("a disk of {size} bytes, of which the last can't be read by {least}");
            return Err(Failure::odd(text));
        }
        Ok(())
    }

    /// The number by which a kind of metadata is called, if it was agreed on.
    pub fn context(&self, name: &str) -> Option<u32> {
        self.contexts.iter().find(|(_, of)| of == name).map(|(id, _)| *id)
    }
}

fn tls_required(text: &str) -> Failure {
    let error = Error::new(ErrorKind::Usage, "the server tells nothing without encryption");
    let error = if text.is_empty() { error } else { error.because(quoted(text)) };
    Failure::Told(error.advise("nbds://NAME@HOST/EXPORT?tls-psk-file=FILE encrypts"))
}
