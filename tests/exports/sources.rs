//! A disk behind a server is backed up like the image that the server has open.

use super::*;
use crate::harness::content::Random;
use crate::harness::images::{create, filled, filled_raw};
use crate::harness::qdelta;
use crate::harness::repo::number;
use crate::harness::run::{finish, run};

/// Both have read the same disk, and nothing of what is zero.
#[track_caller]
fn assert_alike(by_server: &Value, by_file: &Value) {
    for field in ["root", "bytes_changed", "virtual_size"] {
        assert_eq!(by_server[field], by_file[field], "{field}\n{by_server:#}\n{by_file:#}");
    }
    // In whole blocks, if the server knows of no smaller holes.
    let read = number(by_server, "bytes_read");
    assert!(read <= number(by_file, "bytes_changed"), "{by_server:#}\n{by_file:#}");
}

#[test]
fn what_qemu_gives_out_is_what_the_image_holds() {
    let lab = Lab::new();
    let image = filled(&lab, "disk.qcow2", "", 12 * MIB, 1);
    let raw = filled_raw(&lab, "disk.raw", 12 * MIB, 2);
    let repo = Repo::init(lab.path("repo"));
    for (path, format) in [(&image, "qcow2"), (&raw, "raw")] {
        // One that ends with its first client, one for several, one that lets nobody write.
        for (round, options) in
            [&[][..], &["-t", "-e", "8"], &["-t", "-e", "8", "-r"], &["-t", "-r"]]
                .iter()
                .enumerate()
        {
            let (kind, disk) =
                (if round == 0 { "full" } else { "auto" }, format!("{format}/{round}"));
            let done = {
                let server = Server::qemu(&lab, path, format, options).unwrap();
                repo.backup(&server.uri("vda"), &disk, &["--kind", kind])
            };
            let by_file = repo.backup(path, &format!("file-{disk}").replace('/', "-"), &[]);
            assert_alike(&done, &by_file);
            assert_eq!(done["io"], "threads");
            let codes: Vec<_> =
                done["warnings"].as_array().unwrap().iter().map(|it| &it["code"]).collect();
            let expected = if options.contains(&"-r") { vec![] } else { vec!["writable"] };
            assert_eq!(codes, expected, "{done:#}");
        }
        let expected = lab.path("expected.raw");
        oracle(args!["-f", format, path.as_path()], &expected);
        repo.assert_restores(&lab, &format!("{format}/1"), &expected);
    }
    repo.verify();
}

#[test]
fn nbdkit_and_qdelta_itself_are_servers_as_good() {
    let lab = Lab::new();
    let raw = filled_raw(&lab, "disk.raw", 7 * MIB + 512, 3);
    let path = raw.to_str().unwrap();
    let repo = Repo::init(lab.path("repo"));
    let by_file = repo.backup(&raw, "by/file", &[]);
    for (number, options) in [
        &["file", path][..],
        // Least requests of 512 bytes: what begins elsewhere is read around.
        &[
            "--filter=blocksize-policy",
            "file",
            path,
            "blocksize-minimum=512",
            "blocksize-error-policy=error",
        ],
        // No structured replies, and with it nothing of holes.
        &["--no-sr", "file", path],
        &["--filter=multi-conn", "file", path, "multi-conn-mode=disable"],
    ]
    .iter()
    .enumerate()
    {
        let server = Server::nbdkit(&lab, options);
        let done = repo.backup(&server.uri(""), &format!("by/{number}"), &[]);
        assert_eq!(done["root"], by_file["root"], "{options:?}");
    }
    let socket = lab.path("s.sock");
    let serve = repo.args(args!["serve", "by/file", "--socket", socket.as_path()]);
    let _ = std::fs::remove_file(&socket);
    let server = Server { child: start(&mut qdelta(serve)), socket };
    // It gets its name when it listens.
    while !server.socket.exists() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let done = repo.backup(&server.uri("by/file@latest"), "by/qdelta", &[]);
    assert_alike(&done, &by_file);
}

