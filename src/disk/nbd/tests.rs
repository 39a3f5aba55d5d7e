//! Servers that lie, stop, or speak nonsense: whatever they say, the client has an error or the right bytes,
//! and it waits for nobody without an end.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::*;
use crate::disk::io::{Backend, Direction, Part, Pool, Queue, ReadAt, Segment, Transfer};
use crate::formats::nbd::{
    ALLOCATION, Chunk, Command, ExportFlags, Info, MetaQuery, OPTION_HEADER_LEN, OptionHeader,
    OptionKind, OptionReply, REQUEST_LEN, Request, Status, greeting, simple_reply,
};

const SIZE: u64 = 4 << 20;

/// A server of a disk whose bytes follow from their place. What it says to requests, a test decides.
struct Server {
    socket: PathBuf,
    dir: tempfile::TempDir,
    served: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

/// How a server haggles.
#[derive(Clone)]
struct Manners {
    size: u64,
    flags: ExportFlags,
    block: Option<(u32, u32, u32)>,
    structured: bool,
    contexts: Vec<(u32, &'static str)>,
    /// What it says in place of the greeting.
    greeting: Option<Vec<u8>>,
    /// What it says in place of the answer to an option.
    instead: Option<(OptionKind, Vec<u8>)>,
}

impl Default for Manners {
    fn default() -> Self {
        Self {
            size: SIZE,
            flags: ExportFlags::BASE,
            block: None,
            structured: true,
            contexts: vec![(1, ALLOCATION)],
            greeting: None,
            instead: None,
        }
    }
}

/// The byte at a place of the disk.
fn byte(at: u64) -> u8 {
    (at ^ at >> 9) as u8
}

fn bytes(offset: u64, len: u32) -> Vec<u8> {
    (offset..offset + u64::from(len)).map(byte).collect()
}

/// Says what is right.
fn honest(stream: &mut UnixStream, request: &Request) {
    let (cookie, offset, len) = (request.cookie, request.offset, request.len);
    let said = match request.command {
        Command::Read => {
            let data = Chunk::Data { offset, len }.encode(cookie, true);
            [data, bytes(offset, len)].concat()
        }
        _ => Chunk::allocation([(len, false)].into_iter()).encode(cookie, true),
    };
    let _ = stream.write_all(&said);
}

impl Server {
    fn new(
        manners: Manners,
        answer: impl Fn(&mut UnixStream, &Request) + Send + Sync + 'static,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let served = Arc::new(AtomicUsize::new(0));
        let (count, answer) = (Arc::clone(&served), Arc::new(answer));
        let thread = std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                // The test is over.
                if count.load(Ordering::SeqCst) == usize::MAX {
                    return;
                }
                count.fetch_add(1, Ordering::SeqCst);
                let (manners, answer) = (manners.clone(), Arc::clone(&answer));
                std::thread::spawn(move || {
                    let _ = haggle(&mut stream, &manners);
                    let mut request = [0; REQUEST_LEN];
                    while stream.read_exact(&mut request).is_ok() {
                        let request = Request::decode(&request).unwrap();
                        if request.command == Command::Disconnect {
                            return;
                        }
                        answer(&mut stream, &request);
                    }
                });
            }
        });
        Self { socket, dir, served, thread: Some(thread) }
    }

    fn export(&self, cancel: &Cancel) -> Export {
        let uri = format!("nbd+unix:///x?socket={}", self.socket.display());
        Export::new(&uri, cancel).unwrap()
    }

    fn open(&self) -> Result<Arc<Disk>> {
        self.export(&Cancel::default()).open()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.served.store(usize::MAX, Ordering::SeqCst);
        let _ = UnixStream::connect(&self.socket);
        let _ = self.thread.take().unwrap().join();
        assert!(self.dir.path().exists());
    }
}

