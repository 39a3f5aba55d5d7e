//! Decompression of compressed clusters.

use std::io;

use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};

use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::image::extent::Compression;

/// Decompresses clusters, one after another. Each worker keeps one: its contexts are costly to make.
pub struct Inflater {
    deflate: libdeflater::Decompressor,
    zstd: Option<Decoder<'static>>,
    /// For streams that go on beyond their cluster.
    spill: Vec<u8>,
}

impl Default for Inflater {
    fn default() -> Self {
        Self::new()
    }
}

/// The most bytes that deflate puts out at once: a stored block.
const DEFLATE_STEP_MAX: usize = 65_535;

impl Inflater {
    /// An inflater without any memory of earlier clusters.
    pub fn new() -> Self {
        Self { deflate: libdeflater::Decompressor::new(), zstd: None, spill: Vec::new() }
    }

    /// Fills `out`, which is exactly one cluster long, from `compressed`. Bytes behind the end of
    /// the compressed stream are ignored: they may be padding or belong to a neighbour.
    ///
    /// # Errors
    /// [`ErrorKind::Image`]: the stream is damaged or does not fill the cluster. What `out` holds
    /// then means nothing.
    pub fn inflate(
        &mut self,
        compression: Compression,
        compressed: &[u8],
        out: &mut [u8],
    ) -> Result<()> {
        match compression {
            Compression::Deflate => self.inflate_deflate(compressed, out),
            Compression::Zstd => self.inflate_zstd(compressed, out),
        }
    }

    fn inflate_deflate(&mut self, compressed: &[u8], out: &mut [u8]) -> Result<()> {
        use libdeflater::DecompressionError as E;
        match self.deflate.deflate_decompress(compressed, out) {
            Ok(len) if len == out.len() => Ok(()),
            Ok(len) => Err(too_short(len, out.len())),
            Err(E::InsufficientSpace) => self.inflate_deflate_beyond(compressed, out),
            Err(E::BadData) => Err(damaged("deflate")),
        }
    }

    /// The stream holds more than the cluster; QEMU takes what the cluster needs. No step of
    /// deflate puts out more than [`DEFLATE_STEP_MAX`] bytes, so if that much space behind the
    /// cluster does not suffice either, the cluster itself is full.
    fn inflate_deflate_beyond(&mut self, compressed: &[u8], out: &mut [u8]) -> Result<()> {
        use libdeflater::DecompressionError as E;
        self.spill.clear();
        self.spill.resize(out.len() + DEFLATE_STEP_MAX, 0);
        match self.deflate.deflate_decompress(compressed, &mut self.spill) {
            Ok(_) | Err(E::InsufficientSpace) => {}
            Err(E::BadData) => return Err(damaged("deflate")),
        }
        out.copy_from_slice(self.spill.get(..out.len()).unwrap_or_default());
        Ok(())
    }

    /// Several frames may follow one another; the last one must end with the cluster.
    fn inflate_zstd(&mut self, compressed: &[u8], out: &mut [u8]) -> Result<()> {
        let failed = |error: io::Error| damaged("zstd").because(error);
        let decoder = match &mut self.zstd {
            Some(decoder) => {
                decoder.reinit().map_err(failed)?;
                decoder
            }
            none => none.insert(Decoder::new().map_err(failed)?),
        };
        let len = out.len();
        let mut input = InBuffer::around(compressed);
        let mut output = OutBuffer::around(out);
        loop {
            let before = (input.pos(), output.pos());
            let missing = decoder.run(&mut input, &mut output).map_err(failed)?;
            let is_full = output.pos() == len;
            if is_full && missing == 0 {
                return Ok(());
            }
            if before == (input.pos(), output.pos()) {
                // The frame goes on beyond the cluster, or the bytes end before it does.
                return Err(if is_full { damaged("zstd") } else { too_short(output.pos(), len) });
            }
        }
    }
}

/// Decompresses a single cluster; see [`Inflater::inflate`].
///
/// # Errors
/// See there.
pub fn inflate(compression: Compression, compressed: &[u8], out: &mut [u8]) -> Result<()> {
    Inflater::new().inflate(compression, compressed, out)
}

fn damaged(how: &str) -> Error {
    Error::new(ErrorKind::Image, format!("the {how} stream of a compressed cluster is damaged"))
}

