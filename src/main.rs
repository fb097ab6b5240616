//! The `waterwheel` binary: hands over to [`waterwheel::cli`].

fn main() -> std::process::ExitCode {
    waterwheel::cli::run()
}
