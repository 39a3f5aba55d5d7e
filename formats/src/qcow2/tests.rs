//! Tests of header, extensions and L2 entries.

use proptest::prelude::*;

use super::*;
use crate::Problem;

fn cluster(bits: u32) -> ClusterSize {
    ClusterSize::from_bits(bits).unwrap()
}

fn header() -> Header {
    let table = |offset, entries| Table { offset: HostOffset(offset), entries };
    Header::new(cluster(16), 1 << 30, table(0x3_0000, 2), table(0x1_0000, 1)).unwrap()
}

/// The error of a header whose bytes at `at` are replaced by `bytes`.
fn patched(at: usize, bytes: &[u8]) -> crate::FormatError {
    let mut encoded = header().encode().unwrap();
    encoded[at..at + bytes.len()].copy_from_slice(bytes);
    Header::parse(&encoded).unwrap_err()
}

#[test]
fn header_with_everything_survives() {
    let full = Header {
        encryption: Encryption::Luks,
        snapshots: Table { offset: HostOffset(0x8_0000), entries: 2 },
        incompatible: Incompatible::DIRTY
            .with(Incompatible::COMPRESSION)
            .with(Incompatible::DATA_FILE),
        compatible: Compatible(1 | 1 << 40),
        autoclear: Autoclear(3 | 1 << 50),
        refcount_order: RefcountOrder::new(6).unwrap(),
        compression: CompressionType::Zstd,
        unknown_fields: vec![1; 16],
        extensions: Extensions {
            backing_format: Some(b"raw".to_vec()),
            data_file: Some(b"disk.data".to_vec()),
            encryption_header: Some(EncryptionHeader { offset: HostOffset(0x4_0000), len: 99 }),
            bitmaps: Some(BitmapsExtension {
                count: 1,
                directory: HostOffset(0x6_0000),
                directory_len: 32,
            }),
            unknown: vec![UnknownExtension { kind: 0x1234_5678, data: vec![9; 5] }],
            ..header().extensions
        },
        backing_name: Some(b"base.img".to_vec()),
        ..header()
    };
    assert_eq!(Header::parse(&full.encode().unwrap()).unwrap(), full);
}

#[test]
fn version_2_has_no_features() {
    let v2 = Header { version: Version::V2, extensions: Extensions::default(), ..header() };
    let bytes = v2.encode().unwrap();
    assert_eq!(Header::parse(&bytes).unwrap(), v2);
    assert_eq!(&bytes[72..80], &[0; 8]);
    // What version 3 would say lies where version 2 has extensions: it can't be written.
    assert!(Header { incompatible: Incompatible::DIRTY, ..v2 }.encode().is_err());
}

#[test]
fn each_rule_of_the_header() {
    let be32 = |value: u32| value.to_be_bytes();
    let be64 = |value: u64| value.to_be_bytes();
    for (at, bytes, field) in [
        (0, &b"QFI\xfa"[..], "magic"),
        (4, &be32(1), "version"),
        (4, &be32(4), "version"),
        (8, &be64(0x1_0001), "backing_file_offset"),
        (20, &be32(8), "cluster_bits"),
        (20, &be32(22), "cluster_bits"),
        (24, &be64(1 << 63), "size"),
        (24, &be64((1 << 30) + 1), "l1_size"),
        (32, &be32(3), "crypt_method"),
        (36, &be32((4 << 20) + 1), "number of entries of the active L1 table"),
        (36, &be32(1), "l1_size"),
        (40, &be64(0x3_0200), "offset of the active L1 table"),
        (40, &be64(1 << 63), "offset of the active L1 table"),
        (48, &be64(0x200), "offset of the refcount table"),
        (48, &be64(0x7fff_ffff_ffff_0000), "offset of the refcount table"),
        (56, &be32(0), "refcount_table_clusters"),
        (56, &be32(129), "refcount_table_clusters"),
        (60, &be32(65_537), "number of entries of the snapshot table"),
        (64, &be64(0x200), "offset of the snapshot table"),
        (72, &be64(1 << 5), "incompatible_features"),
        (72, &be64(1 << 3), "incompatible_features"),
        (88, &be64(1 << 1), "autoclear_features"),
        (96, &be32(7), "refcount_order"),
        (100, &be32(103), "header_length"),
        (100, &be32(0x1_0001), "header_length"),
        (104, &[1], "incompatible_features"),
        (104, &[2], "compression_type"),
        (116, &be32(0x1_0000), "header extension"),
    ] {
        let error = patched(at, bytes);
        assert_eq!(error.field, field, "{at}: {error}");
    }
}

