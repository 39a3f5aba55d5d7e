//! The variables that put the repositories of all tests elsewhere, and the tests that stay apart, each with its
//! reason: here and nowhere else.

use std::process::Command;
use std::thread;

const FILES: &str =
    "its faults are those of files and of their filesystem; s3:: has those of requests";
const NAMES: &str = "it is of what files and folders are called";
const KEYS: &str =
    "each of its commands would take the keys of two repositories; copies:: has encrypted pairs";
const LOCKS: &str = "it takes the locks of files; s3::locks has those of a store";
const OBJECTS: &str = "it knows objects of the store by their names";
const RIGHTS: &str = "it is of the rights to files";
const PAGES: &str = "the pages show a repository in a folder and in the plain";
const RING: &str = "io_uring reads plain files alone";
const CLOCK: &str = "it lives at another time than the store";
const MOUNT: &str = "it is of a folder that goes away or is mounted";
const TORN: &str = "a damaged manifest that is encrypted says nothing any more";
const ROOM: &str = "no object store says how much is free";
const PARTIAL: &str = "it waits until a file of the repository is unfinished";

/// Tests, or modules with a `*`, whose repositories stay in folders with `QDELTA_STORE=s3`.
pub const IN_FOLDERS: &[(&str, &str)] = &[
    ("bad_days::a_limit_on_the_size_of_files", FILES),
    ("bad_days::a_right_is_missing", RIGHTS),
    ("bad_days::an_interrupted_backup_leaves_no_litter", PARTIAL),
    ("bad_days::an_interrupted_restore_leaves_no_litter", PARTIAL),
    ("bad_days::no_ring", RING),
    ("bad_days::right_after_the_end_a_file_system_can_be_unmounted", MOUNT),
    ("bad_days::the_repositorys_disk_is_full", FILES),
    ("bad_days::two_backups_of_one_disk", PARTIAL),
    ("continuity::guests_whose_names_differ_only_in_case_are_refused_too", NAMES),
    ("continuity::names_that_differ_only_in_case_are_refused_where_they_are_one", NAMES),
    ("copies::a_copy_into_itself_or_beside_another_writer_is_refused", FILES),
    ("copies::kills::a_copy_that_is_killed_leaves_every_point_whole", FILES),
    ("copies::mended::no_other_content_comes_under_a_lost_manifest", CLOCK),
    ("copies::pulled::a_copy_is_pulled_through_a_forced_command_that_only_reads", MOUNT),
    ("copies::told::a_guest_that_is_gone_here_is_told", FILES),
    ("copies::told::a_guest_without_any_manifest_is_a_failure", FILES),
    ("copies::told::a_link_to_the_repository_is_no_copy", NAMES),
    ("copies::told::points_that_were_slipped_in_are_told", CLOCK),
    ("data_path::a_restore_writes_the_same_past_the_page_cache", RING),
    ("data_path::without_io_uring_it_says_so_once_to_those_who_ask_and_does_its_work", RING),
    ("files::disks::a_file_of_a_large_disk_costs_little", FILES),
    ("kills::*", FILES),
    ("machines::a_restore_that_can_not_be_is_refused_with_what_to_do", NAMES),
    ("merges::a_merge_survives_every_fault", FILES),
    ("merges::an_archive_that_no_manifest_names_is_moved_out_of_the_guests_folder", NAMES),
    ("merges::damage_and_a_full_disk_change_nothing", FILES),
    ("mounts::a_repository_that_goes_away_gives_errors_and_is_read_when_it_is_back", MOUNT),
    ("mounts::a_repository_that_hangs_gives_errors", MOUNT),
    ("nights::*", CLOCK),
    (
        "opened::a_repository_that_goes_away_and_comes_back_gives_errors_and_then_the_right_bytes",
        MOUNT,
    ),
    ("opened::points_of_one_chain_share_their_archives", FILES),
    ("power_cut::*", FILES),
    ("prunes::a_prune_survives_every_fault", FILES),
    ("prunes::a_removed_point_comes_back_until_its_data_is_gone", ROOM),
    ("prunes::what_has_no_room_waits", FILES),
    ("readme::*", PAGES),
    (
        "repository::a_filesystem_that_knows_no_rename_without_replacing_holds_points_and_disks",
        FILES,
    ),
    ("repository::a_repository_that_is_mounted_read_only_is_read", MOUNT),
    ("repository::every_operation_beside_every_other_goes_on_or_is_refused_at_once", LOCKS),
    ("room::a_full_that_may_not_fit_is_told_of_before_it_is_read", FILES),
    (
        "serve::bad_days::a_repository_that_goes_away_gives_errors_and_comes_back_on_the_same_connection",
        MOUNT,
    ),
];

