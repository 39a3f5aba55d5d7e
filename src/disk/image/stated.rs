//! What somebody says of an image's chain whose word counts more than the image's own headers: the
//! definition of the guest whose disk it is.
//!
//! libvirt follows the definition as far as it goes. Below the last image that the definition names,
//! headers say what follows, unless the definition ends the chain.

use std::path::{Path, PathBuf};

use super::Format;
use super::names::Node;
use super::policy::folder_of;
use crate::base::error::Result;
use crate::base::warning::{Code, Warning};
use crate::disk::files::paths::is_same_file;

/// A backing chain as the definition of a guest describes it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StatedChain {
    /// The external data file of the image itself; without one, the image's header names it.
    pub data_file: Option<PathBuf>,
    /// The images below it, the next one first.
    pub below: Vec<StatedLayer>,
    /// Nothing lies below the last of them. Otherwise the header of the last one says what does.
    pub is_whole: bool,
}

/// An image of a backing chain as the definition of a guest describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatedLayer {
    /// Its file.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// Its external data file; without one, the image's header names it.
    pub data_file: Option<PathBuf>,
}

/// What is stated of one layer of a chain.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stated<'a> {
    /// The external data file.
    pub(super) data_file: Option<&'a Path>,
    /// What lies below.
    pub(super) below: StatedBelow<'a>,
}

/// What is stated to lie below a layer.
#[derive(Debug, Clone, Copy)]
pub(super) enum StatedBelow<'a> {
    /// It is not said: the header counts.
    Unsaid,
    /// Nothing.
    Nothing,
    /// This image.
    Layer(&'a StatedLayer),
}

impl StatedChain {
    /// What is stated of the layer that is `depth` layers below the top.
    pub(super) fn of_layer(&self, depth: usize) -> Stated<'_> {
        let data_file = match depth.checked_sub(1) {
            None => self.data_file.as_deref(),
            Some(index) => self.below.get(index).and_then(|layer| layer.data_file.as_deref()),
        };
        let below = match self.below.get(depth) {
            Some(layer) => StatedBelow::Layer(layer),
            None if self.is_whole && depth == self.below.len() => StatedBelow::Nothing,
            None => StatedBelow::Unsaid,
        };
        Stated { data_file, below }
    }

    /// What the chain of the image at `top` says of the chain of the image at `path`, which may be one
    /// of those below it.
    pub fn seen_from(&self, top: &Path, path: &Path) -> Self {
        if is_same_file(top, path) {
            return self.clone();
        }
        let position = self.below.iter().position(|layer| is_same_file(&layer.path, path));
        let mut rest = position.map_or(&[][..], |index| &self.below[index..]).iter();
        match rest.next() {
            None => Self::default(),
            Some(layer) => Self {
                data_file: layer.data_file.clone(),
                below: rest.cloned().collect(),
                is_whole: self.is_whole,
            },
        }
    }
}

/// How the header of the image at `path`, which names `named` as its backing file, differs from what
/// is stated.
pub(super) fn difference(
    path: &Path,
    named: Result<Option<Node>>,
    stated: &StatedBelow<'_>,
) -> Option<Warning> {
    let named = named.map_err(|error| error.chain());
    let header = match &named {
        Ok(None) => "no backing file".to_owned(),
        Ok(Some(node)) => format!("the backing file '{}'", node.file.display()),
        Err(_) => "a backing file that can't be followed".to_owned(),
    };
    let definition = match (stated, &named) {
        (StatedBelow::Unsaid, _) | (StatedBelow::Nothing, Ok(None)) => return None,
        (StatedBelow::Nothing, _) => "none".to_owned(),
        (StatedBelow::Layer(layer), Ok(Some(node)))
            if is_same_file(&folder_of(path).join(&node.file), &layer.path) =>
        {
            let own = match (&node.foreign_format, node.format) {
                (Some(foreign), _) => foreign.escape_debug().to_string(),
                (None, Some(format)) => format.to_string(),
                (None, None) => return None,
            };
            if own == layer.format.as_str() {
                return None;
            }
            let (base, format) = (layer.path.display(), layer.format);
            return Some(definition_counts(format!(
                "the header of {} says that {base} is {own}, and the guest's definition that it is \
                 {format}: it was read as the definition says",
                path.display()
            )));
        }
        (StatedBelow::Layer(layer), _) => format!("'{}'", layer.path.display()),
    };
    Some(definition_counts(format!(
        "the header of {} names {header}, and the guest's definition {definition}: what the definition \
         says was read",
        path.display()
    )))
}

