//! What files and folders of an encrypted repository are called on disk.
//!
//! Each part of a name is encrypted on its own, bound to the folder that it is in. The same name always
//! gives the same text, so that a file is found without a table; and the text gives the name back.
//! The text is `iv ‖ name ⊕ stream` in base 32 with small letters, for filesystems that know one case:
//! the name is filled up with zeros to a multiple of 16 bytes, `iv` is the beginning of a code over folder and
//! name, and the stream is codes over `iv` and a counter.

use super::super::Name;
use crate::vault::age::Hmac;

const ALPHABET: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";

/// Names of these many lengths can't be told from each other.
const GRID: usize = 16;

/// Bytes of `iv`.
const IV_LEN: usize = 16;

/// The longest name of a part, in bytes: with what a storage puts around it, no filesystem finds it too long.
pub(super) const PART_LEN_MAX: usize = 128;

/// Encrypts names.
#[derive(Debug)]
pub(super) struct Names {
    iv: Hmac,
    stream: Hmac,
}

impl Names {
    pub(super) fn new(secret: &[u8; 32]) -> Self {
        let of = |what: &[u8]| Hmac::new(&Hmac::new(secret).of(&[b"names ", what]));
        Self { iv: of(b"iv"), stream: of(b"stream") }
    }

    /// The text of a part of a name in `folder`; none if the part is too long.
    pub(super) fn seal(&self, folder: &Name, part: &str) -> Option<String> {
        let len = part.len().next_multiple_of(GRID).max(GRID);
        if part.len() > PART_LEN_MAX || part.contains('\0') {
            return None;
        }
        let mut plain = part.as_bytes().to_vec();
        plain.resize(len, 0);
        let iv = self.iv_of(folder, part);
        self.mix(&iv, &mut plain);
        Some(encode(&[iv.as_slice(), &plain].concat()))
    }

    /// The part of a name in `folder` that has this text; none if it is the text of nothing there.
    pub(super) fn open(&self, folder: &Name, text: &str) -> Option<String> {
        let bytes = decode(text)?;
        let (iv, sealed) = bytes.split_first_chunk::<IV_LEN>()?;
        let mut plain = sealed.to_vec();
        self.mix(iv, &mut plain);
        let part = String::from_utf8(plain).ok()?;
        let part = part.trim_end_matches('\0');
        // One text alone is that of a name, so what else decodes to it is none.
        (self.seal(folder, part)? == text).then(|| part.to_owned())
    }

    fn iv_of(&self, folder: &Name, part: &str) -> [u8; IV_LEN] {
        // No name has a byte 0.
        let code = self.iv.of(&[folder.as_str().as_bytes(), &[0], part.as_bytes()]);
        code.first_chunk().copied().unwrap_or_default()
    }

    fn mix(&self, iv: &[u8; IV_LEN], bytes: &mut [u8]) {
        for (number, block) in (0_u32..).zip(bytes.chunks_mut(32)) {
            let stream = self.stream.of(&[iv, &number.to_be_bytes()]);
            block.iter_mut().zip(stream).for_each(|(byte, other)| *byte ^= other);
        }
    }
}

/// Base 32 with the alphabet of RFC 4648's `base32hex`, in small letters and without padding.
fn encode(bytes: &[u8]) -> String {
    let (mut bits, mut count, mut text) = (0_u32, 0, String::new());
    let mut digit = |value: u32| {
        text.push(ALPHABET.get((value & 31) as usize).map_or('0', |&byte| char::from(byte)));
    };
    for byte in bytes {
        bits = (bits << 8 | u32::from(*byte)) & 0xffff;
        count += 8;
        while count >= 5 {
            count -= 5;
            digit(bits >> count);
        }
    }
    if count > 0 {
        digit(bits << (5 - count));
    }
    text
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let (mut bits, mut count, mut bytes) = (0_u32, 0, Vec::new());
    for digit in text.bytes() {
        let value = ALPHABET.iter().position(|&it| it == digit)?;
        bits = (bits << 5 | value as u32) & 0xffff;
        count += 5;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count & 0xff) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_and_belong_to_their_folder() {
        let names = Names::new(&[7; 32]);
        let (one, other) = (Name::top().join("web"), Name::top().join("db"));
        let long = "n".repeat(PART_LEN_MAX);
        for part in ["a", "vda", "points", "20261122T153823.412Z-full-0a0a0a0a.qdelta", &long] {
            let text = names.seal(&one, part).unwrap();
            assert_eq!(names.open(&one, &text).as_deref(), Some(part));
            assert_eq!(names.seal(&one, part).as_deref(), Some(text.as_str()));
            assert_eq!(names.open(&other, &text), None, "{part} was moved");
            assert_eq!(Names::new(&[8; 32]).open(&one, &text), None);
            // What is staged has more around it.
            assert!(format!(".{text}.b3.partial").len() <= 255, "{text}");
            assert!(text.bytes().all(|byte| ALPHABET.contains(&byte)));
            for at in 0..text.len() {
                let mut bytes = text.clone().into_bytes();
                bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
                let changed = String::from_utf8(bytes).unwrap();
                assert!(changed == text || names.open(&one, &changed).is_none(), "{changed}");
            }
        }
        assert_eq!(names.seal(&one, &format!("{long}n")), None);
        for foreign in ["", "lost+found", "0", "points", &"0".repeat(52), &"v".repeat(300)] {
            assert_eq!(names.open(&one, foreign), None, "{foreign}");
        }
    }

    #[test]
    fn the_length_of_a_name_is_not_shown() {
        let names = Names::new(&[7; 32]);
        let len = |part: &str| names.seal(&Name::top(), part).unwrap().len();
        assert_eq!(len("a"), len("sixteen-letters-"));
        assert_eq!(
            len("20261122T153823.412Z-full-0a0a0a0a.qdelta"),
            len("20261122T153823.412Z-incremental-0a0a0a0a.qdelta")
        );
    }
}
