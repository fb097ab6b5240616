//! The same with a sorted set and polling: members by the time they are due, taken out when it has come.
//!
//! As many connections as the broker has producers, a set each, so many members a command as the broker is
//! sent records a batch, as many commands on their way. The server syncs before it answers, as the broker
//! does. What it is asked for is less: one copy of a value, no order of what fired, no history.

use std::path::Path;
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use crate::load::clients::PATIENCE;
use crate::load::latency::Latencies;
use crate::load::redis::{Answer, Line, Server, installed};
use crate::load::report::Samples;
use crate::load::{Bench, Outcome};

use super::{HOUR_MS, MEGABYTE, RUN, RUNS_OPEN, SECOND_MS, STREAMS, Spread, now_ms, now_us, value};

/// Accepting is given up after so long: what was accepted by then is what is told.
const ACCEPT_WITHIN: Duration = Duration::from_secs(60);
/// How long a poller that found nothing waits.
const POLL_EVERY: Duration = Duration::from_millis(1);
/// What a poller takes at a time.
const PAGE: &[u8] = b"1000";
/// As of the broker's records.
const VALUE_BYTES: usize = 100;

/// Puts it beside the broker, or says why not.
pub(super) fn compare(bench: &Bench, run: usize, samples: &mut Samples) -> Outcome<()> {
    let Some(program) = installed() else {
        samples.note("a Redis sorted set with polling: not measured, no redis-server is installed");
        return Ok(());
    };
    samples.note(format!(
        "Redis: a sorted set per connection, appendfsync always, {STREAMS} connections, {RUN} members a ZADD, {RUNS_OPEN} on their way; at most {} s; then polled every {} ms by one poller a set, in hand when ZRANGEBYSCORE names it",
        ACCEPT_WITHIN.as_secs(),
        POLL_EVERY.as_millis()
    ));
    accepted(bench, &program, run, samples)?;
    polled(bench, &program, run, samples)
}

fn server(bench: &Bench, program: &Path, name: &str) -> Outcome<Server> {
    Server::start(program, &bench.dir.join(name))
}

fn accepted(bench: &Bench, program: &Path, run: usize, samples: &mut Samples) -> Outcome<()> {
    let server = server(bench, program, &format!("redis-accept-{run}"))?;
    let idle = server.resident_bytes()? as f64;
    let each = bench.size(2_500_000, 5_000);
    let spread = Spread::at_random(now_ms() + HOUR_MS, 24 * HOUR_MS);
    let (taken, rate) = fill(&server, each, spread)?;
    samples.add("Redis: timers accepted a second", rate, "/s");
    samples.add("Redis: timers accepted", taken as f64, "");
    let above = server.resident_bytes()? as f64 - idle;
    samples.add("Redis: RSS above idle, all waiting", above / MEGABYTE, "MB");
    samples.add(
        "Redis: RSS above idle, a million waiting",
        above / taken.max(1) as f64,
        "MB",
    );
    Ok(())
}

fn polled(bench: &Bench, program: &Path, run: usize, samples: &mut Samples) -> Outcome<()> {
    let server = server(bench, program, &format!("redis-poll-{run}"))?;
    let each = bench.size(20_000 * 20, 2_000) / STREAMS as u64;
    // Armed before the first is due, as long as that takes.
    let spread = Spread::at_random(
        now_ms() + bench.size(30 * SECOND_MS, 3 * SECOND_MS),
        bench.size(20 * SECOND_MS, SECOND_MS),
    );
    let (taken, _) = fill(&server, each, spread)?;
    if taken < each * STREAMS as u64 || now_ms() >= spread.from_ms {
        samples.note("Redis: not all was accepted before the first was due: lateness not measured");
        return Ok(());
    }
    let lateness = take(&server, each, spread)?;
    let name = "Redis polled, 20000 fires/s: lateness";
    samples.add(format!("{name} p50"), lateness.p50_us() / 1e3, "ms");
    samples.add(format!("{name} p99"), lateness.p99_us() / 1e3, "ms");
    Ok(())
}

