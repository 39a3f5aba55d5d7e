//! Files past the page cache (`O_DIRECT`): what is aligned goes straight between the device and a
//! buffer, everything else takes the usual way through the cache.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::{Errno, ReadWriteFlags};

use super::{BUFFER_ALIGNMENT, FileStore, Files, Opener, ReadAt, Store};
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::sys::kernel::Memory;

/// Whether to go past the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Direct {
    /// Where it pays: to read a file that is not in the cache, and to write a restored disk.
    #[default]
    Auto,
    /// Always; a file that can't be had so is an error.
    On,
    /// Never.
    Off,
}

/// Places of a file at which to look whether it is in the page cache.
const SAMPLES: u64 = 64;
/// A file shorter than this many bytes is not worth the second descriptor.
const SIZE_MIN: u64 = 1 << 20;

/// Whether a transfer of `len` bytes at `offset` and this address can go past the cache.
pub(super) fn is_aligned(offset: u64, len: usize, address: usize) -> bool {
    let alignment = BUFFER_ALIGNMENT;
    len.is_multiple_of(alignment)
        && address.is_multiple_of(alignment)
        && offset.is_multiple_of(alignment as u64)
}

fn fits(bytes: &[u8], offset: u64) -> bool {
    is_aligned(offset, bytes.len(), bytes.as_ptr() as usize)
}

/// A file that is open twice: through the page cache, and past it for what is aligned.
struct DirectFile {
    direct: FileStore,
    cached: Arc<dyn ReadAt>,
}

impl ReadAt for DirectFile {
    fn path(&self) -> &Path {
        self.cached.path()
    }

    fn len(&self) -> io::Result<u64> {
        self.cached.len()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let fits = fits(buffer, offset);
        if fits { self.direct.read_at(buffer, offset) } else { self.cached.read_at(buffer, offset) }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.direct.fd()
    }

    fn cached(&self) -> Option<&Arc<dyn ReadAt>> {
        Some(&self.cached)
    }
}

/// The same of a file that is written.
struct DirectStore {
    file: DirectFile,
    cached: Arc<dyn Store>,
}

impl ReadAt for DirectStore {
    fn path(&self) -> &Path {
        self.file.path()
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.file.fd()
    }

    fn cached(&self) -> Option<&Arc<dyn ReadAt>> {
        self.file.cached()
    }
}

impl Store for DirectStore {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let fits = fits(bytes, offset);
        let direct = &self.file.direct;
        if fits { direct.write_at(bytes, offset) } else { self.cached.write_at(bytes, offset) }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.cached.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.cached.sync()
    }
}

/// The same files, past the page cache where `direct` says so. A store without a descriptor stays
/// as it is.
///
/// # Errors
/// `Usage` if [`Direct::On`] is asked for and a file can't be had so.
pub fn open_direct(files: impl Into<Files>, direct: Direct) -> Result<Files> {
    Ok(match files.into() {
        Files::Read(files) => {
            let opened = files.into_iter().map(|file| -> Result<Arc<dyn ReadAt>> {
                match open_past(file.as_ref(), Opener::READ, direct)? {
                    Some(direct) => Ok(Arc::new(DirectFile { direct, cached: file })),
                    None => Ok(file),
                }
            });
            Files::Read(opened.collect::<Result<_>>()?)
        }
        Files::Write(files) => {
            let opened = files.into_iter().map(|file| -> Result<Arc<dyn Store>> {
                match open_past(file.as_ref(), Opener::CHANGE, direct)? {
                    Some(direct) => {
                        let cached: Arc<dyn Store> = Arc::clone(&file);
                        Ok(Arc::new(DirectStore {
                            file: DirectFile { direct, cached: file },
                            cached,
                        }))
                    }
                    None => Ok(file),
                }
            });
            Files::Write(opened.collect::<Result<_>>()?)
        }
    })
}

