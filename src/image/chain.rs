//! Opens an image with all the files that it consists of.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use qdelta_formats::qcow2::{self, Encryption, Header, Incompatible, L2Format};

use super::layer::{Layer, LayerFile, RawLayer};
use super::names::{self, Backing, Node};
use super::policy::{Opened, Policy};
use super::qcow2::{Qcow2Layer, read_header};
use super::snapshots;
use super::soundness;
use super::{Format, OpenOptions};
use crate::error::{Error, ErrorKind, Result};
use crate::extent::FileIndex;
use crate::io::Store;
use crate::warning::{Code, Warning};

/// The most files below the top of a chain.
pub(super) const DEPTH_MAX: usize = 16;

/// The opened layers of an image, top first, and all files that hold bytes of it.
#[derive(Default)]
pub(super) struct Opening {
    pub(super) layers: Vec<Layer>,
    pub(super) files: Vec<Arc<dyn Store>>,
    /// For each layer, whether its format was guessed from its first bytes.
    pub(super) guessed: Vec<bool>,
    /// What somebody should know about the image.
    pub(super) warnings: Vec<Warning>,
    seen: Vec<(u64, u64)>,
}

/// Opens the image at `path` and everything that it names.
pub(super) fn open(path: &Path, options: &OpenOptions) -> Result<Opening> {
    let policy = Policy::new(path, options)?;
    let mut opening = Opening::default();
    let top = policy.open_named_by_user(path)?;
    if options.as_file {
        if options.snapshot.is_some() {
            let text = "a snapshot can't be read from an image that is taken as a mere file";
            return Err(Error::new(ErrorKind::Usage, text));
        }
        opening.add_raw(&top)?;
        opening.guessed.push(false);
        return Ok(opening);
    }
    let format = match options.format {
        Some(format) => format,
        None if has_qcow2_magic(&top)? => Format::Qcow2,
        None => Format::Raw,
    };
    let node = Node::plain(path.to_path_buf(), Some(format));
    let mut below = opening.add(&policy, &top, &node, options.snapshot.as_deref())?;
    opening.guessed.push(options.format.is_none());
    let mut by = top.path;
    while let Some(node) = below {
        let name = node.file.display().to_string();
        (by, below) = opening.add_below(&policy, node, &by).map_err(|error| {
            error.within(format!("cannot open the backing file '{name}' of {}", by.display()))
        })?;
    }
    Ok(opening)
}

/// The file of the image at `path` and its header, if it is a qcow2 image; nothing of its chain.
pub(super) fn top_header(
    path: &Path,
    options: &OpenOptions,
) -> Result<Option<(LayerFile, Header)>> {
    let opened = Policy::new(path, options)?.open_named_by_user(path)?;
    let is_qcow2 = match options.format {
        Some(format) => format == Format::Qcow2,
        None => has_qcow2_magic(&opened)?,
    };
    if options.as_file || !is_qcow2 {
        return Ok(None);
    }
    let file = LayerFile::new(&opened, FileIndex(0));
    let header = read_header(&file)?;
    Ok(Some((file, header)))
}

/// Opens the image at `path` and its external data file.
pub(super) fn written_files(path: &Path, options: &OpenOptions) -> Result<Vec<Arc<dyn Store>>> {
    let policy = Policy::new(path, options)?;
    let top = policy.open_named_by_user(path)?;
    let mut files = vec![Arc::clone(&top.store)];
    if let Some((file, header)) = top_header(path, options)? {
        let node = Node::plain(path.to_path_buf(), Some(Format::Qcow2));
        if let Some(name) = data_file_name(&header, &node)? {
            files.push(policy.open_named_by_image(&name, &file.path)?.store);
        }
    }
    Ok(files)
}

