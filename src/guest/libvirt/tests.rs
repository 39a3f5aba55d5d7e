//! XML as libvirt's documentation describes it, and XML that means harm.

use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::disk::image::Format;

const UUID: &str = "c7a5fdbd-edaf-9455-926a-d65c16db1809";

/// A domain with one of everything.
const WEB: &str = r#"<!--
WARNING: THIS IS AN AUTO-GENERATED FILE. CHANGES TO IT ARE LIKELY TO BE LOST.
-->
<domain type='kvm'>
  <name>web</name>
  <uuid>c7a5fdbd-edaf-9455-926a-d65c16db1809</uuid>
  <metadata>
    <libosinfo:libosinfo xmlns:libosinfo="http://libosinfo.org/xmlns/libvirt/domain/1.0">
      <libosinfo:os id="http://microsoft.com/win/2k22"/>
    </libosinfo:libosinfo>
  </metadata>
  <sysinfo type='smbios'>
    <system><entry name='uuid'>c7a5fdbd-edaf-9455-926a-d65c16db1809</entry></system>
  </sysinfo>
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader>
    <nvram template='/usr/share/OVMF/OVMF_VARS.fd'>/var/lib/libvirt/qemu/nvram/web_VARS.fd</nvram>
  </os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none'/>
      <source file='/images/a &amp; b.qcow2' index='1'>
        <dataStore type='file'><format type='raw'/><source file='/data/a.raw'/></dataStore>
      </source>
      <backingStore type='file'>
        <format type='qcow2'/><source file='/bases/one.qcow2'/>
        <backingStore type='file'>
          <format type='raw'/><source file='/bases/two.raw'/><backingStore/>
        </backingStore>
      </backingStore>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='block' device='disk'>
      <driver name='qemu' type='raw'/><source dev='/dev/vg/web'/><target dev='vdb' bus='virtio'/>
    </disk>
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw'/><source protocol='rbd' name='pool/image'/><target dev='vdc'/>
    </disk>
    <disk type='volume' device='disk'>
      <driver name='qemu' type='raw'/><source pool='p' volume='v'/><target dev='vdd'/>
    </disk>
    <disk type='file' device='disk'><target dev='vde'/></disk>
    <disk type='file' device='disk'><source file='/images/ro'/><target dev='vdf'/><readonly/></disk>
    <disk type='file' device='disk'><source file='/images/t'/><target dev='vdg'/><transient/></disk>
    <disk type='file' device='cdrom'><target dev='sda'/><readonly/></disk>
    <disk type='file' device='floppy'><source file='/images/f'/><target dev='fda'/></disk>
    <disk type='block' device='lun'><source dev='/dev/sg0'/><target dev='sdb'/></disk>
    <disk><driver type='vmdk'/><source file='/images/v'/><target dev='vdh'/></disk>
    <disk><source file='/images/plain'/><target dev='vdi'/></disk>
    <disk>
      <driver type='raw'/>
      <source file='/images/l'><encryption format='luks'/></source><target dev='vdj'/>
    </disk>
    <interface type='network'><mac address='52:54:00:11:22:33'/><source network='default'/></interface>
    <interface type='network'><mac address='52:54:00:11:22:44'/></interface>
    <channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>
  </devices>
</domain>
"#;

/// The same domain while it runs.
fn live(state: &str) -> String {
    let start = WEB.find("<domain ").unwrap();
    let domain = WEB[start..]
        .replace("name='org.qemu", "state='connected' name='org.qemu")
        .replace("<domain type='kvm'>", "<domain type='kvm' id='3'>");
    format!(
        "<domstatus state='{state}' reason='booted' pid='4711'><taint flag='x'/>{domain}</domstatus>"
    )
}

fn choice(target: &str) -> Choice {
    let domain = parse(WEB).unwrap();
    let disk = domain.disks.iter().find(|disk| disk.target == target).unwrap();
    decide(disk, &[])
}

