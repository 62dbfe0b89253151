//! What a container is made from.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::pipe::{PipeFlags, pipe_with};

use crate::cgroup::Location;
use crate::error::Error;
use crate::spare::Spare;
use crate::spec::Spec;

/// All that [`Container::create`](crate::Container::create) needs.
pub struct Create<'a> {
    /// Its name, for errors.
    pub id: &'a str,
    /// Its configuration.
    pub spec: &'a Spec,
    /// Where its root filesystem comes from.
    pub rootfs: Rootfs,
    /// Where its control group is, which is made; one that exists must be empty of processes. None: it shares its parent's,
    /// and limits are refused.
    pub cgroup: Option<Location>,
    /// Its standard input, output and error.
    pub stdio: Stdio,
    /// Process 1 is a small reaper of ours, and the program its child.
    pub init: bool,
    /// Until it becomes the program the first process uses this process's memory, where that can be: nothing of it is copied then.
    /// For who is there all that time, and whom no process of a container may look into.
    pub borrows: bool,
    /// The first process is killed when the thread ends that creates the container, and all others with it: for who is not
    /// there for good.
    pub dies_with_parent: bool,
    /// Where the configuration came from. None: one with hooks is refused.
    pub bundle: Option<Bundle>,
    /// The path of a socket to make, at which the first process can be started when this process is gone
    /// ([`Container::open`](crate::Container::open)). None: it ends with this process unless it is started.
    pub gate: Option<PathBuf>,
    /// A first process that was made before, with the control group that `cgroup` names. One that does not fit is ended.
    pub spare: Option<Spare>,
    /// This process's descriptors that the program is given besides, by their numbers from 3 on. None of them is a
    /// descriptor of this crate's: those that others have opened before.
    pub preserved: Vec<i32>,
}

/// Where a configuration came from: its hooks are told. They are run by this process, whose namespaces are the runtime's to
/// them, with its standard output and error.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// Its directory, absolute.
    pub path: PathBuf,
    /// Told of what is not as it should be but changes nothing (runtime-spec runtime.md#warnings): hooks that come too late
    /// to fail, capabilities that this process has not to give.
    pub warn: fn(&Error),
}

/// Where the root filesystem comes from. It is mounted in the container's own mount namespace: when that ends, nothing is
/// left to unmount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rootfs {
    /// A directory, as it is.
    Directory(PathBuf),
    /// A writable layer over an image.
    Overlay {
        /// The image, which is only read.
        lower: Lower,
        /// Where changes go.
        upper: Upper,
        /// What is written before the program is there, and whether or not it may write.
        files: Vec<NewFile>,
        /// Whether device files in it can be used. Where the machine is not the container's own, those of a hostile image
        /// would be the host's disks.
        devices: bool,
    },
}

/// A file of a new root filesystem: root's, and readable to everybody. It takes the place of what the image has there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewFile {
    /// Absolute. Of its directories only the last may be missing.
    pub path: String,
    /// What it holds.
    pub data: Vec<u8>,
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lower {
    /// A block device with an EROFS filesystem.
    BlockDevice(PathBuf),
    /// A file with an EROFS filesystem (Linux 6.12 or later).
    ErofsFile(PathBuf),
    /// A directory.
    Directory(PathBuf),
}

/// A writable layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upper {
    /// In memory, gone with the container.
    Tmpfs {
        /// Its size in bytes; none: half the memory.
        size_bytes: Option<u64>,
    },
    /// A block device with an ext4 filesystem.
    Disk(PathBuf),
    /// A directory for this container alone, on a filesystem that can be an overlay's upper.
    Directory(PathBuf),
}

/// What a program's standard input, output and error are.
#[derive(Debug)]
pub enum Stdio {
    /// `/dev/null`.
    Null,
    /// What this process has.
    Inherit,
    /// The program's ends of pipes, or files.
    Files {
        /// Read from.
        stdin: OwnedFd,
        /// Written to.
        stdout: OwnedFd,
        /// Written to.
        stderr: OwnedFd,
    },
    /// A new terminal of the container's own devpts; its master is [`Container::take_terminal`]'s.
    ///
    /// [`Container::take_terminal`]: crate::Container::take_terminal
    Terminal(TerminalSize),
}

/// A terminal's size in characters; zero: unknown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TerminalSize {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// Our ends of a program's pipes.
#[derive(Debug)]
pub struct Pipes {
    /// Written to; closing it is the program's end of file.
    pub stdin: OwnedFd,
    /// Read from.
    pub stdout: OwnedFd,
    /// Read from.
    pub stderr: OwnedFd,
}

impl Stdio {
    /// Three new pipes: the program's ends, and ours.
    pub fn pipes() -> io::Result<(Stdio, Pipes)> {
        let pipe = || pipe_with(PipeFlags::CLOEXEC);
        let (stdin, our_stdin) = pipe()?;
        let (our_stdout, stdout) = pipe()?;
        let (our_stderr, stderr) = pipe()?;
        let ours = Pipes {
            stdin: our_stdin,
            stdout: our_stdout,
            stderr: our_stderr,
        };
        Ok((
            Stdio::Files {
                stdin,
                stdout,
                stderr,
            },
            ours,
        ))
    }
}
