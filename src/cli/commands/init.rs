//! `qdelta init`: a new repository.

use qdelta::repository::Repository;
use qdelta::{Error, ErrorKind, Result};
use serde::Serialize;

use crate::cli::args::Init;
use crate::cli::{Context, status};

/// What `--json` shows.
#[derive(Serialize)]
struct Report<'a> {
    repository: String,
    id: &'a str,
}

/// Makes the repository.
pub fn run(args: &Init, context: &mut Context) -> Result<u8> {
    let dir = args.dir.as_ref().or(context.global.repo.as_ref()).ok_or_else(|| {
        Error::new(ErrorKind::Usage, "no folder was named").advise("qdelta init DIR")
    })?;
    let repository = Repository::init(dir)?;
    context.out.was_done(format!("the repository {} was made", dir.display()));
    if context.out.json {
        let report =
            Report { repository: repository.path().display().to_string(), id: repository.id() };
        context.out.json(&report)?;
    } else {
        let dir = dir.display();
        context.out.success(format!("made the repository {dir}"))?;
        context.out.success(format!("back up into it with: qdelta backup IMAGE --repo {dir}"))?;
    }
    Ok(status::DONE)
}
