//! The limits that an XML must keep before it is parsed at all. The parser compares every attribute
//! of an element with those before it, and looks every prefix up among all namespaces, so these are
//! counted first, in one pass over the text: parsing an XML that passes takes time and memory in
//! proportion to its length.
//!
//! The pass need not know whether the XML is well formed. It knows where a tag ends as the parser
//! does (quotes, comments, CDATA, instructions); wherever the pass reads the text otherwise than
//! the parser, the parser refuses it.

use super::malformed;
use crate::base::error::Result;

/// The longest XML that is read, in bytes. libvirt itself takes no more over its own protocol.
pub const XML_LEN_MAX: u64 = 4 << 20;
/// No domain has more nodes than this.
pub(super) const NODES_MAX: u32 = 200_000;
/// No domain has more attributes than this.
const ATTRIBUTES_MAX: usize = 200_000;
/// No element has more attributes than this: libvirt's own elements have 20 at the most.
const ATTRIBUTES_OF_ONE_MAX: usize = 128;
/// Elements are never nested deeper than this. A backing chain is: one level for each file.
const DEPTH_MAX: usize = 400;
/// No domain declares more namespaces than this: QEMU's own, and one for each kind of metadata.
const NAMESPACES_MAX: usize = 100;

/// Fails if parsing `text` would be out of proportion.
///
/// # Errors
/// [`crate::ErrorKind::Image`], with the limit that the text exceeds.
pub(super) fn check(text: &str) -> Result<()> {
    if text.len() as u64 > XML_LEN_MAX {
        return Err(malformed(format!("is longer than {XML_LEN_MAX} bytes")));
    }
    // Each declaration is copied into every element below that has one of its own.
    if text.matches("xmlns").count() > NAMESPACES_MAX {
        return Err(malformed(format!("declares more than {NAMESPACES_MAX} namespaces")));
    }
    let (mut depth, mut attributes) = (0_usize, 0);
    let mut rest = text;
    while let Some(start) = rest.find('<') {
        let tag = rest.get(start..).unwrap_or_default();
        let end = match end_of_special(tag) {
            Some(end) => end,
            None => {
                let Tag { len, of_one, is_empty } = tag_of(tag);
                attributes += of_one;
                if of_one > ATTRIBUTES_OF_ONE_MAX {
                    let most = ATTRIBUTES_OF_ONE_MAX;
                    return Err(malformed(format!("has an element with over {most} attributes")));
                }
                match (tag.starts_with("</"), is_empty) {
                    (true, _) => depth = depth.saturating_sub(1),
                    (false, true) => {}
                    (false, false) => depth += 1,
                }
                len
            }
        };
        if attributes > ATTRIBUTES_MAX {
            return Err(malformed(format!("has more than {ATTRIBUTES_MAX} attributes")));
        }
        if depth > DEPTH_MAX {
            return Err(malformed(format!("has elements nested deeper than {DEPTH_MAX}")));
        }
        rest = tag.get(end..).unwrap_or_default();
    }
    Ok(())
}

/// Where a comment, a CDATA section or an instruction ends, if `tag` is the beginning of one.
fn end_of_special(tag: &str) -> Option<usize> {
    let kinds = [("<!--", "-->"), ("<![CDATA[", "]]>"), ("<?", "?>")];
    let (begin, end) = kinds.into_iter().find(|(begin, _)| tag.starts_with(begin))?;
    let inside = tag.get(begin.len()..)?;
    // One without an end is the end of everything: the parser says so.
    Some(inside.find(end).map_or(tag.len(), |at| begin.len() + at + end.len()))
}

/// A tag as far as it counts here.
struct Tag {
    /// Its length in bytes.
    len: usize,
    /// How many attributes it has.
    of_one: usize,
    /// It opens nothing that has to be closed.
    is_empty: bool,
}

