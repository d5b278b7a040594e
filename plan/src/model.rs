//! What a language model is made of.
