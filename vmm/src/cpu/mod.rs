//! What a vCPU is before its first instruction: CPUID, MSRs and the local APIC.