/// A chain as the XML describes it: paths, qcow2 unless they begin with `raw:`.
fn chain(data_file: Option<&str>, below: &[&str], is_whole: bool) -> Links {
    let link = |path: &&str| {
        let (path, format) = path.strip_prefix("raw:").map_or((*path, "qcow2"), |it| (it, "raw"));
        Link { path: path.into(), format, data_file: None }
    };
    Links {
        data_file: data_file.map(PathBuf::from),
        below: below.iter().map(link).collect(),
        is_whole,
    }
}

/// The first disk of a domain with this XML beside its `<source>`.
fn disk_with(more: &str) -> Disk {
    let text = format!(
        "<domain><name>x</name><devices><disk type='file'><driver type='qcow2'/>
         <source file='/top'/><target dev='vda'/>{more}</disk></devices></domain>"
    );
    parse(&text).unwrap().disks.remove(0)
}

/// Headers were followed where the definition said otherwise, and bytes were proved that no guest saw.
#[test]
fn the_backing_chain_is_what_the_definition_says() {
    let store = |kind: &str, source: &str, more: &str| {
        format!(
            "<backingStore type='{kind}' index='2'><format type='qcow2'/><source {source}/>{more}</backingStore>"
        )
    };
    let file = |path: &str, more: &str| store("file", &format!("file='{path}' index='2'"), more);
    let data = "<backingStore type='file'><format type='qcow2'/><source file='/a'><dataStore type='file'>\
                <format type='raw'/><source file='/d'/></dataStore></source></backingStore>";
    let mirror = "<mirror type='file' job='copy'><format type='qcow2'/><source file='/m'/>\
                  <backingStore type='file'><format type='raw'/><source file='/n'/></backingStore></mirror>";
    let mut with_data = chain(None, &["/a"], false);
    with_data.below[0].data_file = Some("/d".into());
    for (more, links) in [
        (String::new(), chain(None, &[], false)),
        ("<backingStore/>".into(), chain(None, &[], true)),
        (file("/a", ""), chain(None, &["/a"], false)),
        (file("/a", "<backingStore/>"), chain(None, &["/a"], true)),
        (file("/a", &file("/b", &file("/c", ""))), chain(None, &["/a", "/b", "/c"], false)),
        (file("/a", "").replace("qcow2", "raw"), chain(None, &["raw:/a"], false)),
        (store("block", "dev='/dev/vg/a'", ""), chain(None, &["/dev/vg/a"], false)),
        (data.into(), with_data),
        (mirror.into(), chain(None, &[], false)),
    ] {
        let disk = disk_with(&more);
        assert_eq!(disk.chain.links(), Ok(links), "{more}");
        assert!(matches!(decide(&disk, &[]), Choice::Take { .. }), "{more}");
    }
    let mirrored = disk_with(mirror);
    let named: Vec<_> = mirrored.other_sources().filter_map(StorageSource::path).collect();
    assert_eq!(named, ["/m", "/n"].map(Path::new));
    for (more, why) in [
        (store("network", "protocol='nbd' name='x'", ""), "lies on a server (protocol nbd)"),
        (store("volume", "pool='p' volume='v'", ""), "volume \"v\" of the storage pool \"p\""),
        (store("nvme", "type='pci'", ""), "of type \"nvme\""),
        (store("file", "", ""), "has no name"),
        (file("a", ""), "relative path a"),
        (file("/a", &file("/b", "").replace("qcow2", "vmdk")), "/b has the format \"vmdk\""),
        (file("/a", "").replace("<format type='qcow2'/>", ""), "/a has no format"),
        (file("/a", "<encryption format='luks'/>"), "/a: QEMU encrypts it"),
    ] {
        let disk = disk_with(&more);
        let Choice::Refuse(reason) = decide(&disk, &[]) else { panic!("{more}") };
        assert!(reason.0.contains(why), "{more}: {reason}");
        // A raw image has nothing below it.
        let raw = Disk { format: Some("raw".to_owned()), ..disk };
        assert!(matches!(decide(&raw, &[]), Choice::Take { .. }), "{more}");
    }
    // More than libvirt starts a guest with: known all the same, or nothing could be said of the others.
    let end = "<backingStore/>".to_owned();
    let deep = (0..250).fold(end, |inner, number| file(&format!("/{number}"), &inner));
    assert_eq!(disk_with(&deep).chain.below.len(), 250);
}