fn haggle(stream: &mut UnixStream, manners: &Manners) -> io::Result<()> {
    stream.write_all(manners.greeting.as_deref().unwrap_or(&greeting()))?;
    stream.read_exact(&mut [0; 4])?;
    loop {
        let mut header = [0; OPTION_HEADER_LEN];
        stream.read_exact(&mut header)?;
        let header = OptionHeader::decode(&header).unwrap();
        let mut data = vec![0; header.len as usize];
        stream.read_exact(&mut data)?;
        let kind = header.kind;
        if let Some((_, instead)) = manners.instead.as_ref().filter(|(of, _)| *of == kind) {
            stream.write_all(instead)?;
            continue;
        }
        let mut replies = Vec::new();
        match kind {
            OptionKind::StructuredReply if !manners.structured => {
                replies.push(OptionReply::Unsupported);
            }
            OptionKind::StructuredReply => replies.push(OptionReply::Ack),
            OptionKind::SetMetaContext | OptionKind::ListMetaContext => {
                let query = MetaQuery::decode(&data).unwrap();
                let is_list = kind == OptionKind::ListMetaContext;
                for (id, name) in &manners.contexts {
                    let is_it = |it: &Vec<u8>| {
                        it == name.as_bytes() || is_list && name.as_bytes().starts_with(it)
                    };
                    if query.queries.iter().any(is_it) {
                        replies.push(OptionReply::Meta(*id, (*name).to_owned()));
                    }
                }
                replies.push(OptionReply::Ack);
            }
            OptionKind::Go => {
                replies.push(OptionReply::Info(Info::Export(manners.size, manners.flags)));
                replies.extend(manners.block.map(|(least, best, most)| {
                    OptionReply::Info(Info::BlockSize(least, best, most))
                }));
                replies.push(OptionReply::Ack);
            }
            _ => replies.push(OptionReply::Unsupported),
        }
        for reply in replies {
            stream.write_all(&reply.encode(kind))?;
        }
        if kind == OptionKind::Go {
            return Ok(());
        }
    }
}

#[track_caller]
fn error_of<T>(result: Result<T>) -> String {
    result.map(|_| ()).unwrap_err().chain()
}

fn read(disk: &Disk, offset: u64, len: u32) -> io::Result<Vec<u8>> {
    let mut out = vec![0xaa; len as usize];
    let read = disk.read_at(&mut out, offset)?;
    out.truncate(read);
    Ok(out)
}

#[test]
fn any_part_is_read_by_any_number_of_threads() {
    for block in
        [None, Some((512, 4096, 8192)), Some((65536, 65536, 65536)), Some((1, 1, u32::MAX))]
    {
        for flags in [ExportFlags::BASE, ExportFlags::BASE.with(ExportFlags::MULTI_CONN)] {
            let server = Server::new(Manners { block, flags, ..Manners::default() }, honest);
            let disk = server.open().unwrap();
            assert_eq!(disk.len().unwrap(), SIZE);
            std::thread::scope(|scope| {
                for thread in 0..8_u64 {
                    let disk = &disk;
                    scope.spawn(move || {
                        for round in 0..6 {
                            let offset = (thread * 7919 + round * 612_345) % SIZE;
                            let len = 1 + (offset % 900_001) as u32;
                            let expected = len.min((SIZE - offset) as u32);
                            assert!(read(disk, offset, len).unwrap() == bytes(offset, expected));
                        }
                    });
                }
            });
            assert_eq!(read(&disk, SIZE, 5).unwrap(), b"");
            assert_eq!(read(&disk, u64::MAX, 5).unwrap(), b"");
        }
    }
}

