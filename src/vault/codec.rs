//! Compression of frames, with contexts that are reused: one of each kind per worker.

use std::fmt;

use zstd::zstd_safe::{self, CParameter, DCtx};

use crate::base::error::{Error, ErrorKind, Result};
use crate::formats::archive::Codec;

/// The level of zstd unless told otherwise.
pub const LEVEL_DEFAULT: i32 = 1;

/// The binary logarithm of the largest window that decoding may allocate: a frame's content is at
/// most 2 MiB long, so no frame needs a larger window.
const WINDOW_LOG_MAX: u32 = 21;

/// The shortest match that level 1 looks for. With frames of 64 KiB, zstd's own choice (6) makes
/// output 1.2 % larger in 4 % less time; level 2 makes it 0.6 % smaller in 15 % more time.
const MATCH_LEN_MIN: u32 = 5;

/// The binary logarithm of the number of places that level 1 remembers. Half as many places (zstd's
/// own choice) make output 0.4 % larger in the same time; twice as many make it 0.2 % smaller in 2
/// % more time.
const HASH_LOG: u32 = 14;

/// Compresses frames. Each worker has a compressor of its own.
pub struct Compressor {
    context: zstd::bulk::Compressor<'static>,
}

impl fmt::Debug for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compressor").finish_non_exhaustive()
    }
}

impl Compressor {
    /// A compressor of this zstd level: 1 to 22, negative ones are faster.
    ///
    /// # Errors
    /// zstd has no such level.
    pub fn new(level: i32) -> Result<Self> {
        let levels = zstd::compression_level_range();
        if !levels.contains(&level) {
            let (first, last) = (levels.start(), levels.end());
            let context = format!("there is no zstd level {level}: they go from {first} to {last}");
            return Err(Error::new(ErrorKind::Usage, context));
        }
        let no_context = |error| Error::new(ErrorKind::Io, "cannot set up zstd").because(error);
        let mut context = zstd::bulk::Compressor::new(level).map_err(no_context)?;
        if level == 1 {
            for parameter in [CParameter::MinMatch(MATCH_LEN_MIN), CParameter::HashLog(HASH_LOG)] {
                context.set_parameter(parameter).map_err(no_context)?;
            }
        }
        Ok(Self { context })
    }

    /// Compresses `raw`, the blocks of one frame, into `out`, whose old content is dropped. If
    /// compression saves too little, the answer is [`Codec::Stored`], the payload is `raw` itself,
    /// and `out` is empty.
    ///
    /// The same bytes and level always give the same payload.
    ///
    /// # Errors
    /// zstd fails, which happens only when memory runs out.
    pub fn compress(&mut self, raw: &[u8], out: &mut Vec<u8>) -> Result<Codec> {
        out.clear();
        out.reserve(zstd::compress_bound(raw.len()));
        let len = self.context.compress_to_buffer(raw, out).map_err(|error| {
            Error::new(ErrorKind::Io, format!("cannot compress {} bytes", raw.len())).because(error)
        })?;
        // Less than one part in 64 saved is not worth the time that decoding takes.
        if len > raw.len() - raw.len() / 64 || len >= raw.len() {
            out.clear();
            return Ok(Codec::Stored);
        }
        Ok(Codec::Zstd)
    }
}

/// Decompresses frames. Each worker has a decompressor of its own.
pub struct Decompressor {
    context: DCtx<'static>,
}

impl fmt::Debug for Decompressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decompressor").finish_non_exhaustive()
    }
}

impl Decompressor {
    /// A decompressor that allocates at most some megabytes, whatever a payload asks for.
    ///
    /// # Errors
    /// Memory runs out.
    pub fn new() -> Result<Self> {
        let no_memory = || Error::new(ErrorKind::Io, "cannot set up zstd");
        let mut context = DCtx::try_create().ok_or_else(no_memory)?;
        context
            .set_parameter(zstd_safe::DParameter::WindowLogMax(WINDOW_LOG_MAX))
            .map_err(|code| no_memory().because(zstd_safe::get_error_name(code)))?;
        Ok(Self { context })
    }