#[test]
fn volumes_are_found_by_the_files_of_their_pools() {
    let (_dir, libvirt) = lab();
    for folder in [&libvirt.config, &libvirt.run] {
        fs::create_dir_all(folder.join("storage")).unwrap();
    }
    let pool = |kind: &str, rest: &str| format!("<pool type='{kind}'><name>p</name>{rest}</pool>");
    let target = "<target><path>/images</path></target>";
    let file = |path: &str| Ok(StorageSource::File(path.into()));
    let block = |path: &str| Ok(StorageSource::Block(path.into()));
    let unknown = |why: &'static str| Err(why);
    let xml = WEB.replace("<source pool='p' volume='v'/>", "<source pool='p' volume='v.img'/>");
    fs::write(libvirt.config.join("qemu/web.xml"), &xml).unwrap();
    let found = || {
        let disks = libvirt.find("web").unwrap().domain.disks;
        disks.into_iter().find(|disk| disk.target == "vdd").unwrap()
    };
    let own = libvirt.config.join("storage/p.xml");
    for (text, expected) in [
        (pool("dir", target), file("/images/v.img")),
        (pool("fs", target), file("/images/v.img")),
        (pool("netfs", target), file("/images/v.img")),
        (pool("logical", "<target><path>/dev/vg</path></target>"), block("/dev/vg/v.img")),
        (pool("logical", "<source><name>vg</name></source>"), block("/dev/vg/v.img")),
        (pool("disk", "<target><path>/dev</path></target>"), block("/dev/v.img")),
        (
            pool("rbd", "<source><name>x</name></source>"),
            Ok(StorageSource::Network("rbd".to_owned())),
        ),
        (pool("zfs", target), unknown("has the type \"zfs\"")),
        (pool("dir", ""), unknown("no target")),
        (
            pool("dir", "<target><path>images</path></target>"),
            unknown("no target with an absolute"),
        ),
        (pool("dir", target).replace(">p<", ">q<"), unknown("describes another pool")),
        ("<pool".to_owned(), unknown("no well-formed XML")),
        ("<network/>".to_owned(), unknown("is no pool's XML")),
    ] {
        fs::write(&own, &text).unwrap();
        let disk = found();
        match expected {
            Ok(source) => assert_eq!(disk.source, source, "{text}"),
            Err(expected) => {
                let Choice::Refuse(reason) = decide(&disk, &[]) else { panic!("{text}") };
                assert!(reason.0.contains(expected), "{text}: {reason}");
                assert!(reason.0.contains("p.xml"), "{text}: {reason}");
            }
        }
    }
    // What is active counts.
    fs::write(&own, pool("dir", target)).unwrap();
    let active =
        format!("<poolstate>{}</poolstate>", pool("dir", "<target><path>/now</path></target>"));
    fs::write(libvirt.run.join("storage/p.xml"), active).unwrap();
    assert_eq!(Ok(found().source), file("/now/v.img"));
    fs::remove_file(libvirt.run.join("storage/p.xml")).unwrap();
    fs::remove_file(&own).unwrap();
    let Choice::Refuse(reason) = decide(&found(), &[]) else { panic!() };
    assert!(reason.0.contains("there is no p.xml in"), "{reason}");
    // No name leads out of the folders.
    fs::write(&own, pool("dir", target)).unwrap();
    for (pool, volume) in [("../p", "v"), ("p", "../v"), ("p", ".."), ("p", ""), ("", "v")] {
        let source = format!("<source pool='{pool}' volume='{volume}'/>");
        let xml = WEB.replace("<source pool='p' volume='v'/>", &source);
        fs::write(libvirt.config.join("qemu/web.xml"), xml).unwrap();
        assert!(matches!(found().source, StorageSource::Volume { .. }), "{pool} {volume}");
    }
    // Also below an image.
    let below = "<format type='raw'/><source file='/bases/two.raw'/>";
    let volume = "<format type='raw'/><source pool='p' volume='two.raw'/>";
    let xml = WEB.replace(below, volume);
    let xml = xml.replace(
        "<backingStore type='file'>\n          <format type='raw'/>",
        "<backingStore type='volume'>\n          <format type='raw'/>",
    );
    fs::write(libvirt.config.join("qemu/web.xml"), xml).unwrap();
    let disk = libvirt.find("web").unwrap().domain.disks.remove(0);
    assert_eq!(disk.chain.below[1].source, StorageSource::File("/images/two.raw".into()));
}

