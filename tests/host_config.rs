//! The configuration of the host itself: kept with a run, brought back beside what is there, and told how it differs.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::cli::json::compare;
use crate::harness::{Lab, Outcome, args, qdelta, run};

/// A host whose job keeps its configuration, and nothing else.
struct Host {
    lab: Lab,
}

impl Host {
    fn new() -> Self {
        let host = Self { lab: Lab::new() };
        // Lines are shown of files that everybody can come to.
        fs::set_permissions(host.lab.dir(), fs::Permissions::from_mode(0o755)).unwrap();
        for folder in ["etc/libvirt/qemu/networks/autostart", "etc/net", "run/qemu", "lib"] {
            fs::create_dir_all(host.lab.path(folder)).unwrap();
        }
        host.write(
            "etc/libvirt/qemu/networks/default.xml",
            "<network>\n  <name>default</name>\n</network>\n",
        );
        let networks = host.lab.path("etc/libvirt/qemu/networks");
        symlink(networks.join("default.xml"), networks.join("autostart/default.xml")).unwrap();
        host.write("etc/libvirt/secret.xml", "password\n");
        fs::set_permissions(
            host.lab.path("etc/libvirt/secret.xml"),
            fs::Permissions::from_mode(0o600),
        )
        .unwrap();
        host.write("etc/net/interfaces", "auto lo\nauto br0\niface br0\n");
        host.configure("");
        host.run(args!["init", host.lab.path("repo")]).ok();
        host
    }

    fn write(&self, path: &str, text: &str) {
        fs::write(self.lab.path(path), text).unwrap();
    }

    fn configure(&self, more: &str) {
        let at = |name: &str| self.lab.path(name).display().to_string();
        let text = format!(
            "timer = \"none\"\nhost_files = [\"{}\"{more}]\n\
             [repositories.main]\nplace = \"{}\"\n\
             [libvirt]\nconfig = \"{}\"\nrun = \"{}\"\nstate = \"{}\"\n\
             [jobs.host]\nwith_host_config = true\nrpo = \"1d\"\n\
             [jobs.host.verify]\n[jobs.host.drill]\n",
            at("etc/net"),
            at("repo"),
            at("etc/libvirt"),
            at("run"),
            at("lib"),
        );
        fs::write(self.lab.path("qdelta.toml"), text).unwrap();
    }

    fn run(&self, words: Vec<std::ffi::OsString>) -> Outcome {
        self.run_as("state", words)
    }

    /// As a host whose state is in this folder.
    fn run_as(&self, state: &str, words: Vec<std::ffi::OsString>) -> Outcome {
        let mut command = qdelta(words);
        command
            .env("QDELTA_CONFIG", self.lab.path("qdelta.toml"))
            .env("QDELTA_REPO", self.lab.path("repo"))
            .env("STATE_DIRECTORY", self.lab.path(state));
        run(command).sane()
    }

    /// A path of the host as it lies in a restored folder.
    fn restored(&self, to: &str, path: &str) -> PathBuf {
        self.lab.path(to).join(self.lab.path(path).strip_prefix("/").unwrap())
    }

    fn restore(&self, to: &str) -> Value {
        self.run(args!["restore", "--host-config", "--to", self.lab.path(to), "--json"]).ok().json()
    }
}

/// `path: difference` of each change, with paths as they begin in the lab.
fn changes(report: &Value, lab: &Path) -> Vec<String> {
    let of = |change: &Value| {
        let path = Path::new(change["path"].as_str().unwrap());
        let path = path.strip_prefix(lab).unwrap_or_else(|_| panic!("{change:#}"));
        format!("{}: {}", path.display(), change["difference"].as_str().unwrap())
    };
    report["changes"].as_array().unwrap().iter().map(of).collect()
}

