//! The record batch.
