//! AWS Signature Version 4: what makes a request one of the owner of a key. Pure: bytes in, text out.

use std::fmt::Write as _;

use jiff::Timestamp;
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::pkey::PKey;
use openssl::sign::Signer;

/// The name of the algorithm.
const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// In the place of a digest where a body is not signed.
pub(super) const UNSIGNED: &str = "UNSIGNED-PAYLOAD";

/// Who asks: an access key, and the token of a session where the key is of one.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Keys {
    pub id: String,
    pub secret: String,
    pub token: Option<String>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The secret stands in no log.
        f.debug_struct("Keys").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A request as far as it is signed.
#[derive(Debug)]
pub(super) struct Request<'a> {
    pub method: &'a str,
    pub host: &'a str,
    /// The path, encoded by [`encode_path`].
    pub path: &'a str,
    /// Names and values, not encoded, in any order.
    pub query: Vec<(String, String)>,
    /// Names in small letters, in any order, without `host`.
    pub headers: Vec<(String, String)>,
    /// SHA-256 of the body in hexadecimal digits, or [`UNSIGNED`].
    pub payload: &'a str,
}

/// Where and when a signature holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scope<'a> {
    pub region: &'a str,
    pub service: &'a str,
    pub at: Timestamp,
}

impl Scope<'_> {
    fn time(&self) -> String {
        self.at.strftime("%Y%m%dT%H%M%SZ").to_string()
    }

    fn day(&self) -> String {
        self.at.strftime("%Y%m%d").to_string()
    }

    fn text(&self) -> String {
        format!("{}/{}/{}/aws4_request", self.day(), self.region, self.service)
    }
}

/// Adds the headers that sign the request: time, digest of the body, token, authorization.
pub(super) fn sign(
    request: &mut Request<'_>,
    scope: Scope<'_>,
    keys: &Keys,
) -> Result<(), ErrorStack> {
    request.headers.push(("x-amz-date".to_owned(), scope.time()));
    request.headers.push(("x-amz-content-sha256".to_owned(), request.payload.to_owned()));
    if let Some(token) = &keys.token {
        request.headers.push(("x-amz-security-token".to_owned(), token.clone()));
    }
    let signed = signed_headers(request);
    let signature = signature(request, &signed, scope, keys)?;
    let (id, place) = (&keys.id, scope.text());
    request.headers.push((
        "authorization".to_owned(),
        format!(
            "{ALGORITHM} Credential={id}/{place}, SignedHeaders={signed}, Signature={signature}"
        ),
    ));
    Ok(())
}

/// Adds what signs the request to its query. The store refuses the request when it comes later than
/// `seconds` after the scope's time.
pub(super) fn presign(
    request: &mut Request<'_>,
    scope: Scope<'_>,
    keys: &Keys,
    seconds: u64,
) -> Result<(), ErrorStack> {
    let signed = signed_headers(request);
    let mut add = |name: &str, value: String| request.query.push((name.to_owned(), value));
    add("X-Amz-Algorithm", ALGORITHM.to_owned());
    add("X-Amz-Credential", format!("{}/{}", keys.id, scope.text()));
    add("X-Amz-Date", scope.time());
    add("X-Amz-Expires", seconds.to_string());
    if let Some(token) = &keys.token {
        add("X-Amz-Security-Token", token.clone());
    }
    add("X-Amz-SignedHeaders", signed.clone());
    let signature = signature(request, &signed, scope, keys)?;
    request.query.push(("X-Amz-Signature".to_owned(), signature));
    Ok(())
}

/// The names of the headers that are signed: all of them.
fn signed_headers(request: &Request<'_>) -> String {
    let names = request.headers.iter().map(|(name, _)| name.as_str());
    let mut names: Vec<&str> = names.chain(["host"]).collect();
    names.sort_unstable();
    names.join(";")
}

fn signature(
    request: &Request<'_>,
    signed: &str,
    scope: Scope<'_>,
    keys: &Keys,
) -> Result<String, ErrorStack> {
    let canonical = canonical(request, signed);
    let text = format!(
        "{ALGORITHM}\n{}\n{}\n{}",
        scope.time(),
        scope.text(),
        sha256(canonical.as_bytes())
    );
    let mut key = format!("AWS4{}", keys.secret).into_bytes();
    for part in [scope.day().as_str(), scope.region, scope.service, "aws4_request"] {
        key = hmac(&key, part.as_bytes())?;
    }
    Ok(hex(&hmac(&key, text.as_bytes())?))
}

/// The request in the one form that both sides sign.
fn canonical(request: &Request<'_>, signed: &str) -> String {
    let mut headers: Vec<(&str, &str)> =
        request.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    headers.push(("host", request.host));
    headers.sort_unstable();
    let mut text = format!("{}\n{}\n{}\n", request.method, request.path, query(&request.query));
    for (name, value) in headers {
        // Spaces in a row count as one.
        let value = value.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
        let _ = writeln!(text, "{name}:{value}");
    }
    let _ = write!(text, "\n{signed}\n{}", request.payload);
    text
}

