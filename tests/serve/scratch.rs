//! Clients that write: into the scratch file, and nowhere else.

use qdelta::formats::nbd::{Command, CommandFlags};

use super::client::{Client, Reply};
use super::*;
use crate::harness::files::Mount;
use crate::harness::images::qemu_img;
use crate::harness::{run, tool};

/// Writes something; gives the error's number.
fn change(
    client: &mut Client,
    command: Command,
    flags: u16,
    offset: u64,
    len: u32,
    data: &[u8],
) -> u32 {
    let cookie = client.ask(command, CommandFlags(flags), offset, len);
    client.say(data);
    match client.chunks(cookie, 0).pop().unwrap() {
        Reply::Error(error, _) | Reply::Simple { error, .. } => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_written_is_read_again_also_by_the_next_server() {
    let scene = Scene::new(2, "64K");
    // A store keeps the promises of a reader that was killed until they end.
    let files = || {
        let is_promise = |file: &std::path::PathBuf| {
            file.file_name().unwrap().to_string_lossy().starts_with(".keep")
        };
        let files = scene.repo.tree().into_iter();
        files.filter(|file| !is_promise(file)).collect::<Vec<_>>()
    };
    let before = files();
    let (name, scratch) = (scene.name(1), scene.lab.path("scratch"));
    let arguments = [name.as_str(), "--scratch", scratch.to_str().unwrap()];
    let mut model = scene.bytes(1);
    let mut random = Random::new(8);
    for round in 0..4 {
        let serving = scene.serve(&arguments);
        let mut clients = [true, false].map(|it| Client::ready(&serving.socket, "", it));
        assert!(clients[0].read(0, SIZE as u32).unwrap() == model, "round {round}");
        for _ in 0..60 {
            let client = &mut clients[random.below(2) as usize];
            let offset = random.below(SIZE as u64);
            let len = random.pick(&[1, 512, 4096, 5000, 70_000, 600_000]).min(SIZE as u64 - offset);
            let place = offset as usize..(offset + len) as usize;
            let flags = u16::from(random.one_in(8));
            match random.below(8) {
                0 => {
                    let flags = flags | random.pick(&[0, 2]);
                    assert_eq!(
                        change(client, Command::WriteZeroes, flags, offset, len as u32, &[]),
                        0
                    );
                    model[place].fill(0);
                }
                1 => {
                    assert_eq!(change(client, Command::Flush, 0, 0, 0, &[]), 0);
                }
                2 => {
                    // Whole units of 4 KiB read as zeros, and the rest stays.
                    let start = offset.next_multiple_of(4096) as usize;
                    let end = if place.end == SIZE { SIZE } else { place.end / 4096 * 4096 };
                    assert_eq!(change(client, Command::Trim, flags, offset, len as u32, &[]), 0);
                    if start < end {
                        model[start..end].fill(0);
                    }
                }
                _ => {
                    let data = random.noise(len as usize);
                    assert_eq!(change(client, Command::Write, flags, offset, len as u32, &data), 0);
                    model[place].copy_from_slice(&data);
                }
            }
            let at = random.below(SIZE as u64 - 4096);
            let other = &mut clients[random.below(2) as usize];
            assert!(other.read(at, 4096).unwrap() == model[at as usize..][..4096], "round {round}");
        }
        assert_eq!(change(&mut clients[0], Command::Write, 0, SIZE as u64 - 1, 2, &[1, 2]), 28);
        assert!(clients[1].read(0, SIZE as u32).unwrap() == model);
        // What was written is data, and what is told of the rest is true.
        let cookie = clients[0].ask(Command::BlockStatus, CommandFlags::default(), 0, SIZE as u32);
        let Reply::Status(runs) = clients[0].chunks(cookie, 0).remove(0) else {
            panic!("no status")
        };
        let mut at = 0;
        for (len, flags) in runs {
            let part = &model[at..at + len as usize];
            assert!(flags == 0 || part.iter().all(|byte| *byte == 0), "{len} bytes at {at}");
            at += len as usize;
        }
        assert_eq!(at, SIZE);
        drop(clients);
        match round {
            // A server that is killed has noted everything.
            0 | 2 => serving.signal(Signal::KILL),
            _ => drop(serving.stop().ok()),
        }
    }
    // The point is what it was, and the repository, too.
    assert_eq!(files(), before);
    scene.repo.assert_restores_raw(&scene.lab, &name, &scene.points[1].1);
    // It belongs to this point alone, and to one server.
    let other = scene.name(0);
    let refused = |arguments: Vec<std::ffi::OsString>, status| {
        let mut all = args!["serve", "--socket", scene.lab.path("t.sock")];
        all.extend(arguments);
        scene.repo.run(all).fails_with(status)
    };
    let said = refused(args![other.as_str(), "--scratch", scratch.as_path()], 7);
    assert!(said.contains(&format!("it belongs to {name}, not to {other}")), "{said}");
    let serving = scene.serve(&arguments);
    refused(args![name.as_str(), "--scratch", scratch.as_path()], 5);
    drop(serving);
    let image = scene.points[0].1.as_path();
    refused(args![name.as_str(), "--scratch", image], 7);
    assert!(std::fs::read(image).unwrap() == scene.bytes(0));
    // No file lies in a store.
    if !scene.repo.is_in_a_store() {
        refused(args![name.as_str(), "--scratch", scene.repo.path.join("scratch")], 2);
    }
    refused(args!["--scratch", scratch.as_path()], 2);
}

#[test]
fn real_clients_write() {
    let scene = Scene::new(1, "64K");
    let scratch = scene.lab.path("scratch");
    let serving = scene.serve(&["web", "--scratch", scratch.to_str().unwrap()]);
    let uri = serving.uri("");
    let can = |what: &str| run(tool("nbdinfo", args!["--can", what, uri.as_str()])).code();
    for what in ["write", "trim", "zero", "flush", "fua", "multi-conn", "df"] {
        assert_eq!(can(what), Some(0), "{what}");
    }
    let commands = [
        "write -P 9 1M 100k",
        "write -z 4M 200k",
        "discard 2M 1M",
        "write -f -P 8 5000 3",
        "flush",
    ];
    let qemu_io = |file: &str, expected: &str| {
        let mut all = args!["-f", "raw", "-d", "unmap"];
        commands.iter().for_each(|command| all.extend(args!["-c", *command]));
        all.push(file.into());
        let said = run(tool("qemu-io", all)).ok();
        assert!(!said.text().contains("failed"), "{expected}: {}", said.report());
    };
    qemu_io(&uri, "the server");
    let model = scene.lab.path("model.raw");
    std::fs::copy(&scene.points[0].1, &model).unwrap();
    qemu_io(model.to_str().unwrap(), "a file");
    qemu_img(args!["compare", "-f", "raw", "-F", "raw", uri.as_str(), model.as_path()]).ok();
    serving.stop().ok();
}

#[test]
fn a_full_disk_is_an_error_of_the_request_and_nothing_is_lost() {
    let scene = Scene::new(1, "64K");
    // Room for some units, and for the bitmaps.
    let small = Mount::in_memory(scene.lab.dir(), 2 << 20);
    let scratch = small.dir.join("scratch");
    let serving = scene.serve(&["web", "--scratch", scratch.to_str().unwrap()]);
    let mut client = Client::ready(&serving.socket, "", true);
    let mut model = scene.bytes(0);
    let mut random = Random::new(8);
    let mut full = 0;
    for at in (0..6 * MIB).step_by(64 << 10) {
        let data = random.noise(64 << 10);
        match change(&mut client, Command::Write, 0, at as u64, 64 << 10, &data) {
            0 => model[at..at + (64 << 10)].copy_from_slice(&data),
            error => {
                assert_eq!(error, 28, "no space");
                full += 1;
                // It may have been written in part.
                let read = client.read(at as u64, 64 << 10).unwrap();
                model[at..at + (64 << 10)].copy_from_slice(&read);
            }
        }
    }
    assert!(full > 10 && full < 96, "{full}");
    assert!(client.read(0, SIZE as u32).unwrap() == model);
    // There is room again.
    assert_eq!(change(&mut client, Command::Trim, 0, 0, 1 << 20, &[]), 0);
    model[..1 << 20].fill(0);
    let data = random.noise(64 << 10);
    assert_eq!(change(&mut client, Command::Write, 1, 5 << 20, 64 << 10, &data), 0);
    model[5 << 20..][..64 << 10].copy_from_slice(&data);
    assert!(client.read(0, SIZE as u32).unwrap() == model);
    drop(client);
    let said = serving.stop().ok().stderr;
    assert!(said.contains("No space left"), "{said}");
}
