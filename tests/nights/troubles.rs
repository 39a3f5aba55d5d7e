//! The troubles of the month: how each comes and goes, and what is told of it.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::month::{GUESTS, Month, Trouble, hide, show, spoil};
use super::*;
use crate::harness::guest::Running;

/// What the troubles of a guest, of the repositories, and of the host are.
pub(super) fn troubles() -> Vec<Vec<Trouble>> {
    vec![guests(), more_guests(), repository_away(), repository_bad(), files_bad(), host(), state()]
        .into_iter()
        .chain([
            vec![no_libvirt()],
            vec![libvirt_down()],
            vec![no_history()],
            notifiers(),
            places(),
        ])
        .chain([vec![drill(), replaced()], vec![clock_back()], vec![lost(), copy(), unproved()]])
        .collect()
}

fn guests() -> Vec<Trouble> {
    vec![
        Trouble {
            what: "a guest is gone",
            make: |month| hide(&month.night().definition("d-app")),
            mend: |month| show(&month.night().definition("d-app")),
            tells: &[("d-app", "libvirt does not have this guest any more")],
            without: &["production backup d-app"],
        },
        Trouble {
            what: "a guest that no job covers",
            make: |month| month.night().define("play", 9, &["vda"]),
            mend: |month| fs::remove_file(month.night().definition("play")).unwrap(),
            tells: &[("play", "no job covers it")],
            without: &[],
        },
        Trouble {
            what: "an image is missing",
            make: |month| hide(&month.night().image("mail", "vda")),
            mend: |month| show(&month.night().image("mail", "vda")),
            tells: &[("mail", "No such file or directory")],
            without: &[MAIL],
        },
        Trouble {
            what: "a secret is missing",
            make: |month| hide(&month.path("token")),
            mend: |month| show(&month.path("token")),
            tells: &[("phone", "No such file or directory")],
            without: &[],
        },
        Trouble {
            what: "a disk is new",
            make: |month| month.night().define("web", 0, &["vda", "vdb"]),
            mend: |_| {},
            tells: &[("web", "disk vdb not in its newest point")],
            without: &[],
        },
        Trouble {
            what: "a definition makes no sense",
            make: |month| spoil(&month.night().definition("d-log"), b"<domain><name>d-log</"),
            mend: |month| show(&month.night().definition("d-log")),
            tells: &[("d-log", "backup failed"), ("d-log", "d-log.xml")],
            without: &["production backup d-log"],
        },
    ]
}

fn more_guests() -> Vec<Trouble> {
    vec![
        Trouble {
            what: "a disk is gone",
            make: |month| month.night().define("web", 0, &["vda"]),
            mend: |_| {},
            tells: &[("web", "vdb")],
            without: &[],
        },
        Trouble {
            what: "an image is none",
            make: |month| spoil(&month.night().image("mail", "vda"), &[7; 4096]),
            mend: |month| show(&month.night().image("mail", "vda")),
            tells: &[("mail", "backup failed")],
            without: &[MAIL],
        },
        Trouble {
            what: "a disk is smaller",
            make: |month| {
                let image = month.night().image("d-log", "vda");
                hide(&image);
                create(&image, "", 2 * MIB);
                guest_io(&image, "qcow2", &["write -q -P 9 1M 64k".to_owned()]);
            },
            mend: |month| show(&month.night().image("d-log", "vda")),
            tells: &[("d-log", "has 2.0 MiB")],
            without: &[],
        },
        Trouble {
            what: "a disk is empty",
            make: |month| {
                let image = month.night().image("d-app", "vda");
                hide(&image);
                create(&image, "", 4 * MIB);
            },
            mend: |month| show(&month.night().image("d-app", "vda")),
            tells: &[("d-app", "zero")],
            without: &[],
        },
        Trouble {
            what: "a guest that the file names is not there",
            make: |month| {
                month.write("", "[jobs.lost]\nrepository = \"main\"\nguests = [\"ghost\"]\nschedule = \"19:00\"\n")
            },
            mend: |month| month.write("", ""),
            tells: &[("ghost", "no point")],
            without: &[],
        },
    ]
}

