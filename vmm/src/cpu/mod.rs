//! What a vCPU is before its first instruction: CPUID, MSRs and the local APIC.

pub mod cpuid;
pub mod lapic;
pub mod msrs;
pub mod state;
