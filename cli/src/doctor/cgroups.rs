//! Control groups: what holds containers to their limits.

use std::fs;
use std::path::Path;

use super::Finding;

const WHAT: &str = "cgroups";
const ROOT: &str = "/sys/fs/cgroup";

/// Looks at how control groups are mounted.
pub fn look() -> Vec<Finding> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    vec![judge(&mounts, |path| {
        fs::read_to_string(path).unwrap_or_default()
    })]
}

fn judge(mounts: &str, read: impl Fn(&Path) -> String) -> Finding {
    let mut v1 = Vec::new();
    let mut v2 = None;
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(1);
        let (Some(path), Some(kind)) = (fields.next(), fields.next()) else {
            continue;
        };
        match kind {
            "cgroup2" => v2 = Some(path),
            "cgroup" => v1.push(path.trim_start_matches(ROOT).trim_start_matches('/')),
            _ => {}
        }
    }
    let v1 = v1.join(" ");
    match (v2, v1.is_empty()) {
        (Some(path), true) => {
            let controllers = read(&Path::new(path).join("cgroup.controllers"));
            let controllers = controllers.trim();
            let found = format!("version 2 ({controllers})");
            limits(
                found,
                controllers,
                &["cpu", "cpuset", "io", "memory", "pids"],
            )
        }
        (Some(_), false) => limits(
            format!("hybrid, limits by version 1 ({v1})"),
            &v1,
            &OF_VERSION_1,
        ),
        (None, false) => limits(format!("version 1 ({v1})"), &v1, &OF_VERSION_1),
        (None, true) => Finding::warning(
            WHAT,
            "not mounted",
            "microVMs run without; for limits on the host `mount -t cgroup2 none /sys/fs/cgroup`",
        ),
    }
}

/// What holds containers on the host's kernel, counts them, and stops them.
const OF_VERSION_1: [&str; 8] = [
    "blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "memory", "pids",
];

/// Whether all controllers are there.
fn limits(found: String, controllers: &str, wanted: &[&str]) -> Finding {
    let has = |name: &str| controllers.split([' ', ',']).any(|found| found == name);
    let missing: Vec<&str> = wanted.iter().copied().filter(|name| !has(name)).collect();
    if missing.is_empty() {
        return Finding::good(WHAT, found);
    }
    let advice = format!(
        "microVMs run without; containers on the host's kernel have no limits or figures of {}: mount what is missing, or \
         boot with `cgroup_enable={}`",
        missing.join(", "),
        missing.join(","),
    );
    Finding::warning(WHAT, found, advice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    /// Mounts of version 1, one of them with two controllers.
    fn v1(more: &[&str]) -> String {
        let mounts = [
            "cpu,cpuacct",
            "cpuset",
            "devices",
            "freezer",
            "memory",
            "pids",
        ];
        let line = |name: &&str| format!("cgroup /sys/fs/cgroup/{name} cgroup rw 0 0\n");
        mounts.iter().chain(more).map(line).collect()
    }

    #[test]
    fn versions_are_told_apart() {
        let unified = "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let cases = [
            (
                "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n".to_owned(),
                "version 2 (cpuset cpu io memory pids)",
            ),
            (
                v1(&["blkio"]) + unified,
                "hybrid, limits by version 1 (cpu,cpuacct cpuset devices freezer memory pids blkio)",
            ),
            (
                v1(&["blkio"]),
                "version 1 (cpu,cpuacct cpuset devices freezer memory pids blkio)",
            ),
        ];
        for (mounts, found) in cases {
            let finding = judge(&mounts, |_| "cpuset cpu io memory pids\n".to_owned());
            assert_eq!((finding.verdict, &*finding.found), (Verdict::Good, found));
        }
        let none = judge("proc /proc proc rw 0 0\n\n", |_| String::new());
        assert_eq!(none.verdict, Verdict::Warning);
    }

    #[test]
    fn controllers_when_missing_then_named() {
        let finding = judge(&v1(&[]), |_| String::new());
        assert_eq!(finding.verdict, Verdict::Warning);
        assert!(finding.advice.expect("advice").contains("of blkio: "));
        let finding = judge("none /cg cgroup2 rw 0 0\n", |_| "cpu io pids\n".to_owned());
        let advice = finding.advice.expect("advice");
        assert!(advice.contains("cgroup_enable=cpuset,memory"), "{advice}");
    }
}
