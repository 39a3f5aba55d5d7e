//! Guests that run on their point at once: what is made for QEMU, systemd and the admin, and that a failure
//! leaves none of it.

use std::fs;
use std::path::Path;

use qdelta::guest::libvirt::{StorageSource, parse};
use qdelta::vault::repository::storage::Wait;
use serde_json::Value;

use super::cli::json::compare;
use super::harness::guest::{Host, MIB};
use super::harness::repo::Repo;
use super::harness::run::{in_tests, start as start_of};
use super::harness::stored::Stored;
use super::harness::virsh::wait_until;
use super::harness::{args, qdelta, run, store, tool};
use super::machines::{lost, names, restore};

fn pins(host: &Host) -> Vec<Value> {
    let listed = run(qdelta(host.repo.args(args!["points", "--json"]))).json();
    let disks = listed["disks"].as_array().unwrap().iter();
    let points = disks.flat_map(|disk| disk["points"].as_array().unwrap());
    points.flat_map(|point| point["pins"].as_array().unwrap().clone()).collect()
}

/// All that QEMU and systemd need is there, and names the point's own disks.
#[test]
fn a_guest_can_run_on_its_point_at_once() {
    let (host, expected, first) = lost();
    let to = host.lab.path("to 100%");
    fs::write(host.lab.path("etc/qemu.conf"), "#user = \"no\"\nuser = \"vm\"\n").unwrap();
    let outcome = restore(&host, &to, &["--at", &first, "--instant", "--json"]).ok();
    let report = outcome.json();
    compare("restore of a guest at once", &[&report], &[]);
    let instant = &report["instant"];
    let socket = instant["socket"].as_str().unwrap();
    assert_eq!(socket, host.lab.path("run/qdelta/web.sock").to_str().unwrap());
    let domain = parse(&fs::read_to_string(to.join("web.xml")).unwrap()).unwrap();
    for (disk, (target, size)) in domain.disks.iter().zip([("vda", 8 * MIB), ("vdb", 4 * MIB)]) {
        let overlay = to.join(format!("web-{target}.qcow2"));
        assert_eq!(disk.source, StorageSource::File(overlay.clone()));
        assert_eq!(disk.chain.below[0].source, StorageSource::Network("nbd".to_owned()));
        let info = run(tool("qemu-img", args!["info", "--output=json", &overlay])).ok().json();
        assert_eq!(info["virtual-size"].as_u64(), Some(size), "{info}");
        assert_eq!(info["backing-filename-format"], "raw");
        assert_eq!(
            info["backing-filename"].as_str().unwrap().replace("%20", " ").replace("%25", "%"),
            format!("nbd+unix:///web/{target}%40{first}?socket={socket}")
        );
    }
    assert_eq!(fs::read_to_string(to.join("tpm/tpm2-00.permall")).unwrap(), "sealed");
    let unit = |kind| fs::read_to_string(to.join(format!("qdelta-serve-web.{kind}"))).unwrap();
    let (listens, serves) = (unit("socket"), unit("service"));
    assert!(listens.contains("\nSocketUser=vm\n") && listens.contains("\nWantedBy=sockets.target"));
    assert!(serves.contains(&format!(" web/vda@{first} web/vdb@{first}\n")), "{serves}");
    let waits_for =
        if host.repo.is_in_a_store() { "network-online.target" } else { "RequiresMountsFor=/" };
    assert!(serves.contains(waits_for), "{serves}");
    let commands = report["commands"].as_array().unwrap();
    let commands: Vec<_> = commands.iter().map(|it| it.as_str().unwrap()).collect();
    assert!(commands.contains(&"systemctl enable --now qdelta-serve-web.socket"), "{commands:?}");
    assert_eq!(commands.last(), Some(&"virsh start web"));
    assert_eq!(instant["home"].as_array().unwrap().len(), 2);

    // Nothing but the pin keeps the point while no client reads from it.
    let pinned = pins(&host);
    assert_eq!(pinned.len(), 2, "both disks of one point: {pinned:?}");
    let reason = format!("instant recovery of web in {}", to.display());
    assert!(pinned.iter().all(|pin| pin["reason"] == reason && pin.get("until").is_none()));
    let after = instant["after"].as_array().unwrap().last().unwrap().as_str().unwrap();
    let holder = pinned[0]["holder"].as_str().unwrap();
    let [begin, end] =
        ["qdelta unpin --repo ".to_owned(), format!(" web@{first} --holder {holder}")];
    assert!(after.starts_with(&begin) && after.ends_with(&end), "{after}");
    run_line(after);
    assert_eq!(pins(&host), Vec::<Value>::new());
    host.assert_restores("vda", &expected[0]);
}

