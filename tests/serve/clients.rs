//! nbdinfo, nbdcopy, qemu-img and others read what was backed up.

use super::*;
use crate::harness::images::qemu_img;
use crate::harness::{run, tool};

#[track_caller]
fn client(name: &str, arguments: Vec<std::ffi::OsString>) -> String {
    run(tool(name, arguments)).ok().text()
}

#[test]
fn real_clients_read_every_point_as_it_was() {
    let scene = Scene::new(3, "64K");
    let serving = scene.serve(&[]);
    for number in 0..3 {
        let uri = serving.uri(&scene.name(number));
        let expected = &scene.points[number].1;
        let copy = scene.lab.path("copy.raw");
        client("nbdcopy", args!["--connections=4", uri.as_str(), copy.as_path()]);
        same(&copy, expected);
        qemu_img(args!["compare", "-f", "raw", "-F", "raw", uri.as_str(), expected.as_path()]).ok();
        let converted = scene.lab.path("converted.qcow2");
        qemu_img(args!["convert", "-f", "raw", "-O", "qcow2", uri.as_str(), converted.as_path()])
            .ok();
        qemu_img(args![
            "compare",
            "-f",
            "qcow2",
            "-F",
            "raw",
            converted.as_path(),
            expected.as_path()
        ])
        .ok();
        std::fs::remove_file(&copy).unwrap();
    }
    // All of it without a proof that anything was told twice or not at all.
    let uri = serving.uri("web/vda@latest");
    let map = client("nbdinfo", args!["--map", uri.as_str()]);
    let mut at = 0;
    let bytes = scene.bytes(2);
    for line in map.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        let (start, len): (usize, usize) = (words[0].parse().unwrap(), words[1].parse().unwrap());
        assert_eq!(start, at);
        at += len;
        let is_zero = bytes[start..at].iter().all(|byte| *byte == 0);
        assert_eq!(is_zero, words[2] == "3", "{line}");
    }
    assert_eq!(at, SIZE);
    assert!(map.lines().count() > 4, "{map}");
    let list = client("nbdinfo", args!["--list", "--json", serving.uri("").as_str()]);
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    let names = list["exports"].as_array().unwrap().iter();
    let names: Vec<_> = names.map(|export| export["export-name"].as_str().unwrap()).collect();
    assert_eq!(names, [scene.name(2), scene.name(1), scene.name(0)]);
    let can = |what: &str, name: &str| {
        run(tool("nbdinfo", args!["--can", what, serving.uri(name).as_str()])).code()
    };
    let id = scene.name(1);
    assert_eq!(
        (can("write", &id), can("multi-conn", &id), can("df", &id)),
        (Some(2), Some(0), Some(0))
    );
    assert_eq!(can("cache", &id), Some(0));
    // Two connections that ask for the latest point at different times may get two.
    assert_eq!(can("multi-conn", "web/vda@latest"), Some(2));
    let report = serving.stop().ok();
    assert!(
        report.text().contains("nbd+unix:///GUEST/DISK%40POINT?socket=/"),
        "{}",
        report.report()
    );
}

#[test]
fn what_was_named_is_served_and_nothing_else() {
    let scene = Scene::new(2, "4K");
    let first = scene.name(0);
    let serving = scene.serve(&[first.as_str(), "--json"]);
    let report = serving.stop().ok().json();
    crate::cli::json::compare("serve", &[&report], &[]);
    assert_eq!(report["exports"][0]["name"], first.as_str());
    let serving = scene.serve(&[first.as_str()]);
    let uri = serving.uri("");
    let expected = scene.points[0].1.as_path();
    qemu_img(args!["compare", "-f", "raw", "-F", "raw", uri.as_str(), expected]).ok();
    let other = serving.uri(&scene.name(1));
    let error = run(tool("nbdinfo", args![other.as_str()])).fails_with(1);
    assert!(error.contains("No such file or directory for export"), "{error}");
    assert!(!scene.lab.path("s.sock").symlink_metadata().unwrap().permissions().readonly());
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &scene.lab.path("s.sock").metadata().unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
    // A second server is refused; one that was killed leaves its socket, which is replaced.
    let socket = scene.lab.path("s.sock");
    let again = scene.repo.run(args!["serve", "--socket", socket.as_path()]).fails_with(5);
    assert!(again.contains("another server listens"), "{again}");
    serving.signal(Signal::KILL);
    drop(serving);
    assert!(socket.exists());
    let serving = scene.serve(&["--domain", "web", "--at", &scene.points[0].0]);
    qemu_img(args!["compare", "-f", "raw", "-F", "raw", uri.as_str(), expected]).ok();
    let report = serving.stop().ok();
    assert!(report.text().contains(&first), "{}", report.report());
    assert!(!socket.exists());
    std::fs::write(&socket, "mine").unwrap();
    scene.repo.run(args!["serve", "--socket", socket.as_path()]).fails_with(7);
    scene.repo.run(args!["serve", "db", "--socket", scene.lab.path("t")]).fails_with(6);
}

/// libnbd gives the server a socket as systemd does.
#[test]
fn a_socket_that_was_opened_for_the_server_is_used() {
    let scene = Scene::new(1, "64K");
    let id = scene.name(0);
    let mut server = args!["--", "[", crate::harness::run::binary()];
    server.extend(scene.repo.args(args!["serve", id.as_str(), "]"]));
    let copy = scene.lab.path("copy.raw");
    client("nbdcopy", [server.clone(), args![copy.as_path()]].concat());
    same(&copy, &scene.points[0].1);
    let info = client("nbdinfo", server);
    assert!(info.contains(&id), "{info}");
    let error = scene.repo.run(args!["serve", id.as_str()]).fails_with(2);
    assert!(error.contains("say where clients come in"), "{error}");
}

