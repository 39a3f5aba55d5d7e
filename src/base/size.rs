//! Sizes as people write them.

use crate::base::error::{Error, ErrorKind, Result};

/// What people write for a size: `65536`, `64K`, `64KiB`, `1M`. Units are powers of 1024, as in
/// QEMU's tools.
///
/// # Errors
/// [`ErrorKind::Usage`]: it is no size, or one that no file has.
pub fn parse(text: &str) -> Result<u64> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim().to_ascii_lowercase();
    let unit = unit.strip_suffix("ib").or(unit.strip_suffix('b')).unwrap_or(&unit);
    let shift = ["", "k", "m", "g", "t", "p", "e"].iter().position(|name| *name == unit);
    number
        .parse::<u64>()
        .ok()
        .zip(shift)
        .and_then(|(number, shift)| number.checked_mul(1 << (10 * shift)))
        .ok_or_else(|| {
            Error::new(ErrorKind::Usage, format!("{text:?} is no size; write it like 64K or 1M"))
        })
}

/// What people write for so many bytes a second: a size, and some.
///
/// # Errors
/// As [`parse`]; it is 0.
pub fn parse_rate(text: &str) -> Result<u64> {
    match parse(text)? {
        0 => Err(Error::new(ErrorKind::Usage, "at 0 bytes a second nothing would pass")
            .advise("leave the limit out for none")),
        rate => Ok(rate),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_qemu_reads_them() {
        for (text, size) in [
            ("0", 0),
            ("65536", 65536),
            ("64K", 65536),
            ("64k", 65536),
            ("64KiB", 65536),
            ("64 KB", 65536),
            ("2M", 2 << 20),
            ("16T", 16 << 40),
            ("100B", 100),
        ] {
            assert_eq!(parse(text).unwrap(), size, "{text}");
        }
        for bad in ["", "K", "-1", "1.5M", "64X", "16E16", "99999999E", "1 2", "0x10", "+1"] {
            assert!(parse(bad).is_err(), "{bad:?} was taken for a size");
        }
    }
}
