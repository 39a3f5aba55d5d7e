#![no_main]
//! What clients and servers of the block device protocol send, URIs, and the header of a scratch file. What is
//! accepted is written again, and must be the same bytes; of texts for people, the same value.

use libfuzzer_sys::fuzz_target;
use qdelta_formats::nbd::{
    ANSWER_HEADER_LEN, AnswerHeader, CHUNK_HEADER_LEN, Choice, Chunk, ClientFlags, Greeting,
    MetaQuery, OPTION_HEADER_LEN, OptionHeader, OptionKind, OptionReply, REQUEST_LEN, ReplyHead,
    Request, Uri, simple_reply,
};
use qdelta_formats::scratch::Header;

fuzz_target!(|data: &[u8]| {
    let Some((choice, rest)) = data.split_first() else { return };
    // Guessing magic bytes is a waste of time.
    let magic: &[u8] = match choice % 11 {
        0 => b"IHAVEOPT",
        1 => b"\x25\x60\x95\x13",
        6 => b"NBDMAGICIHAVEOPT",
        7 => b"\0\x03\xe8\x89\x04\x55\x65\xa9",
        8 => b"\x67\x44\x66\x98",
        9 => b"\x66\x8e\x33\xef",
        10 => b"nbd",
        _ => b"",
    };
    let bytes = &[magic, rest].concat()[..];
    match choice % 11 {
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
        6 => {
            let _ = Greeting::decode(bytes);
        }
        7 => answer(bytes),
        8 => {
            if let Ok(ReplyHead::Simple { cookie, status }) = ReplyHead::decode(bytes) {
                assert_eq!(simple_reply(cookie, status), bytes[..16]);
            }
        }
        9 => reply(bytes),
        10 => {
            let text = String::from_utf8_lossy(bytes);
            if let Ok(uri) = Uri::parse(&text) {
                assert_eq!(Uri::parse(&uri.to_string()).as_ref(), Ok(&uri));
                assert!(Uri::is_meant(&uri.to_string()));
            }
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

/// An answer to an option.
fn answer(bytes: &[u8]) {
    let Ok(header) = AnswerHeader::decode(bytes) else { return };
    let data = &bytes[ANSWER_HEADER_LEN..];
    let Ok(reply) = OptionReply::decode(header.kind, data) else { return };
    let again = reply.encode(OptionKind::Go);
    let head = AnswerHeader::decode(&again).unwrap();
    assert_eq!(head.len as usize, again.len() - ANSWER_HEADER_LEN);
    // What is too long for people is cut, and a byte that is no text becomes three.
    if data.len() < 300 {
        assert_eq!(OptionReply::decode(head.kind, &again[ANSWER_HEADER_LEN..]), Ok(reply));
    }
}

/// A chunk of a structured reply.
fn reply(bytes: &[u8]) {
    let Ok(ReplyHead::Chunk(head)) = ReplyHead::decode(bytes) else { return };
    let Ok(chunk) = Chunk::decode(&head, &bytes[CHUNK_HEADER_LEN..]) else { return };
    let again = chunk.encode(head.cookie, head.is_last);
    let Ok(ReplyHead::Chunk(same)) = ReplyHead::decode(&again) else { panic!("{chunk:?}") };
    assert_eq!((same.is_last, same.cookie), (head.is_last, head.cookie));
    if bytes.len() < 300 {
        assert_eq!(Chunk::decode(&same, &again[CHUNK_HEADER_LEN..]), Ok(chunk));
    }
}
