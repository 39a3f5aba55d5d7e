//! Freezing and thawing: whatever happens to whom, the guest is thawed in the end.

use std::fs::DirEntry;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use qdelta::ErrorKind;
use qdelta::base::observer::Silent;
use qdelta::guest::quiesce::{Freeze, Frozen, Program, Virsh as Call, Watchdog, thaw_marked};

use super::harness::run::binary;
use super::harness::virsh::{Virsh, is_gone, wait_until};
use super::harness::{Lab, sweep};

/// A limit that is reached, and within which the script does its work also on a busy machine.
const LIMIT: Duration = Duration::from_secs(3);

struct Scene {
    _lab: Lab,
    virsh: Virsh,
    freeze: Freeze,
}

impl Scene {
    fn new() -> Self {
        let lab = Lab::new();
        let virsh = Virsh::new(lab.path("virsh"));
        std::fs::write(lab.path("web.xml"), "<domain/>").unwrap();
        let freeze = Freeze {
            virsh: Call { program: virsh.program(), connect: Some("test:///here".to_owned()) },
            guest: "c7a5fdbd".to_owned(),
            name: "web".to_owned(),
            mark: lab.path("mark"),
            definition: lab.path("web.xml"),
            freeze_max: Duration::from_secs(30),
            thaw_tries: Duration::from_secs(30),
            late_max: Duration::from_millis(100),
        };
        Self { _lab: lab, virsh, freeze }
    }

    fn try_freeze(&self) -> qdelta::Result<Frozen> {
        let program = Program { path: binary().to_owned(), arguments: vec!["watchdog".into()] };
        Watchdog::start(&program, self.freeze.clone())?.freeze()
    }

    /// The guest is thawed and nobody thinks otherwise.
    #[track_caller]
    fn assert_thawed(&self) {
        wait_until("the mark's end", || is_gone(&self.freeze.mark));
        assert!(!self.virsh.is_frozen());
    }

    /// It was thawed after `refused` thaws that failed, and then no more. A try that the script was too
    /// slow for comes on top.
    #[track_caller]
    fn assert_thaws_after(&self, refused: usize) {
        self.assert_thawed();
        assert_eq!(self.virsh.lines("thaw-fails.done").len(), refused);
        assert_eq!(self.virsh.lines("thawed").len(), 1);
        assert!(self.virsh.count("domfsthaw") > refused);
    }
}

#[test]
fn a_freeze_and_a_thaw() {
    let scene = Scene::new();
    let frozen = scene.try_freeze().unwrap();
    assert!(scene.virsh.is_frozen() && !is_gone(&scene.freeze.mark));
    assert!(frozen.left() > Duration::ZERO);
    let thawed = frozen.thaw().unwrap();
    assert_eq!((thawed.filesystems, thawed.broken), (2, None));
    scene.assert_thawed();
    assert_eq!(scene.virsh.log(), ["domfsfreeze c7a5fdbd", "domfsthaw c7a5fdbd"]);
}

/// A run of jobs stands back for other programs, and its watchdog did the same: on a busy host the thaw
/// came late.
#[test]
fn the_watchdog_of_a_run_that_stands_back_does_not() {
    let scene = Scene::new();
    let words = ["-n", "10"].map(std::ffi::OsString::from).into_iter();
    let arguments = words.chain([binary().into(), "watchdog".into()]).collect();
    let program = Program { path: "/usr/bin/nice".into(), arguments };
    let frozen = Watchdog::start(&program, scene.freeze.clone()).unwrap().freeze().unwrap();
    assert_eq!(scene.virsh.said("niceness"), "0\n");
    drop(frozen);
    scene.assert_thawed();
}

#[test]
fn a_freeze_that_fails_is_followed_by_a_thaw() {
    for how in ["freeze-fails", "freeze-fails-frozen"] {
        let scene = Scene::new();
        scene.virsh.tell(how, "");
        let error = scene.try_freeze().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Guest);
        assert!(error.chain().contains("error: "), "{}", error.chain());
        scene.assert_thawed();
        assert_eq!(scene.virsh.count("domfsthaw"), 1, "{how}");
    }
}