#[test]
fn backing_name_ends_with_the_cluster_or_at_1023_bytes() {
    let with_name = |offset: u64, len: u32| {
        let mut bytes = header().encode().unwrap();
        bytes[8..16].copy_from_slice(&offset.to_be_bytes());
        bytes[16..20].copy_from_slice(&len.to_be_bytes());
        bytes[4096..].fill(b'x');
        Header::parse(&bytes)
    };
    assert_eq!(with_name(0xfc01, 1023).unwrap().backing_name.unwrap().len(), 1023);
    assert_eq!(with_name(0xfc02, 1023).unwrap_err().field, "backing_file_size");
    assert_eq!(with_name(4096, 1024).unwrap_err().field, "backing_file_size");
    assert_eq!(with_name(4096, 0).unwrap().backing_name, None);
    assert_eq!(with_name(0x1_0000, 0).unwrap().backing_name, None);
}

#[test]
fn unknown_feature_is_called_by_the_name_that_the_image_gives_it() {
    let mut names = header();
    let name = FeatureName { set: 0, bit: 62, name: b"time travel".to_vec() };
    names.extensions.feature_names.push(name);
    let mut bytes = names.encode().unwrap();
    bytes[72..80].copy_from_slice(&(1_u64 << 62 | 1 << 61).to_be_bytes());
    let error = Header::parse(&bytes).unwrap_err();
    let Problem::Unsupported(text) = error.problem else { panic!("{error}") };
    assert_eq!(text, "incompatible feature bit 61, time travel");
}

#[test]
fn stale_bitmaps_extension_does_not_stop_a_reader() {
    let broken = BitmapsExtension { count: 0, directory: HostOffset(1), directory_len: 0 };
    let mut with_bitmaps = header();
    with_bitmaps.extensions.bitmaps = Some(broken);
    with_bitmaps.extensions.feature_names.clear();
    // The writer refuses it, so it is put there by hand.
    assert!(with_bitmaps.encode().is_err());
    let mut bytes = header().encode().unwrap();
    bytes[112..].fill(0);
    bytes[112..120].copy_from_slice(&[0x23, 0x85, 0x28, 0x75, 0, 0, 0, 24]);
    assert_eq!(Header::parse(&bytes).unwrap().extensions.bitmaps, None);
    bytes[95] = 1;
    assert_eq!(Header::parse(&bytes).unwrap_err().field, "nb_bitmaps");
}

#[test]
fn size_is_rounded_down_to_sectors() {
    let mut bytes = header().encode().unwrap();
    bytes[24..32].copy_from_slice(&1023_u64.to_be_bytes());
    let header = Header::parse(&bytes).unwrap();
    assert_eq!((header.declared_size, header.virtual_size()), (1023, 512));
}

#[test]
fn extended_l2_needs_clusters_of_16_kib() {
    let table = |offset, entries| Table { offset: HostOffset(offset), entries };
    let small = Header {
        incompatible: Incompatible::EXTENDED_L2,
        ..Header::new(cluster(13), 1 << 20, table(0x2000, 1), table(0x4000, 1)).unwrap()
    };
    assert_eq!(small.encode().unwrap_err().field, "cluster_bits with extended L2 entries");
}

fn format(bits: u32) -> L2Format {
    let cluster = cluster(bits);
    L2Format { cluster, version: Version::V3, extended: false, external_data: false }
}

