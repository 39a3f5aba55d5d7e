//! The roots of many points, computed in one pass over the archives that they share.
//!
//! A chain of a thousand points is a thousand chains, each of which is the one before and one more
//! archive: to compute every root from its own chain would read the digests of the full a thousand
//! times. Here the disk is walked over once, group by group. The digests of a group are handed
//! from each archive to those that build on it, and each changes what it has something to say about.

use std::sync::Arc;

use super::bits::{count, ones};
use super::state::LEN;
use super::tables::Tables;
use super::window::{Speaker, Window};
use super::{check_first, check_pair};
use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::formats::archive::{
    Digest, GROUP_BLOCKS, GroupIndex, RootHasher, group_digest, zero_block_digest,
    zero_group_digest,
};
use crate::vault::archive::{Reader, Windows};

/// The most archives that a message names.
const NAMES_MAX: usize = 8;

/// Archives of one full, each with the one that it builds on.
#[derive(Debug, Default)]
pub struct Forest {
    nodes: Vec<Node>,
}

/// An archive of a forest.
#[derive(Debug)]
struct Node {
    reader: Arc<Reader>,
    parent: Option<usize>,
    /// How many archives build on it.
    children: usize,
    /// How many archives stand above it, itself included.
    weight: usize,
    /// Whether the root of its point is asked for.
    wanted: bool,
}

/// What one archive says, laid over what its parent holds.
pub struct Overlay<'a> {
    reader: &'a Reader,
    /// What the archive says about the groups around the last one, and where those are.
    window: Option<(u32, Speaker)>,
    windows: Windows,
    ahead: u64,
    zero: Digest,
}

/// What an archive leaves of a group.
#[derive(Clone)]
struct Standing {
    /// The digests of the group's blocks; none if all are zero.
    blocks: Option<Arc<[Digest; LEN]>>,
    /// The digest of the group, as the index has it.
    group: Digest,
    /// Whether the one follows from the other, once somebody looked.
    agrees: Option<bool>,
}

impl Forest {
    /// Adds an archive that builds on one that was added before. Gives the number of the archive.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] if it does not follow the other; one that builds on none is no full.
    pub fn add(
        &mut self,
        reader: Arc<Reader>,
        parent: Option<usize>,
        wanted: bool,
    ) -> Result<usize> {
        match parent.and_then(|parent| self.nodes.get(parent)) {
            Some(parent) => check_pair(&parent.reader, &reader)?,
            None => check_first(&reader)?,
        }
        self.nodes.push(Node { reader, parent, children: 0, weight: 1, wanted });
        Ok(self.nodes.len() - 1)
    }
}

impl Forest {
    /// How many groups the largest of the disks has.
    pub fn group_count(&self) -> u32 {
        self.nodes.iter().map(|node| node.reader.geometry().group_count()).max().unwrap_or(0)
    }

    /// Proves the roots that were asked for: that the digests of the blocks give those of the
    /// groups, and those the root. Gives what is wrong with each archive's point; `advance` is told
    /// of each group.
    ///
    /// # Errors
    /// The work was cancelled.
    pub fn prove(
        mut self,
        mut advance: impl FnMut(),
        cancel: &Cancel,
    ) -> Result<Vec<Option<Error>>> {
        let order = self.order();
        let mut pass = Pass::new(&self, order);
        for group in 0..self.group_count() {
            cancel.check()?;
            pass.group(GroupIndex(group));
            advance();
        }
        Ok(pass.finish())
    }

    /// The archives in the order of a pass: each after the one that it builds on, and of those that
    /// build on one archive the one that most builds on last. So few states wait at a time.
    fn order(&mut self) -> Vec<usize> {
        let mut above: Vec<Vec<usize>> = vec![Vec::new(); self.nodes.len()];
        let mut next = Vec::new();
        for number in (0..self.nodes.len()).rev() {
            let Some(node) = self.nodes.get(number) else { continue };
            let (parent, weight) = (node.parent, node.weight);
            let Some(parent) = parent else {
                next.push(number);
                continue;
            };
            if let Some(node) = self.nodes.get_mut(parent) {
                node.children += 1;
                node.weight += weight;
            }
            if let Some(above) = above.get_mut(parent) {
                above.push(number);
            }
        }
        let mut order = Vec::with_capacity(self.nodes.len());
        while let Some(number) = next.pop() {
            order.push(number);
            let mut children = above.get_mut(number).map(std::mem::take).unwrap_or_default();
            // What is pushed last comes next.
            children.sort_by_key(|child| {
                std::cmp::Reverse(self.nodes.get(*child).map_or(0, |node| node.weight))
            });
            next.extend(children);
        }
        order
    }
}