#[test]
fn the_next_points_hold_what_has_changed_also_after_a_resize() {
    let lab = Lab::new();
    let image = lab.path("disk.qcow2");
    create(&image, "", 8 * MIB);
    let repo = Repo::init(lab.path("repo")).without_ring();
    let guest = |acts: &[&str]| {
        guest_io(&image, "qcow2", &acts.iter().map(|act| (*act).to_owned()).collect::<Vec<_>>());
    };
    guest(&["write -q -P 1 0 4M"]);
    let backup = || {
        let server = Server::qemu(&lab, &image, "qcow2", &["-r"]).unwrap();
        let done = repo.run(args!["backup", server.uri("vda"), "--json"]).ok().json();
        let expected = lab.path("expected.raw");
        oracle(args!["-f", "qcow2", image.as_path()], &expected);
        repo.assert_restores_raw(&lab, "vda", &expected);
        done
    };
    // The name is that of the export.
    assert_eq!(backup()["disk"], "vda/disk");
    guest(&["write -q -P 2 1M 64k"]);
    let done = backup();
    assert_eq!(
        (done["kind"].as_str(), number(&done, "bytes_changed")),
        (Some("incremental"), 65536)
    );
    qemu_img(args!["resize", "-q", image.as_path(), "9M"]).ok();
    guest(&["write -q -P 3 8800k 10k"]);
    let done = backup();
    assert_eq!((number(&done, "virtual_size"), number(&done, "bytes_changed")), (9 * MIB, 65536));
    qemu_img(args!["resize", "-q", "--shrink", image.as_path(), "3M"]).ok();
    let done = backup();
    assert_eq!(done["warnings"][0]["code"], "smaller", "{done:#}");
    assert_eq!(reason(&done, "live-bitmap"), "the point before left nothing to compare with");
}

#[test]
fn an_export_gets_a_name_or_must_be_given_one() {
    let lab = Lab::new();
    let raw = filled_raw(&lab, "disk.raw", MIB, 4);
    let repo = Repo::init(lab.path("repo")).without_ring();
    let server = Server::qemu(&lab, &raw, "raw", &["-t", "-x", "web/vdb"]).unwrap();
    let backup = |uri: PathBuf| repo.run(args!["backup", uri, "--json"]);
    assert_eq!(backup(server.uri("web/vdb")).ok().json()["disk"], "web/vdb");
    let said = backup(server.uri("vdc")).fails_with(6);
    assert!(said.contains("no export 'vdc'") && said.contains("it has 'web/vdb'"), "{said}");
    drop(server);
    for (export, words) in [("", "--disk NAME"), ("web/vdb@latest", "--disk NAME")] {
        let server = Server::qemu(&lab, &raw, "raw", &["-x", export]).unwrap();
        let said = backup(server.uri(export)).fails_with(2);
        assert!(said.contains(words), "{said}");
    }
    // The same name at another server may be anything.
    let other = lab.path("other.sock");
    let server = Server::start(
        "qemu-nbd",
        args!["-t", "-k", other.as_path(), "-x", "web/vdb", "-f", "raw", raw.as_path()],
        &other,
    )
    .unwrap();
    let said = backup(server.uri("web/vdb")).fails_with(2);
    assert!(said.contains("is another image") && said.contains("--disk web/vdb"), "{said}");
    assert_eq!(repo.backup(&server.uri("web/vdb"), "web/vdb", &[])["bytes_changed"], 0);
    assert_eq!(repo.points("web/vdb").len(), 2);
}

/// A server that gives out the file of a qcow2 image in place of the disk in it is taken at its word, and
/// somebody is told.
#[test]
fn the_file_of_an_image_in_place_of_its_disk_is_noticed() {
    let lab = Lab::new();
    let image = filled(&lab, "disk.qcow2", "", 2 * MIB, 5);
    let repo = Repo::init(lab.path("repo")).without_ring();
    let server = Server::qemu(&lab, &image, "raw", &["-t", "-r"]).unwrap();
    let done = repo.backup(&server.uri("vda"), "disk", &[]);
    let warning = &done["warnings"][0];
    assert_eq!(warning["code"], "other-format", "{done:#}");
    assert!(warning["text"].as_str().unwrap().contains("looks like"), "{warning}");
    let done = repo.backup(&server.uri("vda"), "disk", &["--format", "raw"]);
    assert_eq!(done["warnings"], serde_json::json!([]));
    drop(server);
    // From its file, a disk whose format no point tells is not guessed to be qcow2.
    let said = repo.backup_run(&image, "disk", &[]).fails_with(2);
    assert!(said.contains("--format qcow2"), "{said}");
    let done = repo.backup(&image, "disk", &["--format", "qcow2"]);
    assert_eq!(reason(&done, "overlay"), "the disk was read from a server the last time");
}

