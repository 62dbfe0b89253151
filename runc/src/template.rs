//! `spec`: a configuration to begin with.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use bulkhead_container::{defaults, spec};
use rustix::process::{getgid, getuid};
use serde_json::{Value, json};

use crate::arguments::Arguments;
use crate::failure::{Outcome, cannot};

pub fn write(arguments: &Arguments) -> Outcome<u8> {
    let name = arguments.value("config").unwrap_or("config.json");
    let path = Path::new(arguments.value("bundle").unwrap_or(".")).join(name);
    let failed = || format!("write {}", path.display());
    let mut config = config()?;
    if arguments.has("rootless") {
        make_rootless(&mut config);
    }
    let text = serde_json::to_string_pretty(&config).map_err(cannot(failed()))?;
    let file = OpenOptions::new().write(true).create_new(true).open(&path);
    let mut file = file.map_err(cannot(failed()))?;
    writeln!(file, "{text}").map_err(cannot(failed()))?;
    Ok(0)
}

fn config() -> Outcome<Value> {
    let capabilities = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    let mounts = serde_json::to_value(defaults::mounts()).map_err(cannot("write JSON"))?;
    Ok(json!({
        "ociVersion": spec::VERSION,
        "process": {
            "terminal": true,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "bulkhead",
        "mounts": mounts,
        "linux": {
            "namespaces": [
                {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                {"type": "cgroup"}],
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "maskedPaths": defaults::masked_paths(),
            "readonlyPaths": defaults::readonly_paths(),
        },
    }))
}

/// Root inside is whoever asks outside.
fn make_rootless(config: &mut Value) {
    let mapping = |id: u32| json!([{"containerID": 0, "hostID": id, "size": 1}]);
    let linux = &mut config["linux"];
    linux["uidMappings"] = mapping(getuid().as_raw());
    linux["gidMappings"] = mapping(getgid().as_raw());
    if let Some(linux) = linux.as_object_mut() {
        linux.remove("resources");
    }
    if let Some(namespaces) = linux["namespaces"].as_array_mut() {
        namespaces.retain(|namespace| namespace["type"] != "network");
        namespaces.push(json!({"type": "user"}));
    }
    let mounts = config["mounts"].as_array_mut().into_iter().flatten();
    for mount in mounts {
        if let Some(options) = mount["options"].as_array_mut() {
            // Nobody else has a number in there.
            options.retain(|option| !option.as_str().is_some_and(|o| o.starts_with("gid=")));
        }
        if mount["type"] == "sysfs" {
            // The network namespace is the host's, and so is what a new one would show.
            *mount = json!({"destination": "/sys", "type": "none", "source": "/sys",
                "options": ["rbind", "nosuid", "noexec", "nodev", "ro"]});
        }
    }
}