impl Opening {
    /// Adds the backing file that `node` describes and the image at `by` names. Gives its path and
    /// the description of the one below it.
    fn add_below(
        &mut self,
        policy: &Policy,
        mut node: Node,
        by: &Path,
    ) -> Result<(PathBuf, Option<Node>)> {
        if self.layers.len() > DEPTH_MAX {
            let text = format!("the chain has more than {DEPTH_MAX} backing files");
            return Err(Error::new(ErrorKind::Image, text));
        }
        let opened = policy.open_named_by_image(&node.file, by)?;
        if let Some(format) = &node.foreign_format {
            let text = format!("format '{}' is not supported", format.escape_debug());
            return Err(Error::new(ErrorKind::Image, text)
                .advise("convert the image with `qemu-img convert -O qcow2` first"));
        }
        let guessed = node.format.is_none();
        if guessed {
            node.format = Some(guess_format(&opened)?);
        }
        let below = self.add(policy, &opened, &node, None)?;
        self.guessed.push(guessed);
        Ok((opened.path, below))
    }

    /// Adds the layer that `node` describes, and gives the description of the one below it.
    fn add(
        &mut self,
        policy: &Policy,
        opened: &Opened,
        node: &Node,
        snapshot: Option<&str>,
    ) -> Result<Option<Node>> {
        if node.format != Some(Format::Qcow2) {
            if let Some(name) = snapshot {
                let path = opened.path.display();
                let text = format!("{path} is a raw image: it has no snapshot '{name}'");
                return Err(Error::new(ErrorKind::NotFound, text));
            }
            if node.backing != Backing::InImage || node.data_file.is_some() {
                let text = "a raw image has no backing file and no data file";
                return Err(Error::new(ErrorKind::Image, text));
            }
            self.add_raw(opened)?;
            return Ok(None);
        }
        let file = self.add_file(opened)?;
        let header = read_header(&file)?;
        check_readable(&header, &file.path)?;
        let below = backing_node(&header, &file.path, node)?;
        let (l1, virtual_size) = match snapshot {
            None => (header.l1, header.virtual_size()),
            Some(name) => {
                let table = snapshots::read_table(&file, &header)?;
                let entry = snapshots::find(&table, name, &file.path)?;
                let size = header.virtual_size();
                let coverage = L2Format::of(&header).table_coverage();
                let l1 = entry
                    .snapshot
                    .checked_l1(header.cluster, coverage, size, entry.position)
                    .map_err(|error| Error::format(ErrorKind::Image, &file.path, error))?;
                (l1, entry.snapshot.virtual_size(size))
            }
        };
        let data = match data_file_name(&header, node)? {
            None => file.clone(),
            Some(name) => {
                let context = |error: Error| {
                    let (name, by) = (name.display(), file.path.display());
                    error.within(format!("cannot open the data file '{name}' of {by}"))
                };
                let opened = policy.open_named_by_image(&name, &file.path).map_err(context)?;
                self.add_file(&opened).map_err(context)?
            }
        };
        let layer = Qcow2Layer::new(file, data, header, l1, virtual_size)?;
        if layer.header.incompatible.contains(Incompatible::CORRUPT) {
            soundness::prove(&layer).map_err(|error| {
                let path = layer.file.path.display();
                error.within(format!("{path} is marked as corrupt, and it is")).advise(
                    "repair it with `qemu-img check -r all`, or take it as it is with --as-file",
                )
            })?;
            let path = layer.file.path.display();
            let text = format!(
                "{path} is marked as corrupt; all its tables were read, and they are in order"
            );
            self.warnings.push(Warning::new(Code::Image, text));
        }
        self.layers.push(Layer::Qcow2(Box::new(layer)));
        Ok(below)
    }

    fn add_raw(&mut self, opened: &Opened) -> Result<()> {
        let file = self.add_file(opened)?;
        self.layers.push(Layer::Raw(RawLayer { file }));
        Ok(())
    }

    /// Adds a file, which must not be part of the image already.
    fn add_file(&mut self, opened: &Opened) -> Result<LayerFile> {
        if self.seen.contains(&opened.id) {
            let path = opened.path.display();
            let text = format!("{path} is part of the image already: its files form a loop");
            return Err(Error::new(ErrorKind::Image, text));
        }
        self.seen.push(opened.id);
        // At most two files for each of 17 layers.
        let index = FileIndex(self.files.len() as u16);
        self.files.push(Arc::clone(&opened.store));
        Ok(LayerFile::new(opened, index))
    }
}

