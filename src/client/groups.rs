//! Consumer groups, their subscriptions, progress and dead letters: one request, one answer.

use super::Client;
use super::admin::Start;
use super::error::AdminError;
use crate::domain::id::PartitionIndex;
use crate::wire::group::{
    AlterSubscription, CreateSubscription, DeleteGroup, DescribeGroup, GroupDone, GroupInfo,
    GroupOk, GroupState, GroupsOk, ListGroups, PlaceReset, RemoveSubscription, ResetGroup, ResetOk,
    Subscription, SubscriptionOk,
};
use crate::wire::topic::decode_list;

/// Where a reset goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetTo {
    /// To a place.
    Start(Start),
    /// So many records forward, or back where it is negative.
    Shift(i64),
}

/// A group as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupDescription {
    /// Its name.
    pub name: String,
    /// Its subscriptions, members and progress.
    pub state: GroupState,
}

impl GroupDescription {
    /// Records not consumed yet, of one topic or of all.
    #[must_use]
    pub fn lag(&self, topic: Option<&str>) -> u64 {
        let places = self.state.places.iter();
        places
            .filter(|place| topic.is_none_or(|topic| place.topic == topic))
            .map(|place| place.lag)
            .sum()
    }
}

impl Client {
    /// All groups.
    ///
    /// # Errors
    /// As for all requests: [`AdminError::Unreachable`], [`AdminError::TimedOut`].
    pub async fn groups(&self) -> Result<Vec<GroupInfo>, AdminError> {
        let (_, body) = self.ask::<_, GroupsOk>(&ListGroups {}).await?;
        decode_list(&body).map_err(AdminError::Protocol)
    }

    /// A group with its subscriptions, members and progress.
    ///
    /// # Errors
    /// Refused with `unknown-group`; otherwise as for all requests.
    pub async fn describe_group(&self, group: &str) -> Result<GroupDescription, AdminError> {
        let request = DescribeGroup {
            group: group.to_owned(),
        };
        let (GroupOk { group }, body) = self.ask(&request).await?;
        let list: Vec<GroupState> = decode_list(&body).map_err(AdminError::Protocol)?;
        Ok(GroupDescription {
            name: group.name,
            state: list.into_iter().next().unwrap_or_default(),
        })
    }

    /// Removes a group with all its subscriptions and their progress.
    ///
    /// # Errors
    /// Refused with `unknown-group`, or `group-in-use` while it has members; otherwise as for all requests.
    pub async fn delete_group(&self, group: &str) -> Result<(), AdminError> {
        let request = DeleteGroup {
            group: group.to_owned(),
        };
        self.ask::<_, GroupDone>(&request).await.map(drop)
    }

    /// Makes a subscription, and the group if there is none.
    ///
    /// # Errors
    /// Refused with `unknown-topic`, `subscription-exists`, `invalid-filter`, `invalid-subscription`;
    /// otherwise as for all requests.
    pub async fn create_subscription(
        &self,
        group: &str,
        subscription: Subscription,
    ) -> Result<Subscription, AdminError> {
        let request = CreateSubscription {
            group: group.to_owned(),
            subscription,
        };
        Ok(self
            .ask::<_, SubscriptionOk>(&request)
            .await?
            .0
            .subscription)
    }

    /// Changes a subscription: what the request leaves out stays as it is.
    ///
    /// # Errors
    /// Refused with `unknown-group`, `unknown-subscription`, `invalid-filter`, `invalid-subscription`;
    /// otherwise as for all requests.
    pub async fn alter_subscription(
        &self,
        change: &AlterSubscription,
    ) -> Result<Subscription, AdminError> {
        Ok(self.ask::<_, SubscriptionOk>(change).await?.0.subscription)
    }

    /// Removes a subscription with its progress.
    ///
    /// # Errors
    /// Refused with `unknown-group`, `unknown-subscription`; otherwise as for all requests.
    pub async fn remove_subscription(&self, group: &str, topic: &str) -> Result<(), AdminError> {
        let request = RemoveSubscription {
            group: group.to_owned(),
            topic: topic.to_owned(),
        };
        self.ask::<_, GroupDone>(&request).await.map(drop)
    }

    /// Sets where a live subscription goes on, in one partition or in all; with `dry_run` only says what
    /// would happen. Everything at or behind the place comes again, whatever was consumed.
    ///
    /// # Errors
    /// Refused with `unknown-group`, `unknown-subscription`; otherwise as for all requests.
    pub async fn reset_group(
        &self,
        group: &str,
        topic: &str,
        partition: Option<u32>,
        to: ResetTo,
        dry_run: bool,
    ) -> Result<Vec<PlaceReset>, AdminError> {
        let request = ResetGroup {
            group: group.to_owned(),
            topic: topic.to_owned(),
            partition: partition.map(PartitionIndex),
            to: match to {
                ResetTo::Start(start) => crate::wire::group::ResetTo::At(start.into()),
                ResetTo::Shift(records) => crate::wire::group::ResetTo::Shift(records),
            },
            dry_run,
        };
        let (_, body) = self.ask::<_, ResetOk>(&request).await?;
        decode_list(&body).map_err(AdminError::Protocol)
    }
}
