//! What the example needs of a database, and which one it is.

use std::fmt;

pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What the books say in the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Audit {
    pub(crate) paid: i64,
    pub(crate) paid_points: i64,
    pub(crate) credits: i64,
    pub(crate) credited_points: i64,
    /// Orders paid whose points are not credited once, and rightly; and orders credited that are not paid.
    pub(crate) wrong: i64,
}

/// The same question to both databases: its columns are those of [`Audit`].
pub(crate) const AUDIT: &str = "SELECT
    (SELECT count(*) FROM orders WHERE paid = 1),
    (SELECT CAST(coalesce(sum(points), 0) AS BIGINT) FROM orders WHERE paid = 1),
    (SELECT count(*) FROM credits),
    (SELECT CAST(coalesce(sum(points), 0) AS BIGINT) FROM credits),
    (SELECT count(*) FROM orders o WHERE o.paid <> (SELECT count(*) FROM credits c WHERE c.number = o.number)
        OR EXISTS (SELECT 1 FROM credits c WHERE c.number = o.number AND c.points <> o.points))";

impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "audit: {} orders paid for {} points; {} credits of {} points; {} orders wrong",
            self.paid, self.paid_points, self.credits, self.credited_points, self.wrong
        )
    }
}

/// The truth. Every method is one transaction of the database, and durable when it returns.
pub(crate) trait Database {
    fn kind(&self) -> String;
    /// Orders 1 to `count`, of ten points each times their number, none paid.
    fn place_orders(&mut self, count: u32) -> Result<(), Failure>;
    /// Number and points of those to be paid.
    fn unpaid(&mut self) -> Result<Vec<(i64, i64)>, Failure>;
    /// Pays an order and notes by which transaction, both or neither. `false`: not paid, and never by this
    /// transaction, because the order is paid already or [`Database::outcome`] was there first.
    fn pay(&mut self, transaction: &str, order: i64) -> Result<bool, Failure>;
    /// Whether this transaction has paid its order. Where it has not it never will: a note in its place keeps
    /// it from that, should it be alive after all and only slow.
    fn outcome(&mut self, transaction: &str) -> Result<bool, Failure>;
    /// Credits points, unless this message has been credited.
    fn credit(&mut self, message: &[u8], order: i64, points: i64) -> Result<(), Failure>;
    fn audit(&mut self) -> Result<Audit, Failure>;
    /// Takes away everything of this run.
    fn remove(&mut self) -> Result<(), Failure>;
}

/// The database of this run: PostgreSQL where `DATABASE_URL` names one, otherwise SQLite in a file.
pub(crate) fn open(run: &str) -> Result<Box<dyn Database>, Failure> {
    match std::env::var("DATABASE_URL") {
        Ok(url) if url.starts_with("postgres") => {
            Ok(Box::new(crate::postgres::Postgres::open(&url, run)?))
        }
        Ok(_) | Err(_) => Ok(Box::new(crate::sqlite::Sqlite::open(run)?)),
    }
}

/// Asks the database where waiting keeps nobody up.
pub(crate) async fn with<T, F>(run: &str, ask: F) -> Result<T, Failure>
where
    T: Send + 'static,
    F: FnOnce(&mut dyn Database) -> Result<T, Failure> + Send + 'static,
{
    let run = run.to_owned();
    tokio::task::spawn_blocking(move || ask(open(&run)?.as_mut())).await?
}
