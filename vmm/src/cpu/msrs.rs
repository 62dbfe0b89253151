//! The MSRs a vCPU starts with.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};

use crate::assist::HostKind;

const IA32_TSC: u32 = 0x10;
const IA32_SYSENTER_CS: u32 = 0x174;
const IA32_SYSENTER_ESP: u32 = 0x175;
const IA32_SYSENTER_EIP: u32 = 0x176;
const IA32_MISC_ENABLE: u32 = 0x1a0;
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const CSTAR: u32 = 0xc000_0083;
const SYSCALL_MASK: u32 = 0xc000_0084;
const KERNEL_GS_BASE: u32 = 0xc000_0102;

/// Fast string operations.
const MISC_ENABLE_FAST_STRING: u64 = 1;
/// MTRRs on, and all memory write-back that none of them names: there is no firmware to say so.
const MTRR_ON_WRITE_BACK: u64 = 1 << 11 | 6;

/// Why the MSRs of a vCPU could not be set.
#[derive(Debug, thiserror::Error)]
pub enum MsrError {
    /// KVM does not say which it has.
    #[error("cannot read the list of MSRs from KVM: {0}")]
    List(kvm_ioctls::Error),
    /// KVM would not read them.
    #[error("cannot read the MSRs of a vCPU: {0}")]
    Get(kvm_ioctls::Error),
    /// KVM refused not one entry but the call.
    #[error("cannot set the MSRs of a vCPU: {0}")]
    Set(kvm_ioctls::Error),
}

/// The start values that this host's KVM can be expected to take.
pub fn boot_msrs(kvm: &Kvm, kind: HostKind) -> Result<Vec<kvm_msr_entry>, MsrError> {
    let list = kvm.get_msr_index_list().map_err(MsrError::List)?;
    Ok(select(list.as_slice(), kind))
}

fn select(listed: &[u32], kind: HostKind) -> Vec<kvm_msr_entry> {
    let wanted = [
        (IA32_SYSENTER_CS, 0),
        (IA32_SYSENTER_ESP, 0),
        (IA32_SYSENTER_EIP, 0),
        (STAR, 0),
        (LSTAR, 0),
        (CSTAR, 0),
        (SYSCALL_MASK, 0),
        (KERNEL_GS_BASE, 0),
        (IA32_TSC, 0),
        (IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        (IA32_MTRR_DEF_TYPE, MTRR_ON_WRITE_BACK),
    ];
    wanted
        .into_iter()
        // KVM lists what must be saved, and MTRRs, which it keeps all the same, are not listed.
        .filter(|(index, _)| listed.contains(index) || *index == IA32_MTRR_DEF_TYPE)
        // Without VMX or SVM the guest's TSC is the host's, and has no start value of its own.
        .filter(|(index, _)| *index != IA32_TSC || kind == HostKind::Hardware)
        .map(|(index, data)| kvm_msr_entry {
            index,
            data,
            ..Default::default()
        })
        .collect()
}

/// Reads those of `indexes` that KVM gives.
pub fn get_msrs(vcpu: &VcpuFd, indexes: &[u32]) -> Result<Vec<kvm_msr_entry>, MsrError> {
    let wanted: Vec<_> = indexes
        .iter()
        .map(|index| kvm_msr_entry {
            index: *index,
            ..Default::default()
        })
        .collect();
    let mut values = Vec::with_capacity(wanted.len());
    for_each(&wanted, |rest| {
        let mut msrs = Msrs::from_entries(rest)
            .map_err(|_| MsrError::Get(kvm_ioctls::Error::new(libc::E2BIG)))?;
        let taken = vcpu.get_msrs(&mut msrs).map_err(MsrError::Get)?;
        values.extend(msrs.as_slice().iter().take(taken).copied());
        Ok(taken)
    })?;
    Ok(values)
}

/// Sets `entries` and returns the indexes of those that KVM refused.
pub fn set_msrs(vcpu: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<Vec<u32>, MsrError> {
    for_each(entries, |rest| {
        // More entries than the wrapper can hold are an error of KVM's kind, too.
        let msrs = Msrs::from_entries(rest)
            .map_err(|_| MsrError::Set(kvm_ioctls::Error::new(libc::E2BIG)))?;
        vcpu.set_msrs(&msrs).map_err(MsrError::Set)
    })
}

/// `KVM_SET_MSRS` and `KVM_GET_MSRS` stop at the first entry they refuse and say how many it took: go on behind it.
fn for_each<E>(
    entries: &[kvm_msr_entry],
    mut set: impl FnMut(&[kvm_msr_entry]) -> Result<usize, E>,
) -> Result<Vec<u32>, E> {
    let mut refused = Vec::new();
    let mut rest = entries;
    while !rest.is_empty() {
        let taken = set(rest)?;
        let Some((first, behind)) = rest.get(taken..).and_then(<[_]>::split_first) else {
            break;
        };
        refused.push(first.index);
        rest = behind;
    }
    Ok(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(indexes: &[u32]) -> Vec<kvm_msr_entry> {
        let entry = |index: &u32| kvm_msr_entry {
            index: *index,
            ..Default::default()
        };
        indexes.iter().map(entry).collect()
    }

    #[test]
    fn a_refused_entry_is_reported_and_those_behind_it_are_set() {
        let bad = [2, 5, 6];
        let mut set = Vec::new();
        let refused = for_each(&entries(&[1, 2, 3, 4, 5, 6]), |rest| {
            let good: Vec<u32> = rest
                .iter()
                .map(|entry| entry.index)
                .take_while(|index| !bad.contains(index))
                .collect();
            set.extend_from_slice(&good);
            Ok::<usize, ()>(good.len())
        });
        assert_eq!(refused, Ok(bad.to_vec()));
        assert_eq!(set, [1, 3, 4]);
    }

    #[test]
    fn a_failed_call_is_an_error() {
        assert_eq!(for_each(&entries(&[1]), |_| Err("no")), Err("no"));
        assert_eq!(for_each(&[], |_| Err("no")), Ok(Vec::new()));
    }

    #[test]
    fn only_listed_msrs_are_set_and_the_tsc_only_where_it_is_the_guests() {
        let indexes = |listed: &[u32], kind| -> Vec<u32> {
            let selected = select(listed, kind);
            selected.iter().map(|entry| entry.index).collect()
        };
        let all = indexes(&[IA32_TSC, LSTAR], HostKind::Hardware);
        assert_eq!(all, [LSTAR, IA32_TSC, IA32_MTRR_DEF_TYPE]);
        let assisted = indexes(&[IA32_TSC, LSTAR], HostKind::SoftwareAssisted);
        assert_eq!(assisted, [LSTAR, IA32_MTRR_DEF_TYPE]);
    }
}
