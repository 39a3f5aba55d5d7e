//! Guests that run and can't be frozen.

use serde_json::Value;

use super::harness::files::Mount;
use super::harness::guest::{Guest, Host, MIB, disk};
use super::harness::{args, qdelta, run};

#[test]
fn without_an_agent_only_what_a_power_cut_would_leave() {
    let host = Host::new();
    let mount = Mount::on_loop(host.lab.dir(), "xfs", 400 * MIB);
    let mut guest = Guest::define(&host, &mount.dir);
    guest.lose_agent();
    guest.start("running");
    guest.write(0, 0, MIB, 1);
    let said = host.web_fails(10, &[]);
    assert!(said.contains("--consistency crash") && said.contains("no guest agent"), "{said}");
    let report = host.web(&["--consistency", "crash"]);
    assert_eq!(report["consistency"], "crash-consistent");
    assert_eq!(report["freeze_ms"], Value::Null);
    assert!(report["warnings"].to_string().contains("milliseconds apart"));
    host.assert_restores("vda", &disk(8, &[(0, MIB, 1)]));
    assert!(host.virsh.log().is_empty());
    host.assert_sound();
}

/// One guest without an agent had no point at all, or all guests had none that was quiesced.
#[test]
fn by_rule_a_guest_that_can_t_be_frozen_has_a_point_that_says_so() {
    let host = Host::new();
    let mount = Mount::on_loop(host.lab.dir(), "xfs", 400 * MIB);
    let mut guest = Guest::define(&host, &mount.dir);
    guest.start("running");
    guest.write(0, 0, MIB, 1);
    let rule = ["--consistency", "quiesced-or-crash"];
    let report = host.web(&rule);
    assert_eq!(report["consistency"], "filesystem-quiesced");
    assert_eq!(report["fell_back"], Value::Null);
    assert!(!report["freeze_ms"].is_null());
    // A freeze that did not hold, an agent that says no, and none at all.
    for trouble in ["thaw-fails", "freeze-fails"] {
        host.virsh.tell(trouble, "1");
        let report = host.web(&rule);
        assert_eq!(report["consistency"], "crash-consistent", "{trouble}");
        assert!(report["freeze_ms"].is_null() && !report["fell_back"].is_null(), "{report}");
        host.virsh.forget(trouble);
    }
    guest.lose_agent();
    guest.set_state("running");
    let report = host.web(&rule);
    assert_eq!(report["consistency"], "crash-consistent");
    let why = report["fell_back"].as_str().unwrap();
    assert!(why.contains("no guest agent"), "{why}");
    let codes = report["warnings"].to_string();
    assert!(codes.contains("fell-back"), "{codes}");
    let list = run(qdelta(host.repo.args(args!["points", "web/vda"]))).ok().text();
    assert_eq!(list.matches("crash-consistent, not as asked for").count(), 3, "{list}");
    host.assert_restores("vda", &disk(8, &[(0, MIB, 1)]));
    host.assert_sound();
}
