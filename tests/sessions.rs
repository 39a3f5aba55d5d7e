//! Guests of a user's own libvirt (`qemu:///session`), whose files lie in the user's folders.

use std::fs;

use super::harness::guest::{Guest, Host, MIB, disk};
use super::harness::{args, qdelta, run};

#[test]
fn a_guest_of_a_session_is_found_and_frozen() {
    let host = Host::new();
    let mut guest = Guest::define(&host, host.lab.dir());
    guest.start("running");
    guest.write(0, 0, MIB, 5);
    let (config, runtime) = (host.lab.path("home/.config"), host.lab.path("runtime"));
    let (defined, running) = (config.join("libvirt/qemu"), runtime.join("libvirt/qemu/run"));
    let backup = |more: &[&str]| {
        let mut words = host.repo.args(args!["backup", "--json", "--domain", "web"]);
        words.extend(args!["--virsh", host.virsh.program(), "--consistency", "freeze-copy"]);
        words.extend(more.iter().map(Into::into));
        let mut command = qdelta(words);
        command.env("HOME", host.lab.path("home")).env("XDG_RUNTIME_DIR", &runtime);
        command.env_remove("XDG_CONFIG_HOME").env_remove("LIBVIRT_DEFAULT_URI");
        run(command)
    };
    let session = ["--connect", "qemu:///session"];
    let said = backup(&session).fails_with(6);
    assert!(said.contains("qemu:///session") && said.contains(defined.to_str().unwrap()), "{said}");
    for (folder, file) in [(&defined, "etc/qemu/web.xml"), (&running, "run/qemu/web.xml")] {
        fs::create_dir_all(folder).unwrap();
        fs::copy(host.lab.path(file), folder.join("web.xml")).unwrap();
    }
    let report = backup(&session).ok().json();
    assert_eq!(report["domains"][0]["result"]["consistency"], "filesystem-quiesced");
    assert_eq!((host.virsh.count("domfsfreeze"), host.virsh.is_frozen()), (1, false));
    host.assert_restores("vda", &disk(8, &[(0, MIB, 5)]));
    // A session is what the environment says, too, as virsh has it.
    let mut words = host.repo.args(args!["backup", "--json", "--all"]);
    words.extend(args!["--virsh", host.virsh.program(), "--consistency", "freeze-copy"]);
    let mut command = qdelta(words);
    command.env("HOME", host.lab.path("home")).env("XDG_RUNTIME_DIR", &runtime);
    command.env("LIBVIRT_DEFAULT_URI", "qemu:///session").env_remove("XDG_CONFIG_HOME");
    let report = run(command).ok().json();
    assert_eq!(report["domains"].as_array().unwrap().len(), 1);
    host.assert_sound();
}
