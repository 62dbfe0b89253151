//! Descriptors of ours that the program keeps: those that --preserve-fds counts, and sockets that were opened for it
//! (sd_listen_fds(3)).

use std::path::Path;

use bulkhead_container::spec::Process;

use crate::arguments::Arguments;
use crate::failure::{Outcome, cannot};

/// Their numbers, after the standard ones.
#[derive(Debug, Default)]
pub struct Descriptors {
    pub numbers: Vec<i32>,
    /// The first of them are sockets to listen on.
    listening: u32,
    names: Option<String>,
}

impl Descriptors {
    pub fn read(arguments: &Arguments) -> Outcome<Descriptors> {
        let variable = |name: &str| std::env::var(name).ok();
        let number = |name: &str| variable(name).and_then(|text| text.parse::<u32>().ok());
        let for_us = number("LISTEN_PID").is_none_or(|pid| pid == std::process::id());
        let listening = number("LISTEN_FDS").filter(|_| for_us).unwrap_or(0);
        let more: u32 = arguments.number("preserve-fds")?.unwrap_or(0);
        let wanted = 3..listening.saturating_add(more).saturating_add(3);
        let mut numbers = Vec::new();
        if !wanted.is_empty() {
            // A number that is free now may be given to something of ours later on.
            let open = std::fs::read_dir("/proc/self/fd").map_err(cannot("list descriptors"))?;
            let open = open
                .flatten()
                .filter_map(|entry| entry.file_name().into_string().ok());
            let open: Vec<u32> = open.filter_map(|name| name.parse().ok()).collect();
            let fits = |number: &&u32| wanted.contains(number);
            numbers.extend(
                open.iter()
                    .filter(fits)
                    .filter_map(|&n| i32::try_from(n).ok()),
            );
            // One of them was the list's own.
            numbers.retain(|number| Path::new("/proc/self/fd").join(number.to_string()).exists());
            numbers.sort_unstable();
        }
        Ok(Descriptors {
            numbers,
            listening,
            names: variable("LISTEN_FDNAMES"),
        })
    }

    /// The program finds out about the sockets by its environment.
    pub fn tell(&self, process: &mut Process) {
        if self.listening > 0 {
            let env = &mut process.env;
            env.push(format!("LISTEN_FDS={}", self.listening));
            env.push("LISTEN_PID=1".into());
            env.extend(
                self.names
                    .as_ref()
                    .map(|names| format!("LISTEN_FDNAMES={names}")),
            );
        }
    }
}
