//! Headers of an archive, read back: those that [`super::Entry`] writes, and what other programs write in the form
//! of POSIX. Files with holes, and the long names of old GNU tar, are refused.

use super::{BLOCK, Kind};
use crate::error::{FormatError, Problem};

/// The longest records before a header: a path and the target of a link, and what nobody needs here.
pub const RECORDS_MAX: u64 = 64 << 10;

/// What an archive says of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The path: any bytes.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// The target of a link.
    pub target: Vec<u8>,
    /// Permissions: 12 bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of content behind the header.
    pub size: u64,
    /// Last change of the content: seconds since 1970, and billionths of a second.
    pub modified: (i64, u32),
}

/// What a block between contents is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Block {
    /// The archive ends.
    End,
    /// So many bytes of records follow, which belong to the next header ([`Headers::records`]).
    Records(u64),
    /// The header of a file.
    File(Header),
}

/// Reads headers, and keeps the records that belong to the next one.
#[derive(Debug, Default)]
pub struct Headers {
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    uid: Option<u32>,
    gid: Option<u32>,
    size: Option<u64>,
    modified: Option<(i64, u32)>,
}

impl Headers {
    /// Reads a block that is no content.
    ///
    /// # Errors
    /// It is no header, or one of a form that is not read here.
    pub fn read(&mut self, block: &[u8]) -> Result<Block, FormatError> {
        let block: &[u8; BLOCK] = block.try_into().map_err(|_| {
            let available = block.len() as u64;
            FormatError::new(0, "header", Problem::Truncated { needed: BLOCK as u64, available })
        })?;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(Block::End);
        }
        check_sum(block)?;
        if field(block, 257, 5) != b"ustar" {
            return Err(FormatError::new(257, "magic", Problem::BadMagic("tar")));
        }
        let size = number(block, 124, 12, "size")?;
        let kind = match field(block, 156, 1) {
            [b'x'] if size <= RECORDS_MAX => return Ok(Block::Records(size)),
            [b'x'] => {
                let problem = Problem::OutOfRange { value: size, min: 0, max: RECORDS_MAX };
                return Err(FormatError::new(124, "size of records", problem));
            }
            [b'0' | 0] => Kind::File,
            [b'2'] => Kind::Link,
            [b'3'] => Kind::CharacterDevice,
            [b'4'] => Kind::BlockDevice,
            [b'5'] => Kind::Folder,
            [b'6'] => Kind::Fifo,
            other => {
                let text = format!("entries of type {:?}", String::from_utf8_lossy(other));
                return Err(FormatError::new(156, "typeflag", Problem::Unsupported(text)));
            }
        };
        let own = std::mem::take(self);
        let path = own.path.unwrap_or_else(|| {
            let (prefix, name) = (text(block, 345, 155), text(block, 0, 100));
            match prefix.is_empty() {
                true => name.to_vec(),
                false => [prefix, b"/", name].concat(),
            }
        });
        let target = own.target.unwrap_or_else(|| text(block, 157, 100).to_vec());
        let seconds = number(block, 136, 12, "mtime")?;
        let own_number = |own: Option<u32>, at, name| match own {
            Some(number) => Ok(number),
            None => number(block, at, 8, name).map(|number| number as u32),
        };
        let size = own.size.unwrap_or(size);
        Ok(Block::File(Header {
            path,
            kind,
            target: if kind == Kind::Link { target } else { Vec::new() },
            mode: (number(block, 100, 8, "mode")? & 0o7777) as u16,
            uid: own_number(own.uid, 108, "uid")?,
            gid: own_number(own.gid, 116, "gid")?,
            size: if kind == Kind::File { size } else { 0 },
            modified: own.modified.unwrap_or((i64::try_from(seconds).unwrap_or_default(), 0)),
        }))
    }

    /// Takes the records that belong to the next header.
    ///
    /// # Errors
    /// They are no records; or the file has holes.
    pub fn records(&mut self, mut bytes: &[u8]) -> Result<(), FormatError> {
        let wrong = || FormatError::new(0, "record", Problem::Invalid("it is none".into()));
        while !bytes.is_empty() {
            let space = bytes.iter().position(|byte| *byte == b' ').ok_or_else(wrong)?;
            let digits = bytes.get(..space).unwrap_or_default();
            let len: usize = parse(digits).ok_or_else(wrong)?;
            let record = bytes.get(space + 1..len).ok_or_else(wrong)?;
            let record = record.strip_suffix(b"\n").ok_or_else(wrong)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(wrong)?;
            let (key, value) = record.split_at(equals);
            self.record(key, value.get(1..).unwrap_or_default()).ok_or_else(wrong)?;
            if key.starts_with(b"GNU.sparse.") {
                let problem = Problem::Unsupported("files with holes".to_owned());
                return Err(FormatError::new(0, "record", problem));
            }
            bytes = bytes.get(len..).unwrap_or_default();
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.target = Some(value.to_vec()),
            b"uid" => self.uid = Some(parse(value)?),
            b"gid" => self.gid = Some(parse(value)?),
            b"size" => self.size = Some(parse(value)?),
            b"mtime" => self.modified = Some(time(value)?),
            _ => {}
        }
        Some(())
    }
}

