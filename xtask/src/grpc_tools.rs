//! Other people's tools for gRPC, that the tests ask the service with: buf (rules for .proto files), grpcurl (a client by
//! reflection) and ghz (load). Built by Go once, kept in the cache.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::{cache, collector, command, go};

/// Raise it when the way they are made changes.
const RECIPE: &str = "1";

/// The programs: name, and the package at its version.
const PROGRAMS: [(&str, &str); 3] = [
    // Newer ones need modules that cannot be had everywhere.
    ("buf", "github.com/bufbuild/buf/cmd/buf@v1.54.0"),
    (
        "grpcurl",
        "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.4",
    ),
    ("ghz", "github.com/bojand/ghz/cmd/ghz@v0.93.0"),
];

/// Folder of the programs. `None`, said on standard output, where they cannot be made; in CI that is an error.
pub(crate) fn get() -> Result<Option<PathBuf>> {
    collector::unless_in_ci("buf, grpcurl and ghz", programs())
}

fn programs() -> Result<PathBuf> {
    cache::get(&cache::Entry {
        name: "grpc-tools",
        recipe: &format!("{RECIPE}\n{PROGRAMS:?}"),
        check: &|folder| {
            PROGRAMS.iter().all(|(name, _)| {
                command::succeeds(command::program(folder.join(name)).arg("--version"))
            })
        },
        make: &|folder| {
            let scratch = tempfile::tempdir()?;
            for (name, package) in PROGRAMS {
                go::install(package, scratch.path(), folder)
                    .with_context(|| format!("Go cannot build {name}"))?;
            }
            Ok(())
        },
    })
}
