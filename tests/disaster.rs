//! A site is lost: its kit, kept elsewhere, brings it back with the commands that stand in it.
//!
//! `QDELTA_SAMPLES=write cargo test --test qdelta disaster::` puts what a kit says of the played site between the marks
//! of docs/disaster-recovery.md.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::cli::json::compare;
use crate::encrypted::keygen;
use crate::harness::run::{binary, script};
use crate::harness::{Lab, Outcome, args, qdelta, run, tool};
use crate::readme::shape;

const MIB: usize = 1 << 20;

/// A site with three guests, an image, and two repositories, one of which is encrypted.
struct Site {
    lab: Lab,
    recipient: String,
}

impl Site {
    fn new() -> Self {
        let lab = Lab::new();
        for folder in ["etc/qemu", "run/qemu", "lib", "images", "bin", "keys"] {
            fs::create_dir_all(lab.path(folder)).unwrap();
        }
        let (_, recipient) = keygen(&lab, "keys/vault.key");
        let site = Self { lab, recipient };
        for (number, guest) in ["db", "mail", "web"].into_iter().enumerate() {
            site.define(guest, number as u8 + 1);
        }
        fs::write(site.lab.path("images/scans.raw"), vec![9; MIB]).unwrap();
        script(
            &site.lab.path("bin/virsh"),
            &format!("#!/bin/sh\necho \"$@\" >>{}\n", site.calls().display()),
        );
        site.configure();
        site.run(args!["init", site.lab.path("repo")]).ok();
        site.run(args![
            "init",
            site.lab.path("vault"),
            "--encrypt",
            "--recipient",
            &site.recipient,
            "--recovery",
            site.lab.path("keys/recovery.key")
        ])
        .ok();
        site
    }

    fn calls(&self) -> PathBuf {
        self.lab.path("virsh.log")
    }

    fn image(&self, guest: &str) -> PathBuf {
        self.lab.path(format!("images/{guest}.raw"))
    }

    fn define(&self, guest: &str, byte: u8) {
        fs::write(self.image(guest), vec![byte; 2 * MIB]).unwrap();
        let xml = format!(
            "<domain type='kvm'><name>{guest}</name><uuid>c7a5fdbd-edaf-9455-926a-d65c16db18{byte:02}</uuid>\
             <devices><disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{}'/>\
             <target dev='vda' bus='virtio'/></disk></devices></domain>",
            self.image(guest).display()
        );
        fs::write(self.lab.path(format!("etc/qemu/{guest}.xml")), xml).unwrap();
    }

    fn configure(&self) {
        let at = |name: &str| self.lab.path(name).display().to_string();
        let text = format!(
            "timer = \"none\"\nhost_files = [\"/etc/hostname\"]\n\
             [repositories.main]\nplace = \"{}\"\n\
             [repositories.vault]\nplace = \"{}\"\nkey_file = \"{}\"\n\
             [libvirt]\nconfig = \"{}\"\nrun = \"{}\"\nstate = \"{}\"\n\
             [jobs.office]\nrepository = \"vault\"\nguests = [\"mail\"]\nrpo = \"8d\"\nrto = \"4h\"\n\
             [[jobs.office.images]]\npath = \"{}\"\n\
             [jobs.production]\nrepository = \"main\"\nguests = [\"web\", \"d*\"]\nrpo = \"26h\"\nrto = \"15m\"\n\
             with_host_config = true\n",
            at("repo"),
            at("vault"),
            at("keys/vault.key"),
            at("etc"),
            at("run"),
            at("lib"),
            at("images/scans.raw"),
        );
        fs::write(self.lab.path("qdelta.toml"), text).unwrap();
    }

    fn run(&self, words: Vec<OsString>) -> Outcome {
        let mut command = qdelta(words);
        command
            .env("QDELTA_CONFIG", self.lab.path("qdelta.toml"))
            .env("STATE_DIRECTORY", self.lab.path("state"))
            .env_remove("QDELTA_REPO");
        run(command).sane()
    }

    fn kit(&self) -> Value {
        self.run(args!["export-kit", self.lab.path("kit"), "--json"]).ok().json()
    }

    fn document(&self) -> String {
        fs::read_to_string(self.lab.path("kit/disaster-recovery.md")).unwrap()
    }

    /// The document with the paths and keys that the page has.
    fn page(&self, host: &str) -> String {
        let at = |name: &str| self.lab.path(name).display().to_string();
        self.document()
            .replace(&at("repo"), "/mnt/backup/repo")
            .replace(&at("vault"), "/mnt/offsite/vault")
            .replace(&at("images"), "/srv/images")
            .replace(
                &self.encrypted_to(),
                "age1lggyhqrw2nlhcxprm67z43rta597azn8gknawjehu9d9dl0jq3yqqvfafg",
            )
            .replace(&format!("host.{host}"), "host.alpha")
            .replace(&format!("--host {host}"), "--host alpha")
            .replace(&format!("**{host}**"), "**alpha**")
    }

