//! `waterwheel topic`: make, list, describe, alter and delete topics.
//!
//! With `--json` a topic is one object a line: `name`, `id`, `partitions`, `keyed`, `flush`,
//! `retention_ms`, `retention_bytes` (both null where all is kept), `priorities`, `timers_max` and
//! `delay_ms_max` where they are set; `delete` adds `timers`, how many delayed records went with it; `describe`
//! adds `details`, an array of `partition`, `lane` (the priority level), `start_offset`, `high_watermark`,
//! `log_end_offset`.

use std::num::NonZeroU64;

use clap::{Subcommand, ValueEnum};
use serde::Serialize;

use super::connect::Connect;
use super::duration::parse_duration;
use super::exit::{CliError, Outcome};
use super::hint::Asked;
use super::output::{counted, say};
use super::table::Table;
use super::{print, print_json};
use crate::client::{
    AdminError, AlterTopic, Code, DeletedTopic, FlushMode, PartitionInfo, TopicConfig, TopicInfo,
};
use crate::config::human::{exact_bytes, exact_span, parse_bytes};

/// Make, list, describe, alter and delete topics.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    connect: Connect,
    /// Print one JSON object per topic.
    #[arg(long, global = true)]
    json: bool,
}

impl Arguments {
    /// The topic it asks about.
    pub(super) fn asked(&self) -> Option<Asked> {
        let (Action::Describe { name } | Action::Alter { name, .. } | Action::Delete { name }) =
            &self.action
        else {
            return None;
        };
        Some(Asked {
            connect: self.connect.clone(),
            topic: name.clone(),
            makes: false,
        })
    }
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a topic.
    Create {
        /// Its name: 1 to 249 of letters, digits, `.`, `_` and `-`.
        name: String,
        /// How many partitions, 1 to 10000; fixed for ever unless --unkeyed.
        #[arg(long, value_name = "N")]
        partitions: u32,
        /// Keys, if its records have any, keep no order and choose no partition; then partitions can be added
        /// later.
        #[arg(long)]
        unkeyed: bool,
        /// What its producers wait for by default: sync (durable) or async (memory).
        #[arg(long, value_enum, default_value = "sync")]
        flush: Flush,
        /// How long records are kept at least, e.g. 7d; all are where it is not given.
        #[arg(long, value_name = "SPAN", value_parser = parse_kept_ms)]
        retention: Option<Kept>,
        /// How many bytes a partition keeps at least, e.g. 10GiB; all where it is not given.
        #[arg(long, value_name = "BYTES", value_parser = parse_kept_bytes)]
        retention_bytes: Option<Kept>,
        /// Be content with a topic of that name that is as asked for; exit code 1 where it is not.
        #[arg(long)]
        if_not_exists: bool,
        /// How many priority levels its records may have, 1 to 32; fixed for ever.
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=32))]
        priorities: u8,
        /// How many delayed records may wait in one partition; as many as the broker allows where it is not
        /// given.
        #[arg(long, value_name = "N", value_parser = parse_bound)]
        max_timers: Option<Kept>,
        /// How far ahead a record may be delayed, e.g. 30d; as far as the broker allows where it is not given.
        #[arg(long, value_name = "SPAN", value_parser = parse_bound_ms)]
        max_delay: Option<Kept>,
    },
    /// List all topics.
    List,
    /// Show a topic and where its partitions begin and end.
    Describe {
        /// Its name.
        name: String,
    },
    /// Change a topic; what is not given stays.
    #[command(group(clap::ArgGroup::new("change").required(true).multiple(true)))]
    Alter {
        /// Its name.
        name: String,
        /// More partitions; refused for keyed topics.
        #[arg(long, group = "change", value_name = "N")]
        partitions: Option<u32>,
        /// What its producers wait for by default.
        #[arg(long, group = "change", value_enum)]
        flush: Option<Flush>,
        /// How long records are kept at least, or `all`.
        #[arg(long, group = "change", value_name = "SPAN", value_parser = parse_kept_ms)]
        retention: Option<Kept>,
        /// How many bytes a partition keeps at least, or `all`.
        #[arg(long, group = "change", value_name = "BYTES", value_parser = parse_kept_bytes)]
        retention_bytes: Option<Kept>,
        /// How many delayed records may wait in one partition, or `none` for no bound.
        #[arg(long, group = "change", value_name = "N", value_parser = parse_bound)]
        max_timers: Option<Kept>,
        /// How far ahead a record may be delayed, or `none` for no bound.
        #[arg(long, group = "change", value_name = "SPAN", value_parser = parse_bound_ms)]
        max_delay: Option<Kept>,
    },
    /// Delete a topic and what is in it; says how many delayed records waited there.
    Delete {
        /// Its name.
        name: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Flush {
    Sync,
    Async,
}

impl From<Flush> for FlushMode {
    fn from(flush: Flush) -> Self {
        match flush {
            Flush::Sync => Self::Sync,
            Flush::Async => Self::Async,
        }
    }
}

/// How much is kept; none is all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kept(Option<NonZeroU64>);

impl Kept {
    fn amount(self) -> Option<u64> {
        self.0.map(NonZeroU64::get)
    }
}

fn parse_kept(text: &str, amount: impl Fn(&str) -> Result<u64, String>) -> Result<Kept, String> {
    if text == "all" {
        return Ok(Kept(None));
    }
    match NonZeroU64::new(amount(text)?) {
        Some(amount) => Ok(Kept(Some(amount))),
        None => Err("nothing would be kept; write `all` to keep everything".to_owned()),
    }
}

/// A bound; none is none.
fn parse_bound(text: &str) -> Result<Kept, String> {
    if text == "none" {
        return Ok(Kept(None));
    }
    let number = text.replace('_', "").parse::<NonZeroU64>();
    number
        .map(|number| Kept(Some(number)))
        .map_err(|_| "write a number above 0, or none".to_owned())
}

fn parse_bound_ms(text: &str) -> Result<Kept, String> {
    if text == "none" {
        return Ok(Kept(None));
    }
    let span = u64::try_from(parse_duration(text)?.as_millis()).map_err(|why| why.to_string())?;
    match NonZeroU64::new(span) {
        Some(span) => Ok(Kept(Some(span))),
        None => Err("no record could be delayed; write none to set no bound".to_owned()),
    }
}

fn parse_kept_ms(text: &str) -> Result<Kept, String> {
    parse_kept(text, |text| {
        // Elsewhere a bare number is seconds; here days are what is meant, and records what is lost.
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(format!(
                "{text} of what? write {text}d, {text}h or {text}s, or all"
            ));
        }
        u64::try_from(parse_duration(text)?.as_millis()).map_err(|fault| fault.to_string())
    })
}

