//! The words of a command line before clap reads them, and what to say of those it cannot.
//!
//! Connection flags belong to the client commands; written before the command (`waterwheel --server A topic
//! list`) they are put behind it, where they mean the same. A word that is no command but an action of some
//! (`waterwheel list`) is answered with those.

use std::ffi::{OsStr, OsString};

use clap::Args;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::connect::Connect;

/// The words with what is written before the command put behind it.
pub(super) fn in_order(words: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut words = words.into_iter().peekable();
    let mut ordered: Vec<OsString> = words.next().into_iter().collect();
    let mut early = Vec::new();
    // Each of them takes a value.
    let connection = Connect::augment_args(clap::Command::new("connection"));
    while let Some(word) = words.next_if(|word| is_flag_of(&connection, word)) {
        let has_value = word.to_string_lossy().contains('=');
        early.push(word);
        if !has_value {
            early.extend(words.next());
        }
    }
    ordered.extend(words.next());
    ordered.extend(early);
    ordered.extend(words);
    ordered
}

fn is_flag_of(flags: &clap::Command, word: &OsStr) -> bool {
    let word = word.to_string_lossy();
    let name = word.split_once('=').map_or(&*word, |(name, _)| name);
    let name = name.strip_prefix("--");
    name.is_some() && flags.get_arguments().any(|flag| flag.get_long() == name)
}

/// The commands that have the action somebody took for a command.
pub(super) fn meant(error: &clap::Error, commands: &clap::Command) -> Vec<String> {
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand) else {
        return Vec::new();
    };
    if error.kind() != ErrorKind::InvalidSubcommand {
        return Vec::new();
    }
    let name = commands.get_name();
    commands
        .get_subcommands()
        .filter(|command| command.find_subcommand(word).is_some())
        .map(|command| format!("{name} {} {word}", command.get_name()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn ordered(line: &str) -> String {
        let words = in_order(line.split(' ').map(OsString::from));
        words.join(&OsString::from(" ")).into_string().unwrap()
    }

    #[test]
    fn connection_flags_may_come_before_the_command() {
        assert_eq!(
            ordered("waterwheel --server a:1 --ca=c.pem topic list --json"),
            "waterwheel topic --server a:1 --ca=c.pem list --json"
        );
        for same in [
            "waterwheel topic list --server a:1",
            "waterwheel --help",
            "waterwheel --version",
            "waterwheel --server",
            "waterwheel",
        ] {
            assert_eq!(ordered(same), same);
        }
    }

    #[test]
    fn an_action_alone_is_answered_with_the_commands_that_have_it() {
        let commands = super::super::Arguments::command();
        let error = commands
            .clone()
            .try_get_matches_from(["waterwheel", "redrive"])
            .unwrap_err();
        assert_eq!(meant(&error, &commands), ["waterwheel dead-letter redrive"]);
        let error = commands
            .clone()
            .try_get_matches_from(["waterwheel", "topc"])
            .unwrap_err();
        assert!(meant(&error, &commands).is_empty());
        let error = commands
            .clone()
            .try_get_matches_from(["waterwheel", "topic", "--nonsense"])
            .unwrap_err();
        assert!(meant(&error, &commands).is_empty());
    }
}
