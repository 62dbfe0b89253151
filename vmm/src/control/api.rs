//! What can be asked of a running VM, and the answers.

use std::os::unix::process::parent_id;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bulkhead_devices::GuestMemory;
use bulkhead_devices::legacy::i8042::I8042;
use bulkhead_devices::legacy::serial::Serial;
use bulkhead_devices::virtio::balloon::BalloonHandle;
use bulkhead_devices::virtio::console::ConsoleHandle;
use bulkhead_devices::virtio::mmio::MmioTransport;
use kvm_ioctls::VmFd;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::http::{Reply, Request};
use crate::assist::{Counters, HostKind};
use crate::config::{RestoreConfig, VmConfig, WindowConfig};
use crate::exit::{ExitSlot, VmExit};
use crate::snapshot::take::{Parts, take};
use crate::snapshot::working_set::WorkingSet;
use crate::timing;
use crate::vcpu::{ExitCounts, RunControl};

/// The parts of a VM that the control socket reaches.
pub struct VmHandle {
    /// The VM's description, for whoever asks.
    pub config: VmConfig,
    /// What was added to it when it was restored.
    pub added: RestoreConfig,
    /// Where it comes from, if it was restored.
    pub origin: Option<Origin>,
    /// KVM's side of it.
    pub vm: Arc<VmFd>,
    /// The guest's memory.
    pub memory: Arc<GuestMemory>,
    /// The serial port, if there is one.
    pub serial: Option<Arc<Serial>>,
    /// The keyboard controller.
    pub i8042: Arc<I8042>,
    /// The command line the kernel was given.
    pub cmdline: String,
    /// What kind of KVM runs it.
    pub host: HostKind,
    /// Pauses and resumes.
    pub run: Arc<RunControl>,
    /// Ends the VM.
    pub exit: Arc<ExitSlot>,
    /// The virtio devices, for their counters.
    pub devices: Vec<Arc<MmioTransport>>,
    /// Exit counts of each vCPU.
    pub vcpus: Vec<Arc<ExitCounts>>,
    /// The console's window, if there is a console.
    pub console: Option<ConsoleHandle>,
    /// The balloon's size, if there is one.
    pub balloon: Option<BalloonHandle>,
    /// What the assist has done, on a host that needs it.
    pub assist: Option<Arc<Counters>>,
}

/// Where a restored VM comes from.
#[derive(Debug)]
pub struct Origin {
    /// The snapshot's folder.
    pub folder: PathBuf,
    /// How long it had slept there, in nanoseconds.
    pub asleep_ns: u64,
    /// Whether it had at once what it would need of its memory.
    pub prefetched: bool,
}

/// Body of `PUT /v1/balloon`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BalloonSize {
    /// Memory to take from the guest, in MiB.
    size_mib: u32,
}

/// Body of `PUT /v1/snapshot`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SnapshotRequest {
    /// The folder to make.
    path: PathBuf,
}

impl VmHandle {
    /// Answers one request.
    pub fn handle(&self, request: &Request) -> Reply {
        match (&*request.method, &*request.path) {
            ("GET", "/v1/vm") => self.describe(),
            ("GET", "/v1/metrics") => self.metrics(),
            ("GET", "/v1/timings") => match timing::recorded() {
                Some(times) => Reply::ok(json!(times)),
                None => Reply::error(409, "the VM has not started yet"),
            },
            ("PUT" | "POST", "/v1/pause") => {
                self.run.pause();
                Reply::done()
            }
            ("PUT" | "POST", "/v1/resume") => {
                self.run.resume();
                Reply::done()
            }
            ("PUT" | "POST", "/v1/shutdown") => {
                self.exit.report(VmExit::Stopped);
                Reply::done()
            }
            ("PUT", "/v1/snapshot") => self.snapshot(&request.body),
            ("PUT", "/v1/working-set") => self.keep_working_set(),
            ("PUT", "/v1/balloon") => self.set_balloon(&request.body),
            ("PUT", "/v1/console") => self.set_window(&request.body),
            (
                _,
                "/v1/vm" | "/v1/metrics" | "/v1/timings" | "/v1/pause" | "/v1/resume"
                | "/v1/shutdown" | "/v1/snapshot" | "/v1/working-set" | "/v1/balloon"
                | "/v1/console",
            ) => Reply::error(
                405,
                format!("{} does not take {}", request.path, request.method),
            ),
            _ => Reply::error(404, format!("there is no {}", request.path)),
        }
    }

