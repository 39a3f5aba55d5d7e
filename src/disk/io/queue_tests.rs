//! The queue against real files, on every engine and at every step of the ring's fall-back.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::io::Errno;

use super::*;
use crate::disk::io::faulty::{Fault, FaultyStore};
use crate::disk::io::{FileStore, Store};

const ENGINES: [(Backend, Refuse); 3] = [
    (Backend::Uring, Refuse { ring: false, buffers: false }),
    (Backend::Uring, Refuse { ring: false, buffers: true }),
    (Backend::Threads, Refuse { ring: false, buffers: false }),
];

/// Bytes that differ from place to place and from seed to seed.
fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..len).map(|_| next() as u8).collect()
}

fn store(dir: &Path, name: &str, bytes: &[u8]) -> Arc<dyn Store> {
    let path = dir.join(name);
    let mut file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    file.write_all(bytes).unwrap();
    Arc::new(FileStore::new(file, path))
}

fn segment(file: usize, offset: u64, range: Range<usize>) -> Segment {
    Segment { file, offset, range }
}

fn read(token: u64, buffer: Buffer, segments: Vec<Segment>) -> Transfer {
    Transfer { token, buffer, segments, direction: Direction::Read }
}

#[test]
fn scattered_reads_bring_the_right_bytes_to_the_right_places() {
    let dir = tempfile::tempdir().unwrap();
    let contents = [pattern(1 << 20, 1), pattern(300_001, 2)];
    for (engine, (backend, refuse)) in ENGINES.into_iter().enumerate() {
        let files: Vec<_> = (0..2)
            .map(|file| store(dir.path(), &format!("{engine}-{file}"), &contents[file]))
            .collect();
        let pool = Pool::new(4, 64 << 10).unwrap();
        let mut queue = Queue::open_refusing(backend, 3, files, &pool, refuse).unwrap();
        assert_eq!(queue.backend(), backend);
        assert_eq!(queue.fallback_reason().is_some(), refuse.buffers);

        let mut expected = BTreeMap::new();
        let mut random = pattern(1 << 16, 3).into_iter().cycle();
        let mut number = move || usize::from(random.next().unwrap()) << 8 | 1;
        let mut checked = 0;
        for token in 0..100 {
            let buffer = match pool.try_take() {
                Some(buffer) => buffer,
                None => {
                    let done = queue.wait().unwrap();
                    done.result.unwrap();
                    let segments: Vec<Segment> = expected.remove(&done.token).unwrap();
                    for Segment { file, offset, range } in segments {
                        let offset = offset as usize;
                        let wanted = &contents[file][offset..offset + range.len()];
                        assert!(done.buffer[range] == *wanted, "job {}", done.token);
                        checked += 1;
                    }
                    drop(done.buffer);
                    pool.try_take().unwrap()
                }
            };
            let mut segments = Vec::new();
            let mut at = 0;
            while at < buffer.len() {
                let len = (number() % 9000).min(buffer.len() - at);
                let file = number() >> 8 & 1;
                let offset = number() * 37 % (contents[file].len() - len);
                segments.push(segment(file, offset as u64, at..at + len));
                at += len;
            }
            segments.reverse();
            expected.insert(token, segments.clone());
            queue.push(read(token, buffer, segments));
            queue.submit().unwrap();
        }
        assert!(checked > 500, "{checked} segments were compared");
        drop(queue);
        assert_eq!(pool.free_count(), pool.count());
    }
}

