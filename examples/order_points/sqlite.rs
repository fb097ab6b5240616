//! SQLite, in a file that all processes of a run open.

use std::path::PathBuf;
use std::time::Duration;

use rusqlite::{Connection, TransactionBehavior, params};

use crate::database::{AUDIT, Audit, Database, Failure};

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS orders (number INTEGER PRIMARY KEY, points INTEGER, paid INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS payments (id TEXT PRIMARY KEY, number INTEGER) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS credits (message BLOB PRIMARY KEY, number INTEGER, points INTEGER);";

pub(crate) struct Sqlite {
    connection: Connection,
    file: PathBuf,
}

impl Sqlite {
    pub(crate) fn open(run: &str) -> Result<Self, Failure> {
        let file = std::env::temp_dir().join(run).with_extension("sqlite");
        let connection = Connection::open(&file)?;
        // Several processes write; each waits for its turn.
        connection.busy_timeout(Duration::from_secs(20))?;
        connection.execute_batch(TABLES)?;
        Ok(Self { connection, file })
    }

    /// A transaction that may write from its beginning on: none fails halfway because another was first.
    fn begin(&mut self) -> Result<rusqlite::Transaction<'_>, rusqlite::Error> {
        self.connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
    }
}

impl Database for Sqlite {
    fn kind(&self) -> String {
        format!("SQLite, {}", self.file.display())
    }

    fn place_orders(&mut self, count: u32) -> Result<(), Failure> {
        let transaction = self.begin()?;
        for number in 1..=count {
            let sql = "INSERT INTO orders VALUES (?1, ?2, 0)";
            transaction.execute(sql, params![number, number * 10])?;
        }
        Ok(transaction.commit()?)
    }

    fn unpaid(&mut self) -> Result<Vec<(i64, i64)>, Failure> {
        let sql = "SELECT number, points FROM orders WHERE paid = 0 ORDER BY number";
        let mut query = self.connection.prepare(sql)?;
        let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn pay(&mut self, id: &str, order: i64) -> Result<bool, Failure> {
        let transaction = self.begin()?;
        let sql = "INSERT OR IGNORE INTO payments VALUES (?1, ?2)";
        let noted = transaction.execute(sql, params![id, order])?;
        let sql = "UPDATE orders SET paid = 1 WHERE number = ?1 AND paid = 0";
        // Without the commit nothing of it has happened.
        if noted == 0 || transaction.execute(sql, params![order])? == 0 {
            return Ok(false);
        }
        transaction.commit()?;
        Ok(true)
    }

    fn outcome(&mut self, id: &str) -> Result<bool, Failure> {
        let transaction = self.begin()?;
        let sql = "INSERT OR IGNORE INTO payments VALUES (?1, NULL)";
        transaction.execute(sql, params![id])?;
        let sql = "SELECT number IS NOT NULL FROM payments WHERE id = ?1";
        let paid = transaction.query_row(sql, params![id], |row| row.get(0))?;
        transaction.commit()?;
        Ok(paid)
    }

    fn credit(&mut self, message: &[u8], order: i64, points: i64) -> Result<(), Failure> {
        // A statement of its own is a transaction.
        let sql = "INSERT OR IGNORE INTO credits VALUES (?1, ?2, ?3)";
        self.connection
            .execute(sql, params![message, order, points])?;
        Ok(())
    }

    fn audit(&mut self) -> Result<Audit, Failure> {
        let audit = self.connection.query_row(AUDIT, [], |row| {
            Ok(Audit {
                paid: row.get(0)?,
                paid_points: row.get(1)?,
                credits: row.get(2)?,
                credited_points: row.get(3)?,
                wrong: row.get(4)?,
            })
        })?;
        Ok(audit)
    }

    fn remove(&mut self) -> Result<(), Failure> {
        Ok(std::fs::remove_file(&self.file)?)
    }
}
