//! The machine that a comparison is made on.

use std::fs;

use bulkhead_vmm::assist::{HostKind, probe};
use bulkhead_vmm::host::open_kvm;

use crate::report::{Host, Kvm};

/// Looks at this machine.
pub fn look() -> Host {
    let (kvm, kvm_meaning) = kvm();
    let text = |path| fs::read_to_string(path).unwrap_or_default();
    Host {
        kernel: text("/proc/sys/kernel/osrelease").trim().to_owned(),
        processor: field(&text("/proc/cpuinfo"), "model name").unwrap_or_default(),
        processors: std::thread::available_parallelism().map_or(1, usize::from),
        memory_bytes: memory(&text("/proc/meminfo")),
        kvm,
        kvm_meaning,
    }
}

fn kvm() -> (Kvm, String) {
    let kvm = match open_kvm() {
        Ok(kvm) => kvm,
        Err(e) => return (Kvm::None, format!("none: {e}")),
    };
    match probe::probe(&kvm) {
        Ok(HostKind::Hardware) => (
            Kvm::Hardware,
            "hardware (VMX or SVM): the processor runs the guest's kernel itself".to_owned(),
        ),
        Ok(HostKind::SoftwareAssisted) => (
            Kvm::SoftwareAssisted,
            "software-assisted: KVM emulates the guest's kernel instruction by instruction, so that its \
             start, system calls, page faults and files look far worse here than on a host with VMX or \
             SVM; what its programs compute does not"
                .to_owned(),
        ),
        Err(e) => (Kvm::None, format!("none that works: {e}")),
    }
}

fn field(text: &str, name: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn memory(meminfo: &str) -> u64 {
    let kib = field(meminfo, "MemTotal").and_then(|value| {
        let number = value.split_whitespace().next()?;
        number.parse::<u64>().ok()
    });
    kib.unwrap_or(0) << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_when_looked_at_is_this_machine() {
        let host = look();
        assert!(host.kernel.contains('.'), "{}", host.kernel);
        assert!(host.memory_bytes > 1 << 20);
        assert!(!host.kvm_meaning.is_empty());
        assert_eq!(field("a\t: b c\n", "a").as_deref(), Some("b c"));
    }
}
