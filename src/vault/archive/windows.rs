//! The tables of an archive, read in windows.

use super::reader::Reader;
use crate::base::error::Result;
use crate::formats::archive::{DIGEST_LEN, Digest, FRAME_ENTRY_LEN, FrameEntry};

/// A window of each table of one archive. Whoever reads the tables in order reads ahead: some
/// records more than were asked for, which the next questions find in memory.
#[derive(Default)]
pub(crate) struct Windows {
    digests: Records<DIGEST_LEN>,
    groups: Records<DIGEST_LEN>,
    frames: Records<FRAME_ENTRY_LEN>,
}

/// Some neighbouring records of a table.
#[derive(Default)]
struct Records<const LEN: usize> {
    first: u64,
    bytes: Vec<u8>,
}

impl<const LEN: usize> Records<LEN> {
    /// The bytes of `count` records from the number `first` on. If they are not in memory, up to
    /// `ahead` of the table's `total` records are read.
    fn get(
        &mut self,
        (first, count): (u64, u64),
        (ahead, total): (u64, u64),
        read: impl FnOnce(u64, &mut [u8]) -> Result<()>,
    ) -> Result<&[[u8; LEN]]> {
        let have = self.bytes.len() as u64 / LEN as u64;
        if first < self.first || first + count > self.first + have {
            // What the table does not have is left for `read` to refuse.
            let len = count.max(ahead.min(total.saturating_sub(first)));
            self.bytes.clear();
            self.bytes.resize(len as usize * LEN, 0);
            self.first = first;
            if let Err(error) = read(first, &mut self.bytes) {
                self.bytes.clear();
                return Err(error);
            }
        }
        let records = self.bytes.as_chunks().0;
        let start = (first - self.first) as usize;
        Ok(records.get(start..start + count as usize).unwrap_or_default())
    }
}

impl Windows {
    /// The digests of `count` stored blocks, from the number `rank` on.
    pub(crate) fn digests(
        &mut self,
        reader: &Reader,
        rank: u64,
        count: u64,
        ahead: u64,
    ) -> Result<&[[u8; DIGEST_LEN]]> {
        let read = |first, out: &mut [u8]| reader.digest_records(first, out);
        self.digests.get((rank, count), (ahead, reader.stored().len()), read)
    }

    /// The digest of the group number `rank` of [`Reader::groups`].
    pub(crate) fn group_digest(
        &mut self,
        reader: &Reader,
        rank: u64,
        ahead: u64,
    ) -> Result<Digest> {
        let read = |first, out: &mut [u8]| reader.group_records(first, out);
        let found = self.groups.get((rank, 1), (ahead, reader.groups().len()), read)?;
        Ok(Digest(found.first().copied().unwrap_or_default()))
    }

    /// The records of `count` frames, from the number `position` on.
    pub(crate) fn frames(
        &mut self,
        reader: &Reader,
        position: u64,
        count: u64,
        ahead: u64,
    ) -> Result<&[[u8; FRAME_ENTRY_LEN]]> {
        let read = |first, out: &mut [u8]| reader.frame_records(first, out);
        self.frames.get((position, count), (ahead, reader.frame_count()), read)
    }

    /// The entry of the frame number `position`.
    pub(crate) fn frame(
        &mut self,
        reader: &Reader,
        position: u64,
        ahead: u64,
    ) -> Result<FrameEntry> {
        let record = self.frames(reader, position, 1, ahead)?.first().copied().unwrap_or_default();
        reader.decode_frame(position, &record)
    }
}
