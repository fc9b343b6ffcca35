//! A whole specification, as containerd 1.6 writes it.
