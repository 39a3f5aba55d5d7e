//! A proxy in front of a store that does to requests and answers what networks and stores do.

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::SignedDuration;
use jiff::fmt::rfc2822::DateTimeParser;

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is passed on, and so is its answer.
    Pass,
    /// It is passed on after so many milliseconds.
    Slow(u64),
    /// The answer is `503 SlowDown`.
    Throttle,
    /// The answer is `404`, and says nothing else: of something in front of the store.
    Missing,
    /// The answer is that the credentials may not do it.
    Denied,
    /// The answer is that the credentials have ended.
    Expired,
    /// The answer says that it was done, and nothing is passed on.
    Nod,
    /// The connection ends before it is passed on.
    Lost,
    /// It is passed on, and the connection ends in the place of an answer.
    Unanswered,
    /// It is passed on, and the answer is that something stands there already: as if it had been asked twice.
    Twice,
    /// The answer ends in its middle.
    Cut,
    /// Nobody hears of the end: the answer is short by a byte, and its length says so.
    Shortened,
    /// A bit of the answer's body is another one.
    Flipped,
    /// The page of a list lacks the objects whose keys hold this, and counts without them.
    Lacks(&'static str),
    /// The first of two texts in the answer is the second.
    Swaps(&'static str, &'static str),
    /// A process is killed before it is passed on.
    KillBefore(u32),
    /// A process is killed after it is done, before the answer.
    KillAfter(u32),
}

/// A request as the proxy saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub method: String,
    /// Path and query.
    pub target: String,
}

type Judge = Box<dyn FnMut(usize, &Seen) -> Fate + Send>;

/// A proxy that is running.
pub struct Proxy {
    pub endpoint: String,
    /// How many requests were on their way at once, at most.
    pub most_at_once: Arc<AtomicUsize>,
    /// How far the `Date` of its answers is ahead of the store's, in seconds.
    pub date_ahead: Arc<AtomicI64>,
    /// How far the `Last-Modified` of its answers, and of its lists, is ahead of the store's, in seconds.
    pub modified_ahead: Arc<AtomicI64>,
    seen: Arc<Mutex<Vec<Seen>>>,
    judge: Arc<Mutex<Judge>>,
}

/// In the place of a number of seconds: the header is left out.
pub const NONE: i64 = i64::MIN;

impl Proxy {
    /// A proxy in front of the store at `endpoint`.
    pub fn new(endpoint: &str) -> Self {
        let store = endpoint.strip_prefix("http://").unwrap().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let judge: Arc<Mutex<Judge>> = Arc::new(Mutex::new(Box::new(|_, _| Fate::Pass)));
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (most_at_once, ahead) = (Arc::clone(&most), Arc::new(AtomicI64::new(0)));
        let (all, how, date_ahead) = (Arc::clone(&seen), Arc::clone(&judge), Arc::clone(&ahead));
        let modified = Arc::new(AtomicI64::new(0));
        let modified_ahead = Arc::clone(&modified);
        let proxy =
            Self { endpoint, most_at_once, date_ahead, modified_ahead, seen: all, judge: how };
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let (store, seen, judge) = (store.clone(), Arc::clone(&seen), Arc::clone(&judge));
                let at_once = (Arc::clone(&now), Arc::clone(&most));
                let clocks = (Arc::clone(&ahead), Arc::clone(&modified));
                std::thread::spawn(move || serve(client, &store, &seen, &judge, &at_once, &clocks));
            }
        });
        proxy
    }

    /// What becomes of the requests from now on, which are counted from 0 again.
    pub fn judge(&self, judge: impl FnMut(usize, &Seen) -> Fate + Send + 'static) {
        *self.judge.lock().unwrap() = Box::new(judge);
        self.seen.lock().unwrap().clear();
    }

    /// Everything is passed on from now on.
    pub fn pass(&self) {
        self.judge(|_, _| Fate::Pass);
    }

    /// What was asked for since it was said what becomes of it.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

/// A message of HTTP: its head, with the empty line, and its body.
struct Message {
    head: Vec<u8>,
    body: Vec<u8>,
}

