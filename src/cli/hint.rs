//! What to do where a topic is not there: another name it may have meant, or how to make it.
//!
//! Only whoever typed the name knows whether the topic should be made: sending to it and reading it may be
//! before its time, describing or deleting it cannot.

use std::time::Duration;

use super::connect::Connect;
use super::exit::CliError;
use crate::client::{Client, Code, TopicInfo};
use crate::config::human;
use crate::domain::group::dead::SUFFIX as LETTERS;
use crate::domain::topics::check_name;

/// How long looking for another name may take: the error is what matters.
const LOOK: Duration = Duration::from_secs(2);

/// The topic a command asks about.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) connect: Connect,
    pub(super) topic: String,
    /// Whether the topic may be yet to be made.
    pub(super) makes: bool,
}

/// The error, and what to do about it.
pub(super) async fn with_hint(error: CliError, asked: Option<Asked>) -> CliError {
    let CliError::Refused { code, message } = error else {
        return error;
    };
    let hint = match asked {
        Some(asked) if code == Code::UnknownTopic.name() => hint(asked).await,
        Some(_) | None => None,
    };
    let message = match hint {
        Some(hint) => format!("{message}; {hint}"),
        None => message,
    };
    CliError::Refused { code, message }
}

async fn hint(asked: Asked) -> Option<String> {
    if check_name(&asked.topic).is_err() {
        return None;
    }
    let mut connect = asked.connect.clone();
    connect.patience = connect.patience.min(LOOK);
    let topics = match connect.client().await {
        Ok(client) => names(&client).await,
        Err(_) => Vec::new(),
    };
    let topic = &asked.topic;
    Some(match (nearest(topic, &topics), asked.makes) {
        (Some(near), _) => format!("did you mean {near}?"),
        (None, true) if !topic.ends_with(LETTERS) => {
            format!("make it with: waterwheel topic create {topic} --partitions 8")
        }
        (None, _) if topic.ends_with(LETTERS) => "it is made with its first dead letter".to_owned(),
        (None, _) => "see which there are with: waterwheel topic list".to_owned(),
    })
}

async fn names(client: &Client) -> Vec<String> {
    let topics: Vec<TopicInfo> = client.topics().await.unwrap_or_default();
    topics.into_iter().map(|topic| topic.name).collect()
}

/// The name that is most like it, where one is.
fn nearest<'a>(name: &str, names: &'a [String]) -> Option<&'a str> {
    // What a topic's dead letters are called is like the topic's own name, and never what was meant.
    let of_its_kind = |known: &&str| known.ends_with(LETTERS) == name.ends_with(LETTERS);
    let names = names.iter().map(String::as_str);
    human::nearest(name, names.filter(of_its_kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_offered_only_where_it_is_like_the_one_that_was_written() {
        let names = ["fruit", "orders", "fruit.dead-letters"].map(str::to_owned);
        assert_eq!(nearest("frut", &names), Some("fruit"));
        assert_eq!(nearest("Order", &names), Some("orders"));
        assert_eq!(
            nearest("frut.dead-letters", &names),
            Some("fruit.dead-letters")
        );
        assert_eq!(nearest("payments", &names), None);
        assert_eq!(nearest("t", &[]), None);
    }
}
