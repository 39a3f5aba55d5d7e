//! Clients that stop in the middle and come in crowds, archives that are damaged, a repository that goes
//! away, points that are merged and removed, and an end with requests on the way.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use qdelta::formats::nbd::{Command, CommandFlags};

use super::client::{Client, Reply};
use super::*;

const EIO: u32 = 5;

/// Reads until an answer is like `wanted`.
#[track_caller]
fn until(client: &mut Client, offset: u64, wanted: impl Fn(&Result<Vec<u8>, u32>) -> bool) {
    let mut read = Ok(Vec::new());
    for _ in 0..400 {
        read = client.read(offset, 512);
        if wanted(&read) {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("it never came to that: {read:?}");
}

#[test]
fn a_repository_that_goes_away_gives_errors_and_comes_back_on_the_same_connection() {
    let scene = Scene::new(2, "4K");
    let serving = scene.serve(&[]);
    let name = scene.name(1);
    let mut client = Client::ready(&serving.socket, &name, true);
    let bytes = scene.bytes(1);
    let (away, repo) = (scene.lab.path("away"), &scene.repo.path);
    let mib = MIB as u64;
    assert_eq!(client.read(mib, 512).unwrap(), bytes[MIB..][..512]);
    std::fs::rename(repo, &away).unwrap();
    // What is open can be read all the same; a point that is not, can't be opened.
    let choice = qdelta::formats::nbd::Choice { name: scene.name(0), wanted: vec![] };
    let replies = Client::greeted(&serving.socket)
        .option(qdelta::formats::nbd::OptionKind::Go, &choice.encode());
    assert_eq!(replies.last().unwrap().0 ^ super::client::ERROR, 6);
    std::fs::rename(&away, repo).unwrap();
    assert_eq!(client.read(2 * mib, 512).unwrap(), bytes[2 * MIB..][..512]);
    // The files are gone, and come back as others.
    let archives: Vec<_> = std::fs::read_dir(scene.repo.place_of("web/vda"))
        .unwrap()
        .map(|it| it.unwrap().path())
        .collect();
    for path in &archives {
        std::fs::copy(path, path.with_extension("kept")).unwrap();
        std::fs::File::options().write(true).open(path).unwrap().set_len(0).unwrap();
    }
    until(&mut client, 5 * mib + 300_000, |read| *read == Err(EIO));
    for path in &archives {
        std::fs::rename(path.with_extension("kept"), path).unwrap();
    }
    until(&mut client, 5 * mib + 300_000, Result::is_ok);
    assert_eq!(client.read(0, 9 * MIB as u32).unwrap(), bytes[..9 * MIB]);
    serving.stop().ok();
}

#[test]
fn a_flipped_byte_is_an_error_of_its_range_and_nothing_else() {
    let scene = Scene::new(1, "4K");
    let name = scene.repo.archives().remove(0);
    let archive = scene.repo.stored_as(&name);
    // Noise is stored as it is, and comes first; of an encrypted archive a whole piece is lost.
    let stored = archive.bytes();
    let bytes = scene.bytes(0);
    let (at, most) = match scene.repo.key {
        None => {
            (stored.windows(64).position(|it| *it == bytes[MIB + 500_000..][..64]).unwrap(), 64)
        }
        Some(_) => (700_000, 128),
    };
    archive.patch(at as u64, &[!stored[at]]);
    let serving = scene.serve(&["web"]);
    for structured in [true, false] {
        let mut client = Client::ready(&serving.socket, "", structured);
        let mut damaged = 0;
        for block in (0..SIZE as u64).step_by(4096) {
            let len = (SIZE as u64 - block).min(4096);
            match client.read(block, len as u32) {
                Ok(read) => assert!(read == bytes[block as usize..][..len as usize], "{block}"),
                Err(error) => {
                    assert_eq!(error, EIO);
                    assert!((MIB as u64..3 * MIB as u64).contains(&block));
                    damaged += 1;
                }
            }
        }
        assert!((1..=most).contains(&damaged), "a frame at most: {damaged} blocks");
    }
    let mut client = Client::ready(&serving.socket, "", true);
    let cookie = client.ask(Command::Read, CommandFlags::default(), 0, 4 * MIB as u32);
    let (mut told, mut errors) = (0, 0);
    for reply in client.chunks(cookie, 0) {
        match reply {
            Reply::Data(at, part) => {
                assert!(part == bytes[at as usize..][..part.len()]);
                told += part.len();
            }
            Reply::Hole(_, len) => told += len as usize,
            Reply::Error(EIO, Some(at)) => {
                assert!((MIB as u64..3 * MIB as u64).contains(&at));
                errors += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(errors > 0 && told >= 2 * MIB, "{errors} errors, {told} bytes");
    let said = serving.stop().ok().stderr;
    let name = archive.name();
    assert!(said.contains(name), "{said}");
    // The damage that clients met was known to nobody after the server had ended.
    let points = scene.repo.run(args!["points"]);
    assert!(points.stderr.contains(name), "{}", points.stderr);
}

#[test]
fn points_are_merged_and_removed_while_they_are_served() {
    let scene = Scene::new(4, "16K");
    let serving = scene.serve(&[]);
    let mut clients: Vec<_> =
        (0..4).map(|number| Client::ready(&serving.socket, &scene.name(number), true)).collect();
    let check = |clients: &mut Vec<Client>| {
        for (number, client) in clients.iter_mut().enumerate() {
            let bytes = client.read(0, SIZE as u32).unwrap();
            assert!(bytes == scene.bytes(number), "point {number}");
        }
    };
    check(&mut clients);
    let merge = format!("web@{}..{}", scene.points[1].0, scene.points[2].0);
    let report = scene.repo.run(args!["merge", merge.as_str(), "--json"]).ok().json();
    assert_eq!(report["waiting"], true, "{report}");
    check(&mut clients);
    scene.repo.run(args!["prune", "--keep-last", "1", "--grace", "0"]).ok();
    check(&mut clients);
    drop(clients);
    // Nobody has a point open any more, as soon as the server has noticed.
    let archives = || scene.repo.archives().len();
    let before = archives();
    let end = Instant::now() + Duration::from_secs(60);
    while archives() == before && Instant::now() < end {
        scene.repo.run(args!["prune", "--keep-last", "1", "--grace", "0"]).ok();
    }
    assert!(archives() < before);
    let mut client = Client::ready(&serving.socket, "web/vda@latest", true);
    assert!(client.read(0, SIZE as u32).unwrap() == scene.bytes(3));
    serving.stop().ok();
}

#[test]
fn requests_on_the_way_are_answered_when_the_server_is_asked_to_stop() {
    // What is on the way has ten seconds, also on a machine with other work.
    const REQUESTS: u64 = 12;
    let scene = Scene::new(1, "64K");
    let bytes = scene.bytes(0);
    let serving = scene.serve(&["web"]);
    let mut client = Client::ready(&serving.socket, "", true);
    let mut deaf = Client::ready(&serving.socket, "", true);
    for number in 0..REQUESTS {
        client.ask(Command::Read, CommandFlags::default(), MIB as u64 + number * 1000, 1 << 20);
        deaf.ask(Command::Read, CommandFlags::default(), MIB as u64, 1 << 20);
    }
    let (_, _, first) = client.reply(0);
    let mut told = match first {
        Reply::Data(at, part) => {
            assert!(part == bytes[at as usize..][..part.len()]);
            part.len()
        }
        other => panic!("{other:?}"),
    };
    serving.signal(Signal::TERM);
    let mut ended = 0;
    while ended < REQUESTS {
        let (_, is_last, reply) = client.reply(0);
        let Reply::Data(at, part) = reply else { panic!("{reply:?}") };
        assert!(part == bytes[at as usize..][..part.len()]);
        told += part.len();
        ended += u64::from(is_last);
    }
    assert_eq!(told as u64, REQUESTS << 20);
    client.hears_the_end();
    // One that takes nothing of its answers holds nobody up for ever.
    let outcome = serving.end().ok();
    assert!(outcome.stderr.contains("stopping"), "{}", outcome.report());
    drop(deaf);
    assert!(!scene.lab.path("s.sock").exists());
}

#[test]
fn crowds_are_turned_away_and_whoever_stops_in_the_middle_is_forgotten() {
    let scene = Scene::new(1, "64K");
    let serving = scene.serve(&["web"]);
    for said in
        [&b""[..], b"\0\0", b"\0\0\0\x03IHAVE", b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\xffabc"]
    {
        let mut client = Client::connect(&serving.socket);
        client.take(18);
        client.say(said);
    }
    let mut client = Client::ready(&serving.socket, "", true);
    client.say(b"\x25\x60\x95\x13\0\0");
    drop(client);
    let mut client = Client::ready(&serving.socket, "", true);
    client.ask(Command::Read, CommandFlags::default(), 0, 8 << 20);
    drop(client);
    let mut crowd = Vec::new();
    let (mut greeted, mut refused) = (0, 0);
    for _ in 0..1000 {
        let mut stream = UnixStream::connect(&serving.socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut greeting = [0; 18];
        match stream.read_exact(&mut greeting) {
            Ok(()) => greeted += 1,
            Err(_) => refused += 1,
        }
        crowd.push(stream);
    }
    assert!(
        (300..=400).contains(&greeted) && refused >= 600,
        "{greeted} greeted, {refused} refused"
    );
    drop(crowd);
    let bytes = scene.bytes(0);
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let mut stream = UnixStream::connect(&serving.socket).unwrap();
        if stream.read_exact(&mut [0; 18]).is_ok() {
            break;
        }
        assert!(Instant::now() < end, "there is no room again");
    }
    let mut client = Client::ready(&serving.socket, "", true);
    assert!(client.read(0, SIZE as u32).unwrap() == bytes);
    serving.stop().ok();
}

/// Each write was once a call within the call before: some thousand in a row, even refused ones, took the
/// whole stack, and the server with every client of it.
#[test]
fn a_long_row_of_writes_is_answered() {
    const ROW: usize = 50_000;
    let scene = Scene::new(1, "4K");
    let serving = scene.serve(&["web"]);
    let mut client = Client::ready(&serving.socket, "", false);
    for _ in 0..ROW / 100 {
        let asked: Vec<u64> =
            (0..100).map(|_| client.ask(Command::Write, CommandFlags::default(), 0, 0)).collect();
        for cookie in asked {
            let (answered, _, reply) = client.reply(0);
            assert_eq!(answered, cookie);
            assert_eq!(reply, Reply::Simple { error: 1, cookie });
        }
    }
    assert_eq!(client.read(0, 512).unwrap(), scene.bytes(0)[..512]);
    serving.stop().ok();
}