fn decode(format: L2Format, descriptor: u64, bitmap: u64, guest: u64) -> Option<Mapping> {
    let mut entry = descriptor.to_be_bytes().to_vec();
    entry.extend_from_slice(&bitmap.to_be_bytes());
    format.decode(&entry[..format.entry_size()], GuestOffset(guest), HostOffset(0)).ok()
}

const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;

#[test]
fn standard_entries() {
    let host = HostOffset(0x5_0000);
    let format = format(16);
    let decode = |descriptor| decode(format, descriptor, 0, 0);
    assert_eq!(decode(0), Some(Mapping::Unallocated));
    // Reserved bits and a stray refcount bit are ignored, as QEMU does.
    assert_eq!(decode(COPIED), Some(Mapping::Unallocated));
    assert_eq!(decode(COPIED | 0x5_0000), Some(Mapping::Data { host }));
    assert_eq!(decode(0x3f00_0000_0005_01fe), Some(Mapping::Data { host }));
    assert_eq!(decode(1), Some(Mapping::Zero { host: None }));
    assert_eq!(decode(0x5_0001), Some(Mapping::Zero { host: Some(host) }));
    assert_eq!(decode(0x5_0200), None);
    assert_eq!(decode(0x5_0201), None);
}

#[test]
fn zero_clusters_do_not_exist_in_version_2() {
    let format = L2Format { version: Version::V2, ..format(16) };
    assert_eq!(decode(format, 1, 0, 0), None);
    assert_eq!(decode(format, 0x5_0001, 0, 0), None);
    assert!(format.encode(Mapping::Zero { host: None }, false).is_err());
}

#[test]
fn external_data_lies_at_its_guest_offset() {
    let format = L2Format { external_data: true, ..format(16) };
    let data = |host| Some(Mapping::Data { host: HostOffset(host) });
    assert_eq!(decode(format, COPIED, 0, 0), data(0));
    assert_eq!(decode(format, 0, 0, 0), Some(Mapping::Unallocated));
    assert_eq!(decode(format, COPIED | 0x2_0000, 0, 0x2_0000), data(0x2_0000));
    assert_eq!(decode(format, COPIED | 0x2_0000, 0, 0x3_0000), None);
    assert_eq!(decode(format, COPIED, 0, 0x3_0000), None);
    assert_eq!(decode(format, COPIED | 1, 0, 0x3_0000), Some(Mapping::Zero { host: None }));
    assert_eq!(decode(format, COMPRESSED | 0x2_0000, 0, 0x2_0000), None);
}

#[test]
fn compressed_descriptors_split_by_cluster_size() {
    // 64 KiB clusters: 54 bits of offset, 8 bits of further sectors.
    let descriptor = COMPRESSED | 3 << 54 | 0x1234;
    let expected = CompressedDescriptor { host: HostOffset(0x1234), len: 4 * 512 - 0x34 };
    assert_eq!(decode(format(16), descriptor, 0, 0), Some(Mapping::Compressed(expected)));
    // The longest: two clusters.
    for bits in 9..=21 {
        let longest = COMPRESSED | (COMPRESSED - 1) & !0x1ff;
        let Some(Mapping::Compressed(longest)) = decode(format(bits), longest, 0, 0) else {
            panic!("not compressed")
        };
        assert_eq!(u64::from(longest.len), 2 << bits);
    }
}