fn repository_away() -> Vec<Trouble> {
    vec![
        Trouble {
            what: "a repository is not mounted",
            make: |month| hide(&month.night().main()),
            mend: |month| show(&month.night().main()),
            tells: &[
                ("main", "no such folder"),
                ("production", "backup failed"),
                ("production", "verify failed"),
                ("production", "prune failed"),
            ],
            without: &[WEB, DB, "production backup d-app", "production backup d-log"],
        },
        Trouble {
            what: "the disk of a repository is full",
            make: |month| {
                let _ = fs::write(month.small().join("filler"), vec![1; 16 << 20]);
                let noise: Vec<String> = (0..24)
                    .map(|at| format!("write -q -P {} {}k 64k", 11 + at, at * 128))
                    .collect();
                guest_io(&month.night().image("mail", "vda"), "qcow2", &noise);
            },
            mend: |month| fs::remove_file(month.small().join("filler")).unwrap(),
            tells: &[("mail", "space"), ("small", "within a day")],
            without: &[MAIL],
        },
    ]
}

fn repository_bad() -> Vec<Trouble> {
    vec![
        Trouble {
            what: "the settings of a repository make no sense",
            make: |month| spoil(&month.night().main().join("qdelta.toml"), b"\0\0\0"),
            mend: |month| show(&month.night().main().join("qdelta.toml")),
            tells: &[
                ("main", "qdelta.toml"),
                ("web", "nothing is written to this repository"),
                ("db", "nothing is written to this repository"),
                ("d-app", "nothing is written to this repository"),
                ("d-log", "nothing is written to this repository"),
                ("production", "verify failed"),
                ("production", "prune failed"),
            ],
            without: &[WEB, DB, "production backup d-app", "production backup d-log"],
        },
        Trouble {
            what: "too little room is left",
            make: |month| {
                let file = month.path("qdelta.toml");
                let text = fs::read_to_string(&file).unwrap();
                let at = text.find("/repo\"\n[libvirt]").unwrap() + 7;
                fs::write(&file, format!("{}keep_free = \"1T\"\n{}", &text[..at], &text[at..]))
                    .unwrap();
            },
            mend: |month| month.write("", ""),
            tells: &[("small", "is to stay free"), ("office", "backup failed: nothing was begun")],
            without: &[MAIL],
        },
    ]
}

/// The newest manifest or archive of a guest in the repository of `production`.
fn newest(month: &Month, guest: &str, ending: &str) -> PathBuf {
    let repo = month.night().repo();
    let is_it =
        |file: &&PathBuf| file.starts_with(guest) && file.to_string_lossy().ends_with(ending);
    let files = repo.files();
    let newest = files.iter().filter(is_it).max();
    repo.place_of(newest.unwrap_or_else(|| panic!("no {ending}")))
}

thread_local! {
    static SPOILED: RefCell<BTreeMap<&'static str, PathBuf>> = RefCell::default();
}

fn remember(what: &'static str, path: PathBuf) -> PathBuf {
    SPOILED.with_borrow_mut(|it| it.insert(what, path.clone()));
    path
}

fn remembered(what: &'static str) -> PathBuf {
    SPOILED.with_borrow(|it| it[what].clone())
}

fn files_bad() -> Vec<Trouble> {
    vec![
        Trouble {
            what: "a point's own file is damaged",
            make: |month| spoil(&remember("json", newest(month, "web", ".json")), b"{"),
            mend: |_| show(&remembered("json")),
            tells: &[
                ("web", "can't be restored whole"),
                ("web", "its RPO is 26h"),
                ("web", "a full begins a new chain"),
                ("production", "prune failed"),
            ],
            without: &[],
        },
        Trouble {
            what: "an archive is gone",
            make: |month| hide(&remember("gone", newest(month, "d-app", ".qdelta"))),
            mend: |_| show(&remembered("gone")),
            tells: &[
                ("d-app", "can't be restored whole"),
                ("d-app", "its RPO is 26h"),
                ("d-app", "a full begins a new chain"),
            ],
            without: &[],
        },
        Trouble {
            what: "a bit of an archive has turned",
            make: |month| {
                let path = remember("bit", newest(month, "db", ".qdelta"));
                let mut bytes = fs::read(&path).unwrap();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                spoil(&path, &bytes);
            },
            mend: |_| show(&remembered("bit")),
            tells: &[
                ("production", "verify failed"),
                ("db", "can't be restored whole"),
                ("db", "a full begins a new chain"),
            ],
            without: &[],
        },
    ]
}