/// Refuses what can't be read.
fn check_readable(header: &Header, path: &Path) -> Result<()> {
    let method = match header.encryption {
        Encryption::None => None,
        Encryption::Aes => Some("AES"),
        Encryption::Luks => Some("LUKS"),
    };
    if let Some(method) = method {
        let text = format!("the data in {} is encrypted with {method}", path.display());
        return Err(Error::new(ErrorKind::Image, text).advise(
            "use --as-file to take the image file itself, encrypted as it is, for the disk",
        ));
    }
    Ok(())
}

/// The name of the external data file, if the image has one.
pub(super) fn data_file_name(header: &Header, node: &Node) -> Result<Option<PathBuf>> {
    if !header.incompatible.contains(Incompatible::DATA_FILE) {
        return match node.data_file {
            None => Ok(None),
            Some(_) => {
                let text = "a data file is given for an image that has none";
                Err(Error::new(ErrorKind::Image, text))
            }
        };
    }
    if let Some(name) = &node.data_file {
        return Ok(Some(name.clone()));
    }
    match &header.extensions.data_file {
        Some(name) if !name.starts_with(b"json:") => names::parse_path(name).map(Some),
        Some(name) => Ok(Some(names::parse(name)?.file)),
        None => {
            let text = "the image has an external data file, but does not say which";
            Err(Error::new(ErrorKind::Image, text))
        }
    }
}

/// What lies below the image with this header, which `node` describes.
pub(super) fn backing_node(header: &Header, path: &Path, node: &Node) -> Result<Option<Node>> {
    match &node.backing {
        Backing::None => return Ok(None),
        Backing::Replaced(below) => return Ok(Some((**below).clone())),
        Backing::InImage => {}
    }
    let Some(name) = &header.backing_name else { return Ok(None) };
    let context = |error: Error| {
        let name = OsStr::from_bytes(name).display();
        error.within(format!("cannot open the backing file '{name}' of {}", path.display()))
    };
    let mut below = names::parse(name).map_err(context)?;
    // The overlay's format field counts more than what a json: name says.
    match header.extensions.backing_format.as_deref() {
        None | Some(b"") => {}
        Some(b"qcow2") => below.format = Some(Format::Qcow2),
        // The drivers below a format driver: the bytes as they are.
        Some(b"raw" | b"file" | b"host_device") => below.format = Some(Format::Raw),
        Some(other) => below.foreign_format = Some(String::from_utf8_lossy(other).into_owned()),
    }
    Ok(Some(below))
}

fn has_qcow2_magic(opened: &Opened) -> Result<bool> {
    Ok(qcow2::has_magic(&first_bytes(opened)?))
}

fn first_bytes(opened: &Opened) -> Result<Vec<u8>> {
    let mut bytes = vec![0; 512];
    LayerFile::new(opened, FileIndex(0)).read_padded(&mut bytes, 0)?;
    Ok(bytes)
}

/// Formats that QEMU knows by their first bytes and that are not read here: where, what, name.
const FOREIGN: &[(usize, &[u8], &str)] = &[
    (0, b"QED\0", "qed"),
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vpc"),
    (0x40, &[0x7f, 0x10, 0xda, 0xbe], "vdi"),
    (0, b"LUKS\xba\xbe", "luks"),
    (0, b"WithoutFreeSpace", "parallels"),
    (0, b"WithouFreSpacExt", "parallels"),
    (0, b"Bochs Virtual HD Image", "bochs"),
];

/// The format of a backing file whose overlay does not say. QEMU would look at its first bytes;
/// so do we, but for formats that can't be read here, whose bytes would be taken for a raw disk.
///
/// A guest that could write to a raw disk can make it look like qcow2. What that could lead to
/// are files that [`Policy`] allows.
pub(super) fn guess_format(opened: &Opened) -> Result<Format> {
    let bytes = first_bytes(opened)?;
    if qcow2::has_magic(&bytes) {
        return Ok(Format::Qcow2);
    }
    let foreign = FOREIGN
        .iter()
        .find(|(at, magic, _)| bytes.get(*at..).is_some_and(|bytes| bytes.starts_with(magic)));
    match foreign {
        None => Ok(Format::Raw),
        Some((_, _, name)) => {
            let text = format!("its format is not named, and it looks like {name}");
            Err(Error::new(ErrorKind::Image, text).advise(
                "name the format in the overlay with `qemu-img rebase -u -F FORMAT -b NAME IMAGE`",
            ))
        }
    }
}
