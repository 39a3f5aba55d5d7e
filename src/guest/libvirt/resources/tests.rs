//! Everything of the host that libvirt's domain format can name, by its schema (`domaincommon.rng` of
//! libvirt 9.0, and what later versions have added): each is taken, missing, or harmless for a reason.

use std::path::Path;

use super::*;
use crate::guest::libvirt::{Changes, Place, parse, rewrite};

/// What is to become of it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Is {
    Taken,
    Missing,
    Harmless,
    /// It is nothing that is listed: it stands inside of what is.
    Nothing,
}
use Is::{Harmless, Missing, Nothing, Taken};

/// Everything that stands in `<os>`.
const OS: &[(&str, Is)] = &[
    ("<kernel>/k</kernel>", Taken),
    ("<initrd>/i</initrd>", Taken),
    ("<dtb>/d</dtb>", Taken),
    ("<shim>/s</shim>", Taken),
    ("<acpi><table type='slic'>/t</table></acpi>", Taken),
    ("<acpi><table type='rawset'>/t</table></acpi>", Taken),
    ("<loader readonly='yes' type='pflash'>/var/CODE.fd</loader><nvram>/v</nvram>", Taken),
    ("<loader readonly='yes' type='pflash'>/usr/share/OVMF/CODE.fd</loader>", Harmless),
    ("<loader readonly='no' type='pflash'>/usr/share/OVMF/CODE.fd</loader>", Taken),
    (
        "<loader readonly='yes' secure='yes' type='pflash'>/usr/share/OVMF/CODE.fd</loader>",
        Harmless,
    ),
    ("<loader type='rom'>/usr/share/seabios/bios.bin</loader>", Harmless),
    ("<loader readonly='yes' type='pflash'>/usr/local/share/CODE.fd</loader>", Taken),
    ("<kernel>/usr/lib/guests/vmlinuz</kernel>", Taken),
    ("<acpi><table type='slic'>/usr/share/seabios/slic.bin</table></acpi>", Taken),
    ("<nvram>/v</nvram>", Taken),
    ("<nvram template='/t'/>", Harmless),
    ("<nvram type='file'><source file='/v'/></nvram>", Taken),
    ("<nvram type='block'><source dev='/dev/v'/></nvram>", Taken),
    ("<varstore path='/v.json'/>", Taken),
    ("<varstore template='/t.json'/>", Harmless),
    ("<init>/sbin/init</init>", Harmless),
    ("<initdir>/home</initdir>", Harmless),
    ("<root>/dev/vda</root>", Harmless),
    ("<cmdline>/x</cmdline>", Harmless),
    ("<smbios mode='host'/>", Nothing),
];

/// Everything that stands in `<domain>`.
const DOMAIN: &[(&str, Is)] = &[
    ("<bootloader>/usr/bin/pygrub</bootloader>", Missing),
    ("<title>/x</title>", Harmless),
    ("<description>/x</description>", Harmless),
    ("<metadata><x path='/x'>/y</x></metadata>", Nothing),
    ("<resource><partition>/machine</partition></resource>", Harmless),
    ("<blkiotune><device><path>/dev/sda</path><weight>5</weight></device></blkiotune>", Harmless),
    ("<sysinfo type='fwcfg'><entry name='opt/x' file='/blob'/></sysinfo>", Taken),
    ("<seclabel type='static'><label>/x</label></seclabel>", Harmless),
    (
        "<launchSecurity type='sev'><dhCert>AAA</dhCert><session>/AAA</session></launchSecurity>",
        Harmless,
    ),
    (
        "<launchSecurity type='tdx'><quoteGenerationService path='/run/q.socket'/></launchSecurity>",
        Harmless,
    ),
    ("<memoryBacking><hugepages/><source type='file'/></memoryBacking>", Nothing),
    (
        "<q:commandline xmlns:q='u'><q:arg value='-drive'/><q:arg value='file=/d,if=none'/></q:commandline>",
        Missing,
    ),
    (
        "<q:commandline xmlns:q='u'><q:arg value='-drive'/><q:arg value='file=nbd://h/x'/></q:commandline>",
        Missing,
    ),
    (
        "<q:commandline xmlns:q='u'><q:arg value='-blockdev'/><q:arg value='driver=rbd,pool=p'/></q:commandline>",
        Missing,
    ),
    (
        "<q:commandline xmlns:q='u'><q:arg value='--blockdev'/><q:arg value='x'/></q:commandline>",
        Missing,
    ),
    (
        "<q:commandline xmlns:q='u'><q:arg value='-hda'/><q:arg value='d.img'/></q:commandline>",
        Missing,
    ),
    ("<q:commandline xmlns:q='u'><q:arg value='disk.img'/></q:commandline>", Missing),
    (
        "<q:commandline xmlns:q='u'><q:arg value='-device'/><q:arg value='vfio-pci,host=01:00.0'/></q:commandline>",
        Missing,
    ),
    (
        "<q:commandline xmlns:q='u'><q:arg value='-fw_cfg'/><q:arg value='name=x,file=f'/></q:commandline>",
        Missing,
    ),
    ("<q:commandline xmlns:q='u'><q:env name='X' value='/x'/></q:commandline>", Missing),
    (
        "<q:commandline xmlns:q='u'><q:arg value='-cpu'/><q:arg value='host'/></q:commandline>",
        Nothing,
    ),
    (
        "<q:commandline xmlns:q='u'><q:arg value='-S'/><q:arg value='-set'/><q:arg value='device.x.y=1'/></q:commandline>",
        Nothing,
    ),
    (
        "<q:override xmlns:q='u'><q:device alias='x'><q:frontend><q:property name='f' value='/x'/></q:frontend></q:device></q:override>",
        Missing,
    ),
    ("<tomorrow path='/x'/>", Missing),
];

