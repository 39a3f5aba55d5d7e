//! The network block device protocol (NBD), both halves: what clients send and what servers answer, from
//! bytes to checked values and back.
//!
//! Fixed newstyle negotiation only. Numbers are big-endian. The names are those of the protocol's
//! specification (`proto.md` of the NetworkBlockDevice project).

mod answers;
mod handshake;
mod reply;
mod request;
mod uri;

pub use answers::{
    ANSWER_HEADER_LEN, AnswerHeader, CHUNK_HEADER_LEN, ChunkHead, Greeting, REPLY_MAGIC_LEN,
    ReplyHead,
};
pub use handshake::{
    ALLOCATION, CLIENT_FLAGS_LEN, Choice, ClientFlags, DIRTY_BITMAP, GREETING_LEN, Info,
    META_ALLOCATION, MetaQuery, OPTION_HEADER_LEN, OPTION_LEN_MAX, OptionHeader, OptionKind,
    OptionReply, export_answer, greeting,
};
pub use reply::{
    Chunk, SIMPLE_REPLY_LEN, STATE_DIRTY, STATE_HOLE, STATE_ZERO, Status, simple_reply,
};
pub use request::{Command, CommandFlags, REQUEST_LEN, Request};
pub use uri::{Place, Uri, tls_uri, unix_uri};

/// The longest name of a bitmap of QEMU's, in bytes.
pub const BITMAP_NAME_LEN_MAX: usize = 1023;

/// Whether a bitmap of QEMU's can be called so.
pub fn is_bitmap_name(name: &str) -> bool {
    (1..=BITMAP_NAME_LEN_MAX).contains(&name.len()) && !name.contains(char::is_control)
}

/// The longest name of an export, in bytes.
pub const NAME_LEN_MAX: usize = 4096;

/// The most bytes that a client may read or write in one request.
pub const REQUEST_BYTES_MAX: u32 = 32 << 20;

/// What an export is and can do, one bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExportFlags(u16);

impl ExportFlags {
    /// Of every export: the flags mean something, whole reads (`DF`) and prefetching are understood.
    pub const BASE: Self = Self(1 | 1 << 7 | 1 << 10);
    /// None.
    pub const NONE: Self = Self(0);
    /// Nothing can be written.
    pub const READ_ONLY: Self = Self(1 << 1);
    /// `FLUSH`, `FUA`, `TRIM` and `WRITE_ZEROES` are understood.
    pub const WRITABLE: Self = Self(1 << 2 | 1 << 3 | 1 << 5 | 1 << 6);
    /// A client may use several connections as if they were one.
    pub const MULTI_CONN: Self = Self(1 << 8);

    /// These flags and others.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of these flags are set.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The flags as a number.
    pub const fn bits(self) -> u16 {
        self.0
    }
}

/// As much of a text as fits into `max` bytes.
fn bounded(text: &str, max: usize) -> &str {
    let ends = (0..=max.min(text.len())).rev();
    let end = ends.into_iter().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn texts() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![Just(b"base:".to_vec()), Just(b"base:allocation".to_vec()), any::<Vec<u8>>()]
    }

    proptest! {
        /// What clients send is anything; what they mean comes back as it was sent.
        #[test]
        fn whatever_is_sent_is_refused_or_means_what_it_says(bytes: Vec<u8>, cut in 0_usize..40) {
            for magic in [&b""[..], b"IHAVEOPT", b"\x25\x60\x95\x13"] {
                let bytes = [magic, &bytes].concat();
                let bytes = bytes.get(..cut.max(8)).unwrap_or(&bytes);
                if let Ok(header) = OptionHeader::decode(bytes) {
                    prop_assert_eq!(&header.encode()[..], &bytes[..OPTION_HEADER_LEN]);
                }
                if let Ok(request) = Request::decode(bytes) {
                    prop_assert_eq!(&request.encode()[..], &bytes[..REQUEST_LEN]);
                    let _ = request.is_within(u64::MAX);
                }
                if let Ok(choice) = Choice::decode(bytes) {
                    prop_assert_eq!(choice.encode(), bytes);
                }
                if let Ok(query) = MetaQuery::decode(bytes) {
                    prop_assert_eq!(query.encode(), bytes);
                }
                let _ = (Choice::decode_name(bytes), ClientFlags::decode(bytes));
            }
        }

        #[test]
        fn options_are_read_as_they_were_written(
            name in ".{0,300}",
            wanted: Vec<u16>,
            queries in proptest::collection::vec(texts(), 0..20),
            text in ".{0,9000}",
        ) {
            let choice = Choice { name: name.clone(), wanted };
            prop_assert_eq!(Choice::decode(&choice.encode()), Ok(choice));
            let query = MetaQuery { name, queries };
            prop_assert_eq!(MetaQuery::decode(&query.encode()), Ok(query.clone()));
            let reply = OptionReply::Invalid(text).encode(OptionKind::Go);
            let len = u32::from_be_bytes(reply[16..20].try_into().unwrap()) as usize;
            prop_assert!(len == reply.len() - 20 && len <= NAME_LEN_MAX);
            prop_assert!(std::str::from_utf8(&reply[20..]).is_ok());
        }
    }
}
