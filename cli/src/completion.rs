//! What the command line knows of itself, for shells and for `man`.

use std::fs;
use std::io;
use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;

use crate::Outcome;

/// Write a completion script for a shell.
#[derive(Args)]
#[command(after_help = "\
Examples:
  bulkhead completion bash > /etc/bash_completion.d/bulkhead
  bulkhead completion fish > ~/.config/fish/completions/bulkhead.fish")]
pub struct CompletionArgs {
    /// Which shell
    shell: Shell,
}

/// Write the manual pages.
#[derive(Args)]
pub struct ManArgs {
    /// Where to
    #[arg(value_name = "DIR", default_value = ".")]
    directory: PathBuf,
}

/// Writes the script to standard output.
pub fn complete(args: &CompletionArgs, command: &clap::Command) -> Outcome {
    // The scripts would tell of what is hidden.
    let shown = command.get_subcommands().filter(|c| !c.is_hide_set());
    let mut command = clap::Command::new("bulkhead")
        .version(env!("CARGO_PKG_VERSION"))
        .args(command.get_arguments())
        .subcommands(shown);
    clap_complete::generate(args.shell, &mut command, "bulkhead", &mut io::stdout());
    Ok(0)
}

/// Writes a page for the command and one for each of its own.
pub fn manual(args: &ManArgs, command: clap::Command) -> Outcome {
    fs::create_dir_all(&args.directory)
        .map_err(|e| format!("cannot make {}: {e}", args.directory.display()))?;
    clap_mangen::generate_to(command, &args.directory)
        .map_err(|e| format!("cannot write to {}: {e}", args.directory.display()))?;
    Ok(0)
}
