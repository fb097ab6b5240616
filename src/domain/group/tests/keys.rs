//! Key-ordered mode: how far it is looked ahead while records wait behind their keys.

use super::modes::spec;
use super::rig::*;
use crate::domain::group::Limits;
use crate::domain::group::command::*;
use crate::domain::group::subscription::Mode;
use crate::domain::id::*;

const KEYS: u64 = 4;
const WINDOW_MAX: u64 = 160;

/// So many records of [`KEYS`] keys in turn, in batches of five, and one of another key behind them; a member
/// that could take them all.
fn rig(count: u64) -> (Rig, MemberId) {
    let limits = Limits {
        window_max: WINDOW_MAX,
        ..Limits::default()
    };
    let mut rig = Rig::new(spec(Mode::KeyOrdered), 1, limits);
    let of = |key| Stored { key, wanted: true };
    let records: Vec<Stored> = (0..count).map(|n| of(1 + n % KEYS)).collect();
    for batch in records.chunks(5) {
        rig.produce(place(0), batch);
    }
    rig.produce(place(0), &[of(KEYS + 1)]);
    rig.join("m", 0, Settle::OnAcknowledge);
    rig.settle_down();
    let member = rig.live()[0];
    let credit = Command::Credit {
        member,
        topic: TOPIC,
        bytes: 1 << 30,
        records: 1 << 20,
    };
    rig.command(credit);
    rig.settle_down();
    (rig, member)
}

fn held(rig: &Rig, member: MemberId) -> Vec<(LeaseId, u64)> {
    let leases = rig.clients[&member].leases.iter();
    leases
        .flat_map(|(id, (_, open, _))| open.iter().map(|offset| (*id, *offset)))
        .collect()
}

fn window(rig: &Rig) -> u64 {
    let cursors = rig.group.cursors.values();
    cursors.map(|cursor| cursor.window.len()).sum()
}

#[test]
fn while_keys_move_it_is_not_looked_for_what_would_only_wait_behind_them() {
    let (mut rig, member) = rig(400);
    let mut taken = 0;
    while taken < 401 {
        assert!(
            window(&rig) <= WINDOW_MAX / 8,
            "{} in the window",
            window(&rig)
        );
        let held = held(&rig, member);
        assert!(!held.is_empty(), "stuck at {taken}");
        taken += held.len();
        for (lease, offset) in held {
            rig.ack(member, lease, offset, 1);
        }
        // Longer than keys may stand still, which these do not.
        rig.advance(150);
        rig.settle_down();
    }
    assert_eq!(taken, 401);
    assert_eq!(window(&rig), 0);
}

#[test]
fn keys_that_stand_still_do_not_hide_others() {
    let (mut rig, member) = rig(100);
    let others = |rig: &Rig| held(rig, member).into_iter().any(|(_, at)| at == 100);
    assert!(!others(&rig), "it is not looked that far at once");
    for _ in 0..40 {
        // Less than a lease, over and over: the same records stay in hand.
        for (lease, _) in held(&rig, member) {
            let leases = vec![lease];
            let lease_ms = 1000;
            rig.command(Command::Extend {
                member,
                leases,
                lease_ms,
            });
        }
        rig.advance(100);
        rig.settle_down();
    }
    assert!(others(&rig));
    assert_eq!(held(&rig, member).len() as u64, KEYS + 1);
}
