//! Restoring whole machines: everything comes back, under its own name or a new one, and nothing is
//! overwritten by accident.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use qdelta::guest::libvirt::{Choice, StorageSource, decide, parse};
use serde_json::Value;

use super::cli::json::compare;
use super::harness::guest::{Guest, Host, MIB, UUID, content, disk};
use super::harness::stored::Stored;
use super::harness::{Outcome, args, qdelta, run};

/// A host whose guest has two points, and then is gone.
pub fn lost() -> (Host, [Vec<u8>; 2], String) {
    let host = Host::new();
    let mut guest = Guest::define(&host, host.lab.dir());
    let tpm = host.lab.path(format!("lib/swtpm/{UUID}/tpm2"));
    fs::create_dir_all(&tpm).unwrap();
    fs::write(tpm.join("tpm2-00.permall"), "sealed").unwrap();
    let xml = guest.xml().replace(
        "<channel",
        "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm><channel",
    );
    fs::write(host.lab.path("etc/qemu/web.xml"), xml).unwrap();
    guest.start("running");
    guest.write(0, 0, MIB, 7);
    guest.stop();
    let first = host.web(&[])["point"].as_str().unwrap().to_owned();
    guest.start("running");
    guest.write(0, MIB, MIB, 9);
    guest.write(1, 0, MIB, 8);
    guest.stop();
    host.web(&["--with-host-config"]);
    for path in [guest.vda(), guest.vdb(), guest.nvram()] {
        fs::remove_file(path).unwrap();
    }
    drop(guest);
    (host, [disk(8, &[(0, MIB, 7), (MIB, MIB, 9)]), disk(4, &[(0, MIB, 8)])], first)
}

pub fn restore(host: &Host, to: &Path, options: &[&str]) -> Outcome {
    let mut words = args!["--domain", "web", "--to", to];
    words.extend(options.iter().map(std::ffi::OsString::from));
    host.restore(words)
}

#[test]
fn a_machine_that_is_lost_comes_back() {
    let (host, expected, _) = lost();
    let to = host.lab.path("to");
    let outcome = restore(&host, &to, &[]).ok();
    let text = outcome.text();
    let commands: Vec<&str> =
        text.lines().map(str::trim).filter(|line| line.starts_with("virsh ")).collect();
    let xml = to.join("web.xml");
    assert_eq!(commands, [format!("virsh define {}", xml.display()), "virsh start web".to_owned()]);
    assert!(text.contains("cp -a ") && text.contains(&format!("swtpm/{UUID}/tpm2")), "{text}");

    let domain = parse(&fs::read_to_string(&xml).unwrap()).unwrap();
    assert_eq!((domain.name.as_str(), domain.handle()), ("web", UUID));
    for (disk, (name, format, bytes)) in domain
        .disks
        .iter()
        .zip([("web-vda.qcow2", "qcow2", &expected[0]), ("web-vdb.raw", "raw", &expected[1])])
    {
        let image = to.join(name);
        assert_eq!(
            decide(disk, &[]),
            Choice::Take { image: image.clone(), format: format.parse().unwrap(), block: false }
        );
        assert!(content(&image, format) == *bytes, "{name}");
    }
    assert_eq!(domain.nvram.unwrap().source, StorageSource::File(to.join("web_VARS.fd")));
    assert_eq!(fs::read(to.join("web_VARS.fd")).unwrap(), vec![0xff; 3000]);
    assert_eq!(fs::read_to_string(to.join("tpm/tpm2-00.permall")).unwrap(), "sealed");
    let config = to.join("host-config").join(host.lab.path("etc").strip_prefix("/").unwrap());
    assert_eq!(fs::read_to_string(config.join("qemu/networks/default.xml")).unwrap(), "<network/>");
}