/// Parts in any order, holes among them, and answers to later requests before those to earlier ones.
#[test]
fn an_answer_in_parts_is_put_together() {
    let waiting = Mutex::new(Vec::new());
    let server = Server::new(Manners::default(), move |stream, request| {
        let mut waiting = waiting.lock().unwrap();
        waiting.push(*request);
        if waiting.len() < 3 {
            return;
        }
        for request in waiting.drain(..).rev() {
            let (cookie, half) = (request.cookie, request.len / 2);
            let second = request.offset + u64::from(half);
            let parts = [
                [
                    Chunk::Data { offset: second, len: half }.encode(cookie, false),
                    bytes(second, half),
                ]
                .concat(),
                Chunk::Hole { offset: request.offset, len: half }.encode(cookie, false),
                Chunk::None.encode(cookie, true),
            ];
            stream.write_all(&parts.concat()).unwrap();
        }
    });
    let disk = server.open().unwrap();
    let got = read(&disk, 0, 768 << 10).unwrap();
    for piece in 0..3_usize {
        let (start, middle, end) = (piece << 18, (piece << 18) + (1 << 17), (piece + 1) << 18);
        assert!(got[start..middle].iter().all(|byte| *byte == 0));
        assert!(got[middle..end] == bytes(middle as u64, 1 << 17));
    }
}

/// The parts that a job reads were asked for one by one: each waited until the server had answered the one before.
#[test]
fn parts_that_do_not_touch_are_asked_for_at_once() {
    let waiting = Mutex::new(Vec::new());
    let server = Server::new(Manners::default(), move |stream, request| {
        let mut waiting = waiting.lock().unwrap();
        waiting.push(*request);
        // The last of them lies on the disk's last MiB, and has a bad sector.
        let is_last = request.offset >= SIZE - (1 << 20);
        if waiting.len() < 8 && !is_last {
            return;
        }
        for request in waiting.drain(..).rev() {
            match is_last {
                true => stream.write_all(&simple_reply(request.cookie, Status::Io)).unwrap(),
                false => honest(stream, &request),
            }
        }
    });
    let disk = server.open().unwrap();
    let pool = Pool::new(1, 1 << 20).unwrap();
    let files: Vec<Arc<dyn ReadAt>> = vec![disk.clone()];
    let mut queue = Queue::open(Backend::Threads, 1, files, &pool).unwrap();
    let part = |at: usize, offset: u64| Segment { file: 0, offset, range: at..at + 4096 };
    // More than are sent before an answer is read, so some are sent after the first answers.
    let places: Vec<u64> = (0..40).map(|at| at * 65536).collect();
    let segments = places.iter().enumerate().map(|(at, offset)| part(at * 4096, *offset)).collect();
    let buffer = pool.try_take().unwrap();
    queue.push(Transfer { token: 0, buffer, segments, direction: Direction::Read });
    let done = queue.wait().unwrap();
    done.result.unwrap();
    for (at, offset) in places.iter().enumerate() {
        assert!(done.buffer[at * 4096..(at + 1) * 4096] == bytes(*offset, 4096), "{offset}");
    }
    // Each failure has its place.
    let segments = vec![part(0, SIZE - (1 << 20)), part(8192, SIZE - (1 << 18))];
    queue.push(Transfer { token: 1, buffer: done.buffer, segments, direction: Direction::Read });
    let error = error_of(queue.wait().unwrap().result);
    assert!(error.contains(&(SIZE - (1 << 20)).to_string()), "{error}");
}

#[test]
fn a_server_that_knows_no_structured_replies_is_read_too() {
    let manners = Manners { structured: false, ..Manners::default() };
    let server = Server::new(manners, |stream, request| {
        let said = simple_reply(request.cookie, Status::Done);
        stream.write_all(&[&said[..], &bytes(request.offset, request.len)].concat()).unwrap();
    });
    let disk = server.open().unwrap();
    assert!(read(&disk, 77, 1 << 20).unwrap() == bytes(77, 1 << 20));
    assert_eq!(disk.part_at(0), None);
    assert!(!disk.description().tells_zeros);
}

