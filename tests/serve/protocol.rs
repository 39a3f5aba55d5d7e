//! What clients may ask for and what they may not, byte by byte.

use qdelta::formats::nbd::{Choice, Command, CommandFlags, MetaQuery, OptionKind};

use super::client::{Client, ERROR, Reply};
use super::*;

#[test]
fn options_are_answered_and_nonsense_ends_the_connection() {
    let scene = Scene::new(1, "64K");
    let serving = scene.serve(&["web/vda"]);
    let socket = serving.socket.as_path();
    let mut client = Client::greeted(socket);
    let unsupported = [(ERROR | 1, vec![])];
    for kind in [4, 11, 99, u32::MAX] {
        assert_eq!(client.option(OptionKind::Unknown(kind), b"whatever"), unsupported);
    }
    let error = |replies: Vec<(u32, Vec<u8>)>| {
        assert_eq!(replies.len(), 1, "{replies:?}");
        replies[0].0 ^ ERROR
    };
    assert_eq!(error(client.option(OptionKind::Go, b"\0\0\0\x09short\0\0")), 3);
    assert_eq!(error(client.option(OptionKind::List, b"data")), 3);
    assert_eq!(error(client.option(OptionKind::StartTls, b"")), 2);
    let none = Choice { name: "web/vdb@latest".into(), wanted: vec![] };
    assert_eq!(error(client.option(OptionKind::Info, &none.encode())), 6);
    assert_eq!(error(client.option(OptionKind::Info, &vec![0; 70_000])), 9);
    let query = |queries: &[&str]| {
        let queries = queries.iter().map(|query| query.as_bytes().to_vec()).collect();
        MetaQuery { name: String::new(), queries }.encode()
    };
    assert_eq!(error(client.option(OptionKind::SetMetaContext, &query(&["base:allocation"]))), 3);
    assert_eq!(client.option(OptionKind::StructuredReply, &[]), [(1, vec![])]);
    let allocation = (4, b"\0\0\0\x01base:allocation".to_vec());
    for queries in [&[][..], &["base:"], &["qemu:x", "base:allocation"]] {
        let replies = client.option(OptionKind::ListMetaContext, &query(queries));
        assert_eq!(replies, [allocation.clone(), (1, vec![])], "{queries:?}");
    }
    for queries in [&[][..], &["base:"], &["qemu:dirty-bitmap:x"]] {
        let replies = client.option(OptionKind::SetMetaContext, &query(queries));
        assert_eq!(replies, [(1, vec![])], "{queries:?}");
    }
    let choice = Choice { name: String::new(), wanted: vec![1, 2, 3, 77] };
    let replies = client.option(OptionKind::Info, &choice.encode());
    let told: Vec<_> =
        replies.iter().map(|(_, data)| data.get(..2).unwrap_or(b"").to_vec()).collect();
    assert_eq!(
        told,
        [b"\0\0".to_vec(), b"\0\x01".to_vec(), b"\0\x02".to_vec(), b"\0\x03".to_vec(), vec![]]
    );
    assert_eq!(client.option(OptionKind::Abort, &[]), [(1, vec![])]);
    client.hears_the_end();

    let cut_off = |bytes: &[u8]| {
        let mut client = Client::connect(socket);
        client.take(18);
        client.say(bytes);
        client.hears_the_end();
    };
    cut_off(&[0, 0, 1, 0]);
    cut_off(b"\0\0\0\x03IHAVEOPX\0\0\0\x03\0\0\0\0");
    cut_off(b"\0\0\0\x03IHAVEOPT\0\0\0\x03\xff\xff\xff\xff");
    cut_off(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\x04none");
    // The old way to choose, with the zeros that it has.
    let mut client = Client::connect(socket);
    client.take(18);
    client.say(b"\0\0\0\x01IHAVEOPT\0\0\0\x01\0\0\0\0");
    assert_eq!(client.take(134)[..8], (SIZE as u64).to_be_bytes());
    assert_eq!(client.read(0, 512).unwrap(), scene.bytes(0)[..512]);
    serving.stop().ok();
}

#[test]
fn requests_at_random_give_the_bytes_and_odd_ones_an_error() {
    let scene = Scene::new(3, "4K");
    let serving = scene.serve(&[]);
    let bytes = scene.bytes(2);
    for structured in [false, true] {
        let mut client = Client::ready(&serving.socket, "web@latest", structured);
        let mut random = Random::new(5);
        for _ in 0..200 {
            let offset = random.below(SIZE as u64);
            let len = random.pick(&[1, 511, 4096, 100_000, 3 << 20]).min(SIZE as u64 - offset);
            let read = client.read(offset, len as u32).unwrap();
            assert!(read == bytes[offset as usize..][..len as usize], "{len} bytes at {offset}");
        }
        let end = SIZE as u64;
        for (offset, len) in
            [(end, 1), (end - 1, 2), (u64::MAX, 1), (0, 0), (0, u32::MAX), (u64::MAX - 3, 4)]
        {
            assert_eq!(client.read(offset, len), Err(22), "{len} bytes at {offset}");
        }
        let mut error = |command, flags, len, data: &[u8]| {
            let cookie = client.ask(command, CommandFlags(flags), 0, len);
            client.say(data);
            match client.chunks(cookie, 0).pop().unwrap() {
                Reply::Error(error, _) | Reply::Simple { error, .. } => error,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(error(Command::Write, 0, 5000, &[7; 5000]), 1, "it can't be written to");
        assert_eq!(error(Command::Trim, 0, 512, &[]), 1);
        assert_eq!(error(Command::WriteZeroes, 2, 512, &[]), 1);
        assert_eq!(error(Command::Unknown(8), 0, 512, &[]), 95);
        assert_eq!(error(Command::Unknown(999), 0, 0, &[]), 95);
        assert_eq!(error(Command::Read, 1 << 9, 512, &[]), 22);
        assert_eq!(error(Command::Flush, 0, 0, &[]), 0);
        assert_eq!(error(Command::Cache, 0, 1 << 20, &[]), 0);
        if !structured {
            assert_eq!(error(Command::BlockStatus, 0, 512, &[]), 22);
        }
        assert_eq!(client.read(4 << 20, 9000).unwrap(), bytes[4 << 20..][..9000]);
        client.ask(Command::Disconnect, CommandFlags::default(), 0, 0);
        client.hears_the_end();
        // No request begins like this; and a write that can't be passed over.
        let mut client = Client::ready(&serving.socket, "web", structured);
        client.say(&[0; 28]);
        client.hears_the_end();
        let mut client = Client::ready(&serving.socket, "web", structured);
        client.ask(Command::Write, CommandFlags::default(), 0, u32::MAX);
        client.hears_the_end();
    }
    serving.stop().ok();
}

#[test]
fn structured_replies_tell_holes_and_status_and_come_whole_where_that_is_asked() {
    let scene = Scene::new(1, "4K");
    let serving = scene.serve(&["web"]);
    let mut client = Client::ready(&serving.socket, "", true);
    let mib = MIB as u64;
    // A hole, data, a hole, data, a hole: see `Scene::new`.
    let cookie = client.ask(Command::Read, CommandFlags::default(), 0, 7 * MIB as u32);
    let replies = client.chunks(cookie, 0);
    assert!(matches!(replies[0], Reply::Hole(0, _)), "{:?}", replies.len());
    let holes: u64 = replies
        .iter()
        .map(|it| match it {
            Reply::Hole(_, len) => u64::from(*len),
            _ => 0,
        })
        .sum();
    assert_eq!(holes, 3 * mib);
    let cookie = client.ask(Command::Read, CommandFlags::DF, mib - 5000, 100_000);
    let replies = client.chunks(cookie, 0);
    let bytes = scene.bytes(0);
    assert_eq!(replies, [Reply::Data(mib - 5000, bytes[MIB - 5000..][..100_000].to_vec())]);
    let cookie = client.ask(Command::Read, CommandFlags::DF, 0, 2 << 20);
    assert_eq!(client.chunks(cookie, 0), [Reply::Error(75, None)]);

    let cookie = client.ask(Command::BlockStatus, CommandFlags::default(), 1000, 5 * MIB as u32);
    let expected =
        [(MIB as u32 - 1000, 3), (2 * MIB as u32, 0), (MIB as u32, 3), (MIB as u32 + 1000, 0)];
    assert_eq!(client.chunks(cookie, 0), [Reply::Status(expected.to_vec())]);
    let cookie = client.ask(Command::BlockStatus, CommandFlags::REQ_ONE, mib, 500);
    assert_eq!(client.chunks(cookie, 0), [Reply::Status(vec![(500, 0)])]);
    let cookie = client.ask(Command::BlockStatus, CommandFlags::default(), SIZE as u64 - 1, 2);
    assert_eq!(client.chunks(cookie, 0), [Reply::Error(22, None)]);
    // Many at once, answered in whatever order, each whole.
    let asked: Vec<_> = (0..64)
        .map(|at| (client.ask(Command::Read, CommandFlags::default(), mib + at * 999, 700), at))
        .collect();
    for _ in 0..64 {
        let (cookie, is_last, reply) = client.reply(0);
        let (_, at) = asked.iter().find(|(of, _)| *of == cookie).unwrap();
        let start = MIB + *at as usize * 999;
        assert!(is_last);
        assert_eq!(reply, Reply::Data(start as u64, bytes[start..start + 700].to_vec()));
    }
    serving.stop().ok();
}

/// Noise that begins like something: the server ends the connection or answers, and goes on.
#[test]
fn noise_harms_nobody() {
    let scene = Scene::new(1, "64K");
    let serving = scene.serve(&["web"]);
    let mut random = Random::new(21);
    for _ in 0..300 {
        let mut said: Vec<u8> = Vec::new();
        let mut client = Client::connect(&serving.socket);
        if random.below(2) == 0 {
            client.take(18);
            said.extend([0, 0, 0, 3]);
            for _ in 0..random.below(4) {
                let kind = OptionKind::of(random.below(14) as u32);
                let mut data = Choice { name: String::new(), wanted: vec![3] }.encode();
                if random.below(2) == 0 {
                    let len = random.below(60) as usize;
                    data = random.noise(len);
                }
                let len = random.pick(&[data.len() as u32, data.len() as u32, 7, 90_000, u32::MAX]);
                said.extend(qdelta::formats::nbd::OptionHeader { kind, len }.encode());
                said.extend(data);
            }
        } else {
            client = Client::ready(&serving.socket, "", random.below(2) == 0);
            for _ in 0..random.below(6) {
                let mut request = qdelta::formats::nbd::Request {
                    flags: CommandFlags(random.pick(&[0, 0, 4, 8, 0xffff])),
                    command: random.pick(&[
                        Command::Read,
                        Command::BlockStatus,
                        Command::Cache,
                        Command::Unknown(77),
                    ]),
                    cookie: random.next(),
                    offset: random.below(SIZE as u64 + 9000),
                    len: random.pick(&[0, 1, 4096, 1 << 20, u32::MAX]),
                }
                .encode();
                if random.below(4) == 0 {
                    let at = random.below(request.len() as u64) as usize;
                    request[at] ^= random.next() as u8;
                }
                said.extend(request);
            }
            let len = random.below(40) as usize;
            said.extend(random.noise(len));
        }
        // The server may have heard enough before all is said.
        let _ = std::io::Write::write_all(&mut client.stream, &said);
    }
    let mut client = Client::ready(&serving.socket, "", true);
    assert!(client.read(0, SIZE as u32).unwrap() == scene.bytes(0));
    serving.stop().ok();
}