#[test]
fn an_earlier_point_lives_beside_the_machine_under_a_new_name() {
    let (host, _, first) = lost();
    let to = host.lab.path("to");
    let report =
        restore(&host, &to, &["--at", &first, "--rename", "it's old", "--json"]).ok().json();
    assert_eq!(report["point"].as_str(), Some(first.as_str()));
    assert_eq!(
        report["commands"].as_array().unwrap().last().unwrap(),
        "virsh start 'it'\\''s old'"
    );
    let xml = Path::new(report["xml"].as_str().unwrap()).to_owned();
    let text = fs::read_to_string(&xml).unwrap();
    let domain = parse(&text).unwrap();
    assert_eq!(domain.name, "it's old");
    assert_ne!(domain.handle(), UUID);
    assert_eq!(domain.handle(), report["uuid"].as_str().unwrap());
    assert!(!text.contains("52:54:00:11:22:33"), "{text}");
    assert!(content(&to.join("it_s_old-vda.qcow2"), "qcow2") == disk(8, &[(0, MIB, 7)]));
}

#[test]
fn nothing_is_overwritten_by_accident() {
    let (host, expected, _) = lost();
    let to = host.lab.path("to");
    restore(&host, &to, &[]).ok();
    let said = restore(&host, &to, &[]).fails_with(7);
    assert!(said.contains("exists already"), "{said}");
    restore(&host, &to, &["--force"]).ok();
    // Files that are in use are not replaced, force or not, and none of the others is.
    let image = to.join("web-vda.qcow2");
    fs::write(to.join("web-vdb.raw"), "mine").unwrap();
    let file = fs::File::options().read(true).write(true).open(&image).unwrap();
    let lock = qdelta::disk::files::image_lock::ImageLock::shared_read(&file, &image).unwrap();
    restore(&host, &to, &["--force"]).fails_with(5);
    assert_eq!(fs::read_to_string(to.join("web-vdb.raw")).unwrap(), "mine");
    drop(lock);
    // One that fails later leaves nothing behind.
    let to = host.lab.path("other");
    let machine = host.repo.files_below("web/machine");
    machine.iter().for_each(Stored::remove);
    let verified = run(qdelta(host.repo.args(args!["verify", "--json"])));
    assert_eq!(verified.code(), Some(4));
    let damaged = verified.json()["findings"].as_array().unwrap().len();
    assert_eq!(damaged, machine.len(), "each lost file is found");
    restore(&host, &to, &[]).fails_with(4);
    assert!(!to.exists());
    // The disks can still be had, one by one.
    host.assert_restores("vda", &expected[0]);
}

#[test]
fn a_restore_that_can_not_be_is_refused_with_what_to_do() {
    let (host, ..) = lost();
    let to = host.lab.path("to");
    let words = args!["restore", "--domain", "nobody", "--to", to.as_path()];
    run(qdelta(host.repo.args(words))).fails_with(6);
    restore(&host, &to, &["--at", "2001-01-01"]).fails_with(6);
    restore(&host, &host.repo.path.join("web"), &[]).fails_with(2);
    run(qdelta(host.repo.args(args!["restore", "--domain", "web"]))).fails_with(2);
    // A domain that is a mere image has no machine.
    let image = host.lab.path("plain.qcow2");
    super::harness::images::create(&image, "", MIB);
    host.repo.backup(&image, "plain", &[]);
    let words = args!["restore", "--domain", "plain", "--to", to.as_path()];
    let said = run(qdelta(host.repo.args(words))).fails_with(6);
    assert!(said.contains("qdelta restore plain/DISK OUTPUT"), "{said}");
    assert!(!to.exists());
    // A manifest that names a machine is as readable as any.
    let points = run(qdelta(host.repo.args(args!["points", "--json"]))).ok().json();
    assert_ne!(points["disks"][0], Value::Null);
}

/// The names of all that is in a folder and below it.
pub fn names(folder: &Path) -> Vec<String> {
    let names = super::harness::files::tree(folder).into_iter();
    names.map(|path| path.to_str().unwrap().to_owned()).collect()
}

