//! A writer that discards every block, for measuring a restore without an output.

use super::ImageWriter;
use crate::base::cancel::Cancel;
use crate::base::error::Result;
use crate::base::observer::Observer;

/// Takes every block and keeps none.
#[derive(Debug, Clone, Copy, Default)]
pub struct Discard;

impl ImageWriter for Discard {
    fn write(&self, _guest_offset: u64, _bytes: &[u8]) -> Result<()> {
        Ok(())
    }

    fn finish(self: Box<Self>, cancel: &Cancel, _progress: &dyn Observer) -> Result<()> {
        cancel.check()
    }
}
