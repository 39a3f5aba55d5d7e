//! Files that are open only while they are needed. A chain has up to 50,000 archives, and a process
//! may have far fewer files open.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Opener, ReadAt};
use crate::disk::sys::{FileId, Stamp};

/// Files that stay open when nobody reads them. Those that are being read come on top: at most one
/// for each operation in flight and for each thread.
const OPEN_MAX: usize = 96;

/// Opens files for reading, and closes those that were not read for the longest time. Whoever opens
/// a file again proves that it is the same one.
#[derive(Debug, Default)]
pub struct OpenFiles {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The open files by number, and when each was used last.
    open: HashMap<u64, (u64, Arc<File>)>,
    /// Counts uses.
    clock: u64,
    /// The number of the next file.
    next: u64,
}

/// A file that is open only while it is read.
#[derive(Debug)]
pub struct PooledFile {
    files: Arc<OpenFiles>,
    number: u64,
    path: PathBuf,
    stamp: Stamp,
}

/// Whether both stamps are of one file. Some network filesystems number a file anew when it is opened
/// again: there the time of its last change stands for the number. A local filesystem may give the
/// number of a removed file to the next one; what is read is proved by digests all the same.
fn is_same(one: &Stamp, other: &Stamp) -> bool {
    one.len == other.len && (one.id == other.id || one.modified == other.modified)
}

impl OpenFiles {
    /// Opens the regular file at `path` for reading.
    ///
    /// # Errors
    /// As [`Opener::open`].
    pub fn open(self: &Arc<Self>, path: &Path) -> io::Result<PooledFile> {
        let file = Opener::READ.open(path)?;
        let stamp = Stamp::from(&file.metadata()?);
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        state.keep(number, Arc::new(file));
        drop(state);
        Ok(PooledFile { files: Arc::clone(self), number, path: path.to_owned(), stamp })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The file of this number, if it is open.
    fn find(&mut self, number: u64) -> Option<Arc<File>> {
        self.clock += 1;
        let (used, file) = self.open.get_mut(&number)?;
        *used = self.clock;
        Some(Arc::clone(file))
    }

    /// Keeps a file open, and closes the one that was not used for the longest time if there are too
    /// many.
    fn keep(&mut self, number: u64, file: Arc<File>) {
        self.clock += 1;
        self.open.insert(number, (self.clock, file));
        if self.open.len() > OPEN_MAX {
            let oldest = self.open.iter().min_by_key(|(_, (used, _))| *used);
            if let Some(oldest) = oldest.map(|(number, _)| *number) {
                self.open.remove(&oldest);
            }
        }
    }
}

impl PooledFile {
    /// The file, open. It stays open as long as the caller has it.
    ///
    /// # Errors
    /// It can't be opened again, or another file has its name now.
    pub fn open(&self) -> io::Result<Arc<File>> {
        if let Some(file) = self.files.state().find(self.number) {
            return Ok(file);
        }
        let file = Opener::READ.open(&self.path)?;
        if !is_same(&self.stamp, &Stamp::from(&file.metadata()?)) {
            // The file that was opened is gone, though another one has its name.
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "it is not the file that was opened before: it was replaced or changed meanwhile",
            ));
        }
        let file = Arc::new(file);
        self.files.state().keep(self.number, Arc::clone(&file));
        Ok(file)
    }
}

impl PooledFile {
    /// Which file it was when it was opened first.
    pub fn id(&self) -> FileId {
        self.stamp.id
    }
}

impl Drop for PooledFile {
    fn drop(&mut self) {
        let closed = self.files.state().open.remove(&self.number);
        // The lock is free again before the file is closed, which can take long.
        drop(closed);
    }
}

impl ReadAt for PooledFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.stamp.len)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.open()?.read_at(buffer, offset)
    }

    fn pooled(&self) -> Option<&PooledFile> {
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::disk::io::{Backend, Direction, Pool, Queue, Segment, Transfer};

    fn open_here(dir: &Path) -> usize {
        let links = fs::read_dir("/proc/self/fd").unwrap();
        links
            .filter_map(|it| fs::read_link(it.ok()?.path()).ok())
            .filter(|it| it.starts_with(dir))
            .count()
    }

    /// A chain kept all its archives open: past the limit of open files it could not be read.
    #[test]
    fn few_files_are_open_however_many_are_read_by_any_queue() {
        let dir = tempfile::tempdir().unwrap();
        let files = Arc::new(OpenFiles::default());
        let all: Vec<Arc<dyn ReadAt>> = (0..500_u16)
            .map(|number| {
                let path = dir.path().join(number.to_string());
                fs::write(&path, number.to_le_bytes().repeat(2048)).unwrap();
                Arc::new(files.open(&path).unwrap()) as Arc<dyn ReadAt>
            })
            .collect();
        assert_eq!(open_here(dir.path()), OPEN_MAX);
        let pool = Pool::new(64, 4096).unwrap();
        for backend in [Backend::Auto, Backend::Threads] {
            let mut queue = Queue::open(backend, 64, all.clone(), &pool).unwrap();
            let mut read = 0;
            let take = |queue: &mut Queue| {
                let done = queue.wait().unwrap();
                done.result.unwrap();
                assert!(*done.buffer == *(done.token as u16).to_le_bytes().repeat(2048));
            };
            for round in 0..1000_usize {
                let number = round * 7 % 500;
                let buffer = pool.try_take().unwrap_or_else(|| {
                    take(&mut queue);
                    read += 1;
                    pool.take()
                });
                let segments = vec![Segment { file: number, offset: 0, range: 0..4096 }];
                let direction = Direction::Read;
                queue.push(Transfer { token: number as u64, buffer, segments, direction });
                queue.submit().unwrap();
                assert!(open_here(dir.path()) <= OPEN_MAX + 64 + 8);
            }
            while queue.pending() > 0 {
                take(&mut queue);
                read += 1;
            }
            assert_eq!(read, 1000);
        }
        drop(all);
        assert_eq!(open_here(dir.path()), 0);
    }

    #[test]
    fn another_file_of_the_same_name_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let files = Arc::new(OpenFiles::default());
        let path = dir.path().join("archive");
        fs::write(&path, "content").unwrap();
        let file = files.open(&path).unwrap();
        let close = || files.state().open.clear();
        let mut bytes = [0; 7];
        close();
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"content");
        // As long as it is open, it is what it was. A second name keeps its number from being given to
        // the next file.
        fs::hard_link(&path, dir.path().join("kept")).unwrap();
        fs::remove_file(&path).unwrap();
        file.read_exact_at(&mut bytes, 0).unwrap();
        close();
        let error = file.read_exact_at(&mut bytes, 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        std::thread::sleep(std::time::Duration::from_millis(20));
        for other in ["another", "shorter or longer"] {
            fs::write(&path, other).unwrap();
            let all: Vec<Arc<dyn ReadAt>> = vec![Arc::new(files.open(&path).unwrap())];
            drop(all);
            let error = file.read_exact_at(&mut bytes, 0).unwrap_err();
            assert!(error.to_string().contains("replaced"), "{error}");
        }
    }
}