/// Each of these failed when the disks had been written, or made a definition that libvirt refused.
#[test]
fn a_name_or_folder_that_no_definition_can_have_is_refused_first() {
    let (host, ..) = lost();
    let to = host.lab.path("to");
    for name in ["a/b", "a\nb", "a\u{1}b", "", " web"] {
        restore(&host, &to, &["--rename", name]).fails_with(2);
        assert!(!to.exists(), "{name:?}");
    }
    for name in [&b"tab\there"[..], b"line\nend", b"bell\x07", b"not utf-8 \xff"] {
        let to = host.lab.path(OsStr::from_bytes(name));
        let said = restore(&host, &to, &[]).fails_with(2);
        assert!(said.contains("can't stand in"), "{said}");
        assert!(!to.exists(), "{name:?}");
    }
    // What can stand in XML if it is written as it must be, does.
    let to = host.lab.path("<it's> & \"so\"");
    let report = restore(&host, &to, &["--rename", "<&>", "--json"]).ok().json();
    let xml = fs::read_to_string(report["xml"].as_str().unwrap()).unwrap();
    assert_eq!(parse(&xml).unwrap().name, "<&>");
}

/// Opening it waited for somebody to write to it.
#[test]
fn what_is_no_file_is_not_waited_for() {
    let (host, ..) = lost();
    let to = host.lab.path("to");
    fs::create_dir(&to).unwrap();
    let fifo = to.join("web-vda.qcow2");
    run(super::harness::tool("mkfifo", args![fifo.as_path()])).ok();
    for options in [&[][..], &["--force"]] {
        let said = restore(&host, &to, options).fails_with(7);
        assert!(said.contains("named pipe, not a regular file"), "{said}");
    }
    assert_eq!(names(&to), ["web-vda.qcow2"]);
}

/// Files of one name in several folders of a TPM's state became one.
#[test]
fn the_state_of_a_tpm_keeps_its_folders() {
    let host = Host::new();
    let guest = Guest::define(&host, host.lab.dir());
    let tpm = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm><channel";
    guest.redefine(&[("<channel", tpm)]);
    for name in ["state", "a/state", "b/state"] {
        let path = host.lab.path(format!("lib/swtpm/{UUID}/tpm2")).join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, name).unwrap();
    }
    host.web(&[]);
    let to = host.lab.path("to");
    restore(&host, &to, &[]).ok();
    for name in ["state", "a/state", "b/state"] {
        assert_eq!(fs::read_to_string(to.join("tpm").join(name)).unwrap(), name);
    }
    let report = restore(&host, &to, &["--rename", "new", "--force", "--json"]).ok().json();
    let own = host.lab.path("lib/swtpm").join(report["uuid"].as_str().unwrap()).join("tpm2");
    let copy = format!("cp -a {}/. {}", to.join("tpm").display(), own.display());
    assert!(report["commands"].as_array().unwrap().contains(&copy.into()), "{report}");
}

/// The command that was printed copied it to where nobody looks for it, and a second guest had the
/// first one's TPM.
#[test]
fn a_tpm_with_a_place_of_its_own_comes_back_beside_the_disks() {
    let host = Host::new();
    let guest = Guest::define(&host, host.lab.dir());
    let place = host.lab.path("own-tpm");
    let source = |kind: &str| {
        let place = place.display();
        format!(
            "<tpm model='tpm-crb'><backend type='emulator' version='2.0'>
             <source type='{kind}' path='{place}'/></backend></tpm><channel"
        )
    };
    let tpm_of = |report: &Value| {
        let text = fs::read_to_string(report["xml"].as_str().unwrap()).unwrap();
        parse(&text).unwrap().tpm.unwrap().path
    };
    let commands = |report: &Value| report["commands"].as_array().unwrap().len();
    // Nothing of it is in the point: a second guest gets one of its own.
    guest.redefine(&[("<channel", &source("dir"))]);
    host.web(&[]);
    let report = restore(&host, &host.lab.path("none"), &["--json"]).ok().json();
    assert_eq!(tpm_of(&report), Some(place.clone()));
    assert!(report["warnings"].to_string().contains("still names"), "{report}");
    let options = ["--rename", "new", "--json"];
    let report = restore(&host, &host.lab.path("new"), &options).ok().json();
    assert_eq!(tpm_of(&report), None);
    assert!(report["warnings"].to_string().contains("begins with an empty one"), "{report}");
    // A folder, and a file.
    fs::create_dir(&place).unwrap();
    fs::write(place.join("tpm2-00.permall"), "sealed").unwrap();
    host.web(&[]);
    let to = host.lab.path("folder");
    let report = restore(&host, &to, &options).ok().json();
    assert_eq!((tpm_of(&report), commands(&report)), (Some(to.join("tpm")), 2));
    assert_eq!(fs::read_to_string(to.join("tpm/tpm2-00.permall")).unwrap(), "sealed");
    fs::remove_dir_all(&place).unwrap();
    fs::write(&place, "a file").unwrap();
    guest.redefine(&[("<channel", &source("file"))]);
    host.web(&[]);
    let to = host.lab.path("file");
    let report = restore(&host, &to, &["--json"]).ok().json();
    assert_eq!((tpm_of(&report), commands(&report)), (Some(to.join("tpm/own-tpm")), 2));
    assert_eq!(fs::read_to_string(to.join("tpm/own-tpm")).unwrap(), "a file");
}