fn field(block: &[u8; BLOCK], at: usize, len: usize) -> &[u8] {
    block.get(at..at + len).unwrap_or_default()
}

/// Text up to its first zero.
fn text(block: &[u8; BLOCK], at: usize, len: usize) -> &[u8] {
    field(block, at, len).split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A number in octal digits, with spaces or zeros around.
fn number(
    block: &[u8; BLOCK],
    at: usize,
    len: usize,
    name: &'static str,
) -> Result<u64, FormatError> {
    let digits = text(block, at, len).trim_ascii();
    let text = str::from_utf8(digits).ok().filter(|text| !text.starts_with('+'));
    match text {
        Some("") => Ok(0),
        text => text.and_then(|text| u64::from_str_radix(text, 8).ok()).ok_or_else(|| {
            FormatError::new(at as u64, name, Problem::Invalid("it is no octal number".into()))
        }),
    }
}

/// The sum of all bytes of a header, in which the sum itself counts as spaces.
fn check_sum(block: &[u8; BLOCK]) -> Result<(), FormatError> {
    let own = |index: usize| (148..156).contains(&index);
    let bytes = block.iter().enumerate();
    let sum = bytes.map(|(index, byte)| if own(index) { 32 } else { u32::from(*byte) }).sum();
    let stored = number(block, 148, 8, "chksum")?;
    match u32::try_from(stored) {
        Ok(stored) if stored == sum => Ok(()),
        _ => {
            let problem = Problem::Checksum { stored: stored as u32, computed: sum };
            Err(FormatError::new(148, "chksum", problem))
        }
    }
}

fn parse<T: std::str::FromStr>(bytes: &[u8]) -> Option<T> {
    let text = str::from_utf8(bytes).ok().filter(|text| !text.starts_with('+'))?;
    text.parse().ok()
}

/// A time in decimal, whose fraction counts forward, also before 1970.
fn time(bytes: &[u8]) -> Option<(i64, u32)> {
    let text = str::from_utf8(bytes).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let is_negative = whole.starts_with('-');
    let whole: i64 = parse(whole.as_bytes())?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    match is_negative && nanoseconds > 0 {
        true => Some((whole.checked_sub(1)?, 1_000_000_000 - nanoseconds)),
        false => Some((whole, nanoseconds)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::tar::Entry;

    /// What is read back of an entry that is written.
    fn again(entry: &Entry<'_>) -> Header {
        let bytes = entry.headers();
        let mut headers = Headers::default();
        let mut blocks = bytes.chunks(BLOCK);
        loop {
            match headers.read(blocks.next().unwrap()).unwrap() {
                Block::End => panic!("no header"),
                Block::File(header) => return header,
                Block::Records(len) => {
                    let count = (len as usize).div_ceil(BLOCK);
                    let records: Vec<u8> = blocks.by_ref().take(count).flatten().copied().collect();
                    headers.records(&records[..len as usize]).unwrap();
                }
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            path in vec(1u8..=255, 1..300),
            target in vec(1u8..=255, 1..300),
            is_link in any::<bool>(),
            mode in 0u16..=0o7777,
            (uid, gid, size) in any::<(u32, u32, u64)>(),
            modified in (any::<i32>(), 0u32..1_000_000_000),
        ) {
            let (kind, target) = match is_link {
                true => (Kind::Link, target),
                false => (Kind::File, Vec::new()),
            };
            let size = if is_link { 0 } else { size };
            let modified = (i64::from(modified.0), modified.1);
            let entry = Entry {
                path: &path, kind, target: &target, mode, uid, gid, size, modified,
                accessed: None, device: (0, 0), attributes: &[], sparse: None,
            };
            let header = Header { path: path.clone(), kind, target: target.clone(), mode, uid, gid, size, modified };
            prop_assert_eq!(again(&entry), header);
        }

        #[test]
        fn no_bytes_make_it_panic(block in vec(any::<u8>(), BLOCK), records in vec(any::<u8>(), 0..200)) {
            let mut headers = Headers::default();
            let _ = headers.read(&block);
            let _ = headers.records(&records);
        }
    }

    #[test]
    fn what_is_not_read_here_is_refused() {
        let entry = Entry {
            path: b"a",
            kind: Kind::HardLink,
            target: b"b",
            mode: 0o644,
            uid: 0,
            gid: 0,
            size: 0,
            modified: (0, 0),
            accessed: None,
            device: (0, 0),
            attributes: &[],
            sparse: None,
        };
        let mut bytes = entry.headers();
        let refused = |bytes: &[u8]| Headers::default().read(bytes).unwrap_err().to_string();
        assert!(refused(&bytes).contains("entries of type"));
        bytes[0] = b'z';
        assert!(refused(&bytes).contains("checksum"));
        assert!(refused(&bytes[..100]).contains("512 bytes are needed"));
        let mut headers = Headers::default();
        for records in
            [&b"22 GNU.sparse.major=1\n"[..], b"x a=b\n", b"99 a=b\n", b"0 a=b\n", b"8 uid=x\n"]
        {
            assert!(headers.records(records).is_err(), "{}", String::from_utf8_lossy(records));
        }
    }
}
