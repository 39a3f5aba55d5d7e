//! A copy that is pulled through SSH from a host which gives its repository away read-only, by the recipe of the
//! document as it stands there.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::Scene;
use crate::harness::repo::Repo;
use crate::harness::virsh::wait_until;
use crate::harness::{Lab, Outcome, args, run, tool};

/// A server for SSH that only this test reaches, and that knows one key.
struct Server {
    child: Child,
    port: u16,
    key: PathBuf,
    user: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Server {
    /// `options` are what stands before the key in `authorized_keys`.
    fn start(lab: &Lab, options: &str) -> Self {
        let [host, key] = ["host", "key"].map(|name| lab.path(name));
        for path in [&host, &key] {
            let words = args!["-q", "-t", "ed25519", "-N", "", "-f", path.as_path()];
            run(tool("ssh-keygen", words)).ok();
        }
        let public = fs::read_to_string(key.with_extension("pub")).unwrap();
        let authorized = lab.path("authorized_keys");
        fs::write(&authorized, format!("{options} {public}")).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = lab.path("sshd_config");
        let text = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nPidFile none\nAuthorizedKeysFile {}\n\
             StrictModes no\nUsePAM no\nPasswordAuthentication no\nSubsystem sftp internal-sftp\n",
            host.display(),
            authorized.display()
        );
        fs::write(&config, text).unwrap();
        // Where a system starts the server, its unit makes this folder.
        let _ = fs::create_dir_all("/run/sshd");
        let mut command = Command::new("/usr/sbin/sshd");
        command.args(["-D", "-e", "-f"]).arg(&config);
        command.stderr(fs::File::create(lab.path("sshd.log")).unwrap()).stdin(Stdio::null());
        let child = command.spawn().unwrap();
        wait_until("the server for SSH listens", || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        let user = run(tool("id", args!["-un"])).ok().text().trim().to_owned();
        Self { child, port, key, user }
    }

    /// Options of ssh, sftp and sshfs.
    fn options(&self) -> Vec<std::ffi::OsString> {
        let all = [
            format!("IdentityFile={}", self.key.display()),
            "IdentitiesOnly=yes".to_owned(),
            "UserKnownHostsFile=/dev/null".to_owned(),
            "StrictHostKeyChecking=no".to_owned(),
            "BatchMode=yes".to_owned(),
        ];
        all.iter().flat_map(|option| args!["-o", option.as_str()]).collect()
    }

    fn ask(&self, program: &str, words: Vec<std::ffi::OsString>) -> Outcome {
        let mut all = self.options();
        let place = format!("{}@127.0.0.1", self.user);
        match program {
            "ssh" => all.extend(args!["-p", self.port.to_string(), place]),
            _ => all.extend(args!["-P", self.port.to_string()]),
        }
        all.extend(words);
        run(tool(program, all))
    }
}

/// A mount that goes with the test.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        run(tool("fusermount3", args!["-u", self.0.as_path()]));
    }
}

/// The first code block of the document that holds a word.
fn recipe(word: &str) -> String {
    let document = include_str!("../../docs/copies.md");
    let mut blocks = document.split("```").skip(1).step_by(2);
    let block = blocks.find(|block| block.contains(word)).unwrap();
    block.trim_start_matches("sh").trim().to_owned()
}

#[test]
fn a_copy_is_pulled_through_a_forced_command_that_only_reads() {
    let mut scene = Scene::of(|path| Repo::init(path), |path| Repo::init(path));
    scene.night(&[]);
    let line = recipe("internal-sftp");
    let server = Server::start(&scene.lab, line.split(" ssh-ed25519").next().unwrap());
    let mount = scene.lab.path("alpha");
    fs::create_dir(&mount).unwrap();
    let pull = recipe("sshfs -o");
    let options = pull.split_whitespace().skip_while(|it| *it != "-o").nth(1).unwrap();
    let place = format!("{}@127.0.0.1:{}", server.user, scene.repo.path.display());
    let mut words = server.options();
    words.extend(args!["-p", server.port.to_string(), "-o", options, place, mount.as_path()]);
    run(tool("sshfs", words)).ok();
    let _mounted = Mounted(mount.clone());
    let pulled = scene.repo.copy_at(mount);
    let copy = |scene: &Scene| {
        pulled.run(super::with_other("copy", "--to", &scene.other, &[])).ok().json()
    };
    assert_eq!(super::hows(&copy(&scene)), ["copied"]);
    // Nothing of the earlier look is left: a list that was kept for a while hid the next night's point.
    scene.night(&[]);
    assert_eq!(super::hows(&copy(&scene)), ["copied"]);
    scene.assert_points(&scene.other, &scene.ids());
    // The key gives the files, and nothing else; nor does it write.
    let said = server.ask("ssh", args!["echo", "hello"]);
    assert!(!said.status.success() && !said.text().contains("hello"), "{}", said.report());
    let config = scene.repo.path.join("qdelta.toml");
    let before = scene.repo.files();
    for order in [
        format!("rm {}", config.display()),
        format!("put {} {}", config.display(), scene.repo.path.join("x").display()),
        format!("rename {} {}", config.display(), scene.repo.path.join("x").display()),
    ] {
        let batch = scene.lab.path("batch");
        fs::write(&batch, order).unwrap();
        let place = format!("{}@127.0.0.1", server.user);
        let outcome = server.ask("sftp", args!["-b", batch.as_path(), place]);
        assert!(!outcome.status.success(), "{}", outcome.report());
    }
    assert_eq!(scene.repo.files(), before);
    assert!(fs::write(Path::new(&pulled.path).join("x"), "x").is_err(), "the mount can be written");
}
