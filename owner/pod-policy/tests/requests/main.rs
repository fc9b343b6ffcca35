//! What a container engine asks for on behalf of a pod is allowed, and nothing else: by the guest's own evaluator.

mod containers;
mod details;
mod disks;
mod pod;
mod world;
