//! Bech32 (BIP 173) as age uses it: of any length, and all of one case.

use std::borrow::Cow;

const ALPHABET: &[u8; 32] = b"qpzry9x8gf2tvdw0s3jn54khce6mua7l";

/// Characters of a checksum.
const CHECK_LEN: usize = 6;

/// The longest text that is read: no key of ours has more.
const LEN_MAX: usize = 1024;

/// The text of `bytes`. It is upper case if the prefix is.
pub fn encode(prefix: &str, bytes: &[u8]) -> String {
    let lower = prefix.to_ascii_lowercase();
    let mut values = regroup(bytes.iter().map(|&byte| u32::from(byte)), 8, 5);
    let left = bytes.len() * 8 % 5;
    if left > 0 {
        let last = bytes.last().map_or(0, |byte| u32::from(*byte));
        values.push(((last << (5 - left)) & 31) as u8);
    }
    let mut sum = Sum::of(&lower);
    values.iter().for_each(|&value| sum.add(value));
    values.extend(sum.check());
    let digits = values.iter().filter_map(|&value| ALPHABET.get(usize::from(value)));
    let text = format!("{lower}1{}", digits.map(|&byte| char::from(byte)).collect::<String>());
    match prefix == lower {
        true => text,
        false => text.to_ascii_uppercase(),
    }
}

/// The bytes of a text with this prefix, or what is wrong with it.
pub fn decode(prefix: &str, text: &str) -> Result<Vec<u8>, Cow<'static, str>> {
    if text.len() > LEN_MAX {
        return Err("longer than any key".into());
    }
    let lower = text.to_ascii_lowercase();
    if *text != lower && *text != text.to_ascii_uppercase() {
        return Err("letters of both cases".into());
    }
    let (found, digits) = lower.rsplit_once('1').ok_or("no separator")?;
    if found != prefix.to_ascii_lowercase() {
        return Err(format!("it does not begin with {prefix}1").into());
    }
    let mut values = Vec::with_capacity(digits.len());
    for byte in digits.bytes() {
        let value = ALPHABET.iter().position(|&digit| digit == byte);
        values.push(value.ok_or("a character that bech32 does not have")? as u8);
    }
    let mut sum = Sum::of(found);
    values.iter().for_each(|&value| sum.add(value));
    let data = values.len().checked_sub(CHECK_LEN).and_then(|len| values.get(..len));
    let data = data.filter(|_| sum.is_whole()).ok_or("its checksum is not that of its text")?;
    let spare = data.len() * 5 % 8;
    let last = data.last().copied().unwrap_or_default();
    if spare >= 5 || u32::from(last) & ((1 << spare) - 1) != 0 {
        return Err("bits that belong to no byte".into());
    }
    Ok(regroup(data.iter().map(|&value| u32::from(value)), 5, 8))
}

/// The whole groups of `to` bits in these groups of `from` bits.
fn regroup(groups: impl Iterator<Item = u32>, from: u32, to: u32) -> Vec<u8> {
    let (mut bits, mut count, mut out) = (0_u32, 0, Vec::new());
    for group in groups {
        bits = (bits << from | group) & 0xffff;
        count += from;
        while count >= to {
            count -= to;
            out.push((bits >> count & ((1 << to) - 1)) as u8);
        }
    }
    out
}

/// The checksum of BIP 173.
struct Sum(u32);

impl Sum {
    fn of(prefix: &str) -> Self {
        let mut sum = Self(1);
        prefix.bytes().for_each(|byte| sum.add(byte >> 5));
        sum.add(0);
        prefix.bytes().for_each(|byte| sum.add(byte & 31));
        sum
    }

    fn add(&mut self, value: u8) {
        const GENERATOR: [u32; 5] =
            [0x3b6a_57b2, 0x2650_8e6d, 0x1ea1_19fa, 0x3d42_33dd, 0x2a14_62b3];
        let top = self.0 >> 25;
        self.0 = (self.0 & 0x01ff_ffff) << 5 ^ u32::from(value);
        for (bit, number) in GENERATOR.iter().enumerate() {
            if top >> bit & 1 == 1 {
                self.0 ^= number;
            }
        }
    }

    fn check(mut self) -> [u8; CHECK_LEN] {
        (0..CHECK_LEN).for_each(|_| self.add(0));
        let sum = self.0 ^ 1;
        std::array::from_fn(|at| (sum >> (5 * (CHECK_LEN - 1 - at)) & 31) as u8)
    }

    fn is_whole(&self) -> bool {
        self.0 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by `age-keygen`.
    const RECIPIENT: &str = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p";

    #[test]
    fn a_key_of_age_is_read_and_written() {
        let bytes = decode("age", RECIPIENT).unwrap();
        assert_eq!(bytes.len(), 32);
        assert_eq!(encode("age", &bytes), RECIPIENT);
        let secret = encode("AGE-SECRET-KEY-", &[7; 32]);
        assert!(secret.starts_with("AGE-SECRET-KEY-1"), "{secret}");
        assert_eq!(decode("AGE-SECRET-KEY-", &secret).unwrap(), [7; 32]);
        for len in 0..40 {
            let bytes: Vec<u8> = (0..len).map(|byte: u8| byte.wrapping_mul(37)).collect();
            assert_eq!(decode("x", &encode("x", &bytes)).unwrap(), bytes);
        }
    }

    #[test]
    fn every_wrong_character_is_noticed() {
        for at in 0..RECIPIENT.len() {
            let mut text = RECIPIENT.as_bytes().to_vec();
            text[at] = if text[at] == b'q' { b'p' } else { b'q' };
            let text = String::from_utf8(text).unwrap();
            assert!(text == RECIPIENT || decode("age", &text).is_err(), "{text}");
        }
        let mixed = RECIPIENT.replace('q', "Q");
        for bad in ["", "1", "age1", "age", &mixed, &RECIPIENT[..61], &"1".repeat(2000)] {
            assert!(decode("age", bad).is_err(), "{bad}");
        }
        assert!(decode("agf", RECIPIENT).is_err());
    }
}
