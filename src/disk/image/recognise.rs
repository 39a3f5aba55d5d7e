//! What a file looks like by its first and last bytes, where nothing says what it is.
//!
//! Any file can be a raw disk, so whatever is not recognised would be taken for one in silence: a
//! container of another program, and an image that has lost its header.

use qdelta_formats::{age, archive, qcow2};

use super::Format;
use super::layer::LayerFile;
use crate::base::error::{Error, ErrorKind, Result};

/// What a file looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// It has no bytes.
    Empty,
    /// It begins like a qcow2 image.
    Qcow2,
    /// It is something that no guest has for its disk as it is.
    Foreign(&'static Foreign),
    /// Its beginning is zero.
    Zeros,
    /// Nothing that is known here.
    Unknown,
}

/// A format that is not read here.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Foreign {
    /// What people call it, with its article.
    name: &'static str,
    kind: Kind,
    marks: &'static [Mark],
}

/// What one does with a file of a format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// It holds a disk, and QEMU converts it. QEMU also finds it out by itself, where an overlay
    /// does not name the format of its backing file.
    Image,
    /// Its bytes are an encrypted disk. QEMU finds that out by itself, too.
    Encrypted,
    /// It is compressed, and may hold anything.
    Compressed,
    /// It holds several files.
    Bundle,
    /// Its bytes are the disk, and perhaps something else was meant.
    Disk,
    /// It is one of our own archives.
    Archive,
}

