//! The options of `run` and `create`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use bulkhead_container::seccomp::Profile;
use bulkhead_container::spec::{Mount, Rlimit};
use bulkhead_engine::record::{Isolation, Upper};
use bulkhead_engine::spec::{Options, SystemCalls};
use bulkhead_engine::volumes::VolumeMount;
use bulkhead_image::manifest::Platform;
use clap::{ArgAction, Args, ValueEnum};

use super::volumes::{Wanted, parse_mount, parse_volume, tmpfs_mount};
use crate::image::Policy;
use crate::values::{parse_bytes, parse_cpus, parse_signal};

/// What a container is to be.
#[derive(Args)]
pub struct ContainerArgs {
    /// Give the container a name
    #[arg(long)]
    pub name: Option<String>,
    /// Keep standard input open
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the container a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Have a small first process reap what the program leaves behind, and pass signals on to it
    #[arg(long)]
    pub init: bool,
    /// Remove the container when it ends
    #[arg(long)]
    pub rm: bool,
    /// Set a variable of the environment; without a value, to what it is here
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Read variables from a file, a line each
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Mount a folder or file of this machine, or a volume by its name; options are ro and nocopy
    #[arg(short, long, value_name = "SOURCE:PATH[:OPTIONS]")]
    volume: Vec<String>,
    /// Mount something: type=bind|volume|tmpfs, source=..., target=PATH, readonly
    #[arg(long, value_name = "KEY=VALUE,...")]
    mount: Vec<String>,
    /// Mount memory at a path
    #[arg(long, value_name = "PATH[:OPTIONS]")]
    tmpfs: Vec<String>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// User, and group, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Program in place of the image's entry point
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Processors it may use at a time; the VM has as many whole ones
    #[arg(long, value_name = "N", value_parser = parse_cpus)]
    cpus: Option<f64>,
    /// Memory it may use; the VM has that and what its kernel needs [default: a VM of 512M]
    #[arg(short, long, value_name = "SIZE", value_parser = parse_bytes)]
    memory: Option<u64>,
    /// Processes and threads it may have, -1 for any number
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pids_limit: Option<i64>,
    /// Make the root read-only
    #[arg(long)]
    read_only: bool,
    /// Keep changes on a disk of this size, rather than in memory
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    storage: Option<u64>,
    /// Add a capability, or ALL
    #[arg(long, value_name = "CAPABILITY")]
    cap_add: Vec<String>,
    /// Drop a capability, or ALL
    #[arg(long, value_name = "CAPABILITY")]
    cap_drop: Vec<String>,
    /// Host name in the container [default: its ID]
    #[arg(short = 'h', long, value_name = "NAME")]
    hostname: Option<String>,
    /// Note something with the container
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    label: Vec<String>,
    /// Limit a resource of each process
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    ulimit: Vec<String>,
    /// no-new-privileges, seccomp=unconfined or seccomp=FILE
    #[arg(long, value_name = "OPTION")]
    security_opt: Vec<String>,
    /// Signal that asks it to stop [default: the image's, or TERM]
    #[arg(long, value_name = "SIGNAL", value_parser = parse_signal)]
    stop_signal: Option<u8>,
    /// Seconds it gets to stop
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub stop_timeout: u64,
    /// Network: only `none` yet
    #[arg(long, visible_alias = "net", value_name = "NETWORK", value_parser = ["none"], default_value = "none")]
    network: String,
    /// The wall around the container
    #[arg(long, value_enum, default_value_t = Wall::Vm)]
    isolation: Wall,
    /// Boot the VM, rather than restore it from a template
    #[arg(long)]
    pub cold: bool,
    /// Begin in a clone of this template of your own (see `bulkhead template create`)
    #[arg(long, value_name = "TEMPLATE", conflicts_with = "cold")]
    pub template: Option<String>,
    /// When to pull the image
    #[arg(long, value_enum, default_value_t = Policy::Missing)]
    pub pull: Policy,
    /// Which of an image's platforms, like linux/amd64
    #[arg(long, value_name = "OS/ARCHITECTURE")]
    pub platform: Option<Platform>,
    /// Print help
    #[arg(long, action = ArgAction::HelpLong)]
    help: Option<bool>,
    /// Image to make it of
    pub image: String,
    /// What to run in it, in place of the image's own command
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    command: Vec<String>,
}

