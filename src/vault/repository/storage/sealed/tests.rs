//! An encrypted storage, and somebody who can write to the one below it.

use super::super::memory::Memory;
use super::*;
use crate::base::error::ErrorKind;
use crate::vault::age::seal_bytes;

fn keys() -> Keys {
    Keys::from(Identity::new().unwrap())
}

fn fresh() -> (Memory, Sealed) {
    let memory = Memory::default();
    let sealed = Sealed::new(Arc::new(memory.clone()), keys());
    (memory, sealed)
}

fn name(text: &str) -> Name {
    text.split('/').fold(Name::top(), |name, part| name.join(part))
}

fn put(storage: &dyn Storage, name: &Name, bytes: &[u8]) {
    let mut staged = storage.stage(name).unwrap();
    staged.write_all(bytes).unwrap();
    staged.seal().unwrap();
    staged.publish(Publish::Replace).unwrap();
}

fn content(len: usize) -> Vec<u8> {
    (0..len as u64).map(|at| (at * 7 / 3 + at / 251) as u8).collect()
}

fn damaged<T: fmt::Debug>(outcome: Result<T>) -> Error {
    let error = outcome.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{}", error.chain());
    error
}

#[test]
fn what_was_written_is_read_at_any_place_and_nothing_shows_it() {
    let (memory, sealed) = fresh();
    for len in [0, 1, 65535, 65536, 65537, 300_000, 5 << 20] {
        let (name, bytes) = (name("web/vda/archive"), content(len));
        put(&sealed, &name, &bytes);
        assert_eq!(sealed.read(&name, len as u64).unwrap(), bytes);
        assert_eq!(sealed.entry(&name).unwrap().unwrap().len, Some(len as u64));
        let listed = sealed.list(&name.folder().unwrap()).unwrap();
        assert_eq!((listed.len(), listed[0].name.as_str()), (1, "archive"));
        assert_eq!(listed[0].len, Some(len as u64));
        let entries = sealed.entries(&name.folder().unwrap(), &["archive", "other"]).unwrap();
        assert_eq!(entries[0].as_ref().unwrap().len, Some(len as u64));
        assert_eq!(entries[1], None);
        let file = sealed.open(&name).unwrap();
        assert_eq!(file.len().unwrap(), len as u64);
        for (offset, count) in
            [(0, len), (1, len / 2), (65535, 2), (70_000, 140_000), (len - len / 3, len / 3)]
        {
            let Some(wanted) = bytes.get(offset..offset + count) else { continue };
            let mut found = vec![0; count];
            file.read_exact_at(&mut found, offset as u64).unwrap();
            assert!(found == wanted, "{count} bytes at {offset} of {len}");
        }
        assert_eq!(file.read_at(&mut [0; 10], len as u64).unwrap(), 0);
        assert!(sealed.read(&name, len as u64 + 1).is_ok());
        assert!(len == 0 || sealed.read(&name, len as u64 - 1).is_err());
    }
    let names = format!("{:?}", memory.names());
    assert!(!names.contains("web") && !names.contains("archive"), "{names}");
    let stored = memory.read(&memory.names()[0], u64::MAX).unwrap();
    let header = String::from_utf8_lossy(&stored[..HEADER_LEN as usize]).into_owned();
    assert!(header.starts_with("age-encryption.org/v1\n-> X25519 ") && header.ends_with('\n'));
    assert!(!stored.windows(16).any(|window| window == &content(16)[..]));
}

#[test]
fn the_configuration_and_locks_are_not_encrypted() {
    let (memory, sealed) = fresh();
    put(&sealed, &name("qdelta.toml"), b"text");
    assert_eq!(memory.read(&name("qdelta.toml"), 10).unwrap(), b"text");
    assert_eq!(sealed.read(&name("qdelta.toml"), 10).unwrap(), b"text");
    assert_eq!(sealed.entry(&name("qdelta.toml")).unwrap().unwrap().len, Some(4));
    let lock = sealed.lock(&name("web/.lock"), LockMode::Exclusive, Wait::UNHEARD).unwrap();
    assert!(matches!(lock, Locked::Held(_)));
    assert!(matches!(
        sealed.lock(&name("web/.lock"), LockMode::Shared, Wait::UNHEARD).unwrap(),
        Locked::Busy(_)
    ));
    // A guest of that name is another one's.
    put(&sealed, &name("web/qdelta.toml"), b"text");
    assert!(memory.read(&name("web/qdelta.toml"), 10).is_err());
}

