//! A pipeline that consumes, transforms and produces, exactly once: workers are processes of their own that
//! are killed like the broker is, and what comes out is what one undisturbed worker would have made.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::child::delete_views;
use crate::load::connect;
use crate::squares::{self, GROUP};
use crate::{Dice, full, launch, run};

const WORKERS: usize = 2;
/// Names the broker a worker works for.
const WORK_FOR: &str = "WATERWHEEL_TEST_WORK_FOR";

fn records() -> u64 {
    if full() { 1_000_000 } else { 20_000 }
}

/// The worker's process: this test binary, told to be one. It never ends by itself.
#[test]
#[ignore = "a worker that the pipeline's test starts and kills"]
fn worker() {
    let Ok(work_for) = std::env::var(WORK_FOR) else {
        return;
    };
    let mut parts = work_for.splitn(3, ' ');
    let mut next = || parts.next().expect("address, number and directory");
    let (address, index, data) = (next(), next(), next());
    let address = address.parse().expect("an address");
    let index = index.parse().expect("a number");
    run(async {
        let client = connect(address, Path::new(data)).await;
        loop {
            // A broker that is killed fails what is under way: begin anew, as a new process would.
            let Err(_) = squares::work(&client, index).await;
        }
    });
}

/// A worker that is killed when it is dropped.
struct Worker(Child);

impl Worker {
    fn start(address: &str, index: usize, data: &Path) -> Self {
        let work_for = format!("{address} {index} {}", data.display());
        let program = std::env::current_exe().expect("this test has a path");
        let child = Command::new(program)
            .args(["--exact", "pipeline::worker", "--ignored"])
            .env(WORK_FOR, work_for)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("a worker starts");
        Self(child)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_pipeline_whose_workers_and_broker_are_killed_makes_what_an_undisturbed_one_would() {
    run(async {
        let mut dice = Dice::new();
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut launch = launch(dir.path());
        launch
            .settings
            .push(("WATERWHEEL_TRANSACTION_DURATION_MS", "5000".to_owned()));
        let mut broker = launch.start(0, None).expect("it starts");
        let (address, records) = (broker.address, records());
        let client = connect(address, dir.path()).await;
        let filled = squares::fill(&client, records).await;
        filled.expect("there are topics, and they are filled");
        let name = address.to_string();
        let start = |index| Worker::start(&name, index, dir.path());
        let mut workers: Vec<Worker> = (0..WORKERS).map(start).collect();
        let (mut kills, mut worker_kills, mut seen) = (0, 0, 0);
        while seen < records {
            let until = (seen + 200 + dice.below(records / 20)).min(records);
            while seen < until {
                tokio::time::sleep(Duration::from_millis(10)).await;
                seen = seen.max(squares::results(&client).await.unwrap_or(0));
            }
            if dice.below(2) == 0 {
                broker.kill();
                kills += 1;
                if dice.below(3) == 0 {
                    delete_views(dir.path());
                }
                broker = launch
                    .start(address.port(), None)
                    .expect("it starts on what a kill left");
            } else {
                let index = dice.below(WORKERS as u64) as usize;
                // Dropped first: the session of its successor rolls back what it left.
                drop(workers.remove(index));
                workers.insert(index, start(index));
                worker_kills += 1;
            }
        }
        println!(
            "{records} records through {kills} kills of the broker and {worker_kills} of workers"
        );
        // What was read again after the last kill would show as more.
        let audit = squares::audit(&client, records).await;
        let audit = audit.expect("it can be read");
        assert!(audit.is_equal(), "{audit:?}");
        let group = client.describe_group(GROUP).await.expect("it is there");
        assert_eq!(
            group.lag(None),
            0,
            "everything is consumed with its results"
        );
        drop(workers);
    });
}