/// Everything that stands in `<devices>`.
const DEVICES: &[(&str, Is)] = &[
    ("<emulator>/usr/bin/qemu-system-x86_64</emulator>", Harmless),
    ("<disk><source file='/x'/><target dev='vda'/></disk>", Nothing),
    (
        "<hostdev mode='subsystem' type='pci'><source><address domain='0' bus='1' slot='0' function='0'/></source></hostdev>",
        Missing,
    ),
    (
        "<hostdev mode='subsystem' type='usb'><source><vendor id='0x1'/><product id='0x2'/></source></hostdev>",
        Missing,
    ),
    (
        "<hostdev mode='subsystem' type='scsi'><source><adapter name='scsi_host0'/></source></hostdev>",
        Missing,
    ),
    (
        "<hostdev mode='subsystem' type='scsi_host'><source protocol='vhost' wwpn='naa.1'/></hostdev>",
        Missing,
    ),
    (
        "<hostdev mode='subsystem' type='mdev'><source><address uuid='u'/></source></hostdev>",
        Missing,
    ),
    (
        "<hostdev mode='capabilities' type='storage'><source><block>/dev/sdb</block></source></hostdev>",
        Missing,
    ),
    (
        "<hostdev mode='capabilities' type='misc'><source><char>/dev/input/e</char></source></hostdev>",
        Missing,
    ),
    ("<hostdev type='pci'><source/><rom file='/rom.bin'/></hostdev>", Taken),
    ("<interface type='hostdev'><source><address type='pci'/></source></interface>", Missing),
    ("<interface type='vdpa'><source dev='/dev/vhost-vdpa-0'/></interface>", Missing),
    (
        "<interface type='vhostuser'><source type='unix' path='/run/n.sock' mode='server'/></interface>",
        Harmless,
    ),
    (
        "<interface type='bridge'><source bridge='br0'/><rom file='/usr/share/rom.bin'/></interface>",
        Taken,
    ),
    ("<interface type='bridge'><rom file='/srv/rom.bin'/></interface>", Taken),
    ("<interface type='ethernet'><script path='/etc/qemu-ifup'/></interface>", Missing),
    ("<interface type='ethernet'><downscript path='/etc/qemu-ifdown'/></interface>", Missing),
    (
        "<interface type='user'><backend type='passt' logFile='/var/log/passt'/></interface>",
        Harmless,
    ),
    (
        "<interface type='bridge'><backend tap='/dev/net/tun' vhost='/dev/vhost-net'/></interface>",
        Harmless,
    ),
    ("<tpm><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>", Missing),
    (
        "<tpm><backend type='external'><source type='unix' path='/run/tpm'/></backend></tpm>",
        Missing,
    ),
    ("<tpm><backend type='emulator'><source type='dir' path='/tpm'/></backend></tpm>", Taken),
    ("<filesystem type='mount'><source dir='/srv'/><target dir='data'/></filesystem>", Missing),
    (
        "<filesystem type='mount'><driver type='virtiofs'/><source socket='/run/fs'/><target dir='d'/></filesystem>",
        Missing,
    ),
    (
        "<filesystem type='mount'><binary path='/usr/libexec/virtiofsd'/><source dir='/s'/><target dir='/t'/></filesystem>",
        Missing,
    ),
    ("<filesystem type='file'><source file='/fs.img'/><target dir='/t'/></filesystem>", Missing),
    ("<filesystem type='block'><source dev='/dev/sdb'/><target dir='/t'/></filesystem>", Missing),
    ("<filesystem type='ram'><source usage='1'/><target dir='/t'/></filesystem>", Harmless),
    ("<memory model='nvdimm'><source><path>/nv.img</path></source></memory>", Taken),
    ("<memory model='virtio-pmem'><source><path>/pm.img</path></source></memory>", Taken),
    ("<memory model='dimm'><target><size>1</size></target></memory>", Nothing),
    ("<shmem name='m'><model type='ivshmem-plain'/></shmem>", Harmless),
    ("<shmem name='m'><model type='ivshmem-doorbell'/><server path='/run/m'/></shmem>", Harmless),
    ("<lease><lockspace>s</lockspace><key>k</key><target path='/lease'/></lease>", Missing),
    ("<pstore backend='acpi-erst'><path>/pstore.raw</path></pstore>", Taken),
    ("<input type='passthrough'><source evdev='/dev/input/e'/></input>", Missing),
    ("<input type='evdev'><source dev='/dev/input/e'/></input>", Missing),
    ("<input type='tablet' bus='usb'/>", Nothing),
    ("<serial type='file'><source path='/var/log/s'/></serial>", Missing),
    ("<console type='file'><source path='/var/log/s'/></console>", Missing),
    ("<parallel type='dev'><source path='/dev/parport0'/></parallel>", Missing),
    ("<serial type='pipe'><source path='/run/p'/></serial>", Missing),
    (
        "<serial type='pty' tty='/dev/pts/1'><source path='/dev/pts/1'/><log file='/var/log/s'/></serial>",
        Harmless,
    ),
    ("<channel type='unix'><source mode='bind' path='/run/c'/></channel>", Harmless),
    ("<channel type='unix'><source mode='connect' path='/run/c'/></channel>", Harmless),
    ("<redirdev bus='usb' type='unix'><source mode='connect' path='/run/r'/></redirdev>", Harmless),
    ("<smartcard mode='host'/>", Missing),
    (
        "<smartcard mode='host-certificates'><certificate>c</certificate><database>/etc/pki</database></smartcard>",
        Missing,
    ),
    ("<smartcard mode='passthrough' type='spicevmc'/>", Nothing),
    ("<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>", Harmless),
    (
        "<rng model='virtio'><backend model='egd' type='unix'><source path='/run/e'/></backend></rng>",
        Harmless,
    ),
    ("<graphics type='vnc' socket='/run/v'/>", Harmless),
    (
        "<graphics type='spice'><listen type='socket' socket='/run/s'/><gl rendernode='/dev/dri/r'/></graphics>",
        Harmless,
    ),
    ("<graphics type='sdl' xauth='/x/.Xauthority'/>", Harmless),
    (
        "<video><model type='virtio'><acceleration rendernode='/dev/dri/r'/></model></video>",
        Harmless,
    ),
    (
        "<audio id='1' type='oss'><input dev='/dev/dsp0'/><output dev='/dev/dsp0'/></audio>",
        Harmless,
    ),
    ("<audio id='1' type='file' path='/audio.wav'/>", Harmless),
    ("<tomorrow><file>/x</file></tomorrow>", Missing),
    ("<tomorrow><source file='/x'/></tomorrow>", Missing),
];

