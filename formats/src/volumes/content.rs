//! What a volume holds, by its magic bytes.

use std::fmt;

/// What a volume holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Content {
    /// ext2, ext3 or ext4.
    Ext,
    /// FAT12, FAT16 or FAT32.
    Fat,
    /// NTFS.
    Ntfs,
    /// XFS.
    Xfs,
    /// Btrfs.
    Btrfs,
    /// exFAT.
    ExFat,
    /// F2FS.
    F2fs,
    /// ReFS.
    Refs,
    /// SquashFS.
    Squashfs,
    /// EROFS.
    Erofs,
    /// A CD's filesystem.
    Iso9660,
    /// An archive of tar, as the configuration of a host is kept.
    Tar,
    /// Swap space.
    Swap,
    /// A container of LUKS, 1 or 2.
    Luks,
    /// A volume that Windows has encrypted.
    BitLocker,
    /// A physical volume of LVM2.
    LvmMember,
    /// A member of a RAID of Linux.
    RaidMember,
    /// Nothing that is known here.
    Unknown,
}

/// Where the magic bytes lie, and what they stand for. The first that fits counts.
const MARKS: &[(usize, &[u8], Content)] = &[
    (0, b"LUKS\xba\xbe", Content::Luks),
    (0, b"XFSB", Content::Xfs),
    (3, b"NTFS    ", Content::Ntfs),
    (3, b"EXFAT   ", Content::ExFat),
    (3, b"-FVE-FS-", Content::BitLocker),
    (3, b"ReFS\0\0\0\0", Content::Refs),
    (0, b"hsqs", Content::Squashfs),
    (24, b"LVM2 001", Content::LvmMember),
    (512 + 24, b"LVM2 001", Content::LvmMember),
    (1024 + 24, b"LVM2 001", Content::LvmMember),
    (1536 + 24, b"LVM2 001", Content::LvmMember),
    (0, b"\xfc\x4e\x2b\xa9", Content::RaidMember),
    (4096, b"\xfc\x4e\x2b\xa9", Content::RaidMember),
    (4096 - 10, b"SWAPSPACE2", Content::Swap),
    (65536 - 10, b"SWAPSPACE2", Content::Swap),
    (0x10040, b"_BHRfS_M", Content::Btrfs),
    (1024 + 56, b"\x53\xef", Content::Ext),
    (1024, b"\x10\x20\xf5\xf2", Content::F2fs),
    (1024, b"\xe2\xe1\xf5\xe0", Content::Erofs),
    (0x8001, b"CD001", Content::Iso9660),
    (257, b"ustar", Content::Tar),
];

/// Bytes at which ranges must be known for [`Content::of`]: offset and length.
pub const WANTED: [(usize, usize); 3] = [(0, 8192), (0x8000, 16), (65536 - 16, 0x60)];
/// Bytes of a volume's beginning that [`Content::of`] looks at.
pub const LEN: usize = 65536 - 16 + 0x60;

impl Content {
    /// What a volume holds that begins with `bytes`: [`LEN`] of them, or all of a shorter volume. Those
    /// outside [`WANTED`] may be zero.
    pub fn of(bytes: &[u8]) -> Self {
        let found = MARKS.iter().find(|(at, magic, _)| {
            at.checked_add(magic.len()).and_then(|end| bytes.get(*at..end)) == Some(*magic)
        });
        match found {
            Some((_, _, content)) => *content,
            None if is_fat(bytes) => Self::Fat,
            None => Self::Unknown,
        }
    }

    /// Its name in one word, as tools and JSON have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext => "ext",
            Self::Fat => "fat",
            Self::Ntfs => "ntfs",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::ExFat => "exfat",
            Self::F2fs => "f2fs",
            Self::Refs => "refs",
            Self::Squashfs => "squashfs",
            Self::Erofs => "erofs",
            Self::Iso9660 => "iso9660",
            Self::Tar => "tar",
            Self::Swap => "swap",
            Self::Luks => "luks",
            Self::BitLocker => "bitlocker",
            Self::LvmMember => "lvm-member",
            Self::RaidMember => "raid-member",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A FAT has no magic bytes of its own: its parameters must make sense together.
fn is_fat(bytes: &[u8]) -> bool {
    crate::filesystems::fat::Parameters::parse(bytes).is_ok()
}
