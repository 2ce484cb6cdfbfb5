//! What `zonemesh status` says: the JSON contract and its form for people.
