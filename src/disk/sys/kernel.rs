//! The kernel's other calls: memory, locks, holes.

use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// What [`look_at_output`] has seen. It is a fact of the process that nothing changes later.
static STDOUT_WAS_CLOSED: AtomicBool = AtomicBool::new(false);

/// Whether the descriptors that the process was started with were given out.
static INHERITED: AtomicBool = AtomicBool::new(false);

/// Has the C library call [`look_at_output`] before the runtime of Rust begins.
#[used]
// SAFETY: the section holds pointers to functions of this type, which are called once, before `main`.
#[unsafe(link_section = ".init_array")]
static LOOK_AT_OUTPUT: extern "C" fn() = look_at_output;

extern "C" fn look_at_output() {
    // SAFETY: F_GETFD takes no pointer, and a descriptor that is not open is what is asked for.
    let flags = unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) };
    STDOUT_WAS_CLOSED.store(flags == -1, Ordering::Relaxed);
}

/// Whether the program was started with its standard output closed. Rust's runtime opens `/dev/null` in
/// the place of a closed one. Many a daemon, and Python's `DEVNULL`, open it in just the same way for a
/// program whose output nobody wants, so later the two can't be told apart.
pub(crate) fn stdout_was_closed() -> bool {
    STDOUT_WAS_CLOSED.load(Ordering::Relaxed)
}

/// Anonymous memory. It starts at the beginning of a page, reads as zeros at first, and does not
/// move when the value does.
pub(crate) struct Memory(memmap2::MmapMut);

impl Memory {
    /// Maps `len` bytes. They cost nothing before they are touched.
    pub(crate) fn zeroed(len: usize) -> io::Result<Self> {
        memmap2::MmapMut::map_anon(len).map(Self)
    }

    /// Its first byte, without making a reference to what is there.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.0.as_mut_ptr()
    }
}

impl Deref for Memory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Memory {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

/// Makes the process that `command` starts end, by SIGKILL, when the thread that started it does.
pub(crate) fn die_with_parent(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;

    let parent = rustix::process::getpid();
    let set = move || {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        // Whoever started it may have died before.
        match rustix::process::getppid() == Some(parent) {
            true => Ok(()),
            false => Err(io::ErrorKind::BrokenPipe.into()),
        }
    };
    // SAFETY: between fork and exec only what is safe in a signal handler may be done. The closure
    // makes two system calls and takes no lock and no memory: its errors are plain numbers.
    unsafe { command.pre_exec(set) };
}

/// The descriptors that another program has opened for this one, as systemd does: so many, from the first
/// that is no standard stream on. None is given out twice; one that is not open is an error.
pub(crate) fn inherited_descriptors(count: u32) -> Vec<io::Result<OwnedFd>> {
    let taken = INHERITED.swap(true, Ordering::Relaxed);
    let numbers = if taken { 0..0 } else { 3..3 + count.min(64) as RawFd };
    let take = |number| {
        // SAFETY: no memory is involved, and a descriptor that is not open is an error.
        if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is open, whoever started this program gave it to it, and the flag above
        // has this function give it out once.
        Ok(unsafe { OwnedFd::from_raw_fd(number) })
    };
    numbers.map(take).collect()
}

/// Puts the I/O of this thread, and of those that it starts from now on, into a class of the kernel's, at
/// a level within it. A hint: few schedulers of disks heed it.
pub(crate) fn set_io_class(class: u8, level: u8) {
    let who_process: libc::c_int = 1;
    let value = libc::c_int::from(class) << 13 | libc::c_int::from(level);
    // SAFETY: the call takes three numbers, and no memory is involved.
    unsafe {
        libc::syscall(libc::SYS_ioprio_set, who_process, 0 as libc::c_int, value);
    }
}

/// Has the kernel begin to write `len` bytes from `offset` on of a file to its device, without
/// waiting for the end. A hint: what it can't do, the sync at the end does.
pub(crate) fn begin_writeback(file: BorrowedFd<'_>, offset: u64, len: u64) {
    let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else { return };
    // SAFETY: the descriptor is open, and no memory is involved.
    unsafe {
        libc::sync_file_range(file.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE);
    }
}

/// What the kernel says about a lock on one byte of a file.
///
/// The locks belong to the open file description (`F_OFD_SETLK`): other descriptors of the same
/// process are strangers to them, and closing one of those does not drop them.
pub(crate) mod byte_lock {
    use std::io;
    use std::os::fd::{AsRawFd, BorrowedFd};

    /// Locks the byte, together with others who share it.
    pub(crate) fn share(file: BorrowedFd<'_>, byte: i64) -> io::Result<()> {
        control(file, libc::F_OFD_SETLK, libc::F_RDLCK, byte).map(drop)
    }

    /// Locks the byte alone, as no part of qdelta or QEMU does.
    #[cfg(test)]
    pub(crate) fn own(file: BorrowedFd<'_>, byte: i64) -> io::Result<()> {
        control(file, libc::F_OFD_SETLK, libc::F_WRLCK, byte).map(drop)
    }