#[test]
fn a_domain_is_what_its_file_says() {
    let domain = parse(WEB).unwrap();
    assert_eq!((domain.name.as_str(), domain.handle()), ("web", UUID));
    assert_eq!(domain.os.as_deref(), Some("http://microsoft.com/win/2k22"));
    assert_eq!(domain.disks.len(), 13);
    assert_eq!(domain.agent, Agent::Channel);
    assert_eq!((domain.state, domain.pid), (None, None));
    let nvram = domain.nvram.as_ref().unwrap();
    assert_eq!(nvram.source, StorageSource::File("/var/lib/libvirt/qemu/nvram/web_VARS.fd".into()));
    assert_eq!(nvram.format, "raw");
    let links = domain.disks[0].chain.links().unwrap();
    assert_eq!(
        links,
        chain(Some("/data/a.raw"), &["/bases/one.qcow2", "raw:/bases/two.raw"], true)
    );
    let others: Vec<_> = domain.disks[0].other_sources().filter_map(StorageSource::path).collect();
    assert_eq!(others, ["/bases/one.qcow2", "/bases/two.raw", "/data/a.raw"].map(Path::new));
    let folder = Libvirt::default().tpm_place(&domain, domain.tpm.as_ref().unwrap()).unwrap();
    assert_eq!(folder, Path::new("/var/lib/libvirt/swtpm").join(UUID).join("tpm2"));
}

#[test]
fn a_running_domain_says_what_it_does() {
    for (word, state) in [
        ("running", State::Running),
        ("blocked", State::Running),
        ("shutdown", State::Running),
        ("paused", State::Paused),
        ("pmsuspended", State::Paused),
        ("shutoff", State::Off),
    ] {
        let domain = parse(&live(word)).unwrap();
        assert_eq!(domain.state, Some(state), "{word}");
        assert_eq!((domain.pid, domain.agent), (Some(4711), Agent::Connected));
        assert_eq!(domain.disks.len(), 13);
    }
}

#[test]
fn every_disk_gets_a_decision_with_its_reason() {
    let take = |image: &str, format, block| Choice::Take { image: image.into(), format, block };
    assert_eq!(choice("vda"), take("/images/a & b.qcow2", Format::Qcow2, false));
    assert_eq!(choice("vdb"), take("/dev/vg/web", Format::Raw, true));
    // The format is never guessed from the image, which the guest may have written.
    assert_eq!(choice("vdi"), take("/images/plain", Format::Raw, false));
    for (target, why) in
        [("vdf", "read-only"), ("vdg", "transient"), ("sda", "CD-ROM"), ("fda", "floppy")]
    {
        let Choice::LeaveOut(reason) = choice(target) else { panic!("{target}") };
        assert!(reason.0.contains(why), "{target} {reason}");
    }
    for (target, why) in [
        ("vdc", "protocol rbd"),
        ("vdd", "volume \"v\" of the storage pool \"p\""),
        ("vde", "no source"),
        ("sdb", "passed through"),
        ("vdh", "vmdk"),
        ("vdj", "encrypts"),
    ] {
        let Choice::Refuse(reason) = choice(target) else { panic!("{target}") };
        assert!(reason.0.contains(why), "{target} {reason}");
    }
    let domain = parse(WEB).unwrap();
    for disk in &domain.disks {
        let excluded = decide(disk, std::slice::from_ref(&disk.target));
        assert_eq!(excluded, Choice::LeaveOut(Reason("was excluded".to_owned())));
    }
}

