#![no_main]
//! What clients of the block device protocol send, and the header of a scratch file. What is accepted is
//! written again, and must be the same bytes.

use libfuzzer_sys::fuzz_target;
use qdelta_formats::nbd::{
    Choice, ClientFlags, MetaQuery, OPTION_HEADER_LEN, OptionHeader, OptionReply, REQUEST_LEN,
    Request,
};
use qdelta_formats::scratch::Header;

fuzz_target!(|data: &[u8]| {
    let Some((choice, rest)) = data.split_first() else { return };
    // Guessing magic bytes is a waste of time.
    let magic: &[u8] = match choice % 6 {
        0 => b"IHAVEOPT",
        1 => b"\x25\x60\x95\x13",
        _ => b"",
    };
    let bytes = &[magic, rest].concat()[..];
    match choice % 6 {
        0 => {
            if let Ok(header) = OptionHeader::decode(bytes) {
                assert_eq!(header.encode(), bytes[..OPTION_HEADER_LEN]);
                let _ = OptionReply::Unsupported.encode(header.kind);
            }
        }
        1 => {
            if let Ok(request) = Request::decode(bytes) {
                assert_eq!(request.encode(), bytes[..REQUEST_LEN]);
                let _ = (request.is_within(u64::MAX), request.flags.is_odd_for(request.command));
            }
        }
        2 => {
            if let Ok(choice) = Choice::decode(bytes) {
                assert_eq!(choice.encode(), bytes);
            }
            let _ = Choice::decode_name(bytes);
        }
        3 => {
            if let Ok(query) = MetaQuery::decode(bytes) {
                assert_eq!(query.encode(), bytes);
                let _ = (query.wants_allocation(true), query.wants_allocation(false));
            }
        }
        4 => {
            let _ = ClientFlags::decode(bytes);
        }
        _ => {
            let sealed = Header::sealed(bytes);
            if let Ok(header) = Header::decode(&sealed) {
                assert_eq!(Header::decode(&header.encode()).as_ref(), Ok(&header));
                assert!(header.stable().end <= header.since_start().start);
                assert!(header.since_start().end <= header.data());
            }
        }
    }
});
