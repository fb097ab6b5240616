//! `produce TOPIC`: reads records from a file or stdin and sends them.
//!
//! In: a stream of any length. Out: receipts on stdout if asked for; on stderr a bar while it runs
//! where that is a terminal, and a summary at the end. A thread reads, splits and enqueues
//! (`feed`); the client's task sends; this one hears of acknowledgements (`queues`) and keeps
//! account of them (`ledger`).
//!
//! Sending goes on through restarts of the broker until nothing was acknowledged for `--timeout`. What
//! was acknowledged before a fault in the input, or in sending, stays stored: the error names the
//! first record that is not acknowledged.

mod feed;
mod ledger;
mod queues;

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::ValueEnum;
use futures::future::Either;
use indicatif::{ProgressBar, ProgressStyle};

use super::connect::Connect;
use super::duration::parse_duration;
use super::exit::{CliError, Outcome};
use super::framing::separator::parse_separator;
use super::framing::{Framing, Splitter};
use super::output::{Output, counted, say};
use super::print_json;
use super::timer::When;
use crate::client::{self, AdminError, Client, Code, Producer, SendError, TopicConfig};
use crate::domain::batch::Delivery;
use crate::domain::record::Text;
use feed::{Awaited, Dress, Feed, FeedError};
use ledger::Ledger;
use queues::Queues;

/// What may be under way: enough for the broker to be busy, little enough for a small machine.
const BUFFER_BYTES: usize = 32 * 1024 * 1024;

/// After a failure, how long to listen for what is still acknowledged.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How often the bar moves.
const BAR_INTERVAL: Duration = Duration::from_millis(100);

/// The arguments of `produce`.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// The topic to send to.
    #[arg(value_name = "TOPIC")]
    pub topic: String,
    /// Read from this file rather than from stdin.
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// How records are told apart.
    #[arg(long, value_enum, default_value_t = FramingName::Line)]
    pub framing: FramingName,
    /// In lines, what comes before the first S is the key; S understands \t \0 \xNN and \\.
    #[arg(long, value_name = "S", value_parser = separator)]
    pub key_separator: Option<Separator>,
    /// A tag for every record that has none.
    #[arg(long, value_name = "T")]
    pub tag: Option<String>,
    /// A priority level for every record that has none: 0 is the ordinary one, and the lowest.
    #[arg(long, value_name = "LEVEL", value_parser = clap::value_parser!(u8).range(0..=31))]
    pub priority: Option<u8>,
    /// A header for every record; may be given several times.
    #[arg(long = "header", value_name = "K=V", value_parser = header)]
    pub headers: Vec<(String, String)>,
    /// How batches are compressed.
    #[arg(long, value_name = "C", value_enum, default_value_t = CompressionName::None)]
    pub compression: CompressionName,
    /// What an acknowledgement means; by default what the topic is set to.
    #[arg(long, value_name = "A", value_enum)]
    pub ack: Option<AckName>,
    #[command(flatten)]
    pub when: When,
    /// Give up when nothing was acknowledged for so long.
    #[arg(long, value_name = "SPAN", default_value = "120s", value_parser = parse_duration)]
    pub timeout: Duration,
    /// Print a JSON line for every record that is acknowledged, in the input's order; a delayed record's
    /// when it has a handle, at level memory too.
    #[arg(long)]
    pub receipts: bool,
    /// Make the topic first if it is not there, with --partitions partitions.
    #[arg(long)]
    pub create: bool,
    /// With --create: how many partitions a topic that is made has.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "create")]
    pub partitions: u32,
    /// Print the summary as one JSON object, on stdout, after the receipts if there are any.
    #[arg(long)]
    pub json: bool,
}

/// `--framing`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FramingName {
    /// One record per line.
    Line,
    /// u32 big-endian key length (ffffffff: none), key, u32 value length, value.
    Length,
    /// One JSON object per line, as `consume --format json` prints it.
    Json,
}

/// `--compression`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CompressionName {
    /// Not at all.
    None,
    /// Cheap.
    Lz4,
    /// Smaller, dearer.
    Zstd,
}

