//! What no type can check of the file: values that would do nothing, and ones that work against each other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use super::{Config, Hooks, Job, Limits};
use crate::base::error::{Error, ErrorKind, Result};
use crate::flows::verify::Budget;
use crate::vault::repository::{Keep, Rung};

/// How the address of an object store begins.
const STORE: &str = "s3://";

/// The longest name that the file may give to something of its own.
const NAME_LEN_MAX: usize = 64;

fn refused<T>(text: impl Into<String>, advice: impl Into<String>) -> Result<T> {
    Err(Error::new(ErrorKind::Usage, text).advise(advice.into()))
}

impl Config {
    /// Fails where the file makes no sense.
    pub(super) fn check(&self) -> Result<()> {
        if self.jobs.is_empty() {
            return refused("there is no job", "begin one with [jobs.NAME]");
        }
        let Limits { guests_at_once, threads, nice, .. } = self.limits;
        if !(1..=64).contains(&guests_at_once)
            || threads.is_some_and(|it| !(1..=1024).contains(&it))
        {
            let text =
                "limits: no guest, or more than anybody has use for, would be backed up at once";
            return refused(text, "guests_at_once is 1 to 64, threads 1 to 1024");
        }
        let least = Limits::memory_min(guests_at_once);
        if let Some(memory) = self.limits.memory.filter(|memory| *memory < least) {
            let size = |bytes| bytesize::ByteSize(bytes).display().iec();
            let text = format!(
                "limits: memory = {} is too little for guests_at_once = {guests_at_once}",
                size(memory)
            );
            return refused(text, format!("say at least {}, or fewer guests_at_once", size(least)));
        }
        if nice > 19 {
            return refused(format!("limits: nice = {nice} is too much"), "nice is 0 to 19");
        }
        self.repositories.keys().try_for_each(|name| check_name("a repository", name))?;
        self.notify.keys().try_for_each(|name| check_name("a notifier", name))?;
        self.check_each_place()?;
        let relative = self.host_files.iter().flatten().find(|path| !path.is_absolute());
        if let Some(path) = relative {
            let text = format!("host_files: {} begins nowhere", path.display());
            return refused(text, "give paths that begin with /");
        }
        super::super::telling::check(self)?;
        check_hooks("hooks", &self.hooks)?;
        for (name, job) in &self.jobs {
            check_name("a job", name)?;
            self.check_places(name, job)?;
            check_job(name, job)?;
        }
        self.check_images()
    }

    /// Fails if two images would be one disk of a repository: their points would be a mixture, and pruning would keep
    /// those of one of them.
    fn check_images(&self) -> Result<()> {
        let mut known: BTreeMap<(String, String), &Path> = BTreeMap::new();
        for (name, job) in &self.jobs {
            let repository = self.repository_of(name, job)?.0;
            let mut paths: BTreeSet<PathBuf> = BTreeSet::new();
            for image in &job.images {
                if !paths.insert(image.path.components().collect()) {
                    let text = format!("job {name}: the image {} twice", image.path.display());
                    return refused(text, "leave one of them out: each is backed up once");
                }
                let disk = image.spec().map_err(|error| {
                    let advice = "say what it is to be called there: disk = \"NAME\"";
                    error.within(format!("job {name}: {}", image.path.display())).advise(advice)
                })?;
                let disk = disk.or_only_disk().to_string();
                let other = known.insert((repository.to_owned(), disk.clone()), &image.path);
                if let Some(other) = other.filter(|other| *other != image.path) {
                    let (other, path) = (other.display(), image.path.display());
                    let text = format!("job {name}: {other} and {path} would both be disk {disk}");
                    return refused(text, "give one of them another name: disk = \"NAME/TARGET\"");
                }
            }
        }
        Ok(())
    }

