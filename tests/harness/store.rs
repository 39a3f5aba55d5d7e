//! A real object store: SeaweedFS, started once for all tests of this process and gone with it.

use std::ffi::OsString;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use qdelta::vault::repository::storage::S3;

use super::repo::Repo;
use super::run::tool;
use super::{Outcome, args, run, temp_dir};

/// Whom the store knows.
pub const KEY: (&str, &str) = ("qdelta-tests", "no-secret-at-all");
/// Who may only read.
pub const READER: (&str, &str) = ("qdelta-reader", "no-secret-either");
/// Who may do nothing but what the policy of a bucket says.
pub const ADDER: (&str, &str) = ("qdelta-adder", "no-secret-as-well");
/// The bucket of all tests.
pub const BUCKET: &str = "tests";

/// The store that all tests share.
struct Store {
    endpoint: String,
    /// By TLS.
    secure: String,
    folder: PathBuf,
}

fn store() -> &'static Store {
    static STORE: OnceLock<Store> = OnceLock::new();
    STORE.get_or_init(start)
}

/// Where the store listens.
pub fn endpoint() -> &'static str {
    &store().endpoint
}

/// Where it listens by TLS.
pub fn tls_endpoint() -> String {
    store().secure.clone()
}

/// Who has signed its certificate.
pub fn tls_authority() -> PathBuf {
    store().folder.join("cert.pem")
}

/// A place in the store where nothing is yet.
pub fn fresh_place() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// The address of a place in the store, reached by an endpoint.
pub fn address(endpoint: &str, place: &str) -> PathBuf {
    PathBuf::from(format!("s3://{BUCKET}/{place}?endpoint={endpoint}&patience=20s"))
}

/// What is at an address, as the tests see it.
pub fn storage(address: &Path) -> S3 {
    S3::with(address, |name| match name {
        "AWS_ACCESS_KEY_ID" => Some(KEY.0.to_owned()),
        "AWS_SECRET_ACCESS_KEY" => Some(KEY.1.to_owned()),
        _ => None,
    })
    .unwrap()
}

/// Where in the store a repository can be made.
pub fn fresh_address() -> PathBuf {
    address(endpoint(), &fresh_place())
}

/// A new repository in the store.
pub fn new_repo() -> Repo {
    Repo::made_at(fresh_address())
}

/// Ports of this host that nobody has, nor the one that the store takes beside each.
fn free_ports<const COUNT: usize>() -> [u16; COUNT] {
    // All are held until all are found, or two could be one.
    let mut held = Vec::new();
    [(); COUNT].map(|()| {
        loop {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            if let Some(beside) = port.checked_add(10_000)
                && let Ok(other) = TcpListener::bind(("127.0.0.1", beside))
            {
                held.extend([listener, other]);
                return port;
            }
        }
    })
}

fn start() -> Store {
    // Somebody may take a port before the store does.
    (0..5).find_map(|_| try_to_start()).expect("each time somebody took a port of the store")
}

/// Gives nothing where somebody has taken one of its ports meanwhile.
fn try_to_start() -> Option<Store> {
    let folder = tempfile::Builder::new().prefix("qdelta-store-").tempdir_in(temp_dir()).unwrap();
    let folder = folder.keep();
    let identities = [(KEY, "\"Admin\""), (READER, "\"Read\",\"List\""), (ADDER, "")].map(|((id, secret), may)| {
        format!(
            r#"{{"name":"{id}","credentials":[{{"accessKey":"{id}","secretKey":"{secret}"}}],"actions":[{may}]}}"#
        )
    });
    let config = format!(r#"{{"identities":[{}]}}"#, identities.join(","));
    std::fs::write(folder.join("s3.json"), config).unwrap();
    let [s3, tls, master, volume, filer] = free_ports();
    let mut certificate = args!["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"];
    certificate.extend(args!["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]);
    certificate.extend(args!["-keyout", folder.join("key.pem"), "-out", folder.join("cert.pem")]);
    run(tool("openssl", certificate)).ok();
    // The shell notices the end of this process, however that comes: then the store ends by SIGKILL, and
    // its folder goes.
    let script = format!(
        "cd {folder} && mkdir data && \
         weed server -dir=data -ip=127.0.0.1 -ip.bind=127.0.0.1 -master.port={master} \
         -master.telemetry=false -master.volumeSizeLimitMB=1024 -volume.port={volume} -volume.max=40 \
         -filer.port={filer} -filer.localSocket={folder}/filer.sock -s3 -s3.port={s3} \
         -s3.port.https={tls} -s3.cert.file=cert.pem -s3.key.file=key.pem \
         -s3.localSocket={folder}/s3.sock -s3.port.iceberg=0 -s3.port.lance=0 -s3.config=s3.json \
         >log 2>&1 & store=$!; read end; kill -9 $store; cd /; rm -rf {folder}",
        folder = folder.display()
    );
    let shell = Command::new("sh").args(["-c", &script]).stdin(Stdio::piped()).spawn();
    let mut shell = shell.expect("scripts/test installs what the tests need");
    let endpoint = format!("http://127.0.0.1:{s3}");
    let begin = Instant::now();
    while !is_up(s3) || !make_bucket(&endpoint) {
        let log = std::fs::read_to_string(folder.join("log")).unwrap_or_default();
        if log.contains("address already in use") {
            // It hears the end of its standard input.
            shell.wait().unwrap();
            return None;
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "the store does not start:\n{log}");
        std::thread::sleep(Duration::from_millis(200));
    }
    // Its standard input is open until this process ends.
    std::mem::forget(shell);
    Some(Store { endpoint, secure: format!("https://127.0.0.1:{tls}"), folder })
}

/// A bucket that locks objects and keeps versions.
pub const LOCKED_BUCKET: &str = "locked";

/// A place in the bucket that locks objects where nothing is yet.
pub fn locked_place() -> PathBuf {
    static MADE: OnceLock<()> = OnceLock::new();
    MADE.get_or_init(|| {
        let enabled = ["-H", "x-amz-bucket-object-lock-enabled: true"].map(OsString::from);
        ask("PUT", &format!("/{LOCKED_BUCKET}"), enabled.to_vec()).ok();
    });
    let endpoint = endpoint();
    format!("s3://{LOCKED_BUCKET}/{}?endpoint={endpoint}&patience=20s", fresh_place()).into()
}

/// Asks the store for something, as the owner of everything; `target` is what follows the host.
pub fn ask(method: &str, target: &str, options: Vec<OsString>) -> Outcome {
    let mut all = args!["-sS", "--fail-with-body", "--aws-sigv4", "aws:amz:us-east-1:s3"];
    all.extend(args!["--max-time", "20", "-u", format!("{}:{}", KEY.0, KEY.1), "-X", method]);
    if method == "PUT" {
        // What curl of Debian 12 signs of a body by itself, this store does not take.
        all.extend(args!["-H", "x-amz-content-sha256: UNSIGNED-PAYLOAD"]);
    }
    all.extend(options);
    all.push(format!("{}{target}", endpoint()).into());
    run(tool("curl", all))
}

fn is_up(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

fn make_bucket(endpoint: &str) -> bool {
    let mut all = args!["-sS", "--fail", "--aws-sigv4", "aws:amz:us-east-1:s3", "--max-time", "20"];
    all.extend(args!["-u", format!("{}:{}", KEY.0, KEY.1), "-X", "PUT"]);
    all.push(format!("{endpoint}/{BUCKET}").into());
    run(tool("curl", all)).status.success()
}
