//! The program, who runs it, and what it may do: the last part of a plan, which programs executed later have too.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::OnceLock;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::{Resource, Rlimit};
use rustix::thread::capabilities;

use super::{absolute, c_string, out_of_the_way, refuse, scheduling};
use crate::capabilities::{self as caps, Sets};
use crate::create::{Stdio, TerminalSize};
use crate::error::Error;
use crate::plan::{CapabilitySets, HOME, Identity, Operation as O, Program};
use crate::rootless;
use crate::seccomp::Filter;
use crate::spec::{Hook, Process};
use crate::sys::Strings;
use crate::users::Wanted;

/// The longest program arguments and environment taken, together; the kernel's limit is 6 MiB.
const MAX_STRINGS: usize = 4 << 20;
const MAX_HOME: usize = 4096;

/// What a process is.
pub(crate) struct Tail {
    program: Program,
    identity: Identity,
    sets: Sets,
    filter: Option<Filter>,
    no_new_privileges: bool,
    /// What the kernel gives it, and how much of that.
    limits: Vec<O>,
    umask: u32,
    cwd: Option<CString>,
    /// See [`Create`](crate::Create::dies_with_parent).
    pub dies_with_parent: bool,
}

/// How a plan ends.
pub(crate) struct Ending {
    pub stdio: Stdio,
    /// The process waits until it is started.
    pub gate: bool,
    /// Before that it makes sure that the program is there.
    pub find_program: bool,
    /// See `Create::init`.
    pub init: bool,
}

/// The capabilities this process can give.
pub(crate) fn available_capabilities() -> Result<u64, Error> {
    let sets = capabilities(None)
        .map_err(|e| Error::step("read", "the capabilities of this process", e))?;
    Ok(sets.permitted.bits())
}

impl Tail {
    /// Reads and checks what `process` says. The filter is compiled already, and the capabilities are those this process can
    /// give.
    pub fn prepare(
        process: &Process,
        filter: Option<Filter>,
        available: u64,
    ) -> Result<Tail, Error> {
        refuse(
            "process.apparmorProfile",
            process.apparmor_profile.as_deref(),
            "AppArmor",
        )?;
        refuse(
            "process.selinuxLabel",
            process.selinux_label.as_deref(),
            "SELinux",
        )?;
        if process
            .oom_score_adj
            .is_some_and(|score| !(-1000..=1000).contains(&score))
        {
            return Err(Error::invalid(
                "process.oomScoreAdj",
                "it is not between -1000 and 1000",
            ));
        }
        let cwd = absolute("process.cwd", &process.cwd)?;
        let mut limits = rlimits(process)?;
        scheduling::read(process, &mut limits)?;
        Ok(Tail {
            program: program(process)?,
            identity: identity(process)?,
            sets: caps::sets(process.capabilities.as_ref(), available)?,
            filter,
            no_new_privileges: process.no_new_privileges,
            limits,
            umask: umask(process)?,
            // Where the root is, the process is already.
            cwd: (cwd != "/")
                .then(|| c_string("process.cwd", &cwd))
                .transpose()?,
            dies_with_parent: false,
        })
    }

    /// Of a hook: root, with all capabilities that can be given and exactly the environment that it asks for, in a directory
    /// that is there.
    pub fn of_hook(hook: &Hook, capabilities: u64, cwd: Option<&Path>) -> Result<Tail, Error> {
        let cwd = cwd.map(|cwd| c_string("hooks", &cwd.to_string_lossy()));
        let args = match hook.args.is_empty() {
            true => std::slice::from_ref(&hook.path),
            false => &hook.args,
        };
        let program = Program {
            name: hook.path.clone(),
            candidates: vec![c_string("hooks.path", &hook.path)?],
            first: 0,
            args: Strings::new(strings("hooks.args", args)?),
            env: Strings::new(strings("hooks.env", &hook.env)?),
            wants_home: false,
        };
        Ok(Tail {
            program,
            identity: Identity {
                wanted: Wanted::numbers(0, 0),
                additional: Vec::new(),
                sets_groups: rootless::may_set_groups(),
            },
            sets: Sets {
                bounding: caps::ALL,
                effective: capabilities,
                permitted: capabilities,
                ..Sets::default()
            },
            filter: None,
            no_new_privileges: false,
            limits: Vec::new(),
            umask: 0o022,
            cwd: cwd.transpose()?,
            dies_with_parent: false,
        })
    }