    /// Gives the lock up.
    pub(crate) fn release(file: BorrowedFd<'_>, byte: i64) -> io::Result<()> {
        control(file, libc::F_OFD_SETLK, libc::F_UNLCK, byte).map(drop)
    }

    /// Whether somebody else has locked the byte in any way. Nothing is locked by asking, and a
    /// descriptor that was opened for reading is enough.
    pub(crate) fn is_held(file: BorrowedFd<'_>, byte: i64) -> io::Result<bool> {
        let answer = control(file, libc::F_OFD_GETLK, libc::F_WRLCK, byte)?;
        Ok(i32::from(answer.l_type) != libc::F_UNLCK)
    }

    fn control(
        file: BorrowedFd<'_>,
        command: i32,
        kind: i32,
        byte: i64,
    ) -> io::Result<libc::flock64> {
        // SAFETY: the structure consists of integers alone, for which zeros are a value.
        let mut lock: libc::flock64 = unsafe { std::mem::zeroed() };
        lock.l_type = kind as libc::c_short;
        lock.l_whence = libc::SEEK_SET as libc::c_short;
        lock.l_start = byte;
        lock.l_len = 1;
        // SAFETY: the descriptor is open, and `lock` is what these three commands read and write.
        let status = unsafe { libc::fcntl(file.as_raw_fd(), command, &mut lock) };
        if status == -1 { Err(io::Error::last_os_error()) } else { Ok(lock) }
    }
}

/// Where the bytes of a file lie on its device: the `FIEMAP` ioctl.
///
/// The structures are those of `linux/fiemap.h`; the libc crate does not have them.
pub(crate) mod fiemap {
    use std::io;
    use std::os::fd::{AsRawFd, BorrowedFd};

    /// Write what is dirty before the extents are looked up.
    const FLAG_SYNC: u32 = 1;
    /// Extents that are asked for at a time: 28 KiB of them.
    const BATCH: usize = 512;
    /// `FS_IOC_FIEMAP`: `_IOWR('f', 11, struct fiemap)`, whose fixed part has 32 bytes.
    const REQUEST: libc::Ioctl = 0xc020_660b_u32 as libc::Ioctl;

    /// The last extent of the file.
    pub(crate) const EXTENT_LAST: u32 = 0x1;
    /// Allocated, never written: reads as zeros.
    pub(crate) const EXTENT_UNWRITTEN: u32 = 0x800;
    /// Compressed or encrypted: nothing is written over in it.
    pub(crate) const EXTENT_ENCODED: u32 = 0x8;
    /// Among the filesystem's metadata.
    pub(crate) const EXTENT_INLINE: u32 = 0x200;
    /// Other files have it, too.
    pub(crate) const EXTENT_SHARED: u32 = 0x2000;

    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    pub(crate) struct RawExtent {
        pub(crate) logical: u64,
        pub(crate) physical: u64,
        pub(crate) length: u64,
        reserved64: [u64; 2],
        pub(crate) flags: u32,
        reserved: [u32; 3],
    }

    #[repr(C)]
    struct Call {
        start: u64,
        length: u64,
        flags: u32,
        mapped_extents: u32,
        extent_count: u32,
        reserved: u32,
        extents: [RawExtent; BATCH],
    }

    /// Replaces `out` by the extents of the file from byte `start` on, as many as one call gives;
    /// none if there are no more.
    pub(crate) fn extents(
        file: BorrowedFd<'_>,
        start: u64,
        out: &mut Vec<RawExtent>,
    ) -> io::Result<()> {
        out.clear();
        let mut call = Box::new(Call {
            start,
            length: u64::MAX - start,
            flags: FLAG_SYNC,
            mapped_extents: 0,
            extent_count: BATCH as u32,
            reserved: 0,
            extents: [RawExtent::default(); BATCH],
        });
        // SAFETY: the descriptor is open; `call` is a `struct fiemap` with room for as many extents
        // as its `extent_count` says, and the kernel writes nothing else.
        let status = unsafe { libc::ioctl(file.as_raw_fd(), REQUEST, &mut *call) };
        if status == -1 {
            return Err(io::Error::last_os_error());
        }
        let count = (call.mapped_extents as usize).min(BATCH);
        out.extend_from_slice(call.extents.get(..count).unwrap_or_default());
        Ok(())
    }

    /// How many extents the whole file has, without fetching them.
    pub(crate) fn count(file: BorrowedFd<'_>) -> io::Result<u64> {
        let mut call = Box::new(Call {
            start: 0,
            length: u64::MAX,
            flags: 0,
            mapped_extents: 0,
            extent_count: 0,
            reserved: 0,
            extents: [RawExtent::default(); BATCH],
        });
        // SAFETY: as above; with a count of 0 the kernel writes no extent.
        let status = unsafe { libc::ioctl(file.as_raw_fd(), REQUEST, &mut *call) };
        if status == -1 { Err(io::Error::last_os_error()) } else { Ok(call.mapped_extents.into()) }
    }
}
