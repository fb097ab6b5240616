//! Key and tag hashes.
