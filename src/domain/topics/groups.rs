//! Consumer groups as the directory knows them: a name, an id that is never given twice, an owner.

use serde::{Deserialize, Serialize};

use super::{Delta, Effect, OwnerRange, Topics, check_name, draft, encode};
use crate::domain::entry::EntryKind;
use crate::domain::group::rejection::GroupRejection;
use crate::domain::id::{GroupId, OwnerId, Token};
use crate::domain::rejection::Rejection;

/// Groups a broker takes at most: the directory's snapshot names them all.
pub const GROUPS_MAX: usize = 20_000;
/// Characters a group's name may have at most: its dead-letter topic is named after it.
pub const GROUP_NAME_BYTES_MAX: usize = 180;

/// A consumer group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Its id, for ever: its owner's.
    pub id: GroupId,
    /// Its name, an alias.
    pub name: String,
}

impl Group {
    /// Whose entries in the log are its.
    #[must_use]
    pub fn owner(&self) -> OwnerId {
        OwnerId(self.id.0)
    }

    /// Its owner as a range.
    #[must_use]
    pub fn range(&self) -> OwnerRange {
        OwnerRange {
            first: self.owner(),
            count: 1,
        }
    }
}

impl Topics {
    /// All groups, by id.
    pub fn groups(&self) -> impl Iterator<Item = &Group> {
        self.groups.values()
    }

    /// A group by name.
    #[must_use]
    pub fn group_named(&self, name: &str) -> Option<&Group> {
        self.groups.get(self.group_names.get(name)?)
    }

    /// The group an owner is, if it is one.
    #[must_use]
    pub fn group_of(&self, owner: OwnerId) -> Option<&Group> {
        self.groups.get(&GroupId(owner.0))
    }

    pub(super) fn open_group(
        &mut self,
        token: Token,
        name: &str,
        create: bool,
    ) -> Result<Option<Effect>, Rejection> {
        if let Some(group) = self.group_named(name) {
            return Ok(Some(Effect::Group(token, group.clone())));
        }
        if !create {
            return Err(GroupRejection::UnknownGroup.into());
        }
        check_name(name)?;
        if name.len() > GROUP_NAME_BYTES_MAX {
            return Err(Rejection::InvalidName(
                "a group's has at most 180 characters",
            ));
        }
        if self.groups.len() >= GROUPS_MAX {
            let why = format!("there are {GROUPS_MAX} groups already");
            return Err(Rejection::InvalidConfig(why));
        }
        self.claim(token, &claimed(name))?;
        let id = GroupId(self.claim_owner_ids(1).0);
        let name = name.to_owned();
        Ok(Some(Effect::Persist(vec![
            self.ask(Delta::Group(Group { id, name })),
        ])))
    }

    pub(super) fn delete_group(
        &mut self,
        token: Token,
        name: &str,
    ) -> Result<Option<Effect>, Rejection> {
        let Some(group) = self.group_named(name).cloned() else {
            return Err(GroupRejection::UnknownGroup.into());
        };
        self.claim(token, &claimed(name))?;
        let gone = self.ask(Delta::GroupDeleted(group.id));
        Ok(Some(Effect::Persist(vec![
            gone,
            draft(EntryKind::Delete, encode(&group.range())),
        ])))
    }

    pub(super) fn apply_group(&mut self, group: Group, effects: &mut Vec<Effect>) {
        let token = self.landed(&claimed(&group.name));
        self.put_group(group.clone());
        if let Some(token) = token {
            effects.push(Effect::Group(token, group));
        }
    }

    pub(super) fn apply_group_deleted(&mut self, id: GroupId, effects: &mut Vec<Effect>) {
        if let Some(group) = self.remove_group(id) {
            effects.push(Effect::Dropped(vec![group.range()]));
            if let Some(token) = self.landed(&claimed(&group.name)) {
                effects.push(Effect::GroupDeleted(token));
            }
        }
    }

    pub(super) fn put_group(&mut self, group: Group) {
        self.head.next_owner = self.head.next_owner.max(OwnerId(group.id.0 + 1));
        self.group_names.insert(group.name.clone(), group.id);
        self.dirty_groups.insert(group.id);
        self.groups.insert(group.id, group);
    }

    pub(super) fn remove_group(&mut self, id: GroupId) -> Option<Group> {
        let group = self.groups.remove(&id)?;
        if self.group_names.get(&group.name) == Some(&id) {
            self.group_names.remove(&group.name);
        }
        self.dirty_groups.insert(id);
        Some(group)
    }

    /// The group rows changed since the last call; `None` where one is gone.
    pub fn take_group_rows(&mut self) -> Vec<(GroupId, Option<bytes::Bytes>)> {
        std::mem::take(&mut self.dirty_groups)
            .into_iter()
            .map(|id| (id, self.groups.get(&id).map(encode)))
            .collect()
    }

    /// Takes a group from its row; false if it does not read.
    #[must_use]
    pub fn restore_group(&mut self, row: &[u8]) -> bool {
        let Ok(group) = rmp_serde::from_slice(row) else {
            return false;
        };
        self.put_group(group);
        self.dirty_groups.clear();
        true
    }
}

/// What a command about a group claims: no topic has such a name.
fn claimed(name: &str) -> String {
    format!("group:{name}")
}
