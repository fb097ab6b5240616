//! `waterwheel group` and `waterwheel subscription`: who consumes what, how far, and where it goes on.
//!
//! With `--json` every object is one line, with the fields of the wire; what a flag sets is written as the flag
//! takes it (see `subscription`).

use clap::{Subcommand, ValueEnum};

use super::connect::Connect;
use super::consume::parse_start;
use super::duration::parse_duration;
use super::exit::{CliError, Outcome};
use super::hint::Asked;
use super::output::{counted, say};
use super::retry::{Retry, words};
use super::subscription::{Gone, GroupLine, SubscriptionLine};
use super::{print, print_json};
use crate::client::{AlterSubscription, Client, Mode, ResetTo, RetryPolicy, Start, Subscription};

/// List, describe, reset and delete consumer groups.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    connect: Connect,
    /// Print JSON objects, one per line.
    #[arg(long, global = true)]
    json: bool,
}

impl Arguments {
    /// The topic it asks about.
    pub(super) fn asked(&self) -> Option<Asked> {
        let Action::Reset { topic, .. } = &self.action else {
            return None;
        };
        Some(Asked {
            connect: self.connect.clone(),
            topic: topic.clone(),
            makes: false,
        })
    }
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List all groups.
    List,
    /// Show a group's subscriptions, members and progress.
    Describe {
        /// The group.
        group: String,
    },
    /// Set where a group goes on: everything from there comes again, nothing before it does.
    Reset {
        /// The group.
        group: String,
        /// The topic.
        #[arg(long, value_name = "TOPIC")]
        topic: String,
        /// This partition only.
        #[arg(long, value_name = "P")]
        partition: Option<u32>,
        /// Where to: earliest, latest, offset:N, time:T.
        #[arg(long, value_name = "WHERE", value_parser = parse_start, conflicts_with = "shift", required_unless_present = "shift")]
        to: Option<Start>,
        /// So many records forward, or back where it is negative.
        #[arg(long, value_name = "N", allow_negative_numbers = true)]
        shift: Option<i64>,
        /// Only say what would happen.
        #[arg(long)]
        dry_run: bool,
    },
    /// Remove a group that has no members, with all its subscriptions.
    Delete {
        /// The group.
        group: String,
    },
}

/// Make, change, list and remove subscriptions: how a group consumes a topic.
#[derive(Debug, clap::Args)]
pub(super) struct SubscriptionArguments {
    #[command(subcommand)]
    action: SubscriptionAction,
    #[command(flatten)]
    connect: Connect,
    /// Print JSON objects, one per line.
    #[arg(long, global = true)]
    json: bool,
}

impl SubscriptionArguments {
    /// The topic it asks about.
    pub(super) fn asked(&self) -> Option<Asked> {
        let (topic, makes) = match &self.action {
            SubscriptionAction::Create { topic, .. } => (topic, true),
            SubscriptionAction::Alter { topic, .. } | SubscriptionAction::Remove { topic, .. } => {
                (topic, false)
            }
            SubscriptionAction::List { .. } => return None,
        };
        Some(Asked {
            connect: self.connect.clone(),
            topic: topic.clone(),
            makes,
        })
    }
}

#[derive(Debug, Subcommand)]
enum SubscriptionAction {
    /// Make a subscription, and the group if there is none.
    Create {
        /// The group.
        group: String,
        /// The topic.
        topic: String,
        /// Who gets which records.
        #[arg(long, value_enum, default_value_t = ModeName::Shared)]
        mode: ModeName,
        /// Which records are wanted: `paid || shipped`, or a condition, e.g. `amount > 100`.
        #[arg(long, value_name = "FILTER", default_value = "")]
        filter: String,
        /// Where it begins.
        #[arg(long, value_name = "WHERE", default_value = "earliest", value_parser = parse_start)]
        from: Start,
        /// How long a member has a record before it comes to another, e.g. 30s.
        #[arg(long, value_name = "SPAN", value_parser = parse_duration)]
        lease: Option<std::time::Duration>,
        #[command(flatten)]
        retry: Retry,
    },
    /// Change a subscription; what is not given stays.
    Alter {
        /// The group.
        group: String,
        /// The topic.
        topic: String,
        /// Another mode; progress stays.
        #[arg(long, value_enum)]
        mode: Option<ModeName>,
        /// Another filter, for what has not been looked at yet.
        #[arg(long, value_name = "FILTER")]
        filter: Option<String>,
        /// Another lease.
        #[arg(long, value_name = "SPAN", value_parser = parse_duration)]
        lease: Option<std::time::Duration>,
        #[command(flatten)]
        retry: Retry,
    },
    /// List a group's subscriptions.
    List {
        /// The group.
        group: String,
    },
    /// Remove a subscription with its progress.
    Remove {
        /// The group.
        group: String,
        /// The topic.
        topic: String,
    },
}

/// `--mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ModeName {
    /// A partition belongs to one member, in order.
    Exclusive,
    /// Every record goes to any one member.
    Shared,
    /// As shared, but a key's next record waits for the one before it.
    KeyOrdered,
    /// Every member gets every record.
    Broadcast,
}

impl From<ModeName> for Mode {
    fn from(name: ModeName) -> Self {
        match name {
            ModeName::Exclusive => Self::Exclusive,
            ModeName::Shared => Self::Shared,
            ModeName::KeyOrdered => Self::KeyOrdered,
            ModeName::Broadcast => Self::Broadcast,
        }
    }
}