    /// Fails if two names mean one repository: what one job keeps there, another would count as its own.
    fn check_each_place(&self) -> Result<()> {
        let mut known: BTreeMap<PathBuf, &str> = BTreeMap::new();
        for (name, repository) in &self.repositories {
            if repository.keep_free.is_some() && repository.place.starts_with(STORE) {
                let text = format!("repositories.{name}: no object store says how much is free");
                return refused(text, "leave keep_free out");
            }
            if let Some(other) = known.insert(plain(&repository.place), name) {
                let text = format!("repositories.{name} and repositories.{other} are one place");
                return refused(text, "give each repository one name, and use it in all jobs");
            }
        }
        Ok(())
    }
}

/// A place without what makes no difference to where it is: of an object store, all options but which store it is.
fn plain(place: &str) -> PathBuf {
    let components = |path: &str| -> PathBuf {
        Path::new(path).components().filter(|it| *it != Component::CurDir).collect()
    };
    let Some(rest) = place.strip_prefix(STORE) else { return components(place) };
    let (rest, options) = rest.split_once('?').unwrap_or((rest, ""));
    let which = |option: &&str| option.starts_with("endpoint=") || option.starts_with("profile=");
    let mut options: Vec<&str> =
        options.split('&').filter(which).map(|it| it.trim_end_matches('/')).collect();
    options.sort_unstable();
    let rest = components(rest);
    PathBuf::from(format!("{STORE}{}?{}", rest.display(), options.join("&")))
}

/// Names stand in metrics, in data for Nagios, in mails and in lines for a shell.
fn check_name(what: &str, name: &str) -> Result<()> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
    if (1..=NAME_LEN_MAX).contains(&name.len()) && name.chars().all(is_plain) {
        return Ok(());
    }
    refused(
        format!("{name:?} can't be the name of {what}"),
        "letters, digits, _ and -, at most 64 of them",
    )
}

fn check_hooks(of: &str, hooks: &Hooks) -> Result<()> {
    let all = [&hooks.before, &hooks.after, &hooks.failed, &hooks.at_last];
    if all.iter().any(|line| line.as_ref().is_some_and(|line| line.trim().is_empty())) {
        return refused(format!("{of}: an empty line does nothing"), "leave it out");
    }
    if hooks.time_limit.is_some() && all.iter().all(|line| line.is_none()) {
        return refused(
            format!("{of}: time_limit is of no hook"),
            "say before, after, failed or finally, or leave time_limit out",
        );
    }
    Ok(())
}