#[test]
fn a_freeze_that_hangs_is_ended_and_followed_by_a_thaw() {
    let why = format!("gave no answer in {} ms", LIMIT.as_millis());
    let tries = (0..5).map(|_| {
        let mut scene = Scene::new();
        scene.freeze.freeze_max = LIMIT;
        scene.virsh.tell("freeze-hangs", "");
        let error = scene.try_freeze().unwrap_err().chain();
        scene.assert_thawed();
        error
    });
    // On a busy machine the watchdog can say so too late for whoever waits for it; not each time.
    let mut others = tries.take_while(|error| !error.contains(&why)).collect::<Vec<_>>();
    assert!(others.len() < 5, "{others:?}");
    others.retain(|error| !error.contains("the watchdog died or hung"));
    assert!(others.is_empty(), "{others:?}");
}

/// libvirt lets a freeze wait for its turn, and goes on with it when nobody waits for the answer any
/// more. The thaw overtook it, and the guest stayed frozen.
#[test]
fn a_freeze_that_comes_after_its_thaw_is_thawed_too() {
    let mut scene = Scene::new();
    scene.freeze.freeze_max = LIMIT;
    scene.freeze.late_max = Duration::from_secs(60);
    scene.virsh.tell("freeze-comes-late", "");
    assert_eq!(scene.try_freeze().unwrap_err().kind(), ErrorKind::Guest);
    wait_until("the freeze", || scene.virsh.has("came"));
    assert!(!scene.virsh.is_frozen() && is_gone(&scene.freeze.mark));
    assert!(scene.virsh.count("domfsthaw") > 1);
}

#[test]
fn at_the_limit_the_guest_is_thawed_whoever_is_not_ready() {
    let mut scene = Scene::new();
    scene.freeze.freeze_max = LIMIT;
    let frozen = scene.try_freeze().unwrap();
    scene.assert_thawed();
    assert_eq!(frozen.left(), Duration::ZERO);
    let broken = frozen.thaw().unwrap().broken.unwrap();
    assert!(broken.contains("before all was done"), "{broken}");
}

/// A Windows guest thaws itself after ten seconds; the thaw then fails, or thaws nothing.
#[test]
fn a_guest_that_thawed_by_itself_was_not_frozen_all_the_time() {
    let scene = Scene::new();
    let frozen = scene.try_freeze().unwrap();
    scene.virsh.tell("thawed-by-itself", "2");
    assert!(frozen.thaw().unwrap().broken.unwrap().contains("of 2 frozen filesystems 0 were"));
    // So was one of which only a part did.
    let scene = Scene::new();
    let frozen = scene.try_freeze().unwrap();
    scene.virsh.tell("thawed-by-itself", "1");
    assert!(frozen.thaw().unwrap().broken.unwrap().contains("of 2 frozen filesystems 1 were"));
    let scene = Scene::new();
    let frozen = scene.try_freeze().unwrap();
    scene.virsh.tell("thaw-fails", "1");
    assert!(frozen.thaw().unwrap().broken.unwrap().contains("Timed out"));
    scene.assert_thawed();
}

#[test]
fn a_thaw_is_tried_again_until_it_works() {
    let scene = Scene::new();
    let frozen = scene.try_freeze().unwrap();
    scene.virsh.tell("thaw-fails", "3");
    assert!(frozen.thaw().unwrap().broken.is_some());
    scene.assert_thaws_after(3);
    // A thaw that hangs is ended and tried again, too.
    let frozen = scene.try_freeze().unwrap();
    scene.virsh.tell("thaw-hangs", "1");
    assert!(frozen.thaw().unwrap().broken.unwrap().contains("gave no answer"));
    scene.assert_thawed();
}

#[test]
fn a_thaw_that_fails_is_an_alarm_and_tried_first_the_next_time() {
    let mut scene = Scene::new();
    scene.freeze.thaw_tries = Duration::from_millis(500);
    let frozen = scene.try_freeze().unwrap();
    scene.virsh.tell("thaw-fails", "1000");
    let error = frozen.thaw().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Alarm);
    assert!(
        error.to_string().contains("ALARM") && error.advice().unwrap().contains("domfsthaw web")
    );
    assert!(scene.virsh.is_frozen() && !is_gone(&scene.freeze.mark));

    assert_eq!(thaw_marked(&scene.freeze, true, &Silent).unwrap_err().kind(), ErrorKind::Alarm);
    assert!(!is_gone(&scene.freeze.mark));
    scene.virsh.forget("thaw-fails");
    scene.freeze.thaw_tries = Duration::from_secs(30);
    assert!(thaw_marked(&scene.freeze, true, &Silent).unwrap());
    scene.assert_thawed();
    assert!(!thaw_marked(&scene.freeze, true, &Silent).unwrap(), "there is nothing left to thaw");
    // A guest that has been stopped since is not frozen any more, and is not spoken to.
    std::fs::write(&scene.freeze.mark, "what is this").unwrap();
    let calls = scene.virsh.log().len();
    assert!(thaw_marked(&scene.freeze, false, &Silent).unwrap());
    assert!(is_gone(&scene.freeze.mark));
    assert_eq!(scene.virsh.log().len(), calls);
}

