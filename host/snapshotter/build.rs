//! Generates the messages and services of containerd's API from the formats in `proto/`.

fn main() -> std::io::Result<()> {
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .compile_protos(&["proto/snapshots.proto", "proto/content.proto"], &["proto"])
}