fn restored(target: &str, path: &str, format: &'static str) -> RestoredDisk {
    let target = target.to_owned();
    RestoredDisk { target, path: path.into(), block: false, format, served: None }
}

#[test]
fn a_restored_domain_differs_in_what_was_asked_for_alone() {
    let start = WEB.find("<domain ").unwrap();
    let same = rewrite(WEB, &Changes::default()).unwrap();
    assert_eq!(same, WEB[start..]);
    let uuid = "11111111-2222-4333-8444-555555555555";
    let changes = Changes {
        name: Some("new <&> name".to_owned()),
        uuid: Some(uuid.to_owned()),
        macs: Some(vec!["52:54:00:aa:bb:cc".to_owned()]),
        disks: vec![
            restored("vda", "/to/it's.qcow2", "qcow2"),
            restored("vdb", "/to/b.qcow2", "qcow2"),
            restored("vdi", "/to/i.raw", "raw"),
        ],
        nvram: Place::At("/to/VARS.fd".into()),
        ..Changes::default()
    };
    for text in [WEB.to_owned(), live("running")] {
        let new = rewrite(&text, &changes).unwrap();
        let domain = parse(&new).unwrap();
        assert_eq!((domain.name.as_str(), domain.handle()), ("new <&> name", uuid));
        assert_eq!(new.matches(uuid).count(), 2, "firmware tables repeat it");
        assert!(!new.contains(UUID) && new.contains("52:54:00:aa:bb:cc"));
        assert!(!new.contains("52:54:00:11:22") && !new.contains("domstatus"));
        assert_eq!(domain.nvram.unwrap().source, StorageSource::File("/to/VARS.fd".into()));
        let take = |image: &str, format| Choice::Take { image: image.into(), format, block: false };
        assert_eq!(decide(&domain.disks[0], &[]), take("/to/it's.qcow2", Format::Qcow2));
        assert_eq!(domain.disks[0].chain, Chain::default());
        assert_eq!(decide(&domain.disks[1], &[]), take("/to/b.qcow2", Format::Qcow2));
        assert_eq!(decide(&domain.disks[11], &[]), take("/to/i.raw", Format::Raw));
        // What was not restored is as it was.
        assert_eq!(domain.disks[2], parse(WEB).unwrap().disks[2]);
        assert!(new.contains("template='/usr/share/OVMF/OVMF_VARS.fd'"));
    }
}