/// A domain with this in it.
fn with(os: &str, inside: &str, devices: &str) -> String {
    format!(
        "<domain><name>web</name>{inside}<os>{os}<type>hvm</type></os><devices>{devices}</devices></domain>"
    )
}

/// Every case: what it is, the definition, and what is to become of it.
fn cases() -> Vec<(&'static str, String, Is)> {
    let os = OS.iter().map(|(xml, is)| (*xml, with(xml, "", ""), *is));
    let domain = DOMAIN.iter().map(|(xml, is)| (*xml, with("", xml, ""), *is));
    let devices = DEVICES.iter().map(|(xml, is)| (*xml, with("", "", xml), *is));
    os.chain(domain).chain(devices).collect()
}

fn kind(fate: Fate) -> Is {
    match fate {
        Fate::Boot | Fate::State | Fate::StateAtRest(_) | Fate::TakenApart => Taken,
        Fate::Missing(_) => Missing,
        Fate::Harmless(_) => Harmless,
    }
}

/// A point had neither kernel nor passed-through devices, nor the shared folders nor the drives that QEMU's
/// command line has, and said nothing.
#[test]
fn nothing_that_a_definition_can_name_passes_in_silence() {
    for (xml, text, is) in cases() {
        let found = resources(&text).unwrap();
        if is == Nothing {
            assert_eq!(found, [], "{xml}");
            continue;
        }
        // One that is harmless must be nothing but that; of others there may be several.
        let kinds: Vec<Is> = found.iter().map(|it| kind(it.fate)).collect();
        match is {
            Harmless => {
                assert!(!kinds.is_empty() && kinds.iter().all(|it| *it == is), "{xml} {found:?}")
            }
            is => assert!(kinds.contains(&is), "{xml} {found:?}"),
        }
        for resource in found {
            let why = match resource.fate {
                Fate::Missing(why) | Fate::Harmless(why) => why,
                _ => "taken",
            };
            assert!(!resource.what.is_empty() && !why.is_empty() && why.len() < 80, "{xml}");
        }
    }
}

