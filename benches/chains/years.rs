//! Three years of nights on real archives: what merging writes, and what the repository takes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use qdelta::base::period::Period;
use qdelta::flows::merge::MergeOptions;
use qdelta::flows::prune::{self, PruneRequest};
use qdelta::flows::report::{Fate, PruneReport, Spare};
use qdelta::flows::retain::{Clock, Policy};
use qdelta::formats::archive::Digest;
use qdelta::vault::repository::{Count, Keep};
use qdelta::{Cancel, DomainName, PointId, Repository, Resources, Silent, VerifyRequest};

use super::generate::{Generator, Outcome, Shape};

const NIGHTS: u64 = 3 * 365;
const GUESTS: [&str; 3] = ["a", "web", "database"];
/// At how many moments all roots are proved.
const PROOFS: usize = 50;

/// Bytes that merges may write for each byte of backups.
const WRITTEN_MAX: f64 = 4.0;
/// Bytes that may be stored for each one that the kept points need.
const STORED_MAX: f64 = 1.35;

/// What happened until a night, and how things stand then.
struct Night {
    /// Bytes that merges wrote for each byte of backups.
    written: f64,
    /// Bytes stored for each one that the kept points need.
    stored: f64,
}

/// Measures the policies. A smaller number of nights is for a first look.
pub fn measure(folder: &Path, counts: &[u64]) -> Outcome<()> {
    let nights = counts.first().copied().unwrap_or(NIGHTS);
    let of = |number| Some(Count::Of(number));
    let policies = [
        (
            "7 daily, 4 weekly, 12 monthly, 3 yearly",
            Keep { daily: of(7), weekly: of(4), monthly: of(12), yearly: of(3), ..Keep::default() },
        ),
        ("7 daily", Keep { daily: of(7), ..Keep::default() }),
        ("the last one", Keep { last: of(1), ..Keep::default() }),
        ("12 monthly", Keep { monthly: of(12), ..Keep::default() }),
    ];
    let mut lives = Vec::new();
    for (name, keep) in policies {
        let _ = fs::remove_dir_all(folder);
        let life = live(folder, &keep, nights)?;
        let worst = |of: fn(&Night) -> f64| life.iter().map(of).fold(0.0, f64::max);
        let (written, stored) = (worst(|it| it.written), worst(|it| it.stored));
        eprintln!("{name}: written {written:.2}, stored {stored:.2}");
        if written > WRITTEN_MAX || stored > STORED_MAX {
            return Err(format!("{name} breaks its bounds").into());
        }
        lives.push((name, life));
    }
    println!("{}", svg(&lives)?);
    Ok(())
}

/// The guests of one repository, and what is known of their points.
struct Guests {
    repository: Repository,
    generators: Vec<Generator>,
    roots: BTreeMap<(usize, PointId), Digest>,
    /// By guest and night: the blocks that were written.
    written: Vec<Vec<Vec<u32>>>,
}

fn live(folder: &Path, keep: &Keep, nights: u64) -> Outcome<Vec<Night>> {
    fs::create_dir_all(folder)?;
    let repository = Repository::init(folder)?;
    let generator = |name: &&str| Generator::within(repository.clone(), name, Shape::NIGHTS);
    let mut guests = Guests {
        generators: GUESTS.iter().map(generator).collect::<Outcome<_>>()?,
        roots: BTreeMap::new(),
        written: vec![Vec::new(); GUESTS.len()],
        repository,
    };
    let mut random = fastrand::Rng::with_seed(13);
    let proofs: BTreeSet<u64> = (0..PROOFS).map(|_| random.u64(..nights)).collect();
    let (mut life, mut backed_up, mut merged) = (Vec::new(), 0, 0);
    for night in 0..nights {
        let before = guests.stored()?;
        let now = guests.back_up()?;
        backed_up += guests.stored()? - before;
        let report = guests.prune(keep, now)?;
        merged += report.guests.iter().map(|guest| guest.data.bytes_written).sum::<u64>();
        if night == nights - 1 || proofs.contains(&night) {
            guests.prove(&report)?;
        }
        let needed = guests.needed(&report);
        life.push(Night {
            written: merged as f64 / backed_up as f64,
            stored: guests.stored()? as f64 / needed as f64,
        });
    }
    Ok(life)
}

impl Guests {
    /// Bytes of all archives.
    fn stored(&self) -> Outcome<u64> {
        let mut bytes = 0;
        for name in GUESTS {
            let folder = self.repository.path().join(name).join("vda");
            for entry in fs::read_dir(folder).into_iter().flatten() {
                let entry = entry?;
                if entry.path().extension().is_some_and(|it| it == "qdelta") {
                    bytes += entry.metadata()?.len();
                }
            }
        }
        Ok(bytes)
    }

    /// A backup of every guest. Gives the time an hour later.
    fn back_up(&mut self) -> Outcome<Timestamp> {
        let mut now = Timestamp::UNIX_EPOCH;
        for (guest, generator) in self.generators.iter_mut().enumerate() {
            self.written[guest].push(generator.add()?);
            let (point, root) = generator.newest().ok_or("no point")?;
            self.roots.insert((guest, point), root);
            now = point.time() + SignedDuration::from_hours(1);
        }
        Ok(now)
    }