#[test]
fn what_is_written_is_read_back_while_buffers_travel_between_threads() {
    let dir = tempfile::tempdir().unwrap();
    for (engine, (backend, refuse)) in ENGINES.into_iter().enumerate() {
        let files = vec![store(dir.path(), &engine.to_string(), &[])];
        let pool = Pool::new(3, 8192).unwrap();
        let (sender, receiver) = crossbeam_channel::bounded::<(u64, Buffer)>(3);
        std::thread::scope(|scope| {
            let pool = &pool;
            scope.spawn(move || {
                for token in 0..50 {
                    let mut buffer = pool.take();
                    buffer.copy_from_slice(&pattern(8192, token));
                    sender.send((token, buffer)).unwrap();
                }
            });
            let mut queue = Queue::open_refusing(backend, 2, files, pool, refuse).unwrap();
            for (token, buffer) in receiver {
                let segments = vec![segment(0, token * 8192, 0..8192)];
                queue.push(Transfer { token, buffer, segments, direction: Direction::Write });
                queue.submit().unwrap();
                if queue.pending() == 2 {
                    queue.wait().unwrap().result.unwrap();
                }
            }
            while queue.pending() > 0 {
                queue.wait().unwrap().result.unwrap();
            }
        });
        let file = File::open(dir.path().join(engine.to_string())).unwrap();
        for token in 0..50 {
            let mut bytes = vec![0; 8192];
            file.read_exact_at(&mut bytes, token * 8192).unwrap();
            assert!(bytes == pattern(8192, token));
        }
    }
}

#[test]
fn the_end_of_the_file_within_a_segment_is_an_error_with_path_and_offset() {
    let dir = tempfile::tempdir().unwrap();
    for (engine, (backend, refuse)) in ENGINES.into_iter().enumerate() {
        let name = format!("short-{engine}");
        let files = vec![store(dir.path(), &name, &pattern(10_000, 1))];
        let pool = Pool::new(2, 16384).unwrap();
        let mut queue = Queue::open_refusing(backend, 4, files, &pool, refuse).unwrap();
        let (crossing, good) = (segment(0, 8000, 0..4096), segment(0, 8000, 8192..10_192));
        queue.push(read(1, pool.take(), vec![good.clone(), crossing]));
        queue.push(read(2, pool.take(), vec![good]));
        for _ in 0..2 {
            let done = queue.wait().unwrap();
            if done.token == 2 {
                done.result.unwrap();
                continue;
            }
            let error = done.result.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Io);
            let text = error.chain();
            assert!(text.contains("2096 bytes at 10000 of"), "{text}");
            assert!(text.contains(&name), "{text}");
        }
        assert_eq!(queue.pending(), 0);
        assert_eq!(queue.wait().unwrap_err().kind(), ErrorKind::Usage);
    }
}

#[test]
fn a_segment_that_fits_nowhere_fails_its_job_alone() {
    let dir = tempfile::tempdir().unwrap();
    for (engine, (backend, refuse)) in ENGINES.into_iter().enumerate() {
        let files = vec![store(dir.path(), &engine.to_string(), &[1; 8192])];
        let pool = Pool::new(6, 4096).unwrap();
        let mut queue = Queue::open_refusing(backend, 4, files, &pool, refuse).unwrap();
        #[expect(clippy::reversed_empty_ranges, reason = "that is the point")]
        let bad = [
            segment(1, 0, 0..4096),
            segment(0, 0, 0..4097),
            segment(0, 0, 9..8),
            segment(0, i64::MAX as u64, 0..4096),
        ];
        for (token, bad) in bad.into_iter().enumerate() {
            queue.push(read(token as u64, pool.take(), vec![segment(0, 0, 0..1), bad]));
        }
        queue.push(read(10, pool.take(), vec![segment(0, 0, 0..4096)]));
        queue.push(read(11, pool.take(), vec![segment(0, 9999, 5..5)]));
        for _ in 0..6 {
            let done = queue.wait().unwrap();
            match done.result {
                Ok(()) => assert!(done.token >= 10),
                Err(error) => {
                    assert!(done.token < 10);
                    assert_eq!(error.kind(), ErrorKind::Usage);
                }
            }
        }
    }
}

#[test]
fn dropping_a_busy_queue_returns_every_buffer() {
    let dir = tempfile::tempdir().unwrap();
    for (engine, (backend, refuse)) in ENGINES.into_iter().enumerate() {
        let files = vec![store(dir.path(), &engine.to_string(), &pattern(1 << 20, 1))];
        let pool = Pool::new(16, 64 << 10).unwrap();
        let mut queue = Queue::open_refusing(backend, 4, files, &pool, refuse).unwrap();
        for token in 0..16 {
            queue.push(read(token, pool.take(), vec![segment(0, token << 16, 0..1 << 16)]));
        }
        queue.submit().unwrap();
        drop(queue);
        assert_eq!(pool.free_count(), 16);
    }
}