/// A pass over the groups of a forest.
struct Pass<'a> {
    steps: Vec<Step<'a>>,
    /// The place of each archive among the steps.
    places: Vec<usize>,
    nothing: Standing,
}

/// One archive in a pass.
struct Step<'a> {
    node: &'a Node,
    number: usize,
    /// The step of the archive that it builds on.
    parent: Option<usize>,
    overlay: Overlay<'a>,
    /// Whether it says something about the group.
    speaks: bool,
    /// How many of those that build on it have not had the group's state yet.
    waiting: usize,
    /// What it leaves of the group, as long as others wait for that.
    standing: Option<Standing>,
    root: Option<RootHasher>,
    /// Why its digests can't be read: then nobody's above it are known.
    unread: Option<Error>,
    problem: Option<Error>,
}

impl<'a> Pass<'a> {
    fn new(forest: &'a Forest, order: Vec<usize>) -> Self {
        let block_size = forest.nodes.first().map_or(0, |node| node.reader.geometry().block_size());
        let ahead = Tables::share(forest.nodes.len());
        let mut places = vec![0; forest.nodes.len()];
        let mut steps: Vec<Step<'_>> = Vec::with_capacity(order.len());
        for number in order {
            let Some(node) = forest.nodes.get(number) else { continue };
            if let Some(place) = places.get_mut(number) {
                *place = steps.len();
            }
            steps.push(Step {
                node,
                number,
                parent: node.parent.and_then(|parent| places.get(parent).copied()),
                overlay: Overlay::new(&node.reader, ahead),
                speaks: false,
                waiting: 0,
                standing: None,
                root: node.wanted.then(|| RootHasher::new(node.reader.geometry())),
                unread: None,
                problem: None,
            });
        }
        let group = zero_group_digest(block_size);
        Self { steps, places, nothing: Standing { blocks: None, group, agrees: Some(true) } }
    }

    /// Takes one group through all archives.
    fn group(&mut self, group: GroupIndex) {
        for place in 0..self.steps.len() {
            let inherited = self.inherit(place);
            let Some(step) = self.steps.get_mut(place) else { continue };
            if step.unread.is_some() {
                continue;
            }
            let mut standing = match inherited {
                Ok(standing) => standing,
                Err(error) => {
                    step.unread = Some(error);
                    continue;
                }
            };
            let spoken =
                step.overlay.speak(group, &mut standing).map(|speaks| step.speaks = speaks);
            if standing.blocks.is_none() && standing.agrees.is_none() {
                standing.agrees = Some(standing.group == self.nothing.group);
            }
            if standing.is_cut(&step.node.reader, group) {
                standing = self.nothing.clone();
            }
            if let Err(error) = spoken {
                step.unread = Some(error);
                continue;
            }
            let is_asked =
                step.problem.is_none() && group.0 < step.node.reader.geometry().group_count();
            if let Some(root) = step.root.as_mut().filter(|_| is_asked) {
                root.push(standing.group);
                if !standing.agrees() {
                    let error = self.disagreement(place, group);
                    if let Some(step) = self.steps.get_mut(place) {
                        step.problem = Some(error);
                    }
                }
            }
            if let Some(step) = self.steps.get_mut(place)
                && step.node.children > 0
            {
                step.waiting = step.node.children;
                step.standing = Some(standing);
            }
        }
    }

    /// What an archive finds of the group.
    fn inherit(&mut self, place: usize) -> Result<Standing> {
        let parent = self.steps.get(place).and_then(|step| step.parent);
        let Some(parent) = parent.and_then(|parent| self.steps.get_mut(parent)) else {
            return Ok(self.nothing.clone());
        };
        if let Some(error) = &parent.unread {
            return Err(error.clone());
        }
        parent.waiting = parent.waiting.saturating_sub(1);
        let standing = match parent.waiting {
            0 => parent.standing.take(),
            _ => parent.standing.clone(),
        };
        Ok(standing.unwrap_or_else(|| self.nothing.clone()))
    }

    /// Says that the digests of a group do not follow from each other, and whose they are.
    fn disagreement(&self, place: usize, group: GroupIndex) -> Error {
        let mut names = Vec::new();
        let mut more = 0;
        let mut next = self.steps.get(place);
        let geometry = next.map(|step| step.node.reader.geometry());
        while let Some(step) = next {
            if step.speaks && names.len() < NAMES_MAX {
                names.push(step.node.reader.path().display().to_string());
            } else if step.speaks {
                more += 1;
            }
            next = step.parent.and_then(|parent| self.steps.get(parent));
        }
        if more > 0 {
            names.push(format!("{more} more below them"));
        }
        names.reverse();
        let range = geometry.map(|geometry| geometry.group_range(group)).unwrap_or_default();
        let what = format!(
            "the digests of group {}, bytes {} to {} of the disk do not agree: the index of one of \
             these is damaged: {}",
            group.0,
            range.start,
            range.end,
            names.join(", ")
        );
        Error::new(ErrorKind::Damaged, what)
    }

