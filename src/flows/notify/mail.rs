//! Mail, as the system's sendmail takes it: text and HTML of the same.

use std::fmt::Write;

use jiff::fmt::rfc2822::DateTimePrinter;
use jiff::tz::TimeZone;

use super::message::{cut, html, one_line, text, title};
use crate::flows::report::{Level, Message};
use crate::formats::age::base64;

/// A line of an encoded part has so many characters.
const LINE_LEN: usize = 76;

/// An encoded word has so many bytes before they are encoded: behind the name of its header it is no line too long.
const WORD_LEN: usize = 36;

/// A header is folded where it would be longer, in characters.
const HEADER_LEN: usize = 76;

/// A mail, with its headers.
pub(super) fn mail(message: &Message, from: &str, to: &str) -> String {
    let mut mail = String::new();
    let date = message.at.to_zoned(TimeZone::UTC);
    let date = DateTimePrinter::new().zoned_to_string(&date).unwrap_or_default();
    let subject = format!("[qdelta {}] {}: {}", message.host, message.level, message.title);
    // Whose level is critical wants to be seen; no mail of a machine wants an answer of another one.
    let importance = if message.level == Level::Critical { "high" } else { "normal" };
    for (name, value) in [
        ("From", mailboxes(from)),
        ("To", mailboxes(to)),
        ("Subject", encoded_words(&title(&subject))),
        ("Date", date),
        ("Message-ID", message_id(message, to)),
        ("Auto-Submitted", "auto-generated".to_owned()),
        ("Importance", importance.to_owned()),
        ("X-Qdelta-Level", message.level.to_string()),
        ("MIME-Version", "1.0".to_owned()),
    ] {
        let _ = writeln!(mail, "{name}: {value}");
    }
    // What divides the parts: both are encoded, so that none has such a line.
    let boundary = format!("=_qdelta_{}", message.at.as_millisecond());
    let _ = writeln!(mail, "Content-Type: multipart/alternative; boundary=\"{boundary}\"\n");
    for (kind, content) in [("plain", text(message)), ("html", html(message))] {
        let _ = write!(
            mail,
            "--{boundary}\nContent-Type: text/{kind}; charset=utf-8\n\
             Content-Transfer-Encoding: base64\n\n{}",
            lines(content.as_bytes())
        );
    }
    let _ = writeln!(mail, "--{boundary}--");
    mail
}

/// What nobody else calls a mail, and a second try of the same mail again.
fn message_id(message: &Message, to: &str) -> String {
    let mut hash = blake3::Hasher::new();
    for part in [to, &message.at.to_string(), &message.title, &text(message)] {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    let hash = hash.finalize().to_hex();
    let is_plain = |c: &char| c.is_ascii_alphanumeric() || "-.".contains(*c);
    let host: String = message.host.chars().filter(is_plain).collect();
    let host = match host.trim_matches('.') {
        "" => "localhost",
        host => host,
    };
    format!("<qdelta.{}@{host}>", hash.get(..32).unwrap_or_default())
}

/// Addresses for a header: names in encoded words where they are not plain, and no line too long.
fn mailboxes(text: &str) -> String {
    let line = one_line(text);
    let (mut all, mut start, mut is_quoted) = (Vec::new(), 0, false);
    for (at, c) in line.char_indices() {
        is_quoted ^= c == '"';
        if c == ',' && !is_quoted {
            all.push(line.get(start..at).unwrap_or_default());
            start = at + 1;
        }
    }
    all.push(line.get(start..).unwrap_or_default());
    let mut header = String::new();
    let mut len = "From: ".len();
    for one in all.into_iter().map(str::trim).filter(|one| !one.is_empty()) {
        let one = match one.split_once('<') {
            Some((name, address)) if !name.is_ascii() => {
                format!("{} <{address}", encoded_words(name.trim().trim_matches('"')))
            }
            _ => one.to_owned(),
        };
        let is_first = header.is_empty();
        let is_folded = !is_first && len + one.len() + 2 > HEADER_LEN;
        header.push_str(if is_first { "" } else { "," });
        header.push_str(if is_folded {
            "\n "
        } else if is_first {
            ""
        } else {
            " "
        });
        len = if is_folded { 1 } else { len + 2 } + one.len();
        header.push_str(&one);
    }
    header
}

/// Bytes as lines of Base64.
fn lines(bytes: &[u8]) -> String {
    let encoded = padded(bytes);
    let mut lines = String::with_capacity(encoded.len() + encoded.len() / LINE_LEN + 1);
    let mut rest = encoded.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(LINE_LEN.min(rest.len()));
        lines.push_str(line);
        lines.push('\n');
        rest = after;
    }
    lines
}

/// Bytes as Base64, with what its length wants at the end.
pub(crate) fn padded(bytes: &[u8]) -> String {
    let mut encoded = base64::encode(bytes);
    while !encoded.len().is_multiple_of(4) {
        encoded.push('=');
    }
    encoded
}

/// Text for a header: where it is not plain, in encoded words.
pub(super) fn encoded_words(text: &str) -> String {
    if text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) && !text.contains("=?") {
        return text.to_owned();
    }
    let (mut words, mut rest) = (Vec::new(), text);
    while !rest.is_empty() {
        let word = match cut(rest, WORD_LEN) {
            "" => rest,
            word => word,
        };
        words.push(format!("=?utf-8?B?{}?=", padded(word.as_bytes())));
        rest = rest.get(word.len()..).unwrap_or("");
    }
    words.join("\n ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_are_not_plain_are_encoded_within_their_length() {
        assert_eq!(encoded_words("all is well"), "all is well");
        assert_eq!(encoded_words("Müller"), "=?utf-8?B?TcO8bGxlcg==?=");
        let long = encoded_words(&"ü".repeat(100));
        let header = format!("Subject: {long}");
        assert!(header.lines().all(|line| line.len() <= HEADER_LEN), "{header}");
        assert!(!encoded_words("a =?utf-8?Q?b?=").contains("Q"));
    }

    #[test]
    fn addresses_are_names_that_any_program_reads() {
        assert_eq!(mailboxes("root"), "root");
        assert_eq!(
            mailboxes("Ä B <a@b>, \"C, D\" <c@d>"),
            "=?utf-8?B?w4QgQg==?= <a@b>, \"C, D\" <c@d>"
        );
        let many = vec!["somebody@a-long-name.example.org"; 60].join(", ");
        let header = mailboxes(&many);
        assert!(header.lines().all(|line| line.len() <= HEADER_LEN), "{header}");
        assert_eq!(header.replace('\n', ""), many);
    }

    /// A guest's name with a line break in it would have added a header of the guest's own.
    #[test]
    fn no_name_begins_a_header() {
        let message = Message {
            events: Vec::new(),
            level: Level::Warning,
            host: "host".to_owned(),
            at: jiff::Timestamp::UNIX_EPOCH,
            title: "web\r\nBcc: evil@example.org".to_owned(),
            parts: Vec::new(),
        };
        let mail = mail(&message, "root", "a@example.org\nBcc: b");
        assert!(!mail.lines().any(|line| line.starts_with("Bcc")), "{mail}");
        assert!(mail.contains("Date: Thu, 1 Jan 1970 00:00:00 +0000\n"), "{mail}");
    }
}