#[test]
fn subclusters() {
    let format = L2Format { extended: true, ..format(16) };
    let host = Some(HostOffset(0x5_0000));
    let decode = |descriptor, zero: u64, allocated: u64| {
        decode(format, descriptor, zero << 32 | allocated, 0)
    };
    let map =
        |host, zero, allocated| Some(Mapping::Subclusters(SubclusterMap { host, allocated, zero }));
    assert_eq!(decode(0, 0, 0), Some(Mapping::Unallocated));
    assert_eq!(decode(0, 0xffff_ffff, 0), Some(Mapping::Zero { host: None }));
    assert_eq!(decode(0x5_0000, 0xffff_ffff, 0), Some(Mapping::Zero { host }));
    assert_eq!(
        decode(0x5_0000, 0, 0xffff_ffff),
        Some(Mapping::Data { host: HostOffset(0x5_0000) })
    );
    assert_eq!(decode(0x5_0000, 0, 0), map(host, 0, 0));
    assert_eq!(decode(0x5_0000, 2, 1), map(host, 2, 1));
    assert_eq!(decode(0, 2, 0), map(None, 2, 0));
    assert_eq!(decode(0, 0, 1), None, "allocated without a host cluster");
    assert_eq!(decode(0x5_0000, 1, 1), None, "allocated and zero");
    // Bit 0 means nothing here.
    assert_eq!(decode(1, 0, 0), Some(Mapping::Unallocated));
    let map = SubclusterMap { host, allocated: 1, zero: 2 };
    let all: Vec<_> = (0..4).map(|index| map.get(index)).collect();
    use Subcluster::{Data, Unallocated, Zero};
    assert_eq!(all, [Data, Zero, Unallocated, Unallocated]);
}

fn mapping(bits: u32, extended: bool) -> impl Strategy<Value = Mapping> {
    let host = (1_u64..1 << (56 - bits)).prop_map(move |cluster| HostOffset(cluster << bits));
    let compressed = (0..1_u64 << (70 - bits).min(56), 1_u32..1 << bits).prop_map(|(host, len)| {
        // A descriptor knows whole sectors only.
        let len = (host + u64::from(len)).next_multiple_of(512) - host;
        Mapping::Compressed(CompressedDescriptor { host: HostOffset(host), len: len as u32 })
    });
    let subclusters =
        (host.clone(), 1..u32::MAX, any::<u32>()).prop_map(|(host, allocated, zero)| {
            Mapping::Subclusters(SubclusterMap {
                host: Some(host),
                allocated,
                zero: zero & !allocated,
            })
        });
    prop_oneof![
        1 => Just(Mapping::Unallocated),
        1 => proptest::option::of(host.clone()).prop_map(|host| Mapping::Zero { host }),
        1 => host.prop_map(|host| Mapping::Data { host }),
        1 => compressed,
        u32::from(extended) => subclusters,
    ]
}

proptest! {
    #[test]
    fn encoded_mappings_are_decoded(
        (bits, extended, mapping) in (14..=21_u32, any::<bool>())
            .prop_flat_map(|(bits, extended)| (Just(bits), Just(extended), mapping(bits, extended))),
        sole_owner: bool,
    ) {
        let format = L2Format { extended, ..format(bits) };
        let entry = format.encode(mapping, sole_owner).unwrap();
        let decoded = format.decode(&entry, GuestOffset(0), HostOffset(0)).unwrap();
        prop_assert_eq!(decoded, mapping);
    }

    #[test]
    fn no_entry_makes_it_panic(
        bits in 9..=21_u32, descriptor: u64, bitmap: u64, guest: u64, flags in 0..8_u32,
    ) {
        let format = L2Format {
            cluster: cluster(bits),
            version: if flags & 1 == 0 { Version::V2 } else { Version::V3 },
            extended: flags & 2 != 0 && bits >= 14,
            external_data: flags & 4 != 0,
        };
        decode(format, descriptor, bitmap, guest);
    }

    #[test]
    fn no_header_makes_it_panic(
        patches in proptest::collection::vec((0..400_usize, any::<u8>()), 1..12),
    ) {
        let mut bytes = header().encode().unwrap();
        for (at, value) in patches {
            bytes[at] = value;
        }
        if let Ok(header) = Header::parse(&bytes) {
            prop_assert!(header.virtual_size() <= VIRTUAL_SIZE_MAX);
            prop_assert!(u64::from(header.l1.entries) * 8 <= L1_SIZE_MAX);
        }
    }
}
