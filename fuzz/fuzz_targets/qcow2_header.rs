#![no_main]
//! A qcow2 header: what is accepted is written and read again, and must not have changed.

use libfuzzer_sys::fuzz_target;
use qdelta_formats::qcow2::{Header, HeaderPrefix};

fuzz_target!(|data: &[u8]| {
    let Ok(prefix) = HeaderPrefix::parse(data) else { return };
    // Filling up to 2 MiB each time would only cost time.
    if prefix.cluster.bytes() > 64 << 10 {
        return;
    }
    let fill = |bytes: &[u8]| {
        let mut cluster = bytes.to_vec();
        cluster.resize(prefix.cluster.len(), 0);
        cluster
    };
    let Ok(header) = Header::parse(&fill(data)) else { return };
    // An extension may be padded by rules that ours are stricter than; then there is no room.
    let Ok(written) = header.encode() else { return };
    assert_eq!(Header::parse(&fill(&written)).as_ref(), Ok(&header));
});
