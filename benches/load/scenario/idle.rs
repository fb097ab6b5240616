//! Doing nothing: what a broker costs that nobody uses, and one that a hundred readers wait on.

use std::thread::sleep;
use std::time::Duration;

use crate::load::broker::{Broker, Home};
use crate::load::clients::{self, PATIENCE};
use crate::load::crew::{Line, muster};
use crate::load::report::Samples;
use crate::load::{Bench, Outcome};

/// Readers that wait, a connection each.
const READERS: usize = 100;
/// What settles after a start has settled by then.
pub(crate) const SETTLED: Duration = Duration::from_secs(30);
/// A fresh broker has to be quick.
const TOPIC: &str = "idle";

/// Memory of an idle broker, and CPU of one with 100 idle readers.
pub(crate) fn idle(bench: &Bench, samples: &mut Samples) -> Outcome<()> {
    let settle = bench.size(SETTLED, Duration::from_millis(500));
    let watched = bench.size(Duration::from_secs(60), Duration::from_secs(1));
    samples.note("RSS = VmRSS after 30 s; CPU = utime + stime over 60 s, in percent of one core");
    for run in 0..bench.runs {
        let mut broker = Broker::fresh(bench, &format!("idle-{run}"))?;
        sleep(settle);
        samples.add("RSS, idle", broker.resident_bytes()? as f64 / 1e6, "MB");
        clients::create_topic(broker.home(), TOPIC, 8)?;
        let (ready, done) = (Line::of(READERS), Line::of(READERS));
        let waited = muster(READERS, settle + watched + PATIENCE, |reader| {
            let (ready, done, broker) = (ready.clone(), done.clone(), &broker);
            async move {
                let client = clients::connect(broker.home()).await?;
                let open = clients::open_reader(&client, TOPIC, u32::try_from(reader % 8)?).await?;
                ready.wait().await;
                tokio::time::sleep(settle).await;
                let before = broker.usage()?;
                tokio::time::sleep(watched).await;
                let used = broker.usage()?.since(before);
                let resident = broker.resident_bytes()?;
                // Nobody leaves while others are still watching.
                done.wait().await;
                drop(open);
                Ok((used.cpu_s, resident))
            }
        })?;
        broker.still_runs()?;
        let (cpu_s, resident) = waited.first().copied().ok_or("nobody waited")?;
        samples.add("RSS, 100 idle readers", resident as f64 / 1e6, "MB");
        samples.add(
            "CPU, 100 idle readers",
            cpu_s / watched.as_secs_f64() * 100.0,
            "% core",
        );
    }
    Ok(())
}

/// From `exec` to "listening" on an empty directory, and how large that is then.
pub(crate) fn fresh_start(bench: &Bench, samples: &mut Samples) -> Outcome<()> {
    for run in 0..bench.runs {
        let broker = Home::fresh(bench, &format!("fresh-{run}"))?.start()?;
        samples.add("exec to listening", broker.ready_after().as_secs_f64(), "s");
        // What is made ready in the background counts too.
        sleep(bench.size(Duration::from_secs(5), Duration::from_millis(200)));
        samples.add("data directory", broker.home().bytes()? as f64 / 1e6, "MB");
        broker.stop()?;
    }
    Ok(())
}
