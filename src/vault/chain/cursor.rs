//! A pass over the groups of a chain, and questions about single groups.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use super::Chain;
use super::state::GroupState;
use super::tables::Tables;
use super::window::Window;
use crate::base::error::{Error, ErrorKind, Result};
use crate::formats::archive::{GroupIndex, zero_block_digest, zero_group_digest};

/// How many windows a chain holds for those who ask for single groups.
const WINDOWS_MAX: usize = 8;

/// The windows that were asked for last, the latest at the end.
#[derive(Clone, Default)]
pub(super) struct Recent(Arc<Mutex<VecDeque<Arc<Window>>>>);

impl std::fmt::Debug for Recent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recent").finish_non_exhaustive()
    }
}

impl Recent {
    fn get(&self, chain: &Chain, number: u32) -> Result<Arc<Window>> {
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = {
            let mut windows = lock();
            let at = windows.iter().position(|window| window.number() == number);
            let window = at.and_then(|at| windows.remove(at));
            windows.extend(window.clone());
            window
        };
        if let Some(window) = found {
            return Ok(window);
        }
        // Nobody waits while this thread reads. Two threads may load the same window.
        let window = Arc::new(Window::load(chain.archives(), number)?);
        let mut windows = lock();
        if windows.len() >= WINDOWS_MAX {
            windows.pop_front();
        }
        windows.push_back(Arc::clone(&window));
        Ok(window)
    }
}

impl Chain {
    /// What the chain says about `group`, without a pass over the groups before. Any thread may ask
    /// for any group.
    ///
    /// The digests are proved by the group's digest before anyone sees them, so a damaged digest
    /// table can't spoil a backup that compares with them.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`]: the disk has no such group. [`ErrorKind::Damaged`]: digests or frame
    /// entries are not as they were written; the error names the group and the archives. Others:
    /// a store failed.
    pub fn state(&self, group: GroupIndex) -> Result<GroupState> {
        self.check_group(group)?;
        let window = self.recent.get(self, Window::number_of(group))?;
        let mut state = self.empty_state();
        window.fill(self, group, &mut Tables::exact(), &mut state)?;
        Ok(state)
    }

    /// Starts a pass over the disk's groups, which reads ahead. Each thread may have its own.
    pub fn cursor(&self) -> GroupCursor<'_> {
        let tables = Tables::ahead(self.archives.len());
        GroupCursor { chain: self, window: None, tables, state: self.empty_state() }
    }

    fn empty_state(&self) -> GroupState {
        let block_size = self.geometry().block_size();
        GroupState::new(zero_block_digest(block_size), zero_group_digest(block_size))
    }

    fn check_group(&self, group: GroupIndex) -> Result<()> {
        if group.0 < self.geometry().group_count() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Usage, format!("the disk has no group {}", group.0)))
    }
}

/// A pass over the groups of a chain, in ascending order: it reads the tables ahead. Any other
/// order gives the same answers and reads more.
pub struct GroupCursor<'a> {
    chain: &'a Chain,
    window: Option<Window>,
    tables: Tables,
    state: GroupState,
}

impl std::fmt::Debug for GroupCursor<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupCursor").field("group", &self.state.group()).finish_non_exhaustive()
    }
}

impl GroupCursor<'_> {
    /// What the chain says about `group`.
    ///
    /// # Errors
    /// See [`Chain::state`].
    pub fn seek(&mut self, group: GroupIndex) -> Result<&GroupState> {
        self.chain.check_group(group)?;
        let number = Window::number_of(group);
        let window = match self.window.take().filter(|window| window.number() == number) {
            Some(window) => window,
            None => Window::load(self.chain.archives(), number)?,
        };
        let filled = window.fill(self.chain, group, &mut self.tables, &mut self.state);
        self.window = Some(window);
        filled.map(|()| &self.state)
    }
}
