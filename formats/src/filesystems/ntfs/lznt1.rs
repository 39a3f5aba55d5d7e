//! The compression of NTFS.

/// Bytes of a chunk, which is compressed by itself.
const CHUNK: usize = 4096;

/// Unpacks into `out`, which is filled with zeros behind what there is. None if the bytes make no sense.
pub fn unpack(mut bytes: &[u8], out: &mut [u8]) -> Option<()> {
    for chunk in out.chunks_mut(CHUNK) {
        chunk.fill(0);
        let Some((head, behind)) = bytes.split_first_chunk::<2>() else { continue };
        let head = u16::from_le_bytes(*head);
        if head == 0 {
            bytes = &[];
            continue;
        }
        let (packed, rest) = behind.split_at_checked(usize::from(head & 0xfff) + 1)?;
        bytes = rest;
        match head & 0x8000 {
            0 => chunk.get_mut(..packed.len())?.copy_from_slice(packed),
            _ => unpack_chunk(packed, chunk)?,
        }
    }
    Some(())
}

fn unpack_chunk(mut packed: &[u8], out: &mut [u8]) -> Option<()> {
    let mut done = 0;
    while let Some((flags, rest)) = packed.split_first() {
        packed = rest;
        for bit in 0..8 {
            if packed.is_empty() {
                break;
            }
            if flags >> bit & 1 == 0 {
                let (byte, rest) = packed.split_first()?;
                packed = rest;
                *out.get_mut(done)? = *byte;
                done += 1;
                continue;
            }
            let (token, rest) = packed.split_first_chunk::<2>()?;
            packed = rest;
            let token = usize::from(u16::from_le_bytes(*token));
            // The further one is, the more bits say how far back, and the fewer how much.
            let far = (done.checked_sub(1)?.max(8)).ilog2() - 3;
            let len_bits = 12 - far;
            let len = (token & ((1 << len_bits) - 1)) + 3;
            let back = (token >> len_bits) + 1;
            let from = done.checked_sub(back)?;
            for index in 0..len {
                let byte = *out.get(from + index)?;
                *out.get_mut(done + index)? = byte;
            }
            done += len;
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_unpacked() {
        // From the description of the algorithm by its maker.
        let packed = [
            0x38, 0xb0, 0x88, b'F', b'#', b' ', 0x00, 0x20, b'A', b'A', 0x00, 0x10, b'G', 0xa2,
            b' ',
        ];
        let mut out = [1; 4096];
        // Cut short, it is an error.
        assert_eq!(unpack(&packed, &mut out), None);
        // "ab" and then sixteen bytes of it again.
        let packed = [0x04, 0xb0, 0x04, b'a', b'b', 0x0d, 0x10];
        assert_eq!(unpack(&packed, &mut out), Some(()));
        assert_eq!(&out[..18], b"abababababababababab".get(..18).unwrap());
        assert!(out[18..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn what_is_not_packed_is_copied() {
        let mut packed = vec![0x02, 0x30, 1, 2, 3];
        let mut out = [9; 5000];
        assert_eq!(unpack(&packed, &mut out), Some(()));
        assert_eq!((&out[..4], out[4999]), (&[1, 2, 3, 0][..], 0));
        packed.truncate(3);
        assert_eq!(unpack(&packed, &mut out), None);
    }
}
