//! What a client is answered: in one piece, or in chunks.

use std::ops::Range;

use super::{META_ALLOCATION, bounded};

/// Length of a simple reply in bytes, without what was read.
pub const SIMPLE_REPLY_LEN: usize = 16;

pub(super) const SIMPLE_MAGIC: u32 = 0x6744_6698;
pub(super) const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// The states of a range by `base:allocation`, one bit each: nothing is allocated for it.
pub const STATE_HOLE: u32 = 1;
/// It reads as zeros.
pub const STATE_ZERO: u32 = 2;
/// The state of a range by `qemu:dirty-bitmap:NAME`: it was written to.
pub const STATE_DIRTY: u32 = 1;

/// The longest text of an error, in bytes.
const TEXT_LEN_MAX: usize = 1024;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It is done.
    Done,
    /// Nothing can be written.
    NotPermitted,
    /// The bytes can't be had, or can't be written.
    Io,
    /// The server has no memory left.
    NoMemory,
    /// The request makes no sense.
    Invalid,
    /// There is no room left.
    NoSpace,
    /// The request is for too much.
    Overflow,
    /// The request is not known here.
    NotSupported,
    /// The server is about to stop.
    Shutdown,
    /// Something else, of this number.
    Other(u32),
}

impl Status {
    fn number(self) -> u32 {
        match self {
            Self::Done => 0,
            Self::NotPermitted => 1,
            Self::Io => 5,
            Self::NoMemory => 12,
            Self::Invalid => 22,
            Self::NoSpace => 28,
            Self::Overflow => 75,
            Self::NotSupported => 95,
            Self::Shutdown => 108,
            Self::Other(number) => number,
        }
    }

    /// The status of this number.
    pub fn of(number: u32) -> Self {
        match number {
            0 => Self::Done,
            1 => Self::NotPermitted,
            5 => Self::Io,
            12 => Self::NoMemory,
            22 => Self::Invalid,
            28 => Self::NoSpace,
            75 => Self::Overflow,
            95 => Self::NotSupported,
            108 => Self::Shutdown,
            other => Self::Other(other),
        }
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Done => "done",
            Self::NotPermitted => "not permitted",
            Self::Io => "input/output error",
            Self::NoMemory => "no memory left",
            Self::Invalid => "invalid request",
            Self::NoSpace => "no space left",
            Self::Overflow => "too much at once",
            Self::NotSupported => "not supported",
            Self::Shutdown => "the server is about to stop",
            Self::Other(number) => return write!(f, "error {number}"),
        })
    }
}

/// The whole reply to a request, or what stands before the bytes of one that has read.
pub fn simple_reply(cookie: u64, status: Status) -> [u8; SIMPLE_REPLY_LEN] {
    let mut bytes = [0; SIMPLE_REPLY_LEN];
    let fields = SIMPLE_MAGIC.to_be_bytes().into_iter().chain(status.number().to_be_bytes());
    let fields = fields.chain(cookie.to_be_bytes());
    bytes.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
    bytes
}

/// A piece of a structured reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chunk {
    /// Nothing: everything was said.
    None,
    /// So many bytes at an offset, which follow.
    Data {
        /// Where they are from.
        offset: u64,
        /// How many there are.
        len: u32,
    },
    /// So many zeros at an offset.
    Hole {
        /// Where they are from.
        offset: u64,
        /// How many there are.
        len: u32,
    },
    /// What neighbouring ranges are.
    Status {
        /// The number of the kind of metadata that tells.
        context: u32,
        /// How long each is, and its state.
        ranges: Vec<(u32, u32)>,
    },
    /// The request failed.
    Error(Status, String),
    /// The request failed at an offset.
    ErrorAt(Status, String, u64),
}

impl Chunk {
    /// What neighbouring ranges are by `base:allocation`: how long each is, and whether it is a hole of
    /// zeros.
    pub fn allocation(ranges: impl Iterator<Item = (u32, bool)>) -> Self {
        let state = |is_zero| if is_zero { STATE_HOLE | STATE_ZERO } else { 0 };
        let ranges = ranges.map(|(len, is_zero)| (len, state(is_zero))).collect();
        Self::Status { context: META_ALLOCATION, ranges }
    }