/// Whoever can write to the storage, and knows to whom everything is encrypted.
#[test]
fn what_was_swapped_renamed_or_forged_is_never_taken_for_the_file() {
    let (memory, sealed) = fresh();
    let (one, other) = (name("web/points/a.json"), name("web/points/b.json"));
    put(&sealed, &one, b"one");
    put(&sealed, &other, b"other");
    let (one_there, other_there) = (sealed.sealed(&one).unwrap(), sealed.sealed(&other).unwrap());
    let (one_bytes, other_bytes) =
        (memory.read(&one_there, 1000).unwrap(), memory.read(&other_there, 1000).unwrap());
    let forged = seal_bytes(b"forged", For::Recipient(&sealed.keys.host.recipient)).unwrap();
    let strangers = Sealed::new(Arc::new(Memory::default()), keys());
    put(&strangers, &one, b"one");
    let foreign = strangers.inner.read(&strangers.sealed(&one).unwrap(), 1000).unwrap();
    for (bytes, why) in [
        (&other_bytes, "another file of the repository"),
        (&forged, "no key of a host"),
        (&foreign, "somebody else"),
        (&b"plain".to_vec(), "age file"),
        (&Vec::new(), "version"),
    ] {
        put(&memory, &one_there, bytes);
        for error in [damaged(sealed.read(&one, 1000)), damaged(sealed.open(&one).map(drop))] {
            assert!(error.chain().contains(why), "{}", error.chain());
        }
    }
    put(&memory, &one_there, &one_bytes);
    assert_eq!(sealed.read(&one, 1000).unwrap(), b"one");
    // In another folder the name is none.
    put(&memory, &sealed.sealed(&name("db/points")).unwrap().join(one_there.last()), &one_bytes);
    assert!(sealed.list(&name("db/points")).unwrap().is_empty());
}

#[test]
fn every_byte_counts() {
    let (memory, sealed) = fresh();
    let name = name("web/vda/archive");
    for len in [0, 100] {
        put(&sealed, &name, &content(len));
        let there = sealed.sealed(&name).unwrap();
        let bytes = memory.read(&there, 1000).unwrap();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x20;
            put(&memory, &there, &changed);
            damaged(sealed.read(&name, 1000));
            damaged(sealed.open(&name).map(drop));
            put(&memory, &there, &bytes[..at]);
            damaged(sealed.read(&name, 1000));
            damaged(sealed.open(&name).map(drop));
        }
    }
}

/// A salvage takes what is around a damaged piece.
#[test]
fn a_damaged_piece_is_an_error_of_its_own_place() {
    let (memory, sealed) = fresh();
    let (name, bytes) = (name("web/vda/archive"), content(300_000));
    put(&sealed, &name, &bytes);
    let there = sealed.sealed(&name).unwrap();
    let mut stored = memory.read(&there, 1 << 20).unwrap();
    stored[HEADER_LEN as usize + 16 + 2 * (65536 + 16) + 5] ^= 1;
    put(&memory, &there, &stored);
    let file = sealed.open(&name).unwrap();
    let mut found = vec![0; 131_072];
    file.read_exact_at(&mut found, 0).unwrap();
    assert!(found == bytes[..131_072]);
    let mut found = vec![0; 300_000 - 196_608];
    file.read_exact_at(&mut found, 196_608).unwrap();
    assert!(found == bytes[196_608..]);
    for (offset, count) in
        [(131_072, 1), (196_607, 1), (131_071, 2), (0, 300_000), (100_000, 150_000)]
    {
        let error = file.read_exact_at(&mut vec![0; count], offset).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(error.to_string().contains("131072"), "{error}");
    }
    // Cut off between two pieces: the end is not what was the end.
    for pieces in 1..5 {
        put(&memory, &there, &stored[..HEADER_LEN as usize + 16 + pieces * (65536 + 16)]);
        let error = damaged(sealed.open(&name).map(drop));
        assert!(error.chain().contains("its end"), "{}", error.chain());
    }
}

#[test]
fn a_host_s_key_adds_files_and_opens_none() {
    let memory = Memory::default();
    let all = keys();
    let host = Sealed::new(Arc::new(memory.clone()), Keys::from(all.host.clone()));
    let admin = Sealed::new(Arc::new(memory), all);
    let name = name("web/vda/archive");
    put(&host, &name, b"content");
    assert_eq!(admin.read(&name, 10).unwrap(), b"content");
    assert_eq!(host.list(&name.folder().unwrap()).unwrap()[0].name, "archive");
    assert_eq!(host.entry(&name).unwrap().unwrap().len, Some(7));
    for error in [host.read(&name, 10).unwrap_err(), host.open(&name).map(drop).unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::Key);
    }
}