    /// Decodes a whole payload into `out`, which it must fill exactly.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`]: the payload is not what the codec says, or has another length.
    pub fn decompress(&mut self, codec: Codec, payload: &[u8], out: &mut [u8]) -> Result<()> {
        match codec {
            Codec::Stored => copy_exactly(payload, out),
            Codec::Zstd => {
                let expected = out.len();
                if zstd_safe::find_frame_compressed_size(payload).ok() != Some(payload.len()) {
                    return Err(damaged("the payload is not exactly one zstd frame"));
                }
                let len = self.context.decompress(out, payload).map_err(zstd_failed)?;
                if len != expected {
                    let words = format!("the payload decodes to {len} bytes instead of {expected}");
                    return Err(damaged(words));
                }
                Ok(())
            }
        }
    }
}

fn copy_exactly(payload: &[u8], out: &mut [u8]) -> Result<()> {
    if payload.len() != out.len() {
        let words = format!("a stored payload of {} bytes instead of {}", payload.len(), out.len());
        return Err(damaged(words));
    }
    out.copy_from_slice(payload);
    Ok(())
}

fn damaged(words: impl Into<String>) -> Error {
    Error::new(ErrorKind::Damaged, words)
}

fn zstd_failed(code: zstd_safe::ErrorCode) -> Error {
    damaged("the payload does not decode").because(zstd_safe::get_error_name(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(len: usize) -> Vec<u8> {
        (0..len).map(|n| (n / 7 % 97) as u8).collect()
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    }

    #[test]
    fn what_shrinks_is_compressed_and_comes_back() {
        let (mut compressor, mut decompressor) =
            (Compressor::new(1).unwrap(), Decompressor::new().unwrap());
        let mut payload = Vec::new();
        for len in [4096, 65536, 256 << 10, 2 << 20] {
            let raw = text(len);
            assert_eq!(compressor.compress(&raw, &mut payload).unwrap(), Codec::Zstd);
            let mut out = vec![0xee; len];
            decompressor.decompress(Codec::Zstd, &payload, &mut out).unwrap();
            assert!(out == raw);
        }
    }

    #[test]
    fn what_does_not_shrink_is_stored() {
        let raw = noise(65536);
        let mut payload = vec![1, 2, 3];
        assert_eq!(
            Compressor::new(3).unwrap().compress(&raw, &mut payload).unwrap(),
            Codec::Stored
        );
        assert!(payload.is_empty());
        let mut out = vec![0; 65536];
        let mut decompressor = Decompressor::new().unwrap();
        decompressor.decompress(Codec::Stored, &raw, &mut out).unwrap();
        assert!(out == raw);
        assert!(decompressor.decompress(Codec::Stored, &raw[1..], &mut out).is_err());
    }

    #[test]
    fn wrong_lengths_cuts_and_second_frames_are_damage() {
        let raw = text(65536);
        let mut payload = Vec::new();
        Compressor::new(1).unwrap().compress(&raw, &mut payload).unwrap();
        let mut decompressor = Decompressor::new().unwrap();
        let mut fails = |payload: &[u8], len: usize| {
            let mut out = vec![0; len];
            let error = decompressor.decompress(Codec::Zstd, payload, &mut out).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Damaged);
        };
        fails(&payload, 65535);
        fails(&payload, 65537);
        fails(&payload[..payload.len() - 1], 65536);
        fails(&[payload.as_slice(), payload.as_slice()].concat(), 131_072);
        fails(b"", 65536);
    }

    /// Which worker compresses which frame is chance; the archive must not show it.
    #[test]
    fn what_a_context_did_before_does_not_show() {
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        for level in [-5, 1, 3, 5, 7, 12] {
            let mut used = Compressor::new(level).unwrap();
            let (mut one, mut other) = (Vec::new(), Vec::new());
            let mut rest = program.as_slice();
            for len in [256 << 10, 64 << 10, 192 << 10, 128 << 10].into_iter().cycle().take(24) {
                let Some((raw, after)) = rest.split_at_checked(len) else { break };
                rest = after;
                let mut fresh = Compressor::new(level).unwrap();
                used.compress(raw, &mut one).unwrap();
                fresh.compress(raw, &mut other).unwrap();
                assert!(one == other, "level {level}");
            }
        }
    }

    #[test]
    fn levels_that_do_not_exist_are_refused() {
        assert_eq!(Compressor::new(23).unwrap_err().kind(), ErrorKind::Usage);
        Compressor::new(-5).unwrap();
    }
}