    /// The chunk as bytes, without those of [`Chunk::Data`]; `is_last` if no other follows.
    pub fn encode(&self, cookie: u64, is_last: bool) -> Vec<u8> {
        const ERROR: u16 = 1 << 15;
        let (kind, extra, fields) = match self {
            Self::None => (0, 0, Vec::new()),
            Self::Data { offset, len } => (1, *len, offset.to_be_bytes().to_vec()),
            Self::Hole { offset, len } => {
                (2, 0, [&offset.to_be_bytes()[..], &len.to_be_bytes()].concat())
            }
            Self::Status { context, ranges } => {
                let mut bytes = context.to_be_bytes().to_vec();
                for (len, state) in ranges {
                    bytes.extend_from_slice(&len.to_be_bytes());
                    bytes.extend_from_slice(&state.to_be_bytes());
                }
                (5, 0, bytes)
            }
            Self::Error(status, text) => (ERROR | 1, 0, error_bytes(*status, text)),
            Self::ErrorAt(status, text, offset) => {
                let bytes = error_bytes(*status, text);
                (ERROR | 2, 0, [&bytes[..], &offset.to_be_bytes()].concat())
            }
        };
        let mut bytes = CHUNK_MAGIC.to_be_bytes().to_vec();
        bytes.extend_from_slice(&u16::from(is_last).to_be_bytes());
        bytes.extend_from_slice(&u16::to_be_bytes(kind));
        bytes.extend_from_slice(&cookie.to_be_bytes());
        bytes.extend_from_slice(&(fields.len() as u32 + extra).to_be_bytes());
        bytes.extend_from_slice(&fields);
        bytes
    }

    /// A chunk for a range of the disk, which is shorter than 4 GiB: bytes that follow, or a hole.
    pub fn of(range: &Range<u64>, is_zero: bool) -> Self {
        let (offset, len) = (range.start, (range.end - range.start) as u32);
        if is_zero { Self::Hole { offset, len } } else { Self::Data { offset, len } }
    }
}

fn error_bytes(status: Status, text: &str) -> Vec<u8> {
    let text = bounded(text, TEXT_LEN_MAX);
    let mut bytes = status.number().to_be_bytes().to_vec();
    bytes.extend_from_slice(&(text.len() as u16).to_be_bytes());
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_those_of_the_specification() {
        assert_eq!(simple_reply(7, Status::Io), *b"\x67\x44\x66\x98\0\0\0\x05\0\0\0\0\0\0\0\x07");
        let head = b"\x66\x8e\x33\xef\0\x01";
        let encode = |chunk: Chunk| {
            let bytes = chunk.encode(7, true);
            assert_eq!(bytes[..6], *head);
            assert_eq!(bytes[8..16], 7_u64.to_be_bytes());
            assert_eq!(chunk.encode(7, false)[5], 0);
            (bytes[6..8].to_vec(), bytes[16..].to_vec())
        };
        assert_eq!(encode(Chunk::None), (b"\0\0".to_vec(), b"\0\0\0\0".to_vec()));
        let data = encode(Chunk::of(&(16..48), false));
        assert_eq!(data, (b"\0\x01".to_vec(), b"\0\0\0\x28\0\0\0\0\0\0\0\x10".to_vec()));
        let hole = encode(Chunk::of(&(16..48), true));
        assert_eq!(hole, (b"\0\x02".to_vec(), b"\0\0\0\x0c\0\0\0\0\0\0\0\x10\0\0\0\x20".to_vec()));
        let status = encode(Chunk::allocation([(5, true), (6, false)].into_iter()));
        let fields = b"\0\0\0\x14\0\0\0\x01\0\0\0\x05\0\0\0\x03\0\0\0\x06\0\0\0\0";
        assert_eq!(status, (b"\0\x05".to_vec(), fields.to_vec()));
        let error = encode(Chunk::ErrorAt(Status::Io, "ab".into(), 16));
        let fields = b"\0\0\0\x10\0\0\0\x05\0\x02ab\0\0\0\0\0\0\0\x10";
        assert_eq!(error, (b"\x80\x02".to_vec(), fields.to_vec()));
        let long = encode(Chunk::Error(Status::Io, "ü".repeat(5000)));
        assert_eq!(long.1.len(), 4 + 6 + TEXT_LEN_MAX);
    }
}
