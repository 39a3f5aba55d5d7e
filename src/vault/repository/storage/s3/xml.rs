//! What a store answers, as XML. Pure: bytes in, values out.

use jiff::Timestamp;
use roxmltree::{Document, Node};

/// One page of what has names below a prefix.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Page {
    pub objects: Vec<Object>,
    /// The names up to the delimiter, with it, that more than one object may share.
    pub prefixes: Vec<String>,
    /// Where the next page begins, if there is one.
    pub next: Option<String>,
}

/// An object of a listing.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Object {
    pub key: String,
    pub len: u64,
    pub etag: String,
    /// When it was last written, as the store says it.
    pub modified: String,
}

/// One page of the uploads that nobody has completed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Uploads {
    /// Keys and ids.
    pub uploads: Vec<(String, String)>,
    /// Key and id after which the next page begins, if there is one.
    pub next: Option<(String, String)>,
}

/// Why a store refuses a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Refusal {
    pub code: String,
    pub message: String,
}

/// An ETag as requests write it, however a list, an answer or what stands between has: there it may be without quotes, or
/// called weak.
pub(super) fn strong_etag(text: &str) -> String {
    let strong = text.trim().trim_start_matches("W/");
    format!("\"{}\"", strong.trim_matches('"'))
}

/// A page of `ListObjectsV2`.
pub(super) fn page(bytes: &[u8]) -> Result<Page, String> {
    with_root(bytes, "ListBucketResult", |root| {
        let mut page = Page::default();
        for node in elements(root) {
            match node.tag_name().name() {
                "Contents" => {
                    let Some(key) = key_of(root, &need(node, "Key")?) else { continue };
                    page.objects.push(Object {
                        key,
                        len: number(&need(node, "Size")?)?,
                        etag: strong_etag(&need(node, "ETag")?),
                        modified: need(node, "LastModified")?,
                    });
                }
                "CommonPrefixes" => page.prefixes.extend(key_of(root, &need(node, "Prefix")?)),
                _ => {}
            }
        }
        // Some stores count the objects alone.
        let found = elements(root)
            .filter(|node| ["Contents", "CommonPrefixes"].contains(&node.tag_name().name()))
            .count() as u64;
        if let Ok(said) = need(root, "KeyCount")
            && number(&said)? > found
        {
            return Err(format!("it counts {said} names, and {found} are there"));
        }
        if is_truncated(root) {
            // A page that says that more follow, and not where, must not pass for the last one.
            page.next = Some(need(root, "NextContinuationToken")?);
        }
        Ok(page)
    })
}

/// A page of `ListMultipartUploads`.
pub(super) fn uploads(bytes: &[u8]) -> Result<Uploads, String> {
    with_root(bytes, "ListMultipartUploadsResult", |root| {
        let mut page = Uploads::default();
        for node in elements(root).filter(|node| node.has_tag_name_of("Upload")) {
            let Some(key) = key_of(root, &need(node, "Key")?) else { continue };
            page.uploads.push((key, need(node, "UploadId")?));
        }
        if is_truncated(root) {
            let key = marker(root)?;
            page.next = Some((key, need(root, "NextUploadIdMarker")?));
        }
        Ok(page)
    })
}

/// A version of an object, or the mark that it was removed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Version {
    pub key: String,
    pub id: String,
    pub is_removed: bool,
    pub len: u64,
    pub etag: String,
    pub modified: Timestamp,
}

/// One page of versions.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Versions {
    pub versions: Vec<Version>,
    /// Key and id after which the next page begins, if there is one.
    pub next: Option<(String, String)>,
}

/// A page of `ListObjectVersions`.
pub(super) fn versions(bytes: &[u8]) -> Result<Versions, String> {
    with_root(bytes, "ListVersionsResult", |root| {
        let mut page = Versions::default();
        for node in elements(root) {
            let is_removed = match node.tag_name().name() {
                "Version" => false,
                "DeleteMarker" => true,
                _ => continue,
            };
            let Some(key) = key_of(root, &need(node, "Key")?) else { continue };
            let modified = need(node, "LastModified")?;
            page.versions.push(Version {
                key,
                id: need(node, "VersionId")?,
                is_removed,
                len: if is_removed { 0 } else { number(&need(node, "Size")?)? },
                etag: if is_removed { String::new() } else { strong_etag(&need(node, "ETag")?) },
                modified: modified.parse().map_err(|_| format!("no time: {modified:?}"))?,
            });
        }
        if is_truncated(root) {
            let key = marker(root)?;
            page.next = Some((key, text_of(root, "NextVersionIdMarker").unwrap_or_default()));
        }
        Ok(page)
    })
}

