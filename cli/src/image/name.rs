//! `tag` and `rmi`.

use bulkhead_engine::Engine;
use bulkhead_image::store::{RemoveOptions, Removed};
use bulkhead_image::{Digest, Error, Reference};
use clap::Args;

use crate::Outcome;

/// Give an image another name.
#[derive(Args)]
pub struct TagArgs {
    /// Its name or ID
    image: String,
    /// The name it gets as well
    name: String,
}

/// Remove images.
#[derive(Args)]
pub struct RmiArgs {
    /// Even if an image has several names, or containers use it
    #[arg(short, long)]
    force: bool,
    /// Names or IDs
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

/// Names an image.
pub fn tag(engine: &Engine, args: &TagArgs) -> Outcome {
    let store = engine.store()?;
    let name: Reference = args.name.parse()?;
    store.tag(&store.find(&args.image)?, &name)?;
    Ok(0)
}

/// Removes images.
pub fn remove(engine: &Engine, args: &RmiArgs) -> Outcome {
    let store = engine.store()?;
    let options = RemoveOptions { force: args.force };
    let mut code = 0;
    for image in &args.images {
        match store.remove(image, options, &|| in_use(engine)) {
            Ok(removed) => print_removed(&removed),
            Err(Error::NoSuchImage(_)) if args.force => {}
            Err(e) if args.images.len() == 1 => return Err(e.into()),
            Err(e) => {
                eprintln!("bulkhead: {e}");
                code = 1;
            }
        }
    }
    engine.remove_dead_trees(&store)?;
    Ok(code)
}

/// Says what was removed.
pub fn print_removed(removed: &[Removed]) {
    for removed in removed {
        match removed {
            Removed::Untagged(name) => println!("Untagged: {}", name.familiar()),
            Removed::Deleted(id) => println!("Deleted: {id}"),
        }
    }
}

/// What the store must keep for containers.
pub fn in_use(engine: &Engine) -> Result<Vec<Digest>, Error> {
    engine.images_in_use().map_err(|e| match e {
        bulkhead_engine::Error::Image(e) => e,
        e => Error::Io {
            doing: "find the containers in",
            path: engine.layout().containers(),
            source: std::io::Error::other(e.to_string()),
        },
    })
}