/// libvirt gives the first serial port a second name, and its file was told of twice each night.
#[test]
fn a_console_that_is_a_serial_port_is_told_of_once() {
    let missing = |devices: &str| {
        let found = resources(&with("", "", devices)).unwrap();
        found.iter().filter(|it| kind(it.fate) == Missing).count()
    };
    let port = |name: &str, path: &str| {
        format!("<{name} type='file'>\n<source path='{path}' append='on'/>\n</{name}>\n")
    };
    let (serial, console) = (port("serial", "/s"), port("console", "/s"));
    assert_eq!(missing(&format!("{serial}{console}")), 1);
    assert_eq!(missing(&console), 1);
    assert_eq!(missing(&format!("{serial}{}", port("console", "/other"))), 2);
    assert_eq!(missing(&format!("{serial}{}", console.replace("'file'", "'pipe'"))), 2);
}

/// The dump of a graphics card's ROM lies in `/usr/share` because AppArmor lets QEMU read there; no package
/// has it. It was left out like the code of a packaged firmware, without a word.
#[test]
fn only_the_firmware_of_a_package_is_left_to_it() {
    for (os, devices, is) in [
        ("", "<hostdev type='pci'><rom file='/usr/share/vgabios/card.rom'/></hostdev>", Taken),
        ("<kernel>/usr/share/guests/vmlinuz</kernel>", "", Taken),
        ("<initrd>/usr/share/guests/initrd</initrd>", "", Taken),
        ("<loader readonly='yes' type='pflash'>/usr/local/CODE.fd</loader>", "", Taken),
        ("<loader readonly='yes' type='pflash'>/usr/localized/CODE.fd</loader>", "", Harmless),
    ] {
        let found = resources(&with(os, "", devices)).unwrap();
        let mut named = found.iter().filter(|it| it.path.is_some());
        assert!(
            named.all(|it| kind(it.fate) == is) && !found.is_empty(),
            "{os}{devices} {found:?}"
        );
    }
}

/// A second guest wrote to the first one's variables, and to whatever else both definitions named.
#[test]
fn a_second_guest_shares_nothing_that_it_can_write_to() {
    let changes = Changes { second: true, varstore: Place::New, ..Changes::default() };
    let changes = Changes { name: Some("new".to_owned()), nvram: Place::New, ..changes };
    for (xml, text, _) in cases() {
        let before: Vec<_> = resources(&text).unwrap();
        let new = rewrite(&text, &changes).unwrap();
        parse(&new).unwrap();
        let now = resources(&new).unwrap();
        assert!(now.iter().all(|it| !it.shared), "{xml}: {new}");
        // What it may have stays, but for what is in a device that goes.
        let has_device = before.iter().any(|it| it.shared && it.path.is_none());
        let kept = before.iter().filter(|it| !it.shared && it.fate != Fate::TakenApart).count();
        assert!(has_device || now.len() >= kept, "{xml}: {new}");
        // The guest itself is left as it is if it is no second one.
        let same = rewrite(&text, &Changes::default()).unwrap();
        assert_eq!(same.trim(), text, "{xml}");
    }
}

