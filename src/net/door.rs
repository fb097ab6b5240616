//! Who is let in when: handshakes spaced out beside those who are being served, and those who misbehaved.
//!
//! A handshake costs hundreds of times what a record does. A thousand of them at once would stand in
//! front of everybody's next record, and a client that comes back after each refusal would have the
//! broker do nothing else.
//!
//! - D1 While somebody is being served, one connection per arbiter and millisecond is let in; the others
//!   wait in the endpoint. While nobody is, one comes behind the other.
//! - D2 An address whose connections were closed for what they sent is let in once per pause, which
//!   doubles with each offence from [`PAUSE_MIN`] to [`PAUSE_MAX`]. [`FORGIVEN`] after the last one the
//!   address is like any other. Connections it has are not touched.
//! - D3 Many share an address: the clients of one machine, whoever is behind one router. Of those who wait
//!   for a turn a socket none of whose connections offended comes before one that did. Among equals it is now
//!   the newest, because the newest attempt of a client is the one it still wants, now the oldest, because an
//!   offender may have a new socket each time.
//! - D4 What is remembered is bounded: [`ADDRESSES_MAX`] addresses with [`SOCKETS_MAX`] sockets each, and
//!   [`HELD_MAX`] connections that wait, [`HELD_PER_ADDRESS`] of one address. Beyond that the oldest is refused,
//!   of a socket that offended if there is one, and so is one that waited for [`HELD_FOR`]: its client is
//!   told to try again.
//! - D5 A turn somebody waits for comes when it was to come, whatever offences are added meanwhile.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

/// The pause after a first offence.
pub(super) const PAUSE_MIN: Duration = Duration::from_millis(4);
/// The longest pause. A handshake keeps both cores of a small machine for some milliseconds: four in a second
/// are more than one in a hundred of those who are served would notice (`benches/README.md`).
pub(super) const PAUSE_MAX: Duration = Duration::from_millis(2_048);
/// So long after its last offence an address is forgiven.
const FORGIVEN: Duration = Duration::from_secs(10);
/// Addresses whose offences are remembered.
const ADDRESSES_MAX: usize = 1024;
/// Sockets of an address whose offences are told apart from those of its others.
const SOCKETS_MAX: usize = 8;
/// Connections that wait for a turn of their address.
const HELD_MAX: usize = 256;
/// Connections of one address that wait.
const HELD_PER_ADDRESS: usize = 32;
/// How long one of them waits at most: hardly a client gives an attempt longer.
const HELD_FOR: Duration = Duration::from_secs(5);

/// What is remembered of an address.
#[derive(Debug)]
struct Record {
    pause: Duration,
    last: Instant,
    /// When the next connection of it may come in.
    next: Instant,
    /// The ports its offences came from lately.
    ports: VecDeque<u16>,
    /// Who waits for a turn, in the order they came.
    waiting: Vec<Waiting>,
    /// Turns so far.
    turns: u64,
}

impl Record {
    fn is_forgiven(&self, now: Instant) -> bool {
        now.duration_since(self.last) >= FORGIVEN
    }

    /// Those who wait whose sockets did nothing wrong, or all if there are none of those.
    fn best(&self) -> impl DoubleEndedIterator<Item = usize> {
        let clean = |waiting: &Waiting| !self.ports.contains(&waiting.port);
        let any_clean = self.waiting.iter().any(clean);
        let all = self.waiting.iter().enumerate();
        all.filter(move |(_, waiting)| !any_clean || clean(waiting))
            .map(|(at, _)| at)
    }

    /// Whose turn it is (D3).
    fn first(&self) -> Option<usize> {
        match self.turns.is_multiple_of(2) {
            true => self.best().next_back(),
            false => self.best().next(),
        }
    }

    /// Who goes where there are too many (D4).
    fn last(&self) -> Option<usize> {
        let offended = |waiting: &Waiting| self.ports.contains(&waiting.port);
        let offender = self.waiting.iter().position(offended);
        offender.or((!self.waiting.is_empty()).then_some(0))
    }

    fn take(&mut self, at: usize) -> Ticket {
        self.waiting.remove(at).ticket
    }
}

/// A connection that waits for a turn of its address.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    ticket: Ticket,
    port: u16,
    since: Instant,
}

/// Names a connection that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Ticket(u64);

/// The offences of addresses, and who waits because of them.
#[derive(Debug, Default)]
pub(super) struct Door {
    records: HashMap<IpAddr, Record>,
    held: usize,
    tickets: u64,
}