#[test]
fn a_server_that_fails_leaves_no_half_point() {
    let lab = Lab::new();
    let raw = lab.path("disk.raw");
    std::fs::write(&raw, Random::new(6).noise(24 << 20)).unwrap();
    let path = raw.to_str().unwrap();
    let repo = Repo::init(lab.path("repo")).without_ring();
    let backup = |uri: PathBuf| args!["backup", uri, "--disk", "disk", "--json"];
    // It can't read a part of the disk.
    let server = Server::nbdkit(
        &lab,
        &["--filter=error", "file", path, "error-pread=EIO", "error-pread-rate=10%"],
    );
    let said = repo.run(backup(server.uri(""))).fails_with(1);
    assert!(said.contains("input/output error") && said.contains("nbd+unix://"), "{said}");
    drop(server);
    // It is killed while it is read.
    for after in [0, 50, 150, 300] {
        let server = Server::nbdkit(&lab, &["--filter=delay", "file", path, "rdelay=80ms"]);
        let mut command = qdelta(repo.args(backup(server.uri(""))));
        let child = start(&mut command);
        std::thread::sleep(Duration::from_millis(after));
        drop(server);
        let outcome = finish(child, format!("{command:?}")).sane();
        assert!(matches!(outcome.code(), Some(1 | 6)), "{}", outcome.report());
        assert!(outcome.stderr.contains("nbd+unix://"), "{}", outcome.report());
    }
    assert_ne!(repo.run(args!["points", "disk"]).code(), Some(0));
    let done = repo.backup(&raw, "disk", &[]);
    assert_eq!(number(&done, "bytes_changed"), 24 << 20);
    repo.assert_no_leftovers();
}

#[test]
fn info_and_map_show_an_export() {
    let lab = Lab::new();
    let image = lab.path("disk.qcow2");
    create(&image, "", 8 * MIB);
    guest_io(&image, "qcow2", &["write -q -P 1 1M 2M".to_owned()]);
    qemu_img(args!["bitmap", "--add", image.as_path(), "b1"]).ok();
    let server = Server::qemu(&lab, &image, "qcow2", &["-t", "-r", "-B", "b1"]).unwrap();
    let info = run(qdelta(args!["info", server.uri("vda"), "--json"])).ok().json();
    assert_eq!(
        (info["format"].as_str(), info["virtual-size"].as_u64()),
        (Some("raw"), Some(8 * MIB))
    );
    assert_eq!(info["export"]["bitmaps"], serde_json::json!(["b1"]), "{info:#}");
    assert_eq!(
        (&info["export"]["read-only"], &info["export"]["tells-zeros"]),
        (&true.into(), &true.into())
    );
    let text = run(qdelta(args!["info", server.uri("vda")])).ok().text();
    assert!(text.contains("b1") && text.contains("8 MiB"), "{text}");
    let map = run(qdelta(args!["map", server.uri("vda"), "--json"])).ok().json();
    let data: Vec<_> = map.as_array().unwrap().iter().filter(|it| it["data"] == true).collect();
    assert_eq!(data.len(), 1, "{map}");
    assert_eq!((&data[0]["start"], &data[0]["length"]), (&MIB.into(), &(2 * MIB).into()));
}

/// An export was called `offline` where its server gave it out read-only, as if nobody else could write to the disk: of one
/// that QEMU gives out twice, a point held pieces of two moments and was said to hold everything.
#[test]
fn an_export_is_never_called_offline() {
    let lab = Lab::new();
    let raw = filled_raw(&lab, "disk.raw", MIB, 4);
    let repo = Repo::init(lab.path("repo")).without_ring();
    let server = Server::qemu(&lab, &raw, "raw", &["-t"]).unwrap();
    let done = repo.backup(&server.uri("vda"), "disk", &[]);
    assert_eq!(done["consistency"], "unknown", "{done:#}");
    assert_eq!(done["warnings"][0]["code"], "writable", "{done:#}");
    drop(server);
    let server = Server::qemu(&lab, &raw, "raw", &["-t", "-r"]).unwrap();
    let done = repo.backup(&server.uri("vda"), "disk", &[]);
    assert_eq!(
        (&done["consistency"], &done["warnings"]),
        (&"unknown".into(), &serde_json::json!([]))
    );
    let list = repo.run(args!["points"]).ok().text();
    assert!(list.contains(" unknown ") && !list.contains("offline"), "{list}");
}

