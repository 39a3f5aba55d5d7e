//! The library's flows end to end, on an image that qemu-img made.

use std::path::Path;
use std::process::Command;

use qdelta::base::cancel::Cancel;
use qdelta::base::observer::Silent;
use qdelta::disk::flow::pipeline::Resources;
use qdelta::disk::image::OpenOptions;
use qdelta::flows::backup::{self, Options};
use qdelta::flows::restore::{self, Destination};
use qdelta::flows::verify;
use qdelta::guest::libvirt::Libvirt;
use qdelta::vault::repository::{Repository, Selector};

fn sh(command: &str, dir: &Path) {
    let status = Command::new("sh").arg("-ec").arg(command).current_dir(dir).status().unwrap();
    assert!(status.success(), "{command}");
}

#[test]
fn full_and_increments_restore_exactly() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    sh("qemu-img create -q -f qcow2 disk.qcow2 100M; mkdir repo", root);
    let repository = Repository::init(&root.join("repo")).unwrap();
    let steps = [
        "write -P 1 0 5M\" -c \"write -P 2 40M 3M",
        "write -P 3 1M 70k\" -c \"write -z 41M 1M",
        "discard 0 1M\" -c \"write -P 9 99M 1M",
    ];
    for (number, step) in steps.iter().enumerate() {
        sh(&format!("qemu-io -f qcow2 -c \"{step}\" disk.qcow2 >/dev/null"), root);
        sh(&format!("qemu-img convert -O raw disk.qcow2 expected-{number}.raw"), root);
        let image = backup::ImageRequest {
            path: root.join("disk.qcow2"),
            open: OpenOptions::default(),
            disk: None,
        };
        let request = backup::BackupRequest { image, options: Options::default() };
        let report = backup::run(&repository, &request, &Silent, &Cancel::default()).unwrap();
        println!("{report:?}");
        for format in [qdelta::disk::image::Format::Raw, qdelta::disk::image::Format::Qcow2] {
            let output = root.join(format!("restored-{number}.{format}"));
            let request = restore::RestoreRequest {
                destination: Destination::Path(output),
                format,
                force: false,
                libvirt: Libvirt::default(),
                salvage: false,
                resources: Resources::default(),
            };
            let disk = "disk".parse().unwrap();
            let report = restore::run(
                &repository,
                &disk,
                &Selector::Latest,
                request,
                &Silent,
                &Cancel::default(),
            )
            .unwrap();
            println!("{report:?}");
        }
        sh(&format!("cmp expected-{number}.raw restored-{number}.raw"), root);
        sh(&format!("qemu-img check -q restored-{number}.qcow2"), root);
        sh(&format!("qemu-img compare -q expected-{number}.raw restored-{number}.qcow2"), root);
    }
    for quick in [false, true] {
        let request = verify::VerifyRequest {
            targets: Vec::new(),
            quick,
            scrub: None,
            resources: Resources::default(),
        };
        let report = verify::run(&repository, &request, &Silent, &Cancel::default()).unwrap();
        println!("{report:?}");
        assert!(report.findings.is_empty(), "{:?}", report.findings);
        assert_eq!((report.points, report.archives), (3, 3));
    }
}