/// The disk reads the served one below the overlay, whatever was below it before, and a lost server stops the
/// guest in the place of telling it of a bad disk.
#[test]
fn an_overlay_names_the_served_disk_below_it() {
    let served = Served { export: "it's/vda@P".to_owned(), socket: "/run/a&b.sock".into() };
    let mut disk = restored("vda", "/to/vda.qcow2", "qcow2");
    disk.served = Some(served);
    let plain = "<domain type='kvm'><name>w</name><devices>DISK</devices></domain>";
    let driver = "<driver name='qemu' type='raw' error_policy='report' cache='none'/>";
    let old = "<backingStore type='file'><source file='/b'/><format type='raw'/></backingStore>";
    for driver in [driver, "<driver name='qemu'/>", ""] {
        let xml = plain.replace(
            "DISK",
            &format!(
                "<disk type='block' device='disk'>{driver}<source dev='/dev/x'/>{old}<target \
                 dev='vda' bus='virtio'/></disk>"
            ),
        );
        let changes = Changes { disks: vec![disk.clone()], ..Changes::default() };
        let new = rewrite(&xml, &changes).unwrap();
        let now = &parse(&new).unwrap().disks[0];
        assert_eq!(now.source, StorageSource::File("/to/vda.qcow2".into()));
        assert_eq!(now.format.as_deref(), Some("qcow2"));
        assert!(now.chain.is_whole && now.chain.below.len() == 1, "{new}");
        assert_eq!(now.chain.below[0].source, StorageSource::Network("nbd".to_owned()));
        assert_eq!(now.chain.below[0].format.as_deref(), Some("raw"));
        assert_eq!(new.matches(" error_policy='stop'").count(), 1, "{new}");
        assert_eq!(new.matches(" rerror_policy='stop'").count(), 1, "{new}");
        assert!(
            new.contains("name='it&apos;s/vda@P'") && new.contains("socket='/run/a&amp;b.sock'")
        );
        assert!(!new.contains("report") && !new.contains("/dev/x") && !new.contains("'/b'"));
    }
}

/// A second guest with the network disk of the first would have destroyed it, and one that was
/// restored must learn that by its generation id.
#[test]
fn a_disk_can_be_left_out_and_the_generation_is_another() {
    let old = "<genid>43dc0cf8-809b-4adb-9bea-a9abb5f3d90e</genid>";
    let text = WEB.replacen("<devices>", &format!("{old}<devices>"), 1);
    let changes = Changes {
        genid: Some("11111111-2222-4333-8444-555555555555".to_owned()),
        dropped: vec!["vdc".to_owned()],
        ..Changes::default()
    };
    let new = rewrite(&text, &changes).unwrap();
    assert!(new.contains("<genid>11111111-2222-4333-8444-555555555555</genid>"));
    assert!(!new.contains(old));
    let (before, domain) = (parse(WEB).unwrap(), parse(&new).unwrap());
    assert_eq!(domain.disks.len() + 1, before.disks.len());
    assert!(domain.disks.iter().all(|disk| disk.target != "vdc"));
}

/// A second guest that had the variables or the TPM of the first would have written to them, too.
#[test]
fn state_beside_the_disks_goes_elsewhere_or_is_made_anew() {
    let nvram = "/var/lib/libvirt/qemu/nvram/web_VARS.fd</nvram>";
    let block = "<source dev='/dev/vg/vars'/></nvram>";
    let tpm =
        "<backend type='emulator' version='2.0'><source type='dir' path='/tpm/web'/></backend>";
    let plain = "<backend type='emulator' version='2.0'/>";
    let text = WEB.replace(nvram, block).replace("<nvram ", "<nvram type='block' ");
    let text = text.replace(plain, tpm);
    let domain = parse(&text).unwrap();
    assert_eq!(domain.nvram.unwrap().source, StorageSource::Block("/dev/vg/vars".into()));
    let own = domain.tpm.unwrap();
    assert_eq!(own.path.as_deref(), Some(Path::new("/tpm/web")));
    let start = text.find("<domain ").unwrap();
    assert_eq!(rewrite(&text, &Changes::default()).unwrap(), text[start..]);
    let changes = Changes { nvram: Place::New, tpm: Place::New, ..Changes::default() };
    let new = rewrite(&text, &changes).unwrap();
    assert!(new.contains("<nvram template='/usr/share/OVMF/OVMF_VARS.fd'/>"), "{new}");
    let domain = parse(&new).unwrap();
    assert_eq!(domain.nvram.unwrap().source, StorageSource::Nothing);
    assert_eq!(domain.tpm.unwrap().path, None);
    let changes = Changes { tpm: Place::At("/to/tpm".into()), ..Changes::default() };
    let domain = parse(&rewrite(&text, &changes).unwrap()).unwrap();
    assert_eq!(domain.tpm.unwrap().path.as_deref(), Some(Path::new("/to/tpm")));
    // One that libvirt finds by the UUID has no path to be changed.
    assert_eq!(parse(&rewrite(WEB, &changes).unwrap()).unwrap().tpm.unwrap().path, None);
    let bare = WEB.replace(" template='/usr/share/OVMF/OVMF_VARS.fd'", "");
    let changes = Changes { nvram: Place::New, ..Changes::default() };
    assert_eq!(parse(&rewrite(&bare, &changes).unwrap()).unwrap().nvram, None);
}

