//! `consume TOPIC`: prints records, each partition's in order.
//!
//! In: deliveries. Out: bytes on stdout, in large chunks, at once when nothing more is there. Without
//! `--follow` it ends where the partitions ended when it began, or at `--max`. A reader of stdout that
//! goes away ends it quietly; a batch that is damaged, or a record that cannot be read, is said on
//! stderr, stepped over, and makes the answer no.

use std::io;
use std::ops::ControlFlow;
use std::pin::pin;
use std::task::Poll;

use clap::ValueEnum;

use super::connect::Connect;
use super::duration::parse_duration;
use super::exit::{CliError, Outcome};
use super::framing::length::write_lengths;
use super::framing::line::write_value;
use super::group::ModeName;
use super::json::write_delivery;
use super::member::{self, Ack};
use super::output::{CHUNK_BYTES, Output, say};
use crate::client::{Client, ConsumeError, Delivery, DeliveryBatch, Reader, Start};

/// The arguments of `consume`.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// The topic to read.
    #[arg(value_name = "TOPIC")]
    pub topic: String,
    /// This partition only; the partitions of a group are shared out among its members.
    #[arg(long, value_name = "P", conflicts_with = "group")]
    pub partition: Option<u32>,
    /// Where to start: earliest (the default), latest, offset:N, or time:T (RFC 3339, or Unix milliseconds).
    /// With --group, where a subscription that is made by this begins.
    #[arg(long, value_name = "WHERE", value_parser = parse_start)]
    pub from: Option<Start>,
    /// End after so many records.
    #[arg(long, value_name = "N")]
    pub max: Option<u64>,
    /// Wait for more rather than end where the partitions end now.
    #[arg(long)]
    pub follow: bool,
    /// Consume as a member of this group, rather than read.
    #[arg(long, value_name = "GROUP")]
    pub group: Option<String>,
    /// Who gets which records of the group; what its subscription has, shared where there is none.
    #[arg(long, value_enum, requires = "group")]
    pub mode: Option<ModeName>,
    /// Which records the group wants: `paid || shipped`, or a condition, e.g. `amount > 100`.
    #[arg(long, value_name = "FILTER", requires = "group")]
    pub filter: Option<String>,
    /// When a record of a group counts as consumed.
    #[arg(long, value_enum, requires = "group", default_value_t = Ack::Auto)]
    pub ack: Ack,
    /// As a member, without --follow: end when nothing has come for so long.
    #[arg(long, value_name = "SPAN", requires = "group", default_value = "2s", value_parser = parse_duration)]
    pub wait: std::time::Duration,
    /// What is printed of a record.
    #[arg(long, value_enum, default_value_t = Format::Value)]
    pub format: Format,
    /// The same as --format json.
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
}

impl Arguments {
    pub(super) fn start(&self) -> Start {
        self.from.unwrap_or(Start::Earliest)
    }

    pub(super) fn printed(&self) -> Format {
        match self.json {
            true => Format::Json,
            false => self.format,
        }
    }
}

/// `--format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// The value and a newline.
    Value,
    /// u32 big-endian key length (ffffffff: none), key, u32 value length, value.
    Length,
    /// One JSON object per line.
    Json,
}

impl Format {
    fn write(self, delivery: &Delivery, out: &mut Vec<u8>) {
        match self {
            Self::Value => write_value(delivery, out),
            Self::Length => write_lengths(delivery, out),
            Self::Json => write_delivery(delivery, out),
        }
    }
}

