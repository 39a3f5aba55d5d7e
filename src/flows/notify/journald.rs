//! The system's journal, in its own protocol: a datagram of fields.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use super::message::cut;
use crate::flows::report::{End, Level, OpenFinding, Record};

/// How long the journal may take nothing.
const TIME_MAX: Duration = Duration::from_millis(500);

/// The longest value, in bytes: all of a message fits into a datagram.
const VALUE_MAX: usize = 16 << 10;

/// What every message about a piece of work has as its MESSAGE_ID.
const RECORD_ID: &str = "0c9f5c1cf7f5470f9f4a3bdeeda5ef4e";

/// The same of findings.
const FINDING_ID: &str = "e8d8d4c1a7204a2b8ac1b6f0c5d0f37b";

/// Fields of a message.
type Fields<'a> = Vec<(&'a str, String)>;

/// Tells the journal of a piece of work. Gives whether it listens.
pub(crate) fn record(socket: &Path, record: &Record) -> bool {
    let label: Vec<&str> =
        [record.job.as_deref(), record.subject.as_deref()].into_iter().flatten().collect();
    let mut fields = vec![
        ("MESSAGE", format!("{} {}: {}: {}", record.act, label.join(" "), record.end, record.text)),
        ("PRIORITY", priority_of(record.end).to_string()),
        ("MESSAGE_ID", RECORD_ID.to_owned()),
        ("QDELTA_RUN", record.run.to_string()),
        ("QDELTA_ACT", record.act.to_string()),
        ("QDELTA_END", record.end.to_string().to_lowercase()),
        ("QDELTA_SECONDS", format!("{:.3}", record.seconds)),
    ];
    fields.extend(record.job.clone().map(|job| ("QDELTA_JOB", job)));
    fields.extend(record.subject.clone().map(|it| ("QDELTA_SUBJECT", it)));
    fields.extend(record.advice.clone().map(|it| ("QDELTA_ADVICE", it)));
    send(socket, &fields)
}

/// Tells the journal of a finding that opened or ended. Gives whether it listens.
pub(crate) fn finding(socket: &Path, finding: &OpenFinding, is_open: bool) -> bool {
    let (state, priority) = match (is_open, finding.level) {
        (false, _) => ("ended", 5),
        (true, Level::Critical) => ("open", 2),
        (true, _) => ("open", 4),
    };
    let mut fields = vec![
        ("MESSAGE", format!("{state}: {} {}: {}", finding.level, finding.subject, finding.text)),
        ("PRIORITY", priority.to_string()),
        ("MESSAGE_ID", FINDING_ID.to_owned()),
        ("QDELTA_FINDING", finding.code.to_string()),
        ("QDELTA_STATE", state.to_owned()),
        ("QDELTA_LEVEL", finding.level.to_string().to_lowercase()),
        ("QDELTA_SUBJECT", finding.subject.clone()),
    ];
    fields.extend(finding.job.clone().map(|job| ("QDELTA_JOB", job)));
    fields.extend(finding.advice.clone().map(|it| ("QDELTA_ADVICE", it)));
    send(socket, &fields)
}

fn priority_of(end: End) -> u8 {
    match end {
        End::Failed | End::Cut => 3,
        End::NotTried | End::Interrupted | End::Refused | End::Gone | End::Warned => 4,
        End::Done | End::Begun | End::Seen => 6,
    }
}

/// A host without a journal, or one that does not listen, costs nobody a backup.
fn send(socket: &Path, fields: &Fields<'_>) -> bool {
    let mut datagram = Vec::new();
    for (name, value) in fields.iter().chain(&[("SYSLOG_IDENTIFIER", "qdelta".to_owned())]) {
        add(&mut datagram, name, cut(value, VALUE_MAX));
    }
    let Ok(open) = UnixDatagram::unbound() else { return false };
    let _ = open.set_write_timeout(Some(TIME_MAX));
    open.send_to(&datagram, socket).is_ok()
}

/// A field: with its length where the value has several lines.
fn add(datagram: &mut Vec<u8>, name: &str, value: &str) {
    datagram.extend(name.as_bytes());
    match value.contains('\n') {
        false => datagram.push(b'='),
        true => {
            datagram.push(b'\n');
            datagram.extend((value.len() as u64).to_le_bytes());
        }
    }
    datagram.extend(value.as_bytes());
    datagram.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A text of two lines would have begun a field of its own.
    #[test]
    fn no_value_begins_a_field() {
        let mut datagram = Vec::new();
        add(&mut datagram, "A", "x");
        add(&mut datagram, "MESSAGE", "one\nPRIORITY=0");
        assert_eq!(datagram, b"A=x\nMESSAGE\n\x0e\0\0\0\0\0\0\0one\nPRIORITY=0\n");
    }
}
