//! TLS for the server: 1.3 only, by rustls over ring; what it shows of itself, and whom it asks for a certificate.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use tokio::sync::watch;

use crate::secrets::{self, FileError, Secrecy};

/// Files for TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate and what leads to its authority, as PEM.
    pub cert: PathBuf,
    /// Its private key, as PEM.
    pub key: PathBuf,
    /// Authorities whose certificates clients may show, as PEM.
    pub client_ca: Option<PathBuf>,
}

/// The one implementation of cryptography.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Reads the files, and follows them. `is_optional`: a client without a certificate can show a token.
pub(super) fn follow(
    files: &TlsFiles,
    is_optional: bool,
) -> Result<watch::Receiver<Arc<ServerConfig>>, FileError> {
    let mut paths = vec![files.cert.clone(), files.key.clone()];
    paths.extend(files.client_ca.clone());
    let files = files.clone();
    secrets::follow(paths, move || config(&files, is_optional))
}

fn config(files: &TlsFiles, is_optional: bool) -> Result<ServerConfig, FileError> {
    let chain = certificates(&files.cert)?;
    let key = private_key(&files.key)?;
    let verifier = match &files.client_ca {
        None => WebPkiClientVerifier::no_client_auth(),
        Some(path) => client_verifier(path, is_optional)?,
    };
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| FileError::unusable(&files.cert, error))?;
    let mut config = builder
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|error| {
            let hint = match error {
                rustls::Error::InconsistentKeys(_) => " (it is not the key of the certificate)",
                _ => "",
            };
            FileError::unusable(&files.key, format!("{error}{hint}"))
        })?;
    // A session that is taken up again would not look at the client's certificate another time.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn client_verifier(
    path: &Path,
    is_optional: bool,
) -> Result<Arc<dyn ClientCertVerifier>, FileError> {
    let roots = Arc::new(roots(path)?);
    let builder = WebPkiClientVerifier::builder_with_provider(roots, provider());
    let builder = if is_optional {
        builder.allow_unauthenticated()
    } else {
        builder
    };
    builder
        .build()
        .map_err(|error| FileError::unusable(path, error))
}

/// The certificates of a file; at least one.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let bytes = secrets::read(path, Secrecy::Public)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let certificates = certificates.map_err(|error| FileError::unusable(path, error))?;
    if certificates.is_empty() {
        return Err(FileError::unusable(path, "no certificate (PEM) is in it"));
    }
    Ok(certificates)
}

/// A private key that others cannot read.
pub(super) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, FileError> {
    let bytes = secrets::read(path, Secrecy::Group)?;
    PrivateKeyDer::from_pem_slice(&bytes)
        .map_err(|_| FileError::unusable(path, "no private key (PEM, without a password) is in it"))
}

/// Authorities.
pub(super) fn roots(path: &Path) -> Result<RootCertStore, FileError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots
            .add(certificate)
            .map_err(|error| FileError::unusable(path, error))?;
    }
    Ok(roots)
}
