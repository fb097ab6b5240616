//! The only room that knows sled: views of the log, checked and disposable.
//!
//! A view is what an owner's actor would otherwise have to fold from the whole log at every start: its
//! rows, as of some sequence of its own. Nothing here is the truth. Whatever is missing, rotten, torn,
//! from another broker or from another time is noticed at opening and answered with a rebuild.
//!
//! - [`layout`]: one table of every tree, key and value.
//! - [`Views`]: opening, writing rows, reading them, making them durable. Blocking: one store thread
//!   is the only caller.
//! - [`mark`]: how far the views hold the log, in two alternating files beside them.
//! - [`Ballast`]: room that can be given back when the disk is full.

mod ballast;
mod error;
pub mod layout;
pub mod mark;
#[cfg(test)]
mod tests;
mod verify;
mod views;
mod write;

pub use ballast::Ballast;
pub use error::{Distrust, ViewsError};
pub use layout::{RowKey, Tree};
pub use mark::Mark;
pub use verify::Verified;
pub use views::{OpenedViews, OwnerHead, Row, RowChange, Standing, Views};
