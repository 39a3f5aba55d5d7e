//! Repositories in an object store: a real one, with a proxy in front that does what networks do.

mod adders;
mod credentials;
mod cycle;
mod damage;
mod guest;
mod kills;
mod lists;
mod lock_renewals;
mod locks;
mod object_locks;
mod readers;
mod requests;
mod serving;
mod stolen;
mod waits;
