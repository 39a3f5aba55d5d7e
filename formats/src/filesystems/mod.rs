//! The structures of filesystems that guests have on their disks, to be read and never written. All of
//! it is written by guests, so nothing of it is believed.

pub mod ext;
pub mod fat;
pub mod ntfs;
pub mod superblock;

/// What kind of file it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
    /// A device of characters.
    CharacterDevice,
    /// A device of blocks.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

impl FileKind {
    /// The kind that the upper bits of a mode name.
    pub fn of_mode(mode: u16) -> Option<Self> {
        Some(match mode >> 12 {
            0o1 => Self::Fifo,
            0o2 => Self::CharacterDevice,
            0o4 => Self::Folder,
            0o6 => Self::BlockDevice,
            0o10 => Self::File,
            0o12 => Self::Link,
            0o14 => Self::Socket,
            _ => return None,
        })
    }
}

/// A moment since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Time {
    /// Seconds; fewer than none before 1970.
    pub seconds: i64,
    /// And so many billionths of a second.
    pub nanoseconds: u32,
}
