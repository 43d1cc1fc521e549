//! `cargo xtask image`: a container image of the static binary, without Docker or a registry.
//!
//! Nothing is in it but the binary, the roots that TLS connections are checked against, and names for the users. The same
//! binary, revision and architecture give the same bytes, and so the same digest.

mod archive;
mod layer;

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    build, command,
    dist::{self, Target},
    workspace,
};
use archive::{Image, Platform};

/// What an image is called when nothing else is said.
const NAME: &str = concat!("localhost/pyagent:", env!("CARGO_PKG_VERSION"));

/// What can be typed behind `cargo xtask image`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// For which machines; this machine's own when it is not given.
    #[arg(long, value_enum)]
    target: Option<Target>,
    /// A static binary to take, in place of one that is built now.
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Name of the image, with its tag.
    #[arg(long, value_name = "NAME:TAG", default_value = NAME, value_parser = name)]
    name: String,
    /// Where to write the archive; `target/dist/pyagent-VERSION-ARCHITECTURE.tar` when it is not given.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Path of an image for the tests: as by `cargo xtask image`, of a binary that is there sooner.
pub(crate) fn archive() -> Result<PathBuf> {
    image(&Args {
        target: None,
        binary: Some(build::static_binary()?),
        name: NAME.to_owned(),
        output: Some(workspace::target().join("static/pyagent.tar")),
    })
}

/// Builds the binary and the image, and says how to load it; returns its path.
pub(crate) fn image(args: &Args) -> Result<PathBuf> {
    let binary = match &args.binary {
        Some(path) => path.clone(),
        None => dist::dist(args.target)?,
    };
    let bytes = fs::read(&binary).with_context(|| format!("cannot read {}", binary.display()))?;
    ensure!(
        dist::is_static(&bytes),
        "{} is no static binary, which the image has no libraries for: cargo xtask dist makes one",
        binary.display()
    );
    let platform = Platform::of_elf(&bytes)
        .with_context(|| format!("{} is neither for x86-64 nor for arm64", binary.display()))?;
    let image = Image::new(&args.name, platform, &bytes, &Origin::of_checkout()?)?;
    let path = args.output.clone().unwrap_or_else(|| {
        let name = format!(
            "pyagent-{}-{}.tar",
            env!("CARGO_PKG_VERSION"),
            platform.name()
        );
        workspace::target().join("dist").join(name)
    });
    write(&path, &image)?;
    let shown = path.display();
    println!(
        "{shown}: {:.1} MiB, {} for linux/{}",
        image.archive.len() as f64 / f64::from(1 << 20),
        args.name,
        platform.name()
    );
    println!("digest {}", image.digest);
    println!("podman load -i {shown}");
    println!("docker load -i {shown}");
    println!("ctr -n k8s.io images import {shown}");
    println!(
        "skopeo copy oci-archive:{shown} docker://REGISTRY/pyagent:{}",
        env!("CARGO_PKG_VERSION")
    );
    Ok(path)
}

/// All of it or nothing.
fn write(path: &Path, image: &Image) -> Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let write = || {
        fs::create_dir_all(folder)?;
        let file = tempfile::Builder::new()
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .tempfile_in(folder)?;
        fs::write(file.path(), &image.archive)?;
        file.persist(path)?;
        anyhow::Ok(())
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// What the binary was made of.
struct Origin {
    /// The commit; `None` outside of a checkout.
    revision: Option<String>,
    /// When that was made, or what SOURCE_DATE_EPOCH says (reproducible-builds.org).
    created: SystemTime,
}

impl Origin {
    fn of_checkout() -> Result<Self> {
        let git = |arguments: &[&str]| {
            let mut git = command::program("git");
            git.arg("-C").arg(workspace::root()).args(arguments);
            command::output(&mut git)
                .ok()
                .map(|text| text.trim().to_owned())
        };
        let seconds = match std::env::var("SOURCE_DATE_EPOCH") {
            Ok(text) => text.parse().with_context(|| {
                format!("SOURCE_DATE_EPOCH={text}: seconds since 1970 are meant")
            })?,
            Err(_) => git(&["log", "-1", "--format=%ct"])
                .and_then(|text| text.parse().ok())
                .unwrap_or(0),
        };
        Ok(Self {
            revision: git(&["rev-parse", "HEAD"]),
            created: UNIX_EPOCH + Duration::from_secs(seconds),
        })
    }
}

/// A name as container runtimes take it, with a tag.
fn name(text: &str) -> Result<String, String> {
    let hint =
        || format!("`{text}` is no name with a tag: write it as registry.example/team/pyagent:1.0");
    let (name, tag) = text.rsplit_once(':').ok_or_else(hint)?;
    let is_tag = !tag.is_empty()
        && tag.len() <= 128
        && tag
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    let is_part = |part: &str| {
        let ends = [part.bytes().next(), part.bytes().last()];
        ends.iter()
            .all(|end| end.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()))
            && part.bytes().all(|byte| {
                byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-:".contains(&byte)
            })
    };
    if is_tag && name.split('/').all(is_part) {
        Ok(text.to_owned())
    } else {
        Err(hint())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_a_tag() {
        for fine in [
            "localhost/pyagent:0.1.0",
            "r.example:5000/a/b-c:v1",
            "pyagent:latest",
        ] {
            assert_eq!(name(fine).as_deref(), Ok(fine));
        }
        for wrong in [
            "pyagent",
            "Pyagent:1",
            "a//b:1",
            "a:b c",
            ":1",
            "a:",
            "-a:1",
            "r.example:5000/a",
        ] {
            assert!(name(wrong).is_err(), "{wrong}");
        }
    }
}
