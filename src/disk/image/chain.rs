//! Opens an image with all the files that it consists of.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use qdelta_formats::qcow2::{Encryption, Header, Incompatible, L2Format, Table};

use super::layer::{Layer, LayerFile, RawLayer};
use super::names::{self, Backing, Node};
use super::policy::{Opened, Policy};
use super::qcow2::{Qcow2Layer, read_header};
use super::recognise::{self, Look};
use super::snapshots;
use super::soundness;
use super::stated::{Stated, StatedBelow, StatedLayer, data_file_difference, difference};
use super::{Format, OpenOptions};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::warning::{Code, Warning};
use crate::disk::image::extent::FileIndex;
use crate::disk::io::ReadAt;
use crate::disk::nbd::Export;
use crate::disk::sys::FileId;

/// The most images below the top of a chain: libvirt starts no guest with more.
pub const DEPTH_MAX: usize = 200;

/// What lies below a layer.
enum Below<'a> {
    Nothing,
    /// What the image's header names.
    Named(Node),
    /// What the guest's definition names.
    Stated(&'a StatedLayer),
}

/// The opened layers of an image, top first, and all files that hold bytes of it.
#[derive(Default)]
pub(super) struct Opening {
    pub(super) layers: Vec<Layer>,
    pub(super) files: Vec<Arc<dyn ReadAt>>,
    /// For each layer, whether its format was guessed from its first bytes.
    pub(super) guessed: Vec<bool>,
    /// What somebody should know about the image.
    pub(super) warnings: Vec<Warning>,
    seen: Vec<FileId>,
}

/// Opens the image at `path` and everything that it names.
pub(super) fn open(path: &Path, options: &OpenOptions) -> Result<Opening> {
    if let Some(export) = &options.export {
        return open_export(path, export, options);
    }
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
        None => recognise::format_of(&LayerFile::new(&top, FileIndex(0)))?,
    };
    let node = Node::plain(path.to_path_buf(), Some(format));
    let stated = options.chain.of_layer(0);
    let mut below = opening.add(&policy, &top, &node, options.snapshot.as_deref(), stated)?;
    opening.guessed.push(options.format.is_none());
    let mut by = top.path;
    for depth in 1.. {
        let name = match &below {
            Below::Nothing => break,
            Below::Named(node) => node.file.display().to_string(),
            Below::Stated(layer) => layer.path.display().to_string(),
        };
        let stated = options.chain.of_layer(depth);
        (by, below) = opening.add_below(&policy, below, &by, stated).map_err(|error| {
            error.within(format!("cannot open the backing file '{name}' of {}", by.display()))
        })?;
    }
    Ok(opening)
}

/// Opens the disk behind an export: no name in it leads anywhere. Where it stands in the place of the file at
/// `path`, the format is that of the file.
fn open_export(path: &Path, export: &Export, options: &OpenOptions) -> Result<Opening> {
    let name = export.name();
    let is_itself = path == name;
    if options.snapshot.is_some() || is_itself && options.format == Some(Format::Qcow2) {
        let text =
            format!("{} is the disk itself, whatever its server has it from", name.display());
        return Err(Error::new(ErrorKind::Usage, text)
            .advise("leave --format and --snapshot out; the server opens images and snapshots"));
    }
    let disk = export.open()?;
    let len = disk.len().map_err(|error| Error::io("find the end of", name, error))?;
    let path = name.to_path_buf();
    let file = LayerFile { store: disk, index: FileIndex(0), path, len, allocated: None };
    let mut opening = Opening { files: vec![Arc::clone(&file.store)], ..Opening::default() };
    if is_itself
        && options.format.is_none()
        && let Some(what) = recognise::look(&file)?.as_container()
    {
        let text = format!(
            "{} looks like {what}: its server seems to give out the file, not the disk in it",
            name.display()
        );
        let advice = "have the server open it in its format (qemu-nbd --format); if it is meant so, --format raw ends this warning";
        opening.warnings.push(Warning::new(Code::OtherFormat, text).advise(advice));
    }
    opening.layers.push(Layer::Raw(RawLayer { file }));
    opening.guessed.push(false);
    Ok(opening)
}

/// What the file at `path` looks like.
pub(super) fn look(path: &Path) -> Result<Look> {
    let opened = Policy::new(path, &OpenOptions::default())?.open_named_by_user(path)?;
    recognise::look(&LayerFile::new(&opened, FileIndex(0)))
}

