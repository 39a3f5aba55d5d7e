//! Base64 with the standard alphabet and without padding: one text for each sequence of bytes.

use std::borrow::Cow;

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The text of these bytes.
pub fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let of = |at: usize| u32::from(group.get(at).copied().unwrap_or_default());
        let bits = of(0) << 16 | of(1) << 8 | of(2);
        for digit in 0..=group.len() {
            let value = (bits >> (18 - 6 * digit)) & 63;
            text.push(ALPHABET.get(value as usize).map_or('A', |&byte| char::from(byte)));
        }
    }
    text
}

/// The bytes of a text, or what is wrong with it.
pub fn decode(text: &str) -> Result<Vec<u8>, Cow<'static, str>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for group in text.as_bytes().chunks(4) {
        let mut bits = 0_u32;
        for &byte in group {
            bits = bits << 6 | value(byte).ok_or("a character that base64 does not have")?;
        }
        let (count, spare) = match group.len() {
            4 => (3, 0),
            3 => (2, 2),
            2 => (1, 4),
            _ => return Err("base64 that ends in the middle of a byte".into()),
        };
        if bits & ((1 << spare) - 1) != 0 {
            return Err("base64 with bits that belong to no byte".into());
        }
        let [_, all @ ..] = (bits >> spare << (8 * (3 - count))).to_be_bytes();
        bytes.extend(all.iter().take(count));
    }
    Ok(bytes)
}

fn value(byte: u8) -> Option<u32> {
    Some(u32::from(match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vectors_of_the_specification_come_out() {
        let vectors = [
            ("", ""),
            ("f", "Zg"),
            ("fo", "Zm8"),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg"),
            ("fooba", "Zm9vYmE"),
            ("foobar", "Zm9vYmFy"),
        ];
        for (bytes, text) in vectors {
            assert_eq!(encode(bytes.as_bytes()), text);
            assert_eq!(decode(text).unwrap(), bytes.as_bytes());
        }
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(decode(&encode(&all)).unwrap(), all);
    }

    #[test]
    fn bytes_have_one_text() {
        for bad in ["Zg==", "Zh", "Zm9", "Z", "Zm 9", "Zm9v\n", "Zm-_", "é"] {
            assert!(decode(bad).is_err(), "{bad:?}");
        }
    }
}