/// Whether a bucket can lock objects, and for how many days it does by itself, if it does.
pub(super) fn object_lock(bytes: &[u8]) -> Result<Option<Option<u16>>, String> {
    with_root(bytes, "ObjectLockConfiguration", |root| {
        if text_of(root, "ObjectLockEnabled").as_deref() != Some("Enabled") {
            return Ok(None);
        }
        let found = |name: &str| {
            let node = root.descendants().find(|node| node.has_tag_name_of(name))?;
            node.text()?.trim().parse::<u16>().ok().filter(|it| *it > 0)
        };
        let years = || found("Years").and_then(|years| years.checked_mul(365));
        Ok(Some(found("Days").or_else(years)))
    })
}

/// The body of `PutObjectRetention`.
pub(super) fn retention(mode: &str, until: &str) -> String {
    format!(
        "<Retention xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Mode>{mode}</Mode>\
         <RetainUntilDate>{until}</RetainUntilDate></Retention>"
    )
}

/// The id of an upload that was begun.
pub(super) fn upload_id(bytes: &[u8]) -> Result<String, String> {
    with_root(bytes, "InitiateMultipartUploadResult", |root| need(root, "UploadId"))
}

/// The ETag of an object whose upload was completed. A store may notice only after it has begun to
/// answer that it can't: then the answer of a success holds an error.
pub(super) fn completed(bytes: &[u8]) -> Result<String, String> {
    with_root(bytes, "CompleteMultipartUploadResult", |root| {
        need(root, "ETag").map(|it| strong_etag(&it))
    })
}

/// The keys that `DeleteObjects` did not delete, and why.
pub(super) fn undeleted(bytes: &[u8]) -> Result<Vec<(String, Refusal)>, String> {
    with_root(bytes, "DeleteResult", |root| {
        let errors = elements(root).filter(|node| node.has_tag_name_of("Error"));
        errors.map(|node| Ok((need(node, "Key")?, refusal_of(node)))).collect()
    })
}

/// The error in an answer, if it is one.
pub(super) fn refusal(bytes: &[u8]) -> Option<Refusal> {
    with_root(bytes, "Error", |root| Ok(refusal_of(root))).ok()
}

/// The access key, secret, token and end of credentials from a security token service.
pub(super) fn assumed(bytes: &[u8]) -> Result<[String; 4], String> {
    with_root(bytes, "AssumeRoleWithWebIdentityResponse", |root| {
        let found = root.descendants().find(|node| node.has_tag_name_of("Credentials"));
        let keys = found.ok_or("no Credentials in it")?;
        let part = |name| need(keys, name);
        Ok([
            part("AccessKeyId")?,
            part("SecretAccessKey")?,
            part("SessionToken")?,
            part("Expiration")?,
        ])
    })
}

/// The body of `CompleteMultipartUpload`: the ETags of the parts, the first of part 1.
pub(super) fn parts(etags: &[String]) -> String {
    let mut text = "<CompleteMultipartUpload>".to_owned();
    for (index, etag) in etags.iter().enumerate() {
        let (number, etag) = (index + 1, escaped(etag));
        text.push_str(&format!(
            "<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>"
        ));
    }
    text + "</CompleteMultipartUpload>"
}

/// The body of `DeleteObjects`.
pub(super) fn deletion<'a>(keys: impl Iterator<Item = &'a str>) -> String {
    let mut text = "<Delete><Quiet>true</Quiet>".to_owned();
    for key in keys {
        text.push_str(&format!("<Object><Key>{}</Key></Object>", escaped(key)));
    }
    text + "</Delete>"
}

fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            _ => escaped.push(c),
        }
    }
    escaped
}

