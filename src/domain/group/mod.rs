//! The machine of one consumer group: who is a member, who has which records, what is consumed.

pub mod assign;
pub mod command;
pub mod ranges;
pub mod rejection;
pub mod subscription;
