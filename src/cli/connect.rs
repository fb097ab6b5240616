//! Which broker a command talks to, and whom it trusts: the arguments every client command shares.

use std::path::PathBuf;

use super::exit::CliError;
use crate::client::Client;

/// `--server` and `--ca`.
#[derive(Debug, Clone, clap::Args)]
pub struct Connect {
    /// The broker, as HOST:PORT.
    #[arg(
        long,
        global = true,
        value_name = "ADDR",
        env = "WATERWHEEL_SERVER",
        default_value = "127.0.0.1:7411"
    )]
    pub server: String,
    /// The certificate of the CA that vouches for the broker (PEM).
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "WATERWHEEL_CA",
        default_value = "waterwheel-data/tls/ca.pem"
    )]
    pub ca: PathBuf,
}

impl Connect {
    /// Connects.
    ///
    /// # Errors
    /// [`CliError`]: nobody answers, the two do not trust each other, or the broker refuses.
    pub async fn client(&self) -> Result<Client, CliError> {
        Ok(Client::connect(&self.server).ca(&self.ca).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        connect: Connect,
    }

    #[test]
    fn arguments_name_the_broker_and_its_ca() {
        let line = Line::try_parse_from(["x", "--server", "host:1", "--ca", "a.pem"]).unwrap();
        assert_eq!(line.connect.server, "host:1");
        assert_eq!(line.connect.ca, PathBuf::from("a.pem"));
    }

    #[tokio::test]
    async fn without_a_ca_it_ends_as_a_matter_of_trust() {
        let directory = tempfile::tempdir().unwrap();
        let connect = Connect {
            server: "127.0.0.1:7411".to_owned(),
            ca: directory.path().join("ca.pem"),
        };
        let error = connect.client().await.unwrap_err();
        assert_eq!(error.exit_code(), 3);
        assert!(error.to_string().contains("ca.pem"));
    }
}
