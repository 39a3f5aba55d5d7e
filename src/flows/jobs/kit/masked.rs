//! The file of jobs without what is secret in it: of each address of the web, the host stays.

use crate::base::error::{Error, ErrorKind, Result};
use crate::flows::jobs::config::Config;
use crate::flows::notify::host_of;

/// What stands for the rest of an address.
const HIDDEN: &str = "HIDDEN";

/// The text of a file of jobs, in which of each address only scheme and host are left: also in hooks, commands and
/// comments. The place of a repository stays whole.
///
/// # Errors
/// The file is no text, or has an address in a way that can't be found in it.
pub(super) fn config(bytes: &[u8]) -> Result<String> {
    let text =
        str::from_utf8(bytes).map_err(|_| Error::new(ErrorKind::Usage, "the file is no text"))?;
    let masked = masked(text);
    // A letter may be written by its number, so that no search finds the address.
    let read = Config::parse(&masked)?;
    let is_open = |address: &str| {
        let host = host_of(address);
        !(address.ends_with(&format!("://{host}/{HIDDEN}"))
            || address.ends_with(&format!("://{host}")))
    };
    let found = read.notify.iter().find(|(_, it)| it.addresses().into_iter().any(is_open));
    match found {
        None => Ok(masked),
        Some((name, _)) => {
            let text =
                format!("notify.{name}: its address can't be hidden in the copy of this file");
            Err(Error::new(ErrorKind::Usage, text).advise("write it plainly, or say file:PATH"))
        }
    }
}

fn masked(text: &str) -> String {
    let (mut masked, mut rest) = (String::new(), text);
    let next = |rest: &str| {
        let lower = rest.to_ascii_lowercase();
        ["http://", "https://"]
            .into_iter()
            .filter_map(|it| lower.find(it).map(|at| (at, it.len())))
            .min()
    };
    while let Some((at, len)) = next(rest) {
        let (before, from) = rest.split_at(at);
        let is_end = |c: char| c.is_whitespace() || "\"'`<>()\\".contains(c);
        let end = from.find(is_end).unwrap_or(from.len());
        let (address, after) = from.split_at(end);
        masked.push_str(before);
        let host = host_of(address);
        // The endpoint of a store is a part of the place of a repository.
        match before.ends_with("endpoint=") || address.len() == len + host.len() {
            true => masked.push_str(address),
            false => {
                masked.push_str(address.get(..len).unwrap_or(""));
                masked.push_str(&format!("{host}/{HIDDEN}"));
            }
        }
        rest = after;
    }
    masked + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kit had the address of a chat with its secret in it, in a file that everybody could read.
    #[test]
    fn nothing_of_an_address_but_the_host_leaves_the_site() {
        let place = "place = \"s3://b/p?endpoint=https://minio:9000/x&region=r\"";
        let text = format!(
            "# before: https://old.example/OLDSECRET\n[repositories.main]\n{place}\n\
             [hooks]\nafter = \"curl -fsS https://hc.example/UUIDSECRET; true\"\n\
             [jobs.a]\nguests = [\"x\"]\n\
             [notify.chat]\nwebhook = \"https://hooks.example/services/T0/SLACKSECRET?k=QSECRET\"\n\
             [notify.watch]\nping = 'HTTPS://u:PWSECRET@hc.example/UUIDSECRET'\n\
             [notify.plain]\nntfy = \"http://h:8080\"\n"
        )
        .replace("HTTPS", "https");
        let kept = config(text.as_bytes()).unwrap();
        assert!(!kept.contains("SECRET"), "{kept}");
        for there in [
            place,
            "\"https://hooks.example/HIDDEN\"",
            "'https://hc.example/HIDDEN'",
            "\"http://h:8080\"",
        ] {
            assert!(kept.contains(there), "{there}: {kept}");
        }
        let hidden = "[repositories.main]\nplace = \"r\"\n[jobs.a]\nguests = [\"x\"]\n\
                      [notify.chat]\nwebhook = \"\\u0068ttps://hooks.example/SECRET\"\n";
        assert!(config(hidden.as_bytes()).is_err());
    }
}