fn check_job(name: &str, job: &Job) -> Result<()> {
    if job.guests.is_empty() && job.images.is_empty() && !job.with_host_config {
        return refused(
            format!("job {name}: nothing is to be backed up"),
            "say guests = [\"all\"], or name some; or [[jobs.NAME.images]]",
        );
    }
    if job.except.iter().any(|pattern| pattern.to_string() == "all") {
        return refused(format!("job {name}: except leaves no guest"), "name those to leave out");
    }
    if let Some(image) = job.images.iter().find(|it| !it.is_export() && !it.path.is_absolute()) {
        let text = format!("job {name}: the image {} begins nowhere", image.path.display());
        return refused(text, "give a path that begins with /");
    }
    let with_bitmap = job.images.iter().filter_map(|it| Some((it, it.live_bitmap_file.as_ref()?)));
    for (image, file) in with_bitmap {
        if !image.is_export() {
            let text =
                format!("job {name}: live_bitmap_file: {} is no export", image.path.display());
            return refused(text, "of image files, anchor = \"bitmap\" learns what has changed");
        }
        if !file.is_absolute() {
            let text = format!("job {name}: live_bitmap_file: {} begins nowhere", file.display());
            return refused(text, "give a path that begins with /");
        }
    }
    if !(-7..=19).contains(&job.level) {
        return refused(
            format!("job {name}: zstd has no level {}", job.level),
            "level is -7 to 19",
        );
    }
    let frozen = job.freeze_max.map(|stretch| stretch.0.as_secs());
    if frozen.is_some_and(|seconds| seconds > 600) {
        let text = format!("job {name}: no guest should be frozen for so long");
        return refused(text, "freeze_max is at most 10m");
    }
    let is_nothing =
        |budget: &Budget| matches!(budget, Budget::Bytes(0) | Budget::Time(Duration::ZERO));
    if job.verify.as_ref().and_then(|it| it.budget.as_ref()).is_some_and(is_nothing) {
        let text = format!("job {name}: verify: with this budget nothing is ever proved");
        return refused(text, "say budget = \"2h\", or leave it out to prove everything");
    }
    if job.prune.as_ref().and_then(|it| it.keep.as_ref()).is_some_and(Keep::is_empty) {
        let text = format!("job {name}: prune: no rule says what to keep");
        return refused(
            text,
            "say keep = { daily = 14 }, or leave keep out for the repository's rules",
        );
    }
    if let Some(drill) = &job.drill {
        if drill.pick == Some(0) {
            let text = format!("job {name}: drill: pick = 0 would drill nobody, ever");
            return refused(text, "leave pick out, or say pick = 1");
        }
        if drill.boot_command.is_none() && drill.to.is_some_and(|to| to > Rung::Check) {
            let text = format!("job {name}: drill: no guest starts without a boot_command");
            return refused(text, "say boot_command, or to = \"check\"");
        }
    }
    check_hooks(&format!("job {name}"), &job.hooks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(lines: &str) -> Result<Config> {
        Config::parse(&format!(
            "[repositories.main]\nplace = \"r\"\n[jobs.a]\nrepository = \"main\"\nguests = [\"web\"]\n{lines}"
        ))
    }

    /// Files like these were taken without a word, and what they asked for never happened: a notifier that was
    /// never told, pruning that failed each night, drills of no guest.
    #[test]
    fn what_would_do_nothing_is_refused() {
        for (lines, said) in [
            ("[notify.x]\ncommand = \"c\"\non = [\"digest\"]", "digest = "),
            ("[notify.x]\ncommand = \"c\"\non = [\"start\"]", "only a ping"),
            ("[notify.x]\ncommand = \"c\"\non = []", "never told"),
            ("[notify.x]\ncommand = \"c\"\nlevel = \"ok\"", "leave level out"),
            ("[notify.x]\ncommand = \" \"", "command"),
            ("[notify.x]\nmail = \"root\"\ntoken = \"file:/t\"", "token"),
            ("[notify.x]\nping = \"http://h/1\"\ntoken = \"file:/t\"", "token"),
            ("[notify.x]\nping = \"http://h/1\"\nagain = \"2d\"", "again"),
            ("[notify.x]\ngotify = \"http://h\"", "token"),
            ("[notify.x]\nwebhook = \"http://\"", "neither an address"),
            ("[notify.x]\nwebhook = \"http://a b/\"", "neither an address"),
            ("[notify.\"a'b=c | x\"]\ncommand = \"c\"", "name of a notifier"),
            ("[repositories.\"a'b=c | x\\n<b>\"]\nplace = \"s\"", "name of a repository"),
            ("[jobs.a.hooks]\nbefore = \"\"", "does nothing"),
            ("[jobs.a.hooks]\ntime_limit = \"1h\"", "no hook"),
            ("[hooks]\nfailed = \" \"", "does nothing"),
            ("[jobs.a.prune]\nkeep = {}", "no rule"),
            ("[jobs.a.prune]\nkeep = { safety = \"1d\" }", "no rule"),
            ("[jobs.a.drill]\npick = 0", "pick = 1"),
            ("[jobs.a.drill]\nto = \"agent\"", "boot_command"),
            ("[jobs.a.verify]\nbudget = \"0h\"", "budget"),
            ("[jobs.a.verify]\nbudget = \"0G\"", "budget"),
            ("schedule = []", "empty list"),
            ("[jobs.a.verify]\nschedule = []", "empty list"),
            ("except = [\"all\"]", "leaves no guest"),
            ("[[jobs.a.images]]\npath = \"x.raw\"", "begins with /"),
            ("[repositories.other]\nplace = \"./r/\"\n[jobs.a.copy]\nto = \"other\"", "one place"),
            (
                "[repositories.x]\nplace = \"s3://b/p/?region=r\"\n[repositories.y]\nplace = \"s3://b//p\"",
                "one place",
            ),
            ("[[jobs.a.images]]\npath = \"/i/r w.img\"", "disk = \"NAME\""),
            ("[[jobs.a.images]]\npath = \"nbd+unix:///vda?socket=s\"", "begins nowhere"),
            (
                "[[jobs.a.images]]\npath = \"/i/x.raw\"\nlive_bitmap_file = \"/run/b\"",
                "/i/x.raw is no export",
            ),
            (
                "[[jobs.a.images]]\npath = \"nbd://h/v\"\nlive_bitmap_file = \"b\"",
                "b begins nowhere",
            ),
            (
                "[[jobs.a.images]]\npath = \"nbds://h/vda?tls-psk-file=keys\"",
                "keys of an export begins nowhere",
            ),
            ("[[jobs.a.images]]\npath = \"nbd+unix:///vda\"", "line 7, column 8"),
            ("[[jobs.a.images]]\npath = \"nbd://u:pw@h/vda\"", "a password"),
            ("[[jobs.a.images]]\npath = \"nbd://host\"", "disk = \"NAME\""),
            (
                "[[jobs.a.images]]\npath = \"nbd://h/v\"\n[[jobs.a.images]]\npath = \"NBD://h:10809/%76\"\ndisk = \"y\"",
                "twice",
            ),
            (
                "[[jobs.a.images]]\npath = \"nbd://h/v\"\n[[jobs.a.images]]\npath = \"nbd://other/v\"",
                "would both be disk v/disk",
            ),
            ("[notify.x]\nmail = \"root\"\nfrom = \"\"", "from = \"root@"),
            ("[notify.x]\nwebhook = \"hooks.example/x\"", "say file:PATH"),
            ("[notify.x]\nmail = \"root\"\ndigest = \"soon\"", "write it as systemd does"),
            ("[repositories.x]\nplace = \"s3://b/p\"\nkeep_free = \"1G\"", "leave keep_free out"),
            (
                "[[jobs.a.images]]\npath = \"/i/x.raw\"\n[[jobs.a.images]]\npath = \"/i//x.raw\"\ndisk = \"y\"",
                "twice",
            ),
        ] {
            let error = config(lines).expect_err(lines);
            let whole = format!("{}; {}", error.chain(), error.advice().unwrap_or_default());
            assert!(whole.contains(said), "{lines}: {whole}");
            assert_eq!(error.kind(), ErrorKind::Usage);
        }
        let top =
            "host_files = [\"etc\"]\n[repositories.r]\nplace = \"r\"\n[jobs.a]\nguests = [\"x\"]";
        assert!(Config::parse(top).unwrap_err().chain().contains("begins nowhere"));
        for good in [
            "[notify.x]\ncommand = \"c\"\non = []\ndigest = \"8:00\"",
            "[notify.x]\ngotify = \"http://h\"\ntoken = \"file:/t\"\nlevel = \"critical\"",
            "[jobs.a.hooks]\nafter = \"true\"\ntime_limit = \"1h\"",
            "[jobs.a.prune]",
            "[repositories.other]\nplace = \"s3://r\"\n[jobs.a.copy]\nto = \"other\"",
            "[repositories.x]\nplace = \"s3://b/p?endpoint=http://1\"\n\
             [repositories.y]\nplace = \"s3://b/p?endpoint=http://2\"",
        ] {
            config(good).expect(good);
        }
    }
}