/// The wall around a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Wall {
    /// A microVM of its own
    Vm,
    /// Namespaces and control groups, on the host's kernel
    Container,
}

impl ContainerArgs {
    /// The wall around it.
    pub fn isolation(&self) -> Isolation {
        match self.isolation {
            Wall::Vm => Isolation::Vm,
            Wall::Container => Isolation::Container,
        }
    }

    /// What the engine is asked for.
    pub fn to_options(&self) -> Result<Options, String> {
        self.refuse_what_is_too_little()?;
        if self.template.is_some() && self.isolation() == Isolation::Container {
            return Err(
                "--template is for a VM, and --isolation container has none: leave one of them out"
                    .to_owned(),
            );
        }
        let mut no_new_privileges = false;
        let mut system_calls = SystemCalls::default();
        for option in &self.security_opt {
            match option.split_once(['=', ':']) {
                None if option == "no-new-privileges" => no_new_privileges = true,
                Some(("no-new-privileges", value)) => no_new_privileges = value == "true",
                Some(("seccomp", "unconfined")) => system_calls = SystemCalls::Any,
                Some(("seccomp", file)) => {
                    system_calls = SystemCalls::Profile(read_profile(Path::new(file))?)
                }
                _ => {
                    return Err(format!(
                        "--security-opt {option} is not known: give no-new-privileges or seccomp=..."
                    ));
                }
            }
        }
        Ok(Options {
            entrypoint: self.entrypoint.as_ref().map(|program| match &**program {
                "" => Vec::new(),
                program => vec![program.to_owned()],
            }),
            command: self.command.clone(),
            env: environment(&self.env, &self.env_file)?,
            workdir: self.workdir.clone(),
            user: self.user.clone(),
            hostname: self.hostname.clone(),
            terminal: self.tty,
            read_only: self.read_only,
            mounts: self.mounts()?.0,
            cap_add: self.cap_add.clone(),
            cap_drop: self.cap_drop.clone(),
            ulimits: self
                .ulimit
                .iter()
                .map(|limit| parse_ulimit(limit))
                .collect::<Result<_, _>>()?,
            no_new_privileges,
            system_calls,
            cpus: self.cpus,
            memory: self.memory,
            pids_limit: self.pids_limit,
            isolation: self.isolation(),
        })
    }

    /// What it gets of this machine.
    pub fn volumes(&self) -> Result<Vec<VolumeMount>, String> {
        self.mounts().map(|(_, volumes)| volumes)
    }

    /// What is mounted: memory, and what is of this machine. Each place is given out once.
    fn mounts(&self) -> Result<(Vec<Mount>, Vec<VolumeMount>), String> {
        let mut memory = Vec::new();
        let mut volumes = Vec::new();
        for tmpfs in &self.tmpfs {
            let (path, options) = tmpfs.split_once(':').unwrap_or((tmpfs, ""));
            memory.push(tmpfs_mount(path, options)?);
        }
        for volume in &self.volume {
            volumes.push(parse_volume(volume)?);
        }
        for mount in &self.mount {
            match parse_mount(mount)? {
                Wanted::Memory(mount) => memory.push(mount),
                Wanted::Volume(volume) => volumes.push(volume),
            }
        }
        let mut places: Vec<&str> = memory.iter().map(|m| m.destination.as_str()).collect();
        places.extend(volumes.iter().map(|v| v.destination.as_str()));
        places.sort_unstable();
        match places.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(format!(
                "two mounts want the path {}: leave one out",
                pair[0]
            )),
            None => Ok((memory, volumes)),
        }
    }

    /// The labels, on top of the image's.
    pub fn labels(&self, image: BTreeMap<String, String>) -> BTreeMap<String, String> {
        let mut labels = image;
        for label in &self.label {
            let (name, value) = label.split_once('=').unwrap_or((label, ""));
            labels.insert(name.to_owned(), value.to_owned());
        }
        labels
    }

    /// Where changes go.
    pub fn upper(&self) -> Upper {
        match self.storage {
            None => Upper::Memory,
            Some(size_bytes) => Upper::Disk { size_bytes },
        }
    }

    /// Processors and bytes of memory, if they are limited.
    pub fn limits(&self) -> (Option<f64>, Option<u64>) {
        (self.cpus, self.memory)
    }

    /// The signal that asks the container to stop.
    pub fn stop_signal(&self, image: Option<&str>) -> Result<u8, String> {
        const SIGTERM: u8 = 15;
        match (self.stop_signal, image) {
            (Some(signal), _) => Ok(signal),
            (None, Some(name)) if !name.is_empty() => parse_signal(name),
            _ => Ok(SIGTERM),
        }
    }

    fn refuse_what_is_too_little(&self) -> Result<(), String> {
        const LEAST_MEMORY: u64 = 6 << 20;
        const LEAST_STORAGE: u64 = 1 << 20;
        if self.memory.is_some_and(|memory| memory < LEAST_MEMORY) {
            return Err("--memory is too little for any program: give at least 6M".to_owned());
        }
        if self.storage.is_some_and(|size| size < LEAST_STORAGE) {
            return Err("--storage is too small for a file system: give at least 1M".to_owned());
        }
        Ok(())
    }
}

