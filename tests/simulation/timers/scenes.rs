//! The scenes one by one, so that none depends on what a seed happens to do.

use super::*;

impl World {
    fn fired_at(&self, number: u64) -> Option<i64> {
        let published = |entry: &&AppliedEntry| {
            entry.header.kind == EntryKind::Publish
                && match Publication::decode(&entry.body) {
                    Some(Publication::Records(runs)) => runs.iter().any(|run| {
                        let first = run.first_number.0;
                        (first..first + u64::from(run.count)).contains(&number)
                    }),
                    _ => false,
                }
        };
        let entry = self.log.iter().find(published)?;
        Some(entry.header.wall.0)
    }

    /// Sends and has everything written and told.
    fn store(&mut self, deliveries: &[Delivery]) {
        self.send(deliveries);
        self.quiet();
    }

    fn reschedule(&mut self, number: u64, at: i64) {
        let to = Delivery::At(WallMs(at));
        self.ask(number, TimerCommand::Reschedule(to));
        self.quiet();
    }
}

#[test]
fn a_modified_timer_that_fired_stays_fired_after_a_restart() {
    let mut world = World::new();
    world.send(&[Delivery::After(HOUR)]);
    world.quiet();
    world.ask(0, TimerCommand::Reschedule(Delivery::After(3 * DAY)));
    world.quiet();
    world.ask(0, TimerCommand::Reschedule(Delivery::After(10_000)));
    world.quiet();
    world.checkpoint();
    world.run_until(START + 9_999);
    assert!(matches!(world.truth[&0], Truth::Waits { version: 2, .. }));
    world.run_until(START + 10_000);
    assert_eq!(world.truth[&0], Truth::Fired(Offset(0)));
    world.kill();
    // Past the first due time, and the second.
    world.run_until(START + 4 * DAY);
    world.finish();
    assert_eq!(
        world
            .log
            .iter()
            .filter(|entry| entry.header.kind == EntryKind::Publish)
            .count(),
        1
    );
}

#[test]
fn a_cancelled_timer_is_cancelled_when_it_is_due_and_whoever_asks() {
    let mut world = World::new();
    world.send(&[Delivery::After(2 * HOUR)]);
    world.quiet();
    world.checkpoint();
    world.quiet();
    world.ask(0, TimerCommand::Cancel);
    world.quiet();
    world.kill();
    world.run_until(START + 3 * HOUR);
    let answered = world.answers;
    world.ask(0, TimerCommand::Cancel);
    world.ask(0, TimerCommand::Reschedule(Delivery::After(1)));
    world.quiet();
    assert_eq!(world.answers, answered + 2);
    assert_eq!(world.truth[&0], Truth::Cancelled);
    world.finish();
}

#[test]
fn a_cancel_that_races_the_firing_has_one_outcome() {
    for cancel_first in [true, false] {
        let mut world = World::new();
        world.send(&[Delivery::After(50)]);
        world.quiet();
        world.pass(50);
        if cancel_first {
            world.ask(0, TimerCommand::Cancel);
        }
        world.look();
        while !world.told.is_empty() {
            world.tell();
        }
        // The publication, or the cancellation, is asked for and not on the disk.
        world.ask(0, TimerCommand::Cancel);
        world.quiet();
        let expected = if cancel_first {
            Truth::Cancelled
        } else {
            Truth::Fired(Offset(0))
        };
        assert_eq!(world.truth[&0], expected);
        world.finish();
    }
}

#[test]
fn a_crash_anywhere_inside_a_cascade_or_a_checkpoint_loses_nothing() {
    let (mut in_cascade, mut in_lap) = (0, 0);
    // From where only the coarser level lets its slot fall to where all of them do.
    for before in [70_000, 20_000, 3_500, 500] {
        for stop in 0..60 {
            for cut in [false, true] {
                let mut world = World::new();
                let deliveries: Vec<Delivery> = (0..40)
                    .map(|n| Delivery::After(65_536 * 3 + n * 2_000))
                    .collect();
                world.send(&deliveries);
                world.quiet();
                world.checkpoint();
                world.quiet();
                // Slots fall while another checkpoint is under way.
                world.pass(65_536 * 3 - before);
                world.checkpoint();
                world.look();
                for step in 0..stop {
                    world.handle(step % LEVELS);
                }
                let mail = || world.mail.iter().flatten();
                in_cascade += usize::from(mail().any(|message| {
                    matches!(
                        message,
                        Message::Fall(..) | Message::Landed(_) | Message::Loaded(_)
                    )
                }));
                in_lap += usize::from(mail().any(|message| {
                    matches!(
                        message,
                        Message::Up(..) | Message::Down(..) | Message::Homed
                    )
                }));
                if cut {
                    world.power_cut()
                } else {
                    world.kill()
                }
                world.finish();
            }
        }
    }
    assert!(
        in_cascade > 20 && in_lap > 200,
        "{in_cascade} crashes in a cascade, {in_lap} in a checkpoint"
    );
}

#[test]
fn timers_accepted_while_a_mark_passes_them_are_not_lost() {
    for stop in 0..30 {
        let mut world = World::new();
        world.send(&[Delivery::After(HOUR)]);
        world.flush(1);
        world.checkpoint();
        world.send(&[Delivery::After(HOUR), Delivery::After(DAY)]);
        for step in 0..stop {
            world.handle(step % LEVELS);
            if step == stop / 2 {
                world.flush(1);
                world.tell();
            }
        }
        world.power_cut();
        world.finish();
    }
}

