//! What happened in a random life, told if it ends badly.

/// Tells which life it was, should the thread die in it.
pub struct Story {
    pub seed: u64,
    pub told: Vec<String>,
}

impl Story {
    pub fn tell(&mut self, line: String) {
        self.told.push(line);
    }
}

impl Drop for Story {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let told = self.told.join("\n  ");
            eprintln!("this life failed; QDELTA_SEED={:#x} repeats it:\n  {told}", self.seed);
        }
    }
}
