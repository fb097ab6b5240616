//! Writing rows: the rows of an owner first, then its head with their sum, stamped as one write.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::error::ViewsError;
use super::layout::{Draft, ROW_BYTES_MAX, RowKey, Tree, Value, encode_value};
use super::verify::Verified;
use super::views::{RowChange, Views, fenced};
use crate::domain::id::{OwnerId, OwnerSequence};

/// What a row holds: the owner sequence it folds up to, and its payload.
type Content = (OwnerSequence, Bytes);

impl Views {
    /// Closes what a crash left between an owner's rows and its head.
    pub(super) fn heal(&mut self, verified: &Verified) -> Result<(), ViewsError> {
        for (tree, key) in &verified.orphans {
            fenced(|| Ok(self.trees.of(*tree).remove(key.encode())?))?;
        }
        for (key, _) in &verified.rotten {
            fenced(|| Ok(self.trees.of(Tree::Wheel).remove(key.encode())?))?;
        }
        for (tree, owner, rows) in &verified.behind {
            let key = RowKey::head(*owner);
            if let Some(head) = self.value(*tree, key)? {
                self.stamp += 1;
                let mut rows = *rows;
                // The head knows nothing of what was removed behind it: what is folded from there on may
                // need it, a batch that is published then above all.
                for (key, row) in self.removed_since(*tree, *owner, head.stamp)? {
                    self.put_row(*tree, key, Some(&row), &mut rows)?;
                }
                self.put_head(
                    *tree,
                    *owner,
                    Some(&head),
                    head.live,
                    head.folded,
                    &head.payload,
                    rows,
                )?;
            }
        }
        Ok(())
    }

    /// What an owner's removed rows held, of those removed by a later write than `stamp`.
    fn removed_since(
        &self,
        tree: Tree,
        owner: OwnerId,
        stamp: u64,
    ) -> Result<Vec<(RowKey, Content)>, ViewsError> {
        self.scan(tree, &owner.0.to_be_bytes(), |key, value| {
            // Earlier builds kept nothing of what they removed.
            let is_kept = !value.payload.is_empty();
            let is_removed = !key.is_head() && !value.live && value.stamp > stamp;
            (is_removed && is_kept).then_some((key, (value.folded, value.payload)))
        })
    }

    /// Writes rows. Every owner named has a head, or gets one here. Durable only after
    /// [`Views::sync`], counted only after [`Views::mark`].
    ///
    /// # Errors
    /// A row without a head or too long: nothing was written. Anything else: the views are useless,
    /// drop and destroy them.
    pub fn write(&mut self, changes: &[RowChange]) -> Result<(), ViewsError> {
        self.check_open()?;
        let mut owners: BTreeMap<(Tree, OwnerId), BTreeMap<RowKey, &RowChange>> = BTreeMap::new();
        for change in changes {
            let length = change
                .value
                .as_ref()
                .map_or(0, |(_, payload)| payload.len());
            if length > ROW_BYTES_MAX {
                return Err(ViewsError::RowTooLong(length));
            }
            owners
                .entry((change.tree, change.key.owner))
                .or_default()
                .insert(change.key, change);
        }
        for (&(tree, owner), rows) in &owners {
            let named = rows.contains_key(&RowKey::head(owner));
            if !named
                && !self
                    .value(tree, RowKey::head(owner))?
                    .is_some_and(|head| head.live)
            {
                return Err(ViewsError::NoHead { tree, owner });
            }
        }
        self.stamp += 1;
        self.dirty = true;
        self.closed = true;
        for ((tree, owner), rows) in owners {
            self.write_owner(tree, owner, &rows)?;
        }
        self.closed = false;
        Ok(())
    }

