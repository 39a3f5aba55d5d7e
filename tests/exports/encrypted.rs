//! Connections that keys encrypt: by the TLS of others, GnuTLS, and by our own.

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::harness::images::filled_raw;

const KEY: &str = "2c7e2d0f8d7c4f4b1a55c6c9d7e8f90011223344556677889900aabbccddeeff";

fn keys(lab: &Lab, name: &str, lines: &str) -> PathBuf {
    let path = lab.path(name);
    std::fs::write(&path, lines).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

#[test]
fn a_server_with_our_key_is_read_and_no_other() {
    let lab = Lab::new();
    let raw = filled_raw(&lab, "disk.raw", 5 * MIB, 8);
    let file = keys(&lab, "keys.psk", &format!("# who\nalice:{KEY}\n"));
    let psk = format!("--tls-psk={}", file.display());
    let server =
        Server::nbdkit(&lab, &["--tls=require", psk.as_str(), "file", raw.to_str().unwrap()]);
    let repo = Repo::init(lab.path("repo")).without_ring();
    let uri = |user: &str, file: &Path| -> PathBuf {
        let socket = server.socket.display();
        format!("nbds+unix://{user}/?socket={socket}&tls-psk-file={}", file.display()).into()
    };
    let by_file = repo.backup(&raw, "by/file", &[]);
    for user in ["alice@", ""] {
        let done = repo.backup(&uri(user, &file), "by/server", &["--kind", "full"]);
        assert_eq!(done["root"], by_file["root"]);
    }
    let fails = |uri: PathBuf, status: i32, words: &str| {
        let said = repo.backup_run(&uri, "by/other", &[]).fails_with(status);
        assert!(said.contains(words), "{said}");
        assert!(!said.contains(&KEY[..8]), "{said}");
    };
    fails(server.uri(""), 2, "nbds://");
    fails(uri("alice@", Path::new("/nowhere/keys.psk")), 6, "cannot read /nowhere/keys.psk");
    let other = keys(&lab, "other.psk", &format!("alice:{}\n", KEY.replace("2c", "2d")));
    fails(uri("alice@", &other), 1, "same key under the same name");
    let two = keys(&lab, "two.psk", &format!("alice:{KEY}\nbob:{KEY}\n"));
    fails(uri("", &two), 2, "several keys");
    fails(uri("carol@", &two), 2, "no key of carol");
    std::fs::set_permissions(&two, std::fs::Permissions::from_mode(0o644)).unwrap();
    fails(uri("alice@", &two), 2, "chmod 600");
    let socket = server.socket.display();
    fails(format!("nbds+unix:///?socket={socket}").into(), 2, "tls-psk-file");
    let clear = format!("nbd+unix:///?socket={socket}&tls-psk-file={}", file.display());
    fails(clear.into(), 2, "nothing would be encrypted");
    drop(server);
    let server = Server::nbdkit(&lab, &["file", raw.to_str().unwrap()]);
    let uri =
        format!("nbds+unix:///?socket={}&tls-psk-file={}", server.socket.display(), file.display());
    fails(uri.into(), 2, "does not encrypt");
}

/// A server with a certificate in place of the key could be anybody.
#[test]
fn a_certificate_is_no_key() {
    let lab = Lab::new();
    let raw = filled_raw(&lab, "disk.raw", MIB, 9);
    let (cert, key) = (lab.path("server-cert.pem"), lab.path("server-key.pem"));
    let mut openssl = args!["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x"];
    openssl.extend(args!["-days", "2", "-out", cert.as_path(), "-keyout", key.as_path()]);
    crate::harness::run(tool("openssl", openssl)).ok();
    std::fs::copy(&cert, lab.path("ca-cert.pem")).unwrap();
    let folder = format!("--tls-certificates={}", lab.dir().display());
    let server =
        Server::nbdkit(&lab, &["--tls=require", folder.as_str(), "file", raw.to_str().unwrap()]);
    let file = keys(&lab, "keys.psk", &format!("alice:{KEY}\n"));
    let uri =
        format!("nbds+unix:///?socket={}&tls-psk-file={}", server.socket.display(), file.display());
    let repo = Repo::init(lab.path("repo")).without_ring();
    let said = repo.backup_run(Path::new(&uri), "disk", &[]).fails_with(1);
    assert!(said.contains("cannot agree on encryption"), "{said}");
}
