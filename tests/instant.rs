//! Guests that run on their point at once: what is made for QEMU, systemd and the admin, and that a failure
//! leaves none of it.

use std::fs;

use qdelta::guest::libvirt::{StorageSource, parse};
use serde_json::Value;

use super::cli::json::compare;
use super::harness::guest::{Host, MIB};
use super::harness::{args, qdelta, run, tool};
use super::machines::{lost, names, restore};

fn pins(host: &Host) -> Vec<Value> {
    let listed = run(qdelta(host.repo.args(args!["points", "--json"]))).json();
    let disks = listed["disks"].as_array().unwrap().iter();
    let points = disks.flat_map(|disk| disk["points"].as_array().unwrap());
    points.map(|point| point["pinned"].clone()).filter(|pin| !pin.is_null()).collect()
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
    assert!(serves.contains("\nRequiresMountsFor=/"), "{serves}");
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
    assert_eq!(after, format!("qdelta unpin --repo {} web@{first}", host.repo.path.display()));
    run(qdelta(args!["unpin", "--repo", &host.repo.path, format!("web@{first}")])).ok();
    assert_eq!(pins(&host), Vec::<Value>::new());
    host.assert_restores("vda", &expected[0]);
}

/// A try that fails in the middle leaves no file, no folder and no pin; one that finds the files of another
/// guest there touches none of them: they hold what that guest has written.
#[test]
fn an_instant_restore_that_fails_leaves_nothing_behind() {
    let (host, ..) = lost();
    let to = host.lab.path("to");
    let machine = host.repo.path.join("web/machine");
    for entry in fs::read_dir(&machine).unwrap() {
        let path = entry.unwrap().path();
        fs::rename(&path, path.with_extension("away")).unwrap();
    }
    restore(&host, &to, &["--instant"]).fails_with(4);
    assert!(!to.exists());
    assert_eq!(pins(&host), Vec::<Value>::new());
    for entry in fs::read_dir(&machine).unwrap() {
        let path = entry.unwrap().path();
        fs::rename(&path, path.with_extension("zst")).unwrap();
    }
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

/// A pin that was there before comes back, with its reason and its end; and a guest must run also where
/// somebody else is writing to the repository.
#[test]
fn the_point_of_an_instant_restore_is_pinned_beside_other_pins() {
    let (host, _, first) = lost();
    let pin =
        args!["pin", format!("web@{first}"), "--reason", "it's audited", "--until", "2999-12-31"];
    run(qdelta(host.repo.args(pin))).ok();
    let before = pins(&host);
    let report =
        restore(&host, &host.lab.path("a"), &["--at", &first, "--instant", "--json"]).ok().json();
    let reason = pins(&host)[0]["reason"].as_str().unwrap().to_owned();
    assert!(reason.starts_with("it's audited; instant recovery of web in "), "{reason}");
    let after = report["instant"]["after"].as_array().unwrap().last().unwrap();
    let after = after.as_str().unwrap().replacen("qdelta", env!("CARGO_BIN_EXE_qdelta"), 1);
    run(tool("sh", args!["-c", &after])).ok();
    let strip = |pins: Vec<Value>| -> Vec<_> {
        pins.into_iter().map(|pin| (pin["reason"].clone(), pin["until"].clone())).collect()
    };
    assert_eq!(strip(pins(&host)), strip(before));

    let lock = fs::File::options().write(true).open(host.repo.path.join("web/.lock")).unwrap();
    lock.lock().unwrap();
    let report =
        restore(&host, &host.lab.path("b"), &["--at", &first, "--instant", "--json"]).ok().json();
    assert_eq!(report["instant"]["pinned"], false);
    let codes: Vec<_> =
        report["warnings"].as_array().unwrap().iter().map(|it| &it["code"]).collect();
    assert!(codes.contains(&&Value::from("not-pinned")), "{codes:?}");
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
