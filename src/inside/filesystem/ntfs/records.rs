//! Records of the table, and all attributes of a file, in whichever records they lie.

use std::collections::BTreeSet;
use std::sync::Arc;

use qdelta_formats::filesystems::ntfs::record::{self, Attribute, Head, Standard, Value, kind};
use qdelta_formats::filesystems::ntfs::{self, Reference};

use super::{Data, Id, Ntfs, Place, Runs};
use crate::base::error::Result;

/// The most records that a file may have.
const RECORDS_MAX: usize = 16_384;
/// The longest list of attributes; Windows makes none of more than 256 KiB.
const LIST_LEN_MAX: u64 = 4 << 20;
/// The most runs of clusters of a file.
const RUNS_MAX: usize = 4 << 20;

/// All attributes of a file.
#[derive(Debug)]
pub(super) struct File {
    pub is_folder: bool,
    /// How many names it has, without those for DOS.
    pub links: u32,
    pub standard: Standard,
    pub attributes: Vec<Attribute>,
    /// Where its first record lies on the volume, and its length.
    pub place: (u64, u64),
}

impl File {
    /// The first attribute of a type with a name.
    pub fn first(&self, kind: u32, name: &[u8]) -> Option<&Attribute> {
        self.attributes.iter().find(|found| found.kind == kind && found.name == name)
    }

    /// All attributes of a type with a name: a value of many runs has several.
    pub fn all<'a>(&'a self, kind: u32, name: &'a [u8]) -> impl Iterator<Item = &'a Attribute> {
        self.attributes.iter().filter(move |found| found.kind == kind && found.name == name)
    }

    /// The names of streams besides the content.
    pub fn streams(&self) -> BTreeSet<Vec<u8>> {
        let data = self.attributes.iter().filter(|found| found.kind == kind::DATA);
        data.map(|found| found.name.clone()).filter(|name| !name.is_empty()).collect()
    }
}

impl Ntfs {
    /// Finds where the table of records lies: its own first record says so, and further ones, which lie in
    /// what is known of the table by then.
    pub(super) fn find_table(&mut self) -> Result<()> {
        let len = self.parameters.record as u64;
        self.table.push(Some(self.parameters.table), len);
        let (head, attributes) = self.record(ntfs::TABLE)?;
        if !head.in_use {
            return Err(self.damaged("the table of records is not in use"));
        }
        let mut runs = Runs::default();
        self.add_runs(&attributes, &mut runs)?;
        self.table = runs;
        for reference in self.other_records(&attributes, kind::DATA)? {
            let (_, attributes) = self.record(reference.number())?;
            let mut table = std::mem::take(&mut self.table);
            let added = self.add_runs(&attributes, &mut table);
            self.table = table;
            added?;
        }
        Ok(())
    }

    /// Adds the runs of the content that these attributes speak of.
    fn add_runs(&self, attributes: &[Attribute], runs: &mut Runs) -> Result<()> {
        for attribute in attributes.iter().filter(|found| found.kind == kind::DATA) {
            if attribute.name.is_empty() {
                self.append(&attribute.value, runs)?;
            }
        }
        Ok(())
    }

    /// Adds the runs of a value behind those that are known.
    pub(super) fn append(&self, value: &Value, to: &mut Runs) -> Result<()> {
        let Value::There { first, runs, .. } = value else { return Ok(()) };
        let cluster = self.parameters.cluster;
        if first.checked_mul(cluster) != Some(to.len()) {
            return Err(self.damaged("a file's runs of clusters leave a gap"));
        }
        for (count, place) in runs {
            let sized = |clusters: u64| clusters.checked_mul(cluster).filter(|len| *len < 1 << 62);
            let (Some(len), Some(at)) =
                (sized(*count), place.map(sized).map_or(Some(None), |at| at.map(Some)))
            else {
                return Err(self.damaged("a run of clusters is longer than a volume"));
            };
            to.push(at, len);
            if to.count() > RUNS_MAX || to.len() >= 1 << 62 {
                return Err(self.damaged("a file has more runs of clusters than any can have"));
            }
        }
        Ok(())
    }

    /// A record of the table.
    fn record(&self, number: u64) -> Result<(Head, Vec<Attribute>)> {
        let bytes = self.record_bytes(number)?.0;
        let head = Head::parse(&bytes).map_err(|error| self.wrong(error))?;
        let attributes = head
            .attributes(&bytes)
            .map_err(|error| self.wrong(error).within(format!("record {number} is damaged")))?;
        Ok((head, attributes))
    }

