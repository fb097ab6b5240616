//! PostgreSQL, in a schema of the run's own, so that nothing that is there is touched.

use postgres::{Client, NoTls};

use crate::database::{AUDIT, Audit, Database, Failure};

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS orders (number BIGINT PRIMARY KEY, points BIGINT, paid BIGINT NOT NULL);
    CREATE TABLE IF NOT EXISTS payments (id TEXT PRIMARY KEY, number BIGINT);
    CREATE TABLE IF NOT EXISTS credits (message BYTEA PRIMARY KEY, number BIGINT, points BIGINT);";

pub(crate) struct Postgres {
    client: Client,
    schema: String,
}

impl Postgres {
    pub(crate) fn open(url: &str, run: &str) -> Result<Self, Failure> {
        let mut client = Client::connect(url, NoTls)?;
        // Notices that something exists already are of no use to anybody.
        client.batch_execute("SET client_min_messages = warning")?;
        client.batch_execute(&format!("SET search_path = {run}"))?;
        Ok(Self {
            client,
            schema: run.to_owned(),
        })
    }
}

impl Database for Postgres {
    fn kind(&self) -> String {
        format!("PostgreSQL, schema {}", self.schema)
    }

    fn place_orders(&mut self, count: u32) -> Result<(), Failure> {
        let mut transaction = self.client.transaction()?;
        transaction.batch_execute(&format!("CREATE SCHEMA IF NOT EXISTS {}", self.schema))?;
        transaction.batch_execute(TABLES)?;
        for number in 1..=i64::from(count) {
            let sql = "INSERT INTO orders VALUES ($1, $2, 0)";
            transaction.execute(sql, &[&number, &(number * 10)])?;
        }
        Ok(transaction.commit()?)
    }

    fn unpaid(&mut self) -> Result<Vec<(i64, i64)>, Failure> {
        let sql = "SELECT number, points FROM orders WHERE paid = 0 ORDER BY number";
        let rows = self.client.query(sql, &[])?;
        let read = |row: &postgres::Row| Ok((row.try_get(0)?, row.try_get(1)?));
        rows.iter().map(read).collect()
    }

    fn pay(&mut self, id: &str, order: i64) -> Result<bool, Failure> {
        let mut transaction = self.client.transaction()?;
        let sql = "INSERT INTO payments VALUES ($1, $2) ON CONFLICT DO NOTHING";
        let noted = transaction.execute(sql, &[&id, &order])?;
        let sql = "UPDATE orders SET paid = 1 WHERE number = $1 AND paid = 0";
        // Without the commit nothing of it has happened.
        if noted == 0 || transaction.execute(sql, &[&order])? == 0 {
            return Ok(false);
        }
        transaction.commit()?;
        Ok(true)
    }

    fn outcome(&mut self, id: &str) -> Result<bool, Failure> {
        let mut transaction = self.client.transaction()?;
        // Where the payment is being made at this moment this waits for its end, and then sees it.
        let sql = "INSERT INTO payments VALUES ($1, NULL) ON CONFLICT DO NOTHING";
        transaction.execute(sql, &[&id])?;
        let sql = "SELECT number IS NOT NULL FROM payments WHERE id = $1";
        let paid = transaction.query_one(sql, &[&id])?.try_get(0)?;
        transaction.commit()?;
        Ok(paid)
    }

    fn credit(&mut self, message: &[u8], order: i64, points: i64) -> Result<(), Failure> {
        let sql = "INSERT INTO credits VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
        self.client.execute(sql, &[&message, &order, &points])?;
        Ok(())
    }

    fn audit(&mut self) -> Result<Audit, Failure> {
        let row = self.client.query_one(AUDIT, &[])?;
        Ok(Audit {
            paid: row.try_get(0)?,
            paid_points: row.try_get(1)?,
            credits: row.try_get(2)?,
            credited_points: row.try_get(3)?,
            wrong: row.try_get(4)?,
        })
    }

    fn remove(&mut self) -> Result<(), Failure> {
        let sql = format!("DROP SCHEMA IF EXISTS {} CASCADE", self.schema);
        Ok(self.client.batch_execute(&sql)?)
    }
}
