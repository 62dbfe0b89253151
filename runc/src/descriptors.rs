//! Descriptors of ours that the program keeps: those that --preserve-fds counts, and sockets that were opened for it
//! (sd_listen_fds(3)).

use std::path::Path;

use bulkhead_container::spec::Process;

use crate::arguments::Arguments;
use crate::failure::Outcome;

/// How many, after the standard ones.
#[derive(Debug, Default)]
pub struct Descriptors {
    pub count: u32,
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
        let count = listening.saturating_add(more);
        for number in (3..).take(count as usize) {
            // A number that is free now would be given to something of ours.
            if !Path::new("/proc/self/fd").join(number.to_string()).exists() {
                let problem = format!("descriptor {number} is to be preserved and is not open");
                return Err(problem.into());
            }
        }
        Ok(Descriptors {
            count,
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