pub(super) async fn run(arguments: Arguments) -> Result<Outcome, CliError> {
    let client = arguments.connect.client().await?;
    let json = arguments.json;
    match arguments.action {
        Action::List => {
            let groups = client.groups().await?;
            if groups.is_empty() {
                say(
                    "there are no groups; a member makes one: waterwheel consume TOPIC --group NAME",
                );
            }
            for group in groups {
                match json {
                    true => print_json(&group)?,
                    false => print(&group.name)?,
                }
            }
        }
        Action::Describe { group } => {
            let state = client.describe_group(&group).await?.state;
            if json {
                print_json(&GroupLine::new(&group, &state))?;
                return Ok(Outcome::Done);
            }
            for subscription in &state.subscriptions {
                show(subscription, false)?;
            }
            for member in &state.members {
                let away = if member.away { ", away" } else { "" };
                print(format_args!(
                    "member {}: {} in hand{away}",
                    member.name,
                    counted(member.leased, "record")
                ))?;
            }
            for place in &state.places {
                print(format_args!(
                    "{}/{} priority {}: consumed below {} of {}, lag {}, {} in hand, {} retrying, {} dead-lettered{}{}",
                    place.topic,
                    place.partition,
                    place.lane,
                    place.floor,
                    place.high_watermark,
                    place.lag,
                    place.leased,
                    place.retrying,
                    place.dead_lettered,
                    if place.member.is_empty() {
                        ""
                    } else {
                        ", member "
                    },
                    place.member
                ))?;
            }
        }
        Action::Reset {
            group,
            topic,
            partition,
            to,
            shift,
            dry_run,
        } => {
            let to = match (to, shift) {
                (Some(start), _) => ResetTo::Start(start),
                (None, records) => ResetTo::Shift(records.unwrap_or(0)),
            };
            let places = client
                .reset_group(&group, &topic, partition, to, dry_run)
                .await?;
            for place in places {
                match json {
                    true => print_json(&place)?,
                    false => print(format_args!(
                        "{topic}/{} priority {}: from {} to {}; to come: {}; skipped: {}",
                        place.partition,
                        place.lane,
                        place.from,
                        place.to,
                        counted(place.comes, "record"),
                        place.skipped
                    ))?,
                }
            }
        }
        Action::Delete { group } => {
            client.delete_group(&group).await?;
            match json {
                true => print_json(&Gone::group(&group))?,
                false => print(format_args!("deleted {group}"))?,
            }
        }
    }
    Ok(Outcome::Done)
}

pub(super) async fn run_subscription(
    arguments: SubscriptionArguments,
) -> Result<Outcome, CliError> {
    let client = arguments.connect.client().await?;
    let json = arguments.json;
    match arguments.action {
        SubscriptionAction::Create {
            group,
            topic,
            mode,
            filter,
            from,
            lease,
            retry,
        } => {
            let wanted = Subscription {
                mode: mode.into(),
                filter,
                start: from.into(),
                lease_ms: lease.map_or(0, ms),
                retry: retry.is_any().then(|| retry.put_on(RetryPolicy::default())),
                ..Subscription::new(&topic)
            };
            show(&client.create_subscription(&group, wanted).await?, json)?;
        }
        SubscriptionAction::Alter {
            group,
            topic,
            mode,
            filter,
            lease,
            retry,
        } => {
            if mode.is_none() && filter.is_none() && lease.is_none() && !retry.is_any() {
                return Err(CliError::Usage(
                    "nothing to change; say what: --mode, --filter, --lease, --retry, --attempts, --jitter, --poison or --dead-letters"
                        .to_owned(),
                ));
            }
            let retry = match retry.is_any() {
                true => Some(retry.put_on(policy(&client, &group, &topic).await?)),
                false => None,
            };
            let change = AlterSubscription {
                group,
                topic,
                mode: mode.map(Mode::from),
                filter,
                lease_ms: lease.map(ms),
                retry,
            };
            show(&client.alter_subscription(&change).await?, json)?;
        }
        SubscriptionAction::List { group } => {
            let subscriptions = client.describe_group(&group).await?.state.subscriptions;
            if subscriptions.is_empty() {
                say(format_args!("{group} has no subscriptions"));
            }
            for subscription in subscriptions {
                show(&subscription, json)?;
            }
        }
        SubscriptionAction::Remove { group, topic } => {
            client.remove_subscription(&group, &topic).await?;
            match json {
                true => print_json(&Gone::subscription(&group, &topic))?,
                false => print(format_args!("removed {group} from {topic}"))?,
            }
        }
    }
    Ok(Outcome::Done)
}

/// The policy there is: what is not given of one stays.
async fn policy(client: &Client, group: &str, topic: &str) -> Result<RetryPolicy, CliError> {
    let subscriptions = client.describe_group(group).await?.state.subscriptions;
    let mut found = subscriptions.into_iter().filter(|s| s.topic == topic);
    Ok(found.next().and_then(|s| s.retry).unwrap_or_default())
}

fn ms(span: std::time::Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn show(subscription: &Subscription, json: bool) -> Result<(), CliError> {
    if json {
        return print_json(&SubscriptionLine::new(subscription));
    }
    let filter = match subscription.filter.as_str() {
        "" => "everything".to_owned(),
        filter => format!("what is {filter}"),
    };
    print(format_args!(
        "{}: {}, {filter}, lease {} ms, {}",
        subscription.topic,
        subscription.mode.name(),
        subscription.lease_ms,
        words(&subscription.retry.clone().unwrap_or_default())
    ))
}
