//! Timers changed while they wait: how fast, and what nine in ten cancelled leave in memory.

use std::thread::sleep;
use std::time::{Duration, Instant};

use futures::future::try_join_all;
use waterwheel::client::{AdminError, PendingTimer, TimerState, Timers};
use waterwheel::domain::time::WallMs;

use super::{HOUR_MS, MEGABYTE, STREAMS, Spread, TOPIC, arm, fresh, now_ms};
use crate::load::broker::Home;
use crate::load::clients::{self, PATIENCE};
use crate::load::crew::muster;
use crate::load::report::Samples;
use crate::load::{Bench, Outcome};

/// Cancellations or modifications on their way per client.
const ASKED_OPEN: usize = 128;

/// What is done to a timer.
#[derive(Debug, Clone, Copy)]
enum Change {
    Cancel,
    /// To another time, by so many milliseconds from then on.
    Move(i64),
}

/// Modified and cancelled one by one by their handles; then most of what waits, and what that leaves in memory.
pub(crate) fn cancel(bench: &Bench, samples: &mut Samples) -> Outcome<()> {
    samples.note("cancel: 100 B values due at random over 24 h; handles as the broker lists them");
    for run in 0..bench.runs {
        let broker = fresh(bench, &format!("cancel-{run}"))?;
        let idle = broker.resident_bytes()? as f64;
        let each = bench.size(250_000, 2_000);
        let spread = Spread::at_random(now_ms() + HOUR_MS, 24 * HOUR_MS);
        arm(broker.home(), each, 100, spread)?;
        let fifth = each * STREAMS as u64 / 5;
        // Earlier by half an hour, later by three days: both to another level.
        for by_ms in [-HOUR_MS / 2, 72 * HOUR_MS] {
            let (moved, took) = change_some(broker.home(), fifth, Change::Move(by_ms))?;
            let rate = moved as f64 / took.as_secs_f64();
            let which = if by_ms < 0 { "earlier" } else { "later" };
            let name = format!("modifications a second, {which}, 1 million waiting");
            samples.add(name, rate, "/s");
        }
        let (cancelled, took) = change_some(broker.home(), fifth, Change::Cancel)?;
        samples.add(
            "cancellations a second, 1 million waiting",
            cancelled as f64 / took.as_secs_f64(),
            "/s",
        );
        let more = bench.size(2_250_000 / bench.part, 2_000);
        arm(broker.home(), more, 100, spread)?;
        let all = (each + more) * STREAMS as u64;
        change_some(broker.home(), all * 9 / 10 - cancelled, Change::Cancel)?;
        sleep(bench.size(Duration::from_secs(10), Duration::from_millis(50)));
        let above = (broker.resident_bytes()? as f64 - idle) / MEGABYTE;
        samples.add("RSS above idle, 9 of 10 million cancelled", above, "MB");
    }
    Ok(())
}

/// Changes the next `most` that wait: how many, in which time. One client lists, all of them ask.
fn change_some(home: &Home, most: u64, change: Change) -> Outcome<(u64, Duration)> {
    let members = muster(1, PATIENCE * 20, |_| async move {
        let clients = try_join_all((0..STREAMS).map(|_| clients::connect(home))).await?;
        let timers: Vec<_> = clients.iter().map(|client| client.timers()).collect();
        let lister = timers.first().ok_or("no client")?;
        let mut list = lister.list(TOPIC).page_size(1_000);
        let (begun, mut changed) = (Instant::now(), 0);
        while changed < most {
            let Some(page) = list.page().await? else {
                break;
            };
            for some in page.timers.chunks(STREAMS * ASKED_OPEN) {
                let asked = some.iter().zip(timers.iter().cycle());
                let asked = asked.map(|(timer, timers)| ask(timers, timer, change));
                for state in try_join_all(asked).await? {
                    let is_done = match change {
                        Change::Cancel => matches!(state, TimerState::Cancelled),
                        Change::Move(_) => matches!(state, TimerState::Rescheduled { .. }),
                    };
                    if !is_done {
                        return Err(format!("a waiting timer was answered {state:?}").into());
                    }
                    changed += 1;
                }
            }
        }
        Ok((changed, begun.elapsed()))
    })?;
    members
        .into_iter()
        .next()
        .ok_or_else(|| "nobody asked".into())
}

async fn ask(
    timers: &Timers,
    timer: &PendingTimer,
    change: Change,
) -> Result<TimerState, AdminError> {
    match change {
        Change::Cancel => timers.cancel(&timer.handle).await,
        Change::Move(by_ms) => {
            let to = WallMs(timer.due_ms + by_ms);
            timers.reschedule_at(&timer.handle, to).await
        }
    }
}