#[test]
fn without_virsh_or_agent_nothing_is_frozen_and_it_is_said() {
    let mut scene = Scene::new();
    scene.freeze.virsh.program = PathBuf::from("/nonexistent/virsh");
    assert_eq!(scene.try_freeze().unwrap_err().kind(), ErrorKind::Guest);
    assert!(is_gone(&scene.freeze.mark));
    // libvirt sends nothing to an agent that is not there: no thaw is missed, and it is no alarm.
    let scene = Scene::new();
    scene.virsh.tell("no-agent", "QEMU guest agent is not connected");
    assert_eq!(scene.try_freeze().unwrap_err().kind(), ErrorKind::Guest);
    assert_eq!(scene.virsh.log().len(), 2);
    assert!(is_gone(&scene.freeze.mark));
    // It went away in between: then the guest may well be frozen.
    let mut scene = Scene::new();
    scene.freeze.thaw_tries = Duration::from_millis(50);
    let frozen = scene.try_freeze().unwrap();
    scene.virsh.tell("no-agent", "QEMU guest agent is not connected");
    assert_eq!(frozen.thaw().unwrap_err().kind(), ErrorKind::Alarm);
    // A guest that does not run was stopped, or is only paused and frozen still: no point, and the
    // mark stays for the next run.
    let scene = Scene::new();
    let frozen = scene.try_freeze().unwrap();
    scene.virsh.tell("no-agent", "Requested operation is not valid: domain is not running");
    assert!(frozen.thaw().unwrap().broken.is_some());
    assert!(!is_gone(&scene.freeze.mark));
    assert_eq!(thaw_marked(&scene.freeze, true, &Silent).unwrap_err().kind(), ErrorKind::Alarm);
    assert!(!is_gone(&scene.freeze.mark));
    assert!(thaw_marked(&scene.freeze, false, &Silent).unwrap());
    assert!(is_gone(&scene.freeze.mark));
    let scene = Scene::new();
    let program = Program { path: "/nonexistent/qdelta".into(), arguments: Vec::new() };
    assert!(Watchdog::start(&program, scene.freeze.clone()).is_err());
    let program = Program { path: "/bin/true".into(), arguments: Vec::new() };
    assert!(Watchdog::start(&program, scene.freeze.clone()).is_err());
    assert!(scene.virsh.log().is_empty());
}

/// What `virsh` says when nothing of a freeze can have been sent.
const NOTHING_SENT: &[&str] = &[
    "error: failed to connect to the hypervisor\nerror: Failed to connect socket to \
     '/var/run/libvirt/libvirt-sock': No such file or directory",
    "error: failed to connect to the hypervisor\nerror: authentication unavailable: no polkit agent \
     available to authenticate action 'org.libvirt.unix.manage'",
    "libvirt: XML-RPC error : no route to host\nerror: failed to connect to the hypervisor",
    "error: failed to get domain 'c7a5fdbd'\nerror: Domain not found: no domain with matching name",
    "error: failed to get domain 'c7a5fdbd'",
    "error: unknown command: 'domfsfreeze'",
    "error: Unable to freeze filesystems\nerror: operation forbidden: read only access prevents \
     virDomainFSFreeze",
    "error: Unable to freeze filesystems\nerror: this function is not supported by the connection \
     driver: virDomainFSFreeze",
    "error: Unable to freeze filesystems\nerror: Guest agent is not responding: QEMU guest agent is not \
     connected",
];

/// What it says when a freeze may have been sent, whatever other words are in it.
const PERHAPS_SENT: &[&str] = &[
    "error: Unable to freeze filesystems\nerror: internal error: client socket is closed",
    "error: Disconnected from qemu:///system due to end of file\nerror: Unable to freeze filesystems\n\
     error: End of file while reading data: Input/output error",
    "error: Disconnected from qemu:///system due to keepalive timeout\nerror: failed to connect to the \
     hypervisor",
    "error: Unable to freeze filesystems\nerror: Failed to reconnect to the hypervisor",
    "error: Unable to freeze filesystems\nerror: failed to connect to the hypervisor",
    "error: Unable to freeze filesystems\nerror: Guest agent is not responding: Guest agent not available \
     for now",
    "failed to connect to the hypervisor",
    "",
];