    /// Whether it may look into all of the container's processes.
    pub fn may_trace(&self) -> bool {
        self.sets.may_trace()
    }

    pub fn open_terminal(&self, stdio: &Stdio, console: bool, operations: &mut Vec<O>) {
        if let Stdio::Terminal(TerminalSize { rows, columns }) = *stdio {
            operations.push(O::Terminal {
                rows,
                columns,
                console,
            });
        }
    }

    pub fn enter_directory(&self, operations: &mut Vec<O>) {
        if let Some(path) = &self.cwd {
            operations.push(O::WorkingDirectory { path: path.clone() });
        }
    }

    /// All the rest.
    pub fn become_program(
        self,
        ending: Ending,
        operations: &mut Vec<O>,
    ) -> Result<(Program, Identity), Error> {
        let Ending {
            stdio,
            gate,
            find_program,
            init,
        } = ending;
        let terminal = matches!(stdio, Stdio::Terminal(_));
        operations.push(O::Stdio {
            files: files(stdio)?,
        });
        let ignored = ignored_signals();
        operations.push(O::Signals { ignored });
        operations.push(O::CloseOthers);
        operations.extend(self.limits);
        operations.push(O::Umask(self.umask));
        operations.push(O::LookUpUser);
        // Whatever the root is, and so before it, where that can have been done in advance (see `spare`).
        let begin = |operation: &O| matches!(operation, O::PrivateMounts);
        let before = operations.iter().position(begin);
        let before = before.unwrap_or(operations.len());
        let dropped = caps::ALL & !self.sets.bounding;
        let limit = (dropped != 0).then_some(O::BoundingSet { dropped });
        operations.splice(before..before, [O::Keyring].into_iter().chain(limit));
        let Sets {
            effective,
            permitted,
            inheritable,
            ambient,
            ..
        } = self.sets;
        let last = CapabilitySets {
            effective,
            permitted,
            inheritable,
            ambient,
        };
        // A filter without no_new_privs is the privileged's to load; the last step takes the privilege away.
        let loads_privileged = self.filter.is_some() && !self.no_new_privileges;
        let keep_capabilities = loads_privileged || permitted | inheritable != 0;
        operations.push(O::BecomeUser { keep_capabilities });
        if loads_privileged {
            let permitted = permitted | inheritable | caps::SYS_ADMIN;
            let until_then = CapabilitySets {
                effective: caps::SYS_ADMIN,
                permitted,
                inheritable: 0,
                ambient: 0,
            };
            operations.push(O::Capabilities(until_then));
        }
        if find_program {
            operations.push(O::FindProgram);
        }
        if self.dies_with_parent {
            // Who changes its user is not tied any more. The gate does not open for who comes too late for this.
            operations.push(O::DieWithParent);
        }
        // Otherwise as late as can be: what comes after it, it has to allow. Who decides is to be there before the start.
        let is_early = self.filter.as_ref().is_some_and(Filter::has_listener);
        let mut filter = Vec::with_capacity(2);
        if self.no_new_privileges {
            filter.push(O::NoNewPrivileges);
        }
        if let Some(Filter { program, flags }) = self.filter {
            filter.push(O::Seccomp { program, flags });
        }
        if is_early {
            operations.append(&mut filter);
        }
        if gate {
            operations.push(O::Ready { gate });
        }
        // Once the start was asked for, and before a filter has a say.
        if !is_early && self.program.candidates.len() > 1 {
            operations.push(O::Locate);
        }
        operations.append(&mut filter);
        operations.push(O::Capabilities(last));
        if init {
            operations.push(O::Init);
        }
        operations.push(O::Session { terminal });
        operations.push(O::Execute);
        Ok((self.program, self.identity))
    }
}

