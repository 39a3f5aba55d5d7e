//! What is said before the first request: the greeting, and a haggling over options.

use super::{ExportFlags, NAME_LEN_MAX, bounded};
use crate::fields::Big;
use crate::{FormatError, Problem};

/// Length of the greeting in bytes.
pub const GREETING_LEN: usize = 18;
/// Length of the client's flags in bytes.
pub const CLIENT_FLAGS_LEN: usize = 4;
/// Length of an option's header in bytes.
pub const OPTION_HEADER_LEN: usize = 16;
/// The most bytes of an option's data that are looked at.
pub const OPTION_LEN_MAX: u32 = 64 << 10;

/// The one kind of metadata that is told: which ranges are zero.
pub const ALLOCATION: &str = "base:allocation";
/// With what QEMU's names for kinds of metadata begin that say which ranges a bitmap has as written to.
pub const DIRTY_BITMAP: &str = "qemu:dirty-bitmap:";
/// The number by which [`ALLOCATION`] is called.
pub const META_ALLOCATION: u32 = 1;

pub(super) const MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
pub(super) const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
pub(super) const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// Fixed newstyle, and no zeros behind the answer to `EXPORT_NAME` for who wants none.
const HANDSHAKE_FLAGS: u16 = 1 | 2;

/// The most queries in one option.
const QUERIES_MAX: u32 = 64;

/// What a server says first.
pub fn greeting() -> [u8; GREETING_LEN] {
    let mut bytes = [0; GREETING_LEN];
    let fields =
        [&MAGIC.to_be_bytes()[..], &OPTION_MAGIC.to_be_bytes(), &HANDSHAKE_FLAGS.to_be_bytes()];
    bytes.iter_mut().zip(fields.concat()).for_each(|(to, from)| *to = from);
    bytes
}

/// What a client says to the greeting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientFlags {
    /// No zeros are wanted behind the answer to `EXPORT_NAME`.
    pub no_zeroes: bool,
}

impl ClientFlags {
    /// Reads the client's flags.
    ///
    /// # Errors
    /// A flag that nobody offered.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let flags = Big::new(bytes, 0).u32(0, "client flags")?;
        if flags & !u32::from(HANDSHAKE_FLAGS) != 0 {
            let text = format!("flags {flags:#x}, which were not offered");
            return Err(FormatError::new(0, "client flags", Problem::Unsupported(text)));
        }
        Ok(Self { no_zeroes: flags & 2 != 0 })
    }

    /// The flags as bytes.
    pub fn encode(self) -> [u8; CLIENT_FLAGS_LEN] {
        (1 | if self.no_zeroes { 2_u32 } else { 0 }).to_be_bytes()
    }
}

/// What a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptionKind {
    /// An export, and nothing can go wrong: the old way.
    ExportName,
    /// The end.
    Abort,
    /// The names of the exports.
    List,
    /// Encryption.
    StartTls,
    /// What an export is.
    Info,
    /// An export.
    Go,
    /// Replies in chunks.
    StructuredReply,
    /// Which kinds of metadata there are.
    ListMetaContext,
    /// Kinds of metadata, to be told on request.
    SetMetaContext,
    /// Something else.
    Unknown(u32),
}

impl OptionKind {
    /// The option of this number.
    pub fn of(number: u32) -> Self {
        match number {
            1 => Self::ExportName,
            2 => Self::Abort,
            3 => Self::List,
            5 => Self::StartTls,
            6 => Self::Info,
            7 => Self::Go,
            8 => Self::StructuredReply,
            9 => Self::ListMetaContext,
            10 => Self::SetMetaContext,
            other => Self::Unknown(other),
        }
    }

    /// The option's number.
    pub fn number(self) -> u32 {
        match self {
            Self::ExportName => 1,
            Self::Abort => 2,
            Self::List => 3,
            Self::StartTls => 5,
            Self::Info => 6,
            Self::Go => 7,
            Self::StructuredReply => 8,
            Self::ListMetaContext => 9,
            Self::SetMetaContext => 10,
            Self::Unknown(other) => other,
        }
    }
}

