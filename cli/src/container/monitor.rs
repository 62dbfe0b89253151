//! The hidden command that a sandbox's monitor is.

use bulkhead_engine::Engine;
use bulkhead_engine::monitor::{Origin, Task, run};
use bulkhead_protocol::TerminalSize;
use clap::Args;

use crate::Outcome;

/// Stay with a sandbox.
#[derive(Args)]
pub struct MonitorArgs {
    id: String,
    #[arg(long)]
    attached: bool,
    #[arg(long, requires = "columns")]
    rows: Option<u16>,
    #[arg(long, requires = "rows")]
    columns: Option<u16>,
    #[arg(long, requires = "of")]
    checkpoint: Option<String>,
    #[arg(long, requires = "checkpoint")]
    of: Option<String>,
}

impl MonitorArgs {
    /// Stays with the sandbox.
    pub fn run(self, engine: &Engine) -> Outcome {
        let terminal = self.rows.zip(self.columns);
        let task = Task {
            id: self.id,
            attached: self.attached,
            terminal: terminal.map(|(rows, columns)| TerminalSize { rows, columns }),
            checkpoint: self
                .checkpoint
                .zip(self.of)
                .map(|(name, container)| Origin { container, name }),
        };
        run(engine, &task)?;
        Ok(0)
    }
}
