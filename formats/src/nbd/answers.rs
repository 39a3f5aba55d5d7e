//! What a client reads: the greeting, answers to options, and replies, from bytes to checked values. No length
//! is believed here: whoever reads a payload bounds it first.

use super::handshake::{
    GREETING_LEN, Info, MAGIC, OPTION_MAGIC, OptionKind, OptionReply, REPLY_MAGIC,
};
use super::reply::{CHUNK_MAGIC, Chunk, SIMPLE_MAGIC, Status};
use super::{ExportFlags, NAME_LEN_MAX};
use crate::fields::Big;
use crate::{FormatError, Problem};

/// Length of what stands before the data of an answer to an option, in bytes.
pub const ANSWER_HEADER_LEN: usize = 20;
/// Length in bytes of the magic number by which the kinds of replies are told apart.
pub const REPLY_MAGIC_LEN: usize = 4;
/// Length of what stands before the payload of a chunk, in bytes.
pub const CHUNK_HEADER_LEN: usize = 20;

/// The bit of answers and chunks that say that something failed.
const ERROR: u32 = 1 << 31;
const CHUNK_ERROR: u16 = 1 << 15;
/// With what the greeting of a server goes on that knows no options.
const OLD_MAGIC: u64 = 0x0000_4202_8186_1253;
/// Length of the offset that stands before the bytes of a chunk, in bytes.
const OFFSET_LEN: u32 = 8;

/// What a server says first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Greeting {
    /// The server can leave out the zeros behind the answer to `EXPORT_NAME`.
    pub no_zeroes: bool,
}

impl Greeting {
    /// Reads the greeting of a server.
    ///
    /// # Errors
    /// It is no NBD server, or one that knows no options (oldstyle, or newstyle that is not fixed).
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let bytes = Big::new(bytes, 0);
        bytes.slice(0, GREETING_LEN, "greeting")?;
        if bytes.u64(0, "greeting")? != MAGIC {
            return Err(bytes.error(0, "greeting", Problem::BadMagic("an NBD server")));
        }
        let unsupported = |text: &str| {
            let problem = Problem::Unsupported(text.to_owned());
            Err(bytes.error(8, "greeting", problem))
        };
        match bytes.u64(8, "greeting")? {
            OPTION_MAGIC => {}
            OLD_MAGIC => return unsupported("the oldstyle handshake"),
            _ => return Err(bytes.error(8, "greeting", Problem::BadMagic("an NBD server"))),
        }
        let flags = bytes.u16(16, "handshake flags")?;
        if flags & 1 == 0 {
            return unsupported("the newstyle handshake that is not fixed");
        }
        Ok(Self { no_zeroes: flags & 2 != 0 })
    }
}

/// What stands before the data of an answer to an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AnswerHeader {
    /// The option that is answered.
    pub option: OptionKind,
    /// The kind of the answer.
    pub kind: u32,
    /// Length of its data in bytes: as the server says, and not bounded here.
    pub len: u32,
}

impl AnswerHeader {
    /// Reads what stands before an answer's data.
    ///
    /// # Errors
    /// It does not begin with the magic bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let bytes = Big::new(bytes, 0);
        if bytes.u64(0, "answer magic")? != REPLY_MAGIC {
            let problem = Problem::BadMagic("an answer to an NBD option");
            return Err(bytes.error(0, "answer magic", problem));
        }
        Ok(Self {
            option: OptionKind::of(bytes.u32(8, "option")?),
            kind: bytes.u32(12, "kind of answer")?,
            len: bytes.u32(16, "length of the answer")?,
        })
    }
}

impl OptionReply {
    /// Reads an answer of this kind.
    ///
    /// # Errors
    /// Its data is too short, too long or no text; nothing is known of its kind.
    pub fn decode(kind: u32, data: &[u8]) -> Result<Self, FormatError> {
        let bytes = Big::new(data, 0);
        let words = || words(data);
        Ok(match kind {
            1 if data.is_empty() => Self::Ack,
            2 => {
                let len = bytes.u32(0, "length of the export's name")? as usize;
                let name = bytes.slice(4, len, "export name")?;
                let what = data.get(4 + len..).unwrap_or_default();
                Self::Server(name_of(name, "export name")?, self::words(what))
            }
            3 => Self::Info(Info::decode(data)?),
            4 => {
                let id = bytes.u32(0, "metadata context")?;
                let name = data.get(4..).unwrap_or_default();
                Self::Meta(id, name_of(name, "metadata context")?)
            }
            number if number == ERROR | 1 => Self::Unsupported,
            number if number == ERROR | 2 => Self::Policy(words()),
            number if number == ERROR | 3 => Self::Invalid(words()),
            number if number == ERROR | 5 => Self::TlsRequired(words()),
            number if number == ERROR | 6 => Self::Unknown(words()),
            number if number == ERROR | 9 => Self::TooBig(words()),
            number if number & ERROR != 0 => Self::Refused(number & !ERROR, words()),
            number => {
                let text = format!("an answer of kind {number} and {} bytes", data.len());
                return Err(bytes.error(0, "answer", Problem::Unsupported(text)));
            }
        })
    }
}