/// The restored definition named the first host's files, which another host does not have.
#[test]
fn what_was_restored_is_named_where_it_is_now() {
    for (xml, text, is) in cases().into_iter().filter(|(.., is)| *is == Taken) {
        for second in [false, true] {
            let resources_before = resources(&text).unwrap();
            let taken = resources_before.iter().find(|it| kind(it.fate) == Taken).unwrap();
            let old = taken.path.clone().unwrap();
            // These have edits of their own.
            if ["nvram", "varstore", "tpm"]
                .iter()
                .any(|own| xml.contains(own) && !xml.contains("loader"))
            {
                continue;
            }
            let to = Path::new("/to/it's").to_path_buf();
            let changes = Changes { files: vec![(old, to.clone())], second, ..Changes::default() };
            let new = rewrite(&text, &changes).unwrap();
            let now = resources(&new).unwrap();
            let is_gone = second && xml.starts_with("<hostdev");
            let is_named = now.iter().any(|it| it.path.as_ref() == Some(&to));
            assert_eq!(is_named, !is_gone, "{xml} {is:?}: {new}");
        }
    }
    let text = with("<varstore template='/t' path='/v.json'/>", "", "");
    let store = |text: &str, place: Place| {
        let changes = Changes { varstore: place, ..Changes::default() };
        parse(&rewrite(text, &changes).unwrap()).unwrap().firmware
    };
    let at = || Place::At("/to/v.json".into());
    assert_eq!(store(&text, at()).varstore, Some("/to/v.json".into()));
    assert_eq!(
        (store(&text, Place::New).varstore, store(&text, Place::New).is_varstore),
        (None, true)
    );
    let bare = with("", "", "").replace("<os>", "<os firmware='efi'>");
    assert_eq!(store(&bare, at()).varstore, Some("/to/v.json".into()));
    assert!(!store(&bare, Place::New).is_varstore && store(&bare, Place::New).has_variables);
}

#[test]
fn a_guest_has_variables_if_its_firmware_has() {
    let has = |os: &str, attribute: &str| {
        let text = with(os, "", "").replace("<os>", &format!("<os{attribute}>"));
        parse(&text).unwrap().firmware.has_variables
    };
    assert!(
        !has("", "")
            && !has("<loader type='rom'>/usr/b</loader>", "")
            && !has("", " firmware='bios'")
    );
    assert!(has("", " firmware='efi'") && has("<nvram/>", "") && has("<varstore/>", ""));
    assert!(has("<loader readonly='yes' type='pflash'>/usr/c</loader>", ""));
    assert!(!has("<loader stateless='yes' readonly='yes' type='pflash'>/usr/c</loader>", ""));
    assert!(!has("<loader stateless='yes'/>", " firmware='efi'"));
}

/// A big domain as libvirt writes it is within every limit.
#[test]
fn a_thousand_disks_are_no_hostile_xml() {
    let disk = |index: usize| {
        format!(
            "<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none' io='native' \
             discard='unmap' queues='4'/><source file='/images/{index}.qcow2' index='{index}'><privateData>\
             <nodenames><nodename type='storage' name='libvirt-{index}-storage'/></nodenames></privateData>\
             </source><backingStore type='file'><format type='qcow2'/><source file='/b/{index}'/>\
             <backingStore/></backingStore><target dev='vd{index}' bus='virtio'/><iotune><total_iops_sec>1\
             </total_iops_sec></iotune><serial>{index}</serial><alias name='virtio-disk{index}'/><address \
             type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0'/></disk>"
        )
    };
    let disks: String = (0..1000).map(disk).collect();
    let text = with("", "", &disks);
    assert_eq!(parse(&text).unwrap().disks.len(), 1000);
    assert_eq!(resources(&text).unwrap(), []);
}
