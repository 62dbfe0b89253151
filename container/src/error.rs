//! What can go wrong, said so that its reader can mend it.

use std::borrow::Cow;
use std::io;

/// Why something could not be done with a container.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration asks for what cannot be. Nothing was started.
    #[error("{field}: {problem}")]
    Invalid {
        /// The member, as a path in the JSON document (`linux.namespaces[2].path`).
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A step failed. What was started was ended.
    #[error("cannot {step} {object}: {source}")]
    Step {
        /// What was done (`mount`, `write`).
        step: Cow<'static, str>,
        /// To what.
        object: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The program is not there: a shell says 127.
    #[error("there is no program {program} in the container")]
    NotFound {
        /// As it was named.
        program: String,
    },
    /// The program is there but cannot be executed: a shell says 126.
    #[error("cannot execute {program}: {source}")]
    NotExecutable {
        /// As it was named.
        program: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A hook could not be run, or failed. The container was ended.
    #[error("{field}: {program} failed: {problem}")]
    Hook {
        /// The member, as a path in the JSON document (`hooks.prestart[0]`).
        field: String,
        /// The hook's program.
        program: String,
        /// Why.
        problem: String,
    },
    /// It was made without a program, and so it cannot be started.
    #[error("container {id} has no program to run: its configuration has no process")]
    NoProgram {
        /// Which container.
        id: String,
    },
    /// The container's first process ended before it was told to start.
    #[error("container {id} ended before it was started; it was killed, or memory ran out")]
    Ended {
        /// Which container.
        id: String,
    },
    /// It can be started only once.
    #[error("container {id} was started already")]
    Started {
        /// Which container.
        id: String,
    },
    /// Nothing can be executed in what stands still.
    #[error("container {id} is paused; resume it first")]
    Paused {
        /// Which container.
        id: String,
    },
    /// A user namespace can be entered by one thread only.
    #[error(
        "cannot enter a user namespace with {threads} threads; it is done before the second begins"
    )]
    Threads {
        /// How many there are.
        threads: usize,
    },
    /// Who is not root needs one.
    #[error(
        "cannot make a user namespace, which containers of who is not root need; \
         the host must allow them (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone)"
    )]
    UserNamespace {
        /// Why.
        source: io::Error,
    },
    /// No control groups can be made.
    #[error(
        "no hierarchy of control groups is mounted on this host; `mount -t cgroup2 none /sys/fs/cgroup`"
    )]
    NoHierarchy,
    /// A limit of what the group is not counted by.
    #[error(
        "cannot set {file}: this control group has no directory for the controller {controller}, which must be mounted, and \
             known to be needed when the group is made"
    )]
    NoController {
        /// Which controller.
        controller: String,
        /// What was to be written.
        file: String,
    },
    /// It has no control group, and that is what was asked for works by.
    #[error("cannot {step} container {id}: it has no control group of its own")]
    NoCgroup {
        /// What was asked for.
        step: &'static str,
        /// Which container.
        id: String,
    },
}

impl Error {
    /// The exit code of Docker's command line for this failure: 127, 126, or 125 for what is not the program's fault.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::NotFound { .. } => 127,
            Error::NotExecutable { .. } => 126,
            _ => 125,
        }
    }

    pub(crate) fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Error {
        Error::Invalid {
            field: field.into(),
            problem: problem.into(),
        }
    }

    pub(crate) fn step(
        step: impl Into<Cow<'static, str>>,
        object: impl Into<String>,
        source: impl Into<io::Error>,
    ) -> Error {
        Error::Step {
            step: step.into(),
            object: object.into(),
            source: source.into(),
        }
    }
}