/// Does what a report says is to be typed.
#[track_caller]
fn run_line(line: &str) -> String {
    let line = line.replacen("qdelta", env!("CARGO_BIN_EXE_qdelta"), 1);
    let mut command = tool("sh", args!["-c", &line]);
    in_tests(&mut command);
    run(command).ok().text()
}

/// The unit of the server had no key: the guest of an encrypted repository got no disk. In the line that takes the pin
/// away the key was missing, too, and the address of a store came apart in the shell.
#[test]
fn the_server_of_an_encrypted_repository_has_its_key() {
    let (mut host, _, first) = lost();
    let other = store::fresh_address();
    let other = Repo::encrypted_by(other, host.lab.path("other.key"));
    let copy = args!["copy", "--to", other.path.as_path(), "--other-key-file"];
    let key = other.key.clone().unwrap();
    host.repo.run([copy, args![key.as_path()]].concat()).ok();
    host.repo = other;
    let to = host.lab.path("to");
    let report = restore(&host, &to, &["--at", &first, "--instant", "--json"]).ok().json();
    let instant = &report["instant"];
    let unit = fs::read_to_string(to.join("qdelta-serve-web.service")).unwrap();
    let start = unit.lines().find(|line| line.starts_with("ExecStart=")).unwrap();
    assert!(start.contains(&format!(" --key-file {} ", key.display())), "{unit}");
    assert!(!unit.contains("RequiresMountsFor=s3"), "{unit}");
    // By hand it opens the points, and ends by itself when nobody reads.
    let socket = instant["socket"].as_str().unwrap();
    fs::create_dir_all(Path::new(socket).parent().unwrap()).unwrap();
    let mut server =
        tool("sh", args!["-c", format!("exec {}", instant["serve"].as_str().unwrap())]);
    in_tests(&mut server);
    let mut server = start_of(&mut server);
    wait_until("the server listens", || {
        assert!(server.try_wait().unwrap().is_none(), "it has ended");
        Path::new(socket).exists()
    });
    server.kill().unwrap();
    server.wait().unwrap();
    assert_eq!(pins(&host).len(), 2);
    run_line(instant["after"].as_array().unwrap().last().unwrap().as_str().unwrap());
    assert_eq!(pins(&host), Vec::<Value>::new());
}

/// A try that fails in the middle leaves no file, no folder and no pin; one that finds the files of another
/// guest there touches none of them: they hold what that guest has written.
#[test]
fn an_instant_restore_that_fails_leaves_nothing_behind() {
    let (host, ..) = lost();
    let to = host.lab.path("to");
    let machine = host.repo.files_below("web/machine");
    let kept: Vec<Vec<u8>> = machine.iter().map(Stored::bytes).collect();
    machine.iter().for_each(Stored::remove);
    restore(&host, &to, &["--instant"]).fails_with(4);
    assert!(!to.exists());
    assert_eq!(pins(&host), Vec::<Value>::new());
    machine.iter().zip(&kept).for_each(|(file, bytes)| file.write(bytes));
    let socket = format!("/{}", "s".repeat(107));
    let said = restore(&host, &to, &["--instant", "--socket", &socket]).fails_with(2);
    assert!(said.contains("of at most 107 bytes"), "{said}");
    assert!(!to.exists());

    restore(&host, &to, &["--instant"]).ok();
    let before = (names(&to), pins(&host));
    fs::write(to.join("web-vda.qcow2"), "what the guest wrote").unwrap();
    restore(&host, &to, &["--instant"]).fails_with(7);
    assert_eq!((names(&to), pins(&host)), before);
    assert_eq!(fs::read_to_string(to.join("web-vda.qcow2")).unwrap(), "what the guest wrote");
}