/// The signals that this process ignores, which its children would too: Rust programs ignore SIGPIPE, whoever runs under nohup(1)
/// SIGHUP, and what a shell put into the background SIGINT. Read once, for nobody changes it later.
fn ignored_signals() -> u64 {
    static IGNORED: OnceLock<u64> = OnceLock::new();
    *IGNORED.get_or_init(|| {
        // Short of 2 KiB here and elsewhere, and read in one call.
        let mut text = [0; 4096];
        let status = openat(
            CWD,
            c"/proc/self/status",
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .and_then(|status| rustix::io::read(status, &mut text))
        .unwrap_or(0);
        let status = String::from_utf8_lossy(text.get(..status).unwrap_or_default());
        let field = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        let sigpipe = 1 << (libc::SIGPIPE - 1);
        field
            .and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
            .unwrap_or(sigpipe)
    })
}

fn files(stdio: Stdio) -> Result<Option<[OwnedFd; 3]>, Error> {
    match stdio {
        Stdio::Inherit | Stdio::Terminal(_) => Ok(None),
        Stdio::Files {
            stdin,
            stdout,
            stderr,
        } => Ok(Some([
            out_of_the_way(stdin, &[])?,
            out_of_the_way(stdout, &[])?,
            out_of_the_way(stderr, &[])?,
        ])),
        Stdio::Null => {
            let failed = |e| Error::step("open", "/dev/null", e);
            let null = openat(
                CWD,
                c"/dev/null",
                OFlags::RDWR | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .map_err(failed)?;
            let copy = || {
                null.try_clone()
                    .map_err(|e| Error::step("copy", "/dev/null", e))
            };
            let (stdin, stdout) = (copy()?, copy()?);
            Ok(Some([
                out_of_the_way(stdin, &[])?,
                out_of_the_way(stdout, &[])?,
                out_of_the_way(null, &[])?,
            ]))
        }
    }
}

fn program(process: &Process) -> Result<Program, Error> {
    let name = process
        .args
        .first()
        .filter(|name| !name.is_empty())
        .ok_or_else(|| {
            Error::invalid(
                "process.args",
                "the program is missing: the list or its first string is empty",
            )
        })?;
    let total: usize = process
        .args
        .iter()
        .chain(&process.env)
        .map(|s| s.len() + 9)
        .sum();
    if total > MAX_STRINGS {
        return Err(Error::invalid(
            "process.args",
            "arguments and environment together are longer than 4 MiB",
        ));
    }
    let args = Strings::new(strings("process.args", &process.args)?);
    let env = strings("process.env", &process.env)?;
    let variable = |name: &str| {
        process
            .env
            .iter()
            .find_map(|v| v.strip_prefix(name)?.strip_prefix('='))
    };
    let wants_home = variable("HOME").is_none_or(str::is_empty);
    let env = match wants_home {
        true => Strings::with_slot(env, HOME, MAX_HOME),
        false => Strings::new(env),
    };
    let candidates = match name.contains('/') {
        true => vec![c_string("process.args[0]", name)?],
        false => variable("PATH")
            .unwrap_or("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .split(':')
            .take(256)
            // An empty entry means the working directory, which nobody wants searched.
            .filter(|directory| directory.starts_with('/'))
            .map(|directory| c_string("process.env", &format!("{directory}/{name}")))
            .collect::<Result<Vec<_>, _>>()?,
    };
    Ok(Program {
        name: name.clone(),
        candidates,
        first: 0,
        args,
        env,
        wants_home,
    })
}

fn strings(field: &str, list: &[String]) -> Result<Vec<CString>, Error> {
    let string = |(i, text): (usize, &String)| c_string(&format!("{field}[{i}]"), text);
    list.iter().enumerate().map(string).collect()
}

fn identity(process: &Process) -> Result<Identity, Error> {
    let user = &process.user;
    let nobody = |field: &str| {
        Error::invalid(
            format!("process.user.{field}"),
            "4294967295 is no number of anybody",
        )
    };
    let wanted = match user.username.as_deref().filter(|name| !name.is_empty()) {
        Some(name) => Wanted::parse(name).ok_or_else(|| {
            Error::invalid(
                "process.user.username",
                format!("{name:?} is no user, and no user:group"),
            )
        })?,
        None if user.uid == u32::MAX => return Err(nobody("uid")),
        None if user.gid == u32::MAX => return Err(nobody("gid")),
        None => Wanted::numbers(user.uid, user.gid),
    };
    if user.additional_gids.len() > crate::users::MAX_GROUPS / 2 {
        return Err(Error::invalid(
            "process.user.additionalGids",
            "they are more than 512",
        ));
    }
    if user.additional_gids.contains(&u32::MAX) {
        return Err(nobody("additionalGids"));
    }
    Ok(Identity {
        wanted,
        additional: user.additional_gids.clone(),
        sets_groups: rootless::may_set_groups(),
    })
}

fn umask(process: &Process) -> Result<u32, Error> {
    match process.user.umask.unwrap_or(0o022) {
        mask @ 0..=0o777 => Ok(mask),
        _ => Err(Error::invalid(
            "process.user.umask",
            "it has more than 9 bits",
        )),
    }
}

fn rlimits(process: &Process) -> Result<Vec<O>, Error> {
    let mut operations: Vec<O> = Vec::with_capacity(process.rlimits.len());
    for (i, rlimit) in process.rlimits.iter().enumerate() {
        let field = |member: &str| format!("process.rlimits[{i}]{member}");
        let kind = rlimit.kind.as_str();
        let (_, resource) = RESOURCES
            .into_iter()
            .find(|(name, _)| *name == kind)
            .ok_or_else(|| Error::invalid(field(".type"), format!("there is no limit {kind:?}")))?;
        if process
            .rlimits
            .iter()
            .take(i)
            .any(|earlier| earlier.kind == rlimit.kind)
        {
            return Err(Error::invalid(field(".type"), format!("a second {kind}")));
        }
        if rlimit.soft > rlimit.hard {
            return Err(Error::invalid(
                field(".soft"),
                format!("it is above the hard limit of {}", rlimit.hard),
            ));
        }
        let value = |value: u64| (value != u64::MAX).then_some(value);
        let limit = Rlimit {
            current: value(rlimit.soft),
            maximum: value(rlimit.hard),
        };
        let name = format!("{kind} to {} and {}", rlimit.soft, rlimit.hard);
        operations.push(O::Rlimit {
            resource,
            limit,
            name,
        });
    }
    Ok(operations)
}

const RESOURCES: [(&str, Resource); 16] = [
    ("RLIMIT_AS", Resource::As),
    ("RLIMIT_CORE", Resource::Core),
    ("RLIMIT_CPU", Resource::Cpu),
    ("RLIMIT_DATA", Resource::Data),
    ("RLIMIT_FSIZE", Resource::Fsize),
    ("RLIMIT_LOCKS", Resource::Locks),
    ("RLIMIT_MEMLOCK", Resource::Memlock),
    ("RLIMIT_MSGQUEUE", Resource::Msgqueue),
    ("RLIMIT_NICE", Resource::Nice),
    ("RLIMIT_NOFILE", Resource::Nofile),
    ("RLIMIT_NPROC", Resource::Nproc),
    ("RLIMIT_RSS", Resource::Rss),
    ("RLIMIT_RTPRIO", Resource::Rtprio),
    ("RLIMIT_RTTIME", Resource::Rttime),
    ("RLIMIT_SIGPENDING", Resource::Sigpending),
    ("RLIMIT_STACK", Resource::Stack),
];
