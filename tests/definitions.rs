//! What a guest's definition says of its disks counts: backing chains and data files that image headers
//! tell otherwise, volumes of pools, and disks of other guests that can't be told.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use qdelta::guest::libvirt::{Chain, parse};
use serde_json::Value;

use super::block_devices::Device;
use super::harness::args;
use super::harness::files::Mount;
use super::harness::guest::{Guest, Host, MIB, content, disk};
use super::harness::images::{create, guest_io, oracle, qemu_img};

/// A guest whose disk `vda` lies over other images. Each image has a byte of its own in its first MiB.
struct Layers<'a> {
    host: &'a Host,
    guest: Guest<'a>,
}

impl<'a> Layers<'a> {
    fn new(host: &'a Host) -> Self {
        Self::in_folder(host, host.lab.dir())
    }

    fn in_folder(host: &'a Host, dir: &Path) -> Self {
        let guest = Guest::define(host, dir);
        fs::create_dir_all(dir.join("bases")).unwrap();
        let layers = Self { host, guest };
        for (name, byte) in [("one", 1), ("two", 2), ("three", 3)] {
            create(&layers.base(name), "", 8 * MIB);
            guest_io(&layers.base(name), "qcow2", &[format!("write -q -P {byte} 0 1M")]);
        }
        guest_io(&layers.guest.vda(), "qcow2", &["write -q -P 9 4M 1M".to_owned()]);
        layers
    }

    fn base(&self, name: &str) -> PathBuf {
        self.guest.vda().parent().unwrap().join("bases").join(name)
    }

