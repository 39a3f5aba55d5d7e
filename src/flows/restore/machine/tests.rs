//! Tests of what is found before anything is restored.

use qdelta_formats::archive::Consistency;

use super::*;
use crate::formats::archive::Digest;
use crate::vault::repository::PointId;

/// The second one took the place of the first.
#[test]
fn no_two_files_have_one_path() {
    let twice = |paths: &[&'static str]| {
        taken_twice(paths.iter().map(|path| Path::new(*path)).collect()).map(Path::to_path_buf)
    };
    assert_eq!(twice(&["/to/b", "/to/a/b", "/to/a-b", "/to/a.b"]), None);
    assert_eq!(twice(&["/to/b", "/to/a", "/to/b"]), Some("/to/b".into()));
    assert_eq!(twice(&["/to/a/b", "/to/a-b", "/to/a"]), Some("/to/a".into()));
}

/// A manifest could have 256 MiB parsed as XML.
#[test]
fn a_definition_is_no_longer_than_libvirt_makes_them() {
    let dir = tempfile::tempdir().unwrap();
    let repository = Repository::init(dir.path()).unwrap();
    let domain: DomainName = "web".parse().unwrap();
    let manifest = Manifest::new(PointId::now().unwrap(), domain.clone(), Consistency::Offline);
    let file = |length| MachineFile {
        role: Role::DomainXml,
        path: PathBuf::from("/etc/libvirt/qemu/web.xml"),
        length,
        mode: 0o600,
        digest: Digest([7; 32]),
    };
    let mut machine = MachineRecord {
        name: "web".to_owned(),
        uuid: None,
        fell_back: None,
        freeze_ms: None,
        frozen_filesystems: None,
        autostart: false,
        memory: None,
        files: vec![file(XML_LEN_MAX + 1)],
        left_out: Vec::new(),
        missing: Vec::new(),
    };
    let refusal = |machine: &MachineRecord| {
        definition_of(&repository, &domain, machine, &manifest).unwrap_err().chain()
    };
    assert!(refusal(&machine).contains("longer than any definition"));
    machine.files = vec![file(XML_LEN_MAX)];
    assert!(refusal(&machine).contains("is missing"), "it was looked for");
}
