//! What the programs saw, beside what the host has.

use std::collections::HashSet;
use std::io::Read;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::bench;
use crate::report::{Both, Evidence, Kind, Side, Sides, count};
use crate::trace::{CALLS, Counted};

/// The longest text of a guest's that is shown.
const LONGEST: usize = 160;
/// Capabilities by their numbers (linux/capability.h).
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// A process on the host that would be found by its command line, if the host's processes can be seen.
pub struct Bait {
    child: Child,
    token: String,
}

impl Bait {
    /// Puts it there. It ends with this process.
    pub fn put() -> Result<Self, String> {
        let token = bench::token()?;
        let mut command = Command::new(bench::on_host()?);
        command
            .args(["session", &token])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let failed = |e| format!("cannot start the measuring program: {e}");
        let child = command.spawn().map_err(failed)?;
        let mut bait = Bait { child, token };
        // Only when it runs it has its words.
        if let Some(stdout) = &mut bait.child.stdout {
            stdout.read_exact(&mut [0]).map_err(failed)?;
        }
        Ok(bait)
    }

    /// What to ask a program that should look for it, without putting the word into its command line.
    pub fn question(&self) -> String {
        let (first, second) = self.token.split_at(self.token.len() / 2);
        format!("evidence {first} {second}")
    }

    /// Looks around on the host itself.
    pub fn look_here(&self) -> Result<Value, String> {
        let question = self.question();
        let output = Command::new(bench::on_host()?)
            .args(question.split(' '))
            .stdin(Stdio::null())
            .output()
            .map_err(|e| format!("cannot start the measuring program: {e}"))?;
        serde_json::from_slice(&output.stdout)
            .map_err(|e| format!("the measuring program does not speak JSON: {e}"))
    }
}

