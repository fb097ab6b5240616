// What a broker and its clients do, whatever carries their frames: included by the test that goes over QUIC
// and by the one that stays in the process.

mod attach;
mod calls;
mod client;
mod codes;
mod disk;
mod failure;
mod far_timers;
mod greedy;
mod group_codes;
mod hostile;
mod leases;
mod letters;
mod lists;
mod produce;
mod read;
mod retention;
mod rig;
mod timers;
mod topics;
mod transactions;