#[test]
fn a_guest_whose_memory_is_saved_is_known() {
    let (_dir, libvirt) = lab();
    assert_eq!(libvirt.managed_save("web"), None);
    let saved = libvirt.state.join("qemu/save/web.save");
    fs::create_dir_all(saved.parent().unwrap()).unwrap();
    assert_eq!(libvirt.managed_save("web"), None);
    fs::write(&saved, "memory").unwrap();
    assert_eq!(libvirt.managed_save("web"), Some(saved));
    assert_eq!(libvirt.managed_save("../save/web"), None);
}

#[test]
fn hostile_xml_is_an_error() {
    let deep = format!("{}{}", "<a>".repeat(150_000), "</a>".repeat(150_000));
    let many = format!("<domain>{}</domain>", "<a/>".repeat(250_000));
    let disks = "<disk><target dev='a'/></disk>".repeat(5000);
    let spaces = "<a xmlns:a='b'>".repeat(5000);
    let entities = r#"<!DOCTYPE d [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><domain>&b;</domain>"#;
    for text in [
        "",
        "<",
        "<domain>",
        "<domain/>",
        "<network><name>x</name></network>",
        "<domstatus state='running'/>",
        "<domain><name> </name></domain>",
        "<domain><name>x</name><devices><disk/></devices></domain>",
        &format!("<domain><name>x</name><devices>{disks}</devices></domain>"),
        entities,
        &format!("<domain><name>x</name>{}</domain>", " ".repeat(5 << 20)),
        &deep,
        &many,
        &spaces,
    ] {
        let shown: String = text.chars().take(60).collect();
        let error = parse(text).expect_err(&shown);
        assert_eq!(error.kind(), ErrorKind::Image, "{shown}");
    }
}

/// Every beginning of a file and every byte of it changed: an answer or an error, never a panic.
#[test]
fn damaged_xml_does_no_harm() {
    for end in (0..WEB.len()).step_by(7) {
        let _ = WEB.get(..end).map(parse);
    }
    for index in (0..WEB.len()).step_by(3) {
        for byte in [b'<', b'>', b'&', b'\'', b'/', 0] {
            let mut bytes = WEB.as_bytes().to_vec();
            bytes[index] = byte;
            if let Ok(text) = std::str::from_utf8(&bytes) {
                let _ = parse(text).map(|domain| {
                    domain.disks.iter().map(|disk| decide(disk, &[])).collect::<Vec<_>>()
                });
                let _ = rewrite(text, &Changes { uuid: Some(UUID.into()), ..Changes::default() });
            }
        }
    }
}

fn lab() -> (tempfile::TempDir, Libvirt) {
    let dir = tempfile::tempdir().unwrap();
    let libvirt = Libvirt {
        config: dir.path().join("etc"),
        run: dir.path().join("run"),
        state: dir.path().join("lib"),
        session: false,
    };
    fs::create_dir_all(libvirt.config.join("qemu/networks")).unwrap();
    fs::create_dir_all(libvirt.run.join("qemu")).unwrap();
    (dir, libvirt)
}