/// What to do with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    /// It comes in.
    Now,
    /// It waits.
    Waits {
        /// What it is called by.
        ticket: Ticket,
        /// The first of its address to wait: somebody has to call [`Door::turn`] after so long.
        begins: Option<Duration>,
        /// Who is refused in its place.
        refused: Option<Ticket>,
    },
    /// There is no room to let it wait.
    Refused,
}

/// What happens at a turn of an address.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Turn {
    /// Who comes in.
    pub(super) enter: Option<Ticket>,
    /// Who has waited for too long.
    pub(super) refused: Vec<Ticket>,
    /// After how long the next turn is; none where nobody waits any more.
    pub(super) next: Option<Duration>,
}

impl Door {
    /// A connection was closed for what it sent.
    pub(super) fn offended(&mut self, remote: SocketAddr, now: Instant) {
        let address = household(remote.ip());
        if self.records.len() >= ADDRESSES_MAX && !self.records.contains_key(&address) {
            self.records
                .retain(|_, record| !record.is_forgiven(now) || !record.waiting.is_empty());
            if self.records.len() >= ADDRESSES_MAX {
                return;
            }
        }
        let record = self.records.entry(address).or_insert(Record {
            pause: Duration::ZERO,
            last: now,
            next: now,
            ports: VecDeque::new(),
            waiting: Vec::new(),
            turns: 0,
        });
        if record.is_forgiven(now) {
            record.pause = Duration::ZERO;
            record.ports.clear();
        }
        record.pause = (record.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
        record.last = now;
        if record.waiting.is_empty() {
            record.next = record.next.max(now + record.pause);
        }
        record.ports.retain(|port| *port != remote.port());
        record.ports.push_back(remote.port());
        if record.ports.len() > SOCKETS_MAX {
            record.ports.pop_front();
        }
    }

    /// A connection comes from there.
    pub(super) fn knock(&mut self, remote: SocketAddr, now: Instant) -> Entry {
        let address = household(remote.ip());
        let Some(record) = self.records.get_mut(&address) else {
            return Entry::Now;
        };
        if record.waiting.is_empty() {
            if record.is_forgiven(now) {
                self.records.remove(&address);
                return Entry::Now;
            }
            if record.next <= now {
                record.next = now + record.pause;
                return Entry::Now;
            }
        }
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        let begins = record.waiting.is_empty().then(|| record.next - now);
        record.waiting.push(Waiting {
            ticket,
            port: remote.port(),
            since: now,
        });
        self.held += 1;
        let mut refused = None;
        if (self.held > HELD_MAX || record.waiting.len() > HELD_PER_ADDRESS)
            && let Some(last) = record.last()
        {
            self.held -= 1;
            refused = Some(record.take(last));
        }
        match refused == Some(ticket) {
            true => Entry::Refused,
            false => Entry::Waits {
                ticket,
                begins,
                refused,
            },
        }
    }

    /// The time that was named for an address has come.
    pub(super) fn turn(&mut self, address: IpAddr, now: Instant) -> Turn {
        let mut turn = Turn::default();
        let Some(record) = self.records.get_mut(&household(address)) else {
            return turn;
        };
        if record.is_forgiven(now) {
            record.pause = PAUSE_MIN;
            record.next = record.next.min(now);
        }
        if record.next <= now
            && let Some(first) = record.first()
        {
            turn.enter = Some(record.take(first));
            record.turns += 1;
            record.next = now + record.pause;
        }
        let is_late = |waiting: &mut Waiting| now.duration_since(waiting.since) >= HELD_FOR;
        let late = record.waiting.extract_if(.., is_late);
        turn.refused.extend(late.map(|waiting| waiting.ticket));
        self.held -= usize::from(turn.enter.is_some()) + turn.refused.len();
        let oldest = record.waiting.first();
        let next = oldest.map(|oldest| record.next.min(oldest.since + HELD_FOR));
        turn.next = next.map(|next| next.duration_since(now));
        turn
    }
}

/// Whose address it is: of IPv6 the network, which one customer has all of.
fn household(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) if !address.is_loopback() => {
            let network = u128::from(address) >> 64 << 64;
            IpAddr::V6(Ipv6Addr::from(network))
        }
        address @ (IpAddr::V4(_) | IpAddr::V6(_)) => address,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OFFENDER: SocketAddr = at(1, 7000);
    const NEIGHBOUR: SocketAddr = at(1, 7001);
    const OTHER: SocketAddr = at(2, 7000);