fn parse_kept_bytes(text: &str) -> Result<Kept, String> {
    parse_kept(text, |text| {
        parse_bytes(text).map_err(|why| format!("{why}, or all"))
    })
}

pub(super) async fn run(arguments: Arguments) -> Result<Outcome, CliError> {
    let client = arguments.connect.client().await?;
    let json = arguments.json;
    match arguments.action {
        Action::Create {
            name,
            partitions,
            unkeyed,
            flush,
            retention,
            retention_bytes,
            if_not_exists,
            priorities,
            max_timers,
            max_delay,
        } => {
            let config = TopicConfig {
                partitions,
                keyed: !unkeyed,
                flush: flush.into(),
                retention_ms: retention.and_then(Kept::amount),
                retention_bytes: retention_bytes.and_then(Kept::amount),
                levels: priorities,
                timers_max: max_timers.and_then(Kept::amount),
                delay_ms_max: max_delay.and_then(Kept::amount),
            };
            match client.create_topic(&name, config.clone()).await {
                Err(error) if if_not_exists && is(&error, Code::TopicExists) => {
                    let found = client.describe_topic(&name).await?.topic;
                    show(&found, json, "there is ")?;
                    if found.config != config {
                        return Err(differs(&found, config));
                    }
                }
                made => show(&made?, json, "created ")?,
            }
        }
        Action::List => list(&client.topics().await?, json)?,
        Action::Describe { name } => {
            let found = client.describe_topic(&name).await?;
            describe(&found.topic, &found.partitions, json)?;
        }
        Action::Alter {
            name,
            partitions,
            flush,
            retention,
            retention_bytes,
            max_timers,
            max_delay,
        } => {
            let change = AlterTopic {
                name,
                partitions,
                flush: flush.map(FlushMode::from),
                retention_ms: retention.map(Kept::amount),
                retention_bytes: retention_bytes.map(Kept::amount),
                timers_max: max_timers.map(Kept::amount),
                delay_ms_max: max_delay.map(Kept::amount),
            };
            let topic = client.alter_topic(&change).await?;
            show(&topic, json, "altered ")?;
        }
        Action::Delete { name } => {
            let deleted = client.delete_topic(&name).await?;
            gone(&deleted, json)?;
        }
    }
    Ok(Outcome::Done)
}

fn is(error: &AdminError, code: Code) -> bool {
    matches!(error, AdminError::Refused(refusal) if refusal.code == code)
}

/// There is a topic, but another one than was asked for.
fn differs(found: &TopicInfo, wanted: TopicConfig) -> CliError {
    let wanted = TopicInfo {
        config: wanted,
        ..found.clone()
    };
    let wanted = TopicLine::new(&wanted, None).shape();
    CliError::Failed(format!(
        "{} is not as asked for, which is: {wanted}; see `waterwheel topic alter --help`",
        found.name
    ))
}

