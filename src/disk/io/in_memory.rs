//! Bytes in memory that are read like a file, for tests.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::ReadAt;

/// Bytes in memory under the name of a file.
pub struct Bytes {
    bytes: Arc<Vec<u8>>,
    path: PathBuf,
}

impl Bytes {
    /// The bytes of a file at `path`.
    pub fn new(bytes: Arc<Vec<u8>>, path: PathBuf) -> Self {
        Self { bytes, path }
    }

    /// A copy of `bytes` as an open file called `name`.
    pub fn store(name: &str, bytes: &[u8]) -> Arc<dyn ReadAt> {
        Arc::new(Self::new(Arc::new(bytes.to_vec()), name.into()))
    }
}

impl ReadAt for Bytes {
    fn path(&self) -> &Path {
        &self.path
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = self.bytes.get(offset as usize..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        for (to, from) in buffer.iter_mut().zip(rest) {
            *to = *from;
        }
        Ok(count)
    }
}
