//! A message as text, and as HTML for mail. Pure.

use std::fmt::Write;

use crate::base::printable::printable;
use crate::flows::report::{Level, Message, OpenFinding};

/// No title is longer, in bytes.
const TITLE_MAX: usize = 200;

/// A part of a text that is told whole or not at all.
struct Piece {
    text: String,
    what: What,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Heading,
    Finding,
    Line,
}

/// A message in pieces, without its last line.
fn pieces(message: &Message) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    for part in &message.parts {
        let gap = if pieces.is_empty() { "" } else { "\n" };
        let heading = format!("{gap}{}\n", printable(&part.heading));
        pieces.push(Piece { text: heading, what: What::Heading });
        for finding in &part.findings {
            let about = printable(&format!("{}: {}", finding.subject, finding.text));
            let mut text = format!("  {:<8} {about}\n", finding.level);
            if let Some(advice) = &finding.advice {
                let _ = writeln!(text, "           -> {}", printable(advice));
            }
            pieces.push(Piece { text, what: What::Finding });
        }
        let line =
            |line: &String| Piece { text: format!("  {}\n", printable(line)), what: What::Line };
        pieces.extend(part.lines.iter().map(line));
    }
    pieces
}

/// The last line of a text.
fn last_line(message: &Message) -> String {
    format!("\n{} on {}\n", message.at.strftime("%Y-%m-%d %H:%M UTC"), message.host)
}

/// A message as text.
pub(super) fn text(message: &Message) -> String {
    let pieces: String = pieces(message).into_iter().map(|piece| piece.text).collect();
    pieces + &last_line(message)
}

/// A message as text for a way that takes only so much. What does not fit is left out, findings whole, and how much that
/// is stands at the end.
pub(super) fn short(message: &Message, fits: impl Fn(&str) -> bool) -> String {
    let whole = text(message);
    if fits(&whole) {
        return whole;
    }
    let (pieces, last) = (pieces(message), last_line(message));
    let end = |from: usize| {
        let rest = pieces.get(from..).unwrap_or_default();
        let count = |what| rest.iter().filter(|piece| piece.what == what).count();
        format!("{}{last}", left_out(count(What::Finding), count(What::Line)))
    };
    let (mut shown, mut taken) = (String::new(), 0);
    for (at, piece) in pieces.iter().enumerate() {
        // A heading alone says nothing.
        let next = format!("{shown}{}", piece.text);
        let is_heading = piece.what == What::Heading;
        if !is_heading && !fits(&format!("{next}{}", end(at + 1))) {
            break;
        }
        shown = next;
        taken = if is_heading { taken } else { at + 1 };
    }
    let kept: String = pieces.iter().take(taken).map(|piece| piece.text.as_str()).collect();
    if taken > 0 {
        return kept + &end(taken);
    }
    // Not even the first one fits: its beginning says what it is about.
    let first = pieces.iter().position(|piece| piece.what != What::Heading).map_or(0, |at| at + 1);
    let begin: String = pieces.iter().take(first).map(|piece| piece.text.as_str()).collect();
    let begun = |len: usize| format!("{}…\n{}", cut(&begin, len), end(first));
    let (mut least, mut most) = (0, begin.len());
    while least < most {
        let middle = (least + most).div_ceil(2);
        match fits(&begun(middle)) {
            true => least = middle,
            false => most = middle - 1,
        }
    }
    begun(least)
}

/// How much of a message is not in a text; nothing if it is all there.
fn left_out(findings: usize, lines: usize) -> String {
    let counted = |count: usize, word: &str| {
        let plural = if count == 1 { "" } else { "s" };
        (count > 0).then(|| format!("{count} {word}{plural}"))
    };
    let all: Vec<String> =
        [counted(findings, "finding"), counted(lines, "line")].into_iter().flatten().collect();
    let are = if findings + lines == 1 { "is" } else { "are" };
    match all.is_empty() {
        true => String::new(),
        false => format!("{} {are} left out: qdelta status has all\n", all.join(" and ")),
    }
}

/// A message as HTML. Mail programs drop style sheets, so every style stands with its element; colours
/// are readable on light and on dark.
pub(super) fn html(message: &Message) -> String {
    let mut html = String::from(
        "<!DOCTYPE html><html><head><meta charset=\"utf-8\">\
         <meta name=\"color-scheme\" content=\"light dark\"></head>\
         <body style=\"font:15px/1.5 sans-serif;max-width:46em\">",
    );
    let colour = colour(message.level);
    let _ = write!(
        html,
        "<p style=\"border-left:6px solid {colour};padding-left:.7em;font-size:18px\"><b>{}</b></p>",
        escaped(&message.title)
    );
    for part in &message.parts {
        let _ = write!(html, "<h3 style=\"margin:1em 0 .2em\">{}</h3>", escaped(&part.heading));
        if !part.findings.is_empty() {
            html.push_str("<table cellpadding=\"4\" style=\"border-collapse:collapse\">");
            part.findings.iter().for_each(|finding| row(&mut html, finding));
            html.push_str("</table>");
        }
        for line in &part.lines {
            let _ = write!(html, "<p style=\"margin:.2em 0\">{}</p>", escaped(line));
        }
    }
    let at = message.at.strftime("%Y-%m-%d %H:%M UTC");
    let _ = writeln!(
        html,
        "<p style=\"opacity:.7\">{at} on {}</p></body></html>",
        escaped(&message.host)
    );
    html
}