/// What stands before an option's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionHeader {
    /// The option.
    pub kind: OptionKind,
    /// Length of its data in bytes: as the client says, and not bounded here.
    pub len: u32,
}

impl OptionHeader {
    /// Reads an option's header.
    ///
    /// # Errors
    /// It does not begin with the magic bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let bytes = Big::new(bytes, 0);
        if bytes.u64(0, "option magic")? != OPTION_MAGIC {
            return Err(bytes.error(0, "option magic", Problem::BadMagic("an NBD option")));
        }
        let kind = OptionKind::of(bytes.u32(8, "option")?);
        Ok(Self { kind, len: bytes.u32(12, "option length")? })
    }

    /// The header as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, len) = (self.kind.number().to_be_bytes(), self.len.to_be_bytes());
        [&OPTION_MAGIC.to_be_bytes()[..], &kind, &len].concat()
    }
}

/// The data of `INFO` and `GO`: an export, and what the client would like to know of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The export's name; empty for the default one.
    pub name: String,
    /// Which pieces of information are asked for.
    pub wanted: Vec<u16>,
}

impl Choice {
    /// Reads the data of `INFO` or `GO`.
    ///
    /// # Errors
    /// It is too short or too long for what it says, or the name is no text.
    pub fn decode(data: &[u8]) -> Result<Self, FormatError> {
        let bytes = Big::new(data, 0);
        let (name, at) = name_at(&bytes, 0)?;
        let count = usize::from(bytes.u16(at, "number of information requests")?);
        let mut wanted = Vec::with_capacity(count);
        for number in 0..count {
            wanted.push(bytes.u16(at + 2 + 2 * number, "information request")?);
        }
        check_end(&bytes, data, at + 2 + 2 * count)?;
        Ok(Self { name, wanted })
    }

    /// Reads the data of `EXPORT_NAME`, which is the name alone.
    ///
    /// # Errors
    /// The name is too long, or no text.
    pub fn decode_name(data: &[u8]) -> Result<Self, FormatError> {
        Ok(Self { name: text(data, 0, "export name")?, wanted: Vec::new() })
    }

    /// The data of `INFO` and `GO` as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = length_and(self.name.as_bytes());
        bytes.extend_from_slice(&(self.wanted.len() as u16).to_be_bytes());
        bytes.extend(self.wanted.iter().flat_map(|it| it.to_be_bytes()));
        bytes
    }
}

/// The data of `LIST_META_CONTEXT` and `SET_META_CONTEXT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetaQuery {
    /// The export that is meant.
    pub name: String,
    /// What is asked for; what is no text is kept apart from nothing that we know.
    pub queries: Vec<Vec<u8>>,
}

impl MetaQuery {
    /// Reads the data of one of the options.
    ///
    /// # Errors
    /// It is too short or too long for what it says, or asks for too much.
    pub fn decode(data: &[u8]) -> Result<Self, FormatError> {
        let bytes = Big::new(data, 0);
        let (name, mut at) = name_at(&bytes, 0)?;
        let count = bytes.u32(at, "number of queries")?;
        if count > QUERIES_MAX {
            let problem =
                Problem::OutOfRange { value: count.into(), min: 0, max: QUERIES_MAX.into() };
            return Err(bytes.error(at, "number of queries", problem));
        }
        at += 4;
        let mut queries = Vec::new();
        for _ in 0..count {
            let len = bytes.u32(at, "query length")? as usize;
            queries.push(bytes.slice(at + 4, len, "query")?.to_vec());
            at += 4 + len;
        }
        check_end(&bytes, data, at)?;
        Ok(Self { name, queries })
    }

    /// The data as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = length_and(self.name.as_bytes());
        bytes.extend_from_slice(&(self.queries.len() as u32).to_be_bytes());
        bytes.extend(self.queries.iter().flat_map(|query| length_and(query)));
        bytes
    }

    /// Whether the metadata that we have are asked for: by name; in a list also by their namespace
    /// alone, and by asking for nothing in particular.
    pub fn wants_allocation(&self, is_list: bool) -> bool {
        let by_name =
            |query: &Vec<u8>| query == ALLOCATION.as_bytes() || is_list && query == b"base:";
        self.queries.iter().any(by_name) || is_list && self.queries.is_empty()
    }
}