#[test]
fn no_descriptors_stay_open() {
    let count = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let dir = tempfile::tempdir().unwrap();
    let pool = Pool::new(2, 4096).unwrap();
    // Other tests of this process open files meanwhile: a leak of many shows through their noise.
    let before = count();
    for round in 0..200 {
        let (backend, refuse) = ENGINES[round % ENGINES.len()];
        let files = vec![store(dir.path(), &round.to_string(), &[1; 4096])];
        let mut queue = Queue::open_refusing(backend, 4, files, &pool, refuse).unwrap();
        queue.push(read(0, pool.take(), vec![segment(0, 0, 0..4096)]));
        queue.wait().unwrap().result.unwrap();
    }
    let after = count();
    assert!(after < before + 100, "{before} descriptors before, {after} after");
}

#[test]
fn a_foreign_buffer_is_as_good_as_a_registered_one() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = pattern(4096, 5);
    for (engine, (backend, refuse)) in ENGINES.into_iter().enumerate() {
        let files = vec![store(dir.path(), &engine.to_string(), &bytes)];
        let (pool, other) = (Pool::new(1, 4096).unwrap(), Pool::new(1, 4096).unwrap());
        let mut queue = Queue::open_refusing(backend, 4, files, &pool, refuse).unwrap();
        queue.push(read(0, other.take(), vec![segment(0, 0, 0..4096)]));
        let done = queue.wait().unwrap();
        done.result.unwrap();
        assert!(*done.buffer == *bytes);
    }
}

#[test]
fn what_the_system_refuses_is_done_without_and_said() {
    let dir = tempfile::tempdir().unwrap();
    let files = vec![store(dir.path(), "a", &[1; 4096])];
    let pool = Pool::new(1, 4096).unwrap();
    let open = |backend, refuse| Queue::open_refusing(backend, 2, files.clone(), &pool, refuse);
    let auto = open(Backend::Auto, Refuse::default()).unwrap();
    assert_eq!((auto.backend(), auto.fallback_reason()), (Backend::Uring, None));

    let no_ring = Refuse { ring: true, ..Refuse::default() };
    let auto = open(Backend::Auto, no_ring).unwrap();
    assert_eq!(auto.backend(), Backend::Threads);
    assert!(auto.fallback_reason().unwrap().contains("refused by a test"));
    let error = open(Backend::Uring, no_ring).unwrap_err();
    assert!(error.chain().contains("refused by a test"));
    assert!(error.advice().is_some());

    let no_buffers = Refuse { buffers: true, ..Refuse::default() };
    let auto = open(Backend::Auto, no_buffers).unwrap();
    assert_eq!(auto.backend(), Backend::Uring);
    assert!(auto.fallback_reason().unwrap().contains("registered buffers"));

    let hidden: Arc<dyn Store> = Arc::new(FaultyStore::new(Arc::clone(&files[0]), |_| None));
    let auto = Queue::open(Backend::Auto, 2, vec![hidden], &pool).unwrap();
    assert_eq!(auto.backend(), Backend::Threads);
    assert!(auto.fallback_reason().unwrap().contains("no descriptor"));
}