fn key(stream: usize) -> Vec<u8> {
    format!("timers-{stream}").into_bytes()
}

/// Adds `each` members to each set, or what is accepted in time: how many, and how many a second.
fn fill(server: &Server, each: u64, spread: Spread) -> Outcome<(u64, f64)> {
    let begun = Instant::now();
    let taken = on_each_set(|stream| {
        let mut line = server.connect()?;
        let (mut sent, mut open) = (0, 0);
        while sent < each && begun.elapsed() < ACCEPT_WITHIN {
            let run = RUN.min(each - sent);
            add(&mut line, stream, sent..sent + run, spread)?;
            (sent, open) = (sent + run, open + 1);
            if open > RUNS_OPEN {
                added(&mut line)?;
                open -= 1;
            }
        }
        for _ in 0..open {
            added(&mut line)?;
        }
        Ok(sent)
    })?;
    let taken = taken.into_iter().sum::<u64>();
    Ok((taken, taken as f64 / begun.elapsed().as_secs_f64()))
}

fn add(line: &mut Line, stream: usize, run: std::ops::Range<u64>, spread: Spread) -> Outcome<()> {
    let mut words = vec![b"ZADD".to_vec(), key(stream)];
    for number in run {
        words.push(spread.due(stream, number).to_string().into_bytes());
        words.push(value(number, VALUE_BYTES).to_vec());
    }
    let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
    line.send(&words)
}

fn added(line: &mut Line) -> Outcome<()> {
    let answer = line.answer()?;
    match answer {
        Answer::Number(1..) => Ok(()),
        Answer::Number(_) | Answer::Word(_) | Answer::Bytes(_) | Answer::List(_) => {
            Err(format!("ZADD was answered {answer:?}").into())
        }
    }
}

/// Polls until each set has given `each` members, none before its time.
fn take(server: &Server, each: u64, spread: Spread) -> Outcome<Latencies> {
    let begun = Instant::now();
    let members = on_each_set(|stream| {
        let mut line = server.connect()?;
        let (mut lateness, key) = (Latencies::new()?, key(stream));
        while lateness.len() < each {
            if begun.elapsed() > PATIENCE * 3 {
                return Err("what is due in the sorted set did not come in time".into());
            }
            let until = now_ms().to_string();
            let words: [&[u8]; 7] = [
                b"ZRANGEBYSCORE",
                &key,
                b"-inf",
                until.as_bytes(),
                b"LIMIT",
                b"0",
                PAGE,
            ];
            line.send(&words)?;
            let Answer::List(found) = line.answer()? else {
                return Err("ZRANGEBYSCORE was not answered with a list".into());
            };
            if found.is_empty() {
                sleep(POLL_EVERY);
                continue;
            }
            let mut gone = vec![b"ZREM".as_slice(), &key];
            let now = now_us();
            for member in &found {
                let Answer::Bytes(Some(member)) = member else {
                    return Err("a member of the sorted set is no bytes".into());
                };
                let number = member.first_chunk().ok_or("a member is cut short")?;
                let late_us = now - spread.due(stream, u64::from_le_bytes(*number)) * 1_000;
                lateness.record(Duration::from_micros(late_us.max(0).unsigned_abs()));
                gone.push(member);
            }
            line.send(&gone)?;
            line.answer()?;
        }
        Ok(lateness)
    })?;
    let mut all = Latencies::new()?;
    for member in members {
        all.merge(&member)?;
    }
    Ok(all)
}

/// Does the same for every set at the same time.
fn on_each_set<T: Send>(work: impl Fn(usize) -> Outcome<T> + Sync) -> Outcome<Vec<T>> {
    let work = &work;
    scope(|scope| {
        let hands: Vec<_> = (0..STREAMS)
            .map(|stream| scope.spawn(move || work(stream)))
            .collect();
        let hands = hands.into_iter();
        let done = hands.map(|hand| hand.join().map_err(|_| "a connection panicked")?);
        done.collect()
    })
}
