//! Why two ends that found each other do not trust each other, in words that name the file and the
//! mend.
//!
//! TLS says it as an alert (RFC 8446, 6.2), sent by whoever distrusts. The client refuses the broker's
//! certificate before its handshake is done; the broker refuses the client's after that, when the
//! client takes itself to be connected: the first answer is then the alert.

use std::path::Path;

use super::connection::{ConnectOptions, Pem};
use crate::transport::Distrust;

const BAD_CERTIFICATE: u8 = 42;
const UNSUPPORTED_CERTIFICATE: u8 = 43;
const CERTIFICATE_EXPIRED: u8 = 45;
const CERTIFICATE_UNKNOWN: u8 = 46;
const UNKNOWN_CA: u8 = 48;
/// A signature does not hold: an authority of the same name with another key.
const DECRYPT_ERROR: u8 = 51;
const CERTIFICATE_REQUIRED: u8 = 116;
const NO_APPLICATION_PROTOCOL: u8 = 120;

/// What is wrong, and what mends it.
pub(super) fn explain(distrust: &Distrust, options: &ConnectOptions, host: &str) -> String {
    match distrust.by_peer {
        true => of_the_broker(distrust, options),
        false => of_the_client(distrust, options, host),
    }
}

/// This side does not take the broker's certificate.
fn of_the_client(distrust: &Distrust, options: &ConnectOptions, host: &str) -> String {
    let authority = named(options.ca.as_ref(), "the given authority");
    let said = &distrust.reason;
    match distrust.alert {
        UNKNOWN_CA | DECRYPT_ERROR => format!(
            "{authority} does not vouch for this broker: its certificate is from another authority; give \
             --ca the ca.pem beside the certificate the broker was started with, or DATA/tls/ca.pem where it \
             was started without one"
        ),
        BAD_CERTIFICATE if said.contains("name") => format!(
            "the broker's certificate does not name {host} ({said}); name the broker as its certificate \
             does, in --server or by --server-name, or make it one that does: waterwheel certs --host {host}"
        ),
        CERTIFICATE_EXPIRED => format!(
            "the broker's certificate has expired or does not hold yet ({said}); give the broker a new one \
             (of those that `waterwheel certs` made: remove server.pem and server.key and run it again), or \
             set this machine's clock"
        ),
        UNSUPPORTED_CERTIFICATE => format!(
            "the broker's certificate is not one for servers ({said}); start it with --cert server.pem"
        ),
        _ => said.clone(),
    }
}

/// The broker does not take this side's certificate.
fn of_the_broker(distrust: &Distrust, options: &ConnectOptions) -> String {
    let certificate = options
        .identity
        .as_ref()
        .map(|(certificate, _)| certificate);
    let ours = named(certificate, "the given certificate");
    match distrust.alert {
        CERTIFICATE_REQUIRED => {
            "the broker lets in only clients with a certificate, and none was given: --cert client.pem \
             --key client.key, as `waterwheel certs` makes them beside the broker's"
                .to_owned()
        }
        UNKNOWN_CA | DECRYPT_ERROR => format!(
            "the broker does not know the authority that vouches for {ours}; use a certificate of the \
             authority that the broker was started with as --client-ca"
        ),
        CERTIFICATE_EXPIRED => format!(
            "{ours} has expired or does not hold yet; make a new one (of those that `waterwheel certs` made: \
             remove it and its key and run it again), or set the broker's clock"
        ),
        BAD_CERTIFICATE | UNSUPPORTED_CERTIFICATE | CERTIFICATE_UNKNOWN => format!(
            "the broker does not take {ours}: it is not one for clients; use client.pem, as `waterwheel \
             certs` makes it ({})",
            distrust.reason
        ),
        NO_APPLICATION_PROTOCOL => "whoever listens there speaks another protocol".to_owned(),
        _ => distrust.reason.clone(),
    }
}

fn named(pem: Option<&Pem>, otherwise: &str) -> String {
    match pem {
        Some(Pem::File(path)) => Path::display(path).to_string(),
        Some(Pem::Bytes(_)) | None => otherwise.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_alert_is_answered_with_the_file_and_the_mend() {
        let mut options = ConnectOptions::new("broker:7411");
        options.ca = Some(Pem::File("my/ca.pem".into()));
        options.identity = Some((Pem::File("my/client.pem".into()), Pem::Bytes(Vec::new())));
        let cases = [
            (false, UNKNOWN_CA, "my/ca.pem does not vouch", "--ca"),
            (false, DECRYPT_ERROR, "my/ca.pem does not vouch", "--ca"),
            (
                false,
                BAD_CERTIFICATE,
                "does not name broker",
                "--host broker",
            ),
            (false, CERTIFICATE_EXPIRED, "has expired", "server.key"),
            (
                true,
                CERTIFICATE_REQUIRED,
                "none was given",
                "--cert client.pem",
            ),
            (true, UNKNOWN_CA, "my/client.pem", "--client-ca"),
            (
                true,
                CERTIFICATE_EXPIRED,
                "my/client.pem has expired",
                "waterwheel certs",
            ),
            (true, UNSUPPORTED_CERTIFICATE, "my/client.pem", "client.pem"),
            (true, 80, "not valid for name", ""),
        ];
        for (by_peer, alert, what, mend) in cases {
            let distrust = Distrust {
                alert,
                by_peer,
                reason: "not valid for name".to_owned(),
            };
            let said = explain(&distrust, &options, "broker");
            assert!(
                said.contains(what) && said.contains(mend),
                "{alert}: {said}"
            );
        }
    }
}
