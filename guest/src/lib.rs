//! The agent: PID 1 of a Bulkhead guest.
//!
//! A guest's boot is paid for by the instruction, so the way to "ready" is as short as it can be:
//! listen, dial the host, say so ([`ready`]). Everything else, the mounts first of all, comes after.
//! From then on one thread waits in one place ([`server`]) for requests, signals and the end.
//!
//! - [`http`] and [`connection`] speak HTTP, [`api`] answers, [`info`] knows the machine;
//! - [`guest`] is what there is between two events: [`containers`], and the [`streams`] of what runs in
//!   them; [`files`] go in and out in threads of their own;
//! - [`mounts`], [`net`] and [`settings`] set the guest up, [`reaper`] and [`signals`] are PID 1's duties;
//! - [`agent`] is the loop, [`power`] the end of it; [`host`] is the agent where there is no guest.

pub mod agent;
pub mod api;
pub mod base64;
pub mod clock;
pub mod connection;
pub mod containers;
pub mod files;
pub mod guest;
pub mod host;
pub mod http;
pub mod info;
pub mod kmsg;
pub mod mounts;
pub mod net;
pub mod netlink;
pub mod power;
pub mod ready;
pub mod reaper;
pub mod server;
pub mod settings;
pub mod signals;
pub mod streams;
pub mod vsock;

/// The agent's version, as `--version` and the API report it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What the command line asks of a process that is not PID 1.
#[derive(Debug, PartialEq, Eq)]
enum Command<'a> {
    Version,
    /// Serve the API on this Unix socket, for tests.
    Listen(&'a str),
    Refuse,
}

fn command<'a>(args: &[&'a str]) -> Command<'a> {
    match args {
        ["--version" | "-V"] => Command::Version,
        ["--listen", address] => address
            .strip_prefix("unix:")
            .map_or(Command::Refuse, Command::Listen),
        _ => Command::Refuse,
    }
}

/// Runs the agent and returns the exit status of the process. As PID 1 it ignores the arguments
/// (whatever the kernel command line had left over) and does not return.
pub fn run(args: &[&str]) -> i32 {
    let init_start_ns = clock::boot_ns();
    if std::process::id() == 1 {
        agent::run_as_init(init_start_ns);
    }
    match command(args) {
        Command::Version => {
            println!("bulkhead-agent {VERSION}");
            0
        }
        Command::Listen(path) => match agent::run_for_tests(path, init_start_ns) {
            Ok(()) => 0,
            Err(e) => {
                eprintln!("bulkhead-agent: cannot serve on {path}: {e}");
                1
            }
        },
        Command::Refuse => {
            eprintln!(
                "bulkhead-agent: this is the init of a Bulkhead guest and does nothing elsewhere; \
                 try --version, or --listen unix:PATH to serve its API"
            );
            2
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_when_read_then_one_command() {
        assert_eq!(command(&["--version"]), Command::Version);
        assert_eq!(command(&["--listen", "unix:/a"]), Command::Listen("/a"));
        for refused in [&["--listen", "/a"][..], &[], &["--listen"], &["x"]] {
            assert_eq!(command(refused), Command::Refuse);
        }
    }
}
