//! TLS over real sockets, with certificates that are made here: what is let in, what is refused, and in which words.

use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, SanType,
};
use time::{Duration as Days, OffsetDateTime};

use super::access::secret;
use super::*;
use crate::serve::client::ClientConfigFiles;

/// An authority, and where its certificate is.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    path: PathBuf,
}

/// A certificate and its key.
#[derive(Clone)]
struct Identity {
    cert: PathBuf,
    key: PathBuf,
}

impl Authority {
    fn new(folder: &Path, name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let path = folder.join(format!("{name}.pem"));
        std::fs::write(&path, issuer.pem()).unwrap();
        Self { issuer, path }
    }

    /// Of these names, valid from so many days ago for so many days.
    fn sign(&self, folder: &Path, names: &[&str], from: i64, days: i64) -> Identity {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, names[0]);
        for name in names {
            params.subject_alt_names.push(match name.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName((*name).try_into().unwrap()),
            });
        }
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.not_before = OffsetDateTime::now_utc() - Days::days(from);
        params.not_after = params.not_before + Days::days(days);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let name = format!("{}-{from}-{days}", names[0]);
        Identity {
            cert: secret(folder, &format!("{name}.crt"), &certificate.pem()),
            key: secret(folder, &format!("{name}.key"), &key.serialize_pem()),
        }
    }
}

/// Of an authority for `localhost`, with what more a test wants.
fn start_with(
    identity: &Identity,
    client_ca: Option<&Authority>,
    more: impl FnOnce(&mut ServeConfig),
) -> Running {
    // Elsewhere than on loopback: that is where TLS is what is spoken.
    let mut config = config("0.0.0.0:0");
    config.tls = Some(TlsFiles {
        cert: identity.cert.clone(),
        key: identity.key.clone(),
        client_ca: client_ca.map(|authority| authority.path.clone()),
    });
    more(&mut config);
    serve(Server::bind(&config).unwrap())
}

fn client(ca: Option<&Authority>, identity: Option<&Identity>) -> ClientConfigFiles {
    ClientConfigFiles {
        ca: ca.map(|authority| authority.path.clone()),
        identity: identity.map(|it| (it.cert.clone(), it.key.clone())),
        ..ClientConfigFiles::default()
    }
}

impl Running {
    fn https(&self) -> AgentAddress {
        let address = format!("https://localhost:{}", self.address.port());
        address.parse().unwrap()
    }

    async fn pull_with(&self, files: &ClientConfigFiles) -> Result<i64, String> {
        let agent = self
            .https()
            .with(files)
            .map_err(|error| error.to_string())?;
        let filter = ProcessFilter::pid(PID);
        let pulled = pull(
            &agent,
            ProfileType::Cpu,
            &filter,
            Duration::from_secs(1),
            Format::default_format(),
        );
        let pulled = pulled.await.map_err(|error| error.to_string());
        if let Err(error) = &pulled {
            assert_eq!(error.lines().count(), 1, "{error}");
        }
        pulled.map(|pulled| pulled.n_samples)
    }

    /// What `curl` says: status, and what it prints.
    async fn curl(&self, arguments: Vec<String>) -> (String, String) {
        let url = format!(
            "https://localhost:{}/debug/pprof/profile",
            self.address.port()
        );
        let output = spawn_blocking(move || {
            Command::new("curl")
                .args(["--silent", "--show-error", "--output", "/dev/null"])
                .args(["--write-out", "%{http_code} %{http_version}"])
                .args(arguments)
                .arg(format!("{url}?seconds=1&pid={PID}"))
                .output()
                .expect("curl is there")
        });
        let output = output.await.unwrap();
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        (text(&output.stdout), text(&output.stderr))
    }
}

fn refused(result: Result<i64, String>, part: &str) {
    let error = result.unwrap_err();
    assert!(error.contains(part), "{error}");
}