/// A piece of information about an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Info {
    /// Its size in bytes, and what it can do.
    Export(u64, ExportFlags),
    /// Its name in full.
    Name(String),
    /// What it is, for people.
    Description(String),
    /// The sizes of requests in bytes: the least, the best, the largest.
    BlockSize(u32, u32, u32),
    /// Something else, of this number.
    Other(u16),
}

impl Info {
    /// The number by which `NAME` is asked for.
    pub const NAME: u16 = 1;
    /// The number by which `DESCRIPTION` is asked for.
    pub const DESCRIPTION: u16 = 2;
    /// The number by which `BLOCK_SIZE` is asked for.
    pub const BLOCK_SIZE: u16 = 3;
}

/// An answer to an option. Each but the last of an option's answers tells one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OptionReply {
    /// It is done.
    Ack,
    /// There is an export of this name, and this is what it is, for people.
    Server(String, String),
    /// Something about an export.
    Info(Info),
    /// This kind of metadata is there, by this number.
    Meta(u32, String),
    /// The option is not known here.
    Unsupported,
    /// The option is known, and may not be used now.
    Policy(String),
    /// The option's data makes no sense.
    Invalid(String),
    /// Nothing is told without encryption.
    TlsRequired(String),
    /// There is no such export.
    Unknown(String),
    /// The option's data is too long.
    TooBig(String),
    /// Refused for another reason, which has this number.
    Refused(u32, String),
}

impl OptionReply {
    /// The answer to an option, as bytes.
    pub fn encode(&self, option: OptionKind) -> Vec<u8> {
        const ERROR: u32 = 1 << 31;
        let words = |text: &str| bounded(text, NAME_LEN_MAX).as_bytes().to_vec();
        let (kind, data) = match self {
            Self::Ack => (1, Vec::new()),
            Self::Server(name, what) => {
                (2, [length_and(bounded(name, NAME_LEN_MAX).as_bytes()), words(what)].concat())
            }
            Self::Info(info) => (3, info.encode()),
            Self::Meta(number, name) => (4, [&number.to_be_bytes()[..], &words(name)].concat()),
            Self::Unsupported => (ERROR | 1, Vec::new()),
            Self::Policy(text) => (ERROR | 2, words(text)),
            Self::Invalid(text) => (ERROR | 3, words(text)),
            Self::TlsRequired(text) => (ERROR | 5, words(text)),
            Self::Unknown(text) => (ERROR | 6, words(text)),
            Self::TooBig(text) => (ERROR | 9, words(text)),
            Self::Refused(number, text) => (ERROR | number, words(text)),
        };
        let header =
            [option.number(), kind, data.len() as u32].into_iter().flat_map(u32::to_be_bytes);
        REPLY_MAGIC.to_be_bytes().into_iter().chain(header).chain(data).collect()
    }
}

impl Info {
    fn encode(&self) -> Vec<u8> {
        let text = |kind: u16, text: &str| {
            [&kind.to_be_bytes()[..], bounded(text, NAME_LEN_MAX).as_bytes()].concat()
        };
        match self {
            Self::Export(size, flags) => {
                [&0_u16.to_be_bytes()[..], &size.to_be_bytes(), &flags.bits().to_be_bytes()]
                    .concat()
            }
            Self::Name(name) => text(Self::NAME, name),
            Self::Description(what) => text(Self::DESCRIPTION, what),
            Self::BlockSize(least, best, most) => {
                let sizes = [least, best, most].into_iter().flat_map(|it| it.to_be_bytes());
                Self::BLOCK_SIZE.to_be_bytes().into_iter().chain(sizes).collect()
            }
            Self::Other(number) => number.to_be_bytes().to_vec(),
        }
    }
}

/// The answer to `EXPORT_NAME`, which has no other.
pub fn export_answer(size: u64, flags: ExportFlags, client: ClientFlags) -> Vec<u8> {
    let mut bytes = [&size.to_be_bytes()[..], &flags.bits().to_be_bytes()].concat();
    if !client.no_zeroes {
        bytes.resize(bytes.len() + 124, 0);
    }
    bytes
}

