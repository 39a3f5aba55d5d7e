//! A new qcow2 file. Where everything lies follows from the plan alone, so blocks can be written
//! in any order by any number of threads, and the tables are written once.

mod layout;

use std::sync::Arc;

use super::{ImageWriter, Plan, Target, on_disk, write_at};
use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::Observer;
use crate::disk::io::Store;
use layout::Layout;

/// How much of the tables is written at once, in bytes.
const CHUNK_SIZE: usize = 1 << 20;

pub(super) struct Qcow2 {
    target: Target,
    plan: Plan,
    layout: Layout,
}

/// How much room a new file for the plan takes, at most, in bytes.
pub(super) fn room_needed(plan: &Plan) -> Result<u64> {
    Ok(Layout::new(plan, None)?.written_len())
}

impl Qcow2 {
    /// The file over `backing`, if there is one: a name by which QEMU finds a raw disk.
    pub(super) fn new(target: Target, plan: Plan, backing: Option<&str>) -> Result<Self> {
        let layout = Layout::new(&plan, backing)?;
        let len = layout.file_len();
        target.check_space(layout.written_len(), len)?;
        target
            .store()
            .set_len(len)
            .map_err(|error| Error::io(format!("extend to {len} bytes"), target.path(), error))?;
        Ok(Self { target, plan, layout })
    }

    fn write_tables(&self, cancel: &Cancel, observer: &dyn Observer) -> Result<()> {
        let mut chunk = Vec::with_capacity(CHUNK_SIZE);
        let mut offset = 0;
        observer.begin("tables", self.layout.tables_len());
        self.layout.tables(&mut |bytes| {
            chunk.extend_from_slice(bytes);
            if chunk.len() >= CHUNK_SIZE {
                cancel.check()?;
                write_at(self.target.store().as_ref(), offset, &chunk)?;
                offset += chunk.len() as u64;
                observer.advance(chunk.len() as u64);
                chunk.clear();
            }
            Ok(())
        })?;
        write_at(self.target.store().as_ref(), offset, &chunk)?;
        observer.end();
        Ok(())
    }
}

impl ImageWriter for Qcow2 {
    fn write(&self, guest_offset: u64, bytes: &[u8]) -> Result<()> {
        let mut rest = on_disk(&self.plan, guest_offset, bytes);
        let mut guest_offset = guest_offset;
        while !rest.is_empty() {
            let host_offset = self.place(guest_offset).ok_or_else(|| {
                let text = format!("the block at {guest_offset} is not in the plan");
                Error::new(ErrorKind::Usage, text)
            })?;
            let len = self.layout.run_len(guest_offset, rest.len());
            let Some((run, after)) = rest.split_at_checked(len) else { break };
            write_at(self.target.store().as_ref(), host_offset, run)?;
            guest_offset += len as u64;
            rest = after;
        }
        Ok(())
    }

    fn store(&self) -> Option<Arc<dyn Store>> {
        Some(Arc::clone(self.target.store()) as Arc<dyn Store>)
    }

    fn place(&self, guest_offset: u64) -> Option<u64> {
        self.layout.place(guest_offset)
    }

    fn run_len(&self, guest_offset: u64, len: usize) -> usize {
        self.layout.run_len(guest_offset, len)
    }

    fn finish(self: Box<Self>, cancel: &Cancel, observer: &dyn Observer) -> Result<()> {
        self.write_tables(cancel, observer)?;
        cancel.check()?;
        self.target.commit()
    }
}
