//! From an image's configuration and what its user asked for to an OCI runtime specification.

mod capabilities;
mod files;
mod process;

use bulkhead_container::defaults;
use bulkhead_container::seccomp::{Profile, docker_default};
use bulkhead_container::spec::{
    Cpu, Linux, LinuxPids, Memory, Mount, Namespace, NamespaceKind, Process, Resources, Rlimit,
    Root, Seccomp, Spec,
};
use oci_spec::image::ImageConfiguration;
use rustix::process::geteuid;

use crate::error::Error;
use crate::record::Isolation;
pub use files::files;
pub use process::exec_process;

/// The version of the runtime specification.
const OCI_VERSION: &str = "1.2.0";
/// Microseconds of a period of processor time.
const CPU_PERIOD: u64 = 100_000;

/// What a container's user asks for. Where nothing is said, the image decides, or Docker's defaults do.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// In place of the image's entry point; the image's command is then not used.
    pub entrypoint: Option<Vec<String>>,
    /// In place of the image's command.
    pub command: Vec<String>,
    /// `NAME=value`s on top of the image's.
    pub env: Vec<String>,
    /// The working directory.
    pub workdir: Option<String>,
    /// `name`, `name:group`, `1000`, `1000:group`.
    pub user: Option<String>,
    /// The host name; the beginning of the ID if none.
    pub hostname: Option<String>,
    /// Whether the standard streams are a terminal.
    pub terminal: bool,
    /// Whether the root cannot be written to.
    pub read_only: bool,
    /// What is mounted on top of the defaults.
    pub mounts: Vec<Mount>,
    /// Capabilities on top of the default ones, `ALL` for every one.
    pub cap_add: Vec<String>,
    /// Capabilities to leave out, `ALL` for every one.
    pub cap_drop: Vec<String>,
    /// Limits of single processes.
    pub ulimits: Vec<Rlimit>,
    /// Whether programs cannot gain privileges by executing others.
    pub no_new_privileges: bool,
    /// Which system calls may be made.
    pub system_calls: SystemCalls,
    /// Processors.
    pub cpus: Option<f64>,
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub pids_limit: Option<i64>,
    /// The wall around it.
    pub isolation: Isolation,
}

/// Which system calls may be made.
#[derive(Debug, Clone, Default)]
pub enum SystemCalls {
    /// Those that Docker allows.
    #[default]
    Docker,
    /// Those that this profile, in Docker's form, allows.
    Profile(Profile),
    /// All.
    Any,
}

impl SystemCalls {
    fn filter(&self, process: &Process) -> Option<Seccomp> {
        let capabilities = process.capabilities.as_ref();
        let capabilities = capabilities.map_or(&[][..], |sets| &sets.bounding);
        match self {
            SystemCalls::Docker => Some(docker_default().filter(capabilities)),
            SystemCalls::Profile(profile) => Some(profile.filter(capabilities)),
            SystemCalls::Any => None,
        }
    }
}

/// The specification of the container `id`.
pub fn build(id: &str, image: &ImageConfiguration, options: &Options) -> Result<Spec, Error> {
    let hostname = match &options.hostname {
        Some(name) => name.clone(),
        None => crate::layout::short(id).to_owned(),
    };
    let process = process::process(image, options, &hostname)?;
    let seccomp = options.system_calls.filter(&process);
    let resources = resources(options, &process);
    let mut mounts = defaults::mounts();
    for mount in &options.mounts {
        // In the place of a default one, as `--tmpfs /dev/shm`.
        mounts.retain(|default| default.destination != mount.destination);
        mounts.push(mount.clone());
    }
    Ok(Spec {
        oci_version: OCI_VERSION.to_owned(),
        root: Some(Root {
            path: "rootfs".to_owned(),
            readonly: options.read_only,
        }),
        mounts,
        process: Some(process),
        hostname: Some(hostname),
        linux: Some(Linux {
            namespaces: namespaces(options.isolation),
            resources,
            seccomp,
            masked_paths: defaults::masked_paths(),
            readonly_paths: defaults::readonly_paths(),
            ..Linux::default()
        }),
        ..Spec::default()
    })
}

/// In a guest all but a network of its own: the guest's is, and has no interface but its loopback.
/// Puts mounts in the order in which they can be made: what lies below another comes after it.
pub fn sort_mounts(mounts: &mut [Mount]) {
    let names = |mount: &Mount| {
        let names = mount.destination.split('/');
        names.filter(|name| !name.is_empty()).count()
    };
    mounts.sort_by_key(names);
}

fn namespaces(isolation: Isolation) -> Vec<Namespace> {
    let mut namespaces = defaults::namespaces();
    if isolation == Isolation::Vm {
        namespaces.retain(|namespace| namespace.kind != NamespaceKind::Network);
    }
    namespaces
}

fn resources(options: &Options, process: &Process) -> Option<Resources> {
    let capabilities = process.capabilities.as_ref();
    let gets_devices = capabilities.is_some_and(|sets| {
        sets.bounding
            .iter()
            .any(|name| name == capabilities::MAKE_DEVICES || name == capabilities::MOUNT)
    });
    let resources = Resources {
        memory: options.memory.map(|bytes| {
            let limit = i64::try_from(bytes).unwrap_or(i64::MAX);
            Memory {
                limit: Some(limit),
                swap: Some(limit),
                ..Memory::default()
            }
        }),
        cpu: options.cpus.map(|cpus| Cpu {
            quota: Some((cpus * CPU_PERIOD as f64) as i64),
            period: Some(CPU_PERIOD),
            ..Cpu::default()
        }),
        pids: options.pids_limit.map(|limit| LinuxPids { limit }),
        devices: match options.isolation {
            // Nobody but root can make any.
            Isolation::Container if gets_devices && geteuid().is_root() => defaults::device_rules(),
            _ => Vec::new(),
        },
        ..Resources::default()
    };
    (resources != Resources::default()).then_some(resources)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_when_given_are_in_the_specification_and_otherwise_nothing_is() {
        let image = ImageConfiguration::default();
        let options = Options {
            command: vec!["sh".into()],
            cpus: Some(0.5),
            memory: Some(64 << 20),
            pids_limit: Some(10),
            ..Options::default()
        };
        let resources = |options| {
            let spec = build("0123456789abcdef", &image, options).expect("spec");
            assert_eq!(spec.hostname.as_deref(), Some("0123456789ab"));
            spec.linux.expect("linux").resources
        };
        let set = resources(&options).expect("resources");
        let cpu = set.cpu.expect("cpu");
        assert_eq!((cpu.quota, cpu.period), (Some(50_000), Some(100_000)));
        let memory = set.memory.expect("memory");
        assert_eq!(
            (memory.limit, memory.swap),
            (Some(64 << 20), Some(64 << 20))
        );
        assert_eq!(set.pids, Some(LinuxPids { limit: 10 }));
        let none = Options {
            command: vec!["sh".into()],
            ..Options::default()
        };
        assert_eq!(resources(&none), None);
    }

    #[test]
    fn mount_when_a_default_one_has_its_place_stands_in_for_it() {
        let options = Options {
            command: vec!["sh".into()],
            mounts: vec![Mount {
                destination: "/dev/shm".into(),
                kind: Some("tmpfs".into()),
                ..Mount::default()
            }],
            ..Options::default()
        };
        let spec = build("x", &ImageConfiguration::default(), &options).expect("spec");
        let at_shm = |mount: &&Mount| mount.destination == "/dev/shm";
        assert_eq!(spec.mounts.iter().filter(at_shm).count(), 1);
        assert!(spec.mounts.last().as_ref().is_some_and(at_shm));
    }
}
