#![no_main]
//! The tables of qcow2: L1, L2, refcounts, snapshots, bitmaps. What is read is written and read
//! again, and must not have changed.

use libfuzzer_sys::fuzz_target;
use qdelta_formats::qcow2::{
    BitmapTableEntry, ClusterSize, GuestOffset, HostOffset, L1Entry, L2Format, RefcountOrder,
    RefcountTableEntry, Snapshot, Version, bitmap,
};

fuzz_target!(|data: &[u8]| {
    let [choice, bits, rest @ ..] = data else { return };
    let Ok(cluster) = ClusterSize::from_bits(9 + u32::from(bits % 13)) else { return };
    l2(*choice, cluster, rest);
    for entry in L1Entry::read_all(rest) {
        let _ = entry.l2_table(cluster, HostOffset(0));
    }
    for entry in RefcountTableEntry::read_all(rest) {
        let _ = entry.block(cluster, HostOffset(0));
    }
    refcounts(*choice, rest);
    snapshot(cluster, rest);
    bitmaps(*choice, cluster, rest);
});

fn l2(choice: u8, cluster: ClusterSize, table: &[u8]) {
    let format = L2Format {
        cluster,
        version: if choice & 1 == 0 { Version::V3 } else { Version::V2 },
        extended: choice & 2 != 0,
        external_data: choice & 4 != 0,
    };
    let guest = GuestOffset(u64::from(choice) * cluster.bytes());
    for entry in table.chunks_exact(format.entry_size()) {
        let Ok(mapping) = format.decode(entry, guest, HostOffset(0)) else { continue };
        // An external data file's first cluster is at 0, which only bit 63 tells from nothing.
        let Ok(written) = format.encode(mapping, format.external_data) else { continue };
        assert_eq!(format.decode(&written, guest, HostOffset(0)), Ok(mapping));
    }
}

fn refcounts(choice: u8, block: &[u8]) {
    let Some(order) = RefcountOrder::new(u32::from(choice % 8)) else { return };
    let mut copy = block.to_vec();
    for index in 0..block.len().min(64) {
        let Some(count) = order.get(block, index) else { break };
        assert!(count <= order.max_count());
        assert_eq!(order.set(&mut copy, index, count), Ok(()));
    }
    assert_eq!(copy, block);
}

fn snapshot(cluster: ClusterSize, bytes: &[u8]) {
    let Ok(snapshot) = Snapshot::parse(bytes, 0) else { return };
    let _ = snapshot.checked_l1(cluster, cluster.bytes() * cluster.bytes() / 8, 1 << 30, 0);
    let Ok(written) = snapshot.encode() else { return };
    let again = Snapshot::parse(&written, 0);
    // What later versions appended is kept only where everything before it is there, too.
    let expected = Snapshot {
        icount: snapshot.icount.or(again.as_ref().ok().and_then(|again| again.icount)),
        ..snapshot
    };
    assert_eq!(again, Ok(expected));
}

fn bitmaps(choice: u8, cluster: ClusterSize, bytes: &[u8]) {
    let size = u64::from(choice) << 20;
    for count in 1..=2 {
        let Ok(list) = bitmap::parse_directory(bytes, 0, count, cluster, size) else { continue };
        let Ok(written) = bitmap::encode_directory(&list) else { continue };
        assert_eq!(bitmap::parse_directory(&written, 0, count, cluster, size), Ok(list));
    }
    for entry in bytes.chunks(8) {
        if let Ok(parsed) = BitmapTableEntry::parse(entry, cluster, HostOffset(0)) {
            let _ = parsed;
        }
    }
}