fn host() -> Vec<Trouble> {
    vec![
        Trouble {
            what: "a hook says no",
            make: |month| {
                month.write("", "[jobs.office.hooks]\nbefore = \"echo no mount >&2; exit 3\"\n");
            },
            mend: |month| month.write("", ""),
            tells: &[("office", "backup not tried: hook before"), ("office", "hook before: `echo")],
            without: &[MAIL],
        },
        Trouble {
            what: "the timer is off",
            make: |month| {
                script(&month.path("bin/systemctl"), "#!/bin/sh\necho inactive\nexit 3\n")
            },
            mend: |month| script(&month.path("bin/systemctl"), "#!/bin/sh\necho active\n"),
            tells: &[("qdelta.timer", "is off: nothing starts qdelta run")],
            without: &[],
        },
        Trouble {
            what: "a guest may be frozen",
            make: |month| {
                let id = fs::read_to_string(month.night().main().join("qdelta.toml")).unwrap();
                let id = id.split("id = \"").nth(1).unwrap().split('"').next().unwrap().to_owned();
                let mark = month.path("state").join(id).join("gone.frozen");
                leave_mark(&mark.with_file_name("web.frozen"), "2026-01-01T00:00:00Z");
            },
            // The next backup thaws the guest, and says so.
            mend: |_| {},
            tells: &[("web", "it may still be frozen"), ("web", "was perhaps frozen")],
            without: &[],
        },
    ]
}

/// A line of the history, as a run writes it.
fn line(month: &Month, time: &str, end: &str) {
    let path = month.path("state/jobs/history.jsonl");
    let mut text = fs::read_to_string(&path).unwrap();
    text += &format!(
        "{{\"run\":\"{time}\",\"job\":null,\"act\":\"run\",\"subject\":null,\"began\":\"{time}\",\"seconds\":0.0,\
         \"end\":\"{end}\",\"text\":\"x\",\"advice\":null,\"warnings\":[],\"result\":null}}\n"
    );
    fs::write(path, text).unwrap();
}

fn state() -> Vec<Trouble> {
    vec![
        Trouble {
            what: "a hook hangs",
            make: |month| {
                month.write(
                    "[jobs.production.hooks]\nfinally = \"sleep 1000\"\ntime_limit = \"1s\"",
                    "",
                )
            },
            mend: |month| month.write("", ""),
            tells: &[(
                "production",
                "hook finally: `sleep 1000` was ended: it took longer than 1.0 s",
            )],
            without: &[],
        },
        Trouble {
            what: "the clock stood two years ahead",
            make: |month| line(month, "2028-02-28T01:35:00Z", "refused"),
            mend: |month| {
                let path = month.path("state/jobs/history.jsonl");
                let text = fs::read_to_string(&path).unwrap();
                let kept = text.lines().filter(|line| !line.contains("2028-"));
                fs::write(path, kept.map(|line| format!("{line}\n")).collect::<String>()).unwrap();
            },
            tells: &[("clock", "lie ahead of the clock")],
            without: &[],
        },
        Trouble {
            what: "nobody knows any more who was told",
            make: |month| {
                let path = month.path("state/jobs/told.json");
                let text = fs::read_to_string(&path).unwrap();
                fs::write(path, &text[..text.len() / 2]).unwrap();
            },
            mend: |_| {},
            tells: &[],
            without: &[],
        },
    ]
}

fn no_libvirt() -> Trouble {
    Trouble {
        what: "libvirt's folder can't be read",
        make: |month| spoil(&month.path("etc/qemu"), b""),
        mend: |month| show(&month.path("etc/qemu")),
        tells: &[("run", "a run failed: "), ("host", "nobody knows how it stands")],
        without: GUESTS,
    }
}

