//! Paths in JSON. A path need not be text; JSON must be. Bytes that are not UTF-8 are shown as
//! U+FFFD: a report with an odd name in it is better than none.
//!
//! What has a form as text of its own (`Display` and `FromStr`) goes through `text`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serializer};

/// Writes a path as text.
pub(crate) fn serialize<S: Serializer>(
    path: impl AsRef<Path>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.as_ref().to_string_lossy())
}

/// Writes paths as text.
pub(crate) fn serialize_all<S: Serializer>(
    paths: &[PathBuf],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(paths.iter().map(|path| path.to_string_lossy()))
}

/// Takes text for a path.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    String::deserialize(deserializer).map(PathBuf::from)
}

/// Writes a path that may be missing.
pub(crate) mod optional {
    use std::path::PathBuf;

    use serde::Serializer;

    /// Writes the path as text, or null.
    pub(crate) fn serialize<S: Serializer>(
        path: &Option<PathBuf>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match path {
            Some(path) => super::serialize(path, serializer),
            None => serializer.serialize_none(),
        }
    }
}

/// (De)serializes by way of `Display` and `FromStr`.
pub(crate) mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    /// Writes the value as text.
    pub(crate) fn serialize<T: Display, S: Serializer>(
        value: &T,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    /// What is wrong with a text, and of a failure of ours what to write.
    fn whole<E: Display + 'static>(error: &E) -> String {
        let own = (error as &dyn std::any::Any).downcast_ref::<crate::base::error::Error>();
        match own.and_then(|own| Some((own.chain(), own.advice()?))) {
            Some((chain, advice)) => format!("{chain}; {advice}"),
            None => error.to_string(),
        }
    }

    /// Takes text for the value.
    pub(crate) fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display + 'static>,
        D: Deserializer<'de>,
    {
        String::deserialize(deserializer)?.parse().map_err(|error| D::Error::custom(whole(&error)))
    }

    /// The same of a value that may be missing.
    pub(crate) mod optional {
        use super::{Deserialize, Deserializer, Display, FromStr, Serializer, whole};
        use serde::de::Error as _;

        /// Writes the value as text, or null.
        pub(crate) fn serialize<T: Display, S: Serializer>(
            value: &Option<T>,
            serializer: S,
        ) -> Result<S::Ok, S::Error> {
            match value {
                Some(value) => serializer.collect_str(value),
                None => serializer.serialize_none(),
            }
        }

        /// Takes text for the value, and null for none.
        pub(crate) fn deserialize<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
        where
            T: FromStr<Err: Display + 'static>,
            D: Deserializer<'de>,
        {
            let text = Option::<String>::deserialize(deserializer)?;
            let read = |text: String| text.parse().map_err(|error| D::Error::custom(whole(&error)));
            text.map(read).transpose()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::path::PathBuf;

    #[derive(serde::Serialize)]
    struct Report {
        #[serde(serialize_with = "super::serialize")]
        path: PathBuf,
        #[serde(serialize_with = "super::optional::serialize")]
        other: Option<PathBuf>,
    }

    /// A backup that took hours failed at its last step because the image's name was not UTF-8.
    #[test]
    fn a_path_that_is_no_text_is_shown_all_the_same() {
        let path = PathBuf::from(OsStr::from_bytes(b"/images/\xff.qcow2"));
        let report = Report { other: Some(path.clone()), path };
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(
            text,
            "{\"path\":\"/images/\u{fffd}.qcow2\",\"other\":\"/images/\u{fffd}.qcow2\"}"
        );
    }
}