    fn record_bytes(&self, number: u64) -> Result<(Vec<u8>, u64)> {
        let len = self.parameters.record;
        let at = number.checked_mul(len as u64).filter(|at| *at < self.table.len());
        let at = at.ok_or_else(|| self.damaged("a record outside the table is named"))?;
        let mut bytes = vec![0; len];
        let mut done = 0;
        let mut place = None;
        while done < len {
            let (Place::At(start), end) = self.table.at(at + done as u64) else {
                return Err(self.damaged("a record lies in a hole of the table"));
            };
            place.get_or_insert(start);
            let count = (end - at - done as u64).min((len - done) as u64) as usize;
            let part = bytes.get_mut(done..done + count).unwrap_or_default();
            self.source.read(part, start)?;
            done += count;
        }
        ntfs::put_back(&mut bytes, b"FILE")
            .map_err(|error| self.wrong(error).within(format!("record {number} is damaged")))?;
        Ok((bytes, place.unwrap_or_default()))
    }

    /// The other records that hold attributes of a file: of one type, or of all if it is 0.
    fn other_records(&self, attributes: &[Attribute], kind: u32) -> Result<Vec<Reference>> {
        let Some(list) = attributes.iter().find(|found| found.kind == kind::LIST) else {
            return Ok(Vec::new());
        };
        let bytes = match &list.value {
            Value::Here(bytes) => bytes.clone(),
            Value::There { size, .. } if *size > LIST_LEN_MAX => {
                return Err(self.damaged("a list of attributes is too long"));
            }
            Value::There { size, .. } => {
                let mut runs = Runs::default();
                self.append(&list.value, &mut runs)?;
                let data = super::data::plain(&self.source, runs, *size, *size);
                let mut bytes = vec![0; *size as usize];
                data.read(&mut bytes, 0)?;
                bytes
            }
        };
        let mut found: Vec<Reference> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        for entry in record::listed(&bytes).map_err(|error| self.wrong(error))? {
            let is_wanted = kind == 0 || entry.kind == kind;
            if is_wanted && seen.insert(entry.record) {
                found.push(entry.record);
            }
            if found.len() > RECORDS_MAX {
                return Err(self.damaged("a file has more records than any can have"));
            }
        }
        Ok(found)
    }

    /// All that is known of a file.
    pub(super) fn file(&self, id: Id) -> Result<Arc<File>> {
        let weight = self.parameters.record as u64;
        self.files.get(id, weight, || self.read_file(Reference(id)))
    }

    fn read_file(&self, reference: Reference) -> Result<File> {
        let number = reference.number();
        let (bytes, place) = self.record_bytes(number)?;
        let head = Head::parse(&bytes).map_err(|error| self.wrong(error))?;
        let is_same = reference.sequence() == 0 || reference.sequence() == head.sequence;
        if !head.in_use || !is_same || head.base.number() != 0 {
            return Err(self.damaged(&format!("record {number} is not that of a file any more")));
        }
        let mut attributes = head
            .attributes(&bytes)
            .map_err(|error| self.wrong(error).within(format!("record {number} is damaged")))?;
        for other in self.other_records(&attributes, 0)? {
            if other.number() == number {
                continue;
            }
            let (head, more) = self.record(other.number())?;
            if !head.in_use || head.base.number() != number {
                return Err(self.damaged(&format!("record {number} names one of another file")));
            }
            attributes.extend(more);
        }
        let standard = attributes.iter().find(|found| found.kind == kind::STANDARD);
        let Some(Value::Here(standard)) = standard.map(|found| &found.value) else {
            return Err(self.damaged(&format!("record {number} says nothing of its file")));
        };
        let standard = Standard::parse(standard).map_err(|error| self.wrong(error))?;
        let is_name = |found: &&Attribute| match &found.value {
            // The kind of the name.
            Value::Here(bytes) => found.kind == kind::NAME && bytes.get(65) != Some(&2),
            Value::There { .. } => false,
        };
        let links = attributes.iter().filter(is_name).count() as u32;
        let is_folder = head.is_folder;
        let place = (place, self.parameters.record as u64);
        Ok(File { is_folder, links: links.max(1), standard, attributes, place })
    }
}
