//! `bulkhead template`: machines of the user's own making, which containers begin in.

use std::cell::Cell;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use bulkhead_engine::http::Upgraded;
use bulkhead_engine::record::Machine;
use bulkhead_engine::templates::own::{Attendant, Preparation, Wanted};
use bulkhead_engine::{Engine, Error};
use bulkhead_protocol::Exit;
use clap::{Args, Subcommand};
use serde_json::json;

use crate::Outcome;
use crate::container::streams::{Copy, End, Signals, copy};
use crate::image::{Policy, obtain};
use crate::output::{print_values, progress};
use crate::snapshot::{self, InspectArgs, LsArgs, RmArgs};
use crate::values::{parse_bytes, parse_cpus};

/// Make VMs that containers begin in, with `bulkhead run --template`.
#[derive(Subcommand)]
pub enum Command {
    /// Boot a VM, have a program prepare it, and keep it for containers to begin in
    ///
    /// The program runs as root in the VM, with all rights there: what it changes of the kernel's settings is so in
    /// each container that begins in the template. Its files and processes are gone when it ends. Without an image the
    /// VM is kept as it has booted.
    Create(CreateArgs),
    /// List templates of your own
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// Show everything about templates, as JSON
    Inspect(InspectArgs),
    /// Remove templates of your own; containers that run in clones of them go on, and no other begins in one
    Rm(RmArgs),
}

/// Boot a VM, have a program prepare it, and keep it for containers to begin in.
#[derive(Args)]
#[command(after_help = "\
Examples:
  bulkhead template create search busybox sysctl -w vm.max_map_count=262144
  bulkhead template create --cpus 4 --memory 2G large
  bulkhead template create --kernel ./vmlinux --cmdline 'transparent_hugepage=never' mine
  bulkhead run --rm --template search elasticsearch")]
pub struct CreateArgs {
    /// Processors that a container may use at a time; the VM has as many whole ones [default: 1]
    #[arg(long, value_name = "N", value_parser = parse_cpus)]
    cpus: Option<f64>,
    /// Memory that a container may use; the VM has that and what its kernel needs [default: a VM of 512M]
    #[arg(short, long, value_name = "SIZE", value_parser = parse_bytes)]
    memory: Option<u64>,
    /// Kernel: an ELF vmlinux or a bzImage [default: Bulkhead's own]
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Added to the kernel's command line
    #[arg(long, value_name = "TEXT", default_value = "")]
    cmdline: String,
    /// When to pull the image
    #[arg(long, value_enum, default_value_t = Policy::Missing)]
    pull: Policy,
    /// The template's name
    #[arg(value_name = "NAME")]
    name: String,
    /// Image with the program that prepares the VM
    image: Option<String>,
    /// What to run of it, in place of the image's own command
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    command: Vec<String>,
}

/// Does it.
pub fn run(command: &Command, engine: &Engine) -> Outcome {
    // What was killed before is put in order before anything else.
    engine.sweep()?;
    match command {
        Command::Create(args) => create(engine, args),
        Command::Ls(args) => snapshot::list(&engine.own_templates().list()?, args),
        Command::Inspect(args) => inspect(engine, args),
        Command::Rm(args) => {
            snapshot::remove_each(&args.names, |name| engine.own_templates().remove(name))
        }
    }
}

fn create(engine: &Engine, args: &CreateArgs) -> Outcome {
    let templates = engine.own_templates();
    // Before an image is pulled for nothing.
    templates.check_free(&args.name)?;
    let store = engine.store()?;
    // Until the template is there: nothing removes the image meanwhile.
    let lease = store.lease()?;
    let preparation = match &args.image {
        None => None,
        Some(name) => {
            let (image, disk) = obtain(&store, &lease, name, args.pull, None)?;
            Some(Preparation::new(
                name,
                disk,
                &image.config,
                args.command.clone(),
            )?)
        }
    };
    let kernel = args.kernel.as_deref().map(find).transpose()?;
    let wanted = Wanted {
        machine: Machine::for_limits(args.cpus, args.memory),
        kernel,
        cmdline: args.cmdline.clone(),
        preparation,
    };
    let user = User {
        signals: Signals::block()?,
        is_leaving: Cell::new(false),
    };
    templates.create(engine, &args.name, &wanted, &user)?;
    println!("{}", args.name);
    Ok(0)
}

/// The whole path of a kernel.
fn find(path: &Path) -> Result<PathBuf, String> {
    let found = path.canonicalize();
    found.map_err(|e| format!("cannot find the kernel {}: {e}", path.display()))
}

/// Whoever has typed the command.
struct User {
    signals: Signals,
    is_leaving: Cell<bool>,
}

impl Attendant for User {
    fn is_interrupted(&self) -> bool {
        if self.signals.ending().is_some() {
            self.is_leaving.set(true);
        }
        self.is_leaving.get()
    }

    fn progress(&self, line: &str) {
        // A person should see that it takes a while; a script's standard error is the program's.
        progress(!io::stderr().is_terminal()).message(line);
    }

    fn follow(&self, streams: Upgraded) -> Result<Exit, Error> {
        let what = Copy {
            stdin: false,
            detach_keys: None,
            passes_signals: false,
        };
        let why = match copy(streams, what, &self.signals, |_| {}) {
            Ok(End::Exit(exit)) => return Ok(exit),
            Ok(End::Signal(_)) => "it was interrupted".to_owned(),
            Ok(End::NobodyReads) => {
                "nobody reads what the program writes that prepares it".to_owned()
            }
            Ok(End::Lost | End::Detached) => "it ended while it was prepared".to_owned(),
            Err(e) => format!("its program's output is lost: {e}"),
        };
        Err(Error::Invalid(why))
    }
}

fn inspect(engine: &Engine, args: &InspectArgs) -> Outcome {
    let mut found = Vec::new();
    for name in &args.names {
        let template = engine.own_templates().open(name)?;
        let mut value = snapshot::describe(&template.snapshot)?;
        value["made"] = json!(template.made);
        found.push(value);
    }
    print_values(args.format.as_ref(), &found)?;
    Ok(0)
}
