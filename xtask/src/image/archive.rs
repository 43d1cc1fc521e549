//! The archive: an image layout of the Open Container Initiative, with the list that `docker load` reads beside it. So the one
//! file is loaded by Docker, Podman, containerd and skopeo.

use anyhow::Result;
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    Origin,
    layer::{self, Layer, sha256},
};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// For which machines an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Platform {
    Amd64,
    Arm64,
}

impl Platform {
    /// What an ELF file is for.
    pub(super) fn of_elf(elf: &[u8]) -> Option<Self> {
        match crate::dist::elf_machine(elf)? {
            62 => Some(Self::Amd64),
            183 => Some(Self::Arm64),
            _ => None,
        }
    }

    /// As Go and the image specification call it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }
}

/// An image, ready to be written.
pub(super) struct Image {
    pub(super) archive: Vec<u8>,
    /// Of its manifest: what a registry would name it by.
    pub(super) digest: String,
}

impl Image {
    pub(super) fn new(
        name: &str,
        platform: Platform,
        binary: &[u8],
        origin: &Origin,
    ) -> Result<Self> {
        let layers = [layer::base()?, layer::binary(binary)?];
        let labels = labels(origin)?;
        let config = config(platform, &layers, &labels, origin)?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(CONFIG, &config),
            "layers": layers.iter().map(|it| descriptor(LAYER, &it.bytes)).collect::<Vec<_>>(),
            "annotations": labels,
        });
        let manifest = serde_json::to_vec(&manifest)?;
        let (_, tag) = name.rsplit_once(':').unwrap_or((name, "latest"));
        let mut entry = descriptor(MANIFEST, &manifest);
        entry["platform"] = json!({"architecture": platform.name(), "os": "linux"});
        // The first is what containerd reads, the other what the specification says.
        entry["annotations"] = json!({
            "io.containerd.image.name": name,
            "org.opencontainers.image.ref.name": tag,
        });
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]});
        let for_docker = json!([{
            "Config": blob(&config),
            "RepoTags": [name],
            "Layers": layers.iter().map(|it| blob(&it.bytes)).collect::<Vec<_>>(),
        }]);

        let mut tar = Builder::new(Vec::new());
        let mut add = |path: &str, content: &[u8]| {
            let mut header = Header::new_ustar();
            header.set_entry_type(EntryType::Regular);
            header.set_mode(0o644);
            header.set_size(content.len() as u64);
            header.set_mtime(0);
            tar.append_data(&mut header, path, content)
        };
        add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        add("index.json", &serde_json::to_vec(&index)?)?;
        add("manifest.json", &serde_json::to_vec(&for_docker)?)?;
        for content in [&config, &manifest]
            .into_iter()
            .chain(layers.iter().map(|it| &it.bytes))
        {
            add(&blob(content), content)?;
        }
        Ok(Self {
            archive: tar.into_inner()?,
            digest: digest(&manifest),
        })
    }
}

/// How the image is run when nothing else is said: as root, with the rights that the container has.
fn config(
    platform: Platform,
    layers: &[Layer],
    labels: &Value,
    origin: &Origin,
) -> Result<Vec<u8>> {
    let created = rfc3339(origin)?;
    let history = ["roots of TLS, users", "pyagent"]
        .map(|what| json!({"created": created, "created_by": what}));
    Ok(serde_json::to_vec(&json!({
        "created": created,
        "architecture": platform.name(),
        "os": "linux",
        "config": {
            "Entrypoint": [format!("/{}", layer::BINARY)],
            "Cmd": ["--all-python"],
            "Env": ["PATH=/usr/local/bin", "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt"],
            "WorkingDir": "/",
            "ExposedPorts": {"7099/tcp": {}},
            "StopSignal": "SIGTERM",
            "Labels": labels,
        },
        "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|it| &*it.diff_id).collect::<Vec<_>>()},
        "history": history,
    }))?)
}

