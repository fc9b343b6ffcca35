//! What the end-to-end tests share: the programs under test, and the servers that they need.