    /// The recipient of the encrypted repository.
    fn encrypted_to(&self) -> String {
        let text = fs::read_to_string(self.lab.path("vault/qdelta.toml")).unwrap();
        let line = text.lines().find(|line| line.starts_with("recipient = ")).unwrap();
        line.split('"').nth(1).unwrap().to_owned()
    }
}

/// The commands of a page: what stands in its blocks for a shell.
fn commands(page: &str) -> Vec<String> {
    let mut commands = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if line == "```sh" {
            commands.extend(lines.by_ref().take_while(|line| *line != "```").map(str::to_owned));
        }
    }
    commands
}

#[test]
fn a_lost_site_comes_back_with_the_commands_of_its_kit() {
    let site = Site::new();
    // A kit may be written before the first night, and says so.
    let early = site.kit();
    assert!(site.document().contains("there is no point of it"));
    site.run(args!["run", "office", "production"]).ok();
    let kit = site.kit();
    compare(
        "export-kit",
        &[&early, &kit],
        &[".problems[]", ".problems[].kind", ".problems[].text", ".problems[].advice"],
    );
    let order: Vec<&str> =
        kit["guests"].as_array().unwrap().iter().map(|it| it["guest"].as_str().unwrap()).collect();
    let host = kit["host"].as_str().unwrap();
    let (own, scans) = (format!("host.{host}"), site.lab.path("images/scans.raw"));
    // The host, then by RTO; `web` stands before the pattern that means `db`.
    assert_eq!(order, [own.as_str(), "web", "db", "mail", scans.to_str().unwrap()]);
    let json = fs::read_to_string(site.lab.path("kit/kit.json")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), kit);

    // No secret leaves the site with it.
    let secret = fs::read_to_string(site.lab.path("keys/vault.key")).unwrap();
    let secret = secret.lines().find(|line| line.starts_with("AGE-SECRET-KEY-")).unwrap();
    // The page's links led to pages that no kit has, and nobody could tell whether a kit of years ago is still whole.
    let page = site.document();
    assert!(
        page.contains("(drills.md in qdelta's documentation)") && !page.contains("]("),
        "{page}"
    );
    let mut sums = tool("sha256sum", args!["--check", "--strict", "SHA256SUMS"]);
    sums.current_dir(site.lab.path("kit"));
    let checked = run(sums).ok().text();
    for name in kit["files"].as_array().unwrap() {
        let name = name.as_str().unwrap();
        let is_told = checked.contains(&format!("{name}: OK\n"));
        assert_eq!(is_told, name != "SHA256SUMS", "{name}: {checked}");
    }
    for name in ["disaster-recovery.md", "kit.json", "qdelta.toml"] {
        assert!(
            !fs::read_to_string(site.lab.path("kit").join(name)).unwrap().contains(secret),
            "{name}"
        );
    }

    // The site burns down; the repositories, the kit and somebody's key are left.
    let web = fs::read(site.image("web")).unwrap();
    let db = fs::read(site.image("db")).unwrap();
    let mail = fs::read(site.image("mail")).unwrap();
    for lost in ["etc", "lib", "images", "state"] {
        fs::remove_dir_all(site.lab.path(lost)).unwrap();
    }
    for folder in ["etc/qemu", "lib", "images", "usr"] {
        fs::create_dir_all(site.lab.path(folder)).unwrap();
    }
    fs::write(site.lab.path("images/scans.raw"), "").unwrap();

    // Every command of the page, in its order, in one shell.
    let lines = commands(&site.document());
    assert!(lines.len() > 15, "{lines:#?}");
    let at = |name: &str| site.lab.path(name).display().to_string();
    let text = lines.join("\n");
    let text = text
        .replace("/srv/restored", &at("restored"))
        .replace("/usr/local/bin/qdelta", &at("bin/qdelta"))
        .replace("/media/keys", &at("keys"))
        .replace("/etc/qdelta/qdelta.toml", &at("new/qdelta.toml"));
    let mut shell = tool("sh", args!["-euxc", text]);
    let path = format!("{}:{}", at("bin"), std::env::var("PATH").unwrap());
    shell
        .current_dir(site.lab.path("kit"))
        .env("PATH", path)
        .env("STATE_DIRECTORY", at("new/state"))
        .env("QDELTA_CONFIG", at("new/qdelta.toml"))
        .env_remove("QDELTA_REPO");
    let outcome = run(shell);
    // The new machine's libvirt knows the guests only where virsh is the real one: config check says that they are missing.
    assert_eq!(outcome.code(), Some(6), "{}", outcome.report());
    assert!(
        outcome.stderr.lines().last().is_some_and(|line| line.contains("virsh list --all")
            || line.contains("libvirt's folder is another")),
        "{}",
        outcome.report()
    );

    let same = |path: &str, bytes: &[u8]| {
        assert!(fs::read(site.lab.path(path)).unwrap() == bytes, "{path}")
    };
    same("restored/web/web-vda.raw", &web);
    same("restored/db/db-vda.raw", &db);
    same("restored/mail/mail-vda.raw", &mail);
    same("restored/scans-disk.raw", &vec![9; MIB]);
    same("restored/host/etc/hostname", &fs::read("/etc/hostname").unwrap());
    same("bin/qdelta", &fs::read(binary()).unwrap());
    let calls = fs::read_to_string(site.calls()).unwrap();
    let define = |guest: &str| {
        format!("define {}\nstart {guest}\n", at(&format!("restored/{guest}/{guest}.xml")))
    };
    let states = "domstate web\ndomstate db\ndomstate mail\n";
    assert_eq!(calls, format!("{}{}{}{states}", define("web"), define("db"), define("mail")));
}

