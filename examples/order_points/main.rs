//! Orders are paid in a database and earn points by messages: every paid order its points, once, although the
//! tills that take the money are killed between the commit in the database and the decision on the message.
//!
//! ```text
//! cargo run --example order_points                                             # SQLite, in a file of its own
//! DATABASE_URL=postgres://user:password@host/database cargo run --example order_points
//! cargo run --example order_points -- 127.0.0.1:7411 waterwheel-data/tls/ca.pem   # a broker that runs already
//! ```
//!
//! 1. The message is stored first, invisible; then the order is paid, in one local transaction together with
//!    the name of the message's transaction ([`database::Database::pay`]); its outcome decides.
//! 2. A till that is killed in between leaves the decision open. The broker asks another till of the group,
//!    which looks into the same database ([`database::Database::outcome`]).
//! 3. Points are credited in one local transaction together with the message's id ([`database::Database::credit`]), so
//!    that a message that comes again credits nothing.
//!
//! Tills are processes of their own: this program, started by itself with other arguments.

mod database;
mod postgres;
mod sqlite;
mod till;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use waterwheel::client::{Client, Delivery, TopicConfig, TransactionInfo};
use waterwheel::{Broker, Config};

use crate::database::{Audit, Failure, with};

const ORDERS: u32 = 24;
/// What the audit has to come to: 1 to 24, ten points each.
const POINTS: i64 = 3_000;
/// After so long without the result it is wrong.
const PATIENCE: Duration = Duration::from_secs(90);

/// Where a till is killed. It says that it is there, and waits for it.
const DEATHS: [&str; 4] = ["committed", "executing", "committed", "committed"];

/// A till in a process of its own.
struct Till(Child);