#[test]
fn what_is_zero_is_told_by_the_server() {
    let contexts = vec![(3, "qemu:dirty-bitmap:b"), (9, ALLOCATION)];
    let manners = Manners { contexts, block: Some((4096, 4096, 1 << 20)), ..Manners::default() };
    let server = Server::new(manners, |stream, request| {
        if request.command != Command::BlockStatus {
            return honest(stream, request);
        }
        // The first and the third MiB are holes; the second was written to. Never more than a MiB.
        let mib = request.offset >> 20;
        let len = ((mib + 1) << 20) - request.offset;
        let status = |context, state| Chunk::Status { context, ranges: vec![(len as u32, state)] };
        let hole = if mib.is_multiple_of(2) { 3 } else { 0 };
        let parts = [status(3, u32::from(mib == 1)), status(9, hole), Chunk::None];
        let [one, two, end] = parts.map(|part| part.encode(request.cookie, part == Chunk::None));
        stream.write_all(&[one, two, end].concat()).unwrap();
    });
    let disk = server.open().unwrap();
    assert_eq!(disk.part_at(0), Some((1 << 20, Part::Hole)));
    assert_eq!(disk.part_at(1000), Some((1 << 20, Part::Hole)));
    assert_eq!(disk.part_at((1 << 20) + 1), Some((2 << 20, Part::Data)));
    let mut written = Vec::new();
    disk.written("b", |range| written.push(range)).unwrap();
    assert_eq!((written.len(), &written[0]), (1, &(1 << 20..2 << 20)));
    let missing = error_of(disk.written("c", |_| {}));
    assert!(missing.contains("no bitmap 'c'") && missing.contains("'b'"), "{missing}");
    assert_eq!(disk.description().bitmaps, ["b"]);
}

