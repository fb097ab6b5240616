use super::*;

#[test]
fn jitter_stays_within_its_part_and_is_not_always_the_same() {
    let waits: Vec<u64> = (0..1000).map(|seed| jittered(1000, 10, seed)).collect();
    assert!(waits.iter().all(|wait| (900..=1100).contains(wait)));
    assert!(waits.iter().any(|wait| *wait < 950) && waits.iter().any(|wait| *wait > 1050));
    assert_eq!(jittered(1000, 0, 7), 1000);
    assert_eq!(jittered(0, 100, 7), 0);
    assert!(jittered(u64::MAX, 100, 7) <= 2 * SPAN_MS_MAX);
}

#[test]
fn a_reason_is_cut_at_a_character() {
    let long = "ä".repeat(REASON_BYTES_MAX);
    assert!(cut(&long).len() <= REASON_BYTES_MAX);
    assert_eq!(cut("short"), "short");
}