/// Tests, or modules with a `*`, whose repositories stay in the plain with `QDELTA_TEST_ENCRYPTED=1`.
pub const IN_THE_PLAIN: &[(&str, &str)] = &[
    ("bad_days::an_equal_archive_beside_a_missing_one_is_named", NAMES),
    ("continuity::guests_whose_names_differ_only_in_case_are_refused_too", NAMES),
    ("continuity::names_that_differ_only_in_case_are_refused_where_they_are_one", NAMES),
    ("copies::mended::a_removed_point_whose_manifest_is_mended_stays_removed", TORN),
    ("data_path::a_restore_writes_the_same_past_the_page_cache", RING),
    ("data_path::without_io_uring_it_says_so_once_to_those_who_ask_and_does_its_work", RING),
    ("files::disks::a_file_of_a_large_disk_costs_little", NAMES),
    ("merges::an_archive_that_no_manifest_names_is_moved_out_of_the_guests_folder", NAMES),
    ("nights::the_second_copy_is_made_by_itself_and_told_when_it_is_behind", KEYS),
    ("readme::*", PAGES),
    ("s3::damage::an_archive_that_arrives_after_the_backup_gave_up_is_no_stray", OBJECTS),
    ("s3::lock_renewals::whoever_adds_or_changes_points_locks_anew", OBJECTS),
    ("s3::locks::commands_are_refused_beside_each_other_as_in_a_folder", OBJECTS),
    ("s3::requests::verify_sees_damage_that_the_cache_would_hide", OBJECTS),
];

/// Whether this test's repositories are wanted in the object store: `QDELTA_STORE=s3`.
#[track_caller]
pub fn is_store_wanted() -> bool {
    match std::env::var("QDELTA_STORE") {
        Ok(text) if text == "s3" => !stays(IN_FOLDERS),
        Ok(text) => panic!("QDELTA_STORE={text} is no store: s3 is one"),
        Err(_) => false,
    }
}

/// Whether this test's repositories are to be encrypted: `QDELTA_TEST_ENCRYPTED=1`.
#[track_caller]
pub fn is_encryption_wanted() -> bool {
    std::env::var_os("QDELTA_TEST_ENCRYPTED").is_some() && !stays(IN_THE_PLAIN)
}

/// Whether the test that runs in this thread is in a list.
#[track_caller]
fn stays(list: &[(&str, &str)]) -> bool {
    let thread = thread::current();
    let test = thread.name().filter(|name| name.contains("::"));
    let test = test.expect("the thread has a test's name: give the tests more than one thread");
    let found = list.iter().find(|(name, _)| match name.strip_suffix('*') {
        Some(module) => test.starts_with(module),
        None => test == *name,
    });
    if let Some((_, why)) = found {
        println!("{test} stays apart: {why}");
    }
    found.is_some()
}

/// Every name in the lists is that of a test, or of a module that has some.
#[test]
fn those_that_stay_apart_are_tests() {
    let program = std::env::current_exe().unwrap();
    let listed = Command::new(program).args(["--list", "--format", "terse"]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let tests: Vec<&str> = listed.lines().filter_map(|line| line.strip_suffix(": test")).collect();
    for list in [IN_FOLDERS, IN_THE_PLAIN] {
        assert!(list.is_sorted_by(|one, other| one.0 < other.0), "in order, and each once");
        for (name, why) in list {
            let is_it = |test: &&str| match name.strip_suffix('*') {
                Some(module) => test.starts_with(module),
                None => test == name,
            };
            assert!(tests.iter().any(is_it), "{name} is no test ({why})");
        }
    }
}