/// Makes a guest one that runs, and has an agent.
fn start_guest(month: &Month, guest: &str) {
    let running = Running::open(&month.night().image(guest, "vda"), "qcow2");
    let channel = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0' \
                   state='connected'/></channel></devices>";
    let xml = fs::read_to_string(month.night().definition(guest)).unwrap();
    let xml = xml.replace("</devices>", channel);
    let live = format!("<domstatus state='running' pid='{}'>{xml}</domstatus>", running.id());
    fs::write(month.path(&format!("run/qemu/{guest}.xml")), live).unwrap();
    *month.live.borrow_mut() = Some(running);
}

fn stop_guest(month: &Month, guest: &str) {
    fs::remove_file(month.path(&format!("run/qemu/{guest}.xml"))).unwrap();
    *month.live.borrow_mut() = None;
}

/// Has guests that run frozen while they are read, for a second at most.
fn freeze_shortly(month: &Month) {
    let file = month.path("qdelta.toml");
    let text = fs::read_to_string(&file).unwrap();
    let how = "consistency = \"freeze-copy\"\nfreeze_max = \"1s\"\nrpo = ";
    fs::write(file, text.replacen("rpo = ", how, 1)).unwrap();
}

/// The calls of virsh that freezing takes.
const CALLS: [&str; 2] = ["virsh/says-domfsfreeze", "virsh/says-domfsthaw"];

fn libvirt_down() -> Trouble {
    Trouble {
        what: "libvirtd is down",
        make: |month| {
            freeze_shortly(month);
            start_guest(month, "d-app");
            let said = "error: failed to connect to the hypervisor\nerror: Connection refused\n";
            CALLS.iter().for_each(|call| fs::write(month.path(call), said).unwrap());
        },
        mend: |month| {
            month.write("", "");
            stop_guest(month, "d-app");
            CALLS.iter().for_each(|call| fs::remove_file(month.path(call)).unwrap());
        },
        tells: &[("d-app", "failed to connect to the hypervisor")],
        without: &["production backup d-app"],
    }
}

/// What the nights noted that are still to come counts for nothing, and is not done twice.
fn clock_back() -> Trouble {
    Trouble {
        what: "the clock is set back by a day",
        make: |month| month.day.set(month.day.get().yesterday().unwrap()),
        mend: |_| {},
        tells: &[("clock", "lie ahead of the clock")],
        without: GUESTS,
    }
}

fn no_history() -> Trouble {
    Trouble {
        what: "the history can't be read",
        make: |month| {
            let path = month.path("state/jobs/history.jsonl");
            hide(&path);
            fs::create_dir(path).unwrap();
        },
        mend: |month| show(&month.path("state/jobs/history.jsonl")),
        tells: &[("run", "a run failed: "), ("host", "nobody knows how it stands")],
        without: GUESTS,
    }
}

fn notifiers() -> Vec<Trouble> {
    vec![
        Trouble {
            what: "mail is down",
            make: |month| {
                fs::write(month.path("mails/down"), "no route").unwrap();
                // Something to tell.
                month.night().define("play", 9, &["vda"]);
            },
            mend: |month| {
                fs::remove_file(month.path("mails/down")).unwrap();
                fs::remove_file(month.night().definition("play")).unwrap();
            },
            tells: &[("admin", "no route"), ("play", "no job covers it")],
            without: &[],
        },
        Trouble {
            what: "the watch and the chat are down",
            make: |month| month.told.sink.answer(503),
            mend: |month| month.told.sink.answer(200),
            tells: &[("watch", "answered 503"), ("chat", "answered 503")],
            without: &[],
        },
        Trouble {
            what: "the metrics can't be written",
            make: |month| {
                let path = month.path("qdelta.prom");
                hide(&path);
                fs::create_dir(path).unwrap();
            },
            mend: |month| show(&month.path("qdelta.prom")),
            tells: &[("textfile", "qdelta.prom")],
            without: &[],
        },
    ]
}