/// The variables of files and then those of options; one without a value has the one of this process.
pub fn environment(given: &[String], files: &[PathBuf]) -> Result<Vec<String>, String> {
    let mut vars = Vec::new();
    for file in files {
        let text = fs::read_to_string(file)
            .map_err(|e| format!("cannot read the variables in {}: {e}", file.display()))?;
        let lines = text.lines().map(str::trim_start);
        vars.extend(
            lines
                .filter(|line| !line.is_empty() && !line.starts_with('#'))
                .map(str::to_owned),
        );
    }
    vars.extend(given.iter().cloned());
    let mut environment = Vec::new();
    for var in vars {
        if var.starts_with('=') {
            return Err(format!(
                "`{var}` has no name: write a variable as NAME=VALUE"
            ));
        }
        if var.contains('=') {
            environment.push(var);
        } else if let Ok(value) = std::env::var(&var) {
            environment.push(format!("{var}={value}"));
        }
    }
    Ok(environment)
}

fn parse_ulimit(text: &str) -> Result<Rlimit, String> {
    let wrong = || format!("`{text}` is not a limit: write it as nofile=1024:2048");
    let (name, limits) = text.split_once('=').ok_or_else(wrong)?;
    const KNOWN: [&str; 16] = [
        "as",
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ];
    if !KNOWN.contains(&name) {
        return Err(format!(
            "there is no limit {name}: one of {}",
            KNOWN.join(", ")
        ));
    }
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    let parse = |number: &str| match number {
        "-1" | "unlimited" => Ok(u64::MAX),
        number => number.parse().map_err(|_| wrong()),
    };
    let (soft, hard) = (parse(soft)?, parse(hard)?);
    if soft > hard {
        return Err(format!("`{text}` has a soft limit above the hard one"));
    }
    Ok(Rlimit {
        kind: format!("RLIMIT_{}", name.to_ascii_uppercase()),
        soft,
        hard,
    })
}

fn read_profile(path: &Path) -> Result<Profile, String> {
    let failed = |e: &dyn std::fmt::Display| {
        format!("cannot use the seccomp profile {}: {e}", path.display())
    };
    let text = fs::read(path).map_err(|e| failed(&e))?;
    Profile::parse(&text).map_err(|e| failed(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_with_and_without_the_hard_one() {
        let limit = parse_ulimit("nofile=10:20").expect("limit");
        assert_eq!(
            (&*limit.kind, limit.soft, limit.hard),
            ("RLIMIT_NOFILE", 10, 20)
        );
        assert_eq!(parse_ulimit("core=-1").expect("limit").hard, u64::MAX);
        for wrong in ["nofile", "x=1", "nofile=2:1", "nofile=a"] {
            assert!(parse_ulimit(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn environment_when_a_value_is_left_out_is_ours_or_nothing() {
        let given = ["PATH", "BULKHEAD_NOT_SET_ANYWHERE", "A=", "B=x=y"].map(str::to_owned);
        let vars = environment(&given, &[]).expect("vars");
        let path = format!("PATH={}", std::env::var("PATH").expect("PATH"));
        assert_eq!(vars, [path, "A=".to_owned(), "B=x=y".to_owned()]);
        assert!(environment(&["=x".to_owned()], &[]).is_err());
    }
}