#[test]
fn servers_that_are_none_or_too_old_are_named_as_such() {
    let said = |greeting: &[u8]| {
        let manners = Manners { greeting: Some(greeting.to_vec()), ..Manners::default() };
        error_of(Server::new(manners, honest).open())
    };
    assert!(said(b"HTTP/1.1 400 Bad Request\r\n").contains("magic bytes of an NBD server"));
    assert!(said(b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53\0\0").contains("oldstyle"));
    let gone = Export::new("nbd+unix:///x?socket=/nowhere/s", &Cancel::default()).unwrap();
    let error = gone.open().map(|_| ()).unwrap_err();
    assert!(
        error.chain().contains("cannot open nbd+unix:///x?socket=/nowhere/s"),
        "{}",
        error.chain()
    );
    let error = Export::new("nbd+unix:///x", &Cancel::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.chain().contains("no socket"), "{}", error.chain());
    // The same advice was given twice.
    let error = Export::new("nbd:///x", &Cancel::default()).unwrap_err();
    let said = format!("{} {}", error.chain(), error.advice().unwrap());
    assert_eq!(said.matches("nbd://HOST").count(), 1, "{said}");
}

#[test]
fn what_makes_no_sense_in_the_handshake_is_refused() {
    let open = |manners: Manners| error_of(Server::new(manners, honest).open());
    for block in [(0, 1, 1), (3, 4, 8), (131_072, 131_072, 131_072), (512, 512, 256)] {
        let said = open(Manners { block: Some(block), ..Manners::default() });
        assert!(said.contains("which makes no sense"), "{said}");
    }
    let said = open(Manners { size: 1 << 63, ..Manners::default() });
    assert!(said.contains("too large"), "{said}");
    let block = Some((512, 512, 512));
    let said = open(Manners { size: 1000, block, ..Manners::default() });
    assert!(said.contains("can't be read by 512"), "{said}");
    let instead = |kind: OptionKind, reply: &OptionReply| {
        open(Manners { instead: Some((kind, reply.encode(kind))), ..Manners::default() })
    };
    let said = instead(OptionKind::Go, &OptionReply::Ack);
    assert!(said.contains("how large the export is"), "{said}");
    let said = instead(OptionKind::Go, &OptionReply::Unsupported);
    assert!(said.contains("NBD_OPT_GO"), "{said}");
    let said = instead(OptionKind::Go, &OptionReply::Policy("\x1b[31mno".into()));
    assert!(said.contains("refuses the export 'x': '\\u{1b}[31mno'"), "{said}");
    let said = instead(OptionKind::Go, &OptionReply::Unknown(String::new()));
    assert!(said.contains("no export 'x'"), "{said}");
    let said = instead(OptionKind::StructuredReply, &OptionReply::TlsRequired("tls".into()));
    assert!(said.contains("without encryption"), "{said}");
    let kind = OptionKind::SetMetaContext;
    let meta = OptionReply::Meta(1, "base:other".into()).encode(kind);
    let instead = Some((kind, [meta, OptionReply::Ack.encode(kind)].concat()));
    let said = open(Manners { instead, ..Manners::default() });
    assert!(said.contains("metadata that were not asked for"), "{said}");
    // An answer of gigabytes, and one to what was not asked.
    let huge = [&OptionReply::Ack.encode(OptionKind::Go)[..16], &[0xff; 4]].concat();
    let said = open(Manners { instead: Some((OptionKind::Go, huge)), ..Manners::default() });
    assert!(said.contains("4294967295 bytes"), "{said}");
    let other = OptionReply::Ack.encode(OptionKind::List);
    let said = open(Manners { instead: Some((OptionKind::Go, other)), ..Manners::default() });
    assert!(said.contains("not named"), "{said}");
    let endless = OptionReply::Meta(1, "qemu:dirty-bitmap:b".into());
    let endless = endless.encode(OptionKind::ListMetaContext).repeat(20_000);
    let instead = Some((OptionKind::ListMetaContext, endless));
    let said = open(Manners { instead, ..Manners::default() });
    assert!(said.contains("without an end"), "{said}");
}

/// Each of these answers to a read is an error, and none is believed.
#[test]
fn odd_answers_to_a_read_are_errors() {
    type Answer = fn(&Request) -> Vec<u8>;
    let odd: [(&str, Answer); 13] = [
        ("magic bytes of an NBD reply", |_| vec![0; 64]),
        ("what was not asked", |it| simple_reply(it.cookie + 1, Status::Done).to_vec()),
        ("fewer bytes", |it| Chunk::None.encode(it.cookie, true)),
        ("and goes on", |it| Chunk::None.encode(it.cookie, false)),
        ("were not asked for", |it| {
            Chunk::Hole { offset: it.offset + 1, len: it.len }.encode(it.cookie, true)
        }),
        ("were not asked for", |it| {
            Chunk::Hole { offset: u64::MAX, len: 1 }.encode(it.cookie, true)
        }),
        ("twice", |it| {
            let hole = Chunk::Hole { offset: it.offset, len: it.len };
            [hole.encode(it.cookie, false), hole.encode(it.cookie, true)].concat()
        }),
        ("bytes at once", |it| Chunk::Data { offset: 0, len: 1 << 30 }.encode(it.cookie, true)),
        ("status of a range", |it| {
            Chunk::allocation([(512, true)].into_iter()).encode(it.cookie, true)
        }),
        ("too many parts", |it| {
            let part = |at: u64| {
                Chunk::Hole { offset: it.offset + 2 * at, len: 1 }.encode(it.cookie, false)
            };
            (0..2000).flat_map(part).collect()
        }),
        ("input/output error ('a bad\\nday')", |it| {
            Chunk::ErrorAt(Status::Io, "a bad\nday".into(), it.offset).encode(it.cookie, true)
        }),
        ("error 77", |it| simple_reply(it.cookie, Status::Other(77)).to_vec()),
        ("about to stop", |it| {
            Chunk::Error(Status::Shutdown, String::new()).encode(it.cookie, true)
        }),
    ];
    for (expected, answer) in odd {
        let server = Server::new(Manners::default(), move |stream, request| {
            let _ = stream.write_all(&answer(request));
        });
        let disk = server.open().unwrap();
        let error = read(&disk, 4096, 4096).unwrap_err();
        let error = Error::io("read", disk.path(), error);
        assert!(error.chain().contains(expected), "{expected}: {}", error.chain());
        assert_eq!(error.kind(), ErrorKind::Io);
    }
}

/// An error of the server's is of that range alone; a broken connection is the end of all reads.
#[test]
fn after_an_error_that_was_told_the_rest_can_be_read() {
    let server = Server::new(Manners::default(), |stream, request| {
        match request.offset {
            0 => {
                let error =
                    Chunk::ErrorAt(Status::Io, String::new(), 7).encode(request.cookie, false);
                let rest = Chunk::Hole { offset: 4096, len: 9 }.encode(request.cookie, true);
                stream.write_all(&[error, rest].concat()).unwrap();
            }
            1048576 => stream.shutdown(std::net::Shutdown::Both).unwrap(),
            _ => honest(stream, request),
        };
    });
    let disk = server.open().unwrap();
    // The error comes among the answers to several requests, which are all read.
    let error = read(&disk, 0, 1 << 20).unwrap_err();
    assert!(error.get_ref().unwrap().to_string().contains("answers at byte 7"), "{error}");
    assert!(read(&disk, 2 << 20, 1 << 20).unwrap() == bytes(2 << 20, 1 << 20));
    for offset in [1 << 20, 2 << 20] {
        let error = Error::io("read", disk.path(), read(&disk, offset, 4096).unwrap_err());
        assert!(error.chain().contains("closed the connection"), "{}", error.chain());
    }
}

#[test]
fn odd_answers_about_what_is_zero_are_no_zeros() {
    type Answer = fn(&Request) -> Vec<u8>;
    let odd: [Answer; 6] = [
        |it| simple_reply(it.cookie, Status::Done).to_vec(),
        |it| Chunk::Error(Status::Invalid, String::new()).encode(it.cookie, true),
        |it| Chunk::allocation([(0, true)].into_iter()).encode(it.cookie, true),
        |it| Chunk::Status { context: 8, ranges: vec![(512, 3)] }.encode(it.cookie, true),
        |it| Chunk::Hole { offset: it.offset, len: it.len }.encode(it.cookie, true),
        |it| {
            let status = Chunk::allocation([(512, true)].into_iter());
            [status.encode(it.cookie, false), status.encode(it.cookie, true)].concat()
        },
    ];
    for (number, answer) in odd.into_iter().enumerate() {
        let server = Server::new(Manners::default(), move |stream, request| {
            let _ = stream.write_all(&answer(request));
        });
        assert_eq!(server.open().unwrap().part_at(0), None, "{number}");
    }
}

/// Ctrl-C while a server says nothing ended the program only when the server did.
#[test]
fn whoever_cancels_ends_the_wait_for_a_silent_server() {
    let server = Server::new(Manners::default(), |_, _| {});
    let cancel = Cancel::default();
    let disk = server.export(&cancel).open().unwrap();
    std::thread::scope(|scope| {
        // One waits for the server, the others for the one connection.
        let readers: Vec<_> = (0..3)
            .map(|_| {
                let disk = &disk;
                scope.spawn(move || Error::io("read", disk.path(), read(disk, 0, 512).unwrap_err()))
            })
            .collect();
        std::thread::sleep(Duration::from_millis(50));
        cancel.cancel();
        for reader in readers {
            assert_eq!(reader.join().unwrap().kind(), ErrorKind::Interrupted);
        }
    });
    let error = server.export(&cancel).open().map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted);
}

#[test]
fn a_silent_server_has_a_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("s")).unwrap();
    let uri = format!("nbd+unix:///?socket={}", dir.path().join("s").display());
    let uri = Uri::parse(&uri).unwrap();
    let limit = Duration::from_millis(300);
    let target = connection::Target { uri, tls: None, cancel: Cancel::default() };
    let open = || connection::Connection::open(&target, limit);
    // Nobody accepts the connection; somebody does, and says a byte now and then.
    let error = open().unwrap_err().into_error();
    assert!(error.chain().contains("does not answer in time"), "{}", error.chain());
    let sender = std::thread::spawn(move || {
        let (_first, (mut stream, _)) = (listener.accept(), listener.accept().unwrap());
        while stream.write_all(b"N").is_ok() {
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    let error = open().unwrap_err().into_error();
    assert!(error.chain().contains("does not answer in time"), "{}", error.chain());
    sender.join().unwrap();
}
