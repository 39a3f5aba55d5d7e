//! The options of what restores.

use super::{Entry, Table};

/// The ways of a restore in which a guest could be harmed.
const GUARDED: &[&str] = &[
    "disk over another",
    "disk in place",
    "image in place",
    "guest",
    "instant guest",
    "guest in place",
];

/// The ways that restore disks.
const DISKS: &[&str] = &[
    "disk",
    "disk over another",
    "stream",
    "disk in place",
    "image in place",
    "guest",
    "instant guest",
    "guest in place",
];

pub(super) const TABLES: &[Table] = &[
    Table {
        command: "restore",
        ways: &[
            ("disk", &["g/vda", "o"]),
            ("disk over another", &["g/vda", "o", "--force"]),
            ("stream", &["g/vda", "-"]),
            ("disk in place", &["g/vda", "--in-place"]),
            ("image in place", &["g/vda", "o", "--in-place"]),
            ("guest", &["--domain", "g", "--to", "d"]),
            ("instant guest", &["--domain", "g", "--to", "d", "--instant"]),
            ("guest in place", &["--domain", "g", "--in-place"]),
            ("host", &["--host-config", "--to", "d"]),
        ],
        entries: &[
            Entry(&["--host-config"], &["host"], "which"),
            Entry(&["--host", "h"], &["host"], "which host"),
            Entry(&["--threads", "2"], DISKS, "workers of the pipeline"),
            Entry(&["--io", "auto"], DISKS, "the queue that reads archives or images"),
            Entry(
                &["g/vda"],
                &["disk", "disk over another", "stream", "disk in place", "image in place"],
                "which",
            ),
            Entry(&["--domain", "g"], &["guest", "instant guest", "guest in place"], "which"),
            Entry(
                &["--in-place"],
                &["disk in place", "image in place", "guest in place"],
                "where to",
            ),
            Entry(
                &["--no-point"],
                &["disk in place", "image in place", "guest in place"],
                "no safety point",
            ),
            Entry(
                &["--image-root", "d"],
                &["disk in place", "image in place", "guest in place"],
                "where names in the images may lead",
            ),
            Entry(
                &["--format", "raw"],
                &[
                    "disk",
                    "disk over another",
                    "stream",
                    "disk in place",
                    "image in place",
                    "guest",
                    "guest in place",
                ],
                "of the output, or of the image in place",
            ),
            Entry(
                &["--format", "qcow2"],
                &[
                    "disk",
                    "disk over another",
                    "disk in place",
                    "image in place",
                    "guest",
                    "guest in place",
                ],
                "of the output, or of the image in place",
            ),
            Entry(
                &["--force"],
                &["disk", "disk over another", "guest"],
                "what is there is replaced",
            ),
            Entry(
                &["--salvage"],
                &["disk", "disk over another", "stream"],
                "what can be read is restored",
            ),
            Entry(&["--same-guest"], &["disk in place", "guest in place"], "another UUID is taken"),
            Entry(
                &["--at", "latest"],
                &["guest", "instant guest", "guest in place", "host"],
                "which point",
            ),
            Entry(&["--to", "d"], &["guest", "instant guest", "host"], "where to"),
            Entry(&["--to-pool", "p"], &["guest"], "where the disks go"),
            Entry(&["--rename", "n"], &["guest", "instant guest"], "the name of the new guest"),
            Entry(&["--with-memory"], &["guest"], "the memory of the point is restored"),
            Entry(&["--instant"], &["guest", "instant guest"], "nothing is copied"),
            Entry(&["--socket", "s"], &["instant guest"], "where the server listens"),
            Entry(&["--libvirt-config", "d"], GUARDED, "which guests would be harmed"),
            Entry(&["--libvirt-run", "d"], GUARDED, "which guests would be harmed"),
            Entry(&["--libvirt-state", "d"], GUARDED, "which guests would be harmed"),
            Entry(
                &["--direct", "auto"],
                &[
                    "disk",
                    "disk over another",
                    "disk in place",
                    "image in place",
                    "guest",
                    "guest in place",
                ],
                "how the disk is written",
            ),
        ],
        apart: &[
            ("--format raw", "--image-root"),
            ("--with-memory", "--rename"),
            ("--with-memory", "--instant"),
        ],
    },
    Table {
        command: "replay",
        ways: &[
            ("file", &["a.qdelta", "--output", "o"]),
            ("stream", &["a.qdelta", "--output", "-"]),
        ],
        entries: &[
            Entry(&["a.qdelta"], &[], "what is replayed"),
            Entry(&["--output", "o"], &["file"], "where to"),
            Entry(&["--format", "raw"], &[], "of the output"),
            Entry(&["--format", "qcow2"], &["file"], "of the output"),
            Entry(&["--force"], &["file"], "what is there is replaced"),
            Entry(&["--salvage"], &[], "what can be read is restored"),
            Entry(&["--direct", "auto"], &["file"], "how the disk is written"),
        ],
        apart: &[],
    },
];
