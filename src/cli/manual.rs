//! `waterwheel completions` and `waterwheel man`: what shells and `man` want to know of the command
//! line, generated from it.

use std::fs;
use std::io;
use std::path::PathBuf;

use clap::CommandFactory;

use super::exit::{CliError, Outcome};
use super::print;

/// Print the completions for a shell.
#[derive(Debug, clap::Args)]
pub(super) struct Completions {
    /// Which shell. Save what is printed where it looks, e.g. for bash
    /// ~/.local/share/bash-completion/completions/waterwheel, for fish
    /// ~/.config/fish/completions/waterwheel.fish, for zsh a file _waterwheel in a directory of $fpath.
    shell: clap_complete::Shell,
}

/// Print the manual page, or write one page per command into a directory.
#[derive(Debug, clap::Args)]
pub(super) struct Man {
    /// Write waterwheel.1, waterwheel-serve.1 and so on here, e.g. ~/.local/share/man/man1.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub(super) fn completions(arguments: &Completions) -> Result<Outcome, CliError> {
    let mut text = Vec::new();
    let mut command = super::Arguments::command();
    clap_complete::generate(arguments.shell, &mut command, "waterwheel", &mut text);
    print(String::from_utf8_lossy(&text))?;
    Ok(Outcome::Done)
}

pub(super) fn man(arguments: &Man) -> Result<Outcome, CliError> {
    let command = super::Arguments::command();
    let Some(dir) = &arguments.dir else {
        let page = page(command).map_err(|fault| CliError::Failed(fault.to_string()))?;
        print(page)?;
        return Ok(Outcome::Done);
    };
    let unusable = |fault: io::Error| CliError::Usage(format!("{}: {fault}", dir.display()));
    fs::create_dir_all(dir).map_err(unusable)?;
    clap_mangen::generate_to(command, dir).map_err(unusable)?;
    Ok(Outcome::Done)
}

fn page(command: clap::Command) -> io::Result<String> {
    let mut text = Vec::new();
    clap_mangen::Man::new(command).render(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_page_for_every_command() {
        let dir = tempfile::tempdir().unwrap();
        man(&Man {
            dir: Some(dir.path().to_owned()),
        })
        .unwrap();
        for name in [
            "waterwheel",
            "waterwheel-serve",
            "waterwheel-topic",
            "waterwheel-topic-create",
            "waterwheel-certs",
        ] {
            let text = fs::read_to_string(dir.path().join(format!("{name}.1"))).unwrap();
            assert!(text.contains(".SH SYNOPSIS"), "{name}");
        }
        let serve = fs::read_to_string(dir.path().join("waterwheel-serve.1")).unwrap();
        assert!(serve.contains("memory_bytes"), "settings are in the manual");
    }

    #[test]
    fn every_shell_is_told_of_every_command() {
        use clap::ValueEnum;
        for shell in clap_complete::Shell::value_variants() {
            let mut text = Vec::new();
            clap_complete::generate(
                *shell,
                &mut super::super::Arguments::command(),
                "waterwheel",
                &mut text,
            );
            let text = String::from_utf8(text).unwrap();
            for name in ["serve", "produce", "--client-ca", "completions"] {
                assert!(
                    text.contains(name.trim_start_matches("--")),
                    "{shell}: {name}"
                );
            }
        }
    }
}
