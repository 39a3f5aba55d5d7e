//! What a webhook is sent: a text of the admin's, in which words in `{{ }}` are filled in.

use crate::base::error::{Error, ErrorKind, Result};
use crate::flows::report::{Level, Message};

/// The words, and what stands for them.
const WORDS: &[&str] = &["title", "text", "level", "host", "at", "priority"];

/// The words of a template with what they stand for. In a template that is JSON, they are parts of its
/// texts: a quote in the name of a guest ends none.
///
/// # Errors
/// [`ErrorKind::Usage`] if it has a word that nobody knows.
pub(super) fn filled(template: &str, message: &Message, text: &str) -> Result<String> {
    let is_json = is_json(template);
    fill(template, |word| {
        let value = match word {
            "title" => super::message::title(&message.title),
            "text" => text.to_owned(),
            "level" => message.level.to_string().to_lowercase(),
            "host" => message.host.clone(),
            "at" => message.at.to_string(),
            _ => priority(message.level).to_string(),
        };
        if is_json { in_json(&value) } else { value }
    })
}

/// Whether a template can be filled.
///
/// # Errors
/// As [`filled`].
pub(crate) fn check(template: &str) -> Result<()> {
    let is_json = is_json(template);
    let mut says_something = false;
    let sample = fill(template, |word| match word {
        "priority" => "3".to_owned(),
        // What stands outside a text of JSON is none with these.
        _ if is_json => in_json("a\"1"),
        _ => String::new(),
    })?;
    fill(template, |word| {
        says_something |= ["title", "text"].contains(&word);
        String::new()
    })?;
    if !says_something {
        let text = "the template says nothing of what is told";
        return Err(Error::new(ErrorKind::Usage, text).advise("put {{title}} or {{text}} in it"));
    }
    if is_json {
        let read: Result<serde_json::Value, _> = serde_json::from_str(&sample);
        read.map_err(|error| {
            Error::new(ErrorKind::Usage, "the template begins as JSON, and is none")
                .because(error)
                .advise("put words in quotes: \"{{text}}\"; {{priority}} is a number")
        })?;
    }
    Ok(())
}

fn is_json(template: &str) -> bool {
    template.trim_start().starts_with(['{', '[']) && !template.trim_start().starts_with("{{")
}

fn fill(template: &str, mut value: impl FnMut(&str) -> String) -> Result<String> {
    let (mut filled, mut rest) = (String::new(), template);
    while let Some((before, after)) = rest.split_once("{{") {
        filled.push_str(before);
        let Some((word, after)) = after.split_once("}}") else {
            return Err(Error::new(ErrorKind::Usage, "the template has {{ without }}")
                .advise("end the word: {{title}}"));
        };
        if !WORDS.contains(&word.trim()) {
            let text = format!("the template has {{{{{word}}}}}, which nobody knows");
            return Err(Error::new(ErrorKind::Usage, text)
                .advise(format!("there are {}", WORDS.join(", "))));
        }
        filled.push_str(&value(word.trim()));
        rest = after;
    }
    filled.push_str(rest);
    Ok(filled)
}

/// A text as a part of a text in JSON.
fn in_json(text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or("").to_owned()
}

/// How much a message should disturb, from 1 to 5.
pub(super) fn priority(level: Level) -> u8 {
    match level {
        Level::Ok => 2,
        Level::Warning => 3,
        Level::Critical => 5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quote_in_a_name_ends_no_text_of_json() {
        let message = Message {
            events: Vec::new(),
            level: Level::Critical,
            host: "h\"1".to_owned(),
            at: jiff::Timestamp::UNIX_EPOCH,
            title: "web: \"no\"\n{{text}}".to_owned(),
            parts: Vec::new(),
        };
        let template = r#"{"text": "{{title}} on {{ host }}", "priority": {{priority}}}"#;
        let filled_in = filled(template, &message, "x").unwrap();
        let read: serde_json::Value = serde_json::from_str(&filled_in).unwrap();
        assert_eq!(read["text"], "web: \"no\" {{text}} on h\"1");
        assert_eq!(read["priority"], 5);
        assert_eq!(
            filled("{{level}}: {{title}}", &message, "x").unwrap(),
            "critical: web: \"no\" {{text}}"
        );
    }

    #[test]
    fn what_nobody_knows_is_an_error_before_the_night() {
        for bad in [
            "{{colour}}",
            "{{",
            "{{title",
            "",
            "plain",
            "{{priority}}",
            r#"{"a": {{title}"#,
            r#"{"a": }"#,
            r#"{"a": {{text}}}"#,
            r#"{"a": "{{title}}", "b": {{at}}}"#,
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
        for good in ["plain {{text}}", r#"{"a": "{{title}}", "b": {{priority}}}"#, "{{text}}"] {
            assert!(check(good).is_ok(), "{good}");
        }
    }
}
