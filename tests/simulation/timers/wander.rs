//! Whatever a seed happens to do, one thing after another.

use super::*;

fn delivery(rng: &mut Rng) -> Delivery {
    let level = rng.below(4) as u8;
    let (span, tick) = (span_ms(level, WALL_LEVELS), 1_i64 << tick_shift(level));
    let after = match rng.below(8) {
        0 => rng.below(2_000) as i64,
        1 => rng.below(100_000) as i64,
        2 => rng.below(2 * HOUR as u64) as i64,
        3 => rng.below(9 * DAY as u64) as i64,
        // One tick more or less than a level holds.
        4 => span + rng.below(3) as i64 - 1,
        // Exactly on the edge of a slot.
        5 => {
            return Delivery::At(WallMs(
                (START + span + tick) / tick * tick + rng.below(3) as i64 - 1,
            ));
        }
        6 => 365 * DAY,
        _ => rng.below(5_000) as i64,
    };
    Delivery::After(after)
}

fn wander(seed: u64) -> (usize, usize, Vec<Truth>) {
    let mut rng = Rng(seed);
    let mut world = World::new();
    for _ in 0..150 {
        let known = world.next.1.max(1);
        match rng.below(40) {
            0..=7 => {
                let deliveries: Vec<Delivery> =
                    (0..1 + rng.below(6)).map(|_| delivery(&mut rng)).collect();
                world.send(&deliveries);
            }
            8..=10 => world.ask(rng.below(known), TimerCommand::Cancel),
            11..=13 => {
                let to = delivery(&mut rng);
                world.ask(rng.below(known), TimerCommand::Reschedule(to));
            }
            14 => world.ask(rng.below(known), TimerCommand::Look),
            15..=19 => world.flush(1 + rng.below(3) as usize),
            20..=27 => {
                for _ in 0..rng.below(12) {
                    match rng.below(LEVELS as u64 + 2) as usize {
                        level if level < LEVELS => world.handle(level),
                        _ => world.tell(),
                    }
                }
            }
            28 => world.refuse(),
            29..=32 => {
                let span = [300, 5_000, 90_000, 2 * HOUR][rng.below(4) as usize];
                let until = world.now + rng.below(span as u64) as i64;
                world.run_until(until);
            }
            33 => {
                world.now += [HOUR, -HOUR][rng.below(2) as usize];
                world.look();
            }
            34..=36 => world.checkpoint(),
            37 => world.kill(),
            38 => match rng.below(3) {
                0 => world.power_cut(),
                1 => world.rebuild(),
                _ => world.level_fails(rng.below(LEVELS as u64) as usize),
            },
            _ => world.quiet(),
        }
    }
    world.finish();
    (
        world.log.len(),
        world.answers,
        world.truth.into_values().collect(),
    )
}

#[test]
fn timers_are_never_early_never_lost_and_never_back_from_the_dead() {
    let mut answers = 0;
    for seed in 0..250 {
        let outcome = std::panic::catch_unwind(|| wander(seed));
        let Ok(outcome) = outcome else {
            panic!("seed {seed}")
        };
        answers += outcome.1;
    }
    assert!(answers > 2_500, "{answers} answers");
    assert_eq!(wander(7), wander(7), "one seed twice is one run");
}
