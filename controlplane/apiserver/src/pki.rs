//! The cluster's certificate authority and everything that it signs: the serving certificate, client certificates in
//! kubeconfigs, the credentials of nodes. Keys stay in files that only their owner reads, and outlive restarts.

use std::{
    fs,
    io::{self, Write as _},
    net::IpAddr,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// The name in the certificate with which the server reaches node agents.
pub const KUBELET_CLIENT: &str = "kube-apiserver-kubelet-client";
/// The group whose members may do everything.
pub const MASTERS: &str = "system:masters";

const CA_DAYS: i64 = 3650;
const LEAF_DAYS: i64 = 365;
/// Certificates that end sooner are made anew when the server starts.
const RENEW_DAYS: i64 = 60;

/// A failure with keys or certificates.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file operation failed.
    #[error("cannot {action} {path}")]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A key or certificate could not be made or read.
    #[error("cannot make or read the certificate of {subject}")]
    Certificate {
        /// Whose certificate it is.
        subject: String,
        /// Why it failed.
        #[source]
        source: rcgen::Error,
    },
    /// More groups than a certificate holds.
    #[error("{subject} is in {count} groups, a certificate holds two")]
    TooManyGroups {
        /// Whose certificate it is.
        subject: String,
        /// How many groups were asked for.
        count: usize,
    },
    /// A file does not hold what it should.
    #[error(
        "{path} holds no usable certificate and key: {reason}; remove it together with its pair to make a new one"
    )]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// The CA and where it is kept.
#[derive(Debug)]
pub struct Pki {
    dir: PathBuf,
    ca_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// What a node needs to join.
#[derive(Debug, Clone)]
pub struct NodeCredentials {
    /// The kubeconfig of user `system:node:<name>`.
    pub kubeconfig: String,
    /// The CA that signed everything here.
    pub ca_pem: String,
    /// The certificate with which the node agent serves logs.
    pub serving_cert_pem: String,
    /// Its key.
    pub serving_key_pem: String,
}

/// A certificate with its key, both PEM.
#[derive(Debug, Clone)]
pub struct KeyedCertificate {
    /// The certificate.
    pub cert_pem: String,
    /// The key, PKCS #8.
    pub key_pem: String,
}

/// Who a certificate is for.
#[derive(Debug, Default)]
struct Subject<'a> {
    name: &'a str,
    groups: &'a [&'a str],
    /// Names and addresses of a server; a client has none.
    sans: Vec<String>,
    client: bool,
}

impl Pki {
    /// Reads the CA in `dir`, or makes one.
    pub fn open_or_create(dir: impl Into<PathBuf>) -> Result<Self, PkiError> {
        let dir = dir.into();
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(|source| PkiError::File {
            action: "create",
            path: dir.clone(),
            source,
        })?;
        let (cert_path, key_path) = (dir.join("ca.crt"), dir.join("ca.key"));
        let (ca_pem, key) = match (read(&cert_path)?, read(&key_path)?) {
            (Some(cert), Some(key)) => (cert, KeyPair::from_pem(&key).map_err(of("the CA"))?),
            (None, None) => {
                let (cert, key) = create_ca().map_err(of("the CA"))?;
                write_secret(&key_path, &key.serialize_pem())?;
                write_secret(&cert_path, &cert)?;
                (cert, key)
            }
            (Some(_), None) => return Err(lonely(cert_path, "its key ca.key is missing")),
            (None, Some(_)) => return Err(lonely(key_path, "its certificate ca.crt is missing")),
        };
        let issuer = Issuer::from_ca_cert_pem(&ca_pem, key).map_err(of("the CA"))?;
        Ok(Self { dir, ca_pem, issuer })
    }

    /// The CA's certificate.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The API server's own certificate for these names and addresses; kept in a file as long as they stay the same.
    pub fn serving(&self, sans: Vec<String>) -> Result<KeyedCertificate, PkiError> {
        let subject = Subject { name: "kube-apiserver", sans, ..Subject::default() };
        self.kept("apiserver", &subject)
    }

    /// The certificate with which the server reaches node agents.
    pub fn kubelet_client(&self) -> Result<KeyedCertificate, PkiError> {
        let subject =
            Subject { name: KUBELET_CLIENT, groups: &[MASTERS], client: true, ..Subject::default() };
        self.kept("apiserver-kubelet-client", &subject)
    }

    /// A fresh client certificate.
    pub fn client(&self, user: &str, groups: &[&str]) -> Result<KeyedCertificate, PkiError> {
        self.issue(&Subject { name: user, groups, client: true, ..Subject::default() })
    }