#[test]
fn a_host_comes_back_beside_what_is_there() {
    let host = Host::new();
    let report = host.run(args!["run", "host", "--json"]).ok().json();
    let end = |act: &str| {
        let records = report["records"].as_array().unwrap();
        let of = records.iter().rfind(|record| record["act"] == act).unwrap();
        format!("{}: {}", of["end"].as_str().unwrap(), of["text"].as_str().unwrap())
    };
    assert!(end("backup").starts_with("done"), "{report:#}");
    assert_eq!(end("verify"), "done: 1 archive proved");
    assert_eq!(end("drill"), "done: there is nothing to drill yet");
    // The archive was written for the backup alone.
    assert!(!host.lab.path("state/host-config.tar").exists());

    // Nothing has changed: next to nothing is stored again, and nothing differs.
    host.run(args!["run", "host"]).ok();
    let first = host.restore("first");
    assert_eq!(changes(&first, host.lab.dir()), [""; 0]);
    for path in [
        "etc/net/interfaces",
        "etc/libvirt/secret.xml",
        "etc/libvirt/qemu/networks/autostart/default.xml",
    ] {
        let (here, there) = (host.lab.path(path), host.restored("first", path));
        let (old, new) = (here.symlink_metadata().unwrap(), there.symlink_metadata().unwrap());
        assert_eq!(old.permissions().mode(), new.permissions().mode(), "{path}");
        assert_eq!(old.modified().unwrap(), new.modified().unwrap(), "{path}");
        assert_eq!(old.is_symlink(), new.is_symlink(), "{path}");
        assert_eq!(fs::read(&here).unwrap(), fs::read(&here).unwrap());
    }
    assert_eq!(
        fs::read_to_string(host.restored("first", "qdelta.toml")).unwrap(),
        fs::read_to_string(host.lab.path("qdelta.toml")).unwrap()
    );

    // Then each way in which a file can differ.
    host.write("etc/net/interfaces", "auto lo\nauto br1\niface br0\n");
    host.write("etc/libvirt/secret.xml", "another\n");
    host.write("etc/libvirt/new.xml", "<x/>");
    let networks = host.lab.path("etc/libvirt/qemu/networks");
    fs::remove_file(networks.join("default.xml")).unwrap();
    fs::remove_file(networks.join("autostart/default.xml")).unwrap();
    symlink("elsewhere", networks.join("autostart/default.xml")).unwrap();
    fs::set_permissions(host.lab.path("etc/net"), fs::Permissions::from_mode(0o711)).unwrap();
    let second = host.restore("second");
    assert_eq!(
        changes(&second, host.lab.dir()),
        [
            "etc/libvirt/new.xml: new",
            "etc/libvirt/qemu/networks/autostart/default.xml: content",
            "etc/libvirt/qemu/networks/default.xml: missing",
            "etc/libvirt/secret.xml: content",
            "etc/net: rights",
            "etc/net/interfaces: content",
        ]
    );
    let lines = |path: &str| {
        let of = |change: &&Value| change["path"].as_str().unwrap().ends_with(path);
        second["changes"].as_array().unwrap().iter().find(of).unwrap()["lines"].clone()
    };
    assert_eq!(lines("interfaces"), serde_json::json!(["-auto br1", "+auto br0"]));
    // What not everybody may read is shown to nobody.
    assert_eq!(lines("secret.xml"), serde_json::json!([]));
    compare("restore of a host's configuration", &[&first, &second], &[]);
    // A file was open at the point and has become secret since, or lies in a folder that is closed now: the lines of
    // this host were shown.
    let set = |path: &str, mode: u32| {
        fs::set_permissions(host.lab.path(path), fs::Permissions::from_mode(mode)).unwrap();
    };
    for (path, mode, open) in [("etc/net/interfaces", 0o600, 0o644), ("etc/net", 0o700, 0o711)] {
        set(path, mode);
        let report = host.restore(&format!("closed{mode}"));
        let all = report["changes"].as_array().unwrap();
        let of = |change: &&Value| change["path"].as_str().unwrap().ends_with("interfaces");
        assert_eq!(all.iter().find(of).unwrap()["lines"], serde_json::json!([]), "{path}");
        set(path, open);
    }

    // A drill of everything is of machines.
    let drill = host.run(args!["drill"]);
    assert!(!drill.text().contains("host."), "{}", drill.report());

    // The same files by the commands for files, and by any tar.
    let name = first["host"].as_str().unwrap();
    let disk = format!("host.{name}/config");
    let path = host.lab.path("etc/net/interfaces");
    let text = host.run(args!["files", "get", &disk, &path, "--to", "-"]).ok().text();
    assert!(text.contains("auto br0"));
    let shown =
        host.run(args!["restore", "--host-config", "--to", host.lab.path("third")]).ok().text();
    assert!(shown.contains("interfaces differs here\n    -auto br1\n    +auto br0\n"), "{shown}");
    let untar = format!("qdelta restore {disk} - | tar t");
    let mut tar = crate::harness::tool("sh", args!["-c", untar]);
    let folder = crate::harness::run::binary().parent().unwrap().display().to_string();
    let search = std::env::var("PATH").unwrap();
    tar.env("PATH", format!("{folder}:{search}")).env("QDELTA_REPO", host.lab.path("repo"));
    assert!(run(tar).ok().text().contains("etc/net/interfaces\n"));
}