fn list(topics: &[TopicInfo], json: bool) -> Result<(), CliError> {
    if topics.is_empty() {
        say("there are no topics; make one: waterwheel topic create NAME --partitions 4");
    }
    let mut table = Table::new(&[
        "name",
        "id",
        "partitions",
        "keyed",
        "flush",
        "retention",
        "retention bytes",
        "priorities",
    ]);
    for topic in topics {
        let line = TopicLine::new(topic, None);
        if json {
            print_json(&line)?;
            continue;
        }
        table.row([
            line.name.to_owned(),
            line.id.to_string(),
            line.partitions.to_string(),
            if line.keyed { "yes" } else { "no" }.to_owned(),
            line.flush_name().to_owned(),
            line.retention_ms
                .map_or_else(|| "all".to_owned(), exact_span),
            line.retention_bytes
                .map_or_else(|| "all".to_owned(), exact_bytes),
            line.priorities.to_string(),
        ]);
    }
    table.print()
}

#[derive(Serialize)]
struct TopicLine<'a> {
    name: &'a str,
    id: u64,
    partitions: u32,
    keyed: bool,
    flush: FlushMode,
    retention_ms: Option<u64>,
    retention_bytes: Option<u64>,
    priorities: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    timers_max: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delay_ms_max: Option<u64>,
    /// Of a deleted topic.
    #[serde(skip_serializing_if = "Option::is_none")]
    timers: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Vec<PartitionLine>>,
}

#[derive(Serialize)]
struct PartitionLine {
    partition: u32,
    lane: u8,
    start_offset: u64,
    high_watermark: u64,
    log_end_offset: u64,
}

impl<'a> TopicLine<'a> {
    fn new(topic: &'a TopicInfo, details: Option<&[PartitionInfo]>) -> Self {
        Self {
            name: &topic.name,
            id: topic.id.0,
            partitions: topic.config.partitions,
            keyed: topic.config.keyed,
            flush: topic.config.flush,
            retention_ms: topic.config.retention_ms,
            retention_bytes: topic.config.retention_bytes,
            priorities: topic.config.levels,
            timers_max: topic.config.timers_max,
            delay_ms_max: topic.config.delay_ms_max,
            timers: None,
            details: details.map(|partitions| partitions.iter().map(PartitionLine::new).collect()),
        }
    }

    fn flush_name(&self) -> &'static str {
        match self.flush {
            FlushMode::Sync => "sync",
            FlushMode::Async => "async",
        }
    }

    /// All but its name and id.
    fn shape(&self) -> String {
        let kept = match (self.retention_ms, self.retention_bytes) {
            (None, None) => "keeps everything".to_owned(),
            (Some(ms), None) => format!("keeps {}", exact_span(ms)),
            (None, Some(bytes)) => format!("keeps {} a partition", exact_bytes(bytes)),
            (Some(ms), Some(bytes)) => {
                format!(
                    "keeps {} and {} a partition",
                    exact_span(ms),
                    exact_bytes(bytes)
                )
            }
        };
        let priorities = match self.priorities {
            0 | 1 => String::new(),
            levels => format!(", {levels} priorities"),
        };
        let timers = self
            .timers_max
            .map_or_else(String::new, |max| format!(", {max} timers a partition"));
        let delay = self.delay_ms_max.map_or_else(String::new, |ms| {
            format!(", delays up to {}", exact_span(ms))
        });
        format!(
            "{} partition{}, {}, flush {}, {kept}{priorities}{timers}{delay}",
            self.partitions,
            if self.partitions == 1 { "" } else { "s" },
            if self.keyed { "keyed" } else { "unkeyed" },
            self.flush_name(),
        )
    }

    fn text(&self, did: &str) -> String {
        format!("{did}{} (id {}): {}", self.name, self.id, self.shape())
    }
}

impl PartitionLine {
    fn new(partition: &PartitionInfo) -> Self {
        Self {
            partition: partition.partition.0,
            lane: partition.lane.0,
            start_offset: partition.start_offset.0,
            high_watermark: partition.high_watermark.0,
            log_end_offset: partition.log_end_offset.0,
        }
    }
}

fn gone(deleted: &DeletedTopic, json: bool) -> Result<(), CliError> {
    let mut line = TopicLine::new(&deleted.topic, None);
    line.timers = Some(deleted.timers);
    if json {
        return print_json(&line);
    }
    let timers = match deleted.timers {
        0 => String::new(),
        waited => format!("; {} went with it", counted(waited, "pending timer")),
    };
    print(format!("{}{timers}", line.text("deleted ")))
}

