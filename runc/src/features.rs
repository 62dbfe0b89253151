//! `features`: what this runtime can do (runtime-spec features.md).

use bulkhead_container::{capabilities, known, spec};
use serde_json::json;

use crate::failure::Outcome;
use crate::show::print_json;

pub fn print() -> Outcome<u8> {
    let features = json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": spec::VERSION,
        "hooks": known::hooks(),
        "mountOptions": known::mount_options(),
        "linux": {
            "namespaces": known::namespaces(),
            "capabilities": capabilities::all(),
            "cgroup": {"v1": true, "v2": true, "systemd": true, "systemdUser": true, "rdma": true},
            "seccomp": {
                "enabled": true,
                "actions": known::seccomp_actions(),
                "operators": known::seccomp_operators(),
                "archs": known::seccomp_architectures(),
                "knownFlags": known::seccomp_flags(),
                "supportedFlags": known::seccomp_flags(),
            },
            "apparmor": {"enabled": false},
            "selinux": {"enabled": false},
            "intelRdt": {"enabled": false},
            "mountExtensions": {"idmap": {"enabled": false}},
        },
        "annotations": {"org.bulkhead.version": env!("CARGO_PKG_VERSION")},
    });
    print_json(&features)?;
    Ok(0)
}
