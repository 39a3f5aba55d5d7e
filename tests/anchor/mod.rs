//! Snapshots and bitmaps that qdelta writes into images, with QEMU as the judge of them.

mod histories;
mod hostile;
mod oracle;
mod power;
mod soundness;

use std::path::Path;
use std::process::{Command, Output};

/// Random numbers that a seed repeats (splitmix64).
#[derive(Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    pub fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len() as u64) as usize]
    }
}

/// How often more than by default what is random is to be repeated.
pub fn effort() -> u64 {
    std::env::var("QDELTA_SWEEP").map_or(1, |text| text.parse().unwrap())
}

/// The seeds to go through: the one that is asked for, or `count` of them.
pub fn seeds(count: u64) -> Vec<u64> {
    match std::env::var("QDELTA_SEED") {
        Ok(text) => vec![u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap()],
        Err(_) => (0..count * effort()).map(|it| it * 0x1_0001 + 7).collect(),
    }
}

fn output(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap()
}

/// Runs a program that must succeed; gives what it says.
#[track_caller]
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = output(program, arguments);
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What `qemu-img check` finds: nothing, or leaks, or worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Clean,
    Leaks,
}

/// Has QEMU check the image, which must be no worse than leaking.
#[track_caller]
pub fn check(path: &Path, about: &str) -> Verdict {
    let output = output("qemu-img", &["check", "-f", "qcow2", text(path)]);
    match output.status.code() {
        Some(0) => Verdict::Clean,
        Some(3) => Verdict::Leaks,
        _ => panic!("{about}: {output:?}"),
    }
}

#[track_caller]
pub fn check_clean(path: &Path) {
    let output = output("qemu-img", &["check", "-f", "qcow2", text(path)]);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The bytes of the disk, or of one of its snapshots, as QEMU reads them.
pub fn content(path: &Path, snapshot: Option<&str>) -> Vec<u8> {
    let raw = path.with_extension("content");
    let option = snapshot.map(|name| format!("snapshot.name={name}"));
    let mut arguments = vec!["convert", "-f", "qcow2", "-O", "raw"];
    if let Some(option) = &option {
        arguments.extend(["-l", option]);
    }
    arguments.extend([text(path), text(&raw)]);
    run("qemu-img", &arguments);
    let bytes = std::fs::read(&raw).unwrap();
    std::fs::remove_file(raw).unwrap();
    bytes
}

/// What an image is made with.
#[derive(Debug, Clone)]
pub struct Shape {
    pub options: String,
    pub size: u64,
}

impl Shape {
    pub fn new(options: &str, size: u64) -> Self {
        Self { options: options.to_owned(), size }
    }

    pub fn create(&self, path: &Path) {
        let size = self.size.to_string();
        let mut arguments = vec!["create", "-q", "-f", "qcow2"];
        if !self.options.is_empty() {
            arguments.extend(["-o", &self.options]);
        }
        run("qemu-img", &[&arguments[..], &[text(path), &size]].concat());
    }

    pub fn is_version_2(&self) -> bool {
        self.options.contains("compat=0.10")
    }

    /// Commands for qemu-io that change the disk here and there.
    pub fn writes(&self, random: &mut Random, count: u64) -> Vec<String> {
        let mut commands = Vec::new();
        for _ in 0..count {
            let len = 512 * (1 + random.below(300));
            let at = random.below(self.size.saturating_sub(len) / 512) * 512;
            let len = len.min(self.size - at);
            let pattern = 1 + random.below(255);
            commands.push(match random.below(8) {
                0 => format!("discard {at} {len}"),
                1 => format!("write -z {at} {len}"),
                2 => format!("write -z -u {at} {len}"),
                3 if self.can_compress() => {
                    let at = at / 65536 * 65536;
                    format!("write -c -P {pattern} {at} 64k")
                }
                _ => format!("write -P {pattern} {at} {len}"),
            });
        }
        commands
    }

    /// Many compressed clusters lie in one host cluster: narrow counts can't count them twice.
    fn can_compress(&self) -> bool {
        let narrow = ["refcount_bits=2", "refcount_bits=4", "refcount_bits=8"];
        self.size.is_multiple_of(65536)
            && !self.options.contains("data_file")
            && !narrow.iter().any(|it| self.options.contains(it))
    }
}

/// Has qemu-io do all these commands to the image.
#[track_caller]
pub fn qemu_io(path: &Path, commands: &[String]) {
    let mut arguments = vec!["-d", "unmap", "-f", "qcow2"];
    for command in commands {
        arguments.extend(["-c", command]);
    }
    arguments.push(text(path));
    let output = output("qemu-io", &arguments);
    let said = String::from_utf8_lossy(&output.stdout);
    // Compressed clusters are not written where there is something; the other commands run.
    let may_fail = commands.iter().any(|it| it.starts_with("write -c"));
    let failed = !output.status.success() || said.contains("failed");
    assert!(!failed || may_fail && said.contains("write failed"), "{arguments:?}: {output:?}");
}

/// Images of all kinds that matter here. Compressed clusters want 64 KiB to be a whole number of
/// clusters.
pub fn shapes() -> Vec<Shape> {
    vec![
        Shape::new("", 8 << 20),
        Shape::new("compat=0.10", 8 << 20),
        Shape::new("cluster_size=512", 1 << 20),
        Shape::new("cluster_size=4k,refcount_bits=2", 4 << 20),
        Shape::new("cluster_size=4k,refcount_bits=64", 4 << 20),
        Shape::new("cluster_size=1k,refcount_bits=8", 2 << 20),
        Shape::new("extended_l2=on,cluster_size=16k", 8 << 20),
        Shape::new("lazy_refcounts=on,refcount_bits=32", 8 << 20),
        Shape::new("preallocation=metadata,cluster_size=4k", 4 << 20),
        Shape::new("compression_type=zstd", 8 << 20),
    ]
}
