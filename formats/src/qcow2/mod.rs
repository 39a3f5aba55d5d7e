//! qcow2, as `docs/interop/qcow2.rst` of QEMU specifies it and QEMU's `block/qcow2*.c` enforce it.
