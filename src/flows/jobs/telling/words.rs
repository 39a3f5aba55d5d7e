//! What somebody is told, in words.

use jiff::Timestamp;

use super::told::{News, Trouble};
use crate::base::duration;
use crate::flows::report::{
    Act, ActResult, BackupReport, End, Event, Level, Message, MessagePart, OpenFinding, Record,
    RunHistory, StatusReport,
};

/// So many pieces of work are named.
const LINES_MAX: usize = 50;

/// What is said of a run without trouble.
const WENT_WELL: &str = "a run went well";

/// What a run came to.
#[derive(Clone, Copy)]
pub(crate) struct Ended<'a> {
    /// The run.
    pub run: Timestamp,
    /// What it did.
    pub records: &'a [Record],
}

impl Ended<'_> {
    /// What it did for these jobs. How the whole run ended is not only theirs.
    fn of(&self, is_of: impl Fn(Option<&str>) -> bool) -> impl Iterator<Item = &Record> {
        let of = move |it: &&Record| it.act != Act::Run && is_of(it.job.as_deref());
        self.records.iter().filter(of)
    }

    /// Whether what it did for these jobs came to no good end.
    pub fn has_failed(&self, is_of: impl Fn(Option<&str>) -> bool) -> bool {
        self.of(is_of).any(Record::is_failure)
    }

    /// How it ended, in a line.
    fn gist(&self, has_failed: bool) -> String {
        let bad = self.records.iter().find(|it| it.end.is_trouble() && it.act != Act::Run);
        match (has_failed, bad) {
            (true, Some(bad)) => line(bad),
            (true, None) => "a run failed".to_owned(),
            (false, _) => WENT_WELL.to_owned(),
        }
    }

    /// What it did for these jobs, a line for each piece.
    pub fn log(&self, is_of: impl Fn(Option<&str>) -> bool) -> String {
        self.of(is_of).map(line).collect::<Vec<_>>().join("\n")
    }
}

/// A piece of work in a line.
pub(super) fn line(record: &Record) -> String {
    let words = [record.job.clone(), Some(record.act.to_string()), record.subject.clone()];
    let label = words.into_iter().flatten().collect::<Vec<_>>().join(" ");
    format!("{label}: {}: {}", record.end, record.text)
}

/// What is told to somebody at one time.
pub(super) struct Letter<'a> {
    pub host: &'a str,
    pub now: Timestamp,
    pub news: &'a News<'a>,
    /// Whether the end of findings is told.
    pub tells_end: bool,
    /// Why it could not be told the last time. It is told so in any case: else nobody would know when it
    /// can be.
    pub reached_again: Option<&'a Trouble>,
    /// The run, if its end is told, and whether it failed.
    pub run: Option<(Ended<'a>, bool)>,
    /// All of it, if that is due.
    pub digest: Option<Digest<'a>>,
}

/// What a digest is made of.
pub(super) struct Digest<'a> {
    pub report: &'a StatusReport,
    /// What is open, but for what is about the one who is told.
    pub open: Vec<OpenFinding>,
    pub history: &'a RunHistory,
    pub since: Timestamp,
}