fn places() -> Vec<Trouble> {
    vec![
        Trouble {
            what: "the store is down, and a key is missing",
            make: |month| {
                let sealed = month.path("sealed").display().to_string();
                month.write(
                    "[jobs.production.copy]\nto = \"cloud\"",
                    &format!(
                        "[jobs.office.copy]\nto = \"sealed\"\n[repositories.cloud]\nplace = \"s3://b/p?endpoint=http://127.0.0.1:1&region=r&style=path&patience=0\"\n\
                         [repositories.sealed]\nplace = \"{sealed}\"\nkey_file = \"{sealed}.lost\"\n"
                    ),
                );
            },
            mend: |month| month.write("", ""),
            tells: &[
                ("cloud", "127.0.0.1:1"),
                ("sealed", "sealed.lost"),
                ("production", "copy failed"),
                ("office", "copy failed"),
            ],
            without: &[],
        },
        Trouble {
            what: "the agent of a guest hangs",
            make: |month| {
                freeze_shortly(month);
                start_guest(month, "d-log");
                fs::write(month.path("virsh/freeze-hangs"), "").unwrap();
            },
            mend: |month| {
                stop_guest(month, "d-log");
                fs::remove_file(month.path("virsh/freeze-hangs")).unwrap();
            },
            tells: &[("d-log", "gave no answer in 1000 ms and was ended")],
            without: &["production backup d-log"],
        },
    ]
}

fn drill() -> Trouble {
    Trouble {
        what: "no drill can go so far",
        make: |month| month.write("[jobs.production.drill]\nto = \"partitions\"\npick = 1", ""),
        mend: |month| month.write("", ""),
        tells: &[("d-app", "nothing on it is known here")],
        without: &[],
    }
}

fn replaced() -> Trouble {
    Trouble {
        what: "another repository is mounted",
        make: |month| {
            let main = month.night().main();
            hide(&main);
            month.night().init_another(&month.time("19:00:00"), &main);
        },
        mend: |month| {
            show(&month.night().main());
            month.night().show_key(&month.night().main());
        },
        tells: &[
            ("main", "it is another repository than before"),
            ("web", "it has no good point"),
            ("db", "it has no good point"),
            ("d-app", "it has no good point"),
            ("d-log", "it has no good point"),
        ],
        without: &[],
    }
}

fn lost() -> Trouble {
    Trouble {
        what: "a repository is put back to an earlier state",
        make: |month| {
            for (what, ending) in [("lost.json", ".json"), ("lost.qdelta", ".qdelta")] {
                let path = remember(what, newest(month, "d-app", ending));
                fs::rename(path, month.path(what)).unwrap();
            }
        },
        mend: |month| {
            for what in ["lost.qdelta", "lost.json"] {
                fs::rename(month.path(what), remembered(what)).unwrap();
            }
        },
        tells: &[
            ("d-app", "was in main when this host looked last"),
            ("d-app", "was there when this host looked last"),
            ("d-app", "its RPO is 26h"),
        ],
        without: &[],
    }
}

fn copy() -> Trouble {
    Trouble {
        what: "a second copy has nothing yet",
        make: |month| {
            let offsite = month.path("offsite");
            month.night().init(&month.time("19:00:00"), &offsite);
            month.write(
                "[jobs.production.copy]\nto = \"offsite\"",
                &format!(
                    "[repositories.offsite]\n{}\n\
                     [jobs.office.verify]\nbudget = \"1K\"\nmax_age = \"1h\"\n",
                    month.night().place(&offsite)
                ),
            );
        },
        mend: |month| month.write("", ""),
        tells: &[
            ("web", "it has no point in offsite yet"),
            ("db", "it has no point in offsite yet"),
            ("d-app", "it has no point in offsite yet"),
            ("d-log", "it has no point in offsite yet"),
            // The last copy of this job, to another place, had failed.
            ("production", "copy failed: cannot read s3://b/p"),
        ],
        without: &[],
    }
}

/// The lines of the file are those of the trouble before.
fn unproved() -> Trouble {
    Trouble {
        what: "a budget is too small",
        make: |_| {},
        mend: |_| {},
        tells: &[("office", "not proved for longer than 1h")],
        without: &[],
    }
}
