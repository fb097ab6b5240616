//! Which broker a command talks to, and whom it trusts: the arguments every client command shares.

use std::future::IntoFuture;
use std::path::PathBuf;
use std::time::Duration;

use super::duration::parse_duration;
use super::exit::CliError;
use super::output::say;
use crate::client::Client;

/// How long connecting may take before a person is told of it.
const HINT_AFTER: Duration = Duration::from_secs(1);

/// Where the broker is, whom this side trusts, and what it shows.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Connection")]
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
    /// This client's certificate (PEM), for a broker that asks for one.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "WATERWHEEL_CLIENT_CERT",
        requires = "key"
    )]
    pub cert: Option<PathBuf>,
    /// Its private key (PEM).
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "WATERWHEEL_CLIENT_KEY",
        requires = "cert"
    )]
    pub key: Option<PathBuf>,
    /// The name the broker's certificate bears, where it is not the host of --server.
    #[arg(
        long,
        global = true,
        value_name = "NAME",
        env = "WATERWHEEL_SERVER_NAME"
    )]
    pub server_name: Option<String>,
    /// How long connecting, and each request, may take.
    #[arg(long, global = true, value_name = "SPAN", default_value = "10s", value_parser = parse_duration)]
    pub patience: Duration,
}

impl Connect {
    /// Connects.
    ///
    /// # Errors
    /// [`CliError`]: nobody answers, the two do not trust each other, or the broker refuses.
    pub async fn client(&self) -> Result<Client, CliError> {
        let mut connect = Client::connect(&self.server)
            .ca(&self.ca)
            .timeout(self.patience);
        if let (Some(cert), Some(key)) = (&self.cert, &self.key) {
            connect = connect.identity(cert, key);
        }
        if let Some(name) = &self.server_name {
            connect = connect.server_name(name);
        }
        let mut connecting = connect.into_future();
        let hint_after = tokio::time::sleep(HINT_AFTER);
        tokio::select! {
            connected = &mut connecting => return Ok(connected?),
            () = hint_after => {}
        }
        say(format_args!(
            "nobody answers at {} yet; trying for {:.1?} (--patience)",
            self.server, self.patience
        ));
        Ok(connecting.await?)
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
            cert: None,
            key: None,
            server_name: None,
            patience: Duration::from_secs(10),
        };
        let error = connect.client().await.unwrap_err();
        assert_eq!(error.exit_code(), 3);
        assert!(error.to_string().contains("ca.pem"));
    }
}
