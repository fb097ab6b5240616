//! Who is next where many wait for one thing: start-time fair queueing.
//!
//! In: requests of so many bytes, each by somebody with a [`Share`] of his own. Out: a [`Turn`] each;
//! the least one is served next. Time is counted in bytes served: a request begins where its owner's
//! last one ended, but not before now, and now is where the request served last began. So whoever asks
//! seldom begins now, in front of all that is queued by those who ask without end, and those share what
//! there is. (P. Goyal, H. Vin, H. Cheng: "Start-time Fair Queuing", SIGCOMM 1996.)
//!
//! - T1 Requests of one share are served in the order they were made.
//! - T2 A share that has had no more than its part begins now: in front of its request every other share
//!   is served at most one.
//! - T3 Of two shares that both always wait, neither is served more than one largest request ahead.
//!
//! What survives a crash: nothing; whoever waits asks again.

/// What one of those who ask has had so far, in bytes of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Share(u64);

/// A place in the order of service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Turn {
    starts: u64,
    arrival: u64,
}

/// Hands out turns.
#[derive(Debug, Clone, Copy, Default)]
pub struct Turns {
    now: u64,
    arrivals: u64,
}

impl Turns {
    /// The turn of a request.
    pub fn take(&mut self, share: &mut Share, bytes: u64) -> Turn {
        let starts = share.0.max(self.now);
        // A request of nothing would let its share ask without end at one instant.
        share.0 = starts.saturating_add(bytes.max(1));
        let arrival = self.arrivals;
        self.arrivals += 1;
        Turn { starts, arrival }
    }

    /// Whether its share has had no more than its part (T2).
    #[must_use]
    pub fn begins_now(&self, turn: Turn) -> bool {
        turn.starts <= self.now
    }

    /// The request of this turn is being served: it had the least of all turns that wait.
    pub fn serve(&mut self, turn: Turn) {
        self.now = self.now.max(turn.starts);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const BYTES_MAX: u64 = 1000;

    /// Everybody who asks, and what waits.
    struct Queue {
        turns: Turns,
        shares: Vec<Share>,
        waiting: BTreeMap<Turn, (usize, u64)>,
    }

    impl Queue {
        fn of(shares: usize) -> Self {
            Self {
                turns: Turns::default(),
                shares: vec![Share::default(); shares],
                waiting: BTreeMap::new(),
            }
        }

        fn ask(&mut self, who: usize, bytes: u64) -> Turn {
            let turn = self.turns.take(&mut self.shares[who], bytes);
            self.waiting.insert(turn, (who, bytes));
            turn
        }

        fn serve(&mut self) -> Option<(Turn, usize, u64)> {
            let (turn, (who, bytes)) = self.waiting.pop_first()?;
            self.turns.serve(turn);
            Some((turn, who, bytes))
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// T1 and T2, whatever the others ask.
        #[test]
        fn a_request_waits_for_one_of_each_other_share_and_for_its_own_predecessors(
            steps in vec((0usize..4, prop::option::weighted(0.6, 1..=BYTES_MAX)), 1..200),
        ) {
            let mut queue = Queue::of(4);
            let mut order: Vec<Vec<Turn>> = vec![Vec::new(); 4];
            // Of each request that waits: what was served since, by share.
            let mut since: BTreeMap<Turn, [u64; 4]> = BTreeMap::new();
            for (who, step) in steps {
                match step {
                    Some(bytes) => {
                        let alone = queue.waiting.values().all(|(other, _)| *other != who);
                        let turn = queue.ask(who, bytes);
                        order[who].push(turn);
                        if alone && queue.shares[who].0 - bytes <= queue.turns.now {
                            since.insert(turn, [0; 4]);
                        }
                    }
                    None => {
                        let Some((turn, who, _)) = queue.serve() else { continue };
                        prop_assert_eq!(order[who].remove(0), turn, "T1");
                        since.remove(&turn);
                        for served in since.values_mut() {
                            served[who] += 1;
                            prop_assert!(served[who] <= 1, "T2: {:?}", served);
                        }
                    }
                }
            }
        }

        /// T3: each asks again as soon as it is served.
        #[test]
        fn those_who_always_wait_get_the_same(sizes in vec(1..=BYTES_MAX, 3), rounds in 1usize..400) {
            let mut queue = Queue::of(sizes.len());
            let mut served = vec![0u64; sizes.len()];
            for (who, bytes) in sizes.iter().enumerate() {
                // Two each, so that nobody is ever without.
                queue.ask(who, *bytes);
                queue.ask(who, *bytes);
            }
            for _ in 0..rounds {
                let (_, who, bytes) = queue.serve().unwrap();
                served[who] += bytes;
                queue.ask(who, sizes[who]);
                let (least, most) = (served.iter().min().unwrap(), served.iter().max().unwrap());
                prop_assert!(most - least <= BYTES_MAX, "{:?}", served);
            }
        }
    }

    #[test]
    fn who_asks_seldom_begins_in_front_of_a_queue() {
        let mut queue = Queue::of(2);
        for _ in 0..1000 {
            queue.ask(0, BYTES_MAX);
        }
        queue.serve();
        let lone = queue.ask(1, 1);
        assert_eq!(queue.serve().map(|(turn, ..)| turn), Some(lone));
        // A long silence saves nothing up: once it asks as much as the other, it gets as much.
        for _ in 0..1000 {
            queue.ask(1, BYTES_MAX);
        }
        let of_the_second = (0..100)
            .filter_map(|_| queue.serve())
            .filter(|(_, who, _)| *who == 1);
        let count = of_the_second.count();
        assert!((49..=51).contains(&count), "{count}");
    }
}
