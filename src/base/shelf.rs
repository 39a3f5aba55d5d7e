//! Things that cost work to make, kept as long as they are used often enough.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Arc, Mutex, PoisonError};

use super::error::Result;

/// Parts with a lock of their own: threads that want different things seldom wait for each other.
const PARTS: usize = 16;

/// A bounded number of values by key. What was not used for the longest time makes room.
#[derive(Debug)]
pub(crate) struct Shelf<K, V> {
    parts: [Mutex<Part<K, V>>; PARTS],
    /// How many values a part keeps.
    room: usize,
    hasher: RandomState,
}

#[derive(Debug)]
struct Part<K, V> {
    places: HashMap<K, Place<V>>,
    /// Counts uses.
    clock: u64,
}

#[derive(Debug)]
struct Place<V> {
    used: u64,
    value: Value<V>,
}

/// Empty until somebody has made it. Whoever makes it has the lock, and others wait for the result.
type Value<V> = Arc<Mutex<Option<Arc<V>>>>;

impl<K: Eq + Hash + Copy, V> Shelf<K, V> {
    /// A shelf for about `room` values, and one for each part at least.
    pub fn new(room: usize) -> Self {
        let part = || Mutex::new(Part { places: HashMap::new(), clock: 0 });
        Self {
            parts: std::array::from_fn(|_| part()),
            room: room.div_ceil(PARTS).max(1),
            hasher: RandomState::new(),
        }
    }

    /// The value of `key`. If it is not there, one thread makes it.
    ///
    /// # Errors
    /// Those of `make`. The next caller tries again.
    pub fn get(&self, key: K, make: impl FnOnce() -> Result<V>) -> Result<Arc<V>> {
        let place = self.place(key);
        let mut value = place.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = &*value {
            return Ok(Arc::clone(value));
        }
        let made = Arc::new(make()?);
        *value = Some(Arc::clone(&made));
        Ok(made)
    }

    fn place(&self, key: K) -> Value<V> {
        let number = self.hasher.hash_one(key) as usize % PARTS;
        let Some(part) = self.parts.get(number) else { return Value::default() };
        let mut part = part.lock().unwrap_or_else(PoisonError::into_inner);
        part.clock += 1;
        let clock = part.clock;
        if let Some(place) = part.places.get_mut(&key) {
            place.used = clock;
            return Arc::clone(&place.value);
        }
        if part.places.len() >= self.room {
            let oldest = part.places.iter().min_by_key(|(_, place)| place.used);
            if let Some(oldest) = oldest.map(|(key, _)| *key) {
                part.places.remove(&oldest);
            }
        }
        let value = Value::default();
        part.places.insert(key, Place { used: clock, value: Arc::clone(&value) });
        value
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::super::error::{Error, ErrorKind};
    use super::*;

    #[test]
    fn a_value_is_made_once_for_all_threads_and_room_is_bounded() {
        let shelf: Shelf<u64, u64> = Shelf::new(64);
        let made = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for key in 0..4 {
                        let value = shelf.get(key, || {
                            made.fetch_add(1, Ordering::Relaxed);
                            Ok(key + 1)
                        });
                        assert_eq!(*value.unwrap(), key + 1);
                    }
                });
            }
        });
        assert_eq!(made.into_inner(), 4);
        for key in 0..10_000 {
            shelf.get(key, || Ok(key)).unwrap();
        }
        let kept: usize = shelf.parts.iter().map(|part| part.lock().unwrap().places.len()).sum();
        assert_eq!(kept, 64);
    }

    #[test]
    fn a_failure_is_not_kept() {
        let shelf: Shelf<u64, u64> = Shelf::new(1);
        let failed = shelf.get(1, || Err(Error::new(ErrorKind::Io, "no")));
        assert_eq!(failed.unwrap_err().kind(), ErrorKind::Io);
        assert_eq!(*shelf.get(1, || Ok(5)).unwrap(), 5);
        assert_eq!(*shelf.get(1, || Ok(6)).unwrap(), 5);
    }
}