fn refusal_of(node: Node<'_, '_>) -> Refusal {
    let part = |name| text_of(node, name).unwrap_or_default();
    Refusal { code: part("Code"), message: part("Message") }
}

fn with_root<T>(
    bytes: &[u8],
    name: &str,
    read: impl FnOnce(Node<'_, '_>) -> Result<T, String>,
) -> Result<T, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
    let document = Document::parse(text).map_err(|error| error.to_string())?;
    let root = document.root_element();
    if root.tag_name().name() != name {
        return Err(match root.tag_name().name() {
            "Error" => {
                let Refusal { code, message } = refusal_of(root);
                format!("{code}: {message}")
            }
            other => format!("{other} where {name} was to come"),
        });
    }
    read(root)
}

/// The namespace differs from store to store, and some have none.
trait HasTagName {
    fn has_tag_name_of(&self, name: &str) -> bool;
}

impl HasTagName for Node<'_, '_> {
    fn has_tag_name_of(&self, name: &str) -> bool {
        self.tag_name().name() == name
    }
}

fn elements<'a, 'input: 'a>(node: Node<'a, 'input>) -> impl Iterator<Item = Node<'a, 'input>> {
    node.children().filter(Node::is_element)
}

fn text_of(node: Node<'_, '_>, name: &str) -> Option<String> {
    let found = elements(node).find(|child| child.has_tag_name_of(name))?;
    Some(found.text().unwrap_or_default().to_owned())
}

fn need(node: Node<'_, '_>, name: &str) -> Result<String, String> {
    text_of(node, name).ok_or_else(|| format!("no {name} in {}", node.tag_name().name()))
}

fn is_truncated(root: Node<'_, '_>) -> bool {
    text_of(root, "IsTruncated").is_some_and(|it| it == "true")
}

fn number(text: &str) -> Result<u64, String> {
    text.trim().parse().map_err(|_| format!("{text:?} is no length"))
}

/// A key of a listing, which was asked to encode its keys, for XML can't hold every character; not every store
/// does, and one that does says so. None for a key that nothing of ours has: whoever may write to the bucket could
/// have put it there.
fn key_of(root: Node<'_, '_>, text: &str) -> Option<String> {
    let is_encoded = text_of(root, "EncodingType").is_some_and(|it| it == "url");
    if is_encoded { decoded(text) } else { Some(text.to_owned()) }
}