/// Runs eight jobs of two segments each on the threads, against a store with faults.
fn run_faulty(plan: impl Fn(u64) -> Option<Fault> + Send + Sync + 'static) -> Vec<Option<Error>> {
    let dir = tempfile::tempdir().unwrap();
    let bytes = pattern(1 << 16, 1);
    let faulty = FaultyStore::new(store(dir.path(), "faulty", &bytes), plan);
    let pool = Pool::new(8, 8192).unwrap();
    let mut queue =
        Queue::open(Backend::Threads, 4, vec![Arc::new(faulty) as Arc<dyn Store>], &pool).unwrap();
    for token in 0..8 {
        let base = token * 8192;
        let segments = vec![segment(0, base + 4096, 0..4096), segment(0, base, 4096..8192)];
        queue.push(read(token, pool.take(), segments));
    }
    let mut errors: Vec<_> = (0..8).map(|_| None).collect();
    while queue.pending() > 0 {
        let Done { token, buffer, result } = queue.wait().unwrap();
        let base = token as usize * 8192;
        if result.is_ok() {
            assert!(buffer[..4096] == bytes[base + 4096..base + 8192]);
            assert!(buffer[4096..] == bytes[base..base + 4096]);
        }
        errors[token as usize] = result.err();
    }
    errors
}

#[test]
fn threads_continue_what_is_cut_short_and_repeat_what_is_interrupted() {
    for plan in [
        |_| Some(Fault::Short(1000)),
        |call| (call % 2 == 0).then_some(Fault::Error(Errno::INTR.raw_os_error())),
        |call| (call % 4 == 1).then_some(Fault::Error(Errno::AGAIN.raw_os_error())),
    ] {
        assert!(run_faulty(plan).iter().all(Option::is_none));
    }
}

#[test]
fn a_failed_call_fails_its_job_and_no_other() {
    for call in 0..16 {
        let errors =
            run_faulty(move |n| (n == call).then_some(Fault::Error(Errno::IO.raw_os_error())));
        let failed: Vec<_> = errors.into_iter().flatten().collect();
        assert_eq!(failed.len(), 1);
        assert!(failed[0].chain().contains("4096 bytes at "), "{}", failed[0].chain());
    }
}

#[test]
fn a_store_that_panics_fails_the_job() {
    let errors = run_faulty(|call| if call == 3 { panic!("on purpose") } else { None });
    assert_eq!(errors.iter().flatten().count(), 1);
}

/// Runs jobs of one 4 KiB segment each at the given offsets on a ring whose results `tamper` sees.
fn run_tampered(
    offsets: &[u64],
    tamper: impl FnMut(u64, usize, i32) -> i32 + Send + 'static,
) -> BTreeMap<u64, Option<Error>> {
    let dir = tempfile::tempdir().unwrap();
    let bytes = pattern(1 << 20, 1);
    let files = vec![store(dir.path(), "tampered", &bytes)];
    let pool = Pool::new(offsets.len(), 4096).unwrap();
    let mut queue = Queue::open(Backend::Uring, 8, files, &pool).unwrap();
    let Engine::Uring(ring) = &mut queue.engine else { unreachable!() };
    ring.tamper = Some(Box::new(tamper));
    for offset in offsets {
        queue.push(read(*offset, pool.take(), vec![segment(0, *offset, 0..4096)]));
    }
    let mut errors = BTreeMap::new();
    while queue.pending() > 0 {
        let Done { token, buffer, result } = queue.wait().unwrap();
        let at = token as usize;
        assert!(result.is_err() || *buffer == bytes[at..at + 4096], "{token}");
        errors.insert(token, result.err());
    }
    errors
}

#[test]
fn neighbours_are_read_by_one_operation_in_file_order() {
    let mut offsets: Vec<u64> = (0..40).map(|it| it * 4096).collect();
    offsets.extend((50..60).map(|it| it * 4096));
    offsets.reverse();
    let operations = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&operations);
    let errors = run_tampered(&offsets, move |offset, len, result| {
        counter.fetch_add(1, Ordering::Relaxed);
        assert_eq!(
            (offset, len),
            if offset == 0 { (0, 40 * 4096) } else { (50 * 4096, 10 * 4096) }
        );
        result
    });
    assert_eq!(errors.len(), 50);
    assert!(errors.values().all(Option::is_none));
    assert_eq!(operations.load(Ordering::Relaxed), 2);
}

