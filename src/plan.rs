//! What the machine's addresses and routes should be, computed purely.