/// A second guest wrote to the variables of the first.
#[test]
fn a_second_guest_does_not_have_the_variables_of_the_first() {
    let host = Host::new();
    let guest = Guest::define(&host, host.lab.dir());
    let file = format!("<nvram>{}</nvram>", guest.nvram().display());
    let gone = "<nvram template='/t.fd'>/nonexistent/VARS.fd</nvram>";
    let block = "<nvram type='block' template='/t.fd'><source dev='/dev/nonexistent'/></nvram>";
    let network =
        "<nvram type='network' template='/t.fd'><source protocol='iscsi' name='n'/></nvram>";
    for (index, nvram) in [gone, block, network].into_iter().enumerate() {
        guest.redefine(&[(&file, nvram)]);
        let point = host.web(&[]);
        assert!(point["missing"].to_string().contains("the firmware's variables"), "{point}");
        let to = host.lab.path(format!("same{index}"));
        let report = restore(&host, &to, &["--json"]).ok().json();
        assert!(report["warnings"].to_string().contains("definition still names"), "{report}");
        assert!(fs::read_to_string(to.join("web.xml")).unwrap().contains(nvram));
        let to = host.lab.path(format!("new{index}"));
        let report = restore(&host, &to, &["--rename", "new", "--json"]).ok().json();
        assert!(report["warnings"].to_string().contains("begins with fresh ones"), "{report}");
        let xml = fs::read_to_string(to.join("new.xml")).unwrap();
        assert!(xml.contains("<nvram template='/t.fd'/>"), "{xml}");
        assert!(!xml.contains("nonexistent") && !xml.contains("iscsi"), "{xml}");
    }
}