#[test]
fn what_is_due_exactly_on_the_edge_of_a_slot_fires_on_it() {
    for level in 0..WALL_LEVELS {
        let tick = 1_i64 << tick_shift(level);
        // The next edge that lies in reach of this level, from a moment that is no edge.
        let far = START
            + if level == 0 {
                10
            } else {
                span_ms(level - 1, WALL_LEVELS)
            };
        let edge = (far / tick + 2) * tick;
        for restarts in [false, true] {
            let mut world = World::new();
            let around = [edge - 1, edge, edge + 1];
            world.store(&around.map(|at| Delivery::At(WallMs(at))));
            if restarts {
                world.checkpoint();
                world.quiet();
                world.power_cut();
            }
            world.run_until(edge + 10);
            for (number, at) in around.into_iter().enumerate() {
                assert_eq!(world.fired_at(number as u64), Some(at), "level {level}");
            }
            world.finish();
        }
    }
}

#[test]
fn what_is_one_tick_too_far_for_a_level_overflows_and_fires_in_time() {
    for level in 0..WALL_LEVELS - 1 {
        let span = span_ms(level, WALL_LEVELS);
        let tick = 1_i64 << tick_shift(level);
        // How far a level reaches depends on where in its slots the clock stands.
        let beyond: Vec<i64> = (-2..=2).map(|ticks| span + ticks * tick).collect();
        let reached: Vec<u8> = beyond
            .iter()
            .map(|after| level_for(START + after, START, WALL_LEVELS))
            .collect();
        assert!(
            reached.first() == Some(&level) && reached.last() == Some(&(level + 1)),
            "level {level}: {reached:?}"
        );
        for cut in [false, true] {
            let mut world = World::new();
            let deliveries: Vec<Delivery> = beyond.iter().map(|at| Delivery::After(*at)).collect();
            world.store(&deliveries);
            world.checkpoint();
            if cut {
                world.power_cut();
            }
            world.run_until(START + span + 3 * tick);
            for (number, after) in beyond.iter().enumerate() {
                assert_eq!(world.fired_at(number as u64), Some(START + after));
            }
            world.finish();
        }
    }
}

#[test]
fn a_timer_moves_across_levels_earlier_and_later_and_fires_at_the_time_in_force() {
    let distances = [500, 30_000, HOUR, 2 * DAY, 40 * DAY];
    for from in distances {
        for to in distances {
            let mut world = World::new();
            world.store(&[Delivery::After(from)]);
            world.checkpoint();
            world.quiet();
            world.reschedule(0, START + to);
            world.run_until(START + from.min(to) - 1);
            assert_eq!(world.fired_at(0), None, "from {from} to {to}: early");
            if from + to > 2 * HOUR {
                world.kill();
            }
            world.run_until(START + from.max(to) + 10);
            assert_eq!(world.fired_at(0), Some(START + to), "from {from} to {to}");
            world.finish();
        }
    }
}

#[test]
fn a_clock_an_hour_ahead_fires_what_is_due_in_due_order_and_nothing_else() {
    let mut world = World::new();
    let minutes = |n: i64| Delivery::After(n * 60_000);
    world.store(&[
        minutes(59),
        minutes(1),
        minutes(61),
        minutes(30),
        minutes(31),
    ]);
    world.checkpoint();
    world.quiet();
    world.now += HOUR;
    world.look();
    world.quiet();
    let offset = |world: &World, number: u64| match world.truth[&number] {
        Truth::Fired(offset) => Some(offset.0),
        _ => None,
    };
    let offsets: Vec<_> = (0..5).map(|number| offset(&world, number)).collect();
    assert_eq!(offsets, [Some(3), Some(0), None, Some(1), Some(2)]);
    world.run_until(START + 61 * 60_000);
    assert_eq!(world.fired_at(2), Some(START + 61 * 60_000));
    world.finish();
}

#[test]
fn a_clock_an_hour_back_holds_everything_until_it_is_there_again() {
    for restarts in [false, true] {
        let mut world = World::new();
        world.store(&[Delivery::After(2_000), Delivery::After(90 * 60_000)]);
        world.checkpoint();
        world.quiet();
        world.pass(1_000);
        world.now -= HOUR;
        world.look();
        if restarts {
            world.power_cut();
        }
        world.run_until(START + 1_999);
        assert_eq!(world.fired_at(0), None, "the clock says it is not time");
        world.run_until(START + 2_000);
        assert_eq!(world.fired_at(0), Some(START + 2_000));
        world.run_until(START + 90 * 60_000);
        assert_eq!(world.fired_at(1), Some(START + 90 * 60_000));
        world.finish();
    }
}

#[test]
fn a_timer_a_year_ahead_is_on_time_through_restarts_and_clock_steps_on_the_way() {
    let year = 365 * DAY;
    let mut world = World::new();
    let due = [START + year - 1, START + year, START + year + 1];
    world.store(&due.map(|at| Delivery::At(WallMs(at))));
    world.store(&[Delivery::After(year + DAY)]);
    world.ask(3, TimerCommand::Cancel);
    world.quiet();
    for month in 1..12 {
        world.checkpoint();
        world.quiet();
        match month % 4 {
            0 => world.power_cut(),
            1 => world.kill(),
            2 => world.rebuild(),
            _ => world.level_fails(month % LEVELS),
        }
        world.run_until(START + month as i64 * 30 * DAY);
        world.now += if month % 2 == 0 { HOUR } else { -HOUR };
        world.look();
        world.quiet();
    }
    world.run_until(START + year + 2);
    for (number, at) in due.into_iter().enumerate() {
        assert_eq!(world.fired_at(number as u64), Some(at));
    }
    assert_eq!(world.truth[&3], Truth::Cancelled);
    world.finish();
}
