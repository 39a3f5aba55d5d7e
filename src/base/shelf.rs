//! Things that cost work to make, kept as long as they are used often enough.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::base::error::Result;

/// Values by key, of a bounded weight in all. Values that were not used for the longest time make room.
#[derive(Debug)]
pub(crate) struct Shelf<K, V> {
    /// Each has a lock of its own: threads that want different things seldom wait for each other.
    parts: Box<[Mutex<Part<K, V>>]>,
    /// What the values of a part may weigh, though a part always keeps one.
    room: u64,
    hasher: RandomState,
}

#[derive(Debug)]
struct Part<K, V> {
    places: HashMap<K, Place<V>>,
    /// Counts uses.
    clock: u64,
    /// What all values weigh.
    weight: u64,
}

#[derive(Debug)]
struct Place<V> {
    used: u64,
    weight: u64,
    value: Arc<Value<V>>,
}

/// A value, once somebody has made it.
#[derive(Debug)]
struct Value<V> {
    /// Whoever makes the value has it, and others wait for the result.
    turn: Mutex<()>,
    made: OnceLock<Arc<V>>,
}

impl<V> Default for Value<V> {
    fn default() -> Self {
        Self { turn: Mutex::default(), made: OnceLock::new() }
    }
}

impl<K: Eq + Hash + Clone, V> Shelf<K, V> {
    /// A shelf in so many parts for values that weigh `room` in all, and for one value of each part at
    /// least.
    pub fn new(parts: usize, room: u64) -> Self {
        let part = || Mutex::new(Part { places: HashMap::new(), clock: 0, weight: 0 });
        let parts = parts.max(1);
        Self {
            parts: std::iter::repeat_with(part).take(parts).collect(),
            room: room / parts as u64,
            hasher: RandomState::new(),
        }
    }

    /// The value of `key`, which weighs so much. If the value is not there, one thread makes it.
    ///
    /// # Errors
    /// Those of `make`. The next caller tries again.
    pub fn get(&self, key: K, weight: u64, make: impl FnOnce() -> Result<V>) -> Result<Arc<V>> {
        let value = self.place(key, weight);
        if let Some(made) = value.made.get() {
            return Ok(Arc::clone(made));
        }
        let _turn = value.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = value.made.get() {
            return Ok(Arc::clone(made));
        }
        let made = Arc::new(make()?);
        Ok(Arc::clone(value.made.get_or_init(|| made)))
    }

    /// The value of `key`, if it is there.
    pub fn find(&self, key: &K) -> Option<Arc<V>> {
        let mut part = self.part(key)?;
        part.clock += 1;
        let used = part.clock;
        let place = part.places.get_mut(key)?;
        place.used = used;
        place.value.made.get().cloned()
    }

    /// Takes a value off the shelf, if it is still this one.
    pub fn forget(&self, key: &K, value: &Arc<V>) {
        let Some(mut part) = self.part(key) else { return };
        let kept = part.places.get(key).and_then(|place| place.value.made.get());
        let is_this = kept.is_some_and(|kept| Arc::ptr_eq(kept, value));
        if is_this {
            part.remove(key);
        }
    }

    fn part(&self, key: &K) -> Option<MutexGuard<'_, Part<K, V>>> {
        let number = self.hasher.hash_one(key) as usize % self.parts.len();
        let part = self.parts.get(number)?;
        Some(part.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn place(&self, key: K, weight: u64) -> Arc<Value<V>> {
        let Some(mut part) = self.part(&key) else { return Arc::default() };
        part.clock += 1;
        let used = part.clock;
        if let Some(place) = part.places.get_mut(&key) {
            place.used = used;
            return Arc::clone(&place.value);
        }
        while part.weight + weight > self.room {
            let oldest = part.places.iter().min_by_key(|(_, place)| place.used);
            let Some(oldest) = oldest.map(|(key, _)| key.clone()) else { break };
            part.remove(&oldest);
        }
        let value: Arc<Value<V>> = Arc::default();
        part.weight += weight;
        part.places.insert(key, Place { used, weight, value: Arc::clone(&value) });
        value
    }
}

impl<K: Eq + Hash, V> Part<K, V> {
    fn remove(&mut self, key: &K) {
        if let Some(place) = self.places.remove(key) {
            self.weight -= place.weight;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::base::error::{Error, ErrorKind};

    fn kept<V>(shelf: &Shelf<u64, V>) -> usize {
        shelf.parts.iter().map(|part| part.lock().unwrap().places.len()).sum()
    }

    #[test]
    fn a_value_is_made_once_for_all_threads_and_room_is_bounded() {
        let shelf: Shelf<u64, u64> = Shelf::new(16, 64 * 10);
        let made = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for key in 0..4 {
                        let value = shelf.get(key, 10, || {
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
            shelf.get(key, 10, || Ok(key)).unwrap();
        }
        assert_eq!(kept(&shelf), 64);
        for key in 0..10_000 {
            shelf.get(key + 10_000, 1000, || Ok(key)).unwrap();
        }
        assert_eq!(kept(&shelf), 16, "one of each part, however heavy");
        let value = shelf.get(19_999, 1000, || Ok(1)).unwrap();
        shelf.forget(&19_999, &Arc::new(9999));
        assert_eq!(kept(&shelf), 16, "another value is not this one");
        shelf.forget(&19_999, &value);
        assert_eq!(kept(&shelf), 15);
    }

    #[test]
    fn a_failure_is_not_kept() {
        let shelf: Shelf<u64, u64> = Shelf::new(1, 1);
        let failed = shelf.get(1, 1, || Err(Error::new(ErrorKind::Io, "no")));
        assert_eq!(failed.unwrap_err().kind(), ErrorKind::Io);
        assert_eq!(*shelf.get(1, 1, || Ok(5)).unwrap(), 5);
        assert_eq!(*shelf.get(1, 1, || Ok(6)).unwrap(), 5);
    }
}
