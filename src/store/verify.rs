//! Reading every row and adding them up: whether views are to be believed.
//!
//! Homes of timers are the exception: what rots there is left out, because partitions know what was in it.
//! Where the head of a level rots, all homes of that level are left out, and what that head counted is
//! made out from its remains, so that the sum over all heads still has to be the mark's.

use super::error::{Distrust, ViewsError};
use super::layout::{RowKey, Tree, Value, decode_value, head_counts};
use super::mark::Mark;
use crate::domain::id::OwnerId;

/// What reading every row found. The private parts are what a crash between two writes leaves, which
/// opening the views mends.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verified {
    /// Owners with a head.
    pub owners: u64,
    /// Rows, heads included.
    pub rows: u64,
    /// Bytes of their payloads.
    pub payload_bytes: u64,
    /// Homes of timers that are not what was written, and heads of levels, whose homes all go with them.
    /// They are told, not believed, and make nothing else be disbelieved: what was in them, partitions
    /// know.
    pub rotten: Vec<(RowKey, String)>,
    /// The highest stamp of a row.
    pub(super) stamp: u64,
    /// What the heads count as they are.
    pub(super) heads_now: u64,
    /// Removed rows a mark has passed.
    pub(super) tombstones: Vec<(Tree, RowKey)>,
    /// Rows of an owner whose first head was never written; no mark counts them.
    pub(super) orphans: Vec<(Tree, RowKey)>,
    /// Heads older than a row of their owner, and what the rows count now.
    pub(super) behind: Vec<(Tree, OwnerId, u64)>,
}

/// One owner's rows, as they come: the head first.
struct Owner {
    id: OwnerId,
    head: Option<Value>,
    rows: Vec<RowKey>,
    /// What the rows count as of the head.
    rows_then: u64,
    /// What they count now.
    rows_now: u64,
    newer: bool,
    /// A row was left out: the others are believed by themselves.
    rotten: bool,
}

impl Owner {
    fn new(id: OwnerId) -> Self {
        Self {
            id,
            head: None,
            rows: Vec::new(),
            rows_then: 0,
            rows_now: 0,
            newer: false,
            rotten: false,
        }
    }

    fn take(&mut self, key: RowKey, value: Value) {
        if key.is_head() {
            self.head = Some(value);
            return;
        }
        let newer = self
            .head
            .as_ref()
            .is_none_or(|head| value.stamp > head.stamp);
        self.newer |= newer;
        let then = if newer { value.previous } else { value.count };
        self.rows_then = self.rows_then.wrapping_add(then);
        self.rows_now = self.rows_now.wrapping_add(value.count);
        if self.head.is_none() {
            self.rows.push(key);
        }
    }
}

struct Sum<'a> {
    mark: Option<&'a Mark>,
    heads_then: u64,
    /// Of each head of a level that does not read: what it may have counted.
    lost: Vec<Vec<u64>>,
    verified: Verified,
}

impl Sum<'_> {
    fn marked(&self) -> u64 {
        self.mark.map_or(0, |mark| mark.stamp)
    }

    fn close(&mut self, tree: Tree, owner: Owner) -> Result<(), Distrust> {
        let counted = owner.head.as_ref().map_or(0, |head| head.rows);
        if owner.rows_then != counted && !owner.rotten {
            return Err(Distrust::Owner {
                tree,
                owner: owner.id,
            });
        }
        let Some(head) = owner.head else {
            self.verified
                .orphans
                .extend(owner.rows.into_iter().map(|key| (tree, key)));
            return Ok(());
        };
        let then = if head.stamp > self.marked() {
            head.previous
        } else {
            head.count
        };
        self.heads_then = self.heads_then.wrapping_add(then);
        self.verified.heads_now = self.verified.heads_now.wrapping_add(head.count);
        self.verified.owners += u64::from(head.live);
        if owner.newer || owner.rotten {
            self.verified.behind.push((tree, owner.id, owner.rows_now));
        }
        if !head.live {
            // Last, so that its removed rows are never left without it.
            self.verified
                .tombstones
                .push((tree, RowKey::head(owner.id)));
        }
        Ok(())
    }
}

pub(super) fn verify(
    trees: &[(Tree, &sled::Tree)],
    mark: Option<&Mark>,
) -> Result<Result<Verified, Distrust>, ViewsError> {
    let mut sum = Sum {
        mark,
        heads_then: 0,
        lost: Vec::new(),
        verified: Verified::default(),
    };
    for &(tree, rows) in trees {
        if let Err(why) = verify_tree(tree, rows, &mut sum)? {
            return Ok(Err(why));
        }
    }
    let any = sum.verified.stamp != 0;
    Ok(match mark {
        None if any => Err(Distrust::NoMark),
        Some(mark) if !adds_up(mark.heads.wrapping_sub(sum.heads_then), &sum.lost) => {
            Err(Distrust::Heads)
        }
        _ => Ok(sum.verified),
    })
}

/// Whether heads that do not read account for what the others leave of the mark's sum. Only a damage that
/// hides itself in 32 bits would be taken for another.
fn adds_up(rest: u64, lost: &[Vec<u64>]) -> bool {
    match lost.split_first() {
        None => rest == 0,
        Some((first, others)) => first
            .iter()
            .any(|count| adds_up(rest.wrapping_sub(*count), others)),
    }
}

fn verify_tree(
    tree: Tree,
    rows: &sled::Tree,
    sum: &mut Sum<'_>,
) -> Result<Result<(), Distrust>, ViewsError> {
    let mut current: Option<Owner> = None;
    for pair in rows.iter() {
        let (key, bytes) = pair?;
        let Some(key) = RowKey::decode(&key) else {
            return Ok(Err(Distrust::Key(tree)));
        };
        let value = match decode_value(tree, key, &bytes) {
            Ok(value) => value,
            Err(fault) if tree == Tree::Wheel => {
                sum.verified.rotten.push((key, fault.to_string()));
                if key.is_head() {
                    sum.lost.push(head_counts(tree, key, &bytes));
                    let headless = Owner {
                        rotten: true,
                        ..Owner::new(key.owner)
                    };
                    if let Some(done) = current.replace(headless)
                        && let Err(why) = sum.close(tree, done)
                    {
                        return Ok(Err(why));
                    }
                    continue;
                }
                if let Some(owner) = current.as_mut().filter(|owner| owner.id == key.owner) {
                    owner.rotten = true;
                    continue;
                }
                // Its head comes first, and did not.
                return Ok(Err(Distrust::Row { tree, key, fault }));
            }
            Err(fault) => return Ok(Err(Distrust::Row { tree, key, fault })),
        };
        let verified = &mut sum.verified;
        verified.stamp = verified.stamp.max(value.stamp);
        if value.live {
            verified.rows += 1;
            verified.payload_bytes += value.payload.len() as u64;
        } else if !key.is_head() {
            verified.tombstones.push((tree, key));
        }
        let begins = current.as_ref().is_none_or(|owner| owner.id != key.owner);
        if begins
            && let Some(done) = current.replace(Owner::new(key.owner))
            && let Err(why) = sum.close(tree, done)
        {
            return Ok(Err(why));
        }
        if let Some(owner) = &mut current {
            owner.take(key, value);
        }
    }
    Ok(current.map_or(Ok(()), |owner| sum.close(tree, owner)))
}