impl Letter<'_> {
    /// The message; none if there is nothing to tell.
    pub fn message(&self) -> Option<Message> {
        let News { opened, again, ended, others } = self.news;
        let ended: &[OpenFinding] = if self.tells_end { ended } else { &[] };
        let mut events = Vec::new();
        let mut parts = Vec::new();
        let mut level = Level::Ok;
        let owned = |list: &[&OpenFinding]| list.iter().map(|it| (*it).clone()).collect();
        for (heading, list) in [("New", opened), ("Still", again)] {
            if !list.is_empty() {
                events.push(Event::Finding);
                level = list.iter().map(|it| it.level).max().unwrap_or_default().max(level);
                // All that is open stands in a digest.
                if self.digest.is_none() {
                    parts.push(part(heading, owned(list), Vec::new()));
                }
            }
        }
        events.dedup();
        if !ended.is_empty() {
            events.push(Event::Recovery);
            let lines = ended.iter().map(|it| format!("{}: {}", it.subject, it.text)).collect();
            parts.push(part("Over", Vec::new(), lines));
        }
        if let Some(trouble) = self.reached_again {
            events.push(Event::Recovery);
            let since = trouble.since.strftime("%Y-%m-%d %H:%M UTC");
            let text = format!("since {since} you could not be told: {}", trouble.text);
            let mut lines = vec![text];
            lines.extend(trouble.lost.iter().map(|end| format!("not told then: {end}")));
            if trouble.lost_more > 0 {
                lines.push(format!("and {} more: qdelta history has all", trouble.lost_more));
            }
            parts.push(part("You", Vec::new(), lines));
        }
        events.dedup();
        if let Some((run, has_failed)) = &self.run {
            events.push(if *has_failed { Event::Failure } else { Event::Success });
            if *has_failed {
                level = level.max(Level::Critical);
            }
            parts.push(part("The run", Vec::new(), run_lines(run.records)));
        }
        if let Some(digest) = &self.digest {
            events.push(Event::Digest);
            level = digest.open.iter().map(|it| it.level).fold(level, Level::max);
            parts.extend(digest.parts());
        } else if *others > 0 && !parts.is_empty() {
            let text = match *others {
                1 => "1 finding that was told before is still open".to_owned(),
                others => format!("{others} findings that were told before are still open"),
            };
            parts.push(part("Besides", Vec::new(), vec![text]));
        }
        if parts.is_empty() {
            return None;
        }
        let title = self.title(ended);
        Some(Message { events, level, host: self.host.to_owned(), at: self.now, title, parts })
    }

    /// The end of the run in a line, if it is told: for the one who can't be told now.
    pub fn end(&self) -> Option<String> {
        let (run, has_failed) = self.run?;
        let at = run.run.strftime("%Y-%m-%d %H:%M UTC");
        Some(format!("the run of {at}: {}", run.gist(has_failed)))
    }

    fn title(&self, ended: &[OpenFinding]) -> String {
        let News { opened, again, others, .. } = self.news;
        let gist = |list: &[&OpenFinding]| {
            let first = list.first()?;
            let more = list.len() - 1;
            let more = if more > 0 { format!("; and {more} more") } else { String::new() };
            Some(format!("{}: {}{more}", first.subject, first.text))
        };
        if let Some(digest) = &self.digest {
            return digest.title();
        }
        if let Some(gist) = gist(opened) {
            return gist;
        }
        if let Some((run, true)) = &self.run {
            return run.gist(true);
        }
        if let Some(gist) = gist(again) {
            return format!("still {gist}");
        }
        match ended {
            [] if self.run.is_none() => "you can be told again".to_owned(),
            [] => WENT_WELL.to_owned(),
            _ if *others > 0 => {
                format!("{} over, {} still open", findings(ended.len()), others)
            }
            [only] => format!("all right again: it was {}: {}", only.subject, only.text),
            all => format!("all right again: {} over", findings(all.len())),
        }
    }
}

fn findings(count: usize) -> String {
    match count {
        1 => "1 finding is".to_owned(),
        _ => format!("{count} findings are"),
    }
}

fn part(heading: &str, findings: Vec<OpenFinding>, lines: Vec<String>) -> MessagePart {
    MessagePart { heading: heading.to_owned(), findings, lines }
}

/// What a run did, trouble first.
fn run_lines(records: &[Record]) -> Vec<String> {
    let told = |record: &&Record| !matches!(record.end, End::Begun | End::Seen);
    let (bad, good): (Vec<&Record>, Vec<&Record>) =
        records.iter().filter(told).partition(|record| record.end.is_trouble());
    let all = bad.len() + good.len();
    let mut lines: Vec<String> = bad.into_iter().chain(good).take(LINES_MAX).map(line).collect();
    if all > LINES_MAX {
        lines.push(format!("and {} more: qdelta history has all", all - LINES_MAX));
    }
    lines
}

