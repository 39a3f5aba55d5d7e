//! Entries of a tar archive in the form of POSIX (pax): a header of 512 bytes, before it another one with
//! what does not fit.

mod read;

pub use read::{Block, Header, Headers, RECORDS_MAX};

/// Bytes of a header, and the unit of everything in an archive.
pub const BLOCK: usize = 512;
/// Zeros that end an archive.
pub const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// What an entry is, as its header says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A regular file.
    File = b'0',
    /// Another name of an entry before.
    HardLink = b'1',
    /// A symbolic link.
    Link = b'2',
    /// A device of characters.
    CharacterDevice = b'3',
    /// A device of blocks.
    BlockDevice = b'4',
    /// A folder.
    Folder = b'5',
    /// A named pipe.
    Fifo = b'6',
}

/// What an archive holds of a file, but its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The path, without a slash before it.
    pub path: &'a [u8],
    /// What it is.
    pub kind: Kind,
    /// The target of a link.
    pub target: &'a [u8],
    /// Permissions.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes that follow the header.
    pub size: u64,
    /// Last change of the content: seconds since 1970, and billionths of a second.
    pub modified: (i64, u32),
    /// Last access, if it is known.
    pub accessed: Option<(i64, u32)>,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Extended attributes.
    pub attributes: &'a [(Vec<u8>, Vec<u8>)],
    /// Size of a file of which only pieces follow; their map comes first then ([`sparse_map`]).
    pub sparse: Option<u64>,
}

impl Entry<'_> {
    /// The bytes before the content: one header or two.
    pub fn headers(&self) -> Vec<u8> {
        let records = self.records();
        let mut out = Vec::new();
        if !records.is_empty() {
            let mut head = Fields::new(b"PaxHeaders/entry", b'x');
            head.number(124, 12, records.len() as u64);
            head.number(100, 8, 0o644);
            head.number(136, 12, 0);
            out.extend_from_slice(&head.finish());
            out.extend_from_slice(&records);
            pad(&mut out);
        }
        let mut head = Fields::new(self.path, self.kind as u8);
        head.text(157, 100, self.target);
        head.number(100, 8, self.mode.into());
        head.number(108, 8, self.uid.into());
        head.number(116, 8, self.gid.into());
        head.number(124, 12, self.size);
        head.number(136, 12, u64::try_from(self.modified.0).unwrap_or_default());
        if matches!(self.kind, Kind::CharacterDevice | Kind::BlockDevice) {
            head.number(329, 8, self.device.0.into());
            head.number(337, 8, self.device.1.into());
        }
        out.extend_from_slice(&head.finish());
        out
    }

    /// What the header has no room for.
    fn records(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let is_plain = |text: &[u8]| text.len() <= 100 && text.is_ascii();
        // Names are UTF-8 in this form, unless this says that they are any bytes.
        if [self.path, self.target].iter().any(|text| str::from_utf8(text).is_err()) {
            record(&mut out, b"hdrcharset", b"BINARY");
        }
        if let Some(size) = self.sparse {
            record(&mut out, b"GNU.sparse.major", b"1");
            record(&mut out, b"GNU.sparse.minor", b"0");
            record(&mut out, b"GNU.sparse.name", self.path);
            record(&mut out, b"GNU.sparse.realsize", size.to_string().as_bytes());
        } else if !is_plain(self.path) {
            record(&mut out, b"path", self.path);
        }
        if !is_plain(self.target) {
            record(&mut out, b"linkpath", self.target);
        }
        for (key, number, digits) in [
            (&b"uid"[..], u64::from(self.uid), 7),
            (b"gid", self.gid.into(), 7),
            (b"size", self.size, 11),
        ] {
            if !fits(number, digits) {
                record(&mut out, key, number.to_string().as_bytes());
            }
        }
        let (seconds, nanoseconds) = self.modified;
        let whole = u64::try_from(seconds).is_ok_and(|seconds| fits(seconds, 11));
        if nanoseconds != 0 || !whole {
            record(&mut out, b"mtime", time(self.modified).as_bytes());
        }
        if let Some(accessed) = self.accessed {
            record(&mut out, b"atime", time(accessed).as_bytes());
        }
        for (name, value) in self.attributes {
            // As GNU tar and libarchive write and read them.
            let mut key = b"SCHILY.xattr.".to_vec();
            for byte in name {
                match byte {
                    b'%' => key.extend_from_slice(b"%25"),
                    b'=' => key.extend_from_slice(b"%3D"),
                    byte => key.push(*byte),
                }
            }
            record(&mut out, &key, value);
        }
        out
    }
}

