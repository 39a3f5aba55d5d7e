//! Files of `age`: written from front to back, and read at any place. Whatever an encrypted repository
//! holds is one, so that `age -d` opens it without this program.
//!
//! What the bytes are called stands in `formats/src/age`. Here is the cryptography, by OpenSSL.

mod crypt;
mod file;
mod keys;
mod reader;
mod writer;

pub use crypt::{Hmac, Wiped, derive, same, sha256_text};
pub use file::{FileKey, Opened, passphrase_steps};
pub use keys::{Identity, REPOSITORY_MARK, Recipient};
pub(crate) use reader::opening_of;
pub use reader::{Chunks, SealedReader, no_header, open_bytes};
pub use writer::{For, Sealer, seal_bytes};