/// Two guests on one point shared one pin, and whoever came home first took it away: the next prune would have
/// removed the disks of the other one. An admin's own pin was lost in the same way.
#[test]
fn each_recovery_takes_away_its_own_pin_alone() {
    let (host, _, first) = lost();
    let pin =
        args!["pin", format!("web@{first}"), "--reason", "it's audited", "--until", "2999-12-31"];
    run(qdelta(host.repo.args(pin))).ok();
    let by_admin = pins(&host);
    let unpin = |folder: &str, options: &[&str]| {
        let options = [&["--at", &first, "--instant", "--json"], options].concat();
        let report = restore(&host, &host.lab.path(folder), &options).ok().json();
        report["instant"]["after"].as_array().unwrap().last().unwrap().as_str().unwrap().to_owned()
    };
    let (a, b) = (unpin("a", &[]), unpin("b", &["--rename", "web2"]));
    // Both disks of the point show what it has.
    assert_eq!(pins(&host).len(), 6);
    let said = run_line(&a);
    assert!(said.contains("stays pinned: an admin (it's audited), --holder instant-"), "{said}");
    assert!(said.contains("(instant recovery of web2 in "), "{said}");
    let left: Vec<_> = pins(&host).into_iter().filter(|it| !it["holder"].is_null()).collect();
    assert!(b.ends_with(left[0]["holder"].as_str().unwrap()), "{b}: {left:?}");
    let said = run_line(&a);
    assert!(said.contains("was not pinned by instant-"), "{said}");
    let by_hand = run(qdelta(host.repo.args(args!["unpin", format!("web@{first}")]))).ok();
    let by_hand = by_hand.text();
    assert!(by_hand.contains("stays pinned: --holder"), "{by_hand}");
    run_line(&b);
    assert_eq!(pins(&host), Vec::<Value>::new());
    assert_eq!(by_admin.len(), 2);
}

/// A guest must run also where somebody else is writing to the repository.
#[test]
fn an_instant_restore_goes_on_where_the_point_cannot_be_pinned() {
    let (host, _, first) = lost();
    let other = host.repo.open();
    let _lock = other.lock(&"web".parse().unwrap(), Wait::UNHEARD).unwrap();
    let report =
        restore(&host, &host.lab.path("b"), &["--at", &first, "--instant", "--json"]).ok().json();
    assert_eq!(report["instant"]["pinned"], false);
    let warnings = report["warnings"].as_array().unwrap();
    let warning = warnings.iter().find(|it| it["code"] == "not-pinned").unwrap();
    assert!(warning["advice"].as_str().unwrap().contains(" --holder instant-"), "{warning}");
}

/// The units of `wöb` took the place of those of `wäb`, whose disks were gone with its server.
#[test]
fn guests_with_names_alike_have_servers_of_their_own() {
    let (host, _, _) = lost();
    let instant = |name: &str, folder: &str| {
        let words = ["--instant", "--rename", name, "--json"];
        let report = restore(&host, &host.lab.path(folder), &words).ok().json()["instant"].take();
        let unit = report["units"][0].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
        (report["socket"].as_str().unwrap().to_owned(), unit)
    };
    let all = [instant("wäb", "a"), instant("wöb", "b"), instant("w_b", "c")];
    for (number, (socket, unit)) in all.iter().enumerate() {
        for (other_socket, other_unit) in &all[number + 1..] {
            assert!(socket != other_socket && unit != other_unit, "{unit}, {other_unit}");
        }
    }
}