/// The map of a file of which only these pieces follow, each with its offset and length.
pub fn sparse_map(pieces: &[(u64, u64)]) -> Vec<u8> {
    let mut out = format!("{}\n", pieces.len()).into_bytes();
    for (offset, len) in pieces {
        out.extend_from_slice(format!("{offset}\n{len}\n").as_bytes());
    }
    pad(&mut out);
    out
}

/// Zeros that fill the last block of `len` bytes.
pub fn padding(len: u64) -> usize {
    (len.next_multiple_of(BLOCK as u64) - len) as usize
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(BLOCK), 0);
}

/// Whether a number fits into so many octal digits.
fn fits(number: u64, digits: u32) -> bool {
    number >> (3 * digits) == 0
}

/// A time in decimal: a fraction counts forward, also before 1970.
fn time((seconds, nanoseconds): (i64, u32)) -> String {
    let total = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    let sign = if total < 0 { "-" } else { "" };
    let total = total.unsigned_abs();
    let text = format!("{sign}{}.{:09}", total / 1_000_000_000, total % 1_000_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Adds a record, which begins with its own length.
fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    // A space, an equals sign and a line break.
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    out.extend_from_slice(len.to_string().as_bytes());
    for part in [b" ", key, b"=", value, b"\n"] {
        out.extend_from_slice(part);
    }
}

/// The fields of a header.
struct Fields([u8; BLOCK]);

impl Fields {
    fn new(name: &[u8], kind: u8) -> Self {
        let mut fields = Self([0; BLOCK]);
        fields.text(0, 100, name);
        fields.text(156, 1, &[kind]);
        fields.text(257, 8, b"ustar\x0000");
        fields
    }

    /// Writes text, as far as it fits.
    fn text(&mut self, at: usize, len: usize, text: &[u8]) {
        let place = self.0.get_mut(at..at + len).unwrap_or_default();
        place.iter_mut().zip(text).for_each(|(to, from)| *to = *from);
    }

    /// Writes a number in octal digits, or zero if it does not fit.
    fn number(&mut self, at: usize, len: usize, number: u64) {
        let digits = len - 1;
        let number = if fits(number, digits as u32) { number } else { 0 };
        self.text(at, len, format!("{number:0digits$o}\0").as_bytes());
    }

    fn finish(mut self) -> [u8; BLOCK] {
        self.text(148, 8, b"        ");
        let sum: u64 = self.0.iter().map(|byte| u64::from(*byte)).sum();
        self.text(148, 8, format!("{sum:06o}\0 ").as_bytes());
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_its_own_length() {
        for len in [0, 80, 88, 89, 90, 91, 985, 989, 990, 991] {
            let mut out = Vec::new();
            record(&mut out, b"key", &vec![b'v'; len]);
            let text = String::from_utf8(out.clone()).unwrap();
            assert_eq!(text.split(' ').next().unwrap().parse::<usize>().unwrap(), out.len());
        }
    }

    #[test]
    fn times_before_1970_have_their_fraction() {
        assert_eq!(time((-2, 500_000_000)), "-1.5");
        assert_eq!(time((10, 0)), "10");
        assert_eq!(time((0, 1)), "0.000000001");
        assert_eq!(time((100, 120_000_000)), "100.12");
    }
}
