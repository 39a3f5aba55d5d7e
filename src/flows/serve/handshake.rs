//! What a client and the server agree on before the first request.

use std::io::{self, BufReader, IoSlice, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::exports::{Export, Exports};
use super::stream::Stream;
use super::tls::Keys;
use crate::base::error::Result;
use crate::formats::FormatError;
use crate::formats::nbd::{
    ALLOCATION, CLIENT_FLAGS_LEN, Choice, ClientFlags, Info, META_ALLOCATION, MetaQuery,
    OPTION_HEADER_LEN, OPTION_LEN_MAX, OptionHeader, OptionKind, OptionReply, REQUEST_BYTES_MAX,
    export_answer, greeting,
};
use crate::vault::repository::storage::Wait;

/// How long a client may haggle.
const HAGGLE_MAX: Duration = Duration::from_secs(60);
/// How many options a client may name.
const OPTIONS_MAX: u32 = 1000;

/// What a client and the server have agreed on.
#[derive(Debug)]
pub struct Agreement {
    /// The export that is read.
    pub export: Arc<Export>,
    /// Reads are answered in chunks.
    pub structured: bool,
    /// The client may ask which ranges are zero.
    pub allocation: bool,
}

/// A haggling.
pub struct Handshake<'a, 'b> {
    stream: &'a Stream,
    incoming: &'b mut BufReader<&'a Stream>,
    exports: &'a Exports,
    /// Who waits for the promise that a point stays.
    wait: Wait<'a>,
    /// What the connection must be encrypted with, as long as it is not.
    keys: Option<&'a Keys>,
    client: ClientFlags,
    structured: bool,
    /// The export for which the client may ask what is zero.
    allocation: Option<String>,
}

/// What comes next.
enum Next {
    Option,
    Requests(Arc<Export>),
    End,
}

impl<'a, 'b> Handshake<'a, 'b> {
    /// Greets a client.
    pub fn begin(
        stream: &'a Stream,
        incoming: &'b mut BufReader<&'a Stream>,
        exports: &'a Exports,
        keys: Option<&'a Keys>,
        wait: Wait<'a>,
    ) -> io::Result<Self> {
        stream.limit(Some(Instant::now() + HAGGLE_MAX))?;
        stream.send(&mut [IoSlice::new(&greeting())])?;
        let mut flags = [0; CLIENT_FLAGS_LEN];
        incoming.read_exact(&mut flags)?;
        let client = ClientFlags::decode(&flags).map_err(nonsense)?;
        let (structured, allocation) = (false, None);
        Ok(Self { stream, incoming, exports, wait, keys, client, structured, allocation })
    }

    /// Answers options until the client has chosen an export; none if it goes without.
    pub fn run(mut self) -> io::Result<Option<Agreement>> {
        for _ in 0..OPTIONS_MAX {
            let mut header = [0; OPTION_HEADER_LEN];
            self.incoming.read_exact(&mut header)?;
            let header = OptionHeader::decode(&header).map_err(nonsense)?;
            match self.option(header)? {
                Next::Option => {}
                Next::End => return Ok(None),
                Next::Requests(export) => {
                    self.stream.limit(None)?;
                    let allocation = self.allocation.is_some_and(|name| {
                        self.exports
                            .find(&name, self.wait)
                            .is_ok_and(|of| of.name() == export.name())
                    });
                    return Ok(Some(Agreement { export, structured: self.structured, allocation }));
                }
            }
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "it names options without an end"))
    }

    fn option(&mut self, header: OptionHeader) -> io::Result<Next> {
        let kind = header.kind;
        if header.len > OPTION_LEN_MAX {
            // What makes no sense is not read to its end.
            let most = u64::from(REQUEST_BYTES_MAX);
            if u64::from(header.len) > most || kind == OptionKind::ExportName {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "an option without an end"));
            }
            io::copy(&mut self.incoming.by_ref().take(header.len.into()), &mut io::sink())?;
            let text = format!("at most {OPTION_LEN_MAX} bytes");
            self.answer(kind, &OptionReply::TooBig(text))?;
            return Ok(Next::Option);
        }
        let mut data = vec![0; header.len as usize];
        self.incoming.read_exact(&mut data)?;
        if let Some(keys) = self.keys {
            return self.before_encryption(kind, &data, keys);
        }
        match kind {
            OptionKind::ExportName => return self.export_name(&data),
            OptionKind::Info | OptionKind::Go => return self.choose(kind, &data),
            OptionKind::ListMetaContext | OptionKind::SetMetaContext => self.meta(kind, &data)?,
            OptionKind::Abort => {
                // Whoever has gone already does not hear it.
                let _ = self.answer(kind, &OptionReply::Ack);
                return Ok(Next::End);
            }
            OptionKind::List if data.is_empty() => self.list()?,
            OptionKind::StructuredReply if data.is_empty() => {
                self.structured = true;
                self.answer(kind, &OptionReply::Ack)?;
            }
            OptionKind::List | OptionKind::StructuredReply => {
                self.answer(kind, &OptionReply::Invalid("this option has no data".to_owned()))?;
            }
            OptionKind::StartTls => {
                let text = "the connection is encrypted, or stays on this machine".to_owned();
                self.answer(kind, &OptionReply::Policy(text))?;
            }
            OptionKind::Unknown(_) => self.answer(kind, &OptionReply::Unsupported)?,
        }
        Ok(Next::Option)
    }

    /// Answers an option of a client that has to encrypt the connection first.
    fn before_encryption(
        &mut self,
        kind: OptionKind,
        data: &[u8],
        keys: &Keys,
    ) -> io::Result<Next> {
        match kind {
            OptionKind::StartTls if data.is_empty() => {
                self.answer(kind, &OptionReply::Ack)?;
                // What was sent in clear could be anybody's, and must not count as said in private.
                if !self.incoming.buffer().is_empty() {
                    let text = "it goes on in clear after it asked for encryption";
                    return Err(io::Error::new(io::ErrorKind::InvalidData, text));
                }
                self.stream.encrypt(keys)?;
                self.keys = None;
            }
            OptionKind::Abort => {
                let _ = self.answer(kind, &OptionReply::Ack);
                return Ok(Next::End);
            }
            OptionKind::ExportName => return Ok(Next::End),
            OptionKind::StartTls => {
                self.answer(kind, &OptionReply::Invalid("this option has no data".to_owned()))?;
            }
            _ => {
                let text = "nothing is told without encryption".to_owned();
                self.answer(kind, &OptionReply::TlsRequired(text))?;
            }
        }
        Ok(Next::Option)
    }

    fn answer(&self, kind: OptionKind, reply: &OptionReply) -> io::Result<()> {
        self.stream.send(&mut [IoSlice::new(&reply.encode(kind))])
    }

    /// The old way to choose: there is no answer for an export that is not there.
    fn export_name(&mut self, data: &[u8]) -> io::Result<Next> {
        let choice = Choice::decode_name(data).map_err(nonsense)?;
        let Ok(export) = self.exports.find(&choice.name, self.wait) else { return Ok(Next::End) };
        let answer = export_answer(export.size(), export.flags(), self.client);
        self.stream.send(&mut [IoSlice::new(&answer)])?;
        Ok(Next::Requests(export))
    }

    fn choose(&mut self, kind: OptionKind, data: &[u8]) -> io::Result<Next> {
        let choice = match Choice::decode(data) {
            Ok(choice) => choice,
            Err(error) => {
                self.answer(kind, &OptionReply::Invalid(error.to_string()))?;
                return Ok(Next::Option);
            }
        };
        let export = match self.found(kind, self.exports.find(&choice.name, self.wait))? {
            Some(export) => export,
            None => return Ok(Next::Option),
        };
        let mut told = vec![Info::Export(export.size(), export.flags())];
        let wants = |what| choice.wanted.contains(&what);
        if wants(Info::NAME) {
            told.push(Info::Name(export.name()));
        }
        if wants(Info::DESCRIPTION) {
            told.push(Info::Description(export.description()));
        }
        if wants(Info::BLOCK_SIZE) {
            told.push(Info::BlockSize(1, export.block_size(), REQUEST_BYTES_MAX));
        }
        for info in told {
            self.answer(kind, &OptionReply::Info(info))?;
        }
        self.answer(kind, &OptionReply::Ack)?;
        Ok(if kind == OptionKind::Go { Next::Requests(export) } else { Next::Option })
    }

    fn list(&mut self) -> io::Result<()> {
        let Some(names) = self.found(OptionKind::List, self.exports.list())? else { return Ok(()) };
        for (name, what) in names {
            self.answer(OptionKind::List, &OptionReply::Server(name, what))?;
        }
        self.answer(OptionKind::List, &OptionReply::Ack)
    }

    fn meta(&mut self, kind: OptionKind, data: &[u8]) -> io::Result<()> {
        let is_list = kind == OptionKind::ListMetaContext;
        if !is_list {
            self.allocation = None;
        }
        if !self.structured {
            let text = "structured replies come first".to_owned();
            return self.answer(kind, &OptionReply::Invalid(text));
        }
        let query = match MetaQuery::decode(data) {
            Ok(query) => query,
            Err(error) => return self.answer(kind, &OptionReply::Invalid(error.to_string())),
        };
        if self.found(kind, self.exports.find(&query.name, self.wait))?.is_none() {
            return Ok(());
        }
        if query.wants_allocation(is_list) {
            self.answer(kind, &OptionReply::Meta(META_ALLOCATION, ALLOCATION.to_owned()))?;
            if !is_list {
                self.allocation = Some(query.name);
            }
        }
        self.answer(kind, &OptionReply::Ack)
    }

    /// What was found; a client whose question has no answer is told why.
    fn found<T>(&self, kind: OptionKind, found: Result<T>) -> io::Result<Option<T>> {
        match found {
            Ok(found) => Ok(Some(found)),
            Err(error) => {
                self.answer(kind, &OptionReply::Unknown(error.chain()))?;
                Ok(None)
            }
        }
    }
}

/// What a client says and nobody understands.
pub fn nonsense(error: FormatError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
