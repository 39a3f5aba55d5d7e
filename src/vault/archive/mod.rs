//! Writing and reading delta archives. The bytes themselves are defined in
//! [`crate::formats::archive`].

mod frames;
mod load;
mod reader;
pub mod salvage;
mod table;
mod writer;

pub use reader::Reader;
pub use writer::{Summary, Writer};

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