/// Under cron, or where libvirtd was down, virsh reached no libvirt at all: after a minute of thawing each
/// guest was an alarm, and what virsh had said about the freeze was nowhere.
#[test]
fn where_no_freeze_can_have_been_sent_there_is_no_alarm() {
    for said in NOTHING_SENT {
        let mut scene = Scene::new();
        scene.freeze.thaw_tries = Duration::from_secs(1000);
        scene.virsh.tell("says-domfsfreeze", said);
        scene.virsh.tell("says-domfsthaw", said);
        let error = scene.try_freeze().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Guest, "{said}");
        let words = said.lines().last().unwrap().split(char::is_whitespace).next_back().unwrap();
        assert!(error.chain().contains(words), "{said}: {}", error.chain());
        let reached = said.contains("Unable to freeze");
        assert_eq!(error.advice().unwrap().contains("--connect"), !reached, "{said}");
        assert_eq!(
            scene.virsh.count("domfsthaw"),
            1,
            "{said}: to be sure, and not again and again"
        );
        assert!(is_gone(&scene.freeze.mark), "{said}");
    }
    // It can't be run at all, in two ways.
    for is_folder in [false, true] {
        let mut scene = Scene::new();
        scene.freeze.thaw_tries = Duration::from_secs(1000);
        let program = scene.freeze.mark.with_file_name("no-program");
        match is_folder {
            true => std::fs::create_dir(&program).unwrap(),
            false => std::fs::write(&program, "#!/bin/sh\n").unwrap(),
        }
        scene.freeze.virsh.program = program;
        let error = scene.try_freeze().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Guest);
        assert!(error.chain().contains("can't be started"), "{}", error.chain());
        assert!(error.advice().unwrap().contains("--virsh"), "{error:?}");
    }
}

/// The same words at another place prove nothing: the connection was there, and was lost.
#[test]
fn a_freeze_that_may_have_been_sent_is_an_alarm_if_nobody_can_thaw() {
    for said in PERHAPS_SENT {
        let mut scene = Scene::new();
        scene.freeze.thaw_tries = Duration::from_millis(300);
        scene.virsh.tell("says-domfsfreeze", said);
        scene.virsh.tell("says-domfsthaw", "error: failed to connect to the hypervisor");
        let error = scene.try_freeze().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Alarm, "{said}");
        let text = error.chain();
        assert!(
            text.contains("the freeze had failed") && text.contains("the thaw failed"),
            "{text}"
        );
        assert!(said.lines().all(|line| text.contains(line)), "{said}: {text}");
        assert!(scene.virsh.count("domfsthaw") > 1, "{said}");
        assert!(!is_gone(&scene.freeze.mark), "{said}");
    }
    // So much was said that the beginning is not known for the first complaint.
    let mut scene = Scene::new();
    scene.freeze.thaw_tries = Duration::from_millis(300);
    let long = format!("error: failed to connect to the hypervisor\n{}", "debug\n".repeat(4000));
    scene.virsh.tell("says-domfsfreeze", &long);
    scene.virsh.tell("says-domfsthaw", &long);
    assert_eq!(scene.try_freeze().unwrap_err().kind(), ErrorKind::Alarm);
}

/// The agent's settings may forbid both: that it froze nothing is known then. One that refuses another
/// freeze because it has frozen already does thaw.
#[test]
fn an_agent_that_refuses_freeze_and_thaw_has_frozen_nothing() {
    let refused = |command: &str| {
        format!(
            "error: Unable to do it\nerror: internal error: unable to execute QEMU agent command \
             '{command}': Command {command} has been disabled"
        )
    };
    let mut scene = Scene::new();
    scene.freeze.thaw_tries = Duration::from_secs(1000);
    scene.virsh.tell("says-domfsfreeze", &refused("guest-fsfreeze-freeze"));
    scene.virsh.tell("says-domfsthaw", &refused("guest-fsfreeze-thaw"));
    let error = scene.try_freeze().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Guest);
    assert!(error.chain().contains("guest-fsfreeze-freeze has been disabled"), "{}", error.chain());
    assert!(is_gone(&scene.freeze.mark));
    scene.virsh.forget("says-domfsthaw");
    scene.virsh.tell("frozen", "");
    assert_eq!(scene.try_freeze().unwrap_err().kind(), ErrorKind::Guest);
    scene.assert_thawed();
    // Refused, and nobody knows about the thaw.
    scene.virsh.tell("thaw-fails", "1000");
    scene.freeze.thaw_tries = Duration::from_millis(300);
    assert_eq!(scene.try_freeze().unwrap_err().kind(), ErrorKind::Alarm);
}