#[test]
fn domains_are_found_in_both_folders() {
    let (_dir, libvirt) = lab();
    let (defined, running) =
        (libvirt.config.join("qemu/web.xml"), libvirt.run.join("qemu/web.xml"));
    assert_eq!(libvirt.find("web").unwrap_err().kind(), ErrorKind::NotFound);
    fs::write(&defined, WEB).unwrap();
    let found = libvirt.find("web").unwrap();
    assert_eq!((found.domain.state, found.live), (None, None));
    fs::write(&running, live("paused")).unwrap();
    let found = libvirt.find("web").unwrap();
    assert!(found.domain.is_paused() && found.persistent.is_some() && found.live.is_some());
    fs::write(&running, live("shutoff")).unwrap();
    assert_eq!(libvirt.find("web").unwrap().live, None);
    // A transient domain has one file only.
    fs::write(&running, live("running")).unwrap();
    fs::remove_file(&defined).unwrap();
    assert_eq!(libvirt.find("web").unwrap().persistent, None);
    fs::write(libvirt.config.join("qemu/db.xml"), "").unwrap();
    fs::write(libvirt.config.join("qemu/.hidden.xml"), "").unwrap();
    fs::write(libvirt.run.join("qemu/web.pid"), "").unwrap();
    // A name may begin with a dot: such a guest was none, and in no backup of all.
    assert_eq!(libvirt.list().unwrap().names, [".hidden", "db", "web"]);
    // Nothing is listed where there is no folder, and no name leads out of it.
    let nowhere = Libvirt { config: "/nonexistent".into(), run: "/nonexistent".into(), ..libvirt };
    assert!(nowhere.list().unwrap().names.is_empty());
    for name in ["", "../web", "a/b", "a\0b"] {
        assert_eq!(nowhere.find(name).unwrap_err().kind(), ErrorKind::Usage, "{name:?}");
    }
}

#[test]
fn a_file_of_libvirt_that_is_not_what_it_should_be_is_named() {
    let (_dir, libvirt) = lab();
    let path = libvirt.config.join("qemu/db.xml");
    fs::write(&path, WEB).unwrap();
    let error = libvirt.find("db").unwrap_err();
    assert!(error.chain().contains("db.xml") && error.chain().contains("\"web\""), "{error:?}");
    fs::write(&path, vec![b' '; 5 << 20]).unwrap();
    assert!(libvirt.find("db").unwrap_err().chain().contains("longer than"));
    fs::write(&path, b"\xff").unwrap();
    assert!(libvirt.find("db").unwrap_err().chain().contains("utf-8"));
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(libvirt.find("db").unwrap_err().chain().contains("regular file"));
}

/// A user's own libvirt has the same files in other places.
#[test]
fn a_session_has_its_own_places() {
    for (uri, expected) in [
        ("qemu:///session", true),
        ("qemu:///session?socket=/x", true),
        ("qemu:///system", false),
        ("qemu+ssh://host/session", false),
        ("session", false),
    ] {
        assert_eq!(is_session(uri), expected, "{uri}");
    }
    let dir = tempfile::tempdir().unwrap();
    let (config, runtime) = (dir.path().join(".config"), dir.path().join("run"));
    let libvirt = Libvirt::of_session(&config, &runtime);
    let files = [
        (config.join("libvirt/qemu/web.xml"), WEB.to_owned()),
        (runtime.join("libvirt/qemu/run/web.xml"), live("running")),
        (config.join("libvirt/qemu/save/web.save"), String::new()),
    ];
    for (path, text) in &files {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let found = libvirt.find("web").unwrap();
    assert_eq!(found.live.unwrap().path, files[1].0);
    assert_eq!(libvirt.managed_save("web"), Some(files[2].0.clone()));
    assert_eq!(libvirt.list().unwrap().names, ["web"]);
    let error = libvirt.find("db").unwrap_err();
    assert!(error.advice().unwrap().contains("virsh --connect qemu:///session list"), "{error:?}");
}
