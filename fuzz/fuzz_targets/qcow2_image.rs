#![no_main]
//! A whole file as a qcow2 image: opened, mapped and inflated. No panic, bounded work.

use std::cell::RefCell;
use std::io::{Seek, Write};

use libfuzzer_sys::fuzz_target;
use qdelta::disk::image::extent::Source;
use qdelta::disk::image::{Format, Image, OpenOptions, inflate};

/// Of a larger disk only the beginning is mapped.
const MAPPED_MAX: u64 = 64 << 20;

thread_local! {
    static FILE: RefCell<tempfile::NamedTempFile> =
        RefCell::new(tempfile::NamedTempFile::new_in("/dev/shm").expect("a file in memory"));
}

fuzz_target!(|data: &[u8]| {
    FILE.with_borrow_mut(|file| {
        let written = file.as_file().set_len(0).and_then(|()| file.rewind());
        written.and_then(|()| file.write_all(data)).expect("write the image");
        read(file.path());
    });
});

fn read(path: &std::path::Path) {
    let options = OpenOptions { format: Some(Format::Qcow2), ..OpenOptions::default() };
    let Ok(image) = Image::open(path, &options) else { return };
    let size = image.virtual_size().min(MAPPED_MAX);
    let mut mapper = image.mapper();
    let mut extents = Vec::new();
    if mapper.extents(0..size, &mut extents).is_err() {
        return;
    }
    let mut end = 0;
    for extent in &extents {
        assert_eq!(extent.guest_offset, end, "a gap or an overlap");
        assert!(extent.len > 0);
        end += extent.len;
    }
    assert_eq!(end, size, "the map covers the disk");
    for extent in extents.iter().take(16) {
        if let Source::Compressed(cluster) = extent.source {
            let file = &image.files()[usize::from(cluster.file.0)];
            let mut compressed = vec![0; cluster.compressed_len as usize];
            let Ok(len) = file.read_at(&mut compressed, cluster.host_offset) else { continue };
            let mut out = vec![0; cluster.cluster_size as usize];
            let _ = inflate(cluster.compression, &compressed[..len], &mut out);
        }
    }
}