fn row(html: &mut String, finding: &OpenFinding) {
    let _ = write!(
        html,
        "<tr style=\"vertical-align:top\"><td style=\"border-left:6px solid {}\"><b>{}</b></td>\
         <td><b>{}</b></td><td>{}",
        colour(finding.level),
        finding.level,
        escaped(&finding.subject),
        escaped(&finding.text)
    );
    if let Some(advice) = &finding.advice {
        let _ = write!(html, "<br><i>{}</i>", escaped(advice));
    }
    html.push_str("</td></tr>");
}

fn colour(level: Level) -> &'static str {
    match level {
        Level::Ok => "#2e9e4f",
        Level::Warning => "#d98a00",
        Level::Critical => "#d63333",
    }
}

/// Text that is no markup, whatever is in it.
pub(crate) fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            '\n' | '\t' => safe.push(c),
            // As everywhere else: what turns the direction of text around makes words say something else.
            c => safe.push_str(&printable(c.encode_utf8(&mut [0; 4]))),
        }
    }
    safe
}

/// A line: what would begin another one is a space, and other things that are obeyed are spelled out.
pub(super) fn one_line(text: &str) -> String {
    printable(&text.replace(['\n', '\r', '\t'], " "))
}

/// A text as the title of a message: a line that is not too long for it.
pub(super) fn title(text: &str) -> String {
    let line = one_line(text);
    match line.len() > TITLE_MAX {
        true => format!("{}…", cut(&line, TITLE_MAX)),
        false => line,
    }
}

/// The beginning of a text, at most so many bytes of it.
pub(super) fn cut(text: &str, len_max: usize) -> &str {
    let mut end = len_max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or("")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    #[test]
    fn no_name_becomes_markup() {
        assert_eq!(
            escaped("<img src=x onerror=\"a('b')\">&\u{202e}\0"),
            "&lt;img src=x onerror=&quot;a(&#39;b&#39;)&quot;&gt;&amp;\\u{202e}\\u{0}"
        );
    }

    pub(in crate::flows::notify) fn message(findings: usize, lines: usize, text: &str) -> Message {
        let finding = |at| OpenFinding {
            level: Level::Critical,
            code: crate::flows::report::FindingCode::Failed,
            subject: format!("guest{at}"),
            job: None,
            act: None,
            text: text.to_owned(),
            advice: Some("look".to_owned()),
            since: None,
        };
        let part = |heading: &str| crate::flows::report::MessagePart {
            heading: heading.to_owned(),
            findings: Vec::new(),
            lines: Vec::new(),
        };
        let (mut new, mut over) = (part("New"), part("Over"));
        new.findings = (0..findings).map(finding).collect();
        over.lines = (0..lines).map(|at| format!("line {at}")).collect();
        let has_any = |part: &crate::flows::report::MessagePart| {
            !part.findings.is_empty() || !part.lines.is_empty()
        };
        let parts = [new, over].into_iter().filter(has_any).collect();
        let (host, at) = ("h".to_owned(), jiff::Timestamp::UNIX_EPOCH);
        Message { events: Vec::new(), level: Level::Ok, host, at, title: String::new(), parts }
    }

    /// A long message ended in the middle of a word, and nobody knew that there was more; Discord took none of it.
    #[test]
    fn a_message_that_is_too_long_says_how_much_is_left_out() {
        let all = text(&message(3, 2, "broken"));
        assert_eq!(short(&message(3, 2, "broken"), |_| true), all);
        for findings in [0, 1, 3, 40] {
            for lines in [0, 1, 30] {
                for len_max in [120, 150, 200, 300, 1000, 2000] {
                    let message = message(findings, lines, "bröken");
                    let short = short(&message, |text| text.len() <= len_max);
                    assert!(short.len() <= len_max, "{len_max}: {short}");
                    let whole = text(&message);
                    let said = |word: &str| -> usize {
                        let line =
                            short.lines().find(|it| it.contains(" left out: ")).unwrap_or("");
                        let words: Vec<&str> = line.split(' ').collect();
                        let at = words.iter().position(|it| it.trim_end_matches('s') == word);
                        at.map_or(0, |at| words[at - 1].parse().unwrap())
                    };
                    let shown = short.matches("  CRITICAL guest").count();
                    assert_eq!(shown + said("finding"), findings, "{len_max}: {short}");
                    assert_eq!(short.matches("  line ").count() + said("line"), lines, "{short}");
                    assert!(short == whole || short.contains(" left out: "), "{short}");
                    // No heading is left without what it is of.
                    let lines: Vec<&str> = short.lines().collect();
                    assert!(lines.windows(2).all(|it| it[0] != "Over" || !it[1].is_empty()));
                }
            }
        }
    }

    #[test]
    fn a_finding_that_is_too_long_alone_is_told_as_far_as_it_goes() {
        let message = message(2, 0, &"x".repeat(5000));
        let short = short(&message, |text| text.len() <= 500);
        assert!((450..=500).contains(&short.len()), "{short}");
        assert!(
            short.contains("CRITICAL guest0: xxx") && short.contains("x…\n1 finding is left out")
        );
    }

    #[test]
    fn a_text_is_cut_between_letters() {
        assert_eq!([cut("äöü", 3), cut("äöü", 6), cut("", 3)], ["ä", "äöü", ""]);
    }
}