impl Info {
    fn decode(data: &[u8]) -> Result<Self, FormatError> {
        let bytes = Big::new(data, 0);
        let kind = bytes.u16(0, "kind of information")?;
        let len = match kind {
            0 => 12,
            Self::BLOCK_SIZE => 14,
            _ => data.len(),
        };
        if data.len() != len {
            let text = format!("{} bytes in place of {len}", data.len());
            return Err(bytes.invalid(0, "information", text));
        }
        let rest = data.get(2..).unwrap_or_default();
        Ok(match kind {
            0 => Self::Export(
                bytes.u64(2, "size of the export")?,
                ExportFlags(bytes.u16(10, "transmission flags")?),
            ),
            Self::NAME => Self::Name(name_of(rest, "export name")?),
            Self::DESCRIPTION => Self::Description(words(rest)),
            Self::BLOCK_SIZE => Self::BlockSize(
                bytes.u32(2, "least size of a request")?,
                bytes.u32(6, "best size of a request")?,
                bytes.u32(10, "largest size of a request")?,
            ),
            other => Self::Other(other),
        })
    }
}

/// The beginning of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyHead {
    /// A simple reply: what was read follows, if it went well.
    Simple {
        /// The request that is answered.
        cookie: u64,
        /// How it ended.
        status: Status,
    },
    /// A piece of a structured reply.
    Chunk(ChunkHead),
}

impl ReplyHead {
    /// How many bytes the head of a reply has that begins with these.
    ///
    /// # Errors
    /// They are no magic bytes of a reply.
    pub fn len_of(magic: [u8; REPLY_MAGIC_LEN]) -> Result<usize, FormatError> {
        match u32::from_be_bytes(magic) {
            SIMPLE_MAGIC => Ok(super::SIMPLE_REPLY_LEN),
            CHUNK_MAGIC => Ok(CHUNK_HEADER_LEN),
            _ => Err(FormatError::new(0, "reply magic", Problem::BadMagic("an NBD reply"))),
        }
    }

    /// Reads the head of a reply.
    ///
    /// # Errors
    /// It does not begin with the magic bytes, or is cut short.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let bytes = Big::new(bytes, 0);
        Ok(match bytes.u32(0, "reply magic")? {
            SIMPLE_MAGIC => Self::Simple {
                status: Status::of(bytes.u32(4, "error")?),
                cookie: bytes.u64(8, "cookie")?,
            },
            CHUNK_MAGIC => Self::Chunk(ChunkHead {
                is_last: bytes.u16(4, "flags of a chunk")? & 1 != 0,
                kind: bytes.u16(6, "kind of a chunk")?,
                cookie: bytes.u64(8, "cookie")?,
                len: bytes.u32(16, "length of a chunk")?,
            }),
            _ => return Err(bytes.error(0, "reply magic", Problem::BadMagic("an NBD reply"))),
        })
    }

    /// The request that is answered.
    pub fn cookie(&self) -> u64 {
        match self {
            Self::Simple { cookie, .. } => *cookie,
            Self::Chunk(head) => head.cookie,
        }
    }
}

/// What stands before the payload of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkHead {
    /// No other chunk of the reply follows.
    pub is_last: bool,
    /// The kind of the chunk.
    pub kind: u16,
    /// The request that is answered.
    pub cookie: u64,
    /// Length of the payload in bytes: as the server says, and not bounded here.
    pub len: u32,
}

impl ChunkHead {
    /// How many bytes of the payload are its fields, which [`Chunk::decode`] takes. What was read stands
    /// behind those of [`Chunk::Data`]; all others have nothing else.
    pub fn fields_len(&self) -> u32 {
        if self.kind == 1 { self.len.min(OFFSET_LEN) } else { self.len }
    }
}

