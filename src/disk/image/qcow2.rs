//! A qcow2 file as a layer: its header, and what must hold for every place that its tables name.

use qdelta_formats::FormatError;
use qdelta_formats::qcow2::{
    CompressedDescriptor, CompressionType, Header, HeaderPrefix, HostOffset, L1_ENTRY_SIZE,
    L2Format, Table,
};

use super::layer::LayerFile;
use super::recognise::not_qcow2;
use super::tables::{L1Reader, is_empty};
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::image::extent::{CompressedCluster, Compression};

/// A qcow2 file whose header has been checked.
#[derive(Debug)]
pub(super) struct Qcow2Layer {
    pub(super) file: LayerFile,
    /// The external data file, or the image file again.
    pub(super) data: LayerFile,
    pub(super) header: Header,
    pub(super) format: L2Format,
    /// The L1 table that is read: the active one, or a snapshot's.
    pub(super) l1: Table,
    /// Size of the disk that is read in bytes: the image's, or a snapshot's.
    pub(super) virtual_size: u64,
}

/// Reads and checks the header of the qcow2 image in `file`.
pub(super) fn read_header(file: &LayerFile) -> Result<Header> {
    if let Some(error) = not_qcow2(file)? {
        return Err(error);
    }
    let wrong = |error| Error::format(ErrorKind::Image, &file.path, error);
    let prefix_len = HeaderPrefix::LEN.min(usize::try_from(file.len).unwrap_or(usize::MAX));
    let mut prefix = vec![0; prefix_len];
    file.read_padded(&mut prefix, 0)?;
    let prefix = HeaderPrefix::parse(&prefix).map_err(wrong)?;
    let mut first_cluster = vec![0; prefix.cluster.len()];
    file.read_padded(&mut first_cluster, 0)?;
    Header::parse(&first_cluster).map_err(wrong)
}

impl Qcow2Layer {
    /// The layer of the image with this header, read through the L1 table `l1`.
    ///
    /// # Errors
    /// The L1 table lies outside the file, or names more L2 tables than the file can hold.
    pub(super) fn new(
        file: LayerFile,
        data: LayerFile,
        header: Header,
        l1: Table,
        virtual_size: u64,
    ) -> Result<Self> {
        let format = L2Format::of(&header);
        let layer = Self { file, data, header, format, l1, virtual_size };
        layer.check_l1()?;
        Ok(layer)
    }

    fn has_external_data(&self) -> bool {
        self.format.external_data
    }

    /// Number of L1 entries that the disk needs.
    pub(super) fn l1_entries_used(&self) -> u64 {
        let needed = self.virtual_size.div_ceil(self.format.table_coverage());
        needed.min(self.l1.entries.into())
    }

    /// Bounds the work of one pass over the tables: without this, a table of a few megabytes that
    /// names the same L2 table again and again would keep a reader busy for hours.
    fn check_l1(&self) -> Result<()> {
        let (start, entries) = (self.l1.offset.0, self.l1_entries_used());
        if entries == 0 {
            return Ok(());
        }
        self.check_inside("L1 table", start, entries * L1_ENTRY_SIZE)?;
        let mut reader = L1Reader::default();
        let mut tables: u64 = 0;
        let mut index = 0;
        while index < entries {
            reader.load(self, index)?;
            tables += reader.loaded().filter(|(_, entry)| !is_empty(*entry)).count() as u64;
            index = reader.range().end;
        }
        // The last table may be cut short.
        let max = self.format.cluster.count(self.file.len);
        if tables > max {
            return Err(self.damaged(format!(
                "the L1 table at {start:#x} names {tables} L2 tables, but the file has only {max} clusters"
            )));
        }
        Ok(())
    }

    /// Fails unless `len` bytes of metadata at `start` are in the file. The last cluster of a file
    /// may be cut short: what is missing of it reads as zeros, as it does in QEMU.
    pub(super) fn check_inside(&self, what: &str, start: u64, len: u64) -> Result<()> {
        let end = start.saturating_add(len);
        if end.saturating_sub(self.file.len) < self.format.cluster.bytes() {
            return Ok(());
        }
        Err(self.cut_short(what, start))
    }

    pub(super) fn cut_short(&self, what: &str, start: u64) -> Error {
        let (path, len) = (self.file.path.display(), self.file.len);
        Error::new(
            ErrorKind::Image,
            format!(
                "{path} is cut short: its {what} at {start:#x} lies behind its end at {len:#x}"
            ),
        )
    }

    pub(super) fn damaged(&self, what: String) -> Error {
        Error::new(ErrorKind::Image, format!("{} is damaged: {what}", self.file.path.display()))
    }

    pub(super) fn wrong(&self, error: FormatError) -> Error {
        Error::format(ErrorKind::Image, &self.file.path, error)
    }

    /// Fails if a cluster at `host` that the guest or an L2 table uses is one of the tables that
    /// lead to it.
    pub(super) fn check_overlap(&self, what: &str, host: HostOffset) -> Result<()> {
        let header = &self.header;
        let cluster = header.cluster;
        let refcounts = u64::from(header.refcount_table_clusters) * cluster.bytes();
        let l1 = u64::from(self.l1.entries) * L1_ENTRY_SIZE;
        for (table, start, len) in [
            ("header", 0, cluster.bytes()),
            ("L1 table", self.l1.offset.0, l1),
            ("refcount table", header.refcount_table_offset.0, refcounts),
        ] {
            let range = start..start.saturating_add(len);
            if range.contains(&host.0) {
                let text = format!("the {what} at {host} lies in the {table} at {start:#x}");
                return Err(self.damaged(text));
            }
        }
        Ok(())
    }

    /// Fails unless a data cluster can be at `host`.
    pub(super) fn check_data(&self, host: HostOffset) -> Result<()> {
        // An external data file may end anywhere: what is missing reads as zeros.
        if self.has_external_data() {
            return Ok(());
        }
        if host.0 >= self.file.len {
            return Err(self.cut_short("data cluster", host.0));
        }
        self.check_overlap("data cluster", host)
    }

    pub(super) fn compressed(&self, descriptor: CompressedDescriptor) -> Result<CompressedCluster> {
        let CompressedDescriptor { host, len } = descriptor;
        // Fewer bytes than the descriptor allows may be there: it counts whole sectors.
        let available = self.file.len.saturating_sub(host.0);
        self.check_inside("compressed cluster", host.0, len.into())?;
        if available == 0 {
            return Err(self.cut_short("compressed cluster", host.0));
        }
        Ok(CompressedCluster {
            file: self.file.index,
            host_offset: host.0,
            compressed_len: u32::try_from(available).unwrap_or(u32::MAX).min(len),
            // At most 2 MiB.
            cluster_size: self.format.cluster.bytes() as u32,
            offset_in_cluster: 0,
            compression: match self.header.compression {
                CompressionType::Deflate => Compression::Deflate,
                CompressionType::Zstd => Compression::Zstd,
            },
        })
    }

    /// Whether far less of the data is stored than the tables say, so that it pays to ask the file
    /// for holes. QEMU's own rule, but for counting clusters by the file's length.
    pub(super) fn is_preallocated(&self) -> bool {
        let Some(allocated) = self.data.allocated else { return false };
        let cluster = self.format.cluster;
        let (reserved, stored) = (self.data.len / cluster.bytes(), allocated / cluster.bytes());
        reserved > (stored * 10 / 9).max(stored + 2)
    }
}
