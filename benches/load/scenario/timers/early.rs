//! Zero early: counted over everything that this process has seen fire.
//!
//! Every scenario that takes fires counts them here. The last one of `goals timers` fires what is missing to
//! ten million, and says how many were seen and how many of them were early; each came exactly once, or
//! its scenario failed.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{SECOND_MS, STREAMS, Spread, arm_and_take, fresh, now_ms};
use crate::load::report::Samples;
use crate::load::{Bench, Outcome};

/// Fires that have to be seen.
const WANTED: u64 = 10_000_000;
/// Fired at a time.
const AT_ONCE: u64 = 2_000_000;

static SEEN: AtomicU64 = AtomicU64::new(0);
static EARLY: AtomicU64 = AtomicU64::new(0);

/// So many were seen, so many of them early.
pub(super) fn count(seen: u64, early: u64) {
    SEEN.fetch_add(seen, Ordering::Relaxed);
    EARLY.fetch_add(early, Ordering::Relaxed);
}

/// Fires until enough were seen, and says what the whole process has seen.
pub(crate) fn zero_early(bench: &Bench, samples: &mut Samples) -> Outcome<()> {
    samples.note("of all scenarios of this process together, filled up with 100 B records armed all but in due order");
    let wanted = bench.size(WANTED / bench.part, 4_000);
    while let missing = wanted.saturating_sub(SEEN.load(Ordering::Relaxed))
        && missing > 0
    {
        let each = missing.min(AT_ONCE).div_ceil(STREAMS as u64);
        let spread = Spread {
            from_ms: now_ms() + 5 * SECOND_MS,
            window_ms: bench.size(20 * SECOND_MS, SECOND_MS),
            in_order: Some(each),
        };
        let broker = fresh(bench, "early")?;
        arm_and_take(&broker, each, 100, spread)?;
    }
    // One figure of the whole process: the same in every run.
    for _ in 0..bench.runs {
        let (seen, early) = (SEEN.load(Ordering::Relaxed), EARLY.load(Ordering::Relaxed));
        samples.add(
            "fires checked for being early, all scenarios",
            seen as f64,
            "",
        );
        samples.add("early, all scenarios", early as f64, "");
    }
    Ok(())
}