pub(super) fn parse_start(text: &str) -> Result<Start, String> {
    let wrong = || {
        format!(
            "{text:?} is no place to start; write earliest, latest, offset:N, time:2026-01-31T12:00:00Z or time:UNIX_MS"
        )
    };
    match text.split_once(':') {
        None if text == "earliest" => Ok(Start::Earliest),
        None if text == "latest" => Ok(Start::Latest),
        Some(("offset", offset)) => offset.parse().map(Start::Offset).map_err(|_| wrong()),
        Some(("time", time)) => match time.parse() {
            Ok(ms) => Ok(Start::Time(ms)),
            Err(_) => match time.parse::<jiff::Timestamp>() {
                Ok(timestamp) => Ok(Start::Time(at_or_after_ms(timestamp))),
                Err(error) => Err(format!("{}: {error}", wrong())),
            },
        },
        Some(_) | None => Err(wrong()),
    }
}

/// What was appended at that instant or later has at least these milliseconds.
fn at_or_after_ms(timestamp: jiff::Timestamp) -> i64 {
    let ms = timestamp.as_nanosecond().div_euclid(1_000_000);
    let beyond = timestamp.as_nanosecond().rem_euclid(1_000_000) != 0;
    i64::try_from(ms)
        .unwrap_or(i64::MAX)
        .saturating_add(i64::from(beyond))
}

/// Runs `consume`.
///
/// # Errors
/// [`CliError`]: no broker, no such topic, partition or offset, or stdout cannot be written.
pub async fn run(arguments: Arguments, connect: &Connect) -> Result<Outcome, CliError> {
    let client = connect.client().await?;
    if let Some(group) = arguments.group.clone() {
        return member::run(&arguments, &group, &client).await;
    }
    let mut printer = Printer::new(Output::stdout(), arguments.printed(), arguments.max);
    let read = read_all(&arguments, &client, &mut printer).await;
    // What came before an error is printed all the same.
    printer.finish().await?;
    match read? {
        Seen::Whole => Ok(Outcome::Done),
        Seen::Damaged => Ok(Outcome::No),
    }
}

/// What reading came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Whole,
    /// Something could not be read; it was said what.
    Damaged,
}

async fn read_all(
    arguments: &Arguments,
    client: &Client,
    printer: &mut Printer,
) -> Result<Seen, CliError> {
    let topic = client.topic(&arguments.topic).await?;
    let readers_max = client.broker().limits.readers_max;
    let many = arguments.partition.is_none() && topic.config.partitions > readers_max;
    if printer.is_full() {
        return Ok(Seen::Whole);
    }
    if many && arguments.follow {
        return Err(CliError::Usage(format!(
            "the broker lets a connection follow {readers_max} partitions, the topic has {}; name one with --partition",
            topic.config.partitions
        )));
    }
    if many {
        return read_one_by_one(arguments, client, printer).await;
    }
    let mut builder = client.reader(&arguments.topic).from(arguments.start());
    if let Some(partition) = arguments.partition {
        builder = builder.partition(partition);
    }
    if !arguments.follow {
        builder = builder.until_end();
    }
    let (seen, _) = print_all(builder.open().await?, None, printer).await?;
    Ok(seen)
}

/// More partitions than a connection may have readers: one after the other, each up to where it ended
/// when the command began.
async fn read_one_by_one(
    arguments: &Arguments,
    client: &Client,
    printer: &mut Printer,
) -> Result<Seen, CliError> {
    let mut seen = Seen::Whole;
    let topic = client.describe_topic(&arguments.topic).await?;
    for partition in topic.partitions {
        if partition.high_watermark == partition.start_offset {
            continue;
        }
        let reader = client
            .reader(&arguments.topic)
            .from(arguments.start())
            .partition(partition.partition.0)
            .until_end();
        let end = Some(partition.high_watermark.0);
        let (part, flow) = print_all(reader.open().await?, end, printer).await?;
        if part == Seen::Damaged {
            seen = part;
        }
        if flow.is_break() {
            break;
        }
    }
    Ok(seen)
}

