//! What the file says of second copies.

use serde::Deserialize;

use super::{Config, Job, RepositoryPlace, one_or_many, optional, rate};
use crate::base::calendar::Calendar;
use crate::base::duration::Stretch;
use crate::base::error::{Error, ErrorKind, Result};
use crate::flows::jobs::words::nearest;
use crate::vault::repository::Keep;

/// A second copy of the points of a job's guests.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Copy {
    /// The repository that they are copied to.
    pub to: String,
    /// When; after each backup of the job if nothing is said.
    #[serde(default, deserialize_with = "one_or_many")]
    pub schedule: Vec<Calendar>,
    /// Which points; all if nothing is said.
    pub points: Option<Keep>,
    /// At most so many bytes a second.
    #[serde(default, deserialize_with = "rate")]
    pub limit_rate: Option<u64>,
    /// How old the newest point of a guest may be there.
    #[serde(default, deserialize_with = "optional")]
    pub rpo: Option<Stretch>,
}

impl Config {
    /// Whether nothing but copies goes to a repository.
    pub(super) fn is_for_copies(&self, repository: &str) -> bool {
        let is_it = |job: &Job| job.copy.as_ref().is_some_and(|copy| copy.to == repository);
        let is_named = |job: &Job| job.repository.as_deref() == Some(repository);
        let is_only = self.repositories.len() == 1;
        !is_only && self.jobs.values().any(is_it) && !self.jobs.values().any(is_named)
    }

    /// Fails unless the repositories of a job are there, each with one key at most.
    pub(super) fn check_places(&self, name: &str, job: &Job) -> Result<()> {
        let (_, place) = self.repository_of(name, job)?;
        let copy = job.copy.as_ref().map(|copy| self.copy_of(name, copy)).transpose()?;
        let has_two = |it: &RepositoryPlace| it.key_file.is_some() && it.key_command.is_some();
        if has_two(place) || copy.is_some_and(has_two) {
            let text = format!("a repository of job {name} has two keys");
            return Err(Error::new(ErrorKind::Usage, text).advise("say key_file or key_command"));
        }
        Ok(())
    }

    /// The repository that the points of a job are copied to.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] if it is not there, or the one that the job makes points in.
    pub fn copy_of(&self, name: &str, copy: &Copy) -> Result<&RepositoryPlace> {
        let refused = |text: String| Error::new(ErrorKind::Usage, format!("job {name}: {text}"));
        let place = self.repositories.get(&copy.to).ok_or_else(|| {
            let known = self.repositories.keys().map(String::as_str);
            let error = refused(format!("copy: there is no [repositories.{}]", copy.to));
            match nearest(&copy.to, known) {
                Some(near) => error.advise(format!("did you mean {near:?}?")),
                None => error.advise("begin it with its place: a folder or s3://BUCKET/PREFIX"),
            }
        })?;
        let job = self.jobs.get(name);
        let own = job.and_then(|job| self.repository_of(name, job).ok()).map(|(own, _)| own);
        if own == Some(copy.to.as_str()) {
            return Err(refused("copy: its points are made there already".to_owned())
                .advise("name another repository"));
        }
        if copy.points.as_ref().is_some_and(Keep::is_empty) {
            return Err(refused("copy: no rule says which points".to_owned())
                .advise("say points = { monthly = \"all\" }, or nothing for all points"));
        }
        Ok(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_goes_to_another_repository() {
        let parse = |repositories: &str, copy: &str| {
            let job = "[jobs.a]\nguests = [\"web\"]\n[jobs.a.copy]\n";
            let main = "[repositories.main]\nplace = \"r\"\n";
            Config::parse(&format!("{main}{repositories}{job}{copy}"))
        };
        let offsite = "[repositories.offsite]\nplace = \"s\"\n";
        for (repositories, copy, said) in [
            ("", "to = \"main\"", "made there already"),
            ("", "to = \"mian\"", "did you mean \"main\"?"),
            ("", "to = \"main\"\nlimit = 3", "there are to"),
            (offsite, "to = \"offsite\"\npoints = { safety = \"3d\" }", "no rule"),
            (offsite, "to = \"offsite\"\nlimit_rate = \"fast\"", "no size"),
            (offsite, "to = \"offsite\"\nlimit_rate = \"0\"", "nothing would pass"),
        ] {
            let error = parse(repositories, copy).unwrap_err();
            let whole = format!("{}; {}", error.chain(), error.advice().unwrap_or_default());
            assert!(whole.contains(said), "{copy}: {whole}");
        }
        // The job need not say where its points are made.
        let config = parse(offsite, "to = \"offsite\"\npoints = { monthly = \"all\" }").unwrap();
        let job = config.jobs.get("a").unwrap();
        assert_eq!(config.repository_of("a", job).unwrap().0, "main");
    }
}