impl Chunk {
    /// Reads the fields of a chunk.
    ///
    /// # Errors
    /// They are too short or too long; nothing is known of the kind.
    pub fn decode(head: &ChunkHead, fields: &[u8]) -> Result<Self, FormatError> {
        let bytes = Big::new(fields, 0);
        bytes.slice(0, head.fields_len() as usize, "chunk")?;
        let exactly = |len: usize| match fields.len() == len {
            true => Ok(()),
            false => {
                let text = format!("{} bytes in place of {len}", fields.len());
                Err(bytes.invalid(0, "chunk", text))
            }
        };
        Ok(match head.kind {
            0 => exactly(0).map(|()| Self::None)?,
            1 => match head.len.checked_sub(OFFSET_LEN) {
                Some(len) if len > 0 => Self::Data { offset: bytes.u64(0, "offset")?, len },
                _ => return Err(bytes.invalid(0, "chunk", "it holds no bytes")),
            },
            2 => {
                exactly(12)?;
                Self::Hole { offset: bytes.u64(0, "offset")?, len: bytes.u32(8, "length")? }
            }
            5 => {
                let context = bytes.u32(0, "metadata context")?;
                let (ranges, rest) = fields.get(4..).unwrap_or_default().as_chunks::<8>();
                if !rest.is_empty() || ranges.is_empty() {
                    return Err(bytes.invalid(4, "block status", "no whole number of ranges"));
                }
                let number =
                    |bytes: &[u8]| bytes.iter().fold(0, |all, it| all << 8 | u32::from(*it));
                let range = |range: &[u8; 8]| {
                    let (len, state) = range.split_at(4);
                    (number(len), number(state))
                };
                Self::Status { context, ranges: ranges.iter().map(range).collect() }
            }
            kind if kind & CHUNK_ERROR != 0 => {
                let status = Status::of(bytes.u32(0, "error")?);
                let len = usize::from(bytes.u16(4, "length of the error's text")?);
                let text = words(bytes.slice(6, len, "text of the error")?);
                match kind & !CHUNK_ERROR {
                    2 => Self::ErrorAt(status, text, bytes.u64(6 + len, "offset of the error")?),
                    _ => Self::Error(status, text),
                }
            }
            kind => {
                let problem = Problem::Unsupported(format!("a chunk of kind {kind}"));
                return Err(bytes.error(0, "chunk", problem));
            }
        })
    }
}