impl From<CompressionName> for client::Compression {
    fn from(name: CompressionName) -> Self {
        match name {
            CompressionName::None => Self::None,
            CompressionName::Lz4 => Self::Lz4,
            CompressionName::Zstd => Self::Zstd,
        }
    }
}

/// `--ack`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AckName {
    /// Sent; nobody answers.
    None,
    /// The broker has it.
    Memory,
    /// It is on the disk.
    Durable,
}

impl From<AckName> for client::Ack {
    fn from(name: AckName) -> Self {
        match name {
            AckName::None => Self::None,
            AckName::Memory => Self::Memory,
            AckName::Durable => Self::Durable,
        }
    }
}

/// The bytes between key and value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Separator(Vec<u8>);

fn separator(text: &str) -> Result<Separator, String> {
    parse_separator(text).map(Separator)
}

fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        Some(_) | None => {
            Err("a header is a name, '=' and a value, e.g. --header shop=Delft".to_owned())
        }
    }
}

impl Arguments {
    fn framing(&self) -> Result<Framing, CliError> {
        let separator = self.key_separator.as_ref();
        match (self.framing, separator) {
            (FramingName::Line, separator) => Ok(Framing::Line {
                separator: separator.map(|separator| separator.0.clone()),
            }),
            (FramingName::Length, None) => Ok(Framing::Length),
            (FramingName::Json, None) => Ok(Framing::Json),
            (FramingName::Length | FramingName::Json, Some(_)) => Err(CliError::Usage(
                "--key-separator is for --framing line; the other framings have a place for the key"
                    .to_owned(),
            )),
        }
    }

    fn dress(&self) -> Dress {
        let headers = self.headers.iter().cloned();
        Dress {
            tag: self.tag.clone().map(Text::from),
            priority: self.priority.unwrap_or(0),
            headers: headers
                .map(|(name, value)| (Text::from(name), Bytes::from(value)))
                .collect(),
            delivery: match (self.when.delay, self.when.at) {
                (Some(span), _) => {
                    Delivery::After(i64::try_from(span.as_millis()).unwrap_or(i64::MAX))
                }
                (None, Some(at)) => Delivery::At(at),
                (None, None) => Delivery::Now,
            },
        }
    }

    async fn producer(&self, client: &Client) -> Result<Producer, CliError> {
        let mut builder = client
            .producer(&self.topic)
            .compression(self.compression.into())
            .timeout(self.timeout)
            .buffer_bytes(BUFFER_BYTES);
        if let Some(ack) = self.ack {
            builder = builder.ack(ack.into());
        }
        Ok(builder.open().await?)
    }
}

/// The input, and its length where that is known.
fn open(file: Option<&Path>) -> Result<(Box<dyn Read + Send>, Option<u64>), CliError> {
    let Some(path) = file else {
        return Ok((Box::new(io::stdin()), None));
    };
    let cannot = |error: io::Error| {
        CliError::Usage(format!(
            "cannot read {}: {error}; name a file with --file, or leave it out to read stdin",
            path.display()
        ))
    };
    let file = File::open(path).map_err(cannot)?;
    let metadata = file.metadata().map_err(cannot)?;
    if metadata.is_dir() {
        return Err(cannot(io::ErrorKind::IsADirectory.into()));
    }
    Ok((Box::new(file), metadata.is_file().then_some(metadata.len())))
}

