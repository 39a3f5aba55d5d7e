//! Forecasts of lives that are played: a steady state is no growth, and growth is told in time and once.

use super::forecast::{Series, Together};
use crate::vault::repository::Size;

const DAY_S: i64 = 86_400;
const FIRST: i64 = 20_000;

/// A guest, as its host remembers it: what is there at the end of each day, and at the highest of it.
#[derive(Default)]
struct Guest {
    sizes: Vec<Size>,
}

impl Guest {
    /// A night: so much comes, and then so much goes.
    fn night(&mut self, came: u64, went: u64) {
        let before = self.sizes.last().map_or(0, |it| it.last);
        let day = FIRST + self.sizes.len() as i64;
        let high = before + came;
        self.sizes.push(Size { at_s: day * DAY_S + 5400, high, last: high - went });
    }

    fn last(&self) -> u64 {
        self.sizes.last().unwrap().last
    }

    fn series(&self) -> Series {
        Series::noted(&self.sizes)
    }
}

/// The alarm after each night of guests that share a room.
#[derive(Default)]
struct Room {
    alarms: Vec<bool>,
    lefts: Vec<Option<f64>>,
}

impl Room {
    fn look(&mut self, guests: &[&Guest], room: u64) {
        let series: Vec<Series> = guests.iter().map(|it| it.series()).collect();
        let now_s = guests[0].sizes.last().unwrap().at_s + 3600;
        let stored: u64 = guests.iter().map(|it| it.last()).sum();
        let free = room.checked_sub(stored).expect("it never was full");
        let trend = Together::of(&series.iter().collect::<Vec<_>>(), now_s).trend(Some(free));
        self.alarms.push(trend.is_some_and(|it| it.is_soon));
        self.lefts.push(trend.and_then(|it| it.days_left));
    }

    /// How often it began.
    fn began(&self) -> usize {
        let before = std::iter::once(&false).chain(&self.alarms);
        before.zip(&self.alarms).filter(|(before, now)| !**before && **now).count()
    }
}

/// Every third night the room was to be full in four days, and the night after all was right again, for ever.
#[test]
fn a_steady_state_is_no_growth_whatever_its_cycle() {
    for (cycle, nights) in [(1_u64, 60), (2, 60), (3, 60), (7, 90), (16, 150), (30, 250)] {
        // A full and its increments; at the next full they go. The room is the most that is there, and a tenth.
        let (full, increment) = (100, 8);
        let most = 2 * full + cycle * increment;
        let (mut guest, mut room) = (Guest::default(), Room::default());
        for night in 0..nights {
            match night % cycle {
                0 => guest.night(full, if night == 0 { 0 } else { guest.last() }),
                _ => guest.night(increment, 0),
            }
            room.look(&[&guest], most + most / 10);
        }
        // Before anything went, all that comes is growth; two cycles later it is known to be none.
        let steady = &room.alarms[3 * cycle as usize + 2..];
        assert!(!steady.contains(&true), "cycle of {cycle}: {:?}", room.lefts);
        assert!(room.began() <= 1, "cycle of {cycle}: {:?}", room.lefts);
    }
}

/// Guests whose cycles are of different lengths and begin on different days.
#[test]
fn the_cycles_of_many_guests_are_no_growth_together() {
    let mut guests: Vec<Guest> = (0..12).map(|_| Guest::default()).collect();
    let mut room = Room::default();
    for night in 0..200_u64 {
        for (number, guest) in guests.iter_mut().enumerate() {
            let cycle = [7, 14, 21][number % 3];
            match (night + number as u64) % cycle {
                0 => guest.night(100, guest.sizes.last().map_or(0, |it| it.last)),
                _ => guest.night(3 + (night * 7 + number as u64) % 3, 0),
            }
        }
        room.look(&guests.iter().collect::<Vec<_>>(), 3500);
    }
    assert!(!room.alarms[70..].contains(&true), "{:?}", &room.lefts[70..]);
}

