//! The register machine of virtio-mmio.
/// One device on the bus.
#[derive(Debug)]
pub struct Transport {}
