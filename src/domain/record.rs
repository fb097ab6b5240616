//! Records and their bodies.