    const fn at(host: u8, port: u16) -> SocketAddr {
        let ip = std::net::Ipv4Addr::new(192, 0, 2, host);
        SocketAddr::new(IpAddr::V4(ip), port)
    }

    /// The ticket of one that has to wait; nobody was refused for it.
    fn waits(entry: Entry) -> Ticket {
        let Entry::Waits {
            ticket,
            refused: None,
            ..
        } = entry
        else {
            panic!("{entry:?}")
        };
        ticket
    }

    #[test]
    fn offences_cost_the_offender_time_and_nobody_else() {
        let (mut door, start) = (Door::default(), Instant::now());
        assert_eq!(door.knock(OFFENDER, start), Entry::Now);
        door.offended(OFFENDER, start);
        assert_eq!(door.knock(OTHER, start), Entry::Now);
        let first = door.knock(OFFENDER, start);
        let begins = |entry: Entry| match entry {
            Entry::Waits { begins, .. } => begins,
            Entry::Now | Entry::Refused => panic!("{entry:?}"),
        };
        assert_eq!(begins(first), Some(PAUSE_MIN));
        let second = door.knock(OFFENDER, start);
        assert_eq!(begins(second), None, "somebody waits already");
        let turn = door.turn(OFFENDER.ip(), start + PAUSE_MIN);
        assert_eq!(turn.enter, Some(waits(second)), "the newest");
        assert_eq!(turn.next, Some(PAUSE_MIN));
        let turn = door.turn(OFFENDER.ip(), start + 2 * PAUSE_MIN);
        assert_eq!((turn.enter, turn.next), (Some(waits(first)), None));
        let mut now = start + 3 * PAUSE_MIN;
        assert_eq!(door.knock(OFFENDER, now), Entry::Now);
        for _ in 0..20 {
            door.offended(OFFENDER, now);
        }
        let again = door.knock(OFFENDER, now);
        assert_eq!(begins(again), Some(PAUSE_MAX));
        now += PAUSE_MAX;
        assert_eq!(door.turn(OFFENDER.ip(), now).enter, Some(waits(again)));
        now += FORGIVEN;
        assert_eq!(door.knock(OFFENDER, now), Entry::Now);
        assert!(door.records.is_empty());
    }

    /// One offender, who always has an attempt waiting, and a neighbour who comes later.
    #[test]
    fn who_shares_an_address_with_an_offender_comes_in_before_it() {
        let (mut door, now) = (Door::default(), Instant::now());
        for _ in 0..20 {
            door.offended(OFFENDER, now);
        }
        let early = waits(door.knock(OFFENDER, now));
        let neighbour = waits(door.knock(NEIGHBOUR, now));
        let late = waits(door.knock(OFFENDER, now));
        let turn = door.turn(OFFENDER.ip(), now + PAUSE_MAX);
        assert_eq!(turn.enter, Some(neighbour));
        door.offended(OFFENDER, now + PAUSE_MAX);
        let turn = door.turn(OFFENDER.ip(), now + 2 * PAUSE_MAX);
        assert_eq!(
            turn.enter,
            Some(early),
            "D5, and the oldest every other time"
        );
        assert_eq!(turn.next, Some(HELD_FOR - 2 * PAUSE_MAX));
        let turn = door.turn(OFFENDER.ip(), now + HELD_FOR);
        assert_eq!((turn.enter, turn.refused), (None, vec![late]));
        assert_eq!((turn.next, door.held), (None, 0));
    }

    /// However often it tries: one connection per pause.
    #[test]
    fn a_client_that_comes_back_at_once_gets_in_once_in_two_seconds() {
        let (mut door, start) = (Door::default(), Instant::now());
        let mut now = start;
        let mut entered = 0;
        while now < start + Duration::from_secs(60) {
            if let Entry::Waits { begins, .. } = door.knock(OFFENDER, now) {
                now += begins.unwrap();
                assert!(door.turn(OFFENDER.ip(), now).enter.is_some());
            }
            entered += 1;
            door.offended(OFFENDER, now);
        }
        assert!((30..45).contains(&entered), "{entered}");
    }

