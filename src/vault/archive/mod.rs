//! Writing and reading delta archives. The bytes themselves are defined in
//! [`crate::formats::archive`].

mod bitmap;
mod frames;
mod load;
mod reader;
pub mod salvage;
mod table;
mod windows;
mod writer;

pub use bitmap::Bitmap;
pub(crate) use bitmap::{Part, span_of, spans_in};
pub use reader::Reader;
pub(crate) use windows::Windows;
pub use writer::{Summary, Writer};

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
