//! Examples of every command, and what else help and man pages say below the options.

use std::fmt::Write;

use super::status;

/// What a command line is for, and the command line.
pub type Example = (&'static str, &'static str);

/// What the first day with qdelta looks like.
const FIRST_STEPS: &[Example] = &[
    ("Make a repository, once", "qdelta init /mnt/backup/repo"),
    ("Say where it is for the commands that follow", "export QDELTA_REPO=/mnt/backup/repo"),
    ("Back up an image, tonight and every night", "qdelta backup web.qcow2"),
    ("List the points", "qdelta points"),
    ("Get the latest state back", "qdelta restore web web-restored.qcow2"),
    ("Prove that every point can be restored", "qdelta verify"),
];

/// The examples of a command.
pub fn list(command: &str) -> &'static [Example] {
    match command {
        "qdelta" => FIRST_STEPS,
        "key" => &[
            ("What can open the repository", "qdelta key list"),
            ("A passphrase as well", "qdelta key add emergency --passphrase-file FILE"),
            ("What this key opens", "qdelta key verify --key-file admin.key"),
            ("For a host that only makes backups", "qdelta key host /etc/qdelta/host.key"),
            ("For a safe", "qdelta key paper | lpr"),
        ],
        "init" => &[
            ("A folder on a backup disk", "qdelta init /mnt/backup/repo"),
            ("qdelta.toml was lost or damaged", "qdelta init --repair /mnt/backup/repo"),
            (
                "Nobody else reads it",
                "qdelta init DIR --encrypt --recipient age1ql3z --recovery /media/usb/qdelta.key",
            ),
        ],
        "backup" => &[
            ("The disk is called after the file: web", "qdelta backup web.qcow2"),
            ("Two disks of one guest", "qdelta backup web-data.qcow2 --disk web/data"),
            ("A new chain", "qdelta backup web.qcow2 --kind full"),
            ("The same without reading the image again", "qdelta backup web.qcow2 --synthetic"),
            ("A raw disk: name its format", "qdelta backup /dev/vg/web --format raw"),
            ("Let QEMU record what changes from now on", "qdelta backup web.qcow2 --anchor bitmap"),
            (
                "With the snapshots that are in the image",
                "qdelta backup web.qcow2 --with-snapshots",
            ),
            ("The result as JSON, for a script", "qdelta backup web.qcow2 --json"),
            ("A disk behind an NBD server", "qdelta backup nbd://10.0.0.7/vda --disk web/vda"),
            ("A libvirt guest, running or not", "qdelta backup --domain web --anchor reflink"),
            ("Every guest of this host", "qdelta backup --all --with-host-config"),
        ],
        "restore" => &[
            ("The latest point, as qcow2", "qdelta restore web web.qcow2"),
            ("As it was on that day", "qdelta restore web@2026-11-22 web.raw"),
            ("As it was at that minute", "qdelta restore 'web@2026-11-22 15:37' web.raw"),
            ("A point by the beginning of its id", "qdelta restore web@20261122T15 web.raw"),
            ("Onto a disk", "qdelta restore web /dev/vg/web --force"),
            ("Roll an image back where it lies", "qdelta restore web@2026-11-22 --in-place"),
            (
                "All disks of a stopped guest",
                "qdelta restore --domain web --at 2026-11-22 --in-place",
            ),
            (
                "A whole guest, beside the old one",
                "qdelta restore --domain web --at 2026-11-22 --to /images/old --rename web-old",
            ),
            (
                "A guest whose disks become volumes of a pool of libvirt's",
                "qdelta restore --domain web --to /srv/web --to-pool default",
            ),
            (
                "A guest that runs at once, and is copied later",
                "qdelta restore --domain web --to /images/now --instant",
            ),
            (
                "The configuration of a host, beside what is there",
                "qdelta restore --host-config --to /srv/host",
            ),
            ("Through a pipe", "qdelta restore web - | ssh host 'dd of=/dev/vg/web bs=1M'"),
        ],
        "copy" => &[
            ("All points, every night", "qdelta copy --to /mnt/offsite/repo"),
            (
                "To an object store, by half of the link",
                "qdelta copy --to s3://offsite/alpha --limit-rate 10M",
            ),
            (
                "One point of each month",
                "qdelta copy web db --to /mnt/archive/repo --points monthly",
            ),
            ("What would be copied", "qdelta copy --to /mnt/offsite/repo --dry-run"),
        ],
        "repair" => &[
            (
                "What is damaged here comes from the second copy",
                "qdelta repair --from /mnt/offsite/repo",
            ),
            ("What would be mended", "qdelta repair web --from s3://offsite/alpha --dry-run"),
        ],
        "replay" => &[(
            "Files in, disk out; * gives them in order",
            "qdelta replay web/disk/*.qdelta --output web.raw",
        )],
        "files" => &[
            ("What is on a disk", "qdelta files ls web"),
            ("A folder, as it was on that day", "qdelta files ls web@2026-11-22 /etc"),
            ("One file, into this folder", "qdelta files get web@2026-11-22 /etc/fstab"),
            (
                "A tree of a volume, elsewhere",
                "qdelta files get web /srv --volume p2 --to /tmp/old",
            ),
            ("What changed since that day", "qdelta files diff web@2026-11-22..latest /etc"),
            ("A tree with owners and attributes", "qdelta files tar web /srv --to srv.tar"),
            ("A file through a pipe", "qdelta files get web /var/log/syslog --to - | grep error"),
        ],
        "verify" => &[
            ("Everything", "qdelta verify"),
            ("One point", "qdelta verify web@latest"),
            ("Only look for damaged files", "qdelta verify --quick"),
            (
                "Each night two hours: what was not proved for a month, the longest unproved first",
                "qdelta verify --max-age 30d --budget 2h",
            ),
        ],
        "mount" => &[
            ("Every point as a file", "qdelta mount /mnt/points"),
            ("One guest, in the background until it is stopped", "qdelta mount /mnt/points web"),
            ("One point", "qdelta mount /mnt/points web@2026-11-22"),
        ],
        "drill" => &[
            ("All guests, as far as their filesystems", "qdelta drill"),
            (
                "Each night the two that were not drilled for longest, booted",
                "qdelta drill --pick 2 --boot-command /usr/lib/qdelta/drill-boot --rto 5m --rpo 26h",
            ),
            ("What was found", "qdelta drill --report"),
        ],
        "run" => &[
            ("What is due; a timer starts this", "qdelta run"),
            ("A job now, before a change", "qdelta run test"),
        ],
        "status" => &[
            ("Is everything all right?", "qdelta status"),
            ("For a monitoring system", "qdelta status --nagios"),
            ("For a script", "qdelta status --json | jq -r '.findings[].text'"),
        ],
        "export-kit" => {
            &[("Onto a stick that is kept elsewhere", "qdelta export-kit /media/stick/qdelta")]
        }
        "notify" => &[
            ("Would a mail reach me?", "qdelta notify --test admin"),
            ("Everything, now", "qdelta notify --digest"),
        ],
        "report" => &[
            ("A page for the boss", "qdelta report /tmp/backups.html"),
            (
                "Anew after each run, as a hook finally",
                "qdelta report --force /var/www/backups.html",
            ),
        ],
        "history" => &[
            ("What was done last", "qdelta history"),
            ("What failed in this week", "qdelta history --failed --since 7d"),
            ("The backups of one guest", "qdelta history --guest web --act backup"),
        ],
        "config" => &[
            ("A file to begin with", "qdelta config example > /etc/qdelta/qdelta.toml"),
            ("What would run when, and which guest no job covers", "qdelta config check"),
        ],
        "points" => &[
            ("All disks", "qdelta points"),
            (
                "The ids of one disk's points",
                "qdelta points web --json | jq -r '.disks[].points[].point'",
            ),
        ],
        "prune" => &[
            (
                "What would stay of 7 days, 4 weeks and a year, and why",
                "qdelta prune --dry-run --keep-daily 7 --keep-weekly 4 --keep-monthly 12",
            ),
            ("By the rules in qdelta.toml, every night", "qdelta prune"),
            ("One guest, and no way back", "qdelta prune old --keep-last 1 --grace 0"),
        ],
        "space" => &[
            ("All guests, and when the room is full", "qdelta space"),
            ("What removing each point of a guest would free", "qdelta space web"),
        ],
        "undelete" => &[("It was needed after all", "qdelta undelete web@20261122T153823.412Z")],
        "merge" => &[
            ("What a merge would bring", "qdelta merge web@20261122T15..20261124T09 --dry-run"),
            ("The nights of a week become one point", "qdelta merge web@2026-11-16..2026-11-22"),
        ],
        "pin" => &[
            (
                "Keep the state of the audit for two years",
                "qdelta pin web@2026-11-22 --reason 'audit 2026' --until 2028",
            ),
            ("For ever, by the point's id", "qdelta pin 20261122T153823.412Z"),
        ],
        "unpin" => &[
            ("The rules decide again", "qdelta unpin web@20261122T153823.412Z"),
            (
                "A guest that ran on the point is gone with its host",
                "qdelta unpin web@20261122T153823.412Z --holder instant-5f0c1a7e",
            ),
        ],
        "serve" => &[
            ("A disk at its latest point", "qdelta serve web/vda@latest --socket /run/qdelta.sock"),
            ("Whatever is asked for", "qdelta serve --socket /run/qdelta.sock"),
        ],
        "anchors" => &[
            ("All disks", "qdelta anchors"),
            ("Remove all anchors of a disk", "qdelta anchors web --remove-all"),
        ],
        "info" => &[
            ("An image", "qdelta info web.qcow2"),
            ("An archive", "qdelta info repo/web/disk/20261122T153823.412Z-full-5999dc20.qdelta"),
        ],
        "map" => &[("For a script", "qdelta map web.qcow2 --json")],
        "bench" => &[
            (
                "Reading here, writing to the backup disk",
                "qdelta bench web.qcow2 --folder /mnt/backup",
            ),
            ("With a picture", "qdelta bench web.qcow2 --plot bench.svg"),
        ],
        "completions" => &[
            ("Bash", "qdelta completions bash > /etc/bash_completion.d/qdelta"),
            ("Z shell", "qdelta completions zsh > ~/.zfunc/_qdelta"),
            ("fish", "qdelta completions fish > ~/.config/fish/completions/qdelta.fish"),
        ],
        "man" => &[("For everyone on this machine", "qdelta man /usr/local/share/man/man1")],
        _ => &[],
    }
}

/// The examples of a command, as help shows them.
pub fn of(command: &str) -> String {
    let mut text = "Examples:\n".to_owned();
    for (purpose, command) in list(command) {
        // Writing to a string does not fail.
        let _ = write!(text, "  # {purpose}\n  {command}\n");
    }
    text.trim_end().to_owned()
}

/// What `qdelta -h` shows below the options.
pub fn short() -> String {
    format!(
        "{}\n\nqdelta COMMAND --help says more, and qdelta --help the exit statuses.",
        of("qdelta")
    )
}

/// What `--help` of a command, or of the program, shows below the options.
pub fn long(command: Option<&str>) -> String {
    let mut text = of(command.unwrap_or("qdelta"));
    match command {
        Some(_) => text.push_str("\n\nqdelta --help lists the exit statuses."),
        None => {
            text.push_str("\n\nExit statuses:\n");
            for (status, meaning) in status::TABLE {
                let _ = writeln!(text, "  {status:>3}  {meaning}");
            }
            text.push_str(
                "\nqdelta COMMAND --help says more of a command. The man pages say the same: \
                 qdelta man DIR.",
            );
        }
    }
    text
}
