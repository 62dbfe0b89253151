//! Making a template of the user's own.

use std::fs;
use std::path::PathBuf;

use bulkhead_protocol::Exit;

use super::bench::Bench;
use super::prepare::Preparation;
use super::record::Made;
use super::store::OwnTemplates;
use crate::engine::Engine;
use crate::error::Error;
use crate::http::Upgraded;
use crate::record::Machine;
use crate::snapshots::{Request, Reserved};
use crate::templates::clock;
use crate::templates::make::{rehearse, wait_idle};
use crate::vm::{IMAGE_DRIVE, describe_emptied, describe_template};

/// What a template is to be.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Its machine.
    pub machine: Machine,
    /// A kernel in place of Bulkhead's.
    pub kernel: Option<PathBuf>,
    /// Added to the kernel's command line.
    pub cmdline: String,
    /// The program that prepares it.
    pub preparation: Option<Preparation>,
}

/// Who wants a template made, meanwhile.
pub trait Attendant {
    /// Whether it is to be given up.
    fn is_interrupted(&self) -> bool;
    /// Is told what is being done now.
    fn progress(&self, line: &str);
    /// Takes what the program that prepares it writes, up to its end.
    fn follow(&self, streams: Upgraded) -> Result<Exit, Error>;
}

impl OwnTemplates {
    /// Makes a template and keeps it under a name that is free.
    pub fn create(
        &self,
        engine: &Engine,
        name: &str,
        wanted: &Wanted,
        attendant: &dyn Attendant,
    ) -> Result<(), Error> {
        let reserved = self.snapshots.reserve(name)?;
        make(engine, reserved, wanted, attendant)
            .map_err(|why| Error::Invalid(format!("cannot make the template {name}: {why}")))
    }
}

fn make(
    engine: &Engine,
    reserved: Reserved<'_>,
    wanted: &Wanted,
    attendant: &dyn Attendant,
) -> Result<(), Error> {
    let made = Made::of(wanted)?;
    let bench = Bench::set_up(engine, attendant)?;
    let sockets = bench.sockets();
    let mut document = describe_template(wanted.machine, &sockets)?;
    if let Some(kernel) = &wanted.kernel {
        document.kernel.path = kernel.clone();
    }
    if !wanted.cmdline.is_empty() {
        // The user's own words come last, so that they win.
        document.kernel.cmdline += " ";
        document.kernel.cmdline += &wanted.cmdline;
    }
    if let Some(preparation) = &wanted.preparation {
        document.disks[IMAGE_DRIVE].path = Some(preparation.disk.clone());
    }
    attendant.progress("Booting the virtual machine...");
    let mut machine = bench.boot(&document)?;
    let agent = bench.agent();
    if let Some(preparation) = &wanted.preparation {
        attendant.progress("Preparing it...");
        preparation.run(&agent, attendant)?;
        // The drive is for the images of its clones.
        let snapshot = reserved.scratch()?;
        let exchanged = bench.exchange(machine, &describe_emptied(&sockets), &snapshot);
        // What is still needed of it is open; what cannot be removed is swept later.
        let _ = fs::remove_dir_all(&snapshot);
        machine = exchanged?;
    }
    attendant.progress("Keeping it...");
    rehearse(&agent)?;
    clock::set(&agent)?;
    wait_idle(&machine, |until| bench.wait(&machine, None, until))?;
    let request = Request {
        directory: bench.sandbox(),
        // It is ended when it is in place.
        stop: false,
        paused: false,
        is_interrupted: &|| attendant.is_interrupted(),
    };
    reserved.fill(&request, &|folder| made.write(folder))
}