#[tokio::test]
async fn a_client_with_a_certificate_is_served_and_one_without_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let ours = Authority::new(folder, "ours");
    let theirs = Authority::new(folder, "theirs");
    let server = ours.sign(folder, &["localhost", "127.0.0.1"], 1, 10);
    let good = ours.sign(folder, &["alloy"], 1, 10);
    let expired = ours.sign(folder, &["alloy"], 10, 5);
    let foreign = theirs.sign(folder, &["alloy"], 2, 10);
    let running = start_with(&server, Some(&ours), |_| {});
    assert_eq!(
        running.pull_with(&client(Some(&ours), Some(&good))).await,
        Ok(i64::from(N_FUNCTIONS))
    );
    for identity in [None, Some(&expired), Some(&foreign)] {
        let result = running.pull_with(&client(Some(&ours), identity)).await;
        refused(
            result,
            "it refuses this client's certificate, or its absence",
        );
    }
    // A foreign client.
    let ca = ours.path.display().to_string();
    let show = |it: &Identity| {
        vec![
            "--cacert".to_owned(),
            ca.clone(),
            "--cert".to_owned(),
            it.cert.display().to_string(),
            "--key".to_owned(),
            it.key.display().to_string(),
        ]
    };
    assert_eq!(running.curl(show(&good)).await.0, "200 2");
    let mut old = show(&good);
    old.push("--http1.1".to_owned());
    assert_eq!(running.curl(old).await.0, "200 1.1");
    assert_eq!(&running.curl(show(&foreign)).await.0[..3], "000");
    // TLS 1.2 is not spoken.
    let mut old = show(&good);
    old.extend(["--tls-max".to_owned(), "1.2".to_owned()]);
    let (status, error) = running.curl(old).await;
    assert_eq!(&status[..3], "000");
    assert!(error.contains("version"), "{error}");
    running.stop().await;
}

#[tokio::test]
async fn what_is_wrong_with_the_agents_certificate_is_told_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let ours = Authority::new(folder, "ours");
    let theirs = Authority::new(folder, "theirs");
    let token = |config: &mut ServeConfig| {
        config.token_file = Some(secret(folder, "tokens", "0123456789abcdef\n"));
    };
    let with_token = |ca: Option<&Authority>| ClientConfigFiles {
        token_file: Some(folder.join("tokens")),
        ..client(ca, None)
    };
    let good = ours.sign(folder, &["localhost"], 1, 10);
    let running = start_with(&good, None, token);
    let n_samples = running.pull_with(&with_token(Some(&ours))).await;
    assert_eq!(n_samples, Ok(i64::from(N_FUNCTIONS)));
    let by_name = ClientConfigFiles {
        server_name: Some("elsewhere".to_owned()),
        ..with_token(Some(&ours))
    };
    refused(running.pull_with(&by_name).await, "is not for elsewhere");
    let result = running.pull_with(&with_token(Some(&theirs))).await;
    refused(result, "--tls-ca");
    refused(running.pull_with(&with_token(None)).await, "--tls-ca FILE");
    refused(
        running.pull_with(&client(Some(&ours), None)).await,
        "a token is needed",
    );
    let wrong = ClientConfigFiles {
        token_file: Some(secret(folder, "wrong", "wrong-wrong-wrong-wrong")),
        ..client(Some(&ours), None)
    };
    refused(running.pull_with(&wrong).await, "this token is not known");
    // In the clear to a server that speaks TLS.
    let plain: AgentAddress = running.agent();
    let failure = containers(&plain).await.unwrap_err().to_string();
    assert!(failure.contains("https://127.0.0.1"), "{failure}");
    running.stop().await;

    let expired = ours.sign(folder, &["localhost"], 10, 5);
    let running = start_with(&expired, None, token);
    let result = running.pull_with(&with_token(Some(&ours))).await;
    refused(result, "has expired");
    running.stop().await;
    let early = ours.sign(folder, &["localhost"], -5, 10);
    let running = start_with(&early, None, token);
    let result = running.pull_with(&with_token(Some(&ours))).await;
    refused(result, "is not valid yet");
    running.stop().await;
    // TLS to a server that does not speak it.
    let running = start().await;
    let result = running.pull_with(&client(Some(&ours), None)).await;
    refused(result, "does not speak TLS: write http://");
    running.stop().await;
}

