//! `pull` and `push`.

use std::path::PathBuf;

use bulkhead_engine::Engine;
use bulkhead_image::Reference;
use bulkhead_image::manifest::Platform;
use bulkhead_image::registry::{self, Access, Credentials, PullOptions, PushOptions};
use clap::Args;

use crate::Outcome;
use crate::output::progress;

/// How to get into a registry.
#[derive(Args)]
pub struct AccessArgs {
    /// Believe any certificate, and speak plain HTTP where nothing else is spoken
    #[arg(long)]
    insecure: bool,
    /// Name and password [default: what `docker login` or `podman login` stored]
    #[arg(long, value_name = "USER:PASSWORD", value_parser = parse_credentials)]
    creds: Option<Credentials>,
    /// Certificate authorities to believe as well, in PEM
    #[arg(long, value_name = "FILE")]
    ca: Vec<PathBuf>,
    /// Only the result
    #[arg(short, long)]
    quiet: bool,
}

/// Bring images from a registry.
#[derive(Args)]
pub struct PullArgs {
    #[command(flatten)]
    access: AccessArgs,
    /// Which of an image's platforms, like linux/amd64
    #[arg(long, value_name = "OS/ARCHITECTURE")]
    platform: Option<Platform>,
    /// Its name, like debian:12 or registry.example.com/team/app
    image: String,
}

/// Send images to a registry.
#[derive(Args)]
pub struct PushArgs {
    #[command(flatten)]
    access: AccessArgs,
    /// Its name here
    image: String,
    /// The name it gets there, if another
    name: Option<String>,
}

/// Pulls an image.
pub fn pull(engine: &Engine, args: &PullArgs) -> Outcome {
    let store = engine.store()?;
    let reference: Reference = args.image.parse()?;
    let options = PullOptions {
        access: args.access.to_access(),
        platform: args.platform.clone(),
    };
    let progress = progress(args.access.quiet);
    let image = registry::pull(&store, &reference, &options, &*progress)?;
    // Whoever pulls wants to run: what that needs is made now.
    store.disk(&image, &*progress)?;
    println!("{}", image.title());
    Ok(0)
}

/// Pushes an image.
pub fn push(engine: &Engine, args: &PushArgs) -> Outcome {
    let store = engine.store()?;
    let image = store.find(&args.image)?;
    let reference: Reference = args.name.as_ref().unwrap_or(&args.image).parse()?;
    let options = PushOptions {
        access: args.access.to_access(),
        ..PushOptions::default()
    };
    let progress = progress(args.access.quiet);
    let digest = registry::push(&store, &image, &reference, &options, &*progress)?;
    println!("{}@{digest}", reference.familiar_repository());
    Ok(0)
}

impl AccessArgs {
    fn to_access(&self) -> Access {
        Access {
            credentials: self.creds.clone(),
            insecure: self.insecure,
            ca: self.ca.clone(),
            config: None,
        }
    }
}

fn parse_credentials(text: &str) -> Result<Credentials, String> {
    // Not repeated in the error: it may be a password.
    let (user, password) = text
        .split_once(':')
        .ok_or("credentials are written as USER:PASSWORD")?;
    Ok(Credentials::Password {
        user: user.to_owned(),
        password: password.to_owned(),
    })
}