    /// What is wrong with each archive's point, in the order in which they were added.
    fn finish(self) -> Vec<Option<Error>> {
        let mut problems: Vec<Option<Error>> = Vec::new();
        problems.resize_with(self.places.len(), || None);
        for step in self.steps {
            let named = step.node.reader.root();
            let problem = step.unread.or(step.problem).or_else(|| {
                let computed = step.root?.finish();
                let text =
                    format!("the digests give the root {computed}, and the index says {named}");
                (computed != named).then(|| Error::new(ErrorKind::Damaged, text))
            });
            if let Some(place) = problems.get_mut(step.number).filter(|_| step.node.wanted) {
                *place = problem;
            }
        }
        problems
    }
}

impl<'a> Overlay<'a> {
    /// Begins a pass over what an archive says, which reads so many records of its tables ahead.
    pub fn new(reader: &'a Reader, ahead: u64) -> Self {
        let zero = zero_block_digest(reader.geometry().block_size());
        Self { reader, window: None, windows: Windows::default(), ahead, zero }
    }

    /// The digests of a group's blocks at the archive's point, if they were `below` at its parent;
    /// none where all blocks are zero. Groups come in ascending order.
    ///
    /// # Errors
    /// The digests can't be read.
    pub fn over(
        &mut self,
        group: GroupIndex,
        below: Option<Arc<[Digest; LEN]>>,
    ) -> Result<Option<Arc<[Digest; LEN]>>> {
        let mut standing = Standing { blocks: below, group: self.zero, agrees: None };
        self.speak(group, &mut standing)?;
        Ok(standing.blocks)
    }

    /// Changes what the archive has something to say about. Tells whether there was anything.
    fn speak(&mut self, group: GroupIndex, standing: &mut Standing) -> Result<bool> {
        let (zero, start) = (self.zero, u64::from(group.0) * u64::from(GROUP_BLOCKS));
        // A disk that is shorter than its parent has lost what lay behind its end.
        let end = self.reader.geometry().block_count().saturating_sub(start);
        if end < LEN as u64
            && let Some(blocks) = &mut standing.blocks
        {
            let cut = blocks.get(end as usize..).unwrap_or_default();
            if cut.iter().any(|digest| *digest != zero) {
                let cut = Arc::make_mut(blocks).get_mut(end as usize..).unwrap_or_default();
                cut.fill(zero);
                standing.agrees = None;
            }
        }
        let number = Window::number_of(group);
        let speaker = match self.window.take() {
            Some((loaded, speaker)) if loaded == number => speaker,
            _ => Speaker::load(0, self.reader, number)?,
        };
        let (_, speaker) = self.window.insert((number, speaker));
        if !speaker.speaks(group) {
            return Ok(false);
        }
        let stored = speaker.stored(group);
        let count = count(&stored);
        if count > 0 || standing.blocks.is_some() {
            let rank = speaker.rank(group);
            let digests = self.windows.digests(self.reader, rank, count, self.ahead)?;
            let blocks = standing.blocks.get_or_insert_with(|| Arc::new([zero; LEN]));
            let blocks = Arc::make_mut(blocks);
            for (block, digest) in ones(&stored).zip(digests) {
                if let Some(place) = blocks.get_mut(block) {
                    *place = Digest(*digest);
                }
            }
            for block in ones(&speaker.zero(group)) {
                if let Some(place) = blocks.get_mut(block) {
                    *place = zero;
                }
            }
        }
        if let Some(rank) = speaker.digest_rank(group) {
            standing.group = self.windows.group_digest(self.reader, rank, self.ahead)?;
        }
        standing.agrees = None;
        Ok(true)
    }
}

impl Standing {
    /// Whether the disk of an archive ends before the group.
    fn is_cut(&self, reader: &Reader, group: GroupIndex) -> bool {
        group.0 >= reader.geometry().group_count()
    }

    /// Whether the group's digest follows from those of its blocks.
    fn agrees(&mut self) -> bool {
        let Self { blocks, group, agrees } = self;
        *agrees.get_or_insert_with(|| {
            blocks.as_ref().is_some_and(|blocks| group_digest(blocks) == *group)
        })
    }
}
