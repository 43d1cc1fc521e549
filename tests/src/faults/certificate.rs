//! The Collector's certificate expires, and is renewed.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType,
    date_time_ymd,
};

use super::Account;
use super::scene::Scene;
use crate::push::{Collector, CollectorSetup};

/// The last year of certificates that are valid, and of those that have expired.
const VALID: i32 = 2200;
const EXPIRED: i32 = 2020;

/// An authority, and a server for 127.0.0.1 whose certificate is made anew.
struct Files {
    issuer: CertifiedIssuer<'static, KeyPair>,
    authority: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

impl Files {
    fn new(folder: &Path) -> Self {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("a certificate");
        let files = Self {
            authority: folder.join("ca.pem"),
            certificate: folder.join("server.pem"),
            key: folder.join("server.key"),
            issuer,
        };
        std::fs::write(&files.authority, files.issuer.pem()).expect("the folder is ours");
        files
    }

    /// A certificate of the server until that year.
    fn renew(&self, last_year: i32) {
        let mut params = CertificateParams::default();
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        params.subject_alt_names.push(SanType::IpAddress(address));
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(last_year, 1, 1);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        std::fs::write(&self.certificate, certificate.pem()).expect("the folder is ours");
        std::fs::write(&self.key, key.serialize_pem()).expect("the folder is ours");
    }
}

/// It has expired for so long; the agent has connected anew by then. `None`, said: there is no Collector.
///
/// # Panics
/// When the agent fails, or takes the certificate.
#[must_use]
pub fn expires(time: Duration) -> Option<Account> {
    let scene = Scene::new();
    let files = Files::new(scene.folder.path());
    files.renew(VALID);
    let setup = CollectorSetup {
        receiver: format!(
            "        tls:\n          cert_file: {}\n          key_file: {}\n",
            files.certificate.display(),
            files.key.display()
        ),
        ..CollectorSetup::default()
    };
    let mut collector = Collector::start(scene.folder.path(), &setup)?;
    let push = format!("otlp=https://127.0.0.1:{}", collector.port);
    let authority = files.authority.display().to_string();
    let agent = scene.agent(&push, &["--push-ca", &authority]);
    scene.wait_windows(3);
    let serve = |collector: &mut Collector, last_year| {
        collector.kill();
        files.renew(last_year);
        collector.restart();
    };
    serve(&mut collector, EXPIRED);
    let before = scene.arrivals(&collector).len();
    sleep(time);
    assert_eq!(scene.arrivals(&collector).len(), before, "it was believed");
    serve(&mut collector, VALID);
    Some(scene.finish(agent, &collector, 1))
}
