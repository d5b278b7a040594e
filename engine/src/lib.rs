//! The engine's weights: the store they lie in and the import that fills it.
//!
//! A [`store::Store`] is a directory laid out for the pipeline: each part of each layer is one
//! contiguous run that starts at a multiple of 4 KiB and is checksummed block by block.
//! [`import::import`] makes one from a Hugging Face checkpoint or from random numbers.
//!
//! Nothing here decides: which run is read when is the plan's business.

pub mod import;
pub mod store;