/// The thaw of one run would end the freeze of another: of another repository, or of a run that was
/// killed and whose watchdog is still at work.
#[test]
fn two_runs_do_not_freeze_one_guest_at_once() {
    let scene = Scene::new();
    let frozen = scene.try_freeze().unwrap();
    std::thread::scope(|scope| {
        let second = scope.spawn(|| {
            let mut freeze = scene.freeze.clone();
            freeze.mark = scene.freeze.mark.with_file_name("mark-of-another-repository");
            let program = Program { path: binary().to_owned(), arguments: vec!["watchdog".into()] };
            Watchdog::start(&program, freeze).unwrap().freeze().unwrap().thaw().unwrap()
        });
        wait_until("the second watchdog", || users_of(&scene.freeze.definition) == 2);
        // Time enough to go wrong in.
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(scene.virsh.count("domfsfreeze"), 1);
        assert_eq!(frozen.thaw().unwrap().broken, None);
        assert_eq!(second.join().unwrap().broken, None);
    });
    let verbs: Vec<String> = scene.virsh.log().iter().map(|line| line[..8].to_owned()).collect();
    assert_eq!(verbs, ["domfsfre", "domfstha", "domfsfre", "domfstha"]);
}

/// How many processes have a file open.
fn users_of(file: &Path) -> usize {
    let has_it = |process: &DirEntry| {
        // It may end meanwhile.
        let fds = std::fs::read_dir(process.path().join("fd"));
        let mut fds = fds.into_iter().flatten().flatten();
        fds.any(|fd| std::fs::read_link(fd.path()).is_ok_and(|target| target == file))
    };
    std::fs::read_dir("/proc").unwrap().flatten().filter(has_it).count()
}

/// Both qdelta and its watchdog were killed, and libvirt carries their freeze out when the next run
/// has thawed already.
#[test]
fn a_mark_that_is_fresh_may_have_its_freeze_still_to_come() {
    let mut scene = Scene::new();
    scene.freeze.late_max = Duration::from_secs(60);
    let mut child = watchdog(&scene, Stdio::null());
    wait_until("the freeze", || scene.virsh.is_frozen());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!is_gone(&scene.freeze.mark));
    // As if it had not come yet.
    scene.virsh.forget("frozen");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            wait_until("the first thaw", || scene.virsh.has("thawed"));
            scene.virsh.tell("frozen", "");
        });
        assert!(thaw_marked(&scene.freeze, true, &Silent).unwrap());
    });
    scene.assert_thawed();
    assert!(scene.virsh.count("domfsthaw") > 1);
}

#[test]
fn a_dropped_freeze_is_thawed() {
    let scene = Scene::new();
    drop(scene.try_freeze().unwrap());
    assert!(!scene.virsh.is_frozen() && is_gone(&scene.freeze.mark));
}

/// The watchdog as a process of which the test is the one that may die.
fn watchdog(scene: &Scene, stderr: Stdio) -> Child {
    let mut child = Command::new(binary())
        .arg("watchdog")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(stderr)
        .spawn()
        .unwrap();
    let watch = serde_json::json!({ "Watch": scene.freeze });
    writeln!(child.stdin.as_mut().unwrap(), "{watch}\n\"Freeze\"").unwrap();
    child
}

/// Whoever ordered the freeze is killed at any moment of it: both pipes close.
#[test]
fn the_guest_is_thawed_when_the_parent_dies_at_any_moment() {
    for round in 0..20 * sweep() {
        let scene = Scene::new();
        scene.virsh.tell("freeze-takes", "0.05");
        let mut child = watchdog(&scene, Stdio::null());
        std::thread::sleep(Duration::from_millis(round * 8 % 160));
        drop((child.stdin.take(), child.stdout.take()));
        assert!(child.wait().unwrap().success(), "round {round}");
        let frozen = scene.virsh.count("domfsfreeze");
        assert!(scene.virsh.count("domfsthaw") >= frozen, "round {round}");
        assert!(!scene.virsh.is_frozen() && is_gone(&scene.freeze.mark), "round {round}");
    }
}