/// What GNU tar writes is read as it is, in both of the forms that are read here.
#[test]
fn archives_of_tar_are_read_like_any_filesystem() {
    let host = Host::new();
    let tree = host.lab.path("tree");
    fs::create_dir_all(tree.join("a folder").join("b".repeat(80))).unwrap();
    fs::write(tree.join("a folder").join("b".repeat(80)).join("c".repeat(60)), vec![7; 100_000])
        .unwrap();
    fs::write(tree.join("empty"), "").unwrap();
    symlink("../elsewhere", tree.join("link")).unwrap();
    for form in ["pax", "ustar"] {
        let (archive, out) =
            (host.lab.path(format!("{form}.raw")), host.lab.path(format!("{form}.out")));
        let words = args!["-C", &tree, format!("--format={form}"), "-cf", &archive, "."];
        run(crate::harness::tool("tar", words)).ok();
        host.run(args!["backup", &archive, "--disk", form, "--format", "raw"]).ok();
        host.run(args!["files", "get", form, "/", "--to", &out]).ok();
        run(crate::harness::tool("diff", args!["-r", "--no-dereference", &tree, &out])).ok();
    }
}

#[test]
fn what_can_not_be_brought_back_is_said_before_anything_is_written() {
    let host = Host::new();
    let to = host.lab.path("to");
    let refused = |words: Vec<std::ffi::OsString>| host.run(words).stderr;
    let none = refused(args!["restore", "--host-config", "--to", &to]);
    assert!(none.contains("the configuration of no host"), "{none}");
    host.run(args!["run", "host"]).ok();
    let other = refused(args!["restore", "--host-config", "--host", "other", "--to", &to]);
    assert!(other.contains("the configuration of other is not in the repository"), "{other}");
    let nowhere = refused(args!["restore", "--host-config"]);
    assert!(nowhere.contains("say where"), "{nowhere}");
    let inside = refused(args!["restore", "--host-config", "--to", host.lab.path("repo/x")]);
    assert!(inside.contains("lies inside the repository"), "{inside}");
    fs::create_dir(&to).unwrap();
    fs::write(to.join("mine"), "").unwrap();
    let full = refused(args!["restore", "--host-config", "--to", &to]);
    assert!(full.contains("is no empty folder"), "{full}");
    assert_eq!(fs::read_dir(&to).unwrap().count(), 1);
    fs::remove_file(to.join("mine")).unwrap();
    host.restore("to");

    // What the admin names and is not there is told, and the rest is kept.
    host.configure(", \"/no/such/folder\"");
    let report = host.run(args!["run", "host", "--json"]).ok().json();
    assert!(report.to_string().contains("/no/such/folder is not there"), "{report:#}");
}

/// Two hosts of one name took each other's place, and each believed that its own configuration was kept.
#[test]
fn two_hosts_of_one_name_are_told_apart() {
    let host = Host::new();
    let night = |state: &str| -> Vec<String> {
        let report = host.run_as(state, args!["run", "host", "--json"]).json();
        let records = report["records"].as_array().unwrap().clone();
        let warnings = records.iter().flat_map(|it| it["warnings"].as_array().unwrap().clone());
        let codes = warnings.map(|it| it["code"].as_str().unwrap().to_owned());
        codes.filter(|code| code == "other-guest").collect()
    };
    assert!(night("state").is_empty() && night("state").is_empty());
    assert_eq!(night("other"), ["other-guest"]);
    assert_eq!(night("state"), ["other-guest"]);
    assert_eq!(night("other"), ["other-guest"]);
    // The other one has a repository of its own now: it is told once more, and then it is this one's alone.
    assert_eq!(night("state"), ["other-guest"]);
    assert!(night("state").is_empty());
}