/// The keys that the image specification predefines, as far as there is something to say.
fn labels(origin: &Origin) -> Result<Value> {
    let mut labels = json!({
        "org.opencontainers.image.title": "pyagent",
        "org.opencontainers.image.description": "Profiles every CPython process of a host from outside, with eBPF",
        "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
        "org.opencontainers.image.licenses": "Apache-2.0 OR MIT",
        "org.opencontainers.image.created": rfc3339(origin)?,
    });
    if let Some(revision) = &origin.revision {
        labels["org.opencontainers.image.revision"] = json!(revision);
    }
    Ok(labels)
}

fn rfc3339(origin: &Origin) -> Result<String> {
    Ok(OffsetDateTime::from(origin.created).format(&Rfc3339)?)
}

fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(content), "size": content.len()})
}

/// Its path in the archive.
fn blob(content: &[u8]) -> String {
    format!("blobs/sha256/{}", sha256(content))
}

/// As the specification writes it.
pub(super) fn digest(content: &[u8]) -> String {
    format!("sha256:{}", sha256(content))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read as _;
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn origin() -> Origin {
        Origin {
            revision: Some("abc".into()),
            created: UNIX_EPOCH + Duration::from_secs(1_700_000_000),
        }
    }

    fn files(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(archive).entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            files.insert(path, content);
        }
        files
    }

    fn parsed(content: &[u8]) -> Value {
        serde_json::from_slice(content).unwrap()
    }

    #[test]
    fn the_same_input_gives_the_same_bytes() {
        let new = || Image::new("a:1", Platform::Amd64, b"binary", &origin()).unwrap();
        assert_eq!(new().archive, new().archive);
        let other = Image::new("a:1", Platform::Amd64, b"binary 2", &origin()).unwrap();
        assert_ne!(other.digest, new().digest);
    }

    #[test]
    fn every_blob_is_named_by_what_is_in_it_and_every_name_leads_to_one() {
        let image = Image::new("a/b:1", Platform::Arm64, b"binary", &origin()).unwrap();
        let files = files(&image.archive);
        for (path, content) in &files {
            if let Some(name) = path.strip_prefix("blobs/sha256/") {
                assert_eq!(name, sha256(content));
            }
        }
        let follow = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap();
            let content = &files[&digest.replace("sha256:", "blobs/sha256/")];
            assert_eq!(descriptor["size"], content.len());
            content
        };
        let index = parsed(&files["index.json"]);
        assert_eq!(index["manifests"][0]["digest"], *image.digest);
        let manifest = parsed(follow(&index["manifests"][0]));
        let config = parsed(follow(&manifest["config"]));
        assert_eq!(config["architecture"], "arm64");
        let docker = parsed(&files["manifest.json"]);
        for (idx, layer) in manifest["layers"].as_array().unwrap().iter().enumerate() {
            let compressed = follow(layer);
            let mut plain = Vec::new();
            flate2::read::GzDecoder::new(&compressed[..])
                .read_to_end(&mut plain)
                .unwrap();
            assert_eq!(config["rootfs"]["diff_ids"][idx], digest(&plain));
            assert_eq!(docker[0]["Layers"][idx], blob(compressed));
        }
    }

    #[test]
    fn nothing_is_in_it_but_the_binary_the_roots_and_the_users() {
        let layer = layer::base().unwrap();
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(&layer.bytes[..])
            .read_to_end(&mut plain)
            .unwrap();
        let files = files(&plain);
        let regular: Vec<&str> = files
            .keys()
            .map(String::as_str)
            .filter(|path| !path.ends_with('/'))
            .collect();
        assert_eq!(
            regular,
            [
                "etc/group",
                "etc/passwd",
                "etc/ssl/certs/ca-certificates.crt"
            ]
        );
        // As another reader sees the roots.
        let pem = String::from_utf8(files["etc/ssl/certs/ca-certificates.crt"].clone()).unwrap();
        assert_eq!(
            pem.matches("-----BEGIN CERTIFICATE-----").count(),
            webpki_root_certs::TLS_SERVER_ROOT_CERTS.len()
        );
    }
}
