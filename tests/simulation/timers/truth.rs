//! What must hold: the plain list of what the log says of each record, and everything compared with it.

use super::*;

impl World {
    /// What is read ahead lies where it was stored.
    pub(super) fn came_near(&mut self, near: &[(PublishPlace, WallMs)]) {
        for (place, due) in near {
            let entry = &self.log[usize::try_from(place.position.0 / 4096).expect("small")];
            assert_eq!(entry.header.kind, EntryKind::Payload);
            assert_eq!(place.length, entry.place.length);
            assert_eq!(place.of, entry.header.numbers);
            assert!(place.index < place.of);
            let number = entry.header.first_number.0 + u64::from(place.index);
            // It may be settled or moved by now, though not applied; it never was unknown.
            if let Some(Truth::Waits {
                due: at,
                version: 0,
            }) = self.truth.get(&number)
            {
                assert_eq!(due.0, *at);
            }
            assert!(self.truth.contains_key(&number));
            self.came_near += 1;
        }
    }

    /// An answer is what the log says, at the moment it is given.
    pub(super) fn answered(&mut self, token: Token, answer: TimerAnswer) {
        let Some(number) = self.asked.remove(&token) else {
            return;
        };
        self.answers += 1;
        let truth = self.truth.get(&number.0);
        match answer {
            TimerAnswer::Cancelled => assert_eq!(truth, Some(&Truth::Cancelled)),
            TimerAnswer::AlreadyFired(offset) => assert_eq!(truth, Some(&Truth::Fired(offset))),
            TimerAnswer::Rescheduled(pending) | TimerAnswer::Pending(pending) => {
                let (due, version) = (pending.due.0, pending.version);
                assert_eq!(truth, Some(&Truth::Waits { due, version }));
            }
            TimerAnswer::NotFound => {
                // What it has not applied nobody was told of.
                let unknown = truth.is_none() || number >= self.partition.head().next_number;
                assert!(unknown, "{number}: {truth:?}");
            }
            TimerAnswer::Listed { .. } => {}
        }
    }

    /// The plain list, and what must never be in the log.
    pub(super) fn audit(&mut self, entry: &AppliedEntry) {
        let header = &entry.header;
        match header.kind {
            EntryKind::Payload if header.offsets == 0 => {
                for alarm in alarms_of(entry) {
                    let truth = Truth::Waits {
                        due: alarm.due_ms,
                        version: 0,
                    };
                    self.truth.insert(alarm.token, truth);
                }
            }
            EntryKind::Publish => {
                let Some(Publication::Records(runs)) = Publication::decode(&entry.body) else {
                    panic!()
                };
                let mut offset = header.first_offset;
                for run in runs {
                    for number in run.first_number.0..run.first_number.0 + u64::from(run.count) {
                        let Some(Truth::Waits { due, .. }) =
                            self.truth.insert(number, Truth::Fired(offset))
                        else {
                            panic!("{number} is back from the dead");
                        };
                        assert_eq!(run.due, Some(WallMs(due)), "by the time in force");
                        offset.0 += 1;
                    }
                }
            }
            EntryKind::State => match rmp_serde::from_slice(&entry.body).unwrap() {
                Delta::Dropped(runs) => {
                    for (first, count) in runs {
                        for number in first.0..first.0 + u64::from(count) {
                            let before = self.truth.insert(number, Truth::Cancelled);
                            assert!(matches!(before, Some(Truth::Waits { .. })), "{before:?}");
                        }
                    }
                }
                Delta::Rescheduled {
                    number,
                    version,
                    due,
                } => {
                    let truth = Truth::Waits {
                        due: due.0,
                        version,
                    };
                    let before = self.truth.insert(number.0, truth);
                    assert!(matches!(before, Some(Truth::Waits { .. })), "{before:?}");
                }
                other => panic!("{other:?}"),
            },
            _ => {}
        }
    }

    /// Lets everything come due, and looks at what became of it.
    pub(super) fn finish(&mut self) {
        self.now = self.now.max(START);
        self.look();
        self.run_until(START + 900 * DAY);
        let waiting: Vec<_> = self
            .truth
            .iter()
            .filter(|(_, truth)| matches!(truth, Truth::Waits { .. }))
            .collect();
        assert!(waiting.is_empty(), "lost: {waiting:?}");
        let offsets: BTreeSet<u64> = self
            .truth
            .values()
            .filter_map(|truth| match truth {
                Truth::Fired(offset) => Some(offset.0),
                _ => None,
            })
            .collect();
        let fired = self
            .truth
            .values()
            .filter(|truth| matches!(truth, Truth::Fired(_)))
            .count();
        assert_eq!(offsets.len(), fired, "an offset each");
        // Asked again, everybody hears the same.
        for number in 0..self.next.1 {
            self.ask(number, TimerCommand::Cancel);
        }
        self.quiet();
        assert!(self.asked.is_empty());
    }
}
