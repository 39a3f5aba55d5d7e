//! Writing a new raw file: zeros are never written, and so become holes.

use std::sync::Arc;

use super::{Format, ImageWriter, Plan, Target, on_disk, room_needed, write_at};
use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::Observer;
use crate::disk::io::Store;

pub(super) struct Raw {
    target: Target,
    plan: Plan,
}

impl Raw {
    pub(super) fn new(target: Target, plan: Plan) -> Result<Self> {
        let size = plan.virtual_size();
        target.check_space(room_needed(&plan, Format::Raw)?, size)?;
        target.store().set_len(size).map_err(|error| {
            let error = Error::io(format!("extend to {size} bytes"), target.path(), error);
            match error.kind() {
                ErrorKind::NoSpace => {
                    error.advise("this filesystem has no files of that length: --format qcow2 fits")
                }
                _ => error,
            }
        })?;
        Ok(Self { target, plan })
    }
}

impl ImageWriter for Raw {
    fn write(&self, guest_offset: u64, bytes: &[u8]) -> Result<()> {
        let bytes = on_disk(&self.plan, guest_offset, bytes);
        write_at(self.target.store().as_ref(), guest_offset, bytes)
    }

    fn store(&self) -> Option<Arc<dyn Store>> {
        Some(Arc::clone(self.target.store()) as Arc<dyn Store>)
    }

    fn place(&self, guest_offset: u64) -> Option<u64> {
        (guest_offset < self.plan.virtual_size()).then_some(guest_offset)
    }

    fn finish(self: Box<Self>, cancel: &Cancel, _progress: &dyn Observer) -> Result<()> {
        cancel.check()?;
        self.target.commit()
    }
}