#[test]
fn the_ring_continues_what_is_cut_short_and_repeats_what_is_interrupted() {
    let offsets: Vec<u64> = (0..30).map(|it| it * 4096).chain([1 << 18, 1 << 19]).collect();
    for how in 0..3 {
        let mut calls = 0;
        let errors = run_tampered(&offsets, move |_, len, result| {
            assert_eq!(result, len as i32);
            calls += 1;
            match how {
                0 => (len as i32).min(5000 - calls),
                1 if calls % 2 == 1 => -Errno::INTR.raw_os_error(),
                2 if calls % 3 == 1 => -Errno::AGAIN.raw_os_error(),
                _ => result,
            }
        });
        assert!(errors.values().all(Option::is_none), "{how}: {errors:?}");
    }
}

#[test]
fn a_bad_sector_fails_its_segment_and_not_the_neighbours_read_with_it() {
    let offsets: Vec<u64> = (0..30).map(|it| it * 4096).collect();
    let bad = 7 * 4096;
    let errors = run_tampered(&offsets, move |offset, len, result| {
        if (offset..offset + len as u64).contains(&bad) {
            -Errno::IO.raw_os_error()
        } else {
            result
        }
    });
    for (offset, error) in errors {
        assert_eq!(error.is_some(), offset == bad);
        if let Some(error) = error {
            assert!(error.chain().contains("4096 bytes at 28672 of"), "{}", error.chain());
        }
    }
}

/// Everything at once, by chance: whatever happens to the operations, a job is either right or an
/// error, and comes back once.
#[test]
fn a_ring_on_a_bad_day_gives_right_bytes_or_errors() {
    for seed in 1..=40 {
        let mut chance = pattern(1 << 14, seed).into_iter().cycle();
        let mut offsets: Vec<u64> =
            (0..60).map(|_| u64::from(chance.next().unwrap()) * 4096).collect();
        offsets.sort_unstable();
        offsets.dedup();
        let errors = run_tampered(&offsets, move |_, len, result| {
            assert_eq!(result, len as i32);
            match chance.next().unwrap() {
                0..20 => -Errno::INTR.raw_os_error(),
                20..24 => -Errno::AGAIN.raw_os_error(),
                24..40 => -Errno::IO.raw_os_error(),
                40..120 => 1 + i32::from(chance.next().unwrap()) * 97 % result,
                _ => result,
            }
        });
        assert_eq!(errors.len(), offsets.len(), "seed {seed}");
        assert!(errors.values().any(Option::is_none), "seed {seed}");
    }
}

#[test]
fn a_queue_without_files_does_nothing_and_complains_of_nothing() {
    let pool = Pool::new(1, 4096).unwrap();
    for (backend, refuse) in ENGINES {
        let mut queue =
            Queue::open_refusing(backend, 1, Vec::<Arc<dyn Store>>::new(), &pool, refuse).unwrap();
        assert_eq!(queue.fallback_reason().is_some(), refuse.buffers);
        queue.push(read(1, pool.take(), vec![]));
        queue.wait().unwrap().result.unwrap();
    }
}

#[test]
fn an_operation_that_is_refused_for_ever_fails_in_the_end() {
    let started = std::time::Instant::now();
    let errors = run_tampered(&[0], |_, _, _| -Errno::AGAIN.raw_os_error());
    assert!(errors[&0].as_ref().unwrap().chain().contains("4096 bytes at 0 of"));
    assert!(started.elapsed() < Duration::from_secs(30));
}

#[test]
fn a_full_device_is_no_space_on_every_engine() {
    for (backend, refuse) in ENGINES {
        let file = File::options().write(true).open("/dev/full").unwrap();
        let files: Vec<Arc<dyn Store>> = vec![Arc::new(FileStore::new(file, "/dev/full"))];
        let pool = Pool::new(1, 4096).unwrap();
        let mut queue = Queue::open_refusing(backend, 4, files, &pool, refuse).unwrap();
        let segments = vec![segment(0, 0, 0..4096)];
        queue.push(Transfer {
            token: 0,
            buffer: pool.take(),
            segments,
            direction: Direction::Write,
        });
        let error = queue.wait().unwrap().result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert!(error.chain().contains("write 4096 bytes at 0 to /dev/full"), "{}", error.chain());
    }
}