    /// Rows first, then the head: a row newer than its head is told from a lost one.
    fn write_owner(
        &mut self,
        tree: Tree,
        owner: OwnerId,
        changes: &BTreeMap<RowKey, &RowChange>,
    ) -> Result<(), ViewsError> {
        let head_key = RowKey::head(owner);
        let old_head = self.value(tree, head_key)?;
        let mut rows = old_head.as_ref().map_or(0, |head| head.rows);
        let new_head = changes.get(&head_key).map(|change| &change.value);
        if let Some(None) = new_head {
            for row in self.rows(tree, owner)? {
                let key = RowKey {
                    owner,
                    kind: row.kind,
                    id: row.id,
                };
                if !key.is_head() {
                    self.put_row(tree, key, None, &mut rows)?;
                }
            }
        } else {
            for (key, change) in changes.iter().filter(|(key, _)| !key.is_head()) {
                self.put_row(tree, *key, change.value.as_ref(), &mut rows)?;
            }
        }
        match (new_head, &old_head) {
            (Some(Some((folded, payload))), old) => {
                self.put_head(tree, owner, old.as_ref(), true, *folded, payload, rows)
            }
            (Some(None), Some(old)) => {
                self.put_head(tree, owner, Some(old), false, old.folded, &[], rows)?;
                self.tombstones.push((tree, head_key));
                Ok(())
            }
            (None, Some(old)) => {
                self.put_head(tree, owner, Some(old), true, old.folded, &old.payload, rows)
            }
            (Some(None), None) | (None, None) => Ok(()),
        }
    }

    fn put_row(
        &mut self,
        tree: Tree,
        key: RowKey,
        value: Option<&(OwnerSequence, Bytes)>,
        rows: &mut u64,
    ) -> Result<(), ViewsError> {
        let old = self.value(tree, key)?;
        let previous = old.as_ref().map_or(0, |old| old.count);
        let draft = match (value, &old) {
            (Some((folded, payload)), _) => Draft {
                live: true,
                folded: *folded,
                stamp: self.stamp,
                previous,
                payload,
                rows: 0,
            },
            (None, Some(old)) if old.live => Draft {
                live: false,
                folded: old.folded,
                stamp: self.stamp,
                previous,
                // Until the head says so too, it may have to come back.
                payload: &old.payload,
                rows: 0,
            },
            (None, _) => return Ok(()),
        };
        if !draft.live {
            self.tombstones.push((tree, key));
        }
        let (bytes, count) = encode_value(tree, key, &draft);
        self.insert(tree, key, bytes)?;
        *rows = rows.wrapping_sub(previous).wrapping_add(count);
        Ok(())
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the parts of one row, each of its own type"
    )]
    fn put_head(
        &mut self,
        tree: Tree,
        owner: OwnerId,
        old: Option<&Value>,
        live: bool,
        folded: OwnerSequence,
        payload: &[u8],
        rows: u64,
    ) -> Result<(), ViewsError> {
        let counted = old.map_or(0, |old| old.count);
        let previous = match old {
            Some(old) if old.stamp > self.marked_stamp => old.previous,
            _ => counted,
        };
        let key = RowKey::head(owner);
        let draft = Draft {
            live,
            folded,
            stamp: self.stamp,
            previous,
            payload,
            rows,
        };
        let (bytes, count) = encode_value(tree, key, &draft);
        self.insert(tree, key, bytes)?;
        self.heads = self.heads.wrapping_sub(counted).wrapping_add(count);
        Ok(())
    }

    /// Removes for good what was removed before the mark, unless it was written again since.
    pub(super) fn bury(&mut self) -> Result<(), ViewsError> {
        for (tree, key) in std::mem::take(&mut self.tombstones) {
            if self.value(tree, key)?.is_some_and(|value| !value.live) {
                fenced(|| Ok(self.trees.of(tree).remove(key.encode())?))?;
                self.dirty = true;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
impl Views {
    /// What a crash between an owner's rows and its head leaves.
    pub(super) fn write_without_heads(&mut self, changes: &[RowChange]) {
        self.stamp += 1;
        for change in changes {
            self.put_row(change.tree, change.key, change.value.as_ref(), &mut 0)
                .unwrap();
        }
    }
}
