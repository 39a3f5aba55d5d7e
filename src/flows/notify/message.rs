//! A message as text, and as HTML for mail. Pure.

use std::fmt::Write;

use crate::flows::report::{Level, Message, OpenFinding};

/// A message as text.
pub(super) fn text(message: &Message) -> String {
    let mut text = String::new();
    for part in &message.parts {
        if !text.is_empty() {
            text.push('\n');
        }
        let _ = writeln!(text, "{}", part.heading);
        for finding in &part.findings {
            let _ = writeln!(text, "  {:<8} {}: {}", finding.level, finding.subject, finding.text);
            if let Some(advice) = &finding.advice {
                let _ = writeln!(text, "           -> {advice}");
            }
        }
        for line in &part.lines {
            let _ = writeln!(text, "  {line}");
        }
    }
    let _ = write!(text, "\n{} on {}\n", message.at.strftime("%Y-%m-%d %H:%M UTC"), message.host);
    text
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
            // What turns the direction of text around makes words say something else.
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                let _ = write!(safe, "\u{fffd}");
            }
            c if c.is_control() => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}

/// A line: what would begin another one is a space.
pub(super) fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
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
mod tests {
    use super::*;

    #[test]
    fn no_name_becomes_markup() {
        assert_eq!(
            escaped("<img src=x onerror=\"a('b')\">&\u{202e}\0"),
            "&lt;img src=x onerror=&quot;a(&#39;b&#39;)&quot;&gt;&amp;\u{fffd}\u{fffd}"
        );
    }

    #[test]
    fn a_text_is_cut_between_letters() {
        assert_eq!([cut("äöü", 3), cut("äöü", 6), cut("", 3)], ["ä", "äöü", ""]);
    }
}
