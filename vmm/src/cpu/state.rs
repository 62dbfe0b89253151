//! All there is to a vCPU, taken out of one and put into another
//! (`Documentation/virt/kvm/api.rst`).

use std::io;
use std::os::fd::AsRawFd;

use kvm_bindings::{
    CpuId, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use serde::{Deserialize, Serialize};

use crate::assist::HostKind;
use crate::cpu::msrs::{self, MsrError};
use crate::snapshot::bytes::{list, plain};

/// Bytes of an XSAVE area on a KVM that has no larger one.
const XSAVE_SIZE: usize = 4096;
/// No processor's is nearly as large.
const MAX_XSAVE_SIZE: usize = 1 << 16;
/// `_IOR(KVMIO, 0xa4, struct kvm_xsave)` and its larger brother, `_IOR(KVMIO, 0xcf, struct kvm_xsave)`.
const KVM_GET_XSAVE: libc::c_ulong = 0x9000_aea4;
const KVM_GET_XSAVE2: libc::c_ulong = 0x9000_aecf;
/// `_IOW(KVMIO, 0xa5, struct kvm_xsave)`. It reads as many bytes as `KVM_CAP_XSAVE2` says.
const KVM_SET_XSAVE: libc::c_ulong = 0x5000_aea5;

const IA32_TSC: u32 = 0x10;
const IA32_TSC_ADJUST: u32 = 0x3b;
const IA32_TSC_DEADLINE: u32 = 0x6e0;

/// In the type of a task state segment (AMD APM 2, 4.8.3).
const TASK_STATE_BUSY: u8 = 2;

/// Why a vCPU's state could not be taken or set.
#[derive(Debug, thiserror::Error)]
pub enum VcpuStateError {
    /// KVM refused a step.
    #[error("KVM cannot {0} of a vCPU: {1}")]
    Kvm(&'static str, kvm_ioctls::Error),
    /// The XSAVE area.
    #[error("KVM cannot {0} the extended state of a vCPU: {1}")]
    Xsave(&'static str, io::Error),
    /// The XSAVE area is of another size.
    #[error("the snapshot has {0} bytes of extended state for a vCPU, this host's KVM wants {1}")]
    XsaveSize(usize, usize),
    /// The MSRs.
    #[error(transparent)]
    Msrs(#[from] MsrError),
    /// More CPUID leaves or MSRs than KVM takes.
    #[error("the snapshot has more {0} than KVM takes")]
    TooMany(&'static str),
}

fn cannot(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> VcpuStateError {
    move |error| VcpuStateError::Kvm(what, error)
}

/// One vCPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VcpuState {
    #[serde(with = "list")]
    cpuid: Vec<kvm_cpuid_entry2>,
    #[serde(with = "plain")]
    regs: kvm_regs,
    #[serde(with = "plain")]
    sregs: kvm_sregs,
    #[serde(with = "plain")]
    xcrs: kvm_xcrs,
    #[serde(with = "list")]
    xsave: Vec<u8>,
    #[serde(with = "list")]
    msrs: Vec<kvm_msr_entry>,
    #[serde(with = "plain")]
    lapic: kvm_lapic_state,
    #[serde(with = "plain")]
    mp_state: kvm_mp_state,
    #[serde(with = "plain")]
    debug_regs: kvm_debugregs,
    #[serde(with = "plain")]
    events: kvm_vcpu_events,
    /// How long until the local APIC's timer is due in its TSC-deadline mode, in ticks of the TSC, below zero
    /// if it is: where the guest's TSC is the host's and goes on whatever we write, so that the deadline has to
    /// be moved. `None` if it is not set.
    due_in: Option<i64>,
    /// `None` where KVM cannot say.
    tsc_khz: Option<u32>,
}

/// What is to be saved of each vCPU on this host.
#[derive(Debug, Clone)]
pub struct Inventory {
    msrs: Vec<u32>,
    moves_deadline: bool,
    xsave_size: usize,
    has_xsave2: bool,
}

impl Inventory {
    /// Asks KVM.
    pub fn new(kvm: &Kvm, kind: HostKind) -> Result<Self, VcpuStateError> {
        let listed = kvm
            .get_msr_index_list()
            .map_err(|e| VcpuStateError::Msrs(MsrError::List(e)))?;
        let mut msrs: Vec<u32> = listed.as_slice().to_vec();
        // Without VMX or SVM the guest's TSC is the host's: it goes on whatever we write.
        let moves_deadline = kind == HostKind::SoftwareAssisted;
        if moves_deadline {
            msrs.retain(|msr| ![IA32_TSC, IA32_TSC_ADJUST, IA32_TSC_DEADLINE].contains(msr));
        }
        // The deadline is set when the time that it is in is, and the timer's mode comes with the APIC.
        msrs.sort_by_key(|msr| *msr == IA32_TSC_DEADLINE);
        let xsave2_size = usize::try_from(kvm.check_extension_int(Cap::Xsave2)).unwrap_or(0);
        Ok(Inventory {
            msrs,
            moves_deadline,
            xsave_size: xsave2_size.clamp(XSAVE_SIZE, MAX_XSAVE_SIZE),
            has_xsave2: xsave2_size != 0,
        })
    }

    /// See [`VcpuState::due_in`].
    fn due_in(&self, vcpu: &VcpuFd) -> Result<Option<i64>, VcpuStateError> {
        if !self.moves_deadline {
            return Ok(None);
        }
        let values = msrs::get_msrs(vcpu, &[IA32_TSC_DEADLINE, IA32_TSC])?;
        Ok(
            match (value(&values, IA32_TSC_DEADLINE), value(&values, IA32_TSC)) {
                (Some(deadline @ 1..), Some(now)) => Some(deadline.wrapping_sub(now) as i64),
                _ => None,
            },
        )
    }

    /// Sets the timer that was due after so many ticks.
    fn set_due_in(&self, vcpu: &VcpuFd, ticks: i64) -> Result<(), VcpuStateError> {
        let values = msrs::get_msrs(vcpu, &[IA32_TSC])?;
        if let Some(now) = value(&values, IA32_TSC) {
            let deadline = kvm_msr_entry {
                index: IA32_TSC_DEADLINE,
                // One that is due already is at once.
                data: now.saturating_add_signed(ticks.max(1)),
                ..Default::default()
            };
            msrs::set_msrs(vcpu, &[deadline])?;
        }
        Ok(())
    }

    fn get_xsave(&self, vcpu: &VcpuFd) -> io::Result<Vec<u8>> {
        let mut area = vec![0; self.xsave_size];
        let request = match self.has_xsave2 {
            true => KVM_GET_XSAVE2,
            false => KVM_GET_XSAVE,
        };
        // SAFETY: KVM_GET_XSAVE2 fills as many bytes as KVM_CAP_XSAVE2 said, KVM_GET_XSAVE a `kvm_xsave`;
        // the buffer is as long as the larger of both.
        match unsafe { libc::ioctl(vcpu.as_raw_fd(), request as _, area.as_mut_ptr()) } {
            0.. => Ok(area),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn set_xsave(&self, vcpu: &VcpuFd, area: &[u8]) -> Result<(), VcpuStateError> {
        if area.len() != self.xsave_size {
            return Err(VcpuStateError::XsaveSize(area.len(), self.xsave_size));
        }
        // SAFETY: KVM reads as many bytes as KVM_CAP_XSAVE2 said, or a `kvm_xsave`; the area is as long.
        match unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_SET_XSAVE as _, area.as_ptr()) } {
            0.. => Ok(()),
            _ => Err(VcpuStateError::Xsave("set", io::Error::last_os_error())),
        }
    }
}

fn value(entries: &[kvm_msr_entry], index: u32) -> Option<u64> {
    let entry = entries.iter().find(|entry| entry.index == index);
    entry.map(|entry| entry.data)
}

impl VcpuState {
    /// Takes it from `vcpu`, which is not in the guest and has no exit left to be completed. `cpuid` is what
    /// it was given: KVM's own copy changes with the guest's registers.
    pub fn save(
        vcpu: &VcpuFd,
        cpuid: &CpuId,
        inventory: &Inventory,
    ) -> Result<Self, VcpuStateError> {
        // First, as KVM gives the vCPU what is pending for it (api.rst, KVM_GET_MP_STATE).
        let mp_state = vcpu.get_mp_state().map_err(cannot("read the run state"))?;
        Ok(VcpuState {
            cpuid: cpuid.as_slice().to_vec(),
            regs: vcpu.get_regs().map_err(cannot("read the registers"))?,
            sregs: vcpu
                .get_sregs()
                .map_err(cannot("read the system registers"))?,
            xcrs: vcpu.get_xcrs().map_err(cannot("read XCR0"))?,
            xsave: inventory
                .get_xsave(vcpu)
                .map_err(|e| VcpuStateError::Xsave("read", e))?,
            // The APIC's timer counts on while the rest is read: late, so that it loses little.
            msrs: msrs::get_msrs(vcpu, &inventory.msrs)?,
            lapic: vcpu.get_lapic().map_err(cannot("read the local APIC"))?,
            mp_state,
            debug_regs: vcpu
                .get_debug_regs()
                .map_err(cannot("read the debug registers"))?,
            events: vcpu
                .get_vcpu_events()
                .map_err(cannot("read the pending events"))?,
            due_in: inventory.due_in(vcpu)?,
            tsc_khz: vcpu.get_tsc_khz().ok(),
        })
    }

    fn is_amd(&self) -> bool {
        let vendor = self.cpuid.iter().find(|leaf| leaf.function == 0);
        vendor.is_some_and(|leaf| matches!(&leaf.ebx.to_le_bytes(), b"Auth" | b"Hygo"))
    }

    /// Its CPUID.
    pub fn cpuid(&self) -> &[kvm_cpuid_entry2] {
        &self.cpuid
    }

    /// Puts it into `vcpu`, which was just made and given its CPUID. The VM has its interrupt controllers'
    /// state already. Returns the MSRs that KVM refused.
    pub fn restore(
        &self,
        vcpu: &VcpuFd,
        inventory: &Inventory,
        kind: HostKind,
    ) -> Result<Vec<u32>, VcpuStateError> {
        if let Some(saved) = self.tsc_khz
            && kind == HostKind::Hardware
            && vcpu.get_tsc_khz().ok() != Some(saved)
        {
            // By scaling, where the processor can. A guest on kvmclock does without.
            if let Err(e) = vcpu.set_tsc_khz(saved) {
                log::info!("KVM cannot run the guest's TSC at {saved} kHz as before ({e})");
            }
        }
        vcpu.set_mp_state(self.mp_state)
            .map_err(cannot("set the run state"))?;
        vcpu.set_regs(&self.regs)
            .map_err(cannot("set the registers"))?;
        let mut sregs = self.sregs;
        if kind == HostKind::Hardware && self.is_amd() {
            // KVM adds what AMD-V does not show, that the task state is in use. Where that processor is
            // emulated (QEMU 7 to 10), programs lose the ports they may use if it is told back.
            sregs.tr.type_ &= !TASK_STATE_BUSY;
        }
        vcpu.set_sregs(&sregs)
            .map_err(cannot("set the system registers"))?;
        vcpu.set_xcrs(&self.xcrs).map_err(cannot("set XCR0"))?;
        inventory.set_xsave(vcpu, &self.xsave)?;
        vcpu.set_debug_regs(&self.debug_regs)
            .map_err(cannot("set the debug registers"))?;
        vcpu.set_lapic(&self.lapic)
            .map_err(cannot("set the local APIC"))?;
        let known: Vec<kvm_msr_entry> = self
            .msrs
            .iter()
            .filter(|entry| inventory.msrs.contains(&entry.index))
            .copied()
            .collect();
        let refused = msrs::set_msrs(vcpu, &known)?;
        if let Some(ticks) = self.due_in
            && inventory.moves_deadline
        {
            inventory.set_due_in(vcpu, ticks)?;
        }
        // Last: setting registers drops what is queued.
        vcpu.set_vcpu_events(&self.events)
            .map_err(cannot("set the pending events"))?;
        // The guest is told that it stood still, so that its watchdogs do not bark. One without kvmclock has
        // nothing to be told by.
        let _ = vcpu.kvmclock_ctrl();
        Ok(refused)
    }
}
