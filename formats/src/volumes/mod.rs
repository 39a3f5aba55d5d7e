//! What divides a disk into volumes, and what tells a volume's content: MBR, GPT, LVM2, and the magic
//! bytes of filesystems. All of it is written by guests, so nothing of it is believed.

pub mod content;
pub mod gpt;
pub mod lvm;
pub mod mbr;

pub use content::Content;
