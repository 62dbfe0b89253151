//! `load`, `save` and `import`.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};

use bulkhead_engine::Engine;
use bulkhead_image::archive::{self, Format, ImportOptions, LoadOptions};
use bulkhead_image::manifest::Platform;
use bulkhead_image::{Image, Reference};
use clap::{Args, ValueEnum};

use crate::Outcome;
use crate::output::progress;

/// Load images from an archive or a folder: what `docker save`, `podman save` or `skopeo copy` made.
#[derive(Args)]
pub struct LoadArgs {
    /// The archive or folder [default: standard input]
    #[arg(short, long, value_name = "FILE", conflicts_with = "file")]
    input: Option<PathBuf>,
    /// Which of an image's platforms, like linux/amd64
    #[arg(long, value_name = "OS/ARCHITECTURE")]
    platform: Option<Platform>,
    /// What to call an image that does not say so itself
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Only the result
    #[arg(short, long)]
    quiet: bool,
    /// The archive or folder
    file: Option<PathBuf>,
}

/// Write images to an archive.
#[derive(Args)]
pub struct SaveArgs {
    /// The archive [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// What kind
    #[arg(long, value_enum, default_value_t = Kind::Docker)]
    format: Kind,
    /// Names or IDs
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

/// What kind of archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// For `docker load`, and everything else
    Docker,
    /// An OCI layout and nothing else
    Oci,
}

/// Make an image of an archive of files.
#[derive(Args)]
pub struct ImportArgs {
    /// An instruction for its configuration, like 'CMD ["/bin/sh"]' or 'ENV A=b'
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// What its history says
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// What it is for, if not this machine
    #[arg(long, value_name = "OS/ARCHITECTURE")]
    platform: Option<Platform>,
    /// A tar archive, packed or not; `-` is standard input
    file: PathBuf,
    /// What to call the image
    name: Option<String>,
}

/// Loads images.
pub fn load(engine: &Engine, args: &LoadArgs) -> Outcome {
    let store = engine.store()?;
    let options = LoadOptions {
        name: parse_name(args.name.as_ref())?,
        platform: args.platform.clone(),
    };
    let progress = progress(args.quiet);
    let path = args.input.as_ref().or(args.file.as_ref());
    let images = match path.filter(|path| *path != Path::new("-")) {
        Some(path) => archive::load(&store, path, &options, &*progress)?,
        None if io::stdin().is_terminal() => {
            return Err("there is nothing to load: name an archive, or pipe one in".into());
        }
        None => {
            let name = Path::new("standard input");
            archive::load_stream(&store, io::stdin(), name, &options, &*progress)?
        }
    };
    for image in &images {
        // Whoever loads wants to run: what that needs is made now.
        store.disk(image, &*progress)?;
        println!("{}", loaded(image));
    }
    Ok(0)
}

fn loaded(image: &Image) -> String {
    match &image.name {
        Some(name) => format!("Loaded image: {}", name.familiar()),
        None => format!("Loaded image ID: {}", image.id),
    }
}

/// Saves images.
pub fn save(engine: &Engine, args: &SaveArgs) -> Outcome {
    let store = engine.store()?;
    let found = args.images.iter().map(|name| store.find(name));
    let images = found.collect::<Result<Vec<_>, _>>()?;
    let format = match args.format {
        Kind::Docker => Format::Docker,
        Kind::Oci => Format::Oci,
    };
    let progress = progress(true);
    match &args.output {
        Some(path) => {
            let failed = |e: io::Error| format!("cannot write {}: {e}", path.display());
            let mut out = BufWriter::new(File::create(path).map_err(failed)?);
            archive::save(&store, &images, &mut out, format, &*progress)?;
            out.flush().map_err(failed)?;
        }
        None if io::stdout().is_terminal() => {
            return Err("an archive is nothing for a terminal: give it a file with -o".into());
        }
        None => {
            let mut out = BufWriter::new(io::stdout().lock());
            archive::save(&store, &images, &mut out, format, &*progress)?;
            out.flush()?;
        }
    }
    Ok(0)
}

/// Imports an image.
pub fn import(engine: &Engine, args: &ImportArgs) -> Outcome {
    let store = engine.store()?;
    let options = ImportOptions {
        name: parse_name(args.name.as_ref())?,
        changes: args.change.clone(),
        message: args.message.clone(),
        platform: args.platform.clone(),
    };
    let progress = progress(true);
    let image = if args.file == Path::new("-") {
        let name = Path::new("standard input");
        archive::import(&store, io::stdin().lock(), name, &options, &*progress)?
    } else {
        let file = File::open(&args.file)
            .map_err(|e| format!("cannot open {}: {e}", args.file.display()))?;
        archive::import(&store, file, &args.file, &options, &*progress)?
    };
    // Whoever imports wants to run: what that needs is made now.
    store.disk(&image, &*progress)?;
    println!("{}", image.id);
    Ok(0)
}

fn parse_name(name: Option<&String>) -> Result<Option<Reference>, bulkhead_image::Error> {
    Ok(name.map(|name| name.parse()).transpose()?)
}
