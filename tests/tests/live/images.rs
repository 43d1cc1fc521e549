//! Binaries of an image, as its containers see them: each through an overlay of its own over the same layers.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use profiler_agent::process::file::FileKey;
use pyagent_tests::interpreters::{self, Interpreter};
use pyagent_tests::target::Target;

/// In a mount namespace of its own: mounts the overlay, does something there, and becomes the program that stands behind.
const CONTAINER: &str = "\
set -e
mkdir \"$1/upper\" \"$1/work\" \"$1/root\"
mount -t overlay overlay -o \"lowerdir=$2,upperdir=$1/upper,workdir=$1/work\" \"$1/root\"
cd \"$1/root\"
eval \"$3\"
shift 3
exec \"$@\"";

/// An interpreter that lies in a folder of its own, or in one like it, as root installed it.
fn python() -> (Interpreter, String) {
    let is_fit = |python: &Interpreter| {
        let owner = std::fs::metadata(&python.path).map(|file| file.uid());
        !python.has_own_root() && python.has_libraries() && owner.is_ok_and(|owner| owner == 0)
    };
    let python = interpreters::supported().into_iter().rfind(is_fit);
    let python = python.expect("an interpreter that root installed");
    let prefix = python.stdlib.parent().and_then(Path::parent).unwrap();
    let prefix = prefix.display().to_string();
    (python, prefix)
}

/// What the binary that has the runtime is known by in a container where `before` was done.
fn key(python: &Interpreter, prefix: &str, before: &str) -> FileKey {
    let folder = tempfile::tempdir().unwrap();
    let inside = python.path.strip_prefix(prefix).unwrap();
    let program = folder.path().join("root").join(inside);
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", CONTAINER, "container"])
        .arg(folder.path())
        .args([prefix, before])
        .arg(program)
        .args([
            "-I",
            "-S",
            "-B",
            "-c",
            "print('ready', flush=True); input()",
        ]);
    let mut target = Target::start(&mut command);
    assert_eq!(target.line(), "ready");
    target.interpreter().binary_key
}

#[test]
fn containers_of_an_image_share_what_is_read_of_its_binaries_until_one_writes_to_them() {
    let (python, prefix) = python();
    let first = key(&python, &prefix, "true");
    assert_eq!(first, key(&python, &prefix, "true"));

    // A copy of the same size, time and bytes, and where the file had one name of the same inode number.
    let own = "find bin lib -maxdepth 1 -type f \\( -name 'python*' -o -name 'libpython*' \\) \
               -exec touch -r {} {} \\;";
    let copied = key(&python, &prefix, own);
    assert_eq!(
        (copied.size_bytes, copied.modified, copied.head),
        (first.size_bytes, first.modified, first.head)
    );
    assert_ne!(copied.changed, first.changed);
    assert_ne!(copied, first);
}
