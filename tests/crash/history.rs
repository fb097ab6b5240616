//! What clients of transactions saw, and whether it can have happened.
//!
//! In: every transaction with what it wrote and what its producer was told, decisions as observers saw them,
//! and reads. Out: every contradiction, by kind. The checker knows nothing of the broker: it is what Jepsen
//! looks for in systems of this kind. Each kind is planted in a test at the foot of this file, and found.

use std::collections::{BTreeMap, BTreeSet};

/// A level of a topic's partition: what has offsets and an order of its own.
pub(crate) type Place = (String, u32, u8);

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decided {
    /// All of it.
    Commit,
    /// None of it.
    Rollback,
}

/// One transaction as its producer knows it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Written {
    /// What it wrote, in the order it did.
    pub(crate) values: Vec<(Place, String)>,
    /// What the producer was told; nothing where the answer was lost.
    pub(crate) told: Option<Decided>,
}

/// One read of a partition: values by offset.
#[derive(Debug, Clone)]
pub(crate) struct Read {
    pub(crate) place: Place,
    pub(crate) values: BTreeMap<u64, String>,
}

/// Everything that was seen. Transactions have numbers.
#[derive(Debug, Clone, Default)]
pub(crate) struct History {
    pub(crate) transactions: BTreeMap<u64, Written>,
    /// Decisions, whoever asked for them and whenever.
    pub(crate) observed: Vec<(u64, Decided)>,
    /// Reads while things went on.
    pub(crate) reads: Vec<Read>,
    /// Every partition, read after everything was decided.
    pub(crate) last: Vec<Read>,
}

/// What cannot have happened.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Anomaly {
    /// A value of a transaction that was rolled back, or that nobody wrote, was read.
    AbortedRead(String),
    /// A committed value is not there.
    LostWrite(String),
    /// Some of a transaction is there, and some is not.
    Torn(u64),
    /// A value is there twice.
    Duplicate(String),
    /// Two were told different decisions, or one that is not what is there.
    Diverging(u64),
    /// An offset was read with two values, or was gone later.
    Changed(Place, u64),
    /// Two values of one transaction and partition are in the wrong order.
    Reordered(u64),
}

/// Every contradiction, each once, by kind.
pub(crate) fn check(history: &History) -> Vec<Anomaly> {
    let mut found = BTreeSet::new();
    let mut places: BTreeMap<&str, Vec<(&Place, u64)>> = BTreeMap::new();
    for read in &history.last {
        for (offset, value) in &read.values {
            places
                .entry(value)
                .or_default()
                .push((&read.place, *offset));
        }
    }
    let mut writer: BTreeMap<&str, u64> = BTreeMap::new();
    for (number, written) in &history.transactions {
        writer.extend(
            written
                .values
                .iter()
                .map(|(_, value)| (value.as_str(), *number)),
        );
    }
    for (value, at) in &places {
        if at.len() > 1 {
            found.insert(Anomaly::Duplicate((*value).to_owned()));
        }
        if !writer.contains_key(value) {
            found.insert(Anomaly::AbortedRead((*value).to_owned()));
        }
    }
    for (number, written) in &history.transactions {
        check_transaction(*number, written, history, &places, &mut found);
    }
    check_reads(history, &writer, &mut found);
    found.into_iter().collect()
}

fn check_transaction(
    number: u64,
    written: &Written,
    history: &History,
    places: &BTreeMap<&str, Vec<(&Place, u64)>>,
    found: &mut BTreeSet<Anomaly>,
) {
    let told: Vec<Decided> = written
        .told
        .into_iter()
        .chain(
            history
                .observed
                .iter()
                .filter(|(of, _)| *of == number)
                .map(|(_, how)| *how),
        )
        .collect();
    let (committed, rolled_back) = (
        told.contains(&Decided::Commit),
        told.contains(&Decided::Rollback),
    );
    if committed && rolled_back {
        found.insert(Anomaly::Diverging(number));
    }
    let is_there = |(place, value): &(Place, String)| {
        let mut at = places.get(value.as_str()).into_iter().flatten();
        at.any(|(there, _)| *there == place)
    };
    let there = written.values.iter().filter(|one| is_there(one)).count();
    if there > 0 && there < written.values.len() {
        found.insert(Anomaly::Torn(number));
    }
    for one in &written.values {
        if committed && !is_there(one) {
            found.insert(Anomaly::LostWrite(one.1.clone()));
        }
        if rolled_back && is_there(one) {
            found.insert(Anomaly::AbortedRead(one.1.clone()));
        }
    }
    let mut last: BTreeMap<&Place, u64> = BTreeMap::new();
    for (place, value) in &written.values {
        let at = places.get(value.as_str()).and_then(|at| at.first());
        if let Some((_, offset)) = at
            && last
                .insert(place, *offset)
                .is_some_and(|before| before > *offset)
        {
            found.insert(Anomaly::Reordered(number));
        }
    }
}

