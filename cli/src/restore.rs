//! `bulkhead restore`: a microVM goes on from a snapshot.

use std::path::{Path, PathBuf};

use bulkhead_engine::Engine;
use bulkhead_protocol::API_PORT;
use bulkhead_vmm::config::{PortConfig, RestoreConfig, VmConfig, VsockConfig};
use clap::Args;

use crate::Outcome;
use crate::boot::{Directory, Format, Origin, Plan, signals, stay};

/// Go on with a microVM from a snapshot that `bulkhead snapshot create` has made.
///
/// The VM goes on where it was, as often and as many times at once as you like. Each works on copies of its own
/// of the disks that it writes to: they are in the directory of its sockets, and are removed with it at the end.
///
/// The terminal is the guest's console. Ctrl-A x stops the VM; Ctrl-A Ctrl-A types one Ctrl-A.
#[derive(Args)]
#[command(after_help = "\
Exit codes: 0 the guest powered off or was stopped, 10 it asked for a reset, 11 its kernel panicked,
12 triple fault, 13 KVM could not go on, 15 the snapshot is damaged or not for this host, 125 it could not be restored.

Examples:
  bulkhead snapshot create /tmp/vm ready
  bulkhead restore ready
  bulkhead restore ready --vsock /tmp/second --timing")]
pub struct RestoreArgs {
    /// The snapshot's name
    #[arg(value_name = "NAME")]
    name: String,
    /// Directory for the VM's sockets, and for copies of its disks: api.sock (to the agent), vsock.sock
    /// (to any port of the guest) and control.sock
    #[arg(long, value_name = "DIR")]
    vsock: Option<PathBuf>,
    /// The guest's vsock address [default: the one it had]
    #[arg(long, value_name = "CID")]
    cid: Option<u64>,
    /// Restore, print where the time went, and stop
    #[arg(long)]
    timing: bool,
    /// How --timing prints
    #[arg(long, value_enum, default_value_t = Format::Table, requires = "timing")]
    format: Format,
}

/// Restores the VM, gives it the terminal, and stays until it is over. Returns the exit code.
///
/// `started` is when this process started, in nanoseconds of `CLOCK_MONOTONIC`.
pub fn run(args: &RestoreArgs, engine: &Engine, started: u64) -> Outcome {
    let snapshot = engine.snapshots().open(&args.name)?;
    // A damaged one is refused before anything is copied.
    let state = snapshot.state()?;
    // From here on there is something to clean up.
    let signals = signals::block()?;
    let mut directory = Directory::open(args.vsock.as_deref())?;
    let folder = directory.path().to_owned();
    let place = |index: usize| folder.join(format!("restored-disk{index}.img"));
    for disk in snapshot.record.disks.iter().filter(|disk| !disk.read_only) {
        let copy = place(disk.index);
        if copy.symlink_metadata().is_ok() {
            return Err(format!(
                "{} is there already: it is another VM's disk, or left of one that was killed; remove it, \
                 or name another directory",
                copy.display()
            )
            .into());
        }
        directory.owns(copy);
    }
    let disks = snapshot.disks(|disk| place(disk.index), &|| signals::has_come(&signals))?;
    let config = RestoreConfig {
        replaced_disks: disks,
        vsock: vsock(&state.config, snapshot.record.agent, args.cid, &folder),
        control_socket: Some(folder.join("control.sock")),
        ..RestoreConfig::default()
    };
    let has_port = |vsock: &VsockConfig| !vsock.ports.is_empty();
    let agent = config.vsock.as_ref().filter(|vsock| has_port(vsock));
    let plan = Plan {
        document: serde_json::to_string(&config)?,
        origin: Origin::Restore {
            agent: agent.map(|_| api_socket(&folder)),
            snapshot,
        },
        directory,
        signals,
        measure_only: args.timing,
        started,
    };
    stay(plan, args.timing.then_some(args.format))
}

fn api_socket(folder: &Path) -> PathBuf {
    folder.join("api.sock")
}

/// The socket device of a VM that goes on: what it was, with its sockets in `folder`, one of them the agent's if there is one or
/// was to be one.
fn vsock(
    config: &VmConfig,
    has_agent: bool,
    cid: Option<u64>,
    folder: &Path,
) -> Option<VsockConfig> {
    let before = config.vsock.as_ref()?;
    let had_port = before.ports.iter().any(|port| port.port == API_PORT);
    let api = (has_agent || had_port).then(|| PortConfig {
        port: API_PORT,
        path: api_socket(folder),
    });
    Some(VsockConfig {
        cid: cid.unwrap_or(before.cid),
        path: folder.join("vsock.sock"),
        ports: api.into_iter().collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(vsock: &str) -> VmConfig {
        let text = format!("{{\"kernel\": {{\"path\": \"k\"}}, \"vsock\": {vsock}}}");
        serde_json::from_str(&text).expect("config")
    }

    #[test]
    fn sockets_are_in_the_new_folder_and_the_address_is_the_old_one_unless_given() {
        let before = r#"{"cid": 7, "path": "/old/vsock.sock", "ports": [
            {"port": 9, "path": "/old/nine"}, {"port": 1024, "path": "/old/api.sock"}]}"#;
        let folder = Path::new("/new");
        let api = [(API_PORT, api_socket(folder))];
        let ports = |after: &VsockConfig| -> Vec<(u32, PathBuf)> {
            let ports = after.ports.iter();
            ports.map(|port| (port.port, port.path.clone())).collect()
        };
        let after = vsock(&config(before), false, None, folder).expect("vsock");
        assert_eq!(after.cid, 7);
        assert_eq!(after.path, folder.join("vsock.sock"));
        assert_eq!(ports(&after), api);
        let after = vsock(&config(before), false, Some(8), folder).expect("vsock");
        assert_eq!(after.cid, 8);
        assert_eq!(vsock(&config("null"), true, Some(8), folder), None);
        // An agent that was not asked through a socket of its own is there all the same.
        let before = r#"{"cid": 7, "path": "/old/vsock.sock"}"#;
        let after = vsock(&config(before), true, None, folder).expect("vsock");
        assert_eq!(ports(&after), api);
        let after = vsock(&config(before), false, None, folder).expect("vsock");
        assert_eq!(ports(&after), []);
    }
}
