//! Conclusions that cost points when they are wrong are drawn in one place each.

use super::{only_in, sources};

/// The library and the program, where they deal with repositories.
const ALL: &[&str] = &["src/vault", "src/flows", "src/cli"];

/// Lists of stores may lack what is there. Who chose by such a list what goes lost points: each place had to think of it
/// by itself, and one after the other had not.
#[test]
fn what_goes_for_good_is_chosen_by_a_whole_list() {
    let why = "what a list names, or does not, goes by Repository::remove_for_good alone: it asks for a WholeList, \
               which lacks no point that this host has seen, and proves the lock";
    only_in(
        ALL,
        &[
            "src/vault/repository/storage/",
            "src/vault/repository/listed.rs",
            // Marks of this host's own, and an empty list: a sync.
            "src/vault/repository/arrival.rs",
            "src/vault/repository/leftovers.rs",
        ],
        &[".remove_all("],
        why,
    );
    only_in(
        ALL,
        &[
            "src/vault/repository/storage/",
            // After the manifest was asked for by itself, whatever the list says.
            "src/vault/repository/leftovers.rs",
            // What this process has just made.
            "src/vault/repository/pending.rs",
            // What an admin names.
            "src/vault/repository/keys.rs",
        ],
        &["storage().remove(", "storage.remove("],
        why,
    );
    only_in(
        &["src/vault/repository"],
        &["src/vault/repository/listed.rs"],
        &["WholeList {"],
        "only a list that was checked is whole",
    );
}

/// The `Date` of an answer, the time that a store writes down for an object and the clock of this host are three clocks:
/// locks were dead, alive for ever or refused for minutes where two of them were taken for one.
#[test]
fn clocks_are_compared_in_one_place() {
    only_in(
        &["src/vault/repository/storage/s3"],
        &["src/vault/repository/storage/s3/clocks.rs"],
        &[".duration_since(", "rfc2822"],
        "who compares two times asks clocks.rs, which knows whose they are",
    );
}

/// A lock that was left was watched for two minutes in silence, and nobody could stop it.
#[test]
fn whoever_waits_for_a_lock_is_told() {
    only_in(
        &["src/cli", "src/flows", "src/vault/point"],
        &[
            "src/flows/backup/summary_tests.rs",
            // Files on this host, whose locks end with their process.
            "src/flows/jobs/journal.rs",
            "src/flows/jobs/telling/turn.rs",
            "src/flows/drill/mod.rs",
        ],
        &["Wait::UNHEARD"],
        "who takes a lock of a repository says who waits, and what ends the wait: Wait::by",
    );
}

/// Every program that another test starts has the files of this process open until it runs: now and then an unmount
/// on a busy machine found them in use, and a test fell that had nothing to do with it.
#[test]
fn tests_unmount_in_one_place() {
    let tests = sources().into_iter().filter(|source| {
        source.is_in(&["tests"]) && !source.is_in(&["tests/harness/files.rs", "tests/tidy/"])
    });
    let hits: Vec<_> = tests.flat_map(|source| source.with("\"umount\"")).collect();
    // Lazily is another matter: it never fails, and nobody reads afterwards what it ends.
    let hits: Vec<_> = hits.into_iter().filter(|line| !line.contains("\"-l\"")).collect();
    let why =
        "who ends a mount calls harness::files::unmount, which waits until nobody has it open";
    assert!(hits.is_empty(), "{why}:\n{}", hits.join("\n"));
}

/// What this process has open to be written is for a moment open in every program that another test is just starting, and
/// can't be run by then.
#[test]
fn programs_of_tests_are_written_by_another_process() {
    only_in(
        &["tests"],
        &["tests/tidy/"],
        &["fs::copy(binary", "fs::copy(run::binary"],
        "a program is made by harness::run::script, or copied by install",
    );
}

/// A `404` to a HEAD has no words, and a balancer whose backend is gone gives the same: believed, it has made locks, points
/// and archives that are there into such that are not.
#[test]
fn one_function_asks_whether_an_object_is_there() {
    only_in(
        &["src/vault/repository/storage/s3"],
        &["src/vault/repository/storage/s3/mod.rs"],
        &["Ask::new(\"HEAD\""],
        "who asks whether an object is there calls Shared::head",
    );
}
