//! Groups against a naive model: every mode, with members that come, go, crash, refuse and are slow.

mod attached;
mod dead;
mod keys;
mod lanes;
mod letters;
mod modes;
mod rig;