impl Digest<'_> {
    fn title(&self) -> String {
        let guests = self.report.guests.len();
        let plural = if guests == 1 { "" } else { "s" };
        match self.open.len() {
            0 => format!("{guests} guest{plural}, everything is all right"),
            count => format!("{guests} guest{plural}, {} open", findings(count)),
        }
    }

    fn parts(&self) -> Vec<MessagePart> {
        let open = match self.open.as_slice() {
            [] => part("Open", Vec::new(), vec!["nothing".to_owned()]),
            all => part("Open", all.to_vec(), Vec::new()),
        };
        let days = (self.report.at.as_second() - self.since.as_second()).max(0);
        let done = part(&format!("In the last {}", duration::age(days)), Vec::new(), self.done());
        vec![open, done, part("How it stands", Vec::new(), self.standing())]
    }

    /// What was done since the last digest.
    fn done(&self) -> Vec<String> {
        let records = self.history.records.iter();
        let recent: Vec<&Record> =
            records.filter(|it| it.began >= self.since && it.began <= self.report.at).collect();
        let count = |act: Act, good: bool| {
            let of = recent.iter().filter(|it| it.act == act && it.subject.is_some());
            of.filter(|it| if good { it.end.is_success() } else { it.end.is_trouble() }).count()
        };
        let stored: u64 = recent.iter().map(|record| bytes_stored(record)).sum();
        let whole = |act: Act| {
            let of = recent.iter().filter(|it| it.act == act && it.subject.is_none());
            let (good, bad): (Vec<&&Record>, Vec<&&Record>) = of
                .filter(|it| !matches!(it.end, End::Seen | End::Begun))
                .partition(|it| it.end.is_success());
            (good.len(), bad.len())
        };
        let failed = |count: usize| match count {
            0 => String::new(),
            count => format!(", {count} not"),
        };
        let mut lines = vec![format!(
            "backups: {} made{}, {} stored",
            count(Act::Backup, true),
            failed(count(Act::Backup, false)),
            bytesize::ByteSize(stored).display().iec()
        )];
        for (act, word) in [(Act::Verify, "verifications"), (Act::Prune, "prunings")] {
            let (good, bad) = whole(act);
            if good + bad > 0 {
                lines.push(format!("{word}: {good} done{}", failed(bad)));
            }
        }
        let drills = (count(Act::Drill, true), count(Act::Drill, false));
        if drills.0 + drills.1 > 0 {
            lines.push(format!("drills: {} passed{}", drills.0, failed(drills.1)));
        }
        lines
    }

    fn standing(&self) -> Vec<String> {
        let report = self.report;
        let ago = |time: Timestamp| duration::age(report.at.as_second() - time.as_second());
        let mut lines = Vec::new();
        if let Some(oldest) = report.guests.iter().filter_map(|it| it.newest_at).min() {
            lines.push(format!("the oldest newest point of a guest is {} old", ago(oldest)));
        }
        let never = report.guests.iter().filter(|it| it.newest_at.is_none()).count();
        if never > 0 {
            lines.push(format!("{never} without a good point"));
        }
        for it in &report.repositories {
            let free = it.bytes_free.map_or("unknown".to_owned(), |bytes| {
                bytesize::ByteSize(bytes).display().iec().to_string()
            });
            let full = it.days_left.map_or(String::new(), |days| {
                format!(", full in {}", duration::age((days * 86_400.0) as i64))
            });
            lines.push(format!("{}: {free} free{full}", it.repository));
        }
        let nexts = report.jobs.iter().flat_map(|job| &job.acts).filter_map(|act| act.next);
        if let Some(next) = nexts.min() {
            lines.push(format!("next: {}", next.strftime("%Y-%m-%d %H:%M UTC")));
        }
        lines
    }
}

/// What a backup stored.
fn bytes_stored(record: &Record) -> u64 {
    let of = |disk: &BackupReport| disk.bytes_written;
    match &record.result {
        Some(ActResult::Guest(guest)) => guest.disks.iter().map(of).sum(),
        Some(ActResult::Image(image)) => of(image),
        _ => 0,
    }
}