/// A query as text, in the order in which it is signed.
pub(super) fn query(pairs: &[(String, String)]) -> String {
    let mut pairs: Vec<_> =
        pairs.iter().map(|(name, value)| (encode(name, false), encode(value, false))).collect();
    pairs.sort_unstable();
    pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
}

/// A path whose parts may hold any character. Slashes separate them.
pub(super) fn encode_path(path: &str) -> String {
    encode(path, true)
}

fn encode(text: &str, slashes: bool) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte));
            }
            b'/' if slashes => encoded.push('/'),
            _ => {
                let _ = write!(encoded, "%{byte:02X}");
            }
        }
    }
    encoded
}

/// SHA-256 of bytes, in hexadecimal digits.
pub(super) fn sha256(bytes: &[u8]) -> String {
    hex(&openssl::sha::sha256(bytes))
}

fn hmac(key: &[u8], bytes: &[u8]) -> Result<Vec<u8>, ErrorStack> {
    let key = PKey::hmac(key)?;
    Signer::new(MessageDigest::sha256(), &key)?.sign_oneshot_to_vec(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The keys of every example of AWS's documentation.
    fn example() -> Keys {
        Keys {
            id: "AKIAIOSFODNN7EXAMPLE".to_owned(),
            secret: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_owned(),
            token: None,
        }
    }

    fn scope() -> Scope<'static> {
        let at = "2013-05-24T00:00:00Z".parse().unwrap();
        Scope { region: "us-east-1", service: "s3", at }
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[track_caller]
    fn assert_signs(mut request: Request<'_>, signed: &str, signature: &str) {
        sign(&mut request, scope(), &example()).unwrap();
        let expected = format!(
            "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, \
             SignedHeaders={signed}, Signature={signature}"
        );
        assert_eq!(request.headers.last().unwrap().1, expected);
    }

    /// The four examples of "Signature Calculations for the Authorization Header: Transferring Payload
    /// in a Single Chunk", and the one of "Authenticating Requests: Using Query Parameters".
    #[test]
    fn the_examples_of_the_documentation_are_signed_as_they_are_there() {
        let empty = sha256(b"");
        let request = |method, path, query: &[(&str, &str)], headers: &[(&str, &str)]| Request {
            method,
            host: "examplebucket.s3.amazonaws.com",
            path,
            query: pairs(query),
            headers: pairs(headers),
            payload: &empty,
        };
        assert_signs(
            request("GET", "/test.txt", &[], &[("range", "bytes=0-9")]),
            "host;range;x-amz-content-sha256;x-amz-date",
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        );
        let text = sha256(b"Welcome to Amazon S3.");
        let path = encode_path("/test$file.text");
        assert_signs(
            Request {
                payload: &text,
                path: &path,
                ..request(
                    "PUT",
                    "",
                    &[],
                    &[
                        ("date", "Fri, 24 May 2013 00:00:00 GMT"),
                        ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
                    ],
                )
            },
            "date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class",
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
        );
        assert_signs(
            request("GET", "/", &[("lifecycle", "")], &[]),
            "host;x-amz-content-sha256;x-amz-date",
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
        );
        assert_signs(
            request("GET", "/", &[("prefix", "J"), ("max-keys", "2")], &[]),
            "host;x-amz-content-sha256;x-amz-date",
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
        );
        let mut query = Request { payload: UNSIGNED, ..request("GET", "/test.txt", &[], &[]) };
        presign(&mut query, scope(), &example(), 86400).unwrap();
        assert_eq!(
            query.query.last().unwrap().1,
            "aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
        );
    }

    /// Two of AWS's "Signature Version 4 Test Suite" that the examples above don't touch: spaces within
    /// headers, and characters that are encoded in a query.
    #[test]
    fn headers_and_queries_take_their_one_form() {
        let request = Request {
            method: "GET",
            host: "example.amazonaws.com",
            path: "/",
            query: pairs(&[("Param2", "value 2"), ("Param1", "a/b"), ("Param1", "a+b")]),
            headers: pairs(&[("my-header1", " value1   value2 "), ("a", "b")]),
            payload: UNSIGNED,
        };
        let expected = "GET\n/\nParam1=a%2Bb&Param1=a%2Fb&Param2=value%202\na:b\n\
             host:example.amazonaws.com\nmy-header1:value1 value2\n\na;host;my-header1\n\
             UNSIGNED-PAYLOAD";
        assert_eq!(canonical(&request, &signed_headers(&request)), expected);
        assert_eq!(encode_path("/ü b/c~d"), "/%C3%BC%20b/c~d");
    }

    #[test]
    fn no_secret_is_shown() {
        assert!(!format!("{:?}", example()).contains("wJal"));
    }
}
