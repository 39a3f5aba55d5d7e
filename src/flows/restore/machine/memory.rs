//! The memory of a restored guest: the file that libvirt resumes it with, and the definition for that.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::definition::Definition;
use super::{Disk, MachineRestore, Written};
use crate::base::error::{Error, Result};
use crate::base::observer::{Event, Observer, Recorder};
use crate::base::warning::{Code, Warning};
use crate::disk::image::Format;
use crate::disk::io::Opener;
use crate::guest::libvirt::saved_definition;
use crate::vault::repository::Manifest;

impl MachineRestore<'_> {
    /// Opens the memory of the point, if it is to be restored and is there.
    pub(super) fn add_memory(&mut self, manifest: &Manifest) -> Result<()> {
        if let Some(record) = self.machine.memory.as_ref().filter(|_| self.request.with_memory) {
            let (target, chain) = (record.disk.to_string(), self.open(&record.disk, manifest)?);
            let path = self.folder.join(format!("{}.save", self.stem()));
            let (format, block, served) = (Format::Raw, false, None);
            self.memory = Some(Disk { target, chain, format, path, block, served });
        }
        Ok(())
    }

    /// Says that the guest begins anew, where it could go on.
    pub(super) fn warn_of_memory(&self, recorder: &Recorder<'_>) {
        if self.machine.memory.is_some() && self.memory.is_none() {
            let text =
                "its memory is in the point and was not restored: it begins as after a power cut";
            let warning = Warning::new(Code::MemoryLeftOut, text);
            recorder.event(&Event::Warning(&warning.advise("--with-memory restores it, too")));
        }
    }

    /// Writes the definition that the memory is resumed with: the one in it, with the paths of the restored files.
    /// Says whether that can be.
    pub(super) fn restore_saved_xml(
        &self,
        definition: &Definition,
        memory: &Disk,
        written: &mut Written,
        recorder: &Recorder<'_>,
    ) -> Result<bool> {
        let path = &memory.path;
        let file = Opener::READ.open(path).map_err(|error| Error::io("open", path, error))?;
        // What is in the guest's memory, nobody else may read.
        file.set_permissions(std::fs::Permissions::from_mode(0o600))
            .map_err(|error| Error::io("set the mode of", path, error))?;
        let text = saved_definition(&file, path).and_then(|text| definition.of_saved(&text));
        match text {
            Ok(text) => {
                self.write_text(&saved_xml(path), &text, written)?;
                Ok(true)
            }
            Err(error) => {
                let warning = Warning::failed(Code::MemoryLeftOut, &error);
                let within = "the definition in its memory can't be given the restored disks";
                recorder.event(&Event::Warning(&warning.within(within)));
                Ok(false)
            }
        }
    }
}

/// Where the definition goes that the memory in this file is resumed with.
pub(super) fn saved_xml(memory: &Path) -> PathBuf {
    memory.with_extension("save.xml")
}