/// The signals that end a program do not end its watchdog, which has work to do.
#[test]
fn signals_do_not_keep_the_watchdog_from_its_work() {
    use rustix::process::{Pid, Signal, kill_process};
    let mut scene = Scene::new();
    scene.freeze.freeze_max = LIMIT;
    let mut child = watchdog(&scene, Stdio::null());
    wait_until("the freeze", || scene.virsh.is_frozen());
    let pid = Pid::from_child(&child);
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT] {
        kill_process(pid, signal).unwrap();
    }
    assert!(child.wait().unwrap().success());
    scene.assert_thawed();
}

/// The watchdog is killed while the guest is frozen: whoever started it thaws.
#[test]
fn a_watchdog_that_is_killed_is_replaced() {
    use rustix::process::{Pid, Signal, kill_process};
    for hangs in [false, true] {
        let scene = Scene::new();
        let program = Program { path: binary().to_owned(), arguments: vec!["watchdog".into()] };
        let dog = Watchdog::start(&program, scene.freeze.clone()).unwrap();
        let pid = Pid::from_raw(i32::try_from(dog.id()).unwrap()).unwrap();
        if hangs {
            scene.virsh.tell("freeze-hangs", "");
            let scene = &scene;
            std::thread::scope(|scope| {
                scope.spawn(move || {
                    wait_until("the freeze", || scene.virsh.is_frozen());
                    kill_process(pid, Signal::KILL).unwrap();
                });
                let error = dog.freeze().unwrap_err();
                assert!(error.chain().contains("the watchdog died"), "{}", error.chain());
            });
        } else {
            let frozen = dog.freeze().unwrap();
            kill_process(pid, Signal::KILL).unwrap();
            assert!(frozen.thaw().unwrap().broken.unwrap().contains("watchdog died"));
        }
        scene.assert_thawed();
    }
}

/// A watchdog that was stopped, or whatever a program can suffer, kept the one that had started it
/// waiting for ever, and the guest frozen.
#[test]
fn a_watchdog_that_hangs_is_ended_and_replaced() {
    let says = |words: &str| Program {
        path: "/bin/sh".into(),
        arguments: vec!["-c".into(), format!("printf '%b\\n' '{words}'; exec sleep 1000").into()],
    };
    let mut scene = Scene::new();
    scene.freeze.freeze_max = Duration::from_millis(300);
    let before = "\"Ready\"";
    let within = "\"Ready\"\n{\"Frozen\":{\"filesystems\":1}}";
    for words in [before, within] {
        scene.virsh.tell("frozen", "");
        let dog = Watchdog::start(&says(words), scene.freeze.clone()).unwrap();
        let process = PathBuf::from(format!("/proc/{}", dog.id()));
        let said = match dog.freeze() {
            Ok(frozen) => frozen.thaw().unwrap().broken.unwrap(),
            Err(error) => error.chain(),
        };
        assert!(said.contains("the watchdog died or hung"), "{said}");
        assert!(is_gone(&process), "it is still there");
        scene.assert_thawed();
    }
}

/// Nobody reads what the watchdog has to say, and the pipe is full: a note between two tries of the
/// thaw kept it from the next one.
#[test]
fn the_thaw_waits_for_no_reader() {
    let mut scene = Scene::new();
    scene.virsh.tell("thaw-fails", "2");
    scene.freeze.freeze_max = LIMIT;
    let (_reader, mut writer) = std::io::pipe().unwrap();
    rustix::fs::fcntl_setfl(&writer, rustix::fs::OFlags::NONBLOCK).unwrap();
    while writer.write(&[b'x'; 512]).is_ok() {}
    rustix::fs::fcntl_setfl(&writer, rustix::fs::OFlags::empty()).unwrap();
    let mut child = watchdog(&scene, writer.into());
    wait_until("the freeze", || scene.virsh.is_frozen());
    scene.assert_thaws_after(2);
    drop((child.stdin.take(), child.stdout.take()));
    assert!(child.wait().unwrap().success());
}

#[test]
fn the_watchdog_is_nothing_to_start_by_hand() {
    let outcome = super::harness::run(super::harness::qdelta(super::harness::args!["watchdog"]));
    assert!(outcome.fails_with(2).contains("by qdelta alone"));
    let help = super::harness::run(super::harness::qdelta(super::harness::args!["--help"])).ok();
    assert!(!help.text().contains("watchdog"));
}
