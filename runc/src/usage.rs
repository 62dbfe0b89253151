//! What the command line is: options, commands, help.

use bulkhead_container::spec;

use crate::arguments::{Opt, flag, value};
use crate::systemd;

/// Options before the command.
pub const GLOBAL: &[Opt] = &[
    value("root", '\0'),
    value("log", '\0'),
    value("log-format", '\0'),
    value("log-level", '\0'),
    value("cgroup-manager", '\0'),
    // `auto`, `true` or `false`: found out here.
    value("rootless", '\0'),
    value("criu", '\0'),
    flag("systemd-cgroup", '\0'),
    flag("debug", '\0'),
    flag("help", 'h'),
    flag("version", 'v'),
];

/// A command.
pub struct Command {
    pub name: &'static str,
    pub options: &'static [Opt],
    /// After so many words that are no options, all others are words.
    pub words: usize,
}

const HELP_OPTION: Opt = flag("help", 'h');

const fn command(name: &'static str, options: &'static [Opt]) -> Command {
    Command {
        name,
        options,
        words: usize::MAX,
    }
}

/// All commands, in the order of a container's life.
pub const COMMANDS: &[Command] = &[
    command(
        "create",
        &[
            value("bundle", 'b'),
            value("config", 'f'),
            value("console-socket", '\0'),
            value("pid-file", '\0'),
            value("preserve-fds", '\0'),
            flag("no-pivot", '\0'),
            flag("no-new-keyring", '\0'),
            flag("no-subreaper", '\0'),
            HELP_OPTION,
        ],
    ),
    command("start", &[HELP_OPTION]),
    command(
        "run",
        &[
            value("bundle", 'b'),
            value("config", 'f'),
            value("console-socket", '\0'),
            value("pid-file", '\0'),
            value("preserve-fds", '\0'),
            flag("detach", 'd'),
            flag("keep", '\0'),
            flag("no-pivot", '\0'),
            flag("no-new-keyring", '\0'),
            flag("no-subreaper", '\0'),
            HELP_OPTION,
        ],
    ),
    Command {
        name: "exec",
        options: &[
            value("process", 'p'),
            value("console-socket", '\0'),
            value("pid-file", '\0'),
            value("preserve-fds", '\0'),
            value("cwd", '\0'),
            value("env", 'e'),
            value("user", 'u'),
            value("additional-gids", 'g'),
            value("cap", 'c'),
            value("apparmor", '\0'),
            value("process-label", '\0'),
            value("cgroup", '\0'),
            flag("detach", 'd'),
            flag("tty", 't'),
            flag("no-new-privs", '\0'),
            flag("ignore-paused", '\0'),
            flag("no-subreaper", '\0'),
            HELP_OPTION,
        ],
        words: 1,
    },
    command("state", &[HELP_OPTION]),
    command(
        "list",
        &[value("format", 'f'), flag("quiet", 'q'), HELP_OPTION],
    ),
    Command {
        name: "ps",
        options: &[value("format", 'f'), HELP_OPTION],
        words: 1,
    },
    command("kill", &[flag("all", 'a'), HELP_OPTION]),
    command("pause", &[HELP_OPTION]),
    command("resume", &[HELP_OPTION]),
    command(
        "update",
        &[
            value("resources", 'r'),
            value("blkio-weight", '\0'),
            value("cpu-burst", '\0'),
            value("cpu-idle", '\0'),
            value("cpu-period", '\0'),
            value("cpu-quota", '\0'),
            value("cpu-rt-period", '\0'),
            value("cpu-rt-runtime", '\0'),
            value("cpu-share", '\0'),
            value("cpuset-cpus", '\0'),
            value("cpuset-mems", '\0'),
            value("kernel-memory", '\0'),
            value("kernel-memory-tcp", '\0'),
            value("memory", '\0'),
            value("memory-reservation", '\0'),
            value("memory-swap", '\0'),
            value("pids-limit", '\0'),
            HELP_OPTION,
        ],
    ),
    command(
        "events",
        &[flag("stats", '\0'), value("interval", '\0'), HELP_OPTION],
    ),
    command("delete", &[flag("force", 'f'), HELP_OPTION]),
    command(
        "spec",
        &[
            value("bundle", 'b'),
            value("config", 'f'),
            flag("rootless", '\0'),
            HELP_OPTION,
        ],
    ),
    command("features", &[HELP_OPTION]),
    // Our own, of which people need not know.
    command(systemd::HOLD, &[]),
];