/// Where bytes stand by which a format is known.
#[derive(Debug, PartialEq, Eq)]
enum Mark {
    /// From the file's beginning.
    At(usize, &'static [u8]),
    /// From the beginning of its last 512 bytes.
    Footer(&'static [u8]),
}

use Mark::{At, Footer};

/// Bytes that are read at either end of a file.
const EDGE: usize = 512;
/// Where ISO 9660 and UDF have the name of their first descriptor.
const ISO_AT: usize = 0x8001;

/// The format before qcow2 begins with the same four bytes.
const QCOW_1: Mark = At(0, b"QFI\xfb\0\0\0\x01");

const FOREIGN: &[Foreign] = &[
    image("a qcow image of version 1", &[QCOW_1]),
    image("a QED image", &[At(0, b"QED\0")]),
    image(
        "a VMDK image",
        &[
            At(0, b"KDMV"),
            At(0, b"COWD"),
            At(0, b"# Disk DescriptorFile"),
            At(0, b"\xbe\xba\xfe\xca\0\0\0\0"),
        ],
    ),
    image("a VHDX image", &[At(0, b"vhdxfile")]),
    image("a VHD image", &[At(0, b"conectix"), Footer(b"conectix")]),
    image("a VDI image", &[At(0x40, b"\x7f\x10\xda\xbe")]),
    image("a Parallels image", &[At(0, b"WithoutFreeSpace"), At(0, b"WithouFreSpacExt")]),
    image("a Bochs image", &[At(0, b"Bochs Virtual HD Image")]),
    image("a cloop image", &[At(0, b"#!/bin/sh\n#V2.0 Format\n")]),
    image("a DMG image", &[Footer(b"koly")]),
    known("a file of age", Kind::Encrypted, &[At(0, age::VERSION)]),
    known("a LUKS container", Kind::Encrypted, &[At(0, b"LUKS\xba\xbe")]),
    known("an ISO image", Kind::Disk, &[At(ISO_AT, b"CD001"), At(ISO_AT, b"BEA01")]),
    known("a gzip file", Kind::Compressed, &[At(0, b"\x1f\x8b\x08")]),
    known("an xz file", Kind::Compressed, &[At(0, b"\xfd7zXZ\0")]),
    known(
        "a bzip2 file",
        Kind::Compressed,
        &[At(4, b"\x31\x41\x59\x26\x53\x59"), At(4, b"\x17\x72\x45\x38\x50\x90")],
    ),
    known("a zstd file", Kind::Compressed, &[At(0, b"\x28\xb5\x2f\xfd")]),
    known("an lz4 file", Kind::Compressed, &[At(0, b"\x04\x22\x4d\x18")]),
    known("an lzop file", Kind::Compressed, &[At(0, b"\x89LZO\0\r\n\x1a\n")]),
    known("an Android sparse image", Kind::Compressed, &[At(0, b"\x3a\xff\x26\xed\x01\0")]),
    known("a ZIP archive", Kind::Bundle, &[At(0, b"PK\x03\x04")]),
    known("a 7z archive", Kind::Bundle, &[At(0, b"7z\xbc\xaf\x27\x1c")]),
    known("a tar archive (as an OVA is)", Kind::Bundle, &[At(257, b"ustar")]),
    known("a VMA archive", Kind::Bundle, &[At(0, b"VMA\0\0\0\0\x01")]),
    known("a WIM archive", Kind::Bundle, &[At(0, b"MSWIM\0\0\0")]),
    known("an archive of qdelta", Kind::Archive, &[At(0, archive::header::MAGIC)]),
];

const fn image(name: &'static str, marks: &'static [Mark]) -> Foreign {
    known(name, Kind::Image, marks)
}

const fn known(name: &'static str, kind: Kind, marks: &'static [Mark]) -> Foreign {
    Foreign { name, kind, marks }
}

/// The ends of a file, by which it is known.
struct Ends {
    first: Vec<u8>,
    iso: Vec<u8>,
    last: Vec<u8>,
}

impl Ends {
    fn read(file: &LayerFile) -> Result<Self> {
        let part = |offset: u64, len: usize| {
            let mut bytes = vec![0; len];
            file.read_padded(&mut bytes, offset)?;
            Ok::<_, Error>(bytes)
        };
        Ok(Self {
            first: part(0, EDGE)?,
            iso: part(ISO_AT as u64, 8)?,
            // The footer of a file that is no longer than that stands at its beginning.
            last: part(file.len.saturating_sub(EDGE as u64), EDGE)?,
        })
    }

    fn have(&self, mark: &Mark) -> bool {
        match mark {
            At(ISO_AT, bytes) => self.iso.starts_with(bytes),
            At(at, bytes) => self.first.get(*at..).is_some_and(|first| first.starts_with(bytes)),
            // The first program that wrote VHD images gave their footers 511 bytes.
            Footer(bytes) => [0, 1]
                .iter()
                .any(|at| self.last.get(*at..).is_some_and(|footer| footer.starts_with(bytes))),
        }
    }
}

/// What a file looks like.
///
/// # Errors
/// It can't be read.
pub(super) fn look(file: &LayerFile) -> Result<Look> {
    if file.len == 0 {
        return Ok(Look::Empty);
    }
    let ends = Ends::read(file)?;
    // Whatever the disk in a qcow2 image holds may stand at these places, too.
    if qcow2::has_magic(&ends.first) && !ends.have(&QCOW_1) {
        return Ok(Look::Qcow2);
    }
    let foreign = FOREIGN.iter().find(|it| it.marks.iter().any(|mark| ends.have(mark)));
    Ok(match foreign {
        Some(foreign) => Look::Foreign(foreign),
        None if ends.first.iter().all(|byte| *byte == 0) => Look::Zeros,
        None => Look::Unknown,
    })
}

/// The format of an image that was given without one.
///
/// # Errors
/// It is nothing that a guest has for its disk as it is: only who gives it can know what is meant.
pub(super) fn format_of(file: &LayerFile) -> Result<Format> {
    let path = file.path.display();
    match look(file)? {
        Look::Qcow2 => Ok(Format::Qcow2),
        Look::Zeros | Look::Unknown => Ok(Format::Raw),
        Look::Empty => {
            let text = format!("{path} is empty, and no disk is");
            Err(Error::new(ErrorKind::Image, text)
                .advise("if a raw disk without a byte is meant, say so with --format raw"))
        }
        Look::Foreign(foreign) => {
            let text = format!("{path} looks like {}, and is no raw disk then", foreign.name);
            Err(Error::new(ErrorKind::Image, text).advise(foreign.kind.advice()))
        }
    }
}

/// The format of a backing file whose overlay does not say. QEMU would look at its first bytes;
/// so do we, but for formats that can't be read here, whose bytes would be taken for a raw disk.
///
/// A guest that could write to a raw disk can make it look like qcow2. What that could lead to
/// are files that the policy allows.
pub(super) fn format_below(file: &LayerFile) -> Result<Format> {
    match look(file)? {
        Look::Qcow2 => Ok(Format::Qcow2),
        // What QEMU does not know, either, is a raw disk for the guest.
        Look::Foreign(foreign) if matches!(foreign.kind, Kind::Image | Kind::Encrypted) => {
            let text = format!("its format is not named, and it looks like {}", foreign.name);
            Err(Error::new(ErrorKind::Image, text).advise(
                "name the format in the overlay with `qemu-img rebase -u -F FORMAT -b NAME IMAGE`",
            ))
        }
        _ => Ok(Format::Raw),
    }
}

/// Why a file is no qcow2 image, though it is said to be one; nothing if it begins like one.
///
/// # Errors
/// It can't be read.
pub(super) fn not_qcow2(file: &LayerFile) -> Result<Option<Error>> {
    let mut magic = [0; qcow2::MAGIC.len()];
    file.read_padded(&mut magic, 0)?;
    if qcow2::has_magic(&magic) {
        return Ok(None);
    }
    let why = match look(file)? {
        Look::Empty => "it is empty".to_owned(),
        Look::Zeros => "it begins with zeros".to_owned(),
        Look::Foreign(foreign) => format!("it looks like {}", foreign.name),
        Look::Qcow2 | Look::Unknown => "it does not begin like one".to_owned(),
    };
    let text = format!("{} is no qcow2 image", file.path.display());
    Ok(Some(Error::new(ErrorKind::Image, text).because(why).advise(
        "if it is damaged, restore it; if it has another format, correct what says that it is qcow2",
    )))
}

impl Look {
    /// What a file that is read as raw may be in truth, if it was converted.
    pub(super) fn as_container(self) -> Option<&'static str> {
        match self {
            Self::Qcow2 => Some("a qcow2 image"),
            Self::Foreign(foreign) if foreign.kind == Kind::Image => Some(foreign.name),
            _ => None,
        }
    }
}

impl Kind {
    fn advice(self) -> &'static str {
        match self {
            Self::Image => {
                "convert it first (qemu-img convert -O qcow2); or take the file's own bytes for the \
                 disk: --format raw, or --as-file in a backup"
            }
            Self::Compressed => {
                "decompress it first; or take the file's own bytes for the disk: --format raw, or \
                 --as-file in a backup"
            }
            Self::Bundle => {
                "unpack it first; or take the file's own bytes for the disk: --format raw, or \
                 --as-file in a backup"
            }
            Self::Disk | Self::Encrypted => {
                "if its bytes are the disk, say so with --format raw (or --as-file in a backup)"
            }
            Self::Archive => {
                "qdelta replay makes a disk of archives; to take the file's own bytes for one, give \
                 --format raw"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use super::*;
    use crate::disk::image::extent::FileIndex;
    use crate::disk::io::{FileStore, ReadAt};

    fn file(content: &[u8]) -> LayerFile {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        let path = std::path::Path::new("image");
        let store: Arc<dyn ReadAt> = Arc::new(FileStore::new(file, path));
        let (index, len) = (FileIndex(0), content.len() as u64);
        LayerFile { store, index, path: path.into(), len, allocated: None }
    }

    /// A file of 64 KiB of one byte with these others in it.
    fn with(at: usize, bytes: &[u8]) -> LayerFile {
        let mut content = vec![0x55; 64 << 10];
        content[at..at + bytes.len()].copy_from_slice(bytes);
        file(&content)
    }

    #[test]
    fn every_mark_of_every_format_is_known() {
        for foreign in FOREIGN {
            for mark in foreign.marks {
                let file = match mark {
                    At(at, bytes) => with(*at, bytes),
                    Footer(bytes) => with((64 << 10) - EDGE, bytes),
                };
                assert_eq!(look(&file).unwrap(), Look::Foreign(foreign), "{mark:?}");
                let error = format_of(&file).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Image);
                assert!(error.chain().contains(foreign.name), "{}", error.chain());
                assert!(error.advice().unwrap().contains("--format raw"), "{foreign:?}");
            }
        }
        assert_eq!(
            format_of(&with((64 << 10) - EDGE + 1, b"conectix")).unwrap_err().kind(),
            ErrorKind::Image
        );
    }

    /// A guest has VHD images and CDs on its disk like other files. Where they stand in its qcow2 image,
    /// chance says.
    #[test]
    fn what_a_qcow2_image_holds_says_nothing() {
        for mark in FOREIGN.iter().flat_map(|it| it.marks) {
            let (at, bytes) = match mark {
                At(at, bytes) if *at >= 8 => (*at, bytes),
                Footer(bytes) => ((64 << 10) - EDGE, bytes),
                At(..) => continue,
            };
            let mut content = vec![0x55; 64 << 10];
            content[at..at + bytes.len()].copy_from_slice(bytes);
            content[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
            assert_eq!(format_of(&file(&content)).unwrap(), Format::Qcow2, "{mark:?}");
        }
    }

    #[test]
    fn a_disk_is_raw_unless_it_looks_like_something_else() {
        assert_eq!(format_of(&with(0, b"\xeb\x63\x90")).unwrap(), Format::Raw);
        assert_eq!(format_of(&file(&[0; 100])).unwrap(), Format::Raw);
        assert_eq!(format_of(&file(b"x")).unwrap(), Format::Raw);
        let empty = format_of(&file(b"")).unwrap_err();
        assert!(empty.chain().contains("is empty"), "{}", empty.chain());
    }

    #[test]
    fn why_an_image_is_no_qcow2_is_said() {
        for (content, why) in [
            (&b""[..], "it is empty"),
            (&[0; 4096], "it begins with zeros"),
            (b"KDMV and so on", "it looks like a VMDK image"),
            (b"x", "it does not begin like one"),
        ] {
            let error = not_qcow2(&file(content)).unwrap().unwrap();
            assert!(error.chain().ends_with(why), "{}", error.chain());
        }
        assert!(not_qcow2(&file(b"QFI\xfb\0\0\0\x03")).unwrap().is_none());
    }

    /// QEMU takes a backing file for a raw disk if it does not know its format: so do we.
    #[test]
    fn a_backing_file_is_what_qemu_takes_it_for() {
        assert_eq!(format_below(&with(ISO_AT, b"CD001")).unwrap(), Format::Raw);
        assert_eq!(format_below(&with(0, b"\x1f\x8b\x08")).unwrap(), Format::Raw);
        assert_eq!(format_below(&file(b"")).unwrap(), Format::Raw);
        for bytes in [&b"KDMV"[..], b"LUKS\xba\xbe", b"vhdxfile"] {
            assert_eq!(format_below(&with(0, bytes)).unwrap_err().kind(), ErrorKind::Image);
        }
    }
}
