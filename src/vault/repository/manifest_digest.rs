//! The digest of a manifest: of its content alone, so that neither layout nor the order of fields matters.

use serde_json::Value;

/// BLAKE3 of a manifest without its digest, as hex: of its JSON without spaces and with the
/// fields sorted, so that neither layout nor order matters.
pub(super) fn digest_of(value: &Value) -> String {
    let mut bytes = Vec::new();
    canonical(value, &mut bytes);
    blake3::hash(&bytes).to_hex().to_string()
}

/// The text of a manifest without spaces and without its digest: what the digest is of, as fields are
/// written sorted. A tree of its values would take a hundred times the memory of the text.
pub(super) fn without_digest(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let (mut depth, mut drops_comma) = (0_usize, false);
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        if byte == b'"' {
            let (string, after) = rest.split_at(string_len(rest));
            rest = after;
            let is_name = matches!(out.last(), Some(b'{' | b','));
            if depth == 1 && is_name && string == b"\"digest\"" {
                let between = |byte: &u8| byte.is_ascii_whitespace() || *byte == b':';
                let value = rest.iter().position(|byte| !between(byte)).unwrap_or(rest.len());
                rest = rest.split_at(value).1;
                rest = rest.split_at(string_len(rest)).1;
                drops_comma = out.last() == Some(&b'{');
                if !drops_comma {
                    out.pop();
                }
            } else {
                out.extend_from_slice(string);
            }
            continue;
        }
        rest = after;
        match byte {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            b',' if drops_comma => {
                drops_comma = false;
                continue;
            }
            byte if byte.is_ascii_whitespace() => continue,
            _ => {}
        }
        out.push(byte);
    }
    out
}

/// How long the string of JSON is that `text` begins with, with its quotes.
fn string_len(text: &[u8]) -> usize {
    let mut escaped = false;
    for (index, byte) in text.iter().enumerate().skip(1) {
        match byte {
            b'"' if !escaped => return index + 1,
            b'\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    text.len()
}

/// Appends the one way to write `value`.
fn canonical(value: &Value, out: &mut Vec<u8>) {
    let separator = |out: &mut Vec<u8>, first: usize| {
        if first > 0 {
            out.push(b',');
        }
    };
    match value {
        Value::Object(fields) => {
            let mut sorted: Vec<_> = fields.iter().collect();
            sorted.sort_unstable_by_key(|(name, _)| *name);
            out.push(b'{');
            for (index, (name, field)) in sorted.into_iter().enumerate() {
                separator(out, index);
                canonical(&Value::String(name.clone()), out);
                out.push(b':');
                canonical(field, out);
            }
            out.push(b'}');
        }
        Value::Array(items) => {
            out.push(b'[');
            for (index, item) in items.iter().enumerate() {
                separator(out, index);
                canonical(item, out);
            }
            out.push(b']');
        }
        scalar => out.extend_from_slice(scalar.to_string().as_bytes()),
    }
}