/// Two servers at the same name of a socket, seen from two folders, were taken for one.
#[test]
fn a_socket_means_the_same_from_every_folder() {
    let lab = Lab::new();
    let raw = filled_raw(&lab, "disk.raw", MIB, 4);
    let repo = Repo::init(lab.path("repo")).without_ring();
    let server = Server::qemu(&lab, &raw, "raw", &["-t", "-r"]).unwrap();
    let (folder, name) = (server.socket.parent().unwrap(), server.socket.file_name().unwrap());
    let uri = format!("nbd+unix:///vda?socket={}", name.to_str().unwrap());
    let mut command = qdelta(repo.args(args!["backup", uri]));
    command.current_dir(folder);
    run(command).ok();
    let done = repo.run(args!["backup", server.uri("vda"), "--json"]).ok().json();
    assert_eq!(done["warnings"], serde_json::json!([]), "{done:#}");
}

#[test]
fn what_can_t_be_done_with_a_server_says_so() {
    let lab = Lab::new();
    let raw = filled_raw(&lab, "disk.raw", MIB, 4);
    let repo = Repo::init(lab.path("repo")).without_ring();
    let server = Server::qemu(&lab, &raw, "raw", &["-t", "-r"]).unwrap();
    let uri = server.uri("vda");
    repo.backup(&uri, "disk", &[]);
    let said = repo.run(args!["restore", "disk", "--in-place"]).fails_with(2);
    assert!(said.contains("was read from nbd+unix://") && said.contains("in place"), "{said}");
    let said = repo.run(args!["restore", "disk", uri.as_path()]).fails_with(2);
    assert!(said.contains("is an export of a server"), "{said}");
    drop(server);
    // As a file that is not there.
    let said = repo.backup_run(&uri, "disk", &[]).fails_with(6);
    assert!(said.contains("no server is there"), "{said}");
    let secret = Path::new("nbd://alice:hunter2@host/vda");
    let said = repo.backup_run(secret, "disk", &[]).fails_with(2);
    assert!(said.contains("password") && !said.contains("hunter2"), "{said}");
    let long = format!("nbd://host/{}", "x".repeat(100_000));
    let said = repo.backup_run(Path::new(&long), "disk", &[]).fails_with(2);
    assert!(said.contains("longer than") && said.len() < 1000, "{} bytes", said.len());
}

/// Two servers whose sockets have one relative name in two folders were one disk, and one server in two spellings was
/// two.
#[test]
fn a_server_is_known_by_its_whole_name() {
    let lab = Lab::new();
    let repo = Repo::init(lab.path("repo")).without_ring();
    let (mut servers, places) = (Vec::new(), [Lab::new(), Lab::new()]);
    for ((number, name), place) in ["one", "two"].into_iter().enumerate().zip(&places) {
        let raw = filled_raw(&lab, &format!("{name}.raw"), MIB, 4 + number as u64);
        let server = Server::qemu(place, &raw, "raw", &["-t", "-r"]).unwrap();
        std::fs::create_dir(lab.path(name)).unwrap();
        std::os::unix::fs::symlink(&server.socket, lab.path(name).join("e.s")).unwrap();
        servers.push(server);
    }
    let backup = |folder: &str, uri: String| {
        let mut command = qdelta(repo.args(args!["backup", uri, "--json"]));
        command.current_dir(lab.path(folder));
        run(command)
    };
    backup("one", "nbd+unix:///vda?socket=e.s".to_owned()).ok();
    let whole = lab.path("one/e.s").display().to_string();
    for uri in ["NBD+UNIX:///vda?socket=", "nbd+unix:///%76da?x=y&socket="] {
        backup("two", format!("{uri}{whole}")).ok();
    }
    let said = backup("two", "nbd+unix:///vda?socket=e.s".to_owned()).fails_with(2);
    assert!(said.contains("another image than at the point before"), "{said}");
}