    /// The header of `image` names this backing file, as qcow2; none if it is empty.
    #[track_caller]
    fn rebase(&self, image: &Path, below: &str) {
        let below = if below.is_empty() { OsString::new() } else { self.base(below).into() };
        qemu_img(args!["rebase", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", below, image])
            .ok();
    }

    /// The XML of the guest with this in the `<disk>` of `vda`, and what its `<source>` is.
    fn xml(&self, source: &str, more: &str) -> String {
        let own = format!("<source file='{}'/>", self.guest.vda().display());
        let xml = self.guest.xml();
        assert!(xml.contains(&own));
        let source = if source.is_empty() { own.clone() } else { source.to_owned() };
        xml.replace(&own, &format!("{source}{more}"))
    }

    fn define(&self, source: &str, more: &str) {
        fs::write(self.host.lab.path("etc/qemu/web.xml"), self.xml(source, more)).unwrap();
    }

    /// `<backingStore>` of a file.
    fn store(&self, name: &str, format: &str, inner: &str) -> String {
        store("file", format, &format!("file='{}'", self.base(name).display()), inner)
    }

    /// What the guest sees: `below` is what QEMU is given as the node of the backing file.
    fn seen(&self, below: &Value) -> Vec<u8> {
        let file = |path: &Path| serde_json::json!({ "driver": "file", "filename": path });
        let mut node = serde_json::json!({ "driver": "qcow2", "file": file(&self.guest.vda()) });
        if let Value::String(data) = below {
            node["data-file"] = file(Path::new(data));
        } else {
            node["backing"] = below.clone();
        }
        let output = self.host.lab.path("seen.raw");
        oracle(args![format!("json:{node}")], &output);
        let bytes = fs::read(&output).unwrap();
        fs::remove_file(output).unwrap();
        bytes
    }

    fn node(&self, name: &str, format: &str, below: Value) -> Value {
        let file = serde_json::json!({ "driver": "file", "filename": self.base(name) });
        let mut node = serde_json::json!({ "driver": format, "file": file });
        if format == "qcow2" {
            node["backing"] = below;
        }
        node
    }

    /// The files of `vda` that the latest point says were read.
    fn recorded(&self) -> Vec<PathBuf> {
        let files = self.host.repo.files();
        let newest = files.iter().filter(|file| file.starts_with("web/points")).max();
        let taken = self.host.lab.path("manifest.json");
        self.host.repo.take_out(newest.unwrap(), &taken);
        let manifest = fs::read(taken).unwrap();
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        let layers = manifest["disks"][0]["image"]["layers"].as_array().unwrap().iter();
        let text = |value: &Value| PathBuf::from(value.as_str().unwrap());
        layers
            .flat_map(|layer| {
                [Some(text(&layer["path"])), layer.get("data_file").map(text)].into_iter().flatten()
            })
            .collect()
    }
}

fn store(kind: &str, format: &str, source: &str, inner: &str) -> String {
    format!(
        "<backingStore type='{kind}' index='2'><format type='{format}'/><source {source} index='2'/>\
         {inner}</backingStore>"
    )
}

const END: &str = "<backingStore/>";

/// All that a report says of a disk, as one text.
fn warnings(report: &Value) -> String {
    report["disks"][0]["warnings"].to_string()
}

/// Headers were followed where the definition says otherwise. The bytes were proved, and no guest had ever
/// seen them.
#[test]
fn the_definition_says_what_a_guest_sees() {
    let host = Host::new();
    let it = Layers::new(&host);
    it.rebase(&it.base("two"), "three");
    let null = || Value::Null;
    let raw_two = it.node("two", "raw", null());
    let three = || it.node("three", "qcow2", null());
    let two = || it.node("two", "qcow2", three());
    std::os::unix::fs::symlink(it.base("two"), it.base("link")).unwrap();
    let whole_two = it.store("two", "qcow2", &it.store("three", "qcow2", END));
    // What the header names, what the XML says, what the guest sees, the files, and what is said.
    let says = "the guest's definition";
    let (one_end, two_one) =
        (it.store("one", "qcow2", END), it.store("two", "qcow2", &it.store("one", "qcow2", END)));
    for (header, xml, below, files, warned) in [
        ("", it.store("two", "qcow2", ""), two(), vec!["two", "three"], says),
        ("one", it.store("two", "qcow2", ""), two(), vec!["two", "three"], says),
        ("one", END.to_owned(), null(), vec![], says),
        ("two", it.store("two", "raw", END), raw_two, vec!["two"], "is qcow2"),
        // Only the second level differs; then only its end.
        (
            "two",
            two_one,
            it.node("two", "qcow2", it.node("one", "qcow2", null())),
            vec!["two", "one"],
            says,
        ),
        ("two", it.store("two", "qcow2", END), it.node("two", "qcow2", null()), vec!["two"], says),
        // What only repeats headers is nothing to speak of, however it is spelled.
        ("two", it.store("two", "qcow2", ""), two(), vec!["two", "three"], ""),
        ("two", whole_two.clone(), two(), vec!["two", "three"], ""),
        ("two", it.store("link", "qcow2", ""), two(), vec!["link", "three"], ""),
        ("two", String::new(), two(), vec!["two", "three"], ""),
        // A block job's copy is another image, with a chain of its own.
        (
            "two",
            format!(
                "<mirror type='file' job='copy'><format type='qcow2'/><source file='/x'/>{one_end}</mirror>"
            ),
            two(),
            vec!["two", "three"],
            "",
        ),
    ] {
        it.rebase(&it.guest.vda(), header);
        it.define("", &xml);
        let report = host.web(&["--kind", "full"]);
        host.assert_restores("vda", &it.seen(&below));
        let said = warnings(&report);
        assert_eq!(said == "[]", warned.is_empty(), "{header}, {xml}: {said}");
        assert!(said.contains(warned), "{header}, {xml}: {said}");
        let files: Vec<_> = files.into_iter().map(|name| it.base(name)).collect();
        assert_eq!(it.recorded(), [vec![it.guest.vda()], files].concat(), "{header}, {xml}");
    }
    // Names lead anywhere, devices too, and a volume is a file.
    let device = Device::over(it.base("three"));
    let dev = store("block", "qcow2", &format!("dev='{}'", device.path.display()), END);
    it.define("", &dev);
    host.web(&["--kind", "full"]);
    host.assert_restores("vda", &it.seen(&three()));
    drop(device);
    pool(&host, "dir", &it.base(""));
    it.define("", &store("volume", "qcow2", "pool='p' volume='one'", END));
    host.web(&["--kind", "full"]);
    host.assert_restores("vda", &it.seen(&it.node("one", "qcow2", null())));
    // What can't be read is refused by its name, and nothing else is read in its place.
    for (xml, why) in [
        (store("network", "raw", "protocol='nbd' name='x'", ""), "lies on a server (protocol nbd)"),
        (store("volume", "qcow2", "pool='q' volume='one'", END), "there is no q.xml"),
        (it.store("one", "vmdk", END), "has the format \\\"vmdk\\\""),
        (it.store("gone", "qcow2", END), "bases/gone"),
    ] {
        it.define("", &xml);
        let said = host.web_fails(3, &["--kind", "full"]);
        assert!(said.contains(why) || said.contains(&why.replace('\\', "")), "{xml}: {said}");
    }
    host.assert_sound();
}

/// The same for the file that holds the data of an image.
#[test]
fn the_definition_says_where_the_data_is() {
    let host = Host::new();
    let it = Layers::new(&host);
    let (old, new) = (host.lab.path("old.raw"), host.lab.path("elsewhere/new.raw"));
    fs::create_dir(host.lab.path("elsewhere")).unwrap();
    fs::remove_file(it.guest.vda()).unwrap();
    create(&it.guest.vda(), &format!("data_file={}", old.display()), 8 * MIB);
    guest_io(&it.guest.vda(), "qcow2", &["write -q -P 5 0 1M".to_owned()]);
    fs::copy(&old, &new).unwrap();
    guest_io(&new, "raw", &["write -q -P 6 0 1M".to_owned()]);
    let source = |data: &Path| {
        let (own, data) = (it.guest.vda(), data.display().to_string());
        format!(
            "<source file='{}' index='1'><dataStore type='file'><format type='raw'/>\
             <source file='{data}'/></dataStore></source>",
            own.display()
        )
    };
    for (data, byte) in [(&new, 6), (&old, 5)] {
        it.define(&source(data), END);
        let report = host.web(&["--kind", "full"]);
        let expected = it.seen(&Value::String(data.to_str().unwrap().to_owned()));
        assert_eq!(expected[0], byte);
        host.assert_restores("vda", &expected);
        assert_eq!(warnings(&report).contains("the guest's definition"), byte == 6, "{report}");
        assert_eq!(it.recorded(), [it.guest.vda(), data.clone()]);
    }
    // One that the image has none of, and one that is not there.
    it.define(&source(&host.lab.path("gone.raw")), END);
    let said = host.web_fails(3, &[]);
    assert!(said.contains("gone.raw"), "{said}");
    fs::remove_file(it.guest.vda()).unwrap();
    create(&it.guest.vda(), "", 8 * MIB);
    it.define(&source(&new), END);
    let said = host.web_fails(3, &[]);
    assert!(said.contains("for an image that has none"), "{said}");
    host.assert_sound();
}

/// The file of a running domain has the chain that QEMU was given: what the header says by now, or the
/// definition of the next start, is another matter.
#[test]
fn a_running_guest_sees_the_chain_that_it_was_started_with() {
    let host = Host::new();
    let mount = Mount::on_loop(host.lab.dir(), "xfs", 400 * MIB);
    let mut it = Layers::in_folder(&host, &mount.dir);
    it.rebase(&it.guest.vda(), "one");
    it.define("", &it.store("three", "qcow2", END));
    it.guest.start("running");
    let live = host.lab.path("run/qemu/web.xml");
    let status = fs::read_to_string(&live).unwrap();
    let own = format!("<source file='{}' index='1'/>", it.guest.vda().display());
    let domain = it.xml(&own, &it.store("two", "qcow2", END));
    let status = status.replace(&it.guest.xml(), &domain);
    assert!(status.contains("index='1'"));
    fs::write(&live, status).unwrap();
    let report = host.web(&["--anchor", "reflink"]);
    assert_eq!(report["consistency"], "filesystem-quiesced");
    let seen = disk(8, &[(0, MIB, 2), (4 * MIB, MIB, 9)]);
    host.assert_restores("vda", &seen);
    assert!(warnings(&report).contains("names the backing file"), "{report}");
    it.guest.write(0, 6 * MIB, 65536, 7);
    let report = host.web(&[]);
    assert_eq!(report["disks"][0]["tracker"], "reflink", "{report}");
    host.assert_restores("vda", &disk(8, &[(0, MIB, 2), (4 * MIB, MIB, 9), (6 * MIB, 65536, 7)]));
    it.guest.stop();
    host.web(&[]);
    host.assert_restores("vda", &disk(8, &[(0, MIB, 3), (4 * MIB, MIB, 9), (6 * MIB, 65536, 7)]));
    host.assert_sound();
}

/// Nothing is written when a definition is edited: no tracker's claim may outlive that.
#[test]
fn an_increment_is_of_what_the_definition_says_now() {
    for anchor in ["none", "bitmap", "snapshot"] {
        let host = Host::new();
        let it = Layers::new(&host);
        it.rebase(&it.base("two"), "three");
        it.rebase(&it.guest.vda(), "one");
        let node = |name: &str, below| it.node(name, "qcow2", below);
        let three = node("three", Value::Null);
        for (night, (xml, below)) in [
            (String::new(), node("one", Value::Null)),
            (END.to_owned(), Value::Null),
            (it.store("two", "qcow2", ""), node("two", three)),
            (it.store("two", "qcow2", END), node("two", Value::Null)),
            (it.store("one", "raw", END), it.node("one", "raw", Value::Null)),
            (it.store("one", "qcow2", END), node("one", Value::Null)),
            // Nothing has changed.
            (it.store("one", "qcow2", END), node("one", Value::Null)),
        ]
        .into_iter()
        .enumerate()
        {
            it.define("", &xml);
            let report = host.web(&["--anchor", anchor]);
            host.assert_restores("vda", &it.seen(&below));
            let is_scan = report["disks"][0]["tracker"] == "scan";
            assert_eq!(is_scan, night < 6, "{anchor}, {xml}: {report}");
        }
        host.assert_sound();
    }
}

/// A roll back compared with what headers show, and left as it was what the guest then saw as something
/// else.
#[test]
fn a_roll_back_gives_the_guest_what_it_saw() {
    let host = Host::new();
    for (header, xml, below) in [("one", END, ""), ("", "two", "two"), ("one", "two", "two")] {
        let it = Layers::new(&host);
        it.rebase(&it.guest.vda(), header);
        let xml = if xml == END { END.to_owned() } else { it.store(xml, "qcow2", END) };
        it.define("", &xml);
        let below = match below {
            "" => Value::Null,
            name => it.node(name, "qcow2", Value::Null),
        };
        let then = it.seen(&below);
        let report = host.web(&["--kind", "full"]);
        let point = report["point"].as_str().unwrap().to_owned();
        // What was there comes over it, and where nothing was; and where zeros were, something is.
        let node = serde_json::json!({
            "driver": "qcow2", "file": { "driver": "file", "filename": it.guest.vda() },
            "backing": below,
        });
        let change = |line: &str| {
            let words = args!["-c", line, format!("json:{node}")];
            super::harness::run(super::harness::tool("qemu-io", words)).ok();
        };
        change("write -q -P 1 0 512k");
        change("write -q -P 8 2M 512k");
        change("discard -q 4M 1M");
        assert!(it.seen(&below) != then);
        let words = args![format!("web/vda@{point}"), "--in-place"];
        host.restore(words).ok();
        assert!(it.seen(&below) == then, "{header}, {xml}");
        // Who names the image means the same disk.
        change("write -q -P 1 0 512k");
        change("write -q -P 8 512k 5M");
        let words = args![format!("web/vda@{point}"), it.guest.vda(), "--in-place", "--no-point"];
        host.restore(words).ok();
        assert!(it.seen(&below) == then, "{header}, {xml}: the image was named");
        for name in ["one", "two"] {
            assert!(content(&it.base(name), "qcow2")[..1] != [0], "{name} was written to");
        }
        fs::remove_file(it.guest.vda()).unwrap();
    }
    host.assert_sound();
}

/// A restored disk is one flat file: what its definition says of a chain, a data file or a pool would have
/// it read otherwise.
#[test]
fn a_restored_definition_says_nothing_of_the_chain() {
    let host = Host::new();
    let it = Layers::new(&host);
    it.rebase(&it.guest.vda(), "one");
    pool(&host, "dir", host.lab.dir());
    let (with_data, data) = (host.lab.path("with-data.qcow2"), host.lab.path("data.raw"));
    create(&with_data, &format!("data_file={}", data.display()), 8 * MIB);
    guest_io(&with_data, "qcow2", &["write -q -P 9 4M 1M".to_owned()]);
    let with_data = format!(
        "<source file='{}'><dataStore type='file'><format type='raw'/><source file='{}'/></dataStore>\
         </source>",
        with_data.display(),
        data.display()
    );
    for (number, (source, more, changed)) in [
        (String::new(), it.store("two", "qcow2", END), "file"),
        ("<source pool='p' volume='web.qcow2'/>".to_owned(), END.to_owned(), "volume"),
        (with_data, END.to_owned(), "file"),
    ]
    .into_iter()
    .enumerate()
    {
        let xml = it.xml(&source, &more);
        let xml = xml.replacen("<disk type='file'", &format!("<disk type='{changed}'"), 1);
        fs::write(host.lab.path("etc/qemu/web.xml"), xml).unwrap();
        // The last one is another image altogether.
        host.web(&["--kind", "full", "--same-guest"]);
        let to = host.lab.path(format!("to-{number}"));
        let words = args!["--domain", "web", "--to", to.as_path(), "--rename", "copy"];
        host.restore(words).ok();
        let text = fs::read_to_string(to.join("copy.xml")).unwrap();
        for word in ["backingStore", "dataStore", "volume", "bases"] {
            assert!(!text.contains(word), "{word}: {text}");
        }
        let domain = parse(&text).unwrap();
        assert_eq!(domain.disks[0].chain, Chain::default());
        let image = domain.disks[0].source.path().unwrap();
        let byte = if number == 0 { 2 } else { 0 };
        assert!(content(image, "qcow2") == disk(8, &[(0, MIB, byte), (4 * MIB, MIB, 9)]));
    }
    host.assert_sound();
}

/// The pool `p`, whose volumes lie in this folder.
fn pool(host: &Host, kind: &str, target: &Path) {
    let folder = host.lab.path("etc/storage");
    fs::create_dir_all(&folder).unwrap();
    let target = format!("<target><path>{}</path></target>", target.display());
    let xml = format!("<pool type='{kind}'><name>p</name>{target}</pool>");
    fs::write(folder.join("p.xml"), xml).unwrap();
}

/// A disk that is a volume of a pool was refused, though libvirt's files say where it is.
#[test]
fn a_volume_of_a_pool_is_backed_up_and_rolled_back() {
    let host = Host::new();
    let it = Layers::new(&host);
    pool(&host, "dir", host.lab.dir());
    let xml = it.xml("<source pool='p' volume='web.qcow2'/>", "");
    let xml = xml.replacen("<disk type='file'", "<disk type='volume'", 1);
    fs::write(host.lab.path("etc/qemu/web.xml"), xml).unwrap();
    let point = host.web(&[])["point"].as_str().unwrap().to_owned();
    let then = disk(8, &[(4 * MIB, MIB, 9)]);
    host.assert_restores("vda", &then);
    guest_io(&it.guest.vda(), "qcow2", &["write -q -P 3 0 1M".to_owned()]);
    let report =
        host.restore(args![format!("web/vda@{point}"), "--in-place", "--json"]).ok().json();
    assert_eq!(report["image"].as_str(), it.guest.vda().to_str());
    assert!(content(&it.guest.vda(), "qcow2") == then);
    fs::remove_file(host.lab.path("etc/storage/p.xml")).unwrap();
    let said = host.web_fails(3, &[]);
    assert!(said.contains("there is no p.xml in"), "{said}");
    host.assert_sound();
}

/// Another guest's disk was named in a way that was not understood; the roll back wrote below it, with a
/// warning beside.
#[test]
fn a_roll_back_harms_no_guest_whose_disk_cannot_be_told() {
    let host = Host::new();
    let it = Layers::new(&host);
    let point = host.web(&[])["point"].as_str().unwrap().to_owned();
    guest_io(&it.guest.vda(), "qcow2", &["write -q -P 3 0 1M".to_owned()]);
    let vda = it.guest.vda();
    let (before, shown) = (fs::read(&vda).unwrap(), vda.display());
    let folder = host.lab.path("over");
    fs::create_dir(&folder).unwrap();
    let overlay = folder.join("over");
    qemu_img(args![
        "create",
        "-q",
        "-f",
        "qcow2",
        "-F",
        "qcow2",
        "-b",
        vda.as_path(),
        overlay.as_path()
    ])
    .ok();
    create(&folder.join("free"), "", MIB);
    qemu_img(args![
        "create",
        "-q",
        "-u",
        "-f",
        "qcow2",
        "-F",
        "vmdk",
        "-b",
        folder.join("free"),
        folder.join("odd"),
        "1M"
    ])
    .ok();
    let other = host.lab.path("etc/qemu/other.xml");
    let define = |kind: &str, format: &str, source: &str, more: &str| {
        format!(
            "<domain><name>other</name><uuid>5c0ad46c-8b0d-4f4c-9a55-1f6a2b7f3c11</uuid><devices>\
             <disk type='{kind}'><driver type='{format}'/><source {source}/>{more}\
             <target dev='vda'/></disk></devices></domain>"
        )
    };
    let over = store("file", "qcow2", &format!("file='{shown}'"), END);
    let file = |name: &str| format!("file='{}'", folder.join(name).display());
    let of = |pool: &str, volume: &str| format!("pool='{pool}' volume='{volume}'");
    let nbd = "protocol='nbd' name='x'";
    pool(&host, "dir", &folder);
    let unknown = "not known whether";
    let below = "is a backing file of disk vda of other";
    for (xml, refused) in [
        // A volume that is found.
        (define("volume", "qcow2", &of("p", "over"), ""), below),
        (define("volume", "qcow2", &of("p", "free"), ""), ""),
        (define("volume", "qcow2", &of("p", "gone"), ""), ""),
        (define("volume", "qcow2", &of("p", "over"), END), ""),
        // One that is not: what its header says is not known.
        (define("volume", "qcow2", &of("q", "over"), ""), unknown),
        (define("volume", "qcow2", &of("q", "over"), END), ""),
        (define("volume", "qcow2", &of("q", "over"), &over), below),
        (define("volume", "raw", &of("q", "over"), ""), ""),
        (
            define("file", "qcow2", &file("free"), &store("volume", "raw", &of("q", "v"), END)),
            unknown,
        ),
        // A server has no file of this host, but what lies over one may.
        (define("network", "raw", nbd, ""), ""),
        (define("network", "qcow2", nbd, &over), below),
        (define("file", "qcow2", &file("free"), &store("network", "qcow2", nbd, &over)), below),
        (define("nvme", "raw", "type='pci'", ""), ""),
        // What the definition says counts.
        (define("file", "qcow2", &file("over"), ""), below),
        (define("file", "qcow2", &file("over"), END), ""),
        (define("file", "qcow2", &file("free"), &over), below),
        (define("file", "raw", &file("over"), ""), ""),
        (
            define(
                "file",
                "raw",
                &file("free"),
                &format!("<mirror type='file'><source file='{shown}'/></mirror>"),
            ),
            "a block job copies disk vda of other to",
        ),
        // What is not followed.
        (define("file", "qcow2", &file("odd"), ""), unknown),
        (define("file", "qcow2", &file("odd"), END), ""),
        (define("file", "qed", &file("free"), ""), unknown),
        // A file that makes no sense may describe anything.
        ("<domain".to_owned(), unknown),
        (String::new(), unknown),
        (define("file", "raw", &file("free"), "").replace("<name>other", "<name>else"), unknown),
    ] {
        fs::write(&other, &xml).unwrap();
        let ways = [
            args![format!("web/vda@{point}"), "--in-place", "--no-point"],
            args![format!("web/vda@{point}"), vda.as_path(), "--in-place", "--no-point"],
            args!["--domain", "web", "--at", point.as_str(), "--in-place", "--no-point"],
            args![format!("web/vda@{point}"), vda.as_path(), "--force", "--format", "qcow2"],
        ];
        for words in ways {
            let outcome = host.restore(words);
            if refused.is_empty() {
                outcome.ok();
                fs::write(&vda, &before).unwrap();
                continue;
            }
            assert_eq!(outcome.code(), Some(5), "{xml}: {}", outcome.report());
            let said = outcome.fails_with(5);
            assert!(said.contains(refused), "{xml}: {said}");
            assert!(said.contains("or restore to a new file") || refused != unknown, "{said}");
            assert!(fs::read(&vda).unwrap() == before, "{xml}");
        }
    }
    // Of a guest that runs, or whose memory is saved, the volume may be the image itself.
    let raw = define("volume", "raw", &of("q", "over"), "");
    fs::write(&other, &raw).unwrap();
    let live = host.lab.path("run/qemu/other.xml");
    let own = || args![format!("web/vda@{point}"), "--in-place", "--no-point"];
    fs::write(&live, format!("<domstatus state='running' pid='1'>{raw}</domstatus>")).unwrap();
    let said = host.restore(own()).fails_with(5);
    assert!(said.contains(unknown) && said.contains("there is no q.xml"), "{said}");
    fs::remove_file(&live).unwrap();
    host.restore(own()).ok();
}

/// The image was a file here and a loop device there, and what the guest had in use was written over.
#[test]
fn a_loop_device_is_the_file_that_it_shows() {
    let host = Host::new();
    let it = Layers::new(&host);
    let vdb = it.guest.vdb();
    guest_io(&vdb, "raw", &["write -q -P 2 0 1M".to_owned()]);
    let point = host.web(&[])["point"].as_str().unwrap().to_owned();
    guest_io(&vdb, "raw", &["write -q -P 3 0 1M".to_owned()]);
    let device = Device::over(vdb.clone());
    let other = || {
        format!(
            "<domstatus state='running' pid='1'><domain><name>other</name><devices><disk type='block'>\
             <driver type='raw'/><source dev='{}'/><target dev='vda'/></disk></devices></domain></domstatus>",
            device.path.display()
        )
    };
    fs::write(host.lab.path("run/qemu/other.xml"), other()).unwrap();
    let own = || args![format!("web/vdb@{point}"), "--in-place", "--no-point"];
    let said = host.restore(own()).fails_with(5);
    assert!(said.contains("is disk vda of other, which runs"), "{said}");
    fs::remove_file(host.lab.path("run/qemu/other.xml")).unwrap();
    host.restore(own()).ok();
    assert!(content(&vdb, "raw") == disk(4, &[(0, MIB, 2)]));
}

/// After an external snapshot the definition of the disk is another: what is read of the image of the
/// point before is the rest of the new chain.
#[test]
fn clones_are_compared_though_the_image_lies_below_now() {
    let host = Host::new();
    let mount = Mount::on_loop(host.lab.dir(), "xfs", 400 * MIB);
    let it = Layers::in_folder(&host, &mount.dir);
    it.rebase(&it.guest.vda(), "one");
    let whole = it.store("two", "qcow2", END);
    it.define("", &whole);
    host.web(&["--anchor", "reflink"]);
    let seen = it.seen(&it.node("two", "qcow2", Value::Null));
    host.assert_restores("vda", &seen);
    let (vda, overlay) = (it.guest.vda(), mount.dir.join("snap1"));
    let words = args!["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", vda.as_path()];
    qemu_img([words, args![overlay.as_path()]].concat()).ok();
    guest_io(&overlay, "qcow2", &["write -q -P 7 6M 64k".to_owned()]);
    let own = store("file", "qcow2", &format!("file='{}'", vda.display()), &whole);
    it.define(&format!("<source file='{}'/>", overlay.display()), &own);
    let report = host.web(&["--track", "reflink", "--exclude", "vdb"]);
    assert_eq!(report["disks"][0]["tracker"], "reflink", "{report}");
    let mut expected = seen;
    expected[6 * MIB as usize..][..65536].fill(7);
    host.assert_restores("vda", &expected);
    host.assert_sound();
}

/// What made no point said something about archives in a manifest.
#[test]
fn two_disks_of_one_target_are_refused() {
    let host = Host::new();
    let guest = Guest::define(&host, host.lab.dir());
    guest.redefine(&[("dev='vdb'", "dev='vda'")]);
    let said = host.web_fails(3, &[]);
    assert!(said.contains("has two disks vda"), "{said}");
}

/// A raw disk that was emptied, or whose device leads to nothing any more, made a point of no bytes.
#[test]
fn a_disk_that_was_emptied_is_refused() {
    let host = Host::new();
    let guest = Guest::define(&host, host.lab.dir());
    host.web(&[]);
    fs::write(guest.vdb(), "").unwrap();
    let said = host.web_fails(3, &[]);
    assert!(said.contains("is empty") && said.contains("--same-guest"), "{said}");
    host.web(&["--same-guest"]);
}

/// Distributions name their kernel by a link to the latest one: it was not in the point.
#[test]
fn a_kernel_behind_a_link_is_taken() {
    let host = Host::new();
    let guest = Guest::define(&host, host.lab.dir());
    let (kernel, link) = (host.lab.path("vmlinuz-6.1"), host.lab.path("vmlinuz"));
    fs::write(&kernel, "a kernel").unwrap();
    std::os::unix::fs::symlink(&kernel, &link).unwrap();
    let named = format!("<type>hvm</type><kernel>{}</kernel>", link.display());
    guest.redefine(&[("<type>hvm</type>", &named)]);
    let report = host.web(&[]);
    assert_eq!(report["missing"].as_array().unwrap().len(), 0, "{report}");
    let to = host.lab.path("to");
    host.restore(args!["--domain", "web", "--to", to.as_path()]).ok();
    let restored = to.join("boot").join(link.strip_prefix("/").unwrap());
    assert_eq!(fs::read_to_string(restored).unwrap(), "a kernel");
}
