//! `inspect`.

use bulkhead_engine::record::{Isolation, Status, Upper};
use bulkhead_engine::volumes::{Named, Source};
use bulkhead_engine::{Engine, Entry, Error, Layout};
use clap::Args;
use serde_json::{Value, json};

use crate::Outcome;
use crate::image;
use crate::output::{Format, print_values};

/// Show everything about containers and images, as JSON.
#[derive(Args)]
pub struct InspectArgs {
    /// json, or a template such as '{{.State.ExitCode}}'
    #[arg(short, long)]
    format: Option<Format>,
    /// Only containers, or only images
    #[arg(long = "type", value_parser = ["container", "image"])]
    kind: Option<String>,
    /// Names or IDs
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

/// Shows containers and images.
pub fn inspect(engine: &Engine, args: &InspectArgs) -> Outcome {
    let mut found = Vec::new();
    for name in &args.names {
        let kind = args.kind.as_deref();
        let container = match kind {
            Some("image") => Err(Error::NoSuchContainer(name.clone())),
            _ => engine.find(name),
        };
        found.push(match container {
            Ok(entry) => describe(engine, &entry),
            Err(Error::NoSuchContainer(_)) if kind != Some("container") => {
                image::describe(engine, name)
                    .map_err(|_| format!("there is no container and no image {name}"))?
            }
            Err(e) => return Err(e.into()),
        });
    }
    print_values(args.format.as_ref(), &found)?;
    Ok(0)
}

/// A container in Docker's words, where it has them.
fn describe(engine: &Engine, entry: &Entry) -> Value {
    let (config, state, files) = (&entry.config, &entry.state, &entry.files);
    let process = config.spec.process.clone().unwrap_or_default();
    let linux = config.spec.linux.clone().unwrap_or_default();
    let resources = linux.resources.unwrap_or_default();
    let memory = resources.memory.and_then(|memory| memory.limit);
    let cpu = resources.cpu.unwrap_or_default();
    let nano_cpus = cpu.quota.zip(cpu.period).map(|(quota, period)| {
        quota.saturating_mul(1_000_000_000) / i64::try_from(period.max(1)).unwrap_or(1)
    });
    let is_up = state.status.is_up();
    let is_vm = config.isolation == Isolation::Vm;
    let processes = files.read_processes().ok().filter(|_| is_up);
    let never = "0001-01-01T00:00:00Z".to_owned();
    let time = |time: Option<jiff::Timestamp>| time.map_or(never.clone(), |t| t.to_string());
    let (path, args) = config
        .command()
        .split_first()
        .map_or(("", &[][..]), |(path, args)| (path.as_str(), args));
    json!({
        "Id": config.id,
        "Name": format!("/{}", config.name),
        "Created": config.created.to_string(),
        "Path": path,
        "Args": args,
        "State": {
            "Status": state.status.name(),
            "Running": is_up,
            "Paused": state.status == Status::Paused,
            "Restarting": false,
            "OOMKilled": state.oom_killed,
            "Dead": false,
            "Pid": processes.map_or(0, |processes| processes.vmm.pid),
            "MonitorPid": processes.map_or(0, |processes| processes.monitor.pid),
            "ExitCode": state.exit_code,
            "Error": state.error.clone().unwrap_or_default(),
            "StartedAt": time(state.started),
            "FinishedAt": time(state.finished),
            "Checkpointed": state.checkpointed.clone().unwrap_or_default(),
        },
        "Image": config.image.id,
        "RestartCount": state.starts.saturating_sub(1),
        "Driver": "erofs",
        "Platform": "linux",
        "LogPath": files.log(),
        "Config": {
            "Image": config.image.name,
            "Hostname": config.spec.hostname,
            "User": process.user.username.clone().unwrap_or_default(),
            "Env": process.env,
            "Cmd": config.command(),
            "WorkingDir": process.cwd,
            "Labels": config.labels,
            "Tty": process.terminal,
            "OpenStdin": config.stdin,
            "StopSignal": config.stop_signal,
            "StopTimeout": config.stop_timeout_s,
        },
        "HostConfig": {
            "AutoRemove": config.auto_remove,
            "ReadonlyRootfs": config.spec.root.as_ref().is_some_and(|root| root.readonly),
            "Memory": memory.unwrap_or(0),
            "NanoCpus": nano_cpus.unwrap_or(0),
            "PidsLimit": resources.pids.map(|pids| pids.limit),
            "NetworkMode": "none",
            "Isolation": config.isolation.name(),
        },
        "Sandbox": {
            "Cpus": is_vm.then_some(config.machine.cpus),
            "MemoryMiB": is_vm.then_some(config.machine.memory_mib),
            "Template": config.template,
            "Disk": config.disk,
            "StorageBytes": match config.upper {
                Upper::Memory => None,
                Upper::Disk { size_bytes } => Some(size_bytes),
            },
            "ApiSocket": is_up.then(|| files.api()),
            "VsockSocket": (is_up && is_vm).then(|| files.vsock()),
            "ControlSocket": (is_up && is_vm).then(|| files.control()),
        },
        "Mounts": mounts(entry, engine.layout()),
        "Spec": config.spec,
    })
}

/// What was asked to be mounted.
fn mounts(entry: &Entry, layout: &Layout) -> Vec<Value> {
    let mode = |read_only| if read_only { "ro" } else { "" };
    let volumes = entry.config.volumes.iter().map(|mount| {
        let (kind, source) = match &mount.source {
            Source::Path { path, .. } => ("bind", path.clone()),
            Source::Volume { name, .. } => ("volume", Named::path(layout, name)),
        };
        let mut value = json!({
            "Type": kind,
            "Source": source,
            "Destination": mount.destination,
            "Mode": mode(mount.read_only),
            "RW": !mount.read_only,
            "Propagation": if kind == "bind" { "rprivate" } else { "" },
        });
        if let Source::Volume { name, .. } = &mount.source {
            value["Name"] = json!(name);
            value["Driver"] = json!("local");
        }
        value
    });
    let defaults = bulkhead_container::defaults::mounts();
    let memory = entry.config.spec.mounts.iter();
    let memory = memory.filter(|mount| mount.kind.as_deref() == Some("tmpfs"));
    let memory = memory
        .filter(|mount| !defaults.contains(mount))
        .map(|mount| {
            let read_only = mount.options.iter().any(|option| option == "ro");
            json!({
                "Type": "tmpfs",
                "Source": "",
                "Destination": mount.destination,
                "Mode": mode(read_only),
                "RW": !read_only,
                "Propagation": "",
            })
        });
    volumes.chain(memory).collect()
}