/// The variables of a guest whose firmware libvirt chooses, of one with QEMU's own store, and of one whose
/// code and variables are one file were in no point, and nothing said so; a second guest wrote to the last
/// two.
#[test]
fn the_variables_come_back_from_wherever_they_are() {
    let host = Host::new();
    let guest = Guest::define(&host, host.lab.dir());
    let nvram = format!("<nvram>{}</nvram>", guest.nvram().display());
    let os = |inside: &str| format!("<os firmware='efi'><type>hvm</type>{inside}</os>");
    let (chosen, store, own) = (
        host.lab.path("lib/qemu/nvram/web_VARS.fd"),
        host.lab.path("lib/qemu/varstore/web.json"),
        host.lab.path("OVMF.fd"),
    );
    let qcow2 = chosen.with_extension("qcow2");
    let named = host.lab.path("named.json");
    let cases = [
        (os(""), &chosen, "web_VARS.fd"),
        (os("<nvram template='/t.fd'/>"), &chosen, "web_VARS.fd"),
        (os(""), &qcow2, "web_VARS.qcow2"),
        (os(""), &store, "web_VARS.json"),
        (os("<varstore template='/t.json'/>"), &store, "web_VARS.json"),
        (os(&format!("<varstore path='{}'/>", named.display())), &named, "web_VARS.json"),
        (
            os(&format!("<loader readonly='no' type='pflash'>{}</loader>", own.display()))
                .replace(" firmware='efi'", ""),
            &own,
            "web_VARS.fd",
        ),
    ];
    for (index, (os, file, name)) in cases.iter().enumerate() {
        guest.redefine(&[(&format!("<os><type>hvm</type>{nvram}</os>"), os.as_str())]);
        // Nothing is there yet: that is said.
        let point = host.web(&[]);
        assert!(point["missing"].to_string().contains("the firmware's variables"), "{os}: {point}");
        for (word, rename) in [("same", false), ("new", true)] {
            let to = host.lab.path(format!("bare-{word}{index}"));
            let options: &[&str] =
                if rename { &["--rename", "new", "--json"] } else { &["--json"] };
            let report = restore(&host, &to, options).ok().json();
            assert!(report["warnings"].to_string().contains("variables"), "{os}: {report}");
            let text = fs::read_to_string(report["xml"].as_str().unwrap()).unwrap();
            let shares = text.contains(file.to_str().unwrap());
            assert!(!rename || !shares, "{os}: the new guest has the old one's: {text}");
        }
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, format!("variables {index}")).unwrap();
        let point = host.web(&[]);
        assert_eq!(point["missing"].as_array().unwrap().len(), 0, "{os}: {point}");
        for (word, rename) in [("web", false), ("new", true)] {
            let to = host.lab.path(format!("{word}{index}"));
            let options: &[&str] =
                if rename { &["--rename", "new", "--json"] } else { &["--json"] };
            let report = restore(&host, &to, options).ok().json();
            let restored = to.join(name.replace("web", word));
            assert_eq!(report["nvram"].as_str(), restored.to_str(), "{os}");
            assert_eq!(fs::read_to_string(&restored).unwrap(), format!("variables {index}"));
            let text = fs::read_to_string(report["xml"].as_str().unwrap()).unwrap();
            assert!(text.contains(restored.to_str().unwrap()), "{os}: {text}");
            assert!(!text.contains(file.to_str().unwrap()), "{os}: {text}");
        }
        fs::remove_file(file).unwrap();
    }
}