/// What was read while things went on must be what is there in the end, and of nothing rolled back.
fn check_reads(history: &History, writer: &BTreeMap<&str, u64>, found: &mut BTreeSet<Anomaly>) {
    let last: BTreeMap<&Place, &Read> = history
        .last
        .iter()
        .map(|read| (&read.place, read))
        .collect();
    let rolled_back: BTreeSet<u64> = history
        .observed
        .iter()
        .map(|(number, how)| (*number, Some(*how)))
        .chain(
            history
                .transactions
                .iter()
                .map(|(number, written)| (*number, written.told)),
        )
        .filter(|(_, how)| *how == Some(Decided::Rollback))
        .map(|(number, _)| number)
        .collect();
    for read in &history.reads {
        for (offset, value) in &read.values {
            let of = writer.get(value.as_str());
            if of.is_none_or(|number| rolled_back.contains(number)) {
                found.insert(Anomaly::AbortedRead(value.clone()));
            }
            let later = last
                .get(&read.place)
                .and_then(|read| read.values.get(offset));
            if later != Some(value) {
                found.insert(Anomaly::Changed(read.place.clone(), *offset));
            }
        }
    }
}

/// A history in which nothing is wrong: five transactions, one of them rolled back, one nobody knows of.
fn sound() -> History {
    let place = |partition| ("kept".to_owned(), partition, 0);
    let mut history = History::default();
    let mut reads = [BTreeMap::new(), BTreeMap::new()];
    for number in 0..5 {
        let told = match number {
            2 => Some(Decided::Rollback),
            4 => None,
            _ => Some(Decided::Commit),
        };
        let values: Vec<(Place, String)> = [0, 1, 0]
            .iter()
            .enumerate()
            .map(|(at, partition)| (place(*partition), format!("{number}:{at}")))
            .collect();
        if told != Some(Decided::Rollback) {
            for ((_, partition, _), value) in &values {
                let read: &mut BTreeMap<u64, String> = &mut reads[*partition as usize];
                read.insert(read.len() as u64, value.clone());
            }
        }
        history
            .transactions
            .insert(number, Written { values, told });
    }
    history.observed = vec![
        (0, Decided::Commit),
        (2, Decided::Rollback),
        (4, Decided::Commit),
    ];
    for (partition, values) in (0..).zip(reads) {
        let early = values
            .iter()
            .take(2)
            .map(|(at, value)| (*at, value.clone()));
        history.reads.push(Read {
            place: place(partition),
            values: early.collect(),
        });
        history.last.push(Read {
            place: place(partition),
            values,
        });
    }
    history
}

#[test]
fn a_sound_history_has_nothing_wrong() {
    assert_eq!(check(&sound()), []);
}

#[test]
fn a_planted_bug_of_each_kind_is_found() {
    let kept = ("kept".to_owned(), 0, 0);
    let plant = |bug: fn(&mut History)| {
        let mut history = sound();
        bug(&mut history);
        check(&history)
    };
    let aborted = plant(|history| {
        history.last[0].values.insert(90, "2:0".into());
        history.last[1].values.insert(90, "2:1".into());
        history.last[0].values.insert(91, "2:2".into());
    });
    assert!(
        aborted.contains(&Anomaly::AbortedRead("2:1".into())),
        "{aborted:?}"
    );
    let early = plant(|history| {
        history.reads[1].values.insert(90, "2:1".into());
    });
    assert!(
        early.contains(&Anomaly::AbortedRead("2:1".into())),
        "{early:?}"
    );
    let invented = plant(|history| {
        history.last[0].values.insert(90, "never written".into());
    });
    assert_eq!(invented, [Anomaly::AbortedRead("never written".into())]);
    let lost = plant(|history| {
        for read in &mut history.last {
            read.values.retain(|_, value| !value.starts_with("3:"));
        }
    });
    assert!(lost.contains(&Anomaly::LostWrite("3:1".into())), "{lost:?}");
    let torn = plant(|history| {
        history.last[1].values.retain(|_, value| value != "4:1");
    });
    assert!(torn.contains(&Anomaly::Torn(4)), "{torn:?}");
    let twice = plant(|history| {
        history.last[0].values.insert(90, "0:0".into());
    });
    assert_eq!(twice, [Anomaly::Duplicate("0:0".into())]);
    let diverging = plant(|history| history.observed.push((0, Decided::Rollback)));
    assert!(diverging.contains(&Anomaly::Diverging(0)), "{diverging:?}");
    let changed = plant(|history| {
        history.reads[0].values.insert(0, "1:0".into());
    });
    assert_eq!(changed, [Anomaly::Changed(kept, 0)]);
    let reordered = plant(|history| {
        let values = &mut history.last[0].values;
        let (first, second) = (values[&0].clone(), values[&1].clone());
        values.extend([(0, second), (1, first)]);
        history.reads.clear();
    });
    assert_eq!(reordered, [Anomaly::Reordered(0)]);
}