    fn describe(&self) -> Reply {
        let state = if self.run.is_paused() {
            "paused"
        } else {
            "running"
        };
        Reply::ok(json!({
            "state": state,
            "pid": std::process::id(),
            "parent_pid": parent_id(),
            "host": match self.host {
                HostKind::Hardware => "hardware",
                HostKind::SoftwareAssisted => "software-assisted",
            },
            "cmdline": self.cmdline,
            "config": self.config,
            "restored": self.origin.as_ref().map(|origin| json!({
                "asleep_ns": origin.asleep_ns,
                "prefetched": origin.prefetched,
                "added": self.added,
            })),
        }))
    }

    /// Writes a snapshot. Nothing else is answered meanwhile.
    fn snapshot(&self, body: &[u8]) -> Reply {
        let request: SnapshotRequest = match serde_json::from_slice(body) {
            Ok(request) => request,
            Err(e) => return Reply::error(400, format!("the body names no folder: {e}")),
        };
        if !request.path.is_absolute() {
            return Reply::error(400, "the folder's path must be absolute");
        }
        let parts = Parts {
            config: &self.config,
            added: &self.added,
            cmdline: &self.cmdline,
            host: self.host,
            run: &self.run,
            vm: &self.vm,
            memory: &self.memory,
            devices: &self.devices,
            serial: self.serial.as_deref(),
            i8042: &self.i8042,
        };
        match take(&parts, &request.path) {
            Ok(()) => Reply::done(),
            Err(e) => Reply::error(409, e.to_string()),
        }
    }

    /// Writes down beside the snapshot which memory was needed until now.
    fn keep_working_set(&self) -> Reply {
        let Some(origin) = &self.origin else {
            return Reply::error(409, "the VM was not restored from a snapshot");
        };
        if !self.added.shares.is_empty() {
            return Reply::error(409, "a VM with shares has a copy of all its memory");
        }
        match WorkingSet::of(&self.memory).and_then(|set| set.write(&origin.folder)) {
            Ok(()) => Reply::done(),
            Err(e) => Reply::error(409, format!("cannot keep the working set: {e}")),
        }
    }

    fn metrics(&self) -> Reply {
        let mut devices = Map::new();
        for device in &self.devices {
            let mut counters = Map::new();
            device.metrics(&mut |name, value| {
                counters.insert(name.to_owned(), value.into());
            });
            devices.insert(device.name().to_owned(), Value::Object(counters));
        }
        let vcpus: Vec<Value> = self
            .vcpus
            .iter()
            .map(|counts| {
                json!({
                    "pio_exits": counts.pio.load(Ordering::Relaxed),
                    "mmio_exits": counts.mmio.load(Ordering::Relaxed),
                    "assisted_instructions": counts.assist.load(Ordering::Relaxed),
                    "interruptions": counts.interrupted.load(Ordering::Relaxed),
                })
            })
            .collect();
        let assist = self.assist.as_ref().map(|counters| {
            let mut map = Map::new();
            counters.report(&mut |name, value| {
                map.insert(name.to_owned(), value.into());
            });
            map
        });
        Reply::ok(json!({ "vcpus": vcpus, "devices": devices, "assist": assist }))
    }

    fn set_balloon(&self, body: &[u8]) -> Reply {
        let Some(balloon) = &self.balloon else {
            return Reply::error(
                409,
                "this VM has no balloon: give it one in its configuration",
            );
        };
        let size: BalloonSize = match serde_json::from_slice(body) {
            Ok(size) => size,
            Err(e) => return Reply::error(400, format!("the body is not a balloon size: {e}")),
        };
        if u64::from(size.size_mib) > self.config.memory_mib {
            return Reply::error(
                400,
                format!(
                    "a balloon of {} MiB does not fit in {} MiB of memory",
                    size.size_mib, self.config.memory_mib
                ),
            );
        }
        balloon.set_target(u64::from(size.size_mib) << 20);
        Reply::done()
    }

    fn set_window(&self, body: &[u8]) -> Reply {
        let Some(console) = &self.console else {
            return Reply::error(409, "this VM has no virtio console");
        };
        match serde_json::from_slice::<WindowConfig>(body) {
            Ok(size) => {
                console.set_size(size.into());
                Reply::done()
            }
            Err(e) => Reply::error(400, format!("the body is not a window size: {e}")),
        }
    }
}