impl Message {
    /// Reads one; none at the end. `has_body`: not of the answer to a `HEAD`.
    fn read(from: &mut impl BufRead, has_body: bool) -> Option<Self> {
        let mut head = Vec::new();
        loop {
            let begin = head.len();
            if from.read_until(b'\n', &mut head).ok()? == 0 {
                return None;
            }
            if head[begin..] == *b"\r\n" {
                break;
            }
        }
        let mut message = Self { head, body: Vec::new() };
        if !has_body {
            return Some(message);
        }
        if let Some(len) = message.header("content-length") {
            message.body = vec![0; len.parse().unwrap()];
            from.read_exact(&mut message.body).ok()?;
        } else if message.header("transfer-encoding").is_some() {
            // Passed on as one piece.
            loop {
                let mut line = String::new();
                from.read_line(&mut line).ok()?;
                let len = usize::from_str_radix(line.trim(), 16).ok()?;
                let mut chunk = vec![0; len + 2];
                from.read_exact(&mut chunk).ok()?;
                message.body.extend_from_slice(&chunk[..len]);
                if len == 0 {
                    break;
                }
            }
            let text = String::from_utf8(message.head).unwrap();
            let lines =
                text.lines().filter(|it| !it.to_lowercase().starts_with("transfer-encoding:"));
            let lines = lines.filter(|it| !it.is_empty()).collect::<Vec<_>>().join("\r\n");
            let len = message.body.len();
            message.head = format!("{lines}\r\nContent-Length: {len}\r\n\r\n").into_bytes();
        }
        Some(message)
    }

    fn header(&self, name: &str) -> Option<String> {
        let text = String::from_utf8_lossy(&self.head);
        text.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    }

    /// Moves the time in a header that is there.
    fn move_time(&mut self, name: &str, by: &AtomicI64) {
        let by = by.load(Ordering::SeqCst);
        let Some(time) = self.header(name).filter(|_| by != 0) else { return };
        match by {
            NONE => self.set_header(name, ""),
            by => {
                let time = DateTimeParser::new().parse_timestamp(&time).unwrap();
                let time = time + SignedDuration::from_secs(by);
                self.set_header(name, &time.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string());
            }
        }
    }

    /// Gives a header that is there another value.
    fn set_header(&mut self, name: &str, value: &str) {
        let text = String::from_utf8(std::mem::take(&mut self.head)).unwrap();
        let is_it = |line: &str| {
            line.split_once(':').is_some_and(|(found, _)| found.eq_ignore_ascii_case(name))
        };
        let lines = text.lines().map(|line| match is_it(line) {
            true => format!("{name}: {value}"),
            false => line.to_owned(),
        });
        self.head = (lines.collect::<Vec<_>>().join("\r\n") + "\r\n").into_bytes();
    }

    fn write(&self, to: &mut impl Write) -> std::io::Result<()> {
        to.write_all(&self.head)?;
        to.write_all(&self.body)?;
        to.flush()
    }
}

