//! Files of `age`, version 1, as C2SP's `age.md` defines them: the header, the pieces of the payload, and
//! the text of keys. No cryptography is here: whoever calls computes what a field must hold.
//!
//! A file is a text header, 16 bytes of nonce, and the payload in pieces of 64 KiB, each sealed with a tag
//! of its own. So a file can be read at any place, and its length says how long its content is.

pub mod base64;
pub mod bech32;
mod header;
mod payload;

pub use header::{HEADER_LEN_MAX, Header, MAC_LEN, Stanza, VERSION};
pub use payload::{CHUNK_LEN, NONCE_LEN, Payload, TAG_LEN, chunk_nonce, sealed_len};

/// Length of the key of a file, in bytes.
pub const FILE_KEY_LEN: usize = 16;

/// How the text of a recipient begins, before its `1`.
pub const RECIPIENT_PREFIX: &str = "age";

/// How the text of an identity begins, before its `1`.
pub const IDENTITY_PREFIX: &str = "AGE-SECRET-KEY-";
