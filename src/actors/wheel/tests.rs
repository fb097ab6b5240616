//! The levels as actors in a broker, with a wall clock that is moved, and owners that only listen.

use std::sync::atomic::AtomicI64;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;
use crate::actors::checkpoint::Pressure;
use crate::actors::stats::ActorStatus;
use crate::actors::{Clock, House};
use crate::broker::Broker;
use crate::config::Config;

const HOUR: i64 = 3_600_000;
/// Owners that no topic has.
const A: OwnerId = OwnerId(1 << 40);
const B: OwnerId = OwnerId((1 << 40) + 1);

struct Rig {
    dir: TempDir,
    moved: &'static AtomicI64,
    broker: Option<Broker>,
}

fn run<F: Future<Output = ()> + 'static>(test: F) {
    actix_rt::System::new().block_on(async {
        tokio::time::timeout(Duration::from_secs(30), test)
            .await
            .expect("the test hangs");
    });
}

impl Rig {
    async fn start() -> Self {
        let mut rig = Self {
            dir: tempfile::tempdir().unwrap(),
            moved: Box::leak(Box::default()),
            broker: None,
        };
        rig.raise().await;
        rig
    }

    async fn raise(&mut self) {
        let config = Config {
            data: self.dir.path().to_path_buf(),
            listen: None,
            arbiters: 1,
            memory_bytes: 256 << 20,
            admission_bytes: 64 << 20,
            tail_cache_bytes: 16 << 20,
            views_cache_bytes: 4 << 20,
            segment_bytes: 2 << 20,
            flush_bytes_max: 512 << 10,
            batch_bytes_max: 256 << 10,
            checkpoint_bytes: 64 << 20,
            checkpoint_ms: 3_600_000,
            ..Config::default()
        };
        self.broker = Some(
            Broker::start_by(config, Clock::moved_by(self.moved))
                .await
                .unwrap(),
        );
    }

    fn house(&self) -> House {
        self.broker.as_ref().unwrap().shared().house.clone()
    }

    fn wheel(&self) -> Wheel {
        self.house().wheel
    }

    fn now(&self) -> i64 {
        self.house().clock.now().wall.0
    }

    fn step(&self, by: i64) {
        self.moved.fetch_add(by, Ordering::SeqCst);
        self.wheel().clock_set();
    }

    fn levels(&self) -> Vec<ActorStatus> {
        let all = self.house().registry.snapshot();
        all.into_iter()
            .filter(|status| status.kind == "wheel" && status.id < OwnerId::wheel_level(8))
            .collect()
    }