/// How the name of the external data file in the header of the image at `path` differs from what is
/// stated.
pub(super) fn data_file_difference(
    path: &Path,
    named: Result<Option<PathBuf>>,
    stated: &Path,
) -> Option<Warning> {
    let header = match named {
        Ok(Some(name)) if is_same_file(&folder_of(path).join(&name), stated) => return None,
        Ok(Some(name)) => format!("the data file '{}'", name.display()),
        Ok(None) | Err(_) => "no data file that can be followed".to_owned(),
    };
    Some(definition_counts(format!(
        "the header of {} names {header}, and the guest's definition '{}': what the definition says \
         was read",
        path.display(),
        stated.display()
    )))
}

fn definition_counts(text: String) -> Warning {
    Warning::new(Code::Definition, text).advise(
        "if that is not meant, mend the definition (virsh edit) or the header (qemu-img rebase -u)",
    )
}

#[cfg(test)]
mod tests {
    use super::super::testing::Content::{Data, Nothing};
    use super::super::testing::{Recipe, read, write};
    use super::super::{Image, OpenOptions};
    use super::*;
    use crate::base::error::ErrorKind;

    /// A folder with `top` over `base` over `lowest`; `other`, which lies over nothing; and a folder
    /// elsewhere with `far`, which names `beside`.
    fn images() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let far = dir.path().join("far");
        let images = dir.path().join("images");
        [&far, &images].iter().for_each(|folder| std::fs::create_dir(folder).unwrap());
        let image = |number| Recipe::new(9, vec![Nothing, Data(number), Nothing]);
        write(&images, "top", &Recipe::new(9, vec![Nothing; 3]).over("base", "qcow2").build());
        write(&images, "base", &image(1).over("lowest", "qcow2").build());
        write(&images, "lowest", &Recipe::new(9, vec![Data(2), Nothing, Nothing]).build());
        write(&images, "other", &image(3).build());
        write(&far, "far", &image(4).over("beside", "qcow2").build());
        write(&far, "beside", &Recipe::new(9, vec![Data(5), Nothing, Nothing]).build());
        dir
    }

    fn opened(dir: &Path, chain: &StatedChain) -> Result<Image> {
        let format = Some(Format::Qcow2);
        let options = OpenOptions { format, chain: chain.clone(), ..OpenOptions::default() };
        Image::open(&dir.join("images/top"), &options)
    }

    /// A chain of these files, `!` at the end if it is whole; raw where the name ends with `.raw`.
    fn chain(dir: &Path, names: &str) -> StatedChain {
        let (names, is_whole) = names.strip_suffix('!').map_or((names, false), |it| (it, true));
        let layer = |name: &str| {
            let (path, format) =
                name.strip_suffix(".raw").map_or((name, Format::Qcow2), |it| (it, Format::Raw));
            StatedLayer { path: dir.join(path), format, data_file: None }
        };
        let below = names.split_whitespace().map(layer).collect();
        StatedChain { below, is_whole, data_file: None }
    }

    /// Headers were followed where the guest's definition said otherwise: what was read was proved, and
    /// no guest had ever seen it.
    #[test]
    fn what_is_stated_counts_more_than_headers() {
        let dir = images();
        std::os::unix::fs::symlink("base", dir.path().join("images/link")).unwrap();
        for (names, layers, differs) in [
            ("", "top base lowest", ""),
            ("!", "top", "names the backing file 'base', and the guest's definition none"),
            // What only repeats the headers is nothing to speak of, whatever it calls them.
            ("images/base", "top base lowest", ""),
            ("images/base images/lowest!", "top base lowest", ""),
            ("images/../images/./link", "top link lowest", ""),
            // Only one level, and only the second one.
            ("images/base!", "top base", "base names the backing file 'lowest'"),
            ("images/base images/other!", "top base other", "base names the backing file 'lowest'"),
            ("images/other!", "top other", "top names the backing file 'base'"),
            // Where what is stated ends, headers say what follows; also in another folder.
            ("far/far", "top far beside", "top names the backing file 'base'"),
            // As long as it is.
            ("images/other images/base", "top other base lowest", "other names no backing file"),
            // A header of qcow2 that is said to be raw, below which nothing lies.
            ("images/base.raw images/other!", "top base", "says that"),
        ] {
            let said = chain(dir.path(), names);
            let image = opened(dir.path(), &said).unwrap();
            let names_read: Vec<_> = image.layers().iter().map(|it| it.path.file_name()).collect();
            let expected: Vec<_> = layers.split(' ').map(|it| Some(it.as_ref())).collect();
            assert_eq!(names_read, expected, "{names}");
            let texts: Vec<_> = image.warnings().iter().map(|it| it.text.as_str()).collect();
            let warnings = texts.join("; ");
            assert!(warnings.contains(differs), "{names}: {warnings}");
            let two = names.starts_with("images/other images");
            let count = usize::from(!differs.is_empty()) + usize::from(two);
            assert_eq!(image.warnings().len(), count, "{names}: {warnings}");
        }
        let raw = opened(dir.path(), &chain(dir.path(), "images/base.raw")).unwrap();
        let first = read(&raw, &mut raw.mapper(), 0..4).unwrap();
        assert_eq!(first, b"QFI\xfb");
    }

    #[test]
    fn what_is_stated_and_not_there_is_an_error_with_its_name() {
        let dir = images();
        let error = opened(dir.path(), &chain(dir.path(), "images/gone!")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Image);
        assert!(error.chain().contains("images/gone"), "{}", error.chain());
        assert!(error.advice().unwrap().contains("definition"), "{error:?}");
        // A header does not lead where a definition may.
        let far = dir.path().join("far/far");
        let top = Recipe::new(9, vec![Nothing; 3]).over(far.to_str().unwrap(), "qcow2");
        write(&dir.path().join("images"), "top", &top.build());
        let error = opened(dir.path(), &StatedChain::default()).unwrap_err();
        assert!(error.chain().contains("outside the image's folder"), "{}", error.chain());
        assert!(opened(dir.path(), &chain(dir.path(), "far/far!")).is_ok());
        // A chain that comes back to itself.
        let error = opened(dir.path(), &chain(dir.path(), "images/top")).unwrap_err();
        assert!(error.chain().contains("loop"), "{}", error.chain());
        let data_file = Some(dir.path().join("far/beside"));
        let chain = StatedChain { data_file, ..StatedChain::default() };
        let error = opened(dir.path(), &chain).unwrap_err();
        assert!(error.chain().contains("an image that has none"), "{}", error.chain());
    }

    /// After an external snapshot the image of the point before lies below, and what is stated of it is
    /// the rest of what is stated of the new one.
    #[test]
    fn the_rest_of_a_chain_is_that_of_an_image_in_it() {
        let dir = images();
        let (top, base) = (dir.path().join("images/top"), dir.path().join("images/base"));
        let whole = chain(dir.path(), "images/base images/lowest!");
        assert_eq!(whole.seen_from(&top, &top), whole);
        assert_eq!(whole.seen_from(&top, &base), chain(dir.path(), "images/lowest!"));
        let lowest = dir.path().join("images/lowest");
        assert_eq!(whole.seen_from(&top, &lowest), chain(dir.path(), "!"));
        let other = dir.path().join("images/other");
        assert_eq!(whole.seen_from(&top, &other), StatedChain::default());
    }
}
