//! Whether a guest that began on one host can go on here.

use std::fs;
use std::os::unix::fs::MetadataExt;

use kvm_bindings::kvm_cpuid_entry2;
use serde::{Deserialize, Serialize};

use super::SnapshotError;
use crate::assist::HostKind;
use crate::host::KVM_PATH;

/// Leaves that say nothing of what a guest can execute, and that are not the same everywhere on a host, or always.
const IGNORED: [u32; 8] = [
    // Speeds of clocks: ours and KVM's, from what the host measures anew at each of its boots.
    0x15,
    0x4000_0010,
    // Caches and TLBs, which guests have looked at when they booted. A host may have several kinds of cores, and KVM
    // shows the one it is asked on.
    0x2,
    0x4,
    0x18,
    0x8000_0005,
    0x8000_0006,
    0x8000_001d,
];

/// Where a snapshot was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostState {
    /// Whether its KVM was software-assisted: a kernel that was booted for one kind cannot go on with the
    /// other.
    pub assisted: bool,
    /// The processor, for people.
    pub processor: String,
    /// This boot of the host, and its KVM: while both are the same, it need not be probed again.
    pub boot: Option<(String, u64)>,
}

impl HostState {
    /// This host.
    pub fn this(kind: HostKind) -> Self {
        HostState {
            assisted: kind == HostKind::SoftwareAssisted,
            processor: processor(),
            boot: this_boot(),
        }
    }

    /// This host's kind, if it is still the one that it was.
    pub fn known_kind(&self) -> Option<HostKind> {
        let is_the_same = self.boot.is_some() && self.boot == this_boot();
        is_the_same.then_some(match self.assisted {
            true => HostKind::SoftwareAssisted,
            false => HostKind::Hardware,
        })
    }

    /// Checks that guests see the same processor here. `then` and `now` are of one vCPU.
    pub fn check(
        &self,
        kind: HostKind,
        then: &[kvm_cpuid_entry2],
        now: &[kvm_cpuid_entry2],
    ) -> Result<(), SnapshotError> {
        let difference = if self.assisted != (kind == HostKind::SoftwareAssisted) {
            Some("another kind of KVM".to_owned())
        } else {
            difference(then, now)
        };
        match difference {
            None => Ok(()),
            Some(difference) => Err(SnapshotError::Processor {
                then: self.processor.clone(),
                // Only now: the kernel writes a long list to answer.
                now: processor(),
                difference,
            }),
        }
    }
}

/// The first leaf that is different.
fn difference(then: &[kvm_cpuid_entry2], now: &[kvm_cpuid_entry2]) -> Option<String> {
    let leaf = |entry: &kvm_cpuid_entry2| (entry.function, entry.index);
    let values = |entry: &kvm_cpuid_entry2| (entry.eax, entry.ebx, entry.ecx, entry.edx);
    let find =
        |table: &[kvm_cpuid_entry2], wanted| table.iter().find(|e| leaf(e) == wanted).map(values);
    let all = then.iter().chain(now).map(leaf);
    all.filter(|(function, _)| !IGNORED.contains(function))
        .find(|wanted| find(then, *wanted) != find(now, *wanted))
        .map(|(function, index)| format!("CPUID leaf {function:#x}, {index} is different"))
}

fn processor() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .and_then(|rest| rest.split_once(':'))
        .map(|(_, name)| name.trim().to_owned());
    name.unwrap_or_else(|| "an unnamed processor".to_owned())
}

fn this_boot() -> Option<(String, u64)> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    // A module that was loaded again has made its device anew.
    let device = fs::metadata(KVM_PATH).ok()?.ino();
    Some((boot.trim().to_owned(), device))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, eax: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            eax,
            ..Default::default()
        }
    }

    #[test]
    fn processors_when_any_leaf_differs_but_those_of_speeds_and_caches_are_different() {
        for ignored in IGNORED {
            let then = [leaf(0, 1), leaf(1, 2), leaf(ignored, 3)];
            assert_eq!(difference(&then, &then), None);
            let now = [leaf(ignored, 4), leaf(1, 2), leaf(0, 1)];
            assert_eq!(difference(&then, &now), None, "{ignored:#x}");
        }
        let then = [leaf(0, 1), leaf(1, 2)];
        for other in [
            &[leaf(0, 1), leaf(1, 3)][..],
            &[leaf(0, 1)],
            &[leaf(0, 1), leaf(1, 2), leaf(7, 0)],
        ] {
            assert!(difference(&then, other).is_some(), "{other:?}");
        }
    }

    #[test]
    fn kind_when_the_host_has_booted_since_is_not_known() {
        let mut host = HostState::this(HostKind::SoftwareAssisted);
        if host.boot.is_some() {
            assert_eq!(host.known_kind(), Some(HostKind::SoftwareAssisted));
        }
        host.boot = Some(("another".to_owned(), 0));
        assert_eq!(host.known_kind(), None);
        host.boot = None;
        assert_eq!(host.known_kind(), None);
    }
}