fn serve(
    client: TcpStream,
    store: &str,
    seen: &Mutex<Vec<Seen>>,
    judge: &Mutex<Judge>,
    (now, most): &(Arc<AtomicUsize>, Arc<AtomicUsize>),
    (date, modified): &(Arc<AtomicI64>, Arc<AtomicI64>),
) {
    let mut from_client = BufReader::new(client.try_clone().unwrap());
    let mut to_client = client;
    let Ok(upstream) = TcpStream::connect(store) else { return };
    for stream in [&to_client, &upstream] {
        stream.set_nodelay(true).unwrap();
    }
    let mut from_store = BufReader::new(upstream.try_clone().unwrap());
    let mut to_store = upstream;
    while let Some(request) = Message::read(&mut from_client, true) {
        let line = String::from_utf8_lossy(&request.head).lines().next().unwrap().to_owned();
        let mut words = line.split(' ').map(str::to_owned);
        let what = Seen { method: words.next().unwrap(), target: words.next().unwrap() };
        let fate = {
            // Counted and judged as one: two requests at the same time have two numbers.
            let mut judge = judge.lock().unwrap();
            let mut seen = seen.lock().unwrap();
            seen.push(what.clone());
            judge(seen.len() - 1, &what)
        };
        match fate {
            Fate::Slow(ms) => {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(ms));
                now.fetch_sub(1, Ordering::SeqCst);
            }
            Fate::Lost => break,
            Fate::KillBefore(id) => {
                kill(id);
                break;
            }
            Fate::Throttle | Fate::Denied | Fate::Expired | Fate::Nod | Fate::Missing => {
                if answer_of(fate).write(&mut to_client).is_err() {
                    break;
                }
                continue;
            }
            _ => {}
        }
        if request.write(&mut to_store).is_err() {
            break;
        }
        let Some(mut answer) = Message::read(&mut from_store, what.method != "HEAD") else { break };
        match fate {
            Fate::Unanswered => break,
            Fate::Twice => answer = answer_of(fate),
            Fate::KillAfter(id) => {
                kill(id);
                break;
            }
            Fate::Cut => {
                answer.body.truncate(answer.body.len() / 2);
                let _ = answer.write(&mut to_client);
                break;
            }
            Fate::Shortened if !answer.body.is_empty() => {
                answer.body.pop();
                answer.set_header("Content-Length", &answer.body.len().to_string());
            }
            Fate::Lacks(what) => {
                answer.body = without(std::str::from_utf8(&answer.body).unwrap(), what).into();
                answer.set_header("Content-Length", &answer.body.len().to_string());
            }
            Fate::Swaps(new, old) => {
                let body = std::str::from_utf8(&answer.body).unwrap().replace(new, old);
                answer.body = body.into();
                answer.set_header("Content-Length", &answer.body.len().to_string());
            }
            Fate::Flipped => {
                let middle = answer.body.len() / 2;
                if let Some(byte) = answer.body.get_mut(middle) {
                    *byte ^= 4;
                }
            }
            _ => {}
        }
        answer.move_time("Date", date);
        answer.move_time("Last-Modified", modified);
        let by = modified.load(Ordering::SeqCst);
        if !matches!(by, 0 | NONE) && what.target.contains("list-type") {
            answer.body = dated(std::str::from_utf8(&answer.body).unwrap(), by).into();
            answer.set_header("Content-Length", &answer.body.len().to_string());
        }
        if answer.write(&mut to_client).is_err() {
            break;
        }
    }
    let _ = to_client.shutdown(Shutdown::Both);
    let _ = to_store.shutdown(Shutdown::Both);
}

/// The page of a list without the objects whose keys hold `what`; of other bodies all.
fn without(page: &str, what: &str) -> String {
    let (mut rest, mut left, mut lacking) = (page, String::new(), 0);
    while let Some((before, more)) = rest.split_once("<Contents>") {
        let (object, after) = more.split_once("</Contents>").unwrap();
        left.push_str(before);
        match object.contains(what) {
            true => lacking += 1,
            false => left.push_str(&format!("<Contents>{object}</Contents>")),
        }
        rest = after;
    }
    left.push_str(rest);
    let Some((before, more)) = left.split_once("<KeyCount>") else { return left };
    let (count, after) = more.split_once('<').unwrap();
    let count: usize = count.parse().unwrap();
    format!("{before}<KeyCount>{}<{after}", count - lacking)
}

/// The page of a list whose objects were written at other times.
fn dated(page: &str, by: i64) -> String {
    let (mut rest, mut all) = (page, String::new());
    while let Some((before, more)) = rest.split_once("<LastModified>") {
        let (time, after) = more.split_once("</LastModified>").unwrap();
        let time: jiff::Timestamp = time.parse().unwrap();
        all.push_str(before);
        let time = time + SignedDuration::from_secs(by);
        all.push_str(&format!("<LastModified>{time}</LastModified>"));
        rest = after;
    }
    all + rest
}

/// What the proxy answers in the store's place.
fn answer_of(fate: Fate) -> Message {
    let (status, code) = match fate {
        Fate::Denied => ("403 Forbidden", "AccessDenied"),
        Fate::Expired => ("400 Bad Request", "ExpiredToken"),
        Fate::Nod => ("200 OK", ""),
        Fate::Missing => ("404 Not Found", ""),
        Fate::Twice => ("412 Precondition Failed", "PreconditionFailed"),
        _ => ("503 Slow Down", "SlowDown"),
    };
    let body = match code {
        "" => String::new(),
        code => format!("<Error><Code>{code}</Code><Message>by the proxy</Message></Error>"),
    };
    let len = body.len();
    let head = format!("HTTP/1.1 {status}\r\nETag: \"0\"\r\nContent-Length: {len}\r\n\r\n");
    Message { head: head.into_bytes(), body: body.into_bytes() }
}

fn kill(id: u32) {
    let pid = rustix::process::Pid::from_raw(id as i32).unwrap();
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}
