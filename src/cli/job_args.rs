//! What can be typed about what qdelta does by itself.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};
use qdelta::base::duration::Stretch;
use qdelta::flows::report::Act;

use super::examples;
use super::values::{Words, one_of};

/// The file of jobs.
#[derive(Debug, Args)]
pub struct JobFile {
    /// The file that says what qdelta does by itself on this host
    #[arg(long, value_name = "FILE", env = "QDELTA_CONFIG", default_value = "/etc/qdelta/qdelta.toml", value_hint = ValueHint::FilePath, hide_env_values = true)]
    pub config: PathBuf,
}

/// Do what is due: backups, copies, proofs, pruning and drills, as /etc/qdelta/qdelta.toml says.
///
/// A timer starts this every few minutes. Guests are backed up several at a time, and what fails stops
/// nothing else. A time that was missed, however often, is made up for once. A schedule that is new
/// counts from the first run that sees it. Everything is noted in the history (qdelta history). With
/// jobs, these are done now: the backup, and what follows it without a schedule of its own. SIGTERM
/// ends a run at a safe place; what it left is due again.
#[derive(Debug, Args)]
#[command(after_help = examples::of("run"), after_long_help = examples::long(Some("run")))]
pub struct Run {
    /// Which jobs, whatever is due [default: what is due]
    #[arg(value_name = "JOB")]
    pub jobs: Vec<String>,

    /// Where the file is.
    #[command(flatten)]
    pub file: JobFile,
}

/// Answer in one look: is everything all right?
///
/// For each guest: its newest good point against its RPO, the newest point of each second copy, when a
/// point was proved last, the last drill and its RTO. For each repository: the room, and how long it will
/// last. Then everything that somebody should do something about: what failed and did not succeed since,
/// what is overdue or never ran, points that are damaged or gone, guests that no job covers, disks that
/// are in no point, guests that may be frozen. Status 17 says that something is open.
#[derive(Debug, Args)]
#[command(after_help = examples::of("status"), after_long_help = examples::long(Some("status")))]
pub struct Status {
    /// One line for Nagios, Icinga or Checkmk, with their statuses: 0 OK, 1 WARNING, 2 CRITICAL, 3
    /// UNKNOWN
    #[arg(long, conflicts_with_all = ["json", "watch"])]
    pub nagios: bool,

    /// Look again every few seconds, until Ctrl-C
    #[arg(long)]
    pub watch: bool,

    /// Where the file is.
    #[command(flatten)]
    pub file: JobFile,
}

/// Tell those whom [notify] names what is new to them: findings, and their end.
///
/// qdelta run does the same after its work, and every hour when nothing is due. Another timer that starts
/// this tells also when runs are not started any more. With names, only these are told.
#[derive(Debug, Args)]
#[command(after_help = examples::of("notify"), after_long_help = examples::long(Some("notify")))]
pub struct Notify {
    /// Whom, by the NAME of [notify.NAME] [default: all]
    #[arg(value_name = "NAME")]
    pub notifiers: Vec<String>,

    /// Tell them that this is a test, and nothing else; a watch of pings gets a line for its log (/log)
    #[arg(long)]
    pub test: bool,

    /// Tell them everything, whether it is new or not
    #[arg(long, conflicts_with = "test")]
    pub digest: bool,

    /// Where the file is.
    #[command(flatten)]
    pub file: JobFile,
}

/// Draw a page of how everything stands: one file of HTML for a browser, a printer or a mail.
///
/// The fleet at a glance, what is open, the calendar of nights, what would be lost if a site burned down
/// tonight, each guest against its RPO and RTO with its chain, growth and when the room is full, freezes,
/// and drills with pictures. Nothing in the page is fetched from elsewhere. --json is what it is drawn from.
/// Status 17 says that something is open.
#[derive(Debug, Args)]
#[command(after_help = examples::of("report"), after_long_help = examples::long(Some("report")))]
pub struct Report {
    /// Where the page is written; - is standard output
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath, required_unless_present = "json")]
    pub output: Option<PathBuf>,

    /// How many days are looked at
    #[arg(long, value_name = "N", default_value_t = 90, value_parser = clap::value_parser!(u64).range(1..=3650))]
    pub days: u64,

    /// Replace a file that is there already
    #[arg(short, long, requires = "output")]
    pub force: bool,

    /// Where the file of jobs is.
    #[command(flatten)]
    pub file: JobFile,
}

/// Show what was done by itself on this host, the latest last.
#[derive(Debug, Args)]
#[command(after_help = examples::of("history"), after_long_help = examples::long(Some("history")))]
pub struct History {
    /// Only of this job; can be repeated
    #[arg(long, value_name = "JOB")]
    pub job: Vec<String>,

    /// Only of this guest, or of the image at this path; can be repeated
    #[arg(long, value_name = "NAME")]
    pub guest: Vec<String>,

    /// Only this part of jobs; can be repeated
    #[arg(long, value_name = "ACT", value_parser = one_of::<Act>(ACTS))]
    pub act: Vec<Act>,

    /// Only what did not come to a good end
    #[arg(long)]
    pub failed: bool,

    /// Only of this time: 12h, 7d
    #[arg(long, value_name = "TIME")]
    pub since: Option<Stretch>,

    /// At most so many, the latest
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100)]
    pub last: usize,

    /// Where the file is, in whose zone the times are.
    #[command(flatten)]
    pub file: JobFile,
}

/// The parts of jobs.
const ACTS: Words = &[
    ("run", "The run itself"),
    ("backup", "Backups"),
    ("copy", "Second copies"),
    ("verify", "Proofs"),
    ("prune", "Removal of points"),
    ("drill", "Drills"),
    ("hook", "Hooks"),
    ("notify", "Telling people"),
];

/// Check the file of jobs, or write one to begin with.
#[derive(Debug, Args)]
#[command(after_help = examples::of("config"), after_long_help = examples::long(Some("config")))]
pub struct Config {
    /// What to do.
    #[command(subcommand)]
    pub action: ConfigAction,
}

/// What to do with the file of jobs.
#[derive(Debug, Subcommand)]
pub enum ConfigAction {
    Check(ConfigCheck),
    Example(ConfigExample),
}

/// Say what would run when, and what becomes of each guest.
///
/// What the file does not know is an error with its line and column. Nothing is done.
#[derive(Debug, Args)]
pub struct ConfigCheck {
    /// Where the file is.
    #[command(flatten)]
    pub file: JobFile,
}

/// Write a commented file to begin with to standard output.
#[derive(Debug, Args)]
pub struct ConfigExample {}

/// Write what is needed elsewhere when this site is lost.
///
/// DIR gets this program, the file of jobs, and disaster-recovery.md: the way back step by step, with every command, for
/// the repositories and guests of this site in the order in which they are to come back: class by class, the shortest
/// RTO first, and in a class as its list of guests has them. kit.json has the same for programs. No secret is in it. An older
/// kit in DIR is replaced; a folder that holds anything else is refused.
#[derive(Debug, Args)]
#[command(after_help = examples::of("export-kit"), after_long_help = examples::long(Some("export-kit")))]
pub struct ExportKit {
    /// The folder, which is made if it is missing
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,

    /// Where the file is.
    #[command(flatten)]
    pub file: JobFile,
}