    fn prune(&self, keep: &Keep, now: Timestamp) -> Outcome<PruneReport> {
        let domains: Result<Vec<DomainName>, _> = GUESTS.iter().map(|it| it.parse()).collect();
        let request = PruneRequest {
            domains: domains?,
            policy: Policy {
                keep: keep.clone(),
                grace: Period::days(7),
                zone: TimeZone::UTC,
                now,
                clock: Clock::Checked,
            },
            time_zone: "UTC".to_owned(),
            merge_share: 25,
            until_free: None,
            dry_run: false,
            merging: MergeOptions::default(),
        };
        let report = prune::run(&self.repository, &request, &Silent, &Cancel::default())?;
        for guest in &report.guests {
            let left = guest.data.spared.iter().find(|it| !matches!(it.why, Spare::Share { .. }));
            if guest.error.is_some() || left.is_some() || guest.clock_in_doubt {
                return Err(format!("{}: {:?} {left:?}", guest.domain, guest.error).into());
            }
        }
        Ok(report)
    }

    /// Proves every point that is there, and that each kept one has the root that it was made with.
    fn prove(&self, report: &PruneReport) -> Outcome<()> {
        let request = VerifyRequest {
            targets: Vec::new(),
            quick: false,
            scrub: None,
            resources: Resources::default(),
        };
        let found = qdelta::verify(&self.repository, &request, &Silent, &Cancel::default())?;
        if let Some(finding) = found.findings.first() {
            return Err(format!("{finding:?}").into());
        }
        let catalog = self.repository.catalog();
        for (index, guest) in report.guests.iter().enumerate() {
            let points = catalog.points(&format!("{}/vda", guest.domain).parse()?)?.points;
            for verdict in guest.points.iter().filter(|it| it.fate == Fate::Keep) {
                let point = points.iter().find(|point| point.id == verdict.point);
                let root = point.map(|point| point.record.root);
                if root != self.roots.get(&(index, verdict.point)).copied() {
                    return Err(
                        format!("{}@{} has another root", guest.domain, verdict.point).into()
                    );
                }
            }
        }
        Ok(())
    }

    /// What the kept points need at least: what was written from each to the next, at the size that a
    /// block has in an archive.
    fn needed(&self, report: &PruneReport) -> u64 {
        let mut blocks = 0;
        for (written, guest) in self.written.iter().zip(&report.guests) {
            let kept = guest.points.iter().filter(|it| it.fate == Fate::Keep);
            let mut next = 0;
            for verdict in kept {
                let night = self.night(verdict.point);
                let changed = written[next..=night].iter().flatten();
                blocks += changed.collect::<BTreeSet<_>>().len() as u64;
                next = night + 1;
            }
        }
        blocks * u64::from(Shape::NIGHTS.block_size)
    }

    /// In which night a point was made.
    fn night(&self, point: PointId) -> usize {
        let first = self.roots.keys().map(|(_, point)| point.as_ms()).min().unwrap_or(0);
        ((point.as_ms() - first) / Shape::NIGHTS.interval_ms) as usize
    }
}

/// Both curves of every policy, side by side.
fn svg(lives: &[(&str, Vec<Night>)]) -> Outcome<String> {
    const COLOURS: [&str; 4] = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd"];
    let mut body = String::new();
    let charts = [
        ("bytes written by merging, for each byte of backups", (0.0, 4.2), WRITTEN_MAX),
        ("bytes stored, for each byte that kept points need", (1.0, 1.4), STORED_MAX),
    ];
    for (index, (title, (low, high), bound)) in charts.into_iter().enumerate() {
        let value = |it: &Night| if index == 0 { it.written } else { it.stored };
        let left = 50.0 + 420.0 * index as f64;
        let (right, before) = (left + 360.0, left - 6.0);
        let y = |value: f64| 40.0 + 240.0 * (high - value) / (high - low);
        writeln!(body, "<text x=\"{left}\" y=\"24\">{title}</text>")?;
        for step in 0..=4 {
            let at = low + (high - low) * f64::from(step) / 4.0;
            writeln!(
                body,
                "<line x1=\"{left}\" x2=\"{right}\" y1=\"{0:.1}\" y2=\"{0:.1}\" stroke=\"#ddd\"/>\
                 <text x=\"{before}\" y=\"{0:.1}\" text-anchor=\"end\">{at:.2}</text>",
                y(at)
            )?;
        }
        writeln!(
            body,
            "<line x1=\"{left}\" x2=\"{right}\" y1=\"{0:.1}\" y2=\"{0:.1}\" stroke=\"#000\" \
             stroke-dasharray=\"4\"/>",
            y(bound)
        )?;
        for ((_, life), colour) in lives.iter().zip(COLOURS) {
            let width = 360.0 / life.len().max(1) as f64;
            let points: Vec<String> = life
                .iter()
                .enumerate()
                .step_by(3)
                .map(|(night, it)| {
                    format!("{:.1},{:.1}", left + width * night as f64, y(value(it)))
                })
                .collect();
            writeln!(
                body,
                "<polyline fill=\"none\" stroke=\"{colour}\" points=\"{}\"/>",
                points.join(" ")
            )?;
        }
    }
    for (index, ((name, life), colour)) in lives.iter().zip(COLOURS).enumerate() {
        let (x, y) = (50 + [0, 250, 330, 430][index], 312);
        writeln!(body, "<text x=\"{x}\" y=\"{y}\" fill=\"{colour}\">{name}</text>")?;
        if index == 0 {
            writeln!(
                body,
                "<text x=\"50\" y=\"332\">{} nights, three guests, 1 % of each disk a night, nine of ten \
                 writes in a third of it, grace of 7 days; dashed: the bound</text>",
                life.len()
            )?;
        }
    }
    Ok(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"860\" height=\"345\" \
         font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"860\" height=\"345\" \
         fill=\"#fff\"/>\n{body}</svg>"
    ))
}
