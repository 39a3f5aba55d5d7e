"""The rig of scripts/e2e: a real libvirt guest, its workload, and the checker of restored disks."""
