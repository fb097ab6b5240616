//! A till: a process that takes money, and answers for tills of its group that died over it.

use std::time::Duration;

use futures::future::{BoxFuture, pending};
use waterwheel::client::{
    Client, HalfMessage, LocalOutcome, LocalTransaction, Record, TransactionId,
};

use crate::database::{Failure, with};

/// How long after a half message its outcome is asked for. Six seconds by default; nobody wants to wait here.
const IMMUNITY: Duration = Duration::from_millis(200);
/// How many orders a till takes before it stops where it was told to.
const WELL: i64 = 3;

struct Payments {
    run: String,
    /// Where to stop, and at which order.
    place: String,
    stop_at: i64,
}

impl Payments {
    async fn pay(&self, id: TransactionId, payment: &Record) -> Result<LocalOutcome, Failure> {
        let (order, _) = parse(std::str::from_utf8(&payment.value)?)?;
        self.stop("executing", order).await;
        let name = id.to_string();
        let paid = with(&self.run, move |database| database.pay(&name, order)).await?;
        self.stop("committed", order).await;
        Ok(if paid {
            LocalOutcome::Commit
        } else {
            LocalOutcome::Rollback
        })
    }

    /// Says that it is here and goes no further, if this is the place.
    #[expect(clippy::print_stdout, reason = "whoever kills it reads this")]
    async fn stop(&self, place: &str, order: i64) {
        if self.place == place && order >= self.stop_at {
            println!("{place} order {order}, and nothing decided");
            pending::<()>().await;
        }
    }
}

impl LocalTransaction for Payments {
    fn execute<'a>(
        &'a self,
        id: TransactionId,
        payment: &'a Record,
    ) -> BoxFuture<'a, LocalOutcome> {
        Box::pin(async move {
            // A commit that failed may have happened: it is asked about.
            let paid = self.pay(id, payment).await;
            paid.unwrap_or(LocalOutcome::Unknown)
        })
    }

    fn check<'a>(&'a self, half: &'a HalfMessage) -> BoxFuture<'a, LocalOutcome> {
        let name = half.id.to_string();
        Box::pin(async move {
            match with(&self.run, move |database| database.outcome(&name)).await {
                Ok(true) => LocalOutcome::Commit,
                Ok(false) => LocalOutcome::Rollback,
                // The database cannot be asked: later, then.
                Err(_) => LocalOutcome::Unknown,
            }
        })
    }
}

/// Pays all orders that are not paid, and then waits for questions, until it is killed.
#[expect(clippy::print_stdout, reason = "whoever kills it reads this")]
pub(crate) async fn serve(
    n: &str,
    place: &str,
    run: &str,
    [address, ca]: [&String; 2],
) -> Result<(), Failure> {
    let client = Client::connect(address).ca(ca).await?;
    let unpaid = with(run, |database| database.unpaid()).await?;
    let payments = Payments {
        run: run.to_owned(),
        place: place.to_owned(),
        stop_at: unpaid.first().map_or(0, |(first, _)| first + WELL),
    };
    let till = client.transactional_producer(&format!("{run}-till-{n}"));
    let till = till.group(run).local(payments).open().await?;
    let mut paid = 0;
    for (order, points) in unpaid {
        let message = Record::new(format!("{order} {points}")).key(format!("order-{order}"));
        let outcome = till.send_half_within(run, message, IMMUNITY).await?;
        paid += u32::from(outcome == LocalOutcome::Commit);
    }
    println!("{paid} orders paid, now only answering");
    pending().await
}

/// The order and its points.
pub(crate) fn parse(message: &str) -> Result<(i64, i64), Failure> {
    let (order, points) = message.split_once(' ').ok_or("no order and points")?;
    Ok((order.parse()?, points.parse()?))
}