/// The file past the page cache, if it is to be had and is wanted so.
fn open_past(file: &dyn ReadAt, how: Opener, direct: Direct) -> Result<Option<FileStore>> {
    let wanted = match direct {
        Direct::Off => false,
        Direct::On => true,
        Direct::Auto => {
            file.len().is_ok_and(|len| len >= SIZE_MIN) && (how == Opener::CHANGE || is_cold(file))
        }
    };
    if !wanted || file.fd().is_none() {
        return Ok(None);
    }
    match reopen(file, how) {
        Ok(direct) => Ok(Some(direct)),
        Err(_) if direct == Direct::Auto => Ok(None),
        Err(error) => {
            let what = format!("{} can't be had past the page cache", file.path().display());
            Err(Error::new(ErrorKind::Usage, what)
                .because(error)
                .advise("its filesystem has no O_DIRECT: use --direct auto or off"))
        }
    }
}

/// Opens what a store has open, whatever its name has become, once more.
fn reopen(store: &dyn ReadAt, how: Opener) -> io::Result<FileStore> {
    let descriptor = store.fd().ok_or(io::ErrorKind::Unsupported)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_raw_fd()));
    let file = how.or_device().direct().open(&path)?;
    let file = FileStore::new(file, store.path());
    // Some filesystems take the flag and then refuse every transfer.
    let mut page = Memory::zeroed(BUFFER_ALIGNMENT)?;
    file.read_at(&mut page, 0)?;
    Ok(file)
}

