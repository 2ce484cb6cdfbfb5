//! The control loop of one node.