fn length_and(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat()
}

/// The name at `at`, its length before it, and where it ends.
fn name_at(bytes: &Big<'_>, at: usize) -> Result<(String, usize), FormatError> {
    let len = bytes.u32(at, "length of the export's name")? as usize;
    let name = bytes.slice(at + 4, len, "export name")?;
    Ok((text(name, at + 4, "export name")?, at + 4 + len))
}

fn text(bytes: &[u8], at: usize, field: &'static str) -> Result<String, FormatError> {
    let error = |problem| FormatError::new(at as u64, field, problem);
    if bytes.len() > NAME_LEN_MAX {
        let (value, max) = (bytes.len() as u64, NAME_LEN_MAX as u64);
        return Err(error(Problem::OutOfRange { value, min: 0, max }));
    }
    let text = std::str::from_utf8(bytes);
    Ok(text.map_err(|_| error(Problem::Invalid("no UTF-8".into())))?.to_owned())
}

fn check_end(bytes: &Big<'_>, data: &[u8], end: usize) -> Result<(), FormatError> {
    match data.len() == end {
        true => Ok(()),
        false => Err(bytes.invalid(end, "option data", "more bytes than it says")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_those_of_the_specification() {
        assert_eq!(greeting(), *b"NBDMAGICIHAVEOPT\0\x03");
        let client = ClientFlags::decode(&[0, 0, 0, 3]).unwrap();
        assert!(client.no_zeroes);
        assert!(ClientFlags::decode(&[0, 0, 0, 4]).is_err());
        let header = OptionHeader::decode(b"IHAVEOPT\0\0\0\x07\0\0\0\x08").unwrap();
        assert_eq!(header, OptionHeader { kind: OptionKind::Go, len: 8 });
        assert!(OptionHeader::decode(b"IHAVEOPs\0\0\0\x07\0\0\0\x08").is_err());
        let choice = Choice::decode(b"\0\0\0\x01a\0\x01\0\x03").unwrap();
        assert_eq!(choice, Choice { name: "a".into(), wanted: vec![3] });
        let reply = OptionReply::Info(Info::BlockSize(1, 2, 3)).encode(OptionKind::Go);
        assert_eq!(
            reply,
            b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x07\0\0\0\x03\0\0\0\x0e\0\x03\0\0\0\x01\0\0\0\x02\0\0\0\x03"
        );
        let reply = OptionReply::Server("ab".into(), "c".into()).encode(OptionKind::List);
        assert_eq!(reply[16..], *b"\0\0\0\x07\0\0\0\x02abc");
        let answer = export_answer(512, ExportFlags::BASE, ClientFlags { no_zeroes: false });
        assert_eq!(answer.len(), 134);
        assert_eq!(answer[..10], *b"\0\0\0\0\0\0\x02\0\x04\x81");
    }

    #[test]
    fn what_says_more_or_less_than_it_holds_is_refused() {
        let whole = Choice { name: "web/vda@latest".into(), wanted: vec![1, 3] }.encode();
        for len in 0..whole.len() {
            assert!(Choice::decode(&whole[..len]).is_err(), "{len}");
        }
        assert!(Choice::decode(&[whole, vec![0]].concat()).is_err());
        assert!(Choice::decode(b"\xff\xff\xff\xffa\0\0").is_err());
        assert!(Choice::decode(b"\0\0\0\x01\xff\0\0").is_err());
        assert!(Choice::decode_name(&[b'a'; NAME_LEN_MAX + 1]).is_err());
        let query = MetaQuery { name: String::new(), queries: vec![b"base:".to_vec(), vec![]] };
        let whole = query.encode();
        assert_eq!(MetaQuery::decode(&whole).unwrap(), query);
        for len in 0..whole.len() {
            assert!(MetaQuery::decode(&whole[..len]).is_err(), "{len}");
        }
        assert!(MetaQuery::decode(b"\0\0\0\0\0\0\0\x41").is_err());
        assert!(query.wants_allocation(true) && !query.wants_allocation(false));
    }
}
