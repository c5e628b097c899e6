pub fn run(_seconds: u64, _seed: u64) -> Vec<String> {
    Vec::new()
}