/// Whether most of a file is not in the page cache, by a sample of places spread over it. Going
/// past a cache that has the bytes already would be slower.
fn is_cold(store: &dyn ReadAt) -> bool {
    let (Some(descriptor), Ok(len)) = (store.fd(), store.len()) else { return false };
    let mut byte = [0];
    let missing = (0..SAMPLES).filter(|sample| {
        let offset = len / SAMPLES * sample;
        let mut buffers = [io::IoSliceMut::new(&mut byte)];
        let read = rustix::io::preadv2(descriptor, &mut buffers, offset, ReadWriteFlags::NOWAIT);
        matches!(read, Err(Errno::AGAIN))
    });
    missing.count() as u64 > SAMPLES / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::io::queue::Engine;
    use crate::disk::io::{Backend, Direction, Pool, Queue, Segment, Transfer};

    /// A file of `len` bytes, none like its neighbours, in the folder of the build: not every
    /// place for temporary files is on a disk.
    fn file(len: usize) -> (tempfile::NamedTempFile, Vec<u8>) {
        let file = tempfile::Builder::new().tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let bytes: Vec<u8> = (0..len).map(|n| ((n / 3) ^ (n >> 9)) as u8).collect();
        std::fs::write(file.path(), &bytes).unwrap();
        (file, bytes)
    }

    fn open(file: &tempfile::NamedTempFile, direct: Direct) -> Arc<dyn ReadAt> {
        let file: Arc<dyn ReadAt> = Arc::new(FileStore::new(file.reopen().unwrap(), file.path()));
        open_direct(vec![file], direct).unwrap().readable().pop().unwrap()
    }

    fn open_to_write(file: &tempfile::NamedTempFile, direct: Direct) -> Arc<dyn Store> {
        let file = file.as_file().try_clone().map(|it| FileStore::new(it, file.path())).unwrap();
        let store: Arc<dyn Store> = Arc::new(file);
        match open_direct(vec![store], direct).unwrap() {
            Files::Write(mut files) => files.pop().unwrap(),
            Files::Read(_) => unreachable!(),
        }
    }

    #[test]
    fn aligned_and_unaligned_transfers_meet_in_one_file() {
        let len = (2 << 20) + 777;
        for backend in [Backend::Auto, Backend::Threads] {
            let (file, mut bytes) = file(len);
            let store = open_to_write(&file, Direct::On);
            assert!(store.cached().is_some());
            let pool = Pool::new(4, 1 << 20).unwrap();
            let mut queue = Queue::open(backend, 4, vec![Arc::clone(&store)], &pool).unwrap();
            let mut write = |offset: u64, range: std::ops::Range<usize>, value: u8| {
                let mut buffer = pool.take();
                buffer[range.clone()].fill(value);
                bytes[offset as usize..][..range.len()].fill(value);
                let segments = vec![Segment { file: 0, offset, range }];
                queue.push(Transfer { token: 0, buffer, segments, direction: Direction::Write });
                queue.wait().unwrap().result.unwrap();
            };
            write(0, 0..65536, 1);
            write(131_072, 4096..8192, 2);
            write(200_001, 17..5000, 3);
            write(2 << 20, 0..777, 4);
            let segments = vec![
                Segment { file: 0, offset: 0, range: 0..1 << 19 },
                Segment { file: 0, offset: (2 << 20) - 4096, range: 1 << 19..(1 << 19) + 4873 },
            ];
            let buffer = pool.take();
            queue.push(Transfer { token: 0, buffer, segments, direction: Direction::Read });
            let done = queue.wait().unwrap();
            done.result.unwrap();
            assert!(done.buffer[..1 << 19] == bytes[..1 << 19]);
            assert!(done.buffer[1 << 19..][..4873] == bytes[(2 << 20) - 4096..]);
            store.sync().unwrap();
            assert!(std::fs::read(file.path()).unwrap() == bytes);
        }
    }

    #[test]
    fn a_read_past_the_end_is_an_error_as_it_is_through_the_cache() {
        let (file, _) = file((1 << 20) + 4096 + 512);
        let pool = Pool::new(1, 1 << 20).unwrap();
        for direct in [Direct::On, Direct::Off] {
            let store = open(&file, direct);
            for backend in [Backend::Auto, Backend::Threads] {
                let mut queue = Queue::open(backend, 4, vec![Arc::clone(&store)], &pool).unwrap();
                let segments = vec![Segment { file: 0, offset: 1 << 20, range: 0..65536 }];
                let buffer = pool.take();
                queue.push(Transfer { token: 0, buffer, segments, direction: Direction::Read });
                let error = queue.wait().unwrap().result.unwrap_err();
                assert!(error.chain().contains("end"), "{direct:?} {backend}: {}", error.chain());
            }
        }
    }

    #[test]
    fn what_is_cut_short_goes_on_through_the_cache() {
        let (file, bytes) = file(1 << 20);
        let store = open(&file, Direct::On);
        let pool = Pool::new(1, 1 << 20).unwrap();
        let mut queue = Queue::open(Backend::Uring, 4, vec![store], &pool).unwrap();
        let Engine::Uring(ring) = &mut queue.engine else { unreachable!() };
        let mut calls = 0;
        ring.tamper = Some(Box::new(move |offset, len, result| {
            assert_eq!(result, len as i32, "the kernel refused bytes at {offset}");
            calls += 1;
            if calls < 5 { 70_001 } else { result }
        }));
        let segments = vec![Segment { file: 0, offset: 0, range: 0..1 << 20 }];
        let buffer = pool.take();
        queue.push(Transfer { token: 0, buffer, segments, direction: Direction::Read });
        let done = queue.wait().unwrap();
        done.result.unwrap();
        assert!(*done.buffer == *bytes);
    }

    #[test]
    fn what_is_in_the_cache_is_read_from_there() {
        let (file, _) = file(4 << 20);
        let store = FileStore::new(file.reopen().unwrap(), file.path());
        assert!(!is_cold(&store));
        assert!(open(&file, Direct::Auto).cached().is_none());
        assert!(open_to_write(&file, Direct::Off).cached().is_none());
    }

    #[test]
    fn a_store_without_a_descriptor_stays_what_it_is() {
        let store = crate::disk::io::recording::RecordingStore::new(vec![0; 2 << 20], "memory");
        let store: Arc<dyn Store> = Arc::new(store);
        let files = open_direct(vec![store], Direct::Auto).unwrap();
        assert!(files.get(0).unwrap().cached().is_none());
    }
}
