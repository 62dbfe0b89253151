//! Which figures there are, in the order in which they are shown.

use serde::{Deserialize, Serialize};

/// Which way a figure is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// Less is.
    Lower,
    /// More is.
    Higher,
}

/// What a figure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Definition {
    /// Its name for programs.
    pub id: &'static str,
    /// What it belongs to.
    pub group: &'static str,
    /// Its name.
    pub title: &'static str,
    /// What it is counted in.
    pub unit: &'static str,
    /// Which way is good.
    pub better: Better,
    /// What it means, in half a sentence.
    pub meaning: &'static str,
}

/// The figure that is a microVM's alone.
pub const TEMPLATE: &str = "template";

macro_rules! catalogue {
    ($($group:literal { $($id:ident, $title:literal, $unit:literal, $better:ident, $meaning:literal;)* })*) => {
        /// All figures.
        pub const CATALOGUE: &[Definition] = &[$($(Definition {
            id: stringify!($id),
            group: $group,
            title: $title,
            unit: $unit,
            better: Better::$better,
            meaning: $meaning,
        },)*)*];
    };
}

catalogue! {
    "Life" {
        start_cold, "Start", "ms", Lower,
            "from the command to the first byte its program writes: a cold microVM boots a kernel in it, a warm one is a clone of a template";
        template, "Making the template, once", "ms", Lower,
            "the start that found none: a boot, a snapshot, and a clone of it; no other start pays for it";
        stop, "Stop", "ms", Lower,
            "from `stop` until nothing of it is left, with a program that ends when it is asked to";
        image_read, "Image read to start", "KiB", Lower,
            "of the image's one file, by then and with read-ahead: neither kind unpacks it";
        command, "Your command", "ms", Lower,
            "from the command line to its end, start and stop included";
    }
    "Memory" {
        memory, "Memory of one", "MiB", Lower,
            "its processes' share of the host's memory (PSS): what one more costs; a clone shares with others what none has written";
        memory_own, "- of it Bulkhead's", "MiB", Lower,
            "the monitor, and the VMM without the guest's memory: the price of the tooling";
        memory_guest, "- of it what runs inside", "MiB", Lower,
            "a guest's kernel, agent and program; in a container, the program alone";
        memory_kernel, "Host kernel's for it", "MiB", Lower,
            "what the control group's kernel memory comes to, where the host counts it";
        density, "Instances per GiB", "", Higher,
            "idle ones, started until the budget was used: pages they share count once";
    }
    "Computing" {
        integer, "Integer", "M rounds/s", Higher,
            "shifts and multiplications: a processor runs a guest's programs itself";
        avx, "AVX2, fused", "GFLOP/s", Higher,
            "vector units are a guest's, too, registers saved and all";
        memory_copy, "Memory, copied", "GiB/s", Higher,
            "16 MiB from here to there: the guest's second page table shows in misses only";
        memory_read, "Memory, read", "GiB/s", Higher,
            "16 MiB from front to back";
    }
    "Asking the kernel" {
        system_call, "System call", "ns", Lower,
            "getppid: a guest asks its own kernel, a container the host's";
        spawn, "fork and exec", "/s", Higher,
            "processes made, executed and waited for: page tables, which a guest has two of";
        first_touch, "New pages", "thousand/s", Higher,
            "memory touched for the first time, in 4 KiB pages: a guest's may fault twice";
    }
    "Files" {
        file_write, "Written in order", "MiB/s", Higher,
            "to the writable layer, which is memory: the guest's, or the host's";
        file_read, "Read in order", "MiB/s", Higher,
            "from the page cache: a copy by the kernel it asks";
        file_random_read, "4 KiB read anywhere", "thousand/s", Higher,
            "a system call and a page of the cache each";
        file_random_write, "4 KiB written anywhere", "thousand/s", Higher,
            "a system call and a page of the cache each";
        file_metadata, "Made, looked at, removed", "/s", Higher,
            "empty files: the kernel's work on names";
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn figures_have_names_of_their_own_and_say_what_they_mean() {
        let ids: BTreeSet<&str> = CATALOGUE.iter().map(|definition| definition.id).collect();
        assert_eq!(ids.len(), CATALOGUE.len());
        for definition in CATALOGUE {
            assert!(definition.meaning.len() > 15, "{definition:?}");
            assert!(!definition.title.is_empty(), "{definition:?}");
        }
    }
}
