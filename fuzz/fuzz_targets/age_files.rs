#![no_main]
//! Headers of files of age, and texts of keys: whoever can write to a repository can put them there. What is accepted
//! has one text alone, so written again it is the same.

use libfuzzer_sys::fuzz_target;
use qdelta_formats::age::{Header, IDENTITY_PREFIX, Payload, RECIPIENT_PREFIX, base64, bech32, sealed_len};

fuzz_target!(|data: &[u8]| {
    let Some((choice, rest)) = data.split_first() else { return };
    match choice % 4 {
        0 => header(&[b"age-encryption.org/v1\n-> ", rest].concat()),
        1 => header(rest),
        2 => {
            let text = String::from_utf8_lossy(rest);
            if let Ok(bytes) = base64::decode(&text) {
                assert_eq!(base64::encode(&bytes), text);
            }
            for prefix in [RECIPIENT_PREFIX, IDENTITY_PREFIX] {
                if let Ok(bytes) = bech32::decode(prefix, &text) {
                    assert_eq!(bech32::encode(prefix, &bytes).to_lowercase(), text.to_lowercase());
                }
            }
        }
        _ => {
            let Some((lens, _)) = rest.split_first_chunk::<16>() else { return };
            let (header, file) = lens.split_at(8);
            let number = |it: &[u8]| it.iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
            // No header is longer than what a reader takes.
            let (header, file) = (number(header) & 0xffff, number(file) >> 1);
            let Ok(payload) = Payload::new(header, file) else { return };
            assert_eq!(sealed_len(header, payload.len()), file);
            let last = payload.last_chunk();
            assert_eq!(payload.sealed(last..last + 1).end, file);
            assert_eq!(payload.content(last).end, payload.len());
        }
    }
});

/// A header that is accepted is the one text of what it says.
fn header(bytes: &[u8]) {
    if let Ok((header, len)) = Header::decode(bytes) {
        assert_eq!(header.encode(), &bytes[..len]);
    }
}
