//! A client that says what no proper one does.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use qdelta::formats::nbd::{
    Choice, Command, CommandFlags, MetaQuery, OptionHeader, OptionKind, Request,
};

/// A connection.
pub struct Client {
    pub stream: UnixStream,
    next: u64,
}

/// A chunk of a structured reply, or a simple one.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    Simple { error: u32, cookie: u64 },
    Data(u64, Vec<u8>),
    Hole(u64, u32),
    Status(Vec<(u32, u32)>),
    Error(u32, Option<u64>),
    None,
}

pub const ERROR: u32 = 1 << 31;

impl Client {
    pub fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        // A server that says nothing must not stop the test.
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Self { stream, next: 7 }
    }

    /// One that has been greeted and has said its flags.
    pub fn greeted(socket: &Path) -> Self {
        let mut client = Self::connect(socket);
        assert_eq!(client.take(18), b"NBDMAGICIHAVEOPT\0\x03");
        client.say(&[0, 0, 0, 3]);
        client
    }

    /// One that has chosen an export.
    pub fn ready(socket: &Path, name: &str, structured: bool) -> Self {
        let mut client = Self::greeted(socket);
        if structured {
            assert_eq!(client.option(OptionKind::StructuredReply, &[]), [(1, vec![])]);
            let query =
                MetaQuery { name: name.to_owned(), queries: vec![b"base:allocation".to_vec()] };
            let replies = client.option(OptionKind::SetMetaContext, &query.encode());
            assert_eq!(replies.len(), 2, "{replies:?}");
        }
        let choice = Choice { name: name.to_owned(), wanted: vec![] };
        let replies = client.option(OptionKind::Go, &choice.encode());
        assert_eq!(replies.last().unwrap().0, 1, "{replies:?}");
        client
    }

    pub fn say(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn take(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// The server says nothing more, and has closed the connection.
    #[track_caller]
    pub fn hears_the_end(mut self) {
        let mut rest = Vec::new();
        // Whoever is cut off with something unread in the way hears of a reset.
        let _ = self.stream.read_to_end(&mut rest);
        assert_eq!(rest, b"");
    }

    fn number(&mut self, len: usize) -> u64 {
        self.take(len).iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// Names an option; gives the replies, up to the one that ends them.
    pub fn option(&mut self, kind: OptionKind, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let header = OptionHeader { kind, len: data.len() as u32 };
        self.say(&[header.encode(), data.to_vec()].concat());
        let mut replies = Vec::new();
        loop {
            assert_eq!(self.number(8), 0x0003_e889_0455_65a9);
            assert_eq!(self.number(4), u64::from(kind.number()));
            let kind = self.number(4) as u32;
            let len = self.number(4) as usize;
            replies.push((kind, self.take(len)));
            if kind == 1 || kind & ERROR != 0 {
                return replies;
            }
        }
    }

    /// Sends a request; gives its cookie.
    pub fn ask(&mut self, command: Command, flags: CommandFlags, offset: u64, len: u32) -> u64 {
        self.next += 1;
        let cookie = self.next;
        self.say(&Request { flags, command, cookie, offset, len }.encode());
        cookie
    }

    /// The next reply or chunk: its cookie, whether it is the last, and what it says. `len` is what a
    /// simple reply without an error has behind it.
    pub fn reply(&mut self, len: usize) -> (u64, bool, Reply) {
        match self.number(4) {
            0x6744_6698 => {
                let (error, cookie) = (self.number(4) as u32, self.number(8));
                if error == 0 && len > 0 {
                    return (cookie, true, Reply::Data(0, self.take(len)));
                }
                (cookie, true, Reply::Simple { error, cookie })
            }
            0x668e_33ef => {
                let (flags, kind) = (self.number(2), self.number(2));
                let (cookie, len) = (self.number(8), self.number(4) as usize);
                let data = self.take(len);
                let be = |from: usize, len: usize| {
                    let bytes = &data[from..from + len];
                    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
                };
                let reply = match kind {
                    0 => Reply::None,
                    1 => Reply::Data(be(0, 8), data[8..].to_vec()),
                    2 => Reply::Hole(be(0, 8), be(8, 4) as u32),
                    5 => {
                        assert_eq!(be(0, 4), 1);
                        let runs = (4..data.len()).step_by(8);
                        Reply::Status(
                            runs.map(|at| (be(at, 4) as u32, be(at + 4, 4) as u32)).collect(),
                        )
                    }
                    0x8001 | 0x8002 => {
                        let text = be(4, 2) as usize;
                        assert!(std::str::from_utf8(&data[6..6 + text]).is_ok());
                        let at = (kind == 0x8002).then(|| be(6 + text, 8));
                        Reply::Error(be(0, 4) as u32, at)
                    }
                    other => panic!("a chunk of type {other}"),
                };
                (cookie, flags & 1 == 1, reply)
            }
            other => panic!("no reply begins with {other:#x}"),
        }
    }

    /// All chunks of the reply to the only request that waits for one.
    pub fn chunks(&mut self, cookie: u64, len: usize) -> Vec<Reply> {
        let mut replies = Vec::new();
        loop {
            let (of, is_last, reply) = self.reply(len);
            assert_eq!(of, cookie);
            replies.push(reply);
            if is_last {
                return replies;
            }
        }
    }

    /// Reads a range; gives the bytes, or the error's number.
    pub fn read(&mut self, offset: u64, len: u32) -> Result<Vec<u8>, u32> {
        let cookie = self.ask(Command::Read, CommandFlags::default(), offset, len);
        let mut bytes = vec![0xaa; len as usize];
        let mut told = 0;
        for reply in self.chunks(cookie, len as usize) {
            let (at, part) = match reply {
                Reply::Data(at, part) => (at.max(offset), part),
                Reply::Hole(at, len) => (at, vec![0; len as usize]),
                Reply::Error(error, _) | Reply::Simple { error, .. } => return Err(error),
                other => panic!("{other:?} to a read"),
            };
            let at = (at - offset) as usize;
            bytes[at..at + part.len()].copy_from_slice(&part);
            told += part.len();
        }
        assert_eq!(told, len as usize, "each byte is told once");
        Ok(bytes)
    }
}
