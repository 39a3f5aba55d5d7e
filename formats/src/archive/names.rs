//! The closed sets of the metadata: kinds, trackers, consistencies. One byte in the file, one
//! kebab-case word in text.

use crate::{FormatError, Problem};

/// Defines an enum with the byte and the word of each variant in one place.
macro_rules! named {
    ($(#[$doc:meta])* $name:ident ($what:literal) { $($(#[$vdoc:meta])* $variant:ident = $byte:literal, $word:literal;)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant,)* }

        impl $name {
            /// Every value, in the order of their bytes.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The word for it.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            /// The byte that stands for it in a file.
            pub fn to_byte(self) -> u8 {
                match self { $(Self::$variant => $byte,)* }
            }

            /// What a byte of a file stands for.
            ///
            /// # Errors
            /// Nothing is known by that byte.
            pub fn from_byte(byte: u8) -> Result<Self, FormatError> {
                match byte {
                    $($byte => Ok(Self::$variant),)*
                    _ => Err(FormatError::new(0, $what, Problem::Unsupported(format!("{} {byte}", $what)))),
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = FormatError;

            fn from_str(text: &str) -> Result<Self, FormatError> {
                match text {
                    $($word => Ok(Self::$variant),)*
                    _ => Err(FormatError::new(0, $what, Problem::Invalid(format!("{text:?} is no {}", $what).into()))),
                }
            }
        }
    };
}

named! {
    /// What an archive holds.
    Kind ("kind") {
        /// Everything that is not zero; it needs no other archive.
        Full = 0, "full";
        /// What changed since the latest point.
        Incremental = 1, "incremental";
        /// What changed since the latest full.
        Differential = 2, "differential";
    }
}

named! {
    /// How the changed blocks were found.
    Tracker ("tracker") {
        /// Everything allocated was read, and the digests compared.
        Scan = 0, "scan";
        /// QEMU's persistent dirty bitmap.
        Bitmap = 1, "bitmap";
        /// An internal snapshot as the anchor, L2 mappings compared.
        Snapshot = 2, "snapshot";
        /// Clusters allocated above the layer that was the top at the parent.
        Overlay = 3, "overlay";
        /// Physical extents of two reflink clones compared.
        Reflink = 4, "reflink";
        /// A dirty bitmap of QEMU's, as the server of an export tells it.
        LiveBitmap = 5, "live-bitmap";
    }
}

named! {
    /// What the guest was doing at the recovery point.
    Consistency ("consistency") {
        /// No guest was running.
        Offline = 0, "offline";
        /// A running guest had frozen its filesystems.
        FilesystemQuiesced = 1, "filesystem-quiesced";
        /// A running guest, as after a power cut.
        CrashConsistent = 2, "crash-consistent";
        /// Nothing says that the disk held still while it was read: what was read first may be older than what was
        /// read last.
        Unknown = 3, "unknown";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_words_round_trip_and_nothing_else_is_known() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_byte(kind.to_byte()).unwrap(), *kind);
            assert_eq!(kind.as_str().parse::<Kind>().unwrap(), *kind);
        }
        for tracker in Tracker::ALL {
            assert_eq!(Tracker::from_byte(tracker.to_byte()).unwrap(), *tracker);
            assert_eq!(tracker.as_str().parse::<Tracker>().unwrap(), *tracker);
        }
        for consistency in Consistency::ALL {
            assert_eq!(Consistency::from_byte(consistency.to_byte()).unwrap(), *consistency);
            assert_eq!(consistency.as_str().parse::<Consistency>().unwrap(), *consistency);
        }
        assert!(Kind::from_byte(3).is_err());
        assert!(Tracker::from_byte(6).is_err());
        assert!(Consistency::from_byte(4).is_err());
        assert!("Full".parse::<Kind>().is_err());
    }
}