/// Runs `produce`.
///
/// # Errors
/// [`CliError`]: among others `Failed` where a record of the input is not acknowledged, naming how
/// many and the first, and `Refused` where that is because the broker refused it.
pub async fn run(arguments: Arguments, connect: &Connect) -> Result<Outcome, CliError> {
    let framing = arguments.framing()?;
    let (input, input_bytes) = open(arguments.file.as_deref())?;
    let client = connect.client().await?;
    let limit = usize::try_from(client.broker().limits.batch_bytes_max).unwrap_or(usize::MAX);
    let splitter = Splitter::new(framing, limit);
    let unit = splitter.unit();
    if arguments.create {
        create(&client, &arguments.topic, arguments.partitions).await?;
    }
    let producer = arguments.producer(&client).await?;
    let topic = producer.topic().to_owned();
    if arguments.key_separator.is_some() && !client.topic(&topic).await?.config.keyed {
        say(format_args!(
            "{topic} is unkeyed: keys are stored with their records, but keep no order and choose no partition"
        ));
    }
    let ledger = Ledger::new(arguments.receipts.then_some(topic.as_str()))
        .map_err(|error| CliError::Failed(format!("cannot measure latencies: {error}")))?;
    let mut sending = Sending {
        feed: Feed::start(
            input,
            splitter,
            arguments.dress(),
            producer.clone(),
            arguments.receipts,
        ),
        queues: Queues::new(),
        ledger,
        receipts: arguments.receipts.then(Output::stdout),
        bar: Bar::new(input_bytes),
        unit,
    };
    let began = Instant::now();
    let fed = sending.send_all().await;
    sending.bar.finish();
    let summary = sending.ledger.summary(began);
    let outcome = sending.conclude(fed).await;
    match arguments.json {
        true => print_json(&summary)?,
        // Where nothing was stored the error says all there is to say.
        false if outcome.is_err() && summary.is_nothing() => {}
        false => say(summary),
    }
    if outcome.is_ok() {
        // At level memory the broker may still have to make the last records durable.
        producer.close().await.map_err(|error| {
            let what = "the broker accepted all records, but did not make them all durable";
            failure_of(&error, format!("{what}: {error}"))
        })?;
    }
    outcome
}

