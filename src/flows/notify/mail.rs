//! Mail, as the system's sendmail takes it: text and HTML of the same.

use std::fmt::Write;

use jiff::fmt::rfc2822::DateTimePrinter;

use super::message::{cut, html, one_line, text};
use crate::flows::report::{Level, Message};
use crate::formats::age::base64;

/// A line of an encoded part has so many characters.
const LINE_LEN: usize = 76;

/// No subject is longer, in bytes.
const SUBJECT_MAX: usize = 200;

/// A mail, with its headers.
pub(super) fn mail(message: &Message, from: &str, to: &str) -> String {
    let mut mail = String::new();
    let date = DateTimePrinter::new().timestamp_to_string(&message.at).unwrap_or_default();
    let subject = format!("[qdelta {}] {}: {}", message.host, message.level, message.title);
    // Whose level is critical wants to be seen; no mail of a machine wants an answer of another one.
    let importance = if message.level == Level::Critical { "high" } else { "normal" };
    for (name, value) in [
        ("From", one_line(from)),
        ("To", one_line(to)),
        ("Subject", encoded_words(cut(&one_line(&subject), SUBJECT_MAX))),
        ("Date", date),
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

/// Text for a header: where it is not plain, in encoded words of at most 75 characters.
pub(super) fn encoded_words(text: &str) -> String {
    if text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) && !text.contains("=?") {
        return text.to_owned();
    }
    let (mut words, mut rest) = (Vec::new(), text);
    while !rest.is_empty() {
        let word = match cut(rest, 45) {
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
        assert!(long.lines().all(|line| line.trim().len() <= 75), "{long}");
        assert!(!encoded_words("a =?utf-8?Q?b?=").contains("Q"));
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
        assert!(mail.contains("Date: Thu, 1 Jan 1970"), "{mail}");
    }
}
