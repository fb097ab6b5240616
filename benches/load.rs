//! The load harness: `cargo bench --bench load -- SCENARIO... | goals core [--json FILE] [--quick]`.
//!
//! It puts the broker, in a process of its own, beside what the machine itself can do (raw quinn, raw
//! direct writes) in one and the same run, and says whether the figures the project promises are held.
//! See `benches/README.md` for what each scenario measures and why.

#[path = "load/mod.rs"]
mod load;

fn main() -> std::process::ExitCode {
    load::main()
}
