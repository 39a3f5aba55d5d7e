//! The names by which clients find an export: URIs as NBD's own specification (`uri.md`) has them.

/// The URI of an export of a server that listens at a socket of this path.
pub fn unix_uri(export: &str, socket: &str) -> String {
    format!("nbd+unix:///{}?socket={}", escaped(export), escaped(socket))
}

/// A text as a part of a URI; a path keeps its slashes.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        let is_plain = byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
        match is_plain {
            true => escaped.push(byte.into()),
            // Many a client takes a name with a plain @ in it for a user and a host.
            false => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_name_any_guest_and_any_path() {
        assert_eq!(
            unix_uri("web/vda@20261129T021929.882Z", "/run/libvirt/qdelta/web.sock"),
            "nbd+unix:///web/vda%4020261129T021929.882Z?socket=/run/libvirt/qdelta/web.sock"
        );
        assert_eq!(
            unix_uri("it's 100%/ä", "/run/a b?&#"),
            "nbd+unix:///it%27s%20100%25/%C3%A4?socket=/run/a%20b%3F%26%23"
        );
    }
}
