//! Who is who in the cluster: an authority, certificates, the key of service accounts, and the files that clients are told by.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};
use serde_json::json;

/// The authority of the cluster, and the folder of what it signs.
pub(super) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: PathBuf,
}

impl Authority {
    /// Makes it; `ca.crt` is its certificate.
    pub(super) fn new(folder: &Path) -> Self {
        let mut params = named("ca", None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, key()).expect("a certificate");
        let authority = Self {
            issuer,
            folder: folder.to_owned(),
        };
        authority.write("ca.crt", &authority.issuer.pem());
        authority
    }

    /// Writes `FILE.crt` and `FILE.key`: `name` (of `group`), who may be asked at these names and addresses.
    pub(super) fn sign(
        &self,
        file: &str,
        (name, group): (&str, Option<&str>),
        hosts: &[&str],
        addresses: &[&str],
    ) {
        let mut params = named(name, group);
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let hosts = hosts.iter().map(|host| {
            let host = (*host).try_into().expect("it is ASCII");
            SanType::DnsName(host)
        });
        let addresses = addresses.iter().map(|address| {
            let address: IpAddr = address.parse().expect("an address");
            SanType::IpAddress(address)
        });
        params.subject_alt_names = hosts.chain(addresses).collect();
        let key = key();
        let signed = params.signed_by(&key, &self.issuer).expect("a certificate");
        self.write(&format!("{file}.crt"), &signed.pem());
        self.write(&format!("{file}.key"), &key.serialize_pem());
    }

    /// Writes the key that tokens of service accounts are signed with: `accounts.key` and `accounts.pub`.
    pub(super) fn write_account_key(&self) {
        let key = key();
        self.write("accounts.key", &key.serialize_pem());
        self.write("accounts.pub", &key.public_key_pem());
    }

    /// Writes `FILE.conf`: how a client with the certificate `FILE.crt` asks the server.
    pub(super) fn write_client(&self, file: &str, server: &str) {
        let path = |name: &str| self.folder.join(name).display().to_string();
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "cluster",
            "clusters": [{"name": "cluster", "cluster": {
                "server": server, "certificate-authority": path("ca.crt"),
            }}],
            "users": [{"name": "user", "user": {
                "client-certificate": path(&format!("{file}.crt")),
                "client-key": path(&format!("{file}.key")),
            }}],
            "contexts": [{"name": "cluster", "context": {"cluster": "cluster", "user": "user"}}],
        });
        self.write(&format!("{file}.conf"), &config.to_string());
    }

    fn write(&self, name: &str, content: &str) {
        fs::write(self.folder.join(name), content).expect("the folder is ours");
    }
}

fn named(name: &str, group: Option<&str>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    if let Some(group) = group {
        let of = DnType::OrganizationName;
        params.distinguished_name.push(of, group);
    }
    params
}

fn key() -> KeyPair {
    KeyPair::generate().expect("a key")
}
