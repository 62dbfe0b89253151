//! Control groups: what holds containers to their limits.

use std::fs;
use std::path::Path;

use super::Finding;

const ROOT: &str = "/sys/fs/cgroup";

/// Looks at how control groups are mounted.
pub fn look() -> Vec<Finding> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    vec![judge(&mounts, |path| {
        fs::read_to_string(path).unwrap_or_default()
    })]
}

fn judge(mounts: &str, read: impl Fn(&Path) -> String) -> Finding {
    let what = "cgroups";
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
    match (v2, v1.is_empty()) {
        (Some(path), true) => {
            let controllers = read(&Path::new(path).join("cgroup.controllers"));
            Finding::good(what, format!("version 2 ({})", controllers.trim()))
        }
        (Some(_), false) => Finding::good(
            what,
            format!("hybrid, limits by version 1 ({})", v1.join(" ")),
        ),
        (None, false) => Finding::good(what, format!("version 1 ({})", v1.join(" "))),
        (None, true) => Finding::warning(
            what,
            "not mounted",
            "microVMs run without; for limits on the host `mount -t cgroup2 none /sys/fs/cgroup`",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn versions_are_told_apart() {
        let cases = [
            (
                "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n",
                "version 2 (cpu io)",
            ),
            (
                "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n",
                "hybrid, limits by version 1 (cpu)",
            ),
            (
                "cgroup /sys/fs/cgroup/pids cgroup rw 0 0\n",
                "version 1 (pids)",
            ),
        ];
        for (mounts, found) in cases {
            let finding = judge(mounts, |_| "cpu io\n".to_owned());
            assert_eq!((finding.verdict, &*finding.found), (Verdict::Good, found));
        }
        let none = judge("proc /proc proc rw 0 0\n\n", |_| String::new());
        assert_eq!(none.verdict, Verdict::Warning);
    }
}