impl Drop for Bait {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What was seen, as rows.
pub fn rows(
    host: &Value,
    seen: &Both<Option<Value>>,
    counted: &Sides<Option<Counted>>,
) -> Vec<Evidence> {
    let row = |id: &str, title: &str, meaning: &str, show: &dyn Fn(&Value) -> String| Evidence {
        id: id.to_owned(),
        title: title.to_owned(),
        host: show(host),
        vm: seen.of(Kind::Vm).as_ref().map(show),
        container: seen.of(Kind::Container).as_ref().map(show),
        meaning: meaning.to_owned(),
    };
    let is_same_kernel = |there: &Value| text(there, "boot_id") == text(host, "boot_id");
    let versus_host = |there: &Value, system: &str| {
        let all = count(entries(there, system));
        if std::ptr::eq(there, host) {
            return all;
        }
        let named = in_common(there, host, system, "names");
        if !is_same_kernel(there) {
            return format!("{all}: none the host's, {} are called alike", count(named));
        }
        let same = in_common(there, host, system, "objects");
        format!(
            "{all}: {} the host's by inode, {} more by name on the host's kernel",
            count(same),
            count(named.saturating_sub(same))
        )
    };
    let mut rows = vec![
        row(
            "kernel",
            "Kernel release",
            "whose code is behind every system call, and whose bugs are",
            &|v| text(v, "kernel"),
        ),
        row(
            "boot_id",
            "Boot ID",
            "the same number means the same running kernel",
            &|v| {
                let same = match is_same_kernel(v) {
                    true if std::ptr::eq(v, host) => "",
                    true => " (the host's)",
                    false => " (its own)",
                };
                format!("{}{same}", text(v, "boot_id"))
            },
        ),
        row(
            "processes",
            "Processes visible",
            "whether one of the host's, put there to be found, was among them",
            &|v| {
                let all = count(v["processes"].as_u64().unwrap_or(0));
                match v["sees_host_process"].as_bool() {
                    Some(true) => format!("{all}, the host's among them"),
                    _ => format!("{all}, none of the host's"),
                }
            },
        ),
        row(
            "proc",
            "Entries in /proc",
            "on the same kernel, to read or write one is to read or write the host's",
            &|v| versus_host(v, "proc"),
        ),
        row(
            "sys",
            "Entries in /sys",
            "a container sees the host's hardware there, a guest the VMM's",
            &|v| versus_host(v, "sys"),
        ),
        row(
            "kernel_log",
            "Kernel log",
            "what it tells of addresses, devices and other people's programs",
            &|v| match v["kernel_log"].as_str() {
                Some(how) => format!("readable by {}", clean(how)),
                None => "not readable".to_owned(),
            },
        ),
        row(
            "devices",
            "Devices in /dev",
            "each is an interface of the kernel that is behind it",
            &devices,
        ),
        row(
            "capabilities",
            "Capabilities left",
            "what root may do there: to its own kernel, or to everybody's",
            &capabilities,
        ),
        row(
            "seccomp",
            "System call filter",
            "a filter is the only thing between a container and the host's calls",
            &|v| match &*text(v, "seccomp") {
                "2" => "on".to_owned(),
                "0" => "none".to_owned(),
                other => other.to_owned(),
            },
        ),
        row(
            "uid_map",
            "User numbers",
            "`0 0 4294967295` means that root there is root here, on that kernel",
            &|v| text(v, "uid_map"),
        ),
        row(
            "cgroup",
            "Control group",
            "how it sees its own place among the kernel's groups",
            &|v| text(v, "cgroup"),
        ),
    ];
    rows.extend(calls(counted));
    rows
}

/// The system calls that were counted on the host.
fn calls(counted: &Sides<Option<Counted>>) -> Vec<Evidence> {
    let row = |id: &str,
               title: String,
               vm: Option<&Counted>,
               meaning: &str,
               show: &dyn Fn(&Counted) -> String| Evidence {
        id: id.to_owned(),
        title,
        host: "-".to_owned(),
        vm: vm.map(show),
        container: counted.of(Side::Container).as_ref().map(show),
        meaning: meaning.to_owned(),
    };
    let (cold, warm) = (counted.cold.as_ref(), counted.warm.as_ref());
    let life = |c: &Counted| {
        let (all, kinds) = (c.start + c.stop, c.kinds);
        format!("{}, of {kinds} kinds in all", count(all))
    };
    vec![
        row(
            "host_calls_work",
            format!("Host system calls for {} of the program's", count(CALLS)),
            // Once they run there is no difference.
            warm.or(cold),
            "counted by tracing: a guest's calls end in the guest, a container's are the host's",
            &|c| count(c.work),
        ),
        row(
            "host_calls_life",
            "Host system calls to start and stop it, VM cold".to_owned(),
            cold,
            "by every process that belongs to it, counted in the same way: the VM boots",
            &life,
        ),
        row(
            "host_calls_life_warm",
            "Host system calls to start and stop it, VM warm".to_owned(),
            warm,
            "the same where the VM is a clone of a template; of the container as above",
            &life,
        ),
    ]
}

/// A guest's text, bounded, and nothing for a terminal.
fn clean(text: &str) -> String {
    bulkhead_engine::agent::printable(&text.chars().take(LONGEST).collect::<String>())
}

fn text(value: &Value, field: &str) -> String {
    clean(value[field].as_str().unwrap_or("not readable"))
}

fn entries(value: &Value, system: &str) -> u64 {
    value[system]["count"].as_u64().unwrap_or(0)
}

/// How many of the hashes in one list are in the host's as well.
fn in_common(there: &Value, host: &Value, system: &str, list: &str) -> u64 {
    let hashes = |value: &Value| -> HashSet<Vec<u8>> {
        let text = value[system][list].as_str().unwrap_or_default();
        text.as_bytes()
            .chunks_exact(8)
            .map(<[u8]>::to_vec)
            .collect()
    };
    hashes(there).intersection(&hashes(host)).count() as u64
}

fn devices(value: &Value) -> String {
    let all = value["devices"].as_array();
    let all: Vec<&str> = all
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let names: Vec<&str> = all
        .iter()
        .filter_map(|device| device.split(' ').next())
        .collect();
    match names.len() {
        0 => "none".to_owned(),
        n if n <= 12 => clean(&format!("{n}: {}", names.join(" "))),
        n => n.to_string(),
    }
}

fn capabilities(value: &Value) -> String {
    let set = |field: &str| {
        let text = value[field].as_str().unwrap_or_default();
        u64::from_str_radix(text, 16).ok()
    };
    let (Some(effective), Some(bounding)) =
        (set("capabilities_effective"), set("capabilities_bounding"))
    else {
        return "not readable".to_owned();
    };
    let has = |number: usize| effective >> number & 1 != 0;
    let names: Vec<&str> = (0..CAPABILITIES.len())
        .filter(|&number| has(number))
        .map(|number| CAPABILITIES[number])
        .collect();
    let most = bounding.count_ones();
    match names.len() {
        0 => format!("none of {most}"),
        n if n <= 16 => format!("{n}: {}", names.join(" ").to_lowercase()),
        _ => format!("{} of {}", effective.count_ones(), CAPABILITIES.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn seen(boot_id: &str, kernel: &str) -> Value {
        json!({
            "kernel": kernel,
            "boot_id": boot_id,
            "processes": 2,
            "sees_host_process": false,
            "proc": {"count": 2, "names": "0000000100000002", "objects": "0000000a0000000b"},
            "devices": ["null c 1:3", "zero c 1:5"],
            "capabilities_effective": "00000000a80425fb",
            "capabilities_bounding": "00000000a80425fb",
            "seccomp": "2",
            "uid_map": "0 0 4294967295",
        })
    }

    #[test]
    fn entries_when_the_kernel_is_another_are_only_called_alike() {
        let host = json!({
            "boot_id": "one",
            "proc": {"count": 3, "names": "000000010000000200000003", "objects": "0000000a0000000b0000000c"},
        });
        let both = Both {
            vm: Some(seen("two", "6.12\u{1b}[1m")),
            container: Some(seen("one", "6.18")),
        };
        let counted_once = |work, start| {
            Some(Counted {
                work,
                start,
                ..Counted::default()
            })
        };
        let counted = Sides {
            cold: counted_once(32, 1000),
            warm: counted_once(31, 200),
            container: None,
        };
        let rows = rows(&host, &both, &counted);
        let row = |id: &str| rows.iter().find(|row| row.id == id).expect("row");
        let proc = row("proc");
        assert_eq!(proc.host, "3");
        let vm = proc.vm.as_deref();
        assert_eq!(vm, Some("2: none the host's, 2 are called alike"));
        let container = proc.container.as_deref();
        assert_eq!(
            container,
            Some("2: 2 the host's by inode, 0 more by name on the host's kernel")
        );
        assert_eq!(row("boot_id").vm.as_deref(), Some("two (its own)"));
        assert_eq!(
            row("boot_id").container.as_deref(),
            Some("one (the host's)")
        );
        assert_eq!(row("kernel").vm.as_deref(), Some("6.12\u{fffd}[1m"));
        let names = row("capabilities").vm.as_deref().expect("names");
        assert!(names.starts_with("14: chown dac_override"), "{names}");
        assert_eq!(row("devices").vm.as_deref(), Some("2: null zero"));
        assert_eq!(row("host_calls_work").vm.as_deref(), Some("31"));
        assert_eq!(row("host_calls_work").container, None);
        let life = |id| row(id).vm.clone().expect("counted");
        assert!(life("host_calls_life").starts_with("1,000, "));
        assert!(life("host_calls_life_warm").starts_with("200, "));
    }

    #[test]
    fn evidence_when_a_guest_sends_anything_else_is_shown_as_unreadable() {
        let both = Both {
            vm: Some(json!([1, 2])),
            container: Some(json!({"kernel": 7, "devices": "x", "proc": {"names": "zzz"}})),
        };
        let rows = rows(&json!({}), &both, &Sides::default());
        assert_eq!(rows[0].vm.as_deref(), Some("not readable"));
        assert_eq!(rows[0].container.as_deref(), Some("not readable"));
    }
}
