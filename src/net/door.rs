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
//! - D3 What is remembered is bounded: [`ADDRESSES_MAX`] addresses, [`HELD_MAX`] connections of theirs in
//!   all, and none that would wait longer than [`HELD_FOR`]; more of those are refused, which tells a client
//!   to try again.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
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
/// Connections of theirs that wait for their pause to end.
const HELD_MAX: usize = 256;
/// How long one of them waits at most: hardly a client gives an attempt longer.
const HELD_FOR: Duration = Duration::from_secs(5);

/// What is remembered of an address.
#[derive(Debug, Clone, Copy)]
struct Record {
    pause: Duration,
    last: Instant,
    /// When the next connection of it may come in.
    next: Instant,
}

/// The offences of addresses.
#[derive(Debug, Default)]
pub(super) struct Door {
    records: HashMap<IpAddr, Record>,
    held: usize,
}

/// What to do with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    /// It comes in.
    Now,
    /// It comes in after so long; [`Door::released`] says that it did.
    After(Duration),
    /// There is no room to let it wait.
    Refused,
}

impl Door {
    /// A connection was closed for what it sent.
    pub(super) fn offended(&mut self, address: IpAddr, now: Instant) {
        let address = household(address);
        if self.records.len() >= ADDRESSES_MAX && !self.records.contains_key(&address) {
            self.records
                .retain(|_, record| now.duration_since(record.last) < FORGIVEN);
            if self.records.len() >= ADDRESSES_MAX {
                return;
            }
        }
        let record = self.records.entry(address).or_insert(Record {
            pause: Duration::ZERO,
            last: now,
            next: now,
        });
        let is_forgiven = now.duration_since(record.last) >= FORGIVEN;
        record.pause = match is_forgiven {
            true => PAUSE_MIN,
            false => (record.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX),
        };
        record.last = now;
        record.next = record.next.max(now + record.pause);
    }

    /// A connection comes from there.
    pub(super) fn knock(&mut self, address: IpAddr, now: Instant) -> Entry {
        let address = household(address);
        let Some(record) = self.records.get_mut(&address) else {
            return Entry::Now;
        };
        if now.duration_since(record.last) >= FORGIVEN {
            self.records.remove(&address);
            return Entry::Now;
        }
        let at = record.next.max(now);
        let wait = at.duration_since(now);
        if wait.is_zero() {
            record.next = now + record.pause;
            return Entry::Now;
        }
        if self.held >= HELD_MAX || wait > HELD_FOR {
            return Entry::Refused;
        }
        record.next = at + record.pause;
        self.held += 1;
        Entry::After(wait)
    }

    /// One that waited has come in.
    pub(super) fn released(&mut self) {
        self.held = self.held.saturating_sub(1);
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
    use super::*;

    const OFFENDER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    #[test]
    fn offences_cost_the_offender_time_and_nobody_else() {
        let (mut door, start) = (Door::default(), Instant::now());
        assert_eq!(door.knock(OFFENDER, start), Entry::Now);
        door.offended(OFFENDER, start);
        assert_eq!(door.knock(OTHER, start), Entry::Now);
        assert_eq!(door.knock(OFFENDER, start), Entry::After(PAUSE_MIN));
        assert_eq!(door.knock(OFFENDER, start), Entry::After(2 * PAUSE_MIN));
        door.released();
        door.released();
        let mut now = start + 3 * PAUSE_MIN;
        assert_eq!(door.knock(OFFENDER, now), Entry::Now);
        for _ in 0..20 {
            door.offended(OFFENDER, now);
        }
        assert_eq!(door.knock(OFFENDER, now), Entry::After(PAUSE_MAX));
        door.released();
        now += FORGIVEN;
        assert_eq!(door.knock(OFFENDER, now), Entry::Now);
        assert!(door.records.is_empty());
    }

    /// However often it tries: one connection per pause.
    #[test]
    fn a_client_that_comes_back_at_once_gets_in_once_in_two_seconds() {
        let (mut door, start) = (Door::default(), Instant::now());
        let mut now = start;
        let mut entered = 0;
        while now < start + Duration::from_secs(60) {
            if let Entry::After(wait) = door.knock(OFFENDER, now) {
                now += wait;
                door.released();
            }
            entered += 1;
            door.offended(OFFENDER, now);
        }
        assert!((30..45).contains(&entered), "{entered}");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut door, now) = (Door::default(), Instant::now());
        for n in 0..2 * u32::try_from(ADDRESSES_MAX).unwrap() {
            door.offended(IpAddr::V4(n.into()), now);
        }
        assert_eq!(door.records.len(), ADDRESSES_MAX);
        let first = IpAddr::V4(0.into());
        for _ in 0..HELD_MAX {
            assert!(matches!(door.knock(first, now), Entry::After(_)));
        }
        assert_eq!(door.knock(first, now), Entry::Refused);
        door.released();
        assert!(matches!(door.knock(first, now), Entry::After(_)));
        door.offended(OTHER, now + FORGIVEN);
        assert_eq!(door.records.len(), 1);
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one() {
        let (mut door, now) = (Door::default(), Instant::now());
        door.offended("2001:db8::1".parse().unwrap(), now);
        let neighbour = door.knock("2001:db8::2".parse().unwrap(), now);
        assert!(matches!(neighbour, Entry::After(_)));
        let elsewhere = door.knock("2001:db8:0:1::1".parse().unwrap(), now);
        assert_eq!(elsewhere, Entry::Now);
    }
}
