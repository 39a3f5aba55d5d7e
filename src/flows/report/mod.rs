//! What a flow gives back: every result of the library as one type that is written as JSON and read
//! back from it. The program prints these values and nothing of its own; a script or a daemon reads
//! them with the same types.
//!
//! A field that may be missing is `null`, unless its type says that it is left out.

mod anchors;
mod backup;
mod bench;
mod copies;
mod drill;
mod failure;
mod file;
mod files;
mod fleet;
mod host;
mod jobs;
mod kit;
mod marks;
mod merge;
mod mount;
mod notify;
mod points;
mod prune;
mod restore;
mod retain;
mod roll_back;
mod serve;
mod setup;
mod space;
mod status;
mod verify;

pub use crate::disk::image::MapEntry;
pub use anchors::{AnchorReport, AnchorState, AnchorsReport};
pub use backup::{BackupReport, GuestOutcome, GuestReport, GuestsReport, Outcome, StoredSnapshot};
pub use bench::{BenchReport, Cached, DataPathReport, Limit, Stage, StageReport};
pub use copies::{
    Carried, CompareReport, CopiedDisk, CopiedPoint, CopyReport, FailedPoint, GuestCompare,
    GuestCopy, GuestRepair, Mended, Part, PointCompare, RepairReport,
};
pub use drill::{DrillHistory, DrillReport, DrillsReport, GuestDrills};
pub use failure::Failure;
pub use file::{ArchiveContents, ArchiveReport, FileReport, ParentReport};
pub use files::{
    Change, DiffReport, FileChange, FileEntry, FileKind, FilesReport, GuestPath, TakenReport,
    VolumeReport, VolumesReport,
};
pub use fleet::{Day, FleetGuest, FleetPoint, FleetReport, FleetRepository, Left, SiteLoss};
pub use host::{HostChange, HostDifference, HostReport};
pub use jobs::{
    Act, ActPlan, ActResult, End, GuestFate, JobPlan, NotifierPlan, PlanReport, Record, RunHistory,
    RunReport,
};
pub use kit::{KitDisk, KitGuest, KitKind, KitReport, KitRepository};
pub use marks::MarkReport;
pub use merge::{MergeReport, MergedDisk};
pub use mount::MountReport;
pub use notify::{Event, Message, MessagePart, NotifierReport, NotifyReport};
pub use points::{
    DamagedReport, DiskPointsReport, PointReport, PointsReport, PointsTotals, UnreadableReport,
};
pub use prune::{Reclaimed, Spare, Spared};
pub use restore::{
    GuestRange, InstantReport, MachineReport, RestoreReport, SalvageReport, ServedDisk,
};
pub use retain::{Every, Fate, GuestPrune, PruneReport, Reason, Verdict};
pub use roll_back::{InPlaceReport, MachineInPlaceReport};
pub use serve::{ExportReport, ServeReport};
pub use setup::{InitReport, KeyRecord, KeysReport, ManReport};
pub use space::{Growth, GuestSpace, PointSpace, SpaceReport};
pub use status::{
    ActStatus, CopyStatus, FindingCode, GuestStatus, JobStatus, Level, OpenFinding,
    RepositoryStatus, StatusReport, Timer,
};
pub use verify::{
    ArchiveVerdict, DiskVerdict, FileState, Finding, PointVerdict, ScrubReport, VerifyReport,
};