fn show(topic: &TopicInfo, json: bool, did: &str) -> Result<(), CliError> {
    let line = TopicLine::new(topic, None);
    match json {
        true => print_json(&line),
        false => print(line.text(did)),
    }
}

fn describe(topic: &TopicInfo, partitions: &[PartitionInfo], json: bool) -> Result<(), CliError> {
    let line = TopicLine::new(topic, Some(partitions));
    if json {
        return print_json(&line);
    }
    print(line.text(""))?;
    let places = ["partition", "priority"];
    let places = match line.priorities {
        0 | 1 => &places[..1],
        _ => &places[..],
    };
    let ends = ["first offset", "next offset", "log end"];
    let mut table = Table::new(&[places, &ends].concat());
    for partition in line.details.iter().flatten() {
        let place = [u64::from(partition.partition), u64::from(partition.lane)];
        let ends = [
            partition.start_offset,
            partition.high_watermark,
            partition.log_end_offset,
        ];
        let place = place.into_iter().take(places.len());
        table.row(place.chain(ends).map(|number| number.to_string()));
    }
    table.print()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::{Lane, Offset, PartitionIndex, RecordNumber, TopicId};

    fn topic() -> TopicInfo {
        TopicInfo {
            name: "orders".to_owned(),
            id: TopicId(7),
            config: TopicConfig {
                retention_ms: Some(1000),
                ..TopicConfig::new(1)
            },
            lanes: 1,
            leaders: Vec::new(),
        }
    }

    #[test]
    fn a_topic_is_one_object_with_these_fields() {
        let details = [PartitionInfo {
            partition: PartitionIndex(0),
            lane: Lane::ZERO,
            start_offset: Offset(2),
            high_watermark: Offset(5),
            log_end_offset: Offset(6),
            next_number: RecordNumber(6),
        }];
        let topic = topic();
        let line = TopicLine::new(&topic, Some(&details));
        assert_eq!(
            serde_json::to_string(&line).unwrap(),
            r#"{"name":"orders","id":7,"partitions":1,"keyed":true,"flush":"sync","retention_ms":1000,"retention_bytes":null,"priorities":1,"details":[{"partition":0,"lane":0,"start_offset":2,"high_watermark":5,"log_end_offset":6}]}"#
        );
        assert_eq!(
            TopicLine::new(&topic, None).text("created "),
            "created orders (id 7): 1 partition, keyed, flush sync, keeps 1s"
        );
        let mut bounded = topic;
        bounded.config.timers_max = Some(5);
        bounded.config.delay_ms_max = Some(60_000);
        let mut line = TopicLine::new(&bounded, None);
        line.timers = Some(3);
        assert_eq!(
            serde_json::to_string(&line).unwrap(),
            r#"{"name":"orders","id":7,"partitions":1,"keyed":true,"flush":"sync","retention_ms":1000,"retention_bytes":null,"priorities":1,"timers_max":5,"delay_ms_max":60000,"timers":3}"#
        );
        assert!(
            line.text("")
                .ends_with(", 5 timers a partition, delays up to 1m")
        );
        bounded.config.levels = 4;
        let text = TopicLine::new(&bounded, None).text("");
        assert!(text.contains("keeps 1s, 4 priorities, "), "{text}");
    }

    #[test]
    fn a_bound_is_a_number_or_none_and_never_zero() {
        assert_eq!(parse_bound("none").unwrap().amount(), None);
        assert_eq!(parse_bound("10_000").unwrap().amount(), Some(10_000));
        assert_eq!(parse_bound_ms("none").unwrap().amount(), None);
        assert_eq!(parse_bound_ms("30s").unwrap().amount(), Some(30_000));
        for wrong in ["0", "-1", "all", ""] {
            assert!(parse_bound(wrong).is_err(), "{wrong}");
        }
        for wrong in ["0s", "all"] {
            assert!(parse_bound_ms(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn how_much_is_kept_is_a_span_a_number_or_all() {
        let amount = |kept: Result<Kept, String>| kept.map(Kept::amount);
        assert_eq!(amount(parse_kept_ms("2m")), Ok(Some(120_000)));
        assert_eq!(amount(parse_kept_ms("all")), Ok(None));
        assert_eq!(amount(parse_kept_bytes("1_000")), Ok(Some(1000)));
        let said = parse_kept_ms("7").unwrap_err();
        assert!(said.contains("7d") && said.contains("7h"), "{said}");
        assert!(parse_kept_ms("0s").unwrap_err().contains("`all`"));
        assert_eq!(amount(parse_kept_bytes("1GB")), Ok(Some(1_000_000_000)));
        assert!(parse_kept_bytes("much").unwrap_err().contains("or all"));
    }
}
