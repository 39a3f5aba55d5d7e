//! Programs of Linux, as far as it takes to know whether one needs libraries of the system.

use crate::fields::Little;
use crate::{FormatError, Problem};

/// The type of the segment that names the loader of libraries.
const INTERPRETER: u32 = 3;
/// The longest name of a loader.
const NAME_MAX: u64 = 4096;

/// The loader of libraries that a program asks for; none of a static one.
///
/// # Errors
/// It is no program of 64 bits with the lowest byte first.
pub fn interpreter(program: &[u8]) -> Result<Option<&[u8]>, FormatError> {
    let fields = Little::new(program, 0);
    if fields.slice(0, 6, "e_ident")? != b"\x7fELF\x02\x01" {
        return Err(fields.error(0, "e_ident", Problem::BadMagic("ELF of 64 bits")));
    }
    let (table, size, count) =
        (fields.u64(32, "e_phoff")?, fields.u16(54, "e_phentsize")?, fields.u16(56, "e_phnum")?);
    for index in 0..u64::from(count) {
        let at = table.saturating_add(index * u64::from(size));
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        if fields.u32(at, "p_type")? != INTERPRETER {
            continue;
        }
        let (name, len) = (fields.u64(at + 8, "p_offset")?, fields.u64(at + 32, "p_filesz")?);
        if len > NAME_MAX {
            let problem = Problem::OutOfRange { value: len, min: 0, max: NAME_MAX };
            return Err(fields.error(at + 32, "p_filesz", problem));
        }
        let name = usize::try_from(name).unwrap_or(usize::MAX);
        return fields.slice(name, len as usize, "interpreter").map(Some);
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header with one segment of this type.
    fn program(kind: u8) -> Vec<u8> {
        let mut bytes = vec![0; 120];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (bytes[32], bytes[54], bytes[56]) = (64, 56, 1);
        (bytes[64], bytes[72], bytes[96]) = (kind, 120, 4);
        bytes.extend(b"ld\0\0");
        bytes
    }

    #[test]
    fn a_program_with_a_loader_is_told_from_one_without() {
        assert_eq!(interpreter(&program(3)).unwrap(), Some(&b"ld\0\0"[..]));
        assert_eq!(interpreter(&program(1)).unwrap(), None);
        for len in 0..120 {
            assert!(interpreter(&program(1)[..len]).is_err() || len >= 68, "{len}");
        }
        let mut wild = program(3);
        wild[72..80].fill(255);
        assert!(interpreter(&wild).is_err());
        wild[32..40].fill(255);
        assert!(interpreter(&wild).is_err());
        assert!(interpreter(b"#!/bin/sh\n").is_err());
    }
}
