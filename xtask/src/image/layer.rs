//! Layers: tar archives, compressed, with nothing in them that differs from one run to the next.

use std::io::Write as _;

use anyhow::Result;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use flate2::{Compression, GzBuilder};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

/// A layer, compressed.
pub(super) struct Layer {
    pub(super) bytes: Vec<u8>,
    /// Of what is in it before it is compressed: what the image's configuration names it by (`diff_ids`).
    pub(super) diff_id: String,
}

/// Where the binary lies: in the search path, so that `kubectl exec POD -- pyagent doctor` finds it.
pub(super) const BINARY: &str = "usr/local/bin/pyagent";

/// What changes seldom: roots of TLS, names of users, the folders that are mounted over.
pub(super) fn base() -> Result<Layer> {
    let mut layer = Writer::new();
    for folder in [
        "etc",
        "etc/ssl",
        "etc/ssl/certs",
        "run",
        "tmp",
        "usr",
        "usr/local",
        "usr/local/bin",
        "var",
        "var/lib",
    ] {
        let mode = if folder == "tmp" { 0o1777 } else { 0o755 };
        layer.folder(folder, mode)?;
    }
    layer.folder("var/lib/pyagent", 0o700)?;
    layer.file("etc/group", 0o644, b"root:x:0:\npyagent:x:65532:\n")?;
    layer.file(
        "etc/passwd",
        0o644,
        b"root:x:0:0:root:/:/sbin/nologin\npyagent:x:65532:65532:pyagent:/:/sbin/nologin\n",
    )?;
    layer.file(
        "etc/ssl/certs/ca-certificates.crt",
        0o644,
        roots().as_bytes(),
    )?;
    layer.finish()
}

/// The binary.
pub(super) fn binary(bytes: &[u8]) -> Result<Layer> {
    let mut layer = Writer::new();
    layer.file(BINARY, 0o755, bytes)?;
    layer.finish()
}

/// Mozilla's roots in PEM.
fn roots() -> String {
    let mut text = String::new();
    for root in webpki_root_certs::TLS_SERVER_ROOT_CERTS {
        text += "-----BEGIN CERTIFICATE-----\n";
        let encoded = STANDARD.encode(root);
        for line in encoded.as_bytes().chunks(64) {
            text += std::str::from_utf8(line).expect("base64 is ASCII");
            text.push('\n');
        }
        text += "-----END CERTIFICATE-----\n";
    }
    text
}

struct Writer {
    tar: Builder<Vec<u8>>,
}

impl Writer {
    fn new() -> Self {
        Self {
            tar: Builder::new(Vec::new()),
        }
    }

    fn folder(&mut self, path: &str, mode: u32) -> Result<()> {
        self.entry(&format!("{path}/"), EntryType::Directory, mode, b"")
    }

    fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.entry(path, EntryType::Regular, mode, content)
    }

    /// Of root's, at the begin of 1970.
    fn entry(&mut self, path: &str, kind: EntryType, mode: u32, content: &[u8]) -> Result<()> {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        header.set_mtime(0);
        Ok(self.tar.append_data(&mut header, path, content)?)
    }

    fn finish(self) -> Result<Layer> {
        let plain = self.tar.into_inner()?;
        let diff_id = format!("sha256:{}", sha256(&plain));
        let mut compressed = GzBuilder::new()
            .mtime(0)
            .write(Vec::new(), Compression::best());
        compressed.write_all(&plain)?;
        Ok(Layer {
            bytes: compressed.finish()?,
            diff_id,
        })
    }
}

/// SHA-256 as images name things by it.
pub(super) fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}
