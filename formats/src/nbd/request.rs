//! What a client asks for once it has an export.

use crate::fields::Big;
use crate::{FormatError, Problem};

/// Length of a request in bytes, without what is written.
pub const REQUEST_LEN: usize = 28;

const MAGIC: u32 = 0x2560_9513;

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Bytes are wanted.
    Read,
    /// Bytes follow, to be written.
    Write,
    /// Nothing more comes.
    Disconnect,
    /// What was written is to be on stable storage.
    Flush,
    /// Bytes are of no use any more.
    Trim,
    /// Bytes will be read soon.
    Cache,
    /// Zeros are to be written.
    WriteZeroes,
    /// What a range is: zero or not.
    BlockStatus,
    /// Something else.
    Unknown(u16),
}

impl Command {
    fn of(number: u16) -> Self {
        match number {
            0 => Self::Read,
            1 => Self::Write,
            2 => Self::Disconnect,
            3 => Self::Flush,
            4 => Self::Trim,
            5 => Self::Cache,
            6 => Self::WriteZeroes,
            7 => Self::BlockStatus,
            other => Self::Unknown(other),
        }
    }

    fn number(self) -> u16 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Disconnect => 2,
            Self::Flush => 3,
            Self::Trim => 4,
            Self::Cache => 5,
            Self::WriteZeroes => 6,
            Self::BlockStatus => 7,
            Self::Unknown(other) => other,
        }
    }
}

/// How a command is meant, one bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CommandFlags(pub u16);

impl CommandFlags {
    /// What is written is to be on stable storage before the reply.
    pub const FUA: Self = Self(1);
    /// Zeros that take room.
    pub const NO_HOLE: Self = Self(1 << 1);
    /// A read is answered in one piece.
    pub const DF: Self = Self(1 << 2);
    /// The status of one range alone.
    pub const REQ_ONE: Self = Self(1 << 3);

    /// Whether all of these flags are set.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether a flag is set that the command does not know.
    pub const fn is_odd_for(self, command: Command) -> bool {
        let known = match command {
            Command::Read => Self::DF.0,
            Command::Write | Command::Trim => Self::FUA.0,
            Command::WriteZeroes => Self::FUA.0 | Self::NO_HOLE.0,
            Command::BlockStatus => Self::REQ_ONE.0,
            _ => 0,
        };
        // FUA says nothing beside what is not written, and must be let pass.
        self.0 & !(known | Self::FUA.0) != 0
    }
}

/// A request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// How it is meant.
    pub flags: CommandFlags,
    /// What it is for.
    pub command: Command,
    /// By what the client recognises the reply.
    pub cookie: u64,
    /// Where, in bytes.
    pub offset: u64,
    /// How many bytes.
    pub len: u32,
}

impl Request {
    /// Reads a request.
    ///
    /// # Errors
    /// It does not begin with the magic bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let bytes = Big::new(bytes, 0);
        if bytes.u32(0, "request magic")? != MAGIC {
            return Err(bytes.error(0, "request magic", Problem::BadMagic("an NBD request")));
        }
        Ok(Self {
            flags: CommandFlags(bytes.u16(4, "command flags")?),
            command: Command::of(bytes.u16(6, "command")?),
            cookie: bytes.u64(8, "cookie")?,
            offset: bytes.u64(16, "offset")?,
            len: bytes.u32(24, "length")?,
        })
    }

    /// The request as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_be_bytes().to_vec();
        bytes.extend_from_slice(&self.flags.0.to_be_bytes());
        bytes.extend_from_slice(&self.command.number().to_be_bytes());
        bytes.extend_from_slice(&self.cookie.to_be_bytes());
        bytes.extend_from_slice(&self.offset.to_be_bytes());
        bytes.extend_from_slice(&self.len.to_be_bytes());
        bytes
    }

    /// Whether the range lies within a disk of `size` bytes.
    pub fn is_within(&self, size: u64) -> bool {
        self.offset.checked_add(self.len.into()).is_some_and(|end| end <= size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_as_it_was_written() {
        let bytes = b"\x25\x60\x95\x13\0\x04\0\0cookie!!\0\0\0\0\0\0\x10\0\0\0\x02\0";
        let request = Request::decode(bytes).unwrap();
        let expected = Request {
            flags: CommandFlags::DF,
            command: Command::Read,
            cookie: u64::from_be_bytes(*b"cookie!!"),
            offset: 4096,
            len: 512,
        };
        assert_eq!(request, expected);
        assert_eq!(request.encode(), bytes);
        assert!(request.is_within(4608) && !request.is_within(4607));
        assert!(!Request { offset: u64::MAX, ..request }.is_within(u64::MAX));
        assert!(!request.flags.is_odd_for(Command::Read));
        assert!(request.flags.is_odd_for(Command::Write));
        for len in 0..REQUEST_LEN {
            assert!(Request::decode(&bytes[..len]).is_err());
        }
        assert!(Request::decode(&[0; REQUEST_LEN]).is_err());
    }
}
