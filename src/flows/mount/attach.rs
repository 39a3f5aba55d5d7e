//! Attaching a filesystem of ours to a folder, and taking it away again: by the kernel itself where we
//! may, and by `fusermount3` where only that may.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::base::error::{Error, ErrorKind, Result};

/// The kernel's side of every filesystem in user space.
const DEVICE: &str = "/dev/fuse";
/// The program by which users mount.
const HELPER: &str = "fusermount3";

/// A filesystem that is attached to a folder.
#[derive(Debug)]
pub(super) struct Attached {
    folder: PathBuf,
    by_helper: bool,
}

impl Attached {
    /// What was attached to a folder by somebody who has ended.
    pub fn left_on(folder: &Path) -> Self {
        let by_helper = !rustix::process::geteuid().is_root();
        Self { folder: folder.to_owned(), by_helper }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Takes the filesystem away. Who has a file of it open gets errors from then on.
    ///
    /// # Errors
    /// The system refuses.
    pub fn detach(&self) -> Result<()> {
        let failed = |error| Error::io("unmount", &self.folder, error);
        if self.by_helper {
            let mut helper = Command::new(HELPER);
            helper.args(["-u", "-z", "--"]).arg(&self.folder);
            return helped(helper, None).map_err(failed);
        }
        match unmount(&self.folder, UnmountFlags::empty()) {
            // Somebody has a file open.
            Err(Errno::BUSY) => {
                let flags = UnmountFlags::FORCE | UnmountFlags::DETACH;
                unmount(&self.folder, flags).map_err(|error| failed(error.into()))
            }
            Err(error) => Err(failed(error.into())),
            Ok(()) => Ok(()),
        }
    }
}

/// Attaches a filesystem to a folder. What the kernel asks comes by the file that is returned.
///
/// # Errors
/// The folder is none, holds something, or belongs to a mount whose program has ended; the system has no
/// filesystems in user space, or refuses.
pub(super) fn attach(folder: &Path) -> Result<(OwnedFd, Attached)> {
    let folder = checked(folder)?;
    match rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        Ok(device) => match by_kernel(&folder, device) {
            Ok(fd) => return Ok((fd, Attached { folder, by_helper: false })),
            Err(Errno::PERM | Errno::ACCESS) => {}
            Err(error) => return Err(Error::io("mount on", &folder, error.into())),
        },
        Err(Errno::PERM | Errno::ACCESS) => {}
        Err(error) => {
            let error = Error::io("open", Path::new(DEVICE), error.into());
            return Err(error.advise("the kernel module is called fuse: modprobe fuse"));
        }
    }
    let fd = by_helper(&folder).map_err(|error| {
        let advice = match error.kind() {
            io::ErrorKind::NotFound => "users need fusermount3 of the package fuse3; root does not",
            _ => "run qdelta mount as root, or mount on a folder of your own",
        };
        Error::io("mount on", &folder, error).advise(advice)
    })?;
    Ok((fd, Attached { folder, by_helper: true }))
}

/// The real path of an empty folder.
fn checked(folder: &Path) -> Result<PathBuf> {
    let stale = |error: &io::Error| error.raw_os_error() == Some(Errno::NOTCONN.raw_os_error());
    let failed = |error: io::Error| match stale(&error) {
        true => Error::new(
            ErrorKind::Busy,
            format!("{} is mounted, and the program behind it has ended", folder.display()),
        )
        .advise(format!(
            "unmount it first: fusermount3 -u {0}, or as root: umount {0}",
            folder.display()
        )),
        false => Error::io("mount on", folder, error),
    };
    let real = folder.canonicalize().map_err(failed)?;
    let mut entries = std::fs::read_dir(&real).map_err(failed)?;
    if entries.next().is_some() {
        let text = format!("{} is not empty", folder.display());
        return Err(Error::new(ErrorKind::Exists, text)
            .advise("mount on an empty folder: what is in this one would be hidden"));
    }
    Ok(real)
}

fn by_kernel(folder: &Path, device: OwnedFd) -> Result<OwnedFd, Errno> {
    let (user, group) = (rustix::process::getuid(), rustix::process::getgid());
    let options = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions\0",
        device.as_raw_fd(),
        user.as_raw(),
        group.as_raw()
    );
    let options = std::ffi::CStr::from_bytes_until_nul(options.as_bytes());
    let options = options.map_err(|_| Errno::INVAL)?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("qdelta", folder, "fuse.qdelta", flags, options)?;
    Ok(device)
}

/// The helper opens the device, mounts, and passes the open file on by its standard input.
fn by_helper(folder: &Path) -> io::Result<OwnedFd> {
    let (ours, its) = UnixStream::pair()?;
    let mut helper = Command::new(HELPER);
    let options = "ro,nosuid,nodev,noexec,default_permissions,fsname=qdelta,subtype=qdelta";
    helper.args(["-o", options, "--"]).arg(folder).env("_FUSE_COMMFD", "0");
    helped(helper, Some(its.into()))?;
    ours.set_nonblocking(true)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut pieces = [IoSliceMut::new(&mut byte)];
    recvmsg(&ours, &mut pieces, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut files = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    files.next().ok_or_else(|| io::Error::other("fusermount3 passed no file on"))
}

/// Runs the helper to its end.
fn helped(mut helper: Command, input: Option<OwnedFd>) -> io::Result<()> {
    helper.stdin(input.map_or_else(Stdio::null, Stdio::from)).stdout(Stdio::null());
    let output = helper.stderr(Stdio::piped()).spawn()?.wait_with_output()?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(io::Error::other(said.split_whitespace().collect::<Vec<_>>().join(" ")))
        }
    }
}