/// Makes the topic if it is not there; one that is there is as it is.
async fn create(client: &Client, topic: &str, partitions: u32) -> Result<(), CliError> {
    match client
        .create_topic(topic, TopicConfig::new(partitions))
        .await
    {
        Ok(_) => Ok(()),
        Err(AdminError::Refused(refusal)) if refusal.code == Code::TopicExists => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// How reading the input ended; nothing where it did not.
type Fed = Option<Result<(), FeedError>>;

struct Sending {
    feed: Feed,
    queues: Queues<Awaited>,
    ledger: Ledger,
    receipts: Option<Output>,
    bar: Bar,
    unit: &'static str,
}

impl Sending {
    /// Until the input has ended and everything is settled; or, once a record failed or nobody takes
    /// the receipts, a little longer than that.
    async fn send_all(&mut self) -> Fed {
        let mut settled = Vec::new();
        let mut feeding = true;
        let mut give_up: Option<Instant> = None;
        while feeding || !self.queues.is_empty() {
            let patience = give_up.map_or(BAR_INTERVAL, |at| {
                at.saturating_duration_since(Instant::now())
            });
            tokio::select! {
                biased;
                () = self.queues.next(&mut settled) => {
                    let now = Instant::now();
                    for settled in settled.drain(..) {
                        self.ledger.settle(settled, now);
                    }
                    let taken = self.print_receipts().await;
                    if (!taken || self.ledger.failure().is_some()) && give_up.is_none() {
                        self.feed.stop();
                        give_up = Some(now + LAST_WORDS);
                    }
                }
                run = self.feed.runs.recv(), if feeding && !self.ledger.is_full() => match run {
                    Some(run) => self.take(run),
                    None => feeding = false,
                },
                () = tokio::time::sleep(patience) => {}
            }
            self.bar
                .show(&self.ledger, self.feed.read_bytes.load(Ordering::Relaxed));
            if give_up.is_some_and(|at| Instant::now() >= at) {
                break;
            }
        }
        // What was put on its way meanwhile is not acknowledged either.
        while let Ok(run) = self.feed.runs.try_recv() {
            self.take(run);
        }
        if feeding {
            return None;
        }
        (&mut self.feed.ended).await.ok()
    }

    fn take(&mut self, run: feed::Run) {
        for sent in run {
            self.ledger.sent();
            let partition = match &sent.pending {
                Either::Left(pending) => pending.partition(),
                Either::Right(pending) => pending.partition(),
            };
            self.queues.push(partition, sent);
        }
    }

    /// Whether whoever reads the receipts still takes them.
    async fn print_receipts(&mut self) -> bool {
        match &self.receipts {
            None => true,
            Some(receipts) => receipts.write(self.ledger.take_receipts()).await.is_ok(),
        }
    }

    async fn conclude(&mut self, fed: Fed) -> Result<Outcome, CliError> {
        let printed = match self.receipts.take() {
            Some(receipts) => receipts.finish().await,
            None => Ok(()),
        };
        if self.ledger.unacknowledged() != 0 {
            return Err(self.unacknowledged());
        }
        let all = self.ledger.acknowledged();
        match fed {
            Some(Ok(())) => {}
            Some(Err(FeedError::Stopped)) | None => {
                return Err(CliError::Failed(format!(
                    "stopped after {}, all acknowledged: nobody takes the receipts",
                    counted(all, "record")
                )));
            }
            Some(Err(error)) => {
                let said = match all {
                    0 => format!("{error}; nothing before it was sent"),
                    1 => format!("{error}; the record before it is acknowledged"),
                    all => format!("{error}; the {all} records before it are acknowledged"),
                };
                return Err(match &error {
                    FeedError::Send { error, .. } => failure_of(error, said),
                    FeedError::Framing(_) | FeedError::Read(_) | FeedError::Stopped => {
                        CliError::Failed(said)
                    }
                });
            }
        }
        printed.map_err(|error| CliError::Failed(format!("cannot write the receipts: {error}")))?;
        Ok(Outcome::Done)
    }

    fn unacknowledged(&self) -> CliError {
        let count = self.ledger.unacknowledged();
        let unit = self.unit;
        let open = self.queues.numbers().min();
        let (first, why) = match (self.ledger.failure(), open) {
            (Some((failed, error)), open) => {
                (open.map_or(failed, |open| open.min(failed)), Some(error))
            }
            (None, open) => (open.unwrap_or(0), None),
        };
        let what = match count {
            1 => format!("1 record is not acknowledged: {unit} {first}"),
            count => format!("{count} records are not acknowledged, the first is {unit} {first}"),
        };
        match why {
            Some(error) => failure_of(error, format!("{what}: {error}")),
            None => CliError::Failed(what),
        }
    }
}

/// A refusal is the broker's, whatever else is to be said.
fn failure_of(error: &SendError, said: String) -> CliError {
    match error {
        SendError::Refused(refusal) | SendError::PutOff { refusal, .. } => CliError::Refused {
            code: refusal.code.name(),
            // The code is said once.
            message: said
                .trim_end_matches(&format!(" [{}]", refusal.code))
                .to_owned(),
        },
        SendError::Aborted(first) => failure_of(first, said),
        SendError::TooLarge { .. }
        | SendError::Partition { .. }
        | SendError::Priority { .. }
        | SendError::TimedOut(_)
        | SendError::Disconnected
        | SendError::Closed
        | SendError::Unacknowledged => CliError::Failed(said),
    }
}

/// What is seen on a terminal while it runs.
struct Bar(Option<(ProgressBar, Instant)>);

impl Bar {
    fn new(input_bytes: Option<u64>) -> Self {
        if !io::stderr().is_terminal() {
            return Self(None);
        }
        let (bar, template) = match input_bytes {
            Some(bytes) => (
                ProgressBar::new(bytes),
                "{bar:30} {bytes}/{total_bytes} {msg} ETA {eta}",
            ),
            None => (ProgressBar::new_spinner(), "{spinner} {bytes} {msg}"),
        };
        let style = ProgressStyle::with_template(template);
        let bar = match style {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        };
        Self(Some((bar, Instant::now())))
    }

    fn show(&mut self, ledger: &Ledger, read_bytes: u64) {
        if let Some((bar, shown)) = &mut self.0
            && shown.elapsed() >= BAR_INTERVAL
        {
            *shown = Instant::now();
            bar.set_position(read_bytes);
            bar.set_message(format!("{} acknowledged", ledger.acknowledged()));
        }
    }

    fn finish(&self) {
        if let Some((bar, _)) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests;
