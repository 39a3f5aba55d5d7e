//! The snapshot commands that qdelta ships, with stand-ins of the tools that they call.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::scene;
use crate::harness::files::Mount;
use crate::harness::guest::{Guest, Host, MIB, disk};
use crate::harness::run::{Outcome, as_root, script, start, tool};
use crate::harness::virsh::wait_until;
use crate::harness::{args, qdelta, run};

/// A command that qdelta ships.
fn shipped(name: &str) -> String {
    format!("{}/scripts/snapshot-commands/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Backs up `web` by a shipped command, with these stand-ins for the tools that the command calls.
fn backup_by(host: &Host, name: &str, tools: &[(&str, String)]) -> Outcome {
    let folder = host.lab.path("tools");
    fs::create_dir_all(&folder).unwrap();
    for (tool, text) in tools {
        script(&folder.join(tool), &format!("#!/bin/bash\nset -e\n{text}"));
    }
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    let command = shipped(name);
    let words = ["--domain", "web", "--snapshot-command", &command, "--freeze-max", "60000"];
    let mut command = qdelta(host.words(&words));
    command.env("PATH", path);
    run(command)
}

/// What is in a folder, by names; nothing if there is none.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The tools of LVM, as their manual pages have them: volumes are links in the folder of a volume group.
fn lvm_tools(group: &Path) -> [(&'static str, String); 3] {
    let group = group.display();
    let lvs = format!(
        "[ \"$*\" = '--reportformat json -o vg_name,lv_name,lv_path,pool_lv' ] || exit 3
first=
echo '{{\"report\": [{{\"lv\": ['
for lv in {group}/*; do
    pool=; [[ $lv != *thin* ]] || pool=pool
    echo \"$first{{\\\"vg_name\\\": \\\"vg\\\", \\\"lv_name\\\": \\\"${{lv##*/}}\\\", \\\"lv_path\\\": \\\"$lv\\\", \\\"pool_lv\\\": \\\"$pool\\\"}}\"
    first=,
done
echo ']}}]}}'"
    );
    let lvcreate = format!(
        "[[ $1 = --quiet && $2 = --yes && $3 = --snapshot ]] || exit 3
while [ $# -gt 1 ]; do
    [ \"$1\" != --name ] || name=$2
    [ \"$1\" != --extents ] || size=$2
    shift
done
[[ $1 = vg/* && ! -e {group}/$name ]]
# A thin snapshot has no size, and another can't do without one.
[[ ($1 = *thin* && -z $size) || ($1 != *thin* && $size = 20%ORIGIN) ]]
cp --sparse=always {group}/${{1#vg/}} {group}/$name"
    );
    let lvremove = format!(
        "[[ $1 = --quiet && $2 = --yes && -e {group}/${{3#vg/}} ]]
[ ! -e {group}.busy ] || {{ echo 'Logical volume in use.' >&2; exit 5; }}
rm {group}/${{3#vg/}}"
    );
    [("lvs", lvs), ("lvcreate", lvcreate), ("lvremove", lvremove)]
}

/// With stand-ins of LVM's tools. A snapshot that could not be removed is removed by the next run; those of
/// others are left alone.
#[test]
fn volumes_of_lvm() {
    let host = Host::new();
    let (guest, _) = scene(&host);
    let group = host.lab.path("vg");
    fs::create_dir(&group).unwrap();
    symlink(guest.vda(), group.join("web")).unwrap();
    symlink(guest.vdb(), group.join("web-thin")).unwrap();
    let other = "web-qdelta-20260101T000000.000Z-00000000";
    fs::write(group.join(other), "somebody else's").unwrap();
    let tools = lvm_tools(&group);
    backup_by(&host, "lvm", &tools).ok();
    host.assert_restores("vda", &disk(8, &[(0, MIB, 1)]));
    host.assert_restores("vdb", &disk(4, &[(0, MIB, 2)]));
    assert_eq!(names(&group), ["web", other, "web-thin"]);
    let busy = host.lab.path("vg.busy");
    fs::write(&busy, "").unwrap();
    let done = backup_by(&host, "lvm", &tools);
    assert_eq!(done.code(), Some(13), "{}", done.report());
    assert!(done.stderr.contains("in use"), "{}", done.report());
    assert_eq!(names(&group).len(), 5);
    let said = backup_by(&host, "lvm", &tools).fails_with(10);
    assert!(said.contains("in use"), "{said}");
    fs::remove_file(&busy).unwrap();
    backup_by(&host, "lvm", &tools).ok();
    assert_eq!(names(&group), ["web", other, "web-thin"]);
    // What is no volume is said before anything is frozen.
    let frozen = host.virsh.log().len();
    fs::remove_file(group.join("web-thin")).unwrap();
    let said = backup_by(&host, "lvm", &tools).fails_with(10);
    assert!(said.contains("is no logical volume"), "{said}");
    assert_eq!(host.virsh.log().len(), frozen);
    host.assert_sound();
}

/// With a stand-in of ZFS's tool.
#[test]
fn datasets_of_zfs() {
    let host = Host::new();
    let (_guest, _) = scene(&host);
    let folder = host.lab.dir().canonicalize().unwrap();
    let (folder, snapshots) = (folder.display(), format!("{}/.zfs/snapshot", folder.display()));
    let zfs = format!(
        "case \"$*\" in
'list -H -o name,mountpoint,mounted -t filesystem')
    printf '%s\\t%s\\t%s\\n' tank / yes tank/old {folder} no tank/images {folder} yes ;;
'list -H -o name -t snapshot') ls {snapshots} 2>/dev/null | sed 's,^,tank/images@,' ;;
'snapshot tank/images@'*) to={snapshots}/${{2#*@}}; mkdir -p $to; cp {folder}/web* $to ;;
'destroy tank/images@'*) rm -r {snapshots}/${{2#*@}} ;;
*) exit 2 ;;
esac"
    );
    let tools = [("zfs", zfs)];
    let said = backup_by(&host, "zfs", &tools).fails_with(10);
    assert!(said.contains("snapshots of tank/images are not seen"), "{said}");
    fs::create_dir_all(&snapshots).unwrap();
    backup_by(&host, "zfs", &tools).ok();
    host.assert_restores("vda", &disk(8, &[(0, MIB, 1)]));
    host.assert_restores("vdb", &disk(4, &[(0, MIB, 2)]));
    assert_eq!(names(Path::new(&snapshots)), [""; 0]);
    host.assert_sound();
}

/// With Btrfs itself.
#[test]
fn subvolumes_of_btrfs() {
    let host = Host::new();
    let mount = Mount::on_loop(host.lab.dir(), "btrfs", 256 * MIB);
    let folder = mount.dir.join("images");
    run(as_root("btrfs", args!["-q", "subvolume", "create", folder.as_path()])).ok();
    run(as_root("chmod", args!["0777", folder.as_path()])).ok();
    let mut guest = Guest::define(&host, &folder);
    guest.start("running");
    guest.write(0, 0, MIB, 1);
    guest.write(1, 0, MIB, 2);
    if !rustix::process::geteuid().is_root() {
        // Only root may delete a subvolume that was not mounted for others to.
        return;
    }
    // Whoever can write there could put other files in the place of the snapshots.
    let snapshots = folder.join(".qdelta-snapshots");
    symlink(host.lab.dir(), &snapshots).unwrap();
    let said = backup_by(&host, "btrfs-subvolume", &[]).fails_with(10);
    assert!(said.contains("nobody else may write"), "{said}");
    fs::remove_file(&snapshots).unwrap();
    backup_by(&host, "btrfs-subvolume", &[]).ok();
    host.assert_restores("vda", &disk(8, &[(0, MIB, 1)]));
    host.assert_restores("vdb", &disk(4, &[(0, MIB, 2)]));
    assert!(!folder.join(".qdelta-snapshots").exists());
    host.assert_sound();
}

/// A template that nobody has filled in says so before anything is frozen.
#[test]
fn the_template_for_arrays_does_nothing() {
    let host = Host::new();
    let (_guest, _) = scene(&host);
    let said = backup_by(&host, "array-template", &[]).fails_with(10);
    assert!(said.contains("this is a template"), "{said}");
    assert!(host.virsh.log().is_empty());
}

/// Stopped guest `web` behind a stand-in of virsh, and its image: what the commands of libvirt's that we ship are asked
/// of it.
struct Stopped {
    host: Host,
    image: PathBuf,
}

impl Stopped {
    /// `more` are functions of virsh's in bash, beside those that tell of a guest that is stopped. The definition is
    /// the file `web.xml`, which `define` writes anew.
    fn new(source: &str, more: &str) -> Self {
        let host = Host::new();
        let folder = host.lab.path("tools");
        fs::create_dir_all(&folder).unwrap();
        let image = host.lab.path("web.qcow2");
        let xml = host.lab.path("web.xml");
        let text = format!(
            "<domain><name>web</name><devices><disk type=\"volume\" device=\"disk\">\
             <driver name=\"qemu\" type=\"qcow2\"/><source {source}/><target dev=\"vda\"/></disk></devices></domain>"
        );
        fs::write(&xml, text).unwrap();
        // One run of virsh does several things, and says where the answers end.
        let virsh = format!(
            "#!/bin/bash
shift
dumpxml() {{ cat {xml}; }}
define() {{ cat \"$1\" >{xml}.new && mv {xml}.new {xml}; }}
domstate() {{ builtin echo 'shut off'; }}
dominfo() {{ builtin echo 'Persistent:     yes'; }}
query() {{ builtin echo \"error: $1: no domain\" >&2; }}
for verb in qemu-monitor-command backup-dumpxml checkpoint-list domjobinfo; do eval \"$verb() {{ query $verb; }}\"; done
{more}
echo() {{ if [ \"$1\" = --err ]; then builtin echo \"error: $2\" >&2; else builtin echo -n \"$1\"; fi; }}
eval \"$1\"
",
            xml = xml.display(),
        );
        script(&folder.join("virsh"), &virsh);
        Self { host, image }
    }

    fn ask(&self, name: &str, verb: &str) -> Outcome {
        let disk = json!({"disk": "vda", "owner": "00000000", "since": null, "format": "qcow2",
                          "files": [self.image.to_str().unwrap()], "bitmap": null, "marks": [], "size": 0});
        let domain = self.host.lab.dir().file_name().unwrap().to_str().unwrap();
        let request = json!({"protocol": 2, "verb": verb, "domain": domain, "uuid": null, "connect": null,
                             "pid": std::process::id(), "owner": "00000000", "disks": [disk],
                             "state": "stopped"});
        let asked = self.host.lab.path("request");
        fs::write(&asked, request.to_string()).unwrap();
        let line = format!("{} {verb} <{}", shipped(name), asked.display());
        let mut command = std::process::Command::new("bash");
        let folder = self.host.lab.path("tools");
        let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
        command.args(["-c", &line]).env("PATH", &path);
        command.env("QDELTA_OVERLAYS", self.host.lab.path("overlays"));
        run(command)
    }

    /// Where the overlays of its disk are made.
    fn folder_of_overlays(&self) -> PathBuf {
        let lab = &self.host.lab;
        let folder = lab.path("overlays").join(lab.dir().file_name().unwrap()).join("vda");
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    /// The guest is on this file by its definition.
    fn is_on(&self, file: &Path) -> bool {
        let xml = fs::read_to_string(self.host.lab.path("web.xml")).unwrap();
        xml.contains(&format!("\"{}\"", file.display()))
    }

    fn put_on(&self, old: &str, file: &Path) {
        let xml = self.host.lab.path("web.xml");
        let text = fs::read_to_string(&xml).unwrap();
        fs::write(&xml, text.replace(old, file.to_str().unwrap())).unwrap();
    }

    fn is_clean(&self, name: &str) -> bool {
        self.ask(name, "check").ok().json()["clean"].as_bool().unwrap()
    }
}

/// A disk that is a volume of a pool was no local file to the commands that we ship.
#[test]
fn shipped_commands_find_volumes_of_pools() {
    let more = "vol-path() {
    builtin echo \"$*\" >>${0%/tools/virsh}/calls
    image=${0%/tools/virsh}/web.qcow2
    if [ -e $image ]; then builtin echo $image; else builtin echo 'error: no volume' >&2; fi
}";
    let guest = Stopped::new("pool=\"pool\" volume=\"web.qcow2\"", more);
    let calls = guest.host.lab.path("calls");
    fs::write(&guest.image, "").unwrap();
    for name in ["external-snapshot", "qemu-bitmap"] {
        assert!(guest.is_clean(name), "{name}");
        let asked = fs::read_to_string(&calls).unwrap();
        assert_eq!(asked.lines().collect::<Vec<_>>(), ["web.qcow2 --pool pool"], "{name}: once");
        fs::remove_file(&calls).unwrap();
    }
    fs::remove_file(&guest.image).unwrap();
    let said = guest.ask("external-snapshot", "check").fails_with(1);
    assert!(
        said.contains("is volume web.qcow2 of pool pool") && said.contains("pool started"),
        "{said}"
    );
}

/// A libvirtd that was killed as it began a backup job holds on to the job. All that was said of that was virsh's words on a
/// lock, after half a minute.
#[test]
fn a_job_that_libvirt_holds_is_told_with_what_helps() {
    let more =
        "domjobinfo() { builtin echo 'error: internal error: backup job data missing' >&2; }";
    let guest = Stopped::new("file=\"IMAGE\"", more);
    for name in ["external-snapshot", "qemu-bitmap"] {
        for verb in ["check", "recover"] {
            let said = guest.ask(name, verb).fails_with(1);
            let words = ["that was never begun", "The guest runs on", "async='backup'"];
            assert!(words.iter().all(|word| said.contains(word)), "{name} {verb}: {said}");
        }
    }
}

/// The order to end a job was given once. A job that was just beginning then, as one of a backup that was killed may be, was
/// not ended by it, and was waited for in vain.
#[test]
fn a_job_that_is_still_beginning_is_ended() {
    let job = "<domainbackup><server socket='/qdelta-20261130T001604.157Z-00000000.sock'/></domainbackup>";
    let more = format!(
        "aborts=${{0%/tools/virsh}}/aborts
domstate() {{ builtin echo running; }}
domjobabort() {{ builtin echo >>$aborts; }}
backup-dumpxml() {{
    if [ $(wc -l <$aborts) -lt 2 ]; then builtin echo \"{job}\"; return; fi
    builtin echo 'error: no domain backup job present' >&2
}}
qemu-monitor-command() {{ builtin echo '{{\"return\": []}}'; }}
checkpoint-list() {{ :; }}"
    );
    let guest = Stopped::new("file=\"IMAGE\"", &more);
    let aborts = guest.host.lab.path("aborts");
    fs::write(&aborts, "").unwrap();
    guest.ask("qemu-bitmap", "recover").ok();
    assert_eq!(fs::read_to_string(&aborts).unwrap().lines().count(), 2);
}

/// Who goes on with the other command of libvirt's after one was cut off has the guest mended all the same.
#[test]
fn each_command_of_libvirt_s_mends_what_the_other_left() {
    let guest = Stopped::new("file=\"IMAGE\"", "");
    let name = "web.qcow2.qdelta-20261130T001604.157Z-00000000";
    let image = guest.image.clone();
    let folder = guest.folder_of_overlays();
    let overlay = folder.join(name);
    let (create, write, read) = ("create -q -f qcow2", "write -q -P 7 0 64k", "read -q -P 7 0 64k");
    let qemu_img = |words: &str, more: Vec<std::ffi::OsString>| {
        let all = words.split(' ').map(Into::into).chain(more).collect();
        run(tool("qemu-img", all)).ok();
    };
    qemu_img(create, args![image.as_path(), "1M"]);
    qemu_img(&format!("{create} -F qcow2 -b"), args![image.as_path(), overlay.as_path()]);
    run(tool("qemu-io", args!["-c", write, overlay.as_path()])).ok();
    guest.put_on("IMAGE", &overlay);
    assert!(!guest.is_clean("qemu-bitmap"));
    guest.ask("qemu-bitmap", "recover").ok();
    assert!(guest.is_on(&image) && !overlay.exists());
    let said = run(tool("qemu-io", args!["-r", "-c", read, image.as_path()])).ok();
    assert!(!String::from_utf8_lossy(&said.stdout).contains("failed"));
    assert!(guest.is_clean("qemu-bitmap") && guest.is_clean("external-snapshot"));

    // libvirt made the overlay, and removed it when QEMU ended: what the guest was on is told by the link.
    guest.put_on(image.to_str().unwrap(), &overlay);
    let said = guest.ask("external-snapshot", "recover").fails_with(1);
    assert!(said.contains("which is not there"), "{said}");
    fs::create_dir_all(&folder).unwrap();
    symlink(&image, folder.join("image")).unwrap();
    guest.ask("external-snapshot", "recover").ok();
    assert!(guest.is_on(&image) && !folder.exists());

    let scratch = image.with_file_name(format!("{name}.scratch"));
    fs::write(&scratch, "").unwrap();
    assert!(!guest.is_clean("external-snapshot"));
    guest.ask("external-snapshot", "recover").ok();
    assert!(!scratch.exists() && guest.is_clean("external-snapshot"));
}

/// A libvirtd that was killed while a disk was just being brought back can't read its own notes of the guest any more (9.0:
/// "unknown mirror job type"): it says that the guest is shut off, and its QEMU runs on. The alarm said that both had
/// ended, or, where the definition named the image, there was none.
#[test]
fn a_guest_that_libvirt_has_lost_is_told() {
    for by_definition in [true, false] {
        let guest = Stopped::new("file=\"IMAGE\"", "");
        let name = "web.qcow2.qdelta-20261130T001604.157Z-00000000";
        let overlay = guest.folder_of_overlays().join(name);
        let create = args!["create", "-q", "-f", "qcow2"];
        let base = args![guest.image.as_path(), "1M"];
        run(tool("qemu-img", [create.clone(), base].concat())).ok();
        let over = args!["-F", "qcow2", "-b", guest.image.as_path(), overlay.as_path()];
        run(tool("qemu-img", [create, over].concat())).ok();
        run(tool("qemu-io", args!["-c", "write -q -P 7 0 64k", overlay.as_path()])).ok();
        guest.put_on("IMAGE", if by_definition { &overlay } else { &guest.image });
        let begin = || start(&mut tool("qemu-io", args!["-c", "sleep 100000", overlay.as_path()]));
        let mut lost = begin();
        wait_until("a writer", || {
            let is_open = run(tool("qemu-img", args!["info", overlay.as_path()])).code() != Some(0);
            // Whoever looks has the file open, too, and may have been in its way.
            if lost.try_wait().unwrap().is_some() {
                lost = begin();
                return false;
            }
            is_open
        });
        let said = guest.ask("external-snapshot", "recover").fails_with(1);
        lost.kill().unwrap();
        lost.wait().unwrap();
        let words = ["libvirt has lost the guest's QEMU", "do not start the guest before"];
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
        assert!(overlay.exists());
    }
}

/// A libvirtd that was killed during a block job held on to it after its start, and showed none: the backup failed, and left
/// the guest on its overlay until the next one.
#[test]
fn a_block_job_that_libvirt_holds_on_to_is_ended() {
    assert_eq!(told_by_a_held_job("[]"), ["--abort", "--abort", "--pivot"]);
    // One that QEMU is at work on is an admin's, and waited for.
    let pulled = r#"[{"device": "pull-vda-libvirt-2-format", "status": "running"}]"#;
    assert_eq!(told_by_a_held_job(pulled), ["--pivot"]);
}

/// A disk that libvirt was just bringing back for a command that was killed was told to stay on its overlay: from then on
/// libvirt believed it there, and QEMU had it on its image.
#[test]
fn a_disk_that_is_just_coming_back_is_let_come() {
    let comes = "
dumpxml() {
    builtin echo >>$domain/looks
    if [ $(wc -l <$domain/looks) -gt 5 ]; then cp $domain/home.xml $domain/web.xml; fi
    cat $domain/web.xml
}";
    let told = told("[]", "pivot", comes);
    assert!(told.is_empty(), "{told:?}");
}

/// What libvirt is told about block jobs where it says twice that the disk has one; QEMU has these.
fn told_by_a_held_job(jobs: &str) -> Vec<String> {
    told(jobs, "yes", "")
}

/// The same, with a job that is in this state by `web.xml` at first, and what else virsh does.
fn told(jobs: &str, ready: &str, also: &str) -> Vec<String> {
    let more = "domstate() { builtin echo running; }
domain=${0%/tools/virsh}
blockcommit() {
    builtin echo >>$domain/asked
    if [ $(wc -l <$domain/asked) -lt 3 ]; then
        builtin echo \"error: Operation not supported: disk 'vda' already in active block job\" >&2
    else
        cp $domain/ready.xml $domain/web.xml
    fi
}
blockjob() {
    builtin echo \"$*\" >>$domain/told
    case \"$*\" in *--pivot*) cp $domain/home.xml $domain/web.xml ;; esac
}
qemu-monitor-command() {
    case \"$*\" in
        *query-block-jobs*) builtin echo '{\"return\": JOBS}' ;;
        *) builtin echo '{\"return\": []}' ;;
    esac
}";
    let more = more.replace("JOBS", jobs) + also;
    let guest = Stopped::new("file=\"IMAGE\"", &more);
    let name = "web.qcow2.qdelta-20261130T001604.157Z-00000000";
    let overlay = guest.folder_of_overlays().join(name);
    for file in [&guest.image, &overlay] {
        run(tool("qemu-img", args!["create", "-q", "-f", "qcow2", file.as_path(), "1M"])).ok();
    }
    let xml = |name: &str| guest.host.lab.path(name);
    let text =
        fs::read_to_string(xml("web.xml")).unwrap().replace("type=\"volume\"", "type=\"file\"");
    let image = guest.image.to_str().unwrap();
    let store = format!(
        "<backingStore type=\"file\"><format type=\"qcow2\"/><source file=\"{image}\"/></backingStore>"
    );
    let away = text
        .replace("IMAGE", overlay.to_str().unwrap())
        .replace("<target", &format!("{store}<target"));
    let mirror = |ready: &str| {
        format!("<mirror type=\"file\" job=\"active-commit\" ready=\"{ready}\"/><target")
    };
    fs::write(xml("home.xml"), text.replace("IMAGE", image)).unwrap();
    fs::write(xml("ready.xml"), away.replace("<target", &mirror("yes"))).unwrap();
    let begun = if ready == "yes" { away } else { away.replace("<target", &mirror(ready)) };
    fs::write(xml("web.xml"), begun).unwrap();
    guest.ask("external-snapshot", "recover").ok();
    assert!(guest.is_on(&guest.image) && !overlay.exists());
    let told = fs::read_to_string(guest.host.lab.path("told")).unwrap_or_default();
    told.lines().map(|line| line.rsplit(' ').next().unwrap().to_owned()).collect()
}