    /// Waits until the levels show what is wanted.
    async fn until(&self, wanted: impl Fn(&[ActorStatus]) -> bool) {
        while !wanted(&self.levels()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// A round of the checkpoint, until every level's homes are written and marked.
    async fn checkpoint(&self) {
        let marked = |rig: &Self| rig.house().store.stats.snapshot().handled;
        let before = marked(self);
        self.house().checkpoint.tell(Pressure { due: true });
        // Every level's homes, and the mark.
        while marked(self) < before + u64::from(WALL_LEVELS) + 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

struct Owner {
    id: OwnerId,
    clock: AlarmClock,
    wheel: Wheel,
    heard: UnboundedReceiver<AlarmEvent>,
    next: u64,
}

impl Owner {
    fn new(rig: &Rig, id: OwnerId) -> Self {
        let (tell, heard) = unbounded_channel();
        rig.wheel().listen(id, Ear::Test(tell));
        Self {
            id,
            clock: AlarmClock::Wall,
            wheel: rig.wheel(),
            heard,
            next: 0,
        }
    }

    fn arm(&mut self, due_ms: i64) -> Alarm {
        self.next += 1;
        let alarm = Alarm {
            due_ms,
            owner: self.id,
            token: self.next,
            version: 0,
        };
        let arm = Arm {
            owner: self.id,
            alarms: vec![alarm],
            position: LogPosition(0),
        };
        self.wheel.arm(self.clock, arm);
        alarm
    }

    async fn hear(&mut self) -> AlarmEvent {
        self.heard.recv().await.unwrap()
    }

    /// The next that are due, returned as settled.
    async fn due(&mut self) -> Vec<Alarm> {
        loop {
            if let AlarmEvent::Due {
                clock,
                batch,
                alarms,
            } = self.hear().await
            {
                assert_eq!(clock, self.clock);
                self.wheel.returned(
                    clock,
                    Returned {
                        owner: self.id,
                        batch,
                        again_ms: None,
                    },
                );
                return alarms;
            }
        }
    }

    /// Hears that everything it armed is taken, and nothing else.
    async fn taken(&mut self, count: usize) {
        let mut taken = 0;
        while taken < count {
            let heard = self.hear().await;
            let AlarmEvent::Armed { count, .. } = heard else {
                panic!("{heard:?}");
            };
            taken += count;
        }
    }
}

#[test]
fn w1_alarms_come_on_both_clocks_in_their_order_and_never_early() {
    run(async {
        let rig = Rig::start().await;
        for clock in AlarmClock::ALL {
            let mut owner = Owner::new(&rig, A);
            owner.clock = clock;
            let read = |rig: &Rig| match clock {
                AlarmClock::Wall => rig.now(),
                AlarmClock::Monotonic => rig.house().clock.now().monotonic.0 as i64,
            };
            let now = read(&rig);
            for after in [40, 7, 120, -5, 0, 41, 40] {
                owner.arm(now + after);
            }
            let mut heard = Vec::new();
            while heard.len() < 7 {
                let due = owner.due().await;
                assert!(due.iter().all(|alarm| alarm.due_ms <= read(&rig)), "early");
                heard.extend(due.into_iter().map(|alarm| alarm.due_ms - now));
            }
            heard.sort_unstable_by_key(|due| (*due).max(0));
            assert_eq!(
                heard.iter().map(|due| (*due).max(0)).collect::<Vec<_>>(),
                [0, 0, 7, 40, 40, 41, 120]
            );
        }
    });
}

#[test]
fn an_hour_ahead_overflows_sleeps_and_cascades_and_a_step_back_holds() {
    run(async {
        let rig = Rig::start().await;
        let mut owner = Owner::new(&rig, A);
        let due = rig.now() + HOUR;
        let alarm = owner.arm(due);
        owner.taken(1).await;
        rig.until(|levels| levels[2].handled > 0).await;
        let over: Vec<u64> = rig.levels().iter().map(|level| level.overflow_up).collect();
        assert_eq!(over, [1, 1, 0, 0, 0]);
        rig.step(HOUR - 2_000);
        // Near is told when it falls into the finest level.
        let heard = owner.hear().await;
        assert!(matches!(&heard, AlarmEvent::Near { alarms } if alarms[..] == [alarm]));
        let down: Vec<u64> = rig
            .levels()
            .iter()
            .map(|level| level.cascade_down)
            .collect();
        assert_eq!(down, [0, 1, 1, 0, 0]);
        rig.step(-HOUR);
        rig.until(|levels| levels[0].handled > 5).await;
        assert!(owner.heard.try_recv().is_err(), "held");
        rig.step(HOUR + 2_000);
        assert_eq!(owner.due().await, [alarm]);
        assert!(rig.now() >= due);
        let wakes: u64 = rig.levels().iter().map(|level| level.wake_ups).sum();
        assert!(wakes <= 10, "{wakes} wake-ups");
    });
}

#[test]
fn w2_alarms_that_have_homes_come_after_a_restart_and_after_levels_failed() {
    run(async {
        let mut rig = Rig::start().await;
        let mut owner = Owner::new(&rig, A);
        let now = rig.now();
        let afters = [3_000, 60_000, HOUR, 24 * HOUR, 30 * 24 * HOUR];
        let alarms: Vec<Alarm> = afters.iter().map(|after| owner.arm(now + after)).collect();
        owner.taken(5).await;
        rig.checkpoint().await;
        for level in 0..WALL_LEVELS {
            rig.wheel().fail(AlarmClock::Wall, level);
            rig.until(|levels| levels[usize::from(level)].restarts == 1)
                .await;
            while !matches!(owner.hear().await, AlarmEvent::Began { .. }) {}
        }
        let mut heard = Vec::new();
        for after in &afters[..3] {
            rig.step(now + after - rig.now());
            heard.extend(owner.due().await);
        }
        drop(rig.broker.take());
        rig.raise().await;
        let mut owner = Owner::new(&rig, A);
        for after in &afters[3..] {
            rig.step(now + after - rig.now());
            // What was returned behind the last mark may be said once more.
            while heard.last().is_none_or(|alarm| alarm.due_ms < now + after) {
                heard.extend(owner.due().await);
            }
        }
        heard.sort_unstable();
        heard.dedup();
        assert_eq!(heard, alarms);
    });
}

#[test]
fn w5_a_step_of_a_day_says_what_is_due_in_order_and_new_alarms_in_between() {
    run(async {
        let rig = Rig::start().await;
        let (mut backlog, mut fresh) = (Owner::new(&rig, A), Owner::new(&rig, B));
        let now = rig.now();
        let mut alarms: Vec<Alarm> = (0..50_000)
            .map(|token| Alarm {
                due_ms: now + 60_000 + (token * 7_919) % (20 * HOUR),
                owner: A,
                token: token.unsigned_abs(),
                version: 0,
            })
            .collect();
        rig.wheel().arm(
            AlarmClock::Wall,
            Arm {
                owner: A,
                alarms: alarms.clone(),
                position: LogPosition(0),
            },
        );
        backlog.taken(50_000).await;
        rig.checkpoint().await;
        rig.step(24 * HOUR);
        fresh.arm(rig.now() + 1);
        fresh.due().await;
        let mut heard = Vec::new();
        while heard.len() < alarms.len() {
            heard.extend(backlog.due().await);
        }
        assert!(heard.is_sorted_by_key(|alarm| alarm.due_ms));
        heard.sort_unstable();
        alarms.sort_unstable();
        assert_eq!(heard, alarms);
    });
}

#[test]
fn an_owner_that_is_gone_is_forgotten_and_one_that_begins_again_is_told_again() {
    run(async {
        let rig = Rig::start().await;
        let mut owner = Owner::new(&rig, A);
        let alarm = owner.arm(rig.now());
        let AlarmEvent::Armed { .. } = owner.hear().await else {
            panic!()
        };
        let AlarmEvent::Due { alarms, .. } = owner.hear().await else {
            panic!()
        };
        assert_eq!(alarms, [alarm]);
        // Another life, which was told nothing.
        let mut owner = Owner::new(&rig, A);
        assert_eq!(owner.due().await, [alarm]);
        // Nobody owns B: it is looked for, not found, and its alarm dropped.
        let arm = Arm {
            owner: B,
            alarms: vec![Alarm { owner: B, ..alarm }],
            position: LogPosition(0),
        };
        rig.wheel().arm(AlarmClock::Wall, arm);
        rig.until(|levels| levels[0].mailbox_depth == 0 && levels[0].handled >= 5)
            .await;
        let mut nobody = Owner::new(&rig, B);
        nobody.arm(rig.now());
        assert_eq!(nobody.due().await[0].token, 1);
    });
}

#[test]
fn what_has_no_home_on_the_monotonic_clock_is_armed_again_by_its_owners() {
    run(async {
        let rig = Rig::start().await;
        let mut owner = Owner::new(&rig, A);
        owner.clock = AlarmClock::Monotonic;
        let due = rig.house().clock.now().monotonic.0 as i64 + 30;
        owner.arm(due);
        rig.wheel().fail(AlarmClock::Monotonic, 0);
        while !matches!(
            owner.hear().await,
            AlarmEvent::Began {
                clock: AlarmClock::Monotonic
            }
        ) {}
        owner.arm(due);
        assert_eq!(owner.due().await[0].due_ms, due);
    });
}