/// Kernel, option ROMs, devices of the host, shared folders, drives of QEMU's command line, snapshots and
/// the start with the host were left out without a word.
#[test]
fn what_a_guest_has_besides_its_disks_is_taken_or_listed() {
    let host = Host::new();
    let guest = Guest::define(&host, host.lab.dir());
    let at = |name: &str| host.lab.path(name).to_str().unwrap().to_owned();
    for name in ["kernel", "initrd", "rom", "pstore"] {
        fs::write(at(name), name).unwrap();
    }
    let os = format!(
        "<type>hvm</type><kernel>{}</kernel><initrd>{}</initrd><dtb>{}</dtb>",
        at("kernel"),
        at("initrd"),
        at("gone")
    );
    let devices = format!(
        "<hostdev mode='subsystem' type='pci'><source><address bus='0x07'/></source></hostdev>
         <filesystem type='mount'><source dir='/srv/data'/><target dir='data'/></filesystem>
         <memory model='nvdimm'><source><path>/nvdimm.img</path></source></memory>
         <pstore backend='acpi-erst'><path>{}</path></pstore>
         <interface type='bridge'><rom file='{}'/></interface>
         <tpm model='tpm-tis'><backend type='emulator'><encryption secret='5ec'/></backend></tpm>
         <channel",
        at("pstore"),
        at("rom")
    );
    let line = "<qemu:commandline xmlns:qemu='u'><qemu:arg value='-drive'/>
        <qemu:arg value='file=/extra.img'/></qemu:commandline></domain>";
    guest.redefine(&[("<type>hvm</type>", &os), ("<channel", &devices), ("</domain>", line)]);
    fs::create_dir_all(at("etc/qemu/autostart")).unwrap();
    std::os::unix::fs::symlink(at("etc/qemu/web.xml"), at("etc/qemu/autostart/web.xml")).unwrap();
    // Each night warned of the checkpoint that the night before had left.
    let own = "qdelta-20261129T021931.695Z-9f86d081";
    for (kind, name) in
        [("snapshot", "before-update"), ("checkpoint", "monday"), ("checkpoint", own)]
    {
        fs::create_dir_all(at(&format!("lib/qemu/{kind}/web"))).unwrap();
        fs::write(at(&format!("lib/qemu/{kind}/web/{name}.xml")), "<x/>").unwrap();
    }
    super::harness::images::qemu_img(args!["snapshot", "-c", "inside", guest.vda()]).ok();
    let point = host.web(&["--anchor", "snapshot"]);
    let missing = point["missing"].to_string();
    for word in [
        "0x07",
        "/srv/data",
        "/nvdimm.img",
        "file=/extra.img",
        "gone",
        "5ec",
        "before-update",
        "monday",
        "the snapshots in the image of vda (inside)",
    ] {
        assert!(missing.contains(word), "{word}: {missing}");
    }
    assert_eq!(point["missing"].as_array().unwrap().len(), 10, "{missing}");
    assert!(!missing.contains(own), "{missing}");
    assert!(point["warnings"].to_string().contains("/srv/data"), "what is missing is said");

    let to = host.lab.path("to");
    let report = restore(&host, &to, &["--json"]).ok().json();
    let text = fs::read_to_string(to.join("web.xml")).unwrap();
    let restored = |folder: &str, name: &str| {
        to.join(folder).join(host.lab.path(name).strip_prefix("/").unwrap())
    };
    for (folder, name) in
        [("boot", "kernel"), ("boot", "initrd"), ("boot", "rom"), ("state", "pstore")]
    {
        let path = restored(folder, name);
        assert_eq!(fs::read_to_string(&path).unwrap(), name);
        assert!(text.contains(path.to_str().unwrap()), "{name}: {text}");
        assert!(!text.contains(&format!(">{}<", at(name))), "{name}: {text}");
    }
    assert!(
        text.contains("/nvdimm.img") && text.contains("/extra.img") && text.contains("hostdev")
    );
    let commands: Vec<_> = report["commands"].as_array().unwrap().iter().collect();
    assert_eq!(commands[1..], ["virsh autostart web", "virsh start web"]);

    let to = host.lab.path("new");
    let report = restore(&host, &to, &["--rename", "new", "--json"]).ok().json();
    let text = fs::read_to_string(to.join("new.xml")).unwrap();
    for theirs in ["hostdev", "/srv/data", "/nvdimm.img", "/extra.img"] {
        assert!(!text.contains(theirs), "{theirs}: {text}");
    }
    assert!(!report["commands"].to_string().contains("autostart"), "{report}");
    let warnings = report["warnings"].to_string();
    for word in ["virsh autostart new", "/srv/data", "/nvdimm.img", "is web's"] {
        assert!(warnings.contains(word), "{word}: {warnings}");
    }
}

/// The memory that lasts of a guest was in no point.
#[test]
fn memory_that_lasts_is_in_the_point_of_a_stopped_guest() {
    let host = Host::new();
    let mut guest = Guest::define(&host, host.lab.dir());
    let file = host.lab.path("nv.img");
    fs::write(&file, "what lasts").unwrap();
    let memory = format!(
        "<memory model='nvdimm'><source><path>{}</path></source></memory><channel",
        file.display()
    );
    guest.redefine(&[("<channel", &memory)]);
    assert!(!host.web(&[])["missing"].to_string().contains("nv.img"));
    let to = host.lab.path("to");
    restore(&host, &to, &[]).ok();
    let there = to.join("state").join(file.strip_prefix("/").unwrap());
    assert_eq!(fs::read_to_string(&there).unwrap(), "what lasts");
    let text = fs::read_to_string(to.join("web.xml")).unwrap();
    assert!(text.contains(&format!("<path>{}</path>", there.display())), "{text}");

    // It writes to its memory at any moment, and no freeze keeps it from that.
    guest.start("running");
    let missing = host.web(&["--consistency", "freeze-copy"])["missing"].to_string();
    assert!(missing.contains("nv.img, while it runs: a point of the guest"), "{missing}");
    let to = host.lab.path("new");
    let report = restore(&host, &to, &["--rename", "new", "--json"]).ok().json();
    let text = fs::read_to_string(to.join("new.xml")).unwrap();
    assert!(!text.contains("nv.img") && !text.contains("<memory model"), "{text}");
    assert!(report["warnings"].to_string().contains("nv.img is web's"), "{report}");
}

