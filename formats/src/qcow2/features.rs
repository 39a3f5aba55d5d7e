//! The three sets of feature bits in a version 3 header.

/// Declares a set of feature bits.
macro_rules! feature_set {
    ($(#[$doc:meta])* $name:ident { $($(#[$bit_doc:meta])* $bit:ident = $value:expr, $text:literal;)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct $name(pub u64);

        impl $name {
            $($(#[$bit_doc])* pub const $bit: Self = Self(1 << $value);)*
            /// The bits that are known here.
            pub const KNOWN: Self = Self(0 $(| 1 << $value)*);

            /// Whether all bits of `bits` are set.
            pub fn contains(self, bits: Self) -> bool {
                self.0 & bits.0 == bits.0
            }

            /// The same set with `bits` in it.
            #[must_use]
            pub fn with(self, bits: Self) -> Self {
                Self(self.0 | bits.0)
            }

            /// The same set without `bits`.
            #[must_use]
            pub fn without(self, bits: Self) -> Self {
                Self(self.0 & !bits.0)
            }

            /// The bits that are not known here.
            pub fn unknown(self) -> Self {
                self.without(Self::KNOWN)
            }

            /// Whether no bit is set.
            pub fn is_empty(self) -> bool {
                self.0 == 0
            }

            /// The known bits and the names that QEMU gives them.
            pub const NAMES: &'static [(u8, &'static str)] = &[$(($value, $text)),*];

            /// The names of the known bits that are set.
            pub fn names(self) -> impl Iterator<Item = &'static str> {
                Self::NAMES
                    .iter()
                    .filter(move |(bit, _)| self.0 & (1 << bit) != 0)
                    .map(|(_, name)| *name)
            }
        }
    };
}

feature_set! {
    /// A reader that does not know one of these bits must not read the image.
    Incompatible {
        /// Refcounts may be stale; the mapping tables are not.
        DIRTY = 0, "dirty bit";
        /// Somebody found the metadata damaged.
        CORRUPT = 1, "corrupt bit";
        /// The guest's data lies in another file.
        DATA_FILE = 2, "external data file";
        /// Compressed clusters are not deflate.
        COMPRESSION = 3, "compression type";
        /// L2 entries are 128 bits long and know subclusters.
        EXTENDED_L2 = 4, "extended L2 entries";
    }
}

feature_set! {
    /// A program that does not know one of these bits may ignore it.
    Compatible {
        /// Refcounts may be updated late; see [`Incompatible::DIRTY`].
        LAZY_REFCOUNTS = 0, "lazy refcounts";
    }
}

feature_set! {
    /// A writer that does not know one of these bits must clear it.
    Autoclear {
        /// The bitmaps extension is consistent.
        BITMAPS = 0, "bitmaps";
        /// The external data file is a raw image that can be read alone.
        DATA_FILE_RAW = 1, "raw external data";
    }
}
