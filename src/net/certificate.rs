//! What a certificate says of itself: whom it names, what it is for, and how long it holds.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::tls::TlsError;
use crate::config::human::rough_span;

/// What a certificate says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Its common name; empty where it has none.
    pub subject: String,
    /// The common name of whoever signed it.
    pub issuer: String,
    /// The hosts and addresses it is good for.
    pub names: Vec<String>,
    /// When it begins to hold, in seconds of the Unix clock.
    pub not_before_s: i64,
    /// When it ends to hold, in seconds of the Unix clock.
    pub not_after_s: i64,
    /// Whether it may sign others.
    pub is_authority: bool,
    /// Whether a server may show it.
    pub for_servers: bool,
    /// Whether a client may show it.
    pub for_clients: bool,
}

/// Where a certificate stands in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It does not hold yet, for so long.
    Early(Duration),
    /// It holds, for so long.
    Holds(Duration),
    /// It has ended, so long ago.
    Expired(Duration),
}

impl CertificateFacts {
    /// Reads a certificate.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, String> {
        let (_, parsed) =
            X509Certificate::from_der(certificate).map_err(|fault| fault.to_string())?;
        let usage = parsed
            .extended_key_usage()
            .map_err(|fault| fault.to_string())?;
        let for_all = usage.as_ref().is_none_or(|usage| usage.value.any);
        let names = parsed
            .subject_alternative_name()
            .map_err(|fault| fault.to_string())?
            .map(|names| names.value.general_names.iter().filter_map(name).collect());
        Ok(Self {
            subject: common_name(parsed.subject()),
            issuer: common_name(parsed.issuer()),
            names: names.unwrap_or_default(),
            not_before_s: parsed.validity().not_before.timestamp(),
            not_after_s: parsed.validity().not_after.timestamp(),
            is_authority: parsed.is_ca(),
            for_servers: for_all || usage.as_ref().is_some_and(|usage| usage.value.server_auth),
            for_clients: for_all || usage.as_ref().is_some_and(|usage| usage.value.client_auth),
        })
    }

    /// Reads the first certificate of a PEM file.
    ///
    /// # Errors
    /// A file that cannot be read, or holds no certificate.
    pub fn read(path: &Path) -> Result<Self, TlsError> {
        let text = fs::read(path).map_err(|source| TlsError::File {
            path: path.to_path_buf(),
            source,
        })?;
        let unusable = |why: String| TlsError::Certificate {
            path: path.to_path_buf(),
            why,
        };
        let certificate = CertificateDer::from_pem_slice(&text)
            .map_err(|fault| unusable(format!("it holds no PEM certificate: {fault}")))?;
        Self::of(&certificate).map_err(unusable)
    }

    /// Where it stands at that time.
    #[must_use]
    pub fn standing(&self, now: SystemTime) -> Standing {
        let now = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let since = |second: i64| Duration::from_secs(u64::try_from(second).unwrap_or(0));
        let (begin, end) = (since(self.not_before_s), since(self.not_after_s));
        if now < begin {
            Standing::Early(begin.saturating_sub(now))
        } else if now < end {
            Standing::Holds(end.saturating_sub(now))
        } else {
            Standing::Expired(now.saturating_sub(end))
        }
    }
}

impl Standing {
    /// Why it does not hold, if it does not.
    #[must_use]
    pub fn why_not(self) -> Option<String> {
        let people =
            |span: Duration| rough_span(u64::try_from(span.as_millis()).unwrap_or(u64::MAX));
        match self {
            Self::Holds(_) => None,
            Self::Early(span) => Some(format!(
                "it does not hold for another {}: is the clock right?",
                people(span)
            )),
            Self::Expired(span) => Some(format!("it expired {} ago", people(span))),
        }
    }
}

fn common_name(name: &x509_parser::x509::X509Name<'_>) -> String {
    let first = name.iter_common_name().next();
    let text = first.and_then(|name| name.as_str().ok());
    text.unwrap_or_default().to_owned()
}

/// Names that TLS looks at.
fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let four = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            let address = four.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from));
            address.ok().map(|address| address.to_string())
        }
        GeneralName::OtherName(..)
        | GeneralName::RFC822Name(_)
        | GeneralName::X400Address(_)
        | GeneralName::DirectoryName(_)
        | GeneralName::EDIPartyName(_)
        | GeneralName::URI(_)
        | GeneralName::RegisteredID(_)
        | GeneralName::Invalid(..) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_certificate_is_read_as_it_was_made() {
        let mut made = rcgen::CertificateParams::new(vec![
            "broker.example".to_owned(),
            "10.0.0.7".to_owned(),
            "::1".to_owned(),
        ])
        .unwrap();
        made.distinguished_name
            .push(rcgen::DnType::CommonName, "somebody");
        made.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        made.not_before = epoch + Duration::from_secs(1000);
        made.not_after = epoch + Duration::from_secs(2000);
        let key = rcgen::KeyPair::generate().unwrap();
        let made = made.self_signed(&key).unwrap();
        let facts = CertificateFacts::of(made.der()).unwrap();
        assert_eq!(
            (facts.subject.as_str(), facts.issuer.as_str()),
            ("somebody", "somebody")
        );
        assert_eq!(facts.names, ["broker.example", "10.0.0.7", "::1"]);
        assert_eq!(
            (facts.is_authority, facts.for_servers, facts.for_clients),
            (false, false, true)
        );
        let at = |second| facts.standing(SystemTime::UNIX_EPOCH + Duration::from_secs(second));
        assert_eq!(at(999), Standing::Early(Duration::from_secs(1)));
        assert_eq!(at(1999), Standing::Holds(Duration::from_secs(1)));
        assert_eq!(at(2000), Standing::Expired(Duration::ZERO));
        assert!(at(99_999_999).why_not().unwrap().contains("ago"));
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_reading(at in 0_usize..2000, bit in 0..8, garbage in prop::collection::vec(any::<u8>(), 0..200)) {
            let made = rcgen::generate_simple_self_signed(vec!["a.example".to_owned()]).unwrap();
            let mut bytes = made.cert.der().to_vec();
            let at = at % bytes.len();
            bytes[at] ^= 1_u8 << bit;
            let _ = CertificateFacts::of(&CertificateDer::from(bytes));
            let _ = CertificateFacts::of(&CertificateDer::from(garbage));
        }
    }
}