/// The file of the image at `path` and its header, if it is a qcow2 image; nothing of its chain.
pub(super) fn top_header(
    path: &Path,
    options: &OpenOptions,
) -> Result<Option<(LayerFile, Header)>> {
    if options.export.is_some() {
        return Ok(None);
    }
    let opened = Policy::new(path, options)?.open_named_by_user(path)?;
    let file = LayerFile::new(&opened, FileIndex(0));
    let is_qcow2 = match options.format {
        Some(format) => format == Format::Qcow2,
        None => recognise::look(&file)? == Look::Qcow2,
    };
    if options.as_file || !is_qcow2 {
        return Ok(None);
    }
    let header = read_header(&file)?;
    Ok(Some((file, header)))
}

/// Opens the image at `path` and its external data file.
pub(super) fn written_files(path: &Path, options: &OpenOptions) -> Result<Vec<Arc<dyn ReadAt>>> {
    if options.export.is_some() {
        return Ok(Vec::new());
    }
    let policy = Policy::new(path, options)?;
    let top = policy.open_named_by_user(path)?;
    let mut files = vec![Arc::clone(&top.store)];
    if let Some((file, header)) = top_header(path, options)? {
        let node = Node::plain(path.to_path_buf(), Some(Format::Qcow2));
        let stated = options.chain.data_file.as_deref();
        files.extend(open_data_file(&policy, &header, &file, &node, stated)?.map(|it| it.store));
    }
    Ok(files)
}

impl Opening {
    /// Adds the image that lies below the one at `by`. Gives its path and what lies below it.
    fn add_below<'a>(
        &mut self,
        policy: &Policy,
        below: Below<'a>,
        by: &Path,
        stated: Stated<'a>,
    ) -> Result<(PathBuf, Below<'a>)> {
        if self.layers.len() > DEPTH_MAX {
            let text = format!("the chain has more than {DEPTH_MAX} backing files");
            return Err(Error::new(ErrorKind::Image, text)
                .advise("merge some of them first (virsh blockcommit, qemu-img commit)"));
        }
        let (opened, mut node) = match below {
            Below::Nothing => return Ok((by.to_path_buf(), Below::Nothing)),
            Below::Named(node) => (policy.open_named_by_image(&node.file, by)?, node),
            Below::Stated(layer) => {
                let node = Node::plain(layer.path.clone(), Some(layer.format));
                (policy.open_stated(&layer.path)?, node)
            }
        };
        if let Some(format) = &node.foreign_format {
            let text = format!("format '{}' is not supported", format.escape_debug());
            return Err(Error::new(ErrorKind::Image, text)
                .advise("convert the image with `qemu-img convert -O qcow2` first"));
        }
        let guessed = node.format.is_none();
        if guessed {
            node.format = Some(recognise::format_below(&LayerFile::new(&opened, FileIndex(0)))?);
        }
        let below = self.add(policy, &opened, &node, None, stated)?;
        self.guessed.push(guessed);
        Ok((opened.path, below))
    }

    /// Adds the layer that `node` describes, and gives what lies below it.
    fn add<'a>(
        &mut self,
        policy: &Policy,
        opened: &Opened,
        node: &Node,
        snapshot: Option<&str>,
        stated: Stated<'a>,
    ) -> Result<Below<'a>> {
        if node.format != Some(Format::Qcow2) {
            if let Some(name) = snapshot {
                let path = opened.path.display();
                let text = format!("{path} is a raw image: it has no snapshot '{name}'");
                return Err(Error::new(ErrorKind::NotFound, text));
            }
            if node.backing != Backing::InImage
                || node.data_file.is_some()
                || stated.data_file.is_some()
            {
                let text = "a raw image has no backing file and no data file";
                return Err(Error::new(ErrorKind::Image, text));
            }
            self.add_raw(opened)?;
            // QEMU lets nothing lie below it, either, whatever the definition says.
            return Ok(Below::Nothing);
        }
        let file = self.add_file(opened)?;
        let header = read_header(&file)?;
        check_readable(&header, &file.path)?;
        let below = self.below(&header, &file.path, node, stated.below)?;
        let (l1, virtual_size) = match snapshot {
            None => (header.l1, header.virtual_size()),
            Some(name) => snapshot_table(&file, &header, name)?,
        };
        let data = match open_data_file(policy, &header, &file, node, stated.data_file)? {
            None => file.clone(),
            Some(opened) => {
                if let Some(stated) = stated.data_file {
                    let named = data_file_name(&header, node, &file.path);
                    self.warnings.extend(data_file_difference(&file.path, named, stated));
                }
                self.add_file(&opened)?
            }
        };
        let layer = Qcow2Layer::new(file, data, header, l1, virtual_size)?;
        if layer.header.incompatible.contains(Incompatible::CORRUPT) {
            self.warnings.push(prove_corrupt(&layer)?);
        }
        self.layers.push(Layer::Qcow2(Box::new(layer)));
        Ok(below)
    }

    /// What lies below the image with this header: what the definition says, and what the header does
    /// where the definition says nothing.
    fn below<'a>(
        &mut self,
        header: &Header,
        path: &Path,
        node: &Node,
        stated: StatedBelow<'a>,
    ) -> Result<Below<'a>> {
        let named = backing_node(header, path, node);
        let below = match stated {
            StatedBelow::Unsaid => return Ok(named?.map_or(Below::Nothing, Below::Named)),
            StatedBelow::Nothing => Below::Nothing,
            StatedBelow::Layer(layer) => Below::Stated(layer),
        };
        self.warnings.extend(difference(path, named, &stated));
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
        // At most two files for each of 201 layers.
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

