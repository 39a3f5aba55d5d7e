//! `qdelta init`: a new repository, or the `qdelta.toml` of one that lost it.

use qdelta::flows::report::InitReport;
use qdelta::vault::repository::{Repair, Repository, Settings};
use qdelta::{Error, ErrorKind, Result};

use crate::cli::args::Init;
use crate::cli::{Context, status};

/// Makes the repository.
pub fn run(args: &Init, context: &mut Context) -> Result<u8> {
    let dir = args.dir.as_ref().or(context.global.repo.as_ref()).ok_or_else(|| {
        Error::new(ErrorKind::Usage, "no folder was named").advise("qdelta init DIR")
    })?;
    let mut settings = Settings::of_machine();
    if let Some(zone) = &args.time_zone {
        settings.time_zone.clone_from(zone);
    }
    let (repository, repair) = match args.repair {
        true => Repository::repair(dir).map(|(repository, repair)| (repository, Some(repair)))?,
        false => (Repository::init_with(dir, &settings)?, None),
    };
    if repair.is_none() {
        context.out.was_done(format!("the repository {} was made", dir.display()));
    }
    let time_zone = repository.settings().map_or(settings.time_zone, |it| it.time_zone);
    if context.out.json {
        context.out.json(&InitReport {
            repository: repository.path().to_owned(),
            id: repository.id().to_owned(),
            time_zone,
            repaired: repair,
        })?;
        return Ok(status::DONE);
    }
    let dir = dir.display();
    context.out.success(match repair {
        None => format!("made the repository {dir}"),
        Some(Repair::Sound) => format!("{dir}: qdelta.toml is sound; nothing was changed"),
        Some(Repair::SameId) => format!("{dir}: made qdelta.toml anew, with the id that it had"),
        Some(Repair::NewId) => format!(
            "{dir}: made qdelta.toml anew, with a new id: no point knows the old one, so anchors that \
             earlier backups have left in images must be removed by hand"
        ),
    })?;
    if repair.is_none() {
        context.out.success(format!("back up into it with: qdelta backup IMAGE --repo {dir}"))?;
    }
    Ok(status::DONE)
}
