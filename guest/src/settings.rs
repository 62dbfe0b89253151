//! How our guest's kernel is set where that is not how it is built.

use std::fs;

use crate::kmsg;

/// Files of `/proc/sys`, and what is written to each.
const SETTINGS: [(&str, &str); 2] = [
    // Containers' seccomp filters are short and mostly cached; to compile one takes longer than a short
    // container asks of it all its life.
    ("/proc/sys/net/core/bpf_jit_enable", "0"),
    // The memory of a guest is small and its life short: nobody thanks for what is moved about before
    // somebody asks for large pages.
    ("/proc/sys/vm/compaction_proactiveness", "0"),
];

/// Sets them. A kernel that lacks one is not ours, and does without.
pub fn apply() {
    for (file, value) in SETTINGS {
        match fs::write(file, value) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                kmsg::error(format_args!("cannot write {value} to {file}: {e}"));
            }
            _ => {}
        }
    }
}