    proptest! {
        /// D2 to D5, whatever comes: everybody who waits comes in or is told in time, clean sockets first,
        /// somebody at every turn, and no two turns are nearer than the pause.
        #[test]
        fn everybody_is_answered_in_time_and_in_order(
            steps in proptest::collection::vec((0..400u64, 0..4u16), 1..300)
        ) {
            let (mut door, start) = (Door::default(), Instant::now());
            for _ in 0..20 {
                door.offended(OFFENDER, start);
            }
            let (mut now, mut entered) = (start, None);
            let mut waiting: HashMap<Ticket, (Instant, u16)> = HashMap::new();
            let mut due: Option<Instant> = None;
            let is_clean = |port: u16| port != OFFENDER.port();
            for (pause, what) in steps {
                now += Duration::from_millis(pause);
                while let Some(at) = due.filter(|at| *at <= now) {
                    let turn = door.turn(OFFENDER.ip(), at);
                    let is_forgiven = door.records[&OFFENDER.ip()].is_forgiven(at);
                    let since = entered.map_or(PAUSE_MAX, |last| at - last);
                    let is_due = since >= 2 * PAUSE_MAX && !waiting.is_empty();
                    prop_assert!(turn.enter.is_some() || !is_due, "{:?} without a turn", since);
                    for ticket in &turn.refused {
                        let (since, _) = waiting.remove(ticket).unwrap();
                        prop_assert!(at - since >= HELD_FOR);
                    }
                    if let Some(ticket) = &turn.enter {
                        let (_, port) = waiting.remove(ticket).unwrap();
                        let passed = waiting.values().any(|(_, other)| is_clean(*other));
                        prop_assert!(is_forgiven || is_clean(port) || !passed);
                        prop_assert!(is_forgiven || since >= PAUSE_MAX);
                        entered = Some(at);
                    }
                    let late = waiting.values().any(|(since, _)| at - *since >= HELD_FOR);
                    prop_assert!(!late);
                    due = turn.next.map(|wait| at + wait);
                    prop_assert_eq!(due.is_none(), waiting.is_empty());
                }
                let port = match what {
                    0 => {
                        door.offended(OFFENDER, now);
                        continue;
                    }
                    1 => OFFENDER.port(),
                    other => NEIGHBOUR.port() + other,
                };
                match door.knock(at(1, port), now) {
                    Entry::Now => entered = Some(now),
                    Entry::Waits { ticket, begins, refused } => {
                        prop_assert_eq!(begins.is_some(), waiting.is_empty());
                        due = due.or(begins.map(|wait| now + wait));
                        waiting.insert(ticket, (now, port));
                        if let Some(refused) = refused {
                            prop_assert!(waiting.remove(&refused).is_some());
                        }
                    }
                    Entry::Refused => prop_assert_eq!(waiting.len(), HELD_PER_ADDRESS),
                }
                prop_assert_eq!(door.held, waiting.len());
                prop_assert!(waiting.len() <= HELD_PER_ADDRESS);
            }
        }
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut door, now) = (Door::default(), Instant::now());
        let address = |n: usize| {
            let ip = IpAddr::V4(u32::try_from(n).unwrap().into());
            SocketAddr::new(ip, 7000)
        };
        for n in 0..2 * ADDRESSES_MAX {
            door.offended(address(n), now);
        }
        assert_eq!(door.records.len(), ADDRESSES_MAX);
        for n in 0..HELD_MAX {
            waits(door.knock(address(n / HELD_PER_ADDRESS), now));
        }
        let before = door.knock(address(0), now);
        assert!(
            matches!(
                before,
                Entry::Waits {
                    refused: Some(_),
                    ..
                }
            ),
            "the newest, in the place of the oldest: {before:?}"
        );
        let other = address(HELD_MAX);
        assert_eq!(door.knock(other, now), Entry::Refused);
        let turn = door.turn(address(0).ip(), now + PAUSE_MIN);
        assert!(turn.enter.is_some());
        waits(door.knock(other, now));
        door.offended(OTHER, now + FORGIVEN);
        let kept = HELD_MAX / HELD_PER_ADDRESS + 2;
        assert_eq!(
            door.records.len(),
            kept,
            "who has somebody waiting, and the last"
        );
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one() {
        let (mut door, now) = (Door::default(), Instant::now());
        door.offended("[2001:db8::1]:7000".parse().unwrap(), now);
        waits(door.knock("[2001:db8::2]:7000".parse().unwrap(), now));
        let elsewhere = door.knock("[2001:db8:0:1::1]:7000".parse().unwrap(), now);
        assert_eq!(elsewhere, Entry::Now);
    }
}