/// Prints what a reader brings until it ends, or the printer takes no more. What lies at `end` or
/// behind it is left out.
async fn print_all(
    mut reader: Reader,
    end: Option<u64>,
    printer: &mut Printer,
) -> Result<(Seen, ControlFlow<()>), CliError> {
    let mut seen = Seen::Whole;
    loop {
        let next = {
            let mut next = pin!(reader.next_stored());
            match futures::poll!(next.as_mut()) {
                Poll::Ready(next) => next,
                Poll::Pending => {
                    if printer.flush().await.is_break() {
                        return Ok((seen, ControlFlow::Break(())));
                    }
                    next.await
                }
            }
        };
        let printed = match next {
            None => return Ok((seen, ControlFlow::Continue(()))),
            Some(Ok(batch)) => printer.print(batch, end).await,
            Some(Err(error)) => Err(error),
        };
        match printed {
            Ok(ControlFlow::Continue(())) => {}
            Ok(flow @ ControlFlow::Break(())) => return Ok((seen, flow)),
            Err(error @ (ConsumeError::Damaged { .. } | ConsumeError::Unreadable { .. })) => {
                say(format_args!("{error}; it is left out"));
                seen = Seen::Damaged;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Formats deliveries and hands them to stdout.
pub(super) struct Printer {
    output: Output,
    format: Format,
    /// How many more are wanted.
    left: Option<u64>,
    chunk: Vec<u8>,
}

impl Printer {
    pub(super) fn new(output: Output, format: Format, max: Option<u64>) -> Self {
        Self {
            output,
            format,
            left: max,
            chunk: Vec::with_capacity(CHUNK_BYTES),
        }
    }

    fn is_full(&self) -> bool {
        self.left == Some(0)
    }

    /// The batch's records, but those at `end` or behind it. Breaks when no more are wanted, or nobody
    /// takes them. After an error about a record it goes on; the last one is returned.
    async fn print(
        &mut self,
        batch: DeliveryBatch,
        end: Option<u64>,
    ) -> Result<ControlFlow<()>, ConsumeError> {
        let mut error = None;
        for delivery in batch {
            match delivery {
                Ok(delivery) if end.is_some_and(|end| delivery.offset >= end) => break,
                Ok(delivery) => {
                    if self.take(&delivery).await.is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                }
                Err(unreadable) => {
                    if let Some(earlier) = error.replace(unreadable) {
                        say(format_args!("{earlier}; it is left out"));
                    }
                }
            }
        }
        error.map_or(Ok(ControlFlow::Continue(())), Err)
    }

    pub(super) async fn take(&mut self, delivery: &Delivery) -> ControlFlow<()> {
        if self.is_full() {
            return ControlFlow::Break(());
        }
        self.format.write(delivery, &mut self.chunk);
        if let Some(left) = &mut self.left {
            *left -= 1;
        }
        if self.chunk.len() >= CHUNK_BYTES {
            self.flush().await?;
        }
        if self.is_full() {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    /// Breaks when nobody takes it.
    pub(super) async fn flush(&mut self) -> ControlFlow<()> {
        if self.chunk.is_empty() {
            return ControlFlow::Continue(());
        }
        let next = Vec::with_capacity(CHUNK_BYTES);
        let chunk = std::mem::replace(&mut self.chunk, next);
        match self.output.write(chunk).await {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    }

    pub(super) async fn finish(mut self) -> Result<(), CliError> {
        // Why it breaks, if it does, is what finishing tells.
        let _ = self.flush().await;
        match self.output.finish().await {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(CliError::Failed(format!("cannot write to stdout: {error}")))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::json::tests::delivery;
    use super::*;
    use crate::client::Record;
    use clap::Parser;
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn parse(line: &[&str]) -> Result<Arguments, clap::Error> {
        Line::try_parse_from(["consume"].iter().chain(line)).map(|line| line.arguments)
    }

    #[test]
    fn by_default_everything_from_the_earliest_is_printed_as_values() {
        let arguments = parse(&["orders"]).unwrap();
        assert_eq!(arguments.start(), Start::Earliest);
        assert_eq!(arguments.format, Format::Value);
        assert_eq!(
            (arguments.partition, arguments.max, arguments.follow),
            (None, None, false)
        );
    }

    #[test]
    fn places_to_start_are_understood() {
        let cases = [
            ("earliest", Start::Earliest),
            ("latest", Start::Latest),
            ("offset:17", Start::Offset(17)),
            ("time:1700000000123", Start::Time(1_700_000_000_123)),
            ("time:-5", Start::Time(-5)),
            (
                "time:2023-11-14T22:13:20.123Z",
                Start::Time(1_700_000_000_123),
            ),
            (
                "time:2023-11-14T23:13:20.123+01:00",
                Start::Time(1_700_000_000_123),
            ),
            // Between two milliseconds: nothing before it.
            (
                "time:2023-11-14T22:13:20.1230001Z",
                Start::Time(1_700_000_000_124),
            ),
            ("time:1969-12-31T23:59:59.9995Z", Start::Time(0)),
        ];
        for (text, start) in cases {
            assert_eq!(parse_start(text), Ok(start), "{text}");
        }
    }

    #[test]
    fn other_places_are_refused_with_what_there_is() {
        for text in [
            "",
            "first",
            "offset:",
            "offset:-1",
            "offset:x",
            "time:",
            "time:noon",
            "time:2023-11-14",
        ] {
            let said = parse_start(text).unwrap_err();
            assert!(said.contains("offset:N"), "{text}: {said}");
        }
        assert!(parse(&["orders", "--format", "xml"]).is_err());
        assert!(parse(&["orders", "--max", "-1"]).is_err());
    }

    #[derive(Clone, Default)]
    struct Sink {
        taken: Arc<Mutex<Vec<u8>>>,
        room: Option<usize>,
    }

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut taken = self.taken.lock().unwrap();
            if self
                .room
                .is_some_and(|room| taken.len() + bytes.len() > room)
            {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            taken.write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    async fn printed(sink: &Sink, format: Format, max: Option<u64>, records: &[Record]) -> usize {
        let mut printer = Printer::new(Output::to(sink.clone()), format, max);
        let mut taken = 0;
        for record in records {
            taken += 1;
            if printer.take(&delivery(record)).await.is_break() {
                break;
            }
        }
        printer.finish().await.unwrap();
        taken
    }

    #[tokio::test]
    async fn each_format_prints_what_it_says() {
        let record = Record::new("v\0").key("k");
        let mut json = Vec::new();
        write_delivery(&delivery(&record), &mut json);
        let cases = [
            (Format::Value, b"v\0\n".to_vec()),
            (Format::Length, b"\0\0\0\x01k\0\0\0\x02v\0".to_vec()),
            (Format::Json, json),
        ];
        for (format, wanted) in cases {
            let sink = Sink::default();
            printed(&sink, format, None, std::slice::from_ref(&record)).await;
            assert_eq!(*sink.taken.lock().unwrap(), wanted);
        }
    }

    #[tokio::test]
    async fn it_ends_at_the_most_that_is_wanted() {
        let records: Vec<_> = (0..10).map(|n| Record::new(n.to_string())).collect();
        let sink = Sink::default();
        assert_eq!(printed(&sink, Format::Value, Some(3), &records).await, 3);
        assert_eq!(*sink.taken.lock().unwrap(), b"0\n1\n2\n");
        let printer = Printer::new(Output::to(Sink::default()), Format::Value, Some(0));
        assert!(printer.is_full());
    }

    #[tokio::test]
    async fn a_closed_pipe_ends_it_quietly_and_soon() {
        let records = vec![Record::new(vec![b'x'; CHUNK_BYTES]); 1000];
        let sink = Sink {
            room: Some(CHUNK_BYTES + 1),
            ..Sink::default()
        };
        let taken = printed(&sink, Format::Value, None, &records).await;
        assert!(taken < 20, "{taken}");
        assert_eq!(sink.taken.lock().unwrap().len(), CHUNK_BYTES + 1);
    }
}