impl Till {
    /// Till number `n`, which stops in `place`, or nowhere.
    fn start(n: usize, place: &str, broker: &[String; 2], run: &str) -> Result<Self, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["till", &n.to_string(), place, run])
            .args(broker);
        Ok(Self(command.stdout(Stdio::piped()).spawn()?))
    }

    /// Waits until it says where it is.
    fn reached(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        let said = self.0.stdout.as_mut().ok_or("a till has no output")?;
        BufReader::new(said).read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Till {
    /// As `kill -9`: nothing of it runs any more, nobody is told.
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Lets tills pay, and kills all but the last, which is left to answer for those before it.
#[expect(clippy::print_stdout, reason = "an example shows what it does")]
fn pay(broker: &[String; 2], run: &str) -> Result<Till, Failure> {
    for (n, place) in DEATHS.into_iter().enumerate() {
        let mut till = Till::start(n, place, broker, run)?;
        let reached = till.reached()?;
        if !reached.starts_with(place) {
            return Err(format!("till {n} is not where it should be: {reached:?}").into());
        }
        println!("till {n} is killed: {reached}");
    }
    let mut last = Till::start(DEATHS.len(), "nowhere", broker, run)?;
    println!("till {}: {}", DEATHS.len(), last.reached()?);
    Ok(last)
}

/// Credits points, each message's once. Every fifth time the acknowledgement is forgotten, as if the process
/// had died in front of it. Returns when the group has nothing left, no outcome is open and every order is
/// paid and credited, or when patience ends; says how many messages came.
async fn credit(client: &Client, run: &str) -> Result<u64, Failure> {
    let (began, mut came) = (Instant::now(), 0);
    while began.elapsed() < PATIENCE {
        let mut consumer = client.consumer(run).topic(run).open().await?;
        loop {
            let wait = Duration::from_millis(300);
            let Some(points) = consumer.next_batch(1, wait).await?.pop() else {
                break;
            };
            came += 1;
            credit_once(run, &points).await?;
            if came % 5 == 0 {
                break;
            }
            consumer.ack(&points).await?;
        }
        // What was not acknowledged comes again.
        consumer.close().await;
        let lag = client.describe_group(run).await?.lag(None);
        let open = open_halves(client, run).await?;
        let audit = with(run, |database| database.audit()).await?;
        if lag == 0 && open == 0 && audit.credits >= i64::from(ORDERS) {
            break;
        }
    }
    Ok(came)
}

async fn credit_once(run: &str, points: &Delivery) -> Result<(), Failure> {
    let message = points.id.0.to_vec();
    let text = std::str::from_utf8(&points.value)?;
    let (order, amount) = till::parse(text)?;
    with(run, move |database| {
        database.credit(&message, order, amount)
    })
    .await
}

/// What the broker knows of this run's half messages: those that are open, and those that check-back decided.
async fn halves(client: &Client, run: &str) -> Result<Vec<TransactionInfo>, Failure> {
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = client.transactions(after).await?;
        let Some(last) = page.last() else {
            return Ok(found);
        };
        after = Some(last.id);
        found.extend(page.into_iter().filter(|half| half.group == run));
    }
}

/// Half messages whose outcome nobody has said.
async fn open_halves(client: &Client, run: &str) -> Result<usize, Failure> {
    let open = |half: &&TransactionInfo| half.state == "open" || half.state == "deciding";
    Ok(halves(client, run).await?.iter().filter(open).count())
}

/// How many outcomes came from check-back: `(committed, rolled back)`.
async fn checked_back(client: &Client, run: &str) -> Result<(usize, usize), Failure> {
    let mut all = halves(client, run).await?;
    all.retain(|half| half.by.as_deref() == Some("check-back"));
    let decided = |state: &str| all.iter().filter(|half| half.state == state).count();
    Ok((decided("committed"), decided("rolled-back")))
}

#[expect(clippy::print_stdout, reason = "an example shows what it does")]
async fn orders(client: &Client, broker: &[String; 2], run: &str) -> Result<bool, Failure> {
    client.create_topic(run, TopicConfig::new(2)).await?;
    with(run, |database| database.place_orders(ORDERS)).await?;
    // Dropped at the end: until then it answers for the tills before it.
    let (name, address) = (run.to_owned(), broker.clone());
    let till = tokio::task::spawn_blocking(move || pay(&address, &name)).await??;
    let came = credit(client, run).await?;
    let (committed, rolled_back) = checked_back(client, run).await?;
    println!("check-back: {committed} committed, {rolled_back} rolled back");
    println!("{came} messages came");
    drop(till);

    let audit = with(run, |database| database.audit()).await?;
    println!("{audit}");
    let right = Audit {
        paid: i64::from(ORDERS),
        paid_points: POINTS,
        credits: i64::from(ORDERS),
        credited_points: POINTS,
        wrong: 0,
    };
    let deaths = DEATHS.iter().filter(|place| **place == "committed").count();
    Ok(audit == right && (committed, rolled_back) == (deaths, DEATHS.len() - deaths))
}

#[expect(clippy::print_stdout, reason = "an example shows what it does")]
async fn run(arguments: Vec<String>) -> Result<bool, Failure> {
    // One name for everything of this run: topic, groups, database.
    let run = format!("order_points_{}", std::process::id());
    println!(
        "database: {}",
        with(&run, |database| Ok(database.kind())).await?
    );
    let right = if let Ok(broker) = <[String; 2]>::try_from(arguments) {
        let [address, ca] = &broker;
        let client = Client::connect(address).ca(ca).await?;
        let right = orders(&client, &broker, &run).await;
        client.delete_group(&run).await?;
        client.delete_topic(&run).await?;
        right
    } else {
        let config = Config {
            listen: Some(([127, 0, 0, 1], 0).into()),
            transaction_check_ms: 200, // so that nobody has to wait
            ..Config::temporary()
        };
        let ca = config.data.join("tls/ca.pem");
        let broker = Broker::start(config.clone()).await?;
        let address = broker.local_addr().ok_or("the broker does not listen")?;
        let client = broker.client().await?;
        let place = [address.to_string(), ca.display().to_string()];
        let right = orders(&client, &place, &run).await;
        broker.stop().await;
        right
    };
    with(&run, |database| database.remove()).await?;
    right
}

#[expect(clippy::print_stdout, reason = "an example shows what it does")]
fn main() -> Result<ExitCode, Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let system = actix_rt::System::new();
    if let Some((_, arguments)) = arguments.split_first().filter(|(what, _)| *what == "till") {
        let [n, place, run, address, ca] = arguments else {
            return Err("a till is started by this program alone".into());
        };
        system.block_on(till::serve(n, place, run, [address, ca]))?;
        return Ok(ExitCode::SUCCESS);
    }
    let right = system.block_on(run(arguments))?;
    println!("{}", if right { "all is right" } else { "WRONG" });
    Ok(if right {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
