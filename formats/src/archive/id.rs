//! What the file of an archive is called.

use std::fmt;
use std::str::FromStr;

use super::hex;
use crate::{FormatError, Problem};

/// The name of one file: 16 random bytes, drawn for each archive that is written and never used
/// again, also where an archive takes another's place. In text, 32 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ArchiveId(pub [u8; 16]);

impl ArchiveId {
    /// The first four bytes, which every frame carries so that a frame of another archive is
    /// never taken for one of this.
    pub fn tag(&self) -> [u8; 4] {
        let [a, b, c, d, ..] = self.0;
        [a, b, c, d]
    }

    /// The first eight hexadecimal digits: the tag as text, for the names of files.
    pub fn short(&self) -> String {
        format!("{:08x}", u32::from_be_bytes(self.tag()))
    }
}

impl fmt::Display for ArchiveId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex::write(f, &self.0)
    }
}

impl fmt::Debug for ArchiveId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ArchiveId({self})")
    }
}

impl FromStr for ArchiveId {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        hex::parse(text).map(Self).ok_or_else(|| {
            FormatError::new(
                0,
                "archive id",
                Problem::Invalid("an archive id is 32 hexadecimal digits".into()),
            )
        })
    }
}
