//! The commands for images.

mod archive;
mod history;
mod list;
mod name;
mod registry;

use std::io::{self, IsTerminal};
use std::path::PathBuf;

use bulkhead_engine::Engine;
use bulkhead_image::manifest::Platform;
use bulkhead_image::registry::{PullOptions, pull};
use bulkhead_image::store::{Held, Lease};
use bulkhead_image::{Image, Reference, Store};
use clap::{Subcommand, ValueEnum};
use serde_json::Value;

pub use name::{in_use, print_removed};

use crate::Outcome;
use crate::output::progress;

/// The commands for images, as Docker has them.
#[derive(Subcommand)]
pub enum Command {
    /// List images
    Images(list::ImagesArgs),
    /// Bring an image from a registry
    Pull(registry::PullArgs),
    /// Send an image to a registry
    Push(registry::PushArgs),
    /// Load images from an archive or a folder
    Load(archive::LoadArgs),
    /// Write images to an archive
    Save(archive::SaveArgs),
    /// Make an image of an archive of files
    Import(archive::ImportArgs),
    /// Remove images
    Rmi(name::RmiArgs),
    /// Give an image another name
    Tag(name::TagArgs),
    /// Show how an image was made
    History(history::HistoryArgs),
}

impl Command {
    /// Does it.
    pub fn run(self, engine: &Engine) -> Outcome {
        match self {
            Command::Images(args) => list::list(engine, &args),
            Command::Pull(args) => registry::pull(engine, &args),
            Command::Push(args) => registry::push(engine, &args),
            Command::Load(args) => archive::load(engine, &args),
            Command::Save(args) => archive::save(engine, &args),
            Command::Import(args) => archive::import(engine, &args),
            Command::Rmi(args) => name::remove(engine, &args),
            Command::Tag(args) => name::tag(engine, &args),
            Command::History(args) => history::history(engine, &args),
        }
    }
}

/// When an image is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Policy {
    /// Even if it is here
    Always,
    /// If it is not here
    Missing,
    /// Not at all
    Never,
}

/// The image that a container is to be made of, and its disk. The lease holds both.
pub fn obtain(
    store: &Store,
    lease: &Lease<'_>,
    name: &str,
    policy: Policy,
    platform: Option<&Platform>,
) -> Result<(Image, PathBuf), bulkhead_image::Error> {
    let found = match policy {
        Policy::Always => None,
        Policy::Missing | Policy::Never => match store.find(name) {
            Err(bulkhead_image::Error::NoSuchImage(_)) if policy == Policy::Missing => None,
            found => Some(found?),
        },
    };
    let image = match found {
        Some(image) => image,
        None => {
            let reference: Reference = name.parse()?;
            let options = PullOptions {
                platform: platform.cloned(),
                ..PullOptions::default()
            };
            pull(store, &reference, &options, &*progress(false))?
        }
    };
    lease.hold(Held::Image(image.manifest.digest))?;
    // Most often it is there; if not, this takes a while, and a person should see that. A script's
    // standard error is the program's.
    let disk = store.disk(&image, &*progress(!io::stderr().is_terminal()))?;
    Ok((image, disk))
}

/// All that is known about an image, in Docker's words.
pub fn describe(engine: &Engine, name: &str) -> Result<Value, Box<dyn std::error::Error>> {
    let store = engine.store()?;
    Ok(bulkhead_image::inspect::inspect(
        &store,
        &store.find(name)?,
    )?)
}
