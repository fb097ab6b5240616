//! How a command failed, and the exit code that says so.

use std::io::{self, Write};
use std::process::ExitCode;

use crate::broker::StartError;
use crate::client::{AdminError, Code, ConnectError, ConsumeError, Refusal, SendError};

/// What a failure means for whoever runs the command; the discriminant is the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Exit {
    /// The answer is no: not acknowledged, damaged, not found.
    No = 1,
    /// Usage or configuration.
    Usage = 2,
    /// No broker reached, or TLS.
    Unreachable = 3,
    /// The broker refused; the code says why.
    Refused = 4,
}

/// A command failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) exit: Exit,
    pub(super) code: &'static str,
    pub(super) message: String,
}

impl Failure {
    pub(super) fn new(exit: Exit, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            exit,
            code,
            message: message.into(),
        }
    }

    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, "usage", message)
    }

    /// Of reading or writing a file or a stream of this process.
    pub(super) fn io(what: &str, fault: &io::Error) -> Self {
        Self::new(Exit::Usage, "io", format!("{what}: {fault}"))
    }

    /// What is not there is an answer, where the question was about it.
    pub(super) fn not_found_is_no(mut self) -> Self {
        if self.code == Code::UnknownTopic.name() {
            self.exit = Exit::No;
        }
        self
    }

    /// Says it on stderr: `error[CODE]: MESSAGE`.
    pub(super) fn report(&self) -> ExitCode {
        // A closed stderr is no reason to fail otherwise.
        let _ = writeln!(io::stderr(), "error[{}]: {}", self.code, self.message);
        ExitCode::from(self.exit as u8)
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::new(Exit::Refused, refusal.code.name(), refusal.message)
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        let code = error.code();
        match error {
            ConnectError::Refused(refusal) => refusal.into(),
            ConnectError::Address { .. } => Self::new(Exit::Usage, code, error.to_string()),
            ConnectError::CertificateFile { .. }
            | ConnectError::Tls { .. }
            | ConnectError::Unreachable { .. }
            | ConnectError::Protocol { .. }
            | ConnectError::Local(_) => Self::new(Exit::Unreachable, code, error.to_string()),
        }
    }
}

impl From<AdminError> for Failure {
    fn from(error: AdminError) -> Self {
        let code = error.code();
        match error {
            AdminError::Refused(refusal) => refusal.into(),
            AdminError::Unreachable(_) | AdminError::TimedOut(_) | AdminError::Protocol(_) => {
                Self::new(Exit::Unreachable, code, error.to_string())
            }
        }
    }
}

impl From<ConsumeError> for Failure {
    fn from(error: ConsumeError) -> Self {
        let code = error.code();
        match error {
            ConsumeError::Refused(refusal) => refusal.into(),
            ConsumeError::Partition { .. } => Self::new(Exit::Refused, code, error.to_string()),
            ConsumeError::Damaged { .. } | ConsumeError::Unreadable { .. } => {
                Self::new(Exit::No, code, error.to_string())
            }
            ConsumeError::Unreachable(_) | ConsumeError::Protocol(_) => {
                Self::new(Exit::Unreachable, code, error.to_string())
            }
        }
    }
}

impl From<SendError> for Failure {
    fn from(error: SendError) -> Self {
        let code = error.code();
        match error {
            SendError::Refused(refusal) => refusal.into(),
            SendError::TooLarge { .. } | SendError::Partition { .. } => {
                Self::new(Exit::Refused, code, error.to_string())
            }
            SendError::TimedOut(_) | SendError::Aborted(_) | SendError::Closed => {
                Self::new(Exit::No, code, error.to_string())
            }
        }
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        let (exit, code) = match &error {
            StartError::Config(_) => (Exit::Usage, "configuration"),
            StartError::Locked(_) => (Exit::Usage, "locked"),
            StartError::Net(_) => (Exit::Usage, "listen"),
            StartError::Io { .. } => (Exit::Usage, "io"),
            StartError::Log(_) => (Exit::No, "log"),
            StartError::Views(_) => (Exit::No, "views"),
            StartError::NoSystem | StartError::Interrupted(_) => (Exit::No, "start"),
        };
        Self::new(exit, code, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_failure_has_its_exit_code() {
        let unreachable = ConnectError::Unreachable {
            address: "127.0.0.1:1".to_owned(),
            reason: "timed out".to_owned(),
        };
        assert_eq!(Failure::from(unreachable).exit as u8, 3);
        let lost = SendError::TimedOut(120_000);
        assert_eq!(Failure::from(lost).exit as u8, 1);
        let partition = ConsumeError::Partition {
            partition: 9,
            last: 7,
        };
        let failure = Failure::from(partition);
        assert_eq!(
            (failure.exit as u8, failure.code),
            (4, "partition-out-of-range")
        );
        let missing = Failure::new(Exit::Refused, Code::UnknownTopic.name(), "no such topic");
        assert_eq!(missing.not_found_is_no().exit as u8, 1);
        let locked = StartError::Locked("data".into());
        assert_eq!(Failure::from(locked).exit as u8, 2);
    }
}
