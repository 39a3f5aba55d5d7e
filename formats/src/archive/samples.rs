//! Metadata that the tests share.

use super::*;

pub(super) fn full() -> Metadata {
    Metadata {
        archive_id: ArchiveId([0x11; 16]),
        point: "20261122T153823.412Z".into(),
        domain: "web".into(),
        disk: "vda".into(),
        kind: Kind::Full,
        tracker: Tracker::Scan,
        consistency: Consistency::Offline,
        created_ms: 1_795_361_903_412,
        geometry: Geometry::new(100 << 20, 65536).unwrap(),
        frame_blocks: 1,
        parent: None,
        generator: "qdelta 0.1.0".into(),
        extensions: Vec::new(),
    }
}

pub(super) fn incremental() -> Metadata {
    let full = full();
    Metadata {
        archive_id: ArchiveId([0x22; 16]),
        point: "20261123T153823.412Z".into(),
        kind: Kind::Incremental,
        parent: Some(Parent {
            domain: full.domain.clone(),
            disk: full.disk.clone(),
            point: full.point.clone(),
            root: Digest([0x33; 32]),
        }),
        ..full
    }
}
