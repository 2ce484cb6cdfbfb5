//! From two sets of candidates to a working path.