fn too_short(len: usize, cluster: usize) -> Error {
    Error::new(
        ErrorKind::Image,
        format!("a compressed cluster holds {len} bytes where {cluster} are needed"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: usize = 65_536;

    fn sample(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * i / 977) as u8).collect()
    }

    fn deflate(bytes: &[u8]) -> Vec<u8> {
        let mut compressor = libdeflater::Compressor::new(libdeflater::CompressionLvl::default());
        let mut out = vec![0; compressor.deflate_compress_bound(bytes.len())];
        let len = compressor.deflate_compress(bytes, &mut out).unwrap();
        out.truncate(len);
        out
    }

    fn compress(compression: Compression, bytes: &[u8]) -> Vec<u8> {
        match compression {
            Compression::Deflate => deflate(bytes),
            Compression::Zstd => zstd::bulk::compress(bytes, 3).unwrap(),
        }
    }

    const BOTH: [Compression; 2] = [Compression::Deflate, Compression::Zstd];

    #[test]
    fn padding_behind_the_stream_is_ignored() {
        let mut inflater = Inflater::new();
        for compression in BOTH {
            for padding in [0, 1, 511] {
                let mut compressed = compress(compression, &sample(CLUSTER));
                compressed.extend(std::iter::repeat_n(0xa5, padding));
                let mut out = vec![0; CLUSTER];
                inflater.inflate(compression, &compressed, &mut out).unwrap();
                assert!(out == sample(CLUSTER), "{compression:?} with {padding}");
            }
        }
    }

    #[test]
    fn stream_must_fill_the_cluster() {
        for compression in BOTH {
            for len in [0, 1, CLUSTER - 1] {
                let compressed = compress(compression, &sample(len));
                let error = inflate(compression, &compressed, &mut vec![0; CLUSTER]).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Image, "{compression:?} of {len}");
            }
            let whole = compress(compression, &sample(CLUSTER));
            for len in [0, 1, whole.len() / 2, whole.len() - 1] {
                let cut = inflate(compression, &whole[..len], &mut vec![0; CLUSTER]);
                assert!(cut.is_err(), "{compression:?} cut to {len}");
            }
        }
    }

    /// QEMU takes a deflate stream that goes on beyond its cluster, and refuses such a zstd frame.
    #[test]
    fn stream_longer_than_the_cluster() {
        for len in [CLUSTER + 1, CLUSTER + 300, 3 * CLUSTER, 9 * CLUSTER] {
            let mut out = vec![0; CLUSTER];
            inflate(Compression::Deflate, &deflate(&sample(len)), &mut out).unwrap();
            assert!(out == sample(len)[..CLUSTER], "{len}");
        }
        let noise: Vec<u8> = blake3_noise(2 * CLUSTER);
        let mut out = vec![0; CLUSTER];
        inflate(Compression::Deflate, &deflate(&noise), &mut out).unwrap();
        assert!(out == noise[..CLUSTER]);
        let long = compress(Compression::Zstd, &sample(CLUSTER + 1));
        assert!(inflate(Compression::Zstd, &long, &mut out).is_err());
    }

    fn blake3_noise(len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut out);
        out
    }

    #[test]
    fn zstd_may_come_in_several_frames_and_with_a_checksum() {
        let bytes = sample(CLUSTER);
        let mut compressed = compress(Compression::Zstd, &bytes[..1000]);
        compressed.extend(compress(Compression::Zstd, &[]));
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
        encoder.include_checksum(true).unwrap();
        io::Write::write_all(&mut encoder, &bytes[1000..]).unwrap();
        compressed.extend(encoder.finish().unwrap());
        compressed.extend([0; 100]);
        let mut out = vec![0; CLUSTER];
        inflate(Compression::Zstd, &compressed, &mut out).unwrap();
        assert!(out == bytes);
    }

    #[test]
    fn an_error_does_not_spoil_the_next_cluster() {
        let mut inflater = Inflater::new();
        for compression in BOTH {
            let whole = compress(compression, &sample(CLUSTER));
            let mut out = vec![0; CLUSTER];
            assert!(inflater.inflate(compression, &whole[..whole.len() / 2], &mut out).is_err());
            inflater.inflate(compression, &whole, &mut out).unwrap();
            assert!(out == sample(CLUSTER));
        }
    }
}