/// A start would have resumed the old memory over the restored disks.
#[test]
fn memory_that_is_saved_has_to_go_first() {
    let (host, ..) = lost();
    let to = host.lab.path("to");
    host.save_memory();
    let report = restore(&host, &to, &["--json"]).ok().json();
    let commands: Vec<_> = report["commands"].as_array().unwrap().iter().collect();
    assert_eq!(commands[0], "virsh managedsave-remove web");
    assert!(report["warnings"].to_string().contains("web.save"), "{report}");
    // A guest of another name is none of its business.
    let report = restore(&host, &host.lab.path("new"), &["--rename", "new", "--json"]).ok().json();
    assert!(!report["commands"].to_string().contains("managedsave"), "{report}");
    // Its own disks are not replaced below its memory, not by force either.
    fs::copy(to.join("web.xml"), host.lab.path("etc/qemu/web.xml")).unwrap();
    let before = fs::read(to.join("web-vdb.raw")).unwrap();
    let said = restore(&host, &to, &["--force"]).fails_with(5);
    assert!(said.contains("virsh managedsave-remove web"), "{said}");
    assert!(fs::read(to.join("web-vdb.raw")).unwrap() == before);
}

/// The beginning of an id that is another point's for each disk.
#[test]
fn the_beginning_of_an_id_means_one_point_of_all_disks() {
    let host = Host::new();
    let _guest = Guest::define(&host, host.lab.dir());
    let first = host.web(&["--exclude", "vdb"])["point"].as_str().unwrap().to_owned();
    let second = host.web(&["--exclude", "vda"])["point"].as_str().unwrap().to_owned();
    let to = host.lab.path("to");
    let said = restore(&host, &to, &["--at", &first[..6]]).fails_with(2);
    assert!(said.contains(&first) && said.contains(&second), "{said}");
    restore(&host, &to, &["--at", &first]).ok();
}

#[test]
fn every_result_is_as_the_document_says() {
    let (host, _, first) = lost();
    let to = host.lab.path("to");
    let named = restore(&host, &to, &["--at", &first, "--rename", "old", "--json"]).ok().json();
    let all = restore(&host, &host.lab.path("all"), &["--json"]).ok().json();
    compare("restore of a guest", &[&named, &all], &[]);
}

/// `virsh define` takes no second guest of a name or a UUID: the commands that were left to do failed, and
/// nothing said why.
#[test]
fn a_guest_that_is_in_the_way_is_named() {
    let (host, ..) = lost();
    let definition = host.lab.path("etc/qemu/web.xml");
    let own = fs::read_to_string(&definition).unwrap();
    let other = own.replace(UUID, "c7a5fdbd-edaf-9455-926a-000000000099");
    let renamed = own.replace("<name>web</name>", "<name>srv</name>");
    let cases = [
        (Some(("web", own.as_str())), "virsh define gives it the restored disks"),
        (Some(("web", other.as_str())), "another guest is called web here"),
        (Some(("srv", renamed.as_str())), "the guest with this UUID is called srv here"),
        (None, ""),
    ];
    for (index, (guest, expected)) in cases.into_iter().enumerate() {
        fs::remove_file(&definition).ok();
        let guest = guest.map(|(name, xml)| {
            let path = host.lab.path(format!("etc/qemu/{name}.xml"));
            fs::write(&path, xml).unwrap();
            path
        });
        let to = host.lab.path(format!("to{index}"));
        let report = restore(&host, &to, &["--json"]).ok().json();
        let warnings = report["warnings"].to_string();
        match expected {
            "" => assert!(!warnings.contains("virsh define"), "{warnings}"),
            text => {
                assert!(warnings.contains(text) && warnings.contains("--rename"), "{warnings}");
                // With another name nothing is in its way.
                let to = host.lab.path(format!("beside{index}"));
                let words = ["--rename", "new", "--json"];
                let report = restore(&host, &to, &words).ok().json();
                let warnings = report["warnings"].to_string();
                assert!(!warnings.contains("virsh define"), "{warnings}");
            }
        }
        guest.map(fs::remove_file).transpose().unwrap();
    }
}

