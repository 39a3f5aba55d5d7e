//! A host whose credentials can only add, by the very policy that the documents give.

use std::path::PathBuf;
use std::sync::OnceLock;

use crate::harness::content::{Guest, Random};
use crate::harness::files::assert_same;
use crate::harness::images::{guest_io, oracle, qemu_img};
use crate::harness::repo::{ADMIN, Repo};
use crate::harness::store::{ADDER, ask, endpoint, fresh_place};
use crate::harness::{Lab, Outcome, args, qdelta, run, tool};

const MIB: u64 = 1 << 20;

/// The bucket of the policy, which locks objects.
const BUCKET: &str = "added";

/// A bucket that has the policy of the document for whoever may only add, and a new place in it.
fn place() -> String {
    static MADE: OnceLock<()> = OnceLock::new();
    MADE.get_or_init(|| {
        let enabled = args!["-H", "x-amz-bucket-object-lock-enabled: true"];
        ask("PUT", &format!("/{BUCKET}"), enabled).ok();
        let document = include_str!("../../docs/object-lock.md");
        let policy = document.split("```json").nth(1).unwrap().split("```").next().unwrap();
        let policy = policy.replace(":::backups/alpha/", &format!(":::{BUCKET}/"));
        let policy = policy.replace(":::backups", &format!(":::{BUCKET}"));
        let mut policy: serde_json::Value = serde_json::from_str(&policy).unwrap();
        for statement in policy["Statement"].as_array_mut().unwrap() {
            let who = format!("arn:aws:iam::000000000000:user/{}", ADDER.0);
            statement["Principal"] = serde_json::json!({ "AWS": [who] });
        }
        let target = format!("/{BUCKET}?policy=");
        ask("PUT", &target, args!["--data-binary", policy.to_string()]).ok();
    });
    fresh_place()
}

/// A command of the host, which may only add.
fn by_host(repo: &Repo, words: Vec<std::ffi::OsString>) -> Outcome {
    let mut command = qdelta(repo.args(words));
    command.env("AWS_ACCESS_KEY_ID", ADDER.0).env("AWS_SECRET_ACCESS_KEY", ADDER.1);
    run(command)
}

/// Asks the store for something, as the host.
fn ask_as_host(method: &str, target: &str) -> bool {
    let mut all = args!["-sS", "--fail-with-body", "--aws-sigv4", "aws:amz:us-east-1:s3"];
    all.extend(args!["--max-time", "20", "-u", format!("{}:{}", ADDER.0, ADDER.1), "-X", method]);
    all.push(format!("{}{target}", endpoint()).into());
    let outcome = run(tool("curl", all));
    assert!(!outcome.text().contains("Signature"), "{}", outcome.report());
    outcome.status.success()
}

/// The policy was written by the makers' documentation, and nothing had tried it: all work of a night, in an
/// encrypted repository as well and in uploads of several parts, and nothing that removes.
#[test]
fn a_host_that_can_only_add_does_all_its_nightly_work() {
    for is_encrypted in [false, true] {
        let lab = Lab::new();
        let place = place();
        let path: PathBuf =
            format!("s3://{BUCKET}/{place}?endpoint={}&patience=20s&part-size=5MiB", endpoint())
                .into();
        let key = lab.path("recovery.key");
        let mut words = args!["init", path.as_path(), "--lock", "1d"];
        if is_encrypted {
            words.extend(args!["--encrypt", "--recovery", key.as_path(), "--recipient", ADMIN]);
        }
        run(qdelta(words)).ok();
        let mut repo = Repo::at(path).without_ring();
        repo.key = is_encrypted.then_some(key);
        let (raw, image) = (lab.path("raw"), lab.path("disk.qcow2"));
        std::fs::write(&raw, Random::new(3).noise(12 << 20)).unwrap();
        qemu_img(args!["convert", "-O", "qcow2", raw.as_path(), image.as_path()]).ok();
        let backup = args!["backup", image.as_path(), "--disk", "vm/disk", "--io", "threads"];
        by_host(&repo, backup.clone()).ok();
        guest_io(&image, "qcow2", &Guest::new(lab.dir(), 5).fill(3 * MIB, 3));
        by_host(&repo, backup.clone()).ok();
        by_host(&repo, args!["verify", "--io", "threads"]).ok();
        let expected = lab.path("expected");
        oracle(args!["-f", "qcow2", image.as_path()], &expected);
        let output = lab.path("restored");
        by_host(&repo, args!["restore", "vm/disk", output.as_path(), "--io", "threads"]).ok();
        assert_same(&expected, &output, "what the host restores");
        // Everything is locked, that of several parts and the encrypted files included.
        let list = by_host(&repo, args!["points", "--json"]).ok().json();
        let points = list["disks"][0]["points"].as_array().unwrap();
        assert!(
            points.len() == 2 && points.iter().all(|it| it["safe_until"].is_string()),
            "{list}"
        );
        // The host itself can remove none of it, nor can a prune that somebody starts there.
        let target = format!("/{BUCKET}?prefix={place}%2F");
        let listed = ask("GET", &target, Vec::new()).ok().text();
        let keys = listed.split("<Key>").skip(1).map(|rest| rest.split('<').next().unwrap());
        let keys: Vec<&str> =
            keys.filter(|it| !it.rsplit('/').next().unwrap().starts_with('.')).collect();
        assert!(keys.len() >= 5, "{listed}");
        for key in keys {
            assert!(!ask_as_host("DELETE", &format!("/{BUCKET}/{key}")), "the host removed {key}");
        }
        assert!(
            !ask_as_host("DELETE", &format!("/{BUCKET}?policy=")),
            "the host removed the policy"
        );
        by_host(&repo, args!["points"]).ok();
        // A full of the chain is made, though what it replaces can't be removed: that it is none was said.
        let outcome = by_host(&repo, [backup, args!["--synthetic", "--json"]].concat());
        let report = outcome.json();
        assert_eq!(report["kind"], "full", "{}", outcome.report());
        let told = report["warnings"].to_string();
        assert!(told.contains("not-merged") && told.contains("are merged"), "{report}");
        let list = by_host(&repo, args!["points", "--json"]).json();
        assert_eq!(list["disks"][0]["points"][2]["kind"], "full", "{list}");
        by_host(&repo, args!["verify", "--io", "threads"]).ok();
    }
}
