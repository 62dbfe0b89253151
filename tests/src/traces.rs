//! What containers on the host could leave there.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::lane::patience;

/// Control groups, loop devices in use and mounts that there are at a moment.
#[derive(Debug)]
pub struct Traces(BTreeSet<String>);

impl Traces {
    /// What there is now.
    pub fn now() -> Self {
        let mut all = BTreeSet::new();
        let folders = |path: &Path| {
            let entries = fs::read_dir(path).into_iter().flatten().flatten();
            entries
                .map(|entry| entry.path())
                .filter(|path| path.is_dir())
        };
        // One hierarchy, or one for each controller.
        let root = Path::new("/sys/fs/cgroup");
        for hierarchy in folders(root).chain([root.to_owned()]) {
            for group in folders(&hierarchy.join("bulkhead")) {
                all.insert(format!("control group {}", group.display()));
            }
        }
        for device in folders(Path::new("/sys/block")) {
            if let Ok(file) = fs::read_to_string(device.join("loop/backing_file")) {
                all.insert(format!("{} of {}", device.display(), file.trim_end()));
            }
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("the mounts");
        // A mount's number, which comes first, is no part of it.
        let mounts = mounts.lines().filter_map(|line| line.splitn(5, ' ').nth(4));
        all.extend(mounts.map(|mount| format!("mount {mount}")));
        Traces(all)
    }

    /// All that has come since goes: what is left of a container that ends just now, and what other tests
    /// have at the moment.
    pub fn expect_gone(&self) {
        let mut new: BTreeSet<String> = Self::now().0.difference(&self.0).cloned().collect();
        let deadline = Instant::now() + patience();
        while !new.is_empty() {
            assert!(Instant::now() < deadline, "left behind: {new:?}");
            std::thread::sleep(Duration::from_millis(20));
            let now = Self::now();
            new.retain(|trace| now.0.contains(trace));
        }
    }
}

/// The processes that have `word` among their arguments, and are not the command that was told to run them.
pub fn processes_with(word: &str) -> Vec<u32> {
    let entries = fs::read_dir("/proc").expect("the processes").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = line.split(|&byte| byte == 0);
        let is_ours = words
            .next()
            .is_some_and(|first| first.ends_with(b"/bulkhead"));
        !is_ours && words.any(|each| each == word.as_bytes())
    })
    .collect()
}