/// nbdkit in between is a client, too, and others are its.
#[test]
fn nbdkit_passes_a_point_on() {
    let scene = Scene::new(1, "64K");
    let serving = scene.serve(&["web"]);
    let from = format!("uri={}", serving.uri(""));
    let run_it = format!("nbdcopy \"$uri\" {}", scene.lab.path("copy.raw").display());
    client("nbdkit", args!["-U", "-", "nbd", from, "--run", run_it]);
    same(&scene.lab.path("copy.raw"), &scene.points[0].1);
    serving.stop().ok();
}

/// nbdsh says what no proper client does.
#[test]
fn nbdsh_s_odd_requests_are_refused_and_the_next_is_answered() {
    let scene = Scene::new(1, "64K");
    let serving = scene.serve(&["web"]);
    let script = format!(
        r#"
h.set_strict_mode(0)
h.add_meta_context("base:allocation")
h.connect_uri("{}")
size = h.get_size()
def refused(request):
    try:
        request()
    except nbd.Error as error:
        return error.errno
    raise SystemExit("it was answered")
assert refused(lambda: h.pread(512, size)) == "EINVAL"
assert refused(lambda: h.pread(512, size - 511)) == "EINVAL"
assert refused(lambda: h.pwrite(b"x", 0)) == "EPERM"
assert refused(lambda: h.zero(512, 0)) == "EPERM"
assert refused(lambda: h.pread(512, 0, 1 << 9)) == "EINVAL"
seen = []
h.block_status(size, 0, lambda *it: seen.append(it))
assert seen[0][0] == "base:allocation" and sum(seen[0][2][::2]) == size, seen
h.cache(1 << 20, 0)
assert len(h.pread(4096, 1 << 20)) == 4096
"#,
        serving.uri("")
    );
    // nbdsh itself, by the interpreter that libnbd was packaged for.
    client("/usr/bin/python3", args!["-m", "nbd", "-c", script]);
    serving.stop().ok();
}

/// Over a network nothing is told in clear, and nothing to those who have no key.
#[test]
fn over_a_network_only_those_with_a_key_hear_anything() {
    let scene = Scene::new(1, "64K");
    let file = |name: &str, text: &str| {
        let path = scene.lab.path(name);
        std::fs::write(&path, text).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&path, mode).unwrap();
        path
    };
    let keys =
        file("keys.psk", "desk:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\n");
    let wrong = file(
        "wrong.psk",
        "desk:ff112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\n",
    );
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    let serving = scene.serve(&["web", "--listen", &address, "--tls-psk", keys.to_str().unwrap()]);
    let uri = |user: &str, keys: &Path| {
        format!("nbds://{user}@{address}/?tls-psk-file={}", keys.display())
    };
    let copy = scene.lab.path("copy.raw");
    client("nbdcopy", args!["--connections=4", uri("desk", &keys), copy.as_path()]);
    same(&copy, &scene.points[0].1);
    let info = client("nbdinfo", args![uri("desk", &keys)]);
    assert!(info.contains("newstyle-fixed with TLS"), "{info}");
    let objects = format!(
        "tls-creds-psk,id=t,endpoint=client,username=desk,dir={}",
        scene.lab.dir().display()
    );
    let (host, port) = address.split_once(':').unwrap();
    let done = scene.repo.backup(Path::new(&uri("desk", &keys)), "again", &[]);
    let copied = scene.repo.backup(&scene.points[0].1, "copied", &[]);
    assert_eq!(done["root"], copied["root"]);
    let options = format!("driver=nbd,host={host},port={port},tls-creds=t");
    let expected =
        format!("driver=raw,file.driver=file,file.filename={}", scene.points[0].1.display());
    qemu_img(args!["compare", "--object", objects, "--image-opts", options, expected]).ok();
    for bad in [uri("desk", &wrong), uri("other", &keys), format!("nbd://{address}/")] {
        run(tool("nbdinfo", args![bad.as_str()])).fails_with(1);
    }
    // In clear, byte by byte.
    let mut stream = std::net::TcpStream::connect(&address).unwrap();
    let mut said = [0; 18];
    std::io::Read::read_exact(&mut stream, &mut said).unwrap();
    let list =
        b"\0\0\0\x03IHAVEOPT\0\0\0\x03\0\0\0\0IHAVEOPT\0\0\0\x05\0\0\0\0IHAVEOPT\0\0\0\x03\0\0\0\0";
    std::io::Write::write_all(&mut stream, list).unwrap();
    let mut rest = Vec::new();
    let _ = std::io::Read::read_to_end(&mut stream, &mut rest);
    // It must encrypt first; and what it says in clear after it has asked for that ends it.
    assert_eq!(rest[12..16], [0x80, 0, 0, 5]);
    let last = &rest[rest.len() - 20..];
    assert_eq!(last[8..], *b"\0\0\0\x05\0\0\0\x01\0\0\0\0");
    serving.stop().ok();
    let open = scene.lab.path("open.psk");
    std::fs::copy(&keys, &open).unwrap();
    std::fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let listen = |keys: &Path| {
        scene
            .repo
            .run(args!["serve", "--listen", address.as_str(), "--tls-psk", keys])
            .fails_with(2)
    };
    assert!(listen(&open).contains("chmod 600"));
    assert!(listen(&file("bad.psk", "desk:0011\n")).contains("line 1"));
    scene.repo.run(args!["serve", "--listen", address.as_str()]).fails_with(2);
}
