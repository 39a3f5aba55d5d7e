//! Warnings: what an admin should know though the work was done.
//!
//! A warning has one way to people: the flow tells its observer, and puts it into
//! its result. Nothing is said beside a result that the result does not hold.

use serde::{Deserialize, Serialize};

use crate::base::error::{AGAIN, Error};

/// What a warning is about. Scripts match it; the text is for people and may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Code {
    /// The image is marked as corrupt, or something else about it is odd though it can be read.
    Image,
    /// The guest's definition says something else than an image's header, and was followed.
    Definition,
    /// The filesystem has no locks: nobody can tell who else uses the file.
    NoLocks,
    /// A lock in an object store seems to be left, and is watched until that is clear.
    LeftLock,
    /// No anchor could be left for the next backup.
    NoAnchor,
    /// A snapshot in an image could not become a point, though it was to.
    SnapshotLeftOut,
    /// Points stay pinned by snapshots, and no backup can tell whether an image still has these.
    SnapshotHeld,
    /// No summary of the disk's chain could be left for the next backup.
    NoSummary,
    /// An old anchor could not be removed yet.
    OldAnchor,
    /// The claim of a tracker proved wrong, and everything was read instead.
    WrongClaim,
    /// The points before can't be built on.
    BrokenChain,
    /// The disk is another image than at the point before.
    OtherImage,
    /// The image is read in another format than at the point before, or looks like another one.
    OtherFormat,
    /// The disk is smaller than at the point before.
    Smaller,
    /// The device is longer than the disk, and old bytes lie behind its end.
    Longer,
    /// Everything on the disk is zero, and was not at the point before.
    AllZero,
    /// The guest has a disk no more that it had at the point before.
    DiskGone,
    /// The guest has another UUID than the one of the point; or another host makes points of this one's name.
    OtherGuest,
    /// The guest has other files now than at its latest point: its next backup must be told that it is
    /// the same guest.
    OtherFiles,
    /// The repository has an earlier state than this host has seen: its newest point is gone.
    WentBack,
    /// Points came into the source of a copy that are older than what it had before.
    CameLate,
    /// Nothing says that the key opens the repository that was meant, and not another in its place.
    Unproved,
    /// Everybody on this host can read the file with the key.
    ExposedKey,
    /// The clock is behind the latest point.
    Clock,
    /// A file in the repository belongs to no point.
    Stray,
    /// The server of an export lets clients write to it, or this host has the device in use: it may have changed while
    /// it was read.
    Writable,
    /// The guest was not in the state that one expects.
    GuestState,
    /// A guest's memory is saved, and is not in the point, or not in what was restored of it.
    MemoryLeftOut,
    /// A guest's filesystems could not be frozen, and the point is what a power cut would leave, as the admin has it
    /// for that case.
    FellBack,
    /// A guest may have been left frozen by an earlier run.
    Frozen,
    /// Something of the machine is not in the point, or does not come back by itself.
    Machine,
    /// Something of libvirt's could not be read, so that not all could be checked.
    Unchecked,
    /// A folder or file of the repository can't be read: what is beside it was shown or used.
    Unreadable,
    /// What the snapshot command made may still be there: it was not released.
    NotReleased,
    /// Archives could not be merged.
    NotMerged,
    /// An archive was found to be damaged, and is still the file that it was found in; or a point that is damaged is
    /// removed.
    DamagedArchive,
    /// The store could not be told to lock files for longer.
    NotLocked,
    /// A file of a locked repository that is written once was written over.
    WrittenOver,
    /// Files are to be locked for so short a time that they may stand unlocked before the next backup.
    ShortLock,
    /// Files are to be locked for another time than this host has seen.
    OtherLock,
    /// This host could not note what it learnt: it will learn the same again.
    NotNoted,
    /// What will be written may not fit: by a backup the repository, by a guest its folder.
    LittleRoom,
    /// Something of a point that is served could not be read: its reader got an error.
    NotServed,
    /// Something of a disk's partitions or of a filesystem on it is odd or damaged.
    Volume,
    /// A file of a guest could not be read, or not be written as it was.
    LeftOut,
    /// A point that a guest runs on could not be pinned: it may be removed.
    NotPinned,
    /// Times of a schedule were missed, and nothing was done then.
    Missed,
    /// The system refused the faster way to read and write.
    SlowIo,
}

/// Something that an admin should know though the work was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// What it is about.
    pub code: Code,
    /// The disk that it is about, as `domain/disk`; none if it is about more than one.
    pub disk: Option<String>,
    /// What is the matter, for people.
    pub text: String,
    /// What to do about it.
    pub advice: Option<String>,
}

impl Warning {
    /// A warning about no disk in particular.
    pub fn new(code: Code, text: impl Into<String>) -> Self {
        Self { code, disk: None, text: text.into(), advice: None }
    }

    /// A warning about something that failed and does not stop the flow. Its advice is the failure's, but for trying
    /// again: the rest is done, and is not to be done once more.
    pub fn failed(code: Code, error: &Error) -> Self {
        let advice = error.advice().filter(|it| *it != AGAIN).map(str::to_owned);
        Self { advice, ..Self::new(code, error.chain()) }
    }

    /// The same warning about a disk.
    #[must_use]
    pub fn of(mut self, disk: impl ToString) -> Self {
        self.disk = Some(disk.to_string());
        self
    }

    /// The same warning with what to do about it.
    #[must_use]
    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    /// The same warning with its text in a larger one: `"outer: text"`.
    #[must_use]
    pub fn within(mut self, outer: &str) -> Self {
        self.text = format!("{outer}: {}", self.text);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::ErrorKind;

    /// A merge that was done warned of what it could not remove, that the next one does that, and "try again".
    #[test]
    fn a_warning_asks_nobody_to_do_again_what_is_done() {
        let failed = |advice: &'static str| {
            let error = Error::new(ErrorKind::Busy, "somebody else has the lock").advise(advice);
            Warning::failed(Code::NotMerged, &error.within("it is merged")).advice
        };
        assert_eq!(failed(AGAIN), None);
        assert_eq!(failed("set the clock").as_deref(), Some("set the clock"));
    }
}
