//! A journal whose changes have not reached their places: they are read from the journal.

use std::collections::BTreeMap;

use qdelta_formats::filesystems::ext::journal::Journal;
use qdelta_formats::filesystems::ext::{self, Superblock};

use super::data::Blocks;
use super::{Data, Ext, Newer, Place, wrong};
use crate::base::error::Result;

impl Ext {
    /// Finds what is newer in the journal than at its place, if the superblock says that something is.
    pub(super) fn replay(&mut self) -> Result<()> {
        if !self.superblock.needs_recovery {
            return Ok(());
        }
        if self.superblock.journal == 0 {
            let text = "the journal lies on another disk, and its last changes are not seen";
            self.notes.push(text.to_owned());
            return Ok(());
        }
        let (newer, transactions, is_fast) = self.newer_blocks()?;
        if is_fast {
            let text = "the journal may hold small changes (fast commits) that are not seen";
            self.notes.push(text.to_owned());
        }
        if transactions > 0 {
            let text = format!(
                "the guest had not finished writing: {transactions} transactions of its journal are read in their place"
            );
            self.notes.push(text);
        }
        self.newer = newer;
        // What was read without the journal is old.
        self.inodes = crate::base::shelf::Shelf::new(16, super::INODES);
        let mut bytes = vec![0; ext::SUPERBLOCK_LEN];
        self.read(&mut bytes, ext::SUPERBLOCK_AT)?;
        self.superblock = Superblock::parse(&bytes).map_err(|error| wrong(&self.source, error))?;
        Ok(())
    }

    fn newer_blocks(&self) -> Result<(Newer, u32, bool)> {
        let inode = self.inode(self.superblock.journal.into())?;
        let data = Blocks::new(self, inode);
        let mut head = vec![0; 1024];
        data.read(&mut head, 0)?;
        let within = |error| wrong(&self.source, error).within("the journal can't be read");
        let journal = Journal::parse(&head).map_err(within)?;
        if journal.block != self.superblock.block {
            return Err(self.damaged("the journal has blocks of another size"));
        }
        let place = |number: u32| match data.stretch(u64::from(number) * journal.block)? {
            (Place::At(at), _) => Ok(at),
            _ => Err(self.damaged("the journal has a hole")),
        };
        let replay = journal.replay(|number| {
            let at = place(number).map_err(Stopped::Read)?;
            self.source.bytes(at, journal.block as usize).map_err(Stopped::Read)
        });
        let replay = replay.map_err(|stopped| match stopped {
            Stopped::Read(error) => error,
            Stopped::Format(error) => within(error),
        })?;
        let mut newer = BTreeMap::new();
        for (block, (number, escaped)) in replay.blocks {
            newer.insert(block, (place(number)?, escaped));
        }
        Ok((newer, replay.transactions, journal.has_fast_commits()))
    }
}

/// Why a journal was not read to its end.
enum Stopped {
    Read(crate::base::error::Error),
    Format(qdelta_formats::FormatError),
}

impl From<qdelta_formats::FormatError> for Stopped {
    fn from(error: qdelta_formats::FormatError) -> Self {
        Self::Format(error)
    }
}