/// A text for people; what is none of it is shown as such.
fn words(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn name_of(bytes: &[u8], field: &'static str) -> Result<String, FormatError> {
    let error = |problem| FormatError::new(0, field, problem);
    if bytes.len() > NAME_LEN_MAX {
        let (value, max) = (bytes.len() as u64, NAME_LEN_MAX as u64);
        return Err(error(Problem::OutOfRange { value, min: 0, max }));
    }
    let text = std::str::from_utf8(bytes);
    Ok(text.map_err(|_| error(Problem::Invalid("no UTF-8".into())))?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::{ClientFlags, greeting, simple_reply};
    use super::*;

    #[test]
    fn a_server_is_greeted_back_or_refused_by_name() {
        let greeting = greeting();
        assert_eq!(Greeting::decode(&greeting), Ok(Greeting { no_zeroes: true }));
        for len in 0..GREETING_LEN {
            assert!(Greeting::decode(&greeting[..len]).is_err(), "{len}");
        }
        let with = |at: usize, bytes: &[u8]| {
            let mut odd = greeting;
            odd[at..at + bytes.len()].copy_from_slice(bytes);
            Greeting::decode(&odd).unwrap_err().to_string()
        };
        assert!(with(0, b"SSH-2.0-").contains("magic bytes of an NBD server"));
        assert!(with(8, &OLD_MAGIC.to_be_bytes()).contains("oldstyle"));
        assert!(with(8, b"whatever").contains("magic bytes"));
        assert!(with(16, &[0, 2]).contains("not fixed"));
        assert_eq!(ClientFlags { no_zeroes: true }.encode(), [0, 0, 0, 3]);
        assert_eq!(ClientFlags { no_zeroes: false }.encode(), [0, 0, 0, 1]);
    }

    #[test]
    fn answers_are_read_as_they_were_written() {
        for reply in [
            OptionReply::Ack,
            OptionReply::Server("web/vda".into(), "what it is".into()),
            OptionReply::Info(Info::Export(u64::MAX, ExportFlags::BASE)),
            OptionReply::Info(Info::Name("ä".into())),
            OptionReply::Info(Info::Description(String::new())),
            OptionReply::Info(Info::BlockSize(1, 4096, u32::MAX)),
            OptionReply::Info(Info::Other(700)),
            OptionReply::Meta(7, "qemu:dirty-bitmap:b".into()),
            OptionReply::Unsupported,
            OptionReply::Policy("no".into()),
            OptionReply::Invalid("no".into()),
            OptionReply::TlsRequired("no".into()),
            OptionReply::Unknown("no".into()),
            OptionReply::TooBig("no".into()),
            OptionReply::Refused(7, "shutdown".into()),
        ] {
            let bytes = reply.encode(OptionKind::Go);
            let (header, data) = bytes.split_at(ANSWER_HEADER_LEN);
            let header = AnswerHeader::decode(header).unwrap();
            assert_eq!((header.option, header.len as usize), (OptionKind::Go, data.len()));
            assert_eq!(OptionReply::decode(header.kind, data).as_ref(), Ok(&reply));
        }
        assert!(AnswerHeader::decode(&[0; ANSWER_HEADER_LEN]).is_err());
    }

    #[test]
    fn answers_that_are_none_are_refused() {
        for (kind, data) in [
            (0, &b""[..]),
            (1, b"x"),
            (2, b"\0\0\0\x05abcd"),
            (2, b"\0\0\0\x01\xff"),
            (3, b"\0"),
            (3, b"\0\0\0\0\0\0\0\0\0\0\0"),
            (3, b"\0\x03\0\0\0\x01\0\0\0\x01\0\0\0\x01\0"),
            (4, b"\0\0"),
            (5, b""),
        ] {
            assert!(OptionReply::decode(kind, data).is_err(), "{kind} {data:?}");
        }
        let long = [&[0, 0, 0, 1][..], &[b'a'; NAME_LEN_MAX + 1]].concat();
        assert!(OptionReply::decode(4, &long).is_err());
    }

    #[test]
    fn replies_are_read_as_they_were_written() {
        let simple = simple_reply(7, Status::Io);
        assert_eq!(ReplyHead::len_of([0x67, 0x44, 0x66, 0x98]), Ok(simple.len()));
        let head = ReplyHead::decode(&simple).unwrap();
        assert_eq!(head, ReplyHead::Simple { cookie: 7, status: Status::Io });
        for chunk in [
            Chunk::None,
            Chunk::Data { offset: 1 << 40, len: 512 },
            Chunk::Hole { offset: 3, len: 9 },
            Chunk::Status { context: 4, ranges: vec![(5, 3), (6, 0)] },
            Chunk::Error(Status::NoMemory, "none left".into()),
            Chunk::ErrorAt(Status::Other(99), String::new(), 77),
        ] {
            for is_last in [false, true] {
                let bytes = chunk.encode(11, is_last);
                let (head, fields) = bytes.split_at(CHUNK_HEADER_LEN);
                let magic = bytes[..4].try_into().unwrap();
                assert_eq!(ReplyHead::len_of(magic), Ok(CHUNK_HEADER_LEN));
                let ReplyHead::Chunk(head) = ReplyHead::decode(head).unwrap() else { panic!() };
                assert_eq!((head.is_last, head.cookie), (is_last, 11));
                assert_eq!(head.fields_len() as usize, fields.len());
                assert_eq!(Chunk::decode(&head, fields).as_ref(), Ok(&chunk));
                for len in 0..fields.len() {
                    assert!(Chunk::decode(&head, &fields[..len]).is_err(), "{chunk:?} {len}");
                }
            }
        }
        assert!(ReplyHead::len_of([0; 4]).is_err() && ReplyHead::decode(&[0; 20]).is_err());
    }

    #[test]
    fn chunks_that_are_none_are_refused() {
        let head = |kind, len| ChunkHead { is_last: true, kind, cookie: 0, len };
        for (kind, len, fields) in [
            (0, 1, &b"x"[..]),
            (1, 8, b"\0\0\0\0\0\0\0\0"),
            (1, 3, b"\0\0\0"),
            (2, 13, b"\0\0\0\0\0\0\0\0\0\0\0\0\0"),
            (3, 0, b""),
            (5, 4, b"\0\0\0\x01"),
            (5, 11, b"\0\0\0\x01\0\0\0\x01\0\0\0"),
            (1 << 15 | 1, 6, b"\0\0\0\x05\0\x01"),
        ] {
            assert!(Chunk::decode(&head(kind, len), fields).is_err(), "{kind} {fields:?}");
        }
    }
}