fn tag_of(tag: &str) -> Tag {
    let (mut quote, mut of_one, mut last) = (None, 0, b' ');
    for (index, byte) in tag.bytes().enumerate() {
        match (quote, byte) {
            (Some(open), _) if byte == open => quote = None,
            (Some(_), _) => {}
            (None, b'"' | b'\'') => quote = Some(byte),
            // Each attribute has one outside of its value.
            (None, b'=') => of_one += 1,
            (None, b'>') => return Tag { len: index + 1, of_one, is_empty: last == b'/' },
            (None, _) => {}
        }
        last = byte;
    }
    Tag { len: tag.len(), of_one, is_empty: true }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::guest::libvirt::parse;

    /// An element with `count` attributes, in a domain.
    fn with_attributes(count: usize) -> String {
        let attributes: String = (0..count).map(|index| format!(" a{index}=''")).collect();
        format!("<domain><name>x</name><metadata><x{attributes}/></metadata></domain>")
    }

    #[track_caller]
    fn refused(text: &str, why: &str) {
        let error = parse(text).expect_err(why);
        assert_eq!(error.kind(), crate::ErrorKind::Image);
        assert!(error.chain().contains(why), "{why}: {}", error.chain());
    }

    /// One domain's XML of 3.7 MB, with 380,000 attributes in one element, took ten minutes: no other
    /// guest was backed up meanwhile, no disk rolled back, and no signal was heard.
    #[test]
    fn attributes_are_counted_before_they_are_compared() {
        let begin = Instant::now();
        parse(&with_attributes(ATTRIBUTES_OF_ONE_MAX)).unwrap();
        for count in [ATTRIBUTES_OF_ONE_MAX + 1, 60_000, 380_000] {
            refused(&with_attributes(count), "attributes");
        }
        // What looks like an end is none, and what looks like a comment is an attribute's value.
        let hidden = with_attributes(400).replacen("<x", "<x b='>' c=\"<!-- '/>\"", 1);
        refused(&hidden, "attributes");
        let spaced = with_attributes(400).replace("=''", "\n = \t''");
        refused(&spaced, "attributes");
        assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", begin.elapsed());
    }

    /// The most of everything that passes is parsed in a time that nobody minds.
    #[test]
    fn the_largest_xml_that_passes_is_parsed_quickly() {
        let attributes: String =
            (0..ATTRIBUTES_OF_ONE_MAX).map(|i| format!(" n:a{i}=''")).collect();
        let element = format!("<x{attributes}/>");
        let count = (XML_LEN_MAX as usize / element.len() - 10).min(ATTRIBUTES_MAX / 128 - 1);
        let spaces: String = (1..NAMESPACES_MAX).map(|i| format!(" xmlns:n{i}='u{i}'")).collect();
        let text = format!(
            "<domain{spaces} xmlns:n='u'><name>x</name><metadata>{}</metadata></domain>",
            element.repeat(count)
        );
        let begin = Instant::now();
        parse(&text).unwrap();
        assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", begin.elapsed());
        refused(&text.replacen("xmlns:n='u'", "xmlns:n='u' xmlns:m='u'", 1), "namespaces");
        let many = format!("<domain>{}</domain>", "<a b='' c=''/>".repeat(ATTRIBUTES_MAX / 2 + 1));
        refused(&many, "attributes");
    }

    #[test]
    fn depth_is_that_of_open_elements() {
        let nested = |count: usize| {
            let (open, close) = ("<a>".repeat(count), "</a>".repeat(count));
            format!("<domain><name>x</name>{open}{close}{open}{close}</domain>")
        };
        parse(&nested(DEPTH_MAX - 1)).unwrap();
        refused(&nested(DEPTH_MAX), "nested deeper");
        let flat = "<a b='>'/><!-- <a> --><![CDATA[<a>]]><?x <a> ?>".repeat(1000);
        parse(&format!("<domain><name>x</name>{flat}</domain>")).unwrap();
    }
}
