//! Templates of the user's own: machines that were made under a name, which containers begin in that ask for them.
//! They have the drive and the windows of the others, so that a clone of one is made in the same way.
//!
//! - [`record`] is `template.json`: what we know of one beside what any snapshot has, and what it is good for;
//! - [`store`] is where they are kept, by their names;
//! - [`mod@make`] makes one;
//! - [`bench`] is where its machine is meanwhile;
//! - [`prepare`] runs a program in it that has all rights there.

mod bench;
mod make;
mod prepare;
mod record;
mod store;

pub use make::{Attendant, Wanted};
pub use prepare::Preparation;
pub use record::Made;
pub use store::{OwnTemplate, OwnTemplates};