/// Behind which key the next page begins.
fn marker(root: Node<'_, '_>) -> Result<String, String> {
    let text = need(root, "NextKeyMarker")?;
    key_of(root, &text).ok_or_else(|| format!("{text:?} is not encoded soundly"))
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digit = |it: Option<u8>| char::from(it?).to_digit(16);
                (digit(rest.next())? * 16 + digit(rest.next())?) as u8
            }
            b'+' => b' ',
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read_with_its_end() {
        let text = r#"<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name><Prefix>p/</Prefix>
<EncodingType>url</EncodingType><IsTruncated>true</IsTruncated><NextContinuationToken>1/abc=</NextContinuationToken>
<Contents><Key>p/a%2Bb%20c+d</Key><LastModified>2026-11-29T01:02:03.000Z</LastModified>
<ETag>&quot;9b2cf535f27731c974343645a3985328&quot;</ETag><Size>434234</Size></Contents>
<CommonPrefixes><Prefix>p/web/</Prefix></CommonPrefixes></ListBucketResult>"#;
        let object = Object {
            key: "p/a+b c d".to_owned(),
            len: 434_234,
            etag: "\"9b2cf535f27731c974343645a3985328\"".to_owned(),
            modified: "2026-11-29T01:02:03.000Z".to_owned(),
        };
        let expected = Page {
            objects: vec![object],
            prefixes: vec!["p/web/".to_owned()],
            next: Some("1/abc=".to_owned()),
        };
        assert_eq!(page(text.as_bytes()), Ok(expected));
        // Whatever is missing at its end, no page passes for a shorter one.
        for end in 0..text.len() {
            assert!(page(&text.as_bytes()[..end]).is_err(), "cut at {end}");
        }
        // A list that lacked some of its entries was believed, and points were removed that others needed.
        let counted = |count: &str| {
            page(
                text.replace(
                    "<IsTruncated>",
                    &format!("<KeyCount>{count}</KeyCount><IsTruncated>"),
                )
                .as_bytes(),
            )
        };
        for fits in ["0", "1", "2"] {
            assert_eq!(counted(fits), page(text.as_bytes()), "{fits}");
        }
        assert_eq!(counted("3"), Err("it counts 3 names, and 2 are there".to_owned()));
        assert!(counted("many").is_err());
        let endless = text.replace("NextContinuationToken", "Other");
        assert!(page(endless.as_bytes()).unwrap_err().contains("NextContinuationToken"));
        for bad in ["-1", "many", ""] {
            assert!(page(text.replace("434234", bad).as_bytes()).is_err(), "{bad}");
        }
        // Whoever may write to the bucket hides nothing by a key that can't be understood.
        for bad in ["%", "%2g", "%zz", "%ff"] {
            let page = page(text.replace("%2B", bad).as_bytes()).unwrap();
            assert_eq!((page.objects.len(), page.prefixes.len()), (0, 1), "{bad}");
        }
        let plain = page(text.replace("<EncodingType>url</EncodingType>", "").as_bytes()).unwrap();
        assert_eq!(plain.objects[0].key, "p/a%2Bb%20c+d", "the store encodes nothing");
    }

    #[test]
    fn uploads_and_their_completion_are_read() {
        let text = "<InitiateMultipartUploadResult><Bucket>b</Bucket><UploadId>x-1</UploadId>\
             </InitiateMultipartUploadResult>";
        assert_eq!(upload_id(text.as_bytes()), Ok("x-1".to_owned()));
        let text = "<ListMultipartUploadsResult><NextKeyMarker>k</NextKeyMarker>\
             <NextUploadIdMarker>2</NextUploadIdMarker><IsTruncated>true</IsTruncated>\
             <Upload><Key>a/b</Key><UploadId>1</UploadId></Upload></ListMultipartUploadsResult>";
        let next = Some(("k".to_owned(), "2".to_owned()));
        let expected = Uploads { uploads: vec![("a/b".to_owned(), "1".to_owned())], next };
        assert_eq!(uploads(text.as_bytes()), Ok(expected));
        let text =
            "<CompleteMultipartUploadResult><ETag>\"1-2\"</ETag></CompleteMultipartUploadResult>";
        assert_eq!(completed(text.as_bytes()), Ok("\"1-2\"".to_owned()));
        let etags = ["\"a\"".to_owned(), "b".to_owned()];
        assert_eq!(
            parts(&etags),
            "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>&quot;a&quot;</ETag></Part>\
             <Part><PartNumber>2</PartNumber><ETag>b</ETag></Part></CompleteMultipartUpload>"
        );
    }

    #[test]
    fn an_error_in_the_answer_of_a_success_is_an_error() {
        let text = "<Error><Code>InternalError</Code><Message>try again</Message></Error>";
        let error = completed(text.as_bytes()).unwrap_err();
        assert_eq!(error, "InternalError: try again");
        let refusal = refusal(text.as_bytes()).unwrap();
        assert_eq!(
            (refusal.code.as_str(), refusal.message.as_str()),
            ("InternalError", "try again")
        );
        assert_eq!(super::refusal(b"<html></html>"), None);
        assert_eq!(super::refusal(b"no"), None);
    }

    #[test]
    fn what_was_not_deleted_is_named() {
        assert_eq!(
            deletion(["a&b", "c"].into_iter()),
            "<Delete><Quiet>true</Quiet><Object>\
             <Key>a&amp;b</Key></Object><Object><Key>c</Key></Object></Delete>"
        );
        let text = "<DeleteResult><Error><Key>c</Key><Code>AccessDenied</Code><Message>no</Message>\
             </Error></DeleteResult>";
        let refusal = Refusal { code: "AccessDenied".to_owned(), message: "no".to_owned() };
        assert_eq!(undeleted(text.as_bytes()), Ok(vec![("c".to_owned(), refusal)]));
        assert_eq!(undeleted(b"<DeleteResult/>"), Ok(vec![]));
    }
}
