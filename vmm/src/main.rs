//! `bulkhead-vmm`: runs one virtual machine, described by one JSON document.

use std::path::PathBuf;
use std::process::ExitCode;

use bulkhead_vmm::config::{RestoreConfig, VmConfig};
use bulkhead_vmm::exit::{CANNOT_START, SNAPSHOT_REFUSED, VmExit};
use bulkhead_vmm::machine::Machine;
use bulkhead_vmm::{logger, timing};

const USAGE: &str = "\
Runs one virtual machine on KVM, described by one JSON document.

Usage: bulkhead-vmm --config FILE [--restore FOLDER] [--die-with-parent] [--cleanup PATH]...

  --config FILE      the VM's configuration; `-` reads it from standard input
  --restore FOLDER   go on with the VM whose snapshot is there; FILE then says what is different
  --die-with-parent  end the VM when the process that started it ends
  --cleanup PATH     remove this file, socket or empty directory at the end; repeat for more
  --version          print the version
  --help             print this

Exit codes: 0 the guest powered off or the VM was stopped, 10 the guest asked for a reset,
11 its kernel panicked, 12 triple fault, 13 KVM could not go on, 14 the process that served a device is gone,
15 the snapshot is damaged or not for this host, 125 the VM could not be started.
";

struct Arguments {
    config: PathBuf,
    restore: Option<PathBuf>,
    die_with_parent: bool,
    cleanup: Vec<PathBuf>,
}

fn main() -> ExitCode {
    let started = timing::now();
    logger::install();
    let arguments = match parse_arguments() {
        Ok(Some(arguments)) => arguments,
        Ok(None) => return ExitCode::SUCCESS,
        Err(message) => return fail(&format!("{message} (`bulkhead-vmm --help` shows how)")),
    };
    if arguments.die_with_parent
        && let Err(e) = die_with_parent()
    {
        return fail(&format!("cannot tie this process to its parent: {e}"));
    }
    let code = run(&arguments, started);
    for path in &arguments.cleanup {
        // Whoever asked may have been quicker.
        let _ = std::fs::remove_file(path).or_else(|_| std::fs::remove_dir(path));
    }
    code
}

fn run(arguments: &Arguments, started: u64) -> ExitCode {
    raise_descriptor_limit();
    let machine = match &arguments.restore {
        None => VmConfig::load(&arguments.config).map(|config| Machine::build(config, started)),
        Some(folder) => RestoreConfig::load(&arguments.config)
            .map(|config| Machine::restore(folder, config, started)),
    };
    let machine = match machine {
        Ok(machine) => machine,
        Err(e) => return fail(&e.to_string()),
    };
    match machine {
        Ok(machine) => {
            let exit = machine.run();
            if !matches!(exit, VmExit::PowerOff | VmExit::Stopped) {
                eprintln!("bulkhead-vmm: {exit}");
            }
            ExitCode::from(exit.code())
        }
        Err(e) => {
            let code = match e.is_for_the_snapshot() {
                true => SNAPSHOT_REFUSED,
                false => CANNOT_START,
            };
            fail_with(code, &e.to_string())
        }
    }
}

fn fail(message: &str) -> ExitCode {
    fail_with(CANNOT_START, message)
}

fn fail_with(code: u8, message: &str) -> ExitCode {
    eprintln!("bulkhead-vmm: {message}");
    ExitCode::from(code)
}

/// `None` when there is nothing left to do.
fn parse_arguments() -> Result<Option<Arguments>, String> {
    let mut config = None;
    let mut restore = None;
    let mut die_with_parent = false;
    let mut cleanup = Vec::new();
    let mut arguments = std::env::args_os().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--config") => match arguments.next() {
                Some(path) => config = Some(PathBuf::from(path)),
                None => return Err("--config needs a file".to_owned()),
            },
            Some("--restore") => match arguments.next() {
                Some(path) => restore = Some(PathBuf::from(path)),
                None => return Err("--restore needs a folder".to_owned()),
            },
            Some("--die-with-parent") => die_with_parent = true,
            Some("--cleanup") => match arguments.next() {
                Some(path) => cleanup.push(PathBuf::from(path)),
                None => return Err("--cleanup needs a path".to_owned()),
            },
            Some("--version") => {
                println!("bulkhead-vmm {}", env!("CARGO_PKG_VERSION"));
                return Ok(None);
            }
            Some("--help" | "-h") => {
                print!("{USAGE}");
                return Ok(None);
            }
            _ => return Err(format!("unknown argument {}", argument.display())),
        }
    }
    let config = config.ok_or("no configuration given: use --config FILE")?;
    Ok(Some(Arguments {
        config,
        restore,
        die_with_parent,
        cleanup,
    }))
}

/// Has the kernel send SIGTERM, an orderly end, when the parent dies.
fn die_with_parent() -> std::io::Result<()> {
    // SAFETY: PR_SET_PDEATHSIG takes a signal number and touches nothing else; getppid and raise have
    // no preconditions.
    unsafe {
        if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) != 0 {
            return Err(std::io::Error::last_os_error());
        }
        // The parent may have died before that. Init is then our parent, or a subreaper that is not
        // the one we were started by; only the first can be told for sure.
        if libc::getppid() == 1 {
            libc::raise(libc::SIGTERM);
        }
    }
    Ok(())
}

/// Each vsock connection takes a descriptor, and the usual soft limit of 1024 is soft for the sake of
/// programs that use `select`, which this one does not.
fn raise_descriptor_limit() {
    // SAFETY: both calls take a valid rlimit, borrowed for the call.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            // Refused: then fewer connections fit, and the device says so when they are refused.
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}