pub fn version() -> String {
    format!(
        "bulkhead-runc version {}\nspec: {}\n",
        env!("CARGO_PKG_VERSION"),
        spec::VERSION
    )
}

pub const HELP: &str = "\
bulkhead-runc: OCI containers on this host, for Podman, Docker, containerd and people

usage: bulkhead-runc [OPTION]... COMMAND [OPTION]... [ID] [WORD]...

Options before the command:
  --root DIR               where containers are kept track of (/run/bulkhead-runc)
  --log FILE               errors are written there, too
  --log-format text|json   how
  --systemd-cgroup         control groups are made by systemd; cgroupsPath is SLICE:PREFIX:NAME
  --cgroup-manager NAME    cgroupfs or systemd
  --rootless WORD, --log-level LEVEL, --debug, --criu FILE
                           understood, and without effect

Commands:
  create ID    make a container from a bundle, up to where it can be started
      -b, --bundle DIR         the bundle (.)
      -f, --config FILE        its configuration (config.json)
      --console-socket SOCKET  who listens there is sent the terminal
      --pid-file FILE          the number of its first process is written there
      --preserve-fds N         the program keeps N descriptors after the standard ones
      --no-pivot, --no-new-keyring, --no-subreaper
  start ID     run its program
  run ID       create and start it, wait for its end and delete it; options as for create, and
      -d, --detach             do not wait
      --keep                   do not delete it
  exec ID PROGRAM [ARGUMENT]...
               run a further program in it
      -p, --process FILE       a process as in a configuration, in place of PROGRAM and the options below
      -t, --tty                it wants a terminal
      -e, --env NAME=VALUE     in its environment
      -u, --user UID[:GID]     who runs it
      -g, --additional-gids GID,...
      -c, --cap CAPABILITY     it has this one, too
      --cwd DIR                where it begins
      --no-new-privs           executing other programs gives it no rights
      -d, --detach             do not wait
      --ignore-paused          wait for a container that is paused to go on
      --cgroup PATH            in this control group below the container's own
      --console-socket SOCKET, --pid-file FILE, --preserve-fds N
  state ID     say what it is, as JSON
  list         list all containers
      -f, --format table|json; -q, --quiet
  ps ID [OPTION OF ps]...
               list its processes
      -f, --format table|json
  kill ID [SIGNAL]
               send its first process a signal (TERM)
      -a, --all                all of its processes
  pause ID, resume ID
               stop all of its processes, let them go on
  update ID    change its limits
      -r, --resources FILE     resources as in a configuration; - is standard input
      --memory, --memory-reservation, --memory-swap BYTES
      --cpu-quota, --cpu-period, --cpu-burst MICROSECONDS; --cpu-share N; --cpu-idle 0|1
      --cpuset-cpus, --cpuset-mems LIST; --pids-limit N; --blkio-weight N
  events ID    say what it uses, again and again, and when memory runs out, as JSON
      --stats                  once
      --interval TIME          how often (5s)
  delete ID    remove what is left of it
      -f, --force              end it first; none is no error
  spec         write a configuration to begin with
      -b, --bundle DIR; --rootless
  features     say what this runtime can do, as JSON

An error is a sentence on standard error, and exits with 1; run and exec exit as their program does, with 128 and its number
after a signal, 127 if there is no such program and 126 if it cannot be executed.
";