/// Growth beneath a cycle is told: once, and in time.
#[test]
fn growth_beneath_a_cycle_is_told_once_and_in_time() {
    for cycle in [1_u64, 3, 7, 30] {
        let (mut guest, mut looks) = (Guest::default(), Room::default());
        let (room, mut full_on) = (3000, None);
        for night in 0..400 {
            // Each full is larger than the one before by five for each day.
            let full = 800 + 5 * night;
            match night % cycle {
                0 => guest.night(full, if night == 0 { 0 } else { guest.last() }),
                _ => guest.night(8, 0),
            }
            if guest.sizes.last().unwrap().high > room {
                full_on = Some(looks.alarms.len());
                break;
            }
            looks.look(&[&guest], room);
        }
        let full_on = full_on.expect("it becomes full");
        let told_on = looks.alarms.iter().position(|it| *it).expect("it is told");
        assert_eq!(looks.began(), 1, "cycle of {cycle}: {:?}", looks.lefts);
        assert!(looks.alarms[full_on - 1], "it is told until the end");
        let (ahead, slack) = (full_on - told_on, cycle as usize);
        assert!(
            (14 - slack.min(7)..=21 + slack).contains(&ahead),
            "cycle of {cycle}: told {ahead} nights ahead"
        );
    }
}

/// Nothing ever goes, every weekday brings another amount, and Sundays a full.
#[test]
fn plain_growth_is_told_once_and_in_time() {
    let (mut guest, mut looks) = (Guest::default(), Room::default());
    let room = 5000;
    let mut night = 0_u64;
    while guest.sizes.last().is_none_or(|it| it.last + 100 < room) {
        guest.night(if night.is_multiple_of(7) { 100 } else { 4 + night % 5 }, 0);
        looks.look(&[&guest], room);
        night += 1;
    }
    let told_on = looks.alarms.iter().position(|it| *it).expect("it is told");
    assert_eq!(looks.began(), 1, "{:?}", looks.lefts);
    let ahead = looks.alarms.len() - told_on;
    assert!((10..=20).contains(&ahead), "told {ahead} nights ahead");
}

/// What comes becomes more in one night: it is told while there is still time.
#[test]
fn sudden_growth_is_told_in_time() {
    let (mut guest, mut looks) = (Guest::default(), Room::default());
    (0..80).for_each(|_| guest.night(20, if guest.sizes.is_empty() { 0 } else { 20 }));
    let room = 1000;
    while guest.last() + 25 < room {
        guest.night(45, 20);
        looks.look(&[&guest], room);
    }
    let told_on = looks.alarms.iter().position(|it| *it).expect("it is told");
    assert_eq!(looks.began(), 1, "{:?}", looks.lefts);
    assert!(looks.alarms.len() - told_on >= 7, "{:?}", looks.lefts);
}

/// What was removed by hand, once, is no cycle.
#[test]
fn room_that_was_made_once_hides_no_growth() {
    let (mut guest, mut looks) = (Guest::default(), Room::default());
    (0..90).for_each(|_| guest.night(10, 0));
    guest.night(10, 400);
    let room = 1000;
    while guest.last() + 10 < room {
        guest.night(10, 0);
        looks.look(&[&guest], room);
    }
    let told_on = looks.alarms.iter().position(|it| *it).expect("it is told");
    let ahead = looks.alarms.len() - told_on;
    assert_eq!((looks.began(), ahead), (1, 13), "{:?}", looks.lefts);
}

/// Others write to the same filesystem: the next full finds no room any more.
#[test]
fn room_that_others_took_is_missed_before_the_next_time_of_the_most() {
    let mut guest = Guest::default();
    for night in 0..40 {
        match night % 7 {
            0 => guest.night(100, if night == 0 { 0 } else { guest.last() }),
            _ => guest.night(5, 0),
        }
    }
    let look = |free| {
        let series = guest.series();
        Together::of(&[&series], guest.sizes.last().unwrap().at_s).trend(Some(free)).unwrap()
    };
    assert_eq!((look(150).bytes_per_day, look(150).days_left), (0.0, None));
    let taken = look(40);
    assert!(taken.is_soon && taken.days_left.unwrap() < 7.0, "{taken:?}");
}

/// Two nights are no rate, and neither is a fortnight in which points wait to be removed for the first time.
#[test]
fn what_is_not_known_is_not_told() {
    let mut guest = Guest::default();
    for night in 0..20 {
        guest.night(10, 0);
        let (series, waits) = (guest.series(), guest.series().waiting());
        let now_s = guest.sizes.last().unwrap().at_s;
        let known = |series: &Series| Together::of(&[series], now_s).trend(Some(100)).is_some();
        assert_eq!((known(&series), known(&waits)), (night >= 2, night >= 14), "{night}");
    }
    assert!(Together::of(&[], FIRST * DAY_S).trend(Some(100)).is_none());
}
