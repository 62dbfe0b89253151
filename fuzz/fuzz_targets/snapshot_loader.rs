//! A snapshot that somebody else wrote: its document, its memory with its working set, and its devices' states, up to where
//! KVM would be told of them.
#![no_main]

use std::cell::RefCell;
use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use bulkhead_devices::rate_limiter::RateLimit;
use bulkhead_devices::virtio::VirtioDevice;
use bulkhead_devices::virtio::balloon::{Balloon, BalloonConfig};
use bulkhead_devices::virtio::block::{Block, BlockConfig, Engine};
use bulkhead_devices::virtio::console::{Console, ConsoleConfig, WindowSize};
use bulkhead_devices::virtio::mmio::MmioTransport;
use bulkhead_devices::virtio::rng::Rng;
use bulkhead_devices::virtio::vsock::{Vsock, VsockConfig};
use bulkhead_vmm::config::RestoreConfig;
use bulkhead_vmm::memory::Backing;
use bulkhead_vmm::snapshot::document::{FORMAT, State};
use bulkhead_vmm::snapshot::working_set::WorkingSet;
use bulkhead_vmm::snapshot::{MEMORY_FILE, WORKING_SET_FILE, memory};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

const MIB: u64 = 32;

thread_local! {
    static FOLDER: RefCell<TempDir> = RefCell::new(folder());
}

fn folder() -> TempDir {
    let folder = tempfile::tempdir().expect("folder");
    let memory = File::create(folder.path().join(MEMORY_FILE)).expect("memory");
    memory.set_len(MIB << 20).expect("size");
    let disk = File::create(folder.path().join("disk")).expect("disk");
    disk.set_len(1 << 20).expect("size");
    folder
}

fuzz_target!(|data: &[u8]| {
    let mut u = Unstructured::new(data);
    FOLDER.with_borrow(|folder| {
        let _ = load(&mut u, folder.path());
    });
});

fn load(u: &mut Unstructured, folder: &Path) -> Result<()> {
    let path = Path::new("state.json");
    if u.ratio(1, 4)? {
        // Anything at all, with or without a checksum that is right.
        let body = u.bytes(u.len())?;
        let _ = State::parse(body, path);
        let _ = State::parse(&with_header(body), path);
        let _ = WorkingSet::parse(body, u64::MAX);
        return Ok(());
    }
    let mut document = good();
    for _ in 0..u.int_in_range(0..=8)? {
        change(u, &mut document, 0)?;
    }
    let text = with_header(document.to_string().as_bytes());
    let Ok(state) = State::parse(&text, path) else {
        return Ok(());
    };
    let wanted = RestoreConfig::default();
    let _ = state.restored_config(wanted);
    if state.config.memory_mib != MIB {
        return Ok(());
    }
    let backing = match u.arbitrary()? {
        true => Backing::Shared,
        false => Backing::Memfd,
    };
    let Ok(memory) = memory::restore(folder, MIB, &state.memory, u.arbitrary()?, backing) else {
        return Ok(());
    };
    let set = json!({"format": 1, "written": runs(u)?}).to_string();
    fs::write(folder.join(WORKING_SET_FILE), set).expect("working set");
    if let Ok(Some(set)) = WorkingSet::read(folder, &memory) {
        set.prefetch(&memory);
        WorkingSet::of(&memory).expect("what was touched");
    }
    let memory = Arc::new(memory);
    for state in &state.devices {
        let device = device(u.int_in_range(0..=4)?, folder);
        let transport = MmioTransport::new(device, Arc::clone(&memory)).expect("transport");
        if transport.restore(state).is_ok() {
            transport.restart();
            let again = transport.save().expect("save what was restored");
            assert_eq!(again.device_type, state.device_type);
        }
    }
    Ok(())
}

/// Runs of pages, most often some that there can be.
fn runs(u: &mut Unstructured) -> Result<Vec<(u64, u64)>> {
    let mut end = 0;
    let mut runs = Vec::new();
    for _ in 0..u.int_in_range(0..=4)? {
        let (gap, count) = (u.int_in_range(0..=4000)?, u.int_in_range(1..=500)?);
        runs.push(match u.ratio(1, 16)? {
            true => (u.arbitrary()?, u.arbitrary()?),
            false => (end + gap, count),
        });
        end += gap + count;
    }
    Ok(runs)
}

fn with_header(body: &[u8]) -> Vec<u8> {
    let sum: String = Sha256::digest(body)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let header = json!({"bulkhead_snapshot": FORMAT, "sha256": sum}).to_string();
    [header.as_bytes(), b"\n", body, b"\n"].concat()
}