/// The L1 table and the size of the disk of an internal snapshot.
fn snapshot_table(file: &LayerFile, header: &Header, name: &str) -> Result<(Table, u64)> {
    let table = snapshots::read_table(file, header)?;
    let entry = snapshots::find(&table, name, &file.path)?;
    let size = header.virtual_size();
    let coverage = L2Format::of(header).table_coverage();
    let l1 = entry
        .snapshot
        .checked_l1(header.cluster, coverage, size, entry.position)
        .map_err(|error| Error::format(ErrorKind::Image, &file.path, error))?;
    Ok((l1, entry.snapshot.virtual_size(size)))
}

/// Fails unless all tables of an image that is marked as corrupt are in order. Gives what somebody
/// should know.
fn prove_corrupt(layer: &Qcow2Layer) -> Result<Warning> {
    let path = layer.file.path.display();
    soundness::prove(layer).map_err(|error| {
        error
            .within(format!("{path} is marked as corrupt, and it is"))
            .advise("repair it with `qemu-img check -r all`, or take it as it is with --as-file")
    })?;
    let text =
        format!("{path} is marked as corrupt; all its tables were read, and they are in order");
    Ok(Warning::new(Code::Image, text))
}

/// Opens the external data file of the image with this header, if it has one: the one that is stated,
/// or the one that it names.
fn open_data_file(
    policy: &Policy,
    header: &Header,
    file: &LayerFile,
    node: &Node,
    stated: Option<&Path>,
) -> Result<Option<Opened>> {
    let context = |error: Error, name: &Path| {
        let (name, by) = (name.display(), file.path.display());
        error.within(format!("cannot open the data file '{name}' of {by}"))
    };
    if let Some(path) = stated {
        if !header.incompatible.contains(Incompatible::DATA_FILE) {
            return Err(context(no_data_file(), path));
        }
        return policy.open_stated(path).map(Some).map_err(|error| context(error, path));
    }
    let Some(name) = data_file_name(header, node, &file.path)? else { return Ok(None) };
    let opened = policy.open_named_by_image(&name, &file.path);
    opened.map(Some).map_err(|error| context(error, &name))
}

fn no_data_file() -> Error {
    Error::new(ErrorKind::Image, "a data file is given for an image that has none")
}

/// The name of the external data file in the image at `path`, if the image has one.
pub(super) fn data_file_name(header: &Header, node: &Node, path: &Path) -> Result<Option<PathBuf>> {
    if !header.incompatible.contains(Incompatible::DATA_FILE) {
        return if node.data_file.is_none() { Ok(None) } else { Err(no_data_file()) };
    }
    if let Some(name) = &node.data_file {
        return Ok(Some(name.clone()));
    }
    match &header.extensions.data_file {
        Some(name) => names::parse_data_file(name, path).map(Some),
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
