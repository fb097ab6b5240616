//! Attaching what a member has to a transaction, on the member's own connection.
//!
//! What is attached stays in hand until the broker has confirmed it: where it is refused, the records are
//! still the member's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::leased::LeaseTag;
use super::link::{Link, RequestError};
use super::member_session::{Session, refuse};
use super::membership::Outcome;
use super::settle::SettleError;
use crate::domain::id::{Lane, LeaseId, Offset, PartitionIndex};
use crate::domain::transaction::TransactionId;
use crate::wire::code::Code;
use crate::wire::consume::{LeaseRange, RANGES_MAX, Settled};
use crate::wire::frame::Header;
use crate::wire::transaction::{Attach, AttachUpTo};

/// Between two tries of what was put off.
const PAUSE: Duration = Duration::from_millis(20);
/// How long it is tried again.
const TRIED_FOR: Duration = Duration::from_secs(10);
/// Records of one request: what is attached is listed one by one.
const RECORDS_MAX: u32 = 8192;

impl Session {
    /// These are consumed if the transaction commits. In several requests where they are many: whichever is
    /// refused, the transaction cannot commit.
    pub(super) fn attach(
        &mut self,
        transaction: TransactionId,
        records: &[(LeaseTag, u64)],
        outcome: Outcome,
    ) {
        let known = |(tag, _): &(LeaseTag, u64)| {
            tag.session == self.number && self.leases.contains_key(&tag.lease)
        };
        let first = records.first().map(|(tag, _)| tag.lease);
        let Some(first) = first.filter(|_| records.iter().all(known)) else {
            return refuse(Some(outcome), SettleError::Lost);
        };
        let ranges = ranges(records);
        let mut parted: BTreeMap<LeaseId, u32> = BTreeMap::new();
        for range in &ranges {
            *parted.entry(range.lease).or_default() += range.count;
        }
        let (consumer, link) = (self.guard.consumer, Arc::clone(&self.link));
        self.answers.push(Box::pin(async move {
            let mut answer = Ok(Settled::default());
            for ranges in requests(&ranges) {
                let header = Attach {
                    consumer,
                    transaction,
                    ranges,
                };
                answer = insist(&link, &header).await;
                if answer.is_err() {
                    break;
                }
            }
            (answer, vec![(first, outcome)], parted.into_iter().collect())
        }));
    }

    /// All of a place below `end` is consumed if the transaction commits.
    pub(super) fn attach_up_to(
        &mut self,
        transaction: TransactionId,
        tag: LeaseTag,
        end: u64,
        outcome: Outcome,
    ) {
        if tag.session != self.number {
            return refuse(Some(outcome), SettleError::Lost);
        }
        let parted = self.covered(tag, end);
        let header = AttachUpTo {
            consumer: self.guard.consumer,
            transaction,
            topic: tag.topic,
            partition: PartitionIndex(tag.partition),
            lane: Lane(tag.lane),
            end: Offset(end),
        };
        let link = Arc::clone(&self.link);
        self.answers.push(Box::pin(async move {
            let answer = insist(&link, &header).await;
            (answer, vec![(tag.lease, outcome)], parted)
        }));
    }
}

/// Asks again as long as the broker puts it off. A membership that is over is not waited for: what it had
/// comes again.
async fn insist<H: Header>(link: &Link, header: &H) -> Result<Settled, RequestError> {
    let deadline = Instant::now() + TRIED_FOR;
    loop {
        let answer = link.ask::<_, Settled>(header).await;
        match answer {
            Err(RequestError::Refused(refusal))
                if matches!(refusal.code, Code::Retry | Code::Throttled | Code::ListFull)
                    && Instant::now() < deadline =>
            {
                sleep(refusal.after_ms.map_or(PAUSE, Duration::from_millis)).await;
            }
            other => return other.map(|(settled, _)| settled),
        }
    }
}

/// Records as ranges of their leases, each once.
fn ranges(records: &[(LeaseTag, u64)]) -> Vec<LeaseRange> {
    let mut sorted: Vec<(LeaseId, u64)> = records
        .iter()
        .map(|(tag, offset)| (tag.lease, *offset))
        .collect();
    sorted.sort_unstable();
    sorted.dedup();
    let mut ranges: Vec<LeaseRange> = Vec::new();
    for (lease, offset) in sorted {
        match ranges.last_mut() {
            Some(last)
                if last.lease == lease
                    && last.first.0 + u64::from(last.count) == offset
                    && last.count < RECORDS_MAX =>
            {
                last.count += 1;
            }
            Some(_) | None => ranges.push(LeaseRange {
                lease,
                first: Offset(offset),
                count: 1,
            }),
        }
    }
    ranges
}

/// As many ranges at a time as one request may name.
fn requests(ranges: &[LeaseRange]) -> Vec<Vec<LeaseRange>> {
    let mut requests: Vec<Vec<LeaseRange>> = Vec::new();
    let mut records = 0;
    for range in ranges {
        match requests.last_mut() {
            Some(last) if last.len() < RANGES_MAX && records + range.count <= RECORDS_MAX => {
                records += range.count;
                last.push(*range);
            }
            Some(_) | None => {
                records = range.count;
                requests.push(vec![*range]);
            }
        }
    }
    requests
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::leased::tests::tag;

    #[test]
    fn records_become_ranges_each_once_and_requests_stay_within_their_bounds() {
        let records = [
            (tag(1, 2), 7),
            (tag(1, 1), 4),
            (tag(1, 1), 3),
            (tag(1, 1), 3),
            (tag(1, 1), 6),
        ];
        let found: Vec<(u64, u64, u32)> = ranges(&records)
            .iter()
            .map(|range| (range.lease.0, range.first.0, range.count))
            .collect();
        assert_eq!(found, [(1, 3, 2), (1, 6, 1), (2, 7, 1)]);
        let many: Vec<(LeaseTag, u64)> = (0..20_000).map(|offset| (tag(1, 1), offset)).collect();
        let sizes: Vec<u32> = requests(&ranges(&many))
            .iter()
            .map(|ranges| ranges.iter().map(|range| range.count).sum())
            .collect();
        assert_eq!(sizes, [8192, 8192, 3616]);
        let scattered: Vec<(LeaseTag, u64)> = (0..3000).map(|lease| (tag(1, lease), 0)).collect();
        assert!(
            requests(&ranges(&scattered))
                .iter()
                .all(|one| one.len() <= RANGES_MAX)
        );
    }
}
