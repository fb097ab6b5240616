//! How a command ends: the exit codes scripts rely on.
//!
//! | code | means |
//! |---|---|
//! | 0 | done |
//! | 1 | the answer is no: unacknowledged, damaged, a timer not found; or something local failed |
//! | 2 | usage or configuration |
//! | 3 | no broker answers, or the two ends do not trust each other |
//! | 4 | the broker refused; its stable code is the last thing on stderr, in brackets |
//!
//! Nothing here prints: whoever calls the command says the error on stderr, once.

use crate::client::{AdminError, ConnectError, ConsumeError, Refusal};

/// How a command that ran to its end went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All of it: exit code 0.
    Done,
    /// The answer is no, and the command has said so: exit code 1.
    No,
}

impl Outcome {
    /// The exit code.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::No => 1,
        }
    }
}

/// Why a command did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CliError {
    /// The arguments, or what they name, make no sense: exit code 2.
    #[error("{0}")]
    Usage(String),
    /// No broker, or none that can be trusted: exit code 3.
    #[error("{0}")]
    Unreachable(String),
    /// The broker said no: exit code 4.
    #[error("{message} [{code}]")]
    Refused {
        /// The stable code.
        code: &'static str,
        /// What happened and what to do.
        message: String,
    },
    /// The answer is no, or something local failed: exit code 1.
    #[error("{0}")]
    Failed(String),
}

impl CliError {
    /// The exit code.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::Unreachable(_) => 3,
            Self::Refused { .. } => 4,
        }
    }
}

impl From<Refusal> for CliError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused {
            code: refusal.code.name(),
            message: refusal.message,
        }
    }
}

impl From<ConnectError> for CliError {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Refused(refusal) => refusal.into(),
            error @ ConnectError::Address { .. } => Self::Usage(error.to_string()),
            // A missing CA counts as TLS: where no broker was ever started there is none.
            error @ (ConnectError::CertificateFile { .. }
            | ConnectError::Tls { .. }
            | ConnectError::Unreachable { .. }
            | ConnectError::Protocol { .. }
            | ConnectError::Stopped) => Self::Unreachable(error.to_string()),
            error @ ConnectError::Local(_) => Self::Failed(error.to_string()),
        }
    }
}

impl From<AdminError> for CliError {
    fn from(error: AdminError) -> Self {
        match error {
            AdminError::Refused(refusal) => refusal.into(),
            error @ (AdminError::Unreachable(_)
            | AdminError::TimedOut(_)
            | AdminError::Disconnected
            | AdminError::Protocol(_)) => Self::Unreachable(error.to_string()),
        }
    }
}

impl From<ConsumeError> for CliError {
    fn from(error: ConsumeError) -> Self {
        match error {
            ConsumeError::Refused(refusal) => refusal.into(),
            error @ ConsumeError::Partition { .. } => Self::Refused {
                code: error.code(),
                message: error.to_string(),
            },
            error @ (ConsumeError::Unreachable(_)
            | ConsumeError::Disconnected
            | ConsumeError::Protocol(_)) => Self::Unreachable(error.to_string()),
            error @ (ConsumeError::Damaged { .. } | ConsumeError::Unreadable { .. }) => {
                Self::Failed(error.to_string())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Code;

    fn refusal() -> Refusal {
        Refusal {
            code: Code::UnknownTopic,
            message: "there is no topic".to_owned(),
            after_ms: None,
        }
    }

    #[test]
    fn each_way_to_end_has_its_exit_code() {
        assert_eq!(Outcome::Done.exit_code(), 0);
        assert_eq!(Outcome::No.exit_code(), 1);
        assert_eq!(CliError::Failed(String::new()).exit_code(), 1);
        assert_eq!(CliError::Usage(String::new()).exit_code(), 2);
        assert_eq!(CliError::Unreachable(String::new()).exit_code(), 3);
        assert_eq!(CliError::from(refusal()).exit_code(), 4);
    }

    #[test]
    fn a_refusal_names_its_stable_code_however_it_came() {
        let wanted = "there is no topic [unknown-topic]";
        let from_admin = CliError::from(AdminError::Refused(refusal()));
        let from_consume = CliError::from(ConsumeError::Refused(refusal()));
        let from_connect = CliError::from(ConnectError::Refused(refusal()));
        for error in [from_admin, from_consume, from_connect] {
            assert_eq!(error.to_string(), wanted);
            assert_eq!(error.exit_code(), 4);
        }
    }

    #[test]
    fn what_cannot_be_reached_or_trusted_is_3_and_damage_is_1() {
        let address = "127.0.0.1:1".to_owned();
        let reason = "no".to_owned();
        let tls = ConnectError::Tls {
            address: address.clone(),
            reason: reason.clone(),
        };
        let wrong = ConnectError::Address { address, reason };
        assert_eq!(CliError::from(tls).exit_code(), 3);
        assert_eq!(CliError::from(wrong).exit_code(), 2);
        assert_eq!(CliError::from(AdminError::TimedOut(1)).exit_code(), 3);
        assert_eq!(CliError::from(ConsumeError::Unreachable(1)).exit_code(), 3);
        let unreadable = ConsumeError::Unreadable {
            partition: 0,
            offset: 1,
            reason: crate::domain::record::BodyError::Malformed,
        };
        assert_eq!(CliError::from(unreadable).exit_code(), 1);
    }
}