    /// A kubeconfig with a fresh client certificate in it.
    pub fn kubeconfig(&self, server_url: &str, user: &str, groups: &[&str]) -> Result<String, PkiError> {
        let client = self.client(user, groups)?;
        Ok(format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: seaway\n  cluster:\n    server: {server_url}\n    \
             certificate-authority-data: {ca}\nusers:\n- name: {user}\n  user:\n    client-certificate-data: {cert}\n    \
             client-key-data: {key}\ncontexts:\n- name: seaway\n  context:\n    cluster: seaway\n    user: {user}\n\
             current-context: seaway\n",
            user = serde_json::Value::from(user),
            server_url = serde_json::Value::from(server_url),
            ca = BASE64.encode(&self.ca_pem),
            cert = BASE64.encode(client.cert_pem),
            key = BASE64.encode(client.key_pem),
        ))
    }

    /// What the node agent `name` at `ips` needs.
    pub fn node_credentials(
        &self,
        name: &str,
        ips: &[IpAddr],
        server_url: &str,
    ) -> Result<NodeCredentials, PkiError> {
        let user = format!("system:node:{name}");
        let mut sans =
            vec![name.to_owned(), "localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
        sans.extend(ips.iter().map(ToString::to_string));
        let serving = self.issue(&Subject { name: &user, groups: &["system:nodes"], sans, client: false })?;
        Ok(NodeCredentials {
            kubeconfig: self.kubeconfig(server_url, &user, &["system:nodes"])?,
            ca_pem: self.ca_pem.clone(),
            serving_cert_pem: serving.cert_pem,
            serving_key_pem: serving.key_pem,
        })
    }

    /// Reads `<file>.crt` and `<file>.key` if they still serve, or makes them.
    fn kept(&self, file: &str, subject: &Subject<'_>) -> Result<KeyedCertificate, PkiError> {
        let (cert_path, key_path) =
            (self.dir.join(format!("{file}.crt")), self.dir.join(format!("{file}.key")));
        if let (Some(cert_pem), Some(key_pem)) = (read(&cert_path)?, read(&key_path)?)
            && still_good(&cert_pem, &self.ca_pem, &subject.sans)
            && KeyPair::from_pem(&key_pem).is_ok()
        {
            return Ok(KeyedCertificate { cert_pem, key_pem });
        }
        let made = self.issue(subject)?;
        write_secret(&key_path, &made.key_pem)?;
        write_secret(&cert_path, &made.cert_pem)?;
        Ok(made)
    }

    fn issue(&self, subject: &Subject<'_>) -> Result<KeyedCertificate, PkiError> {
        if subject.groups.len() > organizations().len() {
            return Err(PkiError::TooManyGroups {
                subject: subject.name.to_owned(),
                count: subject.groups.len(),
            });
        }
        let make = || {
            let mut params = CertificateParams::new(subject.sans.clone())?;
            params.distinguished_name = DistinguishedName::new();
            for (attribute, group) in organizations().into_iter().zip(subject.groups) {
                params.distinguished_name.push(attribute, *group);
            }
            params.distinguished_name.push(DnType::CommonName, subject.name);
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages = vec![if subject.client {
                ExtendedKeyUsagePurpose::ClientAuth
            } else {
                ExtendedKeyUsagePurpose::ServerAuth
            }];
            params.use_authority_key_identifier_extension = true;
            set_validity(&mut params, LEAF_DAYS);
            let key = KeyPair::generate()?;
            let cert = params.signed_by(&key, &self.issuer)?;
            Ok(KeyedCertificate { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
        };
        make().map_err(of(subject.name))
    }
}

/// Two attributes that both encode as "organization": the name type keeps one value per attribute.
fn organizations() -> [DnType; 2] {
    [DnType::OrganizationName, DnType::CustomDnType(vec![2, 5, 4, 10])]
}

fn create_ca() -> Result<(String, KeyPair), rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    // The time keeps the CAs of successive clusters apart in clients that remember them.
    params.distinguished_name.push(DnType::CommonName, format!("seaway-ca-{}", Timestamp::now().as_second()));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, CA_DAYS);
    let key = KeyPair::generate()?;
    let cert = params.self_signed(&key)?;
    Ok((cert.pem(), key))
}

fn set_validity(params: &mut CertificateParams, days: i64) {
    let date = |days: i64| {
        let date = (Timestamp::now() + SignedDuration::from_hours(24 * days)).to_zoned(TimeZone::UTC).date();
        let part = |value: i8| u8::try_from(value).unwrap_or(1);
        rcgen::date_time_ymd(date.year().into(), part(date.month()), part(date.day()))
    };
    // A day back: clocks differ.
    params.not_before = date(-1);
    params.not_after = date(days);
}

/// Whether a kept certificate is signed by this CA, lasts long enough and has exactly these names.
fn still_good(cert_pem: &str, ca_pem: &str, sans: &[String]) -> bool {
    let (Some(cert), Some(ca)) = (der(cert_pem), der(ca_pem)) else { return false };
    let (Ok((_, cert)), Ok((_, ca))) = (X509Certificate::from_der(&cert), X509Certificate::from_der(&ca))
    else {
        return false;
    };
    let lasts = cert.validity().not_after.timestamp() > Timestamp::now().as_second() + RENEW_DAYS * 86_400;
    let mut kept = subject_alt_names(&cert);
    let mut wanted = sans.to_vec();
    kept.sort();
    wanted.sort();
    lasts && kept == wanted && cert.issuer() == ca.subject()
}

fn subject_alt_names(cert: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = cert.subject_alternative_name() else { return Vec::new() };
    let names = extension.value.general_names.iter();
    names
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => address(bytes).map(|address| address.to_string()),
            _ => None,
        })
        .collect()
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// The first block of a PEM text.
pub(crate) fn der(pem: &str) -> Option<Vec<u8>> {
    let body: String = pem
        .lines()
        .skip_while(|line| !line.starts_with("-----BEGIN"))
        .skip(1)
        .take_while(|line| !line.starts_with("-----END"))
        .map(str::trim)
        .collect();
    BASE64.decode(body).ok()
}

fn of(subject: &str) -> impl FnOnce(rcgen::Error) -> PkiError {
    let subject = subject.to_owned();
    move |source| PkiError::Certificate { subject, source }
}

fn lonely(path: PathBuf, reason: &str) -> PkiError {
    PkiError::Unusable { path, reason: reason.to_owned() }
}

fn read(path: &Path) -> Result<Option<String>, PkiError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PkiError::File { action: "read", path: path.to_owned(), source }),
    }
}

/// Writes a file that only its owner reads, whole or not at all.
pub fn write_secret(path: &Path, content: &str) -> Result<(), PkiError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let write = || {
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|source| {
        // What there is of it helps nobody, and may be all that fits on the disk.
        drop(fs::remove_file(&temporary));
        PkiError::File { action: "write", path: path.to_owned(), source }
    })
}