/// What a guest is restored to must not be a folder in memory.
#[test]
fn a_guest_is_not_restored_among_devices() {
    let (host, ..) = lost();
    for to in ["/dev/qdelta-guest", "/proc/qdelta-guest"] {
        restore(&host, Path::new(to), &[]).fails_with(2);
        assert!(!Path::new(to).exists());
    }
}

/// A definition that names one file in two ways made a point that could be restored as no machine; and a path with `..`
/// in it was still named in the restored definition.
#[test]
fn a_file_that_is_named_twice_is_restored_once() {
    let host = Host::new();
    let guest = Guest::define(&host, host.lab.dir());
    let folder = host.lab.dir().display().to_string();
    fs::create_dir(host.lab.path("img")).unwrap();
    fs::write(host.lab.path("vmlinuz"), "a kernel").unwrap();
    let named = format!(
        "<type>hvm</type><kernel>{folder}/img/../vmlinuz</kernel><initrd>{folder}//vmlinuz</initrd>"
    );
    guest.redefine(&[("<type>hvm</type>", &named)]);
    let report = host.web(&[]);
    assert_eq!(report["missing"].as_array().unwrap().len(), 0, "{report}");
    let to = host.lab.path("to");
    restore(&host, &to, &[]).ok();
    let path = host.lab.path("vmlinuz");
    let restored = to.join("boot").join(path.strip_prefix("/").unwrap());
    assert_eq!(fs::read_to_string(&restored).unwrap(), "a kernel");
    let xml = fs::read_to_string(to.join("web.xml")).unwrap();
    for place in ["kernel", "initrd"] {
        assert!(xml.contains(&format!("<{place}>{}</{place}>", restored.display())), "{xml}");
    }
}

/// Variables of an earlier firmware, which lay beside the guest's own, took their place in the restored definition.
#[test]
fn the_variables_are_those_of_the_guests_firmware() {
    let host = Host::new();
    let guest = Guest::define(&host, host.lab.dir());
    let folder = host.lab.path("lib/qemu");
    for (file, text) in [
        ("nvram/web_VARS.fd", "old"),
        ("nvram/web_VARS.qcow2", "qcow2"),
        ("varstore/web.json", "json"),
    ] {
        fs::create_dir_all(folder.join(file).parent().unwrap()).unwrap();
        fs::write(folder.join(file), text).unwrap();
    }
    let nvram = format!("<nvram>{}</nvram>", guest.nvram().display());
    for (index, (os, name, text, kept)) in [
        ("<varstore template='/t'/>", "web_VARS.json", "json", "template='/t'"),
        (
            "<nvram format='qcow2' template='/t' templateFormat='raw'/>",
            "web_VARS.qcow2",
            "qcow2",
            "<nvram format='qcow2' template='/t' templateFormat='raw'>",
        ),
        ("<nvram template='/t'/>", "web_VARS.fd", "old", "<nvram template='/t'>"),
    ]
    .into_iter()
    .enumerate()
    {
        guest.redefine(&[("<os>", "<os firmware='efi'>"), (&nvram, os)]);
        host.web(&[]);
        let to = host.lab.path(index.to_string());
        restore(&host, &to, &[]).ok();
        assert_eq!(fs::read_to_string(to.join(name)).unwrap(), text);
        let xml = fs::read_to_string(to.join("web.xml")).unwrap();
        assert!(xml.contains(to.join(name).to_str().unwrap()) && xml.contains(kept), "{xml}");
    }
}
