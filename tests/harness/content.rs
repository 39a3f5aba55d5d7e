//! What guests write: text that compresses, noise that does not, patterns and zeros, at offsets
//! that fit nothing. Everything follows from a seed.

use std::path::{Path, PathBuf};

/// A small generator of numbers (SplitMix64): the same seed gives the same test everywhere.
#[derive(Debug, Clone)]
pub struct Random {
    state: u64,
}

impl Random {
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    pub fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is not zero.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// Bytes that no compressor makes shorter.
    pub fn noise(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }

    /// Bytes that compress like a log file.
    pub fn text(&mut self, len: usize) -> Vec<u8> {
        let words = ["sector", "guest", "flush", "cluster", "mapped", "snapshot", "error", "ok"];
        let mut bytes = Vec::with_capacity(len + 64);
        while bytes.len() < len {
            let line =
                format!("{:08x} {} {}\n", self.next() as u32, self.pick(&words), self.pick(&words));
            bytes.extend_from_slice(line.as_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}

/// Makes lists of `qemu-io` commands. The bytes to write lie in files of `dir`.
#[derive(Debug)]
pub struct Guest {
    pub random: Random,
    dir: PathBuf,
    files: u64,
}

impl Guest {
    /// A guest whose every write follows from `seed`.
    pub fn new(dir: &Path, seed: u64) -> Self {
        let dir = dir.join(format!("guest-{seed:x}"));
        std::fs::create_dir_all(&dir).unwrap();
        Self { random: Random::new(seed), dir, files: 0 }
    }

    /// A file with new bytes to write: noise, text, or a mix with runs of zeros.
    fn source(&mut self, len: usize) -> PathBuf {
        let bytes = match self.random.below(4) {
            0 => self.random.noise(len),
            1 | 2 => self.random.text(len),
            _ => {
                let mut bytes = self.random.noise(len);
                for chunk in bytes.chunks_mut(4096).step_by(2) {
                    chunk.fill(0);
                }
                bytes
            }
        };
        self.files += 1;
        let path = self.dir.join(format!("{}", self.files));
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// Writes new bytes at `offset`.
    pub fn write(&mut self, offset: u64, len: u64) -> String {
        if self.random.one_in(5) {
            let pattern = 1 + self.random.below(255);
            return format!("write -q -P {pattern} {offset} {len}");
        }
        // qemu-io repeats a file that is shorter than the write.
        let source = self.source(len.min(256 << 10) as usize);
        format!("write -q -s {} {offset} {len}", source.display())
    }

    /// A range on a disk of `size` bytes: mostly small, sometimes large, on no boundary that
    /// anybody thought of.
    pub fn range(&mut self, size: u64) -> (u64, u64) {
        let max = match self.random.below(6) {
            0 => 1 << 9,
            1 | 2 => 16 << 10,
            3 | 4 => 200 << 10,
            _ => 1 << 20,
        };
        let align = self.random.pick(&[1, 512, 4096, 65536]);
        let offset = self.random.below(size) / align * align;
        let len = (1 + self.random.below(max)).next_multiple_of(align).min(size - offset);
        (offset, len)
    }

    /// One thing that a guest does to a disk of `size` bytes.
    pub fn act(&mut self, size: u64) -> String {
        let (offset, len) = self.range(size);
        match self.random.below(10) {
            0 => format!("write -q -z {offset} {len}"),
            1 => format!("write -q -z -u {offset} {len}"),
            2 => format!("discard -q {offset} {len}"),
            3 => "flush".to_owned(),
            _ => self.write(offset, len),
        }
    }

    /// A disk with a bit of everything: data at both ends, a stretch of each kind of zero, and
    /// `count` random acts.
    pub fn fill(&mut self, size: u64, count: usize) -> Vec<String> {
        if size == 0 {
            return Vec::new();
        }
        let at = |percent: u64| size * percent / 100;
        let mut list = vec![
            self.write(0, at(12).max(1)),
            self.write(at(30), at(20).max(1)),
            self.write(at(70), at(9).max(1)),
            format!("write -q -z {} {}", at(33), at(4).max(1)),
            format!("write -q -z -u {} {}", at(40), at(4).max(1)),
            format!("discard -q {} {}", at(72), at(5).max(1)),
            self.write(size - 1, 1),
        ];
        list.extend((0..count).map(|_| self.act(size)));
        list
    }
}
