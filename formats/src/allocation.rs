//! What an image over a backing file had allocated at a point: a file of a host's state. It is no part of an archive
//! and of no recovery point; whoever finds none, or one that is not sound, reads the whole disk.

use roaring::RoaringTreemap;

use crate::{FormatError, Problem};

/// The first bytes. The last one is the version.
const MAGIC: [u8; 8] = *b"QDALLOC\x01";
const DIGEST_LEN: usize = 32;
/// The smallest unit of a qcow2 image: a cluster or subcluster of 512 bytes.
const UNIT_MIN: u64 = 512;

/// The longest file that is read, in bytes: 2^29 units, one by one, and what describes them.
pub const LEN_MAX: u64 = 80 << 20;

/// What the top layer of an image has something of its own for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allocation {
    /// The name of the anchor that began at the same moment.
    pub anchor: String,
    /// What is allocated at once: bytes in a cluster, or in a subcluster if there are any.
    pub unit: u64,
    /// The numbers of the allocated units.
    pub units: RoaringTreemap,
}

impl Allocation {
    /// The bytes of the file: magic, the unit, the length of the anchor's name, the name, the units as a roaring
    /// treemap, and the BLAKE3 digest of all that.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(64 + self.anchor.len() + self.units.serialized_size());
        bytes.extend(MAGIC);
        bytes.extend(self.unit.to_le_bytes());
        bytes.extend((self.anchor.len() as u32).to_le_bytes());
        bytes.extend(self.anchor.as_bytes());
        // Writing to a Vec cannot fail.
        self.units.serialize_into(&mut bytes).unwrap_or_default();
        let digest = blake3::hash(&bytes);
        bytes.extend(digest.as_bytes());
        bytes
    }

    /// Takes the bytes of a file.
    ///
    /// # Errors
    /// The bytes are no such file, or not as they were written.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let invalid = |field: &'static str, words: String| {
            FormatError::new(0, field, Problem::Invalid(words.into()))
        };
        let cut = |field: &'static str| invalid(field, "the file ends in it".to_owned());
        let (body, digest) = bytes.split_last_chunk::<DIGEST_LEN>().ok_or_else(|| cut("digest"))?;
        if blake3::hash(body).as_bytes() != digest {
            return Err(invalid("digest", "it is not that of the bytes before it".to_owned()));
        }
        let (magic, rest) = body.split_first_chunk().ok_or_else(|| cut("magic"))?;
        if *magic != MAGIC {
            return Err(FormatError::new(
                0,
                "magic",
                Problem::BadMagic("what an image had allocated"),
            ));
        }
        let (unit, rest) = rest.split_first_chunk().ok_or_else(|| cut("unit"))?;
        let unit = u64::from_le_bytes(*unit);
        if !unit.is_power_of_two() || unit < UNIT_MIN {
            return Err(invalid("unit", format!("{unit} bytes are no cluster and no subcluster")));
        }
        let (len, rest) = rest.split_first_chunk().ok_or_else(|| cut("length of the name"))?;
        let len = u32::from_le_bytes(*len) as usize;
        let (name, mut rest) = rest.split_at_checked(len).ok_or_else(|| cut("name"))?;
        let anchor =
            String::from_utf8(name.to_vec()).map_err(|error| invalid("name", error.to_string()))?;
        let units = RoaringTreemap::deserialize_from(&mut rest)
            .map_err(|error| invalid("units", error.to_string()))?;
        match rest.is_empty() {
            true => Ok(Self { anchor, unit, units }),
            false => Err(invalid("end", "there are bytes that belong to nothing".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Allocation {
        let units = (0..300).chain(5000..5001).chain(1 << 40..(1 << 40) + 9).collect();
        Allocation { anchor: "qdelta-of-then".to_owned(), unit: 4096, units }
    }

    #[test]
    fn what_is_written_is_read_again() {
        assert_eq!(Allocation::decode(&sample().encode()).unwrap(), sample());
        let empty = Allocation { units: RoaringTreemap::new(), ..sample() };
        assert_eq!(Allocation::decode(&empty.encode()).unwrap(), empty);
    }

    /// A backup believes what it reads here of clusters that it does not read.
    #[test]
    fn whatever_was_changed_is_seen() {
        let bytes = sample().encode();
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            assert!(Allocation::decode(&bad).is_err(), "byte {at}");
            assert!(Allocation::decode(&bytes[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let odd = Allocation { unit: 1000, ..sample() };
        assert!(Allocation::decode(&odd.encode()).unwrap_err().to_string().contains("1000 bytes"));
        let mut longer = sample().encode();
        longer.truncate(longer.len() - DIGEST_LEN);
        longer.push(0);
        longer.extend(*blake3::hash(&longer).as_bytes());
        assert!(Allocation::decode(&longer).is_err());
    }
}