fn device(kind: u8, folder: &Path) -> Box<dyn VirtioDevice> {
    let name = "fuzzed".to_owned();
    match kind {
        0 => Box::new(Rng::new(name, &RateLimit::default()).expect("rng")),
        1 => Box::new(
            Block::open(BlockConfig {
                path: Some(folder.join("disk")),
                read_only: false,
                serial: None,
                rate_limit: None,
                name,
                engine: Engine::ThreadPool,
            })
            .expect("block"),
        ),
        2 => {
            let null = || File::options().write(true).open("/dev/null").expect("null");
            Box::new(
                Console::new(ConsoleConfig {
                    name,
                    input: None,
                    output: null().into(),
                    size: WindowSize::default(),
                })
                .expect("console"),
            )
        }
        3 => Box::new(
            Balloon::new(BalloonConfig {
                name,
                target: 0,
                deflate_on_oom: true,
                free_page_reporting: true,
                statistics: true,
            })
            .expect("balloon"),
        ),
        _ => {
            let socket = folder.join("vsock.sock");
            let _ = fs::remove_file(&socket);
            Box::new(
                Vsock::new(VsockConfig {
                    name,
                    guest_cid: 3,
                    uds_path: socket,
                    direct: Vec::new(),
                })
                .expect("vsock"),
            )
        }
    }
}

/// A document that is whole, of a VM with one device of each kind that is fuzzed.
fn good() -> Value {
    let queue = |base: u64| {
        json!({
            "size": 16, "ready": true, "descriptor_table": base, "available_ring": base + 0x1000,
            "used_ring": base + 0x2000, "next_available": 0, "next_used": 0, "signalled": 0,
        })
    };
    let device = |kind: u32, queues: u64, own: Value| {
        let queues: Vec<Value> = (0..queues).map(|i| queue(0x10_0000 + i * 0x4000)).collect();
        json!({
            "device_type": kind, "status": 15, "driver_features": 1u64 << 32,
            "device_features_select": 0, "driver_features_select": 0, "queue_select": 0,
            "interrupt_status": 1, "config_generation": 0, "needs_reset": false, "queues": queues,
            "device": own,
        })
    };
    let zeroes = |bytes: usize| "00".repeat(bytes);
    json!({
        "config": {
            "cpus": 1, "memory_mib": MIB, "kernel": {"path": "/k"}, "spare_slots": 4,
            "disks": [{"path": "/d"}], "vsock": {"cid": 3, "path": "/v"}, "balloon": {},
        },
        "added": {},
        "cmdline": "",
        "host": {"assisted": false, "processor": "one", "boot": ["id", 1]},
        "vcpus": [{
            "cpuid": zeroes(40), "regs": zeroes(144), "sregs": zeroes(312), "xcrs": zeroes(392),
            "xsave": zeroes(4096), "msrs": zeroes(16), "lapic": zeroes(1024), "mp_state": zeroes(4),
            "debug_regs": zeroes(128), "events": zeroes(64), "due_in": -5, "tsc_khz": 1,
        }],
        "vm": {
            "irqchips": zeroes(3 * 520), "pit": zeroes(112), "clock": zeroes(48), "unix_ns": 1,
        },
        "devices": [
            device(2, 1, json!({"capacity": 2048})),
            device(19, 3, json!({"guest_cid": 3})),
            device(3, 2, json!({})),
            device(4, 1, Value::Null),
            device(5, 4, json!({})),
        ],
        "serial": null,
        "i8042": {},
        "memory": [[0, 4096, 0x38a_2735u32], [8192, 4096, 0xc71c_0011u32]],
    })
}

/// Changes one place in it.
fn change(u: &mut Unstructured, value: &mut Value, depth: u32) -> Result<()> {
    let goes_on = depth < 8 && !u.ratio(1, 8)?;
    match value {
        Value::Object(map) if goes_on && !map.is_empty() => {
            let index = u.choose_index(map.len())?;
            if let Some(inner) = map.values_mut().nth(index) {
                return change(u, inner, depth + 1);
            }
        }
        Value::Array(list) if goes_on && !list.is_empty() => {
            let index = u.choose_index(list.len())?;
            match u.int_in_range(0..=7)? {
                0 => drop(list.remove(index)),
                1 => list.push(list[index].clone()),
                _ => return change(u, &mut list[index], depth + 1),
            }
            return Ok(());
        }
        Value::String(text) if goes_on && !text.is_empty() => {
            let len = text.floor_char_boundary(u.int_in_range(0..=text.len())?);
            match u.arbitrary()? {
                true => text.truncate(len),
                false => text.push_str(u.arbitrary()?),
            }
            return Ok(());
        }
        _ => {}
    }
    *value = match u.int_in_range(0..=5)? {
        0 => Value::Null,
        1 => u.arbitrary::<bool>()?.into(),
        2 => u.arbitrary::<u64>()?.into(),
        3 => u.arbitrary::<u16>()?.into(),
        4 => (u64::from(u.arbitrary::<u16>()?) << 12).into(),
        _ => u.arbitrary::<String>()?.into(),
    };
    Ok(())
}
