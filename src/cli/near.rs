//! Commands that other programs have: whoever types one is told what it is called here.

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Words, and what to do in their place.
const TIPS: &[(&[&str], &str)] = &[
    (
        &["list", "ls", "snapshots", "snapshot", "archives", "log", "show", "guests", "disks"],
        "qdelta points lists the points of every guest and disk",
    ),
    (
        &["check", "test", "validate", "prove", "fsck", "scrub"],
        "qdelta verify proves that points can be restored",
    ),
    (&["create", "save", "store", "full", "incremental"], "qdelta backup makes a recovery point"),
    (
        &["recover", "extract", "get", "download"],
        "qdelta restore DISK[@POINT] OUTPUT restores a disk",
    ),
    (
        &["rollback", "roll-back", "revert", "undo"],
        "qdelta restore DISK@POINT --in-place rolls an image back where it lies",
    ),
    (&["inspect", "describe", "stat"], "qdelta info PATH shows what an image or an archive is"),
    (&["new", "setup"], "qdelta init DIR makes a repository"),
    (&["benchmark", "perf"], "qdelta bench IMAGE measures how fast this machine backs up"),
    (
        &["bitmaps", "bitmap", "clones", "checkpoints"],
        "qdelta anchors lists the anchors that backups have left, and removes them",
    ),
    (
        &["forget", "delete", "remove", "rm", "expire", "purge", "gc", "compact"],
        "qdelta prune removes the points that no rule keeps; --dry-run shows which",
    ),
    (
        &["diff", "compare"],
        "qdelta files diff DISK@A..B compares the files at two points; two points with the same root (qdelta \
         points --json) hold the same disk",
    ),
    (
        &["nbd", "export", "publish"],
        "qdelta serve DISK@POINT --socket PATH shows a point as a disk over NBD",
    ),
    (
        &["browse", "fuse", "umount", "unmount"],
        "qdelta mount DIR shows points as files while it runs",
    ),
    (
        &["sync", "push", "pull", "replicate", "clone"],
        "qdelta copy --to REPO2 brings what another repository lacks",
    ),
    (
        &["unlock", "break-lock"],
        "there is nothing to unlock: a lock ends with the process that holds it",
    ),
    (&["completion"], "qdelta completions SHELL writes the completions of a shell"),
    (&["version"], "qdelta --version"),
];

/// What to type in the place of a command that there is not, if it is known from elsewhere.
pub fn tip(error: &clap::Error) -> Option<String> {
    if error.kind() != ErrorKind::InvalidSubcommand {
        return None;
    }
    let Some(ContextValue::String(typed)) = error.get(ContextKind::InvalidSubcommand) else {
        return None;
    };
    let word = typed.to_lowercase();
    let (_, tip) = TIPS.iter().find(|(words, _)| words.contains(&word.as_str()))?;
    Some(format!("there is no command '{typed}'\n        {tip}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::CommandFactory;

    use super::super::args::Cli;
    use super::*;

    #[test]
    fn no_word_is_there_twice_or_is_a_command() {
        let mut program = Cli::command();
        program.build();
        let mut seen = BTreeSet::new();
        for word in TIPS.iter().flat_map(|(words, _)| *words) {
            assert!(seen.insert(word), "{word} is there twice");
            assert!(program.find_subcommand(word).is_none(), "{word} is a command");
            let error = Cli::command().try_get_matches_from(["qdelta", word]).unwrap_err();
            assert!(tip(&error).is_some_and(|tip| tip.contains(word)), "{word}");
        }
        let error = Cli::command().try_get_matches_from(["qdelta", "bakup"]).unwrap_err();
        assert_eq!(tip(&error), None);
        assert!(error.to_string().contains("backup"), "clap knows what is nearly right: {error}");
    }
}