#[tokio::test]
async fn a_token_does_not_go_over_the_network_in_the_clear() {
    let folder = tempfile::tempdir().unwrap();
    let files = ClientConfigFiles {
        token_file: Some(secret(
            folder.path(),
            "tokens",
            "0123456789abcdef read-status\n",
        )),
        ..ClientConfigFiles::default()
    };
    let with = |address: &str| {
        let address: AgentAddress = address.parse().unwrap();
        address
            .with(&files)
            .map(|_| ())
            .map_err(|error| error.to_string())
    };
    let error = with("node-1.example:7099").unwrap_err();
    assert!(error.contains("https://node-1.example:7099"), "{error}");
    assert_eq!(with("http://node-1.example:7099"), Ok(()));
    assert_eq!(with("127.0.0.1:7099"), Ok(()));
    assert_eq!(with("[::1]:7099"), Ok(()));
    assert_eq!(with("unix:/run/x"), Ok(()));
}

#[tokio::test]
async fn certificates_have_the_scope_of_their_names_and_a_token_goes_before() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let ours = Authority::new(folder, "ours");
    let server = ours.sign(folder, &["localhost"], 1, 10);
    let running = start_with(&server, Some(&ours), |config| {
        let rules = "ops all\nshop.example namespaces=shop\nother namespaces=other\nprometheus read-status\n";
        config.client_scopes = Some(secret(folder, "scopes", rules));
        config.token_file = Some(secret(folder, "tokens", "0123456789abcdef\n"));
    });
    for (name, expected) in [
        ("ops", Ok(())),
        ("shop.example", Ok(())),
        ("other", Err("no profiled process matches")),
        ("prometheus", Err("the scope read-status is for")),
        ("nobody", Err("no line of --tls-client-scopes")),
    ] {
        let identity = ours.sign(folder, &[name], 1, 10);
        let files = client(Some(&ours), Some(&identity));
        let result = running.pull_with(&files).await;
        match expected {
            Ok(()) => assert!(result.is_ok(), "{name}: {result:?}"),
            Err(part) => refused(result, part),
        }
        let both = ClientConfigFiles {
            token_file: Some(folder.join("tokens")),
            ..files
        };
        assert!(running.pull_with(&both).await.is_ok(), "{name}");
    }
    let result = running.pull_with(&client(Some(&ours), None)).await;
    refused(result, "a client certificate or a token is needed");
    running.stop().await;
}

#[tokio::test]
async fn certificates_and_authorities_are_read_again_when_they_change() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let ours = Authority::new(folder, "ours");
    let theirs = Authority::new(folder, "theirs");
    let first = ours.sign(folder, &["localhost"], 1, 10);
    let second = theirs.sign(folder, &["localhost"], 2, 11);
    let by_ours = ours.sign(folder, &["a"], 1, 10);
    let by_theirs = theirs.sign(folder, &["b"], 1, 10);
    let trusted = Authority {
        issuer: Authority::new(folder, "unused").issuer,
        path: folder.join("trusted.pem"),
    };
    std::fs::copy(&ours.path, &trusted.path).unwrap();
    let running = start_with(&first, Some(&trusted), |_| {});
    let until = async |ca: &Authority, identity: &Identity, is_served: bool| {
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        let files = client(Some(ca), Some(identity));
        loop {
            let result = running.pull_with(&files).await;
            if result.is_ok() == is_served {
                return;
            }
            assert!(std::time::Instant::now() < deadline, "{result:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    until(&ours, &by_ours, true).await;
    until(&ours, &by_theirs, false).await;
    // A key that is not the certificate's: the old pair holds.
    let old_key = std::fs::read(&first.key).unwrap();
    std::fs::copy(&second.key, &first.key).unwrap();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    until(&ours, &by_ours, true).await;
    drop(old_key);
    // The pair is whole again.
    std::fs::copy(&second.cert, &first.cert).unwrap();
    until(&theirs, &by_ours, true).await;
    // Another authority for clients: connections that stand are ended, so that it holds for them too.
    let open = running.https().with(&client(Some(&theirs), Some(&by_ours)));
    let mut open = open.unwrap().connect().await.unwrap();
    assert!(open.get_status(proto::GetStatusRequest {}).await.is_ok());
    std::fs::copy(&theirs.path, &trusted.path).unwrap();
    until(&theirs, &by_theirs, true).await;
    until(&theirs, &by_ours, false).await;
    assert!(open.get_status(proto::GetStatusRequest {}).await.is_err());
    running.stop().await;
}