/// The pages that the page of the way back leads to.
const LINKED: [&str; 2] = ["drills.md", "instant-recovery.md"];

/// The page is what a kit says of this site: a command on it that no kit has would be tried by nobody.
#[test]
fn the_page_is_what_a_kit_says() {
    let site = Site::new();
    site.run(args!["run", "office", "production"]).ok();
    let kit = site.kit();
    let said = site.page(kit["host"].as_str().unwrap());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/disaster-recovery.md");
    if std::env::var("QDELTA_SAMPLES").is_ok_and(|what| what == "write") {
        let linked = LINKED.iter().fold(said.clone(), |text, page| {
            text.replace(
                &format!("({page} in qdelta's documentation)"),
                &format!("([{page}]({page}))"),
            )
        });
        fs::write(&path, linked).unwrap();
    }
    // A kit has none of the pages that this one leads to.
    let page = LINKED.iter().fold(fs::read_to_string(&path).unwrap(), |text, page| {
        text.replace(&format!("([{page}]({page}))"), &format!("({page} in qdelta's documentation)"))
    });
    let shapes = |text: &str| text.lines().map(shape).collect::<Vec<_>>();
    assert_eq!(
        shapes(&page),
        shapes(&said),
        "QDELTA_SAMPLES=write cargo test --test qdelta disaster:: mends the page"
    );
}

/// A kit that was written into the folder of the file of jobs replaced it by the one of the kit, without the addresses of
/// notifiers; anybody's other file of such a name was lost, too.
#[test]
fn a_kit_replaces_nothing_but_a_kit() {
    let site = Site::new();
    let etc = site.lab.path("etc-qdelta");
    fs::create_dir(&etc).unwrap();
    fs::write(etc.join("SHA256SUMS"), "mine").unwrap();
    for folder in [etc.clone(), site.lab.dir().to_owned()] {
        let said = site.run(args!["export-kit", folder]).fails_with(7);
        assert!(said.contains("holds something else than a kit"), "{said}");
    }
    assert_eq!(fs::read_to_string(etc.join("SHA256SUMS")).unwrap(), "mine");
    // The one of the night before is replaced, also that of another version.
    site.kit();
    let kit = site.lab.path("kit/kit.json");
    let mut older: Value = serde_json::from_str(&fs::read_to_string(&kit).unwrap()).unwrap();
    older["of_old"] = true.into();
    older["problems"] = Value::Null;
    fs::write(&kit, older.to_string()).unwrap();
    assert!(site.kit()["of_old"].is_null());
    fs::remove_dir_all(site.lab.path("kit")).unwrap();
    fs::create_dir(site.lab.path("kit")).unwrap();
    site.kit();
}

/// A repository that can't be read is no reason for no kit: on the day before the fire, half a kit is more than none.
#[test]
fn what_a_kit_can_not_say_is_told() {
    let site = Site::new();
    site.run(args!["run", "production"]).ok();
    fs::rename(site.lab.path("vault"), site.lab.path("away")).unwrap();
    let outcome = site.run(args!["export-kit", site.lab.path("kit")]);
    assert_eq!(outcome.code(), Some(9), "{}", outcome.report());
    assert!(outcome.stderr.contains("repository vault"), "{}", outcome.report());
    assert!(
        outcome.text().contains("mail has no point: it could not come back"),
        "{}",
        outcome.report()
    );
    let document = site.document();
    assert!(
        document.contains("not all was right") && document.contains("repository vault"),
        "{document}"
    );
    assert!(document.contains("qdelta restore --domain web "));
    // Nothing but the kit's own files is replaced.
    fs::write(site.lab.path("kit/notes"), "mine").unwrap();
    fs::rename(site.lab.path("away"), site.lab.path("vault")).unwrap();
    site.kit();
    assert!(!site.document().contains("not all was right"));
    assert_eq!(fs::read_to_string(site.lab.path("kit/notes")).unwrap(), "mine");
    let names = fs::read_dir(site.lab.path("kit")).unwrap().count();
    assert_eq!(names, 6, "nothing unfinished stays");
}
