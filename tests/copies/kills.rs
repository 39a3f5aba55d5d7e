//! A copy that is killed at calls by which it changes files there: earlier points stay whole, the next copy goes
//! on, and nothing is left over.

use super::{Scene, with_other};
use crate::harness::faults::{Fault, count_calls, plan, run_with};
use crate::harness::files::copy_tree;
use crate::harness::sweep;

#[test]
fn a_copy_that_is_killed_leaves_every_point_whole() {
    let mut scene = Scene::new();
    scene.night(&[]);
    scene.copy(&[]);
    scene.night(&[]);
    scene.night(&[]);
    let kept = scene.lab.path("kept");
    copy_tree(&scene.other.path, &kept);
    let mut words = scene.repo.args(with_other("copy", "--to", &scene.other, &[]));
    words.extend(crate::harness::args!["--threads", "1"]);
    let counts = count_calls(&scene.lab, words.clone());
    let tries = plan(&counts, &[Fault::Kill], 2 * sweep());
    let mut killed = 0;
    for injection in &tries {
        copy_tree(&kept, &scene.other.path);
        let outcome = run_with(injection, words.clone()).sane();
        killed += u64::from(outcome.killed());
        let listed = scene.other.points("web/vda");
        assert_eq!(listed[0], scene.points[0].0, "{injection}");
        scene.other.verify();
        scene.copy(&[]);
        assert_eq!(scene.other.points("web/vda"), scene.ids(), "{injection}");
        scene.other.verify();
        scene.other.assert_no_leftovers();
    }
    assert!(killed > 5, "{killed} of {} were killed", tries.len());
    scene.assert_points(&scene.other, &scene.ids());
}
